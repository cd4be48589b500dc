//! `cluster`: administration of a cluster of control planes. Most commands ask the REST API; `snapshot restore` and `recover` work on a data
//! directory.

mod args;
mod archive;
mod show;

pub use args::Cluster;

use crate::{
    cli::{Format, Root},
    client::{Answer, Client, encode},
    output,
};
use anyhow::{anyhow, bail};
use args::{Changed, JoinToken, Snapshot, What};
use reqwest::Method;
use serde_json::{Value, json};
use std::process::ExitCode;

/// Exit code of `status --check` for a cluster that is not healthy.
const NOT_HEALTHY: u8 = 3;

/// `ikadactl cluster`.
///
/// # Errors
/// The call fails, is refused, or the directory cannot be used.
pub async fn run(root: &Root, args: &Cluster) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Status { check, output } => {
            let status = get(&Client::new(root)?, "/cluster").await?;
            print(output.output, &status, show::status)?;
            let healthy = status["health"]["healthy"] == true;
            return Ok(if *check && !healthy { ExitCode::from(NOT_HEALTHY) } else { ExitCode::SUCCESS });
        }
        What::Members(output) => print(output.output, &get(&Client::new(root)?, "/cluster/members").await?, |v| show::members(&v["items"]))?,
        What::JoinToken { what } => join_token(&Client::new(root)?, what).await?,
        What::Remove(changed) => {
            let id = change(&Client::new(root)?, changed, "remove").await?;
            output::line(&format!("removed node {id}"))?;
        }
        What::Promote(changed) => {
            let id = change(&Client::new(root)?, changed, "promote").await?;
            output::line(&format!("node {id} has a vote"))?;
        }
        What::TransferLeader { to } => {
            let client = Client::new(root)?;
            let to = match to {
                Some(node) => Some(node_id(&client, node).await?),
                None => None,
            };
            let answer = refusable(client.call(Method::POST, "/cluster/transfer-leader", Some(&json!({"to": to}))).await?)?.json()?;
            output::line(&format!("node {} leads", answer["leader"]))?;
        }
        What::Snapshot { what: Snapshot::Save { file, overwrite, output } } => {
            let saved = archive::save(&Client::new(root)?, root.api_timeout, file, *overwrite).await?;
            print(output.output, &saved, |s| format!("saved {} resources as of entry {} to {} ({} bytes)\n", s["resources"], s["index"], file.display(), s["bytes"]))?;
        }
        What::Snapshot { what: Snapshot::Restore { file, data_dir, node, output } } => {
            let restored = archive::restore(file, data_dir, node).await?;
            print(output.output, &restored, |r| show::restored(r, data_dir))?;
        }
        What::Recover { data_dir, node, yes, output } => {
            if !yes {
                bail!(
                    "this would make a new cluster, of this node alone, out of what {} has; writes that it never got would be lost. \
                     Read `ikadactl cluster recover --help`; --yes does it",
                    data_dir.display()
                );
            }
            let recovered = archive::recover(data_dir, node).await?;
            print(output.output, &recovered, |r| show::recovered(r, data_dir))?;
        }
        What::Tune(output) => {
            let client = Client::new(root)?;
            let report = refusable(client.call(Method::POST, "/cluster/tune", Some(&json!({}))).await?)?.json()?;
            print(output.output, &report, show::tune)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print(format: Format, value: &Value, table: impl FnOnce(&Value) -> String) -> anyhow::Result<()> {
    match format {
        Format::Table => output::write(table(value).as_bytes()),
        Format::Yaml => output::write(output::yaml(value)?.as_bytes()),
        Format::Json => output::line(&output::pretty_json(&value.to_string())),
    }
}

/// The answer; a refusal that can be forced says how.
fn refusable(answer: Answer) -> anyhow::Result<Answer> {
    let forcible = serde_json::from_str::<Value>(&answer.body)
        .is_ok_and(|body| answer.status.is_client_error() && body["invalid_parameters"].as_array().is_some_and(|p| p.iter().any(|p| p["field"] == "force")));
    if !forcible {
        return answer.ok();
    }
    let body = answer.json()?;
    Err(anyhow!("{}; --force does it nevertheless", body["detail"].as_str().unwrap_or("refused")))
}

async fn get(client: &Client, path: &str) -> anyhow::Result<Value> {
    let answer = client.get(path).await?;
    if answer.status == reqwest::StatusCode::NOT_FOUND && !answer.is_absent() {
        bail!("{} has no /cluster: that is no Ikada control plane, or one of an older version", client.address());
    }
    answer.ok()?.json()
}

/// The id of a member given by id or name.
async fn node_id(client: &Client, node: &str) -> anyhow::Result<u64> {
    if let Ok(id) = node.parse() {
        return Ok(id);
    }
    let members = get(client, "/cluster/members").await?;
    let of_name = |m: &&Value| m["name"] == node;
    let found: Vec<u64> = members["items"].as_array().into_iter().flatten().filter(of_name).filter_map(|m| m["id"].as_u64()).collect();
    match found.as_slice() {
        [id] => Ok(*id),
        [] => bail!("there is no member named {node:?}: see `ikadactl cluster members`"),
        several => bail!("{} members are named {node:?}: give one of the ids {several:?}", several.len()),
    }
}

async fn change(client: &Client, changed: &Changed, action: &str) -> anyhow::Result<u64> {
    let id = node_id(client, &changed.node).await?;
    let answer = client.call(Method::POST, &format!("/cluster/members/{id}:{action}"), Some(&json!({"force": changed.force}))).await?;
    refusable(answer)?;
    Ok(id)
}

async fn join_token(client: &Client, what: &JoinToken) -> anyhow::Result<()> {
    match what {
        JoinToken::Create { valid_for, uses, learner, output } => {
            let body = json!({"validFor": format!("{}s", valid_for.as_secs()), "uses": uses, "voter": !learner});
            let made = refusable(client.call(Method::POST, "/cluster/join-tokens", Some(&body)).await?)?.json()?;
            if output.output == Format::Table {
                // The token alone goes to standard output, so that it can be kept: `> token`.
                eprint!("{}", show::how_to_join(&made));
            }
            print(output.output, &made, |m| format!("{}\n", m["token"].as_str().unwrap_or("")))
        }
        JoinToken::List(output) => print(output.output, &get(client, "/cluster/join-tokens").await?, |v| show::tokens(&v["items"])),
        JoinToken::Revoke { id } => {
            refusable(client.call(Method::DELETE, &format!("/cluster/join-tokens/{}", encode(id)), None).await?)?;
            output::line(&format!("revoked join token {id}"))
        }
    }
}

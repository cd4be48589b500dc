//! `config` and `version`.

use crate::{
    cli::{Config, ConfigWhat, ControlPlanes, Root, Version},
    client::Client,
    config::{self, ApiServer, Configuration, Header},
    output, table,
};
use anyhow::{anyhow, bail};

/// `ikadactl config`.
///
/// # Errors
/// The file cannot be read or written, or a name is unknown.
pub async fn run(root: &Root, args: &Config) -> anyhow::Result<()> {
    let path = config::path(root)?;
    let mut config = config::load(&path)?;
    let what = match &args.what {
        ConfigWhat::View => return output::write(output::yaml(&serde_json::to_value(&config)?)?.as_bytes()),
        ConfigWhat::ControlPlanes { what } => what,
    };
    match what {
        ControlPlanes::List => return list(&config),
        ControlPlanes::Add { name, overwrite, skip_check, headers, auth_type, auth_conf } => {
            if config.control_plane(name).is_some() && !overwrite {
                bail!("control plane with name {name:?} already exists. Use --overwrite to replace an existing one");
            }
            if root.address.is_none() {
                bail!("give the control plane's address with --address, e.g. --address http://localhost:5681");
            }
            let mut api = ApiServer {
                headers: headers.iter().map(|(key, value)| Header { key: key.clone(), value: value.clone() }).collect(),
                auth_type: auth_type.clone().unwrap_or_default(),
                auth_conf: auth_conf.iter().cloned().collect(),
                ..ApiServer::default()
            };
            config::override_with(&mut api, root)?;
            if !skip_check {
                check(&Client::to(api.clone(), root.api_timeout)?).await?;
            }
            config.put(name, api);
            config::save(&path, &config)?;
            output::line(&format!("added Control Plane {name:?}"))?;
        }
        ControlPlanes::Switch { name } => {
            let context = config.contexts.iter().find(|c| c.control_plane == *name).map(|c| c.name.clone());
            config.current_context = context.ok_or_else(|| unknown(name))?;
            config::save(&path, &config)?;
        }
        ControlPlanes::Remove { name } => {
            if config.control_plane(name).is_none() {
                return Err(unknown(name));
            }
            config.control_planes.retain(|cp| cp.name != *name);
            config.contexts.retain(|c| c.control_plane != *name);
            if !config.contexts.iter().any(|c| c.name == config.current_context) {
                config.current_context.clear();
            }
            config::save(&path, &config)?;
            return output::line(&format!("removed Control Plane {name:?}"));
        }
    }
    output::line(&format!("switched active Control Plane to {:?}", config.current().unwrap_or("")))
}

fn unknown(name: &str) -> anyhow::Error {
    anyhow!("there is no Control Plane with name {name:?}: see `ikadactl config control-planes list`")
}

fn list(config: &Configuration) -> anyhow::Result<()> {
    let current = config.current();
    let rows: Vec<Vec<String>> = config
        .control_planes
        .iter()
        .map(|cp| {
            let active = if current == Some(&cp.name) { "*" } else { "" };
            vec![active.to_owned(), cp.name.clone(), cp.coordinates.api_server.url.clone()]
        })
        .collect();
    output::write(table::render(&["ACTIVE", "NAME", "ADDRESS"], &rows).as_bytes())
}

/// Whether a control plane answers at this address.
async fn check(client: &Client) -> anyhow::Result<()> {
    let hint = "check the address, or use --skip-check";
    let index = client.get("/").await.map_err(|e| anyhow!("{e:#}: {hint}"))?.ok()?.json()?;
    match index["product"].as_str() {
        Some("Kuma" | "Ikada" | "Kong Mesh") => Ok(()),
        other => bail!("{} does not answer as a control plane of Ikada or Kuma (product {:?}): {hint}", client.address(), other.unwrap_or("")),
    }
}

/// `ikadactl version`.
///
/// # Errors
/// Standard output cannot be written; an unreachable control plane is only told.
pub async fn version(root: &Root, args: &Version) -> anyhow::Result<()> {
    output::line(&format!("Client: Ikada {}", env!("CARGO_PKG_VERSION")))?;
    let index = match Client::new(root) {
        Ok(client) => match client.get("/").await {
            Ok(answer) => answer.ok().and_then(|a| Ok((a.json()?, a.body))),
            Err(e) => Err(e),
        },
        Err(e) => Err(e),
    };
    match index {
        Ok((_, body)) if args.detailed => output::line(&format!("Server: {}", output::pretty_json(body.trim()))),
        Ok((index, _)) => {
            let text = |field: &str| index[field].as_str().unwrap_or("unknown").to_owned();
            output::line(&format!("Server: {} {}", text("product"), text("version")))
        }
        Err(e) => {
            eprintln!("Unable to connect to control plane: {e:#}");
            Ok(())
        }
    }
}

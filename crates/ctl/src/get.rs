//! `get` and `delete`.

use crate::{
    cli::{Delete, Format, Get, Root},
    client::{Client, collection, encode, item, kind},
    output, table,
};
use anyhow::{Context, anyhow, bail};
use ikada_model::{Kind, Scope};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};
use time::OffsetDateTime;

/// Size of the pages that a complete list is fetched in.
const PAGE: u32 = 1000;

/// A page, or all pages together. Items stay as they were sent.
#[derive(Serialize, Deserialize)]
struct Page {
    #[serde(default)]
    total: u64,
    #[serde(default)]
    items: Vec<Box<RawValue>>,
    #[serde(default)]
    next: Option<String>,
}

/// `offset` of a `next` link.
fn next_offset(next: &str) -> Option<&str> {
    next.split_once('?')?.1.split('&').find_map(|p| p.strip_prefix("offset="))
}

async fn page(client: &Client, path: &str, size: Option<u32>, offset: Option<&str>) -> anyhow::Result<Page> {
    let mut query = Vec::new();
    query.extend(size.map(|s| format!("size={s}")));
    query.extend(offset.map(|o| format!("offset={}", encode(o))));
    let separator = if path.contains('?') { '&' } else { '?' };
    let path = if query.is_empty() { path.to_owned() } else { format!("{path}{separator}{}", query.join("&")) };
    let answer = client.get(&path).await?.ok()?;
    serde_json::from_str(&answer.body).context("the control plane's answer is not a list: is this the address of its API?")
}

/// Every page of a list.
pub async fn all_items(client: &Client, path: &str) -> anyhow::Result<(u64, Vec<Box<RawValue>>)> {
    let mut all = page(client, path, Some(PAGE), None).await?;
    while let Some(next) = all.next.take() {
        let offset = next_offset(&next).ok_or_else(|| anyhow!("the control plane sent a next link without an offset: {next}"))?;
        let more = page(client, path, Some(PAGE), Some(offset)).await?;
        if more.items.is_empty() {
            break;
        }
        all.items.extend(more.items);
        all.total = more.total;
        all.next = more.next;
    }
    Ok((all.total, all.items))
}

/// Prints a list. `columns` makes the table.
pub fn print_list(
    total: u64,
    items: Vec<Box<RawValue>>,
    next: Option<String>,
    format: Format,
    columns: impl Fn(&[Value]) -> String,
) -> anyhow::Result<()> {
    let page = Page { total, items, next };
    if format == Format::Json {
        return output::line(&output::pretty_json(&serde_json::to_string(&page)?));
    }
    let values = page.items.iter().map(|i| serde_json::from_str(i.get())).collect::<Result<Vec<Value>, _>>()?;
    if format == Format::Yaml {
        let list = serde_json::json!({"items": values, "next": page.next, "total": page.total});
        return output::write(output::yaml(&list)?.as_bytes());
    }
    let mut text = columns(&values);
    if let Some(offset) = page.next.as_deref().and_then(next_offset) {
        text.push_str(&format!("\nRerun command with --offset={offset} argument to retrieve more resources\n"));
    }
    output::write(text.as_bytes())
}

/// `ikadactl get`.
///
/// # Errors
/// Unknown type, absent resource, failed call.
pub async fn run(root: &Root, args: &Get) -> anyhow::Result<()> {
    let kind = kind(&args.kind)?;
    let client = Client::new(root)?;
    let columns = |items: &[Value]| resources_table(kind, items, OffsetDateTime::now_utc());
    let Some(name) = &args.name else {
        let path = collection(kind, &args.mesh);
        let (total, items, next) = if args.size.is_some() || args.offset.is_some() {
            let page = page(&client, &path, args.size, args.offset.as_deref()).await?;
            (page.total, page.items, page.next)
        } else {
            let (total, items) = all_items(&client, &path).await?;
            (total, items, None)
        };
        return print_list(total, items, next, args.output, columns);
    };
    let answer = client.get(&item(kind, &args.mesh, name)).await?;
    if answer.is_absent() {
        match kind.descriptor().scope {
            Scope::Mesh => bail!("No resources found in {} mesh", args.mesh),
            Scope::Global => bail!("No resources found"),
        }
    }
    let answer = answer.ok()?;
    let value = answer.json()?;
    match args.output {
        Format::Json => output::line(&output::pretty_json(answer.body.trim())),
        Format::Yaml => output::write(output::resource_yaml(&value)?.as_bytes()),
        Format::Table => output::write(columns(&[value]).as_bytes()),
    }
}

/// `ikadactl delete`.
///
/// # Errors
/// Unknown type, absent resource, refused deletion.
pub async fn delete(root: &Root, args: &Delete) -> anyhow::Result<()> {
    let kind = kind(&args.kind)?;
    let client = Client::new(root)?;
    let answer = client.call(Method::DELETE, &item(kind, &args.mesh, &args.name), None).await?;
    if answer.is_absent() {
        bail!("there is no {kind} with name {:?}", args.name);
    }
    answer.ok()?;
    output::line(&format!("deleted {kind} {:?}", args.name))
}

fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

/// `k=v1,v2 k2=v` of all inbounds, or of the gateway.
pub fn tags_of(networking: &Value) -> String {
    use std::collections::{BTreeMap, BTreeSet};
    let mut all: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let inbounds = networking["inbound"].as_array().into_iter().flatten().map(|i| &i["tags"]);
    for tags in inbounds.chain([&networking["gateway"]["tags"]]).filter_map(Value::as_object) {
        for (tag, value) in tags {
            all.entry(tag).or_default().insert(value.as_str().unwrap_or(""));
        }
    }
    let one = |(tag, values): (&str, BTreeSet<&str>)| format!("{tag}={}", values.into_iter().collect::<Vec<_>>().join(","));
    all.into_iter().map(one).collect::<Vec<_>>().join(" ")
}

fn on_off(value: &Value) -> String {
    if value.as_bool() == Some(true) { "on".to_owned() } else { "off".to_owned() }
}

fn mtls(mesh: &Value) -> String {
    let enabled = text(mesh, "/mtls/enabledBackend");
    let backends = mesh["mtls"]["backends"].as_array();
    let backend = backends.into_iter().flatten().find(|b| !enabled.is_empty() && b["name"] == enabled);
    backend.map_or_else(|| "off".to_owned(), |b| format!("{}/{enabled}", text(b, "/type")))
}

/// The table of a kind (§7.6).
fn resources_table(kind: Kind, items: &[Value], now: OffsetDateTime) -> String {
    type Cell = fn(&Value) -> String;
    let plain: Vec<(&str, Cell)> = match kind {
        Kind::Mesh => vec![
            ("NAME", |r| text(r, "/name").to_owned()),
            ("mTLS", mtls),
            ("LOCALITY", |r| on_off(&r["routing"]["localityAwareLoadBalancing"])),
            ("ZONEEGRESS", |r| on_off(&r["routing"]["zoneEgress"])),
        ],
        Kind::Dataplane => vec![
            ("MESH", |r| text(r, "/mesh").to_owned()),
            ("NAME", |r| text(r, "/name").to_owned()),
            ("TAGS", |r| tags_of(&r["networking"])),
            ("ADDRESS", |r| match text(r, "/networking/advertisedAddress") {
                "" => text(r, "/networking/address").to_owned(),
                advertised => advertised.to_owned(),
            }),
        ],
        Kind::ExternalService => vec![
            ("MESH", |r| text(r, "/mesh").to_owned()),
            ("NAME", |r| text(r, "/name").to_owned()),
            ("TAGS", |r| {
                let tags = r["tags"].as_object().into_iter().flatten();
                tags.map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or(""))).collect::<Vec<_>>().join(" ")
            }),
            ("ADDRESS", |r| text(r, "/networking/address").to_owned()),
        ],
        k if k.is_mesh_scoped() => vec![("MESH", |r| text(r, "/mesh").to_owned()), ("NAME", |r| text(r, "/name").to_owned())],
        _ => vec![("NAME", |r| text(r, "/name").to_owned())],
    };
    let header: Vec<&str> = plain.iter().map(|(title, _)| *title).chain(["AGE"]).collect();
    let rows: Vec<Vec<String>> = items
        .iter()
        .map(|r| plain.iter().map(|(_, cell)| cell(r)).chain([table::age(r["modificationTime"].as_str(), now)]).collect())
        .collect();
    table::render(&header, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tables_have_kumactls_columns() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let zero = "0001-01-01T00:00:00Z";
        let mesh = json!({"type": "Mesh", "name": "mesh-1", "modificationTime": zero,
            "mtls": {"enabledBackend": "b", "backends": [{"name": "b", "type": "builtin"}]}, "routing": {"zoneEgress": true}});
        let expected = "NAME     mTLS        LOCALITY   ZONEEGRESS   AGE\nmesh-1   builtin/b   off        on           292y\n";
        assert_eq!(resources_table(Kind::Mesh, &[mesh], OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()), expected);
        let dp = json!({"mesh": "default", "name": "dp", "networking": {"address": "1.1.1.1", "advertisedAddress": "2.2.2.2",
            "inbound": [{"tags": {"kuma.io/service": "b", "v": "1"}}, {"tags": {"kuma.io/service": "a", "v": "1"}}]}});
        let expected = "MESH      NAME   TAGS                      ADDRESS   AGE\ndefault   dp     kuma.io/service=a,b v=1   2.2.2.2   never\n";
        assert_eq!(resources_table(Kind::Dataplane, &[dp], now), expected);
        assert_eq!(resources_table(Kind::MeshRetry, &[], now), "MESH   NAME   AGE\n");
        assert_eq!(resources_table(Kind::Zone, &[json!({"name": "z"})], now), "NAME   AGE\nz      never\n");
    }

    #[test]
    fn offsets_of_next_links() {
        assert_eq!(next_offset("http://h:1/meshes?name=x&offset=100&size=1"), Some("100"));
        assert_eq!(next_offset("/meshes?size=1"), None);
    }
}

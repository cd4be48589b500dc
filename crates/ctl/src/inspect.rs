//! `inspect dataplanes` (reference: §7.3, §7.6).

use crate::{
    cli::{Inspect, Inspected, Root},
    client::{Client, encode},
    get::{all_items, print_list, tags_of},
    table::{self, age},
};
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339, macros::format_description};

/// `ikadactl inspect`.
///
/// # Errors
/// The call fails.
pub async fn run(root: &Root, args: &Inspect) -> anyhow::Result<()> {
    let Inspected::Dataplanes { mesh, tag, gateway, output } = &args.what;
    let mut query: Vec<String> = tag.iter().map(|(k, v)| format!("tag={}", encode(&format!("{k}:{v}")))).collect();
    if *gateway {
        query.push("gateway=true".to_owned());
    }
    let mut path = format!("/meshes/{}/dataplanes/_overview", encode(mesh));
    if !query.is_empty() {
        path.push('?');
        path.push_str(&query.join("&"));
    }
    let (total, items) = all_items(&Client::new(root)?, &path).await?;
    print_list(total, items, None, *output, |items| dataplanes(items, OffsetDateTime::now_utc()))
}

const HEADER: [&str; 17] = [
    "MESH",
    "NAME",
    "TAGS",
    "STATUS",
    "LAST CONNECTED AGO",
    "LAST UPDATED AGO",
    "TOTAL UPDATES",
    "TOTAL ERRORS",
    "CERT REGENERATED AGO",
    "CERT EXPIRATION",
    "CERT REGENERATIONS",
    "CERT BACKEND",
    "SUPPORTED CERT BACKENDS",
    "KUMA-DP VERSION",
    "ENVOY VERSION",
    "DEPENDENCIES VERSIONS",
    "NOTES",
];

/// protobuf JSON writes 64-bit numbers as text.
fn number(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
}

fn list<'v>(value: &'v Value, field: &str) -> &'v [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// Status and notes: a gateway is online with its stream; others count their ready inbounds and listeners.
fn status(overview: &Value) -> (&'static str, Vec<String>) {
    let networking = &overview["dataplane"]["networking"];
    let subscriptions = list(&overview["dataplaneInsight"], "subscriptions");
    let online = subscriptions.iter().any(|s| !s["connectTime"].is_null() && s["disconnectTime"].is_null());
    if networking["gateway"].is_object() {
        return (if online { "Online" } else { "Offline" }, Vec::new());
    }
    let (mut ready, mut notes) = (0usize, Vec::new());
    let (inbounds, listeners) = (list(networking, "inbound"), list(networking, "listeners"));
    for inbound in inbounds {
        if inbound["state"] != "NotReady" && inbound["health"]["ready"] != false {
            ready += 1;
        } else {
            let service = inbound["tags"]["kuma.io/service"].as_str().unwrap_or("");
            notes.push(format!("inbound[port={},svc={service}] is not ready", number(&inbound["port"])));
        }
    }
    for listener in listeners {
        if listener["state"] == "NotReady" {
            let kind = listener["type"].as_str().unwrap_or("");
            notes.push(format!("listener[port={},type={kind}] is not ready", number(&listener["port"])));
        } else {
            ready += 1;
        }
    }
    let status = match ready {
        _ if !online => "Offline",
        0 => "Offline",
        n if n < inbounds.len() + listeners.len() => "Partially degraded",
        _ => "Online",
    };
    (status, notes)
}

fn dataplanes(items: &[Value], now: OffsetDateTime) -> String {
    let rows: Vec<Vec<String>> = items.iter().map(|o| row(o, now)).collect();
    table::render(&HEADER, &rows)
}

fn row(overview: &Value, now: OffsetDateTime) -> Vec<String> {
    let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
    let insight = &overview["dataplaneInsight"];
    let subscriptions = list(insight, "subscriptions");
    let last = subscriptions.last().unwrap_or(&Value::Null);
    let sum = |field: &str| subscriptions.iter().map(|s| number(&s["status"]["total"][field])).sum::<u64>().to_string();
    let latest = |pointer: &str| subscriptions.iter().filter_map(|s| s.pointer(pointer)?.as_str()).max();
    let mtls = &insight["mTLS"];
    let expiration = mtls["certificateExpirationTime"].as_str().and_then(|t| OffsetDateTime::parse(t, &Rfc3339).ok());
    let day = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
    let dependencies = last["version"]["dependencies"].as_object();
    let dependencies = dependencies.into_iter().flatten().map(|(k, v)| format!("{k}: {}", v.as_str().unwrap_or(""))).collect::<Vec<_>>();
    let backends = list(mtls, "supportedBackends").iter().filter_map(Value::as_str).collect::<Vec<_>>();
    let (status, notes) = status(overview);
    vec![
        text(&overview["mesh"]),
        text(&overview["name"]),
        tags_of(&overview["dataplane"]["networking"]),
        status.to_owned(),
        age(latest("/connectTime"), now),
        age(latest("/status/lastUpdateTime"), now),
        sum("responsesSent"),
        sum("responsesRejected"),
        age(mtls["lastCertificateRegeneration"].as_str(), now),
        expiration.and_then(|t| t.format(day).ok()).unwrap_or_else(|| "-".to_owned()),
        number(&mtls["certificateRegenerations"]).to_string(),
        or_dash(&text(&mtls["issuedBackend"])),
        or_dash(&backends.join(",")),
        or_dash(&text(&last["version"]["kumaDp"]["version"])),
        or_dash(&text(&last["version"]["envoy"]["version"])),
        or_dash(&dependencies.join(", ")),
        notes.join(" "),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn statuses() {
        let overview = |inbound: Value, online: bool| {
            let disconnect = if online { Value::Null } else { json!("2026-01-01T00:00:00Z") };
            json!({"dataplane": {"networking": {"inbound": inbound}}, "dataplaneInsight": {"subscriptions": [
                {"connectTime": "2026-01-01T00:00:00Z", "disconnectTime": disconnect}]}})
        };
        let good = json!({"port": 80, "tags": {"kuma.io/service": "web"}});
        let bad = json!({"port": 81, "state": "NotReady", "tags": {"kuma.io/service": "web"}});
        assert_eq!(status(&overview(json!([good]), true)).0, "Online");
        assert_eq!(status(&overview(json!([good]), false)).0, "Offline");
        let (degraded, notes) = status(&overview(json!([good, bad]), true));
        assert_eq!((degraded, notes.as_slice()), ("Partially degraded", ["inbound[port=81,svc=web] is not ready".to_owned()].as_slice()));
        assert_eq!(status(&overview(json!([bad]), true)).0, "Offline");
        assert_eq!(status(&json!({"dataplane": {"networking": {"gateway": {}}}})).0, "Offline");
    }

    #[test]
    fn a_row_per_proxy() {
        let now = OffsetDateTime::parse("2026-11-24T02:00:00Z", &Rfc3339).unwrap();
        let overview = json!({"mesh": "default", "name": "cli", "dataplane": {"networking": {"inbound": [{"port": 1, "tags": {"kuma.io/service": "cli"}}]}},
            "dataplaneInsight": {"subscriptions": [{"connectTime": "2026-11-24T01:49:57Z", "status": {"lastUpdateTime": "2026-11-24T01:59:30Z",
                "total": {"responsesSent": "6", "responsesRejected": "1"}}, "version": {"kumaDp": {"version": "2.14.3"}, "envoy": {"version": "1.40.0"}}}],
                "mTLS": {"certificateExpirationTime": "2026-11-25T01:49:58Z", "lastCertificateRegeneration": "2026-11-24T01:00:00Z",
                    "certificateRegenerations": 1, "issuedBackend": "ca-1", "supportedBackends": ["ca-1"]}}});
        assert_eq!(
            row(&overview, now)[1..],
            ["cli", "kuma.io/service=cli", "Online", "10m", "30s", "6", "1", "1h", "2026-11-25 01:49:58", "1", "ca-1", "ca-1", "2.14.3", "1.40.0", "-", ""]
        );
        assert_eq!(row(&json!({}), now).len(), HEADER.len());
    }
}

//! Answers as tables. Shapes: `ikada_cluster::status`; a field that is missing is shown as `-`.

use crate::table::{self, until};
use serde_json::Value;
use std::{fmt::Write, path::Path};
use time::OffsetDateTime;

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Text as it is, other values as JSON, nothing as `-`.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(s) if s.is_empty() => "-".to_owned(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

/// Milliseconds with a unit that fits.
fn millis(value: &Value) -> String {
    match value.as_f64() {
        None => "-".to_owned(),
        Some(ms) if ms < 10.0 => format!("{ms:.2}ms"),
        Some(ms) if ms < 10_000.0 => format!("{ms:.0}ms"),
        Some(ms) => format!("{:.0}s", ms / 1000.0),
    }
}

fn yes(value: &Value) -> String {
    if *value == true { "yes" } else { "no" }.to_owned()
}

/// `cluster status`.
pub fn status(s: &Value) -> String {
    let leader = list(&s["members"]).iter().find(|m| m["id"] == s["leader"]);
    let leader = match leader {
        Some(m) => format!("node {} ({})", m["id"], cell(&m["name"])),
        None if s["leader"].is_null() => "none".to_owned(),
        None => format!("node {}", s["leader"]),
    };
    let mut out = String::new();
    for (name, text) in [
        ("Cluster", cell(&s["cluster"])),
        ("Leader", format!("{leader}, term {}", s["term"])),
        ("Writes", if s["health"]["writable"] == true { "accepted".to_owned() } else { "not accepted".to_owned() }),
        ("Health", cell(&s["health"]["summary"])),
    ] {
        writeln!(out, "{:<10}{text}", format!("{name}:")).ok();
    }
    for (n, warning) in list(&s["warnings"]).iter().enumerate() {
        writeln!(out, "{:<10}{}", if n == 0 { "Warnings:" } else { "" }, cell(warning)).ok();
    }
    out.push('\n');
    out + &members(&s["members"])
}

const MEMBERS: [&str; 11] = ["ID", "NAME", "ADDRESS", "ROLE", "VOTER", "APPLIED", "LAG", "LAST CONTACT AGO", "ROUND TRIP", "VERSION", "NOTES"];

/// `cluster members`.
pub fn members(items: &Value) -> String {
    let row = |m: &Value| {
        let mut notes: Vec<String> = list(&m["alarms"]).iter().map(cell).collect();
        if m["reachable"] == false {
            notes.insert(0, format!("does not answer: {}", cell(&m["error"])));
        }
        let voter = match (&m["voter"], &m["wantsVote"]) {
            (Value::Bool(true), _) => "yes",
            (_, Value::Bool(true)) => "not yet",
            _ => "never",
        };
        vec![
            cell(&m["id"]),
            cell(&m["name"]),
            cell(&m["address"]),
            if m["reachable"] == false { "unreachable".to_owned() } else { cell(&m["role"]) },
            voter.to_owned(),
            cell(&m["applied"]),
            cell(&m["lag"]),
            millis(&m["lastContactMs"]),
            millis(&m["roundTripMs"]),
            cell(&m["version"]),
            notes.join("; "),
        ]
    };
    table::render(&MEMBERS, &list(items).iter().map(row).collect::<Vec<_>>())
}

/// `cluster join-token list`.
pub fn tokens(items: &Value) -> String {
    let now = OffsetDateTime::now_utc();
    let row = |t: &Value| {
        let joined: Vec<String> = list(&t["joined"]).iter().map(cell).collect();
        let expires = if t["spent"] == true { "spent".to_owned() } else { until(t["expires"].as_str(), now) };
        let joined = if joined.is_empty() { "-".to_owned() } else { joined.join(",") };
        vec![cell(&t["id"]), expires, yes(&t["voter"]), cell(&t["uses"]), joined, cell(&t["created"])]
    };
    table::render(&["ID", "EXPIRES IN", "VOTER", "USES", "JOINED", "CREATED"], &list(items).iter().map(row).collect::<Vec<_>>())
}

/// What to do with a new token.
pub fn how_to_join(made: &Value) -> String {
    let addresses: Vec<&str> = list(&made["addresses"]).iter().filter_map(Value::as_str).collect();
    format!("On the new node (until {}):\n  ikada-cp run --join {} --join-token-file FILE\n", cell(&made["expires"]), addresses.join(","))
}

/// `cluster tune`.
pub fn tune(report: &Value) -> String {
    let measured = |m: &Value| {
        vec![
            cell(&m["id"]),
            cell(&m["name"]),
            millis(&m["roundTripP50Ms"]),
            millis(&m["roundTripP99Ms"]),
            millis(&m["fsyncP50Ms"]),
            millis(&m["fsyncP99Ms"]),
            if m["error"].is_null() { String::new() } else { cell(&m["error"]) },
        ]
    };
    let header = ["ID", "NAME", "ROUND TRIP P50", "P99", "FSYNC P50", "P99", "NOTES"];
    let mut out = table::render(&header, &list(&report["measured"]).iter().map(measured).collect::<Vec<_>>());
    out.push('\n');
    let setting = |s: &Value| vec![format!("raft.{}", cell(&s["name"])), cell(&s["current"]), cell(&s["proposed"])];
    out += &table::render(&["SETTING", "NOW", "PROPOSED"], &list(&report["settings"]).iter().map(setting).collect::<Vec<_>>());
    out.push('\n');
    for reason in list(&report["reasons"]) {
        writeln!(out, "- {}", cell(reason)).ok();
    }
    if let Some(apply) = report["apply"].as_str().filter(|a| !a.is_empty()) {
        writeln!(out, "\n{apply}").ok();
    }
    out
}

/// `cluster snapshot restore`.
pub fn restored(r: &Value, dir: &Path) -> String {
    format!(
        "restored {} resources as of entry {} into {}: cluster {}, this node alone\nNext: start ikada-cp on it; on the other nodes move the data \
         directory away and start with --join and a new token\n",
        r["resources"],
        r["index"],
        dir.display(),
        cell(&r["cluster"])
    )
}

/// `cluster recover`.
pub fn recovered(r: &Value, dir: &Path) -> String {
    format!(
        "{} is now cluster {} of this node alone, with {} resources up to entry {}; the old data is in {}\nNext: start ikada-cp on it; on the \
         other nodes move the data directory away and start with --join and a new token\n",
        dir.display(),
        cell(&r["cluster"]),
        r["resources"],
        r["index"],
        cell(&r["kept"])
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn member(id: u64, role: &str) -> Value {
        json!({"id": id, "name": format!("cp-{id}"), "address": format!("192.0.2.{id}:5690"), "role": role, "voter": true, "wantsVote": true, "reachable": true,
            "applied": 41, "lag": 0, "lastContactMs": 31, "roundTripMs": 0.4, "version": "0.1.0", "format": 2, "alarms": []})
    }

    #[test]
    fn a_status_for_people() {
        let mut third = member(3, "follower");
        third["reachable"] = false.into();
        third["error"] = "connection refused".into();
        third["alarms"] = json!(["no space left"]);
        let status_of = json!({"cluster": "c-1", "node": 2, "leader": 1, "term": 7, "warnings": ["w1", "w2"], "members": [member(1, "leader"), third],
            "health": {"healthy": false, "writable": true, "summary": "2 of 3 voters answer"}});
        assert_eq!(
            status(&status_of),
            "Cluster:  c-1\nLeader:   node 1 (cp-1), term 7\nWrites:   accepted\nHealth:   2 of 3 voters answer\nWarnings: w1\n          w2\n\n\
             ID   NAME   ADDRESS          ROLE          VOTER   APPLIED   LAG   LAST CONTACT AGO   ROUND TRIP   VERSION   NOTES\n\
             1    cp-1   192.0.2.1:5690   leader        yes     41        0     31ms               0.40ms       0.1.0\n\
             3    cp-3   192.0.2.3:5690   unreachable   yes     41        0     31ms               0.40ms       0.1.0     does not answer: connection refused; no space left\n"
        );
        let none = status(&json!({"leader": null, "members": []}));
        assert!(none.contains("Leader:   none, term null") && none.contains("Writes:   not accepted"), "{none}");
    }

    #[test]
    fn who_votes() {
        let mut m = member(4, "learner");
        m["voter"] = false.into();
        assert!(members(&json!([m])).contains("not yet"));
        m["wantsVote"] = false.into();
        assert!(members(&json!([m])).contains("never"));
    }

    #[test]
    fn tokens_and_how_to_use_one() {
        let t = json!({"id": "a1", "voter": true, "uses": 2, "joined": [4, 5], "spent": true, "created": "2026-01-01T00:00:00Z", "expires": "2026-01-01T01:00:00Z"});
        assert_eq!(
            tokens(&json!([t])),
            "ID   EXPIRES IN   VOTER   USES   JOINED   CREATED\na1   spent        yes     2      4,5      2026-01-01T00:00:00Z\n"
        );
        let text = how_to_join(&json!({"addresses": ["a:1", "b:2"], "expires": "2026-01-01T01:00:00Z", "token": "secret"}));
        assert!(text.contains("--join a:1,b:2") && !text.contains("secret"), "{text}");
    }

    #[test]
    fn a_proposal() {
        let report = json!({"measured": [{"id": 1, "name": "cp-1", "roundTripP50Ms": 35.2, "roundTripP99Ms": 40.0, "fsyncP50Ms": 1.5, "fsyncP99Ms": 12345.0, "error": null}],
            "settings": [{"name": "heartbeat", "current": "100ms", "proposed": "250ms"}], "reasons": ["slow disk"], "apply": "put it into cp.yaml"});
        assert_eq!(
            tune(&report),
            "ID   NAME   ROUND TRIP P50   P99    FSYNC P50   P99   NOTES\n1    cp-1   35ms             40ms   1.50ms      12s\n\n\
             SETTING          NOW     PROPOSED\nraft.heartbeat   100ms   250ms\n\n- slow disk\n\nput it into cp.yaml\n"
        );
    }
}

//! Reads the settings from defaults, file and environment.

use super::settings::{SETTINGS, Setting, ValueKind};
use anyhow::{Context, Result, bail};
use ikada_model::duration::GoDuration;
use serde_json::{Map, Value};
use std::{collections::BTreeMap, path::Path, time::Duration};

/// Values of all settings, as text or lists, with where they come from.
#[derive(Debug, Default)]
pub struct Values {
    set: BTreeMap<&'static str, (Value, String)>,
    /// Warnings for people, one line each.
    pub warnings: Vec<String>,
}

/// What replaces each Postgres setting (reference: multi-zone contract, §5.7). The first whose name begins the setting's counts, in any case of
/// the letters: `DB_NAME` and `dbName` are one.
const POSTGRES: &[(&str, &str)] = &[
    ("host", "raft.dataDir for the state of this node, raft.advertise and raft.join.addresses to find the others"),
    ("port", "raft.listen, the port of the members of the cluster (5690)"),
    ("user", "mutual TLS between the members of the cluster; a new one joins with a token (raft.join.token)"),
    ("password", "mutual TLS between the members of the cluster; a new one joins with a token (raft.join.token)"),
    ("dbName", "raft.dataDir and the id of the cluster that is kept in it"),
    ("driverName", "nothing: there is no driver"),
    ("connectionTimeout", "raft.electionMin and raft.electionMax, which raft.profile sets (how long a silent leader is waited for)"),
    ("maxConnectionIdleTime", "raft.heartbeat, which raft.profile sets; connections between members are permanent"),
    ("maxConnectionLifetime", "raft.heartbeat, which raft.profile sets; connections between members are permanent"),
    ("healthCheckInterval", "raft.heartbeat, which raft.profile sets"),
    ("minOpenConnections", "nothing to size: one connection per peer, a bounded queue of proposals, raft.proposalDeadline for what waits in it"),
    ("maxOpenConnections", "nothing to size: one connection per peer, a bounded queue of proposals, raft.proposalDeadline for what waits in it"),
    ("maxIdleConnections", "nothing to size: one connection per peer, a bounded queue of proposals, raft.proposalDeadline for what waits in it"),
    ("maxListQueryElements", "nothing: lists are read from memory"),
    ("tls", "mutual TLS between the members of the cluster, whose CA the first one makes"),
    ("tolerateNewerDBVersions", "the format of the data directory: nodes of two versions work together, and newer data is refused by an older one"),
    ("readReplica", "every node reads from its own memory (header Ikada-Read); raft.learner makes one that only reads"),
];

fn postgres_warning(origin: &str, key: &str) -> String {
    let begins = |k: &str| key.get(..k.len()).is_some_and(|start| start.eq_ignore_ascii_case(k));
    let replacement = POSTGRES.iter().find(|(k, _)| begins(k)).map_or("nothing", |(_, r)| r);
    format!("{origin} has no effect: Ikada does not use Postgres. In its place: {replacement} (docs/replication.md)")
}

/// `CONNECTION_TIMEOUT` → `connectionTimeout`.
fn camel(env: &str) -> String {
    let mut out = String::new();
    for (i, word) in env.split('_').enumerate() {
        let lower = word.to_ascii_lowercase();
        if i == 0 {
            out.push_str(&lower);
        } else {
            let mut c = lower.chars();
            out.extend(c.next().map(|f| f.to_ascii_uppercase()));
            out.push_str(c.as_str());
        }
    }
    out
}

/// Edit distance, for suggestions only.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut previous = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cb, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let best = (*cell + 1).min(left + 1).min(previous + usize::from(ca != *cb));
            previous = *cell;
            *cell = best;
            left = best;
        }
    }
    row.last().copied().unwrap_or(0)
}

/// The known key, or section of keys, that an unknown one most likely stands for.
fn nearest(key: &str) -> &'static str {
    let sections = SETTINGS.iter().flat_map(|s| s.key.match_indices('.').filter_map(|(at, _)| s.key.get(..at)));
    let all = SETTINGS.iter().map(|s| s.key).chain(sections);
    all.min_by_key(|k| distance(&key.to_ascii_lowercase(), &k.to_ascii_lowercase())).unwrap_or("")
}

impl Values {
    /// Sets what a flag of the command line says: it wins over file and environment. `text` is in the form of a variable.
    pub fn set(&mut self, key: &str, text: &str, flag: &str) -> Result<()> {
        let setting = SETTINGS.iter().find(|s| s.key == key).with_context(|| format!("there is no setting {key}"))?;
        let value = from_env(setting, text).with_context(|| flag.to_owned())?;
        self.set.insert(setting.key, (value, flag.to_owned()));
        Ok(())
    }
    /// Forgets what file and environment say.
    pub fn unset(&mut self, key: &str) {
        self.set.remove(key);
    }

    /// Defaults, then the file, then the environment (`IKADA_…` wins over `KUMA_…`).
    ///
    /// Errors: unreadable file, bad YAML, unknown key, value of a wrong type; one line each.
    pub fn load(file: Option<&Path>, env: impl IntoIterator<Item = (String, String)>) -> Result<Values> {
        let mut values = Values::default();
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read configuration file {}", path.display()))?;
            let doc: Value = serde_saphyr::from_str(&text).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
            match doc {
                Value::Null => {}
                Value::Object(m) => values.take_file("", &m, &path.display().to_string())?,
                _ => bail!("{}: the configuration must be a YAML mapping", path.display()),
            }
        }
        let env: BTreeMap<String, String> = env.into_iter().filter(|(k, _)| k.starts_with("IKADA_") || k.starts_with("KUMA_")).collect();
        for prefix in ["KUMA_", "IKADA_"] {
            for setting in SETTINGS.iter().filter(|s| !s.env.is_empty()) {
                let name = format!("{prefix}{}", setting.env);
                if let Some(text) = env.get(&name) {
                    let value = from_env(setting, text).with_context(|| format!("environment variable {name}"))?;
                    values.set.insert(setting.key, (value, name));
                }
            }
        }
        for name in env.keys() {
            if let Some(key) = name.strip_prefix("KUMA_STORE_POSTGRES_").or_else(|| name.strip_prefix("IKADA_STORE_POSTGRES_")) {
                values.warnings.push(postgres_warning(&format!("environment variable {name}"), &camel(key)));
            }
        }
        for setting in SETTINGS.iter().filter(|s| !s.effective) {
            if let Some((value, origin)) = values.set.get(setting.key)
                && !is_default(setting, value)
            {
                values.warnings.push(format!("{} (from {origin}) is accepted but has no effect in this version", setting.key));
            }
        }
        Ok(values)
    }

    fn take_file(&mut self, prefix: &str, map: &Map<String, Value>, origin: &str) -> Result<()> {
        for (name, value) in map {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            if let Some(rest) = key.strip_prefix("store.postgres") {
                if let Value::Object(m) = value {
                    for k in m.keys() {
                        self.warnings.push(postgres_warning(&format!("{key}.{k} in {origin}"), k));
                    }
                } else {
                    self.warnings.push(postgres_warning(&format!("{key} in {origin}"), rest.trim_start_matches('.')));
                }
                continue;
            }
            // Kubernetes settings are accepted and mean nothing here, as in Kuma on Universal.
            if key == "store.kubernetes" || key == "runtime.kubernetes" {
                continue;
            }
            if let Some(setting) = SETTINGS.iter().find(|s| s.key.eq_ignore_ascii_case(&key)) {
                check(setting, value).with_context(|| format!("{key} in {origin}"))?;
                // An empty value is the default, as in Kuma.
                if !value.is_null() {
                    self.set.insert(setting.key, (value.clone(), origin.to_owned()));
                }
            } else if SETTINGS.iter().any(|s| s.key.strip_prefix(key.as_str()).is_some_and(|r| r.starts_with('.'))) {
                match value {
                    Value::Null => {}
                    Value::Object(m) => self.take_file(&key, m, origin)?,
                    _ => bail!("{key} in {origin}: must be a mapping"),
                }
            } else {
                bail!("unknown setting {key:?} in {origin}; did you mean {:?}?", nearest(&key));
            }
        }
        Ok(())
    }

    fn value(&self, key: &str) -> Option<(&'static Setting, Option<&(Value, String)>)> {
        let setting = SETTINGS.iter().find(|s| s.key == key)?;
        Some((setting, self.set.get(key)))
    }
    /// As text.
    pub fn text(&self, key: &str) -> String {
        match self.value(key) {
            Some((_, Some((Value::String(s), _)))) => s.clone(),
            Some((_, Some((v, _)))) => v.to_string(),
            Some((s, None)) => s.default.to_owned(),
            None => String::new(),
        }
    }
    /// `None` for an empty text.
    pub fn optional(&self, key: &str) -> Option<String> {
        Some(self.text(key)).filter(|t| !t.is_empty())
    }
    /// As a switch.
    pub fn flag(&self, key: &str) -> bool {
        self.text(key) == "true"
    }
    /// As a number that fits `T`. Errors name the key and its origin.
    pub fn number<T: TryFrom<u64>>(&self, key: &str) -> Result<T> {
        let text = self.text(key);
        let n: u64 = text.parse().with_context(|| format!("{key}{}: {text:?} is not a number", self.origin(key)))?;
        T::try_from(n).map_err(|_| anyhow::anyhow!("{key}{}: {n} is out of range", self.origin(key)))
    }
    /// As a duration.
    pub fn duration(&self, key: &str) -> Result<Duration> {
        let text = self.text(key);
        parse_duration(&text).with_context(|| format!("{key}{}", self.origin(key)))
    }
    /// As a duration; `None` when it is not set and has no default of its own.
    pub fn optional_duration(&self, key: &str) -> Result<Option<Duration>> {
        if self.text(key).is_empty() { Ok(None) } else { self.duration(key).map(Some) }
    }
    /// As a number; `None` when it is not set and has no default of its own.
    pub fn optional_number<T: TryFrom<u64>>(&self, key: &str) -> Result<Option<T>> {
        if self.text(key).is_empty() { Ok(None) } else { self.number(key).map(Some) }
    }
    /// As a list; `None` when not set.
    pub fn list(&self, key: &str) -> Option<Vec<String>> {
        let (Value::Array(items), _) = self.set.get(key)? else { return None };
        Some(items.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect())
    }
    /// All settings as nested JSON: numbers, switches and lists by their types, durations as Go writes them.
    pub fn tree(&self) -> Value {
        let mut all = Value::Object(Map::new());
        for setting in SETTINGS {
            let text = self.text(setting.key);
            let value = match setting.kind {
                ValueKind::Bool => Value::Bool(self.flag(setting.key)),
                ValueKind::Int => text.parse::<u64>().map_or(Value::Null, Value::from),
                ValueKind::Duration => GoDuration::parse(&text).map_or(text, |d| d.to_string()).into(),
                ValueKind::Text => text.into(),
                ValueKind::List => self.list(setting.key).unwrap_or_default().into(),
            };
            insert(&mut all, setting.key, value);
        }
        all
    }
    /// ` (from FILE)` for error texts; empty for defaults.
    pub fn origin(&self, key: &str) -> String {
        self.set.get(key).map(|(_, o)| format!(" (from {o})")).unwrap_or_default()
    }
}

/// A duration as Go writes it, e.g. `1m30s`.
pub fn go_text(d: Duration) -> String {
    GoDuration::parse(&format!("{}ns", d.as_nanos())).map_or_else(|_| format!("{d:?}"), |d| d.to_string())
}

/// Puts a value at a path with dots, making the objects on the way.
pub fn insert(tree: &mut Value, key: &str, value: Value) {
    let mut at = tree;
    for part in key.split('.') {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        let Value::Object(map) = at else { return };
        at = map.entry(part).or_insert(Value::Null);
    }
    *at = value;
}

fn is_default(setting: &Setting, value: &Value) -> bool {
    match value {
        Value::String(s) => s == setting.default || (setting.kind == ValueKind::Duration && parse_duration(s).ok() == parse_duration(setting.default).ok()),
        Value::Array(a) => a.is_empty(),
        Value::Null => true,
        other => {
            let text = other.to_string();
            text == setting.default
        }
    }
}

fn check(setting: &Setting, value: &Value) -> Result<()> {
    let ok = match (setting.kind, value) {
        (_, Value::Null) => true,
        (ValueKind::Int | ValueKind::Duration, Value::String(s)) if s.is_empty() && setting.default.is_empty() => true,
        (ValueKind::Bool, Value::Bool(_)) => true,
        (ValueKind::Int, Value::Number(n)) => n.is_u64(),
        (ValueKind::Duration, Value::String(s)) => return parse_duration(s).map(|_| ()),
        (ValueKind::Text, Value::String(_) | Value::Number(_) | Value::Bool(_)) => true,
        (ValueKind::List, Value::Array(_)) => true,
        _ => false,
    };
    if ok {
        return Ok(());
    }
    let wanted = match setting.kind {
        ValueKind::Bool => "true or false",
        ValueKind::Int => "a whole number",
        ValueKind::Duration => "a duration such as \"10s\"",
        ValueKind::Text => "text",
        ValueKind::List => "a list",
    };
    bail!("must be {wanted}, not {value}")
}

fn from_env(setting: &Setting, text: &str) -> Result<Value> {
    let value = match setting.kind {
        ValueKind::Bool => match text {
            "true" | "True" | "TRUE" | "1" => Value::Bool(true),
            "false" | "False" | "FALSE" | "0" | "" => Value::Bool(false),
            other => bail!("must be true or false, not {other:?}"),
        },
        // As unset: a unit may hand through a variable that nobody filled.
        ValueKind::Int | ValueKind::Duration if text.is_empty() && setting.default.is_empty() => Value::String(String::new()),
        ValueKind::Int => Value::from(text.trim().parse::<u64>().map_err(|_| anyhow::anyhow!("must be a whole number, not {text:?}"))?),
        ValueKind::Duration | ValueKind::Text => Value::String(text.to_owned()),
        ValueKind::List => Value::Array(text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(Value::from).collect()),
    };
    check(setting, &value)?;
    Ok(value)
}

/// A Go duration that is not negative. `0` is accepted without a unit.
pub fn parse_duration(text: &str) -> Result<Duration> {
    let duration = GoDuration::parse(text).map_err(|e| anyhow::anyhow!("{e}"))?;
    duration.to_std().with_context(|| format!("{text:?} must not be negative"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }
    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut f = tempfile::NamedTempFile::new().unwrap();
        f.write_all(text.as_bytes()).unwrap();
        f
    }

    #[test]
    fn environment_over_file_over_default() {
        let f = file("apiServer:\n  http: {port: 7000}\ndpServer: {port: 7001}\n");
        let v = Values::load(Some(f.path()), env(&[("KUMA_DP_SERVER_PORT", "8000"), ("IKADA_DP_SERVER_PORT", "8001"), ("OTHER", "x")])).unwrap();
        assert_eq!(v.number::<u16>("apiServer.http.port").unwrap(), 7000);
        assert_eq!(v.number::<u16>("dpServer.port").unwrap(), 8001);
        assert_eq!(v.number::<u16>("diagnostics.serverPort").unwrap(), 5680);
        assert!(v.warnings.is_empty());
    }

    #[test]
    fn unknown_and_wrong_values_are_named() {
        let f = file("apiServer: {htp: {port: 1}}\n");
        let e = Values::load(Some(f.path()), []).unwrap_err().to_string();
        assert!(e.contains("unknown setting \"apiServer.htp\"") && e.contains("did you mean \"apiServer.http"), "{e}");
        let e = format!("{:#}", Values::load(None, env(&[("KUMA_DP_SERVER_PORT", "x")])).unwrap_err());
        assert_eq!(e, "environment variable KUMA_DP_SERVER_PORT: must be a whole number, not \"x\"");
        let v = Values::load(None, env(&[("KUMA_DP_SERVER_PORT", "70000")])).unwrap();
        assert_eq!(v.number::<u16>("dpServer.port").unwrap_err().to_string(), "dpServer.port (from KUMA_DP_SERVER_PORT): 70000 is out of range");
    }

    #[test]
    fn postgres_is_answered_by_what_replaces_it() {
        let f = file("store: {type: postgres, postgres: {maxOpenConnections: 50}}\n");
        let v = Values::load(Some(f.path()), env(&[("KUMA_STORE_POSTGRES_CONNECTION_TIMEOUT", "5")])).unwrap();
        assert_eq!(v.warnings.len(), 2, "{:?}", v.warnings);
        assert!(v.warnings.iter().any(|w| w.contains("store.postgres.maxOpenConnections") && w.contains("queue of proposals")));
        assert!(v.warnings.iter().any(|w| w.contains("KUMA_STORE_POSTGRES_CONNECTION_TIMEOUT") && w.contains("raft.electionMin")));
    }

    /// Every variable of Kuma 2.14.3 (reference: multi-zone contract, §5.7).
    #[test]
    fn every_postgres_variable_has_an_answer_of_its_own() {
        const NAMES: &str = "HOST PORT USER PASSWORD DB_NAME DRIVER_NAME CONNECTION_TIMEOUT MAX_CONNECTION_IDLE_TIME MAX_CONNECTION_LIFETIME \
            MAX_CONNECTION_LIFETIME_JITTER HEALTH_CHECK_INTERVAL MIN_OPEN_CONNECTIONS MAX_OPEN_CONNECTIONS MAX_IDLE_CONNECTIONS \
            MAX_LIST_QUERY_ELEMENTS TLS_MODE TLS_CERT_PATH TLS_KEY_PATH TLS_CA_PATH TLS_DISABLE_SSLSNI TOLERATE_NEWER_DB_VERSIONS \
            READ_REPLICA_HOST READ_REPLICA_PORT READ_REPLICA_RATIO";
        for name in NAMES.split_whitespace() {
            let v = Values::load(None, env(&[(&format!("KUMA_STORE_POSTGRES_{name}"), "x")])).unwrap();
            assert_eq!(v.warnings.len(), 1);
            let warning = &v.warnings[0];
            assert!(POSTGRES.iter().any(|(_, r)| warning.contains(r)) && !warning.contains("place: nothing ("), "{warning}");
        }
        // What a warning names must exist.
        for (_, replacement) in POSTGRES {
            for word in replacement.split(|c: char| !c.is_ascii_alphanumeric() && c != '.').filter(|w| w.starts_with("raft.")) {
                assert!(SETTINGS.iter().any(|s| s.key == word), "{word}");
            }
        }
    }

    #[test]
    fn the_documentation_lists_every_setting_where_it_belongs() {
        let text = include_str!("../../../../docs/settings.md");
        let (without, with) = text.split_once("## Accepted without effect").unwrap().1.split_once("## In effect").unwrap();
        for s in SETTINGS {
            let row = format!("| `{}` ", s.key);
            assert_eq!((with.contains(&row), without.contains(&row)), (s.effective, !s.effective), "docs/settings.md: {}", s.key);
        }
    }

    #[test]
    fn every_default_parses() {
        let v = Values::load(None, []).unwrap();
        for s in SETTINGS {
            match s.kind {
                ValueKind::Int => assert!(v.optional_number::<u64>(s.key).is_ok(), "{}", s.key),
                ValueKind::Duration => assert!(v.optional_duration(s.key).is_ok(), "{}", s.key),
                ValueKind::Bool => assert!(["true", "false"].contains(&s.default), "{}", s.key),
                ValueKind::Text | ValueKind::List => {}
            }
            assert_eq!(SETTINGS.iter().filter(|o| o.key == s.key).count(), 1, "{} twice", s.key);
        }
    }
}

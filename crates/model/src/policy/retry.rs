//! MeshRetry (reference: Kuma 2.14.3 policy contract, §4.2).

use super::{
    KindSpec, ValidateContext,
    common::{self, HeaderMatch, PolicySpec},
    target_ref::{self, Allowed, TargetRefKind as K, TopLevel},
};
use crate::{
    duration::GoDuration,
    kind::Kind,
    resource::View,
    schema::{Int, Schema, duration, field, int, list, object, required, text, text_map},
    violation::{Path, Violations},
};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, sync::LazyLock};

/// Conf of a MeshRetry: `to[].default`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Conf {
    /// TCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<Tcp>,
    /// HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<Http>,
    /// gRPC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<Grpc>,
}

/// `tcp`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Tcp {
    /// Greater than 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connect_attempt: Option<u32>,
}

/// `http`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Http {
    /// Zero = no retries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_retries: Option<u32>,
    /// Time of one attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<GoDuration>,
    /// Time between attempts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub back_off: Option<BackOff>,
    /// Time between attempts that the server asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limited_back_off: Option<RateLimitedBackOff>,
    /// Words of [`HTTP_RETRY_ON`] and status codes as text.
    #[serde(deserialize_with = "texts", skip_serializing_if = "Option::is_none")]
    pub retry_on: Option<Vec<String>>,
    /// Response headers that cause a retry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retriable_response_headers: Option<Vec<HeaderMatch>>,
    /// Request headers without which nothing is retried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retriable_request_headers: Option<Vec<HeaderMatch>>,
    /// Which endpoints are left out in retries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_selection: Option<Vec<Predicate>>,
    /// How often another endpoint is picked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_selection_max_attempts: Option<i64>,
}

/// `grpc`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Grpc {
    /// Zero = no retries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_retries: Option<u32>,
    /// Time of one attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<GoDuration>,
    /// Time between attempts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub back_off: Option<BackOff>,
    /// Time between attempts that the server asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limited_back_off: Option<RateLimitedBackOff>,
    /// Words of [`GRPC_RETRY_ON`].
    #[serde(deserialize_with = "texts", skip_serializing_if = "Option::is_none")]
    pub retry_on: Option<Vec<String>>,
}

/// `backOff`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct BackOff {
    /// Of the first attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_interval: Option<GoDuration>,
    /// Upper limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_interval: Option<GoDuration>,
}

/// `rateLimitedBackOff`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RateLimitedBackOff {
    /// Headers with the time; at least one in every valid conf.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reset_headers: Option<Vec<ResetHeader>>,
    /// Upper limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_interval: Option<GoDuration>,
}

/// A header that says when to try again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResetHeader {
    /// Header.
    pub name: String,
    /// Its format.
    pub format: ResetHeaderFormat,
}

/// Format of a reset header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResetHeaderFormat {
    /// From now.
    Seconds,
    /// Point in time.
    UnixTimestamp,
}

/// Which endpoints are left out in a retry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Predicate {
    /// What.
    pub predicate: PredicateType,
    /// With OmitHostsWithTags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
    /// With OmitPreviousPriorities: after how many attempts; schema default 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_frequency: Option<i32>,
}

/// Kinds of predicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum PredicateType {
    OmitPreviousHosts,
    OmitHostsWithTags,
    OmitPreviousPriorities,
}

/// A MeshRetry's spec; it has `to` alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MeshRetry(pub PolicySpec<Conf>);

impl View for MeshRetry {
    const KIND: Kind = Kind::MeshRetry;
}

/// Words of `http.retryOn`, besides status codes.
pub const HTTP_RETRY_ON: [&str; 17] = [
    "5xx",
    "GatewayError",
    "Reset",
    "Retriable4xx",
    "ConnectFailure",
    "EnvoyRatelimited",
    "RefusedStream",
    "Http3PostConnectFailure",
    "HttpMethodConnect",
    "HttpMethodDelete",
    "HttpMethodGet",
    "HttpMethodHead",
    "HttpMethodOptions",
    "HttpMethodPatch",
    "HttpMethodPost",
    "HttpMethodPut",
    "HttpMethodTrace",
];

/// Words of `grpc.retryOn`.
pub const GRPC_RETRY_ON: [&str; 5] = ["Canceled", "DeadlineExceeded", "Internal", "ResourceExhausted", "Unavailable"];

/// The status code that a word of `http.retryOn` stands for: one that HTTP knows.
pub fn status_code(word: &str) -> Option<u32> {
    const KNOWN: &[std::ops::RangeInclusive<u32>] = &[
        100..=103,
        200..=208,
        226..=226,
        300..=305,
        307..=308,
        400..=418,
        421..=426,
        428..=429,
        431..=431,
        451..=451,
        500..=508,
        510..=511,
    ];
    if word.len() != 3 || !word.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    word.parse().ok().filter(|code| KNOWN.iter().any(|r| r.contains(code)))
}

/// Bare numbers are read as texts, as YAML authors write status codes.
fn texts<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Word {
        Text(String),
        Number(i64),
    }
    let words = Option::<Vec<Word>>::deserialize(d)?;
    Ok(words.map(|list| {
        let text = |w| match w {
            Word::Text(s) => s,
            Word::Number(n) => n.to_string(),
        };
        list.into_iter().map(text).collect()
    }))
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    let back_off = || object(vec![field("baseInterval", duration()), field("maxInterval", duration())]);
    let rate_limited = || {
        let header =
            object(vec![required("name", common::header_name()), required("format", text().one_of(&["Seconds", "UnixTimestamp"]))]);
        object(vec![field("resetHeaders", list(header)), field("maxInterval", duration())])
    };
    let predicate = object(vec![
        required("predicate", text().one_of(&["OmitPreviousHosts", "OmitHostsWithTags", "OmitPreviousPriorities"])),
        field("tags", text_map()),
        field("updateFrequency", int(Int::I32).or(2)),
    ]);
    let conf = object(vec![
        field("tcp", object(vec![field("maxConnectAttempt", int(Int::U32))])),
        field(
            "http",
            object(vec![
                field("numRetries", int(Int::U32)),
                field("perTryTimeout", duration()),
                field("backOff", back_off()),
                field("rateLimitedBackOff", rate_limited()),
                field("retryOn", list(text())),
                field("retriableResponseHeaders", list(common::header_match())),
                field("retriableRequestHeaders", list(common::header_match())),
                field("hostSelection", list(predicate)),
                field("hostSelectionMaxAttempts", int(Int::I64)),
            ]),
        ),
        field(
            "grpc",
            object(vec![
                field("numRetries", int(Int::U32)),
                field("perTryTimeout", duration()),
                field("backOff", back_off()),
                field("rateLimitedBackOff", rate_limited()),
                field("retryOn", list(text().one_of(&GRPC_RETRY_ON))),
            ]),
        ),
    ]);
    object(vec![common::target_ref_field(), field("to", common::items(conf))])
});

/// Registry entry.
pub static KIND: KindSpec = KindSpec { kind: Kind::MeshRetry, schema: || &SCHEMA, validate, warnings };

const TOP: TopLevel<'_> = TopLevel {
    always: &[K::Mesh, K::MeshSubset, K::MeshService, K::MeshServiceSubset, K::Dataplane],
    system: &[K::MeshGateway, K::MeshHTTPRoute],
    gateway_tags: true,
};

fn validate(ctx: &ValidateContext<'_>, spec: &Value, out: &mut Violations) {
    let Some(MeshRetry(spec)) = common::read(spec, out) else { return };
    target_ref::validate_top(ctx, spec.target_ref.as_ref(), &TOP, false, out);
    let kinds: &[K] = match spec.target_ref.as_ref().map(|r| r.kind) {
        Some(K::MeshHTTPRoute | K::MeshGateway) => &[K::Mesh, K::MeshExternalService],
        _ => &[K::Mesh, K::MeshService, K::MeshExternalService, K::MeshMultiZoneService, K::MeshHTTPRoute],
    };
    for (i, item) in spec.to().iter().enumerate() {
        let at = Path::of("spec.to").index(i);
        target_ref::validate(&item.target_ref, &at.field("targetRef"), &Allowed { kinds, ..Allowed::default() }, out);
        // The extra segment `conf` is in the paths that clients see.
        validate_conf(&item.default, &at.field("default").field("conf"), out);
    }
}

fn validate_conf(conf: &Conf, at: &Path, out: &mut Violations) {
    if *conf == Conf::default() {
        out.add(at, "at least one of the 'tcp', 'http', 'grpc' must be specified");
    }
    if let Some(tcp) = &conf.tcp {
        let at = at.field("tcp");
        if tcp.max_connect_attempt.is_none() {
            out.add(&at, "must not be empty");
        }
        common::uint_positive(tcp.max_connect_attempt, &at.field("maxConnectAttempt"), out);
    }
    if let Some(http) = &conf.http {
        validate_http(http, &at.field("http"), out);
    }
    if let Some(grpc) = &conf.grpc {
        let at = at.field("grpc");
        if *grpc == Grpc::default() {
            out.add(&at, "must not be empty");
        }
        validate_times(grpc.per_try_timeout, grpc.back_off.as_ref(), grpc.rate_limited_back_off.as_ref(), &at, out);
        for (i, word) in grpc.retry_on.iter().flatten().enumerate() {
            if !GRPC_RETRY_ON.contains(&word.as_str()) {
                out.add(at.field("retryOn").index(i), format!("unknown item '{word}'"));
            }
        }
    }
}

fn validate_http(http: &Http, at: &Path, out: &mut Violations) {
    // hostSelectionMaxAttempts alone does not count.
    if (Http { host_selection_max_attempts: None, ..http.clone() }) == Http::default() {
        out.add(at, "must not be empty");
    }
    validate_times(http.per_try_timeout, http.back_off.as_ref(), http.rate_limited_back_off.as_ref(), at, out);
    for (i, word) in http.retry_on.iter().flatten().enumerate() {
        if !HTTP_RETRY_ON.contains(&word.as_str()) && status_code(word).is_none() {
            out.add(at.field("retryOn").index(i), format!("unknown item '{word}'"));
        }
    }
    let mut priorities = false;
    for (i, p) in http.host_selection.iter().flatten().enumerate() {
        let at = at.field("hostSelection").index(i);
        match p.predicate {
            PredicateType::OmitPreviousHosts => {}
            PredicateType::OmitHostsWithTags => {
                if p.tags.as_ref().is_none_or(BTreeMap::is_empty) {
                    out.add(at.field("tags"), "must be defined");
                }
            }
            PredicateType::OmitPreviousPriorities => {
                if priorities {
                    out.add(at.field("predicate"), "OmitPreviousPriorities must only be specified once");
                }
                priorities = true;
                if p.update_frequency.is_none_or(|f| f <= 0) {
                    out.add(at.field("updateFrequency"), "must be defined and greater than zero");
                }
            }
        }
    }
}

fn validate_times(
    per_try: Option<GoDuration>,
    back_off: Option<&BackOff>,
    rate_limited: Option<&RateLimitedBackOff>,
    at: &Path,
    out: &mut Violations,
) {
    common::duration_not_negative(per_try, &at.field("perTryTimeout"), out);
    if let Some(b) = back_off {
        let at = at.field("backOff");
        if *b == BackOff::default() {
            out.add(&at, "must not be empty");
        }
        // Envoy refuses intervals that are not positive.
        common::duration_positive(b.base_interval, &at.field("baseInterval"), out);
        common::duration_positive(b.max_interval, &at.field("maxInterval"), out);
    }
    if let Some(r) = rate_limited {
        let at = at.field("rateLimitedBackOff");
        let headers = r.reset_headers.as_deref().unwrap_or_default();
        if headers.is_empty() {
            out.add(at.field("resetHeaders"), "must be defined");
        }
        for (i, h) in headers.iter().enumerate() {
            if h.name.is_empty() {
                out.add(at.field("resetHeaders").index(i).field("name"), "must be defined");
            }
        }
        if r.max_interval.is_some_and(|d| d <= GoDuration::ZERO) {
            out.add(at.field("maxInterval"), "must be defined and greater than zero");
        }
    }
}

fn warnings(_: &ValidateContext<'_>, spec: &Value) -> Vec<String> {
    let Some(MeshRetry(spec)) = common::read(spec, &mut Violations::new()) else { return Vec::new() };
    target_ref::top_level_warning(spec.target_ref.as_ref()).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_codes() {
        assert_eq!((status_code("503"), status_code("409")), (Some(503), Some(409)));
        for bad in ["123", "952", "5xx", "99", "0503", "+50", "419", "306"] {
            assert_eq!(status_code(bad), None, "{bad}");
        }
    }
}

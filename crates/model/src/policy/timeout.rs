//! MeshTimeout (reference: Kuma 2.14.3 policy contract, §4.1).

use super::{
    KindSpec, ValidateContext,
    common::{self, FROM_DEPRECATED, PolicySpec},
    matches,
    target_ref::{self, Allowed, TargetRefKind as K, TopLevel},
};
use crate::{
    duration::GoDuration,
    kind::Kind,
    resource::View,
    schema::{Schema, duration, field, object},
    violation::{Path, Violations},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::LazyLock;

/// Conf of a MeshTimeout: `to[].default`, `from[].default`, `rules[].default`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {
    /// Time to establish a TCP connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_timeout: Option<GoDuration>,
    /// Time without traffic after which a connection is closed; zero = never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<GoDuration>,
    /// HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<Http>,
}

/// HTTP part of a MeshTimeout conf. Zero disables.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Http {
    /// Time for a whole response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_timeout: Option<GoDuration>,
    /// Time without activity of a stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream_idle_timeout: Option<GoDuration>,
    /// Life of a stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_stream_duration: Option<GoDuration>,
    /// Life of a connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connection_duration: Option<GoDuration>,
    /// Time to receive the request headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_headers_timeout: Option<GoDuration>,
}

/// A MeshTimeout's spec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MeshTimeout(pub PolicySpec<Conf>);

impl View for MeshTimeout {
    const KIND: Kind = Kind::MeshTimeout;
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    let conf = || {
        object(vec![
            field("connectionTimeout", duration()),
            field("idleTimeout", duration()),
            field(
                "http",
                object(vec![
                    field("requestTimeout", duration()),
                    field("streamIdleTimeout", duration()),
                    field("maxStreamDuration", duration()),
                    field("maxConnectionDuration", duration()),
                    field("requestHeadersTimeout", duration()),
                ]),
            ),
        ])
    };
    object(vec![
        common::target_ref_field(),
        field("to", common::items(conf())),
        field("from", common::items(conf())),
        field("rules", common::rules(conf(), true)),
    ])
});

/// Registry entry.
pub static KIND: KindSpec = KindSpec { kind: Kind::MeshTimeout, schema: || &SCHEMA, validate, warnings };

const TOP: TopLevel<'_> = TopLevel {
    always: &[K::Mesh, K::MeshSubset, K::MeshService, K::MeshServiceSubset, K::Dataplane],
    system: &[K::MeshGateway, K::MeshHTTPRoute],
    gateway_tags: true,
};

fn validate(ctx: &ValidateContext<'_>, spec: &Value, out: &mut Violations) {
    let Some(MeshTimeout(spec)) = common::read(spec, out) else { return };
    let top = spec.target_ref.as_ref().map_or(K::Mesh, |r| r.kind);
    let (to, from, rules) = (spec.to(), spec.from(), spec.rules());
    let root = Path::of("spec");
    target_ref::validate_top(ctx, spec.target_ref.as_ref(), &TOP, spec.is_inbound(), out);
    common::to_from_rules(to.len(), from.len(), rules.len(), out);
    if matches!(top, K::MeshHTTPRoute | K::MeshGateway) && !from.is_empty() {
        out.add(root.field("from"), "must not be defined");
    } else {
        for (i, item) in from.iter().enumerate() {
            let at = root.field("from").index(i);
            let allowed = Allowed { kinds: &[K::Mesh], ..Allowed::default() };
            target_ref::validate(&item.target_ref, &at.field("targetRef"), &allowed, out);
            validate_conf(&item.default, &at.field("default"), top, false, out);
        }
    }
    let kinds: &[K] = match top {
        K::MeshHTTPRoute | K::MeshGateway => &[K::Mesh, K::MeshExternalService],
        _ => &[K::Mesh, K::MeshService, K::MeshExternalService, K::MeshMultiZoneService, K::MeshHTTPRoute],
    };
    for (i, item) in to.iter().enumerate() {
        let at = root.field("to").index(i);
        target_ref::validate(&item.target_ref, &at.field("targetRef"), &Allowed { kinds, ..Allowed::default() }, out);
        validate_conf(&item.default, &at.field("default"), top, false, out);
    }
    for (i, rule) in rules.iter().enumerate() {
        let at = root.field("rules").index(i);
        let all = rule.matches.as_deref().unwrap_or_default();
        for (j, m) in all.iter().enumerate() {
            let at = at.field("matches").index(j);
            if m.spiffe_id.is_none() && m.sni.is_none() {
                out.add(&at, "must specify at least one of 'spiffeID' or 'sni'");
            }
            matches::validate(m, &at, out);
        }
        validate_conf(&rule.default, &at.field("default"), top, all.iter().any(|m| m.spiffe_id.is_some()), out);
    }
}

fn validate_conf(conf: &Conf, at: &Path, top: K, by_client: bool, out: &mut Violations) {
    if *conf == Conf::default() {
        out.add(at, "at least one timeout should be configured");
        return;
    }
    let http = conf.http.clone().unwrap_or_default();
    let http_at = at.field("http");
    common::duration_positive(conf.connection_timeout, &at.field("connectionTimeout"), out);
    for (value, path) in [
        (conf.idle_timeout, at.field("idleTimeout")),
        (http.request_timeout, http_at.field("requestTimeout")),
        (http.stream_idle_timeout, http_at.field("streamIdleTimeout")),
        (http.max_stream_duration, http_at.field("maxStreamDuration")),
        (http.max_connection_duration, http_at.field("maxConnectionDuration")),
        (http.request_headers_timeout, http_at.field("requestHeadersTimeout")),
    ] {
        common::duration_not_negative(value, &path, out);
    }
    // requestHeadersTimeout alone is not enough; clients see that rule, so it stays.
    let counted = [http.request_timeout, http.stream_idle_timeout, http.max_stream_duration, http.max_connection_duration];
    if conf.http.is_some() && counted.iter().all(Option::is_none) {
        out.add(&http_at, "at least one timeout in this section should be configured");
    }
    let connection_wide = [
        (conf.connection_timeout, at.field("connectionTimeout")),
        (conf.idle_timeout, at.field("idleTimeout")),
        (http.max_stream_duration, http_at.field("maxStreamDuration")),
        (http.max_connection_duration, http_at.field("maxConnectionDuration")),
    ];
    if top == K::MeshHTTPRoute {
        for (_, path) in connection_wide.iter().filter(|(v, _)| v.is_some()) {
            out.add(path, "can't be specified when top-level TargetRef is referencing MeshHTTPRoute");
        }
    }
    if by_client {
        let headers = (http.request_headers_timeout, http_at.field("requestHeadersTimeout"));
        for (_, path) in connection_wide.iter().chain([&headers]).filter(|(v, _)| v.is_some()) {
            out.add(path, "can't be specified when matches contain spiffeID because this field cannot be conditioned on source identity");
        }
    }
}

fn warnings(_: &ValidateContext<'_>, spec: &Value) -> Vec<String> {
    let Some(MeshTimeout(spec)) = common::read(spec, &mut Violations::new()) else { return Vec::new() };
    let from = (!spec.from().is_empty()).then(|| FROM_DEPRECATED.to_owned());
    target_ref::top_level_warning(spec.target_ref.as_ref()).into_iter().chain(from).collect()
}

//! MeshCircuitBreaker (reference: Kuma 2.14.3 policy contract, §4.3).

use super::{
    KindSpec, ValidateContext,
    common::{self, FROM_DEPRECATED, IntOrString, PolicySpec},
    target_ref::{self, Allowed, TargetRefKind as K, TopLevel},
};
use crate::{
    duration::GoDuration,
    kind::Kind,
    resource::View,
    schema::{Int, Schema, boolean, duration, field, int, int_or_text, object},
    violation::{Path, Violations},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::LazyLock;

/// Conf of a MeshCircuitBreaker: `to[].default`, `from[].default`, `rules[].default`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {
    /// Upper limits of a destination.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_limits: Option<ConnectionLimits>,
    /// Ejection of failing endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
}

/// `connectionLimits`; all greater than 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConnectionLimits {
    /// Connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Connection pools.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connection_pools: Option<u32>,
    /// Requests that wait for a connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pending_requests: Option<u32>,
    /// Retries at the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
    /// Requests at the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<u32>,
}

/// `outlierDetection`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OutlierDetection {
    /// Turned off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    /// Between two checks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<GoDuration>,
    /// Of the first ejection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_ejection_time: Option<GoDuration>,
    /// Percent of the endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ejection_percent: Option<u32>,
    /// Errors of the own side count apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split_external_and_local_errors: Option<bool>,
    /// What counts as failing. Set in every valid conf.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detectors: Option<Detectors>,
    /// Percent of healthy endpoints below which all are used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthy_panic_threshold: Option<IntOrString>,
}

/// `outlierDetection.detectors`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Detectors {
    /// 5xx and local origin errors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_failures: Option<Consecutive>,
    /// 502, 503, 504.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway_failures: Option<Consecutive>,
    /// Errors of the own side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_origin_failures: Option<Consecutive>,
    /// Success rate against that of the other endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success_rate: Option<SuccessRate>,
    /// Failures in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_percentage: Option<FailurePercentage>,
}

/// A number of failures in a row.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Consecutive {
    /// Greater than 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive: Option<u32>,
}

/// `successRate`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SuccessRate {
    /// Endpoints with enough requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum_hosts: Option<u32>,
    /// Requests that are enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_volume: Option<u32>,
    /// Factor of the standard deviation, greater than 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standard_deviation_factor: Option<IntOrString>,
}

/// `failurePercentage`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct FailurePercentage {
    /// Endpoints with enough requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum_hosts: Option<u32>,
    /// Requests that are enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_volume: Option<u32>,
    /// Percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<u32>,
}

/// A MeshCircuitBreaker's spec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MeshCircuitBreaker(pub PolicySpec<Conf>);

impl View for MeshCircuitBreaker {
    const KIND: Kind = Kind::MeshCircuitBreaker;
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    let count = || int(Int::U32);
    let consecutive = || object(vec![field("consecutive", count())]);
    let conf = || {
        object(vec![
            field(
                "connectionLimits",
                object(vec![
                    field("maxConnections", count()),
                    field("maxConnectionPools", count()),
                    field("maxPendingRequests", count()),
                    field("maxRetries", count()),
                    field("maxRequests", count()),
                ]),
            ),
            field(
                "outlierDetection",
                object(vec![
                    field("disabled", boolean()),
                    field("interval", duration()),
                    field("baseEjectionTime", duration()),
                    field("maxEjectionPercent", count()),
                    field("splitExternalAndLocalErrors", boolean()),
                    field(
                        "detectors",
                        object(vec![
                            field("totalFailures", consecutive()),
                            field("gatewayFailures", consecutive()),
                            field("localOriginFailures", consecutive()),
                            field(
                                "successRate",
                                object(vec![
                                    field("minimumHosts", count()),
                                    field("requestVolume", count()),
                                    field("standardDeviationFactor", int_or_text()),
                                ]),
                            ),
                            field(
                                "failurePercentage",
                                object(vec![field("minimumHosts", count()), field("requestVolume", count()), field("threshold", count())]),
                            ),
                        ]),
                    ),
                    field("healthyPanicThreshold", int_or_text()),
                ]),
            ),
        ])
    };
    object(vec![
        common::target_ref_field(),
        field("to", common::items(conf())),
        field("from", common::items(conf())),
        field("rules", common::rules(conf(), false)),
    ])
});

/// Registry entry.
pub static KIND: KindSpec = KindSpec { kind: Kind::MeshCircuitBreaker, schema: || &SCHEMA, validate, warnings };

const TOP: TopLevel<'_> = TopLevel {
    always: &[K::Mesh, K::MeshSubset, K::MeshService, K::MeshServiceSubset, K::MeshGateway, K::Dataplane],
    system: &[],
    gateway_tags: true,
};

fn validate(ctx: &ValidateContext<'_>, spec: &Value, out: &mut Violations) {
    let Some(MeshCircuitBreaker(spec)) = common::read(spec, out) else { return };
    let (to, from, rules) = (spec.to(), spec.from(), spec.rules());
    let root = Path::of("spec");
    target_ref::validate_top(ctx, spec.target_ref.as_ref(), &TOP, spec.is_inbound(), out);
    common::to_from_rules(to.len(), from.len(), rules.len(), out);
    for (name, items, kinds) in
        [("from", from, &[K::Mesh] as &[K]), ("to", to, &[K::Mesh, K::MeshService, K::MeshExternalService, K::MeshMultiZoneService])]
    {
        for (i, item) in items.iter().enumerate() {
            let at = root.field(name).index(i);
            target_ref::validate(&item.target_ref, &at.field("targetRef"), &Allowed { kinds, ..Allowed::default() }, out);
            validate_conf(&item.default, &at.field("default"), out);
        }
    }
    for (i, rule) in rules.iter().enumerate() {
        // Reported under `from`; clients see that path.
        validate_conf(&rule.default, &root.field("from").index(i).field("default"), out);
    }
}

fn validate_conf(conf: &Conf, at: &Path, out: &mut Violations) {
    if conf.connection_limits.is_none() && conf.outlier_detection.is_none() {
        out.add(at, "at least one of: 'connectionLimits' or 'outlierDetection' should be configured");
    }
    if let Some(l) = &conf.connection_limits {
        let at = at.field("connectionLimits");
        for (value, name) in [
            (l.max_connections, "maxConnections"),
            (l.max_connection_pools, "maxConnectionPools"),
            (l.max_pending_requests, "maxPendingRequests"),
            (l.max_retries, "maxRetries"),
            (l.max_requests, "maxRequests"),
        ] {
            common::uint_positive(value, &at.field(name), out);
        }
    }
    if let Some(o) = &conf.outlier_detection {
        validate_outlier_detection(o, &at.field("outlierDetection"), out);
    }
}

fn validate_outlier_detection(o: &OutlierDetection, at: &Path, out: &mut Violations) {
    common::duration_positive(o.interval, &at.field("interval"), out);
    common::duration_positive(o.base_ejection_time, &at.field("baseEjectionTime"), out);
    common::percentage_int(o.max_ejection_percent, &at.field("maxEjectionPercent"), out);
    common::percentage(o.healthy_panic_threshold.as_ref(), &at.field("healthyPanicThreshold"), out);
    let at = at.field("detectors");
    let Some(d) = &o.detectors else {
        out.add(&at, "must be defined");
        return;
    };
    common::at_least_one(
        &[
            ("totalFailures", d.total_failures.is_some()),
            ("gatewayFailures", d.gateway_failures.is_some()),
            ("localOriginFailures", d.local_origin_failures.is_some()),
            ("successRate", d.success_rate.is_some()),
            ("failurePercentage", d.failure_percentage.is_some()),
        ],
        &at,
        out,
    );
    for (detector, name) in
        [(&d.total_failures, "totalFailures"), (&d.gateway_failures, "gatewayFailures"), (&d.local_origin_failures, "localOriginFailures")]
    {
        common::uint_positive(detector.as_ref().and_then(|c| c.consecutive), &at.field(name).field("consecutive"), out);
    }
    if let Some(s) = &d.success_rate {
        let at = at.field("successRate");
        common::uint_positive(s.minimum_hosts, &at.field("minimumHosts"), out);
        common::uint_positive(s.request_volume, &at.field("requestVolume"), out);
        let at = at.field("standardDeviationFactor");
        match s.standard_deviation_factor.as_ref().map(IntOrString::as_f64) {
            Some(None) => out.add(&at, "invalid number"),
            Some(Some(f)) if f <= 0.0 => out.add(&at, "must be greater than 0"),
            _ => {}
        }
    }
    if let Some(f) = &d.failure_percentage {
        let at = at.field("failurePercentage");
        common::uint_positive(f.minimum_hosts, &at.field("minimumHosts"), out);
        common::uint_positive(f.request_volume, &at.field("requestVolume"), out);
        common::percentage_int(f.threshold, &at.field("threshold"), out);
    }
}

fn warnings(_: &ValidateContext<'_>, spec: &Value) -> Vec<String> {
    let Some(MeshCircuitBreaker(spec)) = common::read(spec, &mut Violations::new()) else { return Vec::new() };
    let from = (!spec.from().is_empty()).then(|| FROM_DEPRECATED.to_owned());
    target_ref::top_level_warning(spec.target_ref.as_ref()).into_iter().chain(from).collect()
}

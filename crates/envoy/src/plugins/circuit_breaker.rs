//! MeshCircuitBreaker (policy contract §4.3).

use super::conf::Conf;
use crate::{
    destination::Frame,
    proto::u32v,
    resources::{ClusterItem, Part, ResourceSet},
};
use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{CircuitBreakers, OutlierDetection, circuit_breakers::Thresholds},
            core::v3::RoutingPriority,
        },
        r#type::v3::Percent,
    },
    google::protobuf::UInt32Value,
};
use ikada_policy::{InboundRule, TypedMatch};

/// Every cluster counts what is left of its limits; inbound and outbound clusters get what policies say.
pub(crate) fn apply(_frame: &Frame<'_>, set: &mut ResourceSet, rules: &TypedMatch) {
    for item in set.clusters.values_mut() {
        thresholds(item).track_remaining = true;
        match item.part.clone() {
            Part::System => {}
            Part::Inbound(key, _) => {
                if let Some(conf) = rules.inbound.get(&key).and_then(|r| InboundRule::all_traffic(r)) {
                    configure(item, Conf(&conf));
                }
            }
            Part::Outbound(destination) => {
                let conf = match &destination.section_kri {
                    Some(kri) => rules.to.compute(kri).map(|r| r.first()),
                    None => super::http_route::service_of(&destination).and_then(|s| rules.to.for_service(s)).map(|r| &*r.conf),
                };
                if let Some(conf) = conf {
                    configure(item, Conf(conf));
                }
            }
        }
    }
}

/// The thresholds of the DEFAULT priority, made when there are none.
fn thresholds(item: &mut ClusterItem) -> &mut Thresholds {
    let all = &mut item.cluster.circuit_breakers.get_or_insert_with(CircuitBreakers::default).thresholds;
    let at = match all.iter().position(|t| t.priority == RoutingPriority::Default as i32) {
        Some(at) => at,
        None => {
            all.insert(0, Thresholds::default());
            0
        }
    };
    &mut all[at]
}

fn configure(item: &mut ClusterItem, conf: Conf<'_>) {
    let limits = conf.at("connectionLimits");
    let t = thresholds(item);
    let set = |slot: &mut Option<UInt32Value>, field: &str| {
        if let Some(v) = limits.at(field).wrapped() {
            *slot = Some(v);
        }
    };
    set(&mut t.max_connections, "maxConnections");
    set(&mut t.max_connection_pools, "maxConnectionPools");
    set(&mut t.max_pending_requests, "maxPendingRequests");
    set(&mut t.max_retries, "maxRetries");
    set(&mut t.max_requests, "maxRequests");

    let outliers = conf.at("outlierDetection");
    if !outliers.is_set() || outliers.at("disabled").bool() == Some(true) {
        return;
    }
    if let Some(value) = outliers.at("healthyPanicThreshold").decimal() {
        item.cluster.common_lb_config.get_or_insert_default().healthy_panic_threshold = Some(Percent { value });
    }
    item.cluster.outlier_detection = Some(outlier_detection(outliers));
}

/// A detector that is configured ejects always (100), one that is not never (0).
fn outlier_detection(conf: Conf<'_>) -> OutlierDetection {
    let enforce = |configured: bool| u32v(if configured { 100 } else { 0 });
    let detectors = conf.at("detectors");
    let (total, gateway, local) = (detectors.at("totalFailures"), detectors.at("gatewayFailures"), detectors.at("localOriginFailures"));
    let consecutive = |d: Conf<'_>| d.at("consecutive").wrapped();
    let mut out = OutlierDetection {
        interval: conf.at("interval").duration(),
        base_ejection_time: conf.at("baseEjectionTime").duration(),
        max_ejection_percent: conf.at("maxEjectionPercent").wrapped(),
        split_external_local_origin_errors: conf.at("splitExternalAndLocalErrors").bool().unwrap_or(false),
        consecutive_5xx: consecutive(total),
        enforcing_consecutive_5xx: enforce(consecutive(total).is_some()),
        consecutive_gateway_failure: consecutive(gateway),
        enforcing_consecutive_gateway_failure: enforce(consecutive(gateway).is_some()),
        consecutive_local_origin_failure: consecutive(local),
        enforcing_consecutive_local_origin_failure: enforce(consecutive(local).is_some()),
        ..Default::default()
    };
    if !detectors.is_set() {
        return out;
    }
    let rate = detectors.at("successRate");
    out.success_rate_minimum_hosts = rate.at("minimumHosts").wrapped();
    out.success_rate_request_volume = rate.at("requestVolume").wrapped();
    // A float would turn 1.9 · 1000 into 1899.999…; half a unit of the last digit makes the truncation exact.
    out.success_rate_stdev_factor = rate.at("standardDeviationFactor").decimal().and_then(|f| u32v((f * 1000.0 + 1e-6) as u32));
    out.enforcing_success_rate = enforce(rate.is_set());
    out.enforcing_local_origin_success_rate = enforce(rate.is_set());
    let percentage = detectors.at("failurePercentage");
    out.failure_percentage_minimum_hosts = percentage.at("minimumHosts").wrapped();
    out.failure_percentage_request_volume = percentage.at("requestVolume").wrapped();
    out.failure_percentage_threshold = percentage.at("threshold").wrapped();
    out.enforcing_failure_percentage = enforce(percentage.is_set());
    out.enforcing_failure_percentage_local_origin = enforce(percentage.is_set());
    out
}

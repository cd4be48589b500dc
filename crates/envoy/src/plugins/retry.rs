//! MeshRetry (policy contract §4.2).

use super::{
    conf::{Conf, UNSET},
    http_route::{header, service_of},
};
use crate::{
    destination::Frame,
    encode::pack,
    proto::{exact, string_struct},
    resources::{Part, Protocol, ResourceSet},
};
use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::Metadata,
            route::v3::{
                HeaderMatcher, RetryPolicy, Route,
                header_matcher::HeaderMatchSpecifier,
                retry_policy::{
                    RateLimitedRetryBackOff, ResetHeader, ResetHeaderFormat, RetryBackOff, RetryHostPredicate, RetryPriority,
                    retry_host_predicate, retry_priority,
                },
                route,
            },
        },
        extensions::retry::{
            host::{omit_host_metadata::v3::OmitHostMetadataConfig, previous_hosts::v3::PreviousHostsPredicate},
            priority::previous_priorities::v3::PreviousPrioritiesConfig,
        },
    },
    google::protobuf::Duration,
};
use ikada_model::{Kri, labels::TAG_SERVICE};
use ikada_policy::TypedMatch;
use std::collections::BTreeMap;

/// Edits the listeners of outbounds.
pub(crate) fn apply(frame: &Frame<'_>, set: &mut ResourceSet, rules: &TypedMatch) {
    for item in set.listeners.values_mut() {
        let Part::Outbound(destination) = item.part.clone() else { continue };
        let conf = match &destination.section_kri {
            Some(kri) => rules.to.resource_context(None, Some(kri), frame.mesh_name).map_or(UNSET, |r| Conf(r.first())),
            None => service_of(&destination).and_then(|s| rules.to.for_service(s)).map_or(UNSET, |r| Conf(&r.conf)),
        };
        if destination.protocol == Protocol::Tcp {
            let attempts = conf.at("tcp").at("maxConnectAttempt").wrapped();
            if let (Some(attempts), Some(chain)) = (attempts, item.chains.first_mut()) {
                chain.tcp_proxies_mut().for_each(|t| t.max_connect_attempts = Some(attempts));
            }
            continue;
        }
        for chain in &mut item.chains {
            for hcm in chain.hcms_mut() {
                for r in hcm.routes_mut() {
                    set_policy(r, policy(destination.protocol, conf));
                    let Some(service) = &destination.section_kri else { continue };
                    let Ok(route_kri) = r.name.parse::<Kri>() else { continue };
                    if let Some(rule) = rules.to.resource_context(Some(&route_kri), Some(service), frame.mesh_name) {
                        set_policy(r, policy(destination.protocol, Conf(rule.first())));
                    }
                }
            }
        }
    }
}

fn set_policy(r: &mut Route, policy: Option<RetryPolicy>) {
    if let (Some(route::Action::Route(action)), Some(policy)) = (&mut r.action, policy) {
        action.retry_policy = Some(policy);
    }
}

/// Nothing for `http2`, as upstream.
fn policy(protocol: Protocol, conf: Conf<'_>) -> Option<RetryPolicy> {
    let (conf, grpc) = match protocol {
        Protocol::Http => (conf.at("http"), false),
        Protocol::Grpc => (conf.at("grpc"), true),
        _ => return None,
    };
    if !conf.is_set() || conf.at("numRetries").number() == Some(0) {
        return None;
    }
    let mut out = RetryPolicy {
        num_retries: conf.at("numRetries").wrapped(),
        per_try_timeout: conf.at("perTryTimeout").duration(),
        ..Default::default()
    };
    let back_off = conf.at("backOff");
    if back_off.is_set() {
        let default = grpc.then_some(Duration { seconds: 0, nanos: 25_000_000 });
        out.retry_back_off = Some(RetryBackOff {
            base_interval: back_off.at("baseInterval").duration().or(default),
            max_interval: back_off.at("maxInterval").duration(),
        });
    }
    let limited = conf.at("rateLimitedBackOff");
    if limited.is_set() {
        out.rate_limited_retry_back_off = Some(RateLimitedRetryBackOff {
            reset_headers: limited.at("resetHeaders").items().map(reset_header).collect(),
            max_interval: limited.at("maxInterval").duration(),
        });
    }
    if grpc {
        grpc_conditions(&mut out, conf)
    } else {
        http_conditions(&mut out, conf)
    }
    Some(out)
}

fn reset_header(h: Conf<'_>) -> ResetHeader {
    let format = if h.at("format").text() == Some("UnixTimestamp") { ResetHeaderFormat::UnixTimestamp } else { ResetHeaderFormat::Seconds };
    ResetHeader { name: h.at("name").text().unwrap_or_default().to_owned(), format: format as i32 }
}

fn grpc_conditions(out: &mut RetryPolicy, conf: Conf<'_>) {
    let words: Vec<&str> = conf
        .at("retryOn")
        .items()
        .filter_map(|w| match w.text()? {
            "Canceled" => Some("canceled"),
            "DeadlineExceeded" => Some("deadline-exceeded"),
            "Internal" => Some("internal"),
            "ResourceExhausted" => Some("resource-exhausted"),
            "Unavailable" => Some("unavailable"),
            _ => None,
        })
        .collect();
    out.retry_on = if words.is_empty() {
        "cancelled,connect-failure,gateway-error,refused-stream,reset,resource-exhausted,unavailable".to_owned()
    } else {
        words.join(",")
    };
}

fn http_conditions(out: &mut RetryPolicy, conf: Conf<'_>) {
    let mut words: Vec<&str> = Vec::new();
    for w in conf.at("retryOn").items().filter_map(Conf::text) {
        match w {
            "5xx" => words.push("5xx"),
            "GatewayError" => words.push("gateway-error"),
            "Reset" => words.push("reset"),
            "Retriable4xx" => words.push("retriable-4xx"),
            "ConnectFailure" => words.push("connect-failure"),
            "EnvoyRatelimited" => words.push("envoy-ratelimited"),
            "RefusedStream" => words.push("refused-stream"),
            "Http3PostConnectFailure" => words.push("http3-post-connect-failure"),
            _ => match (w.strip_prefix("HttpMethod"), w.parse::<u32>()) {
                (Some(method), _) => out.retriable_request_headers.push(HeaderMatcher {
                    name: ":method".to_owned(),
                    header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(exact(&method.to_ascii_uppercase()))),
                    ..Default::default()
                }),
                (None, Ok(code)) => out.retriable_status_codes.push(code),
                (None, Err(_)) => {}
            },
        }
    }
    if words.is_empty() {
        words = vec!["gateway-error", "connect-failure", "refused-stream"];
    }
    if !out.retriable_status_codes.is_empty() {
        words.push("retriable-status-codes");
    }
    out.retry_on = words.join(",");
    out.retriable_headers = conf.at("retriableResponseHeaders").items().map(header).collect();
    out.retriable_request_headers.extend(conf.at("retriableRequestHeaders").items().map(header));
    for selection in conf.at("hostSelection").items() {
        host_selection(out, selection);
    }
    out.host_selection_retry_max_attempts = conf.at("hostSelectionMaxAttempts").0.as_i64().unwrap_or(0);
}

fn host_selection(out: &mut RetryPolicy, conf: Conf<'_>) {
    let predicate = |name: &str, config| RetryHostPredicate {
        name: name.to_owned(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(config)),
    };
    match conf.at("predicate").text() {
        Some("OmitPreviousHosts") => {
            out.retry_host_predicate.push(predicate("envoy.retry_host_predicates.previous_hosts", pack(&PreviousHostsPredicate {})));
        }
        Some("OmitHostsWithTags") => {
            let tags: BTreeMap<String, String> = conf
                .at("tags")
                .0
                .as_object()
                .into_iter()
                .flatten()
                .filter(|(k, _)| *k != TAG_SERVICE)
                .filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())))
                .collect();
            let metadata = Metadata { filter_metadata: [("envoy.lb".to_owned(), string_struct(&tags))].into(), ..Default::default() };
            let config = OmitHostMetadataConfig { metadata_match: Some(metadata) };
            out.retry_host_predicate.push(predicate("envoy.retry_host_predicates.omit_host_metadata", pack(&config)));
        }
        Some("OmitPreviousPriorities") => {
            let update_frequency = conf.at("updateFrequency").number().and_then(|n| i32::try_from(n).ok()).unwrap_or(2);
            out.retry_priority = Some(RetryPriority {
                name: "envoy.retry_priorities.previous_priorities".to_owned(),
                config_type: Some(retry_priority::ConfigType::TypedConfig(pack(&PreviousPrioritiesConfig { update_frequency }))),
            });
        }
        _ => {}
    }
}

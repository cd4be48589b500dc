//! What Envoy found, and what follows from it for the inbounds (reference: data-plane contract §7.1).

use super::specifier::{ADMIN, WORKLOAD};
use envoy_types::pb::envoy::{config::core::v3::HealthStatus, service::health::v3::EndpointHealthResponse};
use ikada_model::{Dataplane, dataplane::State};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// One response of a proxy, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// Envoy itself; `None` when it was not looked at.
    envoy: Option<bool>,
    /// Workload port → its application answers.
    ports: BTreeMap<u16, bool>,
}

impl Report {
    /// Clusters that were not asked for are ignored.
    pub(super) fn read(response: &EndpointHealthResponse) -> Report {
        let mut report = Report::default();
        for cluster in &response.cluster_endpoints_health {
            let mut endpoints = cluster.locality_endpoints_health.iter().flat_map(|l| &l.endpoints_health);
            let healthy = endpoints.all(|e| matches!(HealthStatus::try_from(e.health_status), Ok(HealthStatus::Healthy | HealthStatus::Unknown)));
            if ADMIN.contains(&cluster.cluster_name.as_str()) {
                report.envoy = Some(report.envoy.unwrap_or(true) && healthy);
            } else if let Some(port) = cluster.cluster_name.strip_prefix(WORKLOAD).and_then(|p| p.parse().ok()) {
                *report.ports.entry(port).or_insert(true) &= healthy;
            }
        }
        report
    }

    /// State that an inbound should have; `None` when the report says nothing about it.
    fn healthy(&self, workload_port: u32, probed: bool) -> Option<bool> {
        let port = u16::try_from(workload_port).ok().and_then(|p| self.ports.get(&p).copied());
        match (port, self.envoy) {
            (None, None) => None,
            // Its probe is newer than the report: that Envoy is well does not tell that the application is.
            (None, Some(true)) if probed => None,
            (port, envoy) => Some(port.unwrap_or(true) && envoy.unwrap_or(true)),
        }
    }

    /// Whether [`apply`](Self::apply) would change the dataplane.
    pub(super) fn changes(&self, dataplane: &Dataplane) -> bool {
        dataplane.networking.inbound.iter().any(|i| {
            let healthy = self.healthy(i.workload_port(), i.service_probe.is_some());
            matches!((i.state, healthy), (State::Ready, Some(false)) | (State::NotReady, Some(true)))
        })
    }

    /// The canonical spec with the states of its inbounds; `None` when that changes nothing. Inbounds in state `Ignored` are left alone.
    pub(super) fn apply(&self, dataplane: &Dataplane, spec: &Value) -> Option<Value> {
        if !self.changes(dataplane) {
            return None;
        }
        let mut spec = spec.clone();
        let inbounds = spec.pointer_mut("/networking/inbound")?.as_array_mut()?;
        for (raw, inbound) in inbounds.iter_mut().zip(&dataplane.networking.inbound) {
            let Some(raw) = raw.as_object_mut() else { continue };
            match (inbound.state, self.healthy(inbound.workload_port(), inbound.service_probe.is_some())) {
                (State::NotReady, Some(true)) => set(raw, true),
                (State::Ready, Some(false)) => set(raw, false),
                _ => {}
            }
        }
        Some(spec)
    }
}

/// Canonical protobuf JSON: the defaults, `Ready` and `false`, are not written.
fn set(inbound: &mut Map<String, Value>, ready: bool) {
    if ready {
        inbound.remove("state");
        inbound.insert("health".to_owned(), json!({"ready": true}));
    } else {
        inbound.insert("state".to_owned(), json!("NotReady"));
        inbound.insert("health".to_owned(), json!({}));
    }
}

/// States for a dataplane that a proxy brings along again. What a probe found of an inbound stays true for the inbound that is still the
/// same; an inbound that is new or points elsewhere starts as not ready, like those of a new dataplane. A state that is given is kept.
pub(in crate::proxies) fn keep_states(stored: &Value, brought: &mut Value) {
    const PLACE: [&str; 5] = ["address", "port", "serviceAddress", "servicePort", "name"];
    let address = |spec: &Value| spec.pointer("/networking/address").cloned();
    let old: &[Value] = stored.pointer("/networking/inbound").and_then(Value::as_array).map_or(&[], Vec::as_slice);
    // The machine's address is that of every inbound without its own.
    let moved = address(stored) != address(brought);
    let Some(new) = brought.pointer_mut("/networking/inbound").and_then(Value::as_array_mut) else { return };
    for inbound in new.iter_mut().filter_map(Value::as_object_mut) {
        if !inbound.contains_key("serviceProbe") || inbound.contains_key("state") {
            continue;
        }
        let same = |o: &&Value| !moved && o.get("serviceProbe").is_some() && PLACE.iter().all(|k| o.get(*k) == inbound.get(*k));
        match old.iter().find(same) {
            Some(o) => {
                for key in ["state", "health"] {
                    match o.get(key) {
                        Some(value) => inbound.insert(key.to_owned(), value.clone()),
                        None => inbound.remove(key),
                    };
                }
            }
            None => set(inbound, false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::service::health::v3::{ClusterEndpointsHealth, EndpointHealth, LocalityEndpointsHealth};

    fn report(clusters: &[(&str, &[i32])]) -> Report {
        let cluster = |(name, states): &(&str, &[i32])| ClusterEndpointsHealth {
            cluster_name: (*name).to_owned(),
            locality_endpoints_health: vec![LocalityEndpointsHealth {
                endpoints_health: states.iter().map(|s| EndpointHealth { health_status: *s, ..Default::default() }).collect(),
                ..Default::default()
            }],
        };
        Report::read(&EndpointHealthResponse { cluster_endpoints_health: clusters.iter().map(cluster).collect(), ..Default::default() })
    }
    fn applied(report: &Report, inbounds: Value) -> Option<Value> {
        let spec = json!({"networking": {"address": "10.0.0.1", "inbound": inbounds}});
        let typed: Dataplane = serde_json::from_value(spec.clone()).unwrap();
        let result = report.apply(&typed, &spec);
        assert_eq!(result.is_some(), report.changes(&typed));
        result.map(|s| s["networking"]["inbound"].clone())
    }
    const HEALTHY: i32 = 1;
    const UNHEALTHY: i32 = 2;

    #[test]
    fn statuses() {
        for (status, healthy) in [(0, true), (1, true), (2, false), (3, false), (4, false), (5, false), (77, false), (-1, false)] {
            assert_eq!(report(&[("localhost:80", &[status])]).ports[&80], healthy, "{status}");
        }
        assert!(!report(&[("localhost:80", &[HEALTHY, UNHEALTHY])]).ports[&80], "all endpoints count");
        let odd = report(&[("localhost:", &[2]), ("localhost:70000", &[2]), ("localhost:-1", &[2]), ("other", &[2]), ("", &[])]);
        assert_eq!(odd, Report::default());
    }

    #[test]
    fn only_transitions_change_something() {
        let probe = json!({"tcp": {}});
        let up = report(&[("localhost:8080", &[HEALTHY])]);
        let down = report(&[("localhost:8080", &[UNHEALTHY])]);
        let ready = json!([{"port": 80, "servicePort": 8080, "serviceProbe": probe, "health": {"ready": true}}]);
        let not_ready = json!([{"port": 80, "servicePort": 8080, "serviceProbe": probe, "state": "NotReady", "health": {}}]);
        assert_eq!(applied(&up, not_ready.clone()), Some(ready.clone()));
        assert_eq!(applied(&down, ready.clone()), Some(not_ready.clone()));
        assert_eq!((applied(&up, ready.clone()), applied(&down, not_ready.clone())), (None, None));
        let ignored = json!([{"port": 80, "servicePort": 8080, "serviceProbe": probe, "state": "Ignored"}]);
        assert_eq!((applied(&up, ignored.clone()), applied(&down, ignored)), (None, None));
        assert_eq!((applied(&Report::default(), ready), applied(&Report::default(), not_ready)), (None, None));
        assert_eq!(up.apply(&Dataplane::default(), &json!({"networking": 1})), None);
    }

    #[test]
    fn envoy_that_drains_takes_all_inbounds_out_and_brings_them_back() {
        let inbounds = json!([{"port": 80, "serviceProbe": {"tcp": {}}}, {"port": 81}]);
        let drained = applied(&report(&[("kuma:envoy:admin", &[UNHEALTHY]), ("localhost:80", &[HEALTHY])]), inbounds).unwrap();
        assert_eq!((&drained[0]["state"], &drained[1]["state"]), (&json!("NotReady"), &json!("NotReady")));
        let back = applied(&report(&[("system_envoy_admin", &[HEALTHY]), ("localhost:80", &[HEALTHY])]), drained.clone()).unwrap();
        assert_eq!((back[0].get("state"), back[1].get("state")), (None, None));
        // A report from before the probe was made.
        let back = applied(&report(&[("kuma:envoy:admin", &[HEALTHY])]), drained).unwrap();
        assert_eq!((back[0].get("state"), back[1].get("state")), (Some(&json!("NotReady")), None));
    }

    #[test]
    fn registration_keeps_what_was_found() {
        let of = |inbounds: Value| json!({"networking": {"address": "10.0.0.1", "inbound": inbounds}});
        let stored = of(json!([
            {"port": 1, "serviceProbe": {}, "state": "NotReady", "health": {}},
            {"port": 2, "serviceProbe": {}, "health": {"ready": true}},
            {"port": 3, "serviceProbe": {}, "health": {"ready": true}},
            {"port": 4, "state": "NotReady"},
        ]));
        let mut brought = of(json!([
            {"port": 1, "serviceProbe": {"timeout": "1s"}, "tags": {"a": "b"}}, {"port": 2, "serviceProbe": {}}, {"port": 3, "servicePort": 9, "serviceProbe": {}}, {"port": 4},
            {"port": 5, "serviceProbe": {}}, {"port": 6, "serviceProbe": {}, "state": "Ignored"},
        ]));
        keep_states(&stored, &mut brought);
        let expected = of(json!([
            {"port": 1, "serviceProbe": {"timeout": "1s"}, "tags": {"a": "b"}, "state": "NotReady", "health": {}},
            {"port": 2, "serviceProbe": {}, "health": {"ready": true}},
            {"port": 3, "servicePort": 9, "serviceProbe": {}, "state": "NotReady", "health": {}},
            {"port": 4},
            {"port": 5, "serviceProbe": {}, "state": "NotReady", "health": {}},
            {"port": 6, "serviceProbe": {}, "state": "Ignored"},
        ]));
        assert_eq!(brought, expected);
        let mut moved = of(json!([{"port": 2, "serviceProbe": {}}]));
        moved["networking"]["address"] = json!("10.0.0.2");
        keep_states(&stored, &mut moved);
        assert_eq!(moved["networking"]["inbound"][0]["state"], "NotReady");
        let mut odd = json!({"networking": []});
        keep_states(&json!(1), &mut odd);
    }
}

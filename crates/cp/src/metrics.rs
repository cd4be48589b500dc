//! Metrics of the control plane, under Kuma's names where Kuma has them (reference: data-plane contract §4.7).

mod raft;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use raft::RaftMetrics;
use std::time::Duration;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TypeUrl {
    type_url: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Answer {
    type_url: String,
    confirmation: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    proxy_type: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct MeshLabel {
    mesh: String,
}

/// All metrics.
pub struct Metrics {
    registry: Registry,
    generation: Family<Outcome, Histogram, fn() -> Histogram>,
    generation_errors: Counter,
    streams: Gauge,
    responses: Family<TypeUrl, Counter>,
    response_bytes: Counter,
    requests: Family<Answer, Counter>,
    certificates: Family<MeshLabel, Counter>,
    /// Replication.
    pub raft: RaftMetrics,
}

/// Buckets from 50 µs to about 3 s.
fn generation_histogram() -> Histogram {
    Histogram::new(prometheus_client::metrics::histogram::exponential_buckets(0.000_05, 3.0, 11))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let m = Metrics {
            generation: Family::new_with_constructor(generation_histogram),
            generation_errors: Counter::default(),
            streams: Gauge::default(),
            responses: Family::default(),
            response_bytes: Counter::default(),
            requests: Family::default(),
            certificates: Family::default(),
            raft: RaftMetrics::default(),
            registry: Registry::default(),
        };
        registry.register("xds_generation", "Seconds to generate the configuration of one proxy", m.generation.clone());
        registry.register("xds_generation_errors", "Configurations that could not be generated", m.generation_errors.clone());
        registry.register("xds_streams_active", "Connected proxies", m.streams.clone());
        registry.register("xds_responses_sent", "Responses sent to proxies", m.responses.clone());
        registry.register("xds_responses_sent_bytes", "Bytes of resources sent to proxies", m.response_bytes.clone());
        registry.register("xds_requests_received", "Answers of proxies to responses", m.requests.clone());
        registry.register("cert_generation", "Workload certificates issued", m.certificates.clone());
        m.raft.register(&mut registry);
        Metrics { registry, ..m }
    }
}

impl Metrics {
    /// One proxy was generated.
    pub fn generated(&self, took: Duration, ok: bool) {
        let result = if ok { "changed" } else { "error" };
        self.generation.get_or_create(&Outcome { proxy_type: "dataplane", result }).observe(took.as_secs_f64());
        if !ok {
            self.generation_errors.inc();
        }
    }
    /// So many streams are open.
    pub fn streams(&self, n: usize) {
        self.streams.set(i64::try_from(n).unwrap_or(i64::MAX));
    }
    /// A response was sent.
    pub fn sent(&self, type_url: &str, bytes: usize) {
        self.responses.get_or_create(&TypeUrl { type_url: type_url.to_owned() }).inc();
        self.response_bytes.inc_by(bytes as u64);
    }
    /// A response was answered.
    pub fn answered(&self, type_url: &str, ok: bool) {
        let confirmation = if ok { "ACK" } else { "NACK" };
        self.requests.get_or_create(&Answer { type_url: type_url.to_owned(), confirmation }).inc();
    }
    /// A workload certificate was issued.
    pub fn cert_generation(&self, mesh: &str) {
        self.certificates.get_or_create(&MeshLabel { mesh: mesh.to_owned() }).inc();
    }
    /// Exposition in OpenMetrics text form.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).ok();
        text
    }
}

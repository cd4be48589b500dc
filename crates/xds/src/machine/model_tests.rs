//! An honest client in arbitrary interleavings: it ends with what the last snapshot says, and on the way no listener refers to a cluster without
//! endpoints.

use super::*;
use crate::{
    snapshot::{Encoded, SnapshotBuilder},
    type_url::SECRET,
};
use envoy_types::pb::envoy::config::cluster::v3::{Cluster, cluster::EdsClusterConfig};
use prost::Message;
use proptest::prelude::*;
use std::collections::{HashMap, VecDeque};

/// No grace shorter than the test's time: the client always asks for endpoints.
const LIMITS: Limits = Limits {
    max_names: 100,
    nack_backoff: Duration::from_secs(5),
    endpoint_grace: Duration::from_secs(1000),
    ack_timeout: Duration::from_secs(60),
};
const CLUSTERS: [&str; 4] = ["ca", "cb", "cc", "cd"];
const LISTENERS: [&str; 3] = ["la", "lb", "lc"];
/// Content that the client rejects.
const BAD: u8 = 3;

/// One state of the world of a proxy: contents of clusters; content and clusters (a mask over the present ones) of listeners; a secret.
#[derive(Debug, Clone)]
struct World {
    clusters: Vec<Option<u8>>,
    listeners: Vec<Option<(u8, u8)>>,
    secret: Option<u8>,
}

impl World {
    fn snapshot(&self) -> Snapshot {
        let mut b = SnapshotBuilder::new();
        let mut put = |url, name: &str, body: Vec<u8>| {
            b.insert(Arc::new(Encoded::new(name.into(), url, crate::content_hash([body.as_slice()]), body.into())));
        };
        for (name, content) in CLUSTERS.iter().zip(&self.clusters) {
            if let Some(c) = content {
                let eds = Some(EdsClusterConfig::default());
                put(CLUSTER, name, Cluster { alt_stat_name: format!("v{c}"), eds_cluster_config: eds, ..Default::default() }.encode_to_vec());
                put(ENDPOINTS, name, b"endpoints".to_vec());
            }
        }
        for (name, listener) in LISTENERS.iter().zip(&self.listeners) {
            if let Some((content, mask)) = listener {
                let refers = CLUSTERS.iter().enumerate().filter(|(i, _)| mask & (1 << i) != 0 && self.clusters[*i].is_some()).map(|(_, c)| *c);
                put(LISTENER, name, format!("v{content}:{}", refers.collect::<Vec<_>>().join(",")).into_bytes());
            }
        }
        if let Some(s) = self.secret {
            put(SECRET, "s", format!("v{s}").into_bytes());
        }
        b.build().unwrap()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Publish(World),
    ToClient,
    ToServer,
    Wait,
}

fn world() -> impl Strategy<Value = World> {
    let clusters = prop::collection::vec(prop::option::weighted(0.7, 0..BAD), CLUSTERS.len());
    let listeners = prop::collection::vec(prop::option::weighted(0.8, (0..BAD, any::<u8>())), LISTENERS.len());
    (clusters, listeners, prop::option::of(0..BAD)).prop_map(|(clusters, listeners, secret)| World { clusters, listeners, secret })
}

/// As `world`, with rejected listeners.
fn bad_world() -> impl Strategy<Value = World> {
    (world(), prop::collection::vec(any::<bool>(), LISTENERS.len())).prop_map(|(mut w, bad)| {
        for (l, bad) in w.listeners.iter_mut().zip(bad) {
            if let (Some(l), true) = (l, bad) {
                l.0 = BAD;
            }
        }
        w
    })
}

fn steps(world: impl Strategy<Value = World>) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![1 => world.prop_map(Step::Publish), 4 => Just(Step::ToClient), 4 => Just(Step::ToServer), 1 => Just(Step::Wait)];
    prop::collection::vec(step, 1..80)
}

struct Sim {
    variant: Variant,
    machine: Machine,
    now: Instant,
    to_client: VecDeque<Outgoing>,
    to_server: VecDeque<Request>,
    /// The client's resources: body by name, by type.
    has: BTreeMap<Arc<str>, BTreeMap<String, Vec<u8>>>,
    accepted: HashMap<Arc<str>, u64>,
    /// Last nonce received, by type.
    nonces: HashMap<Arc<str>, String>,
    /// Nonce of the clusters' response that is applied and not acknowledged.
    unanswered: Option<String>,
    endpoint_names: BTreeSet<String>,
    /// Clusters that got an assignment since they were added, and since they were changed.
    served: BTreeSet<String>,
    warm: BTreeSet<String>,
    responses: usize,
}

impl Sim {
    fn new(variant: Variant) -> Self {
        let mut sim = Sim {
            variant,
            machine: Machine::new(variant, LIMITS),
            now: Instant::now(),
            to_client: VecDeque::new(),
            to_server: VecDeque::new(),
            has: BTreeMap::new(),
            accepted: HashMap::new(),
            nonces: HashMap::new(),
            unanswered: None,
            endpoint_names: BTreeSet::new(),
            served: BTreeSet::new(),
            warm: BTreeSet::new(),
            responses: 0,
        };
        for url in [CLUSTER, LISTENER] {
            sim.ask(url, vec![], vec![], vec![], "", None);
        }
        sim.ask(SECRET, vec!["s".into()], vec!["s".into()], vec![], "", None);
        sim
    }

    fn ask(&mut self, url: &str, all: Vec<String>, subscribe: Vec<String>, unsubscribe: Vec<String>, nonce: &str, error: Option<String>) {
        let update = match self.variant {
            Variant::Delta => Update::Difference { subscribe, unsubscribe, initial: HashMap::new() },
            Variant::StateOfTheWorld => {
                let version_info = self.accepted.get(url).map(|v| format!("{v:016x}")).unwrap_or_default();
                Update::Full { names: all, version_info }
            }
        };
        self.to_server.push_back(Request { type_url: url.into(), response_nonce: nonce.to_owned(), error, update });
    }

    fn names_of(&self, url: &str) -> Vec<String> {
        match url {
            ENDPOINTS => self.endpoint_names.iter().cloned().collect(),
            SECRET => vec!["s".to_owned()],
            _ => vec![],
        }
    }

    fn pump(&mut self) {
        while let Some(out) = self.machine.next(self.now) {
            self.responses += 1;
            self.to_client.push_back(out);
        }
    }

    fn client(&mut self) -> Result<(), TestCaseError> {
        let Some(out) = self.to_client.pop_front() else { return Ok(()) };
        let url = out.type_url.clone();
        self.nonces.insert(url.clone(), out.nonce.clone());
        let bad: Vec<String> =
            out.resources.iter().filter(|e| is_bad(&e.encoded.body)).map(|e| e.encoded.name.to_string()).collect();
        if !bad.is_empty() {
            let message = format!("Error adding/updating listener(s) {}: rejected", bad.join(": rejected, "));
            self.ask(&url, self.names_of(&url), vec![], vec![], &out.nonce, Some(message));
            return Ok(());
        }
        let has = self.has.entry(url.clone()).or_default();
        let before = has.clone();
        if self.variant == Variant::StateOfTheWorld && (&*url == CLUSTER || &*url == LISTENER) {
            has.clear();
        }
        for n in &out.removed {
            has.remove(&**n);
        }
        has.extend(out.resources.iter().map(|e| (e.encoded.name.to_string(), e.encoded.body.to_vec())));
        let after = has.clone();
        self.accepted.insert(url.clone(), out.version);
        if &*url != CLUSTER {
            self.ask(&url, self.names_of(&url), vec![], vec![], &out.nonce, None);
        }
        match &*url {
            CLUSTER => {
                self.clusters_changed(&before, &after);
                self.unanswered = Some(out.nonce);
            }
            ENDPOINTS => {
                let named = out.resources.iter().map(|e| e.encoded.name.to_string());
                self.warm.extend(named.clone());
                self.served.extend(named);
            }
            _ => {}
        }
        // As Envoy: clusters are acknowledged when all of them are warm.
        let warm = self.has.get(CLUSTER).is_none_or(|c| c.keys().all(|c| self.warm.contains(c)));
        if warm && let Some(nonce) = self.unanswered.take() {
            self.ask(CLUSTER, vec![], vec![], vec![], &nonce, None);
        }
        self.check()
    }

    /// As Envoy: the assignments of all clusters are subscribed to by name.
    fn clusters_changed(&mut self, before: &BTreeMap<String, Vec<u8>>, after: &BTreeMap<String, Vec<u8>>) {
        self.warm.retain(|c| before.get(c) == after.get(c));
        self.served.retain(|c| after.contains_key(c));
        let names: BTreeSet<String> = after.keys().cloned().collect();
        let subscribe: Vec<String> = names.difference(&self.endpoint_names).cloned().collect();
        let unsubscribe: Vec<String> = self.endpoint_names.difference(&names).cloned().collect();
        self.endpoint_names = names;
        if !subscribe.is_empty() || !unsubscribe.is_empty() {
            // A full request carries the nonce of the last response of its type, though it was answered.
            let full = self.variant == Variant::StateOfTheWorld;
            let nonce = if full { self.nonces.get(ENDPOINTS).cloned().unwrap_or_default() } else { String::new() };
            self.ask(ENDPOINTS, self.names_of(ENDPOINTS), subscribe, unsubscribe, &nonce, None);
        }
    }

    /// No listener refers to a cluster that is not there or never had endpoints.
    fn check(&self) -> Result<(), TestCaseError> {
        let listeners = self.has.get(LISTENER).into_iter().flatten();
        for (name, body) in listeners {
            let text = String::from_utf8_lossy(body);
            let refers = text.split_once(':').map_or("", |(_, r)| r).split(',').filter(|c| !c.is_empty());
            for cluster in refers {
                let there = self.has.get(CLUSTER).is_some_and(|c| c.contains_key(cluster));
                prop_assert!(there && self.served.contains(cluster), "listener {name} refers to cluster {cluster}, there: {there}");
            }
        }
        Ok(())
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Publish(w) => self.machine.on_snapshot(Arc::new(w.snapshot())),
            Step::ToClient => self.client()?,
            Step::ToServer => {
                if let Some(r) = self.to_server.pop_front() {
                    self.machine.on_request(r, self.now).map_err(|e| TestCaseError::fail(e.to_string()))?;
                }
            }
            Step::Wait => self.now += Duration::from_secs(1),
        }
        self.pump();
        Ok(())
    }

    /// Delivers everything until nothing moves.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..200 {
            while !self.to_client.is_empty() || !self.to_server.is_empty() {
                self.step(Step::ToClient)?;
                self.step(Step::ToServer)?;
            }
            self.now += Duration::from_secs(10);
            self.pump();
            if self.to_client.is_empty() {
                return Ok(());
            }
        }
        Err(TestCaseError::fail(format!("does not come to rest, {} responses", self.responses)))
    }

    fn expect(&self, world: &World) -> Result<(), TestCaseError> {
        let target = world.snapshot();
        let mut want = resources(&target, LISTENER);
        let mut have = self.has.get(LISTENER).cloned().unwrap_or_default();
        let rejected: Vec<String> = want.iter().filter(|(_, body)| is_bad(body)).map(|(n, _)| n.clone()).collect();
        for name in &rejected {
            // It is whatever it was before.
            want.remove(name);
            have.remove(name);
        }
        prop_assert_eq!(have, want);
        let want = resources(&target, CLUSTER);
        let mut have = self.has.get(CLUSTER).cloned().unwrap_or_default();
        if !rejected.is_empty() {
            // Clusters stay while a listener that may refer to them cannot be replaced.
            have.retain(|n, _| want.contains_key(n));
        }
        prop_assert_eq!(have, want);
        for cluster in resources(&target, CLUSTER).keys() {
            prop_assert!(self.warm.contains(cluster), "cluster {cluster} waits for endpoints");
        }
        if let Some(s) = world.secret {
            prop_assert_eq!(self.has.get(SECRET).and_then(|all| all.get("s")).cloned(), Some(format!("v{s}").into_bytes()));
        }
        Ok(())
    }
}

fn is_bad(body: &[u8]) -> bool {
    body.starts_with(format!("v{BAD}:").as_bytes())
}

fn resources(snapshot: &Snapshot, url: &str) -> BTreeMap<String, Vec<u8>> {
    snapshot.typed(url).into_iter().flat_map(|t| t.iter()).map(|(n, e)| (n.to_string(), e.encoded.body.to_vec())).collect()
}

fn converge(variant: Variant, steps: Vec<Step>, last: World) -> Result<(), TestCaseError> {
    let mut sim = Sim::new(variant);
    for step in steps {
        sim.step(step)?;
    }
    sim.settle()?;
    sim.step(Step::Publish(last.clone()))?;
    sim.settle()?;
    sim.expect(&last)?;
    // At rest nothing is repeated.
    let before = sim.responses;
    sim.step(Step::Publish(last))?;
    sim.settle()?;
    prop_assert_eq!(sim.responses, before);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn delta(steps in steps(world()), last in world()) {
        converge(Variant::Delta, steps, last)?;
    }
    #[test]
    fn state_of_the_world(steps in steps(world()), last in world()) {
        converge(Variant::StateOfTheWorld, steps, last)?;
    }
    #[test]
    fn delta_with_rejections(steps in steps(bad_world()), last in bad_world()) {
        converge(Variant::Delta, steps, last)?;
    }
    #[test]
    fn state_of_the_world_with_rejections(steps in steps(bad_world()), last in bad_world()) {
        converge(Variant::StateOfTheWorld, steps, last)?;
    }
}

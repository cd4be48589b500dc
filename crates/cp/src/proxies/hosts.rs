//! DNS names in addresses of dataplanes, resolved by the control plane (reference: data-plane contract §5.9).
//!
//! Nothing runs while no dataplane has a name for an address. Otherwise names are resolved when a dataplane changes, and again after
//! `general.dnsCacheTTL`; only a changed answer regenerates proxies.

use super::Proxies;
use ikada_envoy::Settings;
use ikada_model::{Dataplane, Kind};
use ikada_world::World;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};
use tokio::{sync::broadcast::error::RecvError, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

/// Longest wait for one name.
const LOOKUP: Duration = Duration::from_secs(5);
/// Lookups at a time.
const PARALLEL: usize = 32;

fn names(world: &World) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for r in world.list(Kind::Dataplane) {
        let Some(dp) = r.view::<Dataplane>() else { continue };
        for address in [&dp.networking.address, &dp.networking.advertised_address] {
            if !address.is_empty() && address.parse::<IpAddr>().is_err() {
                all.insert(address.clone());
            }
        }
    }
    all
}

/// Of several addresses the smallest text is used, so that all nodes choose the same.
async fn lookup(name: String) -> (String, Option<String>) {
    let found = match timeout(LOOKUP, tokio::net::lookup_host((name.as_str(), 0))).await {
        Ok(Ok(addresses)) => addresses.map(|a| a.ip().to_canonical().to_string()).min(),
        _ => None,
    };
    (name, found)
}

async fn resolve(names: BTreeSet<String>) -> BTreeMap<String, Option<String>> {
    let mut out = BTreeMap::new();
    let mut tasks = JoinSet::new();
    for name in names {
        if tasks.len() >= PARALLEL
            && let Some(Ok((n, ip))) = tasks.join_next().await
        {
            out.insert(n, ip);
        }
        tasks.spawn(lookup(name));
    }
    while let Some(done) = tasks.join_next().await {
        out.extend(done);
    }
    out
}

impl Proxies {
    /// Keeps the names of dataplanes resolved until `stop`.
    pub async fn run_hosts(self: Arc<Self>, ttl: Duration, stop: CancellationToken) {
        let mut bus = self.store.subscribe();
        let mut due = true;
        let mut reported = BTreeSet::new();
        loop {
            let wanted = names(&self.store.world());
            let known = self.settings.load_full();
            let idle = wanted.is_empty() && known.hosts.is_empty();
            if !idle {
                // After a change only new names are looked up, so that a storm of registrations asks for each name once.
                let ask = wanted.iter().filter(|n| due || !known.hosts.contains_key(*n)).cloned().collect();
                let found = tokio::select! {
                    () = stop.cancelled() => return,
                    found = resolve(ask) => found,
                };
                let unresolved = self.take_hosts(wanted, &found);
                for name in unresolved.difference(&reported) {
                    tracing::warn!(name, "the name in a dataplane's address does not resolve: the instance is left out of endpoints");
                }
                reported = unresolved;
            }
            let again = async {
                if idle {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(ttl.max(Duration::from_millis(100))).await;
            };
            tokio::pin!(again);
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = &mut again => {
                        due = true;
                        break;
                    }
                    change = bus.recv() => match change {
                        Ok(c) if c.policy.iter().any(|c| c.key().is_some_and(|k| k.kind == Kind::Dataplane) && c.is_material()) => {
                            due = false;
                            break;
                        }
                        Ok(_) => {}
                        Err(RecvError::Lagged(_)) => {
                            due = true;
                            break;
                        }
                        Err(RecvError::Closed) => return,
                    },
                }
            }
        }
    }

    /// Takes over what was found. A name that did not resolve this time keeps its last address: a failing resolver must not take
    /// endpoints away. Gives the names without any address.
    fn take_hosts(&self, wanted: BTreeSet<String>, found: &BTreeMap<String, Option<String>>) -> BTreeSet<String> {
        let before = self.settings.load_full();
        let (mut hosts, mut unresolved) = (BTreeMap::new(), BTreeSet::new());
        for name in wanted {
            match found.get(&name).cloned().flatten().or_else(|| before.hosts.get(&name).cloned()) {
                Some(ip) => drop(hosts.insert(name, ip)),
                None => drop(unresolved.insert(name)),
            }
        }
        if hosts != before.hosts {
            self.settings.store(Arc::new(Settings { hosts, ..(*before).clone() }));
            self.mark(self.all().iter().map(|p| p.id.clone()));
            self.health.wake_all();
        }
        unresolved
    }
}

//! The peer listener: who may speak, and bounds for those who only want to hold a place.
//!
//! | client | bound |
//! |---|---|
//! | connects and says nothing, or garbage | the handshake ends after 5 s; 256 handshakes at a time, 64 from one address; more are closed at once |
//! | shakes hands without a certificate | may call `Join` alone; 32 at a time, 8 from one address, for 60 s |
//! | shows a certificate of another CA | the handshake fails |
//! | shows the certificate of a removed node | hears so for 10 s at most |
//! | a member | 16 connections at a time; a further one ends the oldest |

use crate::{
    limit::LogLimit,
    service::{Caller, Service},
    shared::Shared,
    wire::Accept,
};
use axum::Router;
use ikada_raft::net::{Io, PeerIdentity, serve_connection};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::time::{sleep, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Status, body::Body, service::Routes};

const HANDSHAKE: Duration = Duration::from_secs(5);
const MAX_HANDSHAKES: Quota = Quota { all: 256, of_one: 64 };
const MAX_ANONYMOUS: Quota = Quota { all: 32, of_one: 8 };
const ANONYMOUS_LIFE: Duration = Duration::from_secs(60);
const REMOVED_LIFE: Duration = Duration::from_secs(10);
const MAX_OF_MEMBER: usize = 16;
/// How often connections of removed nodes are looked for, besides on every change of the membership.
const REMOVAL_LOOK: Duration = Duration::from_secs(5);
/// Pause after a failed accept: the process has no descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How many places there are, and how many of them one address may take.
#[derive(Clone, Copy)]
struct Quota {
    all: usize,
    of_one: usize,
}

/// Places that are taken, by address.
#[derive(Default)]
struct Places(Mutex<(usize, BTreeMap<IpAddr, usize>)>);

/// A place; dropping it gives it back.
struct Place {
    places: Arc<Places>,
    from: IpAddr,
}

impl Places {
    fn take(self: &Arc<Self>, from: IpAddr, quota: Quota) -> Option<Place> {
        let mut taken = self.0.lock();
        let (all, by) = &mut *taken;
        let of_one = by.get(&from).copied().unwrap_or(0);
        if *all >= quota.all || of_one >= quota.of_one {
            return None;
        }
        *all += 1;
        by.insert(from, of_one + 1);
        Some(Place { places: self.clone(), from })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock();
        let (all, by) = &mut *taken;
        *all = all.saturating_sub(1);
        match by.get_mut(&self.from) {
            Some(n) if *n > 1 => *n -= 1,
            _ => {
                by.remove(&self.from);
            }
        }
    }
}

/// Open connections of members, oldest first.
#[derive(Default)]
struct Open(Mutex<BTreeMap<u64, VecDeque<CancellationToken>>>);

impl Open {
    fn enter(&self, node: u64, stop: &CancellationToken) {
        let mut open = self.0.lock();
        let of_node = open.entry(node).or_default();
        of_node.retain(|s| !s.is_cancelled());
        if of_node.len() >= MAX_OF_MEMBER
            && let Some(oldest) = of_node.pop_front()
        {
            oldest.cancel();
        }
        of_node.push_back(stop.clone());
    }

    fn close_where(&self, mut gone: impl FnMut(u64) -> bool) {
        self.0.lock().retain(|node, stops| {
            stops.retain(|s| !s.is_cancelled());
            let close = gone(*node);
            if close {
                stops.iter().for_each(CancellationToken::cancel);
            }
            !close && !stops.is_empty()
        });
    }
}

/// The listener and its connections.
pub(crate) struct Listener {
    pub shared: Arc<Shared>,
    handshakes: Arc<Places>,
    anonymous: Arc<Places>,
    open: Open,
    refusals: LogLimit,
    failures: LogLimit,
    crowd: LogLimit,
}

impl Listener {
    pub(crate) fn new(shared: Arc<Shared>) -> Arc<Listener> {
        Arc::new(Listener {
            shared,
            handshakes: Arc::default(),
            anonymous: Arc::default(),
            open: Open::default(),
            refusals: LogLimit::default(),
            failures: LogLimit::default(),
            crowd: LogLimit::default(),
        })
    }

    /// Accepts until `stop`; the connections end with it.
    pub(crate) async fn run(self: Arc<Self>, socket: Box<dyn Accept>, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        tasks.spawn(self.clone().run_removals(stop.clone()));
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = socket.accept() => accepted,
            };
            match accepted {
                Ok((io, from)) => {
                    let Some(place) = self.handshakes.take(from.ip().to_canonical(), MAX_HANDSHAKES) else {
                        if let Some(more) = self.crowd.take() {
                            tracing::warn!(peer = %from, more, "too many connections to the peer port that have not shaken hands: further ones are closed");
                        }
                        continue;
                    };
                    tasks.spawn(self.clone().connection(io, from, place, stop.child_token()));
                }
                Err(e) => {
                    if let Some(more) = self.failures.take() {
                        tracing::warn!(more, "cannot accept connections of peers: {e}");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(socket);
        tasks.close();
        tasks.wait().await;
    }

    /// Ends the connections of nodes that have been removed.
    async fn run_removals(self: Arc<Self>, stop: CancellationToken) {
        let mut changed = self.shared.store.watch_status();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                more = changed.changed() => if more.is_err() { return },
                // The membership can be known before the note of the removal is applied.
                () = sleep(REMOVAL_LOOK) => {}
            }
            self.open.close_where(|node| self.shared.knows_removed(node));
        }
    }

    async fn connection(self: Arc<Self>, io: Io, from: SocketAddr, place: Place, stop: CancellationToken) {
        let shaken = tokio::select! {
            () = stop.cancelled() => return,
            shaken = timeout(HANDSHAKE, self.shared.tls.accept(io)) => shaken,
        };
        let (io, node) = match shaken {
            Ok(Ok(shaken)) => shaken,
            Ok(Err(e)) => {
                if let Some(more) = self.refusals.take() {
                    tracing::warn!(peer = %from, more, "a connection to the peer port was refused: {e}");
                }
                return;
            }
            Err(_) => return tracing::debug!(peer = %from, "no handshake in time"),
        };
        match node {
            None => {
                let Some(_place) = self.anonymous.take(from.ip().to_canonical(), MAX_ANONYMOUS) else {
                    if let Some(more) = self.crowd.take() {
                        tracing::warn!(peer = %from, more, "too many nodes try to join at once: further ones are closed");
                    }
                    return;
                };
                drop(place);
                let routes = Routes::new(Service::server(self.shared.clone(), Caller::Anonymous));
                self.serve_for(ANONYMOUS_LIFE, io, None, routes, stop).await;
            }
            Some(node) if self.shared.knows_removed(node) => {
                if let Some(more) = self.refusals.take() {
                    tracing::warn!(peer = %from, more, "node {node} called, which was removed from the cluster: stop it");
                }
                let (parts, _) = Status::permission_denied(self.shared.removed_text(node)).into_http::<Body>().into_parts();
                let refusal = Router::new().fallback(move || {
                    let parts = parts.clone();
                    async move { axum::response::Response::from_parts(parts, axum::body::Body::empty()) }
                });
                let routes = Routes::from(refusal).add_service(Service::server(self.shared.clone(), Caller::Removed(node)));
                self.serve_for(REMOVED_LIFE, io, None, routes, stop).await;
                drop(place);
            }
            Some(node) => {
                drop(place);
                self.open.enter(node, &stop);
                let routes = self.shared.store.peer_routes().add_service(Service::server(self.shared.clone(), Caller::Member(node)));
                serve_connection(io, Some(PeerIdentity { node }), routes, stop.clone()).await;
                // Marks the entry as ended.
                stop.cancel();
            }
        }
    }

    async fn serve_for(&self, life: Duration, io: Io, peer: Option<PeerIdentity>, routes: Routes, stop: CancellationToken) {
        let serve = serve_connection(io, peer, routes, stop);
        if timeout(life, serve).await.is_err() {
            tracing::debug!("a connection to the peer port has ended after {} s", life.as_secs());
        }
    }
}

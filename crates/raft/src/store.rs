//! [`RaftStore`]: opens the data directory, starts Raft on it, and is the world's [`Replicator`].

use crate::{
    cache::{CacheWriter, Pending},
    encryption::Sealed,
    forward::{Forwarder, changed},
    log::RaftLog,
    machine::{Machine, Published},
    membership::Members,
    network::PeerNetwork,
    open::{Cache, FIRST_NODE, Opened, open_dir},
    options::{Fatal, OpenError, Options, Start},
    peer::{client::Peers, service},
    reads::Reads,
    seam::{Clock, Randomness, uuid_v4},
    settings::Settings,
    timings::{self, Recorder},
    types::{NodeRecord, TypeConfig},
};
use async_trait::async_trait;
use ikada_model::Timestamp;
use ikada_store::{ClusterId, DataDir, Identity, SnapshotStore};
use ikada_world::{Applied, ChangeSet, Command, Contact, ProposeError, Replicator, World};
use openraft::{Instant, Raft, RaftMetrics, ServerState, alias::InstantOf, async_runtime::watch::WatchReceiver};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{
    sync::{broadcast, watch},
    task::JoinHandle,
};

/// A node alone elects itself and applies its log well within this.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// A connection to a peer is made within so many heartbeats.
const CONNECT_HEARTBEATS: u32 = 5;
/// Most time that a shutdown waits for the disk.
const SYNC_DEADLINE: Duration = Duration::from_secs(10);

pub(crate) type RaftNode = Raft<TypeConfig, Machine>;

/// The store of one node.
pub struct RaftStore {
    pub(crate) raft: RaftNode,
    pub(crate) members: Members,
    pub(crate) timings: Arc<Recorder>,
    pub(crate) log: Mutex<Option<RaftLog>>,
    pub(crate) published: Arc<Published>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) forwarder: Arc<Forwarder>,
    pub(crate) reads: Reads,
    pub(crate) snapshots: Arc<SnapshotStore>,
    /// Whose turn it is to write a snapshot.
    pub(crate) snapshot_turn: Arc<tokio::sync::Mutex<()>>,
    /// Files are read and written off the runtime.
    pub(crate) blocking: bool,
    pub(crate) identity: Identity,
    pub(crate) clock: Arc<dyn Clock>,
    randomness: Arc<dyn Randomness>,
    pub(crate) deadline: Duration,
    leads: watch::Sender<bool>,
    /// Who leads, as far as this node knows.
    leader: watch::Sender<Option<u64>>,
    ready: watch::Sender<bool>,
    /// When this node heard a leader last, not being it; and how long a leader may be silent.
    heard: watch::Sender<Option<InstantOf<TypeConfig>>>,
    lease: Duration,
    pub(crate) fatal: watch::Sender<Option<Fatal>>,
    closing: watch::Sender<bool>,
    /// Released by a shutdown; the log's writer holds it too, so that nobody opens the directory while it writes.
    dir: Arc<Mutex<Option<DataDir>>>,
    cache: Mutex<Option<JoinHandle<()>>>,
    pub(crate) sealed: Sealed,
}

impl RaftStore {
    /// Opens the store; a new directory becomes what [`Options::start`] says. The only voter of a cluster returns when it accepts writes
    /// and has applied everything that was acknowledged before; every other node when it has recovered what it has itself, see
    /// [`RaftStore::ready`]. Needs a tokio runtime with time.
    pub async fn open(options: Options) -> Result<Arc<RaftStore>, OpenError> {
        let settings = Settings::of(&options.profile);
        let config = settings.config().map_err(|e| OpenError::Settings(e.to_string()))?;
        tracing::info!("replication profile {}: {}", options.profile, settings.derived());
        settings.doubts().iter().for_each(|doubt| tracing::warn!("replication settings: {doubt}"));
        let opened = if options.simulated {
            open_dir(&options, &settings)?
        } else {
            let (options, settings) = (options.clone(), settings.clone());
            tokio::task::spawn_blocking(move || open_dir(&options, &settings)).await.map_err(|e| OpenError::Raft(e.to_string()))??
        };
        let Opened { dir, log, snapshots, position, cache, refill } = opened;
        let identity = dir.identity();
        let blocking = !options.simulated;
        let pending = Arc::new(if matches!(cache, Cache::Off) { Pending::default() } else { Pending::for_cache(refill) });
        if refill && let Some(at) = position.last {
            pending.note_all(&position.world, at, &position.membership);
        }
        let fatal = watch::channel(None).0;
        let closing = watch::channel(false).0;
        let state_dir = dir.state();
        let keyring = dir.keyring().cloned();
        let dir = Arc::new(Mutex::new(Some(dir)));
        let cache = match cache {
            Cache::Off => None,
            Cache::On(store, outcomes) => {
                let writer =
                    CacheWriter { store, dir: state_dir, keyring: keyring.clone(), owner: identity, pending: pending.clone(), outcomes };
                Some(tokio::spawn(writer.run(closing.subscribe(), dir.clone())))
            }
        };
        let keys = keyring.map(|k| k.ids()).unwrap_or_default();
        let sealed = Sealed::new(log.clone(), snapshots.clone(), keys)?;
        let start = |e: &dyn std::fmt::Display| OpenError::Raft(e.to_string());
        let timings = Arc::new(Recorder::default());
        let log = RaftLog::start(log, fatal.clone(), timings.clone(), blocking, dir.clone()).map_err(|e| start(&e))?;
        let published = Arc::new(Published::new(position.world.clone()));
        let snapshot_turn = Arc::default();
        let peers = Peers::new(options.net, identity, settings.heartbeat * CONNECT_HEARTBEATS);
        let network = PeerNetwork { peers: peers.clone(), snapshots: snapshots.clone(), blocking };
        let machine = Machine {
            published: published.clone(),
            position,
            snapshots: snapshots.clone(),
            snapshot_turn: Arc::clone(&snapshot_turn),
            pending,
            blocking,
        };
        let raft: RaftNode = Raft::new(identity.node, Arc::new(config), network, log.clone(), machine).await.map_err(|e| start(&e))?;
        let leader = watch::channel(None).0;
        tokio::spawn(timings::measure(timings.clone(), raft.clone(), peers.clone(), closing.subscribe()));
        let store = Arc::new(RaftStore {
            members: Members::start(&raft, &closing),
            timings,
            raft: raft.clone(),
            log: Mutex::new(Some(log)),
            forwarder: Forwarder::new(peers.clone(), settings.proposal_deadline),
            reads: Reads::new(raft, peers.clone(), leader.clone(), settings.election.1 * 2),
            published,
            peers,
            snapshots,
            snapshot_turn,
            blocking,
            identity,
            clock: options.clock,
            randomness: options.randomness,
            deadline: settings.proposal_deadline,
            leads: watch::channel(false).0,
            leader,
            ready: watch::channel(false).0,
            heard: watch::channel(None).0,
            lease: settings.election.1,
            fatal: fatal.clone(),
            closing,
            dir,
            cache: Mutex::new(cache),
            sealed,
        });
        store.start(&settings, &options.start).await?;
        Ok(store)
    }

    async fn start(self: &Arc<Self>, settings: &Settings, begin: &Start) -> Result<(), OpenError> {
        let start = |e: &dyn std::fmt::Display| OpenError::Raft(e.to_string());
        let me = self.identity.node;
        let initialized = self.raft.is_initialized().await.map_err(|e| start(&e))?;
        let alone = if initialized {
            let alone = self.raft.voter_ids().eq([me]);
            if alone {
                // Nobody else could lead: no need to wait for a timeout.
                self.raft.trigger().elect(false).await.map_err(|e| start(&e))?;
            }
            alone
        } else if me == FIRST_NODE {
            let node = match begin {
                Start::Create { address, name } => NodeRecord { address: address.clone(), name: name.clone(), ..NodeRecord::default() },
                Start::Join { .. } => NodeRecord::default(),
            };
            self.raft.initialize(BTreeMap::from([(me, node)])).await.map_err(|e| start(&e))?;
            true
        } else {
            // Empty until a leader sends it what the cluster has.
            false
        };
        self.watch_raft();
        self.watch_leader(settings.heartbeat);
        self.watch_readiness(settings.heartbeat);
        if !alone {
            return Ok(());
        }
        let wait = self.raft.wait(Some(START_DEADLINE));
        let caught_up = |m: &RaftMetrics<TypeConfig>| m.state == ServerState::Leader && m.last_applied.map(|l| l.index) >= m.last_log_index;
        match wait.metrics(caught_up, "leading and up to date").await {
            Ok(_) => {
                self.ready.send_replace(true);
                Ok(())
            }
            Err(e) => Err(match &*self.fatal.borrow() {
                Some(fatal) => OpenError::Raft(fatal.to_string()),
                None => start(&e),
            }),
        }
    }

    /// Follows Raft: who leads, who is in the cluster, and whether Raft still runs.
    fn watch_raft(&self) {
        let mut server = self.raft.server_metrics();
        let metrics = self.raft.metrics();
        let (leads, leader, peers) = (self.leads.clone(), self.leader.clone(), self.peers.clone());
        let (fatal, closing) = (self.fatal.clone(), self.closing.subscribe());
        let mut failed = self.fatal.subscribe();
        tokio::spawn(async move {
            let mut known = None;
            loop {
                let (leading, current) = {
                    let now = server.borrow_and_update();
                    let members = now.membership_config.clone();
                    if known.as_ref().is_none_or(|k| *k != members) {
                        let addresses = members.nodes().map(|(id, node)| (*id, node.address.clone())).collect::<BTreeMap<_, _>>();
                        // A node that waits to be added does not know the members yet.
                        if !addresses.is_empty() {
                            peers.set_members(&addresses);
                        }
                        known = Some(members);
                    }
                    (now.state == ServerState::Leader, now.current_leader)
                };
                let serves = leading && fatal.borrow().is_none() && !*closing.borrow();
                leads.send_if_modified(|now| std::mem::replace(now, serves) != serves);
                leader.send_if_modified(|now| std::mem::replace(now, current) != current);
                let stopped = tokio::select! {
                    changed = server.changed() => changed.is_err(),
                    changed = failed.changed() => changed.is_err(),
                };
                let error = metrics.borrow_watched().running_state.clone().err().map(|e| e.to_string());
                if !stopped && error.is_none() {
                    continue;
                }
                if !*closing.borrow() {
                    let reason = error.unwrap_or_else(|| "it ended".to_owned());
                    fatal.send_if_modified(|f| f.is_none() && f.replace(Fatal(format!("replication stopped: {reason}"))).is_none());
                }
                leads.send_replace(false);
                leader.send_replace(None);
                return;
            }
        });
    }

    /// Follows whether this node serves: it knows a leader and has what the leader had when it was asked.
    fn watch_readiness(self: &Arc<Self>, every: Duration) {
        let (store, mut leader, mut closing) = (Arc::downgrade(self), self.leader.subscribe(), self.closing.subscribe());
        tokio::spawn(async move {
            loop {
                let known = leader.borrow_and_update().is_some();
                let serves = {
                    let Some(store) = store.upgrade() else { return };
                    let serves = known && (*store.ready.borrow() || store.linearizable().await.is_ok());
                    store.ready.send_if_modified(|now| std::mem::replace(now, serves) != serves);
                    serves
                };
                tokio::select! {
                    () = changed(&mut leader) => {}
                    () = tokio::time::sleep(every), if known && !serves => {}
                    _ = closing.wait_for(|closing| *closing) => return,
                }
            }
        });
    }

    /// Follows when a leader was heard last, which Raft tells only to those who ask.
    fn watch_leader(&self, every: Duration) {
        let (raft, heard, mut closing) = (self.raft.clone(), self.heard.clone(), self.closing.subscribe());
        tokio::spawn(async move {
            while let Ok(at) = raft.with_raft_state(|state| state.vote_last_modified()).await {
                heard.send_if_modified(|now| std::mem::replace(now, at) != at);
                tokio::select! {
                    () = tokio::time::sleep(every) => {}
                    _ = closing.wait_for(|closing| *closing) => return,
                }
            }
        });
    }

    /// The wall clock.
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Random id of the cluster, made once when it is created.
    pub fn cluster_id(&self) -> ClusterId {
        self.identity.cluster
    }

    /// Id of this node in the cluster.
    pub fn node_id(&self) -> u64 {
        self.identity.node
    }

    /// What peers may call, for [`crate::net::serve_connection`].
    pub fn peer_routes(self: &Arc<Self>) -> tonic::service::Routes {
        service::routes(self)
    }

    /// Whether this node knows a leader and has caught up with it: it serves writes and linearizable reads. A leader that has fallen silent
    /// stays known until there is another one: [`Replicator::contact`] says when it was heard.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Time of one round trip to another member, or why it does not answer within `limit`.
    pub async fn ping(&self, node: u64, limit: Duration) -> Result<Duration, String> {
        self.peers.ping(node, limit).await.map_err(|e| e.to_string())
    }

    /// Whether this node leads and serves.
    pub(crate) fn leads(&self) -> bool {
        *self.leads.borrow()
    }

    /// Who leads, as far as this node knows.
    pub(crate) fn leader(&self) -> Option<u64> {
        *self.leader.borrow()
    }

    pub(crate) fn leader_changes(&self) -> watch::Receiver<Option<u64>> {
        self.leader.subscribe()
    }

    /// Becomes `Some` when the node had to leave service; from then on every proposal fails.
    pub fn fatal(&self) -> watch::Receiver<Option<Fatal>> {
        self.fatal.subscribe()
    }

    /// Hands the lead over if it has it, stops accepting writes, makes what was accepted durable and releases the data directory. A second
    /// call does nothing.
    pub async fn shutdown(&self) -> Result<(), Fatal> {
        // The others need not wait for a lease to run out.
        if self.leads() && !*self.closing.borrow() {
            match tokio::time::timeout(self.lease, self.transfer_leader(None)).await {
                Ok(Ok(to)) => tracing::info!("node {to} leads now"),
                Ok(Err(e)) => tracing::debug!("stopping as the leader: {e}"),
                Err(_) => tracing::debug!("stopping as the leader: nobody took over in time"),
            }
        }
        self.closing.send_replace(true);
        self.leads.send_replace(false);
        let log = self.log.lock().take();
        let stopped = self.raft.shutdown().await.map_err(|e| Fatal(e.to_string()));
        self.ready.send_replace(false);
        self.peers.close();
        let mut synced = Ok(());
        if let Some(log) = log {
            synced = match tokio::time::timeout(SYNC_DEADLINE, log.sync()).await {
                Ok(done) => done.map_err(|e| Fatal(e.to_string())),
                Err(_) => Err(Fatal("the log could not be made durable in time".to_owned())),
            };
        }
        let cache = self.cache.lock().take();
        if let Some(writer) = cache
            && tokio::time::timeout(SYNC_DEADLINE, writer).await.is_err()
        {
            tracing::warn!("the state cache could not be written in time");
        }
        drop(self.dir.lock().take());
        let fatal = self.fatal.borrow().clone();
        fatal.map_or(Ok(()), Err).and(stopped).and(synced)
    }

    pub(crate) fn refusal(&self) -> Option<ProposeError> {
        if let Some(fatal) = &*self.fatal.borrow() {
            return Some(ProposeError::Unavailable(fatal.to_string()));
        }
        self.closing.borrow().then(|| ProposeError::Unavailable("the store is shutting down".to_owned()))
    }
}

#[async_trait]
impl Replicator for RaftStore {
    async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        self.write(command).await
    }

    fn world(&self) -> Arc<World> {
        self.published.world.load_full()
    }

    async fn linearizable(&self) -> Result<Arc<World>, ProposeError> {
        if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        self.reads.linearizable(self, &self.published).await
    }

    fn subscribe(&self) -> broadcast::Receiver<Arc<ChangeSet>> {
        self.published.bus.subscribe()
    }

    fn leadership(&self) -> watch::Receiver<bool> {
        self.leads.subscribe()
    }

    fn contact(&self) -> Contact {
        let me = self.identity.node;
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader.filter(|_| metrics.running_state.is_ok());
        let at = if leader == Some(me) { metrics.last_quorum_acked.map(|at| at.into_inner()) } else { *self.heard.borrow() };
        // Who is the only voter needs nobody's answer.
        let alone = leader == Some(me) && metrics.membership_config.voter_ids().eq([me]);
        let since = if alone { Some(Duration::ZERO) } else { at.map(|at| at.elapsed()) };
        Contact { leader, since, lease: self.lease }
    }

    fn new_id(&self) -> [u8; 16] {
        uuid_v4(&*self.randomness)
    }
}

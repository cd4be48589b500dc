//! [`RaftStore`]: opens the data directory, starts Raft on it, and is the world's [`Replicator`].

use crate::{
    cache::{self, CacheWriter, Pending, Position},
    log::RaftLog,
    machine::{Machine, Published, read_snapshot},
    network::NoPeers,
    options::{Fatal, OpenError, Options},
    record,
    seam::{Clock, Randomness, uuid_v4},
    settings::Settings,
    types::{Membership, TypeConfig, mark},
};
use async_trait::async_trait;
use ikada_store::{
    ClusterId, DataDir, FileLog, FileLogOptions, Identity, LogStore, Mark, SledState, SnapshotStore, StateStore, StoreError,
};
use ikada_world::{Applied, ChangeSet, Command, ProposeError, Replicator, World};
use openraft::{
    BasicNode, Raft, RaftMetrics, ReadPolicy, ServerState,
    async_runtime::watch::WatchReceiver,
    error::{ClientWriteError, LinearizableReadError, RaftError},
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::sync::{broadcast, watch};

/// Id of the node that makes a cluster. Others get theirs when they join; an id is never used twice.
const FIRST_NODE: u64 = 1;
/// A node alone elects itself and applies its log well within this.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Most time that a shutdown waits for the disk.
const SYNC_DEADLINE: Duration = Duration::from_secs(10);

type RaftNode = Raft<TypeConfig, Machine>;

/// The store of one node.
pub struct RaftStore {
    raft: RaftNode,
    log: Mutex<Option<RaftLog>>,
    published: Arc<Published>,
    identity: Identity,
    clock: Arc<dyn Clock>,
    randomness: Arc<dyn Randomness>,
    deadline: Duration,
    leads: watch::Sender<bool>,
    fatal: watch::Sender<Option<Fatal>>,
    closing: watch::Sender<bool>,
    /// Released by a shutdown; the log's writer holds it too, so that nobody opens the directory while it writes.
    dir: Arc<Mutex<Option<DataDir>>>,
    cache: Option<(Arc<dyn StateStore>, tokio::task::AbortHandle)>,
}

/// What the data directory held.
struct Opened {
    dir: DataDir,
    log: Arc<dyn LogStore>,
    snapshots: Arc<SnapshotStore>,
    position: Position,
    cache: Option<(Arc<dyn StateStore>, BTreeSet<Vec<u8>>)>,
    /// The cache does not have the position.
    refill: bool,
}

fn open_dir(options: &Options, settings: &Settings) -> Result<Opened, OpenError> {
    let fresh = || Identity { cluster: ClusterId(uuid_v4(&*options.randomness)), node: FIRST_NODE };
    let dir = DataDir::open(options.disk.clone(), &options.data_dir, fresh)?;
    let sizes = FileLogOptions { segment_bytes: settings.segment_bytes };
    let log = FileLog::open(options.disk.clone(), &dir.log(), dir.identity(), sizes)?;
    let snapshots = SnapshotStore::open(options.disk.clone(), &dir.snapshots(), dir.identity())?;
    let newest = snapshots.newest();
    let mut cache = None;
    let mut cached = None;
    if !options.simulated && let Some((store, found)) = open_cache(&dir.state()) {
        let (position, outcomes) = found.filter(|(p, _)| fits(&log, newest, p)).map_or((None, BTreeSet::new()), |(p, o)| (Some(p), o));
        cached = position;
        cache = Some((store, outcomes));
    }
    let refill = cached.is_none();
    let position = match (cached, newest) {
        (Some(position), _) => position,
        (None, Some(newest)) => read_snapshot(&snapshots, newest).map_err(|e| as_store_error(e, &dir.snapshots()))?,
        (None, None) => Position { world: Arc::new(World::empty()), last: None, membership: Membership::default() },
    };
    let state = log.state();
    if let Some(purged) = state.purged && position.last.as_ref().is_none_or(|l| l.index < purged.index) {
        let at = position.last.as_ref().map_or_else(|| "nothing".to_owned(), |l| mark(l).to_string());
        let what = format!("the log begins after {purged}, the newest snapshot has {at}");
        return Err(StoreError::damaged(&dir.snapshots(), 0, what).into());
    }
    Ok(Opened { dir, log: Arc::new(log), snapshots: Arc::new(snapshots), position, cache, refill })
}

fn as_store_error(e: std::io::Error, path: &Path) -> StoreError {
    match e.get_ref().and_then(|inner| inner.downcast_ref::<StoreError>()) {
        Some(e) => e.clone(),
        None => StoreError::damaged(path, 0, e.to_string()),
    }
}

type Cached = Option<(Position, BTreeSet<Vec<u8>>)>;

/// Opens the cache and reads it. One that cannot be read is emptied; without one a start only takes longer.
fn open_cache(dir: &Path) -> Option<(Arc<dyn StateStore>, Cached)> {
    let open = || SledState::open(dir).map_err(|e| e.to_string());
    let read = open().and_then(|store| Ok((cache::load(&store)?, store)));
    match read {
        Ok((found, store)) => Some((Arc::new(store), found)),
        Err(e) => {
            tracing::warn!("rebuilding the state cache in {} from snapshot and log: {e}", dir.display());
            match SledState::wipe(dir).map_err(|e| e.to_string()).and_then(|()| open()) {
                Ok(store) => Some((Arc::new(store), None)),
                Err(e) => {
                    tracing::warn!("going on without a state cache in {}: {e}", dir.display());
                    None
                }
            }
        }
    }
}

/// Whether the log goes on where the cache ends, and tells the same history.
fn fits(log: &dyn LogStore, newest: Option<Mark>, position: &Position) -> bool {
    let Some(at) = position.last.as_ref().map(mark) else { return false };
    let state = log.state();
    let known = match log.mark_at(at.index) {
        Some(entry) => entry == at,
        None => state.purged == Some(at) || newest == Some(at),
    };
    known && newest.is_none_or(|n| n.index <= at.index) && state.last.is_some_and(|l| at.index <= l.index)
}

impl RaftStore {
    /// Opens the store, or makes a new cluster of this node alone when the directory is empty. Returns when it accepts writes and has
    /// applied everything that was acknowledged before. Needs a tokio runtime with time.
    pub async fn open(options: Options) -> Result<Arc<RaftStore>, OpenError> {
        let settings = Settings::of(&options.profile);
        let config = settings.config().map_err(|e| OpenError::Settings(e.to_string()))?;
        let opened = if options.simulated {
            open_dir(&options, &settings)?
        } else {
            let (options, settings) = (options.clone(), settings.clone());
            tokio::task::spawn_blocking(move || open_dir(&options, &settings)).await.map_err(|e| OpenError::Raft(e.to_string()))??
        };
        let Opened { dir, log, snapshots, position, cache, refill } = opened;
        let identity = dir.identity();
        let blocking = !options.simulated;
        let pending = Arc::new(Pending::default());
        if refill && let Some(at) = position.last {
            pending.note_all(&position.world, at, &position.membership);
        }
        let cache = cache.map(|(store, outcomes)| {
            let writer = CacheWriter { store: store.clone(), pending: pending.clone(), outcomes };
            (store, tokio::spawn(writer.run(blocking)).abort_handle())
        });
        let fatal = watch::channel(None).0;
        let dir = Arc::new(Mutex::new(Some(dir)));
        let start = |e: &dyn std::fmt::Display| OpenError::Raft(e.to_string());
        let log = RaftLog::start(log, fatal.clone(), blocking, dir.clone()).map_err(|e| start(&e))?;
        let published = Arc::new(Published::new(position.world.clone()));
        let machine = Machine { published: published.clone(), position, snapshots, pending, blocking };
        let raft: RaftNode =
            Raft::new(identity.node, Arc::new(config), NoPeers, log.clone(), machine).await.map_err(|e| start(&e))?;
        let store = Arc::new(RaftStore {
            raft: raft.clone(),
            log: Mutex::new(Some(log)),
            published,
            identity,
            clock: options.clock,
            randomness: options.randomness,
            deadline: settings.proposal_deadline,
            leads: watch::channel(false).0,
            fatal: fatal.clone(),
            closing: watch::channel(false).0,
            dir,
            cache,
        });
        store.start().await?;
        Ok(store)
    }

    async fn start(&self) -> Result<(), OpenError> {
        let start = |e: &dyn std::fmt::Display| OpenError::Raft(e.to_string());
        let me = self.identity.node;
        if self.raft.is_initialized().await.map_err(|e| start(&e))? {
            let alone = self.raft.voter_ids().eq([me]);
            if alone {
                // Nobody else could lead: no need to wait for a timeout.
                self.raft.trigger().elect(false).await.map_err(|e| start(&e))?;
            }
        } else {
            let members = BTreeMap::from([(me, BasicNode::default())]);
            self.raft.initialize(members).await.map_err(|e| start(&e))?;
        }
        self.watch_raft();
        let wait = self.raft.wait(Some(START_DEADLINE));
        let caught_up = |m: &RaftMetrics<TypeConfig>| m.state == ServerState::Leader && m.last_applied.map(|l| l.index) >= m.last_log_index;
        match wait.metrics(caught_up, "leading and up to date").await {
            Ok(_) => Ok(()),
            Err(e) => Err(match &*self.fatal.borrow() {
                Some(fatal) => OpenError::Raft(fatal.to_string()),
                None => start(&e),
            }),
        }
    }

    /// Follows Raft: whether this node leads, and whether Raft still runs.
    fn watch_raft(&self) {
        let mut server = self.raft.server_metrics();
        let metrics = self.raft.metrics();
        let (leads, fatal, closing) = (self.leads.clone(), self.fatal.clone(), self.closing.clone());
        let mut failed = self.fatal.subscribe();
        tokio::spawn(async move {
            loop {
                let leader = server.borrow_and_update().state == ServerState::Leader;
                let serves = leader && fatal.borrow().is_none() && !*closing.borrow();
                leads.send_if_modified(|now| std::mem::replace(now, serves) != serves);
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
                return;
            }
        });
    }

    /// Random id of the cluster, made once when it is created.
    pub fn cluster_id(&self) -> ClusterId {
        self.identity.cluster
    }

    /// Id of this node in the cluster.
    pub fn node_id(&self) -> u64 {
        self.identity.node
    }

    /// Becomes `Some` when the node had to leave service; from then on every proposal fails.
    pub fn fatal(&self) -> watch::Receiver<Option<Fatal>> {
        self.fatal.subscribe()
    }

    /// Stops accepting writes, makes what was accepted durable and releases the data directory. A second call does nothing.
    pub async fn shutdown(&self) -> Result<(), Fatal> {
        self.closing.send_replace(true);
        self.leads.send_replace(false);
        let log = self.log.lock().take();
        let stopped = self.raft.shutdown().await.map_err(|e| Fatal(e.to_string()));
        let mut synced = Ok(());
        if let Some(log) = log {
            synced = match tokio::time::timeout(SYNC_DEADLINE, log.sync()).await {
                Ok(done) => done.map_err(|e| Fatal(e.to_string())),
                Err(_) => Err(Fatal("the log could not be made durable in time".to_owned())),
            };
        }
        if let Some((_, writer)) = &self.cache {
            writer.abort();
        }
        drop(self.dir.lock().take());
        let fatal = self.fatal.borrow().clone();
        fatal.map_or(Ok(()), Err).and(stopped).and(synced)
    }

    fn refusal(&self) -> Option<ProposeError> {
        if let Some(fatal) = &*self.fatal.borrow() {
            return Some(ProposeError::Unavailable(fatal.to_string()));
        }
        self.closing.borrow().then(|| ProposeError::Unavailable("the store is shutting down".to_owned()))
    }

    async fn write(&self, command: Command) -> Result<Applied, ProposeError> {
        let time = self.clock.now();
        let bytes = record::encode_command(time, &command);
        let size = bytes.as_ref().map_or(usize::MAX, Vec::len);
        let limit = record::MAX_COMMAND_BYTES;
        let bytes = match bytes {
            Ok(bytes) if size <= limit => bytes,
            Ok(_) => return Err(ProposeError::TooLarge { size, limit }),
            Err(ikada_store::codec::CodecError::TooLarge(size)) => return Err(ProposeError::TooLarge { size, limit }),
            Err(e) => return Err(ProposeError::Unavailable(e.to_string())),
        };
        let log = self.log.lock().clone();
        let Some(log) = log else { return Err(ProposeError::Unavailable("the store is shutting down".to_owned())) };
        if let Some(message) = log.full().await {
            return Err(ProposeError::Unavailable(message));
        }
        match self.raft.client_write(record::proposal(bytes, time, command)).await {
            Ok(response) => match response.data.0 {
                Some(outcome) => outcome.map_err(ProposeError::Rejected),
                None => Err(ProposeError::Unknown),
            },
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => Err(ProposeError::Unavailable(no_leader(to.leader_id))),
            // It may be in the log.
            Err(_) => Err(ProposeError::Unknown),
        }
    }
}

fn no_leader(leader: Option<u64>) -> String {
    match leader {
        Some(id) => format!("this node does not lead, node {id} does"),
        None => "there is no leader at the moment".to_owned(),
    }
}

#[async_trait]
impl Replicator for RaftStore {
    async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        tokio::time::timeout(self.deadline, self.write(command)).await.unwrap_or(Err(ProposeError::Unknown))
    }

    fn world(&self) -> Arc<World> {
        self.published.world.load_full()
    }

    async fn linearizable(&self) -> Result<Arc<World>, ProposeError> {
        if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        let read = async {
            let linearizer = self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await.map_err(|e| match e {
                RaftError::APIError(LinearizableReadError::ForwardToLeader(to)) => no_leader(to.leader_id),
                other => other.to_string(),
            })?;
            match linearizer.try_await_ready(&self.raft, None).await {
                Ok(Ok(_)) => Ok(self.world()),
                Ok(Err(state)) => Err(format!("still applying entry {}", state.read_log_id().index())),
                Err(e) => Err(e.to_string()),
            }
        };
        match tokio::time::timeout(self.deadline, read).await {
            Ok(done) => done.map_err(ProposeError::Unavailable),
            Err(_) => Err(ProposeError::Unavailable("no majority answered in time".to_owned())),
        }
    }

    fn subscribe(&self) -> broadcast::Receiver<Arc<ChangeSet>> {
        self.published.bus.subscribe()
    }

    fn leadership(&self) -> watch::Receiver<bool> {
        self.leads.subscribe()
    }

    fn new_id(&self) -> [u8; 16] {
        uuid_v4(&*self.randomness)
    }
}

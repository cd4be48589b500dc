//! [`RaftStore`]: opens the data directory, starts Raft on it, and is the world's [`Replicator`].

use crate::{
    cache::{self, CacheWriter, Cached, Pending, Position},
    encryption::{self, Sealed},
    log::RaftLog,
    machine::{Machine, Published, read_snapshot},
    membership::Members,
    network::NoPeers,
    options::{Fatal, OpenError, Options, Start},
    record,
    seam::{Clock, Randomness, uuid_v4},
    settings::Settings,
    timings::Recorder,
    types::{Membership, NodeRecord, TypeConfig, mark},
};
use async_trait::async_trait;
use ikada_model::Timestamp;
use ikada_store::{ClusterId, DataDir, FileLog, FileLogOptions, Identity, Keyring, LogStore, Mark, SledState, SnapshotStore, StoreError};
use ikada_world::{Applied, ChangeSet, Command, Contact, ProposeError, Replicator, World};
use openraft::{
    Instant, Raft, RaftMetrics, ReadPolicy, ServerState,
    alias::InstantOf,
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
use tokio::{
    sync::{broadcast, watch},
    task::JoinHandle,
};

/// Id of the node that makes a cluster. Others get theirs when they join; an id is never used twice.
const FIRST_NODE: u64 = 1;
/// A node alone elects itself and applies its log well within this.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Most time that a shutdown waits for the disk.
const SYNC_DEADLINE: Duration = Duration::from_secs(10);

pub(crate) type RaftNode = Raft<TypeConfig, Machine>;

/// The store of one node.
pub struct RaftStore {
    pub(crate) raft: RaftNode,
    pub(crate) members: Members,
    pub(crate) timings: Arc<Recorder>,
    pub(crate) log: Mutex<Option<RaftLog>>,
    published: Arc<Published>,
    pub(crate) identity: Identity,
    clock: Arc<dyn Clock>,
    randomness: Arc<dyn Randomness>,
    pub(crate) deadline: Duration,
    leads: watch::Sender<bool>,
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

/// What the data directory held.
struct Opened {
    dir: DataDir,
    log: Arc<FileLog>,
    snapshots: Arc<SnapshotStore>,
    position: Position,
    cache: Cache,
    /// The cache does not have the position.
    refill: bool,
}

/// The state cache.
enum Cache {
    Off,
    /// Open already, or to be opened; and the keys of its outcomes.
    On(Option<SledState>, BTreeSet<Vec<u8>>),
}

fn open_dir(options: &Options, settings: &Settings) -> Result<Opened, OpenError> {
    let fresh = || match options.start {
        Start::Create { .. } => Identity { cluster: ClusterId(uuid_v4(&*options.randomness)), node: FIRST_NODE },
        Start::Join { cluster, node } => Identity { cluster, node },
    };
    let dir = DataDir::open(options.disk.clone(), &options.data_dir, options.keyring(), fresh)?;
    refuse_lost_log(options, &dir)?;
    let sizes = FileLogOptions { segment_bytes: settings.segment_bytes };
    let keyring = dir.keyring();
    let log = FileLog::open(options.disk.clone(), &dir.log(), dir.identity(), sizes, keyring.cloned())?;
    let snapshots = SnapshotStore::open(options.disk.clone(), &dir.snapshots(), dir.identity(), keyring.cloned())?;
    let newest = snapshots.newest();
    let mut cached = None;
    // A new directory has nothing to read; the cache is made when it is first written.
    let mut cache = if options.simulated { Cache::Off } else { Cache::On(None, BTreeSet::new()) };
    if !options.simulated && !dir.created() {
        cache = match open_cache(&dir.state(), dir.identity(), keyring) {
            Some((store, found)) => {
                let found = found.filter(|cached| fits(&log, newest, &cached.position));
                let (position, outcomes) = found.map_or((None, BTreeSet::new()), |c| (Some(c.position), c.outcomes));
                cached = position;
                Cache::On(Some(store), outcomes)
            }
            None => Cache::Off,
        };
    }
    let refill = cached.is_none();
    let position = match (cached, newest) {
        (Some(position), _) => position,
        (None, Some(newest)) => read_snapshot(&snapshots, newest).map_err(|e| as_store_error(e, &dir.snapshots()))?,
        (None, None) => Position { world: Arc::new(World::empty()), last: None, membership: Membership::default() },
    };
    let state = log.state();
    if let Some(purged) = state.purged
        && position.last.as_ref().is_none_or(|l| l.index < purged.index)
    {
        let at = position.last.as_ref().map_or_else(|| "nothing".to_owned(), |l| mark(l).to_string());
        let what = format!("the log begins after {purged}, the newest snapshot has {at}");
        return Err(StoreError::damaged(&dir.snapshots(), 0, what).into());
    }
    encryption::reseal(&dir, &log, &snapshots)?;
    Ok(Opened { dir, log: Arc::new(log), snapshots: Arc::new(snapshots), position, cache, refill })
}

/// A log that is gone while what was made from it is there was removed by somebody: with a new one every acknowledged write would be
/// forgotten. The log is made before anything else, so a crash does not leave this behind.
fn refuse_lost_log(options: &Options, dir: &DataDir) -> Result<(), StoreError> {
    let names = |path: &Path| options.disk.list(path).map_err(|e| StoreError::io("read", path, e));
    if dir.created() || names(&dir.log())?.iter().any(|name| name.ends_with(".log")) {
        return Ok(());
    }
    for left in [dir.snapshots(), dir.state()] {
        if !names(&left)?.is_empty() {
            let what = format!("the log is gone, while {} still has what was made from it", left.display());
            return Err(StoreError::damaged(&dir.log(), 0, what));
        }
    }
    Ok(())
}

fn as_store_error(e: std::io::Error, path: &Path) -> StoreError {
    match e.get_ref().and_then(|inner| inner.downcast_ref::<StoreError>()) {
        Some(e) => e.clone(),
        None => StoreError::damaged(path, 0, e.to_string()),
    }
}

/// Opens the cache and reads it. One that cannot be read is emptied; without one a start only takes longer.
fn open_cache(dir: &Path, owner: Identity, keyring: Option<&Arc<Keyring>>) -> Option<(SledState, Option<Cached>)> {
    let open = || SledState::open(dir, keyring.cloned()).map_err(|e| e.to_string());
    let read = open().and_then(|store| Ok((cache::load(&store, owner)?, store)));
    match read {
        Ok((found, store)) => Some((store, found)),
        Err(e) => {
            tracing::warn!("rebuilding the state cache in {} from snapshot and log: {e}", dir.display());
            match SledState::wipe(dir).map_err(|e| e.to_string()).and_then(|()| open()) {
                Ok(store) => Some((store, None)),
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
                let writer = CacheWriter { store, dir: state_dir, keyring: keyring.clone(), owner: identity, pending: pending.clone(), outcomes };
                Some(tokio::spawn(writer.run(closing.subscribe(), dir.clone())))
            }
        };
        let keys = keyring.map(|k| k.ids()).unwrap_or_default();
        let sealed = Sealed { log: log.clone(), snapshots: snapshots.clone(), keys };
        let start = |e: &dyn std::fmt::Display| OpenError::Raft(e.to_string());
        let timings = Arc::new(Recorder::default());
        let log = RaftLog::start(log, fatal.clone(), timings.clone(), blocking, dir.clone()).map_err(|e| start(&e))?;
        let published = Arc::new(Published::new(position.world.clone()));
        let machine = Machine { published: published.clone(), position, snapshots, pending, blocking };
        let raft: RaftNode = Raft::new(identity.node, Arc::new(config), NoPeers, log.clone(), machine).await.map_err(|e| start(&e))?;
        let store = Arc::new(RaftStore {
            members: Members::start(&raft, &closing),
            timings,
            raft: raft.clone(),
            log: Mutex::new(Some(log)),
            published,
            identity,
            clock: options.clock,
            randomness: options.randomness,
            deadline: settings.proposal_deadline,
            leads: watch::channel(false).0,
            ready: watch::channel(false).0,
            heard: watch::channel(None).0,
            lease: settings.election.1,
            fatal: fatal.clone(),
            closing,
            dir,
            cache: Mutex::new(cache),
            sealed,
        });
        store.start(&settings).await?;
        Ok(store)
    }

    async fn start(&self, settings: &Settings) -> Result<(), OpenError> {
        let start = |e: &dyn std::fmt::Display| OpenError::Raft(e.to_string());
        let me = self.identity.node;
        if self.raft.is_initialized().await.map_err(|e| start(&e))? {
            let alone = self.raft.voter_ids().eq([me]);
            if alone {
                // Nobody else could lead: no need to wait for a timeout.
                self.raft.trigger().elect(false).await.map_err(|e| start(&e))?;
            }
        } else {
            let members = BTreeMap::from([(me, NodeRecord::default())]);
            self.raft.initialize(members).await.map_err(|e| start(&e))?;
        }
        self.watch_raft();
        self.watch_leader(settings.heartbeat);
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

    /// Follows Raft: whether this node leads, and whether Raft still runs.
    fn watch_raft(&self) {
        let mut server = self.raft.server_metrics();
        let metrics = self.raft.metrics();
        let (leads, fatal, closing) = (self.leads.clone(), self.fatal.clone(), self.closing.subscribe());
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
        tonic::service::Routes::default()
    }

    /// Whether this node knows a leader and has caught up with it: it serves writes and linearizable reads.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
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

#[cfg(test)]
mod tests {
    use super::*;
    use ikada_model::{Json, Key, Kind, Labels};
    use ikada_world::{Op, Put};

    async fn fill(options: &Options, from: u64, to: u64) {
        let store = RaftStore::open(options.clone()).await.unwrap();
        for n in from..to {
            let put = Put::new(Key::new(Kind::MeshTimeout, "default", &format!("t-{}", n % 7)), Labels::new(), Json::default());
            store.propose(Command { id: store.new_id(), ops: vec![Op::Put(put)] }).await.unwrap();
        }
        let delete = Op::Delete { key: Key::new(Kind::MeshTimeout, "default", "t-3"), expect: ikada_world::Expect::Any };
        store.propose(Command { id: store.new_id(), ops: vec![delete] }).await.unwrap();
        store.shutdown().await.unwrap();
    }

    /// What a start finds: whether the cache served it, and the world as text.
    fn found(options: &Options) -> (bool, String) {
        let opened = open_dir(options, &Settings::lan()).unwrap();
        let world = &opened.position.world;
        (!opened.refill, format!("{:?} {:?}", world.resource_records().collect::<Vec<_>>(), world.outcome_records().collect::<Vec<_>>()))
    }

    #[tokio::test]
    async fn a_removed_log_is_refused_and_nothing_is_made_anew() {
        let tmp = tempfile::tempdir().unwrap();
        let options = Options::new(tmp.path().join("a"));
        fill(&options, 0, 5).await;
        let log = tmp.path().join("a/log");
        std::fs::rename(&log, tmp.path().join("kept")).unwrap();
        for _ in 0..2 {
            let e = RaftStore::open(options.clone()).await.map(|_| ()).unwrap_err().to_string();
            assert!(e.contains("the log is gone") && !e.contains('\n'), "{e}");
            assert!(std::fs::read_dir(&log).unwrap().next().is_none());
        }
        std::fs::remove_dir(&log).unwrap();
        std::fs::rename(tmp.path().join("kept"), &log).unwrap();
        let store = RaftStore::open(options).await.unwrap();
        assert_eq!(store.world().len(), 4);
        store.shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn the_cache_serves_a_start_only_when_it_is_of_this_history() {
        let tmp = tempfile::tempdir().unwrap();
        let options = Options::new(tmp.path().join("a"));
        fill(&options, 0, 20).await;
        let store = RaftStore::open(options.clone()).await.unwrap();
        let world = store.world();
        let truth = format!("{:?} {:?}", world.resource_records().collect::<Vec<_>>(), world.outcome_records().collect::<Vec<_>>());
        store.shutdown().await.unwrap();
        drop(store);
        assert_eq!(found(&options), (true, truth.clone()));

        // The cache of another cluster; and one of this node which is ahead of the log, as if the log were an older backup.
        let (a, b) = (tmp.path().join("a"), tmp.path().join("b"));
        fill(&Options::new(&b), 0, 60).await;
        for foreign in [true, false] {
            if !foreign {
                let copied = std::process::Command::new("cp").arg("-r").arg(a.join("log")).arg(tmp.path().join("log.old")).status();
                assert!(copied.unwrap().success());
                fill(&options, 0, 30).await;
                std::fs::remove_dir_all(a.join("log")).unwrap();
                std::fs::rename(tmp.path().join("log.old"), a.join("log")).unwrap();
            } else {
                std::fs::remove_dir_all(a.join("state")).unwrap();
                std::fs::rename(b.join("state"), a.join("state")).unwrap();
            }
            assert!(!found(&options).0);
            let store = RaftStore::open(options.clone()).await.unwrap();
            let world = store.world();
            let now = format!("{:?} {:?}", world.resource_records().collect::<Vec<_>>(), world.outcome_records().collect::<Vec<_>>());
            assert!(now == truth, "foreign {foreign}: {now}");
            store.shutdown().await.unwrap();
            drop(store);
            assert!(found(&options) == (true, truth.clone()), "foreign {foreign}: it was rebuilt");
        }
    }
}

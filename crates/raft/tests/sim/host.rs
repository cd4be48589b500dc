//! One machine: a disk that survives crashes, a clock, and at times a node that runs on it.

use crate::{
    judge::Watcher,
    net::{PORT, SimNet, accepted},
    seeded::SeededIds,
    trace::Trace,
};
use futures::future::LocalBoxFuture;
use ikada_model::Timestamp;
use ikada_raft::{
    Clock, ClusterId, OpenError, Options, Profile, RaftStore, Settings, Start,
    net::{PeerIdentity, serve_connection},
};
use ikada_store::{StoreError, disk::ScriptedDisk};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use turmoil::net::TcpListener;

/// Something to do on a node, by its runtime.
pub type Job = Box<dyn FnOnce(Arc<RaftStore>) -> LocalBoxFuture<'static, ()>>;

/// Directory of every node on its own disk.
pub const DATA: &str = "/data";

/// Wall clock of a machine, in nanoseconds; it jumps.
#[derive(Default)]
pub struct SimClock(AtomicI64);

impl SimClock {
    pub fn set(&self, nanos: i64) {
        self.0.store(nanos, Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::Relaxed))
    }
}

/// What the machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// A node runs, or is starting.
    On,
    /// The process is gone until then.
    Off { until: Duration },
    /// The machine is not used.
    Spare,
}

pub struct Host {
    pub name: String,
    pub settings: Settings,
    pub disk: RefCell<ScriptedDisk>,
    pub start: RefCell<Option<Start>>,
    pub clock: Arc<SimClock>,
    /// Offset of the clock, in nanoseconds.
    pub clock_offset: Cell<i64>,
    pub ids: SeededIds,
    pub power: Cell<Power>,
    /// The store, while it is open.
    pub store: RefCell<Option<Arc<RaftStore>>>,
    pub watcher: RefCell<Option<Watcher>>,
    pub jobs: RefCell<Option<mpsc::UnboundedSender<Job>>>,
    /// Counts starts.
    pub life: Cell<u64>,
    /// Why the store could not be opened.
    pub refused: RefCell<Option<OpenError>>,
    /// Highest index that this identity showed to anybody.
    pub shown: Cell<u64>,
    pub was_ready: Cell<bool>,
    /// Highest index of a local read in this life.
    pub local_floor: Cell<u64>,
    /// The node was stopped in order; the process is to be started again then.
    pub leaving: Cell<Option<Duration>>,
    /// Node id and cluster, once known.
    pub identity: Cell<Option<(ClusterId, u64)>>,
}

impl Host {
    pub fn new(index: usize, seed: u64, settings: Settings) -> Host {
        Host {
            name: format!("n{}", index + 1),
            settings,
            disk: RefCell::new(ScriptedDisk::new(seed ^ 0xD15C)),
            start: RefCell::default(),
            clock: Arc::default(),
            clock_offset: Cell::default(),
            ids: SeededIds::new(seed),
            power: Cell::new(Power::Spare),
            store: RefCell::default(),
            watcher: RefCell::default(),
            jobs: RefCell::default(),
            life: Cell::default(),
            refused: RefCell::default(),
            shown: Cell::default(),
            was_ready: Cell::default(),
            local_floor: Cell::default(),
            leaving: Cell::default(),
            identity: Cell::default(),
        }
    }

    pub fn address(&self) -> String {
        format!("{}:{PORT}", self.name)
    }

    pub fn node(&self) -> Option<u64> {
        self.identity.get().map(|(_, node)| node)
    }

    pub fn is_on(&self) -> bool {
        self.power.get() == Power::On
    }

    pub fn open_store(&self) -> Option<Arc<RaftStore>> {
        self.store.borrow().clone()
    }

    /// Has something done by the node. The answer fails when the node is not there, or dies before it is done.
    pub fn ask<T: 'static>(&self, work: impl FnOnce(Arc<RaftStore>) -> LocalBoxFuture<'static, T> + 'static) -> oneshot::Receiver<T> {
        let (answer, answered) = oneshot::channel();
        if let Some(jobs) = &*self.jobs.borrow() {
            let job: Job = Box::new(move |store| {
                Box::pin(async move {
                    answer.send(work(store).await).ok();
                })
            });
            jobs.send(job).ok();
        }
        answered
    }

    /// Starts work on the node.
    pub fn ask_detached(&self, work: impl Future<Output = ()> + 'static) {
        if let Some(jobs) = &*self.jobs.borrow() {
            jobs.send(Box::new(move |_| Box::pin(work))).ok();
        }
    }

    /// The process or the machine is gone: nobody holds on to what was in it.
    pub fn forget_process(&self) {
        self.store.take();
        self.watcher.take();
        self.jobs.take();
        self.refused.take();
        self.leaving.take();
        self.was_ready.set(false);
        self.local_floor.set(0);
    }

    /// A new disk, so also another identity.
    pub fn wipe(&self, seed: u64) {
        *self.disk.borrow_mut() = ScriptedDisk::new(seed);
        self.shown.set(0);
        self.identity.set(None);
        self.start.take();
    }

    /// Whether what the disk was told explains that the store could not be opened.
    pub fn may_refuse(&self, e: &OpenError) -> bool {
        let disk = self.disk.borrow();
        let full = matches!(e, OpenError::Store(StoreError::Full { .. }));
        disk.is_off() || disk.fails_syncs() || (full && disk.capacity().is_some())
    }
}

/// The software of a host.
pub async fn run(host: Rc<Host>, trace: Rc<Trace>) -> turmoil::Result {
    // A host begins with its program; the node begins when the machine is turned on.
    let Some(start) = host.start.borrow().clone().filter(|_| host.is_on()) else { return Ok(()) };
    host.life.set(host.life.get() + 1);
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    let node = match &start {
        Start::Create { .. } => 1,
        Start::Join { node, .. } => *node,
    };
    let options = Options {
        disk: Arc::new(host.disk.borrow().clone()),
        clock: host.clock.clone(),
        randomness: Arc::new(host.ids.clone()),
        profile: Profile::Custom(host.settings.clone()),
        start,
        net: Arc::new(SimNet { node }),
        simulated: true,
        ..Options::new(DATA)
    };
    let store = match RaftStore::open(options).await {
        Ok(store) => store,
        Err(e) => {
            host.refused.replace(Some(e));
            return std::future::pending().await;
        }
    };
    // Nothing is awaited between the two, so the watcher starts at this world.
    let watcher = Watcher::new(store.as_ref());
    trace.line(format_args!("{} node {} opened at {}", host.name, store.node_id(), watcher.index()));
    host.watcher.replace(Some(watcher));
    host.identity.set(Some((store.cluster_id(), store.node_id())));
    host.store.replace(Some(store.clone()));
    let (jobs, mut queue) = mpsc::unbounded_channel::<Job>();
    host.jobs.replace(Some(jobs));
    let stop = CancellationToken::new();
    loop {
        tokio::select! {
            job = queue.recv() => match job {
                Some(job) => { tokio::task::spawn_local(job(store.clone())); }
                None => return std::future::pending().await,
            },
            accept = listener.accept() => {
                let (mut stream, _) = accept?;
                let (store, stop) = (store.clone(), stop.clone());
                tokio::task::spawn_local(async move {
                    if let Ok(node) = accepted(&mut stream, store.node_id()).await {
                        let routes = store.peer_routes();
                        // It holds what it needs of the store.
                        drop(store);
                        serve_connection(Box::new(stream), Some(PeerIdentity { node }), routes, stop).await;
                    }
                });
            }
        }
    }
}

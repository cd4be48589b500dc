//! [`RaftStore`]. Interim: commands are applied in memory only; the log comes with the next commits, behind the same interface.

use crate::{
    options::{Fatal, OpenError, Options},
    seam::uuid_v4,
};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use ikada_store::ClusterId;
use ikada_world::{Applied, ChangeSet, Command, EntryMeta, ProposeError, Replicator, World};
use std::sync::Arc;
use tokio::sync::{Mutex, broadcast, watch};

/// Change sets that a subscriber may be behind before it has to start over.
const BUS_CAPACITY: usize = 4096;

/// The store of one node.
pub struct RaftStore {
    options: Options,
    cluster: ClusterId,
    order: Mutex<()>,
    world: ArcSwap<World>,
    bus: broadcast::Sender<Arc<ChangeSet>>,
    leads: watch::Sender<bool>,
    fatal: watch::Sender<Option<Fatal>>,
}

impl RaftStore {
    /// Opens the store, or makes a new cluster of this node alone when the directory is empty. Returns when it accepts writes.
    pub async fn open(options: Options) -> Result<Arc<RaftStore>, OpenError> {
        options.disk.create_dir_all(&options.data_dir).map_err(|e| ikada_store::StoreError::io("create", &options.data_dir, e))?;
        let cluster = ClusterId(uuid_v4(&*options.randomness));
        Ok(Arc::new(RaftStore {
            cluster,
            order: Mutex::new(()),
            world: ArcSwap::from_pointee(World::empty()),
            bus: broadcast::channel(BUS_CAPACITY).0,
            leads: watch::channel(true).0,
            fatal: watch::channel(None).0,
            options,
        }))
    }
    /// Random id of the cluster, made once when it is created.
    pub fn cluster_id(&self) -> ClusterId {
        self.cluster
    }
    /// Id of this node in the cluster.
    pub fn node_id(&self) -> u64 {
        1
    }
    /// Becomes `Some` when the node had to leave service; from then on every proposal fails.
    pub fn fatal(&self) -> watch::Receiver<Option<Fatal>> {
        self.fatal.subscribe()
    }
    /// Stops accepting writes, makes what was accepted durable and releases the data directory.
    pub async fn shutdown(&self) -> Result<(), Fatal> {
        self.leads.send_replace(false);
        Ok(())
    }
}

#[async_trait]
impl Replicator for RaftStore {
    async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        let _order = self.order.lock().await;
        if !*self.leads.borrow() {
            return Err(ProposeError::Unavailable("the store is shutting down".to_owned()));
        }
        let world = self.world.load_full();
        let entry = EntryMeta { index: world.index() + 1, time: self.options.clock.now() };
        let (next, changes, outcome) = world.apply(entry, &command);
        self.world.store(Arc::new(next));
        self.bus.send(Arc::new(changes)).ok();
        outcome.map_err(ProposeError::Rejected)
    }
    fn world(&self) -> Arc<World> {
        self.world.load_full()
    }
    async fn linearizable(&self) -> Result<Arc<World>, ProposeError> {
        Ok(self.world())
    }
    fn subscribe(&self) -> broadcast::Receiver<Arc<ChangeSet>> {
        self.bus.subscribe()
    }
    fn leadership(&self) -> watch::Receiver<bool> {
        self.leads.subscribe()
    }
    fn new_id(&self) -> [u8; 16] {
        uuid_v4(&*self.options.randomness)
    }
}

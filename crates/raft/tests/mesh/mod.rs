//! Nodes in one process, on connections in memory that can be cut.

use async_trait::async_trait;
use ikada_raft::{
    Member, MembershipError, Options, Profile, RaftStore, Settings, Start,
    net::{Io, Net, PeerIdentity, serve_connection},
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

/// Longest time that anything here may take on a busy machine.
pub const LONG: Duration = Duration::from_secs(60);

struct Link {
    ends: (u64, u64),
    dead: Arc<AtomicBool>,
}

struct Node {
    routes: Routes,
    stop: CancellationToken,
}

/// The network.
#[derive(Default)]
pub struct Mesh {
    nodes: Mutex<BTreeMap<u64, Node>>,
    links: Mutex<Vec<Link>>,
    /// Nodes between which nothing gets through.
    cut: Mutex<BTreeSet<(u64, u64)>>,
}

fn pair(a: u64, b: u64) -> (u64, u64) {
    (a.min(b), a.max(b))
}

impl Mesh {
    /// Nothing gets through between `node` and the others any more; connections do not break, they fall silent.
    pub fn isolate(&self, node: u64) {
        let others: Vec<u64> = self.nodes.lock().keys().copied().filter(|n| *n != node).collect();
        for other in others {
            self.cut.lock().insert(pair(node, other));
            self.links.lock().iter().filter(|l| l.ends == pair(node, other)).for_each(|l| l.dead.store(true, Ordering::Relaxed));
        }
    }
    pub fn heal(&self) {
        self.cut.lock().clear();
    }
    fn join(&self, id: u64, routes: Routes) {
        self.nodes.lock().insert(id, Node { routes, stop: CancellationToken::new() });
    }
    fn leave(&self, id: u64) {
        if let Some(node) = self.nodes.lock().remove(&id) {
            node.stop.cancel();
        }
    }
}

struct NetOf {
    mesh: Arc<Mesh>,
    node: Arc<Mutex<u64>>,
}

#[async_trait]
impl Net for NetOf {
    async fn connect(&self, address: &str, node: u64) -> io::Result<Io> {
        let me = *self.node.lock();
        assert_eq!(address, format!("node-{node}:5690"));
        if self.mesh.cut.lock().contains(&pair(me, node)) {
            std::future::pending::<()>().await;
        }
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let dead = Arc::new(AtomicBool::new(false));
        let (routes, stop) = match self.mesh.nodes.lock().get(&node) {
            Some(n) => (n.routes.clone(), n.stop.clone()),
            None => return Err(io::ErrorKind::ConnectionRefused.into()),
        };
        self.mesh.links.lock().push(Link { ends: pair(me, node), dead: dead.clone() });
        let theirs = Box::new(Cuttable { io: theirs, dead: dead.clone() });
        tokio::spawn(serve_connection(theirs, Some(PeerIdentity { node: me }), routes, stop));
        Ok(Box::new(Cuttable { io: ours, dead }))
    }
}

/// Once dead, it takes everything and gives nothing.
struct Cuttable {
    io: tokio::io::DuplexStream,
    dead: Arc<AtomicBool>,
}

impl Cuttable {
    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }
}

impl AsyncRead for Cuttable {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let filled = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if self.is_dead() {
            buf.set_filled(filled);
            return Poll::Pending;
        }
        read
    }
}

impl AsyncWrite for Cuttable {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_dead() {
            return Poll::Ready(Ok(data.len()));
        }
        Pin::new(&mut self.io).poll_write(cx, data)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_dead() { Poll::Ready(Ok(())) } else { Pin::new(&mut self.io).poll_flush(cx) }
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A cluster, its directories and its network.
pub struct Cluster {
    pub mesh: Arc<Mesh>,
    pub settings: Settings,
    dir: tempfile::TempDir,
    stores: BTreeMap<u64, Arc<RaftStore>>,
}

impl Cluster {
    /// Three voters.
    pub async fn of_three(settings: Settings) -> Cluster {
        let mut cluster = Cluster { mesh: Arc::default(), settings, dir: tempfile::tempdir().unwrap(), stores: BTreeMap::new() };
        cluster.open(1, Start::Create { address: "node-1:5690".to_owned(), name: "one".to_owned() }).await;
        let second = cluster.add().await;
        let third = cluster.add().await;
        cluster.promote(BTreeSet::from([1, second, third])).await;
        cluster
    }

    /// A new learner.
    pub async fn add(&mut self) -> u64 {
        let leader = self.leader().await;
        let id = leader.allocate_node_id().await.unwrap();
        self.open(id, Start::Join { cluster: leader.cluster_id(), node: id }).await;
        let member = Member { id, address: format!("node-{id}:5690"), name: String::new(), wants_vote: true, format: 1 };
        leader.add_learner(member).await.unwrap();
        id
    }

    pub async fn promote(&self, voters: BTreeSet<u64>) {
        let promoted = async {
            loop {
                match self.leader().await.set_voters(voters.clone(), false).await {
                    Ok(()) => return,
                    Err(MembershipError::NotCaughtUp { .. } | MembershipError::Silent { .. }) => {}
                    Err(e) => panic!("{e}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LONG, promoted).await.unwrap();
    }

    pub fn path(&self, id: u64) -> PathBuf {
        self.dir.path().join(id.to_string())
    }

    async fn open(&mut self, id: u64, start: Start) {
        let net = Arc::new(NetOf { mesh: self.mesh.clone(), node: Arc::new(Mutex::new(id)) });
        let profile = Profile::Custom(self.settings.clone());
        let store = RaftStore::open(Options { start, net, profile, ..Options::new(self.path(id)) }).await.unwrap();
        assert_eq!(store.node_id(), id);
        self.mesh.join(id, store.peer_routes());
        self.stores.insert(id, store);
    }

    pub fn ids(&self) -> Vec<u64> {
        self.stores.keys().copied().collect()
    }

    pub fn store(&self, id: u64) -> Arc<RaftStore> {
        self.stores[&id].clone()
    }

    /// Stops a node in an orderly way; its directory stays.
    pub async fn stop(&mut self, id: u64) {
        self.mesh.leave(id);
        let store = self.stores.remove(&id).unwrap();
        store.shutdown().await.unwrap();
    }

    pub async fn restart(&mut self, id: u64) {
        self.open(id, Start::Create { address: String::new(), name: String::new() }).await;
    }

    /// The node that a majority follows.
    pub async fn leader(&self) -> Arc<RaftStore> {
        let found = async {
            loop {
                for store in self.stores.values() {
                    let status = store.status();
                    let followers = self.stores.values().filter(|s| s.status().leader == Some(status.node)).count();
                    if *store.leadership().borrow() && followers * 2 > status.members.iter().filter(|m| m.voter).count() {
                        return store.clone();
                    }
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(LONG, found).await.expect("a leader")
    }

    /// A node that does not lead.
    pub async fn follower(&self) -> Arc<RaftStore> {
        let leader = self.leader().await.node_id();
        self.stores.values().find(|s| s.node_id() != leader).unwrap().clone()
    }

    /// Waits until a node has applied an entry.
    pub async fn applied(&self, id: u64, index: u64) {
        let store = self.store(id);
        let applied = async {
            while store.world().index() < index {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LONG, applied)
            .await
            .unwrap_or_else(|_| panic!("node {id} is at {}, not {index}: {:?}", store.world().index(), store.status()));
    }

    pub async fn shutdown(mut self) {
        for id in self.ids() {
            self.stop(id).await;
        }
    }
}

use ikada_world::Replicator;

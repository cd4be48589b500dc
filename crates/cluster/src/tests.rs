//! Whole nodes in one process, over loopback TCP with the real TLS and real disks.

mod alone;
mod cluster;
mod hostile;
mod join;

use crate::{
    ClusterNode, ClusterStatus, Join, NewToken, Options, StartError, Tcp, Wire,
    identity::{Credentials, NodeName, PeerDir},
    start,
};
use ikada_model::{Json, Key, Kind, Labels, Timestamp};
use ikada_pki::{Ca, CertificateRequest, PemPair, certificate_request, cluster_ca, generate_key};
use ikada_raft::{Clock, ClusterId, SystemClock};
use ikada_store::disk::RealDisk;
use ikada_world::{Command, Op, Put, Replicator};
use std::{
    collections::BTreeMap,
    future::Future,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime},
};
use tempfile::TempDir;

const HOUR: Duration = Duration::from_secs(3600);
/// Far longer than anything here takes on an idle machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// The system's clock, moved.
#[derive(Default)]
struct MovedClock(AtomicI64);

impl MovedClock {
    fn forward(&self, d: Duration) {
        self.0.fetch_add(i64::try_from(d.as_nanos()).unwrap(), Ordering::Relaxed);
    }
}

impl Clock for MovedClock {
    fn now(&self) -> Timestamp {
        Timestamp(SystemClock.now().0 + self.0.load(Ordering::Relaxed))
    }
}

/// Nodes on one machine. A node keeps its port over restarts.
struct Lab {
    tmp: TempDir,
    clock: Arc<MovedClock>,
    ports: BTreeMap<String, u16>,
    life: Duration,
}

fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

impl Lab {
    fn new() -> Lab {
        Lab { tmp: tempfile::tempdir().unwrap(), clock: Arc::default(), ports: BTreeMap::new(), life: crate::CERTIFICATE_LIFE }
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.tmp.path().join(name)
    }

    fn options(&mut self, name: &str) -> Options {
        let port = *self.ports.entry(name.to_owned()).or_insert_with(free_port);
        let mut raft = ikada_raft::Options::new(self.dir(name));
        raft.clock = self.clock.clone();
        let mut o = Options::new(raft, format!("127.0.0.1:{port}"), name);
        o.listen = ([127, 0, 0, 1], port).into();
        o.certificate_life = self.life;
        o
    }

    async fn start(&mut self, name: &str) -> Arc<ClusterNode> {
        let options = self.options(name);
        start(options).await.unwrap()
    }

    async fn try_join(&mut self, name: &str, addresses: Vec<String>, token: &str) -> Result<Arc<ClusterNode>, StartError> {
        let mut options = self.options(name);
        options.join = Some(Join { addresses, token: token.to_owned(), learner: false });
        start(options).await
    }

    async fn join(&mut self, name: &str, token: &NewToken) -> Arc<ClusterNode> {
        self.try_join(name, token.addresses.clone(), &token.token).await.unwrap()
    }

    fn peer_dir(&self, name: &str) -> PeerDir {
        PeerDir::new(Arc::new(RealDisk), &self.dir(name), None)
    }
}

async fn token(node: &ClusterNode, uses: u32) -> NewToken {
    node.create_join_token(HOUR, true, uses).await.unwrap()
}

async fn eventually<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    let waited = async {
        while !check().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waited).await.is_ok(), "{what} did not happen");
}

async fn status_is(node: &ClusterNode, what: &str, check: impl Fn(&ClusterStatus) -> bool) -> ClusterStatus {
    let found = parking_lot::Mutex::new(None);
    let waited = async {
        loop {
            let status = node.status().await.unwrap();
            let done = check(&status);
            *found.lock() = Some(status);
            if done {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let done = tokio::time::timeout(PATIENCE, waited).await.is_ok();
    let status = found.into_inner().unwrap();
    assert!(done, "{what} did not happen: {status:#?}");
    status
}

fn key(name: &str) -> Key {
    Key::new(Kind::MeshTimeout, "default", name)
}

async fn write(node: &ClusterNode, name: &str) {
    let store = node.store();
    let command = Command { id: store.new_id(), ops: vec![Op::Put(Put::new(key(name), Labels::new(), Json::default()))] };
    store.propose(command).await.unwrap();
}

/// Credentials from some CA, as an attacker or a former member has them.
fn credentials(ca: &PemPair, cluster: ClusterId, node: u64) -> Credentials {
    let key = generate_key().unwrap();
    let request = CertificateRequest::parse(&certificate_request(&key).unwrap()).unwrap();
    let uri = NodeName { cluster, node }.to_string();
    let pem = Ca::from_pair(ca).unwrap().node_certificate(&request, &uri, HOUR, SystemTime::now()).unwrap();
    Credentials::new(&pem, &ca.cert_pem, &key).unwrap()
}

fn foreign_ca() -> PemPair {
    cluster_ca("elsewhere", SystemTime::now()).unwrap()
}

fn own_ca(node: &ClusterNode) -> PemPair {
    crate::records::ca(&node.store().world()).unwrap()
}

fn one_line(e: &impl std::fmt::Display) -> String {
    let text = e.to_string();
    assert!(!text.contains('\n') && !text.is_empty(), "{text:?}");
    text
}

//! One of our nodes as the benchmark runs it beside etcd: the store with its peers under mutual TLS, real disk, and etcd's KV interface
//! in front, which writes one resource per key through the same proposals as the control plane.

use crate::kv::{
    KeyValue, PutRequest, PutResponse, RangeRequest, RangeResponse, ResponseHeader, StatusRequest, StatusResponse,
    kv_server::{Kv, KvServer},
    maintenance_server::{Maintenance, MaintenanceServer},
};
use anyhow::{Context, Result as Anyhow};
use ikada_model::{Json, Key, Kind, Labels};
use ikada_cluster::Join;
use ikada_raft::RaftStore;
use ikada_world::{Command, Op, ProposeError, Put, Replicator, World};
use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};
use tonic::{Request, Response, Status, transport::Server};

/// Arguments of the node process.
#[derive(Clone, Debug, clap::Args)]
pub struct NodeArgs {
    /// Data directory.
    #[arg(long)]
    data_dir: PathBuf,
    /// Where the KV interface listens.
    #[arg(long)]
    kv: SocketAddr,
    /// Where peers reach it.
    #[arg(long)]
    peer: SocketAddr,
    /// Peer of the cluster to join.
    #[arg(long)]
    join: Option<String>,
    /// Join token: written by the first node, read by the others.
    #[arg(long)]
    token_file: PathBuf,
}

/// Runs the node until it is killed. The KV interface opens when the node serves and votes.
pub async fn run(args: NodeArgs) -> Anyhow<()> {
    let mut options = ikada_cluster::Options::new(ikada_raft::Options::new(&args.data_dir), args.peer.to_string(), "bench");
    options.listen = args.peer;
    if let Some(address) = args.join.clone() {
        let token = std::fs::read_to_string(&args.token_file).context("join token")?;
        options.join = Some(Join { addresses: vec![address], token, learner: false });
    }
    let cluster = ikada_cluster::start(options).await?;
    let store = cluster.store();
    store.ready().wait_for(|ready| *ready).await?;
    if args.join.is_none() {
        let token = cluster.create_join_token(Duration::from_secs(3600), true, 10).await?.token;
        let beside = args.token_file.with_extension("new");
        std::fs::write(&beside, token)?;
        std::fs::rename(&beside, &args.token_file)?;
    }
    while !store.status().members.iter().any(|m| m.member.id == store.node_id() && m.voter) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (kv, maintenance) = KvOverStore(store).services();
    Server::builder().tcp_nodelay(true).add_service(kv).add_service(maintenance).serve(args.kv).await?;
    Ok(())
}

/// The KV interface over a store.
#[derive(Clone)]
pub struct KvOverStore(pub Arc<RaftStore>);

fn key(bytes: &[u8]) -> Result<Key, Status> {
    let name = std::str::from_utf8(bytes).map_err(|_| Status::invalid_argument("keys are text here"))?;
    Ok(Key::new(Kind::MeshTimeout, "default", name))
}

fn refused(e: &ProposeError) -> Status {
    match e {
        ProposeError::Rejected(_) => Status::failed_precondition(e.to_string()),
        ProposeError::TooLarge { .. } => Status::invalid_argument(e.to_string()),
        ProposeError::Unavailable(_) | ProposeError::Unknown => Status::unavailable(e.to_string()),
    }
}

impl KvOverStore {
    fn header(&self, revision: u64) -> Option<ResponseHeader> {
        let revision = i64::try_from(revision).unwrap_or(i64::MAX);
        Some(ResponseHeader { cluster_id: 0, member_id: self.0.node_id(), revision, raft_term: 0 })
    }

    /// Both services.
    pub fn services(self) -> (KvServer<Self>, MaintenanceServer<Self>) {
        (KvServer::new(self.clone()), MaintenanceServer::new(self))
    }
}

#[tonic::async_trait]
impl Kv for KvOverStore {
    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let PutRequest { key: name, value } = request.into_inner();
        let value = std::str::from_utf8(&value).map_err(|_| Status::invalid_argument("values are text here"))?;
        let spec = Json::from_value(&serde_json::json!({ "value": value }));
        let put = Put::new(key(&name)?, Labels::new(), spec);
        let applied = self.0.propose(Command { id: self.0.new_id(), ops: vec![Op::Put(put)] }).await.map_err(|e| refused(&e))?;
        Ok(Response::new(PutResponse { header: self.header(applied.index) }))
    }

    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let RangeRequest { key: name, serializable } = request.into_inner();
        let world: Arc<World> = if serializable { self.0.world() } else { self.0.linearizable().await.map_err(|e| refused(&e))? };
        let found = world.get(&key(&name)?).and_then(|r| {
            let value = r.spec.value().get("value")?.as_str()?.as_bytes().to_vec();
            Some(KeyValue { key: name, create_revision: 0, mod_revision: 0, version: 0, value })
        });
        let count = i64::from(found.is_some());
        Ok(Response::new(RangeResponse { header: self.header(world.index()), kvs: found.into_iter().collect(), more: false, count }))
    }
}

#[tonic::async_trait]
impl Maintenance for KvOverStore {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let leads = *self.0.leadership().borrow();
        Ok(Response::new(StatusResponse {
            header: self.header(self.0.world().index()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            db_size: 0,
            leader: if leads { self.0.node_id() } else { 0 },
            raft_index: self.0.world().index(),
            raft_term: 0,
        }))
    }
}

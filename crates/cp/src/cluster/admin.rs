//! The cluster behind the REST API's `/cluster…`.

use async_trait::async_trait;
use bytes::Bytes;
use ikada_api::cluster::{ClusterAdmin, ClusterError, Snapshot};
use ikada_cluster::ClusterNode;
use ikada_raft::RaftStore;
use serde::Serialize;
use serde_json::Value;
use std::{
    io::{self, Write},
    sync::Arc,
    time::Duration,
};
use tokio::sync::mpsc;

/// Parts of an archive that wait for a slow client.
const QUEUE: usize = 8;
/// Size of a part in bytes.
const PART: usize = 64 << 10;

/// Administration of the cluster that this node is a member of.
pub struct Admin(pub Arc<ClusterNode>);

fn error(e: ikada_cluster::ClusterError) -> ClusterError {
    use ikada_cluster::ClusterError as E;
    match e {
        E::Invalid(text) => ClusterError::Invalid(text),
        E::NotFound(text) => ClusterError::NotFound(text),
        E::Refused { message, forcible } => ClusterError::Refused { message, forcible },
        E::Unavailable(text) => ClusterError::Unavailable(text),
        E::Unknown(text) => ClusterError::Unknown(text),
    }
}

fn json(value: &impl Serialize) -> Result<Value, ClusterError> {
    serde_json::to_value(value).map_err(|e| ClusterError::Unavailable(format!("the answer cannot be encoded: {e}")))
}

#[async_trait]
impl ClusterAdmin for Admin {
    async fn status(&self) -> Result<Value, ClusterError> {
        json(&self.0.status().await.map_err(error)?)
    }
    async fn create_join_token(&self, valid_for: Duration, voter: bool, uses: u32) -> Result<Value, ClusterError> {
        json(&self.0.create_join_token(valid_for, voter, uses).await.map_err(error)?)
    }
    async fn join_tokens(&self) -> Result<Vec<Value>, ClusterError> {
        self.0.join_tokens().await.map_err(error)?.iter().map(json).collect()
    }
    async fn revoke_join_token(&self, id: &str) -> Result<(), ClusterError> {
        self.0.revoke_join_token(id).await.map_err(error)
    }
    async fn promote(&self, node: u64, force: bool) -> Result<(), ClusterError> {
        self.0.promote(node, force).await.map_err(error)
    }
    async fn remove(&self, node: u64, force: bool) -> Result<(), ClusterError> {
        self.0.remove(node, force).await.map_err(error)
    }
    async fn transfer_leader(&self, to: Option<u64>) -> Result<u64, ClusterError> {
        self.0.transfer_leader(to).await.map_err(error)
    }
    async fn snapshot(&self) -> Result<Snapshot, ClusterError> {
        archive(self.0.store()).await
    }
    async fn tune(&self) -> Result<Value, ClusterError> {
        json(&self.0.tune().await.map_err(error)?)
    }
}

/// Hands what is written to it over to a client, in parts.
struct Parts {
    to: mpsc::Sender<io::Result<Bytes>>,
    part: Vec<u8>,
}

impl Parts {
    fn send(&mut self) -> io::Result<()> {
        let part = std::mem::replace(&mut self.part, Vec::with_capacity(PART));
        self.to.blocking_send(Ok(part.into())).map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the client left"))
    }
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (some, _) = bytes.split_at(bytes.len().min(PART - self.part.len()));
        self.part.extend_from_slice(some);
        if self.part.len() == PART {
            self.send()?;
        }
        Ok(some.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        if self.part.is_empty() { Ok(()) } else { self.send() }
    }
}

/// An archive on its way to a client, as fast as the client takes it.
async fn archive(store: Arc<RaftStore>) -> Result<Snapshot, ClusterError> {
    let archive = store.archive().await.map_err(|e| ClusterError::Unavailable(format!("no copy can be made: {e}")))?;
    let (to, bytes) = mpsc::channel(QUEUE);
    let index = archive.index();
    tokio::task::spawn_blocking(move || {
        let mut parts = Parts { to, part: Vec::with_capacity(PART) };
        match archive.write(&mut parts).map_err(|e| e.to_string()).and_then(|saved| parts.flush().map(|()| saved).map_err(|e| e.to_string())) {
            Ok(saved) => tracing::info!(index = saved.index, resources = saved.resources, bytes = saved.bytes, "a copy of everything was handed out"),
            Err(error) => {
                tracing::warn!(error, "a copy of everything was not handed out whole");
                // The client sees the end of the connection; what it has is not whole, and says so.
                parts.to.blocking_send(Err(io::Error::other(error))).ok();
            }
        }
    });
    Ok(Snapshot { index, size: None, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikada_model::{Json, Key, Kind, Labels};
    use ikada_raft::Options;
    use ikada_world::{Command, Op, Put, Replicator};

    #[tokio::test]
    async fn an_archive_arrives_whole_and_a_client_that_leaves_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = RaftStore::open(Options::new(dir.path().join("data"))).await.unwrap();
        let spec = Json::from_value(&serde_json::json!({"note": "x".repeat(100_000)}));
        for n in 0..20 {
            let put = Put::new(Key::new(Kind::MeshService, "m", &format!("s{n}")), Labels::new(), spec.clone());
            store.propose(Command { id: store.new_id(), ops: vec![Op::Put(put)] }).await.unwrap();
        }
        let mut got = archive(store.clone()).await.unwrap();
        let mut whole = Vec::new();
        while let Some(part) = got.bytes.recv().await {
            whole.extend_from_slice(&part.unwrap());
        }
        let contents = ikada_raft::inspect(&mut whole.as_slice()).unwrap();
        assert_eq!((contents.index, contents.resources), (got.index, 20));
        let mut gone = archive(store.clone()).await.unwrap();
        gone.bytes.recv().await.unwrap().unwrap();
        drop(gone);
        store.shutdown().await.unwrap();
    }
}

//! What a node answers those who are not the peer they say they are.

use crate::{
    Options, RaftStore,
    net::{Io, Net, PeerIdentity, serve_connection},
    peer::{
        client::{Lane, PeerError, Peers},
        convert, proto,
    },
};
use async_trait::async_trait;
use ikada_store::{ClusterId, Identity};
use ikada_world::Replicator;
use std::{io, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

const LONG: Duration = Duration::from_secs(20);

/// Reaches one node, as somebody.
struct To(Routes, Option<PeerIdentity>);

#[async_trait]
impl Net for To {
    async fn connect(&self, _address: &str, _node: u64) -> io::Result<Io> {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        tokio::spawn(serve_connection(Box::new(theirs), self.1, self.0.clone(), CancellationToken::new()));
        Ok(Box::new(ours))
    }
}

fn peers(store: &Arc<RaftStore>, cluster: ClusterId, who: Option<u64>) -> Arc<Peers> {
    let net = To(store.peer_routes(), who.map(|node| PeerIdentity { node }));
    let peers = Peers::new(Arc::new(net), Identity { cluster, node: who.unwrap_or(9) }, LONG);
    peers.set_address(1, "somewhere:1");
    peers
}

async fn vote(peers: &Arc<Peers>, candidate: u64, node: u64) -> Result<proto::VoteResponse, PeerError> {
    let request = proto::VoteRequest { target: peers.target(node), term: 1000, candidate, last_log: None, transfer: false };
    peers.call(1, Lane::Raft, LONG, |mut client| async move { client.pre_vote(request).await }).await
}

#[tokio::test]
async fn only_the_nodes_of_this_cluster_are_answered() {
    let tmp = tempfile::tempdir().unwrap();
    let store = RaftStore::open(Options::new(tmp.path().join("a"))).await.unwrap();
    let ours = store.cluster_id();
    let term = store.status().term;
    for (who, cluster, candidate, node) in [
        // Nobody; another cluster; for another node; as another node.
        (None, ours, 9, 1),
        (Some(9), ClusterId([7; 16]), 9, 1),
        (Some(9), ours, 9, 2),
        (Some(9), ours, 8, 1),
    ] {
        let answer = vote(&peers(&store, cluster, who), candidate, node).await;
        assert!(matches!(answer, Err(PeerError::Refused(_))), "{who:?} {cluster} {candidate} {node}: {answer:?}");
    }
    let good = peers(&store, ours, Some(9));
    assert!(vote(&good, 9, 1).await.is_ok());
    assert!(good.ping(1, LONG).await.is_ok());

    // Commands and reads only for members.
    let request = proto::ProposeRequest { target: good.target(1), commands: Vec::new() };
    let answer = good.call(1, Lane::Forward, LONG, |mut client| async move { client.propose(request).await }).await;
    assert!(matches!(&answer, Err(PeerError::Refused(why)) if why.contains("not a member")), "{answer:?}");
    let request = proto::ReadIndexRequest { target: good.target(1) };
    let answer = good.call(1, Lane::Forward, LONG, |mut client| async move { client.read_index(request).await }).await;
    assert!(matches!(answer, Err(PeerError::Refused(_))), "{answer:?}");

    // A snapshot that ends early, and one that is not ours to take, change nothing.
    let world = store.world().index();
    for (last_log, parts) in [(1000, 0), (1000, 1), (0, 1)] {
        let header = proto::SnapshotHeader {
            target: good.target(1),
            term: 1000,
            leader: 9,
            last_log: Some(proto::LogId { index: last_log, term: 1 }),
            meta: bytes::Bytes::from_static(b"none"),
        };
        let header = proto::SnapshotPart { part: Some(proto::snapshot_part::Part::Header(header)) };
        let rest = proto::SnapshotPart { part: Some(proto::snapshot_part::Part::End(proto::SnapshotEnd { records: 3 })) };
        let parts: Vec<_> = std::iter::once(header).chain(std::iter::repeat_n(rest, parts)).collect();
        let answer = good
            .call(1, Lane::Snapshot, LONG, |mut client| async move { client.install_snapshot(futures::stream::iter(parts)).await })
            .await;
        // What it has is newer than the last one: the answer is its vote.
        assert_eq!(answer.is_ok(), last_log == 0, "{answer:?}");
    }
    assert_eq!((store.world().index(), store.status().term), (world, term));
    assert_eq!(std::fs::read_dir(tmp.path().join("a/snapshots")).unwrap().count(), 0);
    assert!(convert::check_target(None, Identity { cluster: ours, node: 1 }).is_err());
    store.shutdown().await.unwrap();
    // A node that stops sends everybody elsewhere.
    assert!(matches!(vote(&peers(&store, ours, Some(9)), 9, 1).await, Err(PeerError::Refused(_))));
}

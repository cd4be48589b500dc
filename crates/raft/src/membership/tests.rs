//! What a node alone says of itself and refuses. Several nodes: `tests/membership.rs`.

use super::*;
use crate::{Options, RaftStore};
use ikada_store::disk::ScriptedDisk;
use std::collections::{BTreeMap, BTreeSet};

fn member(id: u64) -> Member {
    Member { id, address: format!("h{id}:5690"), name: format!("h{id}"), wants_vote: true, format: 1 }
}

async fn alone() -> (ScriptedDisk, Arc<RaftStore>) {
    let disk = ScriptedDisk::new(1);
    let options = Options { disk: Arc::new(disk.clone()), simulated: true, ..Options::new("/data") };
    (disk, RaftStore::open(options).await.unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_node_alone_says_what_it_is() {
    let (disk, store) = alone().await;
    let status = store.status();
    assert_eq!((status.node, status.role, status.leader, status.joint), (1, Role::Leader, Some(1), false));
    assert_eq!(status.last_log, status.committed);
    assert_eq!(status.members.len(), 1);
    let me = &status.members[0];
    assert!(me.voter && me.member.id == 1);
    assert_eq!(me.progress, Some(Progress { matched: Some(status.last_log), last_ack: Some(Duration::ZERO) }));
    assert!(status.last_quorum_ack.is_some());
    assert_eq!(status.alarms, Vec::<String>::new());
    disk.fail_syncs(true);
    assert!(store.allocate_node_id().await.is_err());
    assert!(store.status().alarms.iter().any(|a| a.contains("cannot sync")), "{:?}", store.status().alarms);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_has_nothing_yet_is_asked_for_a_snapshot_and_lives() {
    let start = crate::Start::Join { cluster: ikada_store::ClusterId([1; 16]), node: 7 };
    let options = Options { disk: Arc::new(ScriptedDisk::new(1)), simulated: true, start, ..Options::new("/data") };
    let store = RaftStore::open(options).await.unwrap();
    store.trigger_snapshot().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(*store.fatal().borrow(), None);
    store.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn ids_are_allocated_once() {
    let (_disk, store) = alone().await;
    let mut ids = BTreeSet::from([1]);
    for _ in 0..5 {
        assert!(ids.insert(store.allocate_node_id().await.unwrap()));
    }
    let e = store.add_learner(member(10_000)).await.unwrap_err();
    assert!(e.to_string().contains("was not allocated"), "{e}");
    assert!(store.add_learner(member(1)).await.is_err());
    store.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_would_break_the_cluster_is_refused() {
    let (_disk, store) = alone().await;
    let id = store.allocate_node_id().await.unwrap();
    for (address, name) in [("", "a"), ("host", "a"), ("host:0", "a"), ("host:70000", "a"), (":1", "a"), ("h\n:1", "a"), ("h:1", "a\tb")] {
        let bad = Member { address: address.to_owned(), name: name.to_owned(), ..member(id) };
        assert!(matches!(store.add_learner(bad).await, Err(MembershipError::Invalid(_))), "{address:?} {name:?}");
    }
    let mut changed = store.watch_status();
    changed.mark_unchanged();
    store.add_learner(member(id)).await.unwrap();
    store.add_learner(member(id)).await.unwrap();
    changed.changed().await.unwrap();
    let other = Member { address: "other:1".to_owned(), ..member(id) };
    assert!(store.add_learner(other.clone()).await.unwrap_err().to_string().contains("is a member already"));
    store.update_member(other.clone()).await.unwrap();
    let found: Vec<MemberStatus> = store.status().members.into_iter().filter(|m| m.member.id == id).collect();
    assert_eq!(found, [MemberStatus { member: other, voter: false, progress: Some(Progress::default()) }]);

    let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
    assert_eq!(store.set_voters(set(&[]), true).await, Err(MembershipError::NoVoters));
    assert_eq!(store.set_voters(set(&[1, id]), false).await, Err(MembershipError::EvenVoters { count: 2 }));
    assert_eq!(store.set_voters(set(&[1, 9999]), true).await, Err(MembershipError::UnknownMember(9999)));
    assert_eq!(store.set_voters(set(&[1, id]), true).await, Err(MembershipError::Silent { node: id, since: None }));
    assert_eq!(store.set_voters(set(&[1]), false).await, Ok(()));
    assert!(store.transfer_leader(None).await.unwrap_err().to_string().contains("no other voter"));
    assert!(store.transfer_leader(Some(id)).await.unwrap_err().to_string().contains("has no vote"));
    assert_eq!(store.transfer_leader(Some(1)).await, Ok(1));
    assert_eq!(store.remove_member(1).await, Err(MembershipError::NoVoters));
    assert_eq!(store.remove_member(9999).await, Err(MembershipError::UnknownMember(9999)));
    store.remove_member(id).await.unwrap();
    assert_eq!(store.status().members.len(), 1);
    assert_eq!(store.update_member(member(id)).await, Err(MembershipError::UnknownMember(id)));
    for text in [MembershipError::EvenVoters { count: 4 }, MembershipError::NotLeader(Some(3)), MembershipError::NotLeader(None)] {
        assert!(!text.to_string().contains('\n') && !text.to_string().is_empty());
    }
    store.shutdown().await.unwrap();
}

/// As if the leader that began the change had died between its two steps.
#[tokio::test(start_paused = true)]
async fn a_change_that_was_begun_is_finished() {
    let (_disk, store) = alone().await;
    let voters = || BTreeSet::from([1]);
    let joint = Configuration::new(vec![voters(), voters()], BTreeMap::from([(1, NodeRecord::default())])).unwrap();
    store.raft.append_membership(joint, openraft::EntryPayload::Blank, []).await.unwrap();
    assert!(store.status().joint);
    let finished = async {
        while store.status().joint {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), finished).await.expect("it is finished");
    store.shutdown().await.unwrap();
}

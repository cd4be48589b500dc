//! Nodes come, get a vote, lead, lose it and go, while others write.

mod mesh;

use ikada_model::{Json, Key, Kind, Labels};
use ikada_raft::{MembershipError, Options, RaftStore, Role, Settings, Start, recover, restore};
use ikada_world::{Command, ProposeError, Put, Op, Replicator, World};
use mesh::{Cluster, LONG};
use std::{
    collections::BTreeSet,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

/// As in one data centre, with more patience for a machine that does other things too.
fn settings() -> Settings {
    Settings {
        heartbeat: Duration::from_millis(100),
        election: (Duration::from_millis(600), Duration::from_millis(1000)),
        proposal_deadline: Duration::from_secs(10),
        ..Settings::lan()
    }
}

fn key(n: u64) -> Key {
    Key::new(Kind::MeshTimeout, "default", &format!("t-{n:05}"))
}

async fn write(store: &Arc<RaftStore>, n: u64) -> Result<u64, ProposeError> {
    let put = Put::new(key(n), Labels::new(), Json::from_text(&format!("{{\"x\":{n}}}")).unwrap());
    Ok(store.propose(Command { id: store.new_id(), ops: vec![Op::Put(put)] }).await?.index)
}

fn has(world: &World, n: u64) -> bool {
    world.get(&key(n)).is_some()
}

fn set(ids: &[u64]) -> BTreeSet<u64> {
    ids.iter().copied().collect()
}

fn voters(store: &Arc<RaftStore>) -> BTreeSet<u64> {
    store.status().members.iter().filter(|m| m.voter).map(|m| m.member.id).collect()
}

fn members(store: &Arc<RaftStore>) -> BTreeSet<u64> {
    store.status().members.iter().map(|m| m.member.id).collect()
}

/// Repeats until it is true.
async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Removes a member as an operator's tool does: on whoever leads, again where it says.
async fn remove(cluster: &Cluster, id: u64) {
    let removed = async {
        loop {
            match cluster.leader().await.remove_member(id).await {
                Ok(()) | Err(MembershipError::UnknownMember(_)) => return,
                Err(MembershipError::NotLeader(_) | MembershipError::Busy | MembershipError::Unknown | MembershipError::Silent { .. }) => {}
                Err(e) => panic!("{e}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, removed).await.expect("it is removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn learners_follow_and_only_odd_numbers_vote() {
    let mut cluster = Cluster::of_three(settings()).await;
    let leader = cluster.leader().await;
    let three = voters(&leader);
    until("round trips to both others are measured", || async {
        let timings = leader.timings();
        timings.fsync.count > 0 && timings.peers.len() == 2 && timings.peers.iter().all(|(_, p)| p.count > 0 && p.max >= p.p50)
    })
    .await;
    let index = write(&leader, 1).await.unwrap();
    let fourth = cluster.add().await;
    cluster.applied(fourth, index).await;
    assert!(has(&cluster.store(fourth).world(), 1));
    assert_eq!(cluster.store(fourth).status().role, Role::Learner);
    // It takes writes and reads like everybody.
    write(&cluster.store(fourth), 2).await.unwrap();
    let world = cluster.store(fourth).linearizable().await.unwrap();
    assert!(has(&world, 2));

    let leader = cluster.leader().await;
    let four: BTreeSet<u64> = three.iter().copied().chain([fourth]).collect();
    assert_eq!(leader.set_voters(four.clone(), false).await, Err(MembershipError::EvenVoters { count: 4 }));
    assert_eq!(voters(&leader), three);
    until("the learner has caught up", || async {
        let status = cluster.leader().await.status();
        let learner = status.members.iter().find(|m| m.member.id == fourth).unwrap();
        learner.progress.is_some_and(|p| p.lag(status.last_log) == 0 && p.last_ack.is_some())
    })
    .await;
    leader.set_voters(four.clone(), true).await.unwrap();
    assert_eq!(voters(&leader), four);
    leader.set_voters(three.clone(), false).await.unwrap();
    assert_eq!((voters(&leader), members(&leader)), (three, four));
    let follower = cluster.follower().await;
    assert!(follower.status().members.iter().all(|m| m.progress.is_none()));
    assert_eq!(follower.add_learner(follower.status().members[0].member.clone()).await, Err(MembershipError::NotLeader(Some(leader.node_id()))));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_does_not_answer_or_lacks_entries_is_refused() {
    let mut cluster = Cluster::of_three(settings()).await;
    let leader = cluster.leader().await;
    let (fourth, fifth) = (cluster.add().await, cluster.add().await);
    let all: BTreeSet<u64> = cluster.ids().into_iter().collect();
    cluster.stop(fourth).await;
    // Within the lease it counts as one that answers.
    tokio::time::sleep(settings().derived().lease * 2).await;
    let refusal = leader.set_voters(all, false).await.unwrap_err();
    assert!(matches!(refusal, MembershipError::Silent { node, since: Some(ago) } if node == fourth && ago > settings().derived().lease));
    assert_eq!(voters(&leader).len(), 3);
    remove(&cluster, fourth).await;
    assert!(cluster.leader().await.status().members.iter().any(|m| m.member.id == fifth && !m.voter));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lead_is_handed_over_without_losing_a_write() {
    let cluster = Cluster::of_three(settings()).await;
    let ids = cluster.ids();
    let mut n = 0;
    for to in ids.iter().chain(&ids) {
        let before = cluster.leader().await;
        let new = before.transfer_leader(Some(*to)).await.unwrap();
        until("the new one leads", || async { cluster.leader().await.node_id() == new }).await;
        assert_eq!(new, *to);
        for id in &ids {
            n += 1;
            write(&cluster.store(*id), n).await.unwrap();
        }
    }
    let before = cluster.leader().await.node_id();
    let new = cluster.leader().await.transfer_leader(None).await.unwrap();
    assert_ne!(new, before);
    let world = cluster.leader().await.linearizable().await.unwrap();
    assert!((1..=n).all(|n| has(&world, n)));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_removed_hands_over_and_stays_quiet() {
    let cluster = Cluster::of_three(settings()).await;
    let old = cluster.leader().await;
    let gone = old.node_id();
    write(&old, 1).await.unwrap();
    let Err(MembershipError::NotLeader(Some(new))) = old.remove_member(gone).await else { panic!("it did not hand over") };
    assert_ne!(new, gone);
    remove(&cluster, gone).await;
    let leader = cluster.leader().await;
    assert!(!members(&leader).contains(&gone) && voters(&leader).len() == 2);
    write(&leader, 2).await.unwrap();
    let term = leader.status().term;
    // Three times the longest wait before somebody stands.
    tokio::time::sleep(settings().derived().worst_failover * 3).await;
    assert_ne!(old.status().role, Role::Leader);
    assert!(!*old.leadership().borrow());
    let status = cluster.leader().await.status();
    assert_eq!((status.term, status.leader), (term, Some(leader.node_id())), "nobody disturbed");
    write(&leader, 3).await.unwrap();
    assert!(!has(&old.world(), 3));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_removed_while_it_was_away_does_not_disturb() {
    let mut cluster = Cluster::of_three(settings()).await;
    let away = cluster.follower().await.node_id();
    cluster.mesh.isolate(away);
    remove(&cluster, away).await;
    cluster.add().await;
    let third = *cluster.ids().last().unwrap();
    let three: BTreeSet<u64> = cluster.ids().into_iter().filter(|id| *id != away).collect();
    cluster.promote(three.clone()).await;
    // It has stood for election many times by now.
    tokio::time::sleep(settings().derived().worst_failover).await;
    let leader = cluster.leader().await;
    let term = leader.status().term;
    cluster.mesh.heal();
    tokio::time::sleep(settings().derived().worst_failover * 2).await;
    write(&cluster.store(third), 1).await.unwrap();
    let now = cluster.leader().await;
    assert_eq!((now.node_id(), now.status().term, voters(&now)), (leader.node_id(), term, three));
    assert!(!has(&cluster.store(away).world(), 1));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_disk_comes_back_as_another_node() {
    let mut cluster = Cluster::of_three(settings()).await;
    for n in 0..20 {
        write(&cluster.leader().await, n).await.unwrap();
    }
    let lost = cluster.follower().await.node_id();
    cluster.stop(lost).await;
    std::fs::remove_dir_all(cluster.path(lost)).unwrap();
    write(&cluster.leader().await, 20).await.unwrap();
    let new = cluster.add().await;
    assert!(new > lost);
    remove(&cluster, lost).await;
    let three: BTreeSet<u64> = cluster.ids().into_iter().collect();
    assert!(!three.contains(&lost));
    cluster.promote(three.clone()).await;
    let index = write(&cluster.store(new), 21).await.unwrap();
    cluster.applied(new, index).await;
    let world = cluster.store(new).world();
    assert!((0..=21).all(|n| has(&world, n)));
    assert_eq!(voters(&cluster.leader().await), three);
    cluster.stop(new).await;
    cluster.restart(new).await;
    let index = write(&cluster.store(new), 22).await.unwrap();
    cluster.applied(new, index).await;
    assert_eq!(voters(&cluster.store(new)), three);
    cluster.shutdown().await;
}

/// Every node is replaced by a new one while somebody writes all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_are_replaced_and_no_acknowledged_write_is_lost() {
    let mut cluster = Cluster::of_three(settings()).await;
    let target = Arc::new(parking_lot::Mutex::new(cluster.leader().await));
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(parking_lot::Mutex::new(Vec::new())));
    let tried = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..4)
        .map(|_| {
            let (target, stop, acknowledged, tried) = (target.clone(), stop.clone(), acknowledged.clone(), tried.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let store = target.lock().clone();
                    let n = tried.fetch_add(1, Ordering::Relaxed);
                    if write(&store, n).await.is_ok() {
                        acknowledged.lock().push(n);
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
        })
        .collect();
    for old in cluster.ids() {
        let new = cluster.add().await;
        *target.lock() = cluster.store(new);
        let voting: BTreeSet<u64> = cluster.ids().into_iter().filter(|id| *id != old).collect();
        until("the new one votes for the old one", || {
            let (cluster, voting) = (&cluster, voting.clone());
            async move { cluster.leader().await.set_voters(voting, false).await.is_ok() }
        })
        .await;
        remove(&cluster, old).await;
        cluster.stop(old).await;
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let acknowledged = acknowledged.lock().clone();
    assert!(acknowledged.len() > 20, "{} writes", acknowledged.len());
    let leader = cluster.leader().await;
    let world = leader.linearizable().await.unwrap();
    for n in acknowledged {
        assert!(has(&world, n), "acknowledged write {n} is lost");
    }
    assert!(voters(&leader).is_disjoint(&set(&[1])) && voters(&leader).len() == 3);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_of_three_becomes_a_cluster_of_its_own() {
    let mut cluster = Cluster::of_three(settings()).await;
    let mut last = 0;
    for n in 0..30 {
        last = write(&cluster.leader().await, n).await.unwrap();
    }
    let (former, survivor) = (cluster.leader().await.cluster_id(), cluster.follower().await.node_id());
    cluster.applied(survivor, last).await;
    for id in cluster.ids() {
        cluster.stop(id).await;
    }
    let start = Start::Create { address: "node-1:5690".to_owned(), name: "one".to_owned() };
    let options = Options { start, ..Options::new(cluster.path(survivor)) };
    let found = options.clone();
    let recovered = tokio::task::spawn_blocking(move || recover(&found)).await.unwrap().unwrap();
    assert_eq!((recovered.former.node, recovered.former.cluster, recovered.resources), (survivor, former, 30));
    assert!(recovered.index > last && recovered.cluster != former);
    let store = RaftStore::open(options).await.unwrap();
    assert_eq!((store.cluster_id(), store.node_id(), voters(&store)), (recovered.cluster, 1, set(&[1])));
    assert!((0..30).all(|n| has(&store.world(), n)));
    assert!(write(&store, 30).await.unwrap() > last);
    store.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_cluster_grows_and_moves() {
    let mut cluster = Cluster::of_three(settings()).await;
    let mut last = 0;
    for n in 0..30 {
        last = write(&cluster.leader().await, n).await.unwrap();
    }
    let mut archive = Vec::new();
    let saved = cluster.follower().await.save(&mut archive).await.unwrap();
    assert!(saved.index >= last && saved.resources == 30);
    let former = cluster.leader().await.cluster_id();
    for id in cluster.ids() {
        cluster.stop(id).await;
        std::fs::remove_dir_all(cluster.path(id)).unwrap();
    }
    let start = Start::Create { address: "node-1:5690".to_owned(), name: "one".to_owned() };
    let options = Options { start, ..Options::new(cluster.path(1)) };
    let restored = tokio::task::spawn_blocking(move || restore(&mut archive.as_slice(), &options)).await.unwrap().unwrap();
    cluster.restart(1).await;
    assert!(restored.cluster == cluster.leader().await.cluster_id() && restored.cluster != former);
    // The log begins after the archive: whoever joins gets a snapshot.
    let (second, third) = (cluster.add().await, cluster.add().await);
    assert!(second > last && third > second);
    let index = write(&cluster.store(second), 30).await.unwrap();
    for id in cluster.ids() {
        cluster.applied(id, index).await;
        let world = cluster.store(id).world();
        assert!((0..=30).all(|n| has(&world, n)), "node {id}");
    }
    // The only voter gives its vote to another one, and everything moves there.
    until("the second votes alone", || async { cluster.leader().await.set_voters(set(&[second]), false).await.is_ok() }).await;
    until("the second leads", || async { cluster.leader().await.node_id() == second }).await;
    remove(&cluster, 1).await;
    cluster.stop(1).await;
    write(&cluster.store(third), 31).await.unwrap();
    let leader = cluster.leader().await;
    assert_eq!((voters(&leader), members(&leader)), (set(&[second]), set(&[second, third])));
    assert!((0..=31).all(|n| has(&leader.world(), n)));
    cluster.shutdown().await;
}

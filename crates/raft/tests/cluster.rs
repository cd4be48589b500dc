//! Three nodes in one process.

mod mesh;

use ikada_model::{Json, Key, Kind, Labels};
use ikada_raft::{RaftStore, Settings};
use ikada_world::{Applied, Command, Expect, Op, ProposeError, Put, Replicator, World};
use mesh::{Cluster, LONG};
use std::{
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

fn key(name: &str) -> Key {
    Key::new(Kind::MeshTimeout, "default", name)
}

fn put(name: &str, value: u64) -> Put {
    Put::new(key(name), Labels::new(), Json::from_text(&format!("{{\"x\":{value}}}")).unwrap())
}

fn command(store: &RaftStore, put: Put) -> Command {
    Command { id: store.new_id(), ops: vec![Op::Put(put)] }
}

async fn write(store: &RaftStore, name: &str, value: u64) -> Result<Applied, ProposeError> {
    store.propose(command(store, put(name, value))).await
}

fn value(world: &World, name: &str) -> Option<u64> {
    world.get(&key(name)).and_then(|r| r.spec.value()["x"].as_u64())
}

/// Everything that must be the same on every node.
fn facts(world: &World) -> String {
    let resources: Vec<_> = world.resource_records().collect();
    let outcomes: Vec<_> = world.outcome_records().collect();
    format!("{} {} {resources:?} {outcomes:?}", world.revision(), world.status_revision())
}

async fn all_the_same(cluster: &Cluster) {
    let index = cluster.leader().await.world().index();
    let mut seen: Option<String> = None;
    for id in cluster.ids() {
        cluster.applied(id, index).await;
        let facts = facts(&cluster.store(id).world());
        assert_eq!(*seen.get_or_insert_with(|| facts.clone()), facts, "node {id}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_takes_writes_and_sees_those_of_others() {
    let cluster = Cluster::of_three(settings()).await;
    let mut value_now = 0;
    for round in 0..3 {
        for id in cluster.ids() {
            value_now = round * 10 + id;
            let store = cluster.store(id);
            let applied = write(&store, "a", value_now).await.unwrap();
            // Its own write at once, everybody's by a linearizable read.
            assert!(store.world().index() >= applied.index);
            assert_eq!(value(&store.world(), "a"), Some(value_now));
            for other in cluster.ids() {
                let world = cluster.store(other).linearizable().await.unwrap();
                assert_eq!(value(&world, "a"), Some(value_now), "written on {id}, read on {other}");
            }
        }
    }
    // A rejection is the same everywhere.
    for id in cluster.ids() {
        let store = cluster.store(id);
        let refused = Put { expect: Expect::Absent, ..put("a", 1) };
        assert!(matches!(store.propose(command(&store, refused)).await, Err(ProposeError::Rejected(_))), "node {id}");
    }
    // Many at a time, from everywhere.
    let mut tasks = Vec::new();
    for id in cluster.ids() {
        for n in 0..40 {
            let store = cluster.store(id);
            tasks.push(tokio::spawn(async move {
                write(&store, &format!("n-{id}-{n}"), n).await.unwrap();
                store.linearizable().await.unwrap();
            }));
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
    let world = cluster.follower().await.linearizable().await.unwrap();
    assert_eq!(world.list(Kind::MeshTimeout).count(), 121);
    assert_eq!(value(&world, "a"), Some(value_now));
    for id in cluster.ids() {
        let mut ready = cluster.store(id).ready();
        tokio::time::timeout(LONG, ready.wait_for(|r| *r)).await.unwrap().unwrap();
    }
    all_the_same(&cluster).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_stops_and_the_others_go_on() {
    let mut cluster = Cluster::of_three(settings()).await;
    let old = cluster.leader().await.node_id();
    let follower = cluster.follower().await;
    write(&follower, "a", 1).await.unwrap();
    cluster.stop(old).await;
    // Its clients wait for the next leader.
    write(&follower, "a", 2).await.unwrap();
    for id in cluster.ids() {
        assert_eq!(value(&cluster.store(id).linearizable().await.unwrap(), "a"), Some(2));
    }
    for n in 0..50 {
        write(&follower, "b", n).await.unwrap();
    }
    // Comes back, and catches up by log.
    cluster.restart(old).await;
    let world = cluster.store(old).linearizable().await.unwrap();
    assert_eq!((value(&world, "a"), value(&world, "b")), (Some(2), Some(49)));
    write(&cluster.store(old), "c", 7).await.unwrap();
    all_the_same(&cluster).await;
    // All of them stop and start.
    for id in cluster.ids() {
        cluster.stop(id).await;
        cluster.restart(id).await;
    }
    let world = cluster.follower().await.linearizable().await.unwrap();
    assert_eq!(value(&world, "c"), Some(7));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_too_long_gets_a_snapshot() {
    let short = Settings { snapshot_every: 100, keep_entries: 20, segment_bytes: 64 << 10, ..settings() };
    let mut cluster = Cluster::of_three(short).await;
    let away = cluster.follower().await.node_id();
    write(&cluster.store(away), "before", 1).await.unwrap();
    cluster.stop(away).await;
    let leader = cluster.leader().await;
    for n in 0..400 {
        write(&leader, &format!("n-{}", n % 50), n).await.unwrap();
    }
    let snapshot = async {
        while leader.status().snapshot.is_none_or(|s| s < 300) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LONG, snapshot).await.unwrap();
    cluster.restart(away).await;
    let mut changes = cluster.store(away).subscribe();
    let world = cluster.store(away).linearizable().await.unwrap();
    assert_eq!(value(&world, "n-49"), Some(399));
    assert!(cluster.store(away).status().snapshot.is_some());
    // Whoever follows the node hears what the snapshot changed.
    let heard = tokio::time::timeout(LONG, changes.recv()).await.unwrap().unwrap();
    assert!(!heard.policy.is_empty());
    // Entries behind the snapshot, and a restart on it.
    for n in 0..30 {
        write(&cluster.store(away), "after", n).await.unwrap();
    }
    cluster.stop(away).await;
    cluster.restart(away).await;
    let world = cluster.store(away).linearizable().await.unwrap();
    assert_eq!((value(&world, "after"), value(&world, "n-49"), value(&world, "before")), (Some(29), Some(399), Some(1)));
    // A new node too.
    let fourth = cluster.add().await;
    let world = cluster.store(fourth).linearizable().await.unwrap();
    assert_eq!(value(&world, "after"), Some(29));
    assert!(cluster.store(fourth).status().snapshot.is_some());
    write(&cluster.store(fourth), "fourth", 4).await.unwrap();
    all_the_same(&cluster).await;
    cluster.shutdown().await;
}

/// Clients write counters and read them on every node while the leader is cut off again and again. Every read is as new as every write
/// and read that ended before it began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_loses_no_acknowledged_write_and_shows_no_old_one() {
    let cluster = Arc::new(Cluster::of_three(Settings { proposal_deadline: Duration::from_secs(3), ..settings() }).await);
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for id in cluster.ids() {
        let (store, stop, name) = (cluster.store(id), stop.clone(), format!("of-{id}"));
        let newest = Arc::new(AtomicU64::new(0));
        let writer = (store.clone(), stop.clone(), name.clone(), newest.clone());
        clients.push(tokio::spawn(async move {
            let (store, stop, name, newest) = writer;
            let mut done = 0;
            for n in 1.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                // Unknown writes are tried again under the same id: in the end each is done once.
                let command = command(&store, put(&name, n));
                loop {
                    match store.propose(command.clone()).await {
                        Ok(_) => break,
                        Err(ProposeError::Unknown | ProposeError::Unavailable(_)) => {}
                        Err(e) => panic!("{e}"),
                    }
                }
                newest.store(n, Ordering::SeqCst);
                done = n;
            }
            done
        }));
        for reader in cluster.ids() {
            let (store, stop, name, newest) = (cluster.store(reader), stop.clone(), name.clone(), newest.clone());
            clients.push(tokio::spawn(async move {
                let mut reads = 0;
                while !stop.load(Ordering::Relaxed) {
                    let least = newest.load(Ordering::SeqCst);
                    if let Ok(world) = store.linearizable().await {
                        let found = value(&world, &name).unwrap_or(0);
                        assert!(found >= least, "node {reader} shows {name} = {found}, {least} was acknowledged before");
                        reads += 1;
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                reads
            }));
        }
    }
    for _ in 0..3 {
        let leader = cluster.leader().await.node_id();
        cluster.mesh.isolate(leader);
        // The others elect somebody and go on.
        let other = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
        write(&cluster.store(other), "meanwhile", leader).await.unwrap();
        // The one that is alone answers nothing that could be old.
        let alone = cluster.store(leader);
        let read = alone.linearizable().await.map(|w| value(&w, "meanwhile"));
        assert!(matches!(read, Err(ProposeError::Unavailable(_))), "{read:?}");
        assert!(matches!(write(&alone, "lost", 1).await, Err(ProposeError::Unknown | ProposeError::Unavailable(_))));
        cluster.mesh.heal();
        let index = cluster.leader().await.world().index();
        cluster.applied(leader, index).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut counts = Vec::new();
    for client in clients {
        counts.push(tokio::time::timeout(LONG, client).await.unwrap().unwrap());
    }
    assert!(counts.iter().all(|c| *c > 10), "{counts:?}");
    for (at, id) in cluster.ids().into_iter().enumerate() {
        let world = cluster.store(id).linearizable().await.unwrap();
        for (other, name) in cluster.ids().into_iter().enumerate().map(|(i, id)| (counts[i * 4], format!("of-{id}"))) {
            assert_eq!(value(&world, &name), Some(other), "on node {at}");
        }
    }
    all_the_same(&cluster).await;
    let Ok(cluster) = Arc::try_unwrap(cluster) else { panic!("clients are gone") };
    cluster.shutdown().await;
}

/// A write whose answer never came is done once, however often it is tried and whoever leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_is_tried_again_after_a_failover_is_done_once() {
    let cluster = Cluster::of_three(Settings { proposal_deadline: Duration::from_secs(3), ..settings() }).await;
    let leader = cluster.leader().await;
    let first = Command { id: leader.new_id(), ops: vec![Op::Put(Put { expect: Expect::Absent, ..put("once", 1) })] };
    let done = leader.propose(first.clone()).await.unwrap();
    // The answer got lost; the client goes elsewhere, to a new leader.
    cluster.mesh.isolate(leader.node_id());
    let other = cluster.ids().into_iter().find(|id| *id != leader.node_id()).unwrap();
    let again = cluster.store(other).propose(first.clone()).await.unwrap();
    assert_eq!(again, done);
    // One that only the old leader had in its log, and that is tried on the new one.
    let second = Command { id: leader.new_id(), ops: vec![Op::Put(Put { expect: Expect::Absent, ..put("twice", 1) })] };
    assert!(matches!(leader.propose(second.clone()).await, Err(ProposeError::Unknown | ProposeError::Unavailable(_))));
    let done = cluster.store(other).propose(second.clone()).await.unwrap();
    cluster.mesh.heal();
    cluster.applied(leader.node_id(), done.index).await;
    assert_eq!(leader.propose(second).await.unwrap(), done);
    assert_eq!(leader.propose(first).await.unwrap(), again);
    all_the_same(&cluster).await;
    cluster.shutdown().await;
}

/// Heartbeats alone keep every node in contact, so nothing needs to be written for local reads to be answered; without them contact ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_loses_contact_while_nothing_happens() {
    let cluster = Cluster::of_three(settings()).await;
    let leader = cluster.leader().await.node_id();
    for id in cluster.ids() {
        let mut ready = cluster.store(id).ready();
        tokio::time::timeout(LONG, ready.wait_for(|r| *r)).await.unwrap().unwrap();
    }
    // Time for it to end, if nothing kept it.
    for _ in 0..100 {
        tokio::time::sleep(settings().election.1 / 50).await;
        for id in cluster.ids() {
            let contact = cluster.store(id).contact();
            assert!(contact.is_recent(), "node {id}: {contact:?}");
        }
    }
    cluster.mesh.isolate(leader);
    let lost = async {
        let others = |c: ikada_world::Contact| c.is_recent() && c.leader != Some(leader);
        while cluster.store(leader).contact().is_recent() || !cluster.ids().iter().all(|id| *id == leader || others(cluster.store(*id).contact())) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LONG, lost).await.unwrap();
    cluster.mesh.heal();
    cluster.shutdown().await;
}

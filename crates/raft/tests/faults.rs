//! The whole node on a disk that loses power, fills up and fails.

use ikada_model::{Json, Key, Kind, Labels};
use ikada_raft::{OpenError, Options, Profile, RaftStore, Settings};
use ikada_store::disk::{Disk, ScriptedDisk};
use ikada_world::{Applied, Command, Expect, Op, ProposeError, Put, Replicator};
use std::{path::Path, sync::Arc, time::Duration};

async fn open(disk: &ScriptedDisk) -> Result<Arc<RaftStore>, OpenError> {
    let settings = Settings { snapshot_every: 6, keep_entries: 2, segment_bytes: 3 << 10, ..Settings::lan() };
    let options = Options { disk: Arc::new(disk.clone()), profile: Profile::Custom(settings), simulated: true, ..Options::new("/data") };
    RaftStore::open(options).await
}

fn key(n: u64) -> Key {
    Key::new(Kind::MeshTimeout, "default", &format!("t-{n:04}"))
}

async fn write(store: &RaftStore, n: u64, size: usize) -> Result<Applied, ProposeError> {
    let spec = Json::from_text(&format!("{{\"x\":\"{}\"}}", "y".repeat(size))).unwrap();
    let put = Put { expect: Expect::Absent, ..Put::new(key(n), Labels::new(), spec) };
    let mut id = [0; 16];
    id[..8].copy_from_slice(&n.to_le_bytes());
    store.propose(Command { id, ops: vec![Op::Put(put)] }).await
}

/// Lets everything that still runs end: a node that lost its disk ends by itself.
async fn drop_store(store: Arc<RaftStore>) {
    store.shutdown().await.ok();
    drop(store);
    tokio::task::yield_now().await;
}

#[tokio::test]
async fn power_loss_at_every_operation_loses_no_acknowledged_write() {
    let mut longest = 0;
    for seed in 0..2u64 {
        let mut stop = 0;
        loop {
            let disk = ScriptedDisk::new(seed * 7919 + stop);
            disk.lose_power_after(stop);
            let mut acknowledged = Vec::new();
            let mut done = false;
            // The first life ends somewhere; the second one ends too, the third goes on.
            for life in 0..3u64 {
                match open(&disk).await {
                    Ok(store) => {
                        let world = store.world();
                        for n in &acknowledged {
                            assert!(
                                world.get(&key(*n)).is_some(),
                                "seed {seed} stop {stop} life {life}: write {n} of {acknowledged:?} is missing"
                            );
                        }
                        let count = if life == 0 { 16 } else { 4 };
                        for n in life * 100..life * 100 + count {
                            match write(&store, n, (n as usize * 53) % 600).await {
                                Ok(_) => acknowledged.push(n),
                                Err(ProposeError::Rejected(r)) => panic!("{r}"),
                                Err(_) => break,
                            }
                        }
                        done |= life == 0 && acknowledged.len() == 16;
                        drop_store(store).await;
                    }
                    Err(e) => assert!(life < 2, "seed {seed} stop {stop} life {life}: {e}"),
                }
                disk.power_cycle();
                if life == 0 {
                    disk.lose_power_after(stop / 2 + 3);
                }
            }
            if done {
                break;
            }
            longest = longest.max(stop);
            stop += 1 + seed * 2;
        }
    }
    assert!(longest > 60, "the power went off at {longest} different operations");
}

#[tokio::test]
async fn a_full_disk_is_read_only_and_writes_resume_by_themselves() {
    let disk = ScriptedDisk::new(1);
    let store = open(&disk).await.unwrap();
    for n in 0..10 {
        write(&store, n, 500).await.unwrap();
    }
    disk.set_capacity(Some(disk.used()));
    let mut n = 10;
    let message = loop {
        match write(&store, n, 500).await {
            Ok(_) => n += 1,
            Err(ProposeError::Unavailable(message)) => break message,
            Err(e) => panic!("{e}"),
        }
    };
    assert!(message.contains("no space left on the disk that holds /data"), "{message}");
    assert!(store.fatal().borrow().is_none());
    assert!(*store.leadership().borrow());
    assert_eq!(store.linearizable().await.unwrap().len() as u64, n, "reads go on");
    assert!(matches!(write(&store, n, 500).await, Err(ProposeError::Unavailable(_))));
    let alarms = store.status().alarms;
    assert!(alarms.iter().any(|a| a.contains("no space left")), "{alarms:?}");
    disk.set_capacity(None);
    write(&store, n, 500).await.unwrap();
    assert_eq!(store.status().alarms, [""; 0], "the alarm ends by itself");
    store.shutdown().await.unwrap();
    drop(store);
    disk.power_cycle();
    assert_eq!(open(&disk).await.unwrap().world().len() as u64, n + 1);
}

#[tokio::test]
async fn writes_that_were_on_their_way_to_a_full_disk_are_done_when_there_is_space() {
    let disk = ScriptedDisk::new(1);
    let store = open(&disk).await.unwrap();
    write(&store, 0, 10).await.unwrap();
    disk.set_capacity(Some(disk.used()));
    let writes = (1..40).map(|n| {
        let store = store.clone();
        tokio::spawn(async move { (n, write(&store, n, 3000).await) })
    });
    let writes: Vec<_> = writes.collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    disk.set_capacity(None);
    let mut done = 0;
    for task in writes {
        match task.await.unwrap() {
            (n, Ok(_)) => {
                assert!(store.world().get(&key(n)).is_some());
                done += 1;
            }
            (_, Err(ProposeError::Unavailable(message))) => assert!(message.contains("no space left"), "{message}"),
            (n, Err(e)) => panic!("write {n}: {e}"),
        }
    }
    assert!(done > 3, "{done} were accepted");
    write(&store, 100, 10).await.unwrap();
    store.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_failed_sync_takes_the_node_out_of_service() {
    let disk = ScriptedDisk::new(1);
    let store = open(&disk).await.unwrap();
    let mut fatal = store.fatal();
    let mut leads = store.leadership();
    write(&store, 0, 10).await.unwrap();
    disk.fail_syncs(true);
    assert!(write(&store, 1, 10).await.is_err(), "not durable, not acknowledged");
    let reason = fatal.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert!(reason.0.contains("cannot sync /data/log/") && !reason.0.contains('\n'), "{reason}");
    leads.wait_for(|l| !l).await.unwrap();
    disk.fail_syncs(false);
    let Err(ProposeError::Unavailable(message)) = write(&store, 2, 10).await else { panic!("it takes writes again") };
    assert_eq!(message, reason.0);
    assert_eq!(store.shutdown().await, Err(reason));
    drop(store);
    disk.process_exit();
    let store = open(&disk).await.unwrap();
    assert!(store.world().get(&key(0)).is_some());
    write(&store, 3, 10).await.unwrap();
    store.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_cluster_that_was_not_finished_is_finished() {
    let disk = ScriptedDisk::new(1);
    let store = open(&disk).await.unwrap();
    let cluster = store.cluster_id();
    store.shutdown().await.unwrap();
    drop(store);
    disk.process_exit();
    // As if the process had died right after it made the directory.
    for name in disk.list(Path::new("/data/log")).unwrap() {
        disk.remove_file(&Path::new("/data/log").join(name)).unwrap();
    }
    let store = open(&disk).await.unwrap();
    assert_eq!(store.cluster_id(), cluster);
    write(&store, 0, 10).await.unwrap();
    store.shutdown().await.unwrap();
}

#[tokio::test]
async fn concurrent_writes_share_a_sync() {
    let disk = ScriptedDisk::new(1);
    let settings = Settings { segment_bytes: 1 << 20, ..Settings::lan() };
    let options = Options { disk: Arc::new(disk.clone()), profile: Profile::Custom(settings), simulated: true, ..Options::new("/data") };
    let store = RaftStore::open(options).await.unwrap();
    write(&store, 0, 10).await.unwrap();
    let before = disk.operations();
    for n in 1..=20 {
        write(&store, n, 10).await.unwrap();
    }
    let alone = disk.operations() - before;
    let before = disk.operations();
    let writes = (21..=340).map(|n| {
        let store = store.clone();
        async move { write(&store, n, 10).await }
    });
    futures::future::try_join_all(writes).await.unwrap();
    let together = disk.operations() - before;
    assert!(alone >= 40, "a write and a sync for each of 20: {alone}");
    assert!(together < 160, "320 writes at once took {together} operations of the disk");
    store.shutdown().await.unwrap();
}

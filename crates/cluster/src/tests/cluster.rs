use super::*;
use crate::{ClusterError, NodeRole};

/// Three nodes that all have a vote.
async fn three(lab: &mut Lab) -> Vec<Arc<ClusterNode>> {
    let a = lab.start("a").await;
    let made = token(&a, 2).await;
    let b = lab.join("b", &made).await;
    let c = lab.join("c", &made).await;
    status_is(&a, "three voters", |s| s.health.healthy && s.health.voters == 3).await;
    vec![a, b, c]
}

async fn stop_all(nodes: &[Arc<ClusterNode>]) {
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}

async fn has(node: &ClusterNode, name: &str) -> bool {
    node.store().linearizable().await.is_ok_and(|w| w.get(&key(name)).is_some())
}

fn follower<'a>(nodes: &'a [Arc<ClusterNode>], status: &ClusterStatus) -> &'a Arc<ClusterNode> {
    nodes.iter().find(|n| Some(n.store().node_id()) != status.leader).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_write_restart_and_go_on() {
    let mut lab = Lab::new();
    let nodes = three(&mut lab).await;
    for (n, node) in nodes.iter().enumerate() {
        write(node, &format!("t-{n}")).await;
        for other in &nodes {
            assert!(has(other, &format!("t-{n}")).await);
        }
    }
    let seen = nodes[2].status().await.unwrap();
    assert_eq!((seen.members.len(), seen.health.tolerates, seen.node), (3, 1, nodes[2].store().node_id()));
    assert!(seen.members.iter().filter(|m| m.id != seen.node).all(|m| m.round_trip_ms.is_some()), "{seen:#?}");
    // Any node does what only the leader can.
    let made = nodes[1].create_join_token(HOUR, false, 1).await.unwrap();
    assert_eq!(made.addresses.len(), 3);
    let to = follower(&nodes, &seen).store().node_id();
    assert_eq!(nodes[0].transfer_leader(Some(to)).await.unwrap(), to);
    let report = nodes[2].tune().await.unwrap();
    assert!(report.measured.iter().all(|m| m.fsync_p99_ms.is_some() && m.round_trip_p99_ms.is_some()), "{report:#?}");

    stop_all(&nodes).await;
    drop(nodes);
    let (a, b, c) = (lab.options("a"), lab.options("b"), lab.options("c"));
    let (a, b, c) = tokio::join!(start(a), start(b), start(c));
    let nodes = [a.unwrap(), b.unwrap(), c.unwrap()];
    let again = status_is(&nodes[1], "a whole cluster", |s| s.health.healthy).await;
    assert_eq!(again.cluster, seen.cluster);
    write(&nodes[2], "after").await;
    assert!(has(&nodes[0], "after").await && has(&nodes[0], "t-1").await);

    // One dies; the other two go on, and say so.
    let dead = follower(&nodes, &again).clone();
    dead.shutdown().await.unwrap();
    let alive: Vec<_> = nodes.iter().filter(|n| !Arc::ptr_eq(n, &dead)).cloned().collect();
    write(&alive[0], "without").await;
    let s = status_is(&alive[1], "the dead node", |s| s.health.reachable_voters == 2).await;
    assert!(s.health.writable && !s.health.healthy && s.health.tolerates == 0 && s.warnings.len() == 1, "{s:#?}");
    // Removing a living one would end the cluster.
    let other = alive.iter().map(|n| n.store().node_id()).find(|id| Some(*id) != s.leader).unwrap();
    let e = alive[0].remove(other, false).await.unwrap_err();
    assert!(matches!(&e, ClusterError::Refused { forcible: true, .. }), "{e:?}");
    stop_all(&alive).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_is_removed_and_a_learner_takes_its_vote() {
    let mut lab = Lab::new();
    let nodes = three(&mut lab).await;
    let leader = nodes[0].status().await.unwrap().leader.unwrap();
    let (gone, rest): (Vec<_>, Vec<_>) = nodes.into_iter().partition(|n| n.store().node_id() == leader);
    let e = rest[0].remove(leader, false).await.unwrap_err();
    assert!(matches!(&e, ClusterError::Refused { message, forcible: true } if message.contains("another node join first")), "{e:?}");
    assert!(matches!(rest[0].remove(9999, false).await, Err(ClusterError::NotFound(_))));
    let made = token(&rest[1], 1).await;
    let d = lab.join("d", &made).await;
    let fourth = d.store().node_id();
    let waits = |s: &ClusterStatus| s.members.iter().any(|m| m.id == fourth && m.lag == Some(0) && m.reachable);
    let s = status_is(&d, "a learner that has caught up", waits).await;
    assert!(s.warnings.iter().any(|w| w.contains("one more node")), "{s:#?}");
    let e = rest[0].promote(fourth, false).await.unwrap_err();
    assert!(matches!(&e, ClusterError::Refused { forcible: true, .. }), "{e:?}");

    rest[0].remove(leader, false).await.unwrap();
    let s = status_is(&rest[1], "three voters again", |s| s.health.healthy && s.health.voters == 3 && s.members.len() == 3).await;
    assert!(s.leader != Some(leader) && s.members.iter().any(|m| m.id == fourth && m.voter), "{s:#?}");
    write(&d, "t").await;

    // Who was removed hears it, stops, and stays out.
    let mut ended = gone[0].ended();
    let why = tokio::time::timeout(PATIENCE, ended.wait_for(Option::is_some)).await.expect("it is told").unwrap().clone().unwrap();
    assert!(why.contains("was removed") && why.contains("--join-token") && !why.contains('\n'), "{why}");
    gone[0].shutdown().await.ok();
    let name = lab.ports.iter().find(|(_, port)| **port == gone[0].listening().port()).unwrap().0.clone();
    drop(gone);
    let e = start(lab.options(&name)).await.err().unwrap();
    assert!(matches!(e, StartError::Removed(_)) && one_line(&e).contains("was removed"), "{e}");
    let all = [rest, vec![d]].concat();
    stop_all(&all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_that_was_away_learns_it_at_start() {
    let mut lab = Lab::new();
    let a = lab.start("a").await;
    let made = a.create_join_token(HOUR, false, 1).await.unwrap();
    let b = lab.join("b", &made).await;
    let id = b.store().node_id();
    status_is(&a, "a learner", |s| s.members.iter().any(|m| m.id == id && m.lag == Some(0) && m.role == NodeRole::Learner)).await;
    let mine = lab.peer_dir("b").credentials().unwrap().unwrap();
    b.shutdown().await.unwrap();
    drop(b);
    a.remove(id, false).await.unwrap();
    // Its certificate is good still; it is refused by name.
    let e = hostile::asks(&mine, &a, 1).await.unwrap_err();
    assert!(e.contains(&format!("node {id} was removed")), "{e}");
    let b = lab.start("b").await;
    let mut ended = b.ended();
    assert!(tokio::time::timeout(PATIENCE, ended.wait_for(Option::is_some)).await.is_ok());
    b.shutdown().await.ok();
    a.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_disk_comes_back_as_a_new_node() {
    let mut lab = Lab::new();
    let nodes = three(&mut lab).await;
    write(&nodes[0], "before").await;
    let old = nodes[2].store().node_id();
    nodes[2].shutdown().await.unwrap();
    std::fs::remove_dir_all(lab.dir("c")).unwrap();
    let c = lab.join("c", &token(&nodes[0], 1).await).await;
    let new = c.store().node_id();
    assert!(new > old);
    let replaced = |s: &ClusterStatus| s.warnings.iter().any(|w| w.contains(&format!("replaced by node {new}")));
    status_is(&nodes[1], "the twin", |s| replaced(s) && s.members.iter().any(|m| m.id == new && m.lag == Some(0))).await;
    nodes[1].remove(old, false).await.unwrap();
    let s = status_is(&c, "three voters", |s| s.health.healthy && s.health.voters == 3).await;
    assert!(s.members.iter().all(|m| m.id != old) && s.warnings.is_empty(), "{s:#?}");
    assert!(has(&c, "before").await);
    stop_all(&[nodes[0].clone(), nodes[1].clone(), c]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_moves_to_another_address() {
    let mut lab = Lab::new();
    let nodes = three(&mut lab).await;
    let s = nodes[0].status().await.unwrap();
    let moves = follower(&nodes, &s).clone();
    let (id, name) = (moves.store().node_id(), s.members.iter().find(|m| m.id == moves.store().node_id()).unwrap().name.clone());
    moves.shutdown().await.unwrap();
    let rest: Vec<_> = nodes.iter().filter(|n| !Arc::ptr_eq(n, &moves)).cloned().collect();
    drop((moves, nodes));
    lab.ports.insert(name.clone(), free_port());
    let address = format!("127.0.0.1:{}", lab.ports[&name]);
    let moved = lab.start(&name).await;
    status_is(&rest[0], "the new address", |s| s.health.healthy && s.members.iter().any(|m| m.id == id && m.address == address)).await;
    write(&moved, "t").await;
    stop_all(&[rest[0].clone(), rest[1].clone(), moved]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_while_all_run_and_after_all_have_expired() {
    let mut lab = Lab::new();
    lab.life = Duration::from_secs(6);
    let nodes = three(&mut lab).await;
    let ends = |nodes: &[Arc<ClusterNode>]| nodes.iter().map(|n| n.shared.tls.validity().unwrap().not_after).collect::<Vec<_>>();
    let first = ends(&nodes);
    eventually("a renewal on every node", || async { ends(&nodes).iter().zip(&first).all(|(now, then)| now > then) }).await;
    let last = first.into_iter().max().unwrap();
    eventually("the end of the first certificates", || async { SystemTime::now() > last }).await;
    // Every status makes new connections.
    status_is(&nodes[1], "a whole cluster", |s| s.health.healthy && s.warnings.is_empty()).await;
    write(&nodes[2], "t").await;
    stop_all(&nodes).await;
    drop(nodes);
    lab.life = crate::CERTIFICATE_LIFE;
    lab.clock.forward(crate::CERTIFICATE_LIFE * 3);
    let (a, b, c) = (lab.options("a"), lab.options("b"), lab.options("c"));
    let (a, b, c) = tokio::join!(start(a), start(b), start(c));
    let nodes = [a.unwrap(), b.unwrap(), c.unwrap()];
    status_is(&nodes[0], "a whole cluster", |s| s.health.healthy && s.warnings.is_empty()).await;
    assert!(has(&nodes[1], "t").await);
    stop_all(&nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn out_of_a_lost_majority_a_new_cluster_grows() {
    let mut lab = Lab::new();
    let nodes = three(&mut lab).await;
    write(&nodes[0], "before").await;
    let former = nodes[0].status().await.unwrap().cluster;
    let old_token = token(&nodes[0], 1).await;
    assert!(has(&nodes[2], "before").await);
    stop_all(&nodes).await;
    drop(nodes);
    for lost in ["a", "b"] {
        std::fs::remove_dir_all(lab.dir(lost)).unwrap();
    }
    // Even where the node had been removed before.
    lab.peer_dir("c").set_removed(lab.peer_dir("c").credentials().unwrap().unwrap().name, "removed").unwrap();
    let e = start(lab.options("c")).await.err().unwrap();
    assert!(matches!(e, StartError::Removed(_)), "{e}");
    let mut options = lab.options("c");
    options.raft.start = ikada_raft::Start::Create { address: options.advertise.clone(), name: options.name.clone() };
    ikada_raft::recover(&options.raft).unwrap();

    let c = lab.start("c").await;
    let s = c.status().await.unwrap();
    assert!(s.cluster != former && s.health.healthy && s.members.len() == 1 && s.warnings.is_empty(), "{s:#?}");
    assert!(has(&c, "before").await && c.join_tokens().await.unwrap().is_empty());
    let e = lab.try_join("a", vec![s.members[0].address.clone()], &old_token.token).await.err();
    assert!(e.is_some_and(|e| one_line(&e).contains("cluster")));
    let made = token(&c, 2).await;
    let a = lab.join("a", &made).await;
    let b = lab.join("b", &made).await;
    status_is(&a, "three voters", |s| s.health.healthy && s.health.voters == 3).await;
    assert!(has(&b, "before").await);
    stop_all(&[a, b, c]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_stays_one_until_it_is_promoted() {
    let mut lab = Lab::new();
    let a = lab.start("a").await;
    // Two may vote; one of them does not want to.
    let made = token(&a, 3).await;
    let b = lab.join("b", &made).await;
    let mut options = lab.options("c");
    options.join = Some(Join { addresses: made.addresses.clone(), token: made.token.clone(), learner: true });
    let c = start(options).await.unwrap();
    let id = c.store().node_id();
    let ready = |s: &ClusterStatus| s.health.healthy && s.members.iter().all(|m| m.lag == Some(0));
    let s = status_is(&b, "two learners", ready).await;
    assert_eq!(s.members.iter().filter(|m| m.wants_vote).count(), 2);
    let e = c.promote(id, false).await.unwrap_err();
    assert!(matches!(&e, ClusterError::Refused { forcible: true, .. }), "{e:?}");
    assert_eq!(c.status().await.unwrap().health.voters, 1);
    // Now there are enough for an odd number, which the autopilot sees.
    c.promote(id, true).await.unwrap();
    let s = status_is(&a, "three voters", |s| s.health.voters == 3 && s.health.healthy).await;
    assert!(s.members.iter().all(|m| m.voter && m.wants_vote) && s.warnings.is_empty(), "{s:#?}");
    assert_eq!(a.join_tokens().await.unwrap()[0].joined.len(), 2);
    stop_all(&[a, b, c]).await;
}

/// Connections beyond those that a node takes from one member end its oldest, on which Raft lives: calls wait for their turn instead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_do_not_push_out_the_connections_of_raft() {
    let mut lab = Lab::new();
    let a = lab.start("a").await;
    let b = lab.join("b", &token(&a, 1).await).await;
    let (address, id) = (b.listening().to_string(), b.store().node_id());
    let mut open = Vec::new();
    while let Ok(peer) = tokio::time::timeout(Duration::from_secs(2), a.shared.call(&address, id)).await {
        open.push(peer.unwrap());
        assert!(open.len() < 13, "with three of Raft, more than a node takes");
    }
    assert!(open.len() > 3);
    open.pop();
    a.shared.call(&address, id).await.unwrap();
    stop_all(&[b, a]).await;
}

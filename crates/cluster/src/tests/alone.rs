use super::*;
use std::os::unix::fs::PermissionsExt;

#[tokio::test]
async fn a_node_alone_is_a_whole_cluster() {
    let mut lab = Lab::new();
    let node = lab.start("a").await;
    let status = node.status().await.unwrap();
    assert!(status.health.healthy && status.warnings.is_empty(), "{status:#?}");
    assert_eq!((status.node, status.leader, status.health.voters, status.health.tolerates), (1, Some(1), 1, 0));
    let me = &status.members[0];
    assert!(me.voter && me.reachable && me.role == crate::NodeRole::Leader && me.certificate_expires.is_some(), "{me:?}");
    assert_eq!((me.name.as_str(), &me.address), ("a", &format!("127.0.0.1:{}", lab.ports["a"])));
    let file = lab.dir("a").join("peer/node.pem");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let id = status.cluster;
    assert!(node.remove(1, true).await.is_err_and(|e| one_line(&e).contains("only voter")));
    assert!(node.transfer_leader(None).await.is_err_and(|e| !one_line(&e).is_empty()));
    node.shutdown().await.unwrap();
    drop(node);

    // Settings for joining do not matter to a member, and a lost or expired certificate is made anew.
    for spoil in [false, true] {
        if spoil {
            std::fs::write(&file, "garbage").unwrap();
        } else {
            lab.clock.forward(crate::CERTIFICATE_LIFE * 2);
        }
        let node = lab.try_join("a", vec!["127.0.0.1:1".to_owned()], "nonsense").await.unwrap();
        let status = node.status().await.unwrap();
        assert!(status.health.healthy && status.cluster == id && status.warnings.is_empty(), "{status:#?}");
        node.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_certificate_with_a_short_life_is_renewed() {
    let mut lab = Lab::new();
    lab.life = Duration::from_secs(3);
    let node = lab.start("a").await;
    let first = node.shared.tls.validity().unwrap().not_after;
    eventually("a renewal", || async { node.shared.tls.validity().unwrap().not_after > first }).await;
    let stored = lab.peer_dir("a").credentials().unwrap().unwrap();
    assert!(stored.info.not_after > first);
    node.shutdown().await.unwrap();
}

#[tokio::test]
async fn addresses_that_cannot_be_reached_are_refused() {
    let mut lab = Lab::new();
    for advertise in ["", "host", ":5690", "0.0.0.0:5690", "[::]:5690", "host:99999", "a b:1"] {
        let mut options = lab.options("a");
        options.advertise = advertise.to_owned();
        let e = start(options).await.err().unwrap();
        assert!(one_line(&e).contains("raft.advertise"), "{e}");
    }
    let taken = std::net::TcpListener::bind(("127.0.0.1", lab.ports["a"])).unwrap();
    let e = start(lab.options("a")).await.err().unwrap();
    assert!(one_line(&e).contains("raft.listen"), "{e}");
    drop(taken);
    // Nothing was left behind that keeps it from starting.
    lab.start("a").await.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_cluster_is_measured() {
    let mut lab = Lab::new();
    let node = lab.start("a").await;
    let report = node.tune().await.unwrap();
    assert!(report.measured[0].fsync_p99_ms.is_some_and(|ms| ms > 0.0), "{report:?}");
    assert!(report.settings.iter().any(|s| s.name == "heartbeat" && s.current == "100ms"), "{report:?}");
    assert!(!report.reasons.is_empty() && !report.apply.is_empty());
    node.shutdown().await.unwrap();
}

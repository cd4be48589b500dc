use super::*;
use crate::join::join;

async fn ask(lab: &Lab, name: &str, token: &NewToken) -> Result<u64, StartError> {
    let clock: Arc<dyn Clock> = lab.clock.clone();
    let how = Join { addresses: token.addresses.clone(), token: token.token.clone(), learner: false };
    join(&Tcp, &clock, &lab.peer_dir(name), &how, "127.0.0.1:9", name).await.map(|w| w.node)
}

fn refused(result: Result<u64, StartError>, why: &str) {
    let e = one_line(&result.unwrap_err());
    assert!(e.contains("cannot join the cluster") && e.contains(why), "{e}");
}

#[tokio::test]
async fn a_token_is_used_up_and_a_retry_is_not_another_use() {
    let mut lab = Lab::new();
    let a = lab.start("a").await;
    let once = token(&a, 1).await;
    let id = ask(&lab, "b", &once).await.unwrap();
    assert!(id > 1);
    // The joiner died before it made its directory: same key, same node.
    assert_eq!(ask(&lab, "b", &once).await.unwrap(), id);
    refused(ask(&lab, "c", &once).await, "used already");
    let whole = token(&a, 1).await;
    let id_of_d = ask(&lab, "d", &whole).await.unwrap();
    let d = lab.join("d", &whole).await;
    assert_eq!(d.store().node_id(), id_of_d);
    assert!(!lab.dir("d").join("peer/joining.key").exists());
    d.shutdown().await.unwrap();
    a.remove(id_of_d, false).await.unwrap();
    let listed = a.join_tokens().await.unwrap();
    let first = listed.iter().find(|t| t.id == once.info.id).unwrap();
    assert_eq!((listed.len(), &first.joined, first.spent), (2, &vec![id], true));
    // It never came up: shown with what to do, and removable.
    let status = a.status().await.unwrap();
    assert!(!status.health.healthy && status.warnings.iter().any(|w| w.contains(&format!("remove {id}"))), "{status:#?}");
    a.remove(id, false).await.unwrap();
    refused(ask(&lab, "b", &once).await, "was removed");
    let status = a.status().await.unwrap();
    assert!(status.health.healthy && status.members.len() == 1, "{status:#?}");
    a.shutdown().await.unwrap();
}

#[tokio::test]
async fn tokens_that_are_wrong_say_so() {
    let mut lab = Lab::new();
    let a = lab.start("a").await;
    let good = token(&a, 2).await;
    let with = |text: String| NewToken { token: text, ..good.clone() };
    refused(ask(&lab, "b", &with(String::new())).await, "empty");
    refused(ask(&lab, "b", &with(good.token[..50].to_owned())).await, "incomplete");
    let mut parsed = crate::token::JoinToken::parse(&good.token).unwrap();
    parsed.secret = [9; 32];
    refused(ask(&lab, "b", &with(parsed.text())).await, "not known");
    assert!(a.join_tokens().await.unwrap()[0].joined.is_empty());

    let short = a.create_join_token(Duration::from_secs(60), true, 1).await.unwrap();
    lab.clock.forward(Duration::from_secs(61));
    refused(ask(&lab, "b", &short).await, "expired");
    a.revoke_join_token(&good.info.id).await.unwrap();
    refused(ask(&lab, "b", &good).await, "not known");
    assert!(matches!(a.revoke_join_token(&good.info.id).await, Err(crate::ClusterError::NotFound(_))));
    for (valid, uses) in [(59, 1), (60, 0), (60, 101), (31 * 24 * 3600, 1)] {
        let made = a.create_join_token(Duration::from_secs(valid), true, uses).await;
        assert!(matches!(made, Err(crate::ClusterError::Invalid(_))), "{made:?}");
    }
    // None of them used it up.
    assert!(a.join_tokens().await.unwrap()[0].joined.is_empty());
    assert_eq!(a.status().await.unwrap().members.len(), 1);
    a.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_token_leads_to_its_own_cluster_only() {
    let mut lab = Lab::new();
    let (a, other) = (lab.start("a").await, lab.start("other").await);
    let mine = token(&a, 1).await;
    let elsewhere = token(&other, 1).await;
    // The right token and the wrong machine: nothing of the token is shown to it.
    let clock: Arc<dyn Clock> = lab.clock.clone();
    let mut parsed = crate::token::JoinToken::parse(&mine.token).unwrap();
    let wire: Arc<dyn Wire> = Arc::new(Tcp);
    let connect = |t: crate::token::JoinToken| {
        let (clock, wire, to) = (clock.clone(), wire.clone(), elsewhere.addresses[0].clone());
        async move { crate::tls::connect_pinned(&*wire, clock, t.cluster, t.ca_hash, &to).await.map(|_| ()) }
    };
    let e = one_line(&connect(parsed.clone()).await.unwrap_err());
    assert!(e.contains("not of the cluster that the join token is for"), "{e}");
    refused(ask(&lab, "b", &NewToken { addresses: elsewhere.addresses.clone(), ..mine.clone() }).await, "check the addresses and the token");
    // A CA that is right and a name that is not.
    parsed.ca_hash = crate::token::JoinToken::parse(&elsewhere.token).unwrap().ca_hash;
    let e = one_line(&connect(parsed).await.unwrap_err());
    assert!(e.contains("another cluster"), "{e}");
    a.shutdown().await.unwrap();
    other.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_program_that_is_too_old_is_refused() {
    let mut lab = Lab::new();
    let a = lab.start("a").await;
    let made = token(&a, 1).await;
    let parsed = crate::token::JoinToken::parse(&made.token).unwrap();
    let request = crate::proto::JoinRequest {
        cluster: parsed.cluster.0.to_vec(),
        token_id: parsed.id.0.to_vec(),
        secret: parsed.secret.to_vec(),
        certificate_request: certificate_request(&generate_key().unwrap()).unwrap(),
        address: "127.0.0.1:9".to_owned(),
        name: "b".to_owned(),
        learner: false,
        format: 0,
    };
    let clock: Arc<dyn Clock> = lab.clock.clone();
    let call = |request: crate::proto::JoinRequest| {
        let (clock, to, parsed) = (clock.clone(), made.addresses[0].clone(), parsed.clone());
        async move {
            let shown = crate::tls::connect_pinned(&Tcp, clock, parsed.cluster, parsed.ca_hash, &to).await.unwrap();
            crate::client::Peer::over(shown.io).await.unwrap().join(request, Duration::from_secs(20)).await
        }
    };
    let e = call(request.clone()).await.unwrap_err();
    assert!(e.message().contains("install the version"), "{e}");
    let mut damaged = request.clone();
    damaged.format = 99;
    damaged.certificate_request.truncate(40);
    assert_eq!(call(damaged).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    let mut nowhere = request.clone();
    nowhere.format = 99;
    nowhere.address = "no port".to_owned();
    let e = call(nowhere).await.unwrap_err();
    assert!(e.message().contains("host:port"), "{e}");
    // None of them used it up.
    assert!(a.join_tokens().await.unwrap()[0].joined.is_empty());
    assert_eq!(a.status().await.unwrap().members.len(), 1);
    a.shutdown().await.unwrap();
}

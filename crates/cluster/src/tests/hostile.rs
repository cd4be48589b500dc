use super::*;
use crate::{
    client::Peer,
    tls::{Tls, TlsNet},
};
use ikada_raft::net::Net;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

fn net(credentials: &Credentials) -> Arc<dyn Net> {
    let tls = Tls::new(Arc::new(SystemClock));
    tls.set(credentials).unwrap();
    Arc::new(TlsNet { tls: Arc::new(tls), wire: Arc::new(Tcp) })
}

/// A member, or what looks like one, asks for the status.
pub(super) async fn asks(credentials: &Credentials, node: &ClusterNode, expected: u64) -> Result<(), String> {
    let address = node.listening().to_string();
    let mut peer = Peer::connect(&net(credentials), &address, expected).await.map_err(|e| e.to_string())?;
    peer.status(false, Duration::from_secs(10)).await.map(|_| ()).map_err(|e| e.message().to_owned())
}

#[tokio::test]
async fn only_certificates_of_this_cluster_are_heard() {
    let mut lab = Lab::new();
    let a = lab.start("a").await;
    let (ca, id) = (own_ca(&a), a.store().cluster_id());
    asks(&credentials(&ca, id, 7), &a, 1).await.unwrap();
    let e = asks(&credentials(&ca, id, 7), &a, 2).await.unwrap_err();
    assert!(e.contains("node 1 answers there"), "{e}");
    let e = asks(&credentials(&foreign_ca(), id, 7), &a, 1).await.unwrap_err();
    assert!(e.contains("another cluster"), "{e}");
    // As an attacker does it, who believes everybody: its certificate is refused by the server.
    let mut mixed = credentials(&foreign_ca(), id, 7);
    mixed.ca = credentials(&ca, id, 7).ca;
    asks(&mixed, &a, 1).await.unwrap_err();
    asks(&credentials(&ca, ClusterId([9; 16]), 7), &a, 1).await.unwrap_err();

    // Without a certificate nothing but a join is possible.
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let hash = a.shared.tls.ca_hash().unwrap();
    let shown = crate::tls::connect_pinned(&Tcp, clock, id, hash, &a.listening().to_string()).await.unwrap();
    let mut peer = Peer::over(shown.io).await.unwrap();
    let within = Duration::from_secs(10);
    assert_eq!(peer.status(false, within).await.unwrap_err().code(), tonic::Code::Unauthenticated);
    assert_eq!(peer.standing(within).await.unwrap_err().code(), tonic::Code::Unauthenticated);
    let revoke = crate::proto::AdminRequest::default();
    assert_eq!(peer.administer(revoke, within).await.unwrap_err().code(), tonic::Code::Unauthenticated);
    a.shutdown().await.unwrap();
}

#[tokio::test]
async fn strangers_cannot_hold_the_port() {
    let mut lab = Lab::new();
    let a = lab.start("a").await;
    let address = a.listening();
    let member = credentials(&own_ca(&a), a.store().cluster_id(), 7);
    // Silent ones take the places of their address; further ones are closed at once.
    let mut silent = Vec::new();
    for _ in 0..80 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let mut closed = 0;
    for stream in &mut silent {
        let mut byte = [0];
        if let Ok(read) = tokio::time::timeout(Duration::from_millis(20), stream.read(&mut byte)).await {
            assert_eq!(read.unwrap_or(0), 0);
            closed += 1;
        }
    }
    assert!((16..80).contains(&closed), "{closed} were closed");
    // After the handshake's deadline their places are free again.
    eventually("a free place", || async { asks(&member, &a, 1).await.is_ok() }).await;
    drop(silent);

    // Garbage, half a hello, and HTTP without TLS.
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 2, 0, 1], &[0xff; 4096]] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.ok();
        assert!(rest.len() < 100);
    }
    asks(&member, &a, 1).await.unwrap();
    a.shutdown().await.unwrap();
}

#[tokio::test]
async fn ten_thousand_connections_leave_nothing_behind() {
    let mut lab = Lab::new();
    let a = lab.start("a").await;
    let member = credentials(&own_ca(&a), a.store().cluster_id(), 7);
    let mut long = Peer::connect(&net(&member), &a.listening().to_string(), 1).await.unwrap();
    for n in 0..10_000 {
        drop(TcpStream::connect(a.listening()).await.unwrap());
        // A member that is connected notices nothing.
        if n % 2_500 == 0 {
            long.status(false, Duration::from_secs(20)).await.unwrap();
        }
    }
    eventually("a new connection of a member", || async { asks(&member, &a, 1).await.is_ok() }).await;
    write(&a, "t").await;
    a.shutdown().await.unwrap();
}

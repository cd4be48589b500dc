//! Over a real connection: what a client sees of bodies that are too large, too slow or cut off, and that the server lives.

use crate::common::App;
use ikada_api::ApiOptions;
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

async fn serve(options: ApiOptions) -> SocketAddr {
    let app = App::started(options).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = app.router.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
    address
}

/// Writes everything, then reads to the end of the answer's head.
async fn talk(address: SocketAddr, parts: Vec<Vec<u8>>) -> String {
    let mut s = TcpStream::connect(address).await.unwrap();
    for p in parts {
        s.write_all(&p).await.unwrap();
    }
    let mut out = Vec::new();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&out).contains("\n}") {
        let n = tokio::time::timeout(Duration::from_secs(20), s.read(&mut buffer)).await.expect("an answer").unwrap();
        if n == 0 {
            break;
        }
        out.extend_from_slice(&buffer[..n]);
    }
    String::from_utf8(out).unwrap()
}

fn head(extra: &str) -> Vec<u8> {
    format!("PUT /meshes/default/secrets/s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{extra}\r\n").into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_too_large() {
    let address = serve(ApiOptions::default()).await;
    let ten = 10 * 1024 * 1024;
    let announced = talk(address, vec![head(&format!("Content-Length: {ten}\r\n")), vec![b' '; ten]]).await;
    assert!(announced.starts_with("HTTP/1.1 413 ") && announced.contains("larger than the limit"), "{announced}");
    let chunk = [format!("{:x}\r\n", 1024 * 1024).into_bytes(), vec![b' '; 1024 * 1024], b"\r\n".to_vec()].concat();
    let mut parts = vec![head("Transfer-Encoding: chunked\r\n")];
    parts.extend(std::iter::repeat_n(chunk, 10));
    parts.push(b"0\r\n\r\n".to_vec());
    let chunked = talk(address, parts).await;
    assert!(chunked.starts_with("HTTP/1.1 413 "), "{chunked}");
    let polite = talk(address, vec![head(&format!("Content-Length: {ten}\r\nExpect: 100-continue\r\n"))]).await;
    assert!(polite.starts_with("HTTP/1.1 413 "), "{polite}");
    let lives = talk(address, vec![b"GET /meshes/default HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()]).await;
    assert!(lives.starts_with("HTTP/1.1 200 "), "{lives}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_do_not_come() {
    let address = serve(ApiOptions { read_timeout: Duration::from_millis(200), ..ApiOptions::default() }).await;
    let slow = talk(address, vec![head("Content-Length: 100\r\n"), b"{".to_vec()]).await;
    assert!(slow.starts_with("HTTP/1.1 408 ") && slow.contains("did not arrive"), "{slow}");
    let mut cut = TcpStream::connect(address).await.unwrap();
    cut.write_all(&head("Content-Length: 100\r\n")).await.unwrap();
    drop(cut);
    let huge = format!("GET /meshes HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "a".repeat(1024 * 1024));
    let mut s = TcpStream::connect(address).await.unwrap();
    // The server may close while we still write.
    let _ = s.write_all(huge.as_bytes()).await;
    let mut out = Vec::new();
    let _ = s.read_to_end(&mut out).await;
    let text = String::from_utf8_lossy(&out);
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 431 "), "{text}");
    let lives = talk(address, vec![b"GET /meshes/default HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()]).await;
    assert!(lives.starts_with("HTTP/1.1 200 "), "{lives}");
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_of_the_same_resource_all_succeed() {
    let app = std::sync::Arc::new(App::started(ApiOptions::default()).await);
    let tasks: Vec<_> = (0..64)
        .map(|i| {
            let app = app.clone();
            tokio::spawn(async move {
                let name = format!("s{}", i % 4);
                let body = serde_json::json!({"type": "Secret", "mesh": "default", "name": name, "data": "dGVzdA=="});
                app.put(&format!("/meshes/default/secrets/{name}"), &body).await.status
            })
        })
        .collect();
    let mut created = 0;
    for t in tasks {
        match t.await.unwrap() {
            201 => created += 1,
            200 => {}
            other => panic!("status {other}"),
        }
    }
    assert_eq!(created, 4, "each of the four was created once");
}

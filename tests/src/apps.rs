//! Small HTTP applications and a client: the two ends of the traffic that proxies carry.

use anyhow::{Context, Result};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// Longest request head that the application reads, bytes.
const MAX_HEAD: usize = 64 * 1024;

/// An HTTP/1.1 application that answers every request with its name and the request's head.
pub struct App {
    /// Port on 127.0.0.1.
    pub port: u16,
    requests: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl App {
    /// Starts an application on a free port.
    pub async fn start(name: &str) -> Result<App> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("cannot listen")?;
        let port = listener.local_addr()?.port();
        let requests = Arc::new(AtomicU64::new(0));
        let (counter, name) = (requests.clone(), name.to_owned());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (counter, name) = (counter.clone(), name.clone());
                tokio::spawn(async move { connection(stream, &name, &counter).await });
            }
        });
        Ok(App { port, requests, task })
    }
    /// Requests answered so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connection(mut stream: TcpStream, name: &str, counter: &AtomicU64) {
    let mut buffer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            match stream.read(&mut chunk).await {
                Ok(n) if n > 0 && buffer.len() < MAX_HEAD => buffer.extend_from_slice(&chunk[..n]),
                _ => return,
            }
        };
        let head: Vec<u8> = buffer.drain(..end).collect();
        counter.fetch_add(1, Ordering::Relaxed);
        let body = format!("{name}\n{}", String::from_utf8_lossy(&head));
        let response = format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nx-app: {name}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        if stream.write_all(response.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// What a request got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Header `x-app`: which application answered, empty when none did.
    pub app: String,
    /// Body.
    pub body: String,
}

/// Sends one GET to `127.0.0.1:port` on a new connection.
pub async fn get(port: u16, path: &str) -> Result<Answer> {
    get_with(port, path, &[]).await
}

/// The same with further headers.
pub async fn get_with(port: u16, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).pool_max_idle_per_host(0).build()?;
    let mut request = client.get(format!("http://127.0.0.1:{port}{path}"));
    for (k, v) in headers {
        request = request.header(*k, *v);
    }
    let response = request.send().await?;
    let status = response.status().as_u16();
    let app = response.headers().get("x-app").and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    Ok(Answer { status, app, body: response.text().await? })
}

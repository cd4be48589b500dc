//! The client of the REST rows: a process of its own that writes or reads MeshTimeouts of a real control plane over HTTP/1.1 with
//! kept connections, each with one request in flight.

use crate::client::Figures;
use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, body::Bytes, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{net::TcpStream, sync::Barrier};

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum RestOperation {
    /// Create or replace a policy; each body differs from the stored one.
    Put,
    /// Read one, linearizable.
    Get,
}

/// Arguments of the client process.
#[derive(Clone, Debug, clap::Args)]
pub struct RestArgs {
    /// Address of the REST API, `host:port`.
    #[arg(long)]
    pub address: String,
    /// What to ask.
    #[arg(long, value_enum)]
    pub operation: RestOperation,
    /// Connections, each with one request in flight.
    #[arg(long, default_value_t = 1)]
    pub clients: usize,
    /// Seconds to measure, after half a second to warm up.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// Policies that are used in turn.
    #[arg(long, default_value_t = 1000)]
    pub keys: u64,
    /// End after so many requests instead of after a time.
    #[arg(long)]
    pub count: Option<u64>,
    /// Bytes that a label-free policy is padded to, with a description of its target.
    #[arg(long, default_value_t = 256)]
    pub size: usize,
}

/// A connection with one request in flight.
pub struct Connection {
    send: SendRequest<Full<Bytes>>,
    host: String,
}

impl Connection {
    /// Connects to `host:port`.
    pub async fn open(address: &str) -> Result<Connection> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        let (send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Connection { send, host: address.to_owned() })
    }

    /// Sends a request; the status and the body.
    pub async fn ask(&mut self, method: Method, path: &str, headers: &[(&str, &str)], body: Bytes) -> Result<(u16, Bytes)> {
        self.send.ready().await?;
        let mut request = Request::builder().method(method).uri(path).header("host", &self.host).header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.send.send_request(request.body(Full::new(body))?).await?;
        let status = response.status().as_u16();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }
}

/// Path of policy `n`.
pub fn path(n: u64) -> String {
    format!("/meshes/default/meshtimeouts/bench-{n}")
}

/// Body of policy `n`: a MeshTimeout of about `size` bytes that differs for every `change`.
pub fn body(n: u64, change: u64, size: usize) -> Bytes {
    let tag = "x".repeat(size.saturating_sub(230));
    let text = format!(
        r#"{{"type":"MeshTimeout","mesh":"default","name":"bench-{n}","spec":{{"targetRef":{{"kind":"MeshSubset","tags":{{"bench":"s{n}{tag}"}}}},"to":[{{"targetRef":{{"kind":"Mesh"}},"default":{{"connectionTimeout":"{}ms"}}}}]}}}}"#,
        1 + change % 100_000
    );
    Bytes::from(text)
}

/// Runs the client and returns its figures.
pub async fn run(args: RestArgs) -> Result<Figures> {
    let barrier = Arc::new(Barrier::new(args.clients));
    let share = args.count.map(|c| c / args.clients as u64);
    let mut tasks = Vec::new();
    for n in 0..args.clients as u64 {
        let mut connection = Connection::open(&args.address).await?;
        let (barrier, args) = (barrier.clone(), args.clone());
        tasks.push(tokio::spawn(async move {
            barrier.wait().await;
            let begin = Instant::now();
            let warm = if share.is_some() { Duration::ZERO } else { Duration::from_millis(500) };
            let until = warm + Duration::from_secs_f64(args.seconds);
            let mut times = Vec::new();
            let mut i = 0;
            loop {
                let start = begin.elapsed();
                if share.map_or(start >= until, |s| i >= s) {
                    return Ok::<_, anyhow::Error>((times, begin.elapsed() - warm));
                }
                let key = (n + i * args.clients as u64) % args.keys;
                let (status, answer) = match args.operation {
                    // The time since the epoch: a second run changes what the first one wrote.
                    RestOperation::Put => {
                        let change = std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_micros() as u64);
                        connection.ask(Method::PUT, &path(key), &[], body(key, change, args.size)).await?
                    }
                    RestOperation::Get => connection.ask(Method::GET, &path(key), &[], Bytes::new()).await?,
                };
                if !(200..300).contains(&status) {
                    bail!("{} answered {status}: {}", args.address, String::from_utf8_lossy(&answer));
                }
                let end = begin.elapsed();
                i += 1;
                if start >= warm {
                    times.push((end - start).as_secs_f64() * 1000.0);
                }
            }
        }));
    }
    let (mut times, mut longest) = (Vec::new(), Duration::ZERO);
    for task in tasks {
        let (t, took) = task.await??;
        times.extend(t);
        longest = longest.max(took);
    }
    Ok(Figures::of(times, longest))
}

//! A client that knows whether a request was sent: the difference between *failed* and *nobody knows*.

use crate::bed::sys::NetNs;
use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpSocket, time::timeout};

/// Port of the REST API.
const PORT: u16 = 5681;
/// How long a connection may take; the node is on the same machine.
const CONNECT: Duration = Duration::from_secs(1);
/// Largest answer that is read, in bytes.
const MAX_BODY: usize = 64 * 1024 * 1024;

/// What came back.
#[derive(Debug)]
pub enum Reply {
    /// An answer.
    Answer(Answer),
    /// The request did not leave this process: it has no effect.
    NotSent(String),
    /// It was sent, and no answer came.
    Lost(String),
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// A header that is a number; quotes around it do not count.
    pub fn number(&self, header: &str) -> Option<i64> {
        self.headers.get(header)?.to_str().ok()?.trim_matches('"').parse().ok()
    }
    /// Status and the detail of an error, in one line.
    pub fn error(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let detail = body.get("detail").and_then(serde_json::Value::as_str).unwrap_or("");
        format!("{} {detail}", self.status.as_u16())
    }
}

/// A request.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Method.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// Headers.
    pub headers: Vec<(&'static str, String)>,
    /// Body, JSON.
    pub body: Bytes,
}

impl Ask {
    /// GET.
    pub fn get(path: impl Into<String>) -> Ask {
        Ask { method: Method::GET, path: path.into(), headers: Vec::new(), body: Bytes::new() }
    }
    /// With a body.
    pub fn send(method: Method, path: impl Into<String>, body: &serde_json::Value) -> Ask {
        let headers = vec![("content-type", "application/json".to_owned())];
        Ask { method, path: path.into(), headers, body: Bytes::from(body.to_string()) }
    }
    /// With a further header.
    pub fn with(mut self, header: &'static str, value: impl Into<String>) -> Ask {
        self.headers.push((header, value.into()));
        self
    }
    fn request(&self) -> Result<Request<Full<Bytes>>> {
        let mut r = Request::builder().method(&self.method).uri(&self.path).header("host", format!("localhost:{PORT}"));
        for (k, v) in &self.headers {
            r = r.header(*k, v);
        }
        r.body(Full::new(self.body.clone())).context("request")
    }
}

/// One connection to one node, from the node's own host, so that a cut network does not cut off the client. Made anew when it broke.
pub struct Client {
    net: Arc<NetNs>,
    sender: Option<http1::SendRequest<Full<Bytes>>>,
}

impl Client {
    /// To the node on a host.
    pub fn new(net: Arc<NetNs>) -> Client {
        Client { net, sender: None }
    }
    async fn connect(&mut self) -> Result<http1::SendRequest<Full<Bytes>>> {
        if let Some(mut sender) = self.sender.take()
            && sender.ready().await.is_ok()
        {
            return Ok(sender);
        }
        let socket = self.net.visit(TcpSocket::new_v4).context("network namespace")?.context("socket")?;
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        let stream = timeout(CONNECT, socket.connect(to)).await.context("connect: timeout")?.context("connect")?;
        stream.set_nodelay(true).ok();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.context("handshake")?;
        tokio::spawn(connection);
        Ok(sender)
    }
    /// One request with its whole answer.
    pub async fn ask(&mut self, ask: &Ask, limit: Duration) -> Reply {
        let (request, mut sender) = match (ask.request(), self.connect().await) {
            (Ok(r), Ok(s)) => (r, s),
            (Err(e), _) | (_, Err(e)) => return Reply::NotSent(format!("{e:#}")),
        };
        let answer = async {
            let response = sender.send_request(request).await?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, MAX_BODY).collect().await.map_err(|e| anyhow::anyhow!("{e}"))?.to_bytes();
            anyhow::Ok(Answer { status: parts.status, headers: parts.headers, body })
        };
        match timeout(limit, answer).await {
            Ok(Ok(answer)) => {
                self.sender = Some(sender);
                Reply::Answer(answer)
            }
            Ok(Err(e)) => Reply::Lost(format!("{e:#}")),
            Err(_) => Reply::Lost("no answer in time".into()),
        }
    }
    /// One request whose answer goes on; errors when its head does not come in time.
    pub async fn open(&mut self, ask: &Ask, limit: Duration) -> Result<(StatusCode, HeaderMap, Incoming)> {
        let mut sender = self.connect().await?;
        let response = timeout(limit, sender.send_request(ask.request()?)).await.context("no answer in time")??;
        let (parts, body) = response.into_parts();
        Ok((parts.status, parts.headers, body))
    }
}

//! Diagnostics port (reference: data-plane contract §8.2).

use crate::{cluster::Readiness, listen::Reply, metrics::Metrics, proxies::Proxies};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use ikada_raft::RaftStore;
use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::watch;

/// Longest wait of `/propagation`.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// What the port shows.
pub struct Diagnostics {
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Whether the node serves.
    pub readiness: watch::Sender<Readiness>,
    /// The node begins to stop, so it is not ready whatever the store says.
    stopping: AtomicBool,
    /// Once it is open.
    store: OnceLock<Arc<RaftStore>>,
    /// Once proxies may connect.
    proxies: OnceLock<Arc<Proxies>>,
}

/// A plain answer.
pub fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut response = http::Response::new(Full::new(body.into()).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

impl Diagnostics {
    /// Of a node that starts.
    pub fn new() -> Arc<Self> {
        Arc::new(Diagnostics {
            metrics: Arc::default(),
            readiness: watch::channel(Readiness::waiting("starting")).0,
            stopping: AtomicBool::new(false),
            store: OnceLock::new(),
            proxies: OnceLock::new(),
        })
    }
    /// The store is open.
    pub fn opened(&self, store: Arc<RaftStore>) {
        self.store.set(store).ok();
    }
    /// Proxies may connect.
    pub fn serving(&self, proxies: Arc<Proxies>) {
        self.proxies.set(proxies).ok();
    }
    /// The node begins to stop.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// 200 while the node serves, with what needs attention; else 503 with the reason.
    fn ready(&self) -> Reply {
        const TEXT: &str = "text/plain; charset=utf-8";
        if self.stopping.load(Ordering::Relaxed) {
            return reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, "stopping\n");
        }
        let Readiness { waits_for, alarms } = self.readiness.borrow().clone();
        let status = if waits_for.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let alarms = alarms.iter().map(|alarm| format!("alarm: {alarm}"));
        reply(status, TEXT, waits_for.into_iter().chain(alarms).map(|line| line + "\n").collect::<String>())
    }

    /// Answers a request.
    pub async fn handle<B>(self: Arc<Self>, request: Request<B>) -> Reply {
        const TEXT: &str = "text/plain; charset=utf-8";
        match request.uri().path() {
            "/healthy" => reply(StatusCode::OK, TEXT, ""),
            "/ready" => self.ready(),
            "/metrics" => {
                if let Some(store) = self.store.get() {
                    self.metrics.raft.observe(&store.status(), &store.timings());
                }
                reply(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", self.metrics.encode())
            }
            "/propagation" => self.propagation(request.uri().query().unwrap_or("")).await,
            _ => reply(StatusCode::NOT_FOUND, TEXT, "404 page not found\n"),
        }
    }

    /// `?revision=N[&wait=5s]`: which proxies have acknowledged what the revision changed for them, and how long that took.
    async fn propagation(&self, query: &str) -> Reply {
        let parameters: HashMap<&str, &str> = query.split('&').filter_map(|p| p.split_once('=')).collect();
        let bad = |t: String| reply(StatusCode::BAD_REQUEST, "text/plain; charset=utf-8", t);
        let Some(Ok(revision)) = parameters.get("revision").map(|r| r.parse::<u64>()) else {
            return bad("revision must be a number: the value of the header Ikada-Revision that a write answered\n".into());
        };
        let wait = match parameters.get("wait").map(|w| ikada_model::duration::GoDuration::parse(w)) {
            None => Duration::ZERO,
            Some(Ok(d)) => d.to_std().unwrap_or_default().min(MAX_WAIT),
            Some(Err(e)) => return bad(format!("wait: {e}\n")),
        };
        let Some(proxies) = self.proxies.get() else { return reply(StatusCode::SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", "starting\n") };
        let report = proxies.wait_synced(revision, wait).await;
        match serde_json::to_vec(&report) {
            Ok(body) => reply(StatusCode::OK, "application/json", body),
            Err(e) => reply(StatusCode::INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", e.to_string()),
        }
    }
}

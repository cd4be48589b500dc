//! Diagnostics port (reference: data-plane contract §8.2).

use crate::{listen::Reply, metrics::Metrics, proxies::Proxies};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Longest wait of `/propagation`.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// What the port shows.
pub struct Diagnostics {
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Proxies.
    pub proxies: Arc<Proxies>,
    /// The node serves.
    pub ready: Arc<AtomicBool>,
}

/// A plain answer.
pub fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut response = http::Response::new(Full::new(body.into()).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

impl Diagnostics {
    /// Answers a request.
    pub async fn handle<B>(self: Arc<Self>, request: Request<B>) -> Reply {
        const TEXT: &str = "text/plain; charset=utf-8";
        match request.uri().path() {
            "/healthy" => reply(StatusCode::OK, TEXT, ""),
            "/ready" if self.ready.load(Ordering::Relaxed) => reply(StatusCode::OK, TEXT, ""),
            "/ready" => reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, "starting or stopping\n"),
            "/metrics" => reply(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", self.metrics.encode()),
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
        let report = self.proxies.wait_synced(revision, wait).await;
        match serde_json::to_vec(&report) {
            Ok(body) => reply(StatusCode::OK, "application/json", body),
            Err(e) => reply(StatusCode::INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", e.to_string()),
        }
    }
}

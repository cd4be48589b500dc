//! The readiness reporter (reference: §3.5): `/ready` on a port of its own, answered by asking Envoy.

use crate::{admin, bootstrap::AdminAddress};
use anyhow::Context;
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{net::TcpListener, sync::Semaphore};

/// Envoy's answer is waited for this long.
const ENVOY_TIMEOUT: Duration = Duration::from_secs(1);
/// Connections at a time; more wait in the backlog.
const MAX_CONNECTIONS: usize = 64;

/// Shared state of the reporter.
#[derive(Debug)]
pub struct Readiness {
    /// `None`: Envoy has no admin; it counts as ready.
    admin: Option<AdminAddress>,
    terminating: AtomicBool,
}

impl Readiness {
    /// Not terminating.
    pub fn new(admin: Option<AdminAddress>) -> Arc<Readiness> {
        Arc::new(Readiness { admin, terminating: AtomicBool::new(false) })
    }
    /// From now on the answer is 503 `TERMINATING`.
    pub fn terminate(&self) {
        self.terminating.store(true, Ordering::Relaxed);
    }
    /// Status and text.
    pub async fn state(&self) -> (StatusCode, &'static str) {
        if self.terminating.load(Ordering::Relaxed) {
            return (StatusCode::SERVICE_UNAVAILABLE, "TERMINATING");
        }
        let Some(admin) = &self.admin else { return (StatusCode::OK, "READY") };
        match admin::call(admin, http::Method::GET, "/ready", ENVOY_TIMEOUT).await {
            Ok(status) if status == StatusCode::OK => (StatusCode::OK, "READY"),
            _ => (StatusCode::SERVICE_UNAVAILABLE, "NOT_READY"),
        }
    }
}

/// Binds the port; serving starts with [`serve`].
///
/// # Errors
/// The port is taken.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address} for readiness: give every proxy of this machine its own port with --readiness-port (KUMA_READINESS_PORT)")
    })
}

/// Serves until dropped. Only `/ready` exists: the port may be reachable from outside, so nothing else of Envoy's admin may be.
pub async fn serve(listener: TcpListener, readiness: Arc<Readiness>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                // Out of file descriptors: pause instead of spinning.
                tracing::debug!("readiness: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let readiness = readiness.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let readiness = readiness.clone();
                async move { Ok::<_, Infallible>(answer(request.uri().path(), &readiness).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(5))
                .keep_alive(true)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(e) = connection.await {
                tracing::debug!("readiness: {e}");
            }
            drop(slot);
        });
    }
}

async fn answer(path: &str, readiness: &Readiness) -> Response<Full<Bytes>> {
    let (status, text) = if path == "/ready" { readiness.state().await } else { (StatusCode::NOT_FOUND, "404 page not found\n") };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert("content-type", http::HeaderValue::from_static("text/plain"));
    headers.insert("cache-control", http::HeaderValue::from_static("no-cache, max-age=0"));
    headers.insert("x-powered-by", http::HeaderValue::from_static("kuma-dp"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn get(port: u16, path: &str) -> StatusCode {
        let at = AdminAddress::Tcp("127.0.0.1".parse().unwrap(), port);
        admin::call(&at, http::Method::GET, path, Duration::from_secs(2)).await.unwrap()
    }

    #[tokio::test]
    async fn asks_envoy_and_ends_with_terminating() {
        // Another reporter plays Envoy's admin: ready, then not.
        let envoy = Readiness::new(None);
        let listener = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let envoy_port = listener.local_addr().unwrap().port();
        tokio::spawn(serve(listener, envoy.clone()));
        let readiness = Readiness::new(Some(AdminAddress::Tcp("127.0.0.1".parse().unwrap(), envoy_port)));
        let listener = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(serve(listener, readiness.clone()));
        assert_eq!(get(port, "/ready").await, StatusCode::OK);
        assert_eq!(get(port, "/config_dump").await, StatusCode::NOT_FOUND);
        envoy.terminate();
        assert_eq!(readiness.state().await, (StatusCode::SERVICE_UNAVAILABLE, "NOT_READY"));
        readiness.terminate();
        assert_eq!(readiness.state().await.1, "TERMINATING");
        assert!(bind(([127, 0, 0, 1], port).into()).await.unwrap_err().to_string().contains("--readiness-port"));
        let nobody = Readiness::new(Some(AdminAddress::Pipe("/nonexistent.sock".into())));
        assert_eq!(nobody.state().await.1, "NOT_READY");
    }
}

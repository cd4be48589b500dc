//! Listeners: binding with errors that say what to do, TLS, bounded connections, and an orderly end.

use anyhow::{Result, anyhow};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Response of every service behind a listener.
pub type Reply = Response<UnsyncBoxBody<bytes::Bytes, Box<dyn std::error::Error + Send + Sync>>>;

/// Longest TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Longest wait between requests on an HTTP/1 connection, and for the rest of a request head that has begun.
const IDLE: Duration = Duration::from_secs(60);
/// Interval of HTTP/2 pings, and how long their answer may take (reference: data-plane contract §1.1).
const PING: Duration = Duration::from_secs(15);

/// Requests at a time on one HTTP/2 connection. Envoy needs two: ADS and health discovery.
const MAX_STREAMS: u32 = 128;

/// Where a request came from.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Address of the client.
    pub address: SocketAddr,
    /// Over TLS.
    pub tls: bool,
}

/// All addresses of this machine, IPv6 and IPv4; only IPv4 where there is no IPv6.
pub fn everywhere(port: u16) -> SocketAddr {
    let v6 = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
    let works = std::net::TcpListener::bind((std::net::Ipv6Addr::UNSPECIFIED, 0)).is_ok();
    if works { v6 } else { SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, port)) }
}

/// Binds an address. `what` and `setting` are for the error: what listens there and which setting moves it.
pub fn bind(address: SocketAddr, what: &str, setting: &str) -> Result<TcpListener> {
    let error = |e: io::Error| match e.kind() {
        io::ErrorKind::AddrInUse => anyhow!("cannot listen on {address} ({what}): another process uses this port; stop it, or choose another one with {setting}"),
        io::ErrorKind::PermissionDenied => anyhow!("cannot listen on {address} ({what}): no permission; choose a port above 1023 with {setting}"),
        _ => anyhow!("cannot listen on {address} ({what}): {e}; see {setting}"),
    };
    let socket = if address.is_ipv6() { tokio::net::TcpSocket::new_v6() } else { tokio::net::TcpSocket::new_v4() }.map_err(error)?;
    socket.set_reuseaddr(true).map_err(error)?;
    socket.bind(address).map_err(error)?;
    socket.listen(4096).map_err(error)
}

/// How a listener serves.
#[derive(Clone)]
pub struct Options {
    /// Name for the log.
    pub name: &'static str,
    /// TLS; ALPN decides between HTTP/1.1 and HTTP/2. Without TLS only HTTP/1.1 is spoken.
    pub tls: Option<Arc<ServerConfig>>,
    /// How long a client may take for the first byte of its first request; over TLS for the whole head, and never less than for the handshake.
    pub first_byte: Duration,
    /// Connections at a time, of the listeners that share it. Further ones wait in the kernel's queue.
    pub connections: Arc<Semaphore>,
    /// How long open requests may take to end at shutdown.
    pub grace: Duration,
}

/// Accepts and serves until `stop`, then lets open requests end for `options.grace`.
pub async fn serve<F, Fut>(listener: TcpListener, options: Options, handler: F, stop: CancellationToken)
where
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Reply> + Send + 'static,
{
    let tasks = TaskTracker::new();
    let forced = CancellationToken::new();
    loop {
        let permit = tokio::select! {
            () = stop.cancelled() => break,
            permit = options.connections.clone().acquire_owned() => permit,
        };
        let Ok(permit) = permit else { break };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                // IPv4 clients of an IPv6 socket are IPv4 clients.
                let address = SocketAddr::new(address.ip().to_canonical(), address.port());
                let (options, handler, stop, forced) = (options.clone(), handler.clone(), stop.clone(), forced.clone());
                tasks.spawn(async move {
                    tokio::select! {
                        () = forced.cancelled() => {}
                        () = connection(stream, address, &options, handler, stop) => {}
                    }
                    drop(permit);
                });
            }
            Err(e) => {
                // Out of descriptors or memory: existing connections go on; new ones wait.
                tracing::warn!(listener = options.name, error = %e, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    tasks.close();
    if timeout(options.grace, tasks.wait()).await.is_err() {
        tracing::info!(listener = options.name, connections = tasks.len(), "connections did not end in time and are closed");
        forced.cancel();
        tasks.wait().await;
    }
}

async fn connection<F, Fut>(stream: TcpStream, address: SocketAddr, options: &Options, handler: F, stop: CancellationToken)
where
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Reply> + Send + 'static,
{
    stream.set_nodelay(true).ok();
    let asked = Arc::new(AtomicBool::new(false));
    let service = |tls: bool| {
        let asked = asked.clone();
        hyper::service::service_fn(move |mut request: Request<Incoming>| {
            asked.store(true, Ordering::Relaxed);
            request.extensions_mut().insert(Peer { address, tls });
            let reply = handler(request);
            async move { Ok::<_, Infallible>(reply.await) }
        })
    };
    let Some(tls) = &options.tls else {
        let mut first = [0];
        let waited = tokio::select! {
            () = stop.cancelled() => return,
            waited = timeout(options.first_byte, stream.peek(&mut first)) => waited,
        };
        if matches!(waited, Ok(Ok(n)) if n > 0) {
            http1(TokioIo::new(stream), service(false), stop).await;
        }
        return;
    };
    let stream = match timeout(HANDSHAKE, TlsAcceptor::from(tls.clone()).accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => return tracing::debug!(listener = options.name, peer = %address, error = %e, "TLS handshake failed"),
        Err(_) => return,
    };
    let serve = async {
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            http2(TokioIo::new(stream), service(true), stop).await;
        } else {
            http1(TokioIo::new(stream), service(true), stop).await;
        }
    };
    tokio::pin!(serve);
    // Who says nothing after the handshake would hold a place for ever: HTTP/2 has no limit of its own before its preface.
    if timeout(options.first_byte.max(HANDSHAKE), &mut serve).await.is_err() && asked.load(Ordering::Relaxed) {
        serve.await;
    }
}

async fn http1<I, S>(io: I, service: S, stop: CancellationToken)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    S: hyper::service::Service<Request<Incoming>, Response = Reply, Error = Infallible>,
{
    let mut connection =
        std::pin::pin!(hyper::server::conn::http1::Builder::new().timer(TokioTimer::new()).header_read_timeout(IDLE).max_buf_size(64 * 1024).serve_connection(io, service));
    tokio::select! {
        _ = connection.as_mut() => return,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await.ok();
}

async fn http2<I, S>(io: I, service: S, stop: CancellationToken)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    S: hyper::service::Service<Request<Incoming>, Response = Reply, Error = Infallible> + Clone,
    S::Future: Send + 'static,
{
    let mut connection = std::pin::pin!(
        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(64 * 1024)
            .serve_connection(io, service)
    );
    tokio::select! {
        _ = connection.as_mut() => return,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await.ok();
}

/// Raises the limit of open files as far as the system allows and says how many connections to take at a time.
pub fn connection_budget() -> usize {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let limit = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) => {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard).ok();
            getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
        }
        Err(_) => 1024,
    };
    // A share stays for the store's files and for outgoing connections.
    usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(256).clamp(64, 1_000_000)
}

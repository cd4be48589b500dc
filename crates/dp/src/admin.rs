//! Calls to Envoy's admin interface.

use crate::bootstrap::AdminAddress;
use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

/// Sends a request without body; the answer's body is not read.
///
/// # Errors
/// Nobody listens, or there is no answer in `timeout`.
pub async fn call(admin: &AdminAddress, method: http::Method, path: &str, timeout: Duration) -> anyhow::Result<http::StatusCode> {
    let exchange = async {
        match admin {
            AdminAddress::Pipe(socket) => send(UnixStream::connect(socket).await?, method, path).await,
            AdminAddress::Tcp(ip, port) => send(TcpStream::connect((*ip, *port)).await?, method, path).await,
        }
    };
    match tokio::time::timeout(timeout, exchange).await {
        Ok(answer) => answer,
        Err(_) => bail!("no answer in {timeout:?}"),
    }
}

async fn send<S>(stream: S, method: http::Method, path: &str) -> anyhow::Result<http::StatusCode>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await.context("no HTTP")?;
    let request = http::Request::builder().method(method).uri(path).header("host", "localhost").body(Empty::new())?;
    let exchange = sender.send_request(request);
    tokio::pin!(exchange);
    tokio::pin!(connection);
    // The connection has to be driven until the answer is there; then both are dropped.
    tokio::select! {
        answer = &mut exchange => Ok(answer?.status()),
        end = &mut connection => {
            end?;
            Ok(exchange.await?.status())
        }
    }
}

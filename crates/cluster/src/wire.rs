//! The seam to the network: plain byte streams. A simulation brings its own.

use async_trait::async_trait;
use ikada_raft::net::Io;
use std::{io, net::SocketAddr};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Waiting connections that the kernel holds.
const BACKLOG: u32 = 1024;

/// A network.
#[async_trait]
pub trait Wire: Send + Sync + 'static {
    /// Connects to `host:port`. The caller sets the deadline by dropping the future.
    async fn connect(&self, address: &str) -> io::Result<Io>;
    /// Listens.
    async fn bind(&self, address: SocketAddr) -> io::Result<Box<dyn Accept>>;
}

/// A listening socket.
#[async_trait]
pub trait Accept: Send + Sync + 'static {
    /// The next connection and where it comes from.
    async fn accept(&self) -> io::Result<(Io, SocketAddr)>;
    /// Where it listens.
    fn address(&self) -> io::Result<SocketAddr>;
}

/// TCP of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tcp;

struct TcpAccept(TcpListener);

#[async_trait]
impl Wire for Tcp {
    async fn connect(&self, address: &str) -> io::Result<Io> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }

    async fn bind(&self, address: SocketAddr) -> io::Result<Box<dyn Accept>> {
        let socket = if address.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(Box::new(TcpAccept(socket.listen(BACKLOG)?)))
    }
}

#[async_trait]
impl Accept for TcpAccept {
    async fn accept(&self) -> io::Result<(Io, SocketAddr)> {
        let (stream, from) = self.0.accept().await?;
        stream.set_nodelay(true).ok();
        Ok((Box::new(stream), from))
    }

    fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

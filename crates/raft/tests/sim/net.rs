//! The network of a simulated node. No TLS: whoever connects says who it is and whom it wants.

use async_trait::async_trait;
use ikada_raft::net::{Io, Net};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use turmoil::net::TcpStream;

/// Peer port of every host.
pub const PORT: u16 = 5690;

/// Connects as one node.
pub struct SimNet {
    pub node: u64,
}

#[async_trait]
impl Net for SimNet {
    async fn connect(&self, address: &str, node: u64) -> io::Result<Io> {
        let mut stream = TcpStream::connect(address.to_owned()).await?;
        let mut hello = [0; 16];
        hello[..8].copy_from_slice(&self.node.to_le_bytes());
        hello[8..].copy_from_slice(&node.to_le_bytes());
        stream.write_all(&hello).await?;
        if stream.read_u8().await? != 1 {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "another node answers"));
        }
        Ok(Box::new(stream))
    }
}

/// The other side: who connected, if it wants this node.
pub async fn accepted(stream: &mut TcpStream, me: u64) -> io::Result<u64> {
    let mut hello = [0; 16];
    stream.read_exact(&mut hello).await?;
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| hello[at + i]));
    if word(8) != me {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it wants another node"));
    }
    stream.write_u8(1).await?;
    Ok(word(0))
}

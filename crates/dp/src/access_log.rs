//! The access log streamer (reference: §3.5): Envoy writes lines into a FIFO, each goes to the TCP address that it names.

use anyhow::Context;
use serde::Deserialize;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpStream, unix::pipe},
    sync::mpsc,
};

/// Longest line, in bytes; a longer one is cut into pieces that are dropped.
const MAX_LINE: usize = 64 * 1024;
/// Lines that wait for one address; more are dropped.
const QUEUE: usize = 1024;
/// Addresses at a time.
const MAX_ADDRESSES: usize = 64;
/// Longest wait for a connection.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for a write.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// The FIFO, open for reading; removed when dropped.
pub struct Streamer {
    path: PathBuf,
    receiver: pipe::Receiver,
}

impl Drop for Streamer {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[derive(Deserialize)]
struct Line {
    address: String,
    message: String,
}

/// Address and text of a line: JSON, or `address;text` of older control planes.
fn parse(line: &str) -> Option<(String, String)> {
    if line.starts_with('{') {
        let line: Line = serde_json::from_str(line).ok()?;
        return Some((line.address, line.message));
    }
    let (address, text) = line.split_once(';')?;
    Some((address.to_owned(), text.to_owned()))
}

impl Streamer {
    /// Makes the FIFO (mode 0666: Envoy may run as another user).
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create(path: &Path) -> anyhow::Result<Streamer> {
        use nix::sys::stat::Mode;
        use std::os::unix::fs::PermissionsExt;
        let failed = || format!("cannot make the access log pipe {}", path.display());
        nix::unistd::mkfifo(path, Mode::from_bits_truncate(0o666)).with_context(failed)?;
        // The umask may have taken bits.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).with_context(failed)?;
        // Open for writing too: the pipe does not end when Envoy closes it.
        let receiver = pipe::OpenOptions::new().read_write(true).open_receiver(path).with_context(failed)?;
        Ok(Streamer { path: path.to_owned(), receiver })
    }

    /// Streams until dropped.
    pub async fn run(mut self) {
        let mut queues: HashMap<String, mpsc::Sender<String>> = HashMap::new();
        let mut reader = BufReader::with_capacity(MAX_LINE, &mut self.receiver);
        let mut line = Vec::new();
        loop {
            line.clear();
            match tokio::io::AsyncReadExt::take(&mut reader, MAX_LINE as u64).read_until(b'\n', &mut line).await {
                // Cannot be: this process holds the pipe open for writing.
                Ok(0) => return,
                Ok(_) => {}
                Err(e) => {
                    tracing::warn!("access logs are no longer streamed: {e}");
                    return;
                }
            }
            let Some((address, text)) = std::str::from_utf8(&line).ok().and_then(|l| parse(l.trim_end_matches('\n'))) else {
                tracing::debug!("an access log line cannot be read");
                continue;
            };
            queues.retain(|_, queue| !queue.is_closed());
            if queues.len() >= MAX_ADDRESSES && !queues.contains_key(&address) {
                continue;
            }
            let queue = queues.entry(address.clone()).or_insert_with(|| {
                let (sender, receiver) = mpsc::channel(QUEUE);
                tokio::spawn(stream(address, receiver));
                sender
            });
            if queue.try_send(text).is_err() {
                tracing::debug!("an access log line is dropped: its receiver is too slow");
            }
        }
    }
}

/// Writes the lines of one address over one connection; ends with the first failure, the next line starts anew.
async fn stream(address: String, mut lines: mpsc::Receiver<String>) {
    let mut connection = match tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect(&address)).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(e)) => return tracing::warn!(address, "access logs cannot be sent: {e}"),
        Err(_) => return tracing::warn!(address, "access logs cannot be sent: no connection in {DIAL_TIMEOUT:?}"),
    };
    while let Some(text) = lines.recv().await {
        match tokio::time::timeout(WRITE_TIMEOUT, connection.write_all(text.as_bytes())).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return tracing::warn!(address, "access logs cannot be sent: {e}"),
            Err(_) => return tracing::warn!(address, "access logs cannot be sent: the receiver does not read"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use tokio::{io::AsyncReadExt, net::TcpListener};

    #[test]
    fn lines_of_both_forms() {
        assert_eq!(parse(r#"{"address":"a:1","message":"x;y\n"}"#), Some(("a:1".into(), "x;y\n".into())));
        assert_eq!(parse("a:1;x;y"), Some(("a:1".into(), "x;y".into())));
        assert_eq!(parse("nothing"), None);
        assert_eq!(parse("{broken"), None);
    }

    #[tokio::test]
    async fn lines_reach_their_address() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kuma-al-a-b.sock");
        let streamer = Streamer::create(&path).unwrap();
        let task = tokio::spawn(streamer.run());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        // Envoy opens, writes and closes; then again, as after its restart.
        for text in ["one", "two"] {
            let mut pipe = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            writeln!(pipe, "{}", serde_json::json!({"address": address.to_string(), "message": format!("{text}\n")})).unwrap();
        }
        let (mut connection, _) = listener.accept().await.unwrap();
        let mut got = [0; 8];
        connection.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"one\ntwo\n");
        task.abort();
        let _ = task.await;
        assert!(!path.exists());
    }
}

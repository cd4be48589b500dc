//! Certificates of our own servers (reference: data-plane contract §1.1).

use crate::config::TlsFiles;
use anyhow::{Context, Result, anyhow};
use std::{
    fs,
    io::Write,
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
};
use tokio_rustls::rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

/// A certificate chain with its key, and the server settings made of them.
#[derive(Clone)]
pub struct Identity {
    /// Chain as PEM.
    pub cert_pem: String,
    /// For listeners; offers HTTP/2 and HTTP/1.1.
    pub server: Arc<ServerConfig>,
}

/// Names of the generated pair in the work directory.
const CERT_FILE: &str = "kuma-cp.crt";
const KEY_FILE: &str = "kuma-cp.key";

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// From files of the user. Errors name the file.
pub fn from_files(files: &TlsFiles) -> Result<Identity> {
    let (cert, key) = (read(&files.cert)?, read(&files.key)?);
    identity(cert, &key).with_context(|| format!("certificate {} with key {}", files.cert.display(), files.key.display()))
}

fn identity(cert_pem: String, key_pem: &str) -> Result<Identity> {
    let chain = CertificateDer::pem_slice_iter(cert_pem.as_bytes()).collect::<Result<Vec<_>, _>>().map_err(|e| anyhow!("not a PEM certificate: {e}"))?;
    if chain.is_empty() {
        return Err(anyhow!("no certificate in PEM form found"));
    }
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|e| anyhow!("not a PEM private key: {e}"))?;
    let mut server = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).map_err(|e| anyhow!("{e}"))?;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Identity { cert_pem, server: Arc::new(server) })
}

/// The pair in `dir`; made when it is not there: self-signed, for this machine's name and addresses.
pub fn generated(dir: &Path, hostname: &str) -> Result<Identity> {
    let (cert_path, key_path) = (dir.join(CERT_FILE), dir.join(KEY_FILE));
    let present = |p: &Path| fs::metadata(p).is_ok_and(|m| m.len() > 0);
    if !(present(&cert_path) && present(&key_path)) {
        let pair = ikada_pki::self_signed_server(&[hostname.to_owned(), "localhost".to_owned()], &local_addresses(), std::time::SystemTime::now())
            .map_err(|e| anyhow!("cannot make a TLS certificate: {e}"))?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        // The key first: a certificate without its key would look complete after a crash.
        write(&key_path, &pair.key_pem)?;
        write(&cert_path, &pair.cert_pem)?;
    }
    from_files(&TlsFiles { cert: cert_path, key: key_path })
}

fn write(path: &Path, text: &str) -> Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).with_context(|| format!("cannot write {}", path.display()))
}

fn local_addresses() -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = nix::ifaddrs::getifaddrs()
        .into_iter()
        .flatten()
        .filter_map(|i| {
            let a = i.address?;
            a.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip())).or_else(|| a.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
        })
        .collect();
    all.sort();
    all.dedup();
    all
}

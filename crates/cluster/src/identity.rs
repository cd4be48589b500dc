//! Who a node is: the name in its certificate, and where certificate and key are kept.
//!
//! ```text
//! <data>/peer/node.pem     certificate, certificate of the CA, private key; mode 0600 (`RealDisk`); replaced as a whole
//! <data>/peer/joining.key  key of a join that has not ended; gone afterwards
//! <data>/peer/removed      which node of which cluster is not a member any more, and why
//! ```
//!
//! With keys for encryption at rest the first two are encrypted (`ikada_store::seal`), and encrypted anew when they are read and are not
//! under the first key.

use crate::StartError;
use ikada_pki::{CertInfo, certificates_der, parse_certificate, private_key_der, sha256};
use ikada_raft::{ClusterId, Keyring, OpenError};
use ikada_store::{
    Identity, StoreError,
    disk::{Disk, OpenMode, read_all, replace_file},
    seal::{is_sealed_file, open_file, seal_file},
};
use std::{
    fmt,
    io,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Directory of this crate's files in the data directory.
pub(crate) const PEER_DIR: &str = "peer";
const NODE_FILE: &str = "node.pem";
const JOINING_FILE: &str = "joining.key";
const REMOVED_FILE: &str = "removed";
/// What holds a private key.
const SECRET_FILES: [&str; 2] = [NODE_FILE, JOINING_FILE];
/// Far above what is ever written.
const MAX_FILE: usize = 64 << 10;

/// A node of a cluster, as certificates name it: `ikada://<cluster>/node/<id>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeName {
    pub cluster: ClusterId,
    pub node: u64,
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ikada://{}/node/{}", self.cluster, self.node)
    }
}

impl FromStr for NodeName {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (cluster, node) = text.strip_prefix("ikada://").and_then(|t| t.split_once("/node/")).ok_or(())?;
        let name = NodeName { cluster: cluster.parse().map_err(|_| ())?, node: node.parse().map_err(|_| ())? };
        // One text per name: no leading zeros or signs, no upper case.
        if name.to_string() == text { Ok(name) } else { Err(()) }
    }
}

impl NodeName {
    /// The one name of a certificate (DER).
    pub(crate) fn of_certificate(der: &[u8]) -> Result<NodeName, String> {
        let info = parse_certificate(der).map_err(|e| e.to_string())?;
        match info.uris.as_slice() {
            [uri] => uri.parse().map_err(|()| format!("its certificate names {uri:?}, which is not a node")),
            _ => Err("its certificate names no node".to_owned()),
        }
    }
}

/// Certificate and key of a node, with the CA that issued it.
pub(crate) struct Credentials {
    pub name: NodeName,
    pub info: CertInfo,
    pub certificate: CertificateDer<'static>,
    pub ca: CertificateDer<'static>,
    pub key: PrivateKeyDer<'static>,
    text: String,
}

impl Credentials {
    /// From PEM texts of certificate, CA and key.
    pub(crate) fn new(certificate: &str, ca: &str, key: &str) -> Result<Credentials, String> {
        Credentials::read(format!("{certificate}{ca}{key}"))
    }

    fn read(text: String) -> Result<Credentials, String> {
        let certs = certificates_der(&text).map_err(|e| e.to_string())?;
        let [certificate, ca] = certs.as_slice() else { return Err(format!("{} certificates instead of two", certs.len())) };
        if !ikada_pki::key_matches(&text, &text).map_err(|e| e.to_string())? {
            return Err("key and certificate do not belong together".to_owned());
        }
        Ok(Credentials {
            name: NodeName::of_certificate(certificate)?,
            info: parse_certificate(certificate).map_err(|e| e.to_string())?,
            certificate: certificate.clone(),
            ca: ca.clone(),
            key: private_key_der(&text).map_err(|e| e.to_string())?,
            text,
        })
    }

    /// SHA-256 of the CA's certificate, as join tokens pin it.
    pub(crate) fn ca_hash(&self) -> [u8; 32] {
        sha256(&self.ca)
    }
}

/// The files of [`PEER_DIR`].
#[derive(Clone)]
pub(crate) struct PeerDir {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    keyring: Option<Arc<Keyring>>,
}

/// Whose sealed files are: a joiner has no identity yet, and keys are a node's own.
const OWNER: Identity = Identity { cluster: ClusterId([0; 16]), node: 0 };

fn purpose(name: &str) -> String {
    format!("{PEER_DIR}/{name}")
}

impl PeerDir {
    pub(crate) fn new(disk: Arc<dyn Disk>, data_dir: &Path, keyring: Option<Arc<Keyring>>) -> PeerDir {
        PeerDir { disk, path: data_dir.join(PEER_DIR), keyring }
    }

    fn read(&self, name: &str) -> Result<Option<String>, StartError> {
        let path = self.path.join(name);
        let bytes = match read_all(&*self.disk, &path, MAX_FILE) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(StartError::Identity(format!("cannot read {}: {e}", path.display()))),
        };
        let (key, bytes) = if is_sealed_file(&bytes) {
            match open_file(self.keyring.as_deref(), OWNER, &purpose(name), &path, &bytes) {
                Ok((key, text)) => (Some(key), text),
                Err(e @ (StoreError::Locked { .. } | StoreError::NewerFormat { .. })) => return Err(OpenError::Store(e).into()),
                Err(e) => {
                    tracing::warn!("{e}");
                    return Ok(Some(String::new()));
                }
            }
        } else {
            (None, bytes)
        };
        let text = String::from_utf8(bytes).unwrap_or_default();
        let sealing = self.keyring.as_ref().map(|k| k.sealing_id());
        if SECRET_FILES.contains(&name) && key.as_deref() != sealing {
            self.write(name, &text)?;
        }
        Ok(Some(text))
    }

    fn write(&self, name: &str, text: &str) -> Result<(), StartError> {
        let path = self.path.join(name);
        let failed = |e: io::Error| StartError::Identity(format!("cannot write {}: {e}", path.display()));
        self.disk.create_dir_all(&self.path).map_err(failed)?;
        let sealed = match &self.keyring {
            Some(keyring) if SECRET_FILES.contains(&name) => {
                Some(seal_file(keyring, OWNER, &purpose(name), text.as_bytes()).map_err(OpenError::Store)?)
            }
            _ => None,
        };
        replace_file(&*self.disk, &self.path, name, sealed.as_deref().unwrap_or(text.as_bytes())).map_err(failed)
    }

    fn remove(&self, name: &str) -> Result<(), StartError> {
        let path = self.path.join(name);
        let failed = |e: io::Error| StartError::Identity(format!("cannot remove {}: {e}", path.display()));
        match self.disk.remove_file(&path) {
            Ok(()) => self.disk.sync_dir(&self.path).map_err(failed),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(failed(e)),
        }
    }

    /// What is stored. Damage is no error: a node makes itself a new certificate from the CA in its world.
    pub(crate) fn credentials(&self) -> Result<Option<Credentials>, StartError> {
        let Some(text) = self.read(NODE_FILE)? else { return Ok(None) };
        match Credentials::read(text) {
            Ok(found) => Ok(Some(found)),
            Err(e) => {
                tracing::warn!("{} cannot be used: {e}", self.path.join(NODE_FILE).display());
                Ok(None)
            }
        }
    }

    pub(crate) fn store(&self, credentials: &Credentials) -> Result<(), StartError> {
        self.write(NODE_FILE, &credentials.text)
    }

    /// Key of a join that has begun: the same after a crash, so that the cluster knows who asks again.
    pub(crate) fn joining_key(&self) -> Result<String, StartError> {
        if let Some(key) = self.read(JOINING_FILE)?
            && ikada_pki::certificate_request(&key).is_ok()
        {
            return Ok(key);
        }
        let key = ikada_pki::generate_key().map_err(|e| StartError::Identity(e.to_string()))?;
        self.write(JOINING_FILE, &key)?;
        Ok(key)
    }

    pub(crate) fn joined(&self) -> Result<(), StartError> {
        self.remove(JOINING_FILE)
    }

    /// Why this node was removed, if it is this one that was: after a recovery the directory is that of another cluster.
    pub(crate) fn removed(&self, me: NodeName) -> Result<Option<String>, StartError> {
        let text = self.read(REMOVED_FILE)?;
        Ok(text.and_then(|t| t.split_once('\n').filter(|(who, _)| *who == me.to_string()).map(|(_, why)| why.to_owned())))
    }

    pub(crate) fn set_removed(&self, me: NodeName, why: &str) -> Result<(), StartError> {
        self.write(REMOVED_FILE, &format!("{me}\n{why}"))
    }

    /// Whether the data directory is some node's already.
    pub(crate) fn has_identity(&self, data_dir: &Path) -> Result<bool, StartError> {
        match self.disk.open(&data_dir.join("IDENTITY"), OpenMode::Read) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(StartError::Identity(format!("cannot read {}: {e}", data_dir.display()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikada_raft::Keys;
    use ikada_store::disk::ScriptedDisk;

    fn dir(disk: &ScriptedDisk, ids: &[u8]) -> PeerDir {
        let line = |n: &u8| Keys::line(&format!("k{n}"), std::array::from_fn(|i| n.wrapping_add((i as u8).wrapping_mul(73)))).unwrap();
        let keys = ids.iter().map(line).collect::<Vec<_>>().join("\n");
        let keyring = (!ids.is_empty()).then(|| Keyring::new(Keys::parse(&keys).unwrap(), Arc::new(|| [9; 16])));
        PeerDir::new(Arc::new(disk.clone()), Path::new("/d"), keyring)
    }

    #[test]
    fn private_keys_are_encrypted_under_the_first_key() {
        let disk = ScriptedDisk::new(1);
        let key = dir(&disk, &[]).joining_key().unwrap();
        let path = Path::new("/d/peer/joining.key");
        let stored = || disk.contents()[path].clone();
        assert_eq!(stored(), key.as_bytes());
        let mut before = stored();
        for ids in [&[1][..], &[2, 1], &[2]] {
            assert_eq!(dir(&disk, ids).joining_key().unwrap(), key, "{ids:?}");
            assert!(is_sealed_file(&stored()) && (stored() != before) == (ids != [2]), "{ids:?}");
            assert!(!stored().windows(20).any(|w| key.as_bytes().windows(20).any(|k| k == w)));
            before = stored();
        }
        for ids in [&[][..], &[3]] {
            let e = dir(&disk, ids).joining_key().unwrap_err().to_string();
            assert!(e.contains("is encrypted with the key \"k2\""), "{e}");
            assert_eq!(stored(), before);
        }
        // Damage is no error: another key is made.
        disk.corrupt(path, 210, 1).unwrap();
        assert_ne!(dir(&disk, &[2]).joining_key().unwrap(), key);
    }
}

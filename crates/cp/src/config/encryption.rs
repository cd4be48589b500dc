//! Encryption at rest: where the keys come from.

use super::load::Values;
use anyhow::{Context, Result};
use ikada_raft::Keys;
use std::{ffi::OsStr, path::PathBuf};

const KEY_FILE: &str = "store.encryption.keyFile";

/// The keys of the configured file, else those that a supervisor gave as a credential in the directory `credentials`, else none.
pub(super) fn keys(v: &mut Values, credentials: Option<&OsStr>) -> Result<Option<Keys>> {
    let (path, origin) = match v.optional(KEY_FILE) {
        Some(path) => (PathBuf::from(path), format!("{KEY_FILE}{}", v.origin(KEY_FILE))),
        None => match Keys::credential(credentials) {
            Some(path) => (path, "credential of the service".to_owned()),
            None => return Ok(None),
        },
    };
    let (keys, warning) = Keys::read(&path).with_context(|| origin)?;
    v.warnings.extend(warning);
    Ok(Some(keys))
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Flags};
    use ikada_raft::Keys;

    #[test]
    fn keys_come_from_the_file_or_from_a_credential() {
        let tmp = tempfile::tempdir().unwrap();
        let line = |id, n: u8| Keys::line(id, std::array::from_fn(|i| n.wrapping_add((i as u8).wrapping_mul(9)))).unwrap();
        let (file, credential) = (tmp.path().join("keys"), tmp.path().join("ikada-encryption-keys"));
        let directory = ("CREDENTIALS_DIRECTORY".to_owned(), tmp.path().display().to_string());
        let named = |prefix: &str| (format!("{prefix}_STORE_ENCRYPTION_KEY_FILE"), file.display().to_string());
        let ids = |env: Vec<(String, String)>| Config::load(None, env, &Flags::default()).map(|(c, _)| c.encryption.map(|keys| keys.ids()));
        assert_eq!(ids(vec![directory.clone()]).unwrap(), None);
        std::fs::write(&credential, line("b", 1)).unwrap();
        assert_eq!(ids(vec![directory.clone()]).unwrap(), Some(vec!["b".to_owned()]));
        let missing = format!("{:#}", ids(vec![directory.clone(), named("IKADA")]).unwrap_err());
        assert!(missing.contains("store.encryption.keyFile (from IKADA_STORE_ENCRYPTION_KEY_FILE)") && missing.contains("keys"), "{missing}");
        std::fs::write(&file, line("a", 2) + "\n" + &line("b", 1)).unwrap();
        assert_eq!(ids(vec![directory, named("IKADA")]).unwrap(), Some(vec!["a".to_owned(), "b".to_owned()]));
        let config = tmp.path().join("cp.yaml");
        std::fs::write(&config, format!("store:\n  encryption:\n    keyFile: {}\n", file.display())).unwrap();
        let (c, warnings) = Config::load(Some(&config), [], &Flags::default()).unwrap();
        assert_eq!(c.encryption.as_ref().unwrap().ids(), ["a", "b"]);
        assert!(warnings.iter().any(|w| w.contains("chmod 600")), "{warnings:?}");
        let shown = format!("{c:?} {}", c.effective());
        assert!(!shown.contains(line("a", 2).split_once(':').unwrap().1), "a key is shown");
    }
}

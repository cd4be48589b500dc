//! The file of keys for encryption at rest.
//!
//! ```text
//! # the first key seals what is written, all of them open what is read
//! key-2026b:Fh0…=
//! key-2026a:9sM…=
//! ```
//!
//! One key per line: an id of 1 to 32 letters, digits, `-`, `_` or `.`, a colon, and 32 random bytes in base64. Empty lines and lines that
//! begin with `#` do not count.

use base64::{Engine, engine::general_purpose::STANDARD};
use std::{
    ffi::OsStr,
    fmt,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Name under which systemd (`LoadCredential=`, `LoadCredentialEncrypted=`) or another supervisor gives the keys.
pub const CREDENTIAL: &str = "ikada-encryption-keys";
/// Bytes of a key (AES-256).
pub const KEY_BYTES: usize = 32;
/// Longest id in bytes.
pub const MAX_ID_BYTES: usize = 32;
/// Most keys of a file; a rotation needs two.
const MAX_KEYS: usize = 64;
const MAX_FILE_BYTES: u64 = 64 << 10;
/// 32 random bytes have about 30 different values; fewer than this many never happen.
const MIN_DIFFERENT: usize = 12;

/// Why a file of keys is refused. One line that names the line and says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("encryption keys: {0}")]
pub struct KeysError(String);

/// A key and its id.
struct Key {
    id: String,
    bytes: [u8; KEY_BYTES],
}

/// The keys of this node: the first seals, all open. Never empty. Its text forms show ids only.
#[derive(Clone)]
pub struct Keys(Arc<Vec<Key>>);

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keys").field(&self.ids()).finish()
    }
}

fn valid_id(id: &str) -> bool {
    (1..=MAX_ID_BYTES).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// What makes bytes no key, if anything.
fn weakness(bytes: &[u8; KEY_BYTES]) -> Option<&'static str> {
    let mut seen = [false; 256];
    for b in bytes {
        if let Some(slot) = seen.get_mut(usize::from(*b)) {
            *slot = true;
        }
    }
    if seen.iter().filter(|s| **s).count() < MIN_DIFFERENT {
        return Some("it is a pattern, not random bytes");
    }
    bytes.iter().all(|b| (0x20..0x7f).contains(b)).then_some("it is text, not random bytes")
}

impl Keys {
    /// Reads the text of a file of keys.
    ///
    /// # Errors
    /// No key, a malformed line, a key that is not 32 bytes or not random, an id or a key that occurs twice. Keys are never quoted.
    pub fn parse(text: &str) -> Result<Keys, KeysError> {
        let mut keys: Vec<Key> = Vec::new();
        for (n, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let fail = |what: String| Err(KeysError(format!("line {}: {what}", n + 1)));
            let how = "make one with `ikadactl generate encryption-key`";
            let Some((id, encoded)) = line.split_once(':') else {
                return fail(format!("it is not of the form id:key; {how}"));
            };
            if !valid_id(id) {
                return fail(format!("the id must have 1 to {MAX_ID_BYTES} letters, digits, '-', '_' or '.'"));
            }
            let Ok(bytes) = STANDARD.decode(encoded.trim()) else {
                return fail(format!("key {id:?} is not base64; {how}"));
            };
            let Ok(bytes) = <[u8; KEY_BYTES]>::try_from(bytes.as_slice()) else {
                return fail(format!("key {id:?} has {} bytes, it must have {KEY_BYTES}; {how}", bytes.len()));
            };
            if let Some(why) = weakness(&bytes) {
                return fail(format!("key {id:?} is weak: {why}; {how}"));
            }
            if keys.iter().any(|k| k.id == id) {
                return fail(format!("the id {id:?} occurs twice"));
            }
            if let Some(same) = keys.iter().find(|k| k.bytes == bytes) {
                return fail(format!("keys {:?} and {id:?} are the same", same.id));
            }
            keys.push(Key { id: id.to_owned(), bytes });
            if keys.len() > MAX_KEYS {
                return fail(format!("more than {MAX_KEYS} keys"));
            }
        }
        if keys.is_empty() {
            return Err(KeysError("there is no key: add one with `ikadactl generate encryption-key`".to_owned()));
        }
        Ok(Keys(Arc::new(keys)))
    }

    /// Reads a file of keys. Gives a warning beside them when others than its owner can read or change it.
    ///
    /// # Errors
    /// The file cannot be read, or as [`Keys::parse`]; both name the file.
    pub fn read(path: &Path) -> Result<(Keys, Option<String>), KeysError> {
        let named = |what: &dyn fmt::Display| KeysError(format!("{}: {what}", path.display()));
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(|e| named(&e))?;
        let mode = file.metadata().map_err(|e| named(&e))?.mode();
        file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(|e| named(&e))?;
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(named(&format!("it is larger than {MAX_FILE_BYTES} bytes")));
        }
        let keys = Keys::parse(&text).map_err(|e| named(&e.0))?;
        // The group is left out: a credential of systemd is readable for its service by an access list, which shows as the group's.
        let warning = (mode & 0o027 != 0).then(|| {
            format!("encryption keys: {} has mode {:03o}, others can read or change it: chmod 600", path.display(), mode & 0o777)
        });
        Ok((keys, warning))
    }

    /// Where a supervisor put the keys: the file [`CREDENTIAL`] in `directory`, the value of `$CREDENTIALS_DIRECTORY`, if it is there.
    pub fn credential(directory: Option<&OsStr>) -> Option<PathBuf> {
        let path = Path::new(directory.filter(|d| !d.is_empty())?).join(CREDENTIAL);
        path.is_file().then_some(path)
    }

    /// A line for a file of keys, with 32 bytes from a good source of randomness.
    ///
    /// # Errors
    /// The id is not one.
    pub fn line(id: &str, random: [u8; KEY_BYTES]) -> Result<String, KeysError> {
        let line = format!("{id}:{}", STANDARD.encode(random));
        Keys::parse(&line).map(|_| line)
    }

    /// Ids in the order of the file; the first is that of the key that seals.
    pub fn ids(&self) -> Vec<String> {
        self.0.iter().map(|k| k.id.clone()).collect()
    }

    /// Id and bytes of the key that seals.
    pub(super) fn first(&self) -> Option<(&str, &[u8; KEY_BYTES])> {
        self.0.first().map(|k| (k.id.as_str(), &k.bytes))
    }

    pub(super) fn get(&self, id: &str) -> Option<&[u8; KEY_BYTES]> {
        self.0.iter().find(|k| k.id == id).map(|k| &k.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn bytes(n: u8) -> [u8; KEY_BYTES] {
        std::array::from_fn(|i| (i as u8).wrapping_mul(89).wrapping_add(n))
    }

    #[test]
    fn a_file_of_keys() {
        let text = format!("# new\n{}\n\n  {}  \n", Keys::line("b", bytes(1)).unwrap(), Keys::line("a.2026_x-", bytes(2)).unwrap());
        let keys = Keys::parse(&text).unwrap();
        assert_eq!(keys.ids(), ["b", "a.2026_x-"]);
        assert_eq!(keys.first(), Some(("b", &bytes(1))));
        assert_eq!(keys.get("a.2026_x-"), Some(&bytes(2)));
        assert_eq!(keys.get("c"), None);
        assert_eq!(format!("{keys:?}"), "Keys([\"b\", \"a.2026_x-\"])", "no key is shown");
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_quoted() {
        let good = Keys::line("a", bytes(1)).unwrap();
        let encoded = good.split_once(':').unwrap().1;
        let cases = [
            (String::new(), "there is no key"),
            ("# only words\n".to_owned(), "there is no key"),
            (encoded.trim_end_matches('=').to_owned(), "line 1: it is not of the form"),
            (format!(":{encoded}"), "the id must have"),
            (format!("{}:{encoded}", "x".repeat(33)), "the id must have"),
            (format!("a b:{encoded}"), "the id must have"),
            (format!("a:{}", &encoded[1..]), "is not base64"),
            (format!("a:{}", STANDARD.encode([7; 16])), "has 16 bytes, it must have 32"),
            (format!("a:{}", STANDARD.encode([7; 64])), "has 64 bytes"),
            (format!("a:{}", STANDARD.encode([0; 32])), "is weak: it is a pattern"),
            (format!("a:{}", STANDARD.encode(b"correct horse battery staple 123")), "is weak: it is text"),
            (format!("{good}\n#\n{good}"), "line 3: the id \"a\" occurs twice"),
            (format!("{good}\nb:{encoded}"), "keys \"a\" and \"b\" are the same"),
        ];
        for (text, expected) in cases {
            let message = Keys::parse(&text).unwrap_err().to_string();
            assert!(message.contains(expected) && !message.contains('\n'), "{text}: {message}");
            assert!(!message.contains(&encoded[..10]), "{message}");
        }
        let many: String = (0..65).map(|n| Keys::line(&n.to_string(), bytes(n)).unwrap() + "\n").collect();
        assert!(Keys::parse(&many).unwrap_err().to_string().contains("more than 64"));
        assert!(Keys::line("not an id", bytes(1)).is_err());
    }

    #[test]
    fn a_file_that_others_can_read_gets_a_warning() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join(CREDENTIAL);
        assert!(Keys::read(&path).unwrap_err().to_string().contains(CREDENTIAL));
        assert_eq!(Keys::credential(Some(tmp.path().as_os_str())), None);
        std::fs::write(&path, Keys::line("a", bytes(1)).unwrap()).unwrap();
        assert_eq!(Keys::credential(Some(tmp.path().as_os_str())), Some(path.clone()));
        assert_eq!(Keys::credential(None), None);
        for (mode, warned) in [(0o600, false), (0o400, false), (0o440, false), (0o644, true), (0o620, true), (0o666, true)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let (keys, warning) = Keys::read(&path).unwrap();
            assert_eq!(keys.ids(), ["a"]);
            assert_eq!(warning.is_some(), warned, "{mode:o}");
        }
        std::fs::write(&path, "x".repeat(70_000)).unwrap();
        assert!(Keys::read(&path).unwrap_err().to_string().contains("larger than"));
    }
}

//! Identifiers of resources (reference: Kuma 2.14.3 REST contract, §3.2 and §2.4).

use crate::{
    kind::Kind,
    violation::{Path, Violations},
};

/// Longest name and mesh, in bytes.
pub const MAX_LEN: usize = 253;
/// Longest name of a Mesh that is created, and of MeshService and MeshExternalService, in bytes.
pub const MAX_LABEL_LEN: usize = 63;

const EMPTY: &str = "cannot be empty";
const TOO_LONG: &str = "value length must less or equal 253";
const NAME_CHARS: &str = "invalid characters. A lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or \
    '.', and must start and end with an alphanumeric character";
const MESH_CHARS: &str = "invalid characters. Valid characters are numbers, lowercase latin letters and '-', '_', '.' symbols.";
const DNS1035_CHARS: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
    character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is \
    '[a-z]([-a-z0-9]*[a-z0-9])?')";

/// First rule that `name` breaks, as a message. `None` = a valid resource name.
pub fn name_error(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some(EMPTY)
    } else if name.len() > MAX_LEN {
        Some(TOO_LONG)
    } else if !is_rfc1123_subdomain(name) {
        Some(NAME_CHARS)
    } else {
        None
    }
}

/// First rule that `mesh` breaks, as a message. Looser than a name: old meshes may contain `_`.
pub fn mesh_error(mesh: &str) -> Option<&'static str> {
    if mesh.is_empty() {
        Some(EMPTY)
    } else if mesh.len() > MAX_LEN {
        Some(TOO_LONG)
    } else if !mesh.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase() || matches!(b, b'-' | b'_' | b'.')) {
        Some(MESH_CHARS)
    } else {
        None
    }
}

/// Rules of §3.2 on field `name`.
pub fn validate_name(name: &str, out: &mut Violations) {
    if let Some(message) = name_error(name) {
        out.add("name", message);
    }
}

/// Rules of §3.2 on field `mesh`.
pub fn validate_mesh(mesh: &str, out: &mut Violations) {
    if let Some(message) = mesh_error(mesh) {
        out.add("mesh", message);
    }
}

/// Name and, for mesh-scoped kinds, mesh.
pub fn validate(kind: Kind, mesh: &str, name: &str, out: &mut Violations) {
    validate_name(name, out);
    if kind.is_mesh_scoped() {
        validate_mesh(mesh, out);
    }
}

/// Length of the name of a Mesh; applies at creation only (§3.2).
pub fn validate_new_mesh_name(name: &str, out: &mut Violations) {
    if name.len() > MAX_LABEL_LEN {
        out.add("name", "cannot be longer than 63 characters");
    }
}

/// Identifier rule on a reference inside a spec, e.g. a backend's name.
pub fn validate_reference(path: &Path, name: &str, out: &mut Violations) {
    if let Some(message) = name_error(name) {
        out.add(path, message);
    }
}

/// Dot-separated labels of `[a-z0-9]([-a-z0-9]*[a-z0-9])?`. Says nothing about length.
pub fn is_rfc1123_subdomain(text: &str) -> bool {
    text.split('.').all(|label| {
        let alnum = |b: &u8| b.is_ascii_digit() || b.is_ascii_lowercase();
        let bytes = label.as_bytes();
        bytes.first().is_some_and(alnum) && bytes.last().is_some_and(alnum) && bytes.iter().all(|b| alnum(b) || *b == b'-')
    })
}

/// Kubernetes' messages when `text` is no DNS-1035 label; empty when it is one (§2.4).
pub fn dns1035_errors(text: &str) -> Vec<&'static str> {
    let mut errors = Vec::new();
    if text.len() > 63 {
        errors.push("must be no more than 63 characters");
    }
    let bytes = text.as_bytes();
    let alnum = |b: &u8| b.is_ascii_digit() || b.is_ascii_lowercase();
    if !(bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.last().is_some_and(alnum)
        && bytes.iter().all(|b| alnum(b) || *b == b'-'))
    {
        errors.push(DNS1035_CHARS);
    }
    errors
}

/// The deprecation warning for names that are no DNS-1035 label (Mesh, Zone and destinations, §2.4).
pub fn dns1035_warning(kind: Kind, display_name: &str) -> Option<String> {
    let errors = dns1035_errors(display_name);
    (!errors.is_empty()).then(|| {
        format!(
            "Invalid {kind} resource name: '{display_name}'. It does not conform to the DNS format (RFC 1035). This is deprecated. \
                Errors: {}",
            errors.join("; ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for ok in ["a", "0", "a-b.c-d", "x.0"] {
            assert_eq!(name_error(ok), None, "{ok}");
        }
        for bad in ["-a", "a-", "a..b", ".a", "A", "a_b", "a.-b", "ä"] {
            assert_eq!(name_error(bad), Some(NAME_CHARS), "{bad}");
        }
        assert_eq!(name_error(""), Some(EMPTY));
        assert_eq!(name_error(&"a".repeat(254)), Some(TOO_LONG));
        assert_eq!(name_error(&"a".repeat(253)), None);
        assert_eq!(mesh_error("my_mesh-1.x"), None);
        assert_eq!(mesh_error("My"), Some(MESH_CHARS));
    }

    #[test]
    fn dns1035() {
        assert!(dns1035_errors("abc-123").is_empty());
        assert_eq!(dns1035_errors("1abc"), [DNS1035_CHARS]);
        assert_eq!(dns1035_errors("").len(), 1);
        assert_eq!(dns1035_errors(&format!("1{}", "a".repeat(70))).len(), 2);
        assert_eq!(dns1035_warning(Kind::Mesh, "m"), None);
        assert!(dns1035_warning(Kind::Zone, "1").is_some_and(|w| w.starts_with("Invalid Zone resource name: '1'. It does not")));
    }
}

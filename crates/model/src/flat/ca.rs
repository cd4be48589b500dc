//! CA backends of a Mesh: the checks that need no cryptography, and what is left for those that do
//! (reference: Kuma 2.14.3 REST contract, §8.1; legacy contract §3.4).

use super::{
    checks::{EMPTY, list, text},
    proto::{self, Message, Type, field, one_of},
};
use crate::{
    go, ident,
    mesh::{builtin_ca_cert_secret, parse_lifetime},
    violation::{Path, Violations},
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::Value;

static DATA_SOURCE: Message = Message {
    name: "kuma.system.v1alpha1.DataSource",
    fields: &[
        one_of("type", "secret", Type::String),
        one_of("type", "file", Type::String),
        one_of("type", "inline", Type::BytesValue),
        one_of("type", "inlineString", Type::String),
    ],
};
static BUILTIN: Message = Message {
    name: "kuma.plugins.ca.BuiltinCertificateAuthorityConfig",
    fields: &[field(
        "caCert",
        Type::Message(&Message {
            name: "kuma.plugins.ca.BuiltinCertificateAuthorityConfig.CaCert",
            fields: &[field("RSAbits", Type::U32), field("expiration", Type::String)],
        }),
    )],
};
static PROVIDED: Message = Message {
    name: "kuma.plugins.ca.ProvidedCertificateAuthorityConfig",
    fields: &[field("cert", Type::Message(&DATA_SOURCE)), field("key", Type::Message(&DATA_SOURCE))],
};

/// Longest name of a Secret of a builtin backend.
const MAX_SECRET_NAME: usize = 255;

/// Where a certificate or key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataSource {
    /// A Secret of the mesh, by name.
    Secret(String),
    /// A file on the control plane, by path.
    File(String),
    /// The data themselves.
    Inline(Vec<u8>),
}

impl DataSource {
    /// Reads a canonical data source; errors are (field below the source, message).
    fn read(value: &Value) -> Result<DataSource, (&'static str, &'static str)> {
        let get = |field: &str| value.get(field).and_then(Value::as_str);
        let filled = |field: &'static str, text: &str| if text.is_empty() { Err((field, EMPTY)) } else { Ok(text.to_owned()) };
        if let Some(name) = get("secret") {
            filled("secret", name).map(DataSource::Secret)
        } else if let Some(path) = get("file") {
            filled("file", path).map(DataSource::File)
        } else if let Some(data) = get("inline") {
            filled("inline", data).map(|d| DataSource::Inline(BASE64.decode(d).unwrap_or_default()))
        } else if let Some(data) = get("inlineString") {
            filled("inlineString", data).map(|d| DataSource::Inline(d.into_bytes()))
        } else {
            Err(("", "data source has to be chosen. Available sources: secret, file, inline"))
        }
    }
}

/// A `provided` backend whose certificate and key the caller has to load and check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvidedBackend {
    /// Index in `mtls.backends`.
    pub index: usize,
    /// Name.
    pub name: String,
    /// Path of its conf, `mtls.backends[i].conf`: violations are reported below it (`.cert`, `.key`, `.cert[i]`).
    pub path: Path,
    /// The CA certificate, PEM.
    pub cert: DataSource,
    /// Its key, PEM.
    pub key: DataSource,
    /// `mtls.skipValidation`: nothing is to be checked on write.
    pub skip_validation: bool,
}

/// The `provided` backends of a canonical Mesh spec. Those whose conf is not complete are left out: [`validate_backends`] reports them.
pub fn provided_backends(spec: &Value) -> Vec<ProvidedBackend> {
    let mtls = spec.get("mtls").unwrap_or(&Value::Null);
    let skip_validation = super::checks::flag(mtls, "skipValidation");
    let provided = list(mtls, "backends").iter().enumerate().filter(|(_, b)| text(b, "type") == "provided");
    provided
        .filter_map(|(index, backend)| {
            let conf = proto::canonicalize(&PROVIDED, backend.get("conf").unwrap_or(&Value::Null)).ok()?;
            Some(ProvidedBackend {
                index,
                name: text(backend, "name").to_owned(),
                path: conf_path(index),
                cert: DataSource::read(conf.get("cert")?).ok()?,
                key: DataSource::read(conf.get("key")?).ok()?,
                skip_validation,
            })
        })
        .collect()
}

/// Names of the Secrets that a Mesh's CA backends use, with the backend: they must not be deleted (§6.4).
pub fn used_secrets(mesh: &str, spec: &Value) -> Vec<(String, String)> {
    let mtls = spec.get("mtls").unwrap_or(&Value::Null);
    let mut used = Vec::new();
    for backend in list(mtls, "backends").iter().filter(|b| text(b, "type") == "builtin") {
        let name = text(backend, "name");
        used.push((builtin_ca_cert_secret(mesh, name), name.to_owned()));
        used.push((crate::mesh::builtin_ca_key_secret(mesh, name), name.to_owned()));
    }
    for backend in provided_backends(spec) {
        for source in [backend.cert, backend.key] {
            if let DataSource::Secret(secret) = source {
                used.push((secret, backend.name.clone()));
            }
        }
    }
    used
}

/// Rules of the CA plugins on a canonical Mesh spec that need no cryptography: types, names, presence of data sources.
pub fn validate_backends(mesh: &str, spec: &Value, out: &mut Violations) {
    let mtls = spec.get("mtls").unwrap_or(&Value::Null);
    let skip = super::checks::flag(mtls, "skipValidation");
    for (i, backend) in list(mtls, "backends").iter().enumerate() {
        let at = Path::of("mtls.backends").index(i);
        let conf = backend.get("conf").unwrap_or(&Value::Null);
        match text(backend, "type") {
            "builtin" if skip => {}
            "builtin" => builtin(mesh, text(backend, "name"), &conf_path(i), conf, out),
            "provided" if skip => {}
            "provided" => provided(&conf_path(i), conf, out),
            _ => {
                out.add(at.field("type"), "could not find installed plugin for this type");
                return;
            }
        }
    }
}

fn conf_path(index: usize) -> Path {
    Path::of("mtls.backends").index(index).field("conf")
}

fn builtin(mesh: &str, name: &str, at: &Path, conf: &Value, out: &mut Violations) {
    match proto::canonicalize(&BUILTIN, conf) {
        Err(e) => out.add(at, format!("could not convert backend config: {e}")),
        // Kuma finds this out only when it makes the CA, and then answers 500.
        Ok(conf) => {
            let expiration = conf.get("caCert").map_or("", |c| text(c, "expiration"));
            if !expiration.is_empty() && parse_lifetime(expiration).is_none() {
                out.add(at.field("caCert").field("expiration"), "has to be a valid format");
            }
        }
    }
    let secret = builtin_ca_cert_secret(mesh, name);
    // The path repeats itself, as Kuma writes it.
    let at = at.field("mtls.backends.name");
    if secret.len() > MAX_SECRET_NAME {
        out.add(at, format!("Backend name is too long. Max length: {MAX_SECRET_NAME}"));
    } else if !ident::is_rfc1123_subdomain(&secret) {
        out.add(at, format!("{} name must be valid dns name", go::quote(name)));
    }
}

fn provided(at: &Path, conf: &Value, out: &mut Violations) {
    let conf = match proto::canonicalize(&PROVIDED, conf) {
        Ok(conf) => conf,
        Err(e) => return out.add(at, format!("could not convert backend config: {e}")),
    };
    for part in ["cert", "key"] {
        let at = at.field(part);
        match conf.get(part).map(DataSource::read) {
            None => out.add(at, "has to be defined"),
            Some(Err(("", message))) => out.add(at, message),
            Some(Err((field, message))) => out.add(at.field(field), message),
            Some(Ok(_)) => {}
        }
    }
}

/// Settings of a builtin backend: RSA bits (0 = default) and life of the CA certificate, `None` = default. `conf` is that of the backend.
pub fn builtin_conf(conf: &Value) -> (u32, Option<std::time::Duration>) {
    let conf = proto::canonicalize(&BUILTIN, conf).unwrap_or_default();
    let cert = conf.get("caCert").unwrap_or(&Value::Null);
    let bits = u32::try_from(super::checks::number(cert, "RSAbits")).unwrap_or(0);
    (bits, parse_lifetime(text(cert, "expiration")).filter(|d| !d.is_zero()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn mesh(backend: Value) -> Value {
        json!({"mtls": {"backends": [backend]}})
    }
    fn errors(name: &str, spec: &Value) -> Vec<String> {
        let mut out = Violations::new();
        validate_backends(name, spec, &mut out);
        out.into_iter().map(|v| v.to_string()).collect()
    }

    #[test]
    fn builtin_backends() {
        assert!(errors("m", &mesh(json!({"name": "b", "type": "builtin"}))).is_empty());
        assert_eq!(
            errors("m", &mesh(json!({"name": "B_", "type": "builtin"}))),
            [r#"mtls.backends[0].conf.mtls.backends.name: "B_" name must be valid dns name"#]
        );
        assert_eq!(
            errors("m", &mesh(json!({"name": "b".repeat(250), "type": "builtin"}))),
            ["mtls.backends[0].conf.mtls.backends.name: Backend name is too long. Max length: 255"]
        );
        assert_eq!(
            errors("m", &mesh(json!({"name": "b", "type": "vault"}))),
            ["mtls.backends[0].type: could not find installed plugin for this type"]
        );
        let conf = json!({"caCert": {"RSAbits": 4096, "expiration": "1y"}});
        assert_eq!(builtin_conf(&conf), (4096, Some(std::time::Duration::from_secs(365 * 86_400))));
        assert_eq!(builtin_conf(&Value::Null), (0, None));
    }

    #[test]
    fn provided_sources() {
        assert_eq!(
            errors("m", &mesh(json!({"name": "p", "type": "provided", "conf": {"key": {"secret": ""}}}))),
            ["mtls.backends[0].conf.cert: has to be defined", "mtls.backends[0].conf.key.secret: cannot be empty"]
        );
        assert_eq!(
            errors("m", &mesh(json!({"name": "p", "type": "provided", "conf": {"cert": {}, "key": {"file": "/k"}}}))),
            ["mtls.backends[0].conf.cert: data source has to be chosen. Available sources: secret, file, inline"]
        );
        let full = mesh(json!({"name": "p", "type": "provided", "conf": {"cert": {"inline": "YWJj"}, "key": {"secret": "s"}}}));
        assert!(errors("m", &full).is_empty());
        let backends = provided_backends(&full);
        assert_eq!(backends[0].cert, DataSource::Inline(b"abc".to_vec()));
        assert_eq!(backends[0].path.as_str(), "mtls.backends[0].conf");
        assert_eq!(used_secrets("m", &full), [("s".to_owned(), "p".to_owned())]);
        assert_eq!(used_secrets("m", &mesh(json!({"name": "b", "type": "builtin"}))).len(), 2);
    }
}

//! CA backends of a Mesh: the checks that need neither cryptography nor stored secrets
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

/// What a canonical data source lacks: (field below the source, message). Loading it is the caller's part.
fn source_error(source: &Value) -> Option<(&'static str, &'static str)> {
    let given = ["secret", "file", "inline", "inlineString"].into_iter().find_map(|f| Some((f, source.get(f)?.as_str()?)));
    match given {
        None => Some(("", "data source has to be chosen. Available sources: secret, file, inline")),
        Some((field, "")) => Some((field, EMPTY)),
        Some(_) => None,
    }
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
        match conf.get(part).map(source_error) {
            None => out.add(at, "has to be defined"),
            Some(Some(("", message))) => out.add(at, message),
            Some(Some((field, message))) => out.add(at.field(field), message),
            Some(None) => {}
        }
    }
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
        let with = |cert: Value| mesh(json!({"name": "b", "type": "builtin", "conf": {"caCert": cert}}));
        assert!(errors("m", &with(json!({"RSAbits": 4096, "expiration": "1y"}))).is_empty());
        assert_eq!(
            errors("m", &with(json!({"expiration": "1 year"}))),
            ["mtls.backends[0].conf.caCert.expiration: has to be a valid format"]
        );
        assert_eq!(
            errors("m", &with(json!({"RSAbits": "x"}))),
            ["mtls.backends[0].conf: could not convert backend config: json: cannot unmarshal string into Go value of type uint32"]
        );
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
    }
}

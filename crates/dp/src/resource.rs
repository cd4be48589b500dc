//! The proxy's resource and token, as the user gave them (reference: §3.3 steps 2 and 3).

use crate::{
    cli::{ProxyType, Run},
    workdir::WorkDir,
};
use anyhow::{Context, anyhow, bail};
use ikada_cli::{parse_yaml, render, variables};
use ikada_model::{DecodeError, Kind, decode, ident};
use serde_json::Value;
use std::{io::Read, path::Path};

/// Largest resource or token, in bytes.
const MAX_INPUT: u64 = 4 << 20;

/// Who the proxy is.
#[derive(Debug, Clone, PartialEq)]
pub struct Identity {
    /// Name.
    pub name: String,
    /// Mesh; empty for zone proxies.
    pub mesh: String,
    /// The resource as JSON, when the user gave one.
    pub resource: Option<Value>,
    /// `networking.address` of the resource.
    pub address: Option<String>,
}

fn read_bounded(source: impl Read, name: &str) -> anyhow::Result<String> {
    let mut text = String::new();
    source.take(MAX_INPUT + 1).read_to_string(&mut text).with_context(|| format!("cannot read {name}"))?;
    if text.len() as u64 > MAX_INPUT {
        bail!("{name} is longer than {MAX_INPUT} bytes");
    }
    Ok(text)
}

fn read_file(path: &Path, what: &str) -> anyhow::Result<String> {
    let name = format!("the {what} {}", path.display());
    read_bounded(std::fs::File::open(path).with_context(|| format!("cannot read {name}"))?, &name)
}

/// Reads the resource, or takes name and mesh from the flags.
///
/// # Errors
/// The template, the YAML or the resource is wrong; or neither resource nor name is given.
pub fn identity(args: &Run) -> anyhow::Result<Identity> {
    let text = match (&args.dataplane_file, &args.dataplane) {
        (Some(path), _) if path == Path::new("-") => Some(read_bounded(std::io::stdin().lock(), "the dataplane definition on standard input")?),
        (Some(path), _) => Some(read_file(path, "dataplane definition")?),
        (None, Some(text)) => Some(text.clone()),
        (None, None) => None,
    };
    match text {
        Some(text) => {
            // A unit file may set them to nothing.
            if [&args.name, &args.mesh].into_iter().flatten().any(|given| !given.is_empty()) {
                bail!(
                    "--name and --mesh cannot be specified when a dataplane definition is provided, mesh and name will be read from the \
                     dataplane definition."
                );
            }
            from_definition(&text, &args.dataplane_var, args.proxy_type)
        }
        None => {
            let name = args.name.clone().unwrap_or_default();
            if name.is_empty() {
                bail!("which proxy is this? Give its definition with --dataplane-file, or --name and --mesh of one in the control plane");
            }
            let mesh = match args.proxy_type {
                ProxyType::Dataplane => args.mesh.clone().filter(|m| !m.is_empty()).unwrap_or_else(|| "default".to_owned()),
                _ => String::new(),
            };
            Ok(Identity { name, mesh, resource: None, address: None })
        }
    }
}

fn from_definition(text: &str, vars: &[(String, String)], proxy_type: ProxyType) -> anyhow::Result<Identity> {
    let vars = variables(vars.iter().map(|(k, v)| (k.as_str(), v.as_str())));
    let text = render(text, &vars).context("the dataplane definition cannot be rendered")?;
    let mut resource = parse_yaml(&text).map_err(|e| anyhow!("the dataplane definition is no YAML or JSON: {e}"))?;
    let kind = proxy_type.kind();
    let Some(fields) = resource.as_object_mut() else { bail!("the dataplane definition must be an object with type, name and networking") };
    let given = fields.get("type").and_then(Value::as_str).unwrap_or("").to_owned();
    if given != kind.name() {
        bail!("invalid proxy type: the definition's type is {given:?}, a proxy of type {:?} needs {:?}", proxy_type.as_str(), kind.name());
    }
    let text_of = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or("").to_owned();
    let name = text_of(fields.get("name"));
    let mut mesh = String::new();
    if kind == Kind::Dataplane {
        mesh = text_of(fields.get("mesh"));
        if mesh.is_empty() {
            mesh = "default".to_owned();
            fields.insert("mesh".to_owned(), Value::String(mesh.clone()));
        }
    }
    let mut wrong: Vec<String> = ident::name_error(&name).map(|e| format!("* name: {e}")).into_iter().collect();
    match decode::decode(kind, &resource) {
        Ok(_) | Err(DecodeError::NotImplemented(_)) => {}
        Err(DecodeError::Malformed(reason)) => wrong.push(format!("* {reason}")),
        Err(DecodeError::Invalid(violations)) => wrong.extend(violations.iter().map(|v| format!("* {v}"))),
    }
    if !wrong.is_empty() {
        bail!("the dataplane definition is not valid\n{}", wrong.join("\n"));
    }
    let address = resource.pointer("/networking/address").and_then(Value::as_str).map(str::to_owned);
    Ok(Identity { name, mesh, resource: Some(resource), address })
}

/// The token and the file it is in; an inline token is written into the work directory.
///
/// # Errors
/// The file cannot be read or is empty.
pub fn token(args: &Run, name: &str, dir: &WorkDir) -> anyhow::Result<Option<(String, String)>> {
    let (token, path) = match (&args.dataplane_token_file, &args.dataplane_token) {
        (Some(path), _) => {
            let absolute = path.canonicalize().with_context(|| format!("cannot read the token {}", path.display()))?;
            (read_file(path, "token")?, absolute)
        }
        (None, Some(token)) => (token.clone(), dir.write_secret(name, token.trim().as_bytes())?),
        (None, None) => return Ok(None),
    };
    let token = token.trim().to_owned();
    if token.is_empty() {
        bail!("the token in {} is empty", path.display());
    }
    Ok(Some((token, path.display().to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = "type: Dataplane\nname: {{ name }}\nnetworking:\n  address: {{ address }}\n  inbound:\n  - port: 80\n    tags: {kuma.io/service: web}\n";

    fn vars(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn definitions_are_templates() {
        let id = from_definition(WEB, &vars(&[("name", "web-1"), ("address", "10.0.0.7")]), ProxyType::Dataplane).unwrap();
        assert_eq!((id.name.as_str(), id.mesh.as_str(), id.address.as_deref()), ("web-1", "default", Some("10.0.0.7")));
        assert_eq!(id.resource.unwrap()["mesh"], "default");
        let missing = from_definition(WEB, &[], ProxyType::Dataplane).unwrap_err().to_string();
        assert!(missing.starts_with("the dataplane definition is not valid\n* "), "{missing}");
        let other = from_definition(&WEB.replace("Dataplane", "Mesh"), &[], ProxyType::Dataplane).unwrap_err().to_string();
        assert!(other.contains("type is \"Mesh\""), "{other}");
        assert!(from_definition("{{", &[], ProxyType::Dataplane).is_err());
        assert!(from_definition("- a", &[], ProxyType::Dataplane).is_err());
        assert!(from_definition("a: [", &[], ProxyType::Dataplane).is_err());
    }
}

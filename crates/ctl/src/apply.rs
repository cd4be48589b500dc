//! `apply` (reference: §7.4).

use crate::{
    cli::{Apply, Root},
    client::{Client, item},
    output,
};
use anyhow::{Context, anyhow, bail};
use ikada_cli::{ServerTrust, documents, http_client, parse_yaml, render, variables};
use ikada_model::{DecodeError, Kind, decode, go};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use std::{io::Read, path::Path, time::Duration};

/// Largest input, in bytes.
const MAX_INPUT: u64 = 64 << 20;

/// A document ready to be sent.
struct Document {
    kind: Kind,
    mesh: String,
    name: String,
    body: Value,
}

/// Reads every document of a file, directory, URL or standard input.
async fn read(source: &str) -> anyhow::Result<Vec<String>> {
    if source == "-" {
        return Ok(documents(&read_bounded(std::io::stdin().lock(), "standard input")?));
    }
    if source.starts_with("http://") || source.starts_with("https://") {
        let client = http_client(source, &ServerTrust::default(), Duration::from_secs(10))?;
        let failed = || format!("cannot fetch {source}");
        let mut response = client.get(source).send().await.with_context(failed)?.error_for_status().with_context(failed)?;
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.with_context(failed)? {
            // What the server announces is no bound.
            if (bytes.len() + chunk.len()) as u64 > MAX_INPUT {
                bail!("{source} is longer than {MAX_INPUT} bytes");
            }
            bytes.extend_from_slice(&chunk);
        }
        return Ok(documents(&String::from_utf8(bytes).with_context(failed)?));
    }
    let path = Path::new(source);
    let failed = || format!("cannot read {source}");
    if !std::fs::metadata(path).with_context(failed)?.is_dir() {
        return read_file(path);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).with_context(failed)? {
        let file = entry.with_context(failed)?.path();
        if file.is_file() && file.extension().and_then(|e| e.to_str()).is_some_and(|e| matches!(e, "yaml" | "yml" | "json")) {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        bail!("there are no .yaml, .yml or .json files in {source}");
    }
    let mut all = Vec::new();
    for file in files {
        all.extend(read_file(&file)?);
    }
    Ok(all)
}

fn read_file(path: &Path) -> anyhow::Result<Vec<String>> {
    let name = path.display().to_string();
    let file = std::fs::File::open(path).with_context(|| format!("cannot read {name}"))?;
    Ok(documents(&read_bounded(file, &name)?))
}

fn read_bounded(source: impl Read, name: &str) -> anyhow::Result<String> {
    let mut text = String::new();
    source.take(MAX_INPUT + 1).read_to_string(&mut text).with_context(|| format!("cannot read {name}"))?;
    if text.len() as u64 > MAX_INPUT {
        bail!("{name} is longer than {MAX_INPUT} bytes");
    }
    Ok(text)
}

/// What is wrong with a document, one line each.
fn prepare(text: &str, vars: &Value, default_mesh: &str) -> Result<Document, Vec<String>> {
    let one = |line: String| vec![line];
    let text = match vars {
        Value::Null => text.to_owned(),
        vars => render(text, vars).map_err(|e| one(e.to_string()))?,
    };
    let invalid = |e: &str| one(format!("failed to parse resource: invalid meta type: {}", go::quote(e)));
    let mut body = parse_yaml(&text).map_err(|e| invalid(&format!("error converting YAML to JSON: {e}")))?;
    let Some(fields) = body.as_object_mut() else { return Err(invalid("a resource must be an object")) };
    let type_name = fields.get("type").and_then(Value::as_str).unwrap_or("").to_owned();
    let Some(kind) = Kind::by_name(&type_name).filter(|k| !k.descriptor().path.is_empty()) else {
        return Err(one(format!("failed to parse resource: invalid resource type {}", go::quote(&type_name))));
    };
    let name = fields.get("name").and_then(Value::as_str).unwrap_or("").to_owned();
    if name.is_empty() {
        return Err(one("name: cannot be empty".to_owned()));
    }
    let mut mesh = String::new();
    if kind.is_mesh_scoped() {
        let given = fields.get("mesh").and_then(Value::as_str).filter(|m| !m.is_empty());
        mesh = given.unwrap_or(default_mesh).to_owned();
        fields.insert("mesh".to_owned(), Value::String(mesh.clone()));
    }
    match decode::decode(kind, &body) {
        Ok(_) => Ok(Document { kind, mesh, name, body }),
        // The control plane may know the kind though this program does not.
        Err(DecodeError::NotImplemented(_)) => Ok(Document { kind, mesh, name, body }),
        Err(DecodeError::Malformed(reason)) => Err(one(format!("failed to parse resource: {reason}"))),
        Err(DecodeError::Invalid(violations)) => Err(violations.iter().map(ToString::to_string).collect()),
    }
}

/// `ikadactl apply`.
///
/// # Errors
/// Nothing is sent when any document is wrong; the first refusal of the control plane ends the rest.
pub async fn run(root: &Root, args: &Apply) -> anyhow::Result<()> {
    let mut texts = Vec::new();
    for source in &args.file {
        texts.extend(read(source).await?);
    }
    if texts.is_empty() {
        bail!("no resource(s) passed to apply");
    }
    let vars = match args.vars.as_slice() {
        [] => Value::Null,
        pairs => variables(pairs.iter().map(|(k, v)| (k.as_str(), v.as_str()))),
    };
    let mut ready = Vec::new();
    let mut failed = false;
    for (i, text) in texts.iter().enumerate() {
        match prepare(text, &vars, &args.mesh) {
            Ok(document) => ready.push(document),
            Err(lines) => {
                failed = true;
                for line in lines {
                    eprintln!("resource[{i}]: {line}");
                }
            }
        }
    }
    if failed {
        bail!("failed to validate some resources");
    }
    if args.dry_run {
        let parts = ready.iter().map(|d| output::resource_yaml(&d.body)).collect::<anyhow::Result<Vec<_>>>()?;
        return output::write(parts.join("---\n").as_bytes());
    }
    let client = Client::new(root)?;
    for d in &ready {
        let what = format!("resource type={:?} mesh={:?} name={:?}", d.kind.name(), d.mesh, d.name);
        let answer = client.call(Method::PUT, &item(d.kind, &d.mesh, &d.name), Some(&d.body)).await?;
        let created = answer.status == StatusCode::CREATED;
        let answer = answer.ok().map_err(|e| anyhow!("{what}: failed server side: {e:#}"))?;
        let warnings = answer.json().ok().and_then(|v| v["warnings"].as_array().cloned()).unwrap_or_default();
        for warning in warnings.iter().filter_map(Value::as_str) {
            eprintln!("Warning: {warning}");
        }
        output::line(&format!("{what} {}", if created { "Created" } else { "Updated" }))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(text: &str) -> Vec<String> {
        prepare(text, &Value::Null, "default").err().unwrap_or_default()
    }

    #[test]
    fn documents_are_checked_before_they_are_sent() {
        let mesh = prepare("type: Mesh\nname: a\n", &Value::Null, "default").ok().unwrap();
        assert_eq!((mesh.kind, mesh.mesh.as_str(), mesh.name.as_str()), (Kind::Mesh, "", "a"));
        assert!(mesh.body.get("mesh").is_none());
        let secret = prepare("type: Secret\nname: a\ndata: dGVzdAo=\n", &Value::Null, "demo").ok().unwrap();
        assert_eq!(secret.body["mesh"], "demo");
        assert_eq!(errors("type: Foo\nname: bam\n"), ["failed to parse resource: invalid resource type \"Foo\""]);
        assert!(errors("\"gewfew\n")[0].starts_with("failed to parse resource: invalid meta type: \"error converting YAML to JSON: "));
        assert_eq!(errors("type: Mesh\n"), ["name: cannot be empty"]);
        let timeout = "type: MeshTimeout\nname: a\nspec: {to: [{targetRef: {kind: Mesh}, default: {idleTimeout: soon}}]}\n";
        assert!(!errors(timeout).is_empty());
        assert!(errors(&timeout.replace("soon", "1h")).is_empty(), "{:?}", errors(&timeout.replace("soon", "1h")));
    }

    #[test]
    fn variables_are_rendered() {
        let vars = variables([("dp.name", "web-1")]);
        let doc = prepare("type: Mesh\nname: {{ dp.name }}\n", &vars, "default").ok().unwrap();
        assert_eq!(doc.name, "web-1");
    }
}

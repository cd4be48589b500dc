//! Standard output, and JSON and YAML for people.

use anyhow::Context;
use serde_json::{Map, Value};
use std::io::Write;

/// Writes to standard output; a closed pipe (`| head`) ends the program quietly.
///
/// # Errors
/// Any other failure.
pub fn write(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => result.context("cannot write to standard output"),
    }
}

/// Writes a line.
///
/// # Errors
/// As [`write`].
pub fn line(text: &str) -> anyhow::Result<()> {
    write(format!("{text}\n").as_bytes())
}

/// Indents JSON by two spaces and keeps the order of its keys. `json` is valid JSON.
pub fn pretty_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len() * 2);
    let mut depth = 0usize;
    let (mut quoted, mut escaped) = (false, false);
    let mut chars = json.chars().filter(|c| !matches!(c, '\n' | '\r' | '\t')).peekable();
    let newline = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", depth));
    };
    while let Some(c) = chars.next() {
        if quoted {
            out.push(c);
            quoted = escaped || c != '"';
            escaped = !escaped && c == '\\';
            continue;
        }
        match c {
            ' ' => {}
            '"' => {
                quoted = true;
                out.push(c);
            }
            '{' | '[' => {
                out.push(c);
                while chars.peek() == Some(&' ') {
                    chars.next();
                }
                if matches!(chars.peek(), Some('}' | ']')) {
                    out.extend(chars.next());
                } else {
                    depth += 1;
                    newline(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                newline(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                newline(&mut out, depth);
            }
            ':' => out.push_str(": "),
            c => out.push(c),
        }
    }
    out
}

/// YAML of a value, keys sorted.
///
/// # Errors
/// The value cannot be written.
pub fn yaml(value: &Value) -> anyhow::Result<String> {
    let mut text = serde_saphyr::to_string(value).context("cannot write YAML")?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// YAML of one resource: meta data first, as kumactl prints it.
///
/// # Errors
/// As [`yaml`].
pub fn resource_yaml(resource: &Value) -> anyhow::Result<String> {
    const META: [&str; 7] = ["creationTime", "kri", "labels", "mesh", "modificationTime", "name", "type"];
    let Value::Object(all) = resource else { return yaml(resource) };
    let (meta, rest): (Map<_, _>, Map<_, _>) = all.clone().into_iter().partition(|(k, _)| META.contains(&k.as_str()));
    let mut text = String::new();
    for part in [meta, rest] {
        if !part.is_empty() {
            text.push_str(&yaml(&Value::Object(part))?);
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_keeps_order_and_text() {
        let text = "{\"type\":\"Mesh\",\"a\":[1,{\"b c\":\"x: [\\\"y\\\", {z}\\\\\"}],\n \"e\":[],\"f\": { } }";
        let pretty = pretty_json(text);
        assert_eq!(
            pretty,
            "{\n  \"type\": \"Mesh\",\n  \"a\": [\n    1,\n    {\n      \"b c\": \"x: [\\\"y\\\", {z}\\\\\"\n    }\n  ],\n  \"e\": [],\n  \"f\": {}\n}"
        );
        let same = |t: &str| serde_json::from_str::<Value>(t).unwrap();
        assert_eq!(same(text), same(&pretty));
    }

    #[test]
    fn yaml_reads_back_and_starts_with_meta() {
        let value = json!({
            "type": "Mesh", "name": "a", "aspec": {"list": [{"x": "yes", "n": "1"}, "~", "a: b", ""], "empty": [], "none": null, "map": {}},
        });
        let text = resource_yaml(&value).unwrap();
        assert!(text.starts_with("name: a\ntype: Mesh\n"), "{text}");
        assert_eq!(ikada_cli::parse_yaml(&text).unwrap(), value, "{text}");
    }
}

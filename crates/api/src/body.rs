//! How answers are written (reference: Kuma 2.14.3 REST contract, §0, §2.1, §2.3).

use axum::{body::Body, response::Response};
use http::{HeaderValue, StatusCode, header};
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Value, ser::PrettyFormatter};

/// Keys of a resource in the order of the wire; the rest follows sorted.
const ORDER: &[&str] = &["type", "mesh", "name", "creationTime", "modificationTime", "labels", "kri", "snis"];

/// A resource (or overview) with its metadata first.
pub struct Ordered(pub Value);

impl Serialize for Ordered {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let Value::Object(m) = &self.0 else { return self.0.serialize(s) };
        let mut out = s.serialize_map(Some(m.len()))?;
        for key in ORDER {
            if let Some(v) = m.get(*key) {
                out.serialize_entry(key, v)?;
            }
        }
        for (k, v) in m.iter().filter(|(k, _)| !ORDER.contains(&k.as_str())) {
            out.serialize_entry(k, v)?;
        }
        out.end()
    }
}

/// A page of a list.
#[derive(Serialize)]
pub struct List {
    /// Items of all pages.
    pub total: usize,
    /// Items of this page.
    pub items: Vec<Ordered>,
    /// URL of the next page.
    pub next: Option<String>,
}

/// Pretty JSON: one space of indent, trailing newline.
pub fn pretty(value: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut out = Vec::with_capacity(512);
    let mut s = serde_json::Serializer::with_formatter(&mut out, PrettyFormatter::with_indent(b" "));
    value.serialize(&mut s)?;
    out.push(b'\n');
    Ok(out)
}

/// A JSON answer.
pub fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let (status, bytes) = match pretty(value) {
        Ok(b) => (status, b),
        Err(e) => {
            tracing::error!(error = %e, "an answer cannot be encoded as JSON");
            (StatusCode::INTERNAL_SERVER_ERROR, b"{}\n".to_vec())
        }
    };
    with_type(status, "application/json", bytes)
}

/// A plain-text answer of the router itself; not the JSON error body.
pub fn plain(status: StatusCode, text: &'static str) -> Response {
    with_type(status, "text/plain; charset=utf-8", text.as_bytes().to_vec())
}

/// Any answer.
pub fn with_type(status: StatusCode, content_type: &'static str, bytes: Vec<u8>) -> Response {
    let mut r = Response::new(Body::from(bytes));
    *r.status_mut() = status;
    r.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    r
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_space_metadata_first_no_escaping() {
        let v = json!({"spec":{"b":1,"a":[]},"name":"n","type":"T","kri":"k","mesh":"m&","labels":{}});
        let text = String::from_utf8(pretty(&Ordered(v)).unwrap()).unwrap();
        let want = "{\n \"type\": \"T\",\n \"mesh\": \"m&\",\n \"name\": \"n\",\n \"labels\": {},\n \"kri\": \"k\",\n \"spec\": {\n  \"a\": [],\n  \"b\": 1\n }\n}\n";
        assert_eq!(text, want);
    }
}

//! Query parameters: pages and filters of lists (reference: Kuma 2.14.3 REST contract, §2.3).

use crate::error::{ApiError, Parameter, title};
use ikada_model::{Dataplane, Kind, Resource, dataplane::GatewayType, dataplane::Tags};
use serde_json::Value;
use std::collections::BTreeMap;

/// Decoded query, in the order of the request.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

/// Form decoding; a broken escape is kept as it is.
fn form_decode(text: &str) -> String {
    let spaced = text.replace('+', " ");
    crate::route::decode(&spaced).unwrap_or(spaced)
}

/// Form encoding as Go's `url.Values.Encode`.
fn form_encode(text: &str, out: &mut String) {
    for b in text.bytes() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(b)),
            b' ' => out.push('+'),
            _ => out.push_str(&format!("%{b:02X}")),
        }
    }
}

impl Query {
    /// Of the text after `?`.
    pub fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|p| !p.is_empty()).map(|p| {
            let (k, v) = p.split_once('=').unwrap_or((p, ""));
            (form_decode(k), form_decode(v))
        });
        Query(pairs.collect())
    }
    /// First value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
    /// All values of a key.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }
    /// `url` with this query, `offset` replaced, sorted by key. The next page does not wait for a change.
    pub fn link(&self, url: &str, offset: usize) -> String {
        let mut by_key: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (k, v) in self.0.iter().filter(|(k, _)| !matches!(k.as_str(), "offset" | "index" | "wait")) {
            by_key.entry(k).or_default().push(v);
        }
        let offset = offset.to_string();
        by_key.insert("offset", vec![&offset]);
        let mut out = format!("{url}?");
        for (i, (k, v)) in by_key.iter().flat_map(|(k, vs)| vs.iter().map(move |v| (k, v))).enumerate() {
            if i > 0 {
                out.push('&');
            }
            form_encode(k, &mut out);
            out.push('=');
            form_encode(v, &mut out);
        }
        out
    }
}

/// Which items of a list are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    offset: usize,
    size: usize,
}

impl Page {
    /// Of `size` and `offset`.
    pub fn parse(query: &Query) -> Result<Self, ApiError> {
        const DEFAULT: i64 = 100;
        const MAX: i64 = 1000;
        let bad_size = |reason: String| ApiError {
            parameters: vec![Parameter::new("size", reason)],
            ..ApiError::new(http::StatusCode::BAD_REQUEST, title::LIST, "Invalid page size")
        };
        let size = match query.get("size").filter(|s| !s.is_empty()) {
            None => DEFAULT,
            Some(s) => s.parse::<i64>().map_err(|_| bad_size("invalid format".into()))?,
        };
        if size <= 0 {
            return Err(bad_size("must be greater than 0".into()));
        }
        if size > MAX {
            return Err(bad_size(format!("invalid page size of {size}. Maximum page size is {MAX}")));
        }
        let bad_offset = |why: String| ApiError::new(http::StatusCode::BAD_REQUEST, title::LIST, format!("invalid: invalid offset: {why}"));
        let offset = match query.get("offset").filter(|s| !s.is_empty()) {
            None => 0,
            Some(s) => s.parse::<i64>().map_err(|e| {
                let why = if *e.kind() == std::num::IntErrorKind::PosOverflow { "value out of range" } else { "invalid syntax" };
                bad_offset(format!("strconv.Atoi: parsing {s:?}: {why}"))
            })?,
        };
        if offset < 0 {
            return Err(bad_offset("must be non-negative".into()));
        }
        if offset > i64::MAX - size {
            return Err(bad_offset("exceeds maximum value".into()));
        }
        let fit = |n: i64| usize::try_from(n).map_err(|_| bad_offset("exceeds maximum value".into()));
        Ok(Page { offset: fit(offset)?, size: fit(size)? })
    }
    /// Whether the item at this index is on the page.
    pub fn holds(&self, index: usize) -> bool {
        index >= self.offset && index - self.offset < self.size
    }
    /// Offset of the next page when there is one.
    pub fn next(&self, total: usize) -> Option<usize> {
        let end = self.offset.saturating_add(self.size);
        (end < total).then_some(end)
    }
}

/// Which resources of a list are wanted.
#[derive(Debug, Default)]
pub struct Filter {
    name: Option<String>,
    labels: BTreeMap<String, String>,
    tags: Vec<(String, String)>,
    gateway: Option<Gateway>,
}

#[derive(Clone, Copy, Debug)]
enum Gateway {
    Any,
    None,
    Only(GatewayType),
}

impl Filter {
    /// Of a query. `template` is the path with parameters in braces.
    pub fn parse(kind: Kind, query: &Query, template: &str) -> Result<Self, ApiError> {
        let refuse = |field: String, reason: String| ApiError::invalid(title::LIST, vec![Parameter::new(field, reason)]);
        let mut f = Filter { name: query.get("name").filter(|n| !n.is_empty()).map(str::to_owned), ..Filter::default() };
        for (key, value) in query.0.iter().filter(|(k, _)| k.starts_with("filter[")) {
            let field = || format!("{template}.{key}");
            let inner = &key["filter[".len()..];
            let Some((what, rest)) = inner.split_once(']') else {
                return Err(refuse(field(), "filters are only supported on labels".into()));
            };
            let Some(label) = what.strip_prefix("labels.") else {
                return Err(refuse(field(), "filters are only supported on labels".into()));
            };
            if !rest.is_empty() {
                return Err(refuse(field(), "advanced filters are not supported".into()));
            }
            f.labels.insert(label.to_owned(), value.clone());
        }
        if matches!(kind, Kind::Dataplane | Kind::ExternalService) {
            f.tags = query.all("tag").filter_map(|t| t.split_once(':')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        }
        if kind == Kind::Dataplane
            && let Some(g) = query.get("gateway").filter(|g| !g.is_empty())
        {
            f.gateway = Some(match g.to_lowercase().as_str() {
                "true" => Gateway::Any,
                "false" => Gateway::None,
                "builtin" => Gateway::Only(GatewayType::Builtin),
                "delegated" => Gateway::Only(GatewayType::Delegated),
                _ => {
                    let reason = format!("shoud use `true`, `false`, 'builtin' or 'delegated' instead of {g}");
                    return Err(refuse(format!("{template}.gateway"), reason));
                }
            });
        }
        Ok(f)
    }

    /// Whether a resource is wanted.
    pub fn accepts(&self, r: &Resource) -> bool {
        self.name.as_deref().is_none_or(|n| r.name().contains(n))
            && self.labels.iter().all(|(k, v)| r.label(k) == Some(v))
            && (self.tags.is_empty() || self.accepts_tags(r))
            && self.accepts_gateway(r)
    }

    /// All tags on one and the same inbound, or on the gateway; a value counts when it contains the given text.
    fn accepts_tags(&self, r: &Resource) -> bool {
        let fuzzy = |tags: &Tags| self.tags.iter().all(|(k, v)| tags.get(k).is_some_and(|have| v == "*" || have.contains(v.as_str())));
        match r.view::<Dataplane>() {
            Some(dp) => dp.networking.inbound.iter().map(|i| &i.tags).chain(dp.networking.gateway.iter().map(|g| &g.tags)).any(fuzzy),
            None => r.spec.value().get("tags").and_then(Value::as_object).is_some_and(|m| {
                fuzzy(&m.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect())
            }),
        }
    }

    fn accepts_gateway(&self, r: &Resource) -> bool {
        let Some(wanted) = self.gateway else { return true };
        let has = r.view::<Dataplane>().and_then(|dp| dp.networking.gateway.as_ref()).map(|g| g.kind);
        match wanted {
            Gateway::Any => has.is_some(),
            Gateway::None => has.is_none(),
            Gateway::Only(kind) => has == Some(kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(q: &str) -> Result<Page, ApiError> {
        Page::parse(&Query::parse(q))
    }

    #[test]
    fn pages() {
        assert_eq!(page("").unwrap(), Page { offset: 0, size: 100 });
        assert_eq!(page("size=2&offset=4").unwrap().next(7), Some(6));
        assert_eq!(page("size=2&offset=4").unwrap().next(6), None);
        assert!(!page("size=2&offset=4").unwrap().holds(3) && page("size=2&offset=4").unwrap().holds(5));
        for (q, why) in [("size=x", "invalid format"), ("size=0", "must be greater than 0"), ("size=1001", "invalid page size of 1001. Maximum page size is 1000")] {
            let e = page(q).unwrap_err();
            assert_eq!((e.detail.as_str(), e.parameters), ("Invalid page size", vec![Parameter::new("size", why)]));
        }
        for (q, why) in [
            ("offset=x", "invalid: invalid offset: strconv.Atoi: parsing \"x\": invalid syntax"),
            ("offset=-1", "invalid: invalid offset: must be non-negative"),
            ("offset=9223372036854775807", "invalid: invalid offset: exceeds maximum value"),
            ("offset=99999999999999999999", "invalid: invalid offset: strconv.Atoi: parsing \"99999999999999999999\": value out of range"),
        ] {
            assert_eq!(page(q).unwrap_err().detail, why);
        }
    }

    #[test]
    fn links() {
        let q = Query::parse("size=1&name=end&offset=0&index=7&wait=1s&filter[labels.a]=b");
        assert_eq!(q.link("http://h:1/x", 1), "http://h:1/x?filter%5Blabels.a%5D=b&name=end&offset=1&size=1");
    }

    #[test]
    fn filters_that_are_refused() {
        let check = |q: &str| Filter::parse(Kind::Dataplane, &Query::parse(q), "/meshes/{mesh}/dataplanes").unwrap_err().parameters.remove(0);
        assert_eq!(check("filter[foo]=x"), Parameter::new("/meshes/{mesh}/dataplanes.filter[foo]", "filters are only supported on labels"));
        assert_eq!(check("filter[labels.a][eq]=x").reason, "advanced filters are not supported");
        assert_eq!(check("gateway=maybe").reason, "shoud use `true`, `false`, 'builtin' or 'delegated' instead of maybe");
    }
}

//! From a path to what it names (reference: Kuma 2.14.3 REST contract, §4).
//!
//! Literal segments win over parameters. Paths are matched by hand: the kinds come from the registry, and what a path that exists answers to
//! another method is part of the contract.

use crate::inspect::Part;
use http::Method;
use ikada_model::Kind;

/// Kind of token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// `/tokens/dataplane`
    Dataplane,
    /// `/tokens/zone`
    Zone,
    /// `/tokens/user`
    User,
}

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/`
    Index,
    /// `/who-am-i`
    WhoAmI,
    /// `/config`
    OwnConfig,
    /// `/policies`
    Policies,
    /// `/_resources`
    Resources,
    /// `/_watch`: not in Kuma
    Watch,
    /// `/_kri/{kri}`
    Kri(String),
    /// A list; `overview` joins the insights. `template` is the path with parameters in braces.
    List {
        /// Kind.
        kind: Kind,
        /// One mesh, else all.
        mesh: Option<String>,
        /// With insights.
        overview: bool,
        /// E.g. `/meshes/{mesh}/dataplanes`.
        template: String,
    },
    /// One resource.
    One {
        /// Kind.
        kind: Kind,
        /// Empty for global kinds.
        mesh: String,
        /// Name.
        name: String,
    },
    /// One resource with its insight.
    Overview {
        /// Kind of the base resource.
        kind: Kind,
        /// Empty for global kinds.
        mesh: String,
        /// Name.
        name: String,
    },
    /// `/meshes/{mesh}/dataplanes/{name}/_config`
    Config {
        /// Mesh.
        mesh: String,
        /// Dataplane.
        name: String,
    },
    /// `/meshes/{mesh}/{policies or meshservices}/{name}/_resources/dataplanes`
    Dataplanes {
        /// Kind.
        kind: Kind,
        /// Mesh.
        mesh: String,
        /// Name.
        name: String,
    },
    /// `/meshes/{mesh}/dataplanes/{name}/_rules`
    Rules {
        /// Mesh.
        mesh: String,
        /// Dataplane.
        name: String,
    },
    /// `/meshes/{mesh}/dataplanes/{name}/_policies`, `_inbounds/…`, `_outbounds/…`
    DataplanePolicies {
        /// Mesh.
        mesh: String,
        /// Dataplane.
        name: String,
        /// What of it.
        part: Part,
    },
    /// `/meshes/{mesh}/dataplanes/{name}/_layout`
    Layout {
        /// Mesh.
        mesh: String,
        /// Dataplane.
        name: String,
    },
    /// `/meshes/{mesh}/{services}/{name}/_hostnames`
    Hostnames {
        /// As in the path; only some kinds have host names.
        segment: String,
        /// Mesh.
        mesh: String,
        /// Service.
        name: String,
    },
    /// A path of the contract that is not built yet; what it shows.
    Later(&'static str),
    /// `/tokens/…`
    Token(TokenKind),
    /// `/cluster/…`
    Cluster(ClusterRoute),
}

/// What a path below `/cluster` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterRoute {
    /// `/cluster`
    Status,
    /// `/cluster/members`
    Members,
    /// `/cluster/members/{id}:promote`; the id as in the path
    Promote(String),
    /// `/cluster/members/{id}:remove`
    Remove(String),
    /// `/cluster/join-tokens`
    JoinTokens,
    /// `/cluster/join-tokens/{id}`
    JoinToken(String),
    /// `/cluster/transfer-leader`
    TransferLeader,
    /// `/cluster/snapshot`
    Snapshot,
    /// `/cluster/tune`
    Tune,
}

impl ClusterRoute {
    fn methods(&self) -> &'static [Method] {
        match self {
            ClusterRoute::Status | ClusterRoute::Members | ClusterRoute::Snapshot => &[Method::GET],
            ClusterRoute::JoinTokens => &[Method::GET, Method::POST],
            ClusterRoute::JoinToken(_) => &[Method::DELETE],
            ClusterRoute::Promote(_) | ClusterRoute::Remove(_) | ClusterRoute::TransferLeader | ClusterRoute::Tune => &[Method::POST],
        }
    }
}

/// What follows `/cluster`.
fn cluster(rest: &[&str]) -> Option<ClusterRoute> {
    Some(match *rest {
        [] => ClusterRoute::Status,
        ["members"] => ClusterRoute::Members,
        ["members", action] => match action.rsplit_once(':')? {
            (id, "promote") => ClusterRoute::Promote(id.to_owned()),
            (id, "remove") => ClusterRoute::Remove(id.to_owned()),
            _ => return None,
        },
        ["join-tokens"] => ClusterRoute::JoinTokens,
        ["join-tokens", id] => ClusterRoute::JoinToken(id.to_owned()),
        ["transfer-leader"] => ClusterRoute::TransferLeader,
        ["snapshot"] => ClusterRoute::Snapshot,
        ["tune"] => ClusterRoute::Tune,
        _ => return None,
    })
}

impl Route {
    /// Methods it answers.
    pub fn methods(&self) -> &'static [Method] {
        const GET: &[Method] = &[Method::GET];
        const RESOURCE: &[Method] = &[Method::GET, Method::PUT, Method::DELETE];
        const POST: &[Method] = &[Method::POST];
        match self {
            Route::One { .. } => RESOURCE,
            Route::Token(_) => POST,
            Route::Cluster(route) => route.methods(),
            _ => GET,
        }
    }
}

/// Segments of a path without the base path, decoded. `None` when it is outside of the base path or not UTF-8.
/// A path counts the same with and without slashes at its ends.
fn segments(path: &str, base: &str) -> Option<Vec<String>> {
    let base = base.trim_matches('/');
    let mut rest = path.trim_matches('/');
    if !base.is_empty() {
        rest = rest.strip_prefix(base)?;
        if !rest.is_empty() {
            rest = rest.strip_prefix('/')?;
        }
    }
    if rest.is_empty() {
        return Some(Vec::new());
    }
    rest.split('/').map(|s| decode(s).filter(|d| !d.is_empty())).collect()
}

/// Percent-decoding. `None` when the escape is broken or the result is not UTF-8.
pub fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let hex = |b: u8| char::from(b).to_digit(16);
            let (hi, lo) = (hex(bytes.next()?)?, hex(bytes.next()?)?);
            out.push(u8::try_from(hi * 16 + lo).ok()?);
        } else {
            out.push(b);
        }
    }
    String::from_utf8(out).ok()
}

/// Segment of a list that joins insights, in its old spelling.
fn old_overview(segment: &str) -> Option<Kind> {
    match segment {
        "dataplanes+insights" => Some(Kind::Dataplane),
        "zones+insights" => Some(Kind::Zone),
        "zoneingresses+insights" => Some(Kind::ZoneIngress),
        "zoneegressoverviews" => Some(Kind::ZoneEgress),
        _ => None,
    }
}

/// What a path names; `None` for an unknown path. `user_tokens`: `/tokens/user` exists.
pub fn parse(path: &str, base: &str, user_tokens: bool) -> Option<Route> {
    if user_tokens && path.trim_matches('/') == "tokens/user" {
        return Some(Route::Token(TokenKind::User));
    }
    let segments = segments(path, base)?;
    let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
    let own = |s: &str| s.to_owned();
    match *parts.as_slice() {
        [] => Some(Route::Index),
        ["who-am-i"] => Some(Route::WhoAmI),
        ["config"] => Some(Route::OwnConfig),
        ["policies"] => Some(Route::Policies),
        ["_resources"] => Some(Route::Resources),
        ["_watch"] => Some(Route::Watch),
        ["_kri", kri] => Some(Route::Kri(own(kri))),
        ["tokens", "dataplane"] => Some(Route::Token(TokenKind::Dataplane)),
        ["cluster", ref rest @ ..] => cluster(rest).map(Route::Cluster),
        ["tokens", "zone"] => Some(Route::Token(TokenKind::Zone)),
        ["meshes", mesh, plural] => {
            let template = format!("/meshes/{{mesh}}/{plural}");
            let (kind, overview) = list_kind(plural)?;
            kind.is_mesh_scoped().then(|| Route::List { kind, mesh: Some(own(mesh)), overview, template })
        }
        ["meshes", mesh, plural, "_overview"] => {
            let kind = Kind::by_path(plural).filter(|k| k.is_mesh_scoped() && k.descriptor().overview)?;
            Some(Route::List { kind, mesh: Some(own(mesh)), overview: true, template: format!("/meshes/{{mesh}}/{plural}/_overview") })
        }
        ["meshes", mesh, plural, name] => {
            let (kind, overview) = list_kind(plural).filter(|(k, _)| k.is_mesh_scoped())?;
            Some(one(kind, own(mesh), own(name), overview))
        }
        ["meshes", mesh, plural, name, "_overview"] => {
            let kind = Kind::by_path(plural).filter(|k| k.is_mesh_scoped() && k.descriptor().overview)?;
            Some(Route::Overview { kind, mesh: own(mesh), name: own(name) })
        }
        ["meshes", mesh, "dataplanes" | "meshgateways", name, "_config"] => Some(Route::Config { mesh: own(mesh), name: own(name) }),
        ["meshes", mesh, "dataplanes", name, "_rules"] => Some(Route::Rules { mesh: own(mesh), name: own(name) }),
        ["meshes", mesh, "dataplanes", name, "_layout"] => Some(Route::Layout { mesh: own(mesh), name: own(name) }),
        ["meshes", mesh, segment, name, "_hostnames"] => {
            Some(Route::Hostnames { segment: own(segment), mesh: own(mesh), name: own(name) })
        }
        ["meshes", _, "meshgateways", _, "_rules"] => Some(Route::Later("_rules of gateways")),
        ["global-insight" | "global-insights"] => Some(Route::Later("global insight")),
        ["meshes", mesh, "dataplanes", name, ref rest @ ..] if dataplane_part(rest).is_some() => {
            Some(Route::DataplanePolicies { mesh: own(mesh), name: own(name), part: dataplane_part(rest)? })
        }
        ["meshes", mesh, "meshservices", name, "_dataplanes"] => Some(Route::Dataplanes { kind: Kind::MeshService, mesh: own(mesh), name: own(name) }),
        ["meshes", mesh, plural, name, "_resources", "dataplanes"] => {
            let kind = Kind::by_path(plural).filter(|k| *k == Kind::MeshService || k.descriptor().policy.is_some())?;
            Some(Route::Dataplanes { kind, mesh: own(mesh), name: own(name) })
        }
        [plural] => {
            let (kind, overview) = list_kind(plural)?;
            Some(Route::List { kind, mesh: None, overview, template: format!("/{plural}") })
        }
        [plural, "_overview"] => {
            let kind = Kind::by_path(plural).filter(|k| k.descriptor().overview)?;
            Some(Route::List { kind, mesh: None, overview: true, template: format!("/{plural}/_overview") })
        }
        [plural, name] => {
            let (kind, overview) = list_kind(plural).filter(|(k, _)| !k.is_mesh_scoped())?;
            Some(one(kind, String::new(), own(name), overview))
        }
        [plural, name, "_overview"] => {
            let kind = Kind::by_path(plural).filter(|k| !k.is_mesh_scoped() && k.descriptor().overview)?;
            Some(Route::Overview { kind, mesh: String::new(), name: own(name) })
        }
        _ => None,
    }
}

/// What follows the name of a dataplane in the paths of its policies.
fn dataplane_part(rest: &[&str]) -> Option<Part> {
    let own = |s: &str| s.to_owned();
    match *rest {
        ["_policies"] => Some(Part::Proxy),
        ["_inbounds", kri, "_policies"] => Some(Part::Inbound(own(kri))),
        ["_outbounds", kri, "_policies"] => Some(Part::Outbound(own(kri))),
        ["_outbounds", kri, "_routes"] => Some(Part::Routes(own(kri))),
        ["_outbounds", outbound, "_routes", route, "_policies"] => Some(Part::Route { outbound: own(outbound), route: own(route) }),
        _ => None,
    }
}

fn list_kind(segment: &str) -> Option<(Kind, bool)> {
    old_overview(segment).map(|k| (k, true)).or_else(|| Kind::by_path(segment).map(|k| (k, false)))
}

fn one(kind: Kind, mesh: String, name: String, overview: bool) -> Route {
    if overview { Route::Overview { kind, mesh, name } } else { Route::One { kind, mesh, name } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(path: &str) -> Option<Route> {
        parse(path, "/", true)
    }

    #[test]
    fn paths() {
        let mesh = |n: &str| Some(Route::One { kind: Kind::Mesh, mesh: String::new(), name: n.into() });
        assert_eq!(p("/"), Some(Route::Index));
        assert_eq!(p("/meshes/default"), mesh("default"));
        assert_eq!(p("/meshes/de%66ault/"), mesh("default"));
        assert_eq!(p("/meshes/%zz"), None);
        assert_eq!(p("/meshes/%ff"), None);
        assert_eq!(p("/meshes//dataplanes"), None);
        assert_eq!(p("/nothing"), None);
        assert_eq!(p("/versions"), None);
        assert_eq!(p("/dataplanes/dp-1"), None, "a mesh-scoped kind has no single path without its mesh");
        assert_eq!(p("/meshes/m/zones"), None);
        let list = |overview, template: &str| Some(Route::List { kind: Kind::Dataplane, mesh: Some("m".into()), overview, template: template.into() });
        assert_eq!(p("/meshes/m/dataplanes"), list(false, "/meshes/{mesh}/dataplanes"));
        assert_eq!(p("/meshes/m/dataplanes/_overview"), list(true, "/meshes/{mesh}/dataplanes/_overview"));
        assert_eq!(p("/meshes/m/dataplanes+insights"), list(true, "/meshes/{mesh}/dataplanes+insights"));
        assert_eq!(p("/meshes/m/dataplanes/d/_overview"), Some(Route::Overview { kind: Kind::Dataplane, mesh: "m".into(), name: "d".into() }));
        assert_eq!(p("/meshes/m/meshtimeouts/_overview"), None);
        assert_eq!(p("/global-secrets/x"), Some(Route::One { kind: Kind::GlobalSecret, mesh: String::new(), name: "x".into() }));
        assert_eq!(p("/tokens/user"), Some(Route::Token(TokenKind::User)));
        assert_eq!(parse("/tokens/user", "/", false), None);
    }

    #[test]
    fn cluster_paths() {
        let cluster = |path: &str| match p(path) {
            Some(Route::Cluster(route)) => Some(route),
            _ => None,
        };
        assert_eq!(cluster("/cluster/"), Some(ClusterRoute::Status));
        assert_eq!(cluster("/cluster/members/3:promote"), Some(ClusterRoute::Promote("3".into())));
        assert_eq!(cluster("/cluster/members/x:y:remove"), Some(ClusterRoute::Remove("x:y".into())));
        assert_eq!(cluster("/cluster/join-tokens/a%2Fb"), Some(ClusterRoute::JoinToken("a/b".into())));
        for unknown in ["/cluster/members/3", "/cluster/members/3:grow", "/cluster/nodes", "/cluster/snapshot/1"] {
            assert_eq!(p(unknown), None, "{unknown}");
        }
        assert_eq!(p("/cluster/tune").unwrap().methods(), [Method::POST]);
    }

    #[test]
    fn base_path() {
        assert_eq!(parse("/api/who-am-i", "/api", true), Some(Route::WhoAmI));
        assert_eq!(parse("/who-am-i", "/api", true), None);
        assert_eq!(parse("/apiwho-am-i", "/api", true), None);
        assert_eq!(parse("/tokens/user", "/api/", true), Some(Route::Token(TokenKind::User)));
        assert_eq!(parse("/api", "/api/", true), Some(Route::Index));
    }
}

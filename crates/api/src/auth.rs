//! Who is asking and what they may do (reference: Kuma 2.14.3 REST contract, §5.1, §5.3).

use http::{HeaderMap, HeaderName, Uri, header};
use ikada_model::Kind;
use std::net::{IpAddr, SocketAddr};

/// Group and name of administrators.
pub const ADMIN: &str = "mesh-system:admin";
const ANONYMOUS: &str = "mesh-system:anonymous";
const UNAUTHENTICATED: &str = "mesh-system:unauthenticated";
const AUTHENTICATED: &str = "mesh-system:authenticated";

/// A caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Name.
    pub name: String,
    /// Groups.
    pub groups: Vec<String>,
}

impl User {
    /// Nobody in particular.
    pub fn anonymous() -> Self {
        User { name: ANONYMOUS.into(), groups: vec![UNAUTHENTICATED.into()] }
    }
    /// Administrator.
    pub fn admin() -> Self {
        Self::authenticated(ADMIN.into(), vec![ADMIN.into()])
    }
    /// Someone with a valid token.
    pub fn authenticated(name: String, mut groups: Vec<String>) -> Self {
        groups.push(AUTHENTICATED.into());
        User { name, groups }
    }
}

/// Users and groups that may do something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// Names.
    pub users: Vec<String>,
    /// Groups.
    pub groups: Vec<String>,
}

impl Allowed {
    fn admins() -> Self {
        Allowed { users: vec![ADMIN.into()], groups: vec![ADMIN.into()] }
    }
    fn everyone() -> Self {
        Allowed { users: Vec::new(), groups: vec![UNAUTHENTICATED.into(), AUTHENTICATED.into()] }
    }
    /// Whether the user is among them.
    pub fn contains(&self, user: &User) -> bool {
        self.users.contains(&user.name) || user.groups.iter().any(|g| self.groups.contains(g))
    }
}

/// `access.static.*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticAccess {
    /// Secrets and GlobalSecrets.
    pub admin_resources: Allowed,
    /// POST /tokens/dataplane.
    pub generate_dp_token: Allowed,
    /// POST /tokens/user.
    pub generate_user_token: Allowed,
    /// POST /tokens/zone.
    pub generate_zone_token: Allowed,
    /// Envoy config dumps.
    pub view_config_dump: Allowed,
    /// Envoy statistics.
    pub view_stats: Allowed,
    /// Envoy clusters.
    pub view_clusters: Allowed,
    /// The control plane's own configuration.
    pub control_plane_metadata: Allowed,
}

impl Default for StaticAccess {
    fn default() -> Self {
        StaticAccess {
            admin_resources: Allowed::admins(),
            generate_dp_token: Allowed::admins(),
            generate_user_token: Allowed::admins(),
            generate_zone_token: Allowed::admins(),
            view_config_dump: Allowed::everyone(),
            view_stats: Allowed::everyone(),
            view_clusters: Allowed::everyone(),
            control_plane_metadata: Allowed::everyone(),
        }
    }
}

/// `user "name/group,group"`, the beginning of refusals.
fn who(user: &User) -> String {
    format!("user \"{}/{}\"", user.name, user.groups.join(","))
}

impl StaticAccess {
    /// Access to a resource of a kind. Errors with the reason.
    pub fn resource(&self, user: &User, kind: Kind) -> Result<(), String> {
        if !kind.descriptor().admin_only || self.admin_resources.contains(user) {
            return Ok(());
        }
        Err(format!("{} cannot access the resource of type \"{kind}\"", who(user)))
    }
    /// Making dataplane tokens.
    pub fn dataplane_token(&self, user: &User) -> Result<(), String> {
        if self.generate_dp_token.contains(user) { Ok(()) } else { Err(format!("{} cannot access generate dataplane token", who(user))) }
    }
    /// Making zone tokens.
    pub fn zone_token(&self, user: &User, zone: &str) -> Result<(), String> {
        if self.generate_zone_token.contains(user) {
            return Ok(());
        }
        Err(format!("{} cannot access generate zone token for zone '{zone}'", who(user)))
    }
    /// Reading the control plane's own configuration.
    pub fn metadata(&self, user: &User) -> Result<(), String> {
        if self.control_plane_metadata.contains(user) { Ok(()) } else { Err(format!("{} cannot access control-plane metadata", who(user))) }
    }
    /// Everything below `/cluster`: `access.static.adminResources`, as a copy of the cluster has the secrets and a join token opens them.
    pub fn cluster(&self, user: &User) -> Result<(), String> {
        if self.admin_resources.contains(user) { Ok(()) } else { Err(format!("{} cannot administer the cluster", who(user))) }
    }
    /// Making user tokens.
    pub fn user_token(&self, user: &User) -> Result<(), String> {
        if self.generate_user_token.contains(user) { Ok(()) } else { Err("action not allowed".into()) }
    }
}

static FORWARDED: [HeaderName; 3] =
    [header::FORWARDED, HeaderName::from_static("x-forwarded-for"), HeaderName::from_static("x-real-ip")];

/// `localhost` or a loopback IP; brackets and a trailing dot are tolerated.
fn is_loopback_host(host: &str) -> bool {
    let h = host.strip_suffix('.').unwrap_or(host);
    let h = h.strip_prefix('[').and_then(|x| x.strip_suffix(']')).unwrap_or(h);
    h.eq_ignore_ascii_case("localhost") || h.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// Host and port of `host[:port]`. `None` when the port is there and is not one.
fn host_port(authority: &str) -> Option<(&str, Option<u16>)> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']')?;
        return match after.strip_prefix(':') {
            Some(p) => Some((host, Some(port(p)?))),
            None => after.is_empty().then_some((host, None)),
        };
    }
    match authority.split_once(':') {
        // An IPv6 address without brackets has no port.
        Some((_, p)) if p.contains(':') => Some((authority, None)),
        Some((h, p)) => Some((h, Some(port(p)?))),
        None => Some((authority, None)),
    }
}

fn port(text: &str) -> Option<u16> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Whether a request comes from this machine and from nobody who borrows it: neither through a reverse proxy nor from a web page of another
/// origin in a browser here.
pub fn is_localhost(peer: Option<SocketAddr>, uri: &Uri, headers: &HeaderMap) -> bool {
    if !peer.is_some_and(|p| p.ip().to_canonical().is_loopback()) {
        return false;
    }
    if FORWARDED.iter().any(|h| headers.get_all(h).iter().any(|v| !v.is_empty())) {
        return false;
    }
    // HTTP/2 carries the host in :authority.
    let host = headers.get(header::HOST).map_or_else(|| uri.authority().map(|a| a.as_str()), |h| h.to_str().ok());
    let Some((host, host_port_)) = host.and_then(host_port) else { return false };
    if !is_loopback_host(host) {
        return false;
    }
    let text = |name: &str| headers.get(name).map(|v| v.to_str().unwrap_or("\u{0}"));
    if text("sec-fetch-site").is_some_and(|s| s != "same-origin" && s != "none") {
        return false;
    }
    match text("origin") {
        None => true,
        Some(origin) => {
            let (default, rest) = match (origin.strip_prefix("http://"), origin.strip_prefix("https://")) {
                (Some(r), _) => (80, r),
                (_, Some(r)) => (443, r),
                _ => return false,
            };
            if rest.contains(['@', '/', '?', '#']) {
                return false;
            }
            let Some((o_host, o_port)) = host_port(rest) else { return false };
            is_loopback_host(o_host) && o_host.eq_ignore_ascii_case(host) && o_port.unwrap_or(default) == host_port_.unwrap_or(default)
        }
    }
}

/// The token of `Authorization: Bearer …`; other schemes are ignored.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(peer: &str, headers: &[(&'static str, &str)]) -> bool {
        let map = headers.iter().map(|(k, v)| (HeaderName::from_static(k), v.parse().unwrap())).collect();
        is_localhost(Some(peer.parse().unwrap()), &"/".parse().unwrap(), &map)
    }

    #[test]
    fn localhost_rules() {
        let local = "127.0.0.1:40000";
        assert!(check(local, &[("host", "localhost:5681")]));
        assert!(check("[::1]:4", &[("host", "[::1]:5681")]));
        assert!(check("127.9.9.9:4", &[("host", "127.0.0.1")]));
        assert!(check(local, &[("host", "LOCALHOST.:5681")]));
        assert!(check(local, &[("host", "localhost:5681"), ("x-forwarded-for", "")]));
        assert!(check(local, &[("host", "localhost:5681"), ("origin", "http://localhost:5681"), ("sec-fetch-site", "same-origin")]));
        assert!(check(local, &[("host", "localhost"), ("origin", "http://localhost:80")]));
        for bad in [
            vec![("host", "localhost:")],
            vec![("host", "localhost:bad")],
            vec![("host", "cp.example.org:5681")],
            vec![],
            vec![("host", "localhost"), ("x-forwarded-for", "10.0.0.1")],
            vec![("host", "localhost"), ("forwarded", "for=10.0.0.1")],
            vec![("host", "localhost"), ("x-real-ip", "10.0.0.1")],
            vec![("host", "localhost"), ("sec-fetch-site", "cross-site")],
            vec![("host", "localhost:5681"), ("origin", "null")],
            vec![("host", "localhost:5681"), ("origin", "http://evil.example")],
            vec![("host", "localhost:5681"), ("origin", "http://localhost:5682")],
            vec![("host", "localhost:5681"), ("origin", "http://127.0.0.1:5681")],
            vec![("host", "localhost:5681"), ("origin", "http://localhost:5681/")],
            vec![("host", "localhost:5681"), ("origin", "http://me@localhost:5681")],
            vec![("host", "localhost:5681"), ("origin", "ftp://localhost:5681")],
        ] {
            assert!(!check(local, &bad), "{bad:?}");
        }
        assert!(!check("10.0.0.1:4", &[("host", "localhost")]));
        assert!(!is_localhost(None, &"/".parse().unwrap(), &HeaderMap::new()));
    }

    #[test]
    fn rbac() {
        let a = StaticAccess::default();
        let nobody = User::anonymous();
        assert_eq!(a.resource(&nobody, Kind::Mesh), Ok(()));
        let want = "user \"mesh-system:anonymous/mesh-system:unauthenticated\" cannot access the resource of type \"Secret\"";
        assert_eq!(a.resource(&nobody, Kind::Secret).unwrap_err(), want);
        assert_eq!(a.resource(&User::admin(), Kind::Secret), Ok(()));
        assert_eq!(a.user_token(&nobody).unwrap_err(), "action not allowed");
        assert_eq!(a.metadata(&nobody), Ok(()));
        let closed = StaticAccess { control_plane_metadata: Allowed::admins(), ..a };
        assert_eq!(closed.metadata(&User::admin()), Ok(()));
        assert!(closed.metadata(&nobody).unwrap_err().ends_with("cannot access control-plane metadata"));
    }
}

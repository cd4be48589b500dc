//! Whether a genuine token is the right one for a proxy (reference: data plane contract §1.5).

use super::{DataplaneClaims, TokenError, ZoneClaims};
use std::collections::{BTreeMap, BTreeSet};

/// What the check has to know of a Dataplane.
#[derive(Debug, Clone, Copy)]
pub struct DataplaneFacts<'a> {
    /// Name.
    pub name: &'a str,
    /// Mesh.
    pub mesh: &'a str,
    /// Tag set of inbounds and gateway.
    pub tags: &'a BTreeMap<String, BTreeSet<String>>,
    /// Label `kuma.io/workload`.
    pub workload: Option<&'a str>,
    /// Name of the MeshIdentity selected for it, when that derives the SPIFFE id from the workload label.
    pub workload_identity: Option<&'a str>,
}

fn denied(text: String) -> Result<(), TokenError> {
    Err(TokenError::Denied(text))
}

/// Checks a data plane token's claims, in Kuma's order: name, mesh, tags, workload. The claim `Type` is not looked at.
///
/// # Errors
/// [`TokenError::Denied`] with the reason.
pub fn check_dataplane(claims: &DataplaneClaims, proxy: &DataplaneFacts<'_>) -> Result<(), TokenError> {
    if !claims.name.is_empty() && claims.name != proxy.name {
        return denied(format!("proxy name from requestor: {} is different than in token: {}", proxy.name, claims.name));
    }
    if !claims.mesh.is_empty() && claims.mesh != proxy.mesh {
        return denied(format!("proxy mesh from requestor: {} is different than in token: {}", proxy.mesh, claims.mesh));
    }
    for (tag, allowed) in &claims.tags {
        let Some(values) = proxy.tags.get(tag) else {
            return denied(format!("dataplane has no tag {tag:?} required by the token"));
        };
        if let Some(value) = values.iter().find(|v| !allowed.contains(v)) {
            let allowed = allowed.iter().map(|v| format!("{v:?}")).collect::<Vec<_>>().join(" ");
            return denied(format!(
                "dataplane contains tag {tag:?} with value {value:?} which is not allowed with this token. Allowed values in token are [{allowed}]"
            ));
        }
    }
    match (claims.workload.as_str(), proxy.workload) {
        ("", Some(workload)) => match proxy.workload_identity {
            Some(identity) => denied(format!(
                "dataplane has label kuma.io/workload={workload:?} and MeshIdentity {identity:?} derives its identity from it: \
                 the proxy requires a workload-bound token"
            )),
            None => Ok(()),
        },
        ("", None) => Ok(()),
        (bound, None) => denied(format!("dataplane has no label \"kuma.io/workload\" required by the token (workload {bound:?})")),
        (bound, Some(workload)) if bound != workload => {
            denied(format!("dataplane workload from requestor: {workload} is different than in token: {bound}"))
        }
        _ => Ok(()),
    }
}

/// Kinds of zone proxies that use zone tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZoneProxy {
    /// ZoneIngress.
    Ingress,
    /// ZoneEgress.
    Egress,
}

/// Checks a zone token's claims: the scope must contain the proxy's kind, the zone (if given) must be this control plane's.
///
/// # Errors
/// [`TokenError::Denied`] with the reason.
pub fn check_zone(claims: &ZoneClaims, proxy: ZoneProxy, zone: &str) -> Result<(), TokenError> {
    let (scope, what) = match proxy {
        ZoneProxy::Ingress => ("ingress", "zone ingresses"),
        ZoneProxy::Egress => ("egress", "zone egresses"),
    };
    if !claims.scope.iter().any(|s| s == scope) {
        return denied(format!("token cannot be used to authenticate {what} ({scope} is out of token's scope: [{}])", claims.scope.join(" ")));
    }
    if !claims.zone.is_empty() && claims.zone != zone {
        return denied(format!("zone from requestor: {zone} is different than in token: {}", claims.zone));
    }
    Ok(())
}

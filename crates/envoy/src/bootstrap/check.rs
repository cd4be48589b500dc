//! Checks before a bootstrap is built.

use super::{
    error::BootstrapError,
    params::{BootstrapParams, ServerCertificate},
    request::{BootstrapRequest, ProxyType},
};
use ikada_model::Dataplane;

/// Steps 1 to 3 of §1.2.
///
/// `host` is the host of the request without its port. `is_ca` tells the CA flag of the basic constraints of the first certificate of a PEM text,
/// `None` when it has none (then it is accepted, as an unreadable text is: Envoy will name the fault).
pub fn check(
    request: &BootstrapRequest,
    host: &str,
    params: &BootstrapParams,
    server: &ServerCertificate,
    is_ca: impl Fn(&str) -> Option<bool>,
) -> Result<(), BootstrapError> {
    let token_required = match request.proxy_type {
        ProxyType::Dataplane => params.dp_token_required,
        ProxyType::Ingress | ProxyType::Egress => params.zone_token_required,
    };
    if token_required && request.dataplane_token.is_empty() && request.dataplane_token_path.is_empty() {
        return Err(BootstrapError::DpTokenRequired);
    }
    if params.xds_host.is_empty() && !server.sans.iter().any(|san| san.eq_ignore_ascii_case(host)) {
        return Err(BootstrapError::SanMismatch { host: host.to_owned(), sans: server.sans.clone() });
    }
    let anchor = if request.ca_cert.is_empty() { &server.pem } else { &request.ca_cert };
    if is_ca(anchor) == Some(false) {
        return Err(BootstrapError::NotCa);
    }
    Ok(())
}

/// Step 4 of §1.2 for a Dataplane that the request carries: its mesh exists, no outbounds beside transparent proxying.
/// `mesh` is the mesh of the resource.
pub fn check_dataplane(mesh: &str, mesh_exists: bool, dataplane: &Dataplane) -> Result<(), BootstrapError> {
    if !mesh_exists {
        return Err(BootstrapError::invalid([("mesh", format!("mesh {mesh:?} does not exist"))]));
    }
    let transparent = dataplane.networking.transparent_proxying.as_ref().is_some_and(|t| t.redirect_port_inbound != 0 || t.redirect_port_outbound != 0);
    if transparent && !dataplane.networking.outbound.is_empty() {
        return Err(BootstrapError::invalid([("outbound", "should be empty since dataplane is in Transparent Proxying mode")]));
    }
    Ok(())
}

/// Host of a `Host` header or authority: without port, IPv6 literals without brackets.
pub fn host_without_port(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    match authority.split_once(':') {
        Some((host, port)) if !port.contains(':') => host,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> BootstrapRequest {
        BootstrapRequest { name: "a".into(), dataplane_token: "t".into(), ..Default::default() }
    }
    fn server() -> ServerCertificate {
        ServerCertificate { pem: "S".into(), sans: vec!["localhost".into(), "10.0.0.1".into()] }
    }

    #[test]
    fn order_and_texts() {
        let (params, server) = (BootstrapParams::default(), server());
        let no_token = BootstrapRequest { dataplane_token: String::new(), ..request() };
        assert_eq!(check(&no_token, "other", &params, &server, |_| Some(false)), Err(BootstrapError::DpTokenRequired));
        let none = BootstrapParams { dp_token_required: false, ..params.clone() };
        assert_eq!(check(&no_token, "10.0.0.1", &none, &server, |_| None), Ok(()));
        let err = check(&request(), "other", &params, &server, |_| Some(false)).unwrap_err();
        assert_eq!(err.status(), 400);
        assert!(err.body().starts_with(
            "A data plane proxy is trying to connect to the control plane using \"other\" address, but the certificate in the control plane has the \
             following SANs [\"localhost\" \"10.0.0.1\"]."
        ));
        let configured = BootstrapParams { xds_host: "cp".into(), ..params.clone() };
        assert_eq!(check(&request(), "other", &configured, &server, |_| Some(true)), Ok(()));
    }

    #[test]
    fn the_ca_of_the_request_goes_first() {
        let with_ca = BootstrapRequest { ca_cert: "R".into(), ..request() };
        let params = BootstrapParams::default();
        let is_ca = |pem: &str| Some(pem == "S");
        assert_eq!(check(&with_ca, "localhost", &params, &server(), is_ca), Err(BootstrapError::NotCa));
        assert_eq!(check(&request(), "localhost", &params, &server(), is_ca), Ok(()));
    }

    #[test]
    fn dataplane_rules() {
        let dp: Dataplane = serde_json::from_str(r#"{"networking":{"transparentProxying":{"redirectPortInbound":15006},"outbound":[{"port":1}]}}"#).unwrap();
        assert_eq!(check_dataplane("m", false, &dp).unwrap_err().body(), "mesh: mesh \"m\" does not exist");
        let err = check_dataplane("m", true, &dp).unwrap_err();
        assert_eq!(err.body(), "outbound: should be empty since dataplane is in Transparent Proxying mode");
        assert_eq!(check_dataplane("m", true, &Dataplane::default()), Ok(()));
    }

    #[test]
    fn hosts() {
        for (authority, host) in [("a:1", "a"), ("a", "a"), ("[::1]:5678", "::1"), ("[::1]", "::1"), ("::1", "::1"), ("", "")] {
            assert_eq!(host_without_port(authority), host, "{authority}");
        }
    }
}

//! TLS contexts and secrets of mesh mTLS (data-plane contract §6.3, §6.4).

use crate::{
    context::{GenerateError, ProxySecrets},
    naming::Naming,
    proto::{ads, boolv, exact, inline, prefix, transport_socket},
    resources::{ResourceSet, TLS},
};
use envoy_types::pb::envoy::{
    config::core::v3::TransportSocket,
    extensions::transport_sockets::tls::v3::{
        CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, Secret, SubjectAltNameMatcher,
        TlsCertificate, UpstreamTlsContext,
        common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
        secret,
        subject_alt_name_matcher::SanType,
    },
    r#type::matcher::v3::StringMatcher,
};

/// Sent by mesh clients, so that a PERMISSIVE server tells mesh traffic from the application's own TLS.
pub(crate) const ALPN: &str = "kuma";

fn sds(name: String) -> SdsSecretConfig {
    SdsSecretConfig { name, sds_config: Some(ads()) }
}

fn uri(matcher: StringMatcher) -> SubjectAltNameMatcher {
    SubjectAltNameMatcher { san_type: SanType::Uri as i32, matcher: Some(matcher), ..Default::default() }
}

fn common(naming: Naming, mesh: &str, sans: Vec<SubjectAltNameMatcher>) -> CommonTlsContext {
    CommonTlsContext {
        tls_certificate_sds_secret_configs: vec![sds(naming.identity_secret(mesh))],
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
            default_validation_context: Some(CertificateValidationContext { match_typed_subject_alt_names: sans, ..Default::default() }),
            validation_context_sds_secret_config: Some(sds(naming.ca_secret(mesh))),
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// What an inbound presents and demands.
pub(crate) fn downstream(naming: Naming, mesh: &str) -> TransportSocket {
    let context = DownstreamTlsContext {
        common_tls_context: Some(common(naming, mesh, vec![uri(prefix(&format!("spiffe://{mesh}/")))])),
        require_client_certificate: boolv(true),
        ..Default::default()
    };
    transport_socket(TLS, &context)
}

/// What a cluster presents and demands: any of these SPIFFE ids, and this SNI. With no ids any member of the mesh is accepted.
pub(crate) fn upstream(naming: Naming, mesh: &str, ids: &[String], sni: &str) -> TransportSocket {
    let sans = if ids.is_empty() { vec![uri(prefix(&format!("spiffe://{mesh}/")))] } else { ids.iter().map(|id| uri(exact(id))).collect() };
    let mut common_context = common(naming, mesh, sans);
    common_context.alpn_protocols = vec![ALPN.to_owned()];
    let context = UpstreamTlsContext { common_tls_context: Some(common_context), sni: sni.to_owned(), ..Default::default() };
    transport_socket(TLS, &context)
}

/// Server side of the admin listener: only the control plane gets in.
pub(crate) fn admin(certificate: &str, key: &str, ca: &str) -> TransportSocket {
    let cp = SubjectAltNameMatcher { san_type: SanType::Dns as i32, matcher: Some(exact("kuma-cp")), ..Default::default() };
    let context = DownstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_certificates: vec![certificate_of(certificate, key)],
            validation_context_type: Some(ValidationContextType::ValidationContext(CertificateValidationContext {
                trusted_ca: inline(ca),
                match_typed_subject_alt_names: vec![cp],
                ..Default::default()
            })),
            ..Default::default()
        }),
        require_client_certificate: boolv(true),
        ..Default::default()
    };
    transport_socket(TLS, &context)
}

fn certificate_of(chain: &str, key: &str) -> TlsCertificate {
    TlsCertificate { certificate_chain: inline(chain), private_key: inline(key), ..Default::default() }
}

/// Adds the mesh's secrets when something refers to them.
pub(crate) fn add_secrets(set: &mut ResourceSet, naming: Naming, mesh: &str, secrets: &ProxySecrets) -> Result<(), GenerateError> {
    if !set.uses_mesh_secrets {
        return Ok(());
    }
    let (identity, ca) = (naming.identity_secret(mesh), naming.ca_secret(mesh));
    let (chain, key) = secrets.identity.as_ref().ok_or_else(|| GenerateError::NoSecret(identity.clone()))?;
    let root = secrets.mesh_ca.as_ref().ok_or_else(|| GenerateError::NoSecret(ca.clone()))?;
    let own = Secret { name: identity.clone(), r#type: Some(secret::Type::TlsCertificate(certificate_of(chain, key))) };
    let context = CertificateValidationContext { trusted_ca: inline(root), ..Default::default() };
    let trust = Secret { name: ca.clone(), r#type: Some(secret::Type::ValidationContext(context)) };
    set.secrets.insert(identity, own);
    set.secrets.insert(ca, trust);
    Ok(())
}

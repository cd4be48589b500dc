//! Certificates as others see them: x509-parser, and rustls peers that speak mTLS with SPIFFE ids.

use ikada_pki::{
    Ca, DEFAULT_CA_EXPIRY, Error, PemPair, WorkloadCertificate, builtin_ca, certificates_der, envoy_admin_ca, key_matches, parse_chain,
    private_key_der, self_signed_server,
    tls::{Trust, client_config},
    validate_provided,
};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{ParsedCertificate, WebPkiClientVerifier},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::{Duration, Instant, SystemTime},
};
use x509_parser::prelude::{FromDer, X509Certificate};

const HOUR: Duration = Duration::from_secs(3600);

fn now() -> SystemTime {
    SystemTime::now()
}

fn ca_pair() -> &'static PemPair {
    static CA: OnceLock<PemPair> = OnceLock::new();
    CA.get_or_init(|| builtin_ca("default", 0, DEFAULT_CA_EXPIRY, now()).unwrap())
}

fn set(values: &[&str]) -> BTreeSet<String> {
    values.iter().map(|v| (*v).to_owned()).collect()
}

fn backend(ca: &Ca) -> WorkloadCertificate {
    let tags = BTreeMap::from([
        ("version".to_owned(), set(&["v2", "v1"])),
        ("kuma.io/service".to_owned(), set(&["web", "backend"])),
        ("kuma.io/protocol".to_owned(), set(&["http"])),
    ]);
    ca.workload_certificate("default", &set(&["web", "backend"]), &tags, 24 * HOUR, now()).unwrap()
}

fn der(pem: &str) -> CertificateDer<'static> {
    certificates_der(pem).unwrap().remove(0)
}

#[test]
fn builtin_ca_has_kumas_shape() {
    let der = der(&ca_pair().cert_pem);
    let (_, cert) = X509Certificate::from_der(&der).unwrap();
    assert_eq!(cert.subject().to_string(), "O=Kuma, OU=Mesh, CN=default");
    assert_eq!(cert.issuer(), cert.subject());
    assert_eq!(cert.raw_serial(), [0]);
    let usage = cert.key_usage().unwrap().unwrap().value;
    assert_eq!((usage.key_cert_sign(), usage.crl_sign(), usage.digital_signature()), (true, true, false));
    let info = &parse_chain(&ca_pair().cert_pem).unwrap()[0];
    assert!(info.is_ca && info.has_basic_constraints);
    assert_eq!(info.uris, ["spiffe://default"]);
    let life = info.not_after.duration_since(info.not_before).unwrap();
    assert_eq!(life, DEFAULT_CA_EXPIRY + Duration::from_secs(10));
    assert!(ca_pair().key_pem.starts_with("-----BEGIN RSA PRIVATE KEY-----\n"));
    assert!(key_matches(&ca_pair().cert_pem, &ca_pair().key_pem).unwrap());
    cert.verify_signature(None).unwrap();
}

#[test]
fn a_life_that_no_certificate_can_hold_ends_with_the_ca() {
    let ca = Ca::from_pair(ca_pair()).unwrap();
    for life in [Duration::MAX, Duration::from_secs(9_000 * 365 * 86_400)] {
        let made = ca.workload_certificate("default", &set(&["web"]), &BTreeMap::new(), life, now()).unwrap();
        assert_eq!(made.not_after, ca.info().not_after);
    }
}

#[test]
fn rsa_bits_are_rounded_up_and_bounded() {
    let bits = |n| {
        let der = der(&builtin_ca("m", n, HOUR, now()).unwrap().cert_pem);
        X509Certificate::from_der(&der).unwrap().1.public_key().parsed().unwrap().key_size()
    };
    assert_eq!(bits(1024), 2048);
    assert_eq!(bits(3000), 3072);
    assert_eq!(builtin_ca("m", 1_000_000, HOUR, now()), Err(Error::RsaBits(1_000_000)));
    assert_eq!(builtin_ca("m", 0, Duration::MAX, now()), Err(Error::Time));
}

#[test]
fn workload_certificate_has_spiffe_and_kuma_uris_in_order() {
    let ca = Ca::from_pair(ca_pair()).unwrap();
    let leaf = backend(&ca);
    let info = &parse_chain(&leaf.chain_pem).unwrap()[0];
    assert_eq!(
        info.uris,
        [
            "spiffe://default/backend",
            "spiffe://default/web",
            "kuma://kuma.io/protocol/http",
            "kuma://kuma.io/service/backend",
            "kuma://kuma.io/service/web",
            "kuma://version/v1",
            "kuma://version/v2",
        ]
    );
    assert!(!info.is_ca);
    assert_eq!((info.not_before, info.not_after), (leaf.not_before, leaf.not_after));
    assert_eq!(leaf.not_after.duration_since(leaf.not_before).unwrap(), 24 * HOUR + Duration::from_secs(10));
    assert_eq!(info.serial, leaf.serial);
    let der = der(&leaf.chain_pem);
    let (_, cert) = X509Certificate::from_der(&der).unwrap();
    assert_eq!(cert.subject().iter().count(), 0);
    let usage = cert.key_usage().unwrap().unwrap().value;
    assert!(usage.key_encipherment() && usage.key_agreement() && usage.digital_signature() && !usage.key_cert_sign());
    let extended = cert.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    let root = self::der(&ca_pair().cert_pem);
    let (_, root) = X509Certificate::from_der(&root).unwrap();
    cert.verify_signature(Some(root.public_key())).unwrap();
    assert_ne!(backend(&ca).serial, leaf.serial);
    let bad = ca.workload_certificate("default", &set(&["blåbær"]), &BTreeMap::new(), HOUR, now());
    assert!(matches!(bad, Err(Error::Name(_))));
}

/// A SPIFFE client: any name, but a chain to the mesh CA and one exact URI SAN.
#[derive(Debug)]
struct Spiffe {
    roots: RootCertStore,
    id: &'static str,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Spiffe {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        let cert = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&cert, &self.roots, intermediates, now, algorithms)?;
        let info = ikada_pki::parse_certificate(end_entity).map_err(|e| rustls::Error::General(e.to_string()))?;
        if info.uris.iter().any(|uri| uri == self.id) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::General(format!("peer is {:?}, wanted {}", info.uris, self.id)))
        }
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn pump(client: &mut ClientConnection, server: &mut ServerConnection) -> Result<(), rustls::Error> {
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut input = wire.as_slice();
        while !input.is_empty() {
            server.read_tls(&mut input).unwrap();
            server.process_new_packets()?;
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut input = wire.as_slice();
        while !input.is_empty() {
            client.read_tls(&mut input).unwrap();
            client.process_new_packets()?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(())
}

fn mtls(server: &WorkloadCertificate, client: &WorkloadCertificate, root: &PemPair, wanted: &'static str) -> Result<(), rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(der(&root.cert_pem)).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots.clone()), provider.clone()).build().unwrap();
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates_der(&server.chain_pem).unwrap(), private_key_der(&server.key_pem).unwrap())?;
    let client = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Spiffe { roots, id: wanted, provider }))
        .with_client_auth_cert(certificates_der(&client.chain_pem).unwrap(), private_key_der(&client.key_pem).unwrap())?;
    let mut client = ClientConnection::new(Arc::new(client), ServerName::try_from("10.0.0.1").unwrap())?;
    let mut server = ServerConnection::new(Arc::new(server))?;
    pump(&mut client, &mut server)
}

#[test]
fn workloads_handshake_and_strangers_do_not() {
    let ca = Ca::from_pair(ca_pair()).unwrap();
    let (server, client) = (backend(&ca), backend(&ca));
    mtls(&server, &client, ca_pair(), "spiffe://default/backend").unwrap();
    assert!(mtls(&server, &client, ca_pair(), "spiffe://default/other").unwrap_err().to_string().contains("wanted"));
    let other = builtin_ca("default", 0, DEFAULT_CA_EXPIRY, now()).unwrap();
    let stranger = backend(&Ca::from_pair(&other).unwrap());
    assert!(mtls(&stranger, &client, ca_pair(), "spiffe://default/backend").is_err());
    assert!(mtls(&server, &stranger, ca_pair(), "spiffe://default/backend").is_err());
}

#[test]
fn own_server_certificate_is_its_own_ca() {
    let ips: Vec<IpAddr> = vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
    let pair = self_signed_server(&["host-1".to_owned(), "localhost".to_owned()], &ips, now()).unwrap();
    let info = &parse_chain(&pair.cert_pem).unwrap()[0];
    assert!(info.is_ca && info.signs_certificates);
    assert_eq!(info.sans(), ["host-1", "localhost", "127.0.0.1", "::1"]);
    assert!(info.covers_host("LOCALHOST") && info.covers_host("[::1]") && info.covers_host("127.0.0.1"));
    assert!(!info.covers_host("127.0.0.2") && !info.covers_host("example.org"));
    assert_eq!(info.not_after.duration_since(info.not_before).unwrap(), DEFAULT_CA_EXPIRY);
    assert!(info.not_before <= now() - Duration::from_secs(299));
    assert!(key_matches(&pair.cert_pem, &pair.key_pem).unwrap());

    let server = server_config(&pair);
    let connect = |trust: Trust<'_>, host: &'static str, at: SystemTime| {
        let mut client = client_config(trust).unwrap();
        if at != SystemTime::UNIX_EPOCH {
            client.time_provider = Arc::new(At(UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap())));
        }
        let mut client = ClientConnection::new(Arc::new(client), ServerName::try_from(host).unwrap()).unwrap();
        pump(&mut client, &mut ServerConnection::new(server.clone()).unwrap())
    };
    // Whoever trusts exactly this certificate connects by its names, as kuma-dp and Envoy do, and only while it is valid.
    let bundle = Trust::Bundle(&pair.cert_pem);
    connect(bundle, "localhost", now()).unwrap();
    connect(bundle, "127.0.0.1", now()).unwrap();
    assert!(connect(bundle, "example.org", now()).unwrap_err().to_string().contains("not valid for name"));
    let invalid = |e| Err(rustls::Error::InvalidCertificate(e));
    assert_eq!(connect(bundle, "localhost", now() + 2 * DEFAULT_CA_EXPIRY), invalid(CertificateError::Expired));
    assert_eq!(connect(bundle, "localhost", now() - 24 * HOUR), invalid(CertificateError::NotValidYet));
    // Others do not, unless they look away.
    let other = self_signed_server(&["localhost".to_owned()], &[], now()).unwrap();
    assert_eq!(connect(Trust::Bundle(&other.cert_pem), "localhost", now()), invalid(CertificateError::UnknownIssuer));
    connect(Trust::Anything, "example.org", now()).unwrap();
    // An operating system's bundle has hundreds of CAs.
    let many = format!("{}{}", other.cert_pem.repeat(300), pair.cert_pem);
    connect(Trust::Bundle(&many), "localhost", now()).unwrap();
    assert!(certificates_der(&many).is_err());
    assert!(client_config(Trust::Bundle("nothing")).is_err());
}

#[derive(Debug)]
struct At(UnixTime);

impl rustls::time_provider::TimeProvider for At {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0)
    }
}

fn server_config(pair: &PemPair) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    Arc::new(builder.with_single_cert(certificates_der(&pair.cert_pem).unwrap(), private_key_der(&pair.key_pem).unwrap()).unwrap())
}

#[test]
fn a_server_with_a_ca_of_its_own_is_accepted_by_chain() {
    let pair = envoy_admin_ca(now()).unwrap();
    let server = Ca::from_pair(&pair).unwrap().admin_server_certificate(&["localhost".to_owned()], now()).unwrap();
    let connect = |host: &'static str| {
        let client = Arc::new(client_config(Trust::Bundle(&pair.cert_pem)).unwrap());
        let mut client = ClientConnection::new(client, ServerName::try_from(host).unwrap()).unwrap();
        pump(&mut client, &mut ServerConnection::new(server_config(&server)).unwrap())
    };
    connect("localhost").unwrap();
    assert!(connect("other").is_err());
}

#[test]
fn admin_ca_bundle_round_trips_and_issues() {
    let pair = envoy_admin_ca(now()).unwrap();
    let again = PemPair::from_bundle(&pair.bundle()).unwrap();
    assert_eq!(again.cert_pem, pair.cert_pem);
    assert!(key_matches(&again.cert_pem, &again.key_pem).unwrap());
    let ca = Ca::from_pair(&again).unwrap();
    assert_eq!(ca.info().subject, "O=Kuma, OU=Mesh, CN=Envoy Admin CA");
    assert!(ca.info().uris.is_empty());
    let server = ca.admin_server_certificate(&["10.1.2.3".to_owned(), "proxy.example.org".to_owned()], now()).unwrap();
    let info = &parse_chain(&server.cert_pem).unwrap()[0];
    assert_eq!(info.sans(), ["proxy.example.org", "10.1.2.3"]);
    let client = ca.admin_client_certificate(now()).unwrap();
    assert_eq!(parse_chain(&client.cert_pem).unwrap()[0].dns_names, ["kuma-cp"]);
}

#[test]
fn provided_ca_is_checked_with_kumas_texts() {
    let ca = ca_pair();
    assert_eq!(validate_provided(&ca.cert_pem, &ca.key_pem), []);
    let text = |cert: &str, key: &str| {
        validate_provided(cert, key).into_iter().map(|v| format!("{}: {}", v.field, v.message)).collect::<Vec<_>>()
    };
    let other = self_signed_server(&[], &[], now()).unwrap();
    assert_eq!(text(&ca.cert_pem, &other.key_pem), ["cert: not a valid TLS key pair: tls: private key does not match public key"]);
    assert_eq!(text("x", &ca.key_pem), ["cert: not a valid TLS key pair: tls: failed to find any PEM data in certificate input"]);
    assert_eq!(text(&ca.cert_pem, "x"), ["cert: not a valid TLS key pair: tls: failed to find any PEM data in key input"]);
    let leaf = backend(&Ca::from_pair(ca).unwrap());
    assert_eq!(
        text(&leaf.chain_pem, &leaf.key_pem),
        [
            "cert[0]: basic constraint 'CA' must be set to 'true' (see X509-SVID: 4.1. Basic Constraints)",
            "cert[0]: key usage extension 'keyCertSign' must be set (see X509-SVID: 4.3. Key Usage)",
            "cert[0]: key usage extension 'keyAgreement' must NOT be set (see X509-SVID: Appendix A. X.509 Field Reference)",
        ]
    );
    // The second certificate of a chain is looked at too.
    let chain = format!("{}{}", ca.cert_pem, leaf.chain_pem);
    assert!(text(&chain, &ca.key_pem).iter().all(|line| line.starts_with("cert[1]: ")));
    assert_eq!(text(&chain, &ca.key_pem).len(), 3);
}

#[test]
fn provided_ca_with_ec_key_issues() {
    let pair = self_signed_server(&["ca".to_owned()], &[], now()).unwrap();
    assert_eq!(validate_provided(&pair.cert_pem, &pair.key_pem), []);
    let leaf = backend(&Ca::from_pair(&pair).unwrap());
    let (leaf, root) = (der(&leaf.chain_pem), der(&pair.cert_pem));
    let (_, root) = X509Certificate::from_der(&root).unwrap();
    X509Certificate::from_der(&leaf).unwrap().1.verify_signature(Some(root.public_key())).unwrap();
}

#[test]
fn a_wrong_key_or_damaged_text_is_an_error() {
    let other = self_signed_server(&[], &[], now()).unwrap();
    assert_eq!(Ca::from_pem(&ca_pair().cert_pem, &other.key_pem).unwrap_err(), Error::Mismatch);
    assert_eq!(Ca::from_pem("", "").unwrap_err(), Error::NoPem("private key"));
    assert!(!format!("{:?}", ca_pair()).contains("PRIVATE KEY"));
    assert!(!format!("{:?}", Ca::from_pair(&other).unwrap()).contains("PRIVATE KEY"));
}

/// Ten thousand proxies need one leaf each at start: with a parsed CA that has to be seconds, not minutes. Prints the rate.
#[test]
fn leaves_are_cheap() {
    let ca = Ca::from_pair(ca_pair()).unwrap();
    let (start, count) = (Instant::now(), 200u32);
    for _ in 0..count {
        backend(&ca);
    }
    let rate = f64::from(count) / start.elapsed().as_secs_f64();
    println!("leaves per second on one core: {rate:.0}");
    assert!(rate > 50.0, "{rate} leaves per second");
}

mod garbage {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn never_panics(text in "\\PC{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..1000, with in any::<u8>()) {
            let _ = parse_chain(&text);
            let _ = PemPair::from_bundle(&text);
            let _ = Ca::from_pem(&text, &text);
            let _ = ikada_pki::parse_certificate(&bytes);
            let _ = validate_provided(&text, &ca_pair().key_pem);
            // One damaged byte in a real certificate and in a real text.
            let mut der = der(&ca_pair().cert_pem).to_vec();
            let i = at % der.len();
            der[i] ^= with | 1;
            let _ = ikada_pki::parse_certificate(&der);
            let mut text = ca_pair().bundle().into_bytes();
            let i = at % text.len();
            text[i] = with & 0x7f;
            let text = String::from_utf8(text).unwrap();
            let _ = PemPair::from_bundle(&text);
            let _ = Ca::from_pem(&text, &text);
            let _ = validate_provided(&text, &text);
        }
    }
}

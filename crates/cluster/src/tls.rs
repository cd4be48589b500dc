//! Mutual TLS 1.3 between nodes. Certificates are exchanged without a restart: every new connection takes the newest.

use crate::{
    identity::{Credentials, NodeName},
    wire::Wire,
};
use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use ikada_pki::sha256;
use ikada_raft::{
    Clock, ClusterId,
    net::{Io, Net},
};
use std::{
    fmt, io,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    rustls::{
        self, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
        client::{
            Resumption,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
            verify_server_cert_signed_by_trust_anchor,
        },
        crypto::CryptoProvider,
        pki_types::{CertificateDer, ServerName, UnixTime},
        server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier},
        time_provider::TimeProvider,
        version::TLS13,
    },
};

/// Longest time to connect and shake hands, as a client.
const CONNECT: Duration = Duration::from_secs(5);
/// Name in the client's hello. Who answers is told by the certificate, not by a host name.
const SERVER_NAME: &str = "peer.ikada";
/// Longest chain that a peer may show: its own certificate and that of the CA.
const MAX_CHAIN: usize = 2;

/// The wall clock as [`SystemTime`].
pub(crate) fn system_time(clock: &dyn Clock) -> SystemTime {
    let nanos = u64::try_from(clock.now().0).unwrap_or(0);
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_nanos(nanos)).unwrap_or(SystemTime::UNIX_EPOCH)
}

struct Time(Arc<dyn Clock>);

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Time")
    }
}

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        system_time(&*self.0).duration_since(SystemTime::UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

/// How this node proves who it is, and whom it believes.
pub(crate) struct Tls {
    clock: Arc<dyn Clock>,
    current: ArcSwapOption<Material>,
}

struct Material {
    name: NodeName,
    not_before: SystemTime,
    not_after: SystemTime,
    ca_hash: [u8; 32],
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

/// A node's certificate, as the status shows it.
pub(crate) struct Validity {
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

fn invalid(e: impl fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, e.to_string())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

impl Tls {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Tls {
        Tls { clock, current: ArcSwapOption::empty() }
    }

    /// Uses these credentials for every connection from now on.
    pub(crate) fn set(&self, c: &Credentials) -> Result<(), String> {
        let time = Arc::new(Time(self.clock.clone()));
        let provider = provider();
        let mut roots = RootCertStore::empty();
        roots.add(c.ca.clone()).map_err(|e| e.to_string())?;
        let roots = Arc::new(roots);
        let chain = vec![c.certificate.clone(), c.ca.clone()];
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|e| e.to_string())?;
        let mut server = ServerConfig::builder_with_details(provider.clone(), time.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(|e| e.to_string())?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain.clone(), c.key.clone_key())
            .map_err(|e| e.to_string())?;
        // Every connection shows its certificate: no session outlives a removal or a renewal.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.alpn_protocols = vec![b"h2".to_vec()];
        let verifier = Arc::new(Verifier { provider: provider.clone(), trust: Trust::Ca(roots), cluster: c.name.cluster });
        let client = client_config(provider, time, verifier)?.with_client_auth_cert(chain, c.key.clone_key()).map_err(|e| e.to_string())?;
        self.current.store(Some(Arc::new(Material {
            name: c.name,
            not_before: c.info.not_before,
            not_after: c.info.not_after,
            ca_hash: c.ca_hash(),
            server: Arc::new(server),
            client: Arc::new(finished(client)),
        })));
        Ok(())
    }

    /// Whose certificate is in use.
    pub(crate) fn name(&self) -> Option<NodeName> {
        self.current.load().as_ref().map(|m| m.name)
    }

    /// Hash of the CA's certificate.
    pub(crate) fn ca_hash(&self) -> Option<[u8; 32]> {
        self.current.load().as_ref().map(|m| m.ca_hash)
    }

    pub(crate) fn validity(&self) -> Option<Validity> {
        self.current.load().as_ref().map(|m| Validity { not_before: m.not_before, not_after: m.not_after })
    }

    /// Shakes hands with who connected. The node that it proved to be, if it showed a certificate.
    pub(crate) async fn accept(&self, io: Io) -> io::Result<(Io, Option<u64>)> {
        let Some(material) = self.current.load_full() else {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "this node has no certificate yet"));
        };
        let stream = TlsAcceptor::from(material.server.clone()).accept(io).await?;
        let node = match stream.get_ref().1.peer_certificates().and_then(<[_]>::first) {
            None => None,
            Some(certificate) => {
                let name = NodeName::of_certificate(certificate).map_err(invalid)?;
                if name.cluster != material.name.cluster {
                    return Err(invalid(format!("node {} of another cluster ({}) called", name.node, name.cluster)));
                }
                Some(name.node)
            }
        };
        Ok((Box::new(stream), node))
    }
}

type Builder = rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

fn client_config(provider: Arc<CryptoProvider>, time: Arc<Time>, verifier: Arc<Verifier>) -> Result<Builder, String> {
    let builder = ClientConfig::builder_with_details(provider, time).with_protocol_versions(&[&TLS13]).map_err(|e| e.to_string())?;
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier))
}

fn finished(mut client: ClientConfig) -> ClientConfig {
    client.resumption = Resumption::disabled();
    client.alpn_protocols = vec![b"h2".to_vec()];
    client
}

/// Which CA a server's certificate must come from.
#[derive(Debug)]
enum Trust {
    Ca(Arc<RootCertStore>),
    /// The CA that the server shows, if this is the SHA-256 of its certificate.
    Pinned([u8; 32]),
}

#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    trust: Trust,
    cluster: ClusterId,
}

fn other(text: impl Into<String>) -> rustls::Error {
    rustls::Error::General(text.into())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if intermediates.len() >= MAX_CHAIN {
            return Err(other("it shows too many certificates"));
        }
        let roots = match &self.trust {
            Trust::Ca(roots) => roots.clone(),
            Trust::Pinned(hash) => {
                let Some(ca) = intermediates.iter().find(|c| sha256(c) == *hash) else {
                    return Err(other("it is not of the cluster that the join token is for"));
                };
                let mut roots = RootCertStore::empty();
                roots.add(ca.clone().into_owned())?;
                Arc::new(roots)
            }
        };
        let algorithms = &self.provider.signature_verification_algorithms;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &[], now, algorithms.all).map_err(|e| match e {
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => other("it is a node of another cluster, or none"),
            rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { .. } | CertificateError::Expired) => {
                other("its certificate has expired; if it runs, compare the clocks of the two machines")
            }
            rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { .. } | CertificateError::NotValidYet) => {
                other("its certificate is not valid yet; compare the clocks of the two machines")
            }
            e => e,
        })?;
        let name = NodeName::of_certificate(end_entity).map_err(other)?;
        if name.cluster != self.cluster {
            return Err(other(format!("it is a node of another cluster ({})", name.cluster)));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(other("TLS 1.2 is not spoken between nodes"))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What a peer's server showed.
pub(crate) struct Shown {
    pub io: Io,
    pub name: NodeName,
    /// Certificate of the CA.
    pub ca: CertificateDer<'static>,
}

async fn handshake(wire: &dyn Wire, client: Arc<ClientConfig>, address: &str) -> io::Result<Shown> {
    let connect = async {
        let io = wire.connect(address).await?;
        let name = ServerName::try_from(SERVER_NAME).map_err(invalid)?;
        let stream = TlsConnector::from(client).connect(name, io).await.map_err(|e| match e.get_ref() {
            Some(inner) if inner.is::<rustls::Error>() => match inner.downcast_ref() {
                Some(rustls::Error::General(text)) => invalid(text),
                _ => e,
            },
            _ => e,
        })?;
        let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let leaf = shown.first().ok_or_else(|| invalid("it shows no certificate"))?;
        let name = NodeName::of_certificate(leaf).map_err(invalid)?;
        let ca = shown.get(1).ok_or_else(|| invalid("it does not show its CA"))?.clone().into_owned();
        Ok(Shown { name, ca, io: Box::new(stream) })
    };
    match tokio::time::timeout(CONNECT, connect).await {
        Ok(done) => done,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", CONNECT.as_secs()))),
    }
}

/// Connects without a certificate of its own to a node of the cluster whose CA has this hash.
pub(crate) async fn connect_pinned(
    wire: &dyn Wire,
    clock: Arc<dyn Clock>,
    cluster: ClusterId,
    ca_hash: [u8; 32],
    address: &str,
) -> io::Result<Shown> {
    let provider = provider();
    let verifier = Arc::new(Verifier { provider: provider.clone(), trust: Trust::Pinned(ca_hash), cluster });
    let client = client_config(provider, Arc::new(Time(clock)), verifier).map_err(invalid)?.with_no_client_auth();
    handshake(wire, Arc::new(finished(client)), address).await
}

/// [`Net`] over mutual TLS.
pub(crate) struct TlsNet {
    pub tls: Arc<Tls>,
    pub wire: Arc<dyn Wire>,
}

#[async_trait]
impl Net for TlsNet {
    async fn connect(&self, address: &str, node: u64) -> io::Result<Io> {
        let failed = |e: io::Error| io::Error::new(e.kind(), format!("node {node} at {address}: {e}"));
        let Some(material) = self.tls.current.load_full() else {
            return Err(failed(io::Error::new(io::ErrorKind::NotConnected, "this node has no certificate yet")));
        };
        let shown = handshake(&*self.wire, material.client.clone(), address).await.map_err(failed)?;
        if shown.name.node != node {
            return Err(failed(invalid(format!("node {} answers there", shown.name.node))));
        }
        Ok(shown.io)
    }
}

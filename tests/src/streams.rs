//! ADS clients without an Envoy: many streams over few TLS connections.

use crate::process::init;
use anyhow::{Context, Result};
use envoy_types::pb::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    google::protobuf::{Struct, Value as Pb, value::Kind},
};
use hyper_util::rt::TokioIo;
use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use serde_json::Value;
use std::sync::Arc;
use tokio::{net::TcpStream, sync::mpsc};
use tokio_rustls::client::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Status, Streaming,
    transport::{Channel, Endpoint},
};

/// Takes any server certificate.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(&self, _: &CertificateDer<'_>, _: &[CertificateDer<'_>], _: &ServerName<'_>, _: &[u8], _: UnixTime) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::RSA_PSS_SHA256, SignatureScheme::RSA_PKCS1_SHA256]
    }
}

/// A TLS connection to a port of this machine, with HTTP/2 (`h2`) or HTTP/1.1 (`http/1.1`) agreed on and nothing said yet.
pub async fn tls(port: u16, protocol: &str) -> Result<TlsStream<TcpStream>> {
    init();
    let mut config = rustls::ClientConfig::builder().dangerous().with_custom_certificate_verifier(Arc::new(AnyServer)).with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
    Ok(tokio_rustls::TlsConnector::from(Arc::new(config)).connect("localhost".try_into()?, tcp).await?)
}

/// One connection for many streams.
pub async fn connect(port: u16) -> Result<Channel> {
    let connector = tower::service_fn(move |_| async move { tls(port, "h2").await.map(TokioIo::new).map_err(std::io::Error::other) });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await.context("connection to the DP server")
}

/// An open stream. Dropping it ends it.
pub struct AdsStream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl AdsStream {
    /// Opens a delta stream for a dataplane that it brings along, and asks for clusters.
    pub async fn open(channel: &Channel, dataplane: &Value, token: Option<&str>) -> Result<AdsStream, Status> {
        let text = |t: &str| Pb { kind: Some(Kind::StringValue(t.to_owned())) };
        let fields = [("dataplane.type".to_owned(), text("dataplane")), ("dataplane.resource".to_owned(), text(&dataplane.to_string()))];
        let part = |k: &str| dataplane.get(k).and_then(Value::as_str).unwrap_or("");
        let node = Node { id: format!("{}.{}", part("mesh"), part("name")), metadata: Some(Struct { fields: fields.into() }), ..Node::default() };
        let (requests, rx) = mpsc::channel(4);
        let first = DeltaDiscoveryRequest {
            node: Some(node),
            type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned(),
            resource_names_subscribe: vec!["*".to_owned()],
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(first).await.map_err(|_| Status::cancelled("closed"))?;
        let mut request = Request::new(ReceiverStream::new(rx));
        if let Some(token) = token {
            let value = token.parse().map_err(|_| Status::invalid_argument("the token is not text"))?;
            request.metadata_mut().insert("authorization", value);
        }
        let responses = AggregatedDiscoveryServiceClient::new(channel.clone()).delta_aggregated_resources(request).await?.into_inner();
        Ok(AdsStream { requests, responses })
    }
    /// The next response, acknowledged. `None` when the server ended the stream without a status.
    pub async fn next(&mut self) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        let response = self.responses.message().await?;
        if let Some(r) = &response {
            let ack = DeltaDiscoveryRequest { type_url: r.type_url.clone(), response_nonce: r.nonce.clone(), ..DeltaDiscoveryRequest::default() };
            self.requests.send(ack).await.ok();
        }
        Ok(response)
    }
}

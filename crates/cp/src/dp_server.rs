//! DP server: `POST /bootstrap`, ADS and health discovery on one TLS port (reference: data-plane contract §1).

use crate::{
    diagnostics::reply,
    listen::{Peer, Reply},
    proxies::{
        Proxies, ProxySource,
        health::{self, Hds},
    },
    tls::Identity,
};
use bytes::{Bytes, BytesMut};
use envoy_types::pb::envoy::service::{
    discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer,
    health::v3::health_discovery_service_server::HealthDiscoveryServiceServer,
};
use http::{HeaderMap, Request, StatusCode, Version, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use ikada_envoy::bootstrap::{self, BootstrapError, BootstrapParams, BootstrapRequest, ProxyType, ServerCertificate, Subject};
use ikada_model::{
    Dataplane, Key, Kind, Resource,
    decode::{self, DecodeError},
    labels,
};
use ikada_world::Replicator;
use ikada_xds::PeerAddr;
use std::{sync::Arc, time::Duration};
use tokio::sync::Semaphore;
use tower::ServiceExt;

/// Largest bootstrap request, bytes.
const MAX_BODY: usize = 4 << 20;
/// A larger request counts as large, bytes. Those of our launcher are a few thousand.
const SMALL_BODY: usize = 64 << 10;
/// Large requests at a time.
const LARGE_BODIES: usize = 32;
/// Lookups of names at a time.
const LOOKUPS: usize = 8;
/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the name of the xDS host may take to resolve.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Of a refused body this much is read before the connection ends, bytes.
const MAX_DRAINED: usize = 16 << 20;
const TEXT: &str = "text/plain; charset=utf-8";

/// The server.
pub struct DpServer {
    store: Arc<dyn Replicator>,
    params: BootstrapParams,
    zone: String,
    certificate: ServerCertificate,
    large_bodies: Semaphore,
    lookups: Arc<Semaphore>,
    ads: AggregatedDiscoveryServiceServer<ikada_xds::Ads<ProxySource>>,
    /// `None` = `dpServer.hds.enabled` is false.
    hds: Option<HealthDiscoveryServiceServer<Hds>>,
}

impl DpServer {
    /// A server for these proxies; `xds` are the settings of ADS.
    pub fn new(store: Arc<dyn Replicator>, proxies: Arc<Proxies>, params: BootstrapParams, zone: String, xds: ikada_xds::Options, identity: &Identity) -> Self {
        let sans = ikada_pki::parse_chain(&identity.cert_pem).ok().and_then(|c| c.first().map(ikada_pki::CertInfo::sans)).unwrap_or_default();
        let hds = params.hds_enabled.then(|| health::service(proxies.clone()));
        DpServer {
            store,
            params,
            zone,
            certificate: ServerCertificate { pem: identity.cert_pem.clone(), sans },
            large_bodies: Semaphore::new(LARGE_BODIES),
            lookups: Arc::new(Semaphore::new(LOOKUPS)),
            ads: ikada_xds::service(Arc::new(ProxySource(proxies)), xds),
            hds,
        }
    }

    /// Answers a request: gRPC to health discovery and ADS, the rest to the one HTTP path.
    pub async fn handle(self: Arc<Self>, mut request: Request<Incoming>) -> Reply {
        let grpc = request.headers().get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"));
        if grpc && request.version() == Version::HTTP_2 {
            if let Some(peer) = request.extensions().get::<Peer>().copied() {
                request.extensions_mut().insert(PeerAddr(peer.address));
            }
            let response = match &self.hds {
                Some(hds) if request.uri().path().starts_with(health::PATH) => hds.clone().oneshot(request).await,
                _ => self.ads.clone().oneshot(request).await,
            };
            let response = match response {
                Ok(r) => r,
                Err(never) => match never {},
            };
            return response.map(|b| b.map_err(Into::into).boxed_unsync());
        }
        if request.uri().path() != "/bootstrap" {
            return reply(StatusCode::NOT_FOUND, TEXT, "404 page not found\n");
        }
        let (parts, body) = request.into_parts();
        let body = match tokio::time::timeout(BODY_TIMEOUT, read_body(body, &self.large_bodies)).await {
            Ok(Ok(body)) => body,
            Ok(Err((status, text))) => return reply(status, TEXT, text),
            Err(_) => return reply(StatusCode::REQUEST_TIMEOUT, TEXT, format!("the request did not arrive within {} s\n", BODY_TIMEOUT.as_secs())),
        };
        let authority = parts.uri.authority().map(|a| a.as_str().to_owned());
        match self.bootstrap(&parts.headers, authority, &body).await {
            Ok(r) => r,
            Err(error) => {
                tracing::info!(status = error.status(), %error, "bootstrap request refused");
                let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                reply(status, TEXT, error.body())
            }
        }
    }

    async fn bootstrap(&self, headers: &HeaderMap, authority: Option<String>, body: &Bytes) -> Result<Reply, BootstrapError> {
        let request = BootstrapRequest::parse(body)?;
        let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).map(str::to_owned).or(authority).unwrap_or_default();
        let host = bootstrap::host_without_port(&host);
        bootstrap::check(&request, host, &self.params, &self.certificate, |pem| {
            let chain = ikada_pki::parse_chain(pem).ok()?;
            let first = chain.first()?;
            first.has_basic_constraints.then_some(first.is_ca)
        })?;
        let resource = self.resource(&request)?;
        let world = self.store.world();
        let mesh = Some(resource.mesh()).filter(|m| !m.is_empty()).and_then(|m| world.mesh(m));
        let xds_host = if self.params.xds_host.is_empty() { host } else { &self.params.xds_host };
        let subject = Subject {
            resource: &resource,
            mesh: mesh.map(|m| &**m),
            host,
            ipv4_only: resolves_to_ipv4_only(xds_host, &self.lookups).await,
            server_pem: &self.certificate.pem,
        };
        let config = bootstrap::generate(&request, &subject, &self.params)?;
        let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok());
        let answer = bootstrap::respond(accept, &config, &request, &subject, &self.params)?;
        Ok(reply(StatusCode::OK, answer.content_type, answer.body))
    }

    /// The resource that the request carries, validated; else the stored one.
    fn resource(&self, request: &BootstrapRequest) -> Result<Arc<Resource>, BootstrapError> {
        let world = self.store.world();
        let kind = match request.proxy_type {
            ProxyType::Dataplane => Kind::Dataplane,
            ProxyType::Ingress => Kind::ZoneIngress,
            ProxyType::Egress => Kind::ZoneEgress,
        };
        let Some(body) = request.inline_resource()? else {
            if kind == Kind::Dataplane && world.mesh(&request.mesh).is_none() {
                return Err(BootstrapError::NotFound);
            }
            return world.find(kind, &request.mesh, &request.name).cloned().ok_or(BootstrapError::NotFound);
        };
        let decoded = decode::decode(kind, &body).map_err(|e| match e {
            DecodeError::Malformed(t) => BootstrapError::Invalid(t),
            DecodeError::Invalid(v) => BootstrapError::invalid(v.iter().map(|v| (&v.field, &v.message))),
            DecodeError::NotImplemented(k) => BootstrapError::Invalid(format!("proxies of type {k} are not supported in this version")),
        })?;
        let mesh = decoded.mesh.clone().unwrap_or_default();
        let mut all = decoded.labels;
        labels::compute(ikada_model::Mode::Zone { federated: false }, &self.zone, kind, &mesh, decoded.spec.value(), &mut all);
        let resource = Resource::new(Key::new(kind, &mesh, &decoded.name), decoded.spec).with_labels(all);
        if let Some(dataplane) = resource.view::<Dataplane>() {
            bootstrap::check_dataplane(&mesh, world.mesh(&mesh).is_some(), dataplane)?;
        }
        Ok(Arc::new(resource))
    }
}

/// The whole body; who sends too much, or a large one while many others do, is told so. The rest of a refused body is read and thrown away
/// up to a bound: a client that is still sending when the connection ends does not get to see the answer.
async fn read_body<B>(mut body: B, large: &Semaphore) -> Result<Bytes, (StatusCode, String)>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
{
    let mut out = BytesMut::new();
    let (mut permit, mut refused, mut total) = (None, None, 0usize);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| (StatusCode::BAD_REQUEST, "the request could not be read to its end\n".to_owned()))?;
        let Ok(data) = frame.into_data() else { continue };
        total = total.saturating_add(data.len());
        if refused.is_none() && total > MAX_BODY {
            permit = None;
            refused = Some((StatusCode::PAYLOAD_TOO_LARGE, format!("the request is larger than {MAX_BODY} bytes\n")));
        } else if refused.is_none() && total > SMALL_BODY && permit.is_none() {
            match large.try_acquire() {
                Ok(p) => permit = Some(p),
                Err(_) => refused = Some((StatusCode::SERVICE_UNAVAILABLE, "too many large requests at the moment, try again\n".to_owned())),
            }
        }
        if refused.is_none() {
            out.extend_from_slice(&data);
        } else if total > MAX_DRAINED {
            break;
        } else {
            out = BytesMut::new();
        }
    }
    refused.map_or_else(|| Ok(out.freeze()), Err)
}

/// Whether a host is a name (other than `localhost`) whose addresses are all IPv4. A name that does not resolve in time is not.
///
/// The names come from anybody, and each lookup holds a thread as long as the system's resolver likes: a permit goes with the thread.
async fn resolves_to_ipv4_only(host: &str, lookups: &Arc<Semaphore>) -> bool {
    if host == "localhost" || host.parse::<std::net::IpAddr>().is_ok() {
        return false;
    }
    let lookup = async {
        let permit = lookups.clone().acquire_owned().await.ok()?;
        let host = host.to_owned();
        let found = tokio::spawn(async move {
            let _permit = permit;
            tokio::net::lookup_host((host, 0)).await.map(Iterator::collect::<Vec<_>>)
        });
        found.await.ok()?.ok()
    };
    match tokio::time::timeout(RESOLVE_TIMEOUT, lookup).await {
        Ok(Some(addresses)) => !addresses.is_empty() && addresses.iter().all(std::net::SocketAddr::is_ipv4),
        _ => false,
    }
}

//! Where outbounds lead: real resources and legacy services, their protocol, cluster name, SNI and identities.

use crate::{
    context::{GenerateError, ProxyContext},
    endpoints::{self, Shared},
    naming::{Naming, legacy_cluster, legacy_sni, resource_sni},
    resources::Protocol,
};
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use ikada_model::{
    Dataplane, Kind, Kri, Mesh, MeshService, Resource,
    dataplane::{OutboundBackendRef, Tags},
    labels::{self, TAG_PROTOCOL, TAG_SERVICE},
    mesh::TlsMode,
    mesh_service::Port,
};
use ikada_policy::{Backend, BackendRef, find_by_kri, resolve_backend_ref, resolve_port};
use std::sync::Arc;

/// What an outbound or backend reference leads to.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// One port of a MeshService.
    MeshService {
        /// The resource.
        resource: Arc<Resource>,
        /// The port.
        port: Port,
    },
    /// Inbounds by their tags.
    Legacy {
        /// `kuma.io/service` and what narrows it down.
        tags: Tags,
    },
}

/// A destination as one proxy sees it.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    /// What it is.
    pub(crate) target: Target,
    /// Cluster name without unified naming; also virtual host and stat prefix.
    pub(crate) cluster: String,
    /// KRI as the outbound is known by (section as it was referred to); `None` for legacy ones.
    pub(crate) kri: Option<Kri>,
    /// KRI with the port's own section, by which rules are found; `None` for legacy ones.
    pub(crate) section_kri: Option<Kri>,
    /// Protocol.
    pub(crate) protocol: Protocol,
}

/// What is constant over one generation.
pub(crate) struct Frame<'a> {
    pub(crate) context: &'a ProxyContext<'a>,
    pub(crate) shared: &'a Shared,
    pub(crate) dataplane: &'a Dataplane,
    pub(crate) mesh_name: &'a str,
    pub(crate) mesh: &'a Mesh,
    pub(crate) naming: Naming,
}

impl Frame<'_> {
    /// An error that names the dataplane.
    pub(crate) fn invalid(&self, message: impl Into<String>) -> GenerateError {
        GenerateError::Invalid { resource: self.context.dataplane.key.to_string(), message: message.into() }
    }
    /// Something that is not built.
    pub(crate) fn unsupported(&self, feature: &str) -> GenerateError {
        GenerateError::Unsupported {
            mesh: self.mesh_name.to_owned(),
            dataplane: self.context.dataplane.name().to_owned(),
            feature: feature.to_owned(),
        }
    }
    /// Mode of the enabled mTLS backend.
    pub(crate) fn mtls(&self) -> Option<TlsMode> {
        self.mesh.enabled_backend().map(|b| b.mode)
    }
}

impl Destination {
    /// One port of a MeshService. `section` is how the port was referred to.
    fn mesh_service(frame: &Frame<'_>, resource: &Arc<Resource>, port: &Port, section: String) -> Destination {
        let kri = Kri::of(resource);
        let legacy =
            format!("{}_{}_{}_{}_{}_{}", kri.mesh, kri.name, kri.namespace, kri.zone, resource.kind().descriptor().short, port.port);
        let kri_of_outbound = kri.clone().with_section(section);
        Destination {
            cluster: if frame.naming.unified { kri.clone().with_section(port.section()).to_string() } else { legacy },
            kri: Some(kri_of_outbound),
            section_kri: Some(kri.with_section(port.section())),
            protocol: Protocol::parse(port.protocol()),
            target: Target::MeshService { resource: resource.clone(), port: port.clone() },
        }
    }

    /// Inbounds by tags.
    pub(crate) fn legacy(frame: &Frame<'_>, tags: Tags) -> Destination {
        Destination {
            cluster: legacy_cluster(&tags),
            kri: None,
            section_kri: None,
            protocol: legacy_protocol(frame, &tags),
            target: Target::Legacy { tags },
        }
    }

    /// One port of a real resource, as an outbound with a virtual address leads to it.
    pub(crate) fn of_port(frame: &Frame<'_>, resource: &Arc<Resource>, port: &Port) -> Destination {
        Destination::mesh_service(frame, resource, port, port.section())
    }

    /// What `networking.outbound[].backendRef` leads to. `None` when nothing matches: such an outbound is skipped, as its destination may
    /// come later.
    pub(crate) fn of_outbound(frame: &Frame<'_>, r: &OutboundBackendRef) -> Result<Option<Destination>, GenerateError> {
        let Some(kind) = service_kind(&r.kind) else { return Err(frame.invalid(format!("outbound refers to unknown kind {:?}", r.kind))) };
        let Some(resource) = find(frame, kind, &r.name, &r.labels) else { return Ok(None) };
        Ok(Destination::with_section(frame, resource, &r.port.to_string())?.filter(|d| match &d.target {
            Target::MeshService { port, .. } => port.port == r.port,
            Target::Legacy { .. } => false,
        }))
    }

    /// What a backend reference in a conf of this policy leads to. `None` when it resolves to nothing; such a reference is dropped.
    pub(crate) fn of_backend_ref(frame: &Frame<'_>, origin: &Resource, r: &BackendRef) -> Result<Option<Destination>, GenerateError> {
        let world = frame.context.world;
        match resolve_backend_ref(world, origin, r) {
            Some(Backend::Real(kri)) => match find_by_kri(world, &kri) {
                Some(resource) => Destination::with_section(frame, resource, &kri.section),
                None => Ok(None),
            },
            Some(Backend::Legacy(tags)) if tags.get(TAG_SERVICE).is_some_and(|s| !s.is_empty()) => {
                Ok(Some(Destination::legacy(frame, tags)))
            }
            Some(Backend::Legacy(_)) | None => Ok(None),
        }
    }

    fn with_section(frame: &Frame<'_>, resource: &Arc<Resource>, section: &str) -> Result<Option<Destination>, GenerateError> {
        if resource.kind() != Kind::MeshService {
            return Err(frame.unsupported(&format!("an outbound to a {}", resource.kind())));
        }
        let Some(service) = resource.view::<MeshService>() else {
            return Err(GenerateError::Invalid { resource: resource.key.to_string(), message: "its spec cannot be read".into() });
        };
        let port = resolve_port(resource, section)
            .and_then(|(number, name)| service.ports.iter().find(|p| p.port == number && p.section() == name));
        Ok(port.map(|p| Destination::mesh_service(frame, resource, p, section.to_owned())))
    }

    /// SNI that the destination's ingress or inbound routes on.
    pub(crate) fn sni(&self, frame: &Frame<'_>) -> String {
        match &self.target {
            Target::MeshService { resource, port } => resource_sni(&sni_name(resource), port.port, resource.mesh(), "ms"),
            Target::Legacy { tags } => legacy_sni(tags, frame.mesh_name),
        }
    }

    /// SPIFFE ids that its instances may show.
    pub(crate) fn identities(&self, frame: &Frame<'_>) -> Vec<String> {
        let of_service = |s: &str| format!("spiffe://{}/{s}", frame.mesh_name);
        match &self.target {
            Target::MeshService { resource, .. } => resource
                .view::<MeshService>()
                .into_iter()
                .flat_map(|ms| &ms.identities)
                .map(|i| if i.kind == "ServiceTag" { of_service(&i.value) } else { i.value.clone() })
                .collect(),
            Target::Legacy { tags } => tags.get(TAG_SERVICE).filter(|s| *s != "*").map(|s| of_service(s)).into_iter().collect(),
        }
    }

    /// Every instance can terminate mTLS, so a client in a PERMISSIVE mesh may use it.
    fn tls_ready(&self, frame: &Frame<'_>) -> bool {
        match &self.target {
            Target::MeshService { resource, .. } => {
                is_remote(resource)
                    || frame.context.world.status_of(resource).pointer("/tls/status").and_then(|s| s.as_str()) == Some("Ready")
            }
            Target::Legacy { tags } => {
                let service = tags.get(TAG_SERVICE).map_or("", String::as_str);
                frame.context.world.list_in(Kind::ServiceInsight, frame.mesh_name).any(|insight| {
                    let Some(of_service) = insight.spec.value().get("services").and_then(|s| s.get(service)) else { return false };
                    let issued: u64 = of_service
                        .get("issuedBackends")
                        .and_then(|b| b.as_object())
                        .map_or(0, |b| b.values().filter_map(serde_json::Value::as_u64).sum());
                    let count = |k: &str| of_service.pointer(&format!("/dataplanes/{k}")).and_then(serde_json::Value::as_u64).unwrap_or(0);
                    let total = count("online") + count("offline");
                    total > 0 && issued == total
                })
            }
        }
    }

    /// This proxy talks mTLS to it.
    pub(crate) fn uses_tls(&self, frame: &Frame<'_>) -> bool {
        match frame.mtls() {
            None => false,
            Some(TlsMode::Strict) => true,
            Some(TlsMode::Permissive) => self.tls_ready(frame),
        }
    }

    /// Its endpoints, under the name of its cluster.
    pub(crate) fn endpoints(&self, frame: &Frame<'_>) -> ClusterLoadAssignment {
        let (world, settings) = (frame.context.world, frame.context.settings);
        let localities = match &self.target {
            Target::MeshService { resource, port } => endpoints::of_mesh_service(world, settings, frame.mesh, resource, port),
            Target::Legacy { tags } => endpoints::of_tags(world, settings, frame.mesh, frame.mesh_name, tags),
        };
        endpoints::assignment(&self.cluster, localities)
    }
}

/// A kind that can be a destination.
pub(crate) fn service_kind(name: &str) -> Option<Kind> {
    Kind::by_name(name).filter(|k| k.descriptor().is_destination())
}

/// By display name in the proxy's zone and mesh, or the oldest one with these labels.
fn find<'a>(frame: &Frame<'a>, kind: Kind, name: &str, wanted: &Tags) -> Option<&'a Arc<Resource>> {
    let world = frame.context.world;
    if wanted.is_empty() {
        return world.find(kind, frame.mesh_name, name).filter(|r| r.display_name() == name);
    }
    world
        .list_in(kind, frame.mesh_name)
        .filter(|r| wanted.iter().all(|(k, v)| r.label(k) == Some(v)))
        .min_by_key(|r| (r.creation_time, r.key.name.clone()))
}

/// Came in from another zone by way of the global.
pub(crate) fn is_remote(resource: &Resource) -> bool {
    resource.label(labels::ORIGIN) == Some("global")
}

/// Name of a MeshService in SNIs: both zones must compute the same, so the owner uses its resource name and the others the display name.
fn sni_name(resource: &Resource) -> String {
    let name = if is_remote(resource) { resource.display_name() } else { resource.name() };
    let namespace = resource.namespace();
    if namespace.is_empty() { name.to_owned() } else { format!("{name}.{namespace}") }
}

/// The protocol that all inbounds of a service can be spoken to in (data-plane contract §5.2).
fn legacy_protocol(frame: &Frame<'_>, tags: &Tags) -> Protocol {
    let Some(service) = tags.get(TAG_SERVICE) else { return Protocol::Unknown };
    let stack = |p: Protocol| -> &'static [Protocol] {
        match p {
            Protocol::Grpc => &[Protocol::Grpc, Protocol::Http2, Protocol::Tcp],
            Protocol::Http2 => &[Protocol::Http2, Protocol::Tcp],
            Protocol::Http => &[Protocol::Http, Protocol::Tcp],
            Protocol::Kafka => &[Protocol::Kafka, Protocol::Tcp],
            Protocol::Tls | Protocol::Tcp => &[Protocol::Tcp],
            Protocol::Mysql | Protocol::Unknown => &[],
        }
    };
    let inbounds = frame
        .context
        .world
        .dataplanes_of_service(frame.mesh_name, service)
        .filter_map(|r| r.view::<Dataplane>())
        .flat_map(|dp| &dp.networking.inbound)
        .filter(|i| i.service() == Some(service) && i.is_healthy())
        .map(|i| i.tags.get(TAG_PROTOCOL).map_or(Protocol::Unknown, |p| Protocol::parse(p)));
    let mut common: Option<Protocol> = None;
    for p in inbounds {
        common = Some(match common {
            None => p,
            Some(c) if c == p => c,
            Some(c) => stack(c).iter().copied().find(|x| stack(p).contains(x)).unwrap_or(Protocol::Unknown),
        });
    }
    common.unwrap_or(Protocol::Unknown)
}

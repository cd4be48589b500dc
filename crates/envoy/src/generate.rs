//! The order in which a sidecar's resources are made (data-plane contract §5.1; policy contract §2).

use crate::{
    admin,
    context::{GenerateError, Generated, ProxyContext},
    destination::Frame,
    direct_access,
    dynamic_config::DynamicConfig,
    endpoints::Shared,
    inbound,
    naming::Naming,
    outbound::{self, Outb},
    plugins::{circuit_breaker, http_route, retry, tcp_route, timeout, traffic_permission},
    resources::ResourceSet,
    tls,
    transparent::{Transparent, virtual_outbounds},
};
use ikada_model::{Dataplane, Kind, Mesh, Resource, mesh::MeshServicesMode};
use ikada_policy::{MatchOptions, PolicySpec, match_policies, spec::is_shadow};

/// Everything that one proxy gets, ordered by type (as [`crate::type_urls::ALL`]) and name.
///
/// Errors leave nothing half-made: the caller keeps what the proxy has.
pub fn generate(context: &ProxyContext<'_>) -> Result<Vec<Generated>, GenerateError> {
    generate_shared(context, &Shared::default())
}

/// [`generate`] for one of many proxies of the same world, see [`Shared`]. The result is the same.
pub fn generate_shared(context: &ProxyContext<'_>, shared: &Shared) -> Result<Vec<Generated>, GenerateError> {
    let frame = frame(context, shared)?;
    let Base { mut set, outbounds, dynamic } = base(&frame)?;
    let options = MatchOptions { include_shadow: context.include_shadow, ..Default::default() };
    let matched = match_policies(context.world, context.dataplane, &options);
    // Policies that decide who may talk to whom, or how: leaving them out would open what they close.
    if let Some(kind) = [Kind::MeshTLS, Kind::MeshPassthrough].into_iter().find(|k| !matched.of(*k).policies.is_empty()) {
        return Err(frame.unsupported(&format!("a {kind} that applies to it")));
    }
    readable_permissions(&frame)?;
    let (http_routes, tcp_routes) = (matched.of(Kind::MeshHTTPRoute), matched.of(Kind::MeshTCPRoute));
    for o in outbounds {
        http_route::add(&frame, &mut set, http_routes, &o)?;
        tcp_route::add(&frame, &mut set, tcp_routes, http_routes, &o)?;
    }
    timeout::apply(&frame, &mut set, matched.of(Kind::MeshTimeout));
    traffic_permission::apply(&frame, &mut set, matched.of(Kind::MeshTrafficPermission));
    circuit_breaker::apply(&frame, &mut set, matched.of(Kind::MeshCircuitBreaker));
    retry::apply(&frame, &mut set, matched.of(Kind::MeshRetry));
    dynamic.generate(&frame, &mut set);
    tls::add_secrets(&mut set, frame.naming, frame.mesh_name, context.secrets)?;
    set.finish()
}

/// Matching leaves out what it cannot read. A policy of these kinds may close what the others open, so without it nothing is generated.
fn readable_permissions(frame: &Frame<'_>) -> Result<(), GenerateError> {
    if frame.mtls().is_none() {
        return Ok(());
    }
    let counts = |p: &Resource| frame.context.include_shadow || !is_shadow(p);
    let lost = [Kind::MeshTrafficPermission, Kind::MeshTLS]
        .into_iter()
        .flat_map(|kind| frame.context.world.list_in(kind, frame.mesh_name))
        .find(|p| counts(p) && p.view::<PolicySpec>().is_none());
    lost.map_or(Ok(()), |p| Err(unreadable(p)))
}

fn unreadable(r: &Resource) -> GenerateError {
    GenerateError::Invalid { resource: r.key.to_string(), message: "its spec cannot be read".into() }
}

/// What the generators make before any policy: admin, transparent proxying, DNS and inbounds; no outbounds and no secrets.
pub fn generate_base(context: &ProxyContext<'_>) -> Result<Vec<Generated>, GenerateError> {
    let shared = Shared::default();
    base(&frame(context, &shared)?)?.set.finish()
}

fn frame<'a>(context: &'a ProxyContext<'a>, shared: &'a Shared) -> Result<Frame<'a>, GenerateError> {
    let resource = context.dataplane;
    let mesh_name = resource.mesh();
    let dataplane = resource.view::<Dataplane>().ok_or_else(|| unreadable(resource))?;
    let stored = context.world.mesh(mesh_name).ok_or_else(|| GenerateError::NoMesh(mesh_name.to_owned()))?;
    let mesh = stored.view::<Mesh>().ok_or_else(|| unreadable(stored))?;
    // Without the backend the listeners would be open.
    if let Some(mtls) = mesh.mtls.as_ref().filter(|m| !m.enabled_backend.is_empty() && mesh.enabled_backend().is_none()) {
        let message = format!("mtls.enabledBackend {:?} is none of mtls.backends", mtls.enabled_backend);
        return Err(GenerateError::Invalid { resource: stored.key.to_string(), message });
    }
    let exclusive = mesh.mesh_services.mode == MeshServicesMode::Exclusive;
    let naming = Naming { unified: exclusive && context.metadata.has_feature("feature-unified-resource-naming") };
    let frame = Frame { context, shared, dataplane, mesh_name, mesh, naming };
    supported(&frame)?;
    Ok(frame)
}

struct Base {
    set: ResourceSet,
    outbounds: Vec<Outb>,
    dynamic: DynamicConfig,
}

fn base(frame: &Frame<'_>) -> Result<Base, GenerateError> {
    let (mut set, mut dynamic) = (ResourceSet::default(), DynamicConfig::default());
    let transparent = Transparent::of(frame)?;
    admin::generate(frame, &mut set)?;
    let outbounds = match transparent {
        None => outbound::explicit(frame)?,
        Some(t) => {
            let (outbounds, domains) = virtual_outbounds(frame);
            t.generate(frame, &mut set);
            direct_access::generate(frame, &mut set, &outbounds);
            t.dns(frame, &mut set, &mut dynamic, &domains);
            outbounds
        }
    };
    inbound::generate(frame, &mut set, transparent.is_some())?;
    Ok(Base { set, outbounds, dynamic })
}

/// Refuses what would come out silently wrong.
fn supported(frame: &Frame<'_>) -> Result<(), GenerateError> {
    let networking = &frame.dataplane.networking;
    let meta = frame.context.metadata;
    if meta.proxy_type != "dataplane" && !meta.proxy_type.is_empty() {
        return Err(frame.unsupported(&format!("proxy type {:?}", meta.proxy_type)));
    }
    if frame.dataplane.is_builtin_gateway() {
        return Err(frame.unsupported("a builtin gateway"));
    }
    if !networking.listeners.is_empty() {
        return Err(frame.unsupported("a zone proxy listener"));
    }
    if meta.has_feature("feature-bind-outbounds") {
        return Err(frame.unsupported("feature-bind-outbounds"));
    }
    // Without it the proxy would lack its identity, and fall back to plain text in a mesh without a CA backend.
    let dp = frame.context.dataplane;
    let selected = |identity: &&std::sync::Arc<Resource>| {
        let wanted = identity.spec.value().pointer("/selector/dataplane/matchLabels").and_then(serde_json::Value::as_object);
        wanted.is_some_and(|w| w.iter().all(|(k, v)| dp.label(k) == v.as_str()))
    };
    if let Some(identity) = frame.context.world.list_in(Kind::MeshIdentity, frame.mesh_name).find(selected) {
        return Err(frame.unsupported(&format!("{}, which selects it,", identity.key)));
    }
    Ok(())
}

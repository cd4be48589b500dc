//! Reading resources (reference: Kuma 2.14.3 REST contract, §4.1, §4.2, §4.6).

use crate::{
    auth::User,
    body::{List, Ordered},
    error::{ApiError, Parameter, title},
    list::{Filter, Page, Query},
    route::Route,
    state::ApiState,
};
use ikada_model::{Kind, Kri, Mode, Resource, kri::synced_name, rest};
use ikada_world::World;
use serde_json::Value;
use std::sync::Arc;

/// The resource as this API shows it.
pub fn render(world: &World, r: &Resource) -> Ordered {
    Ordered(rest::to_value(r, &world.status_of(r)))
}

/// Insight kind, `type`, key of the base and key of the insight of an overview.
fn overview_of(kind: Kind) -> Option<(Kind, &'static str, &'static str, &'static str)> {
    match kind {
        Kind::Dataplane => Some((Kind::DataplaneInsight, "DataplaneOverview", "dataplane", "dataplaneInsight")),
        Kind::Zone => Some((Kind::ZoneInsight, "ZoneOverview", "zone", "zoneInsight")),
        Kind::ZoneIngress => Some((Kind::ZoneIngressInsight, "ZoneIngressOverview", "zoneIngress", "zoneIngressInsight")),
        Kind::ZoneEgress => Some((Kind::ZoneEgressInsight, "ZoneEgressOverview", "zoneEgress", "zoneEgressInsight")),
        _ => None,
    }
}

/// A resource joined with its insight; the metadata is that of the resource.
fn render_overview(world: &World, r: &Resource) -> Ordered {
    let Some((insight, type_name, base_key, insight_key)) = overview_of(r.kind()) else { return render(world, r) };
    let mut m = rest::meta(r);
    m.insert("type".into(), type_name.into());
    m.insert(base_key.into(), r.spec.value().clone());
    if let Some(i) = world.find(insight, r.mesh(), r.name()) {
        m.insert(insight_key.into(), i.spec.value().clone());
    }
    Ordered(Value::Object(m))
}

/// The mesh of the path must exist.
pub fn require_mesh(world: &World, kind: Kind, mesh: &str) -> Result<(), ApiError> {
    if kind.is_mesh_scoped() && world.mesh(mesh).is_none() {
        return Err(ApiError::not_found(title::MESH));
    }
    Ok(())
}

/// A ServiceInsight is stored once per mesh and shown once per service (§4.5), which is not there yet; the stored form would mislead.
fn shown(kind: Kind, title: &str) -> Result<(), ApiError> {
    if kind == Kind::ServiceInsight { Err(ApiError::not_implemented(title, "reading resources of type ServiceInsight")) } else { Ok(()) }
}

/// `?format=`
fn check_format(query: &Query) -> Result<(), ApiError> {
    match query.get("format") {
        None | Some("" | "universal") => Ok(()),
        Some("k8s" | "kubernetes") => Err(ApiError::not_implemented(title::GET, "format \"k8s\"")),
        Some(_) => {
            let reason = "\"format\" must be one of [\"k8s\", \"kubernetes\", \"universal\"]";
            Err(ApiError::invalid(title::GET, vec![Parameter::new("", reason)]))
        }
    }
}

/// One resource, or its overview.
pub fn one(state: &ApiState, world: &World, user: &User, query: &Query, key: (Kind, &str, &str), overview: bool) -> Result<Ordered, ApiError> {
    let (kind, mesh, name) = key;
    check_format(query)?;
    require_mesh(world, kind, mesh)?;
    state.options.access.resource(user, kind).map_err(ApiError::denied)?;
    shown(kind, title::GET)?;
    let r = world.find(kind, mesh, name).ok_or_else(|| ApiError::not_found(title::GET))?;
    Ok(if overview { render_overview(world, r) } else { render(world, r) })
}

/// What can be refused before anything is looked at: a request that waits would else learn it only after its wait.
pub fn check(state: &ApiState, user: &User, query: &Query, route: &Route) -> Result<(), ApiError> {
    let access = |kind: Kind| state.options.access.resource(user, kind).map_err(ApiError::denied);
    match route {
        Route::One { kind, .. } | Route::Overview { kind, .. } => {
            check_format(query)?;
            access(*kind)?;
            shown(*kind, title::GET)
        }
        Route::List { kind, template, .. } => {
            access(*kind)?;
            shown(*kind, title::LIST)?;
            Page::parse(query)?;
            Filter::parse(*kind, query, template).map(drop)
        }
        _ => Ok(()),
    }
}

/// `GET /_kri/{kri}`
pub fn by_kri(state: &ApiState, world: &World, user: &User, query: &Query, kri: &str) -> Result<Ordered, ApiError> {
    let kri: Kri = kri.parse().map_err(|e| ApiError::bad_request(format!("bad request: {e}")))?;
    let local = match state.options.mode {
        Mode::Global => kri.zone.is_empty(),
        Mode::Zone { .. } => kri.zone == state.options.zone,
    };
    let part = |s: &str| (!s.is_empty()).then(|| s.to_owned());
    let stored = |name: &str| world.find(kri.kind, &kri.mesh, name);
    // On a zone, what carries no zone (meshes, resources of an old store) is stored under its plain name.
    let unzoned = kri.zone.is_empty() && stored(&kri.name).is_some_and(|r| Kri::of(r) == kri.without_section());
    let name = if local || unzoned {
        kri.name.clone()
    } else {
        synced_name(&kri.mesh, &kri.name, part(&kri.zone).as_deref(), part(&kri.namespace).as_deref())
    };
    one(state, world, user, query, (kri.kind, &kri.mesh, &name), false)
}

/// What a list is asked for, beside its query.
pub struct ListRequest<'a> {
    /// Kind.
    pub kind: Kind,
    /// One mesh, else all.
    pub mesh: Option<&'a str>,
    /// Join insights.
    pub overview: bool,
    /// Path with parameters in braces, for error fields.
    pub template: &'a str,
    /// Scheme, host and path of the request, for links.
    pub url: &'a str,
}

/// A page of a list.
pub fn list(state: &ApiState, world: &World, user: &User, query: &Query, rq: &ListRequest<'_>) -> Result<List, ApiError> {
    if let Some(mesh) = rq.mesh {
        require_mesh(world, rq.kind, mesh)?;
    }
    state.options.access.resource(user, rq.kind).map_err(ApiError::denied)?;
    shown(rq.kind, title::LIST)?;
    let page = Page::parse(query)?;
    let filter = Filter::parse(rq.kind, query, rq.template)?;
    let wanted = |r: &&Arc<Resource>| filter.accepts(r);
    let (mut total, mut items) = (0usize, Vec::new());
    let mut take = |r: &Arc<Resource>| {
        if page.holds(total) {
            items.push(if rq.overview { render_overview(world, r) } else { render(world, r) });
        }
        total += 1;
    };
    match rq.mesh {
        Some(mesh) => world.list_in(rq.kind, mesh).filter(wanted).for_each(&mut take),
        None => world.list(rq.kind).filter(wanted).for_each(&mut take),
    }
    let next = page.next(total).map(|offset| query.link(rq.url, offset));
    Ok(List { total, items, next })
}

//! PUT and DELETE (reference: Kuma 2.14.3 REST contract, §2.4, §3, §6.4).

use crate::{
    auth::User,
    body,
    error::{ApiError, Parameter, title},
    managers::{self, ManagerError},
    read::require_mesh,
    router::REVISION,
    state::{ApiState, now},
};
use axum::response::Response;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use ikada_model::{
    DecodeError, Decoded, Json, Key, Kind, Mesh, Resource, Violation, Violations, access, decode,
    flat::dataplane::prepare_dataplane,
    ident,
    labels::{self, Mode, Rules},
};
use ikada_world::{Applied, Command, CommandId, Expect, Op, OpResult, ProposeError, Put, Reason, World};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// How often a write is built anew after somebody else changed the resource in between. PUT is last-writer-wins on the wire.
const ATTEMPTS: u32 = 5;

/// Where the idempotency keys of a request's commands come from.
pub struct Ids {
    /// With a client's header: what all requests begin with that it may repeat, and digest of that and the body.
    fixed: Option<([u8; 8], Sha256)>,
}

/// The first bytes of a digest.
fn first<const N: usize>(digest: Sha256) -> [u8; N] {
    let mut out = [0; N];
    out.iter_mut().zip(digest.finalize()).for_each(|(a, b)| *a = b);
    out
}

impl Ids {
    /// `header` is `Idempotency-Key`. The same key of another user, on another path, with another method or precondition is another command;
    /// with another body it is a mistake, see [`Ids::check`].
    pub fn new(header: Option<&[u8]>, user: &User, method: &str, path: &str, body: &[u8], wanted: Precondition) -> Self {
        let fixed = header.filter(|h| !h.is_empty()).map(|header| {
            let mut h = Sha256::new();
            let add = |h: &mut Sha256, part: &[u8]| {
                h.update((part.len() as u64).to_le_bytes());
                h.update(part);
            };
            for part in [header, user.name.as_bytes(), method.as_bytes(), path.as_bytes(), format!("{wanted:?}").as_bytes()] {
                add(&mut h, part);
            }
            let prefix = first(h.clone());
            add(&mut h, body);
            (prefix, h)
        });
        Ids { fixed }
    }
    /// Key of an attempt: a repeated request walks through the same keys and so finds the outcome of the first.
    fn id(&self, state: &ApiState, attempt: u32) -> CommandId {
        self.fixed_id(attempt).unwrap_or_else(|| state.replicator.new_id())
    }
    fn fixed_id(&self, attempt: u32) -> Option<CommandId> {
        let (prefix, h) = self.fixed.as_ref()?;
        let rest: [u8; 8] = first(h.clone().chain_update(attempt.to_le_bytes()));
        let mut id = [0; 16];
        id.iter_mut().zip(prefix.iter().chain(&rest)).for_each(|(a, b)| *a = *b);
        Some(id)
    }
    fn given(&self) -> bool {
        self.fixed.is_some()
    }
    /// What this very request did when it came before.
    ///
    /// # Errors
    /// 422 when the key came before with another body.
    fn check(&self, world: &World) -> Result<Option<Applied>, ApiError> {
        let Some((prefix, _)) = &self.fixed else { return Ok(None) };
        let own: Vec<CommandId> = (0..ATTEMPTS).filter_map(|attempt| self.fixed_id(attempt)).collect();
        if world.remembered(prefix).any(|id| !own.contains(id)) {
            let detail = "this Idempotency-Key was used for this resource with another body: a new write needs a new key";
            return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, title::PROCESS, detail));
        }
        Ok(own.iter().find_map(|id| world.outcome(id)?.as_ref().ok().cloned()))
    }
}

/// What the client demands of the stored resource (RFC 9110 §13.1.1, §13.1.2); the entity tag of a resource is the revision that wrote it last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// Nothing: the last writer wins, as in Kuma.
    None,
    /// `If-None-Match: *`: it is to be created.
    Absent,
    /// `If-Match: *`: it is to be changed.
    Exists,
    /// `If-Match: "<version>"`: it is still as the client read it.
    Version(u64),
}

impl Precondition {
    /// Of a request's headers. Errors for lists of tags, weak tags, and tags that this API never made.
    pub fn parse(headers: &HeaderMap) -> Result<Self, ApiError> {
        let text = |k| headers.get(k).map(|v| v.to_str().unwrap_or("").trim());
        match (text(header::IF_MATCH), text(header::IF_NONE_MATCH)) {
            (None, None) => Ok(Precondition::None),
            (None, Some("*")) => Ok(Precondition::Absent),
            (Some("*"), None) => Ok(Precondition::Exists),
            (Some(tag), None) => tag
                .strip_prefix('"')
                .and_then(|t| t.strip_suffix('"'))
                .and_then(|t| t.parse().ok())
                .map(Precondition::Version)
                .ok_or_else(|| ApiError::bad_request("bad request: \"If-Match\" must be * or one ETag as a GET of the resource shows it")),
            _ => Err(ApiError::bad_request("bad request: a write takes \"If-Match\" or \"If-None-Match: *\", not both and no tags in the latter")),
        }
    }
    fn holds(self, current: Option<&Resource>) -> bool {
        match self {
            Precondition::None => true,
            Precondition::Absent => current.is_none(),
            Precondition::Exists => current.is_some(),
            Precondition::Version(v) => current.is_some_and(|r| r.version == v),
        }
    }
    /// What the store is to check; `None` leaves it to the write, which is built anew after a race.
    fn expect(self, current: Option<&Resource>) -> Option<Expect> {
        match self {
            Precondition::None => None,
            Precondition::Absent => Some(Expect::Absent),
            Precondition::Exists => current.is_none().then_some(Expect::Exists),
            Precondition::Version(v) => Some(Expect::Version(v)),
        }
    }
}

/// Entity tag of a resource at a version.
pub fn etag(version: u64) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{version}\"")).unwrap_or_else(|_| HeaderValue::from(version))
}

fn precondition_failed(title: &str) -> ApiError {
    ApiError::new(StatusCode::PRECONDITION_FAILED, title, "the resource is not in the state that the precondition demands: read it again")
}

fn is_unmet(e: &ProposeError) -> bool {
    matches!(e, ProposeError::Rejected(r) if matches!(r.reason, Reason::Conflict | Reason::AlreadyExists | Reason::NotFound))
}

fn parameters(violations: impl IntoIterator<Item = Violation>) -> Vec<Parameter> {
    violations.into_iter().map(|v| Parameter::new(v.field, v.message)).collect()
}

/// 405 when the kind cannot be written here. Nothing else of the request is looked at before.
pub fn check_writable(state: &ApiState, kind: Kind) -> Result<(), ApiError> {
    let o = &state.options;
    if access::is_read_only(o.mode, kind, o.read_only) {
        return Err(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed", access::read_only_message(o.mode)));
    }
    Ok(())
}

fn rules(state: &ApiState) -> Rules<'_> {
    let o = &state.options;
    Rules { mode: o.mode, zone: &o.zone, disable_origin_validation: o.disable_origin_label_validation }
}

async fn fresh(state: &ApiState, title: &str) -> Result<std::sync::Arc<World>, ApiError> {
    state.replicator.linearizable().await.map_err(|e| ApiError::from_store(title, &e))
}

fn decode_body(kind: Kind, bytes: &[u8]) -> Result<Decoded, ApiError> {
    decode::parse(kind, bytes).and_then(|v| decode::decode(kind, &v)).map_err(|e| match e {
        DecodeError::Malformed(detail) => ApiError::bad_request(detail),
        DecodeError::Invalid(v) => ApiError::invalid(title::PROCESS, parameters(v)),
        DecodeError::NotImplemented(kind) => ApiError::not_implemented(title::PROCESS, format_args!("writing resources of type {kind}")),
    })
}

/// Step 5 of §3.1: the body's metadata against the path, labels, identifiers.
fn check_meta(state: &ApiState, key: &Key, d: &Decoded) -> Result<(), ApiError> {
    let mut out = Violations::new();
    let kind = key.kind;
    let mesh = d.mesh.as_deref().unwrap_or("");
    if *d.name != *key.name {
        out.add("name", "name from the URL has to be the same as in body");
    }
    if state.options.mode.is_federated() && state.options.zone.len() + 1 + d.name.len() >= ident::MAX_LEN {
        out.add("name", "the length of the name must be shorter");
    }
    if d.type_name != kind.name() {
        out.add("type", "type from the URL has to be the same as in body");
    }
    if kind.is_mesh_scoped() && *mesh != *key.mesh {
        out.add("mesh", "mesh from the URL has to be the same as in body");
    }
    labels::validate(&rules(state), kind, &key.mesh, &d.labels, &mut out);
    ident::validate(kind, mesh, &d.name, &mut out);
    if out.is_empty() { Ok(()) } else { Err(ApiError::invalid(title::PROCESS, parameters(out))) }
}

/// Labels as they are stored.
fn computed_labels(state: &ApiState, key: &Key, labels: &ikada_model::Labels, spec: &Value) -> ikada_model::Labels {
    let mut all = labels.clone();
    labels::compute(state.options.mode, &state.options.zone, key.kind, &key.mesh, spec, &mut all);
    all
}

/// Warnings of a body; they do not depend on what is stored.
fn warnings(state: &ApiState, key: &Key, d: &Decoded) -> Vec<String> {
    let labels = computed_labels(state, key, &d.labels, d.spec.value());
    decode::warnings(key.kind, &key.mesh, &key.name, &labels, &decode::default_spec(key.kind, d.spec.value().clone()))
}

/// Operations of a PUT against one world, the resource itself first.
async fn build(state: &ApiState, world: &World, key: &Key, d: &Decoded, current: Option<&Resource>) -> Result<Vec<Op>, ApiError> {
    let o = &state.options;
    let kind = key.kind;
    let title = if current.is_some() { title::UPDATE } else { title::CREATE };
    let compute = |labels, spec| computed_labels(state, key, labels, spec);
    let computed = compute(&d.labels, d.spec.value());
    if kind == Kind::Dataplane && current.is_none() {
        labels::check_workload(o.mode, &d.labels).map_err(ApiError::bad_request)?;
    }
    if let Some(r) = current {
        let mut out = Violations::new();
        labels::check_immutable(&compute(&r.labels, r.spec.value()), &computed, &mut out);
        if !out.is_empty() {
            return Err(ApiError::invalid(title::IMMUTABLE, parameters(out)));
        }
    }
    let mut spec = decode::default_spec(kind, d.spec.value().clone());
    let mut found = Violations::new();
    found.extend(decode::validate(kind, &key.mesh, &key.name, &computed, &spec));
    if kind == Kind::Mesh && current.is_none() {
        ident::validate_new_mesh_name(&key.name, &mut found);
    }
    if !found.is_empty() {
        return Err(ApiError::invalid(title, parameters(found)));
    }
    let mesh = world.mesh(&key.mesh).and_then(|m| m.view::<Mesh>());
    if let (Kind::Dataplane, Some(mesh)) = (kind, mesh) {
        // After validation: an inbound without tags is valid, one with nothing but the zone tag would not be.
        if o.complete_dataplanes && matches!(o.mode, Mode::Zone { .. }) {
            spec = prepare_dataplane(&o.zone, mesh.mesh_services.mode, current.is_none(), spec);
        }
        // Kuma answers 500 here.
        managers::check_membership(&key.mesh, mesh, &spec).map_err(|e| ApiError::new(StatusCode::BAD_REQUEST, title, e))?;
    }
    let put = Put {
        // Also what Kuma leaves behind (user's Secrets, ExternalServices, RateLimits) goes with its mesh. An owner stays.
        owner: (kind.is_mesh_scoped() && current.is_none_or(|r| r.owner.is_none())).then(|| Key::new(Kind::Mesh, "", &key.mesh)),
        expect: current.map_or(Expect::Absent, |r| Expect::Version(r.version)),
        ..Put::new(key.clone(), computed, Json::from_value(&spec))
    };
    let ops = match (kind, current) {
        (Kind::Mesh, None) => managers::create_mesh(&o.managers(), world, put, now()).await,
        (Kind::Mesh, Some(before)) => managers::update_mesh(world, before, put, now()).await,
        _ => Ok(vec![Op::Put(put)]),
    };
    match ops {
        Ok(ops) => Ok(ops),
        Err(ManagerError::Invalid(p)) => Err(ApiError::invalid(title, p)),
        Err(ManagerError::Failed(e)) => Err(ApiError::internal(title, e)),
    }
}

fn is_race(e: &ProposeError) -> bool {
    matches!(e, ProposeError::Rejected(r) if matches!(r.reason, Reason::Conflict | Reason::AlreadyExists))
}

fn written(status: StatusCode, applied: &Applied, body: &Value) -> Response {
    let mut r = body::json(status, body);
    r.headers_mut().insert(REVISION, HeaderValue::from(applied.index));
    r
}

fn put_answer(state: &ApiState, key: &Key, d: &Decoded, applied: &Applied) -> Response {
    let status = if applied.results.first() == Some(&OpResult::Created) { StatusCode::CREATED } else { StatusCode::OK };
    let warnings = warnings(state, key, d);
    let mut response = written(status, applied, &if warnings.is_empty() { json!({}) } else { json!({"warnings": warnings}) });
    response.headers_mut().insert(header::ETAG, etag(applied.index));
    response
}

/// `PUT …/{name}`; the kind is writable.
pub async fn put(state: &ApiState, user: &User, key: &Key, bytes: &[u8], ids: &Ids, wanted: Precondition) -> Result<Response, ApiError> {
    let _turn = state.turns.of(key).await;
    let mut world = fresh(state, title::FIND).await?;
    // Also when what it needed, or what it made, is gone by now.
    if let Some(applied) = ids.check(&world)? {
        state.options.access.resource(user, key.kind).map_err(ApiError::denied)?;
        return Ok(put_answer(state, key, &decode_body(key.kind, bytes)?, &applied));
    }
    require_mesh(&world, key.kind, &key.mesh)?;
    let decoded = decode_body(key.kind, bytes)?;
    check_meta(state, key, &decoded)?;
    state.options.access.resource(user, key.kind).map_err(ApiError::denied)?;
    for attempt in 0.. {
        let current = world.get(key).cloned();
        let title = if current.is_some() { title::UPDATE } else { title::CREATE };
        // A repeated request is asked of the store in any case: the first may have made the precondition untrue.
        if !wanted.holds(current.as_deref()) && !ids.given() {
            return Err(precondition_failed(title));
        }
        let mut ops = build(state, &world, key, &decoded, current.as_deref()).await?;
        let strict = wanted.expect(current.as_deref());
        if let Some(expect) = strict {
            for op in &mut ops {
                if let Op::Put(p) = op
                    && p.key == *key
                {
                    p.expect = expect;
                }
            }
        }
        match state.replicator.propose(Command { id: ids.id(state, attempt), ops }).await {
            Ok(applied) => return Ok(put_answer(state, key, &decoded, &applied)),
            Err(e) if strict.is_some() && is_unmet(&e) => return Err(precondition_failed(title)),
            Err(e) if is_race(&e) && attempt + 1 < ATTEMPTS => world = fresh(state, title).await?,
            Err(e) => return Err(ApiError::from_store(title, &e)),
        }
    }
    Err(ApiError::internal(title::UPDATE, "no attempt was made"))
}

/// `DELETE …/{name}`; the kind is writable.
pub async fn delete(state: &ApiState, user: &User, key: &Key, ids: &Ids, wanted: Precondition) -> Result<Response, ApiError> {
    let _turn = state.turns.of(key).await;
    for attempt in 0.. {
        let world = fresh(state, title::DELETE).await?;
        if let Some(applied) = ids.check(&world)? {
            state.options.access.resource(user, key.kind).map_err(ApiError::denied)?;
            return Ok(written(StatusCode::OK, &applied, &json!({})));
        }
        require_mesh(&world, key.kind, &key.mesh)?;
        state.options.access.resource(user, key.kind).map_err(ApiError::denied)?;
        let current = world.get(key).cloned();
        if !wanted.holds(current.as_deref()) && !ids.given() {
            return Err(if current.is_none() { ApiError::not_found(title::DELETE) } else { precondition_failed(title::DELETE) });
        }
        let mut ops = match current.as_deref() {
            Some(r) => {
                let mut out = Violations::new();
                labels::validate_delete(&rules(state), key.kind, &r.labels, &mut out);
                if !out.is_empty() {
                    return Err(ApiError::invalid(title::DELETE, parameters(out)));
                }
                managers::delete(&state.options.managers(), &world, r).map_err(|p| ApiError::invalid(title::DELETE, p))?
            }
            // A repeated request gets the answer of the first; a new one is rejected as not found.
            None if ids.given() => vec![Op::Delete { key: key.clone(), expect: Expect::Exists }],
            None => return Err(ApiError::not_found(title::DELETE)),
        };
        let strict = wanted.expect(current.as_deref());
        if let Some(wanted) = strict {
            for op in &mut ops {
                if let Op::Delete { key: k, expect } = op
                    && k == key
                {
                    *expect = wanted;
                }
            }
        }
        match state.replicator.propose(Command { id: ids.id(state, attempt), ops }).await {
            Ok(applied) => return Ok(written(StatusCode::OK, &applied, &json!({}))),
            Err(e) if strict.is_some() && is_race(&e) => return Err(precondition_failed(title::DELETE)),
            Err(e) if is_race(&e) && attempt + 1 < ATTEMPTS => {}
            Err(e) => return Err(ApiError::from_store(title::DELETE, &e)),
        }
    }
    Err(ApiError::internal(title::DELETE, "no attempt was made"))
}

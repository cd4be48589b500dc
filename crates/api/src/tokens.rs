//! User tokens of requests, and the token endpoints (reference: Kuma 2.14.3 REST contract, §5.1, §5.2, §5.4).

use crate::{
    auth::User,
    body,
    error::{ApiError, Parameter, title},
    managers::system_time,
    route::TokenKind,
    secrets,
    state::{ApiState, now},
};
use axum::response::Response;
use http::StatusCode;
use ikada_model::{Kind, go};
use ikada_pki::token::{
    Claims, DataplaneClaims, KeyScope, Revocations, SigningKey, TokenError, UserClaims, VerificationKeys, ZoneClaims, issue, validate,
};
use ikada_world::World;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use std::{collections::BTreeMap, time::Duration};

/// Life of tokens that do not say: ten years.
const DEFAULT_LIFE: Duration = Duration::from_secs(87_600 * 3600);
const INVALID: &str = "Invalid request";
const NOT_ISSUED: &str = "Could not issue a token";

/// Name and data of the keys of a scope.
fn keys(world: &World, scope: &KeyScope) -> Vec<(String, Vec<u8>)> {
    let (kind, mesh) = match scope {
        KeyScope::Dataplane { mesh } => (Kind::Secret, mesh.as_str()),
        _ => (Kind::GlobalSecret, ""),
    };
    let named = world.list_in(kind, mesh).filter(|r| scope.serial_of(r.name()).is_some());
    named.filter_map(|r| Some((r.name().to_owned(), secrets::data(r)?))).collect()
}

/// The user of a bearer token. Errors with 401; why is only logged.
pub fn authenticate(state: &ApiState, world: &World, token: &str) -> Result<User, ApiError> {
    let refused = |why: &dyn std::fmt::Display| {
        tracing::info!(reason = %why, "a user token was refused");
        ApiError::new(StatusCode::UNAUTHORIZED, "Invalid authentication data", "Unauthenticated")
    };
    let o = &state.options;
    let stored = if o.user_token_secrets { keys(world, &KeyScope::User) } else { Vec::new() };
    let mut verification = VerificationKeys::from_secrets(KeyScope::User, stored.iter().map(|(n, d)| (n.as_str(), d.as_slice())));
    for (kid, pem) in &o.user_token_public_keys {
        verification.add_static(kid, pem.as_bytes()).map_err(|e| refused(&e))?;
    }
    let mut revoked = Revocations::default();
    let list = world.find(Kind::GlobalSecret, "", &KeyScope::User.revocations_name()).and_then(|r| secrets::data(r));
    if let Some(text) = list.and_then(|d| String::from_utf8(d).ok()) {
        revoked.add(&text);
    }
    let valid = validate::<UserClaims>(token, &verification, &revoked, system_time(now())).map_err(|e| refused(&e))?;
    Ok(User::authenticated(valid.claims.name, valid.claims.groups))
}

/// Go's JSON takes `null` for any absent value.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct DataplaneRequest {
    #[serde(deserialize_with = "nullable")]
    name: String,
    #[serde(deserialize_with = "nullable")]
    mesh: String,
    #[serde(deserialize_with = "nullable")]
    tags: BTreeMap<String, Vec<String>>,
    #[serde(rename = "type", deserialize_with = "nullable")]
    proxy_type: String,
    #[serde(deserialize_with = "nullable")]
    workload: String,
    #[serde(deserialize_with = "nullable")]
    valid_for: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct ZoneRequest {
    #[serde(deserialize_with = "nullable")]
    zone: String,
    scope: Option<Vec<String>>,
    #[serde(deserialize_with = "nullable")]
    valid_for: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct UserRequest {
    #[serde(deserialize_with = "nullable")]
    name: String,
    #[serde(deserialize_with = "nullable")]
    groups: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    valid_for: String,
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    serde_json::from_slice(bytes).ok()
}

/// What an undecodable body gets: 400 without a body.
fn undecodable() -> Response {
    body::with_type(StatusCode::BAD_REQUEST, "application/json", Vec::new())
}

/// A life that may be empty.
fn life(text: &str, found: &mut Vec<Parameter>) -> Duration {
    if text.is_empty() {
        return DEFAULT_LIFE;
    }
    match go::parse_duration(text) {
        Ok(nanos) => Duration::from_nanos(u64::try_from(nanos).unwrap_or(0)),
        Err(e) => {
            found.push(Parameter::new("validFor", format!("is invalid: {e}")));
            Duration::ZERO
        }
    }
}

fn refuse_if(found: Vec<Parameter>) -> Result<(), ApiError> {
    if found.is_empty() { Ok(()) } else { Err(ApiError::invalid(INVALID, found)) }
}

/// `POST /tokens/…`
pub async fn create(state: &ApiState, user: &User, kind: TokenKind, bytes: &[u8]) -> Result<Response, ApiError> {
    let o = &state.options;
    match kind {
        TokenKind::Dataplane => {
            let Some(rq) = parse::<DataplaneRequest>(bytes) else { return Ok(undecodable()) };
            let mut found = Vec::new();
            if rq.mesh.is_empty() {
                found.push(Parameter::new("mesh", "cannot be empty"));
            }
            if !matches!(rq.proxy_type.as_str(), "" | "dataplane" | "ingress" | "egress") {
                found.push(Parameter::new("type", format!("{} is not a valid proxy type", rq.proxy_type)));
            }
            let life = life(&rq.valid_for, &mut found);
            refuse_if(found)?;
            o.access.dataplane_token(user).map_err(ApiError::denied)?;
            let scope = KeyScope::Dataplane { mesh: rq.mesh.clone() };
            let claims = DataplaneClaims { name: rq.name, mesh: rq.mesh, tags: rq.tags, proxy_type: rq.proxy_type, workload: rq.workload };
            sign(state, o.dataplane_token_issuer, &scope, &claims, life).await
        }
        TokenKind::Zone => {
            let Some(rq) = parse::<ZoneRequest>(bytes) else { return Ok(undecodable()) };
            o.access.zone_token(user, &rq.zone).map_err(ApiError::denied)?;
            let mut found = Vec::new();
            if rq.scope.is_none() {
                found.push(Parameter::new("scope", "cannot be empty"));
            }
            let life = life(&rq.valid_for, &mut found);
            refuse_if(found)?;
            let claims = ZoneClaims { zone: rq.zone, scope: rq.scope.unwrap_or_default() };
            sign(state, o.zone_token_issuer, &KeyScope::Zone, &claims, life).await
        }
        TokenKind::User => {
            let Some(rq) = parse::<UserRequest>(bytes) else { return Ok(undecodable()) };
            o.access.user_token(user).map_err(ApiError::denied)?;
            let mut found = Vec::new();
            if rq.name.is_empty() {
                found.push(Parameter::new("name", "cannot be empty"));
            }
            let mut span = Duration::ZERO;
            if rq.valid_for.is_empty() {
                found.push(Parameter::new("validFor", "cannot be empty"));
            } else {
                let before = found.len();
                span = life(&rq.valid_for, &mut found);
                if span.is_zero() && found.len() == before {
                    found.push(Parameter::new("validFor", "cannot be empty or nil"));
                }
            }
            refuse_if(found)?;
            let claims = UserClaims { name: rq.name, groups: rq.groups };
            sign(state, o.user_token_issuer, &KeyScope::User, &claims, span).await
        }
    }
}

async fn sign<C: Claims>(state: &ApiState, issuer: bool, scope: &KeyScope, claims: &C, life: Duration) -> Result<Response, ApiError> {
    if !issuer {
        const OFF: &str = "issuing tokens using the control plane is disabled.";
        return Err(ApiError::new(StatusCode::BAD_REQUEST, NOT_ISSUED, OFF));
    }
    let world = state.replicator.linearizable().await.map_err(|e| ApiError::from_store(title::GET, &e))?;
    let keys = keys(&world, scope);
    let key = SigningKey::latest(scope, keys.iter().map(|(n, d)| (n.as_str(), d.as_slice()))).map_err(|e| ApiError::internal(NOT_ISSUED, e))?;
    let Some(key) = key else {
        let e = TokenError::signing_key_not_found(scope, "1");
        return Err(ApiError::new(StatusCode::NOT_FOUND, "Signing Key not found", e.to_string()));
    };
    let token = issue(claims, &key, life, system_time(now())).map_err(|e| ApiError::internal(NOT_ISSUED, e))?;
    Ok(body::with_type(StatusCode::OK, "text/plain", token.into_bytes()))
}

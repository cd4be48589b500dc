//! One request from the socket to its answer.

use crate::{
    auth::{self, User},
    body, cluster,
    destinations,
    error::{ApiError, title},
    gui,
    inspect,
    interest::Interest,
    list::Query,
    read::{self, ListRequest},
    reading::Reading,
    route::{self, Route},
    state::{ApiState, InspectError},
    system, tokens, watch, write,
};
use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Request, State},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, StatusCode, header, request::Parts};
use http_body_util::{BodyExt, Limited};
use ikada_model::{Key, Kind, Mode};
use ikada_world::World;
use serde_json::Value;
use std::{net::SocketAddr, sync::Arc};
use tokio_util::task::AbortOnDropHandle;

/// Marks requests that came over TLS; the server inserts it. Links then say `https`.
#[derive(Clone, Copy, Debug)]
pub struct OverTls;

/// Header with the revision that an answer was read at, or that a write made.
pub const REVISION: &str = "ikada-revision";
/// Header of a write that may be repeated: the same key on the same request has the effect of once.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// All endpoints. The server has to insert [`ConnectInfo`] of the peer (without it nobody is local) and [`OverTls`] for TLS.
pub fn router(state: ApiState) -> Router {
    Router::new().fallback(handle).with_state(state)
}

async fn handle(State(state): State<ApiState>, request: Request) -> Response {
    let replicator = state.replicator.clone();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    // The GUI is outside of the pipeline: no authentication, no other methods than reading.
    if matches!(method, Method::GET | Method::HEAD)
        && let Some(page) = gui::answer(&state.options, &path)
    {
        return page;
    }
    // Its own task, so that a panic is an answer and a log line, not a dropped connection. A write goes on when its client leaves; a read, which
    // may wait for long, ends with it.
    let task = tokio::spawn(answer(state, request));
    let done = if method == Method::GET { AbortOnDropHandle::new(task).await } else { task.await };
    let mut response = match done {
        Ok(r) => r,
        Err(e) => ApiError::internal("Internal Server Error", e).into_response(),
    };
    if !response.headers().contains_key(REVISION) {
        response.headers_mut().insert(REVISION, HeaderValue::from(replicator.world().revision()));
    }
    tracing::debug!(%method, path, status = response.status().as_u16(), "request");
    response
}

async fn answer(state: ApiState, request: Request) -> Response {
    let base = state.options.base_path.clone();
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    let Some(route) = route::parse(path, &base, state.options.user_tokens) else {
        return body::plain(StatusCode::NOT_FOUND, "404: Page Not Found");
    };
    let user = match identify(&state, &parts, &route) {
        Ok(user) => user,
        Err(e) => return e.into_response(),
    };
    if !route.methods().contains(&parts.method) {
        let mut r = body::plain(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed");
        let allow = route.methods().iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
        if let Ok(v) = HeaderValue::from_str(&allow) {
            r.headers_mut().insert(header::ALLOW, v);
        }
        return r;
    }
    if matches!(parts.method, Method::PUT | Method::POST) && !is_json(&parts) {
        return body::plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, "415: Unsupported Media Type");
    }
    dispatch(&state, &parts, body, &user, route).await.unwrap_or_else(IntoResponse::into_response)
}

fn is_json(parts: &Parts) -> bool {
    let value = parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    value.split(',').any(|t| {
        let t = t.split(';').next().unwrap_or("").trim();
        t.eq_ignore_ascii_case("application/json") || t == "*/*"
    })
}

/// Who asks. Errors when a token is given and is not valid; `GET /` takes anybody.
fn identify(state: &ApiState, parts: &Parts, route: &Route) -> Result<User, ApiError> {
    let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|c| c.0);
    if state.options.localhost_is_admin && auth::is_localhost(peer, &parts.uri, &parts.headers) {
        return Ok(User::admin());
    }
    match auth::bearer(&parts.headers) {
        Some(token) if state.options.user_tokens && *route != Route::Index => tokens::authenticate(state, &state.replicator.world(), token),
        _ => Ok(User::anonymous()),
    }
}

/// How much of a body that is too large is read and thrown away, in multiples of the limit. A client that is still writing would otherwise see
/// a closed connection instead of the answer.
const DRAIN: usize = 8;
/// The whole body, or 413, or 408 when it does not come in time.
async fn read_body(state: &ApiState, parts: &Parts, body: Body) -> Result<Bytes, ApiError> {
    let limit = state.options.max_body;
    let too_large = || {
        let detail = format!("the body is larger than the limit of {limit} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, title::PROCESS, detail)
    };
    let announced = parts.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    if announced.is_some_and(|n| n > limit as u64) && parts.headers.contains_key(header::EXPECT) {
        return Err(too_large());
    }
    let mut out = BytesMut::new();
    let mut body = Limited::new(body, limit.saturating_mul(DRAIN));
    let mut over = announced.is_some_and(|n| n > limit as u64);
    let whole = async {
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return false };
            if let Ok(data) = frame.into_data()
                && !over
            {
                over = out.len() + data.len() > limit;
                if over {
                    out = BytesMut::new();
                } else {
                    out.extend_from_slice(&data);
                }
            }
        }
        true
    };
    let whole = tokio::time::timeout(state.options.read_timeout, whole).await;
    if over {
        return Err(too_large());
    }
    let Ok(whole) = whole else {
        let detail = format!("the body did not arrive within {} s", state.options.read_timeout.as_secs());
        return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, title::PROCESS, detail));
    };
    if !whole {
        return Err(ApiError::bad_request("bad request: the body could not be read to its end"));
    }
    Ok(out.freeze())
}

/// An answer that takes time which grows with the mesh: policies are matched. Off the threads that serve everybody.
async fn computed(
    (state, world, user): (&ApiState, Arc<World>, &User),
    answer: impl FnOnce(&ApiState, &World, &User) -> Result<Value, ApiError> + Send + 'static,
) -> Result<Response, ApiError> {
    let (state, user) = (state.clone(), user.clone());
    let run = move || Ok(body::json(StatusCode::OK, &answer(&state, &world, &user)?));
    tokio::task::spawn_blocking(run).await.map_err(|e| ApiError::internal(title::GET, e))?
}

/// A request that reads the world: at its level, and after what it waits for. Also an error says at which revision it is true.
async fn read(state: &ApiState, parts: &Parts, user: &User, query: Query, route: Route, reading: &Reading, interest: Interest) -> Result<Response, ApiError> {
    let title = match route {
        Route::List { .. } => title::LIST,
        Route::Hostnames { .. } => title::SERVICE,
        _ => title::GET,
    };
    if reading.index.is_some() {
        read::check(state, user, &query, &route)?;
    }
    let interest = Arc::new(interest);
    let (revision, mut response) = match reading.world(state, &interest, title).await {
        Ok(world) => (interest.revision(&world), show(state, parts, user, query, route, world).await.unwrap_or_else(IntoResponse::into_response)),
        Err(e) => (interest.revision(&state.replicator.world()), e.into_response()),
    };
    reading.label(state, revision, &mut response);
    Ok(response)
}

/// What a path shows of a world.
async fn show(state: &ApiState, parts: &Parts, user: &User, query: Query, route: Route, world: Arc<World>) -> Result<Response, ApiError> {
    let on = (state, world.clone(), user);
    match route {
        Route::Kri(kri) => Ok(body::json(StatusCode::OK, &read::by_kri(state, &world, user, &query, &kri)?)),
        Route::List { kind, mesh, overview, template } => {
            let url = url(parts);
            let rq = ListRequest { kind, mesh: mesh.as_deref(), overview, template: &template, url: &url };
            Ok(body::json(StatusCode::OK, &read::list(state, &world, user, &query, &rq)?))
        }
        Route::One { kind, mesh, name } => {
            let mut response = body::json(StatusCode::OK, &read::one(state, &world, user, &query, (kind, &mesh, &name), false)?);
            if let Some(r) = world.find(kind, &mesh, &name) {
                response.headers_mut().insert(header::ETAG, write::etag(r.version));
            }
            Ok(response)
        }
        Route::Overview { kind, mesh, name } => {
            Ok(body::json(StatusCode::OK, &read::one(state, &world, user, &query, (kind, &mesh, &name), true)?))
        }
        Route::Dataplanes { kind, mesh, name } => {
            computed(on, move |state, world, user| inspect::dataplanes(state, world, user, &query, (kind, &mesh, &name))).await
        }
        Route::Rules { mesh, name } => computed(on, move |state, world, user| inspect::rules(state, world, user, &mesh, &name)).await,
        Route::DataplanePolicies { mesh, name, part } => {
            computed(on, move |state, world, user| inspect::policies(state, world, user, (&mesh, &name), &part)).await
        }
        Route::Layout { mesh, name } => computed(on, move |state, world, user| destinations::layout(state, world, user, &mesh, &name)).await,
        Route::Hostnames { segment, mesh, name } => {
            Ok(body::json(StatusCode::OK, &destinations::hostnames(state, &world, &segment, &mesh, &name)?))
        }
        Route::Config { mesh, name } => config(state, &query, &world, &mesh, &name).await,
        _ => Err(ApiError::not_found(title::GET)),
    }
}

async fn dispatch(state: &ApiState, parts: &Parts, body: Body, user: &User, route: Route) -> Result<Response, ApiError> {
    let query = Query::parse(parts.uri.query().unwrap_or(""));
    if parts.method == Method::GET {
        let reading = Reading::parse(&parts.headers, &query)?;
        if let Some(interest) = Interest::of(&route, &parts.method) {
            return read(state, parts, user, query, route, &reading, interest).await;
        }
        match route {
            Route::Watch => return watch::answer(state, &parts.headers, user, &query, &reading).await,
            // Answered also without a leader, unless asked for more: clients look here whether there is a control plane at all.
            Route::Index if reading.level.is_some() => {
                let world = reading.fresh(state, title::GET).await?;
                let mut response = body::json(StatusCode::OK, &system::index(state, &world));
                reading.label(state, world.revision(), &mut response);
                return Ok(response);
            }
            _ if reading.index.is_some() => return Err(ApiError::bad_request("bad request: this path does not wait for changes: leave \"index\" out")),
            _ => {}
        }
    }
    match route {
        Route::Index => Ok(body::json(StatusCode::OK, &system::index(state, &state.replicator.world()))),
        Route::WhoAmI => Ok(body::json(StatusCode::OK, &system::who_am_i(user))),
        Route::OwnConfig => {
            state.options.access.metadata(user).map_err(ApiError::denied)?;
            // Compact, unlike every other answer.
            Ok(body::with_type(StatusCode::OK, "application/json", state.options.config.to_string().into_bytes()))
        }
        Route::Policies => Ok(body::json(StatusCode::OK, &system::policies(state))),
        Route::Resources => Ok(body::json(StatusCode::OK, &system::resources(state))),
        // Reads, which do not come here.
        Route::Watch
        | Route::Kri(_)
        | Route::List { .. }
        | Route::Overview { .. }
        | Route::Dataplanes { .. }
        | Route::Rules { .. }
        | Route::DataplanePolicies { .. }
        | Route::Layout { .. }
        | Route::Hostnames { .. }
        | Route::Config { .. } => Err(ApiError::not_found(title::GET)),
        Route::Later(what) => Err(ApiError::not_implemented(title::GET, what)),
        Route::One { kind, mesh, name } => {
            write::check_writable(state, kind)?;
            let key = Key::new(kind, &mesh, &name);
            let bytes = if parts.method == Method::PUT { read_body(state, parts, body).await? } else { Bytes::new() };
            let wanted = write::Precondition::parse(&parts.headers)?;
            let header = parts.headers.get(IDEMPOTENCY_KEY).map(HeaderValue::as_bytes);
            let ids = write::Ids::new(header, user, parts.method.as_str(), parts.uri.path(), &bytes, wanted);
            match parts.method {
                Method::PUT => write::put(state, user, &key, &bytes, &ids, wanted).await,
                _ => write::delete(state, user, &key, &ids, wanted).await,
            }
        }
        Route::Cluster(route) => {
            state.options.access.cluster(user).map_err(ApiError::denied)?;
            let bytes = if parts.method == Method::POST { read_body(state, parts, body).await? } else { Bytes::new() };
            cluster::answer(state, &parts.method, route, &bytes).await
        }
        Route::Token(kind) => {
            let bytes = read_body(state, parts, body).await?;
            tokens::create(state, user, kind, &bytes).await
        }
    }
}

/// Scheme, host and path of the request.
fn url(parts: &Parts) -> String {
    let scheme = if parts.extensions.get::<OverTls>().is_some() { "https" } else { "http" };
    let host = parts.headers.get(header::HOST).and_then(|h| h.to_str().ok()).or_else(|| parts.uri.authority().map(|a| a.as_str()));
    format!("{scheme}://{}{}", host.unwrap_or(""), parts.uri.path())
}

/// `GET …/_config` (§4.3). No access check, as in Kuma.
async fn config(state: &ApiState, query: &Query, world: &World, mesh: &str, name: &str) -> Result<Response, ApiError> {
    if state.options.mode == Mode::Global {
        return Err(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed", "Not allowed on global CP"));
    }
    let shadow = match query.get("shadow") {
        None | Some("" | "0" | "f" | "F" | "false" | "FALSE" | "False") => false,
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
        Some(_) => return Err(ApiError::bad_request("bad request: unsupported value for query parameter 'shadow'")),
    };
    let mut diff = false;
    for part in query.get("include").filter(|i| !i.is_empty()).into_iter().flat_map(|i| i.split(',')) {
        if part != "diff" {
            return Err(ApiError::bad_request("bad request: unsupported value for query parameter 'include'"));
        }
        diff = true;
    }
    read::require_mesh(world, Kind::Dataplane, mesh)?;
    match state.inspector.config(mesh, name, shadow, diff).await {
        Ok(v) => Ok(body::json(StatusCode::OK, &v)),
        Err(InspectError::NotFound) => Err(ApiError::not_found(title::GET)),
        Err(InspectError::Failed(e)) => Err(ApiError::internal(title::GET, e)),
    }
}

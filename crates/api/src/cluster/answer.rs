//! The endpoints.

use super::{
    ClusterError, Snapshot,
    types::{ForceRequest, JoinTokenRequest, TransferRequest, TuneRequest},
};
use crate::{
    body,
    error::{ApiError, Parameter},
    route::ClusterRoute,
    state::ApiState,
};
use axum::{body::Body, response::Response};
use http::{HeaderValue, Method, StatusCode, header};
use ikada_model::go;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::time::Duration;
use tokio_stream::wrappers::ReceiverStream;

/// Title of every error below `/cluster`.
const TITLE: &str = "Could not administer the cluster";
/// Header of `GET /cluster/snapshot`: the entry up to which the archive has everything.
const SNAPSHOT_INDEX: &str = "ikada-snapshot-index";

fn items(items: Vec<Value>) -> Response {
    body::json(StatusCode::OK, &json!({"total": items.len(), "items": items}))
}

impl From<ClusterError> for ApiError {
    fn from(e: ClusterError) -> Self {
        let status = match e {
            ClusterError::Invalid(_) => StatusCode::BAD_REQUEST,
            ClusterError::NotFound(_) => StatusCode::NOT_FOUND,
            ClusterError::Refused { .. } => StatusCode::CONFLICT,
            ClusterError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            ClusterError::Unknown(_) => StatusCode::GATEWAY_TIMEOUT,
        };
        let forcible = matches!(e, ClusterError::Refused { forcible: true, .. });
        let parameters = if forcible { vec![Parameter::new("force", "must be true to do it nevertheless")] } else { Vec::new() };
        ApiError { parameters, ..ApiError::new(status, TITLE, e.to_string()) }
    }
}

/// The body of a request; an empty one is the default.
fn parse<T: DeserializeOwned + Default>(bytes: &[u8]) -> Result<T, ApiError> {
    if bytes.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(bytes).map_err(|e| ApiError::new(StatusCode::BAD_REQUEST, TITLE, format!("the body cannot be read: {e}")))
}

fn node(id: &str) -> Result<u64, ApiError> {
    id.parse().map_err(|_| ApiError::invalid(TITLE, vec![Parameter::new("id", format!("{id:?} is not the id of a node"))]))
}

fn life(text: &str) -> Result<Duration, ApiError> {
    let invalid = |why: String| ApiError::invalid(TITLE, vec![Parameter::new("validFor", why)]);
    let nanos = go::parse_duration(text).map_err(|e| invalid(format!("is invalid: {e}")))?;
    u64::try_from(nanos).map(Duration::from_nanos).map_err(|_| invalid("must not be negative".to_owned()))
}

/// Answers a request of an administrator.
pub(crate) async fn answer(state: &ApiState, method: &Method, route: ClusterRoute, bytes: &[u8]) -> Result<Response, ApiError> {
    let Some(admin) = &state.cluster else { return Err(ApiError::not_implemented(TITLE, "the administration of a cluster")) };
    match route {
        ClusterRoute::Status => Ok(body::json(StatusCode::OK, &admin.status().await?)),
        ClusterRoute::Members => match admin.status().await?.get_mut("members").map(Value::take) {
            Some(Value::Array(members)) => Ok(items(members)),
            _ => Err(ApiError::internal(TITLE, "the status has no members")),
        },
        ClusterRoute::JoinTokens if *method == Method::GET => Ok(items(admin.join_tokens().await?)),
        ClusterRoute::JoinTokens => {
            let request: JoinTokenRequest = parse(bytes)?;
            let made = admin.create_join_token(life(&request.valid_for)?, request.voter, request.uses).await?;
            Ok(body::json(StatusCode::CREATED, &made))
        }
        ClusterRoute::JoinToken(id) => {
            admin.revoke_join_token(&id).await?;
            Ok(done())
        }
        ClusterRoute::Promote(id) => {
            let forced: ForceRequest = parse(bytes)?;
            admin.promote(node(&id)?, forced.force).await?;
            Ok(done())
        }
        ClusterRoute::Remove(id) => {
            let forced: ForceRequest = parse(bytes)?;
            admin.remove(node(&id)?, forced.force).await?;
            Ok(done())
        }
        ClusterRoute::TransferLeader => {
            let request: TransferRequest = parse(bytes)?;
            let leader = admin.transfer_leader(request.to).await?;
            Ok(body::json(StatusCode::OK, &json!({"leader": leader})))
        }
        ClusterRoute::Snapshot => Ok(archive(admin.snapshot().await?)),
        ClusterRoute::Tune => {
            let TuneRequest {} = parse(bytes)?;
            Ok(body::json(StatusCode::OK, &admin.tune().await?))
        }
    }
}

fn done() -> Response {
    body::json(StatusCode::OK, &json!({}))
}

/// The archive as it is made; the index is in a header, for a name of the file.
fn archive(snapshot: Snapshot) -> Response {
    let mut response = Response::new(Body::from_stream(ReceiverStream::new(snapshot.bytes)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/vnd.ikada.snapshot"));
    headers.insert(SNAPSHOT_INDEX, HeaderValue::from(snapshot.index));
    if let Some(size) = snapshot.size {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    }
    response
}

//! Error bodies (reference: Kuma 2.14.3 REST contract, §2.5).

use crate::body;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use ikada_world::{ProposeError, Reason};
use serde::Serialize;
use std::fmt;

/// One entry of `invalid_parameters`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Parameter {
    /// Path of the field, e.g. `networking.inbound[0].port`; may be empty.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Parameter {
    /// A parameter.
    pub fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Parameter { field: field.into(), reason: reason.into() }
    }
}

/// An answer with an error body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// Headline, usually what was being done.
    pub title: String,
    /// One sentence on what went wrong.
    pub detail: String,
    /// Fields that were refused.
    pub parameters: Vec<Parameter>,
}

/// Titles of §2.5 that depend on the caller.
pub mod title {
    /// The mesh of the path.
    pub const MESH: &str = "Failed to retrieve Mesh";
    /// GET of one resource.
    pub const GET: &str = "Could not retrieve a resource";
    /// GET of what a policy selects.
    pub const POLICY: &str = "Could not retrieve policy";
    /// GET of the host names of a service.
    pub const SERVICE: &str = "could not retrieve service";
    /// GET of a list.
    pub const LIST: &str = "Could not retrieve resources";
    /// Body and metadata of a PUT.
    pub const PROCESS: &str = "Could not process a resource";
    /// Reading the current version in a PUT.
    pub const FIND: &str = "Failed to find a resource";
    /// Creating.
    pub const CREATE: &str = "Failed to create a resource";
    /// Updating.
    pub const UPDATE: &str = "Failed to update a resource";
    /// Immutable labels.
    pub const IMMUTABLE: &str = "Could not update a resource";
    /// DELETE.
    pub const DELETE: &str = "Could not delete a resource";
}

impl ApiError {
    /// Any status.
    pub fn new(status: StatusCode, title: impl Into<String>, detail: impl Into<String>) -> Self {
        ApiError { status, title: title.into(), detail: detail.into(), parameters: Vec::new() }
    }
    /// 404 `Not found`.
    pub fn not_found(title: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, title, "Not found")
    }
    /// 400 `Bad Request` with this detail.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "Bad Request", detail)
    }
    /// 400 `Resource is not valid` with one entry per violation.
    pub fn invalid(title: &str, parameters: Vec<Parameter>) -> Self {
        ApiError { parameters, ..Self::new(StatusCode::BAD_REQUEST, title, "Resource is not valid") }
    }
    /// 403.
    pub fn denied(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "Access Denied", detail)
    }
    /// 500; the cause is logged, not shown.
    pub fn internal(title: &str, cause: impl fmt::Display) -> Self {
        tracing::error!(%cause, title, "request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, title, "Internal Server Error")
    }
    /// 501: a kind this control plane does not implement yet.
    pub fn not_implemented(title: &str, what: impl fmt::Display) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, title, format!("{what} is not implemented by this control plane yet"))
    }
    /// What a failed proposal or linearizable read means to the client. `title` is the caller's.
    pub fn from_store(title: &str, e: &ProposeError) -> Self {
        match e {
            ProposeError::Rejected(r) => match r.reason {
                Reason::Conflict | Reason::AlreadyExists => Self::new(StatusCode::CONFLICT, "Conflict", r.to_string()),
                Reason::NotFound => Self::not_found(title),
                Reason::OwnerNotFound => ApiError {
                    parameters: vec![Parameter::new("mesh", format!("mesh of name {} is not found", r.key.name))],
                    ..Self::new(StatusCode::BAD_REQUEST, title, "Mesh is not found")
                },
            },
            ProposeError::Unavailable(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, title, e.to_string()),
            ProposeError::Unknown => Self::new(StatusCode::GATEWAY_TIMEOUT, title, e.to_string()),
            ProposeError::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, title, e.to_string()),
        }
    }
}

#[derive(Serialize)]
struct Cause<'a> {
    field: &'a str,
    message: &'a str,
}

/// Order of the fields is that of the recordings.
#[derive(Serialize)]
struct Body<'a> {
    r#type: &'static str,
    status: u16,
    title: &'a str,
    detail: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    invalid_parameters: &'a [Parameter],
    details: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    causes: Vec<Cause<'a>>,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = Body {
            r#type: "/std-errors",
            status: self.status.as_u16(),
            title: &self.title,
            detail: &self.detail,
            invalid_parameters: &self.parameters,
            details: &self.detail,
            causes: self.parameters.iter().map(|p| Cause { field: &p.field, message: &p.reason }).collect(),
        };
        body::json(self.status, &body)
    }
}

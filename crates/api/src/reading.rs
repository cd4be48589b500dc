//! How consistent a read is, and whether it waits: decided here for every request that reads (`docs/consistency.md`).

use crate::{
    error::ApiError,
    interest::Interest,
    list::Query,
    router::REVISION,
    state::ApiState,
};
use axum::response::Response;
use http::{HeaderMap, HeaderValue, StatusCode};
use ikada_model::duration::GoDuration;
use ikada_world::{Contact, World};
use std::{sync::Arc, time::Duration};

/// Header that chooses the read level.
pub const READ: &str = "ikada-read";
/// Header of answers at level `local` and `stale`: milliseconds since the leader was certainly in touch with this node, or `unknown`.
pub const LAST_CONTACT: &str = "ikada-last-contact";
/// Header of answers at level `local` and `stale`: whether this node knows a leader.
pub const KNOWN_LEADER: &str = "ikada-known-leader";
/// How long a request with `index` waits when it does not say.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(30);
/// The longest that a request waits; longer ones are cut to it.
pub const MAX_WAIT: Duration = Duration::from_secs(300);

/// Read level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Has every write that was acknowledged before the request; needs a majority.
    Linearizable,
    /// What this node has applied, while it is in contact with the leader.
    Local,
    /// What this node has applied, whatever happens.
    Stale,
}

/// What a request says about how it reads.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Level; `None` when the request does not say.
    pub level: Option<Level>,
    /// Revision that the client has already.
    pub index: Option<u64>,
    wait: Duration,
}

/// A revision as clients write it.
pub fn revision(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

impl Reading {
    /// Of a request.
    ///
    /// # Errors
    /// 400 for a level that does not exist, an index that is no revision, and a wait that is no duration or has no index.
    pub fn parse(headers: &HeaderMap, query: &Query) -> Result<Self, ApiError> {
        let level = match headers.get(READ).map(|v| v.to_str().unwrap_or("").trim()) {
            None => None,
            Some("linearizable") => Some(Level::Linearizable),
            Some("local") => Some(Level::Local),
            Some("stale") => Some(Level::Stale),
            Some(_) => return Err(ApiError::bad_request("bad request: the header Ikada-Read must be one of linearizable, local, stale")),
        };
        let not_a_revision = || ApiError::bad_request("bad request: \"index\" must be a number: the header Ikada-Revision of an earlier answer");
        let index = query.get("index").map(|t| revision(t).ok_or_else(not_a_revision)).transpose()?;
        let wait = match query.get("wait") {
            None => DEFAULT_WAIT,
            Some(_) if index.is_none() => return Err(ApiError::bad_request("bad request: \"wait\" needs \"index\"")),
            Some(text) => match GoDuration::parse(text).ok().and_then(GoDuration::to_std) {
                Some(wait) => wait.min(MAX_WAIT),
                None => return Err(ApiError::bad_request("bad request: \"wait\" must be a duration such as 30s or 500ms")),
            },
        };
        Ok(Reading { level, index, wait })
    }
    /// The level, `linearizable` when the request does not say.
    pub fn level(&self) -> Level {
        self.level.unwrap_or(Level::Linearizable)
    }
    /// The world at the request's level, without waiting for changes.
    ///
    /// # Errors
    /// 503 when the level cannot be kept.
    pub async fn fresh(&self, state: &ApiState, title: &str) -> Result<Arc<World>, ApiError> {
        if self.level() == Level::Linearizable {
            return state.replicator.linearizable().await.map_err(|e| ApiError::from_store(title, &e));
        }
        self.check(state)?;
        Ok(state.replicator.world())
    }
    fn check(&self, state: &ApiState) -> Result<(), ApiError> {
        if self.level() == Level::Local { recent(&state.replicator.contact()) } else { Ok(()) }
    }
    /// The world at the request's level; with `index` when something of interest came after it, else when the wait is over or the node stops.
    ///
    /// # Errors
    /// 503 when the level cannot be kept, 429 when too many wait.
    pub async fn world(&self, state: &ApiState, interest: &Arc<Interest>, title: &str) -> Result<Arc<World>, ApiError> {
        let world = self.fresh(state, title).await?;
        let Some(index) = self.index.filter(|i| *i > 0) else { return Ok(world) };
        // Nothing in this world is newer: what concerns the request comes after both.
        let after = if interest.revision(&world) <= index { index.max(world.index()) } else { index };
        let _slot = state.feed.slot()?;
        tokio::select! {
            () = state.feed.changed(after, interest) => {}
            () = tokio::time::sleep(self.wait) => {}
            () = state.stop.cancelled() => {}
        }
        self.check(state)?;
        // Newer than the first one, so at least as fresh.
        Ok(state.replicator.world())
    }
    /// Says in the answer's headers what it was read at.
    pub fn label(&self, state: &ApiState, revision: u64, response: &mut Response) {
        let headers = response.headers_mut();
        headers.insert(REVISION, HeaderValue::from(revision));
        if self.level() == Level::Linearizable {
            return;
        }
        let contact = state.replicator.contact();
        let age = contact.since.map(|since| HeaderValue::from(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)));
        headers.insert(LAST_CONTACT, age.unwrap_or_else(|| HeaderValue::from_static("unknown")));
        headers.insert(KNOWN_LEADER, HeaderValue::from_static(if contact.leader.is_some() { "true" } else { "false" }));
    }
}

/// 503 unless this node heard the leader within the lease.
fn recent(contact: &Contact) -> Result<(), ApiError> {
    if contact.is_recent() {
        return Ok(());
    }
    let lease = contact.lease.as_millis();
    let lost = match (contact.leader, contact.since) {
        (Some(id), Some(since)) => format!("this node has not been in contact with the leader (node {id}) for {} ms, the lease is {lease} ms", since.as_millis()),
        (None, Some(since)) => format!("this node knows no leader and was in contact with one {} ms ago", since.as_millis()),
        (_, None) => "this node has not been in contact with a leader since it started".to_owned(),
    };
    let detail = format!("{lost}: ask another node, or take what this one has with Ikada-Read: stale");
    Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "No contact with the leader", detail))
}

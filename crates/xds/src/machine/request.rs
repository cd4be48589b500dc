//! Requests of both variants in one form, and the limits on them.

use super::Pending;
use std::{collections::HashMap, sync::Arc};

/// Longest name of a resource or type, bytes.
const MAX_NAME_BYTES: usize = 4096;

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub type_url: Arc<str>,
    pub response_nonce: String,
    /// `error_detail.message` of a rejected response.
    pub error: Option<String>,
    pub update: Update,
}

/// What it subscribes to.
#[derive(Debug, Clone)]
pub(crate) enum Update {
    /// State of the world: the whole list.
    Full { names: Vec<String>, version_info: String },
    /// Delta.
    Difference { subscribe: Vec<String>, unsubscribe: Vec<String>, initial: HashMap<String, String> },
}

/// Why a request ends the stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the request has no type_url")]
    NoType,
    #[error("more than {0} resource types on one stream")]
    TooManyTypes(usize),
    #[error("more than {limit} resource names of type {type_url}")]
    TooManyNames { type_url: Arc<str>, limit: usize },
    #[error("a name of {0} bytes, at most {MAX_NAME_BYTES} are accepted")]
    LongName(usize),
}

/// What a nonce answers.
pub(super) enum Answer {
    /// An older response, or none of ours.
    Stale,
    /// The last response, which was answered before.
    Nothing,
    Ack(Pending),
    Nack(Pending, String),
}

impl Request {
    /// Checks the limits of one request.
    pub(super) fn check(&self, max_names: usize) -> Result<(), Refusal> {
        if self.type_url.is_empty() {
            return Err(Refusal::NoType);
        }
        let (count, longest) = match &self.update {
            Update::Full { names, .. } => (names.len(), longest(names.iter())),
            Update::Difference { subscribe, unsubscribe, initial } => (
                subscribe.len().max(unsubscribe.len()).max(initial.len()),
                longest(subscribe.iter().chain(unsubscribe).chain(initial.keys())),
            ),
        };
        if count > max_names {
            return Err(Refusal::TooManyNames { type_url: self.type_url.clone(), limit: max_names });
        }
        let longest = longest.max(self.type_url.len());
        if longest > MAX_NAME_BYTES { Err(Refusal::LongName(longest)) } else { Ok(()) }
    }
}

fn longest<'a>(names: impl Iterator<Item = &'a String>) -> usize {
    names.map(String::len).max().unwrap_or(0)
}

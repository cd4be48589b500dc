//! What `/cluster…` takes, and why it fails.

use bytes::Bytes;
use serde::Deserialize;
use std::io;
use tokio::sync::mpsc;

/// Why an administrative call fails. The text is one line that says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// 400: a value of the request.
    #[error("{0}")]
    Invalid(String),
    /// 404: no such member or token.
    #[error("{0}")]
    NotFound(String),
    /// 409: it would harm the cluster.
    #[error("{message}")]
    Refused {
        /// How it would, and what to do instead.
        message: String,
        /// Whether the same call with `force` is carried out; the answer then has a parameter `force`.
        forcible: bool,
    },
    /// 503: no leader, no majority, or the member does not answer. Nothing was changed.
    #[error("{0}")]
    Unavailable(String),
    /// 504: no answer in time; it may still take effect.
    #[error("{0}")]
    Unknown(String),
}

/// Body of `POST /cluster/join-tokens`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct JoinTokenRequest {
    /// Go duration.
    pub valid_for: String,
    /// False: who joins with it stays a learner.
    pub voter: bool,
    /// How many nodes may join with it.
    pub uses: u32,
}

impl Default for JoinTokenRequest {
    /// A voter, once, within an hour.
    fn default() -> Self {
        JoinTokenRequest { valid_for: "1h".to_owned(), voter: true, uses: 1 }
    }
}

/// Body of `POST /cluster/members/{id}:promote` and `:remove`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ForceRequest {
    /// Although it is refused otherwise.
    pub force: bool,
}

/// Body of `POST /cluster/transfer-leader`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TransferRequest {
    /// The voter to hand over to; without it the one that is best prepared.
    pub to: Option<u64>,
}

/// Body of `POST /cluster/tune`: nothing so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TuneRequest {}

/// `GET /cluster/snapshot`: the bytes of the archive as they are made.
pub struct Snapshot {
    /// Entry up to which it has everything.
    pub index: u64,
    /// Total size in bytes, when it is known before.
    pub size: Option<u64>,
    /// The bytes. An error ends the transfer; what came until then is no archive, and its checksum says so.
    pub bytes: mpsc::Receiver<io::Result<Bytes>>,
}

//! Calls of one node to another: one connection per call, since such calls are rare.

use crate::{
    ClusterError,
    proto::{AdminRequest, AdminResponse, JoinRequest, JoinResponse, NodeStatus, StandingRequest, StandingResponse, StatusRequest},
    proto::cluster_client::ClusterClient,
};
use hyper_util::rt::TokioIo;
use ikada_raft::net::{Io, Net};
use std::{io, sync::Arc, time::Duration};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tonic::{
    Code, Request, Status,
    metadata::MetadataValue,
    transport::{Channel, Endpoint, Uri},
};

/// Largest answer that is read, in bytes.
const MAX_MESSAGE: usize = 1 << 20;
/// Metadata of an answer: the node does not lead. Its value is the id of the leader, 0 when unknown.
const LEADER: &str = "ikada-leader";

/// Where a call did not find the leader.
pub(crate) enum CallError {
    /// The node that was asked does not lead.
    NotLeader,
    Failed(ClusterError),
}

impl From<ClusterError> for CallError {
    fn from(e: ClusterError) -> Self {
        CallError::Failed(e)
    }
}

/// One open connection to another node.
pub(crate) struct Peer {
    client: ClusterClient<Channel>,
    /// Given back when the connection is closed.
    _place: Option<OwnedSemaphorePermit>,
}

impl Peer {
    /// Over a connection that is authenticated already.
    pub(crate) async fn over(io: Io) -> io::Result<Peer> {
        let mut io = Some(TokioIo::new(io));
        let connector = tower::service_fn(move |_: Uri| {
            let io = io.take().ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the connection has ended"));
            async move { io }
        });
        let channel = Endpoint::from_static("http://peer.ikada").connect_with_connector(connector).await.map_err(io::Error::other)?;
        Ok(Peer { client: ClusterClient::new(channel).max_decoding_message_size(MAX_MESSAGE), _place: None })
    }

    /// To a member.
    pub(crate) async fn connect(net: &Arc<dyn Net>, address: &str, node: u64) -> io::Result<Peer> {
        Peer::over(net.connect(address, node).await?).await
    }

    /// Holds a place until it is dropped.
    pub(crate) fn in_place(self, place: OwnedSemaphorePermit) -> Peer {
        Peer { _place: Some(place), ..self }
    }

    pub(crate) async fn join(&mut self, request: JoinRequest, within: Duration) -> Result<JoinResponse, Status> {
        Ok(self.client.join(timed(request, within)).await?.into_inner())
    }
    pub(crate) async fn standing(&mut self, within: Duration) -> Result<StandingResponse, Status> {
        Ok(self.client.standing(timed(StandingRequest {}, within)).await?.into_inner())
    }
    /// The status of the node and how long it took to answer.
    pub(crate) async fn status(&mut self, measure: bool, within: Duration) -> Result<(NodeStatus, Duration), Status> {
        let sent = Instant::now();
        let status = self.client.status(timed(StatusRequest { measure }, within)).await?.into_inner();
        Ok((status, sent.elapsed()))
    }
    pub(crate) async fn administer(&mut self, request: AdminRequest, within: Duration) -> Result<AdminResponse, Status> {
        Ok(self.client.administer(timed(request, within)).await?.into_inner())
    }
}

fn timed<T>(message: T, within: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(within);
    request
}

/// As an answer to another node.
pub(crate) fn to_status(e: CallError) -> Status {
    let e = match e {
        CallError::NotLeader => {
            let mut status = Status::unavailable("this node does not lead");
            status.metadata_mut().insert(LEADER, MetadataValue::from_static("0"));
            return status;
        }
        CallError::Failed(e) => e,
    };
    let code = match &e {
        ClusterError::Invalid(_) => Code::InvalidArgument,
        ClusterError::NotFound(_) => Code::NotFound,
        ClusterError::Refused { forcible: false, .. } => Code::FailedPrecondition,
        ClusterError::Refused { forcible: true, .. } => Code::Aborted,
        ClusterError::Unavailable(_) => Code::Unavailable,
        ClusterError::Unknown(_) => Code::DeadlineExceeded,
    };
    Status::new(code, e.to_string())
}

/// What another node answered.
pub(crate) fn from_status(status: &Status, node: u64) -> CallError {
    if status.metadata().contains_key(LEADER) {
        return CallError::NotLeader;
    }
    let text = status.message().to_owned();
    CallError::Failed(match status.code() {
        Code::InvalidArgument => ClusterError::Invalid(text),
        Code::NotFound => ClusterError::NotFound(text),
        Code::FailedPrecondition | Code::PermissionDenied => ClusterError::refused(text),
        Code::Aborted => ClusterError::forcible(text),
        Code::Unavailable => ClusterError::Unavailable(text),
        // It may have been carried out; the answer was lost.
        _ => ClusterError::Unknown(format!("no answer from node {node}: {text}; look at the status before a second try")),
    })
}

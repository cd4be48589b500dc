//! The service `ikada.cluster.v1.Cluster`, for one connection.

use crate::{
    ClusterError,
    client::{CallError, to_status},
    gather,
    proto::{
        AdminRequest, AdminResponse, JoinRequest, JoinResponse, NodeStatus, StandingRequest, StandingResponse, StatusRequest,
        cluster_server::{Cluster, ClusterServer},
        standing_response::Standing,
    },
    records,
    shared::Shared,
};
use ikada_world::Replicator;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Largest request that is read, in bytes. A join request is the largest.
const MAX_REQUEST: usize = 64 << 10;

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// Showed no certificate.
    Anonymous,
    /// A member, or a node that this one does not know yet.
    Member(u64),
    /// A node that was removed.
    Removed(u64),
}

pub(crate) struct Service {
    shared: Arc<Shared>,
    caller: Caller,
}

impl Service {
    pub(crate) fn server(shared: Arc<Shared>, caller: Caller) -> ClusterServer<Service> {
        ClusterServer::new(Service { shared, caller }).max_decoding_message_size(MAX_REQUEST)
    }

    fn members_only(&self) -> Result<u64, Status> {
        match self.caller {
            Caller::Member(node) => Ok(node),
            Caller::Removed(node) => Err(Status::permission_denied(self.shared.removed_text(node))),
            Caller::Anonymous => Err(Status::unauthenticated("this needs the certificate of a member; a new node can only join")),
        }
    }
}

impl Shared {
    /// What a removed node is told.
    pub(crate) fn removed_text(&self, node: u64) -> String {
        format!(
            "node {node} was removed from the cluster {}; to come back, move its data directory away and join as a new node with a token (`ikadactl cluster \
             join-token create` on a member, then `ikada-cp run --join ADDRESS --join-token TOKEN`)",
            self.cluster()
        )
    }

    /// Whether this node knows that another one was removed. Who is not known at all may have joined while this node was away, and may be
    /// the one that brings it up to date.
    pub(crate) fn knows_removed(&self, node: u64) -> bool {
        !self.store.status().members.iter().any(|m| m.member.id == node) && records::removed(&self.store.world(), self.cluster(), node)
    }

    async fn standing_of(&self, node: u64) -> Standing {
        match self.store.linearizable().await {
            Ok(_) if self.store.status().members.iter().any(|m| m.member.id == node) => Standing::Member(true),
            Ok(_) if self.knows_removed(node) => Standing::Removed(self.removed_text(node)),
            Ok(_) => Standing::Unknown(format!("node {node} is not a member, and was not removed either")),
            Err(e) => Standing::Unknown(e.to_string()),
        }
    }
}

#[tonic::async_trait]
impl Cluster for Service {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let forwarded = match self.caller {
            Caller::Anonymous => false,
            _ => self.members_only().map(|_| true)?,
        };
        let answer = self.shared.take_in(request.into_inner(), forwarded).await;
        if let Err(CallError::Failed(ClusterError::Refused { message, .. } | ClusterError::Invalid(message))) = &answer
            && self.shared.join_log.allow()
        {
            tracing::warn!("a node was refused: {message}");
        }
        answer.map(Response::new).map_err(to_status)
    }

    async fn standing(&self, _request: Request<StandingRequest>) -> Result<Response<StandingResponse>, Status> {
        let node = match self.caller {
            Caller::Member(node) | Caller::Removed(node) => node,
            Caller::Anonymous => return Err(Status::unauthenticated("this needs the certificate of a node")),
        };
        Ok(Response::new(StandingResponse { standing: Some(self.shared.standing_of(node).await) }))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<NodeStatus>, Status> {
        self.members_only()?;
        Ok(Response::new(gather::own_status(&self.shared, request.into_inner().measure).await))
    }

    async fn administer(&self, request: Request<AdminRequest>) -> Result<Response<AdminResponse>, Status> {
        self.members_only()?;
        self.shared.lead(request.into_inner()).await.map(Response::new).map_err(to_status)
    }
}

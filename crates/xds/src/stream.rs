//! The task of one stream. It owns the stream's [`Machine`]; it ends when the client goes, breaks the protocol or does not read, when the stream is
//! ended from outside, or when the session's snapshots end.

use crate::{
    frame,
    machine::{Limits, Machine, Outgoing, Request, Update, Variant, Verdict},
    service::Options,
    source::{CloseReason, Nack, Sent, Session, Source, StreamHandle, StreamOpen, Unacknowledged},
};
use envoy_types::pb::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse},
    },
    google::rpc,
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// Most bytes of an `error_detail` message that are looked at and passed on.
const MAX_ERROR_BYTES: usize = 8192;
/// How long the final status may wait for the transport.
const GOODBYE: Duration = Duration::from_secs(1);

/// A variant of the protocol: its messages in our form and back.
pub(crate) trait Protocol: 'static {
    const VARIANT: Variant;
    type Request: Send + 'static;
    type Response: Send + 'static;
    fn read(request: Self::Request) -> (Option<Node>, Request);
    fn frame(out: &Outgoing, identifier: &str) -> Self::Response;
}

pub(crate) struct Delta;
pub(crate) struct Full;

impl Protocol for Delta {
    const VARIANT: Variant = Variant::Delta;
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;
    fn read(r: DeltaDiscoveryRequest) -> (Option<Node>, Request) {
        let update = Update::Difference {
            subscribe: r.resource_names_subscribe,
            unsubscribe: r.resource_names_unsubscribe,
            initial: r.initial_resource_versions,
        };
        (r.node, Request { type_url: r.type_url.into(), response_nonce: r.response_nonce, error: error(r.error_detail), update })
    }
    fn frame(out: &Outgoing, identifier: &str) -> DeltaDiscoveryResponse {
        frame::delta(out, identifier)
    }
}

impl Protocol for Full {
    const VARIANT: Variant = Variant::StateOfTheWorld;
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;
    fn read(r: DiscoveryRequest) -> (Option<Node>, Request) {
        let update = Update::Full { names: r.resource_names, version_info: r.version_info };
        (r.node, Request { type_url: r.type_url.into(), response_nonce: r.response_nonce, error: error(r.error_detail), update })
    }
    fn frame(out: &Outgoing, identifier: &str) -> DiscoveryResponse {
        frame::full(out, identifier)
    }
}

fn error(detail: Option<rpc::Status>) -> Option<String> {
    detail.map(|s| {
        let mut message = s.message;
        if message.len() > MAX_ERROR_BYTES {
            let cut = (0..=MAX_ERROR_BYTES).rev().find(|i| message.is_char_boundary(*i)).unwrap_or(0);
            message.truncate(cut);
        }
        message
    })
}

/// What the transport knows of a stream.
pub(crate) struct Incoming<R> {
    pub id: u64,
    pub requests: Streaming<R>,
    pub credential: Result<Option<String>, Status>,
    pub peer: Option<SocketAddr>,
}

type Responses<P> = mpsc::Sender<Result<<P as Protocol>::Response, Status>>;

/// Starts the task of a stream.
pub(crate) fn start<P: Protocol, S: Source>(
    source: Arc<S>,
    options: Arc<Options>,
    incoming: Incoming<P::Request>,
) -> ReceiverStream<Result<P::Response, Status>> {
    // One response on the way to the transport; the next is made when this one was taken, from what is newest then. The HTTP/2 layer itself holds up
    // to two more: one in its send buffer, one that it looked at and could not place.
    let (tx, rx) = mpsc::channel(1);
    tokio::spawn(async move {
        let end = run::<P, S>(&source, &options, incoming, &tx).await;
        if let Some(status) = end {
            // A client that does not read does not get the status either; dropping the sender ends the stream all the same.
            let _ = timeout(GOODBYE, tx.send(Err(status))).await;
        }
    });
    ReceiverStream::new(rx)
}

/// Calls [`Session::closed`] once, also when the task is dropped.
struct Closing<S: Session> {
    session: S,
    reason: CloseReason,
}

impl<S: Session> Drop for Closing<S> {
    fn drop(&mut self) {
        self.session.closed(&self.reason);
    }
}

async fn run<P: Protocol, S: Source>(
    source: &Arc<S>,
    options: &Options,
    incoming: Incoming<P::Request>,
    tx: &Responses<P>,
) -> Option<Status> {
    let Incoming { id, mut requests, credential, peer } = incoming;
    let first = tokio::select! {
        first = timeout(options.first_request_timeout, requests.message()) => first,
        () = tx.closed() => return None,
    };
    let first = match first {
        Ok(Ok(Some(first))) => first,
        Ok(Ok(None) | Err(_)) => return None,
        Err(_) => return Some(Status::deadline_exceeded(format!("no request within {:?}", options.first_request_timeout))),
    };
    let (node, first) = P::read(first);
    let Some(node) = node.filter(|n| !n.id.is_empty()) else {
        return Some(Status::invalid_argument("the first request of a stream must carry the node and its id"));
    };
    let credential = match credential {
        Ok(c) => c,
        Err(status) => return Some(status),
    };
    let handle = StreamHandle::default();
    let node_id = node.id.clone();
    let open = StreamOpen { stream_id: id, node, credential, delta: P::VARIANT == Variant::Delta, peer, handle: handle.clone() };
    let session = tokio::select! {
        session = source.open(open) => session,
        status = handle.ended() => return Some(status),
        () = tx.closed() => return None,
    };
    let session = match session {
        Ok(s) => s,
        Err(status) => return Some(status),
    };
    // The reason is replaced when the stream ends in a regular way.
    let mut closing = Closing { session, reason: CloseReason::Ended("the server stopped".to_owned()) };
    let limits = Limits {
        max_names: options.max_names,
        nack_backoff: options.nack_backoff,
        endpoint_grace: options.endpoint_grace,
        ack_timeout: options.ack_timeout,
    };
    let stream = Stream::<P, S::Session> { session: &closing.session, options, tx, node_id, machine: Machine::new(P::VARIANT, limits), unread_since: None };
    let (reason, status) = stream.serve(requests, first, &handle).await;
    tracing::debug!(stream = id, %reason, "Stream ended.");
    closing.reason = reason;
    status
}

type End = (CloseReason, Option<Status>);

struct Stream<'a, P: Protocol, S: Session> {
    session: &'a S,
    options: &'a Options,
    tx: &'a Responses<P>,
    node_id: String,
    machine: Machine,
    /// When the response that waits for the transport was made.
    unread_since: Option<Instant>,
}

impl<P: Protocol, S: Session> Stream<'_, P, S> {
    async fn serve(mut self, mut requests: Streaming<P::Request>, first: Request, handle: &StreamHandle) -> End {
        let mut snapshots = self.session.snapshots();
        if let Some(s) = snapshots.borrow_and_update().clone() {
            self.machine.on_snapshot(s);
        }
        if let Err(end) = self.on_request(first) {
            return end;
        }
        let ended = handle.ended();
        tokio::pin!(ended);
        loop {
            let next = match self.send() {
                Ok(next) => next,
                Err(end) => return end,
            };
            let unread = self.unread_since.is_some();
            let wake = self.wake_at(next);
            tokio::select! {
                message = requests.message() => match message {
                    Ok(Some(request)) => {
                        let (node, request) = P::read(request);
                        if let Err(end) = self.check_node(node).and_then(|()| self.on_request(request)) {
                            return end;
                        }
                    }
                    Ok(None) => return (CloseReason::Client(String::new()), None),
                    Err(status) => return (CloseReason::Client(format!(": {}", status.message())), None),
                },
                changed = snapshots.changed() => {
                    if changed.is_err() {
                        return (CloseReason::SourceGone, Some(Status::unavailable("the source of resources is gone")));
                    }
                    if let Some(s) = snapshots.borrow_and_update().clone() {
                        self.machine.on_snapshot(s);
                    }
                }
                status = &mut ended => return (CloseReason::Ended(status.message().to_owned()), Some(status)),
                () = self.tx.closed() => return (CloseReason::Client(String::new()), None),
                // Only waits; `send` takes the place.
                _ = self.tx.reserve(), if unread => self.unread_since = None,
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                    if let Err(end) = self.on_time() {
                        return end;
                    }
                }
            }
        }
    }

    /// Sends what can be sent now. Returns when there may be more without a request or snapshot, seen from the very moment at which there was nothing:
    /// a hold that ends between two looks at the clock would be waited for by neither. `None` also while the transport is busy, which wakes by itself.
    fn send(&mut self) -> Result<Option<Instant>, End> {
        loop {
            let permit = match self.tx.try_reserve() {
                Ok(permit) => permit,
                Err(TrySendError::Full(())) => return Ok(None),
                Err(TrySendError::Closed(())) => return Err((CloseReason::Client(String::new()), None)),
            };
            self.unread_since = None;
            let now = Instant::now();
            let Some(out) = self.machine.next(now) else {
                if let Some(digest) = self.machine.synced() {
                    self.session.on_synced(digest);
                }
                return Ok(self.machine.wake_at(now));
            };
            permit.send(Ok(P::frame(&out, &self.options.identifier)));
            self.unread_since = Some(now);
            self.session.on_sent(&Sent {
                type_url: &out.type_url,
                nonce: &out.nonce,
                resources: out.resources.len(),
                removed: out.removed.len(),
                bytes: out.resources.iter().map(|e| e.encoded.body.len()).sum(),
            });
        }
    }

    fn check_node(&self, node: Option<Node>) -> Result<(), End> {
        match node {
            Some(node) if !node.id.is_empty() && node.id != self.node_id => Err(refused(format!(
                "stream was authenticated for ID {}. Received request is for node with ID {}. Node ID cannot be changed after stream is initialized",
                self.node_id, node.id
            ))),
            _ => Ok(()),
        }
    }

    fn on_request(&mut self, request: Request) -> Result<(), End> {
        let type_url = request.type_url.clone();
        match self.machine.on_request(request, Instant::now()) {
            Err(refusal) => return Err(refused(refusal.to_string())),
            Ok(None) => {}
            Ok(Some(Verdict::Ack { nonce })) => self.session.on_ack(&type_url, &nonce),
            Ok(Some(Verdict::Nack { nonce, message, rejected })) => {
                self.session.on_nack(&Nack { type_url: &type_url, nonce: &nonce, message: &message, rejected: &rejected });
            }
        }
        Ok(())
    }

    fn wake_at(&self, next: Option<Instant>) -> Option<Instant> {
        let unread = self.unread_since.map(|since| since + self.options.write_timeout);
        [next, self.machine.overdue_at(), unread].into_iter().flatten().min()
    }

    fn on_time(&mut self) -> Result<(), End> {
        let now = Instant::now();
        while let Some((type_url, nonce, age)) = self.machine.overdue(now) {
            self.session.on_unacknowledged(&Unacknowledged { type_url: &type_url, nonce: &nonce, age });
        }
        match self.unread_since {
            Some(since) if now.saturating_duration_since(since) >= self.options.write_timeout && self.tx.capacity() == 0 => {
                let reason = CloseReason::SlowReader(self.options.write_timeout);
                let status = Status::deadline_exceeded(reason.to_string());
                Err((reason, Some(status)))
            }
            _ => Ok(()),
        }
    }
}

fn refused(text: String) -> End {
    (CloseReason::Refused(text.clone()), Some(Status::invalid_argument(text)))
}

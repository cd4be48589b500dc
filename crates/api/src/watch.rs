//! `GET /_watch`: changes as server-sent events, none left out without saying so (`docs/consistency.md`).

use crate::{
    auth::User,
    error::ApiError,
    feed::Feed,
    interest::Interest,
    list::Query,
    read::render,
    reading::{Level, Reading, revision},
    router::REVISION,
    state::ApiState,
};
use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use ikada_model::{Key, Kind, Resource};
use ikada_world::{Happened, Replicator, World};
use serde::Serialize;
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};

/// A reader that takes nothing for so long is left.
const PATIENCE: Duration = Duration::from_secs(30);
/// A watch ends after this time, so that who may not read any more does not; clients come back with `Last-Event-ID`.
const LIFETIME: Duration = Duration::from_secs(3600);
/// How long a watch on a node that is behind waits for the revision that its client has seen elsewhere.
const CATCH_UP: Duration = Duration::from_secs(30);
/// Events go out in pieces of about this size, in bytes, and so many pieces may be under way.
const CHUNK: usize = 64 << 10;
const CHUNKS: usize = 2;
/// Changes that are taken from the past at once.
const TAKE: usize = 256;
const TITLE: &str = "Could not watch resources";

#[derive(Serialize)]
struct Event<'a> {
    r#type: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    mesh: &'a str,
    name: &'a str,
    revision: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<crate::body::Ordered>,
}

/// Why a watch ends: the client left or is too slow, or the node cannot vouch for being up to date.
struct Ended;

/// What is asked for: `kinds` (types or paths, separated by commas; all that the user may read) and `mesh`.
fn wanted(state: &ApiState, user: &User, query: &Query) -> Result<Interest, ApiError> {
    let mesh = query.get("mesh").filter(|m| !m.is_empty());
    let named: Vec<&str> = query.all("kinds").flat_map(|k| k.split(',')).map(str::trim).filter(|k| !k.is_empty()).collect();
    let about_mesh = |kind: Kind| kind.is_mesh_scoped() || matches!(kind, Kind::Mesh | Kind::MeshInsight);
    // A ServiceInsight is not shown in the form in which it is stored.
    let shown = |kind: Kind| !kind.descriptor().path.is_empty() && kind != Kind::ServiceInsight;
    if named.is_empty() {
        let may = |kind: &Kind| shown(*kind) && state.options.access.resource(user, *kind).is_ok() && (mesh.is_none() || about_mesh(*kind));
        return Ok(Interest::new(Kind::all().filter(may), mesh));
    }
    let mut kinds = Vec::new();
    for name in named {
        let found = Kind::by_name(name).or_else(|| Kind::by_path(name)).filter(|k| shown(*k));
        let kind = found.ok_or_else(|| ApiError::bad_request(format!("bad request: there is no kind {name:?} to watch: name types or paths as /_resources lists them")))?;
        state.options.access.resource(user, kind).map_err(ApiError::denied)?;
        if mesh.is_some() && !about_mesh(kind) {
            return Err(ApiError::bad_request(format!("bad request: {kind} does not live in a mesh: leave \"mesh\" out")));
        }
        kinds.push(kind);
    }
    Ok(Interest::new(kinds, mesh))
}

/// The stream of events. `Last-Event-ID` goes before `index`: browsers come back with the address of their first request.
pub async fn answer(state: &ApiState, headers: &HeaderMap, user: &User, query: &Query, reading: &Reading) -> Result<Response, ApiError> {
    let interest = Arc::new(wanted(state, user, query)?);
    let bad_id = || ApiError::bad_request("bad request: Last-Event-ID must be the id of an event of this API");
    let last = headers.get("last-event-id").map(|v| v.to_str().ok().and_then(revision).ok_or_else(bad_id)).transpose()?;
    let from = last.or(reading.index).filter(|index| *index > 0);
    let slot = state.feed.slot()?;
    let world = reading.fresh(state, TITLE).await?;
    let index = world.index();
    let (out, pieces) = mpsc::channel(CHUNKS);
    let (replicator, feed, stop) = (state.replicator.clone(), state.feed.clone(), state.stop.clone());
    let watch = Watch {
        replicator,
        feed,
        interest,
        level: reading.level(),
        heartbeat: state.options.watch_heartbeat,
        out: out.clone(),
        piece: String::new(),
        next_beat: Instant::now(),
    };
    tokio::spawn(async move {
        tokio::select! {
            _ = watch.run(from, world) => {}
            () = out.closed() => {}
            () = stop.cancelled() => {}
            () = tokio::time::sleep(LIFETIME) => {}
        }
        drop(slot);
    });
    let mut response = Response::new(Body::from_stream(ReceiverStream::new(pieces).map(Ok::<Bytes, Infallible>)));
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
        (http::HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    reading.label(state, index, &mut response);
    response.headers_mut().insert(REVISION, HeaderValue::from(index));
    Ok(response)
}

struct Watch {
    replicator: Arc<dyn Replicator>,
    feed: Arc<Feed>,
    interest: Arc<Interest>,
    level: Level,
    heartbeat: Duration,
    out: mpsc::Sender<Bytes>,
    /// What goes out next.
    piece: String,
    next_beat: Instant,
}

impl Watch {
    async fn run(mut self, from: Option<u64>, world: Arc<World>) -> Result<(), Ended> {
        self.piece.push_str("retry: 1000\n\n");
        let mut at = match from {
            Some(index) if self.reaches(index, &world).await => index,
            Some(index) => {
                let why = format!("revision {index} is ahead of this cluster, as after a restore: this is its state anew");
                self.resync(&why).await?
            }
            None => self.snapshot(&world).await?,
        };
        loop {
            let Some((happened, up_to)) = self.feed.after(at, &self.interest, TAKE) else {
                let why = format!("what happened after revision {at} is not all known here any more: this is the state anew");
                at = self.resync(&why).await?;
                continue;
            };
            if !happened.is_empty() {
                self.events(&happened).await?;
            }
            at = up_to;
            self.flush().await?;
            let feed = self.feed.clone();
            if tokio::time::timeout_at(self.next_beat, feed.changed(at, &self.interest)).await.is_err() {
                self.beat(&mut at).await?;
            }
        }
    }

    /// Whether this node has what the client has. One that only lags gets some time.
    async fn reaches(&self, index: u64, world: &World) -> bool {
        let reached = async {
            while self.replicator.world().index() < index {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        // Everything that was acknowledged is in a linearizable world.
        world.index() >= index || (self.level != Level::Linearizable && tokio::time::timeout(CATCH_UP, reached).await.is_ok())
    }

    /// Everything, then `synced`. Gives the entry that it is the state of.
    async fn snapshot(&mut self, world: &World) -> Result<u64, Ended> {
        let interest = self.interest.clone();
        for kind in interest.kinds() {
            let all: Vec<Arc<Resource>> = match interest.mesh().filter(|_| kind.is_mesh_scoped()) {
                Some(mesh) => world.list_in(kind, mesh).cloned().collect(),
                None => world.list(kind).filter(|r| interest.wants(&r.key)).cloned().collect(),
            };
            for r in all {
                self.event("sync", &r.key, r.version, Some((world, &r)), None).await?;
            }
        }
        let index = world.index();
        self.piece.push_str(&format!("event: synced\nid: {index}\ndata: {{\"revision\":{index}}}\n\n"));
        self.flush().await?;
        Ok(index)
    }

    async fn resync(&mut self, reason: &str) -> Result<u64, Ended> {
        let world = self.replicator.world();
        let data = serde_json::json!({"reason": reason, "revision": world.index()});
        self.piece.push_str(&format!("event: resync\ndata: {data}\n\n"));
        self.snapshot(&world).await
    }

    /// Changes of whole entries. The id of an entry is on its last event alone, so that who comes back with it has all of the entry.
    async fn events(&mut self, happened: &[Happened]) -> Result<(), Ended> {
        let world = self.replicator.world();
        for entry in happened.chunk_by(|a, b| a.index == b.index) {
            let shown: Vec<(&Happened, Option<Arc<Resource>>)> = entry.iter().filter_map(|h| Some((h, after(&world, h)?))).collect();
            for (i, (h, resource)) in shown.iter().enumerate() {
                let id = (i + 1 == shown.len()).then_some(h.index);
                let name = if resource.is_some() { "put" } else { "delete" };
                self.event(name, &h.key, h.index, resource.as_deref().map(|r| (&*world, r)), id).await?;
            }
        }
        Ok(())
    }

    async fn event(&mut self, name: &str, key: &Key, revision: u64, resource: Option<(&World, &Resource)>, id: Option<u64>) -> Result<(), Ended> {
        let event = Event { r#type: key.kind.name(), mesh: &key.mesh, name: &key.name, revision, resource: resource.map(|(w, r)| render(w, r)) };
        let data = serde_json::to_string(&event).map_err(|e| {
            tracing::error!(error = %e, "an event cannot be encoded as JSON");
            Ended
        })?;
        let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
        self.piece.push_str(&format!("event: {name}\n{id}data: {data}\n\n"));
        if self.piece.len() >= CHUNK { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), Ended> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = Bytes::from(std::mem::take(&mut self.piece));
        self.next_beat = Instant::now() + self.heartbeat;
        self.out.send_timeout(piece, PATIENCE).await.map_err(|_| Ended)
    }

    /// A comment with an id: the client's `Last-Event-ID` moves on although nothing of interest happens.
    async fn beat(&mut self, at: &mut u64) -> Result<(), Ended> {
        if self.level != Level::Stale && !self.replicator.contact().is_recent() {
            tracing::info!("a watch ends: this node lost contact with the leader");
            return Err(Ended);
        }
        if let Some((happened, up_to)) = self.feed.after(*at, &self.interest, 1)
            && happened.is_empty()
        {
            *at = up_to;
        }
        self.piece.push_str(&format!(": alive\nid: {at}\n\n"));
        self.flush().await
    }
}

/// What a change shows: the resource, or that it is gone. `None` for a change of status of what is gone, of which the deletion tells.
fn after(world: &World, h: &Happened) -> Option<Option<Arc<Resource>>> {
    if h.status && !h.key.kind.descriptor().insight {
        return h.after.as_ref().and(world.get(&h.key)).map(|r| Some(r.clone()));
    }
    Some(h.after.clone())
}

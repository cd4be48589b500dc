//! First request of a stream: who is it, may it, and what is its dataplane (reference: data-plane contract §1.5, §4.1, §4.2).

use super::{
    CONFLICT_PAUSE, CONFLICT_RETRIES, Proxies, Proxy, ProxyId, State, departure::deregistered, health, insight::Subscription, session::ProxySession, stopping, sync,
};
use crate::structs::struct_to_json;
use async_trait::async_trait;
use ikada_api::managers;
use ikada_envoy::ProxyMetadata;
use ikada_model::{
    Json, Key, Kind, Mesh, Resource,
    decode::{self, DecodeError},
    flat::dataplane::prepare_dataplane,
    labels,
};
use ikada_world::{Command, Expect, Op, ProposeError, Put, Reason, World};
use ikada_xds::{Source, StreamOpen};
use parking_lot::Mutex;
use serde_json::Value;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::sync::watch;
use tonic::Status;

/// Largest dataplane that is read from metadata, in bytes.
const MAX_RESOURCE: usize = 1024 * 1024;

pub(super) fn refused(text: impl std::fmt::Display) -> Status {
    Status::unauthenticated(format!("authentication failed: {text}"))
}

/// How long a write may be on its way after nobody waits for it any more.
const ABANDONED_DELAY: Duration = Duration::from_secs(2);

/// A registration whose end nobody waited for, as the client went away: it may have taken place, and nobody would undo it.
struct Abandoned(Option<(Arc<Proxies>, ProxyId)>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let Some((proxies, id)) = self.0.take() {
            let delay = proxies.options.insights.deregistration_delay.max(ABANDONED_DELAY);
            proxies.deregister(id, delay);
        }
    }
}

/// The proxies of a node as the source of their streams.
pub struct ProxySource(pub Arc<Proxies>);

#[async_trait]
impl Source for ProxySource {
    type Session = ProxySession;

    async fn open(&self, open: StreamOpen) -> Result<ProxySession, Status> {
        let node_metadata = open.node.metadata.as_ref().map(struct_to_json).unwrap_or(Value::Null);
        let metadata = ProxyMetadata::from_json(&node_metadata);
        let id = ProxyId::from_node_id(&open.node.id)
            .ok_or_else(|| Status::invalid_argument(format!("node id {:?} must have the form <mesh>.<name>", open.node.id)))?;
        if metadata.proxy_type != "dataplane" {
            return Err(Status::unimplemented(format!("proxies of type {:?} are not supported in this version", metadata.proxy_type)));
        }
        let brought = metadata.dataplane_resource.as_deref().map(|text| read_resource(&id, text)).transpose()?;
        let refused = |status: &Status| tracing::info!(proxy = %id, reason = status.message(), "stream refused");
        self.0.authenticate(&id, brought.as_ref(), open.credential.as_deref()).inspect_err(refused)?;
        if let Some(resource) = &brought {
            self.0.register(&id, resource).await.inspect_err(refused)?;
        }
        let session = self.0.admit(id.clone(), open, metadata, node_metadata, brought.is_some());
        if brought.is_some() && self.0.store.world().get(&id.dataplane()).is_none()
            && let Some(proxy) = self.0.connected(&id)
        {
            proxy.handle.end(deregistered());
        }
        Ok(session)
    }
}

/// The Dataplane that a proxy sent along, decoded and valid.
pub(super) fn read_resource(id: &ProxyId, text: &str) -> Result<Resource, Status> {
    let invalid = |t: String| Status::invalid_argument(format!("could not register proxy passed in kuma-dp run: {t}"));
    if text.len() > MAX_RESOURCE {
        return Err(invalid(format!("the dataplane has {} bytes, the limit is {MAX_RESOURCE}", text.len())));
    }
    let body: Value = serde_json::from_str(text).map_err(|e| invalid(format!("the dataplane is not JSON: {e}")))?;
    if body.get("type").and_then(Value::as_str) != Some("Dataplane") {
        return Err(invalid("the resource must have type \"Dataplane\"".into()));
    }
    let decoded = decode::decode(Kind::Dataplane, &body).map_err(|e| match e {
        DecodeError::Malformed(t) => invalid(t),
        DecodeError::Invalid(v) => invalid(v.iter().map(|v| format!("{}: {}", v.field, v.message)).collect::<Vec<_>>().join("; ")),
        DecodeError::NotImplemented(k) => invalid(format!("{k} is not supported")),
    })?;
    let mesh = decoded.mesh.as_deref().unwrap_or("default");
    if decoded.name != *id.name || mesh != &*id.mesh {
        return Err(invalid(format!("proxyId {id} does not match proxy resource {mesh}.{}", decoded.name)));
    }
    Ok(Resource::new(id.dataplane(), decoded.spec).with_labels(decoded.labels))
}

impl Proxies {
    /// Checks the credential against what the proxy says it is and, stricter than Kuma, against what is stored under its name: a token must
    /// not be able to take over somebody else's dataplane.
    pub(super) fn authenticate(&self, id: &ProxyId, brought: Option<&Resource>, credential: Option<&str>) -> Result<(), Status> {
        let world = self.store.world();
        let stored = world.get(&id.dataplane());
        if brought.is_none() && stored.is_none() {
            return Err(refused(format!("resource {:?} not found; create a Dataplane in Kuma CP first or pass it as an argument to kuma-dp", id.name)));
        }
        if !self.options.require_token {
            return Ok(());
        }
        if let Some(resource) = brought {
            self.keys.authenticate(&world, id, resource, credential).map_err(refused)?;
        }
        if let Some(resource) = stored {
            let own = |e: String| if brought.is_some() { format!("you are trying to override existing proxy to which you don't have an access: {e}") } else { e };
            self.keys.authenticate(&world, id, resource, credential).map_err(|e| refused(own(e)))?;
        }
        Ok(())
    }

    fn registration(&self, world: &World, id: &ProxyId, brought: &Resource) -> Result<Option<Put>, Status> {
        let invalid = |t: String| Status::failed_precondition(format!("could not register proxy passed in kuma-dp run: {t}"));
        let mesh = world.mesh(&id.mesh).ok_or_else(|| invalid(format!("mesh {:?} does not exist", id.mesh)))?;
        let mesh = mesh.view::<Mesh>();
        let mode = mesh.map(|m| m.mesh_services.mode).unwrap_or_default();
        let stored = world.get(&id.dataplane());
        let mut spec = prepare_dataplane(&self.options.zone, mode, stored.is_none(), brought.spec.value().clone());
        if let Some(stored) = stored {
            health::keep_states(stored.spec.value(), &mut spec);
        }
        let spec = Json::from_value(&spec);
        let mut all = brought.labels.clone();
        labels::compute(self.options.mode, &self.options.zone, Kind::Dataplane, &id.mesh, spec.value(), &mut all);
        let violations = decode::validate(Kind::Dataplane, &id.mesh, &id.name, &all, spec.value());
        if !violations.is_empty() {
            return Err(invalid(violations.iter().map(|v| format!("{}: {}", v.field, v.message)).collect::<Vec<_>>().join("; ")));
        }
        if let Some(mesh) = mesh {
            managers::check_membership(&id.mesh, mesh, spec.value()).map_err(invalid)?;
        }
        if stored.is_some_and(|r| r.spec == spec && r.labels == all) {
            return Ok(None);
        }
        let expect = stored.map_or(Expect::Absent, |r| Expect::Version(r.version));
        Ok(Some(Put { expect, ..Put::new(id.dataplane(), all, spec) }))
    }

    /// Stores the dataplane that a proxy brought along.
    async fn register(self: &Arc<Self>, id: &ProxyId, brought: &Resource) -> Result<(), Status> {
        for attempt in 0..CONFLICT_RETRIES {
            let world = self.store.world();
            let Some(put) = self.registration(&world, id, brought)? else { return Ok(()) };
            let mesh = Op::Require { key: Key::new(Kind::Mesh, "", &id.mesh), expect: Expect::Exists };
            let mut abandoned = Abandoned(Some((self.clone(), id.clone())));
            let done = self.store.propose(Command { id: self.store.new_id(), ops: vec![mesh, Op::Put(put)] }).await;
            if !matches!(done, Err(ProposeError::Unknown)) {
                abandoned.0 = None;
            }
            match done {
                Ok(_) => return Ok(()),
                Err(ProposeError::Rejected(r)) if matches!(r.reason, Reason::Conflict | Reason::AlreadyExists) && attempt + 1 < CONFLICT_RETRIES => {
                    tokio::time::sleep(CONFLICT_PAUSE).await;
                }
                Err(e) => return Err(Status::unavailable(format!("could not register proxy passed in kuma-dp run: {e}"))),
            }
        }
        Err(Status::unavailable("could not register proxy passed in kuma-dp run: the dataplane is being changed by others, try again"))
    }

    /// Puts the stream into the table; an older stream of the same proxy ends.
    fn admit(self: &Arc<Self>, id: ProxyId, open: StreamOpen, metadata: ProxyMetadata, node_metadata: Value, registered: bool) -> ProxySession {
        let subscription = Subscription::new(&self.options.instance_id, &node_metadata);
        let proxy = Arc::new(Proxy {
            id: id.clone(),
            stream_id: open.stream_id,
            handle: open.handle,
            metadata,
            snapshot: watch::channel(None).0,
            registered,
            state: Mutex::new(State { identity: None, admin: None, subscription, mtls: None, renewal_retry: None, node_metadata, insight_dirty: true, error: None }),
            sync: Mutex::new(sync::State::default()),
        });
        let old = {
            let mut table = self.table.lock();
            let old = table.insert(id.clone(), proxy.clone());
            if let Some(old) = &old {
                // What the old stream had stays valid: same proxy, same certificate, one insight.
                let mut from = old.state.lock();
                let mut to = proxy.state.lock();
                to.identity = from.identity.take();
                to.admin = from.admin.take();
                to.mtls = from.mtls.take();
            }
            self.metrics.streams(table.len());
            old
        };
        if self.stopping.load(Ordering::Relaxed) {
            proxy.handle.end(stopping());
        }
        if let Some(old) = old {
            old.handle.end(Status::aborted("another stream of this proxy took over"));
        }
        tracing::debug!(proxy = %id, delta = open.delta, "connected");
        self.mark([id]);
        self.insight_wake.notify_one();
        ProxySession::new(self.clone(), proxy)
    }
}

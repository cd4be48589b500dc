//! Certificates of workloads and of their admin listeners (reference: data-plane contract §5.4, §6).

use super::{Proxies, Proxy, auth::secret_data, insight::MtlsInsight, timestamp};
use ikada_envoy::ProxySecrets;
use ikada_model::{
    Dataplane, Key, Kind, Mesh, Resource, labels,
    mesh::{builtin_ca_cert_secret, builtin_ca_key_secret, parse_lifetime},
};
use ikada_pki::{Ca, PemPair, WorkloadCertificate};
use ikada_world::World;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, SystemTime},
};

/// A CA with the versions of the secrets that hold it.
type Versioned = (Vec<u64>, Arc<MeshCa>);

/// Parsed CAs by the secrets that hold them, kept while those stay the same.
#[derive(Default)]
pub struct CaCache(Mutex<HashMap<Key, Versioned>>);

/// A CA and its certificate as proxies get it.
pub struct MeshCa {
    ca: Ca,
    cert_pem: String,
}

/// What a certificate was issued for. Another value needs another certificate.
#[derive(Clone, PartialEq)]
struct Subject {
    mtls: serde_json::Value,
    tags: BTreeMap<String, BTreeSet<String>>,
    services: BTreeSet<String>,
    ca: String,
}

/// Shortest time between two certificates of a proxy, however short their life.
const SHORTEST_ROTATION: Duration = Duration::from_secs(1);
/// When a renewal that did not succeed is tried again (reference: `general.certGenerationBaseBackoff`).
const RENEWAL_RETRY: Duration = Duration::from_secs(5);

/// A proxy's own certificate.
pub struct Issued {
    subject: Subject,
    /// When it was made; it is valid from a moment before, against skewed clocks.
    at: SystemTime,
    certificate: WorkloadCertificate,
}

impl Issued {
    /// When it has to be replaced: when 4/5 of the time from its issue to its end are over.
    pub fn renew_at(&self) -> SystemTime {
        let life = self.certificate.not_after.duration_since(self.at).unwrap_or_default();
        self.at + life.mul_f64(0.8).max(SHORTEST_ROTATION)
    }
}

/// Certificate of a proxy's admin listener.
pub struct Admin {
    addresses: Vec<String>,
    ca_version: u64,
    pair: PemPair,
}

fn pem(world: &World, key: &Key) -> Option<(u64, String)> {
    let r = world.get(key)?;
    Some((r.version, String::from_utf8(secret_data(r)?).ok()?))
}

impl CaCache {
    fn get(&self, world: &World, key: Key, versions: Vec<u64>, make: impl FnOnce() -> Result<MeshCa, String>) -> Result<Arc<MeshCa>, String> {
        let mut cache = self.0.lock();
        if let Some((known, ca)) = cache.get(&key)
            && *known == versions
        {
            return Ok(ca.clone());
        }
        let ca = Arc::new(make()?);
        // The private key of a deleted mesh does not stay here.
        cache.retain(|k, _| world.get(k).is_some());
        cache.insert(key, (versions, ca.clone()));
        Ok(ca)
    }
    /// CA of a builtin backend.
    fn builtin(&self, world: &World, mesh: &str, backend: &str) -> Result<Arc<MeshCa>, String> {
        let cert_key = Key::new(Kind::Secret, mesh, &builtin_ca_cert_secret(mesh, backend));
        let key_key = Key::new(Kind::Secret, mesh, &builtin_ca_key_secret(mesh, backend));
        let missing = |k: &Key| format!("the CA of backend {backend:?} is incomplete: {k} is missing or not PEM");
        let (cert_version, cert_pem) = pem(world, &cert_key).ok_or_else(|| missing(&cert_key))?;
        let (key_version, key_pem) = pem(world, &key_key).ok_or_else(|| missing(&key_key))?;
        self.get(world, cert_key, vec![cert_version, key_version], || {
            let ca = Ca::from_pem(&cert_pem, &key_pem).map_err(|e| format!("CA of backend {backend:?}: {e}"))?;
            Ok(MeshCa { ca, cert_pem })
        })
    }
    /// CA of admin listeners.
    fn admin(&self, world: &World) -> Result<(u64, Arc<MeshCa>), String> {
        let key = Key::new(Kind::GlobalSecret, "", "envoy-admin-ca");
        let (version, bundle) = pem(world, &key).ok_or("GlobalSecret \"envoy-admin-ca\" is missing or not PEM")?;
        let ca = self.get(world, key, vec![version], || {
            let pair = PemPair::from_bundle(&bundle).map_err(|e| format!("GlobalSecret \"envoy-admin-ca\": {e}"))?;
            Ok(MeshCa { ca: Ca::from_pair(&pair).map_err(|e| e.to_string())?, cert_pem: pair.cert_pem })
        })?;
        Ok((version, ca))
    }
}

/// Life of workload certificates of a backend.
fn expiry(backend: &ikada_model::mesh::CaBackend) -> Duration {
    let text = backend.dp_cert.as_ref().and_then(|d| d.rotation.as_ref()).map(|r| r.expiration.as_str()).unwrap_or("");
    parse_lifetime(text).filter(|d| !d.is_zero()).unwrap_or(ikada_pki::DEFAULT_WORKLOAD_EXPIRY)
}

impl Proxies {
    /// The secrets of one proxy; issues what is missing or due. `mesh` and `dataplane` are of `world`.
    pub(super) fn secrets(&self, world: &World, proxy: &Proxy, mesh: &Mesh, dataplane: &Resource) -> Result<ProxySecrets, String> {
        let mut secrets = ProxySecrets::default();
        let Some(dp) = dataplane.view::<Dataplane>() else { return Err("the stored dataplane cannot be read".into()) };
        if let Some(backend) = mesh.enabled_backend() {
            if backend.kind != "builtin" {
                return Err(format!("mTLS backend {:?} has type {:?}, which is not supported in this version", backend.name, backend.kind));
            }
            let ca = self.cas.builtin(world, &proxy.id.mesh, &backend.name)?;
            let mtls = world.mesh(&proxy.id.mesh).and_then(|m| m.spec.value().get("mtls").cloned()).unwrap_or_default();
            let mut services = dp.services();
            if services.is_empty() {
                services.extend(dataplane.label(labels::WORKLOAD).map(str::to_owned));
            }
            let subject = Subject { mtls, tags: dp.tag_set(), services, ca: ca.cert_pem.clone() };
            let now = SystemTime::now();
            let mut state = proxy.state.lock();
            if state.identity.as_ref().is_none_or(|i| i.subject != subject || i.renew_at() <= now) {
                let certificate = ca
                    .ca
                    .workload_certificate(&proxy.id.mesh, &subject.services, &subject.tags, expiry(backend), now)
                    .map_err(|e| format!("cannot issue a certificate: {e}"))?;
                let regenerations = state.mtls.as_ref().map_or(0, |m| m.regenerations) + 1;
                state.mtls = Some(MtlsInsight {
                    expiration: timestamp(certificate.not_after),
                    last_regeneration: timestamp(now),
                    regenerations,
                    issued_backend: backend.name.clone(),
                    supported_backends: mesh.mtls.iter().flat_map(|m| &m.backends).map(|b| b.name.clone()).collect(),
                });
                state.insight_dirty = true;
                state.identity = Some(Issued { subject, at: now, certificate });
                self.metrics.cert_generation(&proxy.id.mesh);
                self.insight_wake.notify_one();
            }
            secrets.identity = state.identity.as_ref().map(|i| (i.certificate.chain_pem.clone(), i.certificate.key_pem.clone()));
            secrets.mesh_ca = Some(ca.cert_pem.clone());
        } else {
            let mut state = proxy.state.lock();
            if state.identity.take().is_some() || state.mtls.is_some() {
                state.mtls = None;
                state.insight_dirty = true;
                self.insight_wake.notify_one();
            }
        }
        if proxy.metadata.admin_port != 0 {
            let mut addresses = vec![dp.networking.address.clone()];
            addresses.extend(Some(dp.networking.advertised_address.clone()).filter(|a| !a.is_empty()));
            let (ca_version, ca) = self.cas.admin(world)?;
            let mut state = proxy.state.lock();
            if state.admin.as_ref().is_none_or(|a| a.addresses != addresses || a.ca_version != ca_version) {
                let pair = ca
                    .ca
                    .admin_server_certificate(&addresses, SystemTime::now())
                    .map_err(|e| format!("cannot issue the admin listener's certificate: {e}"))?;
                state.admin = Some(Admin { addresses, ca_version, pair });
            }
            secrets.admin_server = state.admin.as_ref().map(|a| (a.pair.cert_pem.clone(), a.pair.key_pem.clone()));
            secrets.admin_ca = Some(ca.cert_pem.clone());
        }
        Ok(secrets)
    }

    /// A due certificate that a generation did not replace (it failed, or the dataplane is gone) is left alone for a while.
    pub(super) fn postpone_failed_renewal(&self, proxy: &Proxy) {
        let now = SystemTime::now();
        let mut state = proxy.state.lock();
        let due = state.identity.as_ref().is_some_and(|i| i.renew_at() <= now);
        state.renewal_retry = due.then(|| now + RENEWAL_RETRY);
    }

    /// Marks proxies whose certificate is due, and says when the next one will be.
    pub(super) fn mark_due_certificates(&self) -> Option<SystemTime> {
        let now = SystemTime::now();
        let mut next: Option<SystemTime> = None;
        for proxy in self.all() {
            let state = proxy.state.lock();
            let Some(at) = state.identity.as_ref().map(|i| state.renewal_retry.map_or(i.renew_at(), |r| i.renew_at().max(r))) else { continue };
            drop(state);
            if at <= now {
                self.mark([proxy.id.clone()]);
            } else {
                next = Some(next.map_or(at, |n| n.min(at)));
            }
        }
        next
    }
}

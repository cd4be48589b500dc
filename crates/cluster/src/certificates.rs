//! The CA of the cluster and the certificate of this node. Every node has the CA in its own copy of the state, so each issues its own
//! certificate; nobody has to be asked, also when all certificates have expired while the cluster was off.

use crate::{StartError, identity::Credentials, identity::NodeName, records, shared::Shared};
use ikada_pki::{Ca, CertificateRequest, PemPair, certificate_request, certificates_der};
use ikada_raft::Role;
use ikada_world::{ProposeError, Replicator};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio_util::sync::CancellationToken;

/// Attempts to make the CA when a node starts.
const CA_ATTEMPTS: usize = 5;
/// Longest and shortest time between two looks at the certificate.
const LOOK: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(60));

fn identity(e: impl std::fmt::Display) -> StartError {
    StartError::Identity(e.to_string())
}

/// Whether a certificate is still good: valid, and not in the last third of its life.
pub(crate) fn fresh(not_before: SystemTime, not_after: SystemTime, now: SystemTime, life: Duration) -> bool {
    // Certificates begin some time before they were made: the configured life counts, if it is shorter.
    let life = not_after.duration_since(not_before).unwrap_or_default().min(life);
    now >= not_before && not_after.duration_since(now).is_ok_and(|left| left > life / 3)
}

impl Shared {
    /// Makes the CA if this node leads and there is none.
    pub(crate) async fn ensure_ca(&self) -> Result<Option<PemPair>, StartError> {
        for _ in 0..CA_ATTEMPTS {
            if let Some(pair) = records::ca(&self.store.world()) {
                return Ok(Some(pair));
            }
            if self.store.status().role != Role::Leader {
                return Ok(None);
            }
            let pair = ikada_pki::cluster_ca(&self.cluster().to_string(), self.system_now()).map_err(identity)?;
            match self.propose(vec![records::put_ca(&pair)]).await {
                Ok(_) => tracing::info!("the CA of the cluster was made"),
                // Another node was faster; its CA is in the world.
                Err(ProposeError::Rejected(_)) => {}
                Err(e) => tracing::warn!("cannot store the CA of the cluster: {e}"),
            }
        }
        Ok(records::ca(&self.store.world()))
    }

    /// Issues this node a certificate from the CA in its own world, stores it and uses it.
    pub(crate) fn issue(&self, pair: &PemPair) -> Result<(), StartError> {
        let ca = Ca::from_pair(pair).map_err(identity)?;
        let key = ikada_pki::generate_key().map_err(identity)?;
        let request = certificate_request(&key).and_then(|der| CertificateRequest::parse(&der)).map_err(identity)?;
        let certificate = ca.node_certificate(&request, &self.identity().to_string(), self.certificate_life, self.system_now()).map_err(identity)?;
        let credentials = Credentials::new(&certificate, &pair.cert_pem, &key).map_err(StartError::Identity)?;
        self.tls.set(&credentials).map_err(StartError::Identity)?;
        // In use already: a full disk must not cut a node off.
        self.dir.store(&credentials)
    }

    /// Gives this node a good certificate if it has none and can.
    pub(crate) async fn ensure_certificate(&self) -> Result<(), StartError> {
        let pair = self.ensure_ca().await?;
        let usable = |name: Option<NodeName>| name == Some(self.identity());
        let good = usable(self.tls.name())
            && self.tls.validity().is_some_and(|v| fresh(v.not_before, v.not_after, self.system_now(), self.certificate_life));
        match pair {
            Some(pair) => {
                let ours = certificates_der(&pair.cert_pem).ok().and_then(|c| c.first().map(|der| ikada_pki::sha256(der)));
                if good && ours == self.tls.ca_hash() { Ok(()) } else { self.issue(&pair) }
            }
            None if good => Ok(()),
            None if usable(self.tls.name()) => {
                tracing::warn!("the certificate of this node is about to end or has ended, and the CA has not reached it yet");
                Ok(())
            }
            None => Err(StartError::Identity(
                "this node has no certificate, and its copy of the state has no CA to make one: empty its data directory and join again with a token".to_owned(),
            )),
        }
    }

    /// Renews the certificate when two thirds of its life are over, and makes the CA when a cluster that has none gets its first leader.
    pub(crate) async fn run_certificates(self: Arc<Self>, stop: CancellationToken) {
        let every = (self.certificate_life / 20).clamp(LOOK.0, LOOK.1);
        let mut leads = self.store.leadership();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(every) => {}
                changed = leads.changed() => if changed.is_err() { return },
            }
            let before = self.tls.validity().map(|v| v.not_after);
            match self.ensure_certificate().await {
                Ok(()) if self.tls.validity().map(|v| v.not_after) != before => tracing::info!("the certificate of this node was renewed"),
                Ok(()) => {}
                Err(e) => tracing::warn!("cannot renew the certificate of this node: {e}"),
            }
        }
    }
}

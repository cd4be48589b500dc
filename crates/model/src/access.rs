//! What may be written where (reference: Kuma 2.14.3 REST contract, §1.1 and §3.6).

use crate::{
    kind::{Kind, kds},
    labels::Mode,
};

/// Whether PUT and DELETE of `kind` are refused here. `api_read_only` is the setting `apiServer.readOnly`.
pub fn is_read_only(mode: Mode, kind: Kind, api_read_only: bool) -> bool {
    let d = kind.descriptor();
    api_read_only
        || d.read_only
        || match mode {
            Mode::Global => !d.has(kds::PROVIDED_BY_GLOBAL),
            Mode::Zone { federated: true } => !d.has(kds::PROVIDED_BY_ZONE),
            Mode::Zone { federated: false } => false,
        }
}

/// `readOnly` of `GET /_resources`. It follows another rule than writes do: a federated zone reports everything read-only, a global
/// reports Dataplane writable. kumactl export and the GUI read it (§1.3).
pub fn is_listed_read_only(mode: Mode, kind: Kind, api_read_only: bool) -> bool {
    api_read_only || mode.is_federated() || kind.descriptor().read_only
}

/// Detail of the 405 answer to a refused write; ends with a line feed as Kuma's does.
pub fn read_only_message(mode: Mode) -> &'static str {
    match mode {
        Mode::Global => {
            "On global control plane you can not modify dataplane resources with 'kumactl apply' or via the HTTP API. You can still use \
                'kumactl' or the HTTP API to modify them on the zone control plane.\n"
        }
        Mode::Zone { .. } => {
            "On zone control plane you can only modify zone resources with 'kumactl apply' or via the HTTP API. You can still use \
                'kumactl' or the HTTP API to modify the rest of the resource on the global control plane.\n"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_mode() {
        let (global, federated, alone) = (Mode::Global, Mode::Zone { federated: true }, Mode::Zone { federated: false });
        // Columns wG and wF of the contract's table 1.2.
        for (kind, on_global, on_federated) in [
            (Kind::Mesh, true, false),
            (Kind::Dataplane, false, true),
            (Kind::DataplaneInsight, false, false),
            (Kind::Zone, true, true),
            (Kind::Secret, true, true),
            (Kind::GlobalSecret, true, true),
            (Kind::ExternalService, true, false),
            (Kind::MeshService, false, true),
            (Kind::MeshTimeout, true, true),
            (Kind::TrafficRoute, true, false),
            (Kind::ZoneIngress, false, true),
        ] {
            assert_eq!(!is_read_only(global, kind, false), on_global, "{kind} on global");
            assert_eq!(!is_read_only(federated, kind, false), on_federated, "{kind} on a federated zone");
            assert_eq!(is_read_only(alone, kind, false), kind.descriptor().read_only, "{kind} on a standalone zone");
            assert!(is_read_only(alone, kind, true));
        }
        assert!(is_listed_read_only(federated, Kind::Dataplane, false));
        assert!(!is_listed_read_only(global, Kind::Dataplane, false));
    }
}

//! Names of generated resources, legacy and unified (data-plane contract §5.1; policy contract §3.1).

use crate::proto::host_port;
use ikada_model::{Kri, kri::fnv1a64};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Which of the two naming schemes is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Naming {
    /// `feature-unified-resource-naming` and `meshServices.mode: Exclusive`.
    pub(crate) unified: bool,
}

impl Naming {
    fn pick(self, legacy: &str, unified: &str) -> String {
        if self.unified { unified.to_owned() } else { legacy.to_owned() }
    }
    /// Cluster and listener of the Envoy admin.
    pub(crate) fn admin(self) -> String {
        self.pick("kuma:envoy:admin", "system_envoy_admin")
    }
    /// Cluster of the readiness reporter.
    pub(crate) fn readiness(self) -> String {
        self.pick("kuma:readiness", "system_probe_readiness")
    }
    /// Secret with the proxy's own identity.
    pub(crate) fn identity_secret(self, mesh: &str) -> String {
        if self.unified { format!("system_mtls_identity_{mesh}") } else { format!("identity_cert:secret:{mesh}") }
    }
    /// Secret with the CA of a mesh.
    pub(crate) fn ca_secret(self, mesh: &str) -> String {
        if self.unified { format!("system_mtls_ca_{mesh}") } else { format!("mesh_ca:secret:{mesh}") }
    }
    /// Cluster of an inbound's application.
    pub(crate) fn inbound_cluster(self, workload_port: u32, section: &str) -> String {
        if self.unified { self_inbound(section) } else { format!("localhost:{workload_port}") }
    }
    /// Listener of an inbound.
    pub(crate) fn inbound_listener(self, address: &str, port: u32, section: &str) -> String {
        if self.unified { self_inbound(section) } else { format!("inbound:{}", host_port(address, port)) }
    }
    /// Listener of an outbound; `kri` for real destinations.
    pub(crate) fn outbound_listener(self, address: &str, port: u32, kri: Option<&Kri>) -> String {
        match kri {
            Some(kri) if self.unified => kri.to_string(),
            _ => format!("outbound:{}", host_port(address, port)),
        }
    }
    /// DNS listener.
    pub(crate) fn dns(self) -> String {
        self.pick("kuma:dns", "system_dns")
    }
    /// Dynamic config listener.
    pub(crate) fn dynamic_config(self) -> String {
        self.pick("_kuma:dynamicconfig", "system_dynamicconfig")
    }
    /// Passthrough cluster and listener, `direction` `inbound` or `outbound`, `family` `ipv4` or `ipv6`.
    pub(crate) fn passthrough(self, direction: &str, family: &str) -> String {
        if self.unified {
            format!("self_transparentproxy_passthrough_{direction}_{family}")
        } else {
            format!("{direction}:passthrough:{family}")
        }
    }
}

/// Contextual name of an inbound.
pub(crate) fn self_inbound(section: &str) -> String {
    format!("self_inbound_dp_{section}")
}

/// Name of the cluster of a legacy destination: the service, and a hash when other tags narrow it down.
pub(crate) fn legacy_cluster(tags: &BTreeMap<String, String>) -> String {
    let service = tags.get(ikada_model::labels::TAG_SERVICE).map_or("", String::as_str);
    if tags.len() <= 1 {
        return service.to_owned();
    }
    let mut hash = Sha256::new();
    for (k, v) in tags {
        hash.update(k.as_bytes());
        hash.update(v.as_bytes());
    }
    let hex: String = hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect();
    format!("{service}-{hex}")
}

/// SNI of a legacy destination: `<service>{k=v,…}` with the mesh among the tags.
pub(crate) fn legacy_sni(tags: &BTreeMap<String, String>, mesh: &str) -> String {
    let mut all: BTreeMap<&str, &str> = tags.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let service = all.remove(ikada_model::labels::TAG_SERVICE).unwrap_or_default();
    all.insert("mesh", mesh);
    let list: Vec<String> = all.iter().map(|(k, v)| format!("{k}={v}")).collect();
    format!("{service}{{{}}}", list.join(","))
}

/// SNI of a real destination in its resource form: `a<16 hex>.<name>.<port>.<mesh>.<abbreviation>`, with name and mesh longer than 62
/// bytes cut to 62 and `x` (the hash is over the uncut ones).
pub(crate) fn resource_sni(name: &str, port: u32, mesh: &str, abbreviation: &str) -> String {
    let hash = fnv1a64(&[name, ";", mesh, ";"]);
    format!("a{hash:016x}.{}.{port}.{}.{abbreviation}", cut(name), cut(mesh))
}

fn cut(text: &str) -> String {
    if text.len() <= 62 {
        return text.to_owned();
    }
    let mut end = 62;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}x", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snis() {
        assert_eq!(resource_sni("web", 21000, "default", "ms"), "add27113f6ca4edc8.web.21000.default.ms");
        assert_eq!(resource_sni("cli", 21010, "default", "ms"), "a1fd1d4cf4d046420.cli.21010.default.ms");
        assert!(resource_sni(&"n".repeat(80), 1, "m", "ms").contains(&format!(".{}x.1.", "n".repeat(62))));
        let tags = |t: &[(&str, &str)]| t.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        assert_eq!(legacy_sni(&tags(&[("kuma.io/service", "backend")]), "default"), "backend{mesh=default}");
        let east = tags(&[("kuma.io/service", "backend"), ("kuma.io/zone", "east")]);
        assert_eq!(legacy_sni(&east, "default"), "backend{kuma.io/zone=east,mesh=default}");
    }
}

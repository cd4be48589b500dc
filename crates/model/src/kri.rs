//! Kuma resource identifiers, hashed names and SNIs (reference: Kuma 2.14.3 REST contract §2.1, §3.3; data-plane contract §5.8).

use crate::{
    kind::Kind,
    labels,
    resource::{Labels, Resource},
};
use std::{fmt, str::FromStr};

/// `kri_<short>_<mesh>_<zone>_<namespace>_<name>_<section>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kri {
    /// Kind.
    pub kind: Kind,
    /// Mesh; empty for global kinds.
    pub mesh: String,
    /// Zone slot.
    pub zone: String,
    /// Namespace slot.
    pub namespace: String,
    /// Display name.
    pub name: String,
    /// Section (port name, listener, …), empty for the whole resource.
    pub section: String,
}

impl Kri {
    /// Of a resource, without section.
    pub fn of(r: &Resource) -> Kri {
        Kri {
            kind: r.kind(),
            mesh: r.mesh().to_owned(),
            zone: r.zone().to_owned(),
            namespace: r.namespace().to_owned(),
            name: r.display_name().to_owned(),
            section: String::new(),
        }
    }
    /// The same with a section.
    pub fn with_section(mut self, section: impl Into<String>) -> Kri {
        self.section = section.into();
        self
    }
    /// The same without a section.
    pub fn without_section(&self) -> Kri {
        Kri { section: String::new(), ..self.clone() }
    }
}

impl fmt::Display for Kri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kri_{}_{}_{}_{}_{}_{}", self.kind.descriptor().short, self.mesh, self.zone, self.namespace, self.name, self.section)
    }
}

impl FromStr for Kri {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let parts: Vec<&str> = s.split('_').collect();
        // Kuma ignores what follows the seventh part.
        let [prefix, short, mesh, zone, namespace, name, section, ..] = parts.as_slice() else {
            return Err(format!("invalid identifier string: {s:?}"));
        };
        if *prefix != "kri" {
            return Err(format!("identifier must start with 'kri': {s:?}"));
        }
        let kind = Kind::by_short(short).ok_or_else(|| format!("unknown short name of resource type: {short:?}"))?;
        let own = |t: &&str| (*t).to_owned();
        Ok(Kri { kind, mesh: own(mesh), zone: own(zone), namespace: own(namespace), name: own(name), section: own(section) })
    }
}

/// FNV-1a, 64 bits.
pub fn fnv1a64(parts: &[&str]) -> u64 {
    let mut h: u64 = 0xcbf2_9ce4_8422_2325;
    for b in parts.iter().flat_map(|p| p.bytes()) {
        h ^= u64::from(b);
        h = h.wrapping_mul(0x0000_0100_0000_01b3);
    }
    h
}

/// The name under which a resource is stored on the other side of KDS: `<name cut to 236>-<16 chars>`.
pub fn synced_name(mesh: &str, display_name: &str, zone: Option<&str>, namespace: Option<&str>) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let hex = format!("{:016x}", fnv1a64(&[mesh, display_name, zone.unwrap_or(""), namespace.unwrap_or("")]));
    let suffix: String = hex.bytes().map(|c| char::from(ALPHABET[usize::from(c) % ALPHABET.len()])).collect();
    let mut cut = display_name.len().min(236);
    while !display_name.is_char_boundary(cut) {
        cut -= 1;
    }
    format!("{}-{suffix}", &display_name[..cut])
}

/// SNI of a destination port: `sni.<short>.<mesh>[.<zone>[.<ns>]].<name>.<section>`.
pub fn sni(kind: Kind, mesh: &str, name: &str, labels: &Labels, section: &str) -> String {
    let mut s = format!("sni.{}.{mesh}", kind.descriptor().short);
    if let Some(zone) = labels.get(labels::ZONE).filter(|z| !z.is_empty()) {
        s.push('.');
        s.push_str(zone);
        if let Some(ns) = labels.get(labels::NAMESPACE).filter(|n| !n.is_empty()) {
            s.push('.');
            s.push_str(ns);
        }
    }
    format!("{s}.{name}.{section}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn synced_names_of_the_reference() {
        assert_eq!(synced_name("default", "redis-zone-1", Some("zone-1"), None), "redis-zone-1-2v6wfvvcvbc9f55d");
        assert_eq!(synced_name("default", "redis-zone-2", Some("zone-2"), None), "redis-zone-2-ff29vc4685c6f594");
    }

    #[test]
    fn kri_round_trip() {
        let s = "kri_dp_default_default__dp-1_";
        assert_eq!(s.parse::<Kri>().unwrap().to_string(), s);
        assert_eq!("x".parse::<Kri>().unwrap_err(), "invalid identifier string: \"x\"");
        assert_eq!("a_b_c_d_e_f_g".parse::<Kri>().unwrap_err(), "identifier must start with 'kri': \"a_b_c_d_e_f_g\"");
        assert_eq!("kri___default_default__mtp-3_".parse::<Kri>().unwrap_err(), "unknown short name of resource type: \"\"");
        assert_eq!("kri_b_c_d_e_f_g".parse::<Kri>().unwrap_err(), "unknown short name of resource type: \"b\"");
    }
}

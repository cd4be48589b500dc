//! Allocation of virtual IPs (reference: data-plane contract §5.10).

use ikada_model::Key;
use std::{
    collections::{BTreeSet, HashMap},
    net::Ipv4Addr,
};

/// Hands out addresses of one CIDR upwards from its first one. An address that became free is not handed out again while the
/// allocator lives, so that a proxy never reaches another service under an address it has cached.
#[derive(Debug)]
pub struct Allocator {
    first: u32,
    last: u32,
    next: u32,
    used: BTreeSet<u32>,
    /// Who got which address: a service whose write failed gets the same one with the next attempt.
    given: HashMap<Key, u32>,
}

impl Allocator {
    /// For an IPv4 CIDR such as `241.0.0.0/8`. Errors are texts for people.
    pub fn new(cidr: &str) -> Result<Self, String> {
        let bad = || format!("{cidr:?} is not an IPv4 CIDR such as \"241.0.0.0/8\"");
        let (address, bits) = cidr.split_once('/').ok_or_else(bad)?;
        let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
        let bits: u32 = bits.parse().ok().filter(|b| *b <= 32).ok_or_else(bad)?;
        let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
        let first = u32::from(address) & mask;
        Ok(Allocator { first, last: first | !mask, next: first, used: BTreeSet::new(), given: HashMap::new() })
    }
    /// Marks an address as taken. False when it lies outside of the CIDR.
    pub fn reserve(&mut self, address: &str) -> bool {
        let Ok(a) = address.parse::<Ipv4Addr>().map(u32::from) else { return false };
        let inside = (self.first..=self.last).contains(&a);
        if inside {
            self.used.insert(a);
        }
        inside
    }
    /// Another node may have handed out addresses meanwhile: what was given here and is not stored is not given again.
    pub fn start_over<'a>(&mut self, stored: impl Iterator<Item = &'a str>) {
        self.given.clear();
        for address in stored {
            self.reserve(address);
        }
    }
    /// The address of a service that has none yet: the next free one, `None` when the CIDR is used up.
    pub fn allocate(&mut self, service: &Key) -> Option<String> {
        if let Some(a) = self.given.get(service) {
            return Some(Ipv4Addr::from(*a).to_string());
        }
        while self.next <= self.last {
            let candidate = self.next;
            self.next = self.next.checked_add(1)?;
            if self.used.insert(candidate) {
                self.given.insert(service.clone(), candidate);
                return Some(Ipv4Addr::from(candidate).to_string());
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikada_model::Kind;

    fn service(n: u32) -> Key {
        Key::new(Kind::MeshService, "m", &format!("s{n}"))
    }

    #[test]
    fn attempts_of_one_service_use_one_address() {
        let mut a = Allocator::new("10.0.0.0/30").unwrap();
        let first = a.allocate(&service(0)).unwrap();
        for _ in 0..100 {
            assert_eq!(a.allocate(&service(0)).unwrap(), first);
        }
        assert_ne!(a.allocate(&service(1)).unwrap(), first);
        a.start_over(["10.0.0.3"].into_iter());
        assert_eq!(a.allocate(&service(0)).unwrap(), "10.0.0.2", "the first one may belong to somebody else by now");
        assert_eq!(a.allocate(&service(1)), None);
    }

    #[test]
    fn upwards_around_what_is_taken() {
        let mut a = Allocator::new("241.0.0.0/8").unwrap();
        assert!(a.reserve("241.0.0.1") && !a.reserve("10.0.0.1") && !a.reserve("x"));
        assert_eq!((a.allocate(&service(0)).unwrap(), a.allocate(&service(1)).unwrap()), ("241.0.0.0".to_owned(), "241.0.0.2".to_owned()));
        let mut tiny = Allocator::new("10.0.0.0/31").unwrap();
        assert_eq!((tiny.allocate(&service(0)).is_some(), tiny.allocate(&service(1)).is_some(), tiny.allocate(&service(2))), (true, true, None));
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "x/8"] {
            assert!(Allocator::new(bad).is_err(), "{bad}");
        }
        assert!(Allocator::new("255.255.255.255/32").unwrap().allocate(&service(0)).is_none_or(|v| v == "255.255.255.255"));
    }
}

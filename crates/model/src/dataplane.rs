//! Typed view of a Dataplane's canonical spec (reference: Kuma 2.14.3 REST contract, §8.2).

use crate::{
    kind::Kind,
    labels::{TAG_PROTOCOL, TAG_SERVICE},
    resource::{Resource, View},
};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// Tags of an inbound, outbound or gateway.
pub type Tags = BTreeMap<String, String>;

/// A data plane proxy.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Dataplane {
    /// Network part.
    pub networking: Networking,
}

/// `networking`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Networking {
    /// IP or DNS name of the machine.
    pub address: String,
    /// Address other proxies use, when it differs.
    pub advertised_address: String,
    /// Ports that the proxy serves.
    pub inbound: Vec<Inbound>,
    /// Ports that the proxy opens for its application.
    pub outbound: Vec<Outbound>,
    /// Set for gateways.
    pub gateway: Option<Gateway>,
    /// Transparent proxying.
    pub transparent_proxying: Option<TransparentProxying>,
    /// Envoy admin.
    pub admin: Option<Admin>,
    /// Zone proxy listeners.
    pub listeners: Vec<ZoneListener>,
}

/// State of an inbound or listener.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum State {
    /// Takes traffic.
    #[default]
    Ready,
    /// Left out of endpoints.
    NotReady,
    /// Not looked at.
    Ignored,
}

/// Health of an inbound.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Health {
    /// Ready.
    pub ready: bool,
}

/// `networking.inbound[]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Inbound {
    /// Port of the proxy.
    pub port: u32,
    /// Port of the application, 0 = `port`.
    pub service_port: u32,
    /// Address of the application, empty = inbound address.
    pub service_address: String,
    /// Address of the inbound, empty = `networking.address`.
    pub address: String,
    /// Tags.
    pub tags: Tags,
    /// Health.
    pub health: Option<Health>,
    /// State.
    pub state: State,
    /// TCP probe.
    pub service_probe: Option<serde_json::Value>,
    /// Name.
    pub name: String,
    /// Protocol, empty = tag.
    pub protocol: String,
}

/// `networking.outbound[]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Outbound {
    /// Address to bind, empty = 127.0.0.1.
    pub address: String,
    /// Port to bind.
    pub port: u32,
    /// Legacy destination.
    pub tags: Tags,
    /// Real destination.
    pub backend_ref: Option<OutboundBackendRef>,
}

/// `networking.outbound[].backendRef`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OutboundBackendRef {
    /// MeshService, MeshExternalService or MeshMultiZoneService.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Port of the destination.
    pub port: u32,
    /// Labels instead of the name.
    pub labels: Tags,
}

/// Gateway kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum GatewayType {
    /// Another process terminates traffic.
    #[default]
    #[serde(rename = "DELEGATED")]
    Delegated,
    /// Envoy itself.
    #[serde(rename = "BUILTIN")]
    Builtin,
}

/// `networking.gateway`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Gateway {
    /// Tags.
    pub tags: Tags,
    /// Type.
    #[serde(rename = "type")]
    pub kind: GatewayType,
}

/// `networking.transparentProxying`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TransparentProxying {
    /// 0 = off.
    pub redirect_port_inbound: u32,
    /// 0 = off.
    pub redirect_port_outbound: u32,
    /// Services reached directly.
    pub direct_access_services: Vec<String>,
    /// Legacy reachable services.
    pub reachable_services: Vec<String>,
    /// UnSpecified, DualStack, IPv4, IPv6.
    pub ip_family_mode: String,
    /// Reachable real resources.
    pub reachable_backends: Option<ReachableBackends>,
}

/// `networking.transparentProxying.reachableBackends`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ReachableBackends {
    /// References; empty = none reachable.
    pub refs: Vec<ReachableRef>,
}

/// One reachable backend reference.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ReachableRef {
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Port, absent = all.
    pub port: Option<u32>,
    /// Labels instead of the name.
    pub labels: Tags,
}

impl ReachableRef {
    /// Whether it names this port of this destination.
    pub fn selects(&self, destination: &Resource, port: u32) -> bool {
        let kind = Kind::by_name(&self.kind).filter(|k| k.descriptor().is_destination());
        if kind != Some(destination.kind()) || self.port.is_some_and(|p| p != port) {
            return false;
        }
        if !self.labels.is_empty() {
            return self.labels.iter().all(|(k, v)| destination.label(k) == Some(v));
        }
        !self.name.is_empty()
            && destination.display_name() == self.name
            && (self.namespace.is_empty() || destination.namespace() == self.namespace)
    }
}

/// `networking.admin`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Admin {
    /// Port, 0 = default of the control plane.
    pub port: u32,
}

/// `networking.listeners[]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ZoneListener {
    /// ZoneIngress or ZoneEgress.
    #[serde(rename = "type")]
    pub kind: String,
    /// Address.
    pub address: String,
    /// Port.
    pub port: u32,
    /// Name.
    pub name: String,
    /// State.
    pub state: State,
}

impl View for Dataplane {
    const KIND: Kind = Kind::Dataplane;
}

impl Inbound {
    /// Section name: the inbound's name, else the port as text.
    pub fn section(&self) -> String {
        if self.name.is_empty() { self.port.to_string() } else { self.name.clone() }
    }
    /// Tag `kuma.io/service`.
    pub fn service(&self) -> Option<&str> {
        self.tags.get(TAG_SERVICE).map(String::as_str)
    }
    /// Field, else tag, as written.
    pub fn protocol(&self) -> Option<&str> {
        if self.protocol.is_empty() { self.tags.get(TAG_PROTOCOL).map(String::as_str) } else { Some(&self.protocol) }
    }
    /// State Ready and not reported unhealthy.
    pub fn is_healthy(&self) -> bool {
        self.state == State::Ready && self.health.as_ref().is_none_or(|h| h.ready)
    }
    /// Port of the application.
    pub fn workload_port(&self) -> u32 {
        if self.service_port == 0 { self.port } else { self.service_port }
    }
}

impl Networking {
    /// Address an inbound binds.
    pub fn inbound_address<'a>(&'a self, inbound: &'a Inbound) -> &'a str {
        if inbound.address.is_empty() { &self.address } else { &inbound.address }
    }
    /// Address given to other proxies.
    pub fn advertised<'a>(&'a self, inbound: &'a Inbound) -> &'a str {
        if self.advertised_address.is_empty() { self.inbound_address(inbound) } else { &self.advertised_address }
    }
    /// Address of the application behind an inbound.
    pub fn workload_address<'a>(&'a self, inbound: &'a Inbound) -> &'a str {
        if inbound.service_address.is_empty() { self.inbound_address(inbound) } else { &inbound.service_address }
    }
}

impl Dataplane {
    /// All tag values of inbounds and gateway.
    pub fn tag_set(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let gateway = self.networking.gateway.iter().map(|g| &g.tags);
        for (k, v) in self.networking.inbound.iter().map(|i| &i.tags).chain(gateway).flatten() {
            all.entry(k.clone()).or_default().insert(v.clone());
        }
        all
    }
    /// Distinct `kuma.io/service` values, sorted.
    pub fn services(&self) -> BTreeSet<String> {
        self.tag_set().remove(TAG_SERVICE).unwrap_or_default()
    }
    /// First service in byte order, or `unknown`.
    pub fn identifying_service(&self) -> String {
        self.services().into_iter().next().unwrap_or_else(|| "unknown".to_owned())
    }
    /// Any gateway.
    pub fn is_gateway(&self) -> bool {
        self.networking.gateway.is_some()
    }
    /// Gateway served by Envoy itself.
    pub fn is_builtin_gateway(&self) -> bool {
        self.networking.gateway.as_ref().is_some_and(|g| g.kind == GatewayType::Builtin)
    }
}

//! What matching yields: rules with merged confs (reference: Kuma 2.14.3 policy contract, §1.8–§1.12).

use crate::spec::{Match, Tags};
use ikada_model::{Kind, Kri, Resource};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

/// An inbound, zone-proxy or gateway listener.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct InboundKey {
    /// Address that it binds; empty for a zone egress.
    pub address: String,
    /// Port; 0 for a zone egress.
    pub port: u32,
}

impl fmt::Display for InboundKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.address.contains(':') { write!(f, "[{}]:{}", self.address, self.port) } else { write!(f, "{}:{}", self.address, self.port) }
    }
}

/// A gateway listener together with its hostname.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerKey {
    /// Listener.
    pub listener: InboundKey,
    /// Hostname, `*` for any.
    pub hostname: String,
}

/// One condition of a subset.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubsetTag {
    /// Tag key.
    pub key: String,
    /// Tag value.
    pub value: String,
    /// The tag must not have the value.
    pub not: bool,
}

/// Conf for the clients (or destinations) that a set of tags describes.
#[derive(Clone, Debug)]
pub struct SubsetRule {
    /// All must hold; empty = everyone.
    pub subset: Vec<SubsetTag>,
    /// Merged conf.
    pub conf: Arc<Value>,
    /// Distinct policies that contributed, weakest first.
    pub origins: Vec<Arc<Resource>>,
    /// Indexes of the items that contributed, among all items of the list: the more, the more is known about the clients of the subset.
    pub items: BTreeSet<usize>,
    /// MeshHTTPRoute: by hash of a rule's `matches`, the policy that contributed it last.
    pub origin_by_matches: BTreeMap<String, Arc<Resource>>,
}

/// Where a conf comes from.
#[derive(Clone, Debug)]
pub struct RuleOrigin {
    /// Policy.
    pub policy: Arc<Resource>,
    /// Index of its `to`, `from` or `rules` item.
    pub index: usize,
}

/// Conf for a real resource, or one port of it.
#[derive(Clone, Debug)]
pub struct ResourceRule {
    /// MeshService, MeshExternalService, MeshMultiZoneService, MeshHTTPRoute or Mesh.
    pub resource: Arc<Resource>,
    /// Port name; empty for the whole resource.
    pub section: String,
    /// Merged confs: one, but for MeshHTTPRoute one per hostname.
    pub conf: Vec<Arc<Value>>,
    /// Distinct items that contributed, weakest first.
    pub origins: Vec<RuleOrigin>,
    /// MeshHTTPRoute: by hash of a rule's `matches`, the item that contributed it last.
    pub origin_by_matches: BTreeMap<String, RuleOrigin>,
}

/// Conf for incoming traffic.
#[derive(Clone, Debug)]
pub struct InboundRule {
    /// Which traffic; `None` = all.
    pub r#match: Option<Match>,
    /// Conf of the one rule (not merged; see [`InboundRule::all_traffic`]).
    pub conf: Arc<Value>,
    /// Where it comes from.
    pub origin: RuleOrigin,
}

/// Rules for outgoing traffic.
#[derive(Clone, Debug, Default)]
pub struct ToRules {
    /// For legacy outbounds, see [`ToRules::for_tags`].
    pub subset: Vec<SubsetRule>,
    /// For real resources, see [`ToRules::resource_context`] and [`ToRules::compute`].
    pub resource: BTreeMap<Kri, ResourceRule>,
}

/// `to` rules of a builtin gateway's listeners.
#[derive(Clone, Debug, Default)]
pub struct GatewayRules {
    /// By address and port.
    pub by_listener: BTreeMap<InboundKey, ToRules>,
    /// By address, port and hostname.
    pub by_listener_and_hostname: BTreeMap<ListenerKey, ToRules>,
}

/// What the policies of one kind say about one proxy.
#[derive(Clone, Debug, Default)]
pub struct TypedMatch {
    /// Matching policies, weakest first.
    pub policies: Vec<Arc<Resource>>,
    /// Outgoing traffic.
    pub to: ToRules,
    /// Incoming traffic by client tags. A matched inbound has an entry, possibly an empty one.
    pub from: BTreeMap<InboundKey, Vec<SubsetRule>>,
    /// Incoming traffic by match, most specific first. A matched inbound has an entry, possibly an empty one.
    pub inbound: BTreeMap<InboundKey, Vec<InboundRule>>,
    /// Builtin gateways.
    pub gateway: GatewayRules,
    /// Kinds without `to`, `from` and `rules`: the one merged conf.
    pub single: Option<SubsetRule>,
    /// Texts for people: references that could not be resolved.
    pub warnings: Vec<String>,
}

static NOTHING: TypedMatch = TypedMatch {
    policies: Vec::new(),
    to: ToRules { subset: Vec::new(), resource: BTreeMap::new() },
    from: BTreeMap::new(),
    inbound: BTreeMap::new(),
    gateway: GatewayRules { by_listener: BTreeMap::new(), by_listener_and_hostname: BTreeMap::new() },
    single: None,
    warnings: Vec::new(),
};

/// What all targetRef policies say about one proxy.
#[derive(Clone, Debug, Default)]
pub struct Matched {
    pub(crate) kinds: BTreeMap<Kind, TypedMatch>,
}

impl Matched {
    /// Of one policy kind; empty when nothing matched.
    pub fn of(&self, kind: Kind) -> &TypedMatch {
        self.kinds.get(&kind).unwrap_or(&NOTHING)
    }
    /// Kinds that matched or warned, in registry order.
    pub fn iter(&self) -> impl Iterator<Item = (Kind, &TypedMatch)> {
        self.kinds.iter().map(|(k, t)| (*k, t))
    }
    /// All warnings.
    pub fn warnings(&self) -> impl Iterator<Item = &str> {
        self.kinds.values().flat_map(|t| &t.warnings).map(String::as_str)
    }
}

/// An element (tags of a client or destination) lies in a subset.
pub fn subset_contains(subset: &[SubsetTag], element: &Tags) -> bool {
    if subset.is_empty() {
        return true;
    }
    if element.is_empty() {
        return false;
    }
    let mut overlap = false;
    for t in subset {
        match element.get(&t.key) {
            Some(v) => {
                overlap = true;
                if (*v == t.value) == t.not {
                    return false;
                }
            }
            None if !t.not => return false,
            None => {}
        }
    }
    overlap || subset.iter().all(|t| t.not)
}

/// The first rule whose subset contains the element.
pub fn first_containing<'a>(rules: &'a [SubsetRule], element: &Tags) -> Option<&'a SubsetRule> {
    rules.iter().find(|r| subset_contains(&r.subset, element))
}

/// KRI of a mesh, as rules are keyed by it.
pub fn mesh_kri(mesh: &str) -> Kri {
    Kri { kind: Kind::Mesh, mesh: String::new(), zone: String::new(), namespace: String::new(), name: mesh.to_owned(), section: String::new() }
}

impl ToRules {
    /// No rules at all.
    pub fn is_empty(&self) -> bool {
        self.subset.is_empty() && self.resource.is_empty()
    }
    /// Rule for a legacy destination.
    pub fn for_tags(&self, element: &Tags) -> Option<&SubsetRule> {
        first_containing(&self.subset, element)
    }
    /// Rule for a legacy destination known by its `kuma.io/service`.
    pub fn for_service(&self, service: &str) -> Option<&SubsetRule> {
        self.for_tags(&Tags::from([(ikada_model::labels::TAG_SERVICE.to_owned(), service.to_owned())]))
    }
    /// Lookup A (MeshTimeout, MeshRetry, MeshAccessLog, MeshLoadBalancingStrategy): the first hit of route with section, route
    /// without, service with section, service without, mesh. The whole rule wins.
    pub fn resource_context(&self, route: Option<&Kri>, service: Option<&Kri>, mesh: &str) -> Option<&ResourceRule> {
        let exact_then_whole = |k: &Kri| self.resource.get(k).or_else(|| self.resource.get(&k.without_section()));
        route.and_then(exact_then_whole).or_else(|| service.and_then(exact_then_whole)).or_else(|| self.resource.get(&mesh_kri(mesh)))
    }
    /// Lookup B (MeshHTTPRoute, MeshTCPRoute, MeshCircuitBreaker, MeshHealthCheck): the resource, without section, its mesh. Kinds that
    /// are neither a service nor a MeshHTTPRoute: the exact key alone.
    pub fn compute(&self, key: &Kri) -> Option<&ResourceRule> {
        let exact = self.resource.get(key);
        if !key.kind.descriptor().is_destination() && key.kind != Kind::MeshHTTPRoute {
            return exact;
        }
        exact.or_else(|| self.resource.get(&key.without_section())).or_else(|| self.resource.get(&mesh_kri(&key.mesh)))
    }
}

impl ResourceRule {
    /// The first conf: the only one for all kinds but MeshHTTPRoute.
    pub fn first(&self) -> &Value {
        self.conf.first().map_or(&Value::Null, |c| c)
    }
}

impl InboundRule {
    /// Conf of the traffic that no match speaks about: merge of the rules without match. `None` when there is none.
    pub fn all_traffic(rules: &[InboundRule]) -> Option<Arc<Value>> {
        let confs: Vec<_> = rules.iter().filter(|r| r.r#match.is_none()).map(|r| r.conf.clone()).collect();
        if confs.is_empty() { None } else { Some(crate::merge::merge(&confs)) }
    }
}

//! The one registry of resource kinds (reference: Kuma 2.14.3 REST contract, §1).
//!
//! Everything that depends on what a kind *is* (path, scope, who may write it, how it travels between zones) is read from
//! [`Descriptor`]; nothing else in the code base may list kinds.

use std::fmt;

/// Where a resource lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Inside one mesh; the key carries the mesh name.
    Mesh,
    /// Outside of any mesh; the mesh part of the key is empty.
    Global,
}

/// Shape of the JSON body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Spec fields at top level, protobuf JSON.
    Flat,
    /// Spec under `spec`.
    Spec,
    /// Spec under `spec` and a read-only `status`.
    SpecStatus,
}

/// KDS flag bits as Kuma numbers them.
pub mod kds {
    /// A zone control plane uses it.
    pub const CONSUMED_BY_ZONE: u8 = 1;
    /// The global control plane uses it.
    pub const CONSUMED_BY_GLOBAL: u8 = 4;
    /// It may be written on a zone.
    pub const PROVIDED_BY_ZONE: u8 = 8;
    /// It may be written on the global.
    pub const PROVIDED_BY_GLOBAL: u8 = 16;
    /// The global hands it on to the other zones.
    pub const SYNCED_ACROSS_ZONES: u8 = 32;
    /// Global to zones.
    pub const G2Z: u8 = PROVIDED_BY_GLOBAL | CONSUMED_BY_ZONE;
    /// Zone to global.
    pub const Z2G: u8 = PROVIDED_BY_ZONE | CONSUMED_BY_GLOBAL;
    /// The set of all targetRef policies.
    pub const POLICY: u8 = G2Z | Z2G | SYNCED_ACROSS_ZONES;
}

/// What a policy kind's spec contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyInfo {
    /// A targetRef policy; false for the old source/destination ones.
    pub target_ref: bool,
    /// `spec.to` exists.
    pub to: bool,
    /// `spec.from` exists.
    pub from: bool,
    /// `spec.rules` exists.
    pub rules: bool,
    /// The deprecated `from` is read as `rules`.
    pub from_as_rules: bool,
    /// Plugin order, lowest runs first; 0 for the old policies.
    pub order: u16,
}

/// Facts about one kind. All texts are part of the REST contract.
#[derive(Debug)]
pub struct Descriptor {
    /// The kind itself.
    pub kind: Kind,
    /// `type` in bodies.
    pub name: &'static str,
    /// Path segment; empty for kinds that have no REST path.
    pub path: &'static str,
    /// A second path segment that behaves the same.
    pub alt_path: Option<&'static str>,
    /// Scope.
    pub scope: Scope,
    /// Body shape.
    pub body: Body,
    /// Short name used in KRIs; empty when there is none.
    pub short: &'static str,
    /// kumactl's singular argument; empty when there is none.
    pub singular: &'static str,
    /// kumactl's plural argument.
    pub plural: &'static str,
    /// kumactl's further aliases.
    pub aliases: &'static [&'static str],
    /// KDS bits, see [`kds`].
    pub kds: u8,
    /// Never writable over REST (insights).
    pub read_only: bool,
    /// Only admins may read or write it.
    pub admin_only: bool,
    /// Has `_overview` endpoints.
    pub overview: bool,
    /// Display name, singular.
    pub display: &'static str,
    /// Display name, plural.
    pub display_plural: &'static str,
    /// Set for policies.
    pub policy: Option<PolicyInfo>,
    /// Status that changes all the time: kept in the status map of the world.
    pub insight: bool,
}

impl Descriptor {
    /// Some KDS bit is set.
    pub fn has(&self, bit: u8) -> bool {
        self.kds & bit != 0
    }
    /// Originates from the plugin generator (`spec` bodies); the origin-label rule of federated zones hangs on it.
    pub fn is_plugin(&self) -> bool {
        self.body != Body::Flat
    }
    /// MeshService, MeshExternalService, MeshMultiZoneService: carry `snis`.
    pub fn is_destination(&self) -> bool {
        matches!(self.kind, Kind::MeshService | Kind::MeshExternalService | Kind::MeshMultiZoneService)
    }
    /// Dataplane, ZoneIngress, ZoneEgress: carry `kuma.io/proxy-type`.
    pub fn is_proxy(&self) -> bool {
        matches!(self.kind, Kind::Dataplane | Kind::ZoneIngress | Kind::ZoneEgress)
    }
}

const NO: &[&str] = &[];

macro_rules! registry {
    ($( $kind:ident { $path:literal $alt:expr, $scope:ident $body:ident $short:literal, $sing:literal $plur:literal $aliases:expr,
        $kds:expr, $flags:expr, $disp:literal $displ:literal, $policy:expr } )*) => {
        /// A resource kind. The order is that of the registry and is not part of any format.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        #[allow(missing_docs)]
        pub enum Kind { $( $kind ),* }
        static REGISTRY: &[Descriptor] = &[ $( Descriptor {
            kind: Kind::$kind, name: stringify!($kind), path: $path, alt_path: $alt, scope: Scope::$scope, body: Body::$body, short: $short,
            singular: $sing, plural: $plur, aliases: $aliases, kds: $kds,
            read_only: $flags & RO != 0, admin_only: $flags & ADMIN != 0, overview: $flags & OV != 0, insight: $flags & INSIGHT != 0,
            display: $disp, display_plural: $displ, policy: $policy,
        } ),* ];
    };
}

const RO: u8 = 1;
const ADMIN: u8 = 2;
const OV: u8 = 4;
const INSIGHT: u8 = 8;
const INS: u8 = RO | INSIGHT;

const fn tr(to: u8, from: u8, rules: u8, far: u8, order: u16) -> Option<PolicyInfo> {
    Some(PolicyInfo { target_ref: true, to: to != 0, from: from != 0, rules: rules != 0, from_as_rules: far != 0, order })
}
const LEGACY: Option<PolicyInfo> =
    Some(PolicyInfo { target_ref: false, to: false, from: false, rules: false, from_as_rules: false, order: 0 });

use kds::{G2Z, POLICY, PROVIDED_BY_GLOBAL as PG, PROVIDED_BY_ZONE as PZ, SYNCED_ACROSS_ZONES as X, Z2G};

registry! {
    Mesh { "meshes" None, Global Flat "m", "mesh" "meshes" NO, G2Z, 0, "Mesh" "Meshes", None }
    Dataplane { "dataplanes" None, Mesh Flat "dp", "dataplane" "dataplanes" NO, Z2G, OV, "Dataplane" "Dataplanes", None }
    DataplaneInsight { "dataplane-insights" None, Mesh Flat "", "" "" NO, Z2G, INS, "Dataplane Insight" "Dataplane Insights", None }
    MeshInsight { "mesh-insights" None, Global Flat "", "" "" NO, PG, INS, "Mesh Insight" "Mesh Insights", None }
    ServiceInsight { "service-insights" None, Mesh Flat "", "" "" NO, G2Z, INS, "Service Insight" "Service Insights", None }
    Zone { "zones" None, Global Flat "z", "zone" "zones" NO, PG | PZ, OV, "Zone" "Zones", None }
    ZoneInsight { "zone-insights" None, Global Flat "", "" "" NO, PG | PZ, INS, "Zone Insight" "Zone Insights", None }
    ZoneIngress { "zoneingresses" Some("zone-ingresses"), Global Flat "zi", "zoneingress" "zoneingresses" &["zone-ingress", "zone-ingresses"], Z2G | X, OV, "Zone Ingress" "Zone Ingresses", None }
    ZoneIngressInsight { "zone-ingress-insights" None, Global Flat "", "" "" NO, Z2G, INS, "Zone Ingress Insight" "Zone Ingress Insights", None }
    ZoneEgress { "zoneegresses" None, Global Flat "ze", "zoneegress" "zoneegresses" NO, Z2G, OV, "Zone Egress" "Zone Egresses", None }
    ZoneEgressInsight { "zoneegressinsights" None, Global Flat "", "" "" NO, Z2G, INS, "Zone Egress Insight" "Zone Egress Insights", None }
    Secret { "secrets" None, Mesh Flat "", "secret" "secrets" NO, G2Z | PZ, ADMIN, "Secret" "Secrets", None }
    GlobalSecret { "globalsecrets" Some("global-secrets"), Global Flat "", "globalsecret" "globalsecrets" &["global-secret", "global-secrets"], G2Z | PZ, ADMIN, "Global Secret" "Global Secrets", None }
    ExternalService { "external-services" None, Mesh Flat "", "external-service" "external-services" NO, G2Z, 0, "External Service" "External Services", None }
    MeshGateway { "meshgateways" None, Mesh Flat "mgw", "meshgateway" "meshgateways" NO, G2Z | Z2G, 0, "Mesh Gateway" "Mesh Gateways", None }
    HostnameGenerator { "hostnamegenerators" None, Global Spec "hg", "hostnamegenerator" "hostnamegenerators" NO, G2Z | Z2G, 0, "Hostname Generator" "Hostname Generators", None }
    MeshService { "meshservices" None, Mesh SpecStatus "msvc", "meshservice" "meshservices" NO, Z2G | X, 0, "Mesh Service" "Mesh Services", None }
    MeshExternalService { "meshexternalservices" None, Mesh SpecStatus "extsvc", "meshexternalservice" "meshexternalservices" NO, G2Z | Z2G, 0, "Mesh External Service" "Mesh External Services", None }
    MeshMultiZoneService { "meshmultizoneservices" None, Mesh SpecStatus "mzsvc", "meshmultizoneservice" "meshmultizoneservices" NO, G2Z, 0, "Mesh Multi Zone Service" "Mesh Multi Zone Services", None }
    MeshIdentity { "meshidentities" None, Mesh SpecStatus "mid", "meshidentity" "meshidentities" NO, G2Z | Z2G, 0, "Mesh Identity" "Mesh Identities", None }
    MeshTrust { "meshtrusts" None, Mesh SpecStatus "mtrust", "meshtrust" "meshtrusts" NO, G2Z | Z2G, 0, "Mesh Trust" "Mesh Trusts", None }
    MeshOpenTelemetryBackend { "meshopentelemetrybackends" None, Mesh SpecStatus "motb", "meshopentelemetrybackend" "meshopentelemetrybackends" NO, G2Z | Z2G, 0, "Mesh OpenTelemetry Backend" "Mesh OpenTelemetry Backends", None }
    MeshZoneAddress { "meshzoneaddresses" None, Mesh Spec "mza", "meshzoneaddress" "meshzoneaddresses" NO, Z2G | X, 0, "Mesh Zone Address" "Mesh Zone Addresses", None }
    Workload { "workloads" None, Mesh SpecStatus "wl", "workload" "workloads" NO, Z2G, 0, "Workload" "Workloads", None }
    MeshHTTPRoute { "meshhttproutes" None, Mesh Spec "mhttpr", "meshhttproute" "meshhttproutes" NO, POLICY, 0, "Mesh HTTP Route" "Mesh HTTP Routes", tr(1, 0, 0, 0, 100) }
    MeshTCPRoute { "meshtcproutes" None, Mesh Spec "mtcpr", "meshtcproute" "meshtcproutes" NO, POLICY, 0, "Mesh TCP Route" "Mesh TCP Routes", tr(1, 0, 0, 0, 200) }
    MeshTLS { "meshtlses" None, Mesh Spec "mtls", "meshtls" "meshtlses" NO, POLICY, 0, "Mesh TLS" "Mesh TLSes", tr(0, 1, 1, 1, 300) }
    MeshLoadBalancingStrategy { "meshloadbalancingstrategies" None, Mesh Spec "mlbs", "meshloadbalancingstrategy" "meshloadbalancingstrategies" NO, POLICY, 0, "Mesh Load Balancing Strategy" "Mesh Load Balancing Strategies", tr(1, 0, 0, 0, 400) }
    MeshPassthrough { "meshpassthroughs" None, Mesh Spec "mp", "meshpassthrough" "meshpassthroughs" NO, POLICY, 0, "Mesh Passthrough" "Mesh Passthroughs", tr(0, 0, 0, 0, 500) }
    MeshAccessLog { "meshaccesslogs" None, Mesh SpecStatus "mal", "meshaccesslog" "meshaccesslogs" NO, POLICY, 0, "Mesh Access Log" "Mesh Access Logs", tr(1, 1, 1, 1, 600) }
    MeshTrace { "meshtraces" None, Mesh Spec "mtr", "meshtrace" "meshtraces" NO, POLICY, 0, "Mesh Trace" "Mesh Traces", tr(0, 0, 0, 0, 700) }
    MeshFaultInjection { "meshfaultinjections" None, Mesh Spec "mfi", "meshfaultinjection" "meshfaultinjections" NO, POLICY, 0, "Mesh Fault Injection" "Mesh Fault Injections", tr(1, 1, 1, 0, 800) }
    MeshRateLimit { "meshratelimits" None, Mesh Spec "mrl", "meshratelimit" "meshratelimits" NO, POLICY, 0, "Mesh Rate Limit" "Mesh Rate Limits", tr(1, 1, 1, 1, 900) }
    MeshTimeout { "meshtimeouts" None, Mesh Spec "mt", "meshtimeout" "meshtimeouts" NO, POLICY, 0, "Mesh Timeout" "Mesh Timeouts", tr(1, 1, 1, 1, 1000) }
    MeshTrafficPermission { "meshtrafficpermissions" None, Mesh Spec "mtp", "meshtrafficpermission" "meshtrafficpermissions" NO, POLICY, 0, "Mesh Traffic Permission" "Mesh Traffic Permissions", tr(0, 1, 1, 0, 1100) }
    MeshHealthCheck { "meshhealthchecks" None, Mesh Spec "mhc", "meshhealthcheck" "meshhealthchecks" NO, POLICY, 0, "Mesh Health Check" "Mesh Health Checks", tr(1, 0, 0, 0, 1200) }
    MeshCircuitBreaker { "meshcircuitbreakers" None, Mesh Spec "mcb", "meshcircuitbreaker" "meshcircuitbreakers" NO, POLICY, 0, "Mesh Circuit Breaker" "Mesh Circuit Breakers", tr(1, 1, 1, 1, 1300) }
    MeshRetry { "meshretries" None, Mesh Spec "mr", "meshretry" "meshretries" NO, POLICY, 0, "Mesh Retry" "Mesh Retries", tr(1, 0, 0, 0, 1400) }
    MeshMetric { "meshmetrics" None, Mesh SpecStatus "mm", "meshmetric" "meshmetrics" NO, POLICY, 0, "Mesh Metric" "Mesh Metrics", tr(0, 0, 0, 0, 1500) }
    MeshProxyPatch { "meshproxypatches" None, Mesh Spec "mpp", "meshproxypatch" "meshproxypatches" NO, POLICY, 0, "Mesh Proxy Patch" "Mesh Proxy Patches", tr(0, 0, 0, 0, 9999) }
    CircuitBreaker { "circuit-breakers" None, Mesh Flat "", "circuit-breaker" "circuit-breakers" NO, G2Z, 0, "Circuit Breaker" "Circuit Breakers", LEGACY }
    FaultInjection { "fault-injections" None, Mesh Flat "", "fault-injection" "fault-injections" NO, G2Z, 0, "Fault Injection" "Fault Injections", LEGACY }
    HealthCheck { "health-checks" None, Mesh Flat "", "healthcheck" "healthchecks" NO, G2Z, 0, "Health Check" "Health Checks", LEGACY }
    ProxyTemplate { "proxytemplates" None, Mesh Flat "", "proxytemplate" "proxytemplates" NO, G2Z, 0, "Proxy Template" "Proxy Templates", LEGACY }
    RateLimit { "rate-limits" None, Mesh Flat "", "rate-limit" "rate-limits" NO, G2Z, 0, "Rate Limit" "Rate Limits", LEGACY }
    Retry { "retries" None, Mesh Flat "", "retry" "retries" NO, G2Z, 0, "Retry" "Retries", LEGACY }
    Timeout { "timeouts" None, Mesh Flat "", "timeout" "timeouts" NO, G2Z, 0, "Timeout" "Timeouts", LEGACY }
    TrafficLog { "traffic-logs" None, Mesh Flat "", "traffic-log" "traffic-logs" NO, G2Z, 0, "Traffic Log" "Traffic Logs", LEGACY }
    TrafficPermission { "traffic-permissions" None, Mesh Flat "", "traffic-permission" "traffic-permissions" NO, G2Z, 0, "Traffic Permission" "Traffic Permissions", LEGACY }
    TrafficRoute { "traffic-routes" None, Mesh Flat "", "traffic-route" "traffic-routes" NO, G2Z, 0, "Traffic Route" "Traffic Routes", LEGACY }
    TrafficTrace { "traffic-traces" None, Mesh Flat "", "traffic-trace" "traffic-traces" NO, G2Z, 0, "Traffic Trace" "Traffic Traces", LEGACY }
    VirtualOutbound { "virtual-outbounds" None, Mesh Flat "", "virtual-outbound" "virtual-outbounds" NO, G2Z, 0, "Virtual Outbound" "Virtual Outbounds", LEGACY }
    MeshGatewayRoute { "meshgatewayroutes" None, Mesh Flat "", "meshgatewayroute" "meshgatewayroutes" NO, G2Z, 0, "Mesh Gateway Route" "Mesh Gateway Routes", LEGACY }
    Config { "" None, Global Flat "", "" "" NO, G2Z | PZ, 0, "Config" "Configs", None }
}

impl Kind {
    /// All kinds, in registry order.
    pub fn all() -> impl Iterator<Item = Kind> {
        REGISTRY.iter().map(|d| d.kind)
    }
    /// Its facts.
    pub fn descriptor(self) -> &'static Descriptor {
        &REGISTRY[self as usize]
    }
    /// `type` in bodies.
    pub fn name(self) -> &'static str {
        self.descriptor().name
    }
    /// By `type`.
    pub fn by_name(name: &str) -> Option<Kind> {
        REGISTRY.iter().find(|d| d.name == name).map(|d| d.kind)
    }
    /// By REST path segment, alternative paths included.
    pub fn by_path(path: &str) -> Option<Kind> {
        REGISTRY.iter().find(|d| !d.path.is_empty() && (d.path == path || d.alt_path == Some(path))).map(|d| d.kind)
    }
    /// By KRI short name.
    pub fn by_short(short: &str) -> Option<Kind> {
        REGISTRY.iter().find(|d| !d.short.is_empty() && d.short == short).map(|d| d.kind)
    }
    /// By a kumactl argument (singular, plural or alias).
    pub fn by_arg(arg: &str) -> Option<Kind> {
        REGISTRY.iter().find(|d| !d.singular.is_empty() && (d.singular == arg || d.plural == arg || d.aliases.contains(&arg))).map(|d| d.kind)
    }
    /// Lives in a mesh.
    pub fn is_mesh_scoped(self) -> bool {
        self.descriptor().scope == Scope::Mesh
    }
    /// A targetRef policy.
    pub fn is_target_ref_policy(self) -> bool {
        self.descriptor().policy.is_some_and(|p| p.target_ref)
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registry_is_consistent() {
        for k in Kind::all() {
            let d = k.descriptor();
            assert_eq!(d.kind, k);
            assert_eq!(Kind::by_name(d.name), Some(k));
            if !d.path.is_empty() {
                assert_eq!(Kind::by_path(d.path), Some(k));
            }
            if !d.short.is_empty() {
                assert_eq!(Kind::by_short(d.short), Some(k), "short name {} is not unique", d.short);
            }
        }
        assert_eq!(Kind::by_path("global-secrets"), Some(Kind::GlobalSecret));
        assert_eq!(Kind::by_arg("zone-ingress"), Some(Kind::ZoneIngress));
    }
}

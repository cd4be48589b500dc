//! Which policies speak about a proxy, and what they say together.
//!
//! Pure. Everything is driven by [`ikada_model::kind::PolicyInfo`], so a new policy kind needs no code here. Confs are the JSON of the
//! specs, merged; consumers read them into their own types.

pub mod backend;
pub mod http_route;
pub mod inbound;
pub mod matching;
pub mod merge;
pub mod order;
pub mod resource;
pub mod rules;
pub mod select;
pub mod spec;
pub mod subset;
#[cfg(test)]
mod testing;

pub use backend::{Backend, resolve_backend_ref, resolve_port};
pub use matching::{MatchOptions, match_egress, match_kind, match_policies, selection};
pub use merge::merge;
pub use resource::{ResolvedRef, find_by_kri, resolve_target_ref};
pub use rules::{
    GatewayRules, InboundKey, InboundRule, ListenerKey, Matched, ResourceRule, RuleOrigin, SubsetRule, SubsetTag, ToRules, TypedMatch,
};
pub use select::{Proxy, Selection};
pub use spec::{BackendRef, PolicySpec, TargetRef};

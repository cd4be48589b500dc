//! Which policies speak about a proxy, and what they say together.
//!
//! Pure. Everything is driven by [`ikada_model::kind::PolicyInfo`], so a new policy kind needs no code here. Confs are the JSON of the
//! specs, merged; consumers read them into their own types.

pub mod merge;
pub mod rules;
pub mod spec;

pub use merge::merge;
pub use rules::{
    GatewayRules, InboundKey, InboundRule, ListenerKey, Matched, ResourceRule, RuleOrigin, SubsetRule, SubsetTag, ToRules, TypedMatch,
};
pub use spec::{BackendRef, PolicySpec, TargetRef};

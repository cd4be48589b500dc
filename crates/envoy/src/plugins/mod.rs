//! Policies as edits of the resources made so far, in the order of their kinds (policy contract §2).

pub(crate) mod circuit_breaker;
pub(crate) mod client_timeout;
pub(crate) mod conf;
pub(crate) mod http_route;
pub(crate) mod retry;
pub(crate) mod tcp_route;
pub(crate) mod timeout;
pub(crate) mod traffic_permission;

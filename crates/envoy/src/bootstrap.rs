//! The bootstrap configuration of a proxy's Envoy: request, checks, generation, response forms.
//!
//! Pure: certificates are looked at by the caller ([`ServerCertificate`], the flag of [`check`]), resources are looked up and validated by the
//! caller. Order of work for one request (reference: Kuma 2.14.3 data-plane contract, §1.2, 1.3 and 2):
//!
//! 1. [`BootstrapRequest::parse`]
//! 2. [`check`]: token present, host among the SANs, CA certificate
//! 3. the resource: [`BootstrapRequest::inline_resource`] decoded and validated by the caller, else from the store
//! 4. [`check_dataplane`]
//! 5. [`generate`], then [`respond`]

mod check;
mod config;
mod error;
mod params;
mod request;
mod respond;

pub use check::{check, check_dataplane, host_without_port};
pub use config::{Subject, generate};
pub use error::BootstrapError;
pub use params::{BootstrapParams, ServerCertificate};
pub use request::{BootstrapRequest, EnvoyVersion, KumaDpVersion, MetricsResources, ProxyType, SpireResources, Version, WorkloadResources};
pub use respond::{Response, respond, sidecar_configuration, to_yaml};

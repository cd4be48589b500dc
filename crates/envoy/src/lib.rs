//! World + proxy → Envoy resources, and their JSON form.
//!
//! Pure: reads no clock, environment, randomness or files. The same world and proxy give byte-identical resources in every process, so a
//! resource's [`Generated::version`] is the same on every node (reference: Kuma 2.14.3 data-plane contract, §5).

mod admin;
pub mod bootstrap;
mod context;
mod contrib;
mod destination;
mod direct_access;
mod dynamic_config;
pub mod encode;
mod endpoints;
mod generate;
mod hcm;
mod inbound;
pub mod json;
mod naming;
mod outbound;
mod plugins;
mod proto;
mod resources;
mod tls;
mod transparent;
mod view;

pub use context::{GenerateError, Generated, ProxyContext, ProxyMetadata, ProxySecrets, Settings, TransparentProxyMetadata, type_urls};
pub use endpoints::Shared;
pub use generate::{generate, generate_base, generate_shared};
pub use view::{config_view, json_patch_diff};

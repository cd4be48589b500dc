//! World + proxy → Envoy resources, and their JSON form.
//!
//! Pure: reads no clock, environment, randomness or files. The same world and proxy give byte-identical resources in every process, so a
//! resource's [`Generated::version`] is the same on every node (reference: Kuma 2.14.3 data-plane contract, §5).

pub mod bootstrap;
mod context;
pub mod encode;
pub mod json;

pub use context::{
    GenerateError, Generated, ProxyContext, ProxyMetadata, ProxySecrets, Settings, TransparentProxyMetadata, generate, type_urls,
};

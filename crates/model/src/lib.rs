//! Resources of a service mesh: the registry of kinds, their metadata, their REST form, and their validation.
//!
//! Pure: no clock, no I/O, no randomness. Facts come from the Kuma 2.14.3 contracts.

pub mod access;
pub mod dataplane;
pub mod decode;
pub mod duration;
pub mod flat;
pub mod go;
pub mod go_json;
pub mod hostname;
pub mod ident;
pub mod kind;
pub mod kri;
pub mod labels;
pub mod mesh;
pub mod mesh_service;
pub mod policy;
pub mod resource;
pub mod rest;
pub mod schema;
pub mod time;
pub mod violation;
pub mod yaml;

pub use dataplane::Dataplane;
pub use decode::{DecodeError, Decoded};
pub use duration::GoDuration;
pub use kind::{Kind, Scope};
pub use kri::Kri;
pub use labels::Mode;
pub use mesh::Mesh;
pub use mesh_service::MeshService;
pub use resource::{Json, Key, Labels, Resource, View};
pub use time::Timestamp;
pub use violation::{Violation, Violations};

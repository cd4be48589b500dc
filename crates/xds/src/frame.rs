//! Responses on the wire. The one place where resources are put into messages; a codec that writes cached fragments would replace this file.

use crate::machine::Outgoing;
use envoy_types::pb::{
    envoy::{
        config::core::v3::ControlPlane,
        service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse, Resource},
    },
    google::protobuf::Any,
};

/// A version on the wire: 16 hexadecimal digits.
pub(crate) fn version_text(version: u64) -> String {
    format!("{version:016x}")
}

pub(crate) fn delta(out: &Outgoing, identifier: &str) -> DeltaDiscoveryResponse {
    let resources = out.resources.iter().map(|e| Resource {
        name: e.encoded.name.to_string(),
        version: version_text(e.version),
        resource: Some(Any { type_url: e.encoded.type_url.to_owned(), value: e.encoded.body.to_vec() }),
        ..Default::default()
    });
    DeltaDiscoveryResponse {
        system_version_info: version_text(out.version),
        resources: resources.collect(),
        type_url: out.type_url.to_string(),
        removed_resources: out.removed.iter().map(|n| n.to_string()).collect(),
        nonce: out.nonce.clone(),
        control_plane: control_plane(identifier),
        ..Default::default()
    }
}

pub(crate) fn full(out: &Outgoing, identifier: &str) -> DiscoveryResponse {
    let resources = out.resources.iter().map(|e| Any { type_url: e.encoded.type_url.to_owned(), value: e.encoded.body.to_vec() });
    DiscoveryResponse {
        version_info: version_text(out.version),
        resources: resources.collect(),
        type_url: out.type_url.to_string(),
        nonce: out.nonce.clone(),
        control_plane: control_plane(identifier),
        ..Default::default()
    }
}

fn control_plane(identifier: &str) -> Option<ControlPlane> {
    Some(ControlPlane { identifier: identifier.to_owned() })
}

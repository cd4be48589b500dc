//! What the sidecar fetches from Envoy over a unix socket (data-plane contract §5.7, "dynamic config listener").

use crate::{
    destination::Frame,
    hcm::{http, loopback, manager},
    proto::{exact, pipe, u32v},
    resources::{Chain, ListenerItem, Part, ResourceSet},
};
use envoy_types::pb::envoy::config::{
    core::v3::{DataSource, HeaderValue, HeaderValueOption, data_source},
    listener::v3::Listener,
    route::v3::{
        DirectResponseAction, HeaderMatcher, Route, RouteMatch, header_matcher::HeaderMatchSpecifier, route, route_match::PathSpecifier,
    },
};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Socket in the proxy's work directory.
const SOCKET: &str = "kuma-mesh-metric-config.sock";

/// Bodies by path; the listener exists when there is any.
#[derive(Debug, Default)]
pub(crate) struct DynamicConfig {
    bodies: BTreeMap<&'static str, String>,
}

impl DynamicConfig {
    /// Serves a body under a path.
    pub(crate) fn add(&mut self, path: &'static str, body: String) {
        self.bodies.insert(path, body);
    }

    /// Adds the listener.
    pub(crate) fn generate(&self, frame: &Frame<'_>, set: &mut ResourceSet) {
        let Some(longest) = self.bodies.values().map(String::len).max() else { return };
        let name = frame.naming.dynamic_config();
        let routes: Vec<Route> = self.bodies.iter().flat_map(|(path, body)| routes(frame, &name, path, body)).collect();
        let mut hcm = manager(&name, &loopback(frame.context), &name, &name, routes);
        // Envoy's default is 4096.
        hcm.routes.max_direct_response_body_size_bytes = u32v(u32::try_from(longest).unwrap_or(u32::MAX));
        let workdir = frame.context.metadata.workdir.trim_end_matches('/');
        set.add_listener(ListenerItem {
            listener: Listener { name, address: pipe(&format!("{workdir}/{SOCKET}")), ..Default::default() },
            chains: vec![Chain { filters: vec![http(hcm)], ..Default::default() }],
            part: Part::System,
        });
    }
}

fn routes(frame: &Frame<'_>, listener: &str, path: &str, body: &str) -> [Route; 2] {
    let etag: String = Sha256::digest(body.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    let at = |headers: Vec<HeaderMatcher>| {
        Some(RouteMatch { path_specifier: Some(PathSpecifier::Path(path.to_owned())), headers, ..Default::default() })
    };
    let answer = |status: u32, body: Option<&str>| {
        let body = body.map(|b| DataSource { specifier: Some(data_source::Specifier::InlineString(b.to_owned())), ..Default::default() });
        Some(route::Action::DirectResponse(DirectResponseAction { status, body, ..Default::default() }))
    };
    let unified = format!("{listener}_{}", path.trim_start_matches('/'));
    let (unchanged, changed) = match frame.naming.unified {
        true => (format!("{unified}_not_modified"), unified),
        false => (String::new(), format!("{listener}:{path}")),
    };
    let known = HeaderMatcher {
        name: "If-None-Match".to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(exact(&etag))),
        ..Default::default()
    };
    let header = HeaderValue { key: "Etag".to_owned(), value: etag, ..Default::default() };
    [
        Route { name: unchanged, r#match: at(vec![known]), action: answer(304, None), ..Default::default() },
        Route {
            name: changed,
            r#match: at(Vec::new()),
            action: answer(200, Some(body)),
            response_headers_to_add: vec![HeaderValueOption { header: Some(header), ..Default::default() }],
            ..Default::default()
        },
    ]
}

//! Rules of MeshHTTPRoute beyond its schema.

use super::{Filter, FilterType, HeaderModifier, Match, MeshHTTPRoute, PathMatchType, PathRewrite, PathRewriteType, Rule};
use crate::{
    policy::{
        ValidateContext,
        common::{self, HeaderMatchType},
        target_ref::{self, Allowed, BackendRef, TargetRefKind as K, TopLevel, UNRESOLVED_BACKEND},
    },
    violation::{Path, Violations},
};
use serde_json::Value;
use std::{collections::BTreeSet, net::IpAddr};

const TOP: TopLevel<'_> = TopLevel {
    always: &[K::Mesh, K::MeshSubset, K::MeshService, K::MeshServiceSubset, K::Dataplane],
    system: &[K::MeshGateway],
    gateway_tags: true,
};

/// The validator of the kind.
pub(super) fn validate(ctx: &ValidateContext<'_>, spec: &Value, out: &mut Violations) {
    let Some(spec) = common::read::<MeshHTTPRoute>(spec, out) else { return };
    target_ref::validate_top(ctx, spec.target_ref.as_ref(), &TOP, false, out);
    let gateway = spec.target_ref.as_ref().is_some_and(|r| r.kind == K::MeshGateway);
    let kinds: &[K] = if gateway { &[K::Mesh] } else { &[K::MeshService, K::MeshExternalService, K::MeshMultiZoneService] };
    for (i, to) in spec.to().iter().enumerate() {
        let at = Path::of("spec.to").index(i);
        target_ref::validate(&to.target_ref, &at.field("targetRef"), &Allowed { kinds, ..Allowed::default() }, out);
        if !gateway && to.hostnames.as_ref().is_some_and(|h| !h.is_empty()) {
            out.add(at.field("hostnames"), "must not be defined");
        }
        for (j, rule) in to.rules.iter().enumerate() {
            validate_rule(rule, gateway, &at.field("rules").index(j), out);
        }
    }
}

fn validate_rule(rule: &Rule, gateway: bool, at: &Path, out: &mut Violations) {
    for (i, m) in rule.matches.iter().enumerate() {
        validate_match(m, &at.field("matches").index(i), out);
    }
    let at = at.field("default");
    let prefixes = rule.matches.iter().all(|m| m.path.as_ref().is_some_and(|p| p.match_type == PathMatchType::PathPrefix));
    let filters = rule.default.filters.as_deref().unwrap_or_default();
    for (i, filter) in filters.iter().enumerate() {
        validate_filter(filter, gateway, prefixes, &at.field("filters").index(i), out);
    }
    let at = at.field("backendRefs");
    let backends = rule.default.backend_refs.as_deref().unwrap_or_default();
    let kinds = &[K::MeshService, K::MeshServiceSubset, K::MeshExternalService, K::MeshMultiZoneService];
    for (i, backend) in backends.iter().enumerate() {
        validate_backend(backend, kinds, &at.index(i), out);
    }
    if gateway && backends.is_empty() && !filters.iter().any(|f| f.filter_type == FilterType::RequestRedirect) {
        out.add(&at, "must not be empty");
    }
}

fn validate_match(m: &Match, at: &Path, out: &mut Violations) {
    if let Some(path) = &m.path {
        let at = at.field("path").field("value");
        match path.match_type {
            PathMatchType::RegularExpression => {}
            _ if !path.value.starts_with('/') => out.add(&at, "must be an absolute path"),
            PathMatchType::PathPrefix if path.value != "/" && path.value.ends_with('/') => {
                out.add(&at, "does not need a trailing slash because only a `/`-separated prefix or an entire path is matched");
            }
            _ => {}
        }
    }
    for (i, header) in m.headers.iter().flatten().enumerate() {
        let valueless = matches!(header.match_type(), HeaderMatchType::Present | HeaderMatchType::Absent);
        if valueless && !header.value.is_empty() {
            out.add(at.field("headers").index(i).field("value"), "must not be defined");
        }
    }
    let mut names = BTreeSet::new();
    for (i, param) in m.query_params.iter().flatten().enumerate() {
        if !names.insert(&param.name) {
            out.add(at.field("queryParams").index(i).field("name"), format!("multiple entries for name {}", param.name));
        }
    }
}

fn validate_filter(filter: &Filter, gateway: bool, prefixes: bool, at: &Path, out: &mut Violations) {
    match filter.filter_type {
        FilterType::RequestHeaderModifier => {
            validate_modifier(filter.request_header_modifier.as_ref(), &at.field("requestHeaderModifier"), out);
        }
        FilterType::ResponseHeaderModifier => {
            validate_modifier(filter.response_header_modifier.as_ref(), &at.field("responseHeaderModifier"), out);
        }
        FilterType::RequestRedirect => {
            let at = at.field("requestRedirect");
            let Some(redirect) = &filter.request_redirect else { return out.add(&at, "must be defined") };
            validate_hostname(redirect.hostname.as_deref(), &at.field("hostname"), out);
            validate_path_rewrite(redirect.path.as_ref(), prefixes, &at.field("path"), out);
        }
        FilterType::UrlRewrite => {
            let at = at.field("urlRewrite");
            let Some(rewrite) = &filter.url_rewrite else { return out.add(&at, "must be defined") };
            validate_hostname(rewrite.hostname.as_deref(), &at.field("hostname"), out);
            validate_path_rewrite(rewrite.path.as_ref(), prefixes, &at.field("path"), out);
            if rewrite.host_to_backend_hostname == Some(true) {
                let at = at.field("hostToBackendHostname");
                if !gateway {
                    out.add(&at, "can only be set with MeshGateway");
                }
                if rewrite.hostname.is_some() {
                    out.add(&at, "cannot be set together with hostname");
                }
            }
        }
        FilterType::RequestMirror => {
            let at = at.field("requestMirror");
            let Some(mirror) = &filter.request_mirror else { return out.add(&at, "must be defined") };
            common::percentage(mirror.percentage.as_ref(), &at.field("percentage"), out);
            validate_backend(&mirror.backend_ref, &[K::MeshService, K::MeshServiceSubset], &at.field("backendRef"), out);
        }
    }
}

fn validate_modifier(modifier: Option<&HeaderModifier>, at: &Path, out: &mut Violations) {
    let Some(m) = modifier else { return out.add(at, "must be defined") };
    let (set, add) = (m.set.as_deref().unwrap_or_default(), m.add.as_deref().unwrap_or_default());
    let remove = m.remove.as_deref().unwrap_or_default();
    common::at_least_one(&[("set", !set.is_empty()), ("add", !add.is_empty()), ("remove", !remove.is_empty())], at, out);
    let mut names = BTreeSet::new();
    let set = set.iter().enumerate().map(|(i, h)| ("set", i, &h.name));
    let add = add.iter().enumerate().map(|(i, h)| ("add", i, &h.name));
    let remove = remove.iter().enumerate().map(|(i, h)| ("remove", i, h));
    for (list, i, name) in set.chain(add).chain(remove) {
        if !names.insert(name) {
            out.add(at.field(list).index(i).field("name"), "duplicate header name");
        }
    }
}

fn validate_hostname(hostname: Option<&str>, at: &Path, out: &mut Violations) {
    let Some(hostname) = hostname else { return };
    if hostname.parse::<IpAddr>().is_ok() {
        out.add(at, "cannot be an IP address");
    } else if let Err(error) = common::dns1123_subdomain(hostname) {
        out.add(at, error);
    }
}

fn validate_path_rewrite(rewrite: Option<&PathRewrite>, prefixes: bool, at: &Path, out: &mut Violations) {
    let Some(r) = rewrite else { return };
    match r.rewrite_type {
        PathRewriteType::ReplaceFullPath => {
            if r.replace_full_path.is_none() {
                out.add(at.field("replaceFullPath"), "must be defined");
            }
        }
        PathRewriteType::ReplacePrefixMatch => {
            let at = at.field("replacePrefixMatch");
            if r.replace_prefix_match.is_none() {
                out.add(&at, "must be defined");
            }
            if !prefixes {
                out.add(&at, "can only appear if all matches match a path prefix");
            }
        }
    }
}

fn validate_backend(backend: &BackendRef, kinds: &[K], at: &Path, out: &mut Violations) {
    let allowed = Allowed { kinds, gateway_tags: false, inbound: false, invalid_name: Some(UNRESOLVED_BACKEND) };
    target_ref::validate(&backend.target_ref, at, &allowed, out);
    if backend.target_ref.kind == K::MeshMultiZoneService && backend.port.is_none() {
        out.add(at.field("port"), "must be defined with kind MeshMultiZoneService");
    }
}

//! MeshHTTPRoute: makes the HTTP outbounds (policy contract §4.5).

use super::conf::{Conf, UNSET};
use crate::{
    context::GenerateError,
    destination::{Destination, Frame, Target},
    hcm::{http, known_internal, manager},
    inbound::grpc_stats,
    outbound::{Outb, add_destination},
    proto::{boolv, exact, prefix, seconds, socket, tags_metadata, u32v, unified_name_metadata},
    resources::{Chain, ListenerItem, Part, Protocol, ResourceSet},
};
use envoy_types::pb::envoy::{
    config::{
        core::v3::{HeaderValue, HeaderValueOption, RuntimeFractionalPercent, TrafficDirection, header_value_option::HeaderAppendAction},
        listener::v3::Listener,
        route::v3::{
            HeaderMatcher, QueryParameterMatcher, RedirectAction, Route, RouteAction, RouteMatch, WeightedCluster,
            header_matcher::HeaderMatchSpecifier,
            query_parameter_matcher::QueryParameterMatchSpecifier,
            redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
            route,
            route_action::{ClusterSpecifier, HostRewriteSpecifier, RequestMirrorPolicy},
            route_match::PathSpecifier,
            weighted_cluster::ClusterWeight,
        },
    },
    r#type::{
        matcher::v3::{RegexMatchAndSubstitute, RegexMatcher, StringMatcher, string_matcher::MatchPattern},
        v3::{FractionalPercent, fractional_percent::DenominatorType},
    },
};
use ikada_model::{Kri, Resource, labels::TAG_SERVICE};
use ikada_policy::{BackendRef, TypedMatch, http_route::matches_hash};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Hash of the matches of the route that takes what no rule takes.
const CATCH_ALL: &str = "9Zuf5Tg79OuZcQITwBbQykxAk2u4fRKrwYn3//AL4Yo=";

/// `kuma.io/service` of a legacy destination.
pub(crate) fn service_of(destination: &Destination) -> Option<&str> {
    match &destination.target {
        Target::Legacy { tags } => tags.get(TAG_SERVICE).map(String::as_str),
        Target::MeshService { .. } => None,
    }
}

/// One entry of an outbound's route table.
struct Entry<'a> {
    name: String,
    matcher: Conf<'a>,
    conf: Conf<'a>,
    origin: Option<&'a Resource>,
}

/// What the rules say about an outbound: the merged conf and who contributed which rule.
struct RouteConf<'a> {
    conf: Conf<'a>,
    /// By hash of a rule's matches.
    origins: BTreeMap<&'a str, &'a Resource>,
    /// Of rules that are not there.
    last: Option<&'a Resource>,
}

fn conf_of<'a>(rules: &'a TypedMatch, destination: &Destination) -> Option<RouteConf<'a>> {
    // The outbound's own KRI: a rule for a named port meets only outbounds that are known by that name.
    if let Some(rule) = destination.kri.as_ref().and_then(|kri| rules.to.compute(kri)) {
        return Some(RouteConf {
            conf: Conf(rule.first()),
            origins: rule.origin_by_matches.iter().map(|(hash, o)| (hash.as_str(), &*o.policy)).collect(),
            last: rule.origins.last().map(|o| &*o.policy),
        });
    }
    let rule = service_of(destination).and_then(|s| rules.to.for_service(s))?;
    // A conf may be one per hostname; outbounds have no hostnames, so the first counts.
    Some(RouteConf {
        conf: Conf(rule.conf.get(0).unwrap_or(&rule.conf)),
        origins: rule.origin_by_matches.iter().map(|(hash, policy)| (hash.as_str(), &**policy)).collect(),
        last: rule.origins.last().map(|policy| &**policy),
    })
}

/// Some MeshHTTPRoute speaks about the destination.
pub(crate) fn speaks_about(rules: &TypedMatch, destination: &Destination) -> bool {
    conf_of(rules, destination).is_some()
}

/// Adds listener, clusters and endpoints of an outbound, if it is HTTP or some rule makes it so.
pub(crate) fn add(frame: &Frame<'_>, set: &mut ResourceSet, rules: &TypedMatch, outbound: &Outb) -> Result<(), GenerateError> {
    let destination = &outbound.destination;
    let conf = conf_of(rules, destination);
    let has_rules = conf.as_ref().is_some_and(|c| c.conf.at("rules").items().next().is_some());
    if !has_rules && !destination.protocol.is_http() {
        return Ok(());
    }
    let entries = table(conf.as_ref(), destination);
    let mut routes = Vec::new();
    let mut needed: Vec<Arc<Destination>> = Vec::new();
    for entry in &entries {
        routes.extend(entry_routes(frame, entry, destination, &mut needed)?);
    }
    if routes.is_empty() {
        return Ok(());
    }
    for d in &needed {
        add_destination(frame, set, d);
    }
    let virtual_host = destination.cluster.clone();
    let route_config = match &destination.kri {
        Some(kri) => kri.to_string(),
        None => format!("outbound:{}", service_of(destination).unwrap_or_default()),
    };
    let mut hcm = manager(&virtual_host, &known_internal(frame.context), &route_config, &virtual_host, routes);
    hcm.manager.normalize_path = boolv(true);
    if destination.protocol == Protocol::Grpc {
        hcm.manager.http_filters.insert(0, grpc_stats());
    }
    let chain = Chain { filters: vec![http(hcm)], ..Default::default() };
    set.add_listener(listener(frame, outbound, chain));
    Ok(())
}

/// The listener of an outbound around its one chain.
pub(crate) fn listener(frame: &Frame<'_>, outbound: &Outb, chain: Chain) -> ListenerItem {
    let kri = outbound.destination.kri.as_ref();
    let metadata = match kri {
        Some(kri) => unified_name_metadata(&kri.to_string()),
        None => {
            let mut tags = outbound.tags.clone();
            tags.remove("kuma.io/mesh");
            tags_metadata(&tags)
        }
    };
    ListenerItem {
        listener: Listener {
            name: frame.naming.outbound_listener(&outbound.address, outbound.port, kri),
            address: socket(&outbound.address, outbound.port),
            metadata: Some(metadata),
            traffic_direction: TrafficDirection::Outbound as i32,
            bind_to_port: if outbound.bind { None } else { boolv(false) },
            ..Default::default()
        },
        chains: vec![chain],
        part: Part::Outbound(outbound.destination.clone()),
    }
}

fn table<'a>(conf: Option<&RouteConf<'a>>, destination: &Destination) -> Vec<Entry<'a>> {
    let mut entries = Vec::new();
    if let Some(c) = conf {
        for rule in c.conf.at("rules").items() {
            let hash = matches_hash(rule.at("matches").0);
            let origin = c.origins.get(hash.as_str()).copied().or(c.last);
            let name = match (&destination.kri, origin) {
                (Some(_), Some(policy)) => Kri::of(policy).to_string(),
                _ => hash,
            };
            for matcher in rule.at("matches").items() {
                entries.push(Entry { name: name.clone(), matcher, conf: rule.at("default"), origin });
            }
        }
    }
    let count = |m: Conf<'_>, field: &str| m.at(field).items().count();
    entries.sort_by_key(|e| {
        let path = e.matcher.at("path");
        let value = path.at("value").text().unwrap_or_default();
        let (class, longer) = match path.at("type").text() {
            Some("Exact") => (0, Reverse(0)),
            Some("PathPrefix") => (1, Reverse(value.len())),
            Some(_) => (2, Reverse(value.len())),
            None => (3, Reverse(0)),
        };
        (class, longer, !e.matcher.at("method").is_set(), Reverse(count(e.matcher, "headers")), Reverse(count(e.matcher, "queryParams")))
    });
    let takes_all = |e: &Entry<'_>| {
        let path = e.matcher.at("path");
        path.at("type").text() == Some("PathPrefix")
            && path.at("value").text() == Some("/")
            && !e.matcher.at("method").is_set()
            && count(e.matcher, "headers") == 0
            && count(e.matcher, "queryParams") == 0
    };
    if !entries.iter().any(takes_all) {
        entries.push(Entry { name: CATCH_ALL.to_owned(), matcher: UNSET, conf: UNSET, origin: None });
    }
    entries
}

/// Which of the two routes that a prefix becomes.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    /// `path: P` (also exact and regular expressions).
    Whole,
    /// `prefix: P/`.
    Prefix,
}

fn entry_routes(
    frame: &Frame<'_>,
    entry: &Entry<'_>,
    own: &Arc<Destination>,
    needed: &mut Vec<Arc<Destination>>,
) -> Result<Vec<Route>, GenerateError> {
    let path = entry.matcher.at("path");
    let value = path.at("value").text().unwrap_or("/");
    let forms = match path.at("type").text() {
        Some("Exact") => vec![(Form::Whole, PathSpecifier::Path(value.to_owned()))],
        Some("RegularExpression") => vec![(Form::Whole, PathSpecifier::SafeRegex(regex(value)))],
        _ if value == "/" => vec![(Form::Prefix, PathSpecifier::Prefix("/".to_owned()))],
        // Envoy's path_separated_prefix breaks when it is rewritten to "/".
        _ => vec![(Form::Whole, PathSpecifier::Path(value.to_owned())), (Form::Prefix, PathSpecifier::Prefix(format!("{value}/")))],
    };
    let Some(action) = action(frame, entry, own, needed)? else { return Ok(Vec::new()) };
    let mut out = Vec::with_capacity(forms.len());
    for (form, specifier) in forms {
        let mut r = Route {
            name: entry.name.clone(),
            r#match: Some(RouteMatch {
                path_specifier: Some(specifier),
                headers: headers(entry.matcher),
                query_parameters: query_parameters(entry.matcher),
                ..Default::default()
            }),
            action: Some(route::Action::Route(action.clone())),
            ..Default::default()
        };
        for filter in entry.conf.at("filters").items() {
            apply_filter(frame, entry, filter, form, &mut r, needed)?;
        }
        out.push(r);
    }
    Ok(out)
}

/// Where the traffic goes; `None` when every backend is dropped and no redirect answers instead.
fn action(
    frame: &Frame<'_>,
    entry: &Entry<'_>,
    own: &Arc<Destination>,
    needed: &mut Vec<Arc<Destination>>,
) -> Result<Option<RouteAction>, GenerateError> {
    let refs = entry.conf.at("backendRefs");
    let mut splits: Vec<(Arc<Destination>, u32)> = Vec::new();
    if refs.items().next().is_none() && own.protocol.is_http() {
        splits.push((own.clone(), 100));
    }
    for r in refs.items() {
        let Some(origin) = entry.origin else { continue };
        let Some((destination, weight)) = backend(frame, origin, r)? else { continue };
        if weight > 0 && destination.protocol.is_http() {
            splits.push((Arc::new(destination), weight));
        }
    }
    let cluster_specifier = match splits.as_slice() {
        [] => {
            let redirects = entry.conf.at("filters").items().any(|f| f.at("type").text() == Some("RequestRedirect"));
            return Ok(redirects.then(RouteAction::default));
        }
        [(one, _)] => ClusterSpecifier::Cluster(one.cluster.clone()),
        many => ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: many.iter().map(|(d, w)| ClusterWeight { name: d.cluster.clone(), weight: u32v(*w), ..Default::default() }).collect(),
            ..Default::default()
        }),
    };
    needed.extend(splits.into_iter().map(|(d, _)| d));
    Ok(Some(RouteAction { timeout: seconds(0), cluster_specifier: Some(cluster_specifier), ..Default::default() }))
}

/// A backend reference of a policy's conf: destination and weight.
pub(crate) fn backend(frame: &Frame<'_>, origin: &Resource, r: Conf<'_>) -> Result<Option<(Destination, u32)>, GenerateError> {
    let Ok(parsed) = serde_json::from_value::<BackendRef>(r.0.clone()) else { return Ok(None) };
    let weight = parsed.weight.unwrap_or(1);
    Ok(Destination::of_backend_ref(frame, origin, &parsed)?.map(|d| (d, weight)))
}

fn regex(text: &str) -> RegexMatcher {
    RegexMatcher { regex: text.to_owned(), ..Default::default() }
}

fn matching(text: &str) -> StringMatcher {
    StringMatcher { match_pattern: Some(MatchPattern::SafeRegex(regex(text))), ..Default::default() }
}

/// A header condition as policies write it.
pub(crate) fn header(h: Conf<'_>) -> HeaderMatcher {
    let value = h.at("value").text().unwrap_or_default();
    let specifier = match h.at("type").text() {
        Some("Present") => HeaderMatchSpecifier::PresentMatch(true),
        Some("Absent") => HeaderMatchSpecifier::PresentMatch(false),
        Some("Prefix") if value.is_empty() => HeaderMatchSpecifier::PresentMatch(true),
        Some("Prefix") => HeaderMatchSpecifier::StringMatch(prefix(value)),
        Some("RegularExpression") => HeaderMatchSpecifier::StringMatch(matching(value)),
        _ => HeaderMatchSpecifier::StringMatch(exact(value)),
    };
    HeaderMatcher {
        name: h.at("name").text().unwrap_or_default().to_owned(),
        header_match_specifier: Some(specifier),
        ..Default::default()
    }
}

/// Only the first condition on a header counts.
fn headers(m: Conf<'_>) -> Vec<HeaderMatcher> {
    let mut out = Vec::new();
    if let Some(method) = m.at("method").text() {
        out.push(HeaderMatcher {
            name: ":method".to_owned(),
            header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(exact(method))),
            ..Default::default()
        });
    }
    let mut seen = BTreeSet::new();
    out.extend(m.at("headers").items().map(header).filter(|h| seen.insert(h.name.clone())));
    out
}

/// Only the first condition on a parameter counts.
fn query_parameters(m: Conf<'_>) -> Vec<QueryParameterMatcher> {
    let mut seen = BTreeSet::new();
    m.at("queryParams")
        .items()
        .filter_map(|q| {
            let name = q.at("name").text().unwrap_or_default();
            let value = q.at("value").text().unwrap_or_default();
            let m = if q.at("type").text() == Some("RegularExpression") { matching(value) } else { exact(value) };
            seen.insert(name).then(|| QueryParameterMatcher {
                name: name.to_owned(),
                query_parameter_match_specifier: Some(QueryParameterMatchSpecifier::StringMatch(m)),
            })
        })
        .collect()
}

fn header_options(list: Conf<'_>, action: HeaderAppendAction) -> impl Iterator<Item = HeaderValueOption> {
    list.items().map(move |h| {
        let text = |f: &str| h.at(f).text().unwrap_or_default().to_owned();
        HeaderValueOption {
            header: Some(HeaderValue { key: text("name"), value: text("value"), ..Default::default() }),
            append_action: action as i32,
            ..Default::default()
        }
    })
}

fn modify_headers(conf: Conf<'_>, add: &mut Vec<HeaderValueOption>, remove: &mut Vec<String>) {
    add.extend(header_options(conf.at("set"), HeaderAppendAction::OverwriteIfExistsOrAdd));
    add.extend(header_options(conf.at("add"), HeaderAppendAction::AppendIfExistsOrAdd));
    remove.extend(conf.at("remove").items().filter_map(|h| h.text().map(str::to_owned)));
}

/// How a path changes.
enum Rewrite {
    None,
    /// The prefix, by this.
    Prefix(String),
    /// All of it, by this.
    Whole(RegexMatchAndSubstitute),
}

fn rewrite(path: Conf<'_>, form: Form) -> Rewrite {
    let whole =
        |substitution: &str| Rewrite::Whole(RegexMatchAndSubstitute { pattern: Some(regex(".*")), substitution: substitution.to_owned() });
    match path.at("type").text() {
        Some("ReplaceFullPath") => whole(path.at("replaceFullPath").text().unwrap_or_default()),
        Some("ReplacePrefixMatch") => {
            let by = path.at("replacePrefixMatch").text().unwrap_or_default();
            if form == Form::Prefix { Rewrite::Prefix(by.to_owned()) } else { whole(by) }
        }
        _ => Rewrite::None,
    }
}

fn apply_filter(
    frame: &Frame<'_>,
    entry: &Entry<'_>,
    filter: Conf<'_>,
    form: Form,
    r: &mut Route,
    needed: &mut Vec<Arc<Destination>>,
) -> Result<(), GenerateError> {
    match filter.at("type").text() {
        Some("RequestHeaderModifier") => {
            modify_headers(filter.at("requestHeaderModifier"), &mut r.request_headers_to_add, &mut r.request_headers_to_remove);
        }
        Some("ResponseHeaderModifier") => {
            modify_headers(filter.at("responseHeaderModifier"), &mut r.response_headers_to_add, &mut r.response_headers_to_remove);
        }
        Some("RequestRedirect") => r.action = Some(route::Action::Redirect(redirect(filter.at("requestRedirect"), form))),
        Some("URLRewrite") => {
            if let Some(route::Action::Route(action)) = &mut r.action {
                let conf = filter.at("urlRewrite");
                if let Some(host) = conf.at("hostname").text() {
                    action.host_rewrite_specifier = Some(HostRewriteSpecifier::HostRewriteLiteral(host.to_owned()));
                }
                match rewrite(conf.at("path"), form) {
                    Rewrite::None => {}
                    Rewrite::Prefix(p) => action.prefix_rewrite = p,
                    Rewrite::Whole(w) => action.regex_rewrite = Some(w),
                }
            }
        }
        Some("RequestMirror") => {
            let conf = filter.at("requestMirror");
            let Some(origin) = entry.origin else { return Ok(()) };
            if let (Some(route::Action::Route(action)), Some((d, _))) = (&mut r.action, backend(frame, origin, conf.at("backendRef"))?) {
                action.request_mirror_policies.push(RequestMirrorPolicy {
                    cluster: d.cluster.clone(),
                    runtime_fraction: conf
                        .at("percentage")
                        .decimal()
                        .map(|p| RuntimeFractionalPercent { default_value: Some(percentage(p)), ..Default::default() }),
                    ..Default::default()
                });
                needed.push(Arc::new(d));
            }
        }
        _ => {}
    }
    Ok(())
}

/// A percentage with the smallest denominator that holds it.
fn percentage(p: f64) -> FractionalPercent {
    let p = p.clamp(0.0, 100.0);
    let fits = |factor: f64| (p * factor).fract() == 0.0;
    let (factor, denominator) = if fits(1.0) {
        (1.0, DenominatorType::Hundred)
    } else if fits(100.0) {
        (100.0, DenominatorType::TenThousand)
    } else {
        (10_000.0, DenominatorType::Million)
    };
    FractionalPercent { numerator: (p * factor).round() as u32, denominator: denominator as i32 }
}

fn redirect(conf: Conf<'_>, form: Form) -> RedirectAction {
    let code = match conf.at("statusCode").number() {
        Some(301) => RedirectResponseCode::MovedPermanently,
        Some(303) => RedirectResponseCode::SeeOther,
        Some(307) => RedirectResponseCode::TemporaryRedirect,
        Some(308) => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::Found,
    };
    RedirectAction {
        host_redirect: conf.at("hostname").text().unwrap_or_default().to_owned(),
        port_redirect: conf.at("port").number().unwrap_or(0),
        response_code: code as i32,
        scheme_rewrite_specifier: conf.at("scheme").text().map(|s| SchemeRewriteSpecifier::SchemeRedirect(s.to_owned())),
        path_rewrite_specifier: match rewrite(conf.at("path"), form) {
            Rewrite::None => None,
            Rewrite::Prefix(p) => Some(PathRewriteSpecifier::PrefixRewrite(p)),
            Rewrite::Whole(w) => Some(PathRewriteSpecifier::RegexRewrite(w)),
        },
        ..Default::default()
    }
}

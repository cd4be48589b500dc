//! MeshHTTPRoute (reference: Kuma 2.14.3 policy contract, §4.5).

mod validate;

use super::{
    KindSpec, ValidateContext,
    common::{self, HeaderMatch, IntOrString},
    target_ref::{self, BackendRef, TargetRef},
};
use crate::{
    kind::Kind,
    resource::View,
    schema::{Int, Schema, boolean, field, int, int_or_text, list, object, required, text},
    violation::Violations,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::LazyLock;

/// A MeshHTTPRoute's spec.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MeshHTTPRoute {
    /// Proxies; absent = all of the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// Routes per destination.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<To>>,
}

/// `to[]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct To {
    /// Destination.
    pub target_ref: TargetRef,
    /// Hosts, of built-in gateways only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostnames: Option<Vec<String>>,
    /// Rules.
    #[serde(default)]
    pub rules: Vec<Rule>,
}

/// A `to` item beside its targetRef: the conf that matching merges and hands on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Conf {
    /// Hosts, of built-in gateways only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostnames: Option<Vec<String>>,
    /// Rules, in order of precedence after merging.
    pub rules: Vec<Rule>,
}

/// `to[].rules[]`: where requests go that match.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rule {
    /// Alternatives, at least one.
    pub matches: Vec<Match>,
    /// Conf.
    pub default: RuleConf,
}

/// `to[].rules[].default`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RuleConf {
    /// Changes of requests and responses, in this order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filters: Option<Vec<Filter>>,
    /// Destinations; absent = that of the outbound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_refs: Option<Vec<BackendRef>>,
}

/// A condition on a request; all parts must match. Field order is that of the JSON that hashes are made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Match {
    /// Path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// Method, upper case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Query parameters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query_params: Option<Vec<QueryParamMatch>>,
    /// Headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<Vec<HeaderMatch>>,
}

/// How a path is compared, in the order of precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum PathMatchType {
    Exact,
    PathPrefix,
    RegularExpression,
}

/// A condition on the path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PathMatch {
    /// Path, prefix of whole segments, or regular expression.
    pub value: String,
    /// How.
    #[serde(rename = "type")]
    pub match_type: PathMatchType,
}

/// How a query parameter is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum QueryParamMatchType {
    Exact,
    RegularExpression,
}

/// A condition on a query parameter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct QueryParamMatch {
    /// How.
    #[serde(rename = "type")]
    pub match_type: QueryParamMatchType,
    /// Parameter.
    pub name: String,
    /// Value or regular expression.
    pub value: String,
}

/// Kinds of filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum FilterType {
    RequestHeaderModifier,
    ResponseHeaderModifier,
    RequestRedirect,
    #[serde(rename = "URLRewrite")]
    UrlRewrite,
    RequestMirror,
}

/// A filter; the object of its type is set in every valid spec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Filter {
    /// Which of the objects below counts.
    #[serde(rename = "type")]
    pub filter_type: FilterType,
    /// Changes request headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_header_modifier: Option<HeaderModifier>,
    /// Changes response headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_header_modifier: Option<HeaderModifier>,
    /// Answers with a redirect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_redirect: Option<RequestRedirect>,
    /// Changes host or path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_rewrite: Option<UrlRewrite>,
    /// Copies requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_mirror: Option<RequestMirror>,
}

/// A header with its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderValue {
    /// Header, lower case.
    pub name: String,
    /// Value.
    pub value: String,
}

/// Changes of headers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HeaderModifier {
    /// Replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set: Option<Vec<HeaderValue>>,
    /// Added.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add: Option<Vec<HeaderValue>>,
    /// Removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remove: Option<Vec<String>>,
}

/// How a path is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum PathRewriteType {
    ReplaceFullPath,
    ReplacePrefixMatch,
}

/// Rewrite of a path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathRewrite {
    /// Which of the values below counts.
    #[serde(rename = "type")]
    pub rewrite_type: PathRewriteType,
    /// The new path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace_full_path: Option<String>,
    /// What takes the place of the matched prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace_prefix_match: Option<String>,
}

/// `requestRedirect`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RequestRedirect {
    /// `http` or `https`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// Host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathRewrite>,
    /// Port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u32>,
    /// 301, 302 (schema default), 303, 307 or 308.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_code: Option<u32>,
}

/// `urlRewrite`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct UrlRewrite {
    /// Host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathRewrite>,
    /// The host becomes that of the chosen backend; built-in gateways only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_to_backend_hostname: Option<bool>,
}

/// `requestMirror`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestMirror {
    /// Percent of the requests; absent = all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percentage: Option<IntOrString>,
    /// Where copies go.
    pub backend_ref: BackendRef,
}

impl View for MeshHTTPRoute {
    const KIND: Kind = Kind::MeshHTTPRoute;
}

impl MeshHTTPRoute {
    /// `to` or nothing.
    pub fn to(&self) -> &[To] {
        self.to.as_deref().unwrap_or_default()
    }
}

const METHODS: [&str; 9] = ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    let matches = list(object(vec![
        field(
            "path",
            object(vec![
                required("value", text().at_least(1)),
                required("type", text().one_of(&["Exact", "PathPrefix", "RegularExpression"])),
            ]),
        ),
        field("method", text().one_of(&METHODS)),
        field(
            "queryParams",
            list(object(vec![
                required("type", text().one_of(&["Exact", "RegularExpression"])),
                required("name", text().at_least(1)),
                required("value", text()),
            ])),
        ),
        field("headers", list(common::header_match())),
    ]))
    .at_least(1);
    let modifier = || {
        let values = || list(object(vec![required("name", common::header_name()), required("value", text())])).at_most(16);
        object(vec![field("set", values()), field("add", values()), field("remove", list(text()).at_most(16))])
    };
    let path = || {
        object(vec![
            required("type", text().one_of(&["ReplaceFullPath", "ReplacePrefixMatch"])),
            field("replaceFullPath", text()),
            field("replacePrefixMatch", text()),
        ])
    };
    let filter = object(vec![
        required(
            "type",
            text().one_of(&["RequestHeaderModifier", "ResponseHeaderModifier", "RequestRedirect", "URLRewrite", "RequestMirror"]),
        ),
        field("requestHeaderModifier", modifier()),
        field("responseHeaderModifier", modifier()),
        field(
            "requestRedirect",
            object(vec![
                field("scheme", text().one_of(&["http", "https"])),
                field("hostname", common::hostname()),
                field("path", path()),
                field("port", int(Int::I32).at_least(1).at_most(65535)),
                field("statusCode", int(Int::I32).one_of(&[301, 302, 303, 307, 308]).or(302)),
            ]),
        ),
        field(
            "urlRewrite",
            object(vec![field("hostname", common::hostname()), field("path", path()), field("hostToBackendHostname", boolean())]),
        ),
        field("requestMirror", object(vec![field("percentage", int_or_text()), required("backendRef", target_ref::backend_ref_schema())])),
    ]);
    let rule = object(vec![
        required("matches", matches),
        required("default", object(vec![field("filters", list(filter)), field("backendRefs", list(target_ref::backend_ref_schema()))])),
    ]);
    object(vec![
        common::target_ref_field(),
        field(
            "to",
            list(object(vec![
                required("targetRef", target_ref::schema()),
                field("hostnames", list(text())),
                required("rules", list(rule)),
            ])),
        ),
    ])
});

/// Registry entry.
pub static KIND: KindSpec = KindSpec { kind: Kind::MeshHTTPRoute, schema: || &SCHEMA, validate: validate::validate, warnings };

fn warnings(_: &ValidateContext<'_>, spec: &Value) -> Vec<String> {
    let Some(spec) = common::read::<MeshHTTPRoute>(spec, &mut Violations::new()) else { return Vec::new() };
    target_ref::top_level_warning(spec.target_ref.as_ref()).into_iter().collect()
}

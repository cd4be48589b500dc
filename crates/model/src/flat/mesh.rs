//! Mesh: fields, rules, defaults (reference: Kuma 2.14.3 REST contract, §8.1; legacy contract §3).

use super::{
    ca,
    checks::{self, EMPTY, flag, list, text, text_map},
    metrics,
    proto::{self, Enum, Message, Type, field},
};
use crate::{
    go,
    mesh::parse_lifetime,
    policy::ValidateContext,
    violation::{Path, Violations},
};
use serde_json::Value;
use std::collections::HashSet;

static MTLS_MODE: Enum = Enum { name: "kuma.mesh.v1alpha1.CertificateAuthorityBackend.Mode", values: &[("STRICT", 0), ("PERMISSIVE", 1)] };
static SERVICES_MODE: Enum = Enum {
    name: "kuma.mesh.v1alpha1.Mesh.MeshServices.Mode",
    values: &[("Disabled", 0), ("Everywhere", 1), ("ReachableBackends", 2), ("Exclusive", 3)],
};

static CA_BACKEND: Message = Message {
    name: "kuma.mesh.v1alpha1.CertificateAuthorityBackend",
    fields: &[
        field("name", Type::String),
        field("type", Type::String),
        field(
            "dpCert",
            Type::Message(&Message {
                name: "kuma.mesh.v1alpha1.CertificateAuthorityBackend.DpCert",
                fields: &[
                    field(
                        "rotation",
                        Type::Message(&Message {
                            name: "kuma.mesh.v1alpha1.CertificateAuthorityBackend.DpCert.Rotation",
                            fields: &[field("expiration", Type::String)],
                        }),
                    ),
                    field("requestTimeout", Type::Duration),
                ],
            }),
        ),
        field("conf", Type::Struct),
        field("mode", Type::Enum(&MTLS_MODE)),
        field(
            "rootChain",
            Type::Message(&Message {
                name: "kuma.mesh.v1alpha1.CertificateAuthorityBackend.RootChain",
                fields: &[field("requestTimeout", Type::Duration)],
            }),
        ),
    ],
};
static RULES: Message =
    Message { name: "kuma.mesh.v1alpha1.Mesh.DataplaneProxyConstraints.Rules", fields: &[field("tags", Type::Map(&Type::String))] };

/// Fields of a Mesh.
pub static MESH: Message = Message {
    name: "kuma.mesh.v1alpha1.Mesh",
    fields: &[
        field(
            "mtls",
            Type::Message(&Message {
                name: "kuma.mesh.v1alpha1.Mesh.Mtls",
                fields: &[
                    field("enabledBackend", Type::String),
                    field("backends", Type::List(&Type::Message(&CA_BACKEND))),
                    field("skipValidation", Type::Bool),
                ],
            }),
        ),
        field(
            "tracing",
            Type::Message(&Message {
                name: "kuma.mesh.v1alpha1.Tracing",
                fields: &[
                    field("defaultBackend", Type::String),
                    field(
                        "backends",
                        Type::List(&Type::Message(&Message {
                            name: "kuma.mesh.v1alpha1.TracingBackend",
                            fields: &[
                                field("name", Type::String),
                                field("sampling", Type::DoubleValue),
                                field("type", Type::String),
                                field("conf", Type::Struct),
                            ],
                        })),
                    ),
                ],
            }),
        ),
        field(
            "logging",
            Type::Message(&Message {
                name: "kuma.mesh.v1alpha1.Logging",
                fields: &[
                    field("defaultBackend", Type::String),
                    field(
                        "backends",
                        Type::List(&Type::Message(&Message {
                            name: "kuma.mesh.v1alpha1.LoggingBackend",
                            fields: &[
                                field("name", Type::String),
                                field("format", Type::String),
                                field("type", Type::String),
                                field("conf", Type::Struct),
                            ],
                        })),
                    ),
                ],
            }),
        ),
        field(
            "metrics",
            Type::Message(&Message {
                name: "kuma.mesh.v1alpha1.Metrics",
                fields: &[field("enabledBackend", Type::String), field("backends", Type::List(&Type::Message(&METRICS_BACKEND)))],
            }),
        ),
        field(
            "networking",
            Type::Message(&Message {
                name: "kuma.mesh.v1alpha1.Networking",
                fields: &[field(
                    "outbound",
                    Type::Message(&Message {
                        name: "kuma.mesh.v1alpha1.Networking.Outbound",
                        fields: &[field("passthrough", Type::BoolValue)],
                    }),
                )],
            }),
        ),
        field(
            "routing",
            Type::Message(&Message {
                name: "kuma.mesh.v1alpha1.Routing",
                fields: &[
                    field("localityAwareLoadBalancing", Type::Bool),
                    field("zoneEgress", Type::Bool),
                    field("defaultForbidMeshExternalServiceAccess", Type::Bool),
                ],
            }),
        ),
        field(
            "constraints",
            Type::Message(&Message {
                name: "kuma.mesh.v1alpha1.Mesh.Constraints",
                fields: &[field(
                    "dataplaneProxy",
                    Type::Message(&Message {
                        name: "kuma.mesh.v1alpha1.Mesh.DataplaneProxyConstraints",
                        fields: &[
                            field("requirements", Type::List(&Type::Message(&RULES))),
                            field("restrictions", Type::List(&Type::Message(&RULES))),
                        ],
                    }),
                )],
            }),
        ),
        field("skipCreatingInitialPolicies", Type::List(&Type::String)),
        field(
            "meshServices",
            Type::Message(&Message { name: "kuma.mesh.v1alpha1.Mesh.MeshServices", fields: &[field("mode", Type::Enum(&SERVICES_MODE))] }),
        ),
    ],
};

/// A metrics backend, also that of a Dataplane.
pub static METRICS_BACKEND: Message = Message {
    name: "kuma.mesh.v1alpha1.MetricsBackend",
    fields: &[field("name", Type::String), field("type", Type::String), field("conf", Type::Struct)],
};

static FILE_CONF: Message = Message { name: "kuma.mesh.v1alpha1.FileLoggingBackendConfig", fields: &[field("path", Type::String)] };
static TCP_CONF: Message = Message { name: "kuma.mesh.v1alpha1.TcpLoggingBackendConfig", fields: &[field("address", Type::String)] };
static ZIPKIN_CONF: Message = Message {
    name: "kuma.mesh.v1alpha1.ZipkinTracingBackendConfig",
    fields: &[
        field("url", Type::String),
        field("traceId128bit", Type::Bool),
        field("apiVersion", Type::String),
        field("sharedSpanContext", Type::BoolValue),
    ],
};
static DATADOG_CONF: Message = Message {
    name: "kuma.mesh.v1alpha1.DatadogTracingBackendConfig",
    fields: &[field("address", Type::String), field("port", Type::U32), field("splitService", Type::Bool)],
};

/// A Mesh may have one CA backend at a time.
const MAX_CA_BACKENDS: usize = 1;

/// Rules on a Mesh. With a name also those of the CA backends, which Kuma's manager checks before it stores the Mesh.
pub fn validate(ctx: &ValidateContext<'_>, spec: &Value, out: &mut Violations) {
    let section = |name: &str| spec.get(name).unwrap_or(&Value::Null);
    mtls(&Path::of("mtls"), section("mtls"), out);
    logging(&Path::of("logging"), section("logging"), out);
    tracing(&Path::of("tracing"), section("tracing"), out);
    backends(&Path::of("metrics"), section("metrics"), "enabledBackend", "backends in the mesh", out, |at, backend, out| {
        match text(backend, "type") {
            metrics::PROMETHEUS => metrics::validate_conf(&at.field("conf"), backend.get("conf"), out),
            _ => out.add(at.field("type"), "unknown backend type. Available backends: \"prometheus\""),
        }
    });
    let proxy = section("constraints").get("dataplaneProxy").unwrap_or(&Value::Null);
    for field in ["requirements", "restrictions"] {
        for (i, rules) in list(proxy, field).iter().enumerate() {
            let at = Path::of("constraints.dataplaneProxy").field(field).index(i).field("tags");
            checks::selector(&at, &text_map(rules, "tags"), out);
        }
    }
    if flag(section("routing"), "zoneEgress") && text(section("mtls"), "enabledBackend").is_empty() {
        out.add("mtls", "has to be set when zoneEgress enabled");
    }
    if !ctx.name.is_empty() && out.is_empty() {
        ca::validate_backends(ctx.name, spec, out);
    }
}

fn mtls(at: &Path, mtls: &Value, out: &mut Violations) {
    let list = list(mtls, "backends");
    let at_backends = at.field("backends");
    if list.len() > MAX_CA_BACKENDS {
        out.add(&at_backends, format!("cannot have more than {MAX_CA_BACKENDS} backends"));
    }
    let mut used = HashSet::new();
    for (i, backend) in list.iter().enumerate() {
        unique_name(&at_backends.index(i), backend, &mut used, out);
        if let Some(dp_cert) = backend.get("dpCert") {
            let expiration = dp_cert.get("rotation").map_or("", |r| text(r, "expiration"));
            if parse_lifetime(expiration).is_none() {
                // No index and lower case, as Kuma writes it.
                out.add(at.field("dpcert.rotation.expiration"), "has to be a valid format");
            }
        }
    }
    enabled(at, mtls, "enabledBackend", "backends in the mesh", &used, out);
}

fn logging(at: &Path, logging: &Value, out: &mut Violations) {
    backends(at, logging, "defaultBackend", "logging backend in mesh", out, |at, backend, out| {
        if text(backend, "name").is_empty() {
            out.add(at.field("name"), EMPTY);
        }
        let at_conf = at.field("config");
        match text(backend, "type") {
            "file" => {
                with_conf(&at_conf, &FILE_CONF, backend, out, |conf, out| {
                    if text(conf, "path").is_empty() {
                        out.add(at_conf.field("path"), EMPTY);
                    }
                });
            }
            "tcp" => with_conf(&at_conf, &TCP_CONF, backend, out, |conf, out| match text(conf, "address") {
                "" => out.add(at_conf.field("address"), EMPTY),
                address => {
                    if !checks::split_host_port(address).is_some_and(|(host, port)| !host.is_empty() && !port.is_empty()) {
                        out.add(at_conf.field("address"), "has to be in format of HOST:PORT");
                    }
                }
            }),
            _ => out.add(at.field("type"), "unknown backend type. Available backends: \"tcp\", \"file\""),
        }
    });
}

fn tracing(at: &Path, tracing: &Value, out: &mut Violations) {
    backends(at, tracing, "defaultBackend", "tracing backend in mesh", out, |at, backend, out| {
        if text(backend, "name").is_empty() {
            out.add(at.field("name"), EMPTY);
        }
        if let Some(sampling) = backend.get("sampling")
            && !sampling.as_f64().is_some_and(|s| (0.0..=100.0).contains(&s))
        {
            out.add(at.field("sampling"), "has to be in [0.0 - 100.0] range");
        }
        let at_conf = at.field("config");
        match text(backend, "type") {
            "zipkin" => with_conf(&at_conf, &ZIPKIN_CONF, backend, out, |conf, out| {
                if let Some(error) = collector_url_error(text(conf, "url")) {
                    out.add(at_conf.field("url"), error);
                }
                if !matches!(text(conf, "apiVersion"), "" | "httpJsonV1" | "httpJson" | "httpProto") {
                    out.add(at_conf.field("apiVersion"), "has invalid value. Allowed values: httpJsonV1, httpJson, httpProto");
                }
            }),
            "datadog" => with_conf(&at_conf, &DATADOG_CONF, backend, out, |conf, out| {
                if text(conf, "address").is_empty() {
                    out.add(at_conf.field("address"), EMPTY);
                }
                checks::port(&at_conf.field("port"), checks::number(conf, "port"), out);
            }),
            _ => out.add(at.field("type"), "unknown backend type. Available backends: \"zipkin\", \"datadog\""),
        }
    });
}

/// A URL of a collector: scheme, host and an explicit port.
fn collector_url_error(url: &str) -> Option<&'static str> {
    const INVALID: Option<&str> = Some("invalid URL");
    if url.is_empty() {
        return Some(EMPTY);
    }
    let Some((scheme, rest)) = url.split_once(':') else {
        // A path alone is a request URI too.
        return if checks::is_url_path(url) { Some("port has to be explicitly specified") } else { INVALID };
    };
    let scheme_ok = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
    let Some(rest) = rest.strip_prefix("//").filter(|_| scheme_ok && checks::has_sound_escapes(url)) else { return INVALID };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let port = match host.strip_prefix('[') {
        Some(v6) => match v6.split_once(']') {
            Some((_, port)) => port.strip_prefix(':').unwrap_or(port),
            None => return INVALID,
        },
        None => host.rsplit_once(':').map_or("", |(_, port)| port),
    };
    if port.is_empty() {
        Some("port has to be explicitly specified")
    } else if port.bytes().all(|b| b.is_ascii_digit()) {
        None
    } else {
        INVALID
    }
}

/// The rules that the three sections with backends share: each backend's own, unique names, and the chosen one exists.
fn backends(at: &Path, section: &Value, chosen: &str, what: &str, out: &mut Violations, rules: impl Fn(&Path, &Value, &mut Violations)) {
    let mut used = HashSet::new();
    for (i, backend) in list(section, "backends").iter().enumerate() {
        let at = at.field("backends").index(i);
        rules(&at, backend, out);
        unique_name(&at, backend, &mut used, out);
    }
    enabled(at, section, chosen, what, &used, out);
}

fn unique_name<'a>(at: &Path, backend: &'a Value, used: &mut HashSet<&'a str>, out: &mut Violations) {
    let name = text(backend, "name");
    if !used.insert(name) {
        out.add(at.field("name"), format!("{} name is already used for another backend", go::quote(name)));
    }
}

fn enabled(at: &Path, section: &Value, chosen: &str, what: &str, used: &HashSet<&str>, out: &mut Violations) {
    let name = text(section, chosen);
    if !name.is_empty() && !used.contains(name) {
        out.add(at.field(chosen), format!("has to be set to one of the {what}"));
    }
}

/// Reads the free conf of a backend as `message`.
fn with_conf(at: &Path, message: &Message, backend: &Value, out: &mut Violations, rules: impl FnOnce(&Value, &mut Violations)) {
    match proto::canonicalize(message, backend.get("conf").unwrap_or(&Value::Null)) {
        Ok(conf) => rules(&conf, out),
        Err(e) => out.add(at, format!("could not parse config: {e}")),
    }
}

/// Defaults that are stored with a Mesh: those of its Prometheus backends.
pub fn default_spec(mut spec: Value) -> Value {
    let backends = spec.pointer_mut("/metrics/backends").and_then(Value::as_array_mut);
    for backend in backends.into_iter().flatten().filter(|b| text(b, "type") == metrics::PROMETHEUS) {
        let conf = metrics::default_conf(backend.get("conf"));
        if let Some(map) = backend.as_object_mut() {
            map.insert("conf".to_owned(), conf);
        }
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn errors(spec: Value) -> Vec<String> {
        let mut out = Violations::new();
        validate(&ValidateContext::default(), &proto::canonicalize(&MESH, &spec).unwrap(), &mut out);
        out.into_iter().map(|v| v.to_string()).collect()
    }

    #[test]
    fn expiration_and_constraints() {
        let with = |dp_cert: Value| json!({"mtls": {"backends": [{"name": "b", "type": "builtin", "dpCert": dp_cert}]}});
        assert!(errors(with(json!({"rotation": {"expiration": "1d"}}))).is_empty());
        for bad in [json!({}), json!({"rotation": {}}), json!({"rotation": {"expiration": "1d2h"}})] {
            assert_eq!(errors(with(bad)), ["mtls.dpcert.rotation.expiration: has to be a valid format"]);
        }
        assert_eq!(
            errors(json!({"constraints": {"dataplaneProxy": {"requirements": [{}], "restrictions": [{"tags": {"a": "b*"}}]}}})),
            [
                "constraints.dataplaneProxy.requirements[0].tags: must have at least one tag",
                "constraints.dataplaneProxy.restrictions[0].tags[\"a\"]: tag value must consist of alphanumeric characters, dots, \
                    dashes, slashes and underscores or be \"*\""
            ]
        );
    }

    #[test]
    fn urls() {
        for (url, error) in [
            ("http://zipkin:9411/api", None),
            ("http://[::1]:9411", None),
            ("http://u:p@host:1/x?y", None),
            ("http://zipkin/api", Some("port has to be explicitly specified")),
            ("http://[::1]", Some("port has to be explicitly specified")),
            ("zipkin", Some("invalid URL")),
            ("http://a:b/", Some("invalid URL")),
            ("", Some(EMPTY)),
        ] {
            assert_eq!(collector_url_error(url), error, "{url}");
        }
    }

    #[test]
    fn stored_defaults() {
        let spec = json!({"metrics": {"backends": [{"name": "p", "type": "prometheus"}, {"name": "x", "type": "other"}]}});
        let once = default_spec(spec);
        assert_eq!(
            once["metrics"]["backends"][0]["conf"],
            json!({"port": 5670, "path": "/metrics", "tags": {"kuma.io/service": "dataplane-metrics"}, "tls": {}})
        );
        assert_eq!(once["metrics"]["backends"][1].get("conf"), None);
        assert_eq!(default_spec(once.clone()), once);
    }
}

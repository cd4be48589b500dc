//! Insights: shapes only, they are never written over REST (reference: Kuma 2.14.3 REST contract, §8.14).

use super::proto::{Message, Type, field};

static COUNTERS: Message = Message {
    name: "kuma.mesh.v1alpha1.DiscoveryServiceStats",
    fields: &[field("responsesSent", Type::U64), field("responsesAcknowledged", Type::U64), field("responsesRejected", Type::U64)],
};

static SUBSCRIPTION: Message = Message {
    name: "kuma.mesh.v1alpha1.DiscoverySubscription",
    fields: &[
        field("id", Type::String),
        field("controlPlaneInstanceId", Type::String),
        field("connectTime", Type::Timestamp),
        field("disconnectTime", Type::Timestamp),
        field(
            "status",
            Type::Message(&Message {
                name: "kuma.mesh.v1alpha1.DiscoverySubscriptionStatus",
                fields: &[
                    field("lastUpdateTime", Type::Timestamp),
                    field("total", Type::Message(&COUNTERS)),
                    field("cds", Type::Message(&COUNTERS)),
                    field("eds", Type::Message(&COUNTERS)),
                    field("lds", Type::Message(&COUNTERS)),
                    field("rds", Type::Message(&COUNTERS)),
                ],
            }),
        ),
        field(
            "version",
            Type::Message(&Message {
                name: "kuma.mesh.v1alpha1.Version",
                fields: &[
                    field(
                        "kumaDp",
                        Type::Message(&Message {
                            name: "kuma.mesh.v1alpha1.KumaDpVersion",
                            fields: &[
                                field("version", Type::String),
                                field("gitTag", Type::String),
                                field("gitCommit", Type::String),
                                field("buildDate", Type::String),
                                field("kumaCpCompatible", Type::Bool),
                            ],
                        }),
                    ),
                    field(
                        "envoy",
                        Type::Message(&Message {
                            name: "kuma.mesh.v1alpha1.EnvoyVersion",
                            fields: &[field("version", Type::String), field("build", Type::String), field("kumaDpCompatible", Type::Bool)],
                        }),
                    ),
                    field("dependencies", Type::Map(&Type::String)),
                ],
            }),
        ),
        field("generation", Type::U32),
    ],
};

static OTEL_SIGNAL: Message = Message {
    name: "kuma.mesh.v1alpha1.DataplaneInsight.OpenTelemetry.Signal",
    fields: &[
        field("enabled", Type::Bool),
        field("envAllowed", Type::Bool),
        field("envInputPresent", Type::Bool),
        field("state", Type::String),
        field("overrideKinds", Type::List(&Type::String)),
        field("missingFields", Type::List(&Type::String)),
        field("blockedReasons", Type::List(&Type::String)),
    ],
};

/// Fields of a DataplaneInsight.
pub static DATAPLANE_INSIGHT: Message = Message {
    name: "kuma.mesh.v1alpha1.DataplaneInsight",
    fields: &[
        field("subscriptions", Type::List(&Type::Message(&SUBSCRIPTION))),
        field(
            "mTLS",
            Type::Message(&Message {
                name: "kuma.mesh.v1alpha1.DataplaneInsight.MTLS",
                fields: &[
                    field("certificateExpirationTime", Type::Timestamp),
                    field("lastCertificateRegeneration", Type::Timestamp),
                    field("certificateRegenerations", Type::U32),
                    field("issuedBackend", Type::String),
                    field("supportedBackends", Type::List(&Type::String)),
                ],
            }),
        ),
        field("metadata", Type::Struct),
        field(
            "openTelemetry",
            Type::Message(&Message {
                name: "kuma.mesh.v1alpha1.DataplaneInsight.OpenTelemetry",
                fields: &[field(
                    "backends",
                    Type::List(&Type::Message(&Message {
                        name: "kuma.mesh.v1alpha1.DataplaneInsight.OpenTelemetry.Backend",
                        fields: &[
                            field("name", Type::String),
                            field("traces", Type::Message(&OTEL_SIGNAL)),
                            field("logs", Type::Message(&OTEL_SIGNAL)),
                            field("metrics", Type::Message(&OTEL_SIGNAL)),
                        ],
                    })),
                )],
            }),
        ),
    ],
};

static KDS_STREAM: Message = Message {
    name: "kuma.system.v1alpha1.KDSStream",
    fields: &[field("globalInstanceId", Type::String), field("connectTime", Type::Timestamp)],
};

static KDS_COUNTERS: Message = Message {
    name: "kuma.system.v1alpha1.KDSServiceStats",
    fields: &[field("responsesSent", Type::U64), field("responsesAcknowledged", Type::U64), field("responsesRejected", Type::U64)],
};

static KDS_SUBSCRIPTION: Message = Message {
    name: "kuma.system.v1alpha1.KDSSubscription",
    fields: &[
        field("id", Type::String),
        field("globalInstanceId", Type::String),
        field("connectTime", Type::Timestamp),
        field("disconnectTime", Type::Timestamp),
        field(
            "status",
            Type::Message(&Message {
                name: "kuma.system.v1alpha1.KDSSubscriptionStatus",
                fields: &[
                    field("lastUpdateTime", Type::Timestamp),
                    field("total", Type::Message(&KDS_COUNTERS)),
                    field("stat", Type::Map(&Type::Message(&KDS_COUNTERS))),
                ],
            }),
        ),
        field(
            "version",
            Type::Message(&Message {
                name: "kuma.system.v1alpha1.Version",
                fields: &[field(
                    "kumaCp",
                    Type::Message(&Message {
                        name: "kuma.system.v1alpha1.KumaCpVersion",
                        fields: &[
                            field("version", Type::String),
                            field("gitTag", Type::String),
                            field("gitCommit", Type::String),
                            field("buildDate", Type::String),
                            field("kumaCpGlobalCompatible", Type::Bool),
                        ],
                    }),
                )],
            }),
        ),
        field("generation", Type::U32),
        field("config", Type::String),
        field("authTokenProvided", Type::Bool),
        field("zoneInstanceId", Type::String),
    ],
};

/// Fields of a ZoneInsight.
pub static ZONE_INSIGHT: Message = Message {
    name: "kuma.system.v1alpha1.ZoneInsight",
    fields: &[
        field("subscriptions", Type::List(&Type::Message(&KDS_SUBSCRIPTION))),
        field(
            "envoyAdminStreams",
            Type::Message(&Message {
                name: "kuma.system.v1alpha1.EnvoyAdminStreams",
                fields: &[
                    field("configDumpGlobalInstanceId", Type::String),
                    field("statsGlobalInstanceId", Type::String),
                    field("clustersGlobalInstanceId", Type::String),
                ],
            }),
        ),
        field(
            "healthCheck",
            Type::Message(&Message { name: "kuma.system.v1alpha1.HealthCheck", fields: &[field("time", Type::Timestamp)] }),
        ),
        field(
            "kdsStreams",
            Type::Message(&Message {
                name: "kuma.system.v1alpha1.KDSStreams",
                fields: &[
                    field("clusters", Type::Message(&KDS_STREAM)),
                    field("configDump", Type::Message(&KDS_STREAM)),
                    field("stats", Type::Message(&KDS_STREAM)),
                    field("globalToZone", Type::Message(&KDS_STREAM)),
                    field("zoneToGlobal", Type::Message(&KDS_STREAM)),
                ],
            }),
        ),
    ],
};

//! Messages of Envoy's contrib extensions that are generated; envoy-types has none of them.

use envoy_types::pb::{
    envoy::config::listener::v3::{Filter, filter},
    google::protobuf::Any,
};
use prost::{Message, Name};

/// `envoy.extensions.filters.network.kafka_broker.v3.KafkaBroker`, as far as it is used.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct KafkaBroker {
    /// Prefix of the filter's statistics.
    #[prost(string, tag = "1")]
    pub(crate) stat_prefix: String,
}

impl Name for KafkaBroker {
    const NAME: &'static str = "KafkaBroker";
    const PACKAGE: &'static str = "envoy.extensions.filters.network.kafka_broker.v3";
}

/// Statistics of the Kafka protocol, in front of the TCP proxy.
pub(crate) fn kafka_broker(stat_prefix: &str) -> Filter {
    let config = KafkaBroker { stat_prefix: stat_prefix.to_owned() };
    let any = Any { type_url: format!("type.googleapis.com/{}", KafkaBroker::full_name()), value: config.encode_to_vec() };
    Filter { name: "envoy.filters.network.kafka_broker".to_owned(), config_type: Some(filter::ConfigType::TypedConfig(any)) }
}

//! Messages of Envoy's contrib extensions that are generated; envoy-types has none of them.

use envoy_types::pb::{
    envoy::config::listener::v3::{Filter, filter},
    google::protobuf::Any,
};
use prost::{Message, Name};
use prost_reflect::prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorProto, field_descriptor_proto};

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

/// Descriptors of the messages above.
pub(crate) fn descriptors() -> FileDescriptorProto {
    let stat_prefix = FieldDescriptorProto {
        name: Some("stat_prefix".to_owned()),
        json_name: Some("statPrefix".to_owned()),
        number: Some(1),
        label: Some(field_descriptor_proto::Label::Optional as i32),
        r#type: Some(field_descriptor_proto::Type::String as i32),
        ..Default::default()
    };
    FileDescriptorProto {
        name: Some("contrib/envoy/extensions/filters/network/kafka_broker/v3/kafka_broker.proto".to_owned()),
        package: Some(KafkaBroker::PACKAGE.to_owned()),
        syntax: Some("proto3".to_owned()),
        message_type: vec![DescriptorProto { name: Some(KafkaBroker::NAME.to_owned()), field: vec![stat_prefix], ..Default::default() }],
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kafka_has_a_json_form() {
        let filter = kafka_broker("localhost_9092");
        let value = crate::json::to_value("x/envoy.config.listener.v3.Filter", &filter.encode_to_vec()).unwrap();
        assert_eq!(value.pointer("/typedConfig/statPrefix").and_then(|v| v.as_str()), Some("localhost_9092"));
    }
}

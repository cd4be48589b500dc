//! Reading merged confs. They are validated JSON; what is missing or odd counts as unset.

use crate::proto::go_duration;
use envoy_types::pb::google::protobuf::{Duration, UInt32Value};
use serde_json::Value;

/// A conf or a part of it.
#[derive(Clone, Copy)]
pub(crate) struct Conf<'a>(pub(crate) &'a Value);

/// The conf of a kind that nobody configured.
pub(crate) const UNSET: Conf<'static> = Conf(&Value::Null);

impl<'a> Conf<'a> {
    /// A field; unset when absent.
    pub(crate) fn at(self, field: &str) -> Conf<'a> {
        Conf(self.0.get(field).unwrap_or(&Value::Null))
    }
    /// Present and not null.
    pub(crate) fn is_set(self) -> bool {
        !self.0.is_null()
    }
    /// Text.
    pub(crate) fn text(self) -> Option<&'a str> {
        self.0.as_str()
    }
    /// Non-negative number.
    pub(crate) fn number(self) -> Option<u32> {
        self.0.as_u64().and_then(|n| u32::try_from(n).ok())
    }
    /// Wrapped number.
    pub(crate) fn wrapped(self) -> Option<UInt32Value> {
        self.number().map(|value| UInt32Value { value })
    }
    /// Boolean.
    pub(crate) fn bool(self) -> Option<bool> {
        self.0.as_bool()
    }
    /// Go duration text.
    pub(crate) fn duration(self) -> Option<Duration> {
        self.text().and_then(go_duration)
    }
    /// Int-or-string number.
    pub(crate) fn decimal(self) -> Option<f64> {
        match self.0 {
            Value::Number(n) => n.as_f64(),
            Value::String(s) => s.trim_end_matches('%').parse().ok(),
            _ => None,
        }
        .filter(|f: &f64| f.is_finite())
    }
    /// Elements of a list.
    pub(crate) fn items(self) -> impl Iterator<Item = Conf<'a>> {
        self.0.as_array().map_or(&[][..], Vec::as_slice).iter().map(Conf)
    }
}

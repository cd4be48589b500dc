//! Wall-clock instants as the contract prints them.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

/// Nanoseconds since the Unix epoch, UTC. [`Timestamp::ZERO`] is Go's zero time (`0001-01-01T00:00:00Z`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// "No time": printed as `0001-01-01T00:00:00Z`.
    pub const ZERO: Timestamp = Timestamp(0);

    /// From milliseconds since the Unix epoch.
    pub fn from_millis(ms: u64) -> Self {
        Timestamp(i64::try_from(ms).unwrap_or(i64::MAX / 1_000_000).saturating_mul(1_000_000))
    }
    /// Whether it is "no time".
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }
    /// Seconds since the Unix epoch.
    pub fn seconds(self) -> i64 {
        self.0.div_euclid(1_000_000_000)
    }
    /// RFC 3339 text, any offset. Times before 1970 count as zero.
    pub fn parse(text: &str) -> Result<Self, String> {
        let t = OffsetDateTime::parse(text, &Rfc3339).map_err(|e| format!("cannot parse {text:?} as RFC 3339 time: {e}"))?;
        let n = t.unix_timestamp_nanos();
        Ok(if n <= 0 { Timestamp::ZERO } else { Timestamp(i64::try_from(n).unwrap_or(i64::MAX)) })
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_zero() {
            return f.write_str("0001-01-01T00:00:00Z");
        }
        match OffsetDateTime::from_unix_timestamp_nanos(self.0 as i128).map(|t| t.to_offset(UtcOffset::UTC).format(&Rfc3339)) {
            Ok(Ok(s)) => f.write_str(&s),
            _ => f.write_str("0001-01-01T00:00:00Z"),
        }
    }
}
impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = std::borrow::Cow::<str>::deserialize(d)?;
        Timestamp::parse(&s).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_go_does() {
        assert_eq!(Timestamp::ZERO.to_string(), "0001-01-01T00:00:00Z");
        assert_eq!(Timestamp::from_millis(1_700_000_000_500).to_string(), "2023-11-14T22:13:20.5Z");
        assert_eq!(Timestamp::parse("2018-07-17T16:05:36.995Z").unwrap().to_string(), "2018-07-17T16:05:36.995Z");
        assert_eq!(Timestamp::parse("0001-01-01T00:00:00Z").unwrap(), Timestamp::ZERO);
        assert!(Timestamp::parse("yesterday").is_err());
    }
}

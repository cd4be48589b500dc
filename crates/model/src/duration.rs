//! Durations written as Go writes them: `1h0m0s`, `1.5s`, `500ms`.
//!
//! Specs of `spec`-bodied kinds hold durations as such strings, always in the canonical form.

use crate::go;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;

const MILLI: i64 = 1_000_000;
const SECOND: i64 = 1_000_000_000;

/// A signed span of nanoseconds, about ±292 years. Its text form (`Display`, serde) is Go's `time.Duration.String`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GoDuration(i64);

/// A text that is no duration; the message is Go's (`time: invalid duration "x"`).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DurationError(String);

impl GoDuration {
    /// No time.
    pub const ZERO: GoDuration = GoDuration(0);

    /// From nanoseconds.
    pub const fn from_nanos(nanos: i64) -> Self {
        GoDuration(nanos)
    }
    /// From milliseconds; saturates.
    pub const fn from_millis(millis: i64) -> Self {
        GoDuration(millis.saturating_mul(MILLI))
    }
    /// From seconds; saturates.
    pub const fn from_secs(secs: i64) -> Self {
        GoDuration(secs.saturating_mul(SECOND))
    }
    /// Nanoseconds.
    pub const fn nanos(self) -> i64 {
        self.0
    }
    /// Whole seconds, cut towards zero.
    pub const fn secs(self) -> i64 {
        self.0 / SECOND
    }
    /// Nanoseconds beyond the whole seconds; has the sign of the duration.
    pub const fn subsec_nanos(self) -> i32 {
        (self.0 % SECOND) as i32
    }
    /// No time at all.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
    /// As an unsigned duration; `None` when negative.
    pub fn to_std(self) -> Option<std::time::Duration> {
        u64::try_from(self.0).ok().map(std::time::Duration::from_nanos)
    }

    /// Reads `[+-](digits[.digits]unit)+` with units ns, us (µs, μs), ms, s, m, h, or `0`, as Go's `time.ParseDuration` does.
    pub fn parse(text: &str) -> Result<Self, DurationError> {
        go::parse_duration(text).map(GoDuration).map_err(DurationError)
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&go::format_duration(self.0))
    }
}

impl std::str::FromStr for GoDuration {
    type Err = DurationError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        GoDuration::parse(s)
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = GoDuration;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as 1h0m0s")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<GoDuration, E> {
                GoDuration::parse(v).map_err(E::custom)
            }
        }
        d.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn canonical() {
        for (text, canonical) in [
            ("2h", "2h0m0s"),
            ("0", "0s"),
            ("0s", "0s"),
            ("-0", "0s"),
            ("1h2m3.5s", "1h2m3.5s"),
            ("90s", "1m30s"),
            ("1500ms", "1.5s"),
            ("500ms", "500ms"),
            ("1.5us", "1.5µs"),
            ("1.5µs", "1.5µs"),
            ("1.5μs", "1.5µs"),
            ("999ns", "999ns"),
            (".5s", "500ms"),
            ("1.s", "1s"),
            ("-1m", "-1m0s"),
            ("+1m", "1m0s"),
            ("25h", "25h0m0s"),
            ("1s1s", "2s"),
            ("2562047h47m16.854775807s", "2562047h47m16.854775807s"),
            ("0.000000001s", "1ns"),
        ] {
            assert_eq!(GoDuration::parse(text).unwrap().to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn refused() {
        for (text, message) in [
            ("", r#"time: invalid duration """#),
            ("x", r#"time: invalid duration "x""#),
            ("-", r#"time: invalid duration "-""#),
            (".s", r#"time: invalid duration ".s""#),
            ("3000000h", r#"time: invalid duration "3000000h""#),
            ("9223372036854775808ns", r#"time: invalid duration "9223372036854775808ns""#),
            ("10", r#"time: missing unit in duration "10""#),
            ("1d", r#"time: unknown unit "d" in duration "1d""#),
            ("1 s", r#"time: unknown unit " s" in duration "1 s""#),
        ] {
            assert_eq!(GoDuration::parse(text).unwrap_err().to_string(), message, "{text}");
        }
    }

    #[test]
    fn parts() {
        let d = GoDuration::parse("-1.25s").unwrap();
        assert_eq!((d.secs(), d.subsec_nanos(), d.to_std()), (-1, -250_000_000, None));
        assert_eq!(GoDuration::from_secs(2).to_std(), Some(std::time::Duration::from_secs(2)));
        assert_eq!(serde_json::from_str::<GoDuration>("\"2h\"").unwrap(), GoDuration::from_secs(7200));
        assert!(serde_json::from_str::<GoDuration>("2").is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(nanos in any::<i64>()) {
            let d = GoDuration::from_nanos(nanos);
            // Fractions of seconds are exact up to 9 digits in both directions.
            prop_assert_eq!(GoDuration::parse(&d.to_string()).unwrap(), d);
        }
        #[test]
        fn never_panics(text in "\\PC{0,24}") {
            if let Ok(d) = GoDuration::parse(&text) {
                prop_assert_eq!(GoDuration::parse(&d.to_string()).unwrap(), d);
            }
        }
    }
}

//! Conventions of Go's standard library that leak into the contract: quoting, durations, names of JSON types.

use serde_json::Value;
use std::fmt::Write as _;

/// `strconv.Quote`, i.e. verb `%q`.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            c if (c as u32) < 0x20 || c == '\u{7f}' => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c if c.is_control() || c == '\u{feff}' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// How `encoding/json` names a JSON value in its errors.
pub fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// `time.ParseDuration`: a sign, then numbers with units (`ns us µs ms s m h`), or `0`. Returns nanoseconds; errors are Go's texts.
pub fn parse_duration(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {}", quote(text));
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    // Magnitudes up to 2^63 nanoseconds; i128 keeps every intermediate exact.
    const LIMIT: i128 = 1 << 63;
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let whole = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (digits, after) = rest.split_at(whole);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(tail) => tail.split_at(tail.len() - tail.trim_start_matches(|c: char| c.is_ascii_digit()).len()),
            None => ("", after),
        };
        if digits.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let unit_len = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, tail) = after.split_at(unit_len);
        let scale: i128 = match unit {
            "" => return Err(format!("time: missing unit in duration {}", quote(text))),
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            other => {
                return Err(format!("time: unknown unit {} in duration {}", quote(other), quote(text)));
            }
        };
        let whole: i128 = if digits.is_empty() { 0 } else { digits.parse().map_err(|_| invalid())? };
        if whole > LIMIT / scale {
            return Err(invalid());
        }
        // 18 digits are below the nanosecond for every unit.
        let fraction = fraction.get(..18).unwrap_or(fraction);
        let part: i128 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| invalid())? };
        total += whole * scale + part * scale / 10_i128.pow(fraction.len() as u32);
        if total > LIMIT {
            return Err(invalid());
        }
        rest = tail;
    }
    let signed = if negative { -total } else { total };
    i64::try_from(signed).map_err(|_| invalid())
}

/// `time.Duration.String`: `1h0m0s`, `1.5s`, `500ms`, `0s`.
pub fn format_duration(nanos: i64) -> String {
    let magnitude = nanos.unsigned_abs();
    let sign = if nanos < 0 { "-" } else { "" };
    let decimal = |value: u64, unit: u64| {
        let (whole, fraction) = (value / unit, value % unit);
        if fraction == 0 {
            return whole.to_string();
        }
        let width = unit.ilog10() as usize;
        format!("{whole}.{}", format!("{fraction:0width$}").trim_end_matches('0'))
    };
    match magnitude {
        0 => "0s".to_owned(),
        n if n < 1_000 => format!("{sign}{n}ns"),
        n if n < 1_000_000 => format!("{sign}{}µs", decimal(n, 1_000)),
        n if n < 1_000_000_000 => format!("{sign}{}ms", decimal(n, 1_000_000)),
        n => {
            let (minutes, below) = (n / 60_000_000_000, n % 60_000_000_000);
            let seconds = decimal(below, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}s"),
                (0, m) => format!("{sign}{m}m{seconds}s"),
                (h, m) => format!("{sign}{h}h{m}m{seconds}s"),
            }
        }
    }
}

/// A protobuf Duration as JSON: seconds with 0, 3, 6 or 9 fraction digits and `s`.
pub fn format_proto_duration(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let magnitude = nanos.unsigned_abs();
    let (seconds, fraction) = (magnitude / 1_000_000_000, magnitude % 1_000_000_000);
    match fraction {
        0 => format!("{sign}{seconds}s"),
        f if f % 1_000_000 == 0 => format!("{sign}{seconds}.{:03}s", f / 1_000_000),
        f if f % 1_000 == 0 => format!("{sign}{seconds}.{:06}s", f / 1_000),
        f => format!("{sign}{seconds}.{f:09}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting() {
        assert_eq!(quote("a\"b\\\n\u{1}é"), "\"a\\\"b\\\\\\n\\x01é\"");
    }

    #[test]
    fn durations() {
        let s = 1_000_000_000;
        for (text, nanos) in [
            ("0", 0),
            ("-0", 0),
            ("5s", 5 * s),
            ("1h30m", 5400 * s),
            ("1.5s", 3 * s / 2),
            (".5s", s / 2),
            ("250ms", s / 4),
            ("1us", 1000),
            ("1µs", 1000),
            ("-1m", -60 * s),
            ("2562047h47m16.854775807s", i64::MAX),
        ] {
            assert_eq!(parse_duration(text), Ok(nanos), "{text}");
        }
        for (text, error) in [
            ("", "time: invalid duration \"\""),
            ("5", "time: missing unit in duration \"5\""),
            ("5x", "time: unknown unit \"x\" in duration \"5x\""),
            ("1d", "time: unknown unit \"d\" in duration \"1d\""),
            (".", "time: invalid duration \".\""),
            ("9999999999999h", "time: invalid duration \"9999999999999h\""),
        ] {
            assert_eq!(parse_duration(text), Err(error.to_owned()), "{text}");
        }
        for (nanos, go, proto) in [
            (0, "0s", "0s"),
            (3_600 * s, "1h0m0s", "3600s"),
            (90 * s, "1m30s", "90s"),
            (s / 4, "250ms", "0.250s"),
            (3 * s / 2, "1.5s", "1.500s"),
            (1_500, "1.5µs", "0.000001500s"),
            (7, "7ns", "0.000000007s"),
            (-s, "-1s", "-1s"),
        ] {
            assert_eq!(format_duration(nanos), go);
            assert_eq!(format_proto_duration(nanos), proto);
        }
    }
}

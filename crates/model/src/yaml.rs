//! YAML to JSON as Kuma's tools read it, i.e. by the rules of YAML 1.1 that Go's `sigs.k8s.io/yaml` follows: `yes`, `on` and `y` are
//! booleans, `010` is 8, a repeated key replaces the earlier one, `<<` merges. Built on the event parser of `serde-saphyr`, whose own
//! scalar rules are those of YAML 1.2.

use serde_json::{Map, Number, Value};
use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, Span, StrInput, Tag};
use std::collections::HashMap;

/// Longest text, in bytes.
pub const MAX_BYTES: usize = 32 << 20;
/// Deepest nesting of lists and maps.
pub const MAX_DEPTH: usize = 100;
/// Most values of a text, those that aliases repeat included.
pub const MAX_NODES: usize = 2_000_000;

/// Why a text was refused. Prints as one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("yaml: {}{message}", .line.map_or_else(String::new, |l| format!("line {l}: ")))]
pub struct YamlError {
    /// Line, counted from 1; absent when the whole text is meant.
    pub line: Option<usize>,
    /// What is wrong.
    pub message: String,
}

/// The documents of a text, in order. Empty ones are left out.
///
/// Errors: no YAML, keys that are no scalars, undefined aliases, or a limit of this module exceeded.
pub fn parse_documents(text: &str) -> Result<Vec<Value>, YamlError> {
    if text.len() > MAX_BYTES {
        return Err(YamlError { line: None, message: format!("the text has more than {MAX_BYTES} bytes; split it") });
    }
    // JSON is read as such: no surprises with numbers.
    if text.trim_start().starts_with(['{', '['])
        && let Ok(value) = serde_json::from_str(text)
    {
        return Ok(vec![value]);
    }
    let mut reader = Reader { parser: Parser::new_from_str(text), anchors: HashMap::new(), nodes: 0 };
    let mut documents = Vec::new();
    loop {
        let (event, span) = reader.next()?;
        match event {
            Event::StreamEnd => return Ok(documents),
            Event::DocumentStart(..) => reader.anchors.clear(),
            Event::StreamStart | Event::DocumentEnd => {}
            event => {
                let document = reader.node(event, span, 0)?;
                if !document.is_null() {
                    documents.push(document);
                }
            }
        }
    }
}

/// The single document of a text; `null` when there is none. Errors as [`parse_documents`], and when there are several.
pub fn parse(text: &str) -> Result<Value, YamlError> {
    let mut documents = parse_documents(text)?;
    match documents.len() {
        0 | 1 => Ok(documents.pop().unwrap_or(Value::Null)),
        n => Err(YamlError { line: None, message: format!("one document is expected, the text has {n}") }),
    }
}

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    /// Values by anchor, with the number of values in each.
    anchors: HashMap<usize, (Value, usize)>,
    nodes: usize,
}

impl<'a> Reader<'a> {
    /// The next event that says something about data.
    fn next(&mut self) -> Result<(Event<'a>, Span), YamlError> {
        loop {
            match self.parser.next_event() {
                None => return Err(YamlError { line: None, message: "the text ends within a document".into() }),
                Some(Err(e)) => return Err(YamlError { line: Some(e.marker().line()), message: first_line(&e.to_string()) }),
                Some(Ok((Event::Comment(..) | Event::Anchor(..), _))) => {}
                Some(Ok(event)) => return Ok(event),
            }
        }
    }

    fn count(&mut self, nodes: usize, span: Span) -> Result<(), YamlError> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > MAX_NODES {
            return Err(error(span, format!("more than {MAX_NODES} values, those repeated by aliases included")));
        }
        Ok(())
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Value, YamlError> {
        if depth > MAX_DEPTH {
            return Err(error(span, format!("lists and maps are nested deeper than {MAX_DEPTH}")));
        }
        self.count(1, span)?;
        let before = self.nodes;
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => (scalar(&text, style, tag.as_deref()).map_err(|m| error(span, m))?, anchor),
            Event::SequenceStart(_, anchor, _) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break (Value::Array(items), anchor),
                        (event, span) => items.push(self.node(event, span, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(_, anchor, _) => (self.map(depth)?, anchor),
            Event::Alias(id) => {
                let (value, nodes) = self.anchors.get(&id).cloned().ok_or_else(|| error(span, "an alias contains itself".into()))?;
                self.count(nodes, span)?;
                return Ok(value);
            }
            Event::UnresolvedAlias(name) => return Err(error(span, format!("unknown anchor '{name}' referenced"))),
            _ => return Err(error(span, "a value is expected".into())),
        };
        if anchor != 0 {
            self.anchors.insert(anchor, (value.clone(), self.nodes - before + 1));
        }
        Ok(value)
    }

    fn map(&mut self, depth: usize) -> Result<Value, YamlError> {
        let mut map = Map::new();
        let mut merged: Vec<Map<String, Value>> = Vec::new();
        loop {
            let (event, span) = match self.next()? {
                (Event::MappingEnd, _) => break,
                other => other,
            };
            let is_merge = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, _, None) if text == "<<");
            let key = match self.node(event, span, depth + 1)? {
                Value::String(s) => s,
                Value::Bool(b) => b.to_string(),
                Value::Number(n) => n.to_string(),
                Value::Null => "null".to_owned(),
                Value::Array(_) | Value::Object(_) => return Err(error(span, "a key must be a scalar".into())),
            };
            let (event, span) = self.next()?;
            let value = self.node(event, span, depth + 1)?;
            if !is_merge {
                map.insert(key, value);
                continue;
            }
            let sources = match value {
                Value::Object(m) => vec![m],
                Value::Array(items) => items
                    .into_iter()
                    .map(|i| if let Value::Object(m) = i { Some(m) } else { None })
                    .collect::<Option<_>>()
                    .ok_or_else(|| error(span, "map merge requires map or sequence of maps as the value".into()))?,
                _ => return Err(error(span, "map merge requires map or sequence of maps as the value".into())),
            };
            merged.extend(sources);
        }
        // Own keys win over merged ones, earlier sources over later ones.
        for source in merged {
            for (k, v) in source {
                map.entry(k).or_insert(v);
            }
        }
        Ok(Value::Object(map))
    }
}

fn error(span: Span, message: String) -> YamlError {
    YamlError { line: Some(span.start.line()), message }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, String> {
    match tag.map(Tag::core_suffix) {
        None if style == ScalarStyle::Plain => plain(text),
        // Quoted, or with a tag of somebody's own.
        None | Some(None) => Ok(Value::String(text.to_owned())),
        Some(Some("str")) => Ok(Value::String(text.to_owned())),
        Some(Some(tag @ ("int" | "float" | "bool" | "null"))) => {
            let value = plain(text)?;
            let fits = match tag {
                "int" => value.is_i64() || value.is_u64(),
                "float" => value.is_number(),
                "bool" => value.is_boolean(),
                _ => value.is_null(),
            };
            if fits { Ok(value) } else { Err(format!("cannot decode {} as a !!{tag}", crate::go::quote(text))) }
        }
        Some(Some("timestamp")) => Ok(Value::String(text.to_owned())),
        Some(Some(other)) => Err(format!("tag !!{other} is not supported")),
    }
}

/// A plain scalar by the rules of YAML 1.1.
fn plain(text: &str) -> Result<Value, String> {
    match text {
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => return Ok(Value::Bool(true)),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => return Ok(Value::Bool(false)),
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
        ".nan" | ".NaN" | ".NAN" => return Err("json: unsupported value: NaN".into()),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Err("json: unsupported value: +Inf".into()),
        "-.inf" | "-.Inf" | "-.INF" => return Err("json: unsupported value: -Inf".into()),
        _ => {}
    }
    if text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        let digits = text.replace('_', "");
        if let Some(n) = integer(&digits) {
            return Ok(Value::Number(n));
        }
        // A text as long as this is no number of a configuration; it would cost time to read.
        if digits.len() <= 64
            && is_float(&digits)
            && let Some(n) = digits.parse::<f64>().ok().and_then(Number::from_f64)
        {
            return Ok(Value::Number(n));
        }
    }
    Ok(Value::String(text.to_owned()))
}

/// An integer with Go's prefixes: `0x`, `0o` or `0` (octal), `0b`.
fn integer(text: &str) -> Option<Number> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let prefixed = |lower: &str, upper: &str| digits.strip_prefix(lower).or_else(|| digits.strip_prefix(upper));
    let (digits, radix) = if let Some(rest) = prefixed("0x", "0X") {
        (rest, 16)
    } else if let Some(rest) = prefixed("0o", "0O") {
        (rest, 8)
    } else if let Some(rest) = prefixed("0b", "0B") {
        (rest, 2)
    } else if digits.len() > 1 && digits.starts_with('0') {
        (digits, 8)
    } else {
        (digits, 10)
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return None;
    }
    let magnitude = u64::from_str_radix(digits, radix).ok()?;
    if negative { 0i64.checked_sub_unsigned(magnitude).map(Number::from) } else { Some(Number::from(magnitude)) }
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn is_float(text: &str) -> bool {
    let rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
        Some((m, e)) => (m, Some(e.strip_prefix(['-', '+']).unwrap_or(e))),
        None => (rest, None),
    };
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    let mantissa_ok = match mantissa.split_once('.') {
        Some(("", fraction)) => !fraction.is_empty() && digits(fraction),
        Some((whole, fraction)) => digits(whole) && digits(fraction),
        None => !mantissa.is_empty() && digits(mantissa),
    };
    mantissa_ok && exponent.is_none_or(|e| !e.is_empty() && digits(e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn scalars() {
        for (text, want) in [
            ("yes", json!(true)),
            ("No", json!(false)),
            ("on", json!(true)),
            ("y", json!(true)),
            ("yEs", json!("yEs")),
            ("'yes'", json!("yes")),
            ("\"no\"", json!("no")),
            ("~", json!(null)),
            ("null", json!(null)),
            ("nULL", json!("nULL")),
            ("010", json!(8)),
            ("08", json!(8.0)),
            ("0o17", json!(15)),
            ("0x1F", json!(31)),
            ("-0x10", json!(-16)),
            ("0b101", json!(5)),
            ("1_000", json!(1000)),
            ("+5", json!(5)),
            ("18446744073709551615", json!(18_446_744_073_709_551_615u64)),
            ("-9223372036854775808", json!(i64::MIN)),
            ("18446744073709551616", json!(18_446_744_073_709_551_616.0)),
            ("1.5", json!(1.5)),
            (".5", json!(0.5)),
            ("1e3", json!(1000.0)),
            ("1.2.3", json!("1.2.3")),
            ("10.0.0.1", json!("10.0.0.1")),
            ("1h", json!("1h")),
            ("-", json!([null])),
            ("-x", json!("-x")),
            ("2020-01-02", json!("2020-01-02")),
            ("2020-01-02T03:04:05Z", json!("2020-01-02T03:04:05Z")),
            ("12:30", json!("12:30")),
            ("!!str 5", json!("5")),
            ("!!int \"5\"", json!(5)),
            ("!mine 5", json!("5")),
            ("|\n  a\n  b\n", json!("a\nb\n")),
            (">-\n  a\n  b\n", json!("a b")),
        ] {
            assert_eq!(parse(&format!("v: {text}")).or_else(|_| parse(&format!("v:\n  {text}"))).unwrap(), json!({ "v": want }), "{text}");
        }
    }

    #[test]
    fn structure() {
        assert_eq!(parse("a: 1\na: 2").unwrap(), json!({"a": 2}), "the last of equal keys counts");
        assert_eq!(parse("1: a\ntrue: b\n1.5: c\n~: d").unwrap(), json!({"1": "a", "true": "b", "1.5": "c", "null": "d"}));
        assert_eq!(parse("y: 1").unwrap(), json!({"true": 1}), "keys are resolved as values are");
        assert_eq!(parse("x: &a {k: 1}\nz: *a").unwrap(), json!({"x": {"k": 1}, "z": {"k": 1}}));
        assert_eq!(
            parse("x: &a {k: 1, l: 2}\nw:\n  <<: *a\n  k: 3\nz:\n  <<: [*a, {m: 4, k: 9}]").unwrap(),
            json!({"x": {"k": 1, "l": 2}, "w": {"k": 3, "l": 2}, "z": {"k": 1, "l": 2, "m": 4}})
        );
        assert_eq!(parse("{\"a\":\t1}").unwrap(), json!({"a": 1}));
        assert_eq!(parse_documents("---\n---\na: 1\n---\n# nothing\n---\nb: 2\n...\n").unwrap(), [json!({"a": 1}), json!({"b": 2})]);
        assert_eq!(parse_documents("").unwrap(), Vec::<Value>::new());
        assert_eq!(parse_documents("# only a comment\n").unwrap(), Vec::<Value>::new());
        assert_eq!(parse("").unwrap(), Value::Null);
    }

    #[test]
    fn refused_with_a_line() {
        let line = |text: &str| parse_documents(text).unwrap_err().line;
        assert_eq!(line("a: 1\nb: [1, 2\nc: 3\n"), Some(3));
        assert_eq!(line("a: 1\nb: *x\n"), Some(2));
        assert_eq!(line("a: 1\n\n? [1, 2]\n: x\n"), Some(3));
        assert_eq!(line("a: 1\nb: .inf\n"), Some(2));
        assert_eq!(line("a: 1\nb: !!int x\n"), Some(2));
        assert_eq!(line("a: &x\n  b: *x\n"), Some(2));
        assert_eq!(line("a: 1\nb:\n  <<: 5\n"), Some(3));
        assert!(parse("a: 1\n---\nb: 2\n").unwrap_err().to_string().contains("one document is expected, the text has 2"));
        assert!(parse("a: 1\nb: *x\n").unwrap_err().to_string().starts_with("yaml: line 2: "));
    }

    #[test]
    fn limits() {
        assert!(parse(&"[".repeat(5000)).is_err());
        let deep = format!("{}1{}", "[".repeat(99), "]".repeat(99));
        assert!(parse(&format!("a: {deep}")).is_ok());
        let too_deep = format!("{}1{}", "[".repeat(101), "]".repeat(101));
        assert!(parse(&format!("a: {too_deep}")).is_err());
        // Nine levels of nine aliases each would be 387 million values.
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for i in 1..9 {
            let previous = format!("*a{}, ", i - 1).repeat(9);
            bomb.push_str(&format!("a{i}: &a{i} [{}]\n", previous.trim_end_matches(", ")));
        }
        assert!(parse(&bomb).unwrap_err().message.starts_with("more than 2000000 values"));
        assert_eq!(parse_documents(&" ".repeat(MAX_BYTES + 1)).unwrap_err().line, None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn never_panics(text in "[-a-z0-9:&*!<>|{}\\[\\],'\"#%~\\n\\t .]{0,80}") {
            let _ = parse_documents(&text);
        }
    }
}

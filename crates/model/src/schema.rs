//! Declarative schemas of `spec`-bodied kinds, applied as Kuma applies their OpenAPI schemas (reference: Kuma 2.14.3 REST
//! contract, §3.7): [`Schema::fill_defaults`], then [`Schema::check`] with the wording of kube-openapi, then
//! [`Schema::canonicalize`], which gives the form that Go's typed decoding and encoding would leave behind.

use crate::{go, violation::Violation};
use serde_json::{Map, Number, Value};

/// [`Schema::check`] looks no further once it has this many errors: a body of a megabyte could otherwise cause an answer of fifty.
pub const MAX_ERRORS: usize = 256;

/// A regular expression of a schema: its text for the message, and the same rule as a function.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    /// Text as it appears in the message.
    pub text: &'static str,
    /// Whether a value matches.
    pub matches: fn(&str) -> bool,
}

/// Integer types of the typed form; the schema knows only 32 and 64 bits, the rest is refused by the typed decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Int {
    /// `int32`
    I32,
    /// `int64`
    I64,
    /// `uint32`; written as `int32` in schemas.
    U32,
}

/// Shape of a value.
#[derive(Clone, Debug)]
enum Type {
    Object(Vec<Property>),
    Map(Box<Schema>),
    List { items: Box<Schema>, min: usize, max: usize },
    Text { min: usize, max: usize, pattern: Option<Pattern> },
    Duration,
    Int { kind: Int, min: Option<i64>, max: Option<i64> },
    IntOrText,
    Bool,
}

/// Rules for one value.
#[derive(Clone, Debug)]
pub struct Schema {
    ty: Type,
    default: Option<Value>,
    one_of: Vec<Value>,
}

/// A field of an object.
#[derive(Clone, Debug)]
pub struct Property {
    name: &'static str,
    schema: Schema,
    required: bool,
    always: bool,
    omit_empty: bool,
}

/// An object with these fields; others are dropped.
pub fn object(fields: Vec<Property>) -> Schema {
    Schema::of(Type::Object(fields))
}
/// A map from text to `values`.
pub fn map(values: Schema) -> Schema {
    Schema::of(Type::Map(Box::new(values)))
}
/// A map from text to text.
pub fn text_map() -> Schema {
    map(text())
}
/// A list.
pub fn list(items: Schema) -> Schema {
    Schema::of(Type::List { items: Box::new(items), min: 0, max: usize::MAX })
}
/// A text.
pub fn text() -> Schema {
    Schema::of(Type::Text { min: 0, max: usize::MAX, pattern: None })
}
/// A Go duration. Only its being a text is a matter of the schema; what does not parse fails in [`Schema::canonicalize`].
pub fn duration() -> Schema {
    Schema::of(Type::Duration)
}
/// An integer.
pub fn int(kind: Int) -> Schema {
    Schema::of(Type::Int { kind, min: None, max: None })
}
/// An integer, or a number as text.
pub fn int_or_text() -> Schema {
    Schema::of(Type::IntOrText)
}
/// A truth value.
pub fn boolean() -> Schema {
    Schema::of(Type::Bool)
}
/// An optional field.
pub fn field(name: &'static str, schema: Schema) -> Property {
    Property { name, schema, required: false, always: false, omit_empty: false }
}
/// A required field.
pub fn required(name: &'static str, schema: Schema) -> Property {
    Property { required: true, ..field(name, schema) }
}

impl Property {
    /// An absent object is written as `{}`: it is not a pointer in the typed form.
    pub fn always(mut self) -> Self {
        self.always = true;
        self
    }
    /// An empty text is dropped: it is not a pointer in the typed form.
    pub fn omit_empty(mut self) -> Self {
        self.omit_empty = true;
        self
    }
}

impl Schema {
    fn of(ty: Type) -> Self {
        Schema { ty, default: None, one_of: Vec::new() }
    }
    /// Value when the field is absent or null.
    pub fn or(mut self, default: impl Into<Value>) -> Self {
        self.default = Some(default.into());
        self
    }
    /// Only these values.
    pub fn one_of<V: Into<Value> + Clone>(mut self, values: &[V]) -> Self {
        self.one_of = values.iter().cloned().map(Into::into).collect();
        self
    }
    /// Smallest value of an integer, or least number of characters or items.
    pub fn at_least(mut self, limit: u32) -> Self {
        match &mut self.ty {
            Type::Int { min, .. } => *min = Some(i64::from(limit)),
            Type::Text { min, .. } | Type::List { min, .. } => *min = limit as usize,
            _ => {}
        }
        self
    }
    /// Largest value of an integer, or greatest number of characters or items.
    pub fn at_most(mut self, limit: u32) -> Self {
        match &mut self.ty {
            Type::Int { max, .. } => *max = Some(i64::from(limit)),
            Type::Text { max, .. } | Type::List { max, .. } => *max = limit as usize,
            _ => {}
        }
        self
    }
    /// Pattern of a text.
    pub fn matching(mut self, rule: Pattern) -> Self {
        if let Type::Text { pattern, .. } = &mut self.ty {
            *pattern = Some(rule);
        }
        self
    }

    /// Writes the defaults of absent (and null) fields into the objects that are there.
    pub fn fill_defaults(&self, value: &mut Value) {
        match (&self.ty, value) {
            (Type::Object(fields), Value::Object(map)) => {
                for p in fields {
                    if let Some(default) = &p.schema.default
                        && map.get(p.name).is_none_or(Value::is_null)
                    {
                        map.insert(p.name.to_owned(), default.clone());
                    }
                    if let Some(v) = map.get_mut(p.name) {
                        p.schema.fill_defaults(v);
                    }
                }
            }
            (Type::Map(values), Value::Object(map)) => map.values_mut().for_each(|v| values.fill_defaults(v)),
            (Type::List { items, .. }, Value::Array(list)) => list.iter_mut().for_each(|v| items.fill_defaults(v)),
            _ => {}
        }
    }

    /// Collects the errors of `value`, found at `path`, as kube-openapi words them.
    pub fn check(&self, value: &Value, path: &str, errors: &mut Vec<String>) {
        if errors.len() >= MAX_ERRORS {
            return;
        }
        let actual = type_of(value);
        let expected = self.type_name();
        let fits = match &self.ty {
            Type::Int { .. } => as_integer(value).is_some(),
            Type::IntOrText => value.is_string() || as_integer(value).is_some(),
            _ => actual == expected,
        };
        if !fits {
            errors.push(format!("{path} in body must be of type {expected}: {}", go::quote(actual)));
        }
        if !self.one_of.is_empty() && !self.one_of.iter().any(|v| same(v, value)) {
            let values: Vec<String> = self.one_of.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
            errors.push(format!("{path} in body should be one of [{}]", values.join(" ")));
        }
        if !fits {
            return;
        }
        match (&self.ty, value) {
            (Type::Object(fields), Value::Object(map)) => {
                for p in fields {
                    match map.get(p.name) {
                        Some(v) => p.schema.check(v, &join(path, p.name), errors),
                        None if p.required => errors.push(format!("{path}.{} in body is required", p.name)),
                        None => {}
                    }
                }
            }
            (Type::Map(values), Value::Object(map)) => {
                for (k, v) in map {
                    values.check(v, &join(path, k), errors);
                }
            }
            (Type::List { items, min, max }, Value::Array(list)) => {
                if list.len() < *min {
                    errors.push(format!("{path} in body should have at least {min} items"));
                }
                if list.len() > *max {
                    errors.push(format!("{path} in body should have at most {max} items"));
                }
                for (i, v) in list.iter().enumerate() {
                    items.check(v, &format!("{path}[{i}]"), errors);
                }
            }
            (Type::Text { min, max, pattern }, Value::String(s)) => {
                let chars = s.chars().count();
                if chars > *max {
                    errors.push(format!("{path} in body should be at most {max} chars long"));
                }
                if chars < *min {
                    errors.push(format!("{path} in body should be at least {min} chars long"));
                }
                if let Some(p) = pattern
                    && !(p.matches)(s)
                {
                    errors.push(format!("{path} in body should match '{}'", p.text));
                }
            }
            (Type::Int { kind, min, max }, _) => {
                let n = as_integer(value).unwrap_or_default();
                if let Some(max) = max
                    && n > i128::from(*max)
                {
                    errors.push(format!("{path} in body should be less than or equal to {max}"));
                }
                if let Some(min) = min
                    && n < i128::from(*min)
                {
                    errors.push(format!("{path} in body should be greater than or equal to {min}"));
                }
                let (fits, format) = match kind {
                    Int::I32 | Int::U32 => (i32::try_from(n).is_ok(), "int32"),
                    Int::I64 => (i64::try_from(n).is_ok(), "int64"),
                };
                if !fits {
                    errors.push(format!("Checked value must be of type integer with format {format} in {path}"));
                }
            }
            _ => {}
        }
    }

    /// Gives a checked value its canonical form: unknown fields dropped, durations and numbers as Go writes them. Errors with Go's
    /// text when the typed decoding would fail (a duration that does not parse, a negative unsigned number).
    pub fn canonicalize(&self, value: &mut Value) -> Result<(), String> {
        match &self.ty {
            Type::Object(fields) => {
                let mut old = match value.take() {
                    Value::Object(map) => map,
                    other => {
                        *value = other;
                        return Ok(());
                    }
                };
                let mut new = Map::new();
                for p in fields {
                    let v = match old.remove(p.name) {
                        Some(v) => Some(v),
                        None if p.always => Some(Value::Object(Map::new())),
                        None => None,
                    };
                    if let Some(mut v) = v {
                        p.schema.canonicalize(&mut v)?;
                        if !(p.omit_empty && v.as_str() == Some("")) {
                            new.insert(p.name.to_owned(), v);
                        }
                    }
                }
                *value = Value::Object(new);
                Ok(())
            }
            Type::Map(values) => value.as_object_mut().into_iter().flatten().try_for_each(|(_, v)| values.canonicalize(v)),
            Type::List { items, .. } => value.as_array_mut().into_iter().flatten().try_for_each(|v| items.canonicalize(v)),
            Type::Duration => {
                if let Some(text) = value.as_str() {
                    *value = Value::String(go::format_duration(go::parse_duration(text)?));
                }
                Ok(())
            }
            Type::Int { kind, .. } => {
                let Some(n) = as_integer(value) else { return Ok(()) };
                let (number, name) = match kind {
                    Int::I32 => (i32::try_from(n).ok().map(Number::from), "int32"),
                    Int::I64 => (i64::try_from(n).ok().map(Number::from), "int64"),
                    Int::U32 => (u32::try_from(n).ok().map(Number::from), "uint32"),
                };
                let number = number.ok_or_else(|| format!("json: cannot unmarshal number {n} into Go value of type {name}"))?;
                *value = Value::Number(number);
                Ok(())
            }
            Type::IntOrText => {
                if let Some(n) = as_integer(value) {
                    // The typed form is a 32-bit integer.
                    let n = i32::try_from(n).map_err(|_| format!("json: cannot unmarshal number {n} into Go value of type int32"))?;
                    *value = Value::from(n);
                }
                Ok(())
            }
            Type::Text { .. } | Type::Bool => Ok(()),
        }
    }

    /// A value with all fields, in canonical form.
    #[cfg(test)]
    pub(crate) fn example(&self) -> Value {
        use serde_json::json;
        if let Some(v) = self.default.clone().or_else(|| self.one_of.first().cloned()) {
            return v;
        }
        match &self.ty {
            Type::Object(fields) => Value::Object(fields.iter().map(|p| (p.name.to_owned(), p.schema.example())).collect()),
            Type::Map(values) => json!({ "key": values.example() }),
            Type::List { items, .. } => json!([items.example()]),
            Type::Text { .. } => json!("some-text"),
            Type::Duration => json!("1m30s"),
            Type::Int { .. } => json!(7),
            Type::IntOrText => json!("0.5"),
            Type::Bool => json!(true),
        }
    }

    fn type_name(&self) -> &'static str {
        match self.ty {
            Type::Object(_) | Type::Map(_) => "object",
            Type::List { .. } => "array",
            Type::Text { .. } | Type::Duration => "string",
            Type::Int { .. } => "integer",
            Type::IntOrText => "integer,string",
            Type::Bool => "boolean",
        }
    }
}

/// A schema error as a violation: a text whose first word is a path below `spec` gives that path, any other an empty one.
pub fn violation(error: &str) -> Violation {
    match error.split_once(' ') {
        Some((path, rest)) if path.starts_with("spec.") => Violation::new(path, rest),
        _ => Violation::new("", error),
    }
}

/// A number without fraction.
fn as_integer(value: &Value) -> Option<i128> {
    let n = value.as_number()?;
    if let Some(i) = n.as_i128() {
        return Some(i);
    }
    // 5.0 is an integer in JSON schemas; beyond 2^64 nothing fits any of the integer types anyway.
    n.as_f64().filter(|f| f.fract() == 0.0 && f.abs() <= 1.9e19).map(|f| f as i128)
}

fn same(a: &Value, b: &Value) -> bool {
    a == b || matches!((as_integer(a), as_integer(b)), (Some(x), Some(y)) if x == y)
}

/// JSON schema's name of a value's type. Numbers are read as floats before validation, hence `number` for integers too.
fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample() -> Schema {
        object(vec![
            required("kind", text().one_of(&["A", "B"])),
            field("port", int(Int::I32).at_least(1).at_most(65535)),
            field("weight", int(Int::U32).or(1)),
            field("code", int(Int::I32).one_of(&[301, 302])),
            field(
                "name",
                text()
                    .at_least(1)
                    .at_most(3)
                    .matching(Pattern { text: "^[a-z]*$", matches: |s| s.bytes().all(|b| b.is_ascii_lowercase()) }),
            ),
            field("tags", text_map()),
            field("items", list(object(vec![field("every", duration()), field("value", text()).omit_empty()])).at_least(1)),
            field("percent", int_or_text()),
            field("on", boolean()),
            field("inner", object(vec![field("x", text())])).always(),
        ])
    }

    fn errors(v: Value) -> Vec<String> {
        let mut out = Vec::new();
        sample().check(&v, "spec", &mut out);
        out
    }

    #[test]
    fn wording() {
        assert_eq!(errors(json!({"kind": "A"})), Vec::<String>::new());
        assert_eq!(
            errors(json!({"kind": "C", "port": 70000, "name": "", "items": [], "code": 300, "tags": {"a": 1}})),
            [
                "spec.kind in body should be one of [A B]",
                "spec.port in body should be less than or equal to 65535",
                "spec.code in body should be one of [301 302]",
                "spec.name in body should be at least 1 chars long",
                "spec.tags.a in body must be of type string: \"number\"",
                "spec.items in body should have at least 1 items",
            ]
        );
        assert_eq!(
            errors(json!({"port": 0, "name": "ABCD", "items": [{"every": 5}], "percent": true, "on": "x", "inner": null})),
            [
                "spec.kind in body is required",
                "spec.port in body should be greater than or equal to 1",
                "spec.name in body should be at most 3 chars long",
                "spec.name in body should match '^[a-z]*$'",
                "spec.items[0].every in body must be of type string: \"number\"",
                "spec.percent in body must be of type integer,string: \"boolean\"",
                "spec.on in body must be of type boolean: \"string\"",
                "spec.inner in body must be of type object: \"null\"",
            ]
        );
        assert_eq!(errors(json!([])), ["spec in body must be of type object: \"array\""]);
        assert_eq!(
            errors(json!({"kind": "A", "weight": 4294967295_u32})),
            ["Checked value must be of type integer with format int32 in spec.weight"]
        );
        assert_eq!(errors(json!({"kind": "A", "weight": 1.5})), ["spec.weight in body must be of type integer: \"number\""]);
    }

    #[test]
    fn errors_are_bounded() {
        let found = errors(json!({"kind": "A", "items": vec![json!({"every": 1}); 5000]}));
        assert_eq!(found.len(), MAX_ERRORS);
    }

    #[test]
    fn violations_of_texts() {
        assert_eq!(violation("spec.match in body is required"), Violation::new("spec.match", "in body is required"));
        assert_eq!(violation("type in body should be one of [X]"), Violation::new("", "type in body should be one of [X]"));
    }

    #[test]
    fn defaults_and_canonical_form() {
        let s = sample();
        let mut v = json!({"zzz": 1, "kind": "A", "weight": null, "percent": 50.0, "items": [{"every": "2h", "value": "", "b": 1}]});
        s.fill_defaults(&mut v);
        s.canonicalize(&mut v).unwrap();
        assert_eq!(v, json!({"kind": "A", "weight": 1, "percent": 50, "items": [{"every": "2h0m0s"}], "inner": {}}));
        let mut bad = json!({"items": [{"every": "x"}]});
        assert_eq!(s.canonicalize(&mut bad).unwrap_err(), "time: invalid duration \"x\"");
        let mut bad = json!({"weight": -1});
        assert_eq!(s.canonicalize(&mut bad).unwrap_err(), "json: cannot unmarshal number -1 into Go value of type uint32");
    }
}

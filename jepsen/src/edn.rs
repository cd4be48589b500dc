//! EDN, the data format of Jepsen's histories (<https://github.com/edn-format/edn>): what histories need of it, read and written.

use std::fmt;

/// Deepest nesting that is read.
const MAX_DEPTH: usize = 64;

/// A value. Maps and sets keep the order they were read or built in; they are equal only in the same order.
#[derive(Clone, Debug, PartialEq)]
pub enum Edn {
    /// `nil`
    Nil,
    /// `true`, `false`
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number with a fraction.
    Float(f64),
    /// `"text"`
    Str(String),
    /// `:name`, without its colon.
    Keyword(String),
    /// `name`
    Symbol(String),
    /// `[a b]`
    Vector(Vec<Edn>),
    /// `(a b)`
    List(Vec<Edn>),
    /// `#{a b}`
    Set(Vec<Edn>),
    /// `{k v}`
    Map(Vec<(Edn, Edn)>),
    /// `#tag value`
    Tagged(String, Box<Edn>),
}

impl Edn {
    /// A keyword.
    pub fn keyword(name: &str) -> Edn {
        Edn::Keyword(name.to_owned())
    }
    /// A text.
    pub fn text(text: impl Into<String>) -> Edn {
        Edn::Str(text.into())
    }
    /// Of a number; what does not fit becomes the largest.
    pub fn int(n: u64) -> Edn {
        Edn::Int(i64::try_from(n).unwrap_or(i64::MAX))
    }
    /// `nil` for `None`.
    pub fn option(n: Option<i64>) -> Edn {
        n.map_or(Edn::Nil, Edn::Int)
    }
    /// Value of a keyword key of a map.
    pub fn get(&self, key: &str) -> Option<&Edn> {
        let Edn::Map(pairs) = self else { return None };
        pairs.iter().find(|(k, _)| matches!(k, Edn::Keyword(name) if name == key)).map(|(_, v)| v)
    }
    /// A whole number.
    pub fn as_int(&self) -> Option<i64> {
        if let Edn::Int(n) = self { Some(*n) } else { None }
    }
    /// A keyword, symbol or text.
    pub fn as_name(&self) -> Option<&str> {
        if let Edn::Keyword(s) | Edn::Symbol(s) | Edn::Str(s) = self { Some(s) } else { None }
    }
    /// Elements of a vector, list or set.
    pub fn items(&self) -> Option<&[Edn]> {
        if let Edn::Vector(v) | Edn::List(v) | Edn::Set(v) = self { Some(v) } else { None }
    }
}

fn write_all(f: &mut fmt::Formatter<'_>, open: &str, items: &[Edn], close: char) -> fmt::Result {
    f.write_str(open)?;
    for (i, item) in items.iter().enumerate() {
        write!(f, "{}{item}", if i > 0 { " " } else { "" })?;
    }
    write!(f, "{close}")
}

impl fmt::Display for Edn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Edn::Nil => f.write_str("nil"),
            Edn::Bool(b) => write!(f, "{b}"),
            Edn::Int(n) => write!(f, "{n}"),
            Edn::Float(x) if x.is_nan() => f.write_str("##NaN"),
            Edn::Float(x) if x.is_infinite() => f.write_str(if *x > 0.0 { "##Inf" } else { "##-Inf" }),
            Edn::Float(x) => write!(f, "{x:?}"),
            Edn::Str(s) => {
                f.write_str("\"")?;
                for c in s.chars() {
                    match c {
                        '"' => f.write_str("\\\"")?,
                        '\\' => f.write_str("\\\\")?,
                        '\n' => f.write_str("\\n")?,
                        '\r' => f.write_str("\\r")?,
                        '\t' => f.write_str("\\t")?,
                        c => write!(f, "{c}")?,
                    }
                }
                f.write_str("\"")
            }
            Edn::Keyword(s) => write!(f, ":{s}"),
            Edn::Symbol(s) => f.write_str(s),
            Edn::Vector(v) => write_all(f, "[", v, ']'),
            Edn::List(v) => write_all(f, "(", v, ')'),
            Edn::Set(v) => write_all(f, "#{", v, '}'),
            Edn::Map(pairs) => {
                f.write_str("{")?;
                for (i, (k, v)) in pairs.iter().enumerate() {
                    write!(f, "{}{k} {v}", if i > 0 { ", " } else { "" })?;
                }
                f.write_str("}")
            }
            Edn::Tagged(tag, value) => write!(f, "#{tag} {value}"),
        }
    }
}

/// Why a text is not EDN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdnError {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for EdnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for EdnError {}

/// All values of a text, one after another.
pub fn parse_all(text: &str) -> Result<Vec<Edn>, EdnError> {
    let mut p = Parser { rest: text, line: 1 };
    let mut out = Vec::new();
    while let Some(v) = p.value(0)? {
        out.push(v);
    }
    if p.rest.is_empty() { Ok(out) } else { Err(p.error("a closing bracket without an opening one")) }
}

struct Parser<'a> {
    rest: &'a str,
    line: usize,
}

fn is_delimiter(c: char) -> bool {
    c.is_whitespace() || ",;\"()[]{}".contains(c)
}

impl<'a> Parser<'a> {
    fn error(&self, what: impl Into<String>) -> EdnError {
        EdnError { line: self.line, what: what.into() }
    }
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }
    fn bump(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.rest = self.rest.get(c.len_utf8()..).unwrap_or("");
        if c == '\n' {
            self.line += 1;
        }
        Some(c)
    }
    fn token(&mut self) -> &'a str {
        let end = self.rest.find(is_delimiter).unwrap_or(self.rest.len());
        let (token, rest) = self.rest.split_at(end);
        self.rest = rest;
        token
    }
    fn skip_space(&mut self) {
        while let Some(c) = self.peek() {
            if c == ';' {
                while self.peek().is_some_and(|c| c != '\n') {
                    self.bump();
                }
            } else if c.is_whitespace() || c == ',' {
                self.bump();
            } else {
                return;
            }
        }
    }
    /// The next value; `None` at the end of the text or before a closing bracket.
    fn value(&mut self, depth: usize) -> Result<Option<Edn>, EdnError> {
        if depth > MAX_DEPTH {
            return Err(self.error(format!("nested deeper than {MAX_DEPTH}")));
        }
        self.skip_space();
        let Some(c) = self.peek() else { return Ok(None) };
        match c {
            ')' | ']' | '}' => Ok(None),
            '(' => self.items(')', depth).map(|v| Some(Edn::List(v))),
            '[' => self.items(']', depth).map(|v| Some(Edn::Vector(v))),
            '{' => {
                let items = self.items('}', depth)?;
                if items.len() % 2 != 0 {
                    return Err(self.error("a map with a key that has no value"));
                }
                let mut pairs = Vec::with_capacity(items.len() / 2);
                let mut items = items.into_iter();
                while let (Some(k), Some(v)) = (items.next(), items.next()) {
                    pairs.push((k, v));
                }
                Ok(Some(Edn::Map(pairs)))
            }
            '"' => self.text().map(|s| Some(Edn::Str(s))),
            '#' => self.dispatch(depth),
            ':' => {
                self.bump();
                let name = self.token();
                if name.is_empty() { Err(self.error("a keyword without a name")) } else { Ok(Some(Edn::keyword(name))) }
            }
            _ => {
                let token = self.token();
                self.atom(token).map(Some)
            }
        }
    }
    fn items(&mut self, close: char, depth: usize) -> Result<Vec<Edn>, EdnError> {
        let start = self.line;
        self.bump();
        let mut out = Vec::new();
        while let Some(v) = self.value(depth + 1)? {
            out.push(v);
        }
        match self.bump() {
            Some(c) if c == close => Ok(out),
            Some(c) => Err(self.error(format!("`{c}` where `{close}` of line {start} is missing"))),
            None => Err(self.error(format!("the end where `{close}` of line {start} is missing"))),
        }
    }
    fn text(&mut self) -> Result<String, EdnError> {
        self.bump();
        let mut out = String::new();
        loop {
            match self.bump() {
                None => return Err(self.error("a text without its end")),
                Some('"') => return Ok(out),
                Some('\\') => match self.bump() {
                    Some('n') => out.push('\n'),
                    Some('r') => out.push('\r'),
                    Some('t') => out.push('\t'),
                    Some(c @ ('"' | '\\')) => out.push(c),
                    _ => return Err(self.error("an unknown escape in a text")),
                },
                Some(c) => out.push(c),
            }
        }
    }
    fn dispatch(&mut self, depth: usize) -> Result<Option<Edn>, EdnError> {
        self.bump();
        match self.peek() {
            Some('{') => self.items('}', depth).map(|v| Some(Edn::Set(v))),
            Some('_') => {
                self.bump();
                self.value(depth + 1)?.ok_or_else(|| self.error("#_ without a value to leave out"))?;
                self.value(depth + 1)
            }
            Some('#') => {
                self.bump();
                match self.token() {
                    "NaN" => Ok(Some(Edn::Float(f64::NAN))),
                    "Inf" => Ok(Some(Edn::Float(f64::INFINITY))),
                    "-Inf" => Ok(Some(Edn::Float(f64::NEG_INFINITY))),
                    other => Err(self.error(format!("unknown ##{other}"))),
                }
            }
            _ => {
                let tag = self.token().to_owned();
                if tag.is_empty() {
                    return Err(self.error("# without a tag"));
                }
                let value = self.value(depth + 1)?.ok_or_else(|| self.error(format!("#{tag} without a value")))?;
                Ok(Some(Edn::Tagged(tag, Box::new(value))))
            }
        }
    }
    fn atom(&self, token: &str) -> Result<Edn, EdnError> {
        match token {
            "nil" => return Ok(Edn::Nil),
            "true" => return Ok(Edn::Bool(true)),
            "false" => return Ok(Edn::Bool(false)),
            "" => return Err(self.error("an unexpected character")),
            _ => {}
        }
        let digits = token.trim_start_matches(['+', '-']);
        if !digits.starts_with(|c: char| c.is_ascii_digit()) {
            return Ok(Edn::Symbol(token.to_owned()));
        }
        // N marks big integers, which Clojure writes also for small values.
        if let Ok(n) = token.trim_end_matches('N').parse() {
            return Ok(Edn::Int(n));
        }
        token.trim_end_matches('M').parse().map(Edn::Float).map_err(|_| self.error(format!("`{token}` is not a number")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(text: &str) -> Edn {
        let mut all = parse_all(text).unwrap();
        assert_eq!(all.len(), 1, "{text}");
        all.remove(0)
    }

    #[test]
    fn what_jepsen_writes() {
        let op = one("{:process 3, :type :invoke, :f :cas, :value [1 [nil 2N]], :index 7, :time 12345678901 :error [:net \"re\\\"set\"]}");
        assert_eq!(op.get("process"), Some(&Edn::Int(3)));
        assert_eq!(op.get("value"), Some(&Edn::Vector(vec![Edn::Int(1), Edn::Vector(vec![Edn::Nil, Edn::Int(2)])])));
        assert_eq!(op.get("time").and_then(Edn::as_int), Some(12_345_678_901));
        assert_eq!(op.get("error").unwrap().to_string(), "[:net \"re\\\"set\"]");
        assert_eq!(op.get("none"), None);
        assert_eq!(one("#{1 2}"), Edn::Set(vec![Edn::Int(1), Edn::Int(2)]));
        assert_eq!(one("; before\n#_ (gone \"x\") -1.5e3 ; after"), Edn::Float(-1500.0));
        assert_eq!(one("#inst \"2026-01-01\"").to_string(), "#inst \"2026-01-01\"");
        assert_eq!(parse_all("a :b/c ()").unwrap(), vec![Edn::Symbol("a".into()), Edn::keyword("b/c"), Edn::List(vec![])]);
        assert_eq!(parse_all(" ,, ; nothing").unwrap(), vec![]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, line, part) in [
            ("{:a 1\n:b}", 2, "no value"),
            ("[1\n(2]", 2, "where `)` of line 2"),
            ("\n\"abc", 2, "without its end"),
            ("1 ]", 1, "without an opening"),
            ("[1 2", 1, "the end where `]`"),
            ("\"\\q\"", 1, "escape"),
            ("12x", 1, "not a number"),
            (": a", 1, "keyword"),
            ("#", 1, "tag"),
            ("#_", 1, "leave out"),
        ] {
            let e = parse_all(text).unwrap_err();
            assert_eq!(e.line, line, "{text}: {e}");
            assert!(e.what.contains(part), "{text}: {e}");
        }
        assert!(parse_all(&"[".repeat(100_000)).unwrap_err().what.contains("deeper"));
    }

    fn any_edn() -> impl Strategy<Value = Edn> {
        let leaf = prop_oneof![
            Just(Edn::Nil),
            any::<bool>().prop_map(Edn::Bool),
            any::<i64>().prop_map(Edn::Int),
            any::<f64>().prop_filter("NaN is not equal to itself", |x| !x.is_nan()).prop_map(Edn::Float),
            any::<String>().prop_map(Edn::Str),
            "[a-z][a-z0-9/?!-]{0,8}".prop_map(Edn::Keyword),
            "[a-z]{4,8}[?!]".prop_map(Edn::Symbol),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Edn::Vector),
                prop::collection::vec(inner.clone(), 0..6).prop_map(Edn::List),
                prop::collection::vec(inner.clone(), 0..6).prop_map(Edn::Set),
                prop::collection::vec((inner.clone(), inner.clone()), 0..6).prop_map(Edn::Map),
                ("[a-z]{1,6}", inner).prop_map(|(t, v)| Edn::Tagged(t, Box::new(v))),
            ]
        })
    }

    proptest! {
        #[test]
        fn written_and_read_is_the_same(v in any_edn()) {
            prop_assert_eq!(parse_all(&v.to_string()), Ok(vec![v]));
        }
        #[test]
        fn no_text_panics(text in any::<String>(), noise in "[\\[\\](){}#_:;\"\\\\a1 \n]{0,40}") {
            let _ = parse_all(&text);
            let _ = parse_all(&noise);
        }
    }
}

//! Syntax errors of JSON in the words of Go's `encoding/json`, which clients of the contract see.

use crate::go;

/// What the scanner is inside of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inside {
    Object,
    Array,
}

/// The first syntax error of `text`, e.g. `invalid character 'n' looking for beginning of object key string`. `None` when Go finds none.
/// Bytes that are no UTF-8 are fine inside strings, as they are in Go.
pub fn syntax_error(text: &[u8]) -> Option<String> {
    Scanner { text, at: 0 }.document().err()
}

struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }
    fn skip_blanks(&mut self) {
        while self.peek().is_some_and(|b| matches!(b, b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }
    /// The error at the current byte.
    fn unexpected(&self, context: &str) -> String {
        match self.peek() {
            None => "unexpected end of JSON input".to_owned(),
            Some(b) => format!("invalid character {} {context}", quote_byte(b)),
        }
    }

    fn document(&mut self) -> Result<(), String> {
        let mut stack: Vec<Inside> = Vec::new();
        loop {
            // One value begins here; an opened list or map begins its first one.
            self.skip_blanks();
            match self.peek() {
                Some(b'{') => {
                    self.at += 1;
                    self.skip_blanks();
                    if self.peek() == Some(b'}') {
                        self.at += 1;
                    } else {
                        stack.push(Inside::Object);
                        self.key()?;
                        continue;
                    }
                }
                Some(b'[') => {
                    self.at += 1;
                    self.skip_blanks();
                    if self.peek() == Some(b']') {
                        self.at += 1;
                    } else {
                        stack.push(Inside::Array);
                        continue;
                    }
                }
                Some(b'"') => self.string()?,
                Some(b'-' | b'0'..=b'9') => self.number()?,
                Some(b't') => self.literal("true")?,
                Some(b'f') => self.literal("false")?,
                Some(b'n') => self.literal("null")?,
                _ => return Err(self.unexpected("looking for beginning of value")),
            }
            // A value ended: close what ends here, then go on to the next value.
            loop {
                self.skip_blanks();
                match (stack.last(), self.peek()) {
                    (None, None) => return Ok(()),
                    (None, Some(_)) => return Err(self.unexpected("after top-level value")),
                    (Some(Inside::Object), Some(b'}')) | (Some(Inside::Array), Some(b']')) => {
                        self.at += 1;
                        stack.pop();
                    }
                    (Some(Inside::Object), Some(b',')) => {
                        self.at += 1;
                        self.skip_blanks();
                        self.key()?;
                        break;
                    }
                    (Some(Inside::Array), Some(b',')) => {
                        self.at += 1;
                        break;
                    }
                    (Some(Inside::Object), _) => return Err(self.unexpected("after object key:value pair")),
                    (Some(Inside::Array), _) => return Err(self.unexpected("after array element")),
                }
            }
        }
    }

    /// A key and its colon.
    fn key(&mut self) -> Result<(), String> {
        if self.peek() != Some(b'"') {
            return Err(self.unexpected("looking for beginning of object key string"));
        }
        self.string()?;
        self.skip_blanks();
        if self.peek() != Some(b':') {
            return Err(self.unexpected("after object key"));
        }
        self.at += 1;
        Ok(())
    }

    fn string(&mut self) -> Result<(), String> {
        self.at += 1;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => {
                    self.at += 1;
                    match self.peek() {
                        Some(b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"') => self.at += 1,
                        Some(b'u') => {
                            self.at += 1;
                            for _ in 0..4 {
                                if !self.peek().is_some_and(|b| b.is_ascii_hexdigit()) {
                                    return Err(self.unexpected("in \\u hexadecimal character escape"));
                                }
                                self.at += 1;
                            }
                        }
                        _ => return Err(self.unexpected("in string escape code")),
                    }
                }
                Some(0x20..) => self.at += 1,
                _ => return Err(self.unexpected("in string literal")),
            }
        }
    }

    fn digits(&mut self, context: &str) -> Result<(), String> {
        if !self.peek().is_some_and(|b| b.is_ascii_digit()) {
            return Err(self.unexpected(context));
        }
        while self.peek().is_some_and(|b| b.is_ascii_digit()) {
            self.at += 1;
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), String> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits("in numeric literal")?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits("after decimal point in numeric literal")?;
        }
        if self.peek().is_some_and(|b| matches!(b, b'e' | b'E')) {
            self.at += 1;
            if self.peek().is_some_and(|b| matches!(b, b'+' | b'-')) {
                self.at += 1;
            }
            self.digits("in exponent of numeric literal")?;
        }
        Ok(())
    }

    fn literal(&mut self, word: &str) -> Result<(), String> {
        self.at += 1;
        for expected in word.bytes().skip(1) {
            if self.peek() != Some(expected) {
                return Err(self.unexpected(&format!("in literal {word} (expecting '{}')", char::from(expected))));
            }
            self.at += 1;
        }
        Ok(())
    }
}

/// Go quotes the byte as a character, in single quotes.
fn quote_byte(b: u8) -> String {
    match b {
        b'\'' => r"'\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        _ => {
            let quoted = go::quote(char::from(b).encode_utf8(&mut [0; 4]));
            format!("'{}'", quoted.trim_start_matches('"').trim_end_matches('"'))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn texts() {
        for (text, error) in [
            ("{, }", "invalid character ',' looking for beginning of object key string"),
            ("{not json", "invalid character 'n' looking for beginning of object key string"),
            ("", "unexpected end of JSON input"),
            ("{\"a\" 1}", "invalid character '1' after object key"),
            ("{\"a\": 1 \"b\"}", "invalid character '\"' after object key:value pair"),
            ("{\"a\": 1,}", "invalid character '}' looking for beginning of object key string"),
            ("[1 2]", "invalid character '2' after array element"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
            ("{} x", "invalid character 'x' after top-level value"),
            ("tru3", "invalid character '3' in literal true (expecting 'e')"),
            ("-a", "invalid character 'a' in numeric literal"),
            ("1.x", "invalid character 'x' after decimal point in numeric literal"),
            ("1ex", "invalid character 'x' in exponent of numeric literal"),
            ("01", "invalid character '1' after top-level value"),
            ("\"a\nb\"", "invalid character '\\n' in string literal"),
            ("\"\\x\"", "invalid character 'x' in string escape code"),
            ("\"\\u00g0\"", "invalid character 'g' in \\u hexadecimal character escape"),
            ("'a'", "invalid character '\\'' looking for beginning of value"),
            ("{\"a\": [", "unexpected end of JSON input"),
        ] {
            assert_eq!(syntax_error(text.as_bytes()).as_deref(), Some(error), "{text}");
        }
        for text in ["{}", " [] ", "[1, {\"a\": [\"\\u00e9\", -0.5e+3, null, true, false]}]", "0"] {
            assert_eq!(syntax_error(text.as_bytes()), None, "{text}");
        }
        assert_eq!(syntax_error(b"\"\xff\""), None);
    }

    proptest! {
        /// Both readers agree on what is JSON.
        #[test]
        fn agrees_with_serde(text in "[\\[\\]{}:,\"a0.eE+ntrulfs \\\\-]{0,16}") {
            prop_assert_eq!(syntax_error(text.as_bytes()).is_none(), serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{}", text);
        }
    }
}

//! Mustache templates (mustache(5)) over a tree of strings: variables, unescaped variables, sections, inverted sections, comments and other
//! delimiters. Partials render nothing: a template here is one file.

use serde_json::{Map, Value};

/// Most tags nested in one another.
const MAX_DEPTH: usize = 64;
/// Longest text that is rendered, in bytes.
const MAX_OUTPUT: usize = 16 << 20;

/// Why a template cannot be rendered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MustacheError {
    /// Line of the template, from 1.
    pub line: usize,
    /// What is wrong.
    pub reason: String,
}

impl std::fmt::Display for MustacheError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "template line {}: {}", self.line, self.reason)
    }
}

impl std::error::Error for MustacheError {}

/// The tree of `key=value` pairs: dotted keys nest (`a.b=1` → `{{ a.b }}`, also inside `{{#a}}`); a later pair replaces an earlier one.
pub fn variables<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Value {
    let mut root = Map::new();
    for (key, value) in pairs {
        let mut at = &mut root;
        let mut parts = key.split('.').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                at.insert(part.to_owned(), Value::String(value.to_owned()));
                break;
            }
            let next = at.entry(part).or_insert_with(|| Value::Object(Map::new()));
            if !next.is_object() {
                *next = Value::Object(Map::new());
            }
            let Value::Object(map) = next else { break };
            at = map;
        }
    }
    Value::Object(root)
}

#[derive(Debug)]
enum Node<'t> {
    Text(&'t str),
    Variable { name: &'t str, raw: bool },
    Section { name: &'t str, inverted: bool, body: Vec<Node<'t>> },
}

/// Renders a template. Unknown variables are empty; `{{ x }}` is HTML-escaped, `{{{ x }}}` and `{{& x }}` are not.
///
/// # Errors
/// A tag or section is not closed, or the result is longer than 16 MiB.
pub fn render(template: &str, variables: &Value) -> Result<String, MustacheError> {
    let nodes = parse(template)?;
    let mut out = String::with_capacity(template.len());
    write(&nodes, &mut vec![variables], &mut out)?;
    Ok(out)
}

struct Open<'t> {
    name: &'t str,
    inverted: bool,
    line: usize,
    before: Vec<Node<'t>>,
}

fn line_of(template: &str, at: usize) -> usize {
    template.get(..at).unwrap_or(template).matches('\n').count() + 1
}

/// Whether the tag stands alone on its line: then the whole line goes. Gives the ends of the text before and of the line.
fn standalone(template: &str, start: usize, end: usize) -> Option<(usize, usize)> {
    let before = template.get(..start)?;
    let after = template.get(end..)?;
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    let blank = |s: &str| s.chars().all(|c| c == ' ' || c == '\t');
    if !blank(before.get(line_start..)?) {
        return None;
    }
    let (rest, line_end) = match after.find('\n') {
        Some(i) => (after.get(..i)?, end + i + 1),
        None => (after, template.len()),
    };
    blank(rest.strip_suffix('\r').unwrap_or(rest)).then_some((line_start, line_end))
}

fn parse(template: &str) -> Result<Vec<Node<'_>>, MustacheError> {
    let (mut open, mut close) = ("{{", "}}");
    let mut nodes: Vec<Node<'_>> = Vec::new();
    let mut stack: Vec<Open<'_>> = Vec::new();
    let mut pos = 0;
    let fail = |at: usize, reason: String| MustacheError { line: line_of(template, at), reason };
    while let Some(found) = template.get(pos..).and_then(|rest| rest.find(open)) {
        let start = pos + found;
        let after = start + open.len();
        let rest = template.get(after..).unwrap_or("");
        let triple = rest.starts_with('{');
        let set = rest.starts_with('=');
        let ending = match (triple, set) {
            (true, _) => format!("}}{close}"),
            (_, true) => format!("={close}"),
            _ => close.to_owned(),
        };
        let inner = usize::from(triple || set);
        let length = rest.get(inner..).and_then(|r| r.find(&ending)).ok_or_else(|| fail(start, format!("tag {open} is not closed")))?;
        let body = rest.get(inner..inner + length).unwrap_or("");
        let end = after + inner + length + ending.len();
        let trimmed = body.trim();
        let sigil = if triple || set { None } else { trimmed.chars().next().filter(|c| "#^/!>&".contains(*c)) };
        let name = sigil.map_or(trimmed, |c| trimmed.get(c.len_utf8()..).unwrap_or("").trim());
        let alone = if set || matches!(sigil, Some('#' | '^' | '/' | '!' | '>')) { standalone(template, start, end) } else { None };
        let (text_end, next) = alone.unwrap_or((start, end));
        // A standalone tag directly after another one on the same line cannot be: `text_end` never lies before `pos` then.
        if let Some(text) = template.get(pos..text_end.max(pos)).filter(|t| !t.is_empty()) {
            nodes.push(Node::Text(text));
        }
        pos = next;
        if set {
            let mut parts = trimmed.split_whitespace();
            match (parts.next(), parts.next(), parts.next()) {
                (Some(o), Some(c), None) => (open, close) = (o, c),
                _ => return Err(fail(start, "a delimiter tag needs two delimiters".to_owned())),
            }
            continue;
        }
        match sigil {
            None => nodes.push(Node::Variable { name, raw: triple }),
            Some('&') => nodes.push(Node::Variable { name, raw: true }),
            Some('#' | '^') => {
                if stack.len() >= MAX_DEPTH {
                    return Err(fail(start, format!("more than {MAX_DEPTH} nested sections")));
                }
                let before = std::mem::take(&mut nodes);
                stack.push(Open { name, inverted: sigil == Some('^'), line: line_of(template, start), before });
            }
            Some('/') => {
                let section = stack.pop().ok_or_else(|| fail(start, format!("section {name} is closed but was not opened")))?;
                if section.name != name {
                    return Err(fail(start, format!("section {} is closed as {name}", section.name)));
                }
                let body = std::mem::replace(&mut nodes, section.before);
                nodes.push(Node::Section { name, inverted: section.inverted, body });
            }
            // Comments say nothing; there are no partials.
            Some(_) => {}
        }
    }
    if let Some(section) = stack.pop() {
        return Err(MustacheError { line: section.line, reason: format!("section {} is not closed", section.name) });
    }
    if let Some(text) = template.get(pos..).filter(|t| !t.is_empty()) {
        nodes.push(Node::Text(text));
    }
    Ok(nodes)
}

fn lookup<'v>(stack: &[&'v Value], name: &str) -> Option<&'v Value> {
    if name == "." {
        return stack.last().copied();
    }
    let mut parts = name.split('.');
    let first = parts.next()?;
    let mut value = stack.iter().rev().find_map(|scope| scope.get(first))?;
    for part in parts {
        value = value.get(part)?;
    }
    Some(value)
}

fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
}

fn write(nodes: &[Node<'_>], stack: &mut Vec<&Value>, out: &mut String) -> Result<(), MustacheError> {
    for node in nodes {
        if out.len() > MAX_OUTPUT {
            return Err(MustacheError { line: 1, reason: format!("the result is longer than {MAX_OUTPUT} bytes") });
        }
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Variable { name, raw } => {
                if let Some(Value::String(text)) = lookup(stack, name) {
                    if *raw { out.push_str(text) } else { escape(text, out) }
                }
            }
            Node::Section { name, inverted, body } => {
                let value = lookup(stack, name).filter(|v| v.as_str() != Some(""));
                match value {
                    Some(value) if !inverted => {
                        stack.push(value);
                        write(body, stack, out)?;
                        stack.pop();
                    }
                    None if *inverted => write(body, stack, out)?,
                    _ => {}
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(template: &str, pairs: &[(&str, &str)]) -> String {
        render(template, &variables(pairs.iter().copied())).unwrap()
    }

    #[test]
    fn variables_and_escaping() {
        let vars = [("name", "a&b<c>\"d\"'e'"), ("a.b", "nested"), ("a.c", "2")];
        assert_eq!(with("x {{ name }} y", &vars), "x a&amp;b&lt;c&gt;&#34;d&#34;&#39;e&#39; y");
        assert_eq!(with("{{{ name }}}|{{& name}}", &vars), "a&b<c>\"d\"'e'|a&b<c>\"d\"'e'");
        assert_eq!(with("{{a.b}} {{a.c}} [{{missing}}] [{{a}}] [{{a.x.y}}]", &vars), "nested 2 [] [] []");
        assert_eq!(with("no tags: { } }}", &vars), "no tags: { } }}");
    }

    #[test]
    fn sections_comments_and_delimiters() {
        let vars = [("on", "yes"), ("off", ""), ("a.b", "1")];
        assert_eq!(with("{{#on}}A{{/on}}{{^on}}B{{/on}}{{#off}}C{{/off}}{{^off}}D{{/off}}", &vars), "AD");
        assert_eq!(with("{{#a}}{{b}}{{on}}{{/a}}", &vars), "1yes");
        assert_eq!(with("{{#on}}{{.}}{{/on}}", &vars), "yes");
        assert_eq!(with("a\n  {{! a comment }}\nb {{! inline }}c\n", &vars), "a\nb c\n");
        assert_eq!(with("list:\n{{#on}}\n- x\n{{/on}}\nend", &vars), "list:\n- x\nend");
        assert_eq!(with("{{=<% %>=}}<% on %> {{on}} <%={{ }}=%>{{on}}", &vars), "yes {{on}} yes");
        assert_eq!(with("{{> partial}}x", &vars), "x");
    }

    #[test]
    fn mistakes_name_the_line() {
        let fail = |template: &str| render(template, &Value::Null).unwrap_err().to_string();
        assert_eq!(fail("a\n{{ b"), "template line 2: tag {{ is not closed");
        assert_eq!(fail("{{#a}}\nx"), "template line 1: section a is not closed");
        assert_eq!(fail("{{/a}}"), "template line 1: section a is closed but was not opened");
        assert_eq!(fail("{{#a}}{{/b}}"), "template line 1: section a is closed as b");
        assert!(fail(&"{{#a}}".repeat(1000)).contains("nested"));
    }

    #[test]
    fn odd_input_never_panics() {
        for template in ["{{", "{{}}", "{{{}}}", "{{{", "{{=", "{{= =}}", "{{#}}{{/}}", "ä{{ö}}ü", "{{#a}}{{#a}}{{/a}}{{/a}}", "{{=| |=}}|x|"] {
            let _ = render(template, &variables([("a", "b"), ("a.b.c", "d"), ("", "x"), (".", "y")]));
        }
    }
}

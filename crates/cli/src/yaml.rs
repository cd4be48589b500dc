//! YAML (and JSON) input of people.

use serde_json::Value;

/// Splits a YAML stream at its `---` lines; documents that hold nothing but comments are left out.
pub fn documents(stream: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut current = String::new();
    let has_content = |text: &str| text.lines().any(|l| !l.trim().is_empty() && !l.trim_start().starts_with('#'));
    for line in stream.lines() {
        let marker = line.strip_prefix("---").is_some_and(|rest| rest.trim().is_empty() || rest.trim_start().starts_with('#'));
        if marker {
            if has_content(&current) {
                all.push(std::mem::take(&mut current));
            }
            current.clear();
        } else {
            current.push_str(line);
            current.push('\n');
        }
    }
    if has_content(&current) {
        all.push(current);
    }
    all
}

/// One YAML or JSON document as JSON. Aliases and depth are bounded by the parser's budget.
///
/// # Errors
/// One line with the place of the mistake.
pub fn parse_yaml(text: &str) -> Result<Value, String> {
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options::<Value>(text, options).map_err(|e| e.to_string().replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn streams_split_at_markers_only() {
        let stream = "# comment\n---\na: 1\n# --- not a marker\nb: |\n  --- text\n--- # second\nc: 2\n---\n\n---\n";
        assert_eq!(documents(stream), ["a: 1\n# --- not a marker\nb: |\n  --- text\n", "c: 2\n"]);
        assert!(documents("").is_empty());
        assert_eq!(documents("{\"a\": 1}").len(), 1);
    }

    #[test]
    fn scalars_become_json() {
        let read = |text: &str| parse_yaml(text).unwrap();
        let text = "a: 1\nb: \"1\"\nc: true\nd: 1.5\ne: null\nf: [x, {y: z}]\ng: 10s\nh: 0777\ni: 2020-01-01\n";
        let value = read(text);
        assert_eq!(value["a"], json!(1));
        assert_eq!(value["b"], json!("1"));
        assert_eq!(value["c"], json!(true));
        assert_eq!(value["d"], json!(1.5));
        assert_eq!(value["e"], json!(null));
        assert_eq!(value["f"], json!(["x", {"y": "z"}]));
        assert_eq!(value["g"], json!("10s"));
        assert_eq!(value["i"], json!("2020-01-01"));
        assert_eq!(read("{\"type\": \"Mesh\", \"name\": \"a\"}"), json!({"type": "Mesh", "name": "a"}));
    }

    #[test]
    fn mistakes_are_one_line() {
        let error = parse_yaml("\"gewfew\nx: [").unwrap_err();
        assert!(!error.contains('\n') && !error.is_empty(), "{error}");
        assert!(parse_yaml("a: 1\na: 2\n").is_err());
    }
}

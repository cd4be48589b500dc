//! What the command-line programs `ikadactl` and `ikada-dp` share: Mustache templates, YAML input, Go durations, HTTP clients.

mod http;
mod mustache;
mod yaml;

pub use http::{ServerTrust, http_client, trust_pem};
pub use mustache::{MustacheError, render, variables};
pub use yaml::{documents, parse_yaml};

use std::time::Duration;

/// A positive or zero duration in Go's notation (`30s`, `1h30m`), for clap.
///
/// # Errors
/// Go's text for the mistake.
pub fn duration(text: &str) -> Result<Duration, String> {
    let nanos = ikada_model::go::parse_duration(text)?;
    u64::try_from(nanos).map(Duration::from_nanos).map_err(|_| format!("{text} is negative"))
}

/// `key=value`, for clap.
///
/// # Errors
/// There is no `=`, or nothing before it.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not of the form key=value")),
    }
}

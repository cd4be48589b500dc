//! Log lines on standard error.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Starts logging. `level` is the least level of our own lines; libraries are one step quieter.
pub fn init(level: &str, json: bool) {
    let libraries = match level {
        "debug" => "info",
        "trace" => "debug",
        "info" => "warn",
        other => other,
    };
    let own = ["cp", "api", "xds", "raft", "cluster", "store", "envoy", "policy", "world", "model", "pki"];
    let mut filter = libraries.to_owned();
    for name in own {
        filter.push_str(&format!(",ikada_{name}={level}"));
    }
    // openraft reports ordinary elections as warnings and errors of a stopped node.
    filter.push_str(",openraft=off");
    let builder = tracing_subscriber::fmt().with_env_filter(EnvFilter::new(filter)).with_writer(std::io::stderr);
    if json {
        builder.json().flatten_event(true).init();
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).init();
    }
}

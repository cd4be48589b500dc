//! Arguments and environment (reference: §3.1, §3.2). Every `KUMA_…` variable is read as `IKADA_…` too; the latter wins, flags win over both.

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum, builder::BoolishValueParser};
use std::{ffi::OsString, path::PathBuf, time::Duration};

/// Runs Envoy as the data plane proxy of an Ikada (or Kuma) mesh.
#[derive(Debug, Parser)]
#[command(name = "ikada-dp", version, disable_help_subcommand = true)]
pub struct Cli {
    /// How much is logged
    #[arg(long, global = true, value_enum, default_value_t = LogLevel::Info)]
    pub log_level: LogLevel,
    #[command(subcommand)]
    pub command: Command,
}

/// Log levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    Off,
    Info,
    Debug,
}

impl LogLevel {
    /// The same for Envoy.
    pub fn envoy(self) -> &'static str {
        match self {
            LogLevel::Off => "off",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
        }
    }
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Fetch the bootstrap configuration and run Envoy
    Run(Box<Run>),
    /// Wait until a proxy is ready
    Wait(Wait),
    /// Show the version
    Version,
}

/// `run`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Every KUMA_… variable may be written IKADA_… as well.

Examples:
  ikada-dp run --dataplane-file web.yaml --dataplane-token-file web.token --cp-address https://cp.example.org:5678 --ca-cert-file ca.pem
  ikada-dp run -d dataplane.yaml -v name=web-1 -v address=10.0.0.7 --dataplane-token-file web.token
  ikada-dp run --name web-1 --mesh default --dataplane-token-file web.token    # the Dataplane is in the control plane already

With -v the file is rendered as a Mustache template first: {{ name }} is HTML-escaped, {{{ name }}} is not, dotted names nest.")]
pub struct Run {
    /// Address of the control plane's data plane server
    #[arg(long, env = "KUMA_CONTROL_PLANE_URL", default_value = "https://localhost:5678", value_name = "URL")]
    pub cp_address: String,
    /// File with the CA (PEM) of the control plane's certificate; the control plane's own self-signed certificate will do
    /// [default: the system's CAs]
    #[arg(long, env = "KUMA_CONTROL_PLANE_CA_CERT_FILE", value_name = "FILE")]
    pub ca_cert_file: Option<PathBuf>,
    #[arg(long, env = "KUMA_CONTROL_PLANE_CA_CERT", hide = true, hide_env_values = true)]
    pub ca_cert: Option<String>,
    /// Do not check the control plane's certificate
    #[arg(long, env = "KUMA_CONTROL_PLANE_TLS_SKIP_VERIFY", default_value = "false", default_missing_value = "true", num_args = 0..=1,
          require_equals = true, value_parser = BoolishValueParser::new(), hide_possible_values = true)]
    pub skip_verify: bool,
    /// Name of a Dataplane that the control plane has already, in place of --dataplane-file
    #[arg(long, env = "KUMA_DATAPLANE_NAME")]
    pub name: Option<String>,
    /// Its mesh [default: default]
    #[arg(long, env = "KUMA_DATAPLANE_MESH")]
    pub mesh: Option<String>,
    /// Kind of proxy; an Ikada control plane serves only dataplane yet
    #[arg(long, env = "KUMA_DATAPLANE_PROXY_TYPE", value_enum, default_value_t = ProxyType::Dataplane)]
    pub proxy_type: ProxyType,
    /// File with the Dataplane in YAML or JSON, - for standard input
    #[arg(short = 'd', long, env = "KUMA_DATAPLANE_RUNTIME_RESOURCE_PATH", value_name = "FILE", conflicts_with = "dataplane")]
    pub dataplane_file: Option<PathBuf>,
    /// The Dataplane itself, in place of a file
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_RESOURCE", value_name = "YAML")]
    pub dataplane: Option<String>,
    /// Template variable of the Dataplane (repeatable)
    #[arg(short = 'v', long, value_name = "KEY=VALUE", value_parser = ikada_cli::key_value)]
    pub dataplane_var: Vec<(String, String)>,
    /// File with the token of this Dataplane (ikadactl generate dataplane-token)
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_TOKEN_PATH", value_name = "FILE", conflicts_with = "dataplane_token")]
    pub dataplane_token_file: Option<PathBuf>,
    /// The token itself
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_TOKEN", value_name = "JWT", hide_env_values = true)]
    pub dataplane_token: Option<String>,
    /// How long connections may finish after SIGTERM or SIGINT; a second signal ends everything at once
    #[arg(long, env = "KUMA_DATAPLANE_DRAIN_TIME", default_value = "30s", value_parser = ikada_cli::duration, value_name = "DURATION")]
    pub drain_time: Duration,
    /// Envoy: a path, or a name that is looked for in PATH, in the working directory and beside this program
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_BINARY_PATH", default_value = "envoy", value_name = "FILE")]
    pub binary_path: PathBuf,
    /// Number of Envoy's worker threads; 0: one per CPU that this process may use
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_CONCURRENCY", default_value_t = 0)]
    pub concurrency: u32,
    /// Directory of configuration and sockets [default: a temporary one]
    #[arg(long, alias = "config-dir", env = "KUMA_DATAPLANE_RUNTIME_WORK_DIR", value_name = "DIR")]
    pub work_dir: Option<PathBuf>,
    /// Log level of Envoy [default: that of this program]
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_ENVOY_LOG_LEVEL", value_name = "LEVEL")]
    pub envoy_log_level: Option<String>,
    /// Log levels of Envoy's components, e.g. upstream:debug,connection:trace
    #[arg(long, env = "KUMA_DATAPLANE_RUNTIME_ENVOY_COMPONENT_LOG_LEVEL", value_name = "LEVELS")]
    pub envoy_component_log_level: Option<String>,
    /// Port of this program's own /ready on 127.0.0.1; every proxy of a machine needs its own
    #[arg(long, env = "KUMA_READINESS_PORT", default_value_t = 9902, value_parser = clap::value_parser!(u16).range(1..))]
    pub readiness_port: u16,
    /// Accepted for compatibility; this version serves no DNS
    #[arg(long, env = "KUMA_DNS_ENABLED", default_value = "false", default_missing_value = "true", num_args = 0..=1,
          require_equals = true, value_parser = BoolishValueParser::new(), hide_possible_values = true)]
    pub dns_enabled: bool,
    /// Longest pause between two calls for the bootstrap
    #[arg(long, env = "KUMA_CONTROL_PLANE_RETRY_BACKOFF", default_value = "3s", value_parser = ikada_cli::duration, value_name = "DURATION")]
    pub retry_backoff: Duration,
    /// How long the control plane is waited for
    #[arg(long, env = "KUMA_CONTROL_PLANE_RETRY_MAX_DURATION", default_value = "5m", value_parser = ikada_cli::duration, value_name = "DURATION")]
    pub retry_max_duration: Duration,
    #[arg(long, hide = true, env = "KUMA_DATAPLANE_RUNTIME_UNIFIED_RESOURCE_NAMING_ENABLED", default_value = "false",
          default_missing_value = "true", num_args = 0..=1, require_equals = true, value_parser = BoolishValueParser::new())]
    pub unified_resource_naming: bool,
    #[arg(long, hide = true, env = "KUMA_DATAPLANE_RUNTIME_STRICT_INBOUND_PORTS_ENABLED", default_value = "true",
          default_missing_value = "true", num_args = 0..=1, require_equals = true, value_parser = BoolishValueParser::new())]
    pub strict_inbound_ports: bool,
    #[arg(long, hide = true, env = "KUMA_DATAPLANE_RUNTIME_REUSE_PORT_ENABLED", default_value = "true", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, value_parser = BoolishValueParser::new())]
    pub reuse_port: bool,
    #[arg(long, hide = true, env = "KUMA_DATAPLANE_RUNTIME_IPV6_ENABLED", default_value = "true", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, value_parser = BoolishValueParser::new())]
    pub ipv6_enabled: bool,
    #[arg(long, hide = true, env = "KUMA_DATAPLANE_RUNTIME_DYNAMIC_SYSTEM_CA_PATH")]
    pub system_ca_path: Option<PathBuf>,
    #[arg(long, hide = true, env = "KUMA_DATAPLANE_RESOURCES_MAX_MEMORY_BYTES", default_value_t = 0)]
    pub max_memory_bytes: u64,
    #[arg(long, hide = true, env = "HOST_IP")]
    pub host_ip: Option<String>,
}

/// Kinds of proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProxyType {
    Dataplane,
    Ingress,
    Egress,
}

impl ProxyType {
    /// As the bootstrap call says it.
    pub fn as_str(self) -> &'static str {
        match self {
            ProxyType::Dataplane => "dataplane",
            ProxyType::Ingress => "ingress",
            ProxyType::Egress => "egress",
        }
    }
    /// The resource type.
    pub fn kind(self) -> ikada_model::Kind {
        match self {
            ProxyType::Dataplane => ikada_model::Kind::Dataplane,
            ProxyType::Ingress => ikada_model::Kind::ZoneIngress,
            ProxyType::Egress => ikada_model::Kind::ZoneEgress,
        }
    }
}

/// `wait`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ikada-dp wait --url http://localhost:9902/ready\n  ikada-dp wait --unix-socket /run/web/kuma-envoy-admin.sock --timeout 30s")]
pub struct Wait {
    /// Address to ask, on this machine: the readiness port of ikada-dp, or Envoy's admin port where the control plane gives it one
    #[arg(long, default_value = "http://localhost:9902/ready", value_name = "URL")]
    pub url: String,
    /// Ask over this unix socket instead
    #[arg(long, value_name = "FILE")]
    pub unix_socket: Option<PathBuf>,
    /// Pause between two questions
    #[arg(long, default_value = "1s", value_parser = ikada_cli::duration, value_name = "DURATION")]
    pub check_frequency: Duration,
    /// Longest wait for one answer
    #[arg(long, default_value = "500ms", value_parser = ikada_cli::duration, value_name = "DURATION")]
    pub request_timeout: Duration,
    /// Longest wait altogether
    #[arg(long, default_value = "180s", value_parser = ikada_cli::duration, value_name = "DURATION")]
    pub timeout: Duration,
}

/// Parses arguments; `IKADA_X` stands for `KUMA_X` where it is set.
///
/// # Errors
/// clap's, with usage.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let own_name = |arg: clap::Arg| {
        let own = arg.get_env().and_then(|e| e.to_str()).and_then(|e| e.strip_prefix("KUMA_")).map(|rest| format!("IKADA_{rest}"));
        match own {
            Some(name) if std::env::var_os(&name).is_some() => arg.env(name),
            _ => arg,
        }
    };
    let mut command = Cli::command().mut_subcommand("run", |run| run.mut_args(own_name));
    let matches = command.try_get_matches_from_mut(args)?;
    Cli::from_arg_matches(&matches).map_err(|e| e.format(&mut command))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> Run {
        match parse(line.split(' ').map(OsString::from)).unwrap_or_else(|e| panic!("{line}: {e}")).command {
            Command::Run(run) => *run,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn kuma_dps_spellings_parse() {
        let args = run("ikada-dp run --dns-enabled=false --skip-verify -d - -v a=b --dataplane-var c.d=e --concurrency=2 --drain-time=5s");
        assert!(args.skip_verify && !args.dns_enabled && args.strict_inbound_ports && args.reuse_port);
        assert_eq!(args.drain_time, Duration::from_secs(5));
        assert_eq!(args.concurrency, 2);
        assert_eq!(args.dataplane_var.len(), 2);
        assert_eq!(run("ikada-dp run --config-dir /x").work_dir, Some(PathBuf::from("/x")));
        let refused = parse(["ikada-dp", "run", "--readiness-port", "0"].map(OsString::from));
        assert!(refused.is_err());
    }
}

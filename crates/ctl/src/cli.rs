//! Arguments.

use crate::cluster::Cluster;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::{path::PathBuf, time::Duration};

/// Talks to an Ikada (or Kuma) control plane.
#[derive(Debug, Parser)]
#[command(name = "ikadactl", version, disable_version_flag = true, disable_help_subcommand = true, after_help = ROOT_EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    pub root: Root,
    #[command(subcommand)]
    pub command: Command,
}

const ROOT_EXAMPLES: &str = "Examples:
  ikadactl get meshes
  ikadactl apply -f policies/ --address http://cp.example.org:5681
  ikadactl generate dataplane-token --name web-1 --valid-for 24h > /tmp/web-1.token
  ikadactl config control-planes add --name prod --address https://cp.example.org:5682 --ca-cert-file ca.pem --token-file admin.token";

/// Flags of every command.
#[derive(Debug, Args)]
pub struct Root {
    /// Address of the control plane's API; wins over the configuration file [default: http://localhost:5681]
    #[arg(long, global = true, env = "IKADA_API_URL", value_name = "URL", help_heading = "Control plane")]
    pub address: Option<String>,
    /// User token
    #[arg(
        long,
        global = true,
        env = "IKADA_API_TOKEN",
        hide_env_values = true,
        conflicts_with = "token_file",
        value_name = "JWT",
        help_heading = "Control plane"
    )]
    pub token: Option<String>,
    /// File with the user token
    #[arg(long, global = true, value_name = "FILE", help_heading = "Control plane")]
    pub token_file: Option<PathBuf>,
    /// File with the CA (PEM) that the control plane's certificate is checked with [default: the system's CAs]
    #[arg(long, global = true, env = "IKADA_API_CA_CERT_FILE", value_name = "FILE", help_heading = "Control plane")]
    pub ca_cert_file: Option<PathBuf>,
    /// Do not check the control plane's certificate
    #[arg(long, global = true, help_heading = "Control plane")]
    pub skip_verify: bool,
    /// Longest time that one call may take, e.g. 30s or 1m
    #[arg(long, global = true, value_parser = ikada_cli::duration, default_value = "1m", value_name = "DURATION", help_heading = "Control plane")]
    pub api_timeout: Duration,
    /// How fresh reads have to be: as of now (linearizable), what a node in contact with its leader has (local), or whatever it has (stale)
    #[arg(long, global = true, value_parser = ["linearizable", "local", "stale"], value_name = "LEVEL", help_heading = "Control plane")]
    pub read: Option<String>,
    /// Configuration file [default: ~/.ikadactl/config]
    #[arg(long, global = true, env = "IKADACTL_CONFIG", value_name = "FILE", help_heading = "Control plane")]
    pub config_file: Option<PathBuf>,
    /// Name of the configured control plane to talk to [default: the current one]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Control plane")]
    pub context: Option<String>,
    /// Do not read the configuration file
    #[arg(long, global = true, help_heading = "Control plane")]
    pub no_config: bool,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create or update resources from files, a directory, a URL or standard input
    Apply(Apply),
    /// Show one resource, or list all of a type
    Get(Get),
    /// Delete a resource
    Delete(Delete),
    /// Make tokens and keys
    Generate(Generate),
    /// Show state that the control plane has observed
    Inspect(Inspect),
    /// Administer a cluster of control planes
    Cluster(Cluster),
    /// Manage the configured control planes
    Config(Config),
    /// Show the version of this program and of the control plane
    Version(Version),
    /// Print a completion script
    #[command(after_help = "Examples:\n  ikadactl completion bash > /etc/bash_completion.d/ikadactl\n  ikadactl completion zsh > ~/.zfunc/_ikadactl")]
    Completion {
        /// Shell
        shell: Shell,
    },
}

/// Shells with completion.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Shell {
    /// clap's generator.
    pub fn generator(self) -> clap_complete::Shell {
        match self {
            Shell::Bash => clap_complete::Shell::Bash,
            Shell::Zsh => clap_complete::Shell::Zsh,
            Shell::Fish => clap_complete::Shell::Fish,
        }
    }
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Yaml,
    Json,
}

/// `apply`.
#[derive(Debug, Args)]
#[command(after_help = "A directory stands for its .yaml, .yml and .json files in the order of their names (not recursive).
With -v every document is rendered as a Mustache template first: {{ name }} is HTML-escaped, {{{ name }}} is not, dotted names nest.

Examples:
  ikadactl apply -f mesh.yaml
  ikadactl apply -f policies/ --dry-run
  ikadactl apply -f dataplane.yaml -v name=web-1 -v address=10.0.0.7
  cat mesh.yaml | ikadactl apply -f -")]
pub struct Apply {
    /// File, directory, http(s) URL, or - for standard input
    #[arg(short, long, value_name = "FILE|DIR|URL|-", required = true)]
    pub file: Vec<String>,
    /// Template variable (repeatable)
    #[arg(short = 'v', long = "var", value_name = "KEY=VALUE", value_parser = ikada_cli::key_value)]
    pub vars: Vec<(String, String)>,
    /// Print the resources instead of sending them
    #[arg(long)]
    pub dry_run: bool,
    /// Mesh of resources that name none
    #[arg(short, long, default_value = "default")]
    pub mesh: String,
}

/// `get`.
#[derive(Debug, Args)]
#[command(after_help = "Without --size and --offset a list is complete: further pages are fetched as long as there are any.

Examples:
  ikadactl get meshes
  ikadactl get dataplanes -m demo
  ikadactl get meshtimeout mesh-timeout-all-default -o yaml
  ikadactl get dataplanes --size 50 --offset 100 -o json")]
pub struct Get {
    /// Type, singular or plural: mesh, dataplanes, meshtimeouts, ...
    #[arg(value_name = "TYPE")]
    pub kind: String,
    /// Name; without it all resources of the type are listed
    pub name: Option<String>,
    /// Mesh of the resources
    #[arg(short, long, default_value = "default")]
    pub mesh: String,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    /// Show one page of this many resources (1 to 1000)
    #[arg(long, value_name = "N")]
    pub size: Option<u32>,
    /// Show one page that starts at this resource
    #[arg(long, value_name = "N")]
    pub offset: Option<String>,
}

/// `delete`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ikadactl delete mesh demo\n  ikadactl delete meshtimeout slow -m demo")]
pub struct Delete {
    /// Type, singular or plural: mesh, dataplanes, meshtimeouts, ...
    #[arg(value_name = "TYPE")]
    pub kind: String,
    /// Name
    pub name: String,
    /// Mesh of the resource
    #[arg(short, long, default_value = "default")]
    pub mesh: String,
}

/// `generate`.
#[derive(Debug, Args)]
pub struct Generate {
    #[command(subcommand)]
    pub what: What,
}

/// What to generate.
#[derive(Debug, Subcommand)]
pub enum What {
    /// Token with which a data plane proxy identifies itself
    #[command(after_help = "Examples:
  ikadactl generate dataplane-token --name web-1 --mesh default --valid-for 24h > web-1.token
  ikadactl generate dataplane-token --tag kuma.io/service=web,web-admin --valid-for 720h
  ikadactl generate dataplane-token --name web-1 --valid-for 24h --signing-key-path key.pem --kid 1   # without the control plane")]
    DataplaneToken {
        /// Name of the Dataplane; without it the token fits every name
        #[arg(long, default_value = "", hide_default_value = true)]
        name: String,
        /// Mesh of the Dataplane
        #[arg(short, long, default_value = "default")]
        mesh: String,
        /// Kind of proxy: dataplane, ingress or egress
        #[arg(long, default_value = "", hide_default_value = true)]
        proxy_type: String,
        /// Allowed values of a tag (repeatable)
        #[arg(long, value_name = "TAG=VALUE[,VALUE]", value_parser = ikada_cli::key_value)]
        tag: Vec<(String, String)>,
        /// Value of the label kuma.io/workload that the token is bound to
        #[arg(long, default_value = "", hide_default_value = true)]
        workload: String,
        #[command(flatten)]
        life: Life,
    },
    /// Token with which zone proxies identify themselves (an Ikada control plane does not serve them yet)
    #[command(after_help = "Example:\n  ikadactl generate zone-token --zone east --scope egress --valid-for 720h > zone.token")]
    ZoneToken {
        /// Name of the zone
        #[arg(long)]
        zone: String,
        /// What the token is for
        #[arg(long, value_delimiter = ',', default_values_t = ["ingress".to_owned(), "egress".to_owned()])]
        scope: Vec<String>,
        #[command(flatten)]
        life: Life,
    },
    /// Token of a user of the API
    #[command(after_help = "Example:\n  ikadactl generate user-token --name jane@example.org --group team-a --valid-for 24h")]
    UserToken {
        /// Name of the user
        #[arg(long)]
        name: String,
        /// Group of the user (repeatable)
        #[arg(long)]
        group: Vec<String>,
        #[command(flatten)]
        life: Life,
    },
    /// Key that signs tokens, to be stored as a Secret
    #[command(after_help = "Example:\n  echo \"type: GlobalSecret\nname: user-token-signing-key-2\ndata: $(ikadactl generate signing-key)\" | ikadactl apply -f -")]
    SigningKey {
        /// Form of the output
        #[arg(long, value_enum, default_value_t = KeyFormat::PemBase64)]
        format: KeyFormat,
    },
    /// Key with which a control plane encrypts its data directory: a line for the file that store.encryption.keyFile names
    #[command(after_help = "The first key of the file encrypts, the others are for what was encrypted with them. To rotate: put a new line first, restart\n\
        the node, and remove the old line afterwards, unless `ikadactl cluster status` has an alarm that names it.\n\n\
        Examples:\n  (umask 077; ikadactl generate encryption-key > /etc/ikada/encryption-keys)\n  \
        ikadactl generate encryption-key --id 2027-01 | cat - /etc/ikada/encryption-keys > new && mv new /etc/ikada/encryption-keys")]
    EncryptionKey {
        /// Id of the key: letters, digits, '-', '_', '.' [default: a random one]
        #[arg(long)]
        id: Option<String>,
    },
}

/// Life of a token, and how it is signed.
#[derive(Debug, Args)]
pub struct Life {
    /// How long the token is valid, e.g. 24h
    #[arg(long, value_parser = ikada_cli::duration, value_name = "DURATION")]
    pub valid_for: Duration,
    /// Sign here with this key instead of asking the control plane
    #[arg(long, value_name = "FILE", requires = "kid")]
    pub signing_key_path: Option<PathBuf>,
    /// Id (serial) of that key
    #[arg(long, value_name = "ID", requires = "signing_key_path")]
    pub kid: Option<String>,
}

/// Formats of a signing key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KeyFormat {
    /// Base64 of the PEM, as a Secret's data
    PemBase64,
    /// PEM
    Pem,
}

/// `inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    #[command(subcommand)]
    pub what: Inspected,
}

/// What to inspect.
#[derive(Debug, Subcommand)]
pub enum Inspected {
    /// Data plane proxies with their connection and certificates
    #[command(after_help = "Examples:\n  ikadactl inspect dataplanes -m demo\n  ikadactl inspect dataplanes --tag kuma.io/service=web -o json")]
    Dataplanes {
        /// Mesh
        #[arg(short, long, default_value = "default")]
        mesh: String,
        /// Only proxies with this tag; the value may be a part of the tag's (repeatable)
        #[arg(long, value_name = "TAG=VALUE", value_parser = ikada_cli::key_value)]
        tag: Vec<(String, String)>,
        /// Only gateways
        #[arg(long)]
        gateway: bool,
        /// Form of the output
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
}

/// `config`.
#[derive(Debug, Args)]
pub struct Config {
    #[command(subcommand)]
    pub what: ConfigWhat,
}

/// `config …`.
#[derive(Debug, Subcommand)]
pub enum ConfigWhat {
    /// Print the configuration file
    View,
    /// Control planes that this program knows
    ControlPlanes {
        #[command(subcommand)]
        what: ControlPlanes,
    },
}

/// `config control-planes …`.
#[derive(Debug, Subcommand)]
pub enum ControlPlanes {
    /// Show them
    List,
    /// Add one and make it the current one; its address is --address, its trust --ca-cert-file or --skip-verify, its token --token(-file)
    #[command(after_help = "Example:
  ikadactl config control-planes add --name prod --address https://cp.example.org:5682 --ca-cert-file ca.pem --token-file admin.token")]
    Add {
        /// Name
        #[arg(long)]
        name: String,
        /// Replace one of the same name
        #[arg(long)]
        overwrite: bool,
        /// Do not ask the control plane whether it is one
        #[arg(long)]
        skip_check: bool,
        /// Header sent with every call (repeatable)
        #[arg(long, value_name = "NAME=VALUE", value_parser = ikada_cli::key_value)]
        headers: Vec<(String, String)>,
        /// Kind of authentication, as in kumactl: tokens
        #[arg(long, value_name = "TYPE", value_parser = ["tokens"])]
        auth_type: Option<String>,
        /// Its settings, as in kumactl: token=<JWT>
        #[arg(long, value_name = "KEY=VALUE", value_parser = ikada_cli::key_value)]
        auth_conf: Vec<(String, String)>,
    },
    /// Make another one the current one
    Switch {
        /// Name
        #[arg(long)]
        name: String,
    },
    /// Forget one
    Remove {
        /// Name
        #[arg(long)]
        name: String,
    },
}

/// `version`.
#[derive(Debug, Args)]
pub struct Version {
    /// Show everything that the control plane tells
    #[arg(short = 'a', long)]
    pub detailed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn kumactls_spellings_parse() {
        for line in [
            "ikadactl get dataplanes -oyaml --mesh demo --size 1",
            "ikadactl --config-file /tmp/c config control-planes add --name c --address http://localhost:5681 --overwrite",
            "ikadactl generate dataplane-token --name=a --mesh=b --valid-for=24h --tag kuma.io/service=a,b --proxy-type dataplane",
            "ikadactl apply -f a.yaml -f - -v a=b -v c=d=e",
            "ikadactl delete mesh demo",
            "ikadactl cluster status --check -o json",
            "ikadactl cluster join-token create --valid-for 24h --uses 2 --learner",
            "ikadactl cluster remove cp-3 --force",
            "ikadactl cluster transfer-leader",
            "ikadactl cluster snapshot restore a.ikada --data-dir /tmp/d --advertise a:1",
            "ikadactl inspect dataplanes --tag kuma.io/service=web",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
        assert!(Cli::try_parse_from(["ikadactl", "generate", "zone-token", "--zone", "a", "--valid-for", "-1h"]).is_err());
    }
}

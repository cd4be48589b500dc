//! `ikada-cp`: the control plane.

mod bundle;
mod cluster;
mod config;
mod controllers;
mod diagnostics;
mod dp_server;
mod listen;
mod logging;
mod metrics;
mod node;
mod proxies;
mod structs;
mod tls;

/// Commands are allocated by the thread that reads a request and freed by the one that applies it, which the system's allocator is slow at.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

use clap::{CommandFactory, Parser, Subcommand};
use std::{path::PathBuf, process::ExitCode};

/// Control plane of a service mesh, without a database.
#[derive(Parser)]
#[command(name = "ikada-cp", version, about, long_about = None)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a control plane.
    #[command(after_help = RUN_EXAMPLES)]
    Run(RunArgs),
    /// Print a completion script for a shell.
    #[command(after_help = "Example:\n  ikada-cp completion bash > /etc/bash_completion.d/ikada-cp")]
    Completion {
        /// Shell.
        shell: clap_complete::Shell,
    },
}

const RUN_EXAMPLES: &str = "Examples:
  A standalone zone in ./ikada-data, no configuration needed:
    ikada-cp run
  Another data directory and configuration file:
    ikada-cp run --config-file /etc/ikada/cp.yaml --data-dir /var/lib/ikada
  Settings from the environment, with Kuma's names or IKADA_ in place of KUMA_:
    KUMA_API_SERVER_HTTP_PORT=6681 KUMA_DP_SERVER_PORT=6678 ikada-cp run
  A second and a third node: make a token on a member, give it and the member's peer port to the new one:
    ikadactl cluster join-token create --uses 2
    ikada-cp run --join cp-1.example.org:5690 --join-token ikada-join-...
    ikada-cp run --join cp-1.example.org:5690,cp-2.example.org:5690 --join-token-file /etc/ikada/join-token
  A node that follows and never votes, for a site that only reads:
    IKADA_RAFT_LEARNER=true ikada-cp run --join cp-1.example.org:5690 --join-token ikada-join-...
  An immutable set-up from a file of resources, without background controllers:
    ikada-cp run --data-dir \"$(mktemp -d)\" --load mesh.yaml --api-only";

/// Exit code of a node that was removed from its cluster: a supervisor need not start it again.
const REMOVED: u8 = 3;

/// Arguments of `run`.
#[derive(clap::Args)]
pub struct RunArgs {
    /// Configuration file (YAML, Kuma's structure; `raft:` in place of `store.postgres:`). KUMA_… and IKADA_… variables win over it.
    #[arg(short, long, value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// Data directory; wins over raft.dataDir and IKADA_DATA_DIR [default: ./ikada-data].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Members of the cluster to join, HOST:PORT of their peer ports; one that answers is enough. Of effect while the data directory is new.
    #[arg(long, value_name = "ADDR[,ADDR]", value_delimiter = ',', help_heading = "Cluster")]
    join: Vec<String>,
    /// Token made by `ikadactl cluster join-token create`. Other users of this machine see it while the process runs: prefer the file.
    #[arg(long, value_name = "TOKEN", conflicts_with = "join_token_file", help_heading = "Cluster")]
    join_token: Option<String>,
    /// File with the token.
    #[arg(long, value_name = "FILE", help_heading = "Cluster")]
    join_token_file: Option<PathBuf>,
    /// Fill the store verbatim from a YAML stream of resources; refused when it is not empty.
    #[arg(long, value_name = "FILE")]
    load: Option<PathBuf>,
    /// Create no default resources, run no background controller, and store dataplanes as written (no zone tag, probed inbounds stay ready).
    #[arg(long)]
    api_only: bool,
    /// Which log lines are written: this level and worse.
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = ["off", "error", "warn", "info", "debug", "trace"])]
    log_level: String,
    /// Form of log lines.
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
    log_format: String,
}

impl RunArgs {
    fn flags(&self) -> config::Flags {
        config::Flags {
            data_dir: self.data_dir.clone(),
            join: self.join.clone(),
            join_token: self.join_token.clone(),
            join_token_file: self.join_token_file.clone(),
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The only provider that is compiled in; installing it cannot fail at this point.
    tokio_rustls::rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let args = match cli.command {
        Command::Run(args) => args,
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "ikada-cp", &mut std::io::stdout());
            return ExitCode::SUCCESS;
        }
    };
    logging::init(&args.log_level, args.log_format == "json");
    let result = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(anyhow::Error::from).and_then(|rt| rt.block_on(node::run(&args)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, whatever the log level: this is the answer to the command.
            eprintln!("ikada-cp: {error:#}");
            if node::is_removed(&error) { ExitCode::from(REMOVED) } else { ExitCode::FAILURE }
        }
    }
}

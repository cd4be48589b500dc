//! `ikadactl`: the command line of people (reference: Kuma 2.14.3 REST contract, §7).

mod apply;
mod cli;
mod client;
mod cluster;
mod config;
mod config_command;
mod generate;
mod get;
mod inspect;
mod output;
mod table;

use clap::{CommandFactory, Parser};
use cli::{Cli, Command};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Err: somebody installed one before; it serves as well.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("Error: cannot start: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(cli)) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("Error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let root = &cli.root;
    let done = match cli.command {
        Command::Cluster(args) => return cluster::run(root, &args).await,
        Command::Apply(args) => apply::run(root, &args).await,
        Command::Get(args) => get::run(root, &args).await,
        Command::Delete(args) => get::delete(root, &args).await,
        Command::Generate(args) => generate::run(root, &args).await,
        Command::Inspect(args) => inspect::run(root, &args).await,
        Command::Config(args) => config_command::run(root, &args).await,
        Command::Version(args) => config_command::version(root, &args).await,
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell.generator(), &mut Cli::command(), "ikadactl", &mut script);
            output::write(&script)
        }
    };
    done.map(|()| ExitCode::SUCCESS)
}

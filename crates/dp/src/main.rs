//! `ikada-dp`: fetches a proxy's bootstrap from the control plane, runs Envoy with it, and drains it (reference: data plane contract §3).

mod access_log;
mod admin;
mod bootstrap;
mod cli;
mod envoy;
mod host;
mod readiness;
mod resource;
mod run;
mod wait;
mod workdir;

use cli::{Command, LogLevel};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(e) => e.exit(),
    };
    init_log(cli.log_level);
    // Err: somebody installed one before; it serves as well.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    // One thread: Envoy is bound to the life of the thread that starts it (PDEATHSIG), so that has to be the main thread.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("Error: cannot start: {e}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Run(args) => run::run(*args, cli.log_level).await,
            Command::Wait(args) => wait::run(&args).await,
            Command::Version => version(),
        }
    });
    // A read of standard input may still block a helper thread; nothing is left to wait for.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("Error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn version() -> anyhow::Result<()> {
    use std::io::Write;
    writeln!(std::io::stdout(), "ikada-dp {} (speaks to control planes of Kuma {})", env!("CARGO_PKG_VERSION"), bootstrap::KUMA_VERSION)?;
    Ok(())
}

fn init_log(level: LogLevel) {
    let level = match level {
        LogLevel::Off => return,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Debug => tracing::Level::DEBUG,
    };
    let filter = tracing_subscriber::EnvFilter::new(format!("warn,ikada_dp={level}"));
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_ansi(ansi).with_writer(std::io::stderr).init();
}

//! `ikada-chaos`: breaks a real cluster and judges what its clients saw.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use ikada_jepsen::{
    bed,
    check::{Verdict, linear::Bounds},
    history,
    judge::{Checker, judge_all},
    run::{self, Options},
};
use std::{
    hash::{BuildHasher, RandomState},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

/// Breaks a real cluster and judges what its clients saw.
#[derive(Parser)]
#[command(name = "ikada-chaos", version, about, long_about = None)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start nodes, break them for a while, check the history. Needs root.
    Run(RunArgs),
    /// Check a history that was written before.
    Check {
        /// File in Jepsen's form.
        history: PathBuf,
        /// Only these checkers: register, set, watch, order.
        #[arg(long)]
        checker: Vec<String>,
    },
}

#[derive(clap::Args)]
struct RunArgs {
    /// How long things are broken, in seconds.
    #[arg(long, default_value_t = 300)]
    time: u64,
    /// What is broken when follows from it [default: another one each time].
    #[arg(long)]
    seed: Option<u64>,
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,
    /// Where the directory of the run is made.
    #[arg(long, default_value = "target/chaos")]
    out: PathBuf,
    /// The control plane [default: ikada-cp beside this program].
    #[arg(long)]
    program: Option<PathBuf>,
    /// A library that is loaded into the nodes before all others, to break them on purpose and see that it is noticed.
    #[arg(long, value_name = "FILE")]
    preload: Option<PathBuf>,
    /// Clients take stale reads for linearizable ones, to see that it is noticed.
    #[arg(long)]
    stale_reads: bool,
    /// Where the machine does not allow it, say so and succeed; but fail where CI=true.
    #[arg(long)]
    skip_when_impossible: bool,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => start(args),
        Command::Check { history, checker } => check(&history, &checker),
    };
    match result {
        Ok(code) => code,
        Err(e) => {
            eprintln!("ikada-chaos: {e:#}");
            ExitCode::from(2)
        }
    }
}

fn start(args: RunArgs) -> Result<ExitCode> {
    if let Err(e) = bed::prepare() {
        if args.skip_when_impossible && std::env::var("CI").as_deref() != Ok("true") {
            println!("chaos on real processes: SKIPPED, {e:#}");
            return Ok(ExitCode::SUCCESS);
        }
        return Err(e.context("chaos on real processes is not possible here"));
    }
    bed::enter()?;
    let seed = args.seed.unwrap_or_else(|| RandomState::new().hash_one(std::process::id()) % 1_000_000_000);
    let program = match args.program {
        Some(p) => p,
        None => std::env::current_exe().context("own path")?.with_file_name("ikada-cp"),
    };
    let program = std::fs::canonicalize(&program).with_context(|| format!("{}: run `make build` first", program.display()))?;
    std::fs::create_dir_all(&args.out)?;
    let out = std::fs::canonicalize(&args.out)?;
    let time = Duration::from_secs(args.time);
    let preload = args.preload.map(|p| std::fs::canonicalize(&p).with_context(|| p.display().to_string())).transpose()?;
    let report = run::run(&Options { time, seed, nodes: usize::from(args.nodes), out, program, preload, stale_reads: args.stale_reads })?;
    println!("\n{}", report.table());
    println!("history and logs: {}", report.dir.display());
    if report.interrupted {
        println!("stopped before its end");
        return Ok(ExitCode::from(130));
    }
    if report.is_valid() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("replay the same plan: make chaos TIME={} SEED={seed} NODES={}", args.time, args.nodes);
    println!("check the history again: ikada-chaos check {}/history.edn", report.dir.display());
    Ok(ExitCode::FAILURE)
}

fn check(file: &PathBuf, names: &[String]) -> Result<ExitCode> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let named = |n: &String| Checker::by_name(n).with_context(|| format!("there is no checker {n:?}"));
    let checkers = names.iter().map(named).collect::<Result<Vec<_>>>()?;
    let findings = judge_all(&history::parse(&text)?, &checkers, Bounds::default())?;
    for f in &findings {
        println!("{:<12} {} ({})", f.checker.name(), f.verdict, f.looked_at);
    }
    Ok(if findings.iter().all(|f| f.verdict == Verdict::Valid) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

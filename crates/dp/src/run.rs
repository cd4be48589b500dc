//! `ikada-dp run`: the sequence of start, drain and stop (reference: §3.3, §3.6).

use crate::{
    access_log::Streamer,
    admin,
    bootstrap::{self, AdminAddress, Bootstrap, Request},
    cli::{LogLevel, ProxyType, Run},
    envoy::{self, Envoy, Launch},
    readiness::{self, Readiness},
    resource,
    workdir::WorkDir,
};
use anyhow::{Context, bail};
use ikada_cli::ServerTrust;
use nix::sys::signal::Signal;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};

/// Longest wait for Envoy's admin to take an order.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(5);
/// A proxy that is not ready after this is worth a line in the log.
const SLOW_START: Duration = Duration::from_secs(15);

/// The signals that are listened to, from the very start: none may end the program without cleaning up.
struct Signals {
    exit: ExitSignals,
    user1: tokio::signal::unix::Signal,
    user2: tokio::signal::unix::Signal,
}

struct ExitSignals {
    term: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Signals> {
        let on = |kind| signal(kind).context("cannot listen to signals");
        Ok(Signals {
            exit: ExitSignals { term: on(SignalKind::terminate())?, interrupt: on(SignalKind::interrupt())? },
            user1: on(SignalKind::user_defined1())?,
            user2: on(SignalKind::user_defined2())?,
        })
    }
}

impl ExitSignals {
    /// SIGTERM or SIGINT.
    async fn received(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Runs until Envoy ends or a signal comes.
///
/// # Errors
/// Anything before Envoy runs, and Envoy's own end.
pub async fn run(args: Run, log_level: LogLevel) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let binary = envoy::find(&args.binary_path)?;
    let dir = WorkDir::open(args.work_dir.as_deref())?;
    let prepared = tokio::select! {
        prepared = prepare(&args, &binary, &dir) => prepared?,
        () = signals.exit.received() => {
            tracing::info!("stopped before the control plane answered");
            return Ok(());
        }
    };
    let Prepared { name, mesh, bootstrap, listener } = prepared;
    let config = dir.write_secret("bootstrap.yaml", bootstrap.yaml.as_bytes())?;
    let mut components = JoinSet::new();
    let readiness = Readiness::new(bootstrap.admin.clone());
    components.spawn(readiness::serve(listener, readiness.clone()));
    if args.proxy_type == ProxyType::Dataplane {
        components.spawn(Streamer::create(&dir.socket(&format!("kuma-al-{name}-{mesh}")))?.run());
    }
    let log = args.envoy_log_level.as_deref().unwrap_or(log_level.envoy());
    let launch = Launch {
        binary: &binary,
        config: &config,
        drain_time: args.drain_time,
        concurrency: args.concurrency,
        log_level: log,
        component_log_level: args.envoy_component_log_level.as_deref(),
    };
    let mut envoy = launch.start()?;
    components.spawn(report_ready(readiness.clone(), Instant::now()));
    let result = supervise(&mut envoy, &mut signals, &readiness, bootstrap.admin.as_ref(), args.drain_time).await;
    components.shutdown().await;
    drop(dir);
    result
}

struct Prepared {
    name: String,
    mesh: String,
    bootstrap: Bootstrap,
    listener: tokio::net::TcpListener,
}

/// Everything up to the answer of the control plane.
async fn prepare(args: &Run, binary: &std::path::Path, dir: &WorkDir) -> anyhow::Result<Prepared> {
    if args.dns_enabled {
        tracing::warn!("DNS is not served by this version: names of mesh services are not resolved on this machine");
    }
    let identity = {
        let args = args.clone();
        // Standard input may block.
        tokio::task::spawn_blocking(move || resource::identity(&args)).await.context("cannot read the dataplane definition")??
    };
    let version = envoy::version(binary).await?;
    if !version.kuma_dp_compatible {
        tracing::warn!(version = %version.version, "this program is not tested with this version of Envoy");
    }
    let ca_pem = match (&args.ca_cert_file, &args.ca_cert) {
        (Some(path), _) => {
            Some(std::fs::read_to_string(path).with_context(|| format!("cannot read the CA certificate {}", path.display()))?)
        }
        (None, pem) => pem.clone().filter(|p| !p.trim().is_empty()),
    };
    let token = resource::token(args, &identity.name, dir)?;
    let request = Request::new(args, &identity, token, version, ca_pem.as_deref(), dir.path());
    let trust = ServerTrust { ca_pem, skip_verify: args.skip_verify };
    let start = Instant::now();
    let bootstrap = bootstrap::fetch(args, &trust, &request).await?;
    let address = bootstrap.address.or_else(|| identity.address.as_deref()?.parse().ok());
    let listener = readiness::bind(readiness_address(&bootstrap, address, args.readiness_port)).await?;
    tracing::info!(
        name = %identity.name,
        mesh = %identity.mesh,
        work_dir = %dir.path().display(),
        readiness = %listener.local_addr().map(|a| a.to_string()).unwrap_or_default(),
        ms = start.elapsed().as_millis() as u64,
        "got the bootstrap configuration from {}, starting {}",
        args.cp_address,
        binary.display()
    );
    Ok(Prepared { name: identity.name, mesh: identity.mesh, bootstrap, listener })
}

/// Beside a TCP admin; with the admin on a socket on loopback, of the proxy's address family.
fn readiness_address(bootstrap: &Bootstrap, proxy: Option<IpAddr>, port: u16) -> SocketAddr {
    let ip = match (&bootstrap.admin, proxy) {
        (Some(AdminAddress::Tcp(ip, _)), _) => *ip,
        (_, Some(IpAddr::V6(_))) => Ipv6Addr::LOCALHOST.into(),
        _ => Ipv4Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, port)
}

/// Says once when Envoy is ready, and once when that takes long.
async fn report_ready(readiness: Arc<Readiness>, start: Instant) {
    let mut pause = Duration::from_millis(50);
    let mut told = false;
    loop {
        match readiness.state().await {
            (_, "READY") => return tracing::info!(ms = start.elapsed().as_millis() as u64, "the proxy is ready"),
            (_, "TERMINATING") => return,
            _ if !told && start.elapsed() > SLOW_START => {
                told = true;
                tracing::warn!(
                    "the proxy is not ready after {SLOW_START:?}: if Envoy logs \"authentication failed\", the token does not fit this proxy"
                );
            }
            _ => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

async fn supervise(
    envoy: &mut Envoy,
    signals: &mut Signals,
    readiness: &Readiness,
    admin: Option<&AdminAddress>,
    drain_time: Duration,
) -> anyhow::Result<()> {
    let order = async |path: &str| {
        let Some(admin) = admin else { return };
        match admin::call(admin, http::Method::POST, path, ADMIN_TIMEOUT).await {
            Ok(status) if status.is_success() => {}
            Ok(status) => tracing::warn!("Envoy answered {path} with {status}"),
            Err(e) => tracing::warn!("Envoy does not answer {path}: {e:#}"),
        }
    };
    let Signals { exit, user1, user2 } = signals;
    let mut drained = false;
    loop {
        tokio::select! {
            status = envoy.wait() => bail!("Envoy ended: {}", status?),
            // Envoy reopens its log files.
            _ = user1.recv() => envoy.signal(Signal::SIGUSR1),
            _ = user2.recv() => {
                if !drained {
                    drained = true;
                    tracing::info!("draining the inbound listeners");
                    order("/drain_listeners?inboundonly&graceful&skip_exit").await;
                }
            }
            () = exit.received() => break,
        }
    }
    readiness.terminate();
    // After SIGUSR2 the connections had their time already.
    if !drained && !drain_time.is_zero() {
        tracing::info!(seconds = drain_time.as_secs_f64(), "draining: a second signal ends it at once");
        order("/healthcheck/fail").await;
        tokio::select! {
            () = tokio::time::sleep(drain_time) => {}
            () = exit.received() => tracing::info!("draining was cut short"),
            status = envoy.wait() => bail!("Envoy ended while draining: {}", status?),
        }
    }
    envoy.stop().await?;
    tracing::info!("stopped");
    Ok(())
}

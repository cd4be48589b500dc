//! One node of the control plane: starts everything, waits for its end, stops everything.

use crate::{
    RunArgs, bundle,
    cluster::{self, Admin, Instances, Readiness},
    config::{Config, ProxyAuth, TlsFiles},
    controllers::{MeshServiceOptions, run_mesh_services},
    diagnostics::{Diagnostics, reply},
    dp_server::DpServer,
    listen::{self, Peer, Reply},
    proxies::{Inspector, Proxies, ProxiesOptions, now},
    tls,
};
use anyhow::{Context, Result, anyhow};
use axum::extract::ConnectInfo;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use ikada_api::{ApiOptions, ApiState, Index, OverTls, managers};
use ikada_model::Mode;
use ikada_cluster::ClusterNode;
use ikada_raft::RaftStore;
use ikada_world::{Command, ProposeError, Reason, Replicator};
use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

/// How long open API requests may take to end at shutdown.
const API_GRACE: Duration = Duration::from_secs(5);
/// Attempts to make default resources while others write too.
const DEFAULT_ATTEMPTS: usize = 5;

/// What proxies get before the node has caught up.
const NOT_YET: &str = "this control plane is not ready yet; GET /ready on its diagnostics port says why\n";

/// Version of the contract that clients see.
const KUMA_VERSION: &str = "2.14.3";

struct Listeners {
    http: Option<TcpListener>,
    https: Option<TcpListener>,
    dp: Option<TcpListener>,
    diagnostics: Option<TcpListener>,
}

impl Listeners {
    /// All of them or none, before anything is opened or written.
    fn bind(c: &Config) -> Result<Listeners> {
        let one = |address: Option<SocketAddr>, what, setting| address.map(|a| listen::bind(a, what, setting)).transpose();
        Ok(Listeners {
            http: one(c.api.http, "REST API", "KUMA_API_SERVER_HTTP_PORT")?,
            https: one(c.api.https, "REST API over TLS", "KUMA_API_SERVER_HTTPS_PORT")?,
            dp: one(c.dp.as_ref().map(|d| d.address), "DP server", "KUMA_DP_SERVER_PORT")?,
            diagnostics: one(c.diagnostics, "diagnostics", "KUMA_DIAGNOSTICS_SERVER_PORT")?,
        })
    }
}

fn hostname() -> String {
    nix::unistd::gethostname().ok().and_then(|h| h.into_string().ok()).filter(|h| !h.is_empty()).unwrap_or_else(|| "localhost".into())
}

/// This node was removed from its cluster: starting it again cannot help.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Removed(String);

/// Whether that is why a run ended, or why a start is refused.
pub fn is_removed(error: &anyhow::Error) -> bool {
    error.is::<Removed>() || matches!(error.downcast_ref(), Some(ikada_cluster::StartError::Removed(_)))
}

/// Runs a control plane until SIGTERM, SIGINT or a fatal fault of the store.
pub async fn run(args: &RunArgs) -> Result<()> {
    let env = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    let (config, warnings) = Config::load(args.config_file.as_deref(), env, &args.flags())?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    // Signals first: a stop during a slow start must be orderly too.
    let mut stop_signals = StopSignals::new()?;
    let mut listeners = Listeners::bind(&config)?;
    let hostname = hostname();
    let outside = Outside { tracker: TaskTracker::new(), stop: CancellationToken::new(), connections: listen::connection_budget() };
    // Before the store: a node may wait long for its cluster, and should say so.
    let diagnostics = Diagnostics::new();
    if let Some(l) = listeners.diagnostics.take() {
        outside.diagnostics(l, diagnostics.clone());
    }
    let result = with_store(args, config, hostname, listeners, &outside, &diagnostics, &mut stop_signals).await;
    outside.stop.cancel();
    outside.tracker.close();
    outside.tracker.wait().await;
    result?;
    tracing::info!("stopped");
    Ok(())
}

async fn with_store(
    args: &RunArgs,
    config: Config,
    hostname: String,
    listeners: Listeners,
    outside: &Outside,
    diagnostics: &Arc<Diagnostics>,
    signals: &mut StopSignals,
) -> Result<()> {
    let cluster = tokio::select! {
        started = cluster::start(&config, &hostname) => started?,
        name = signals.wait() => { tracing::info!(signal = name, "stopping before the store was open"); return Ok(()) }
    };
    let store = cluster.store();
    diagnostics.opened(store.clone());
    let node = Node { hostname, store, cluster: cluster.clone(), config: Arc::new(config), tracker: TaskTracker::new(), stop: CancellationToken::new() };
    let result = node.serve(args, listeners, outside, diagnostics, signals).await;
    node.stop.cancel();
    node.tracker.close();
    node.tracker.wait().await;
    let closed = cluster.shutdown().await;
    result?;
    closed.map_err(|e| anyhow!("{e}"))
}

struct StopSignals {
    term: Signal,
    int: Signal,
}

impl StopSignals {
    fn new() -> Result<Self> {
        let on = |kind| signal(kind).context("cannot handle signals");
        Ok(StopSignals { term: on(SignalKind::terminate())?, int: on(SignalKind::interrupt())? })
    }
    async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}

/// What is there before and after the store.
struct Outside {
    tracker: TaskTracker,
    stop: CancellationToken,
    /// How many connections to take at a time.
    connections: usize,
}

impl Outside {
    fn diagnostics(&self, listener: TcpListener, diagnostics: Arc<Diagnostics>) {
        // Few, and of their own: a probe must get through when clients of the API have taken all of theirs.
        let connections = Arc::new(Semaphore::new((self.connections / 16).clamp(8, 256)));
        let options = listen::Options { name: "diagnostics", tls: None, first_byte: Duration::from_secs(1), connections, grace: API_GRACE };
        let handler = move |request: Request<Incoming>| diagnostics.clone().handle(request);
        self.tracker.spawn(listen::serve(listener, options, handler, self.stop.clone()));
    }
}

#[derive(Clone)]
struct Node {
    hostname: String,
    store: Arc<RaftStore>,
    cluster: Arc<ClusterNode>,
    config: Arc<Config>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Node {
    /// Why the node has to end by itself, if it ever has.
    async fn ended(&self) -> anyhow::Error {
        let (mut fatal, mut removed) = (self.store.fatal(), self.cluster.ended());
        tokio::select! {
            fault = fatal.wait_for(Option::is_some) => match fault.ok().and_then(|f| f.clone()) {
                Some(fault) => anyhow!("the store left service: {fault}"),
                None => anyhow!("the store left service"),
            },
            why = removed.wait_for(Option::is_some) => match why.ok().and_then(|w| w.clone()) {
                Some(why) => Removed(why).into(),
                None => anyhow!("this node left its cluster"),
            },
        }
    }

    /// Waits for something of the start. `None`: the process is to stop.
    async fn starting<T>(&self, what: impl Future<Output = Result<T>>, signals: &mut StopSignals) -> Result<Option<T>> {
        tokio::select! {
            done = what => done.map(Some),
            name = signals.wait() => { tracing::info!(signal = name, "stopping"); Ok(None) }
            why = self.ended() => Err(why),
        }
    }

    /// Until the store has caught up with a leader.
    async fn caught_up(&self, diagnostics: &Diagnostics) -> Result<()> {
        let (mut ready, mut changes) = (self.store.ready(), self.store.watch_status());
        let mut said = String::new();
        loop {
            if *ready.borrow_and_update() {
                return Ok(());
            }
            let why = cluster::reason(&self.store.status(), self.store.contact());
            if why != said && !said.is_empty() {
                tracing::info!("not ready: {why}");
            }
            diagnostics.readiness.send_replace(Readiness::waiting(why.clone()));
            said = why;
            tokio::select! {
                changed = ready.changed() => changed.context("the store ended")?,
                _ = changes.changed() => {}
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    }

    async fn serve(&self, args: &RunArgs, listeners: Listeners, outside: &Outside, diagnostics: &Arc<Diagnostics>, signals: &mut StopSignals) -> Result<()> {
        let c = &self.config;
        let instance_id = format!("{}-{}", self.hostname, uuid::Uuid::new_v4().simple().to_string().get(..4).unwrap_or("0000"));
        let proxies = Proxies::new(self.store.clone(), self.proxies_options(&instance_id), diagnostics.metrics.clone());
        // Proxies have their own share: clients of the API cannot take it from them, nor they from an operator.
        let budget = outside.connections;
        let (proxy_connections, connections) = (Arc::new(Semaphore::new(budget / 4 * 3)), Arc::new(Semaphore::new(budget / 4)));
        let options = |name, tls, first_byte, grace| listen::Options { name, tls, first_byte, connections: connections.clone(), grace };

        if let Some(path) = &args.load {
            let load = async {
                self.caught_up(diagnostics).await?;
                let n = bundle::load(&*self.store, path).await?;
                tracing::info!(resources = n, file = %path.display(), "bundle loaded");
                Ok(())
            };
            if self.starting(load, signals).await?.is_none() {
                return Ok(());
            }
        }
        // Before the node is ready: an operator has to see why it is not.
        // Half of the API's connections may wait for changes, so that there is always room for who does not.
        let api = ApiOptions { complete_dataplanes: !args.api_only, waiters: (budget / 8).min(4096), ..self.api_options(&instance_id) };
        let state = ApiState::new(self.store.clone(), Arc::new(Inspector(proxies.clone())), api).until(self.stop.clone());
        let router = ikada_api::router(state.with_cluster(Arc::new(Admin(self.cluster.clone()))));
        let handler = move |request: Request<Incoming>| api_request(router.clone(), request);
        if let Some(l) = listeners.http {
            self.tracker.spawn(listen::serve(l, options("api", None, c.api.read_header_timeout, API_GRACE), handler.clone(), self.stop.clone()));
        }
        if let Some(l) = listeners.https {
            let identity = self.certificate(c.api.tls.as_ref())?;
            self.tracker.spawn(listen::serve(l, options("api-tls", Some(identity.server), c.api.read_header_timeout, API_GRACE), handler, self.stop.clone()));
        }
        // Proxies are turned away until the node has caught up: what one that has been away remembers would take them back to the past.
        let open = Arc::new(AtomicBool::new(false));
        if let (Some(l), Some(dp)) = (listeners.dp, &c.dp) {
            let identity = self.certificate(dp.tls.as_ref())?;
            let xds = ikada_xds::Options { identifier: instance_id.clone(), nack_backoff: dp.nack_backoff, ..ikada_xds::Options::default() };
            let server = Arc::new(DpServer::new(self.store.clone(), proxies.clone(), c.bootstrap.clone(), c.zone.clone(), xds, &identity));
            let open = open.clone();
            let handler = move |request: Request<Incoming>| {
                let server = open.load(Ordering::Relaxed).then(|| server.clone());
                async move {
                    match server {
                        Some(server) => server.handle(request).await,
                        None => reply(StatusCode::SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", NOT_YET),
                    }
                }
            };
            let mut o = options("dp-server", Some(identity.server), dp.read_header_timeout, dp.graceful_shutdown_timeout);
            o.connections = proxy_connections;
            self.tracker.spawn(listen::serve(l, o, handler, self.stop.clone()));
        }
        let caught_up = cluster::waiting("waiting for the cluster", self.caught_up(diagnostics));
        if self.starting(caught_up, signals).await?.is_none() {
            return Ok(());
        }
        if !args.api_only && self.starting(self.defaults(), signals).await?.is_none() {
            return Ok(());
        }
        open.store(true, Ordering::Relaxed);
        diagnostics.serving(proxies.clone());
        self.tracker.spawn(proxies.clone().run_reconcile(self.stop.clone()));
        self.tracker.spawn(proxies.clone().run_hosts(c.dns_cache_ttl, self.stop.clone()));
        if c.bootstrap.hds_enabled {
            self.tracker.spawn(proxies.clone().run_health(self.stop.clone()));
        }
        // Ends after the streams did, to write how they ended.
        let insights_stop = CancellationToken::new();
        let insights = tokio::spawn(proxies.clone().run_insights(insights_stop.clone()));
        if !args.api_only {
            self.tracker.spawn(cluster::announce(self.store.clone(), instance_id, self.stop.clone()));
            self.tracker.spawn(proxies.clone().run_cleanup(self.stop.clone()));
            let instances = Instances(self.store.clone());
            self.tracker.spawn(proxies.clone().run_finalizer(move |world, patience| instances.living(world, patience), self.stop.clone()));
            if matches!(c.mode, Mode::Zone { .. }) {
                let o = MeshServiceOptions { zone: c.zone.clone(), grace: c.mesh_service_grace, cidr: c.mesh_service_cidr.clone() };
                self.tracker.spawn(run_mesh_services(self.store.clone(), o, self.stop.clone()));
            }
        }
        let grace = c.raft.settings.derived().worst_failover;
        self.tracker.spawn(cluster::watch(self.store.clone(), diagnostics.readiness.clone(), grace, self.stop.clone()));
        diagnostics.readiness.send_replace(Readiness::default());
        self.announce();
        sd_notify::notify(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status("serving")]).ok();

        let end = tokio::select! {
            name = signals.wait() => { tracing::info!(signal = name, "stopping: open requests may end"); Ok(()) }
            why = self.ended() => Err(why),
        };
        sd_notify::notify(&[sd_notify::NotifyState::Stopping]).ok();
        diagnostics.stopping();
        if end.is_ok() {
            cluster::hand_over(&self.cluster).await;
        }
        proxies.begin_stop();
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
        insights_stop.cancel();
        insights.await.ok();
        end
    }

    fn announce(&self) {
        let c = &self.config;
        let text = |a: Option<SocketAddr>| a.map_or_else(|| "off".to_owned(), |a| a.to_string());
        tracing::info!(
            mode = c.mode.as_str(),
            zone = c.zone,
            api = text(c.api.http),
            api_tls = text(c.api.https),
            dp_server = text(c.dp.as_ref().map(|d| d.address)),
            diagnostics = text(c.diagnostics),
            data = %absolute(&c.data_dir).display(),
            "serving"
        );
        if let (Some(dp), Some(api)) = (&c.dp, c.api.http) {
            tracing::info!(
                "to connect the first proxy: ikadactl --address http://localhost:{} generate dataplane-token --name NAME --valid-for 24h > token && \
                 ikada-dp run --cp-address https://localhost:{} --skip-verify --dataplane-file dataplane.yaml --dataplane-token-file token",
                api.port(),
                dp.address.port()
            );
        }
    }

    fn certificate(&self, own: Option<&TlsFiles>) -> Result<tls::Identity> {
        match own.or(self.config.tls.as_ref()) {
            Some(files) => tls::from_files(files),
            None => {
                let dir = self.config.work_dir.clone().unwrap_or_else(|| self.config.data_dir.join("tls"));
                tls::generated(&dir, &self.hostname)
            }
        }
    }

    fn proxies_options(&self, instance_id: &str) -> ProxiesOptions {
        let c = &self.config;
        let mut settings = ikada_envoy::Settings { zone: c.zone.clone(), readiness_port: c.readiness_port, dns_domain: c.dns_domain.clone(), service_vip_port: c.service_vip_port, ..ikada_envoy::Settings::default() };
        if let Some(cidrs) = &c.known_internal_cidrs {
            settings.known_internal_cidrs.clone_from(cidrs);
        }
        ProxiesOptions {
            mode: c.mode,
            zone: c.zone.clone(),
            instance_id: instance_id.to_owned(),
            require_token: c.dp.as_ref().is_none_or(|d| d.dp_auth == ProxyAuth::Token),
            settings,
            insights: c.insights.clone(),
            health: c.health.clone(),
        }
    }

    fn api_options(&self, instance_id: &str) -> ApiOptions {
        let c = &self.config;
        ApiOptions {
            mode: c.mode,
            zone: c.zone.clone(),
            read_only: c.api.read_only,
            base_path: c.api.base_path.clone(),
            localhost_is_admin: c.api.localhost_is_admin,
            user_token_issuer: c.api.user_token_issuer,
            dataplane_token_issuer: c.dp.as_ref().is_some_and(|d| d.dp_token_issuer),
            zone_token_issuer: c.dp.as_ref().is_some_and(|d| d.zone_token_issuer),
            disable_origin_label_validation: c.disable_origin_label_validation,
            unsafe_delete: c.unsafe_delete,
            access: c.access.clone(),
            gui: c.api.gui.clone(),
            index: Index {
                hostname: self.hostname.clone(),
                instance_id: instance_id.to_owned(),
                version: KUMA_VERSION.into(),
                ..ApiOptions::default().index
            },
            config: Arc::new(c.effective()),
            ..ApiOptions::default()
        }
    }

    /// What a control plane needs to exist is made once per process, by the node that leads: at once, or when this one comes to lead.
    async fn defaults(&self) -> Result<()> {
        let mut leads = self.store.leadership();
        if *leads.borrow_and_update() {
            return self.ensure_defaults().await;
        }
        let options = self.defaults_options();
        let world = self.store.linearizable().await.context("cannot read the store")?;
        if managers::ensure_defaults(&options, &world, now()).await.is_ok_and(|missing| missing.is_empty()) {
            return Ok(());
        }
        let (node, stop) = (self.clone(), self.stop.clone());
        self.tracker.spawn(async move {
            let made = async {
                loop {
                    if leads.wait_for(|leads| *leads).await.is_err() {
                        return;
                    }
                    match node.ensure_defaults().await {
                        Ok(()) => return,
                        Err(error) => tracing::warn!("{error:#}, trying again"),
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = made => {}
            }
        });
        Ok(())
    }

    fn defaults_options(&self) -> managers::DefaultsOptions {
        let c = &self.config;
        managers::DefaultsOptions {
            settings: self.api_options("").managers(),
            skip_tenant_resources: c.skip_tenant_resources,
            skip_mesh_creation: c.skip_mesh_creation,
            skip_hostname_generators: c.skip_hostname_generators,
            user_tokens: true,
            bootstrap_admin_token: c.api.bootstrap_admin_token && c.api.user_token_issuer,
        }
    }

    /// Makes what a control plane needs to exist. Another node may do the same meanwhile.
    async fn ensure_defaults(&self) -> Result<()> {
        let options = self.defaults_options();
        for _ in 0..DEFAULT_ATTEMPTS {
            let world = self.store.linearizable().await.context("cannot read the store")?;
            let missing = managers::ensure_defaults(&options, &world, now()).await.map_err(|e| anyhow!("cannot make default resources: {e}"))?;
            if missing.is_empty() {
                return Ok(());
            }
            for ensure in missing {
                match self.store.propose(Command { id: self.store.new_id(), ops: ensure.ops }).await {
                    Ok(_) => tracing::info!(what = ensure.what, "created"),
                    Err(ProposeError::Rejected(r)) if matches!(r.reason, Reason::AlreadyExists | Reason::Conflict) => {}
                    Err(e) => return Err(e).with_context(|| format!("cannot create {}", ensure.what)),
                }
            }
        }
        Ok(())
    }
}

fn absolute(path: &std::path::Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

async fn api_request(router: axum::Router, request: Request<Incoming>) -> Reply {
    let mut request = request.map(axum::body::Body::new);
    if let Some(peer) = request.extensions().get::<Peer>().copied() {
        request.extensions_mut().insert(ConnectInfo(peer.address));
        if peer.tls {
            request.extensions_mut().insert(OverTls);
        }
    }
    let response = match router.oneshot(request).await {
        Ok(r) => r,
        Err(never) => match never {},
    };
    response.map(|b| b.map_err(Into::into).boxed_unsync())
}

//! Configuration of the control plane (reference: Kuma 2.14.3 configuration keys; data-plane contract §9).

mod load;
mod settings;

use load::Values;

use anyhow::{Context, Result, bail};
use ikada_api::auth::{Allowed, StaticAccess};
use ikada_envoy::bootstrap::BootstrapParams;
use ikada_model::Mode;
use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

/// A file with a certificate chain and one with its key, both PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

/// REST API.
#[derive(Debug, Clone)]
pub struct ApiServer {
    /// Plain-text listener.
    pub http: Option<SocketAddr>,
    /// TLS listener.
    pub https: Option<SocketAddr>,
    /// Own certificate of the TLS listener.
    pub tls: Option<TlsFiles>,
    /// Refuse writes.
    pub read_only: bool,
    /// Path prefix.
    pub base_path: String,
    /// How long a client may take for its request head.
    pub read_header_timeout: Duration,
    /// Requests from loopback are admin.
    pub localhost_is_admin: bool,
    /// Create the admin's token at start.
    pub bootstrap_admin_token: bool,
    /// Serve `POST /tokens/user`.
    pub user_token_issuer: bool,
}

/// How proxies prove who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyAuth {
    /// A signed token.
    Token,
    /// Not at all.
    None,
}

/// DP server.
#[derive(Debug, Clone)]
pub struct DpServer {
    /// Listener.
    pub address: SocketAddr,
    /// Own certificate.
    pub tls: Option<TlsFiles>,
    /// How long a client may take for its request head.
    pub read_header_timeout: Duration,
    /// How long open connections may take to end at shutdown.
    pub graceful_shutdown_timeout: Duration,
    /// Authentication of dataplanes.
    pub dp_auth: ProxyAuth,
    /// Serve `POST /tokens/dataplane`.
    pub dp_token_issuer: bool,
    /// Serve `POST /tokens/zone`.
    pub zone_token_issuer: bool,
}

/// Insights and their clean-up.
#[derive(Debug, Clone)]
pub struct Insights {
    /// Shortest time between two writes of changed insights.
    pub flush_interval: Duration,
    /// Time between a proxy's disconnect and its removal.
    pub deregistration_delay: Duration,
    /// Subscriptions kept per insight; 0 = no insights.
    pub subscription_limit: usize,
    /// An insight of a control plane that is gone is closed after this.
    pub idle_timeout: Duration,
    /// Offline dataplanes are deleted after this.
    pub cleanup_age: Duration,
}

/// Everything.
#[derive(Debug, Clone)]
pub struct Config {
    /// Data directory.
    pub data_dir: PathBuf,
    /// Mode.
    pub mode: Mode,
    /// Name of the zone.
    pub zone: String,
    /// Directory of the generated TLS pair; `None` = in the data directory.
    pub work_dir: Option<PathBuf>,
    /// Certificate for every server without its own.
    pub tls: Option<TlsFiles>,
    /// REST.
    pub api: ApiServer,
    /// DP server; `None` on a global.
    pub dp: Option<DpServer>,
    /// Diagnostics; `None` = off.
    pub diagnostics: Option<SocketAddr>,
    /// Bootstrap.
    pub bootstrap: BootstrapParams,
    /// Insights.
    pub insights: Insights,
    /// Fallback for a proxy that names no readiness port.
    pub readiness_port: u32,
    /// Who may do what.
    pub access: StaticAccess,
    /// CIDR of MeshService VIPs.
    pub mesh_service_cidr: String,
    /// `internal_address_config` of HTTP connection managers; `None` = Kuma's default list.
    pub known_internal_cidrs: Option<Vec<String>>,
    /// An empty MeshService is removed after this.
    pub mesh_service_grace: Duration,
    /// Skip delete checks.
    pub unsafe_delete: bool,
    /// Create no mesh at start.
    pub skip_mesh_creation: bool,
    /// Create nothing at start.
    pub skip_tenant_resources: bool,
    /// Create no hostname generators at start.
    pub skip_hostname_generators: bool,
    /// Do not check origin labels.
    pub disable_origin_label_validation: bool,
}

fn tls_files(v: &Values, cert_key: &str, key_key: &str) -> Result<Option<TlsFiles>> {
    match (v.optional(cert_key), v.optional(key_key)) {
        (None, None) => Ok(None),
        (Some(cert), Some(key)) => Ok(Some(TlsFiles { cert: cert.into(), key: key.into() })),
        _ => bail!("{cert_key} and {key_key} must be set together"),
    }
}

fn address(v: &Values, interface: &str, port: &str) -> Result<SocketAddr> {
    let text = v.text(interface);
    let Ok(ip) = text.parse::<IpAddr>() else { bail!("{interface}{}: {text:?} is not an IP address", v.origin(interface)) };
    Ok(SocketAddr::new(ip, v.number(port)?))
}

fn auth(v: &Values, key: &str, token: &str) -> Result<ProxyAuth> {
    match v.text(key).as_str() {
        "" => Ok(ProxyAuth::Token),
        t if t == token => Ok(ProxyAuth::Token),
        "none" => Ok(ProxyAuth::None),
        other => bail!("{key}{}: {other:?} is not supported, use {token:?} or \"none\"", v.origin(key)),
    }
}

fn bootstrap_params(v: &Values, dp_port: u16) -> Result<BootstrapParams> {
    let admin_address = v.text("bootstrapServer.params.adminAddress");
    let corefile_template = match v.optional("bootstrapServer.params.corefileTemplatePath") {
        None => None,
        Some(path) => Some(std::fs::read(&path).with_context(|| format!("bootstrapServer.params.corefileTemplatePath: cannot read {path}"))?),
    };
    let xds_port = match v.number("bootstrapServer.params.xdsPort")? {
        0 => dp_port,
        port => port,
    };
    Ok(BootstrapParams {
        admin_address,
        admin_port: u32::from(v.number::<u16>("bootstrapServer.params.adminPort")?),
        admin_access_log_path: v.text("bootstrapServer.params.adminAccessLogPath"),
        envoy_admin_unix_socket: v.flag("bootstrapServer.params.envoyAdminUnixSocket"),
        xds_host: v.text("bootstrapServer.params.xdsHost"),
        xds_port,
        xds_connect_timeout: v.duration("bootstrapServer.params.xdsConnectTimeout")?,
        xds_grpc_max_receive_message_bytes: v.number("bootstrapServer.params.xdsGrpcMaxReceiveMessageBytes")?,
        corefile_template,
        hds_enabled: v.flag("dpServer.hds.enabled"),
        enable_reloadable_tokens: v.flag("dpServer.authn.enableReloadableTokens"),
        dp_token_required: auth(v, "dpServer.authn.dpProxy.type", "dpToken")? == ProxyAuth::Token,
        zone_token_required: auth(v, "dpServer.authn.zoneProxy.type", "zoneToken")? == ProxyAuth::Token,
        gateway_global_downstream_max_connections: v.number("proxy.gateway.globalDownstreamMaxConnections")?,
        inbound_tags_disabled: v.flag("experimental.inboundTagsDisabled"),
    })
}

fn access(v: &Values) -> StaticAccess {
    let mut all = StaticAccess::default();
    let rows: [(&str, &mut Allowed); 8] = [
        ("adminResources", &mut all.admin_resources),
        ("generateDpToken", &mut all.generate_dp_token),
        ("generateUserToken", &mut all.generate_user_token),
        ("generateZoneToken", &mut all.generate_zone_token),
        ("viewConfigDump", &mut all.view_config_dump),
        ("viewStats", &mut all.view_stats),
        ("viewClusters", &mut all.view_clusters),
        ("controlPlaneMetadata", &mut all.control_plane_metadata),
    ];
    for (name, allowed) in rows {
        if let Some(users) = v.list(&format!("access.static.{name}.users")) {
            allowed.users = users;
        }
        if let Some(groups) = v.list(&format!("access.static.{name}.groups")) {
            allowed.groups = groups;
        }
    }
    all
}

impl Config {
    /// Reads file and environment. Errors are one line and name the setting.
    pub fn load(file: Option<&Path>, env: impl IntoIterator<Item = (String, String)>) -> Result<(Config, Vec<String>)> {
        let v = Values::load(file, env)?;
        let environment = v.text("environment");
        if environment != "universal" {
            bail!("environment{}: {environment:?} is not supported, Ikada runs on \"universal\"", v.origin("environment"));
        }
        let federated = v.optional("multizone.zone.globalAddress").is_some();
        let mode = match v.text("mode").as_str() {
            "zone" | "standalone" => Mode::Zone { federated },
            "global" => Mode::Global,
            other => bail!("mode{}: {other:?} is not supported, use \"zone\" or \"global\"", v.origin("mode")),
        };
        match v.text("store.type").as_str() {
            "memory" | "raft" | "postgres" => {}
            other => bail!("store.type{}: {other:?} is not supported, leave it out: state is always in raft.dataDir", v.origin("store.type")),
        }
        let zone = v.text("multizone.zone.name");
        let dns_label = zone.len() <= 63
            && !zone.is_empty()
            && zone.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
            && zone.starts_with(|c: char| c.is_ascii_alphanumeric())
            && zone.ends_with(|c: char| c.is_ascii_alphanumeric());
        if !dns_label {
            bail!("multizone.zone.name{}: {zone:?} must be a lower-case DNS name of at most 63 characters", v.origin("multizone.zone.name"));
        }
        match v.text("access.type").as_str() {
            "static" => {}
            other => bail!("access.type{}: {other:?} is not supported, use \"static\"", v.origin("access.type")),
        }
        match v.text("apiServer.authn.type").as_str() {
            "tokens" => {}
            other => bail!("apiServer.authn.type{}: {other:?} is not supported in this version, use \"tokens\"", v.origin("apiServer.authn.type")),
        }
        match v.text("raft.profile").as_str() {
            "lan" => {}
            other => bail!("raft.profile{}: {other:?} is not a profile of this version, use \"lan\"", v.origin("raft.profile")),
        }
        let api = ApiServer {
            http: if v.flag("apiServer.http.enabled") { Some(address(&v, "apiServer.http.interface", "apiServer.http.port")?) } else { None },
            https: if v.flag("apiServer.https.enabled") { Some(address(&v, "apiServer.https.interface", "apiServer.https.port")?) } else { None },
            tls: tls_files(&v, "apiServer.https.tlsCertFile", "apiServer.https.tlsKeyFile")?,
            read_only: v.flag("apiServer.readOnly"),
            base_path: v.text("apiServer.basePath"),
            read_header_timeout: v.duration("apiServer.readHeaderTimeout")?,
            localhost_is_admin: v.flag("apiServer.authn.localhostIsAdmin"),
            bootstrap_admin_token: v.flag("apiServer.authn.tokens.bootstrapAdminToken"),
            user_token_issuer: v.flag("apiServer.authn.tokens.enableIssuer"),
        };
        if api.http.is_none() && api.https.is_none() {
            bail!("apiServer.http.enabled and apiServer.https.enabled are both false: the control plane could not be reached");
        }
        let dp_port: u16 = v.number("dpServer.port")?;
        let dp = match mode {
            Mode::Global => None,
            Mode::Zone { .. } => Some(DpServer {
                address: crate::listen::everywhere(dp_port),
                tls: tls_files(&v, "dpServer.tlsCertFile", "dpServer.tlsKeyFile")?,
                read_header_timeout: v.duration("dpServer.readHeaderTimeout")?,
                graceful_shutdown_timeout: v.duration("dpServer.gracefulShutdownTimeout")?,
                dp_auth: auth(&v, "dpServer.authn.dpProxy.type", "dpToken")?,
                dp_token_issuer: v.flag("dpServer.authn.dpProxy.dpToken.enableIssuer"),
                zone_token_issuer: v.flag("dpServer.authn.zoneProxy.zoneToken.enableIssuer"),
            }),
        };
        let diagnostics = match v.number::<u16>("diagnostics.serverPort")? {
            0 => None,
            port => Some(crate::listen::everywhere(port)),
        };
        let insights = Insights {
            flush_interval: v.duration("xdsServer.dataplaneStatusFlushInterval")?,
            deregistration_delay: v.duration("xdsServer.dataplaneDeregistrationDelay")?,
            subscription_limit: v.number("metrics.dataplane.subscriptionLimit")?,
            idle_timeout: v.duration("metrics.dataplane.idleTimeout")?,
            cleanup_age: v.duration("runtime.universal.dataplaneCleanupAge")?,
        };
        let config = Config {
            data_dir: v.text("raft.dataDir").into(),
            mode,
            zone,
            work_dir: v.optional("general.workDir").map(PathBuf::from),
            tls: tls_files(&v, "general.tlsCertFile", "general.tlsKeyFile")?,
            api,
            dp,
            diagnostics,
            bootstrap: bootstrap_params(&v, dp_port)?,
            insights,
            readiness_port: v.number("bootstrapServer.params.readinessPort")?,
            access: access(&v),
            mesh_service_cidr: v.text("ipam.meshService.cidr"),
            known_internal_cidrs: v.list("ipam.knownInternalCIDRs"),
            mesh_service_grace: v.duration("meshService.deletionGracePeriod")?,
            unsafe_delete: v.flag("store.unsafeDelete"),
            skip_mesh_creation: v.flag("defaults.skipMeshCreation"),
            skip_tenant_resources: v.flag("defaults.skipTenantResources"),
            skip_hostname_generators: v.flag("defaults.skipHostnameGenerators"),
            disable_origin_label_validation: v.flag("multizone.zone.disableOriginLabelValidation"),
        };
        Ok((config, v.warnings))
    }
}

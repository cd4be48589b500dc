//! Configuration of the control plane (reference: Kuma 2.14.3 configuration keys; data-plane contract §9).

mod encryption;
mod load;
mod replication;
mod settings;

pub use replication::Replication;

use load::Values;

use anyhow::{Context, Result, bail};
use ikada_api::{
    Gui,
    auth::{Allowed, StaticAccess},
};
use ikada_envoy::bootstrap::BootstrapParams;
use ikada_model::Mode;
use ikada_raft::Keys;
use std::{
    ffi::OsStr,
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
    /// The GUI.
    pub gui: Gui,
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
    /// Pause of a type after a rejected response.
    pub nack_backoff: Duration,
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

/// Health discovery; all times are positive.
#[derive(Debug, Clone)]
pub struct Health {
    /// Time between two reports of an Envoy.
    pub interval: Duration,
    /// Timeout of a probe that names none.
    pub check_timeout: Duration,
    /// Interval of a probe that names none.
    pub check_interval: Duration,
    /// The same for clusters without traffic.
    pub check_no_traffic_interval: Duration,
    /// Good results after which a workload counts as healthy.
    pub healthy_threshold: u32,
    /// Bad results after which it does not.
    pub unhealthy_threshold: u32,
}

fn health(v: &Values) -> Result<Health> {
    let positive = |key: &str| match v.duration(key)? {
        d if d.is_zero() => bail!("{key}{}: must be longer than 0s", v.origin(key)),
        d => Ok(d),
    };
    let threshold = |key: &str| match v.number(key)? {
        0 => bail!("{key}{}: must be at least 1", v.origin(key)),
        n => Ok(n),
    };
    Ok(Health {
        interval: positive("dpServer.hds.interval")?,
        check_timeout: positive("dpServer.hds.checkDefaults.timeout")?,
        check_interval: positive("dpServer.hds.checkDefaults.interval")?,
        check_no_traffic_interval: positive("dpServer.hds.checkDefaults.noTrafficInterval")?,
        healthy_threshold: threshold("dpServer.hds.checkDefaults.healthyThreshold")?,
        unhealthy_threshold: threshold("dpServer.hds.checkDefaults.unhealthyThreshold")?,
    })
}

/// What the command line says; it wins over file and environment.
#[derive(Default, Clone)]
pub struct Flags {
    /// `--data-dir`.
    pub data_dir: Option<PathBuf>,
    /// `--join`.
    pub join: Vec<String>,
    /// `--join-token`.
    pub join_token: Option<String>,
    /// `--join-token-file`.
    pub join_token_file: Option<PathBuf>,
}

impl Flags {
    fn set(&self, v: &mut Values) -> Result<()> {
        let text = |path: &PathBuf| path.display().to_string();
        if let Some(dir) = &self.data_dir {
            v.set("raft.dataDir", &text(dir), "--data-dir")?;
        }
        if !self.join.is_empty() {
            v.set("raft.join.addresses", &self.join.join(","), "--join")?;
        }
        if self.join_token.is_some() || self.join_token_file.is_some() {
            v.unset("raft.join.token");
            v.unset("raft.join.tokenFile");
        }
        if let Some(token) = &self.join_token {
            v.set("raft.join.token", token, "--join-token")?;
        }
        if let Some(file) = &self.join_token_file {
            v.set("raft.join.tokenFile", &text(file), "--join-token-file")?;
        }
        Ok(())
    }
}

/// Everything.
#[derive(Debug, Clone)]
pub struct Config {
    /// Data directory.
    pub data_dir: PathBuf,
    /// Replication: the section `raft:`.
    pub raft: Replication,
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
    /// Health discovery.
    pub health: Health,
    /// Fallback for a proxy that names no readiness port.
    pub readiness_port: u32,
    /// How long a resolved name of a dataplane's address is good.
    pub dns_cache_ttl: Duration,
    /// Suffix of the names of legacy services.
    pub dns_domain: String,
    /// Port of the outbounds of legacy services under transparent proxying.
    pub service_vip_port: u32,
    /// Who may do what.
    pub access: StaticAccess,
    /// CIDR of MeshService VIPs.
    pub mesh_service_cidr: String,
    /// `internal_address_config` of HTTP connection managers; `None` = Kuma's default list.
    pub known_internal_cidrs: Option<Vec<String>>,
    /// An empty MeshService is removed after this.
    pub mesh_service_grace: Duration,
    /// Keys with which the data directory is encrypted; `None` = it is not.
    pub encryption: Option<Keys>,
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
    /// All settings by their keys, as they were given.
    settings: serde_json::Value,
}

fn gui_path(v: &Values) -> Result<String> {
    let key = "apiServer.gui.basePath";
    let path = v.text(key);
    let path = path.trim_end_matches('/');
    if path.len() < 2 || !path.starts_with('/') || !path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-_.~".contains(&b)) {
        bail!("{key}{}: {path:?} must be a path below / such as \"/gui\"", v.origin(key));
    }
    Ok(path.to_owned())
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

/// The parts of `access.static` by name.
fn access_rows(all: &mut StaticAccess) -> [(&'static str, &mut Allowed); 8] {
    [
        ("adminResources", &mut all.admin_resources),
        ("generateDpToken", &mut all.generate_dp_token),
        ("generateUserToken", &mut all.generate_user_token),
        ("generateZoneToken", &mut all.generate_zone_token),
        ("viewConfigDump", &mut all.view_config_dump),
        ("viewStats", &mut all.view_stats),
        ("viewClusters", &mut all.view_clusters),
        ("controlPlaneMetadata", &mut all.control_plane_metadata),
    ]
}

fn access(v: &Values) -> StaticAccess {
    let mut all = StaticAccess::default();
    for (name, allowed) in access_rows(&mut all) {
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
    /// Reads file and environment; flags win. Errors are one line and name the setting.
    pub fn load(file: Option<&Path>, env: impl IntoIterator<Item = (String, String)>, flags: &Flags) -> Result<(Config, Vec<String>)> {
        let env: Vec<_> = env.into_iter().collect();
        let credentials = env.iter().find(|(name, _)| name == "CREDENTIALS_DIRECTORY").map(|(_, value)| OsStr::new(value).to_owned());
        let mut v = Values::load(file, env)?;
        flags.set(&mut v)?;
        let encryption = encryption::keys(&mut v, credentials.as_deref())?;
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
        if federated {
            v.warnings.push(format!(
                "multizone.zone.globalAddress{}: this version does not connect to a global control plane; nothing is synchronized with it",
                v.origin("multizone.zone.globalAddress")
            ));
        }
        if mode == Mode::Global {
            v.warnings.push(format!("mode{}: zones cannot connect to a global control plane of this version; it serves its REST API alone", v.origin("mode")));
        }
        match v.text("store.type").as_str() {
            "memory" | "raft" => {}
            "postgres" => v.warnings.push(format!(
                "store.type{}: \"postgres\" has no effect: the state is kept in raft.dataDir, and nothing is read from the database",
                v.origin("store.type")
            )),
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
            gui: Gui { enabled: v.flag("apiServer.gui.enabled") && !mode.is_federated(), base_path: gui_path(&v)? },
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
                nack_backoff: v.duration("xdsServer.nackBackoff")?,
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
            raft: replication::replication(&v)?,
            mode,
            zone,
            work_dir: v.optional("general.workDir").map(PathBuf::from),
            tls: tls_files(&v, "general.tlsCertFile", "general.tlsKeyFile")?,
            api,
            dp,
            diagnostics,
            bootstrap: bootstrap_params(&v, dp_port)?,
            insights,
            health: health(&v)?,
            readiness_port: v.number("bootstrapServer.params.readinessPort")?,
            dns_cache_ttl: v.duration("general.dnsCacheTTL")?,
            dns_domain: v.text("dnsServer.domain"),
            service_vip_port: u32::from(v.number::<u16>("dnsServer.serviceVipPort")?),
            access: access(&v),
            mesh_service_cidr: v.text("ipam.meshService.cidr"),
            known_internal_cidrs: v.list("ipam.knownInternalCIDRs"),
            mesh_service_grace: v.duration("meshService.deletionGracePeriod")?,
            encryption,
            unsafe_delete: v.flag("store.unsafeDelete"),
            skip_mesh_creation: v.flag("defaults.skipMeshCreation"),
            skip_tenant_resources: v.flag("defaults.skipTenantResources"),
            skip_hostname_generators: v.flag("defaults.SkipHostnameGenerators"),
            disable_origin_label_validation: v.flag("multizone.zone.disableOriginLabelValidation"),
            settings: v.tree(),
        };
        Ok((config, v.warnings))
    }

    /// The whole effective configuration in Kuma's structure, for `GET /config`. What was left to the control plane is shown as it decided.
    /// There is nothing secret to mask: settings of Postgres, which hold its password, are not kept.
    pub fn effective(&self) -> serde_json::Value {
        let mut all = self.settings.clone();
        let mut set = |key: &str, value: serde_json::Value| load::insert(&mut all, key, value);
        for (key, value) in self.raft.effective() {
            set(key, value);
        }
        set("bootstrapServer.params.xdsPort", self.bootstrap.xds_port.into());
        let auth = |required, kind: &str| if required { kind.to_owned() } else { "none".to_owned() };
        set("dpServer.authn.dpProxy.type", auth(self.bootstrap.dp_token_required, "dpToken").into());
        set("dpServer.authn.zoneProxy.type", auth(self.bootstrap.zone_token_required, "zoneToken").into());
        let cidrs = self.known_internal_cidrs.clone().unwrap_or_else(|| ikada_envoy::Settings::default().known_internal_cidrs);
        set("ipam.knownInternalCIDRs", cidrs.into());
        let general = self.tls.as_ref();
        let dp = self.dp.as_ref().and_then(|d| d.tls.as_ref()).or(general);
        for (section, files) in [("apiServer.https", self.api.tls.as_ref().or(general)), ("dpServer", dp)] {
            if let Some(files) = files {
                set(&format!("{section}.tlsCertFile"), files.cert.display().to_string().into());
                set(&format!("{section}.tlsKeyFile"), files.key.display().to_string().into());
            }
        }
        let mut access = self.access.clone();
        for (name, allowed) in access_rows(&mut access) {
            set(&format!("access.static.{name}.users"), std::mem::take(&mut allowed.users).into());
            set(&format!("access.static.{name}.groups"), std::mem::take(&mut allowed.groups).into());
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// Leaves that both have, and whose type differs.
    fn other_types(want: &Value, have: &Value, at: &str, out: &mut Vec<String>) {
        match (want, have) {
            (Value::Object(w), Value::Object(h)) => {
                for (k, v) in w {
                    if let Some(have) = h.get(k) {
                        other_types(v, have, &format!("{at}.{k}"), out);
                    }
                }
            }
            (Value::Bool(_), Value::Bool(_)) | (Value::Number(_), Value::Number(_)) | (Value::String(_), Value::String(_)) => {}
            (Value::Array(_), Value::Array(_)) => {}
            _ => out.push(format!("{at}: want {want} have {have}")),
        }
    }

    #[test]
    fn what_this_version_does_not_do_is_said() {
        let env = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Vec<_>>();
        let warnings = |pairs: &[(&str, &str)]| Config::load(None, env(pairs), &Flags::default()).unwrap().1;
        assert!(warnings(&[("KUMA_STORE_TYPE", "memory")]).is_empty());
        for (name, value, said) in [
            ("KUMA_MULTIZONE_ZONE_GLOBAL_ADDRESS", "grpcs://global:5685", "does not connect to a global control plane"),
            ("KUMA_MODE", "global", "zones cannot connect"),
            ("KUMA_STORE_TYPE", "postgres", "the state is kept in raft.dataDir"),
        ] {
            let found = warnings(&[(name, value)]);
            assert!(found.len() == 1 && found[0].contains(name) && found[0].contains(said), "{found:?}");
        }
    }

    #[test]
    fn effective_values() {
        let env = [
            ("KUMA_API_SERVER_HTTP_PORT", "7000"),
            ("KUMA_METRICS_DATAPLANE_IDLE_TIMEOUT", "90s"),
            ("KUMA_STORE_POSTGRES_PASSWORD", "hunter2"),
            ("KUMA_ACCESS_STATIC_ADMIN_RESOURCES_USERS", "alice,bob"),
        ];
        let env = env.map(|(k, v)| (k.to_owned(), v.to_owned()));
        let (config, _) = Config::load(None, env, &Flags { data_dir: Some("/srv/ikada".into()), ..Flags::default() }).unwrap();
        let all = config.effective();
        assert_eq!(all["apiServer"]["http"], json!({"enabled": true, "interface": "0.0.0.0", "port": 7000}));
        assert_eq!(all["metrics"]["dataplane"], json!({"subscriptionLimit": 2, "idleTimeout": "1m30s"}));
        assert_eq!(all["meshService"]["deletionGracePeriod"], "1h0m0s");
        assert_eq!(all["bootstrapServer"]["params"]["xdsPort"], 5678);
        assert_eq!(all["dpServer"]["authn"]["dpProxy"]["type"], "dpToken");
        assert_eq!(all["access"]["static"]["adminResources"], json!({"users": ["alice", "bob"], "groups": ["mesh-system:admin"]}));
        assert_eq!(all["apiServer"]["corsAllowedDomains"], json!([]));
        assert_eq!((&all["raft"]["dataDir"], &all["raft"]["electionMax"], &all["raft"]["keepEntries"]), (&json!("/srv/ikada"), &json!("600ms"), &json!(10_000)));
        assert!(!all.to_string().contains("hunter2"));
    }

    #[test]
    fn types_are_those_of_stock_kuma() {
        let dir = std::env::var_os("IKADA_LIVE_DIR").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/live"), PathBuf::from);
        let file = dir.join("01-defaults/rest/config.txt");
        let Ok(text) = std::fs::read_to_string(&file) else {
            assert!(std::env::var("CI").is_err(), "{} is missing", file.display());
            println!("skipped: {} is missing", file.display());
            return;
        };
        let recorded: Value = serde_json::from_str(text.split_once('\n').unwrap().1).unwrap();
        let (config, _) = Config::load(None, [], &Flags::default()).unwrap();
        let have = config.effective();
        let mut out = Vec::new();
        other_types(&recorded, &have, "$", &mut out);
        assert_eq!(out, Vec::<String>::new());
        // Values of what has an effect, where neither files nor addresses of the recorded machine matter.
        for key in ["bootstrapServer", "access", "defaults", "ipam", "experimental"] {
            let (Some(w), Some(h)) = (recorded[key].as_object(), have[key].as_object()) else { panic!("{key}") };
            for (k, v) in h {
                assert!(w.get(k).is_none_or(|w| w == v), "{key}.{k}: want {} have {v}", w[k]);
            }
        }
    }

    /// What we give to people to start from must load, and mean something.
    #[test]
    fn every_file_in_cluster_configs_loads() {
        let mut found = Vec::new();
        let mut todo = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../../cluster-configs")];
        while let Some(dir) = todo.pop() {
            for entry in std::fs::read_dir(&dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    todo.push(path);
                } else if path.extension().is_some_and(|e| e == "yaml") {
                    let (config, warnings) = Config::load(Some(&path), [], &Flags::default()).unwrap_or_else(|e| panic!("{}: {e:#}", path.display()));
                    assert!(warnings.is_empty(), "{}: {warnings:?}", path.display());
                    let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
                    found.push((name, config.raft.profile.clone(), config.raft.join.is_some(), config.raft.learner));
                }
            }
        }
        found.sort();
        let want = [
            ("cloud", "wan", true, false),
            ("cloud-reader", "wan", true, true),
            ("cp-1", "lan", false, false),
            ("cp-2", "lan", true, false),
            ("cp-3", "lan", true, false),
            ("on-prem-1", "wan", false, false),
            ("on-prem-2", "wan", true, false),
            ("single-node", "lan", false, false),
        ];
        assert_eq!(found, want.map(|(name, profile, join, learner)| (name.to_owned(), profile.to_owned(), join, learner)));
    }

    #[test]
    fn flags_win_over_environment_and_file() {
        let env = [("IKADA_RAFT_JOIN_ADDRESSES", "old:1"), ("IKADA_RAFT_JOIN_TOKEN_FILE", "/old"), ("IKADA_DATA_DIR", "/old")];
        let flags = Flags { data_dir: Some("/new".into()), join: vec!["new:1".into(), "newer:1".into()], join_token: Some("t".into()), join_token_file: None };
        let (c, _) = Config::load(None, env.map(|(k, v)| (k.to_owned(), v.to_owned())), &flags).unwrap();
        let join = c.raft.join.clone().unwrap();
        assert_eq!((c.data_dir.as_path(), join.addresses, join.token.read().unwrap()), (Path::new("/new"), vec!["new:1".to_owned(), "newer:1".to_owned()], "t".to_owned()));
        assert_eq!(c.effective()["raft"]["join"], json!({"addresses": ["new:1", "newer:1"], "token": "*****", "tokenFile": ""}));
        let e = Config::load(None, [], &Flags { join: vec!["nowhere".into()], ..Flags::default() }).map(|_| ()).unwrap_err().to_string();
        assert!(e.contains("(from --join)") && e.contains("HOST:PORT"), "{e}");
    }

    #[test]
    fn health_discovery_and_nack_backoff_are_read_and_checked() {
        let load = |key: &str, value: &str| Config::load(None, [(key.to_owned(), value.to_owned())], &Flags::default()).map(|(c, _)| c);
        let c = load("KUMA_DP_SERVER_HDS_CHECK_TIMEOUT", "300ms").unwrap();
        let h = &c.health;
        assert_eq!((h.check_timeout, h.interval, h.check_interval), (Duration::from_millis(300), Duration::from_secs(5), Duration::from_secs(1)));
        assert_eq!((h.healthy_threshold, h.unhealthy_threshold, h.check_no_traffic_interval), (1, 1, Duration::from_secs(1)));
        assert_eq!(c.dp.unwrap().nack_backoff, Duration::from_secs(5));
        assert_eq!(load("KUMA_XDS_SERVER_NACK_BACKOFF", "1s").unwrap().dp.unwrap().nack_backoff, Duration::from_secs(1));
        for key in ["KUMA_DP_SERVER_HDS_INTERVAL", "KUMA_DP_SERVER_HDS_CHECK_INTERVAL"] {
            assert!(load(key, "0s").unwrap_err().to_string().contains("must be longer than 0s"), "{key}");
        }
        assert!(load("KUMA_DP_SERVER_HDS_CHECK_HEALTHY_THRESHOLD", "0").unwrap_err().to_string().contains("at least 1"));
    }
}

//! Real processes: control plane, launcher, Envoy. Each ends with the value that stands for it.

use anyhow::{Context, Result, anyhow, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    fs::{self, File},
    net::{Ipv4Addr, Ipv6Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// A port that is free on all addresses now. Taken from below the range of the kernel's ephemeral ports, so that no outgoing connection of
/// another test can take it before it is used; never the same twice in one process.
pub fn free_port() -> Result<u16> {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 22_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Processes that run at the same time start at different places.
    let start = std::process::id().wrapping_mul(7919);
    for _ in 0..COUNT {
        let n = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + n)?;
        if TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).is_ok() && TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port between {FIRST} and {}", FIRST + COUNT)
}

/// Path of a program of this workspace, built before.
pub fn program(name: &str) -> Result<PathBuf> {
    let exe = std::env::current_exe().context("own path")?;
    // target/<profile>/NAME, or target/<profile>/deps/NAME-hash for tests.
    let mut dir = exe.parent().context("own directory")?;
    if dir.ends_with("deps") {
        dir = dir.parent().context("target directory")?;
    }
    let path = dir.join(name);
    if !path.is_file() {
        bail!("{} is missing: run `cargo build --workspace` first", path.display());
    }
    Ok(path)
}

/// Root of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Envoy: `IKADA_ENVOY`, else what `make setup` installed. `None` when there is none.
pub fn envoy() -> Option<PathBuf> {
    let path = std::env::var_os("IKADA_ENVOY").map_or_else(|| workspace().join(".venv/envoy"), PathBuf::from);
    path.is_file().then_some(path)
}

/// For tests that need Envoy: its path, or `None` after saying why the test is skipped. A skip fails in CI.
pub fn envoy_or_skip(test: &str) -> Option<PathBuf> {
    let found = envoy();
    if found.is_none() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{test}: Envoy is missing in CI; `make setup` installs it");
        eprintln!("{test}: skipped, Envoy is not installed; `make setup` installs it");
    }
    found
}

/// Once per process: the TLS provider that HTTP clients use.
pub fn init() {
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
}

/// A child process with its output in a file. Dropping it ends it.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program; its output is appended to `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Process> {
        let out = File::options().create(true).append(true).open(log).with_context(|| format!("log {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Process { name: name.to_owned(), child, log: log.to_path_buf() })
    }
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("process id")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("cannot signal {}", self.name))
    }
    /// Exit code once it has ended; `None` while it runs or when a signal ended it.
    pub fn exit_code(&mut self) -> Option<i32> {
        self.child.try_wait().ok().flatten().and_then(|s| s.code())
    }
    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
    /// Waits for its end. Errors when it takes longer than `limit`.
    pub async fn wait(&mut self, limit: Duration) -> Result<std::process::ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > end {
                bail!("{} did not end within {limit:?}; its log:\n{}", self.name, self.output());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    /// Everything it wrote.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
    /// Kills it with SIGKILL and waits.
    pub fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() && self.signal(Signal::SIGTERM).is_ok() {
            let end = Instant::now() + Duration::from_secs(5);
            while self.is_running() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- log of {} ---\n{}", self.name, self.output());
        }
    }
}

/// Waits until `check` answers true. Errors name `what`.
pub async fn eventually<F, Fut>(what: &str, limit: Duration, mut check: F) -> Result<Duration>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let start = Instant::now();
    loop {
        if check().await {
            return Ok(start.elapsed());
        }
        if start.elapsed() > limit {
            bail!("{what}: not within {limit:?}");
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A control plane on free ports.
pub struct ControlPlane {
    /// The process.
    pub process: Process,
    /// REST API.
    pub api: Api,
    /// DP server.
    pub dp_port: u16,
    /// Diagnostics.
    pub diagnostics_port: u16,
    /// Peers.
    pub peer_port: u16,
    dir: PathBuf,
    env: Vec<(String, String)>,
    args: Vec<String>,
}

impl ControlPlane {
    /// Starts `ikada-cp run` with its data in `dir/data`, and waits until it serves.
    pub async fn start(dir: &Path, env: &[(&str, &str)], args: &[&str]) -> Result<ControlPlane> {
        let mut cp = Self::launch(dir, env, args)?;
        cp.ready().await?;
        Ok(cp)
    }
    /// Starts it and does not wait.
    pub fn launch(dir: &Path, env: &[(&str, &str)], args: &[&str]) -> Result<ControlPlane> {
        let (http, dp_port, diagnostics_port, peer_port) = (free_port()?, free_port()?, free_port()?, free_port()?);
        let mut all: Vec<(String, String)> = vec![
            ("KUMA_API_SERVER_HTTP_PORT".into(), http.to_string()),
            ("KUMA_API_SERVER_HTTPS_ENABLED".into(), "false".into()),
            ("KUMA_DP_SERVER_PORT".into(), dp_port.to_string()),
            ("KUMA_DIAGNOSTICS_SERVER_PORT".into(), diagnostics_port.to_string()),
            ("IKADA_RAFT_LISTEN".into(), format!("127.0.0.1:{peer_port}")),
            ("IKADA_DATA_DIR".into(), dir.join("data").display().to_string()),
        ];
        all.extend(env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        let process = Self::spawn(dir, &all, &args)?;
        let api = Api::new(http)?;
        Ok(ControlPlane { process, api, dp_port, diagnostics_port, peer_port, dir: dir.to_path_buf(), env: all, args })
    }
    fn spawn(dir: &Path, env: &[(String, String)], args: &[String]) -> Result<Process> {
        let mut command = Command::new(program("ikada-cp")?);
        command.arg("run").args(args).envs(env.iter().map(|(k, v)| (k, v)));
        Process::start("ikada-cp", &mut command, &dir.join("cp.log"))
    }
    /// Status and text of `/ready`; an error when nobody listens.
    pub async fn readiness(&self) -> Result<(u16, String)> {
        let response = self.api.http.get(format!("http://127.0.0.1:{}/ready", self.diagnostics_port)).send().await?;
        Ok((response.status().as_u16(), response.text().await?))
    }
    /// Waits until it serves.
    pub async fn ready(&mut self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(30);
        let url = format!("http://127.0.0.1:{}/ready", self.diagnostics_port);
        loop {
            if self.api.http.get(&url).send().await.is_ok_and(|r| r.status().is_success()) {
                return Ok(());
            }
            if !self.process.is_running() || Instant::now() > end {
                bail!("the control plane does not serve:\n{}", self.process.output());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    /// Starts it again on the same ports and data, after it ended.
    pub async fn restart(&mut self) -> Result<()> {
        self.relaunch()?;
        self.ready().await
    }
    /// The same, without waiting.
    pub fn relaunch(&mut self) -> Result<()> {
        self.process = Self::spawn(&self.dir, &self.env, &self.args)?;
        Ok(())
    }
    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }
    /// Milliseconds from the commit of a revision until each connected proxy had acknowledged what it changed for it.
    pub async fn propagation(&self, revision: u64) -> Result<Value> {
        let url = format!("http://127.0.0.1:{}/propagation?revision={revision}&wait=15s", self.diagnostics_port);
        Ok(self.api.http.get(url).timeout(Duration::from_secs(20)).send().await?.json().await?)
    }
    /// The slowest proxy of [`ControlPlane::propagation`]; an error when some proxy has not acknowledged.
    pub async fn propagation_ms(&self, revision: u64) -> Result<f64> {
        let report = self.propagation(revision).await?;
        if report["synced"] != true {
            bail!("not acknowledged by all proxies: {report}");
        }
        let times = report["proxies"].as_array().into_iter().flatten().filter_map(|p| p["ms"].as_f64());
        Ok(times.fold(0.0, f64::max))
    }
}

/// The REST API of a control plane.
#[derive(Clone)]
pub struct Api {
    /// Port on 127.0.0.1.
    pub port: u16,
    http: reqwest::Client,
}

/// An answer of the API.
#[derive(Debug)]
pub struct ApiAnswer {
    /// Status.
    pub status: u16,
    /// Header `Ikada-Revision`.
    pub revision: u64,
    /// Content type.
    pub content_type: String,
    /// Body.
    pub text: String,
}

impl ApiAnswer {
    /// Body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.text).with_context(|| format!("not JSON: {}", self.text))
    }
}

/// Path of a resource in REST form.
pub fn path_of(resource: &Value) -> Result<String> {
    let text = |k: &str| resource.get(k).and_then(Value::as_str);
    let kind = text("type").and_then(ikada_model::Kind::by_name).ok_or_else(|| anyhow!("unknown type in {resource}"))?;
    let name = text("name").context("no name")?;
    let path = kind.descriptor().path;
    Ok(if kind.is_mesh_scoped() { format!("/meshes/{}/{path}/{name}", text("mesh").unwrap_or("default")) } else { format!("/{path}/{name}") })
}

impl Api {
    /// For a port of this machine.
    pub fn new(port: u16) -> Result<Api> {
        init();
        Ok(Api { port, http: reqwest::Client::builder().timeout(Duration::from_secs(30)).build()? })
    }
    /// One request; `body` is sent as JSON.
    pub async fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<ApiAnswer> {
        self.request_with(method, path, body, &[]).await
    }
    /// The same with headers.
    pub async fn request_with(&self, method: &str, path: &str, body: Option<&Value>, headers: &[(&str, &str)]) -> Result<ApiAnswer> {
        let method: reqwest::Method = method.parse()?;
        let mut request = self.http.request(method, format!("http://127.0.0.1:{}{path}", self.port));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await?;
        let header = |k: &str| response.headers().get(k).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
        let (revision, content_type) = (header("ikada-revision").parse().unwrap_or(0), header("content-type"));
        Ok(ApiAnswer { status: response.status().as_u16(), revision, content_type, text: response.text().await? })
    }
    /// GET.
    pub async fn get(&self, path: &str) -> Result<ApiAnswer> {
        self.request("GET", path, None).await
    }
    /// PUT of a resource; errors unless it is accepted. Gives the revision of the write.
    pub async fn apply(&self, resource: &Value) -> Result<u64> {
        let answer = self.request("PUT", &path_of(resource)?, Some(resource)).await?;
        if !matches!(answer.status, 200 | 201) {
            bail!("PUT {}: {} {}", path_of(resource)?, answer.status, answer.text);
        }
        Ok(answer.revision)
    }
    /// PUT of every document of a YAML text.
    pub async fn apply_yaml(&self, yaml: &str) -> Result<u64> {
        let mut revision = 0;
        for document in ikada_model::yaml::parse_documents(yaml).map_err(|e| anyhow!("{e}"))? {
            if !document.is_null() {
                revision = self.apply(&document).await?;
            }
        }
        Ok(revision)
    }
    /// A token for a dataplane.
    pub async fn dataplane_token(&self, mesh: &str, name: &str) -> Result<String> {
        let body = serde_json::json!({"mesh": mesh, "name": name, "validFor": "24h"});
        let answer = self.request("POST", "/tokens/dataplane", Some(&body)).await?;
        if answer.status != 200 {
            bail!("POST /tokens/dataplane: {} {}", answer.status, answer.text);
        }
        Ok(answer.text)
    }
}

/// A dataplane run by `ikada-dp`, with a real Envoy.
pub struct Dataplane {
    /// The launcher.
    pub process: Process,
    /// Working directory with Envoy's sockets.
    pub workdir: PathBuf,
}

impl Dataplane {
    /// Starts `ikada-dp run` for a dataplane given as YAML. Its token is for this name only.
    pub async fn start(cp: &ControlPlane, envoy: &Path, dir: &Path, mesh: &str, name: &str, yaml: &str) -> Result<Dataplane> {
        let token = cp.api.dataplane_token(mesh, name).await?;
        Self::start_with_token(cp, envoy, dir, name, yaml, &token).await
    }
    /// The same with a given token.
    pub async fn start_with_token(cp: &ControlPlane, envoy: &Path, dir: &Path, name: &str, yaml: &str, token_text: &str) -> Result<Dataplane> {
        let workdir = dir.join(name);
        fs::create_dir_all(&workdir)?;
        let (resource, token) = (dir.join(format!("{name}.yaml")), dir.join(format!("{name}.token")));
        fs::write(&resource, yaml)?;
        fs::write(&token, token_text)?;
        let mut command = Command::new(program("ikada-dp")?);
        command
            .arg("run")
            .args(["--cp-address", &format!("https://localhost:{}", cp.dp_port), "--skip-verify", "--dns-enabled=false"])
            .args(["--concurrency", "1", "--drain-time", "1s"])
            .arg("--dataplane-file")
            .arg(&resource)
            .arg("--dataplane-token-file")
            .arg(&token)
            .arg("--binary-path")
            .arg(envoy)
            .arg("--work-dir")
            .arg(&workdir)
            .env("KUMA_READINESS_PORT", free_port()?.to_string());
        let process = Process::start(&format!("ikada-dp {name}"), &mut command, &dir.join(format!("{name}.log")))?;
        Ok(Dataplane { process, workdir })
    }
}

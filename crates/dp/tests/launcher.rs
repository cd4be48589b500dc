//! `ikada-dp run` as a process, against a control plane of the test's own: with a shell script in Envoy's place, and with a real Envoy
//! where one is found (`IKADA_ENVOY`, else `PATH`).

use base64::{Engine, engine::general_purpose::STANDARD};
use ikada_pki::{certificates_der, private_key_der, self_signed_server};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant, SystemTime},
};

const DATAPLANE: &str = "type: Dataplane
mesh: default
name: {{ name }}
networking:
  address: 127.0.0.1
  inbound:
  - port: 8080
    tags:
      kuma.io/service: web
";

/// Answers of the control plane, in order; the last one repeats.
type Answers = Vec<Box<dyn Fn(&Value) -> (u16, String) + Send>>;

struct ControlPlane {
    url: String,
    requests: Arc<Mutex<Vec<Value>>>,
    ca_pem: String,
}

/// A DP server over TLS with a certificate as the real one makes it.
fn control_plane(listener: TcpListener, answers: Answers) -> ControlPlane {
    let port = listener.local_addr().unwrap().port();
    let pair = self_signed_server(&["localhost".to_owned()], &["127.0.0.1".parse().unwrap()], SystemTime::now()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificates_der(&pair.cert_pem).unwrap(), private_key_der(&pair.key_pem).unwrap())
        .unwrap();
    let (config, requests) = (Arc::new(config), Arc::new(Mutex::new(Vec::new())));
    let seen = requests.clone();
    std::thread::spawn(move || {
        let mut answers = answers.into_iter();
        let mut answer = answers.next().unwrap();
        for stream in listener.incoming() {
            let mut tls = rustls::StreamOwned::new(rustls::ServerConnection::new(config.clone()).unwrap(), stream.unwrap());
            let Some(body) = read_request(&mut tls) else { continue };
            let (status, text) = answer(&body);
            seen.lock().unwrap().push(body);
            let _ = write!(tls, "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}", text.len());
            let _ = tls.flush();
            tls.conn.send_close_notify();
            let _ = tls.conn.complete_io(&mut tls.sock);
            if let Some(next) = answers.next() {
                answer = next;
            }
        }
    });
    ControlPlane { url: format!("https://localhost:{port}"), requests, ca_pem: pair.cert_pem }
}

fn read_request(stream: &mut impl Read) -> Option<Value> {
    let mut reader = BufReader::new(stream);
    let (mut length, mut line) = (0, String::new());
    loop {
        line.clear();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        match line.trim_end().to_ascii_lowercase() {
            empty if empty.is_empty() => break,
            header => length = header.strip_prefix("content-length: ").map_or(length, |n| n.parse().unwrap()),
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    serde_json::from_slice(&body).ok()
}

/// A bootstrap with the admin on a socket in the proxy's work directory.
fn ok(request: &Value) -> (u16, String) {
    let workdir = request["workdir"].as_str().unwrap();
    let yaml = format!("node: {{id: default.web-1, cluster: web}}\nadmin:\n  address:\n    pipe: {{path: {workdir}/kuma-envoy-admin.sock, mode: 384}}\n");
    let body = json!({"bootstrap": STANDARD.encode(yaml), "kumaSidecarConfiguration": {"networking": {"address": "127.0.0.1"}, "metrics": {}}});
    (200, body.to_string())
}

fn free() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn free_port() -> u16 {
    free().local_addr().unwrap().port()
}

/// Writes its arguments and process id, and stays, or exits with 7 when told so.
fn fake_envoy(dir: &Path, stays: bool) -> PathBuf {
    let path = dir.join("envoy");
    let end = if stays { "exec sleep 60" } else { "exit 7" };
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = --version ]; then echo \"envoy  version: abc/1.40.0/Clean/RELEASE/BoringSSL\"; exit 0; fi\n\
         echo \"$$ $*\" > {0}/started.new && mv {0}/started.new {0}/started\n{end}\n",
        dir.display()
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

struct Launcher {
    child: Child,
    log: Arc<Mutex<String>>,
    lines: mpsc::Receiver<String>,
}

impl Drop for Launcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Launcher {
    fn start(scratch: &Path, cp: &ControlPlane, extra: &[&str]) -> Launcher {
        fs::write(scratch.join("ca.pem"), &cp.ca_pem).unwrap();
        fs::write(scratch.join("dp.yaml"), DATAPLANE).unwrap();
        fs::write(scratch.join("token"), "a.b.c\n").unwrap();
        let file = |name: &str| scratch.join(name).display().to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ikada-dp"));
        command
            .args(["run", "--cp-address", &cp.url, "--ca-cert-file", &file("ca.pem"), "--dataplane-file", &file("dp.yaml"), "-v", "name=web-1"])
            .args(["--dataplane-token-file", &file("token"), "--dns-enabled=false"])
            .args(extra)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("TMPDIR", scratch)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (log, (sender, lines)) = (Arc::new(Mutex::new(String::new())), mpsc::channel());
        let (stderr, all) = (child.stderr.take().unwrap(), log.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                all.lock().unwrap().push_str(&format!("{line}\n"));
                let _ = sender.send(line);
            }
        });
        Launcher { child, log, lines }
    }
    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }
    fn wait_for_line(&self, text: &str) {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(text) => return,
                Ok(_) => {}
                Err(_) => panic!("no line with {text:?} in\n{}", self.log()),
            }
        }
    }
    fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }
    fn exit_code(&mut self) -> i32 {
        let end = Instant::now() + Duration::from_secs(30);
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().unwrap() {
                // The reader of stderr may be behind.
                std::thread::sleep(Duration::from_millis(50));
                return status.code().unwrap_or(-1);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("still running:\n{}", self.log());
    }
}

fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end {
        if let Some(value) = check() {
            return value;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("{what} does not happen");
}

fn started(scratch: &Path) -> (i32, String) {
    let text = eventually("Envoy's start", || fs::read_to_string(scratch.join("started")).ok());
    let (pid, args) = text.trim().split_once(' ').unwrap();
    (pid.parse().unwrap(), args.to_owned())
}

fn runs(pid: i32) -> bool {
    // A zombie that init has not collected yet does not run.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn waits_starts_and_stops() {
    let scratch = tempfile::tempdir().unwrap();
    let envoy = fake_envoy(scratch.path(), true).display().to_string();
    let readiness = free_port();
    let answers: Answers = vec![Box::new(|_| (500, "not yet".into())), Box::new(|_| (404, String::new())), Box::new(ok)];
    let cp = control_plane(free(), answers);
    let port = readiness.to_string();
    let mut dp = Launcher::start(scratch.path(), &cp, &["--binary-path", &envoy, "--readiness-port", &port, "--drain-time", "0s", "--concurrency", "2"]);
    let (pid, args) = started(scratch.path());
    let log = dp.log();
    assert!(log.contains("waiting for the control plane: it answered with status 500 not yet"), "{log}");
    assert!(log.contains("the Dataplane or its mesh is not there yet"), "{log}");

    let request = cp.requests.lock().unwrap()[0].clone();
    assert_eq!((&request["name"], &request["mesh"], &request["proxyType"]), (&json!("web-1"), &json!("default"), &json!("dataplane")));
    assert_eq!((&request["dataplaneToken"], &request["readinessPort"]), (&json!("a.b.c"), &json!(readiness)));
    assert_eq!(request["caCert"], json!(cp.ca_pem));
    assert_eq!(
        request["features"],
        json!(["feature-delta-grpc", "feature-tcp-accesslog-via-named-pipe", "feature-strict-inbound-ports", "feature-reuse-port"])
    );
    assert_eq!(request["version"]["envoy"], json!({"version": "1.40.0", "build": "abc/1.40.0/Clean/RELEASE/BoringSSL", "kumaDpCompatible": true}));
    let resource: Value = serde_json::from_str(request["dataplaneResource"].as_str().unwrap()).unwrap();
    assert_eq!((&resource["type"], &resource["networking"]["inbound"][0]["port"]), (&json!("Dataplane"), &json!(8080)));

    let workdir = PathBuf::from(request["workdir"].as_str().unwrap());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&workdir), mode(&workdir.join("bootstrap.yaml"))), (0o711, 0o600));
    assert_eq!(mode(&workdir.join("kuma-al-web-1-default.sock")), 0o666);
    let config = workdir.join("bootstrap.yaml").display().to_string();
    assert_eq!(
        args,
        format!("--config-path {config} --drain-time-s 0 --drain-strategy immediate --disable-hot-restart --log-level info --concurrency 2")
    );
    assert!(http(readiness, "/ready").contains("NOT_READY"));

    dp.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(dp.exit_code(), 0, "{}", dp.log());
    assert!(!workdir.exists() && !runs(pid));
}

/// Status line and text of a GET; empty when nobody answers.
fn http(port: u16, path: &str) -> String {
    let mut text = String::new();
    if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let _ = write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        let _ = stream.read_to_string(&mut text);
    }
    text
}

#[test]
fn envoys_end_is_a_failure() {
    let scratch = tempfile::tempdir().unwrap();
    let envoy = fake_envoy(scratch.path(), false).display().to_string();
    let cp = control_plane(free(), vec![Box::new(ok)]);
    let mut dp = Launcher::start(scratch.path(), &cp, &["--binary-path", &envoy, "--readiness-port", &free_port().to_string()]);
    assert_eq!(dp.exit_code(), 1);
    assert!(dp.log().contains("Error: Envoy ended: exit status: 7"), "{}", dp.log());
}

#[test]
fn envoy_does_not_outlive_a_killed_launcher() {
    let scratch = tempfile::tempdir().unwrap();
    let envoy = fake_envoy(scratch.path(), true).display().to_string();
    let cp = control_plane(free(), vec![Box::new(ok)]);
    let mut dp = Launcher::start(scratch.path(), &cp, &["--binary-path", &envoy, "--readiness-port", &free_port().to_string()]);
    let (pid, _) = started(scratch.path());
    dp.child.kill().unwrap();
    dp.child.wait().unwrap();
    eventually("the end of Envoy", || (!runs(pid)).then_some(()));
}

#[test]
fn refusals_end_at_once_and_say_why() {
    let scratch = tempfile::tempdir().unwrap();
    let envoy = fake_envoy(scratch.path(), true).display().to_string();
    let refused = |status: u16, text: &'static str, extra: &[&str]| {
        let cp = control_plane(free(), vec![Box::new(move |_| (status, text.to_owned()))]);
        let mut args = vec!["--binary-path", envoy.as_str()];
        args.extend_from_slice(extra);
        let mut dp = Launcher::start(scratch.path(), &cp, &args);
        assert_ne!(dp.exit_code(), 0);
        dp.log()
    };
    assert!(refused(422, "Dataplane Token is required", &[]).contains("Error: Invalid request: Dataplane Token is required"));
    assert!(refused(404, "404: Page Not Found", &[]).contains("is not the control plane's data plane server"));
    assert!(refused(200, "{}", &[]).contains("answer cannot be read"));
    assert!(refused(200, "", &["--name", "x"]).contains("--name and --mesh cannot be specified"));
    assert!(refused(200, "", &["-v", "name=Not Valid"]).contains("the dataplane definition is not valid"));
    let other = self_signed_server(&["localhost".to_owned()], &[], SystemTime::now()).unwrap();
    fs::write(scratch.path().join("other.pem"), other.cert_pem).unwrap();
    // A later flag cannot be given twice, so the wrong CA goes through a control plane that claims it.
    let mut cp = control_plane(free(), vec![Box::new(ok)]);
    cp.ca_pem = fs::read_to_string(scratch.path().join("other.pem")).unwrap();
    let mut dp = Launcher::start(scratch.path(), &cp, &["--binary-path", &envoy]);
    assert_eq!(dp.exit_code(), 1);
    assert!(dp.log().contains("certificate is not trusted"), "{}", dp.log());
    // Nobody there: the signal ends the wait cleanly.
    let nobody = ControlPlane { url: format!("https://localhost:{}", free_port()), requests: Arc::default(), ca_pem: cp.ca_pem.clone() };
    let mut dp = Launcher::start(scratch.path(), &nobody, &["--binary-path", &envoy]);
    dp.wait_for_line("waiting for the control plane");
    dp.signal(nix::sys::signal::Signal::SIGINT);
    assert_eq!(dp.exit_code(), 0, "{}", dp.log());
}

#[test]
fn variables_of_both_names_count() {
    let run = |vars: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ikada-dp"));
        let output = command.args(["run", "--binary-path", "/no/envoy"]).env_clear().envs(vars.iter().copied()).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(run(&[("KUMA_DATAPLANE_DRAIN_TIME", "soon")]).contains("'soon' for '--drain-time"));
    assert!(run(&[("KUMA_DATAPLANE_DRAIN_TIME", "1s"), ("IKADA_DATAPLANE_DRAIN_TIME", "later")]).contains("'later' for '--drain-time"));
    assert!(run(&[("IKADA_READINESS_PORT", "9000")]).contains("there is no Envoy at /no/envoy"));
}

/// The Envoy to test with.
fn real_envoy() -> Option<PathBuf> {
    let named = std::env::var_os("IKADA_ENVOY").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = named.or_else(|| std::env::split_paths(&path).map(|d| d.join("envoy")).find(|p| p.is_file()));
    if found.is_none() {
        let reason = "no Envoy: set IKADA_ENVOY, or put envoy into PATH";
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{reason}");
        println!("skipped: {reason}");
    }
    found
}

#[test]
fn a_real_envoy_gets_ready_drains_and_starts_again() {
    let Some(envoy) = real_envoy() else { return };
    let envoy = envoy.display().to_string();
    let scratch = tempfile::tempdir().unwrap();
    let workdir = scratch.path().join("work").display().to_string();
    let cp = control_plane(free(), vec![Box::new(ok)]);
    for round in 0..2 {
        let port = free_port();
        let port_text = port.to_string();
        let args = ["--binary-path", &envoy, "--readiness-port", &port_text, "--drain-time", "20s", "--work-dir", &workdir, "--concurrency", "1"];
        let mut dp = Launcher::start(scratch.path(), &cp, &args);
        dp.wait_for_line("the proxy is ready");
        let answer = http(port, "/ready");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("READY"), "{answer}");
        assert!(answer.contains("x-powered-by: kuma-dp"), "{answer}");
        assert!(http(port, "/config_dump").starts_with("HTTP/1.1 404"));
        if round == 0 {
            // A second signal cuts the drain short; until then the answer is TERMINATING.
            dp.signal(nix::sys::signal::Signal::SIGTERM);
            eventually("TERMINATING", || http(port, "/ready").ends_with("TERMINATING").then_some(()));
            dp.signal(nix::sys::signal::Signal::SIGTERM);
            let start = Instant::now();
            assert_eq!(dp.exit_code(), 0, "{}", dp.log());
            assert!(start.elapsed() < Duration::from_secs(10));
            assert!(Path::new(&workdir).exists());
        } else {
            // Killed outright: its sockets stay behind, and the next start copes (round 2 is a third start below).
            dp.child.kill().unwrap();
            dp.child.wait().unwrap();
        }
    }
    let port = free_port().to_string();
    let args = ["--binary-path", &envoy, "--readiness-port", &port, "--drain-time", "0s", "--work-dir", &workdir];
    let mut dp = Launcher::start(scratch.path(), &cp, &args);
    dp.wait_for_line("the proxy is ready");
    dp.signal(nix::sys::signal::Signal::SIGINT);
    assert_eq!(dp.exit_code(), 0, "{}", dp.log());
}

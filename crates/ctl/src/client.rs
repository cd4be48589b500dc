//! Calls to the control plane (reference: §2.3, §2.5, §7.3).

use crate::{
    cli::Root,
    config::{self, ApiServer},
};
use anyhow::{Context, anyhow, bail};
use ikada_cli::{ServerTrust, http_client};
use ikada_model::{Kind, Scope};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;

/// Largest answer that is read, in bytes.
const MAX_ANSWER: usize = 256 << 20;

/// Longest transfer; pauses in it are bounded separately.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// A connection to one control plane.
pub struct Client {
    http: reqwest::Client,
    api: ApiServer,
    timeout: Duration,
}

/// What came back.
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Body.
    pub body: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Problem {
    title: String,
    detail: String,
    details: String,
    invalid_parameters: Vec<Parameter>,
    causes: Vec<Parameter>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Parameter {
    field: String,
    #[serde(alias = "message")]
    reason: String,
}

impl Answer {
    /// The answer, or the control plane's error as kumactl shows it: `<title> (<detail>)` and a line `* field: reason` per parameter.
    ///
    /// # Errors
    /// Status 400 and above.
    pub fn ok(self) -> anyhow::Result<Answer> {
        if self.status.as_u16() < 400 {
            return Ok(self);
        }
        let problem: Problem = serde_json::from_str(&self.body).unwrap_or_default();
        if problem.title.is_empty() {
            bail!("({}): {}", self.status.as_u16(), self.body.trim_end());
        }
        let detail = if problem.detail.is_empty() { problem.details } else { problem.detail };
        let parameters = if problem.invalid_parameters.is_empty() { problem.causes } else { problem.invalid_parameters };
        let mut text = format!("{} ({detail})", problem.title);
        for p in parameters {
            text.push_str(&format!("\n* {}: {}", p.field, p.reason));
        }
        Err(anyhow!(text))
    }
    /// Whether the control plane says that there is no such resource. An unknown path, as of a wrong address, is 404 too, without its error
    /// body.
    pub fn is_absent(&self) -> bool {
        self.status == StatusCode::NOT_FOUND && serde_json::from_str::<Problem>(&self.body).is_ok_and(|p| !p.title.is_empty())
    }
    /// As JSON.
    ///
    /// # Errors
    /// It is none.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.body).context("the control plane's answer is not JSON: is this the address of its API?")
    }
}

/// Percent-encodes one path segment or query value.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

/// Path of all resources of a kind, in the mesh when the kind lives in one.
pub fn collection(kind: Kind, mesh: &str) -> String {
    let d = kind.descriptor();
    match d.scope {
        Scope::Mesh => format!("/meshes/{}/{}", encode(mesh), d.path),
        Scope::Global => format!("/{}", d.path),
    }
}

/// Path of one resource.
pub fn item(kind: Kind, mesh: &str, name: &str) -> String {
    format!("{}/{}", collection(kind, mesh), encode(name))
}

/// The kind that an argument names: kumactl's arguments, else a type name, path or short name.
///
/// # Errors
/// There is no such kind; the text names close ones.
pub fn kind(arg: &str) -> anyhow::Result<Kind> {
    let found = Kind::by_arg(arg).or_else(|| Kind::by_name(arg)).or_else(|| Kind::by_path(arg)).or_else(|| Kind::by_short(arg));
    if let Some(kind) = found.filter(|k| !k.descriptor().path.is_empty()) {
        return Ok(kind);
    }
    let lower = arg.to_ascii_lowercase();
    let close: Vec<&str> = Kind::all()
        .map(|k| k.descriptor().plural)
        .filter(|p| !p.is_empty() && !lower.is_empty() && (p.contains(&lower) || lower.contains(p.trim_end_matches('s'))))
        .take(5)
        .collect();
    let hint = if close.is_empty() { "see `ikadactl get --help`".to_owned() } else { format!("did you mean {}?", close.join(", ")) };
    bail!("there is no resource type {arg:?}: {hint}")
}

/// What to do about a failed connection whose library text does not say it.
fn hint(reason: &str) -> &'static str {
    if reason.contains("InvalidContentType") {
        return " (this port does not speak TLS: use http://)";
    }
    if reason.contains("invalid HTTP version") {
        return " (this port does not speak HTTP; if it speaks TLS, use https://)";
    }
    if reason.contains("UnknownIssuer") {
        return " (name its CA with --ca-cert-file)";
    }
    ""
}

impl Client {
    /// Connects to the control plane that flags and configuration name.
    ///
    /// # Errors
    /// Bad configuration.
    pub fn new(root: &Root) -> anyhow::Result<Client> {
        let mut api = config::target(root)?;
        api.headers.extend(root.read.clone().map(|value| config::Header { key: "ikada-read".into(), value }));
        Client::to(api, root.api_timeout)
    }
    /// Connects to this one.
    ///
    /// # Errors
    /// Bad address or CA.
    pub fn to(mut api: ApiServer, timeout: Duration) -> anyhow::Result<Client> {
        while api.url.ends_with('/') {
            api.url.pop();
        }
        let ca_pem = match api.ca_cert_file.as_str() {
            "" => None,
            file => Some(std::fs::read_to_string(file).with_context(|| format!("cannot read the CA certificate {file}"))?),
        };
        let trust = ServerTrust { ca_pem, skip_verify: api.skip_verify };
        Ok(Client { http: http_client(&api.url, &trust, timeout)?, api, timeout })
    }
    /// Base address.
    pub fn address(&self) -> &str {
        &self.api.url
    }

    /// Sends a request; every status is an answer.
    ///
    /// # Errors
    /// The control plane cannot be reached.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Answer> {
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request.json(body);
        }
        self.answer(request.send().await.map_err(|e| self.unreachable(e))?).await
    }

    /// GET of something that may be long. Its head has to come in time; the caller bounds the rest.
    ///
    /// # Errors
    /// As [`call`](Self::call), and every status that is no success.
    pub async fn stream(&self, path: &str) -> anyhow::Result<reqwest::Response> {
        let sent = self.request(Method::GET, path).timeout(LONGEST).send();
        let response = tokio::time::timeout(self.timeout, sent).await;
        let response = response.map_err(|_| anyhow!("cannot reach the control plane at {}: no answer in time (--api-timeout)", self.api.url))?;
        let response = response.map_err(|e| self.unreachable(e))?;
        if response.status().is_success() {
            return Ok(response);
        }
        self.answer(response).await?.ok()?;
        bail!("the control plane's answer is neither a success nor an error: is this the address of its API?")
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let mut request = self.http.request(method, format!("{}{path}", self.api.url)).header("accept", "application/json");
        for h in &self.api.headers {
            request = request.header(&h.key, &h.value);
        }
        if self.api.auth_type == "tokens" {
            let token = self.api.auth_conf.get("token").map_or("", String::as_str);
            request = request.header("authorization", format!("Bearer {token}"));
        }
        request
    }

    async fn answer(&self, mut response: reqwest::Response) -> anyhow::Result<Answer> {
        let status = response.status();
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.unreachable(e))? {
            if bytes.len() + chunk.len() > MAX_ANSWER {
                bail!("the control plane's answer is longer than {MAX_ANSWER} bytes");
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(Answer { status, body: String::from_utf8_lossy(&bytes).into_owned() })
    }

    fn unreachable(&self, error: reqwest::Error) -> anyhow::Error {
        let reason = self.reason(error);
        anyhow!("cannot reach the control plane at {}: {reason}{}", self.api.url, hint(&reason))
    }

    /// What happened, without the address.
    pub fn reason(&self, error: reqwest::Error) -> String {
        // The innermost cause says what happened (refused, certificate, time out); the outer ones repeat the address.
        let mut cause: &dyn std::error::Error = &error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        if error.is_timeout() { "no answer in time (--api-timeout)".to_owned() } else { cause.to_string() }
    }

    /// GET.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.call(Method::GET, path, None).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(status: u16, body: &str) -> String {
        let answer = Answer { status: StatusCode::from_u16(status).unwrap(), body: body.to_owned() };
        answer.ok().err().map(|e| e.to_string()).unwrap()
    }

    #[test]
    fn errors_look_like_kumactls() {
        let body = r#"{"type":"/std-errors","status":400,"title":"Could not process a resource","detail":"Resource is not valid",
            "invalid_parameters":[{"field":"mesh","reason":"cannot be empty"},{"field":"name","reason":"bad"}]}"#;
        assert_eq!(error(400, body), "Could not process a resource (Resource is not valid)\n* mesh: cannot be empty\n* name: bad");
        let old = r#"{"title":"T","details":"D","causes":[{"field":"f","message":"m"}]}"#;
        assert_eq!(error(400, old), "T (D)\n* f: m");
        assert_eq!(error(502, "Bad Gateway\n"), "(502): Bad Gateway");
        let absent = |body: &str| Answer { status: StatusCode::NOT_FOUND, body: body.to_owned() }.is_absent();
        assert!(absent(old) && !absent("404: Page Not Found") && !absent("{}"));
    }

    #[test]
    fn kinds_by_many_names() {
        assert_eq!(kind("dataplanes").unwrap(), Kind::Dataplane);
        assert_eq!(kind("MeshTimeout").unwrap(), Kind::MeshTimeout);
        assert_eq!(kind("mt").unwrap(), Kind::MeshTimeout);
        assert!(kind("meshtimeoutz").unwrap_err().to_string().contains("did you mean"));
        assert!(kind("Config").is_err());
        assert_eq!(item(Kind::Dataplane, "a b", "x/y"), "/meshes/a%20b/dataplanes/x%2Fy");
        assert_eq!(item(Kind::Zone, "ignored", "z"), "/zones/z");
    }
}

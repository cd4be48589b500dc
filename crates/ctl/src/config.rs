//! The configuration file: kumactl's structure in a file of our own (reference: §7.1).

use crate::cli::Root;
use anyhow::{Context, anyhow, bail};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

/// Address used when nothing is configured.
pub const DEFAULT_ADDRESS: &str = "http://localhost:5681";

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Configuration {
    /// Contexts; each names a control plane.
    pub contexts: Vec<Context_>,
    /// Control planes.
    pub control_planes: Vec<ControlPlane>,
    /// Name of the context in use.
    pub current_context: String,
}

/// A context.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Context_ {
    /// Name.
    pub name: String,
    /// Name of its control plane.
    pub control_plane: String,
}

/// A control plane.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ControlPlane {
    /// Name.
    pub name: String,
    /// How to reach it.
    pub coordinates: Coordinates,
}

/// `coordinates`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Coordinates {
    /// The API.
    pub api_server: ApiServer,
}

/// `coordinates.apiServer`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ApiServer {
    /// Base address; a path is a prefix of every request.
    pub url: String,
    /// CA of its certificate.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ca_cert_file: String,
    /// Check nothing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub skip_verify: bool,
    /// Headers of every request.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<Header>,
    /// `tokens` or empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub auth_type: String,
    /// `token`.
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub auth_conf: std::collections::BTreeMap<String, String>,
}

/// A header.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Header {
    /// Name.
    pub key: String,
    /// Value.
    pub value: String,
}

impl Configuration {
    /// What holds before anything is configured: `local` at `http://localhost:5681`.
    pub fn initial() -> Configuration {
        let mut config = Configuration::default();
        config.put("local", ApiServer { url: DEFAULT_ADDRESS.to_owned(), ..ApiServer::default() });
        config
    }
    /// Adds or replaces a control plane and makes it the current one.
    pub fn put(&mut self, name: &str, api_server: ApiServer) {
        self.control_planes.retain(|cp| cp.name != name);
        self.contexts.retain(|c| c.name != name);
        self.control_planes.push(ControlPlane { name: name.to_owned(), coordinates: Coordinates { api_server } });
        self.contexts.push(Context_ { name: name.to_owned(), control_plane: name.to_owned() });
        self.current_context = name.to_owned();
    }
    /// By name.
    pub fn control_plane(&self, name: &str) -> Option<&ControlPlane> {
        self.control_planes.iter().find(|cp| cp.name == name)
    }
    /// Name of the control plane of the current context.
    pub fn current(&self) -> Option<&str> {
        self.contexts.iter().find(|c| c.name == self.current_context).map(|c| c.control_plane.as_str())
    }
}

/// Where the file is.
///
/// # Errors
/// Neither `--config-file` nor a home directory.
pub fn path(root: &Root) -> anyhow::Result<PathBuf> {
    if let Some(path) = &root.config_file {
        return Ok(path.clone());
    }
    let home = std::env::var_os("HOME").filter(|h| !h.is_empty());
    Ok(PathBuf::from(home.ok_or_else(|| anyhow!("there is no home directory: name a configuration file with --config-file"))?).join(".ikadactl/config"))
}

/// Reads the file; an absent one is [`Configuration::initial`].
///
/// # Errors
/// It cannot be read or is damaged.
pub fn load(path: &Path) -> anyhow::Result<Configuration> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Configuration::initial()),
        Err(e) => return Err(e).with_context(|| format!("cannot read the configuration file {}", path.display())),
    };
    let value = ikada_cli::parse_yaml(&text).map_err(|e| anyhow!("configuration file {} is damaged: {e}", path.display()))?;
    serde_json::from_value(value).with_context(|| format!("configuration file {} is damaged", path.display()))
}

/// Writes the file (mode 0600, it may hold tokens) beside the old one and replaces it.
///
/// # Errors
/// It cannot be written.
pub fn save(path: &Path, config: &Configuration) -> anyhow::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    let failed = || format!("cannot write the configuration file {}", path.display());
    if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(dir).with_context(failed)?;
    }
    let text = crate::output::yaml(&serde_json::to_value(config)?)?;
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(name);
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary).with_context(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&temporary, path)).with_context(failed)
}

/// The control plane to talk to: flags, else the file.
///
/// # Errors
/// The file is damaged, or names no such control plane; a token file cannot be read.
pub fn target(root: &Root) -> anyhow::Result<ApiServer> {
    let mut api = if root.address.is_some() || root.no_config {
        ApiServer { url: DEFAULT_ADDRESS.to_owned(), ..ApiServer::default() }
    } else {
        let config = load(&path(root)?)?;
        let name = root.context.as_deref().or(config.current()).ok_or_else(|| {
            anyhow!("no active control plane: choose one with `ikadactl config control-planes switch --name NAME`, or give --address")
        })?;
        match config.control_plane(name) {
            Some(cp) => cp.coordinates.api_server.clone(),
            None => bail!("there is no control plane {name:?} in the configuration: see `ikadactl config control-planes list`"),
        }
    };
    override_with(&mut api, root)?;
    Ok(api)
}

/// Lets the flags win.
///
/// # Errors
/// The token file cannot be read.
pub fn override_with(api: &mut ApiServer, root: &Root) -> anyhow::Result<()> {
    if let Some(address) = &root.address {
        api.url = address.clone();
    }
    if let Some(file) = &root.ca_cert_file {
        api.ca_cert_file = std::path::absolute(file).unwrap_or_else(|_| file.clone()).display().to_string();
    }
    api.skip_verify |= root.skip_verify;
    let token = match (&root.token, &root.token_file) {
        (Some(token), _) => Some(token.clone()),
        (None, Some(file)) => Some(fs::read_to_string(file).with_context(|| format!("cannot read the token file {}", file.display()))?),
        (None, None) => None,
    };
    if let Some(token) = token {
        api.auth_type = "tokens".to_owned();
        api.auth_conf.insert("token".to_owned(), token.trim().to_owned());
    }
    Ok(())
}

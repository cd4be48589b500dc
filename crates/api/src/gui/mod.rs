//! The GUI: one page that reads the API (reference: Kuma 2.14.3 REST contract, §4.8).

use crate::state::ApiOptions;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::json;

const PAGE: &str = include_str!("index.html");
const DISABLED: &str = "<!doctype html><title>GUI disabled</title><p>The GUI of this control plane is disabled (apiServer.gui.enabled, or a zone with a global).";

/// The GUI's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gui {
    /// `apiServer.gui.enabled` and not a federated zone.
    pub enabled: bool,
    /// `apiServer.gui.basePath`, starts with `/` and does not end with it.
    pub base_path: String,
}

impl Default for Gui {
    fn default() -> Self {
        Gui { enabled: false, base_path: "/gui".into() }
    }
}

/// The answer when the path belongs to the GUI.
pub fn answer(options: &ApiOptions, path: &str) -> Option<Response> {
    let base = options.gui.base_path.as_str();
    let rest = path.strip_prefix(base)?;
    if rest.is_empty() {
        let location = HeaderValue::from_str(&format!("{base}/")).ok()?;
        return Some((StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, location)]).into_response());
    }
    if !rest.starts_with('/') {
        return None;
    }
    let page = if options.gui.enabled { page(options) } else { DISABLED.to_owned() };
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    Some((headers, page).into_response())
}

fn page(options: &ApiOptions) -> String {
    let base = options.gui.base_path.as_str();
    let config = json!({
        "apiUrl": options.base_path,
        "baseGuiPath": base,
        "version": options.index.version,
        "product": options.index.product,
        "mode": options.mode.as_str(),
        "environment": "universal",
        "storeType": "raft",
        "apiReadOnly": options.read_only,
    });
    // Inside of a script element nothing may look like its end.
    PAGE.replace("{{base}}", base).replace("{{config}}", &config.to_string().replace('<', "\\u003c"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let on = ApiOptions { gui: Gui { enabled: true, ..Gui::default() }, ..ApiOptions::default() };
        assert_eq!(answer(&on, "/gui").unwrap().status(), StatusCode::MOVED_PERMANENTLY);
        assert_eq!(answer(&on, "/gui/meshes/default").unwrap().status(), StatusCode::OK);
        assert!(answer(&on, "/guitar").is_none() && answer(&on, "/meshes").is_none());
        let page = page(&on);
        assert!(page.contains("<base href=\"/gui/\">") && page.contains("\"apiUrl\":\"/\"") && !page.contains("{{"));
    }
}

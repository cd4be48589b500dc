//! What `GET …/_config` shows.

use super::{Proxies, ProxyId};
use async_trait::async_trait;
use ikada_api::{ConfigInspector, InspectError};
use ikada_envoy::{Generated, ProxyContext, ProxyMetadata, ProxySecrets, config_view, generate, json_patch_diff};
use ikada_model::{Kind, Resource};
use ikada_world::World;
use serde_json::Value;
use std::sync::Arc;

impl Proxies {
    fn dry_run(&self, world: &World, dataplane: &Resource, metadata: &ProxyMetadata, shadow: bool) -> Result<Vec<Generated>, InspectError> {
        let secrets = ProxySecrets::dummy();
        let settings = self.settings.load();
        let context = ProxyContext { world, dataplane, metadata, settings: &settings, secrets: &secrets, include_shadow: shadow };
        generate(&context).map_err(|e| InspectError::Failed(e.to_string()))
    }
    /// What a proxy said about itself: to this node, else as its insight tells. `None` when it never connected.
    fn metadata(&self, world: &World, mesh: &str, name: &str) -> Option<ProxyMetadata> {
        if let Some(proxy) = self.connected(&ProxyId { mesh: mesh.into(), name: name.into() }) {
            return Some(proxy.metadata.clone());
        }
        let insight = world.find(Kind::DataplaneInsight, mesh, name)?;
        Some(ProxyMetadata::from_json(insight.spec.value().get("metadata").unwrap_or(&Value::Null)))
    }
    fn view(&self, mesh: &str, name: &str, shadow: bool, include_diff: bool) -> Result<Value, InspectError> {
        let world = self.store.world();
        let dataplane = world.find(Kind::Dataplane, mesh, name).ok_or(InspectError::NotFound)?;
        let metadata = self.metadata(&world, mesh, name).ok_or(InspectError::NotFound)?;
        let failed = |e: &dyn std::fmt::Display| InspectError::Failed(e.to_string());
        let mut view = config_view(&self.dry_run(&world, dataplane, &metadata, shadow)?).map_err(|e| failed(&e))?;
        if include_diff {
            let current = config_view(&self.dry_run(&world, dataplane, &metadata, false)?).map_err(|e| failed(&e))?;
            let none = Value::Null;
            let diff = json_patch_diff(current.get("xds").unwrap_or(&none), view.get("xds").unwrap_or(&none));
            if let Some(m) = view.as_object_mut() {
                m.insert("diff".into(), diff.into());
            }
        }
        Ok(view)
    }
}

/// The inspector of a node.
pub struct Inspector(pub Arc<Proxies>);

#[async_trait]
impl ConfigInspector for Inspector {
    async fn config(&self, mesh: &str, name: &str, shadow: bool, include_diff: bool) -> Result<Value, InspectError> {
        let permit = self.0.inspections.clone().acquire_owned().await.map_err(|e| InspectError::Failed(e.to_string()))?;
        let (proxies, mesh, name) = (self.0.clone(), mesh.to_owned(), name.to_owned());
        let view = move || {
            let _permit = permit;
            proxies.view(&mesh, &name, shadow, include_diff)
        };
        tokio::task::spawn_blocking(view)
            .await
            .unwrap_or_else(|e| Err(InspectError::Failed(format!("generation failed: {e}"))))
    }
}

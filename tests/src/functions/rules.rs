//! Suites `rules-*` and `match-*`.

use super::dump::{self, MetaForm};
use crate::corpus::{self, Case};
use anyhow::{Context, Result, bail};
use ikada_model::{Json, Kind, Resource};
use ikada_policy::{
    InboundKey, MatchOptions, Proxy, TypedMatch,
    inbound::inbound_rules,
    match_egress, match_kind,
    matching::{self, single_rule},
    resource::{resource_rules, sorted_to_entries},
};
use ikada_world::World;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};

/// Prefix of the policies that the caller has already matched.
const MATCHED: &str = "matched-for-rules-";

struct Input {
    world: World,
    /// All resources in the order of the file; keys may repeat.
    resources: Vec<Arc<Resource>>,
}

impl Input {
    fn load(case: &Case) -> Result<Self> {
        let mut resources = case.resources("resources")?;
        for r in &mut resources {
            if r.kind().is_target_ref_policy() {
                r.spec = Json::from_value(&dump::typed_spec(r.kind(), r.spec.value()));
            }
        }
        Ok(Input { world: corpus::world(&resources)?, resources: resources.into_iter().map(Arc::new).collect() })
    }

    /// The kind under test: the named one, else that of the policies beside which MeshHTTPRoutes may stand.
    fn kind(&self, case: &Case) -> Result<Kind> {
        if !case.param("policy").is_empty() {
            return corpus::kind(case.param("policy"));
        }
        let kinds = || self.resources.iter().map(|r| r.kind()).filter(|k| k.is_target_ref_policy());
        kinds().find(|k| *k != Kind::MeshHTTPRoute).or_else(|| kinds().next()).context("no policies among the resources")
    }

    fn of(&self, kind: Kind) -> Vec<&Arc<Resource>> {
        self.resources.iter().filter(|r| r.kind() == kind).collect()
    }

    fn already_matched(&self) -> Vec<&Arc<Resource>> {
        self.resources.iter().filter(|r| r.kind().is_target_ref_policy() && r.display_name().starts_with(MATCHED)).collect()
    }
}

fn no_warnings(warnings: &[String]) -> Result<()> {
    if warnings.is_empty() { Ok(()) } else { bail!("{}", warnings.join("; ")) }
}

pub fn from_rules(case: &Case) -> Result<Value> {
    let input = Input::load(case)?;
    let policies = input.of(input.kind(case)?);
    let inbound = case.spec.pointer("/params/inbound").context("params.inbound is missing")?;
    let port = inbound.get("port").and_then(Value::as_u64).and_then(|p| u32::try_from(p).ok()).context("params.inbound.port is missing")?;
    let address = inbound.get("address").and_then(Value::as_str).context("params.inbound.address is missing")?.to_owned();
    let key = InboundKey { address, port };
    let (rules, warnings) = matching::from_rules(&input.world, &policies, &MatchOptions::default());
    no_warnings(&warnings)?;
    Ok(json!({
        "Rules": dump::by_key(&BTreeMap::from([(key.clone(), rules)]), |r| dump::subset_rules(r)),
        "InboundRules": dump::by_key(&BTreeMap::from([(key, inbound_rules(policies))]), |r| dump::inbound_rules(r)),
    }))
}

pub fn to_rules(case: &Case) -> Result<Value> {
    let input = Input::load(case)?;
    let policies = input.of(input.kind(case)?);
    let (rules, warnings) = matching::to_rules(&input.world, &policies, &MatchOptions::default());
    no_warnings(&warnings)?;
    Ok(dump::to_rules(&rules))
}

pub fn single_item_rules(case: &Case) -> Result<Value> {
    let input = Input::load(case)?;
    let policies: Vec<_> = input.of(input.kind(case)?).into_iter().cloned().collect();
    Ok(json!({ "Rules": single_rule(&policies).iter().map(dump::subset_rule).collect::<Vec<_>>() }))
}

pub fn inbound(case: &Case) -> Result<Value> {
    let input = Input::load(case)?;
    Ok(json!({ "rules": dump::inbound_rules(&inbound_rules(input.already_matched())) }))
}

pub fn sort_to_entries(case: &Case) -> Result<Value> {
    let input = Input::load(case)?;
    let dumped = sorted_to_entries(input.already_matched()).into_iter().map(|e| {
        json!({
            "Entry": { "targetRef": dump::target_ref(e.target), "default": *e.conf },
            "Meta": dump::meta(e.policy, MetaForm::Rest),
            "RuleIndex": e.index,
            "TopLevel": dump::target_ref(&e.spec.target_ref),
        })
    });
    Ok(dumped.collect())
}

pub fn resource(case: &Case) -> Result<Value> {
    let input = Input::load(case)?;
    Ok(dump::resource_rules(&resource_rules(&input.world, input.already_matched()), MetaForm::Test))
}

fn match_dataplane(case: &Case) -> Result<TypedMatch> {
    let input = Input::load(case)?;
    let dataplane = case.resources("dataplane")?.into_iter().next().context("no dataplane")?;
    // MeshGateways are looked for in the dataplane's mesh of the world.
    let proxy = Proxy::new(&input.world, &dataplane).with_context(|| format!("{} cannot be read", dataplane.key))?;
    let t = match_kind(&input.world, &proxy, input.of(input.kind(case)?), &MatchOptions::default());
    no_warnings(&t.warnings)?;
    Ok(t)
}

pub fn matched(case: &Case) -> Result<Value> {
    let t = match_dataplane(case)?;
    Ok(json!({ "items": t.policies.iter().map(|p| dump::policy(p)).collect::<Vec<_>>(), "total": 0, "next": null }))
}

fn incoming(t: &TypedMatch) -> (Value, Value) {
    (dump::by_key(&t.from, |r| dump::subset_rules(r)), dump::by_key(&t.inbound, |r| dump::inbound_rules(r)))
}

pub fn matched_from(case: &Case) -> Result<Value> {
    let (from, inbound) = incoming(&match_dataplane(case)?);
    Ok(json!({ "Rules": from, "InboundRules": inbound }))
}

pub fn matched_to(case: &Case) -> Result<Value> {
    Ok(dump::to_rules(&match_dataplane(case)?.to))
}

pub fn matched_gateway(case: &Case) -> Result<Value> {
    let t = match_dataplane(case)?;
    let (from, inbound) = incoming(&t);
    Ok(json!({ "ToRules": dump::gateway_rules(&t.gateway), "FromRules": from, "InboundRules": inbound }))
}

pub fn egress(case: &Case) -> Result<Value> {
    let input = Input::load(case)?;
    let service = case.resources("externalservice")?.into_iter().next().context("no external service")?;
    let tags = service.spec.value().get("tags").cloned().unwrap_or_default();
    let tags: BTreeMap<String, String> = serde_json::from_value(tags).context("tags of the external service")?;
    let t = match_egress(&input.world, &tags, input.of(input.kind(case)?), &MatchOptions::default());
    no_warnings(&t.warnings)?;
    let (from, inbound) = incoming(&t);
    Ok(json!({ "Rules": from, "InboundRules": inbound }))
}

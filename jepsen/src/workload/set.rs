//! A set of resources that only grows.

use super::{Connections, Shared, number_of, put};
use crate::{edn::Edn, history::Type, http::Ask, judge::element_name, record::Actor, rng::Rng};
use serde_json::Value;
use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

/// Mesh that the elements are in.
pub const MESH: &str = "set";
/// Largest page of a list.
const PAGE: usize = 1000;

/// Adds elements until the run stops. `own` is the host of its node.
pub async fn adder(shared: &Shared, elements: &Arc<AtomicI64>, own: usize, mut rng: Rng) {
    let mut actor = Actor::new(&shared.recorder, "set");
    let mut connections = Connections::new(shared, own);
    while !shared.stopped() {
        let n = elements.fetch_add(1, Ordering::Relaxed);
        // An addition is a creation: it must not find the element there.
        let ask = put(MESH, &element_name(n), n).with("if-none-match", "*");
        actor.invoke("add", Edn::Int(n));
        let key = rng.chance(50).then(|| format!("set-{n}"));
        let (kind, extra) = connections.write(&ask, key, 6, &mut rng).await.into_extra();
        if kind == Type::Fail && extra.iter().any(|(k, v)| k == "error" && v.as_name().is_some_and(|e| e.starts_with("412"))) {
            shared.odd_answer(format!("element {n} was there before it was added"));
        }
        actor.end(kind, "add", Edn::Int(n), extra);
        let pause = if kind == Type::Ok { rng.between(40, 160) } else { rng.between(100, 300) };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

/// Reads the set now and then.
pub async fn reader(shared: &Shared, own: usize, mut rng: Rng) {
    let mut actor = Actor::new(&shared.recorder, "set");
    let mut connections = Connections::new(shared, own);
    while !shared.stopped() {
        let f = if rng.chance(60) { "read" } else { ["read-local", "read-stale"][rng.index(2)] };
        read(&mut connections, &mut actor, f).await;
        tokio::time::sleep(Duration::from_millis(rng.between(1500, 4000))).await;
    }
}

/// A last linearizable read from a node; whether it was answered.
pub async fn final_read(shared: &Shared, own: usize) -> bool {
    let mut actor = Actor::new(&shared.recorder, "set");
    read(&mut Connections::new(shared, own), &mut actor, "read").await
}

async fn read(connections: &mut Connections<'_>, actor: &mut Actor<'_>, f: &str) -> bool {
    actor.invoke(f, Edn::Nil);
    match list(connections, f.strip_prefix("read-"), MESH).await {
        Ok(items) => {
            let all = items.iter().filter(|i| is_element(i)).filter_map(number_of).map(Edn::Int).collect();
            actor.end(Type::Ok, f, Edn::Set(all), Vec::new());
            true
        }
        Err(e) => {
            actor.end(Type::Fail, f, Edn::Nil, vec![("error".to_owned(), Edn::text(e))]);
            false
        }
    }
}

/// Whether a resource is ours: meshes get some policies of their own.
pub fn is_element(resource: &Value) -> bool {
    resource.get("name").and_then(Value::as_str).is_some_and(|n| n.starts_with("s-") || n.starts_with("r-"))
}

/// All numbered resources of a mesh from the own node, page by page. What is there before the first page is asked for is in one of them:
/// what
/// is added while pages are read only moves others to later pages.
pub async fn list(connections: &mut Connections<'_>, level: Option<&str>, mesh: &str) -> Result<Vec<Value>, String> {
    list_at(connections, level, mesh).await.map(|(items, _)| items)
}

/// The same with the revision of the last page.
pub async fn list_at(connections: &mut Connections<'_>, level: Option<&str>, mesh: &str) -> Result<(Vec<Value>, i64), String> {
    let mut items: Vec<Value> = Vec::new();
    let mut offset = 0;
    loop {
        let mut ask = Ask::get(format!("/meshes/{mesh}/meshcircuitbreakers?size={PAGE}&offset={offset}"));
        if let Some(level) = level {
            ask = ask.with("ikada-read", level);
        }
        let answer = connections.read(&ask).await.0?;
        if answer.status != 200 {
            return Err(answer.error());
        }
        let mut page: Value = serde_json::from_slice(&answer.body).map_err(|e| e.to_string())?;
        let total = page.get("total").and_then(Value::as_u64).ok_or("a list without total")?;
        if let Some(Value::Array(more)) = page.get_mut("items").map(Value::take) {
            items.extend(more);
        }
        offset += PAGE;
        if offset as u64 >= total {
            return Ok((items, answer.number("ikada-revision").unwrap_or(0)));
        }
    }
}

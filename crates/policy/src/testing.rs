//! Worlds for unit tests.

use ikada_model::Resource;
use ikada_world::{Command, EntryMeta, Op, Put, World};

/// A world of these resources, in order.
pub fn world(resources: Vec<Resource>) -> World {
    let ops = resources.into_iter().map(|r| Op::Put(Put::new(r.key, r.labels, r.spec))).collect();
    let (world, _, outcome) = World::empty().apply(EntryMeta { index: 1, time: Default::default() }, &Command { id: [1; 16], ops });
    outcome.unwrap();
    world
}

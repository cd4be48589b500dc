//! What a command does, written a second time: on plain maps, without indices, from the documentation of [`ikada_world::Op`].

use ikada_model::Key;
use ikada_world::{Command, Expect, Op, OpResult, Reason, Rejection};
use std::{collections::BTreeSet, rc::Rc};

/// A resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub version: u64,
    pub spec: String,
    pub status: String,
    pub owner: Option<Key>,
}

/// (is an overlay of the status of a resource, key).
pub type Slot = (bool, Key);

/// All resources at one index. A copy is cheap.
#[derive(Clone, Default)]
pub struct Model {
    items: imbl::OrdMap<Slot, Rc<Item>>,
}

/// What a command that took effect did: per operation, and the places it touched.
pub struct Effect {
    pub after: Model,
    pub results: Vec<OpResult>,
    pub touched: BTreeSet<Slot>,
}

impl Model {
    pub fn get(&self, slot: &Slot) -> Option<&Item> {
        self.items.get(slot).map(|i| &**i)
    }

    fn version(&self, key: &Key) -> Option<u64> {
        self.get(&(false, key.clone())).map(|i| i.version)
    }

    fn check(&self, key: &Key, expect: Expect) -> Result<Option<u64>, Rejection> {
        let found = self.version(key);
        let reject = |reason| Err(Rejection { key: key.clone(), reason });
        match (expect, found) {
            (Expect::Absent, Some(_)) => reject(Reason::AlreadyExists),
            (Expect::Exists, None) => reject(Reason::NotFound),
            (Expect::Version(v), f) if f != Some(v) => reject(Reason::Conflict),
            _ => Ok(found),
        }
    }

    /// The command at `index`: its effect, or why it has none.
    pub fn apply(&self, index: u64, command: &Command) -> Result<Effect, Rejection> {
        let mut m = self.clone();
        let mut results = Vec::new();
        let mut touched = BTreeSet::new();
        for op in &command.ops {
            results.push(match op {
                Op::Require { key, expect } => m.check(key, *expect).map(|_| OpResult::Unchanged)?,
                Op::Put(put) => {
                    let existed = m.check(&put.key, put.expect)?.is_some();
                    if let Some(owner) = &put.owner
                        && m.version(owner).is_none()
                    {
                        return Err(Rejection { key: owner.clone(), reason: Reason::OwnerNotFound });
                    }
                    let slot = (false, put.key.clone());
                    let before = m.items.get(&slot).cloned();
                    let item = Item {
                        version: index,
                        spec: put.spec.text().to_owned(),
                        status: match (&put.status, &before) {
                            (Some(status), _) => status.text().to_owned(),
                            (None, Some(before)) => before.status.clone(),
                            (None, None) => ikada_model::Json::default().text().to_owned(),
                        },
                        owner: put.owner.clone().or_else(|| before.and_then(|b| b.owner.clone())),
                    };
                    m.items.insert(slot.clone(), Rc::new(item));
                    touched.insert(slot);
                    if existed { OpResult::Updated } else { OpResult::Created }
                }
                Op::Delete { key, expect } => {
                    let existed = m.check(key, *expect)?.is_some();
                    m.delete(key, &mut touched);
                    if existed { OpResult::Deleted } else { OpResult::Unchanged }
                }
                Op::Status { key, status } => {
                    let slot = (true, key.clone());
                    let before = m.items.get(&slot).cloned();
                    if m.version(key).is_none() || before.as_ref().is_some_and(|b| b.status == status.text()) {
                        OpResult::Unchanged
                    } else {
                        let item = Item { version: index, spec: ikada_model::Json::default().text().to_owned(), status: status.text().to_owned(), owner: None };
                        m.items.insert(slot.clone(), Rc::new(item));
                        touched.insert(slot);
                        if before.is_some() { OpResult::Updated } else { OpResult::Created }
                    }
                }
            });
        }
        Ok(Effect { after: m, results, touched })
    }

    fn delete(&mut self, key: &Key, touched: &mut BTreeSet<Slot>) {
        for slot in [(false, key.clone()), (true, key.clone())] {
            if self.items.remove(&slot).is_some() {
                touched.insert(slot);
            }
        }
        let owned: Vec<Key> = self.items.iter().filter(|(_, i)| i.owner.as_ref() == Some(key)).map(|((_, k), _)| k.clone()).collect();
        for key in owned {
            self.delete(&key, touched);
        }
    }
}

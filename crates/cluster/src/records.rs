//! What a cluster keeps about itself in the replicated state: resources of the internal kind `Config`, named `ikada-cluster-…`. No interface
//! lists that kind, and no log shows its contents.

use crate::token::{TokenId, hex};
use ikada_model::{Json, Key, Kind, Labels, Timestamp};
use ikada_pki::PemPair;
use ikada_raft::ClusterId;
use ikada_world::{Expect, Op, Put, World};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

const CA: &str = "ikada-cluster-ca";
const TOKEN: &str = "ikada-cluster-token-";
const REMOVED: &str = "ikada-cluster-removed-";

fn key(name: &str) -> Key {
    Key::new(Kind::Config, "", name)
}

/// A record and the version at which it was read.
pub(crate) struct Read<T> {
    pub record: T,
    version: u64,
}

fn read<T: DeserializeOwned>(world: &World, name: &str) -> Option<Read<T>> {
    let resource = world.get(&key(name))?;
    let record = serde_json::from_str(resource.spec.text()).ok()?;
    Some(Read { record, version: resource.version })
}

fn list<'a, T: DeserializeOwned>(world: &'a World, prefix: &'a str) -> impl Iterator<Item = (String, T)> + 'a {
    world.list(Kind::Config).filter_map(move |r| Some((r.name().strip_prefix(prefix)?.to_owned(), serde_json::from_str(r.spec.text()).ok()?)))
}

fn put<T: Serialize>(name: &str, record: &T, expect: Expect) -> Op {
    let value = serde_json::to_value(record).unwrap_or_default();
    Op::Put(Put { expect, ..Put::new(key(name), Labels::new(), Json::from_value(&value)) })
}

/// The CA of the cluster.
#[derive(Clone, Serialize, Deserialize)]
struct CaRecord {
    cert: String,
    key: String,
}

/// The CA, as this world has it.
pub(crate) fn ca(world: &World) -> Option<PemPair> {
    let CaRecord { cert, key } = read(world, CA)?.record;
    Some(PemPair { cert_pem: cert, key_pem: key })
}

/// Stores the CA; of several nodes that try, the first one succeeds.
pub(crate) fn put_ca(pair: &PemPair) -> Op {
    put(CA, &CaRecord { cert: pair.cert_pem.clone(), key: pair.key_pem.clone() }, Expect::Absent)
}

/// A node that joined with a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Joined {
    /// SHA-256 of its public key, hexadecimal.
    pub key: String,
    pub node: u64,
}

/// A join token without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TokenRecord {
    /// The cluster that it is for; tokens do not survive a restore.
    pub cluster: String,
    /// SHA-256 of the secret, hexadecimal.
    pub secret_hash: String,
    pub voter: bool,
    pub uses: u32,
    /// Nanoseconds since 1970, as all times here.
    pub created: i64,
    pub expires: i64,
    pub joined: Vec<Joined>,
}

impl TokenRecord {
    pub(crate) fn secret_hash(&self) -> Option<[u8; 32]> {
        hex(&self.secret_hash)
    }
    pub(crate) fn used_up(&self) -> bool {
        self.joined.len() >= usize::try_from(self.uses).unwrap_or(usize::MAX)
    }
    pub(crate) fn expired(&self, now: Timestamp) -> bool {
        now.0 >= self.expires
    }
}

/// A token of this cluster.
pub(crate) fn token(world: &World, cluster: ClusterId, id: TokenId) -> Option<Read<TokenRecord>> {
    read::<TokenRecord>(world, &format!("{TOKEN}{id}")).filter(|t| t.record.cluster == cluster.to_string())
}

/// All tokens of this cluster, by id.
pub(crate) fn tokens(world: &World, cluster: ClusterId) -> Vec<(TokenId, TokenRecord)> {
    let cluster = cluster.to_string();
    let ours = list::<TokenRecord>(world, TOKEN).filter(|(_, t)| t.cluster == cluster);
    ours.filter_map(|(id, t)| Some((id.parse().ok()?, t))).collect()
}

pub(crate) fn create_token(id: TokenId, record: &TokenRecord) -> Op {
    put(&format!("{TOKEN}{id}"), record, Expect::Absent)
}

/// Replaces a token unless somebody else did since it was read.
pub(crate) fn update_token(id: TokenId, read: &Read<TokenRecord>, record: &TokenRecord) -> Op {
    put(&format!("{TOKEN}{id}"), record, Expect::Version(read.version))
}

pub(crate) fn delete_token(id: TokenId) -> Op {
    Op::Delete { key: key(&format!("{TOKEN}{id}")), expect: Expect::Any }
}

/// A node that was removed. Ids are never used twice, so this holds for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RemovedRecord {
    cluster: String,
}

pub(crate) fn put_removed(cluster: ClusterId, node: u64) -> Op {
    put(&format!("{REMOVED}{node}"), &RemovedRecord { cluster: cluster.to_string() }, Expect::Any)
}

/// Whether a node was removed, as far as this world knows.
pub(crate) fn removed(world: &World, cluster: ClusterId, node: u64) -> bool {
    read::<RemovedRecord>(world, &format!("{REMOVED}{node}")).is_some_and(|r| r.record.cluster == cluster.to_string())
}

/// Deletes what is of no use any more: tokens that ended before `before`, and everything of another cluster, from which this one was
/// restored.
pub(crate) fn garbage(world: &World, cluster: ClusterId, before: Timestamp) -> Vec<Op> {
    let cluster = cluster.to_string();
    let tokens = list::<TokenRecord>(world, TOKEN).filter(|(_, t)| t.cluster != cluster || t.expires < before.0).map(|(n, _)| format!("{TOKEN}{n}"));
    let removed = list::<RemovedRecord>(world, REMOVED).filter(|(_, r)| r.cluster != cluster).map(|(n, _)| format!("{REMOVED}{n}"));
    tokens.chain(removed).map(|name| Op::Delete { key: key(&name), expect: Expect::Any }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikada_world::{Command, EntryMeta};

    fn apply(world: &World, index: u64, ops: Vec<Op>) -> (World, bool) {
        let meta = EntryMeta { index, time: Timestamp(0) };
        let command = Command { id: [u8::try_from(index).unwrap(); 16], ops };
        let (next, _, outcome) = world.apply(meta, &command);
        (next, outcome.is_ok())
    }

    #[test]
    fn racing_nodes_make_one_ca_and_a_token_is_used_once() {
        let pair = |n: &str| PemPair { cert_pem: n.to_owned(), key_pem: n.to_owned() };
        let (world, first) = apply(&World::empty(), 1, vec![put_ca(&pair("a"))]);
        let (world, second) = apply(&world, 2, vec![put_ca(&pair("b"))]);
        assert!(first && !second);
        assert_eq!(ca(&world).unwrap(), pair("a"));

        let (us, them, id) = (ClusterId([1; 16]), ClusterId([2; 16]), TokenId([5; 8]));
        let record = TokenRecord {
            cluster: us.to_string(),
            secret_hash: "00".repeat(32),
            voter: true,
            uses: 1,
            created: 0,
            expires: 50,
            joined: Vec::new(),
        };
        let (world, _) = apply(&world, 3, vec![create_token(id, &record)]);
        assert!(token(&world, them, id).is_none() && tokens(&world, them).is_empty());
        let read = token(&world, us, id).unwrap();
        assert_eq!(read.record.secret_hash(), Some([0; 32]));
        let used = |node| TokenRecord { joined: vec![Joined { key: "k".to_owned(), node }], ..record.clone() };
        let (world, one) = apply(&world, 4, vec![update_token(id, &read, &used(7))]);
        let (world, other) = apply(&world, 5, vec![update_token(id, &read, &used(8))]);
        assert!(one && !other);
        let now = token(&world, us, id).unwrap().record;
        assert!(now.used_up() && now.joined[0].node == 7 && now.expired(Timestamp(50)) && !now.expired(Timestamp(49)));

        let (world, _) = apply(&world, 6, vec![put_removed(us, 3)]);
        assert!(removed(&world, us, 3) && !removed(&world, us, 4) && !removed(&world, them, 3));
        assert_eq!(garbage(&world, us, Timestamp(50)).len(), 0);
        assert_eq!(garbage(&world, us, Timestamp(51)).len(), 1);
        assert_eq!(garbage(&world, them, Timestamp(0)).len(), 2);
    }
}

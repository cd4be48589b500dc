//! The status of the cluster, gathered from all members.

use crate::{
    ClusterStatus, Health, MemberInfo, NodeRole,
    autopilot::MAX_VOTERS,
    proto::{NodeStatus, Percentiles, Progress, RoundTrip},
    shared::{Shared, no_majority},
};
use futures::future::join_all;
use ikada_model::Timestamp;
use ikada_raft::{MAX_PROMOTION_LAG, Member, RaftStatus, Role};
use ikada_store::FORMAT_VERSION;
use ikada_world::Replicator;
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::time::timeout;

/// How long a member may take to say how it is.
const ANSWER: Duration = Duration::from_secs(1);
/// Calls of which a round trip is measured, and the most time for them.
const MEASURED_CALLS: usize = 25;
const MEASURE: Duration = Duration::from_secs(8);

impl From<Role> for NodeRole {
    fn from(role: Role) -> Self {
        match role {
            Role::Leader => NodeRole::Leader,
            Role::Follower => NodeRole::Follower,
            Role::Candidate => NodeRole::Candidate,
            Role::Learner => NodeRole::Learner,
        }
    }
}

fn role(text: &str) -> Option<NodeRole> {
    [NodeRole::Leader, NodeRole::Follower, NodeRole::Candidate, NodeRole::Learner].into_iter().find(|r| r.as_str() == text)
}

fn ms(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

fn percentiles(p: &ikada_raft::Percentiles) -> Percentiles {
    Percentiles { count: p.count, p50: nanos(p.p50), p99: nanos(p.p99), max: nanos(p.max) }
}

/// What this node knows of itself.
pub(crate) async fn own_status(shared: &Arc<Shared>, measure: bool) -> NodeStatus {
    let round_trips = if measure { round_trips(shared).await } else { Vec::new() };
    let status = shared.store.status();
    let expires = shared.tls.validity().and_then(|v| v.not_after.duration_since(SystemTime::UNIX_EPOCH).ok());
    let progress = status.members.iter().filter_map(|m| {
        let p = m.progress?;
        Some(Progress { node: m.member.id, matched: p.matched, last_ack_ms: p.last_ack.map(ms) })
    });
    NodeStatus {
        node: status.node,
        role: NodeRole::from(status.role).as_str().to_owned(),
        term: status.term,
        leader: status.leader.unwrap_or(0),
        last_log: status.last_log,
        committed: status.committed,
        applied: status.applied,
        version: shared.version.clone(),
        format: FORMAT_VERSION.into(),
        certificate_expires: expires.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX)),
        progress: progress.collect(),
        fsync: Some(percentiles(&shared.store.timings().fsync)),
        round_trips,
        alarms: status.alarms,
    }
}

/// Measures the round trip to every other member, over a connection that is open already.
async fn round_trips(shared: &Arc<Shared>) -> Vec<RoundTrip> {
    let others: Vec<Member> = shared.store.status().members.into_iter().map(|m| m.member).filter(|m| m.id != shared.node()).collect();
    let measured = others.iter().map(|m| async {
        let mut times = Vec::new();
        let measuring = async {
            let Ok(mut peer) = shared.call(&m.address, m.id).await else { return };
            for call in 0..=MEASURED_CALLS {
                match peer.status(false, ANSWER).await {
                    // The first one also settles the connection.
                    Ok((_, took)) if call > 0 => times.push(nanos(took)),
                    Ok(_) => {}
                    Err(_) => return,
                }
            }
        };
        timeout(MEASURE, measuring).await.ok();
        times.sort_unstable();
        let at = |percent: usize| times.get((times.len() * percent).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0);
        let count = u64::try_from(times.len()).unwrap_or(u64::MAX);
        RoundTrip { node: m.id, time: Some(Percentiles { count, p50: at(50), p99: at(99), max: at(100) }) }
    });
    join_all(measured).await
}

/// What a member answered, and the round trip to it.
pub(crate) type Answer = Result<(NodeStatus, Option<Duration>), String>;

/// Asks every member, all at once.
pub(crate) async fn ask_all(shared: &Arc<Shared>, status: &RaftStatus, measure: bool) -> BTreeMap<u64, Answer> {
    let within = if measure { MEASURE + ANSWER } else { ANSWER };
    let asked = status.members.iter().map(|m| &m.member).map(|m| async move {
        if m.id == shared.node() {
            return (m.id, Ok((own_status(shared, measure).await, None)));
        }
        let call = async {
            let mut peer = shared.call(&m.address, m.id).await.map_err(|e| e.to_string())?;
            // Twice: the first call also settles the connection.
            peer.status(false, within).await.map_err(|e| e.message().to_owned())?;
            let (status, took) = peer.status(measure, within).await.map_err(|e| e.message().to_owned())?;
            Ok((status, Some(took)))
        };
        let answer = timeout(within, call).await.unwrap_or_else(|_| Err(format!("no answer within {} s", within.as_secs())));
        (m.id, answer)
    });
    join_all(asked).await.into_iter().collect()
}

/// The whole status.
pub(crate) async fn cluster_status(shared: &Arc<Shared>) -> ClusterStatus {
    let status = shared.store.status();
    let answers = ask_all(shared, &status, false).await;
    // Where nobody tells this node who leads, a member that answered may know better.
    let claims = |a: &Answer| a.as_ref().ok().filter(|(s, _)| s.role == NodeRole::Leader.as_str()).map(|(s, _)| (s.term, s.node));
    let claimed = answers.values().filter_map(claims).max();
    let known = status.leader.filter(|_| shared.store.contact().is_recent());
    let leader = claimed.map(|(_, node)| node).or(known);
    summarize(&status, leader, &answers, shared.now())
}

/// Puts together what the members said.
fn summarize(status: &RaftStatus, leader: Option<u64>, answers: &BTreeMap<u64, Answer>, now: Timestamp) -> ClusterStatus {
    let of_leader = leader.and_then(|l| answers.get(&l)?.as_ref().ok()).map(|(s, _)| s);
    let members: Vec<MemberInfo> = status
        .members
        .iter()
        .map(|m| {
            let id = m.member.id;
            let answer = answers.get(&id).and_then(|a| a.as_ref().ok());
            let error = answers.get(&id).and_then(|a| a.as_ref().err()).cloned();
            let progress = of_leader.and_then(|l| l.progress.iter().find(|p| p.node == id));
            let said = answer.and_then(|(s, _)| role(&s.role));
            let assumed = if m.voter { NodeRole::Follower } else { NodeRole::Learner };
            MemberInfo {
                id,
                name: m.member.name.clone(),
                address: m.member.address.clone(),
                role: said.unwrap_or(assumed),
                voter: m.voter,
                wants_vote: m.member.wants_vote,
                reachable: answer.is_some(),
                error,
                round_trip_ms: answer.and_then(|(_, took)| *took).map(|took| took.as_secs_f64() * 1000.0),
                lag: of_leader.and_then(|l| Some(l.last_log.saturating_sub(progress?.matched?))),
                last_contact_ms: progress.filter(|_| leader != Some(id)).and_then(|p| p.last_ack_ms),
                applied: answer.map(|(s, _)| s.applied),
                version: answer.map(|(s, _)| s.version.clone()),
                format: answer.and_then(|(s, _)| u16::try_from(s.format).ok()).unwrap_or(m.member.format),
                alarms: answer.map(|(s, _)| s.alarms.clone()).unwrap_or_default(),
                certificate_expires: answer
                    .filter(|(s, _)| s.certificate_expires > 0)
                    .map(|(s, _)| Timestamp(s.certificate_expires.saturating_mul(1_000_000_000)).to_string()),
            }
        })
        .collect();
    let expired = |id: u64| {
        let at = answers.get(&id).and_then(|a| a.as_ref().ok()).map_or(0, |(s, _)| s.certificate_expires);
        at > 0 && at <= now.seconds()
    };
    let mut warnings = Vec::new();
    if members.is_empty() {
        warnings.push("this node has joined, and no leader has reached it yet: check that the other members can connect to the address it advertises".to_owned());
    } else if leader.is_none() {
        warnings.push(no_majority(status));
    }
    let ready = members.iter().filter(|m| m.voter).count();
    let label = |m: &MemberInfo| match m.name.as_str() {
        "" => format!("node {} ({})", m.id, m.address),
        name => format!("node {} ({name}, {})", m.id, m.address),
    };
    for m in &members {
        let never = of_leader.is_some_and(|l| l.progress.iter().any(|p| p.node == m.id && p.matched.is_none()));
        if let Some(twin) = members.iter().find(|o| o.id > m.id && o.address == m.address && !m.reachable) {
            warnings.push(format!(
                "{} was replaced by node {} at the same address: `ikadactl cluster remove {}`",
                label(m),
                twin.id,
                m.id
            ));
        } else if !m.reachable && never && !m.voter {
            warnings.push(format!("{} has joined but never came up: start it again, or `ikadactl cluster remove {}`", label(m), m.id));
        } else if let Some(e) = m.error.as_ref().filter(|_| !m.reachable) {
            warnings.push(format!("{} does not answer: {e}", label(m)));
        }
        warnings.extend(m.alarms.iter().map(|alarm| format!("{}: {alarm}", label(m))));
        if expired(m.id) {
            warnings.push(format!("the certificate of {} has expired: check its clock and its disk", label(m)));
        }
        if m.reachable && m.lag.is_some_and(|lag| lag > MAX_PROMOTION_LAG) {
            warnings.push(format!("{} is {} entries behind", label(m), m.lag.unwrap_or_default()));
        }
        if !m.voter && m.wants_vote && m.reachable {
            warnings.push(match ready {
                n if n >= MAX_VOTERS => format!("{} stays without a vote: {n} voters are enough", label(m)),
                n if n % 2 == 1 => format!("{} gets its vote when one more node has joined: the number of voters stays odd", label(m)),
                _ => format!("{} is going to get a vote", label(m)),
            });
        }
    }
    if ready > 0 && ready.is_multiple_of(2) {
        warnings.push(format!(
            "{ready} voters tolerate no more failures than {}: let one more node join, or remove one",
            ready - 1
        ));
    }
    let mut versions: Vec<&String> = members.iter().filter_map(|m| m.version.as_ref()).collect();
    versions.sort();
    versions.dedup();
    if versions.len() > 1 {
        warnings.push(format!("different versions run: {versions:?}; finish the upgrade"));
    }
    let health = health(&members, leader, warnings.len());
    ClusterStatus { cluster: status.cluster.to_string(), node: status.node, leader, term: status.term, health, members, warnings }
}

fn health(members: &[MemberInfo], leader: Option<u64>, warnings: usize) -> Health {
    let voters = members.iter().filter(|m| m.voter).count();
    let reachable_voters = members.iter().filter(|m| m.voter && m.reachable).count();
    let majority = voters / 2 + 1;
    let writable = leader.is_some_and(|l| members.iter().any(|m| m.id == l && m.reachable)) && reachable_voters >= majority;
    let tolerates = if writable { reachable_voters.saturating_sub(majority) } else { 0 };
    let whole = members.iter().all(|m| m.reachable && m.alarms.is_empty() && m.lag.is_none_or(|lag| lag <= MAX_PROMOTION_LAG));
    let healthy = writable && whole;
    let looks = match warnings {
        0 => String::new(),
        1 => "; see the warning".to_owned(),
        n => format!("; see {n} warnings"),
    };
    let votes = format!("{reachable_voters} of {voters} voters answer");
    let summary = match (writable, healthy) {
        (false, _) => format!("writes are not accepted: {votes}{looks}"),
        (true, true) => format!("healthy: {votes}, {tolerates} more may fail{looks}"),
        (true, false) => format!("degraded: {votes}, {tolerates} more may fail{looks}"),
    };
    Health { healthy, writable, voters, reachable_voters, tolerates, summary }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikada_raft::{ClusterId, MemberStatus};

    fn status(voters: &[u64], learners: &[u64]) -> RaftStatus {
        let member = |id: &u64, voter| MemberStatus {
            member: Member { id: *id, address: format!("h{id}:1"), name: format!("n{id}"), wants_vote: true, format: 1 },
            voter,
            progress: None,
        };
        RaftStatus {
            cluster: ClusterId([1; 16]),
            node: 1,
            role: Role::Leader,
            term: 3,
            leader: Some(1),
            last_log: 50,
            committed: 50,
            applied: 50,
            snapshot: None,
            members: voters.iter().map(|id| member(id, true)).chain(learners.iter().map(|id| member(id, false))).collect(),
            joint: false,
            last_quorum_ack: None,
            alarms: Vec::new(),
        }
    }

    fn answer(node: u64, leader: bool) -> Answer {
        let progress = |node, matched| Progress { node, matched, last_ack_ms: Some(5) };
        let progress = if leader { vec![progress(1, Some(50)), progress(2, Some(48)), progress(3, None)] } else { Vec::new() };
        let role = if leader { "leader" } else { "follower" };
        Ok((NodeStatus { node, role: role.to_owned(), last_log: 50, applied: 48, version: "1".to_owned(), format: 1, progress, ..NodeStatus::default() }, None))
    }

    #[test]
    fn a_dead_voter_is_seen_and_counted() {
        let answers = BTreeMap::from([(1, answer(1, true)), (2, answer(2, false)), (3, Err("refused".to_owned()))]);
        let s = summarize(&status(&[1, 2, 3], &[]), Some(1), &answers, Timestamp(0));
        let h = &s.health;
        assert_eq!((h.healthy, h.writable, h.voters, h.reachable_voters, h.tolerates), (false, true, 3, 2, 0));
        assert_eq!((s.members[1].lag, s.members[1].last_contact_ms, s.members[0].last_contact_ms), (Some(2), Some(5), None));
        assert_eq!(s.warnings, ["node 3 (n3, h3:1) does not answer: refused"]);
        let answers = BTreeMap::from([(1, answer(1, false)), (2, Err(String::new())), (3, Err(String::new()))]);
        let s = summarize(&status(&[1, 2, 3], &[]), None, &answers, Timestamp(0));
        assert!(!s.health.writable && s.warnings[0].contains("recover") && s.health.summary.contains("1 of 3"), "{s:?}");
    }

    #[test]
    fn what_to_do_is_said() {
        let s = summarize(&status(&[], &[]), None, &BTreeMap::new(), Timestamp(0));
        assert!(!s.health.writable && s.warnings.len() == 1 && s.warnings[0].contains("advertises"), "{s:?}");
        let answers = BTreeMap::from([(1, answer(1, true)), (2, answer(2, false)), (3, Err("x".to_owned()))]);
        let s = summarize(&status(&[1], &[2, 3]), Some(1), &answers, Timestamp(0));
        assert!(s.warnings.iter().any(|w| w.contains("node 2") && w.contains("one more node")), "{:?}", s.warnings);
        assert!(s.warnings.iter().any(|w| w.contains("node 3") && w.contains("remove 3")), "{:?}", s.warnings);
        let mut two = status(&[1, 2], &[]);
        two.members[0].member.address = "h2:1".to_owned();
        let answers = BTreeMap::from([(1, Err("x".to_owned())), (2, answer(2, true))]);
        let s = summarize(&two, Some(2), &answers, Timestamp(0));
        assert!(s.warnings.iter().any(|w| w.contains("replaced by node 2")), "{:?}", s.warnings);
        assert!(s.warnings.iter().any(|w| w.contains("2 voters tolerate no more")), "{:?}", s.warnings);
    }
}

//! Messages to openraft's types and back. What a peer sends is checked here: nothing that openraft would take for granted is.

use super::proto;
use crate::{
    record,
    types::{Entry, LogId, TypeConfig, Vote, log_id, mark, vote},
};
use ikada_model::{Key, Kind};
use ikada_store::{HardState, Identity, LogRecord, MAX_RECORD_BYTES, Mark};
use ikada_world::{Applied, OpResult, Reason, Rejection};
use openraft::{
    EntryPayload,
    raft::{AppendEntriesRequest, VoteRequest, VoteResponse},
};
use std::sync::Arc;

/// Terms and indices above this are nonsense, and would overflow when they are counted on.
const MAX_NUMBER: u64 = u64::MAX >> 2;
/// Most entries of one message.
const MAX_ENTRIES: usize = 64 << 10;

/// Why a message is refused, as one line.
pub(crate) type Malformed = String;

pub(crate) fn target(cluster: ikada_store::ClusterId, node: u64) -> Option<proto::Target> {
    Some(proto::Target { cluster: bytes::Bytes::copy_from_slice(&cluster.0), node })
}

/// Whether this node is the one that is meant.
pub(crate) fn check_target(target: Option<&proto::Target>, me: Identity) -> Result<(), Malformed> {
    match target {
        Some(t) if t.cluster == me.cluster.0.as_slice() && t.node == me.node => Ok(()),
        Some(t) => Err(format!("this is {me}, the request is for node {} of another cluster or under another id", t.node)),
        None => Err("the request does not say whom it is for".to_owned()),
    }
}

fn number(n: u64) -> Result<u64, Malformed> {
    if n <= MAX_NUMBER { Ok(n) } else { Err(format!("{n} is no term, index or node id")) }
}

pub(crate) fn to_log_id(id: &LogId) -> proto::LogId {
    let Mark { index, term } = mark(id);
    proto::LogId { index, term }
}

pub(crate) fn from_log_id(id: Option<proto::LogId>) -> Result<Option<LogId>, Malformed> {
    id.map(|id| Ok(log_id(Mark { index: number(id.index)?, term: number(id.term)? }))).transpose()
}

pub(crate) fn to_ballot(vote: &Vote) -> proto::Ballot {
    let HardState { term, voted_for, committed } = crate::types::hard_state(vote);
    proto::Ballot { term, voted_for, committed }
}

pub(crate) fn from_ballot(ballot: Option<proto::Ballot>) -> Result<Vote, Malformed> {
    let b = ballot.ok_or("the vote is missing")?;
    Ok(vote(HardState { term: number(b.term)?, voted_for: number(b.voted_for)?, committed: b.committed }))
}

/// The vote of a leader, which a majority gave it.
pub(crate) fn leader_vote(term: u64, leader: u64) -> Result<Vote, Malformed> {
    Ok(vote(HardState { term: number(term)?, voted_for: number(leader)?, committed: true }))
}

/// `to` says whom it is for, in the first message of a stream.
pub(crate) fn to_append(rpc: AppendEntriesRequest<TypeConfig>, to: Option<proto::Target>) -> Result<proto::AppendRequest, Malformed> {
    let entries = rpc.entries.iter().map(|entry| {
        let record = record::log_record(entry).map_err(|e| e.to_string())?;
        Ok(proto::Entry { term: record.mark.term, payload: record.payload })
    });
    Ok(proto::AppendRequest {
        target: to,
        term: rpc.vote.leader_id.term,
        leader: rpc.vote.leader_id.voted_for,
        prev: rpc.prev_log_id.as_ref().map(to_log_id),
        commit: rpc.leader_commit.as_ref().map(to_log_id),
        entries: entries.collect::<Result<_, Malformed>>()?,
    })
}

/// Entries follow each other and `prev`, none is of a later term than the leader's, and every command can be read: a follower must not
/// find out when it applies it.
pub(crate) fn from_append(request: proto::AppendRequest) -> Result<AppendEntriesRequest<TypeConfig>, Malformed> {
    let vote = leader_vote(request.term, request.leader)?;
    let prev = from_log_id(request.prev)?;
    let commit = from_log_id(request.commit)?;
    let term = request.term;
    if [&prev, &commit].into_iter().flatten().any(|id| mark(id).term > term) {
        return Err(format!("a position is of a later term than its leader's, {term}"));
    }
    if request.entries.len() > MAX_ENTRIES {
        return Err(format!("{} entries in one message", request.entries.len()));
    }
    let (mut index, mut least) = prev.as_ref().map_or((0, 0), |p| (p.index + 1, mark(p).term));
    let mut entries = Vec::with_capacity(request.entries.len());
    for entry in request.entries {
        if entry.term < least || entry.term > term {
            return Err(format!("entry {index} has term {}, expected {least} to {term}", entry.term));
        }
        entries.push(from_entry(Mark { index, term: entry.term }, entry.payload)?);
        (index, least) = (index + 1, entry.term);
    }
    Ok(AppendEntriesRequest { vote, prev_log_id: prev, entries, leader_commit: commit })
}

fn from_entry(mark: Mark, payload: bytes::Bytes) -> Result<Entry, Malformed> {
    if payload.len() > MAX_RECORD_BYTES {
        return Err(format!("entry {mark} has {} bytes", payload.len()));
    }
    let mut entry = record::entry(LogRecord { mark, payload }).map_err(|e| format!("entry {mark}: {e}"))?;
    if let EntryPayload::Normal(proposal) = &mut entry.payload {
        let decoded = record::decode_command(&proposal.bytes).map_err(|e| format!("entry {mark}: {e}"))?;
        proposal.decoded = Some(Arc::new(decoded));
    }
    Ok(entry)
}

pub(crate) fn to_vote_request(rpc: &VoteRequest<TypeConfig>, to: Option<proto::Target>) -> proto::VoteRequest {
    proto::VoteRequest {
        target: to,
        term: rpc.vote.leader_id.term,
        candidate: rpc.vote.leader_id.voted_for,
        last_log: rpc.last_log_id.as_ref().map(to_log_id),
        transfer: rpc.leadership_transfer,
    }
}

pub(crate) fn from_vote_request(request: proto::VoteRequest) -> Result<VoteRequest<TypeConfig>, Malformed> {
    let vote = vote(HardState { term: number(request.term)?, voted_for: number(request.candidate)?, committed: false });
    let mut rpc = VoteRequest::new(vote, from_log_id(request.last_log)?);
    rpc.leadership_transfer = request.transfer;
    Ok(rpc)
}

pub(crate) fn to_vote_response(response: &VoteResponse<TypeConfig>) -> proto::VoteResponse {
    proto::VoteResponse {
        ballot: Some(to_ballot(&response.vote)),
        granted: response.vote_granted,
        last_log: response.last_log_id.as_ref().map(to_log_id),
    }
}

pub(crate) fn from_vote_response(response: proto::VoteResponse) -> Result<VoteResponse<TypeConfig>, Malformed> {
    Ok(VoteResponse::new(from_ballot(response.ballot)?, from_log_id(response.last_log)?, response.granted))
}

pub(crate) fn to_applied(applied: &Applied) -> proto::Applied {
    proto::Applied { index: applied.index, results: applied.results.iter().map(|r| *r as u8).collect::<Vec<_>>().into() }
}

pub(crate) fn from_applied(applied: proto::Applied) -> Result<Applied, Malformed> {
    let results = applied.results.iter().map(|r| match r {
        0 => Ok(OpResult::Created),
        1 => Ok(OpResult::Updated),
        2 => Ok(OpResult::Deleted),
        3 => Ok(OpResult::Unchanged),
        other => Err(format!("unknown result {other}")),
    });
    Ok(Applied { index: number(applied.index)?, results: results.collect::<Result<_, _>>()? })
}

pub(crate) fn to_rejection(rejection: &Rejection) -> proto::Rejection {
    let Rejection { key, reason } = rejection;
    proto::Rejection { kind: key.kind.name().to_owned(), mesh: key.mesh.to_string(), name: key.name.to_string(), reason: *reason as u32 }
}

pub(crate) fn from_rejection(rejection: proto::Rejection) -> Result<Rejection, Malformed> {
    let kind = Kind::by_name(&rejection.kind).ok_or_else(|| format!("unknown kind {:?}", rejection.kind))?;
    let reason = match rejection.reason {
        0 => Reason::Conflict,
        1 => Reason::AlreadyExists,
        2 => Reason::NotFound,
        3 => Reason::OwnerNotFound,
        other => return Err(format!("unknown reason {other}")),
    };
    Ok(Rejection { key: Key::new(kind, &rejection.mesh, &rejection.name), reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(index: u64, term: u64) -> Option<proto::LogId> {
        Some(proto::LogId { index, term })
    }

    fn blank(term: u64) -> proto::Entry {
        let entry = Entry { log_id: log_id(Mark { index: 0, term }), payload: EntryPayload::Blank };
        proto::Entry { term, payload: record::log_record(&entry).unwrap().payload }
    }

    #[test]
    fn entries_that_no_leader_sends_are_refused() {
        let good = proto::AppendRequest {
            target: None,
            term: 5,
            leader: 2,
            prev: id(7, 3),
            commit: id(6, 3),
            entries: vec![blank(3), blank(4), blank(5)],
        };
        let read = from_append(good.clone()).unwrap();
        assert_eq!(read.entries.iter().map(|e| mark(&e.log_id)).map(|m| (m.index, m.term)).collect::<Vec<_>>(), [(8, 3), (9, 4), (10, 5)]);
        let sent = to_append(read, None).unwrap();
        assert_eq!(sent.entries.len(), 3);
        assert_eq!((sent.prev, sent.commit, sent.term, sent.leader), (good.prev, good.commit, 5, 2));
        for bad in [
            proto::AppendRequest { entries: vec![blank(4), blank(3)], ..good.clone() },
            proto::AppendRequest { entries: vec![blank(2)], ..good.clone() },
            proto::AppendRequest { entries: vec![blank(6)], ..good.clone() },
            proto::AppendRequest { prev: id(7, 6), entries: vec![], ..good.clone() },
            proto::AppendRequest { commit: id(7, 6), ..good.clone() },
            proto::AppendRequest { term: u64::MAX, ..good.clone() },
            proto::AppendRequest { prev: id(u64::MAX, 3), ..good.clone() },
            proto::AppendRequest { entries: vec![proto::Entry { term: 5, payload: bytes::Bytes::from_static(b"what") }], ..good.clone() },
            proto::AppendRequest { entries: vec![proto::Entry { term: 5, payload: bytes::Bytes::new() }], ..good },
        ] {
            let text = format!("{bad:?}");
            assert!(from_append(bad).is_err(), "{text}");
        }
        assert!(from_vote_request(proto::VoteRequest { term: u64::MAX, ..Default::default() }).is_err());
        assert!(from_ballot(None).is_err());
        let unknown = proto::Rejection { kind: "Nothing".to_owned(), ..Default::default() };
        assert!(from_rejection(unknown).is_err());
        assert!(from_applied(proto::Applied { index: 1, results: bytes::Bytes::from_static(&[4]) }).is_err());
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            use prost::Message;
            if let Ok(request) = proto::AppendRequest::decode(&*bytes) {
                let _ = from_append(request);
            }
            if let Ok(request) = proto::VoteRequest::decode(&*bytes) {
                let _ = from_vote_request(request);
            }
            if let Ok(outcome) = proto::Outcome::decode(&*bytes) {
                let _ = crate::forward::Written::from_message(outcome);
            }
        }
    }
}

//! Writes on any node: to this one's Raft when it leads, else to the leader, again and again under the same command id until the
//! deadline.

use crate::{
    peer::{
        client::{Lane, PeerError, Peers},
        convert, proto,
    },
    record::{self, MAX_COMMAND_BYTES},
    store::RaftStore,
    types::TypeConfig,
};
use bytes::Bytes;
use futures::StreamExt;
use ikada_model::Timestamp;
use ikada_store::codec::CodecError;
use ikada_world::{Applied, Command, ProposeError, Rejection};
use openraft::{
    error::{ClientWriteError, RaftError},
    raft::{ClientWriteResponse, WriteResult},
};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::oneshot;

/// Most commands of one message.
pub(crate) const MAX_FORWARDED: usize = 512;
/// A message is closed when its commands have this many bytes.
const MESSAGE_BYTES: usize = 1 << 20;
/// Messages to one leader that may be under way. While they are, what comes next gathers for the following one.
const UNDER_WAY: u32 = 3;
/// Pause before a leader is looked for again, when nothing tells that there is a new one.
const RETRY: Duration = Duration::from_millis(25);

/// What became of one attempt to write.
#[derive(Clone, Debug)]
pub(crate) enum Written {
    /// Applied by the entry at `at`, with this outcome.
    Done { at: u64, outcome: Result<Applied, Rejection> },
    /// Not accepted; who leads, if that is known.
    NotLeader(Option<u64>),
    /// Not accepted, and another attempt would not be either.
    Unavailable(String),
    /// It may take effect.
    Unknown,
}

impl Written {
    pub(crate) fn to_message(&self) -> proto::Outcome {
        use proto::outcome::Outcome as Said;
        let (index, said) = match self {
            Written::Done { at, outcome: Ok(applied) } => (*at, Said::Applied(convert::to_applied(applied))),
            Written::Done { at, outcome: Err(rejection) } => (*at, Said::Rejected(convert::to_rejection(rejection))),
            Written::NotLeader(leader) => (0, Said::NotLeader(leader.unwrap_or(0))),
            Written::Unavailable(why) => (0, Said::Unavailable(why.clone())),
            Written::Unknown => (0, Said::Unknown(true)),
        };
        proto::Outcome { index, outcome: Some(said) }
    }

    /// An answer that makes no sense leaves the outcome unknown.
    pub(crate) fn from_message(message: proto::Outcome) -> Written {
        use proto::outcome::Outcome as Said;
        let at = message.index;
        match message.outcome {
            Some(Said::Applied(applied)) => match convert::from_applied(applied) {
                Ok(applied) => Written::Done { at, outcome: Ok(applied) },
                Err(_) => Written::Unknown,
            },
            Some(Said::Rejected(rejection)) => match convert::from_rejection(rejection) {
                Ok(rejection) => Written::Done { at, outcome: Err(rejection) },
                Err(_) => Written::Unknown,
            },
            Some(Said::NotLeader(leader)) => Written::NotLeader(Some(leader).filter(|id| *id != 0)),
            Some(Said::Unavailable(why)) => Written::Unavailable(why),
            Some(Said::Unknown(_)) | None => Written::Unknown,
        }
    }
}

fn of_result<T>(result: Result<T, ClientWriteError<TypeConfig>>, done: impl FnOnce(T) -> Written) -> Written {
    match result {
        Ok(response) => done(response),
        // Refused before it was appended.
        Err(ClientWriteError::ForwardToLeader(to)) => Written::NotLeader(to.leader_id),
        Err(_) => Written::Unknown,
    }
}

fn encoded(time: Timestamp, command: &Command) -> Result<Vec<u8>, ProposeError> {
    match record::encode_command(time, command) {
        Ok(bytes) if bytes.len() <= MAX_COMMAND_BYTES => Ok(bytes),
        Ok(bytes) => Err(ProposeError::TooLarge { size: bytes.len(), limit: MAX_COMMAND_BYTES }),
        Err(CodecError::TooLarge(size)) => Err(ProposeError::TooLarge { size, limit: MAX_COMMAND_BYTES }),
        Err(e) => Err(ProposeError::Unavailable(e.to_string())),
    }
}

struct Waiting {
    command: Bytes,
    answer: oneshot::Sender<Result<Written, PeerError>>,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Waiting>,
    under_way: u32,
}

/// Commands on their way to leaders. What several callers want to send at a time goes in one message.
pub(crate) struct Forwarder {
    peers: Arc<Peers>,
    limit: Duration,
    queues: Mutex<BTreeMap<u64, Queue>>,
}

impl Forwarder {
    /// `limit`: for the answer to one message.
    pub(crate) fn new(peers: Arc<Peers>, limit: Duration) -> Arc<Forwarder> {
        Arc::new(Forwarder { peers, limit, queues: Mutex::default() })
    }

    async fn send(self: &Arc<Self>, leader: u64, command: Bytes) -> Result<Written, PeerError> {
        let (answer, result) = oneshot::channel();
        let start = {
            let mut queues = self.queues.lock();
            let queue = queues.entry(leader).or_default();
            queue.waiting.push(Waiting { command, answer });
            let start = queue.under_way < UNDER_WAY;
            queue.under_way += u32::from(start);
            start
        };
        if start {
            tokio::spawn(self.clone().run(leader));
        }
        result.await.unwrap_or_else(|_| Err(PeerError::Broken("the command was not sent".to_owned())))
    }

    /// Sends what waits for a leader until nothing does.
    async fn run(self: Arc<Self>, leader: u64) {
        while let Some(batch) = self.take(leader) {
            let (commands, answers): (Vec<_>, Vec<_>) = batch.into_iter().map(|w| (w.command, w.answer)).unzip();
            let request = proto::ProposeRequest { target: self.peers.target(leader), commands };
            let call = |mut client: crate::peer::proto::peer_client::PeerClient<_>| async move { client.propose(request).await };
            match self.peers.call(leader, Lane::Forward, self.limit, call).await {
                Ok(said) => {
                    let mut outcomes = said.outcomes.into_iter().map(Written::from_message);
                    for answer in answers {
                        answer.send(Ok(outcomes.next().unwrap_or(Written::Unknown))).ok();
                    }
                }
                Err(e) => answers.into_iter().for_each(|answer| {
                    answer.send(Err(e.clone())).ok();
                }),
            }
        }
    }

    /// The next message; `None` when this sender is not needed any more.
    fn take(&self, leader: u64) -> Option<Vec<Waiting>> {
        let mut queues = self.queues.lock();
        let queue = queues.get_mut(&leader)?;
        // Who gave up has asked another leader, or was told that the outcome is unknown: it must not happen later for nobody.
        queue.waiting.retain(|w| !w.answer.is_closed());
        let mut size = 0;
        let count = queue
            .waiting
            .iter()
            .take(MAX_FORWARDED)
            .take_while(|w| {
                let first = size == 0;
                size += w.command.len();
                first || size <= MESSAGE_BYTES
            })
            .count();
        if count == 0 {
            queue.under_way -= 1;
            if queue.under_way == 0 {
                queues.remove(&leader);
            }
            return None;
        }
        let rest = queue.waiting.split_off(count);
        Some(std::mem::replace(&mut queue.waiting, rest))
    }
}

impl RaftStore {
    /// Writes on the leader, wherever it is; answers when the world of this node has it.
    pub(crate) async fn write(&self, command: Command) -> Result<Applied, ProposeError> {
        let deadline = tokio::time::Instant::now() + self.deadline;
        let mut leader = self.leader_changes();
        // An attempt whose fate is not known makes the whole unknown, unless a later one gets the answer: it has the same id.
        let mut unknown = false;
        let mut why = "there is no leader at the moment".to_owned();
        let command = Arc::new(command);
        let mut forwarded = None;
        loop {
            let asked = *leader.borrow_and_update();
            let attempt = async {
                match asked {
                    Some(id) if id == self.identity.node => self.write_here(&command).await,
                    Some(id) => {
                        let bytes = match &forwarded {
                            Some(bytes) => Bytes::clone(bytes),
                            // The leader sets the time.
                            None => forwarded.insert(Bytes::from(encoded(Timestamp(0), &command)?)).clone(),
                        };
                        match self.forwarder.send(id, bytes).await {
                            Ok(written) => Ok(written),
                            Err(e) => {
                                why = e.to_string();
                                Ok(if e.had_no_effect() { Written::NotLeader(None) } else { Written::Unknown })
                            }
                        }
                    }
                    None => Ok(Written::NotLeader(None)),
                }
            };
            let written = tokio::select! {
                biased;
                written = attempt => written?,
                // Whoever was asked leads no more, and may never answer.
                _ = changed(&mut leader) => Written::Unknown,
                () = tokio::time::sleep_until(deadline) => Written::Unknown,
            };
            match written {
                Written::Done { at, outcome } => {
                    return match tokio::time::timeout_at(deadline, self.published.applied(at)).await {
                        Ok(()) => outcome.map_err(ProposeError::Rejected),
                        Err(_) => Err(ProposeError::Unknown),
                    };
                }
                Written::Unavailable(why) if !unknown => {
                    return Err(ProposeError::Unavailable(why));
                }
                Written::Unavailable(_) | Written::Unknown => unknown = true,
                Written::NotLeader(hint) => {
                    if let (Some(asked), None) = (asked, hint) {
                        tracing::debug!("node {asked} does not take a write");
                    }
                }
            }
            if let Some(refusal) = self.refusal() {
                return Err(if unknown { ProposeError::Unknown } else { refusal });
            }
            // A new leader, or a little later: the one that is known may be starting or about to be replaced.
            let pause = tokio::time::timeout(RETRY, changed(&mut leader));
            if tokio::time::timeout_at(deadline, pause).await.is_err() {
                return Err(if unknown { ProposeError::Unknown } else { ProposeError::Unavailable(why) });
            }
        }
    }

    /// Writes to this node's Raft.
    async fn write_here(&self, command: &Arc<Command>) -> Result<Written, ProposeError> {
        let time = self.clock.now();
        let bytes = encoded(time, command)?;
        if let Some(why) = self.unwritable().await {
            return Ok(Written::Unavailable(why));
        }
        let written = self.raft.client_write(record::proposal(bytes, time, Command::clone(command))).await;
        Ok(match written {
            Ok(response) => done(response),
            Err(RaftError::APIError(e)) => of_result(Err(e), done),
            Err(RaftError::Fatal(_)) => Written::Unknown,
        })
    }

    /// Why this node's log takes no entries.
    async fn unwritable(&self) -> Option<String> {
        let log = self.log.lock().clone();
        match log {
            Some(log) => log.full().await,
            None => Some("the store is shutting down".to_owned()),
        }
    }

    /// Writes commands of a peer to this node's Raft, with this node's time. One outcome each.
    pub(crate) async fn write_forwarded(&self, commands: Vec<Bytes>) -> Vec<Written> {
        if !self.leads() {
            return vec![Written::NotLeader(self.leader()); commands.len()];
        }
        if let Some(why) = self.unwritable().await {
            return vec![Written::Unavailable(why); commands.len()];
        }
        let time = self.clock.now();
        let mut outcomes = Vec::with_capacity(commands.len());
        let mut proposals = Vec::with_capacity(commands.len());
        for bytes in commands {
            let proposal = record::decode_command(&bytes).map_err(|e| e.to_string()).and_then(|(_, command)| {
                let bytes = encoded(time, &command).map_err(|e| e.to_string())?;
                Ok(record::proposal(bytes, time, command))
            });
            match proposal {
                Ok(proposal) => {
                    proposals.push(proposal);
                    outcomes.push(Written::Unknown);
                }
                Err(e) => outcomes.push(Written::Unavailable(format!("the leader cannot read the command: {e}"))),
            }
        }
        let Ok(results) = self.raft.client_write_many(proposals).await else {
            return outcomes;
        };
        let mut results = std::pin::pin!(results.take_until(tokio::time::sleep(self.deadline)));
        for outcome in outcomes.iter_mut().filter(|o| matches!(o, Written::Unknown)) {
            let Some(Ok(result)) = results.next().await else {
                break;
            };
            *outcome = done_many(result);
        }
        outcomes
    }
}

fn done(response: ClientWriteResponse<TypeConfig>) -> Written {
    match response.data.0 {
        Some(outcome) => Written::Done { at: response.log_id.index, outcome },
        None => Written::Unknown,
    }
}

fn done_many(result: WriteResult<TypeConfig>) -> Written {
    of_result(result, |response| match response.response.0 {
        Some(outcome) => Written::Done { at: response.log_id.index, outcome },
        None => Written::Unknown,
    })
}

/// Waits for another leader; for ever when nobody tells any more.
pub(crate) async fn changed(leader: &mut tokio::sync::watch::Receiver<Option<u64>>) {
    if leader.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::NoNet;
    use ikada_store::{ClusterId, Identity};

    #[tokio::test]
    async fn who_gave_up_is_not_sent() {
        let peers = Peers::new(Arc::new(NoNet), Identity { cluster: ClusterId([1; 16]), node: 1 }, Duration::from_secs(1));
        let forwarder = Forwarder::new(peers, Duration::from_secs(1));
        let (mut waiting, mut results) = (Vec::new(), Vec::new());
        for n in 0..3u8 {
            let (answer, result) = oneshot::channel();
            waiting.push(Waiting { command: Bytes::from(vec![n]), answer });
            results.push(result);
        }
        forwarder.queues.lock().insert(2, Queue { waiting, under_way: 1 });
        drop(results.remove(1));
        let sent: Vec<u8> = forwarder.take(2).unwrap().iter().map(|w| w.command[0]).collect();
        assert_eq!(sent, [0, 2]);
        assert!(forwarder.take(2).is_none() && forwarder.queues.lock().is_empty());
    }
}

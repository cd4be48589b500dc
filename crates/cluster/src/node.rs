//! [`ClusterNode`]: one member of a cluster.

use crate::{
    ClusterError, ClusterStatus, NewToken, Options, StartError, TokenInfo, TuneReport, gather,
    identity::PeerDir,
    join,
    limit::LogLimit,
    listen::Listener,
    options::{address_fault, name_fault},
    proto::{AdminRequest, CreateToken, ListTokens, Promote, Remove, RevokeToken, Token, TransferLeader, admin_request::Call},
    shared::{MAX_JOINS, Shared},
    tls::{Tls, TlsNet},
    tune,
    wire::Accept,
};
use ikada_model::Timestamp;
use ikada_raft::{RaftStore, Settings, Start, net::Net};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::sync::{Mutex, Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long connections and tasks may take to end.
const STOP_GRACE: Duration = Duration::from_secs(3);

/// A node that takes part in a cluster: its store, its peer listener, and what keeps it a member. All calls work on any node; those that
/// change the cluster are carried out by the leader.
pub struct ClusterNode {
    pub(crate) shared: Arc<Shared>,
    listening: SocketAddr,
    tasks: TaskTracker,
    stop: CancellationToken,
}

fn listen_error(address: SocketAddr, e: &io::Error) -> StartError {
    StartError::Listen(match e.kind() {
        io::ErrorKind::AddrInUse => {
            format!("cannot listen on {address} (peers): another process uses this port; stop it, or choose another one with raft.listen")
        }
        io::ErrorKind::PermissionDenied => format!("cannot listen on {address} (peers): no permission; choose a port above 1023 with raft.listen"),
        _ => format!("cannot listen on {address} (peers): {e}; see raft.listen"),
    })
}

/// Checks what others will see, and puts the bound port in the place of port 0.
fn own_address(o: &Options, bound: SocketAddr) -> Result<String, StartError> {
    if let Some(fault) = name_fault(&o.name) {
        return Err(StartError::Settings(format!("raft.name {fault}")));
    }
    if let Some(fault) = address_fault(&o.advertise) {
        return Err(StartError::Settings(format!("raft.advertise {fault}")));
    }
    let (host, port) = o.advertise.rsplit_once(':').unwrap_or_default();
    let port: u16 = port.parse().unwrap_or_default();
    Ok(format!("{host}:{}", if port == 0 { bound.port() } else { port }))
}

/// Starts a node: creates a cluster, joins one, or goes on, as options and data directory say. Returns when this node is a member and has
/// recovered what its own disk holds; [`RaftStore::ready`] says when it has caught up.
///
/// # Errors
/// One line that says what to do.
pub async fn start(mut o: Options) -> Result<Arc<ClusterNode>, StartError> {
    let dir = PeerDir::new(o.raft.disk.clone(), &o.raft.data_dir, o.raft.keyring());
    let existing = dir.has_identity(&o.raft.data_dir)?;
    let socket = o.wire.bind(o.listen).await.map_err(|e| listen_error(o.listen, &e))?;
    let listening = socket.address().map_err(|e| listen_error(o.listen, &e))?;
    let advertise = own_address(&o, listening)?;
    let tls = Arc::new(Tls::new(o.raft.clock.clone()));
    let mut joined = false;
    if existing {
        if let Some(found) = dir.credentials()? {
            tls.set(&found).map_err(StartError::Identity)?;
        }
        if o.join.is_some() {
            tracing::info!("{} holds a member already: the settings for joining a cluster have no effect", o.raft.data_dir.display());
        }
    } else if let Some(j) = &o.join {
        let welcome = join::join(&*o.wire, &o.raft.clock, &dir, j, &advertise, &o.name).await?;
        tls.set(&welcome.credentials).map_err(StartError::Identity)?;
        // Before the directory is this node's: a crash in between means to join again, with the same key.
        dir.store(&welcome.credentials)?;
        o.raft.start = Start::Join { cluster: welcome.cluster, node: welcome.node };
        joined = true;
    } else {
        o.raft.start = Start::Create { address: advertise.clone(), name: o.name.clone() };
    }
    let net: Arc<dyn Net> = Arc::new(TlsNet { tls: tls.clone(), wire: o.wire.clone() });
    o.raft.net = net.clone();
    let settings = Settings::of(&o.raft.profile);
    let (clock, randomness) = (o.raft.clock.clone(), o.raft.randomness.clone());
    let store = RaftStore::open(o.raft).await?;
    let shared = Arc::new(Shared {
        store: store.clone(),
        clock,
        randomness,
        tls,
        net,
        dir,
        advertise,
        name: o.name,
        version: o.version,
        certificate_life: o.certificate_life,
        settings,
        turn: Mutex::new(()),
        joins: Semaphore::new(MAX_JOINS),
        calls: parking_lot::Mutex::default(),
        join_log: LogLimit::default(),
        ended: watch::channel(None).0,
    });
    let node = ClusterNode { shared: shared.clone(), listening, tasks: TaskTracker::new(), stop: CancellationToken::new() };
    if let Err(e) = shared.settle_in(joined).await {
        store.shutdown().await.ok();
        return Err(e);
    }
    shared.announce_as_leader().await;
    node.run(socket);
    tracing::info!(cluster = %shared.cluster(), node = shared.node(), listen = %listening, advertise = shared.advertise, "serving peers");
    Ok(Arc::new(node))
}

impl ClusterNode {
    fn run(&self, socket: Box<dyn Accept>) {
        let (shared, stop) = (&self.shared, || self.stop.clone());
        self.tasks.spawn(Listener::new(shared.clone()).run(socket, stop()));
        self.tasks.spawn(shared.clone().run_certificates(stop()));
        self.tasks.spawn(shared.clone().run_autopilot(stop()));
        self.tasks.spawn(shared.clone().run_standing(stop(), stop()));
    }

    /// The replicated store.
    pub fn store(&self) -> Arc<RaftStore> {
        self.shared.store.clone()
    }

    /// Where the peer listener listens.
    pub fn listening(&self) -> SocketAddr {
        self.listening
    }

    /// Becomes `Some` when this node was removed from the cluster: one line with the way out. The store is closed then; the process should
    /// say so and end.
    pub fn ended(&self) -> watch::Receiver<Option<String>> {
        self.shared.ended.subscribe()
    }

    async fn call(&self, call: Call) -> Result<crate::proto::AdminResponse, ClusterError> {
        self.shared.administer(AdminRequest { call: Some(call) }).await
    }

    /// The state of the cluster. Asks every member, each for at most a second; those that do not answer are in it as unreachable.
    ///
    /// # Errors
    /// None at the moment; a cluster without a leader has a status too.
    pub async fn status(&self) -> Result<ClusterStatus, ClusterError> {
        Ok(gather::cluster_status(&self.shared).await)
    }

    /// Makes a join token for `uses` nodes (1 to 100), valid for one minute to 30 days from now.
    ///
    /// # Errors
    /// A value out of range; no leader.
    pub async fn create_join_token(&self, valid_for: Duration, voter: bool, uses: u32) -> Result<NewToken, ClusterError> {
        let made = self.call(Call::CreateToken(CreateToken { valid_seconds: valid_for.as_secs(), voter, uses })).await?;
        match made.tokens.into_iter().next() {
            Some(info) => Ok(NewToken { token: made.token, info: token_info(info), addresses: made.addresses }),
            None => Err(ClusterError::Unknown("the leader answered without a token; try again".to_owned())),
        }
    }

    /// Join tokens, newest first.
    ///
    /// # Errors
    /// No leader.
    pub async fn join_tokens(&self) -> Result<Vec<TokenInfo>, ClusterError> {
        Ok(self.call(Call::ListTokens(ListTokens {})).await?.tokens.into_iter().map(token_info).collect())
    }

    /// Takes a join token back.
    ///
    /// # Errors
    /// There is no such token; no leader.
    pub async fn revoke_join_token(&self, id: &str) -> Result<(), ClusterError> {
        self.call(Call::RevokeToken(RevokeToken { id: id.to_owned() })).await.map(|_| ())
    }

    /// Gives a member a vote. `force`: even if the number of voters becomes even.
    ///
    /// # Errors
    /// No such member, it has not caught up, or the number of voters would be even; no leader.
    pub async fn promote(&self, id: u64, force: bool) -> Result<(), ClusterError> {
        self.call(Call::Promote(Promote { node: id, force })).await.map(|_| ())
    }

    /// Removes a member. A learner that has caught up takes over its vote if the number of voters would become even otherwise; a leader
    /// hands over first. `force`: even if the number of voters becomes even, or too few of the rest are known to live.
    ///
    /// # Errors
    /// No such member, or the cluster would be worse off; no leader.
    pub async fn remove(&self, id: u64, force: bool) -> Result<(), ClusterError> {
        self.call(Call::Remove(Remove { node: id, force })).await.map(|_| ())
    }

    /// Hands leadership to a voter, or to the most suitable one; returns the new leader.
    ///
    /// # Errors
    /// No such voter, or it did not take over; no leader.
    pub async fn transfer_leader(&self, to: Option<u64>) -> Result<u64, ClusterError> {
        Ok(self.call(Call::TransferLeader(TransferLeader { to: to.unwrap_or(0) })).await?.node)
    }

    /// Measures round trips and disks of all members, and proposes settings of replication.
    ///
    /// # Errors
    /// No leader, or no disk could be measured.
    pub async fn tune(&self) -> Result<TuneReport, ClusterError> {
        tune::tune(&self.shared).await
    }

    /// Ends the listener and the store; what was accepted is durable afterwards. A second call does nothing.
    ///
    /// # Errors
    /// The store had left service before.
    pub async fn shutdown(&self) -> Result<(), ikada_raft::Fatal> {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(STOP_GRACE, self.tasks.wait()).await.is_err() {
            tracing::info!(tasks = self.tasks.len(), "connections of peers did not end in time");
        }
        self.shared.store.shutdown().await
    }
}

fn token_info(t: Token) -> TokenInfo {
    let time = |seconds: i64| Timestamp(seconds.saturating_mul(1_000_000_000)).to_string();
    TokenInfo { id: t.id, voter: t.voter, uses: t.uses, joined: t.joined, created: time(t.created), expires: time(t.expires), spent: t.spent }
}

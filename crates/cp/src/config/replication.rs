//! The section `raft:`: times of replication, where peers find this node, how it joins. It takes the place of `store.postgres:`.

use super::load::{Values, go_text};
use anyhow::{Context, Result, bail};
use ikada_raft::{Profile, Settings};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::PathBuf,
    time::Duration,
};

/// Longest token in a file, in bytes.
const MAX_TOKEN: u64 = 4096;
/// Keys that belong to the network between the nodes. Own values of these need `custom`, so that the name of a profile says what is in force.
const TIMES: [&str; 3] = ["raft.heartbeat", "raft.electionMin", "raft.electionMax"];

/// How to get into a cluster; of effect only while the data directory is new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// `host:port` of members.
    pub addresses: Vec<String>,
    /// Where the token is.
    pub token: TokenSource,
}

/// Where the join token comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// Given.
    Text(String),
    /// A file with one line; read only to join.
    File(PathBuf),
}

impl std::fmt::Debug for TokenSource {
    /// Never the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TokenSource::Text(_) => f.write_str("Text(…)"),
            TokenSource::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

impl TokenSource {
    /// The token. Errors name the file.
    pub fn read(&self) -> Result<String> {
        let text = match self {
            TokenSource::Text(text) => text.clone(),
            TokenSource::File(path) => {
                let length = std::fs::metadata(path).with_context(|| format!("cannot read the join token in {}", path.display()))?.len();
                if length > MAX_TOKEN {
                    bail!("{} has {length} bytes: that is no join token", path.display());
                }
                std::fs::read_to_string(path).with_context(|| format!("cannot read the join token in {}", path.display()))?
            }
        };
        Ok(text.trim().to_owned())
    }
}

/// Replication.
#[derive(Clone, Debug)]
pub struct Replication {
    /// `lan`, `wan` or `custom`.
    pub profile: String,
    /// What is in force.
    pub settings: Settings,
    /// Peer port.
    pub listen: SocketAddr,
    /// `host:port` under which other members reach this node.
    pub advertise: String,
    /// Name of the machine, for people; empty = its host name.
    pub name: String,
    /// The cluster to join.
    pub join: Option<Join>,
    /// Never votes.
    pub learner: bool,
}

/// Splits `host:port`. `None` when the port is missing or 0, or the host is empty.
fn host_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let port = port.parse().ok().filter(|p| *p != 0)?;
    (!host.is_empty() && (bracketed || !host.contains(':')) && host.len() <= 255).then_some((host, port))
}

/// The address of this machine that others most likely reach it by: the one it would use towards a far network. Nothing is sent.
fn own_address() -> IpAddr {
    let towards = |bind: &str, far: &str| {
        let socket = UdpSocket::bind(bind).ok()?;
        socket.connect(far).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified() && !ip.is_loopback())
    };
    // TEST-NET-1 and the documentation prefix: never hosts, and routed like any other far address.
    towards("0.0.0.0:0", "192.0.2.1:9").or_else(|| towards("[::]:0", "[2001:db8::1]:9")).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

fn settings(v: &Values) -> Result<(String, Settings)> {
    let profile = v.text("raft.profile");
    let base = match profile.as_str() {
        "lan" | "custom" => Profile::Lan,
        "wan" => Profile::Wan,
        other => bail!("raft.profile{}: {other:?} is not a profile, use \"lan\", \"wan\" or \"custom\"", v.origin("raft.profile")),
    };
    if profile != "custom"
        && let Some(key) = TIMES.into_iter().find(|key| !v.text(key).is_empty())
    {
        bail!("{key}{}: own times need raft.profile \"custom\"; {profile:?} has its own", v.origin(key));
    }
    let mut s = Settings::of(&base);
    let d = |key, to: &mut Duration| v.optional_duration(key).map(|own| *to = own.unwrap_or(*to));
    let n = |key, to: &mut u64| v.optional_number(key).map(|own| *to = own.unwrap_or(*to));
    d("raft.heartbeat", &mut s.heartbeat)?;
    d("raft.electionMin", &mut s.election.0)?;
    d("raft.electionMax", &mut s.election.1)?;
    d("raft.proposalDeadline", &mut s.proposal_deadline)?;
    d("raft.snapshotDeadline", &mut s.snapshot_deadline)?;
    d("raft.batchLinger", &mut s.batch_linger)?;
    n("raft.appendEntries", &mut s.append_entries)?;
    n("raft.snapshotEvery", &mut s.snapshot_every)?;
    n("raft.keepEntries", &mut s.keep_entries)?;
    n("raft.segmentBytes", &mut s.segment_bytes)?;
    s.validate().context("raft")?;
    Ok((profile, s))
}

fn join(v: &Values) -> Result<Option<Join>> {
    let addresses = v.list("raft.join.addresses").unwrap_or_default();
    if let Some(bad) = addresses.iter().find(|a| host_port(a).is_none()) {
        bail!("raft.join.addresses{}: {bad:?} must be HOST:PORT of a member's peer port, e.g. \"cp-1.example.org:5690\"", v.origin("raft.join.addresses"));
    }
    let (text, file) = (v.optional("raft.join.token"), v.optional("raft.join.tokenFile"));
    let token = match (text, file) {
        (Some(_), Some(_)) => bail!("raft.join.token{} and raft.join.tokenFile{}: give one of them", v.origin("raft.join.token"), v.origin("raft.join.tokenFile")),
        (Some(text), None) => Some(TokenSource::Text(text)),
        (None, file) => file.map(|path| TokenSource::File(path.into())),
    };
    match (addresses.is_empty(), token) {
        (true, None) => Ok(None),
        (false, Some(token)) => Ok(Some(Join { addresses, token })),
        (false, None) => bail!(
            "raft.join.addresses{}: a join token is missing (--join-token, raft.join.token or raft.join.tokenFile); \
             `ikadactl cluster join-token create` on a member makes one",
            v.origin("raft.join.addresses")
        ),
        (true, Some(_)) => bail!("a join token is given, but no address of a member (--join or raft.join.addresses)"),
    }
}

/// Reads the section.
pub fn replication(v: &Values) -> Result<Replication> {
    let (profile, settings) = settings(v)?;
    let listen = v.text("raft.listen");
    let Ok(listen) = listen.parse::<SocketAddr>() else {
        bail!("raft.listen{}: {listen:?} must be IP:PORT, e.g. \"0.0.0.0:5690\" or \"[::]:5690\"", v.origin("raft.listen"));
    };
    let advertise = match v.text("raft.advertise") {
        text if text.is_empty() => {
            let ip = if listen.ip().is_unspecified() { own_address() } else { listen.ip() };
            SocketAddr::new(ip, listen.port()).to_string()
        }
        text if host_port(&text).is_some() => text,
        // A host alone: the port is the one that is listened on.
        text if host_port(&format!("{text}:1")).is_some() => format!("{text}:{}", listen.port()),
        text => bail!("raft.advertise{}: {text:?} must be HOST or HOST:PORT as other members reach this node", v.origin("raft.advertise")),
    };
    let name = v.text("raft.name");
    if name.len() > ikada_raft::MAX_MEMBER_TEXT {
        bail!("raft.name{}: longer than {} bytes", v.origin("raft.name"), ikada_raft::MAX_MEMBER_TEXT);
    }
    Ok(Replication { profile, settings, listen, advertise, name, join: join(v)?, learner: v.flag("raft.learner") })
}

impl Replication {
    /// The profile that the store is opened with.
    pub fn raft_profile(&self) -> Profile {
        for profile in [Profile::Lan, Profile::Wan] {
            if self.settings == Settings::of(&profile) {
                return profile;
            }
        }
        Profile::Custom(self.settings.clone())
    }

    /// Values as they are in force, for `GET /config`. The token is not shown.
    pub fn effective(&self) -> Vec<(&'static str, serde_json::Value)> {
        let s = &self.settings;
        let mut all: Vec<(&'static str, serde_json::Value)> = vec![
            ("raft.heartbeat", go_text(s.heartbeat).into()),
            ("raft.electionMin", go_text(s.election.0).into()),
            ("raft.electionMax", go_text(s.election.1).into()),
            ("raft.proposalDeadline", go_text(s.proposal_deadline).into()),
            ("raft.snapshotDeadline", go_text(s.snapshot_deadline).into()),
            ("raft.batchLinger", go_text(s.batch_linger).into()),
            ("raft.appendEntries", s.append_entries.into()),
            ("raft.snapshotEvery", s.snapshot_every.into()),
            ("raft.keepEntries", s.keep_entries.into()),
            ("raft.segmentBytes", s.segment_bytes.into()),
            ("raft.advertise", self.advertise.clone().into()),
        ];
        if matches!(self.join, Some(Join { token: TokenSource::Text(_), .. })) {
            all.push(("raft.join.token", "*****".into()));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(pairs: &[(&str, &str)]) -> Result<Replication> {
        let env = pairs.iter().map(|(k, v)| (format!("IKADA_RAFT_{k}"), (*v).to_owned()));
        replication(&Values::load(None, env)?)
    }
    fn error(pairs: &[(&str, &str)]) -> String {
        format!("{:#}", load(pairs).map(|_| ()).unwrap_err())
    }

    #[test]
    fn profiles_and_own_values() {
        let lan = load(&[]).unwrap();
        assert_eq!((lan.profile.as_str(), lan.raft_profile(), lan.listen.port(), lan.learner), ("lan", Profile::Lan, 5690, false));
        assert_eq!(load(&[("PROFILE", "wan")]).unwrap().raft_profile(), Profile::Wan);
        let own = load(&[("PROFILE", "custom"), ("HEARTBEAT", "250ms"), ("ELECTION_MIN", "1s"), ("ELECTION_MAX", "2s")]).unwrap();
        assert_eq!((own.settings.heartbeat, own.settings.election.1), (Duration::from_millis(250), Duration::from_secs(2)));
        assert_eq!(own.settings.keep_entries, Settings::lan().keep_entries, "what is not given is as in lan");
        assert!(matches!(own.raft_profile(), Profile::Custom(s) if s == own.settings));
        // What does not depend on the network goes with any profile.
        let wan = load(&[("PROFILE", "wan"), ("SNAPSHOT_EVERY", "500"), ("PROPOSAL_DEADLINE", "20s")]).unwrap();
        assert_eq!((wan.settings.snapshot_every, wan.settings.election.0), (500, Settings::wan().election.0));
        // A variable that nobody filled.
        assert_eq!(load(&[("HEARTBEAT", ""), ("SNAPSHOT_EVERY", "")]).unwrap().settings, Settings::lan());
        assert!(error(&[("PROFILE", "moon")]).contains("use \"lan\", \"wan\" or \"custom\""));
        let e = error(&[("HEARTBEAT", "50ms")]);
        assert!(e.contains("raft.heartbeat (from IKADA_RAFT_HEARTBEAT)") && e.contains("custom"), "{e}");
        let e = error(&[("PROFILE", "custom"), ("ELECTION_MIN", "150ms"), ("ELECTION_MAX", "100ms"), ("KEEP_ENTRIES", "99999999999")]);
        assert!(e.starts_with("raft: electionMin 150 ms must be at least two heartbeats") && e.contains("electionMax") && e.contains("keepEntries"), "{e}");
        assert!(error(&[("SNAPSHOT_EVERY", "-1")]).contains("IKADA_RAFT_SNAPSHOT_EVERY"));
    }

    #[test]
    fn where_peers_find_this_node() {
        let r = load(&[("LISTEN", "192.0.2.7:6000")]).unwrap();
        assert_eq!(r.advertise, "192.0.2.7:6000");
        assert_eq!(load(&[("LISTEN", "[2001:db8::7]:6000")]).unwrap().advertise, "[2001:db8::7]:6000");
        assert_eq!(load(&[("LISTEN", "0.0.0.0:6000"), ("ADVERTISE", "cp-1.example.org")]).unwrap().advertise, "cp-1.example.org:6000");
        assert_eq!(load(&[("ADVERTISE", "[2001:db8::1]:7")]).unwrap().advertise, "[2001:db8::1]:7");
        let found = load(&[]).unwrap().advertise;
        assert!(found.ends_with(":5690") && !found.starts_with("0.0.0.0") && host_port(&found).is_some(), "{found}");
        assert!(error(&[("LISTEN", "everywhere")]).contains("must be IP:PORT"));
        for bad in ["cp-1:0", "cp-1:x", ":1", "a:b:c", "2001:db8::1"] {
            assert!(error(&[("ADVERTISE", bad)]).contains("must be HOST or HOST:PORT"), "{bad}");
        }
    }

    #[test]
    fn joining_needs_an_address_and_a_token_and_shows_no_token() {
        let r = load(&[("JOIN_ADDRESSES", "a:5690, b:5690"), ("JOIN_TOKEN", "ikada-join-x"), ("LEARNER", "true")]).unwrap();
        assert!(r.learner);
        let shown = serde_json::json!(r.effective());
        assert!(!shown.to_string().contains("ikada-join-x") && !format!("{r:?}").contains("ikada-join-x"), "{shown}");
        let join = r.join.unwrap();
        assert_eq!((join.addresses.as_slice(), join.token.read().unwrap().as_str()), (["a:5690".to_owned(), "b:5690".to_owned()].as_slice(), "ikada-join-x"));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "ikada-join-y\n").unwrap();
        let path = file.path().display().to_string();
        let r = load(&[("JOIN_ADDRESSES", "a:5690"), ("JOIN_TOKEN_FILE", &path)]).unwrap();
        assert_eq!(r.join.unwrap().token.read().unwrap(), "ikada-join-y");
        std::fs::write(file.path(), "x".repeat(5000)).unwrap();
        assert!(TokenSource::File(path.into()).read().unwrap_err().to_string().contains("no join token"));
        // A file that is gone harms nobody who does not join.
        assert!(load(&[("JOIN_ADDRESSES", "a:5690"), ("JOIN_TOKEN_FILE", "/nonexistent")]).is_ok());

        assert!(error(&[("JOIN_ADDRESSES", "a:5690")]).contains("ikadactl cluster join-token create"));
        assert!(error(&[("JOIN_TOKEN", "t")]).contains("no address"));
        assert!(error(&[("JOIN_ADDRESSES", "a"), ("JOIN_TOKEN", "t")]).contains("must be HOST:PORT"));
        assert!(error(&[("JOIN_ADDRESSES", "a:1"), ("JOIN_TOKEN", "t"), ("JOIN_TOKEN_FILE", "f")]).contains("give one of them"));
    }
}

//! Arguments of `cluster …`.

use crate::cli::Format;
use clap::{Args, Subcommand};
use std::{path::PathBuf, time::Duration};

/// `cluster`.
#[derive(Debug, Args)]
#[command(after_help = "Every member answers; what only the leader can do is forwarded to it. Exit codes: 0 done, 1 not done, 2 wrong arguments,
3 `status --check` found the cluster not healthy.

Examples:
  ikadactl cluster status
  ikadactl cluster join-token create > token
  ikadactl cluster snapshot save backup.ikada")]
pub struct Cluster {
    #[command(subcommand)]
    pub what: What,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, Args)]
pub struct Output {
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub output: Format,
}

/// `cluster …`.
#[derive(Debug, Subcommand)]
pub enum What {
    /// Show leader, health, members and what needs attention
    #[command(after_help = "Examples:
  ikadactl cluster status
  ikadactl cluster status -o json | jq .health.tolerates
  until ikadactl cluster status --check > /dev/null; do sleep 1; done     # between two restarts of a rolling upgrade")]
    Status {
        /// End with exit code 3 unless there is a leader and every member answers, without alarm and up to date
        #[arg(long)]
        check: bool,
        #[command(flatten)]
        output: Output,
    },
    /// List the members
    #[command(after_help = "Examples:\n  ikadactl cluster members\n  ikadactl cluster members -o yaml")]
    Members(Output),
    /// Make, list and revoke tokens with which nodes join
    JoinToken {
        #[command(subcommand)]
        what: JoinToken,
    },
    /// Remove a member for good
    #[command(after_help = "A leader hands over first. The removed node stops serving; to take it back, empty its data directory and join anew: it gets another id.
A member that is dead is removed the same way; --force is needed when too few of the others answer.

Examples:
  ikadactl cluster remove 3
  ikadactl cluster remove cp-3 --force")]
    Remove(Changed),
    /// Give a learner its vote
    #[command(after_help = "Members that want a vote get it by themselves when they have caught up and the number of voters stays odd. This is for the other cases,
e.g. two voters for a while: --force.

Examples:
  ikadactl cluster promote 4
  ikadactl cluster promote cp-2 --force")]
    Promote(Changed),
    /// Hand the leadership over
    #[command(after_help = "Before the leader's machine is serviced. A control plane that is stopped in order does it by itself.

Examples:
  ikadactl cluster transfer-leader
  ikadactl cluster transfer-leader 2")]
    TransferLeader {
        /// Id or name of the member that is to lead [default: the one that is best prepared]
        #[arg(value_name = "NODE")]
        to: Option<String>,
    },
    /// Back up and restore everything
    Snapshot {
        #[command(subcommand)]
        what: Snapshot,
    },
    /// Make a new cluster out of what one node has, when the majority is lost for good (offline)
    #[command(after_help = "The last resort: use it when more than half of the voters will never come back. The node's snapshot and whole log become a new cluster
of this node alone. Writes that the lost majority had acknowledged and this node never got are gone; the old data is kept.

  1. Stop ikada-cp on every node that is left. Choose the one with the highest applied index (`ikadactl cluster members`, or its log).
  2. On it: ikadactl cluster recover --data-dir DIR --yes, then start ikada-cp as before.
  3. On every other node: move its data directory away and start it with --join and a new token.

Examples:
  ikadactl cluster recover --data-dir /var/lib/ikada-cp                 # says what it would do
  ikadactl cluster recover --data-dir /var/lib/ikada-cp --yes")]
    Recover {
        /// Data directory of the control plane, which must be stopped
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
        #[command(flatten)]
        node: Node,
        /// Do it
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Measure round trips and disks, and propose settings of replication
    #[command(after_help = "Takes some seconds. The proposal goes into the section raft: of every node's configuration; nodes are then restarted one after another.

Examples:
  ikadactl cluster tune
  ikadactl cluster tune -o yaml")]
    Tune(Output),
}

/// A member and whether to insist.
#[derive(Debug, Args)]
pub struct Changed {
    /// Id or name of the member
    #[arg(value_name = "NODE")]
    pub node: String,
    /// Also where it is refused otherwise; the refusal says what it would cost
    #[arg(long)]
    pub force: bool,
}

/// `cluster join-token …`.
#[derive(Debug, Subcommand)]
pub enum JoinToken {
    /// Make a token; it is printed once
    #[command(after_help = "Examples:
  ikadactl cluster join-token create > /tmp/token                 # one node, within an hour
  ikadactl cluster join-token create --uses 2 --valid-for 24h
  ikadactl cluster join-token create --learner -o json")]
    Create {
        /// How long the token is valid, 1m to 720h
        #[arg(long, value_parser = ikada_cli::duration, default_value = "1h", value_name = "DURATION")]
        valid_for: Duration,
        /// How many nodes may join with it
        #[arg(long, default_value_t = 1, value_name = "N")]
        uses: u32,
        /// Who joins with it never gets a vote
        #[arg(long)]
        learner: bool,
        #[command(flatten)]
        output: Output,
    },
    /// List tokens, without their secrets
    #[command(after_help = "Example:\n  ikadactl cluster join-token list")]
    List(Output),
    /// Make a token worthless
    #[command(after_help = "Example:\n  ikadactl cluster join-token revoke 0123456789abcdef")]
    Revoke {
        /// Id of the token, as `list` shows it
        id: String,
    },
}

/// Where the node of a new directory is reached.
#[derive(Debug, Args)]
pub struct Node {
    /// HOST:PORT under which other members will reach this node; ikada-cp corrects it at its start (raft.advertise)
    #[arg(long, value_name = "HOST:PORT", default_value = "", hide_default_value = true)]
    pub advertise: String,
    /// Name of this machine, for people
    #[arg(long, default_value = "", hide_default_value = true)]
    pub name: String,
    /// File with the keys of encryption at rest, where the control plane has one (store.encryption.keyFile)
    #[arg(long, value_name = "FILE", env = "IKADA_STORE_ENCRYPTION_KEY_FILE")]
    pub encryption_key_file: Option<PathBuf>,
}

/// `cluster snapshot …`.
#[derive(Debug, Subcommand)]
pub enum Snapshot {
    /// Save a consistent copy of everything, secrets among it, from the running cluster
    #[command(after_help = "The file is written beside its place, checked, and renamed; only its owner can read it. It does not need the cluster's other files.

Examples:
  ikadactl cluster snapshot save /backup/ikada-$(date +%F).ikada
  ikadactl cluster snapshot save backup.ikada --overwrite")]
    Save {
        /// File to write
        file: PathBuf,
        /// Replace the file when it exists
        #[arg(long)]
        overwrite: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Make a new data directory from a saved copy (offline)
    #[command(after_help = "The directory must be empty or absent. It becomes a new cluster, with a new id, of one node; the others join it anew:

  1. Stop ikada-cp on every node and move the data directories away.
  2. On one: ikadactl cluster snapshot restore FILE --data-dir DIR, then start ikada-cp as before. Proxies reconnect by themselves.
  3. On every other node: start ikada-cp with --join and a new token (`ikadactl cluster join-token create`).

The directory must belong to the user that ikada-cp runs as.

Examples:
  ikadactl cluster snapshot restore backup.ikada --data-dir /var/lib/ikada-cp
  sudo -u ikada ikadactl cluster snapshot restore backup.ikada --data-dir /var/lib/ikada-cp --advertise cp-1.example.org:5690")]
    Restore {
        /// File made by `snapshot save`
        file: PathBuf,
        /// Data directory to make
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
        #[command(flatten)]
        node: Node,
        #[command(flatten)]
        output: Output,
    },
}

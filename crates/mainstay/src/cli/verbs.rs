//! Options of the verbs that change or explain a running cluster.

use super::Which;
use clap::{ArgGroup, Args, Subcommand};
use mainstay_model::NodeId;
use std::path::PathBuf;

/// `failover`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "A primary that works is better handed over with `mainstay switchover`. Take-over after a failure needs no command: this is for\n\
                  when the cluster itself holds back.\n\n\
                  Examples:\n  mainstay failover\n  mainstay failover --to db2\n  mainstay failover --accept-data-loss"
)]
pub(crate) struct Failover {
    #[command(flatten)]
    pub(crate) which: Which,
    /// The next primary [default: the replica with the most of the log]
    #[arg(long, value_name = "NODE")]
    pub(crate) to: Option<NodeId>,
    /// Go on although too few members answer: what they alone hold is lost (it is shown before it asks)
    #[arg(long)]
    pub(crate) accept_data_loss: bool,
}

/// `restart`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Replicas are restarted one after the other, each until it streams again; then the primary's role moves to one of them.\n\n\
                  Examples:\n  mainstay restart\n  mainstay restart db2\n  mainstay restart --pending\n  mainstay restart db1 --in-place"
)]
pub(crate) struct Restart {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Only these nodes' servers [default: all]
    #[arg(value_name = "NODE")]
    pub(crate) nodes: Vec<NodeId>,
    /// Only nodes with parameters that wait for a restart
    #[arg(long)]
    pub(crate) pending: bool,
    /// Restart the primary as primary instead of handing its role over: writes wait meanwhile
    #[arg(long)]
    pub(crate) in_place: bool,
    /// How many seconds each step may take
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) wait: u64,
}

/// `reinit`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "The node's data directory is moved aside, not removed, and cloned anew from the primary. A primary is refused.\n\
                  A node that a rebuilt store left behind, also a witness, joins that store by it.\n\n\
                  Examples:\n  mainstay reinit db3\n  mainstay reinit db3 --wait 7200 --yes"
)]
pub(crate) struct Reinit {
    #[command(flatten)]
    pub(crate) which: Which,
    /// The node whose copy is given up
    #[arg(value_name = "NODE")]
    pub(crate) node: NodeId,
    /// How many seconds to wait until it streams again
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(0..=604_800))]
    pub(crate) wait: u64,
}

/// `pause`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Paused, the cluster serves as it is, but nothing takes over, restarts or rejoins by itself. A primary that can not renew its\n\
                  lease is stopped all the same.\n\n\
                  Examples:\n  mainstay pause --note 'storage moves tonight'\n  mainstay resume"
)]
pub(crate) struct Pause {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Why, for whoever looks at the status
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) note: String,
}

/// `set`.
#[derive(Args, Clone, Debug)]
#[command(
    group = ArgGroup::new("whole").args(["file"]).conflicts_with("keys"),
    group = ArgGroup::new("keys").args(["assignments", "unset"]).multiple(true),
    after_help = "Keys are paths of mainstay.toml; a node's keys stand behind its name. Without any, the specification in force is printed.\n\n\
                  Examples:\n  mainstay set\n  mainstay set cluster.durability=available\n  mainstay set failover.lease_ms=4000 proxy.hold_ms=20000\n  \
                  mainstay set postgres.parameters.max_connections=300\n  \
                  mainstay set 'postgres.hba+=hostssl all all 10.0.0.0/8 scram-sha-256'\n  mainstay set --unset failover.sync_replicas\n  \
                  mainstay set --file mainstay.toml"
)]
pub(crate) struct Set {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Changes: KEY=VALUE; for lists also KEY+=LINE and KEY-=LINE
    #[arg(value_name = "KEY=VALUE")]
    pub(crate) assignments: Vec<String>,
    /// Back to the default (may be given several times)
    #[arg(long, value_name = "KEY")]
    pub(crate) unset: Vec<String>,
    /// Put this whole edited file into force
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

/// `node`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Node {
    #[command(subcommand)]
    pub(crate) verb: NodeVerb,
}

/// What to do with nodes.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum NodeVerb {
    /// Add a node to the running cluster
    Add(NodeAdd),
    /// Take a node out of the cluster for ever
    Remove(NodeRemove),
    /// A node's host or disk is gone: a new one takes its name and place
    Replace(NodeReplace),
}

/// `node add`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  mainstay node add db4 --host 10.0.0.4\n  mainstay node add w1 --host 10.0.9.1 --zone c --witness\n  \
                  mainstay node add db4 --host 10.0.0.4 --wait 600"
)]
pub(crate) struct NodeAdd {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Its name
    #[arg(value_name = "NODE")]
    pub(crate) node: NodeId,
    /// Its address
    #[arg(long, value_name = "HOST")]
    pub(crate) host: String,
    /// Its failure zone
    #[arg(long, value_name = "ZONE")]
    pub(crate) zone: Option<String>,
    /// It votes and holds no data
    #[arg(long)]
    pub(crate) witness: bool,
    /// The database server's port
    #[arg(long, value_name = "PORT", default_value_t = 5432)]
    pub(crate) port: u16,
    /// The agent's port
    #[arg(long, value_name = "PORT", default_value_t = 7420)]
    pub(crate) agent_port: u16,
    /// The health endpoints' port
    #[arg(long, value_name = "PORT", default_value_t = 7421)]
    pub(crate) health_port: u16,
    /// Where it keeps its files, an absolute path [default: /var/lib/mainstay/CLUSTER]
    #[arg(long, value_name = "PATH")]
    pub(crate) data_dir: Option<PathBuf>,
    /// How many seconds to wait until it votes and streams; 0: not at all
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=604_800))]
    pub(crate) wait: u64,
}

/// `node remove`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Its data stay on its host. The primary is refused: hand its role over first.\n\n\
                  Examples:\n  mainstay node remove db4\n  mainstay switchover --to db2 && mainstay node remove db1")]
pub(crate) struct NodeRemove {
    #[command(flatten)]
    pub(crate) which: Which,
    /// The node
    #[arg(value_name = "NODE")]
    pub(crate) node: NodeId,
    /// How many seconds to wait until the cluster no longer counts it
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub(crate) wait: u64,
}

/// `node replace`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "The old host must be off, or wiped: its vote is taken back, and its copy counts as lost.\n\n\
                  Examples:\n  mainstay node replace db3\n  mainstay node replace db3 --host 10.0.0.33 --wait 600")]
pub(crate) struct NodeReplace {
    #[command(flatten)]
    pub(crate) which: Which,
    /// The node
    #[arg(value_name = "NODE")]
    pub(crate) node: NodeId,
    /// The new host's address, if it has another
    #[arg(long, value_name = "HOST")]
    pub(crate) host: Option<String>,
    /// How many seconds to wait until it votes and streams again; 0: not at all
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=604_800))]
    pub(crate) wait: u64,
}

/// `recover`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "For when more than half of the nodes are lost for ever. The named node's data and its knowledge of the store go on, alone; the others\n\
                  that answer join it. Without --from the table of what each node knows is shown, and nothing is changed. Keep lost hosts off:\n\
                  when they come back, they stay out until `mainstay reinit NODE`.\n\n\
                  Examples:\n  mainstay recover\n  mainstay recover --from db3\n  mainstay recover --from db3 --accept-data-loss"
)]
pub(crate) struct Recover {
    #[command(flatten)]
    pub(crate) which: Which,
    /// From this node's data
    #[arg(long, value_name = "NODE")]
    pub(crate) from: Option<NodeId>,
    /// Go on although acknowledged commits may be missing (it is shown before it asks)
    #[arg(long)]
    pub(crate) accept_data_loss: bool,
    /// How many seconds to wait until writes work
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) wait: u64,
}

/// `history`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Each event has a number that it keeps (#12); `mainstay why 12` says why.\n\n\
                  Examples:\n  mainstay history\n  mainstay history --all --since 2h\n  mainstay history --since 2026-11-26 --json")]
pub(crate) struct History {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Every event, not only changes of primary
    #[arg(long)]
    pub(crate) all: bool,
    /// Only since then: 30m, 2h, 1d, a date, or a date with time
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
}

/// `why`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Without EVENT: each node's last decisions, and what holds it back now.\n\n\
                  Examples:\n  mainstay why\n  mainstay why last\n  mainstay why 12\n  mainstay why t4\n  mainstay why --node db2 --json")]
pub(crate) struct Why {
    #[command(flatten)]
    pub(crate) which: Which,
    /// The event: its number in `mainstay history`, t4 for the change to term 4, or `last`
    #[arg(value_name = "EVENT")]
    pub(crate) event: Option<String>,
    /// Only this node's reasons
    #[arg(long, value_name = "NODE")]
    pub(crate) node: Option<NodeId>,
}

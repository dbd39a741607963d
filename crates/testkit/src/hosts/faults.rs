//! What can happen to hosts, and how each is healed.

use super::cluster::HostCluster;
use super::host::Host;
use super::inject;
use super::network::cut_towards;
use super::operated;
use super::volume::{self, Freeze};
use crate::processes::Pinned;
use anyhow::{Context as _, Result};
use mainstay_model::status::Status;
use mainstay_model::{NodeId, Term};
use rustix::process::Signal;
use std::net::Ipv4Addr;
use std::process::Child;
use std::time::{Duration, Instant};

/// How long an operator's command may take.
pub(super) const OPERATOR: Duration = Duration::from_secs(60);

/// A fault. "The primary's" means that of the node that is the primary then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum HostFault {
    /// SIGKILL to the primary's main server process.
    ServerKill,
    /// SIGKILL to every process of the primary's host; they stay away until it is healed.
    HostKill,
    /// The same, but the host's services are started again at once, as after a quick restart of the machine.
    HostRestart,
    /// SIGSTOP to the primary's server and all its backends.
    ServerStop,
    /// A planned change of the primary.
    Switchover,
    /// The primary's cable is out.
    LinkCut,
    /// Nothing that the primary's host sends arrives.
    CutOut,
    /// Nothing arrives at the primary's host.
    CutIn,
    /// The primary's cable is out and in again, several times, for a fraction of a second to two.
    Flapping,
    /// A replica and the other replicas do not hear each other; both hear the primary.
    ReplicaApart,
    /// The primary and the other nodes do not hear each other; clients hear all.
    PrimaryApart,
    /// All hosts but the primary's are gone.
    HostsLost,
    /// The servers of all replicas are gone and can not be started; their agents live.
    ReplicasLost,
    /// The primary's data volume is full.
    DiskFull,
    /// The primary's data volume takes no writes and says nothing.
    DiskStall,
    /// The clock of the primary's host jumps an hour ahead, then two back.
    ClockStep,
    /// Long queries on every replica keep the log from being replayed; then the primary's server is killed.
    LongQuery,
    /// Replay is paused on every replica; then the primary's server is killed.
    ReplayPaused,
    /// A replica's server is stopped; then a planned change of the primary.
    StoppedReplica,
    /// SIGKILL to the primary's agent.
    AgentKill,
    /// SIGKILL to a replica's every process; they stay away until it is healed.
    ReplicaKill,
    /// A replica's host is gone with its disk; a new one takes its place under the old name (`mainstay node replace`).
    HostWiped,
    /// All hosts but the primary's are gone for ever, with their disks; the rest goes on alone (`mainstay recover`), then new ones take
    /// their places.
    MostWiped,
    /// All hosts but the primary's seem gone for ever and the rest goes on alone (`mainstay recover`); then they return, and stay out until
    /// they are asked in (`mainstay reinit`).
    MostReturn,
    /// Every server is restarted, replicas first (`mainstay restart`).
    RestartAll,
    /// Each replica is restarted (`mainstay restart NODE`): no write may notice.
    RestartReplicas,
    /// Each agent replaces itself (SIGHUP), as after an upgrade: no write may notice, and servers stay the same processes.
    AgentReload,
    /// The durability is changed, mode by mode, and back.
    DurabilityChange,
    /// A replica is removed, and its host added again with an empty disk.
    NodeChange,
    /// The cluster is paused and the primary's server killed; then it is resumed.
    Paused,
}

impl HostFault {
    /// What operators do, and faults whose healing needs an operator's commands.
    pub const OPERATED: [HostFault; 9] = [
        HostFault::RestartReplicas,
        HostFault::RestartAll,
        HostFault::AgentReload,
        HostFault::DurabilityChange,
        HostFault::Paused,
        HostFault::NodeChange,
        HostFault::HostWiped,
        HostFault::MostReturn,
        HostFault::MostWiped,
    ];

    /// No new connection may fail meanwhile.
    #[must_use]
    pub fn spares_connections(self) -> bool {
        matches!(self, HostFault::Switchover | HostFault::RestartAll) || self.unnoticed()
    }

    /// No write may fail, or stay without an answer.
    #[must_use]
    pub fn unnoticed(self) -> bool {
        matches!(self, HostFault::RestartReplicas | HostFault::AgentReload | HostFault::DurabilityChange)
    }

    /// Every fault that the cluster mends by itself, in the order in which they are tried.
    pub const ALL: [HostFault; 21] = [
        HostFault::ServerKill,
        HostFault::HostKill,
        HostFault::HostRestart,
        HostFault::ServerStop,
        HostFault::Switchover,
        HostFault::LinkCut,
        HostFault::CutOut,
        HostFault::CutIn,
        HostFault::Flapping,
        HostFault::ReplicaApart,
        HostFault::PrimaryApart,
        HostFault::HostsLost,
        HostFault::ReplicasLost,
        HostFault::DiskFull,
        HostFault::DiskStall,
        HostFault::ClockStep,
        HostFault::LongQuery,
        HostFault::ReplayPaused,
        HostFault::StoppedReplica,
        HostFault::AgentKill,
        HostFault::ReplicaKill,
    ];

    /// Its name on the command line and in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            HostFault::ServerKill => "server-kill",
            HostFault::HostKill => "host-kill",
            HostFault::HostRestart => "host-restart",
            HostFault::ServerStop => "server-stop",
            HostFault::Switchover => "switchover",
            HostFault::LinkCut => "link-cut",
            HostFault::CutOut => "cut-out",
            HostFault::CutIn => "cut-in",
            HostFault::Flapping => "flapping",
            HostFault::ReplicaApart => "replica-apart",
            HostFault::PrimaryApart => "primary-apart",
            HostFault::HostsLost => "hosts-lost",
            HostFault::ReplicasLost => "replicas-lost",
            HostFault::DiskFull => "disk-full",
            HostFault::DiskStall => "disk-stall",
            HostFault::ClockStep => "clock-step",
            HostFault::LongQuery => "long-query",
            HostFault::ReplayPaused => "replay-paused",
            HostFault::StoppedReplica => "stopped-replica",
            HostFault::AgentKill => "agent-kill",
            HostFault::ReplicaKill => "replica-kill",
            HostFault::HostWiped => "host-wiped",
            HostFault::MostWiped => "most-wiped",
            HostFault::MostReturn => "most-return",
            HostFault::RestartAll => "restart-all",
            HostFault::RestartReplicas => "restart-replicas",
            HostFault::AgentReload => "agent-reload",
            HostFault::DurabilityChange => "durability-change",
            HostFault::NodeChange => "node-change",
            HostFault::Paused => "paused",
        }
    }

    /// Makes it happen, and makes sure that it did.
    ///
    /// # Errors
    /// When it did not happen.
    pub async fn inject(self, cluster: &HostCluster, status: &Status) -> Result<Injected> {
        inject::inject(self, cluster, status).await
    }
}

/// A fault that happened.
pub struct Injected {
    /// Who was the primary.
    pub before: NodeId,
    /// When it happened.
    pub at: Instant,
    /// What was seen of it.
    pub evidence: String,
    /// How it is undone.
    pub heal: Heal,
}

/// What undoes a fault.
pub enum Heal {
    /// Nothing: it was over at once, or the cluster mends it.
    Nothing,
    /// Services of these nodes are started again.
    Keep(Vec<NodeId>),
    /// The cables of these hosts are put in.
    Plug(Vec<NodeId>),
    /// These addresses are reached again from these hosts (`None`: the client's).
    Paths(Vec<(Option<NodeId>, Vec<Ipv4Addr>)>),
    /// These processes go on.
    Continue(Vec<Pinned>),
    /// The volume takes writes again.
    Thaw(Freeze),
    /// The filler is removed from this node's volume.
    Empty(NodeId),
    /// The server's program is back on these nodes.
    Programs(Vec<NodeId>),
    /// These sessions end.
    Sessions(Vec<Child>),
    /// The clock of this node is right again.
    Clock(NodeId),
    /// These nodes' hosts are new ones.
    Replace(Vec<NodeId>),
    /// These nodes come back, and are asked in.
    Return(Vec<NodeId>),
    /// This node is added.
    Add(NodeId),
    /// The cluster, paused in this term, goes on.
    Resume(Term),
}

impl Heal {
    /// Undoes it, and makes sure.
    ///
    /// # Errors
    /// When it could not be undone.
    pub async fn apply(self, cluster: &HostCluster) -> Result<()> {
        match self {
            Heal::Nothing => {}
            Heal::Keep(nodes) => nodes.iter().try_for_each(|node| cluster.keep(node, true))?,
            Heal::Plug(nodes) => {
                nodes.iter().try_for_each(|node| cluster.switch.connect(cluster.host(node)?, true))?;
            }
            Heal::Paths(paths) => {
                for (from, to) in paths {
                    let from: &Host = from.as_ref().map_or(Ok(&cluster.client), |node| cluster.host(node))?;
                    cut_towards(from, &to, false)?;
                }
            }
            Heal::Continue(processes) => {
                // The guard may have ended them meanwhile.
                processes.iter().for_each(|process| drop(process.signal(Signal::CONT)));
            }
            Heal::Thaw(freeze) => freeze.thaw()?,
            Heal::Empty(node) => volume::empty(cluster.host(&node)?)?,
            Heal::Programs(nodes) => {
                nodes.iter().try_for_each(|node| inject::break_program(cluster.host(node)?, false))?;
            }
            Heal::Sessions(sessions) => {
                for mut session in sessions {
                    let _ = session.kill();
                    session.wait().context("a session's end")?;
                }
            }
            Heal::Clock(node) => inject::set_clock(cluster.host(&node)?, 0)?,
            Heal::Replace(nodes) => {
                for node in nodes {
                    cluster.keep(&node, true)?;
                    // An etcd has no vote of a node to take back: whoever comes with an empty disk is taken in.
                    if !cluster.stores.is_empty() {
                        continue;
                    }
                    // A rebuilt store may have taken it in by itself, with its empty disk.
                    match cluster.run(&["node", "replace", node.as_str(), "--yes"], OPERATOR).await {
                        Err(error) if format!("{error:#}").contains("there is nothing to replace") => {}
                        replaced => drop(replaced?),
                    }
                }
            }
            Heal::Return(nodes) => operated::return_and_reinit(cluster, &nodes).await?,
            Heal::Add(node) => operated::add(cluster, &node).await?,
            Heal::Resume(term) => operated::resume(cluster, term).await?,
        }
        Ok(())
    }
}

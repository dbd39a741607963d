//! Faults, each verified to have happened: a fault that did not happen proves nothing.

use crate::cluster::{Cluster, primary};
use crate::processes::{self, Pinned, kill_all, state, working_in};
use anyhow::{Context as _, Result, bail};
use mainstay_model::NodeId;
use mainstay_model::status::{NodeStatus, Status};
use rustix::process::Signal;
use std::path::Path;
use std::time::{Duration, Instant};

/// What can happen to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// SIGKILL to the primary's main server process.
    ServerKill,
    /// SIGKILL to every process of the primary's node at one moment.
    NodeKill,
    /// SIGSTOP to the primary's server and all its backends.
    ServerStop,
    /// SIGKILL to the primary's agent.
    AgentKill,
    /// SIGSTOP to the primary's agent for longer than the lease, then SIGCONT.
    AgentStop,
    /// SIGKILL to the primary's guard.
    GuardKill,
    /// SIGKILL to every process of the cluster at one moment, then `up`.
    ClusterKill,
    /// A planned change of the primary.
    Switchover,
}

/// What a fault must lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Another node is the primary.
    OtherPrimary,
    /// The same or another.
    AnyPrimary,
}

/// A fault that happened.
#[derive(Clone, Debug)]
pub struct Injected {
    /// Who was the primary.
    pub before: NodeId,
    /// The process number of its server then.
    pub server: u32,
    /// When it happened.
    pub at: Instant,
    /// What was seen of it.
    pub evidence: String,
}

/// How long a stopped agent stays stopped: longer than the lease of three seconds.
const STOPPED: Duration = Duration::from_secs(5);

impl Fault {
    /// Every fault.
    pub const ALL: [Fault; 8] = [
        Fault::ServerKill,
        Fault::NodeKill,
        Fault::ServerStop,
        Fault::Switchover,
        Fault::AgentKill,
        Fault::AgentStop,
        Fault::GuardKill,
        Fault::ClusterKill,
    ];

    /// Its name on the command line and in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Fault::ServerKill => "server-kill",
            Fault::NodeKill => "node-kill",
            Fault::ServerStop => "server-stop",
            Fault::AgentKill => "agent-kill",
            Fault::AgentStop => "agent-stop",
            Fault::GuardKill => "guard-kill",
            Fault::ClusterKill => "cluster-kill",
            Fault::Switchover => "switchover",
        }
    }

    /// What it must lead to. A killed agent is started again at once and adopts its server: either is right. So it is when a node's
    /// processes are all killed, since its agent is started again at once and may stand first; after a kill of everything any node may win.
    #[must_use]
    pub fn outcome(self) -> Outcome {
        match self {
            Fault::AgentKill | Fault::NodeKill | Fault::ClusterKill => Outcome::AnyPrimary,
            _ => Outcome::OtherPrimary,
        }
    }

    /// Makes it happen to the primary of `status`, and makes sure that it did.
    ///
    /// # Errors
    /// When it did not happen.
    pub async fn inject(self, cluster: &Cluster, status: &Status) -> Result<Injected> {
        let node = primary(status)?;
        let server = node.server_pid.context("the primary's server has no number")?;
        let guard = node.guard_pid.context("the primary's guard has no number")?;
        let agent = node.agent_pid.context("the primary's agent has no number")?;
        let everyone = || working_in(Path::new(&node.data_dir));
        let (at, evidence) = match self {
            Fault::ServerKill => (kill_all(&[server], &[])?, format!("server process {server} is gone")),
            Fault::AgentKill => (kill_all(&[agent], &[])?, format!("agent process {agent} is gone")),
            Fault::GuardKill => (kill_all(&[guard], &[])?, format!("guard process {guard} is gone")),
            Fault::NodeKill => {
                let others = everyone();
                let at = kill_all(&[agent, guard, server], &others)?;
                (
                    at,
                    format!(
                        "agent {agent}, guard {guard}, server {server} and {} more are gone",
                        others.len().saturating_sub(1)
                    ),
                )
            }
            Fault::ServerStop => stop_server(node)?,
            Fault::AgentStop => stop_agent(agent).await?,
            Fault::ClusterKill => kill_cluster(cluster, status).await?,
            Fault::Switchover => {
                let at = Instant::now();
                cluster.run(&["switchover", "--yes"]).await?;
                (at, "switchover has returned".to_owned())
            }
        };
        Ok(Injected { before: node.name.clone(), server, at, evidence })
    }

    /// Checks what the healed cluster shows: the outcome, and that the old primary is a replica again.
    ///
    /// # Errors
    /// When the fault did not lead where it must.
    pub fn check(self, injected: &Injected, healed: &Status) -> Result<()> {
        let now = primary(healed)?;
        if self.outcome() == Outcome::OtherPrimary && now.name == injected.before {
            bail!("{} is still the primary after {}", now.name, self.name());
        }
        let old =
            healed.nodes.iter().find(|node| node.name == injected.before).context("the old primary has vanished")?;
        let dead = !matches!(self, Fault::AgentKill);
        if dead && old.server_pid == Some(injected.server) {
            bail!("the server {} of {} lives on", injected.server, old.name);
        }
        Ok(())
    }
}

/// Stops the main process and every backend, again and again until none runs (new ones may be forked meanwhile).
fn stop_server(node: &NodeStatus) -> Result<(Instant, String)> {
    let server = node.server_pid.context("the primary's server has no number")?;
    let at = Instant::now();
    Pinned::new(server)?.signal(Signal::STOP)?;
    for _ in 0..100 {
        let running: Vec<u32> = working_in(Path::new(&node.data_dir))
            .into_iter()
            .filter(|pid| !matches!(state(*pid), None | Some('T' | 'Z')))
            .collect();
        if running.is_empty() {
            return Ok((at, format!("server {server} and its backends are stopped (state T)")));
        }
        for pid in running {
            // One that ended by itself meanwhile is as good.
            let _ = Pinned::new(pid).and_then(|process| process.signal(Signal::STOP));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    bail!("the server's processes do not stop")
}

async fn stop_agent(agent: u32) -> Result<(Instant, String)> {
    let pinned = Pinned::new(agent)?;
    let at = Instant::now();
    pinned.signal(Signal::STOP)?;
    tokio::time::sleep(Duration::from_millis(20)).await;
    if state(agent) != Some('T') {
        bail!("the agent {agent} is not stopped but {:?}", state(agent));
    }
    tokio::time::sleep(STOPPED).await;
    let still = state(agent) == Some('T');
    pinned.signal(Signal::CONT)?;
    if !still {
        bail!("the agent {agent} did not stay stopped");
    }
    Ok((at, format!("agent {agent} was stopped for {} s", STOPPED.as_secs())))
}

async fn kill_cluster(cluster: &Cluster, status: &Status) -> Result<(Instant, String)> {
    let required: Vec<u32> =
        status.nodes.iter().flat_map(|node| [node.agent_pid, node.guard_pid, node.server_pid]).flatten().collect();
    let all = processes::of_cluster(cluster.dir());
    let at = kill_all(&required, &all)?;
    // What was forked in between.
    let left = processes::of_cluster(cluster.dir());
    kill_all(&[], &left)?;
    let living =
        processes::of_cluster(cluster.dir()).into_iter().filter(|pid| !matches!(state(*pid), None | Some('Z'))).count();
    if living > 0 {
        bail!("{living} processes of the cluster live on");
    }
    cluster.up_again().await?;
    Ok((at, format!("{} processes were gone at once, then `up`", all.len())))
}

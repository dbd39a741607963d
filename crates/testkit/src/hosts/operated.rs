//! What operators do to hosts while clients write: restarts, changes of nodes and of durability, a paused cluster, a rebuilt store.

use super::cluster::HostCluster;
use super::faults::{Heal, OPERATOR};
use super::files;
use super::host::Host;
use super::inject::{Happened, kill_hosts, kill_server, pid_of, replicas, tell_agent, wipe};
use anyhow::{Context as _, Result, bail};
use mainstay_model::status::Status;
use mainstay_model::{NodeId, Term};
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// How long a restart of every server may take.
const RESTARTS: Duration = Duration::from_secs(120);
/// The primary must have run out of its lease: `recover` refuses while the store works.
const ALONE: Duration = Duration::from_secs(5);
/// For how long nodes that were left behind are watched: they must not come in by themselves.
const STAYS_OUT: Duration = Duration::from_secs(6);
/// How long an agent that was told to replace itself may take until it answers again.
const RELOADED: Duration = Duration::from_secs(20);

pub(super) async fn lose_most(cluster: &HostCluster, primary: &NodeId, with_disks: bool) -> Result<Happened> {
    let lost: Vec<(&NodeId, &Host)> = cluster.others(primary).collect();
    let (at, evidence, heal) = if with_disks {
        wipe(cluster, &lost)?
    } else {
        let (at, evidence, _) = kill_hosts(cluster, &lost, false)?;
        (at, evidence, Heal::Return(lost.iter().map(|(node, _)| (*node).clone()).collect()))
    };
    tokio::time::sleep(ALONE).await;
    let words = ["recover", "--from", primary.as_str(), "--accept-data-loss", "--yes"];
    cluster.run(&words, OPERATOR).await?;
    Ok((at, format!("{evidence}; {primary} goes on as a rebuilt cluster"), heal))
}

/// Nodes that a rebuilt store left behind come back: they stay out until they are asked in.
pub(super) async fn return_and_reinit(cluster: &HostCluster, nodes: &[NodeId]) -> Result<()> {
    nodes.iter().try_for_each(|node| cluster.keep(node, true))?;
    let begun = Instant::now();
    while begun.elapsed() < STAYS_OUT {
        let status = cluster.status().await?;
        let inside = status.nodes.iter().find(|line| nodes.contains(&line.name) && line.state == "streaming");
        if let Some(line) = inside {
            bail!("{} came in by itself after the store was rebuilt without it", line.name);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    for node in nodes {
        cluster.run(&["reinit", node.as_str(), "--yes"], RESTARTS).await?;
    }
    Ok(())
}

pub(crate) async fn restart_all(cluster: &HostCluster) -> Result<Happened> {
    let at = Instant::now();
    cluster.run(&["restart", "--yes"], RESTARTS).await?;
    Ok((at, "restart has returned".to_owned(), Heal::Nothing))
}

pub(crate) async fn restart_replicas(cluster: &HostCluster, status: &Status, primary: &NodeId) -> Result<Happened> {
    let (at, mut names) = (Instant::now(), Vec::new());
    for (node, host) in replicas(cluster, primary) {
        let before = pid_of(host, status, node, true)?;
        cluster.run(&["restart", node.as_str(), "--yes"], RESTARTS).await?;
        if pid_of(host, &cluster.healed(OPERATOR).await?, node, true)? == before {
            bail!("the server of {node} is still process {before}");
        }
        names.push(node.as_str());
    }
    Ok((at, format!("the servers of {} are new processes", names.join(", ")), Heal::Nothing))
}

/// Each agent replaces itself, as after an upgrade; servers and terms stay.
pub(super) async fn reload_agents(cluster: &HostCluster, status: &Status) -> Result<Happened> {
    let at = Instant::now();
    for (node, host) in &cluster.hosts {
        let before = starts(node, host)?;
        tell_agent(pid_of(host, status, node, false)?, Signal::HUP)?;
        let begun = Instant::now();
        while starts(node, host)? == before {
            if begun.elapsed() > RELOADED {
                bail!("the agent of {node} was not started anew by SIGHUP");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        cluster.healed(OPERATOR).await?;
    }
    let after = cluster.status().await?;
    let servers =
        |status: &Status| status.nodes.iter().map(|line| (line.name.clone(), line.server_pid)).collect::<Vec<_>>();
    if servers(&after) != servers(status) || after.cluster.term != status.cluster.term {
        bail!("agents were replaced, and with them {:?} became {:?}", servers(status), servers(&after));
    }
    Ok((at, "every agent has replaced itself; servers and term are the same".to_owned(), Heal::Nothing))
}

/// How often the agent's log says that it began. A witness has no guard to find: there it is what it said before it began anew.
fn starts(node: &NodeId, host: &Host) -> Result<usize> {
    let text = std::fs::read_to_string(host.dir().join("agent.log")).context("the agent's log")?;
    let mark = if files::is_witness(node) { "the program on disk takes over" } else { "the guard answers" };
    Ok(text.lines().filter(|line| line.contains(mark)).count())
}

pub(super) async fn change_durability(cluster: &HostCluster) -> Result<Happened> {
    let (at, own) = (Instant::now(), cluster.shape.durability.as_str());
    for mode in ["async", "available", "strict", own] {
        cluster.run(&["set", &format!("cluster.durability={mode}"), "--yes"], RESTARTS).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok((at, format!("the durability was async, available, strict, {own}"), Heal::Nothing))
}

/// A replica is taken out, and its host emptied; it is added as a new node when healed.
pub(super) async fn take_out(cluster: &HostCluster, (node, host): (&NodeId, &Host)) -> Result<Happened> {
    let at = Instant::now();
    cluster.run(&["node", "remove", node.as_str(), "--yes"], RESTARTS).await?;
    if cluster.status().await?.nodes.iter().any(|line| line.name == *node) {
        bail!("{node} was removed and is still in the status");
    }
    cluster.keep(node, false)?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    if let Err(error) = host.kill_everything()
        && !host.processes().is_empty()
    {
        // The agent of a node that was removed ends by itself, at any moment.
        return Err(error);
    }
    cluster.wipe(node)?;
    Ok((at, format!("{node} is not one of the nodes any more"), Heal::Add(node.clone())))
}

pub(super) async fn add(cluster: &HostCluster, node: &NodeId) -> Result<()> {
    cluster.keep(node, true)?;
    let address = cluster.host(node)?.address().to_string();
    cluster.run(&["node", "add", node.as_str(), "--host", &address, "--yes"], RESTARTS).await.map(drop)
}

/// In a paused cluster the primary's server dies.
pub(super) async fn kill_while_paused(
    cluster: &HostCluster,
    host: &Host,
    status: &Status,
    primary: &NodeId,
) -> Result<Happened> {
    cluster.run(&["pause", "--note", "a test", "--yes"], OPERATOR).await?;
    let (at, evidence, _) = kill_server(host, status, primary)?;
    Ok((at, format!("the cluster is paused, and {evidence}"), Heal::Resume(status.cluster.term)))
}

/// Nothing may have happened until now.
pub(super) async fn resume(cluster: &HostCluster, term: Term) -> Result<()> {
    let status = cluster.status().await?;
    if status.cluster.term != term || status.nodes.iter().any(|line| line.role == "primary" && line.healthy) {
        bail!("the cluster is paused in term {term}, and all the same in term {}: {:?}", status.cluster.term, status);
    }
    cluster.run(&["resume", "--yes"], OPERATOR).await.map(drop)
}

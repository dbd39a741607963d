//! What happens to the etcd that is the store: members that end, hang, stall or lose their disks, a majority away, a node's way there cut, an
//! older copy restored.

use super::fault::Kind;
use super::inject::{Breach, Happened, Scene};
use super::inject_disk::lose_power;
use super::inject_network::cut_port;
use super::inject_process::stopped;
use super::plan::Step;
use super::undo::Undo;
use crate::hosts::HostCluster;
use crate::hosts::etcd;
use crate::hosts::host::Host;
use crate::hosts::inject::kill_hosts;
use crate::hosts::volume::Freeze;
use anyhow::{Context as _, Result, bail};
use mainstay_model::NodeId;
use std::time::{Duration, Instant};

/// The port for etcd's clients, and the one for its members.
const CLIENTS: u16 = 2379;
const MEMBERS: u16 = 2380;
/// How long a planned change of the primary may take.
const MOVED: Duration = Duration::from_secs(40);
/// Writes go on for so long after the copy was made.
const NEWER: Duration = Duration::from_millis(1500);
/// A restored copy must be noticed, and nobody write any more, within this time. (Agents look each two seconds, and a lease may be under way.)
const NOTICED: Duration = Duration::from_secs(30);
/// How long making the store anew may take, and how often one of the nodes may be asked for it.
const RECOVERED: Duration = Duration::from_secs(90);
const ROUNDS: usize = 5;

pub(crate) async fn inject(scene: &Scene<'_>, step: &Step) -> Result<Happened> {
    let cluster = scene.cluster;
    let order = etcd::leader_first(cluster).await?;
    let (leader, followers) = order.split_first().context("the etcd has no members")?;
    let number = usize::try_from(step.lasts_ms)? % followers.len().max(1);
    let follower = followers.get(number).context("the etcd has one member only")?;
    match step.kind {
        Kind::EtcdKill => kill(cluster, &[*follower]),
        Kind::EtcdLeaderKill => kill(cluster, &[*leader]),
        Kind::EtcdLost => kill(cluster, &[*leader, *follower]),
        Kind::EtcdStop => stop(follower, "a member"),
        Kind::EtcdLeaderStop => stop(leader, "the leader"),
        Kind::EtcdStall => {
            let at = Instant::now();
            let undo = Undo::Volume(Freeze::new(leader.1)?);
            Ok(Happened { at, evidence: format!("the volume of {}, which leads the etcd, is frozen", leader.0), undo })
        }
        Kind::EtcdWiped => {
            let old = etcd::id(cluster, follower.0).await?;
            let at = etcd::empty(cluster, follower.0)?;
            let evidence = format!("{} of the etcd is gone with its disk", follower.0);
            Ok(Happened { at, evidence, undo: Undo::Member(follower.0.clone(), old) })
        }
        Kind::EtcdPowerLoss => lose_power(scene, &order),
        Kind::EtcdApart => {
            let (node, host) = scene.node(step.target)?;
            cut_port(&node, host, &order, CLIENTS, MEMBERS)
        }
        Kind::EtcdRestored => restored(cluster).await,
        _ => bail!("{} is no fault of an etcd", step.kind.name()),
    }
}

fn kill(cluster: &HostCluster, members: &[(&NodeId, &Host)]) -> Result<Happened> {
    let (at, evidence, heal) = kill_hosts(cluster, members, false)?;
    Ok(Happened { at, evidence, undo: Undo::Hosts(heal) })
}

fn stop((name, host): &(&NodeId, &Host), what: &str) -> Result<Happened> {
    let at = Instant::now();
    let all = host.processes();
    let stopped = all.iter().map(|pid| stopped(*pid)).collect::<Result<Vec<_>>>()?;
    if stopped.is_empty() {
        bail!("no etcd runs on {name}");
    }
    Ok(Happened { at, evidence: format!("{what} of the etcd, {name}, is stopped"), undo: Undo::Continue(stopped) })
}

/// A copy is made, the primary changes, clients write; then the etcd is what the copy is. All nodes must notice it, say so, and let nobody
/// write.
async fn restored(cluster: &HostCluster) -> Result<Happened> {
    let copy = cluster.dir().join("etcd-copy.db");
    etcd::save(cluster, &copy).await?;
    cluster
        .run(&["switchover", "--yes"], MOVED)
        .await
        .context("the copy was to be older than a change of the primary")?;
    tokio::time::sleep(NEWER).await;
    let at = Instant::now();
    let ended = etcd::restore(cluster, &copy).await?;
    let begun = Instant::now();
    loop {
        let status = cluster.status().await?;
        let named = status.problems.iter().find(|problem| problem.name == "store-distrusted");
        if let (Some(problem), false) = (named, status.cluster.writable) {
            let evidence =
                format!("{ended} processes of the etcd ended and began with an older copy: {}", problem.evidence);
            return Ok(Happened { at, evidence: evidence.chars().take(300).collect(), undo: Undo::Recover });
        }
        if begun.elapsed() > NOTICED {
            let names: Vec<&str> = status.problems.iter().map(|problem| problem.name.as_str()).collect();
            let writable = status.cluster.writable;
            let text = format!("an etcd that was restored is believed: writable {writable}, problems {names:?}");
            return Err(Breach(text).into());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// As a person does it: one node after the other is asked, without accepting any loss. Whoever does not have most refuses.
pub(crate) async fn recover(cluster: &HostCluster) -> Result<()> {
    let mut last = None;
    for _ in 0..ROUNDS {
        for (node, _) in cluster.data_nodes() {
            match cluster.run(&["recover", "--from", node.as_str(), "--yes", "--wait", "60"], RECOVERED).await {
                Ok(_) => return Ok(()),
                Err(error) => last = Some(error),
            }
        }
        // Servers may still be ending: how far each has the log is known a moment later.
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let last = last.context("there is no node to recover from")?;
    Err(Breach(format!("no node is taken to recover from: {last:#}")).into())
}

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
use crate::ledger;
use anyhow::{Context as _, Result, bail};
use mainstay_model::NodeId;
use mainstay_model::status::Problem;
use std::sync::atomic::Ordering;
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
/// A write that is not acknowledged within this time is not.
const WRITE_WAITS: Duration = Duration::from_secs(2);

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

/// A copy is made, the primary changes, clients write; then the etcd is what the copy is. Every node with data must notice it by itself and say so,
/// and no server take a write.
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
        let (named, trusting) = distrust(&status.problems, cluster.data_nodes().map(|(node, _)| node));
        let writable = status.cluster.writable;
        if let (Some(first), true, false) = (named.first(), trusting.is_empty(), writable)
            && write_taken(cluster).await?.is_none()
        {
            let evidence = format!(
                "{ended} processes of the etcd ended and began with an older copy, which all {} nodes with data say, and no server takes a write: {first}",
                named.len()
            );
            return Ok(Happened { at, evidence: evidence.chars().take(300).collect(), undo: Undo::Recover });
        }
        if begun.elapsed() > NOTICED {
            let taken = write_taken(cluster).await?;
            let text = format!(
                "an etcd that was restored is believed: by {trusting:?}, writable {writable}, a write is acknowledged by {taken:?}; those that do not believe it say {named:?}"
            );
            return Err(Breach(text).into());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// What nodes say of a store that they do not believe, and the nodes of these that do not say so.
fn distrust<'a>(problems: &'a [Problem], nodes: impl Iterator<Item = &'a NodeId>) -> (Vec<&'a str>, Vec<&'a NodeId>) {
    let named: Vec<&str> = problems
        .iter()
        .filter(|problem| problem.name == "store-distrusted")
        .map(|problem| &*problem.evidence)
        .collect();
    let says = |node: &NodeId| named.iter().any(|said| said.split(':').next() == Some(node.as_str()));
    let trusting = nodes.filter(|node| !says(node)).collect();
    (named, trusting)
}

/// Which node's own server acknowledges a write, past the proxy, if one does.
async fn write_taken(cluster: &HostCluster) -> Result<Option<NodeId>> {
    // The samplers' table; their runs have other numbers.
    const WRITE: &str =
        "INSERT INTO mainstay_samples (run, node, sequence, timeline) VALUES (0, 'etcd-restored', 0, 0)";
    let inside = cluster.client.inside()?;
    for (node, host) in cluster.data_nodes() {
        let config = ledger::config(&cluster.server_uri(host))?;
        let acknowledged = inside.run(async move {
            let asked = async {
                let (session, warnings) = ledger::connect(&config).await.ok()?;
                session.execute(WRITE, &[]).await.ok()?;
                // A wait that was cancelled promises nothing.
                (warnings.load(Ordering::SeqCst) == 0).then_some(())
            };
            matches!(tokio::time::timeout(WRITE_WAITS, asked).await, Ok(Some(())))
        });
        if acknowledged.await? {
            return Ok(Some(node.clone()));
        }
    }
    Ok(None)
}

/// As a person does it: one node after the other is asked, without accepting any loss. Whoever does not have most refuses. Until then nobody has
/// gone back to taking writes.
pub(crate) async fn recover(cluster: &HostCluster) -> Result<()> {
    if let Some(node) = write_taken(cluster).await? {
        return Err(Breach(format!("the server of {node} acknowledges a write before anybody has said recover")).into());
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_says_nothing_believes_what_the_others_do_not() {
        let nodes = ["db1", "db10", "db2"].map(|name| NodeId::new(name).unwrap());
        let said = |name: &str, evidence: &str| Problem {
            name: name.into(),
            severity: "critical".into(),
            evidence: evidence.into(),
            hint: String::new(),
            since: None,
        };
        let mut problems = vec![
            said("store-distrusted", "db10: it went back"),
            said("node-unreachable", "db2: nothing"),
            said("store-distrusted", "db1: it went back"),
        ];
        let (named, trusting) = distrust(&problems, nodes.iter());
        assert_eq!((named.len(), trusting), (2, vec![&nodes[2]]));
        problems.remove(2);
        assert_eq!(distrust(&problems, nodes.iter()).1, [&nodes[0], &nodes[2]]);
    }
}

//! Makes a step of a plan happen, and makes sure that it did.

use super::fault::Kind;
use super::plan::{Step, Target};
use super::undo::Undo;
use super::{
    inject_database as database, inject_disk as disk, inject_etcd as etcd, inject_log as log,
    inject_network as network, inject_process as process,
};
use crate::hosts::host::Host;
pub(crate) use crate::hosts::host::program;
use crate::hosts::inside::Inside;
use crate::hosts::{HostCluster, inject as hosts, versions};
use anyhow::{Context as _, Result, bail};
use mainstay_model::NodeId;
use mainstay_model::status::Status;
use std::time::{Duration, Instant};

/// How long what an operator asks for may take in the middle of other faults.
const OPERATOR: Duration = Duration::from_secs(60);
/// How long the process that a fault is for may take to be there: another fault may have ended it a moment ago.
const THERE: Duration = Duration::from_secs(15);

/// What happened: when, what was seen of it, and what undoes it.
pub(crate) struct Happened {
    pub(crate) at: Instant,
    pub(crate) evidence: String,
    pub(crate) undo: Undo,
}

/// The fault happened, and the cluster did with it what it must not. Every other error says that it did not happen.
#[derive(Debug)]
pub(crate) struct Breach(pub(crate) String);

impl std::fmt::Display for Breach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Breach {}

/// Where faults of a round happen.
pub(crate) struct Scene<'a> {
    pub(crate) cluster: &'a HostCluster,
    pub(crate) client: &'a Inside,
    /// As the round began.
    pub(crate) status: Status,
    pub(crate) primary: NodeId,
    pub(crate) replicas: Vec<NodeId>,
}

impl<'a> Scene<'a> {
    pub(crate) fn new(cluster: &'a HostCluster, client: &'a Inside, status: Status) -> Result<Scene<'a>> {
        let primary = cluster.primary(&status)?.0;
        let replicas = hosts::replicas(cluster, &primary).map(|(name, _)| name.clone()).collect();
        Ok(Scene { cluster, client, status, primary, replicas })
    }

    /// Who a target is, and its host.
    pub(crate) fn node(&self, target: Target) -> Result<(NodeId, &'a Host)> {
        let node = match target {
            Target::Primary => &self.primary,
            Target::Etcd | Target::NextHost => bail!("{target} is no node that is known before"),
            Target::Replica(number) => {
                self.replicas.get(usize::from(number) % self.replicas.len().max(1)).context("there is no replica")?
            }
        };
        Ok((node.clone(), self.cluster.host(node)?))
    }

    pub(crate) fn others(&self, node: &NodeId) -> Vec<(&'a NodeId, &'a Host)> {
        self.cluster.hosts.iter().filter(|(name, _)| *name != node).collect()
    }
}

/// Looks until something is there.
pub(crate) async fn there<T>(what: &str, look: impl Fn() -> Option<T>) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if begun.elapsed() > THERE {
            bail!("{what} is not there after {} s", THERE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) async fn inject(scene: &Scene<'_>, step: &Step) -> Result<Happened> {
    if let Some(fault) = step.kind.whole() {
        let happened = hosts::inject(fault, scene.cluster, &scene.status).await?;
        return Ok(Happened { at: happened.at, evidence: happened.evidence, undo: Undo::Hosts(happened.heal) });
    }
    if step.kind.of_etcd() {
        return etcd::inject(scene, step).await;
    }
    if step.kind.of_versions() {
        let (at, evidence) = versions::change_next(scene.cluster, step.kind == Kind::ProgramNew).await?;
        return Ok(Happened { at, evidence, undo: Undo::Nothing });
    }
    let (node, host) = scene.node(step.target)?;
    match step.kind {
        Kind::Switchover => command(scene, &["switchover", "--yes"]).await,
        Kind::RestartNode => command(scene, &["restart", node.as_str(), "--yes"]).await,
        Kind::Reinit => reinit(scene, &node, host).await,
        Kind::LogFull => log::full(scene, &node, host).await,
        Kind::ArchiveHangs => log::repository_hangs(scene).await,
        Kind::SettingChange => {
            let value = format!("postgres.parameters.work_mem={}MB", 4 + step.lasts_ms % 13);
            command(scene, &["set", &value, "--yes"]).await
        }
        _ => match step.kind.class() {
            super::Class::Network => network::inject(scene, step.kind, &node, host).await,
            super::Class::Disk => disk::inject(scene, step.kind, &node, host).await,
            super::Class::Database => database::inject(scene, step.kind, &node, host).await,
            super::Class::Process | super::Class::Store | super::Class::Time | super::Class::Operator => {
                process::inject(scene, step.kind, &node, host).await
            }
        },
    }
}

/// In the middle of other faults a command may be refused, or not be answered: that it was given is what happened.
async fn command(scene: &Scene<'_>, words: &[&str]) -> Result<Happened> {
    let at = Instant::now();
    let answer = match scene.cluster.run(words, OPERATOR).await {
        Ok(_) => "has returned".to_owned(),
        Err(error) => {
            let text = format!("{error:#}");
            let said = text.lines().last().unwrap_or_default();
            format!("was refused: {}", said.chars().take(200).collect::<String>())
        }
    };
    Ok(Happened { at, evidence: format!("`{}` {answer}", words.join(" ")), undo: Undo::Nothing })
}

/// A replica is thrown away and cloned anew: its copy gets another number.
async fn reinit(scene: &Scene<'_>, node: &NodeId, host: &Host) -> Result<Happened> {
    let before = server(host).context("the replica has no server")?;
    let at = Instant::now();
    scene.cluster.run(&["reinit", node.as_str(), "--yes"], OPERATOR * 2).await?;
    let after = there("the new server", || server(host).filter(|pid| *pid != before)).await?;
    Ok(Happened {
        at,
        evidence: format!("the server of {node} is process {after} instead of {before}"),
        undo: Undo::Nothing,
    })
}

/// The main process of a host's server, by its number outside.
pub(crate) fn server(host: &Host) -> Option<u32> {
    let file = host.path(&format!("{}/postmaster.pid", crate::hosts::files::data_dir()));
    let inner: u32 = std::fs::read_to_string(file).ok()?.lines().next()?.trim().parse().ok()?;
    host.outer(inner).ok()
}

//! The etcd that is a cluster's store: three members, on hosts and volumes of their own, so that each can be lost without a node.
//!
//! The programs are those of the packages `etcd-server` and `etcd-client`, or of the directory that `MAINSTAY_TEST_ETCD` names.

use super::cluster::HostCluster;
use super::command::output_later;
use super::host::{Host, VOLUME};
use anyhow::{Context as _, Result, bail};
use mainstay_model::NodeId;
use mainstay_model::spec::{Store, StoreKind};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Members.
const MEMBERS: u8 = 3;
/// Size of a member's volume: etcd takes 64 MB twice for its log at once. The image is sparse.
pub(crate) const VOLUME_MB: u32 = 400;
/// The longest that one command to etcd may take.
const COMMAND: Duration = Duration::from_secs(8);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// Every member and its address.
pub(crate) fn members() -> BTreeMap<NodeId, Ipv4Addr> {
    let named =
        (1..=MEMBERS).map(|number| (NodeId::new(format!("etcd{number}")), Ipv4Addr::new(10, 77, 0, 40 + number)));
    named.filter_map(|(name, address)| Some((name.ok()?, address))).collect()
}

/// What the cluster's file says of its store.
pub(crate) fn store(kind: StoreKind) -> Store {
    let endpoints = match kind {
        StoreKind::Raft => Vec::new(),
        StoreKind::Etcd => members().values().map(|address| client_url(*address)).collect(),
    };
    Store { kind, endpoints, ..Store::default() }
}

fn client_url(address: Ipv4Addr) -> String {
    format!("http://{address}:2379")
}

fn peer_url(address: Ipv4Addr) -> String {
    format!("http://{address}:2380")
}

/// Every member as etcd wants to be told of it.
fn initial_cluster() -> String {
    let named = members().into_iter().map(|(name, address)| format!("{name}={}", peer_url(address)));
    named.collect::<Vec<_>>().join(",")
}

/// Where a member's data lie, inside its host.
fn data_dir() -> String {
    format!("{VOLUME}/etcd")
}

fn program(name: &str) -> Result<String> {
    let mut dirs: Vec<PathBuf> = std::env::var_os("MAINSTAY_TEST_ETCD").into_iter().map(PathBuf::from).collect();
    dirs.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let found = dirs.iter().map(|dir| dir.join(name)).find(|path| path.is_file());
    let found = found.with_context(|| {
        format!("{name} is not installed: the packages etcd-server and etcd-client bring it, or name its directory in MAINSTAY_TEST_ETCD")
    })?;
    Ok(found.display().to_string())
}

/// Starts a member and keeps it running, from what it kept if it has something. `state`: it begins with all others (`new`), or comes to those
/// that are there (`existing`).
pub(crate) fn serve(host: &Host, state: &str) -> Result<()> {
    let (client, peer, cluster) = (client_url(host.address()), peer_url(host.address()), initial_cluster());
    let (program, data) = (program("etcd")?, data_dir());
    let words = [
        [program.as_str(), "--logger=zap"],
        ["--name", host.name()],
        ["--data-dir", &data],
        ["--listen-client-urls", &client],
        ["--advertise-client-urls", &client],
        ["--listen-peer-urls", &peer],
        ["--initial-advertise-peer-urls", &peer],
        ["--initial-cluster", &cluster],
        ["--initial-cluster-state", state],
    ];
    host.serve("etcd", &words.concat(), &[])
}

/// Runs `etcdctl` on the clients' host, for this member only.
async fn ctl(cluster: &HostCluster, member: Ipv4Addr, words: &[&str]) -> Result<String> {
    let (program, endpoint) = (program("etcdctl")?, client_url(member));
    let mut all =
        vec!["env", "ETCDCTL_API=3", &program, "--dial-timeout=2s", "--command-timeout=5s", "--endpoints", &endpoint];
    all.extend_from_slice(words);
    let command = output_later(cluster.client.command(&all));
    tokio::time::timeout(COMMAND, command).await.with_context(|| format!("etcdctl {words:?}: no end"))?
}

/// What a member says of itself.
struct Standing {
    id: u64,
    leader: u64,
}

async fn standing(cluster: &HostCluster, member: Ipv4Addr) -> Result<Standing> {
    #[derive(Deserialize)]
    struct Line {
        #[serde(rename = "Status")]
        status: Status,
    }
    #[derive(Deserialize)]
    struct Status {
        header: Header,
        #[serde(default)]
        leader: u64,
    }
    #[derive(Deserialize)]
    struct Header {
        member_id: u64,
    }
    let said = ctl(cluster, member, &["endpoint", "status", "--write-out=json"]).await?;
    let lines: Vec<Line> = serde_json::from_str(said.trim()).with_context(|| format!("not a status: {said}"))?;
    let line = lines.into_iter().next().context("etcd tells nothing of itself")?;
    Ok(Standing { id: line.status.header.member_id, leader: line.status.leader })
}

/// The leader first, then the others.
///
/// # Errors
/// When there is none.
pub(crate) async fn leader_first(cluster: &HostCluster) -> Result<Vec<(&NodeId, &Host)>> {
    let mut order: Vec<(&NodeId, &Host)> = cluster.stores.iter().collect();
    for place in 0..order.len() {
        let Some((_, host)) = order.get(place) else { break };
        if let Ok(standing) = standing(cluster, host.address()).await
            && standing.id == standing.leader
        {
            order.swap(0, place);
            return Ok(order);
        }
    }
    bail!("no member of the etcd leads it")
}

/// Waits until every member takes part. Without an etcd there is nothing to wait for.
///
/// # Errors
/// When it is not so in time.
pub(crate) async fn whole(cluster: &HostCluster, patience: Duration) -> Result<()> {
    let begun = Instant::now();
    for (name, host) in &cluster.stores {
        // It reads through the leader: a member that is behind, or alone, does not pass.
        while let Err(error) = ctl(cluster, host.address(), &["endpoint", "health"]).await {
            if begun.elapsed() > patience {
                return Err(error.context(format!("{name} does not take part after {} s", patience.as_secs())));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(())
}

/// Saves a copy of what the etcd holds.
///
/// # Errors
/// When it can not be had.
pub async fn save(cluster: &HostCluster, copy: &Path) -> Result<()> {
    let (_, host) = leader_first(cluster).await?.into_iter().next().context("there is no member")?;
    // A copy of an earlier round.
    let _ = std::fs::remove_file(copy);
    ctl(cluster, host.address(), &["snapshot", "save", &copy.display().to_string()]).await.map(drop)
}

/// Ends every member and starts it from the copy, as a person does who restores it. The members' and the cluster's numbers stay the same.
///
/// # Errors
/// When something lives on, or the copy can not be read.
pub async fn restore(cluster: &HostCluster, copy: &Path) -> Result<usize> {
    let mut ended = 0;
    for name in cluster.stores.keys() {
        cluster.keep(name, false)?;
    }
    for host in cluster.stores.values() {
        ended += host.kill_everything()?.1;
    }
    let tool = restoring()?;
    let (copy, data, all) = (copy.display().to_string(), data_dir(), initial_cluster());
    for (name, host) in &cluster.stores {
        host.run(&["rm", "-rf", &data]).await?;
        let peer = peer_url(host.address());
        let words =
            ["env", "ETCDCTL_API=3", &tool, "snapshot", "restore", &copy, "--name", name.as_str(), "--data-dir", &data];
        let more = ["--initial-cluster", &all, "--initial-advertise-peer-urls", &peer];
        host.run(&[&words[..], &more[..]].concat()).await?;
    }
    for name in cluster.stores.keys() {
        cluster.keep(name, true)?;
    }
    Ok(ended)
}

/// Later versions have a program of its own for it.
fn restoring() -> Result<String> {
    program("etcdutl").or_else(|_| program("etcdctl"))
}

/// A member's disk is lost: its host is empty.
///
/// # Errors
/// When something lives on there.
pub(crate) fn empty(cluster: &HostCluster, name: &NodeId) -> Result<Instant> {
    let host = cluster.host(name)?;
    cluster.keep(name, false)?;
    let (at, _) = host.kill_everything()?;
    host.wipe(VOLUME_MB)?;
    Ok(at)
}

/// A new member takes the place of one that was lost, as etcd's documentation says: the old one is removed, the new one is added, then started.
///
/// # Errors
/// When the others do not take it.
pub(crate) async fn replace(cluster: &HostCluster, name: &NodeId, old: u64) -> Result<()> {
    let host = cluster.host(name)?;
    let other = cluster.stores.iter().find(|(other, _)| *other != name).context("no member is left")?.1.address();
    ctl(cluster, other, &["member", "remove", &format!("{old:x}")]).await?;
    let (peer, begun) = (format!("--peer-urls={}", peer_url(host.address())), Instant::now());
    // Refused as long as the others have not been connected for a while.
    while let Err(error) = ctl(cluster, other, &["member", "add", name.as_str(), &peer]).await {
        if begun.elapsed() > COMMAND * 3 {
            return Err(error);
        }
        tokio::time::sleep(PAUSE * 2).await;
    }
    serve(host, "existing")?;
    cluster.keep(name, true)
}

/// The number of a member.
///
/// # Errors
/// When it does not answer.
pub(crate) async fn id(cluster: &HostCluster, name: &NodeId) -> Result<u64> {
    Ok(standing(cluster, cluster.host(name)?.address()).await?.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_three_and_the_file_names_them_all() {
        let spec = store(StoreKind::Etcd);
        assert_eq!(spec.endpoints, ["http://10.77.0.41:2379", "http://10.77.0.42:2379", "http://10.77.0.43:2379"]);
        assert!(store(StoreKind::Raft).endpoints.is_empty());
        assert_eq!(initial_cluster().matches("=http://").count(), 3);
    }
}

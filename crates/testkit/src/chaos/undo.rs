//! What undoes a fault of a round.

use super::cgroup::Frozen;
use crate::hosts::HostCluster;
use crate::hosts::etcd;
use crate::hosts::faults::Heal;
use crate::hosts::host::VOLUME;
use crate::hosts::volume::{Freeze, Stutter};
use crate::processes::Pinned;
use anyhow::{Context as _, Result};
use mainstay_model::NodeId;
use rustix::process::Signal;

/// What undoes a fault.
pub(crate) enum Undo {
    /// Nothing: it was over at once, or the cluster mends it.
    Nothing,
    /// As the suite `hosts` does it.
    Hosts(Heal),
    /// These processes go on; those that ended meanwhile do not.
    Continue(Vec<Pinned>),
    /// The host's processes go on.
    Thaw(Frozen),
    /// The volume takes writes again.
    Volume(Freeze),
    /// The volume takes writes without pauses again.
    Steady(Stutter),
    /// These lines of `ip` on this host.
    Ip(NodeId, String),
    /// The host's cable is fast again.
    Fast(NodeId),
    /// The volume is mounted anew and the host's services start.
    Remount(Vec<NodeId>),
    /// A new member takes the place of the one of this number, whose disk was lost.
    Member(NodeId, u64),
    /// The log lies on the node's volume again.
    Log(NodeId),
    /// The repository answers again, and what was written meanwhile is archived.
    Repository(super::inject_log::Hanging),
    /// The store is made anew in the etcd, from the node that has most.
    Recover,
    /// Connections end.
    Connections(Vec<tokio_postgres::Client>),
}

/// Takes a host's volume off and mounts it again: what was not on the disk is gone. Nothing may run there.
pub(crate) fn mount_anew(cluster: &HostCluster, node: &NodeId) -> Result<()> {
    let host = cluster.host(node)?;
    host.run_now(&["umount", VOLUME])?;
    let image = host.dir().join("data.img").display().to_string();
    host.run_now(&["mount", "-o", "loop", &image, VOLUME]).map(drop)
}

impl Undo {
    /// Undoes it.
    ///
    /// # Errors
    /// When it could not be undone.
    pub(crate) async fn apply(self, cluster: &HostCluster) -> Result<()> {
        match self {
            Undo::Nothing => {}
            Undo::Hosts(heal) => heal.apply(cluster).await?,
            // Whoever has ended meanwhile needs it no more.
            Undo::Continue(processes) => processes.iter().for_each(|process| drop(process.signal(Signal::CONT))),
            Undo::Thaw(frozen) => frozen.thaw()?,
            Undo::Volume(freeze) => freeze.thaw()?,
            Undo::Steady(stutter) => stutter.end()?,
            Undo::Ip(node, lines) => cluster.host(&node)?.ip(&lines)?,
            Undo::Fast(node) => {
                cluster.host(&node)?.run_now(&["tc", "qdisc", "del", "dev", "eth0", "root"]).context("a slow link")?;
            }
            Undo::Remount(nodes) => {
                for node in nodes {
                    let host = cluster.host(&node)?;
                    cluster.keep(&node, false)?;
                    std::thread::sleep(std::time::Duration::from_millis(50));
                    if !host.processes().is_empty() {
                        host.kill_everything()?;
                    }
                    mount_anew(cluster, &node)?;
                    cluster.keep(&node, true)?;
                }
            }
            Undo::Member(name, old) => etcd::replace(cluster, &name, old).await?,
            Undo::Log(node) => super::inject_log::put_back(cluster, &node).await?,
            Undo::Repository(hanging) => super::inject_log::answers_again(cluster, hanging).await?,
            Undo::Recover => super::inject_etcd::recover(cluster).await?,
            Undo::Connections(connections) => drop(connections),
        }
        Ok(())
    }
}

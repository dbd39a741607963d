//! Data volumes that are full, stalled, slow, dead, or without power.

use super::cgroup::Frozen;
use super::fault::Kind;
use super::inject::{Happened, Scene, program, there};
use super::undo::{Undo, mount_anew};
use crate::hosts::faults::Heal;
use crate::hosts::host::{Host, VOLUME};
use crate::hosts::volume::{self, Freeze, Stutter};
use anyhow::{Result, bail};
use mainstay_model::NodeId;
use std::time::Instant;

/// Ends a file system as a dead disk does (`FS_IOC_SHUTDOWN`, without writing anything more): what was not synced is lost, every later write and
/// sync is an error. A sync that is under way at that moment may say that it succeeded and have written nothing (one in five did, on ext4 of
/// Linux 6.18): no disk does that, so nothing may be syncing.
const SHUTDOWN: &str =
    "open(my $d, '<', $ARGV[0]) or die; my $how = pack('L', 2); ioctl($d, 0x8004587d, $how) or die \"ioctl: $!\";";

pub(crate) async fn inject(scene: &Scene<'_>, kind: Kind, node: &NodeId, host: &Host) -> Result<Happened> {
    let at = Instant::now();
    match kind {
        Kind::DiskFull => {
            let evidence = volume::fill(host)?;
            Ok(Happened { at, evidence, undo: Undo::Hosts(Heal::Empty(node.clone())) })
        }
        Kind::DiskStall => {
            let undo = Undo::Volume(Freeze::new(host)?);
            Ok(Happened { at, evidence: format!("the volume of {node} is frozen"), undo })
        }
        Kind::DiskSlow => {
            let undo = Undo::Steady(Stutter::new(host)?);
            Ok(Happened { at, evidence: format!("the volume of {node} is frozen half of the time"), undo })
        }
        Kind::DiskDies => {
            let still = quiet(host);
            end_file_system(host)?;
            drop(still);
            let undo = Undo::Remount(vec![node.clone()]);
            Ok(Happened { at, evidence: format!("every write on the volume of {node} is an error"), undo })
        }
        Kind::PowerLoss | Kind::EveryPowerLoss => {
            let one = [(node, host)];
            let every: Vec<(&NodeId, &Host)> = scene.cluster.hosts.iter().collect();
            let hosts = if kind == Kind::PowerLoss { &one[..] } else { &every[..] };
            for (_, host) in hosts {
                there("an agent", || program(host, "agent")).await?;
            }
            lose_power(scene, hosts)
        }
        _ => bail!("{} is no fault of disks", kind.name()),
    }
}

fn end_file_system(host: &Host) -> Result<()> {
    host.run_now(&["perl", "-e", SHUTDOWN, VOLUME])?;
    let probe = format!("{VOLUME}/alive");
    if host.run_now(&["sh", "-c", &format!("echo x > {probe} && sync {probe}")]).is_ok() {
        bail!("the volume of {} still takes writes", host.name());
    }
    Ok(())
}

/// Freezes a host until this is dropped. One that can not be frozen has a process that waits for a disk which does not answer: that
/// one does not come to an end before it is killed.
fn quiet(host: &Host) -> Option<Frozen> {
    Frozen::new(host).ok().map(|(frozen, _)| frozen)
}

/// First nothing moves any more on the hosts; then the file systems end, so that nothing more reaches the disks; then every process; then
/// the volumes are mounted anew, without what had not been synced. Services start when it is healed.
pub(crate) fn lose_power(scene: &Scene<'_>, hosts: &[(&NodeId, &Host)]) -> Result<Happened> {
    let at = Instant::now();
    let mut still = Vec::new();
    for (node, host) in hosts {
        scene.cluster.keep(node, false)?;
        still.push(quiet(host));
    }
    for (_, host) in hosts {
        end_file_system(host)?;
    }
    let mut nodes = Vec::new();
    for ((node, host), still) in hosts.iter().zip(still) {
        host.kill_everything()?;
        drop(still);
        mount_anew(scene.cluster, node)?;
        nodes.push((*node).clone());
    }
    let names: Vec<&str> = nodes.iter().map(NodeId::as_str).collect();
    let evidence = format!("{} lost power: what was not synced is gone", names.join(", "));
    Ok(Happened { at, evidence, undo: Undo::Hosts(Heal::Keep(nodes)) })
}

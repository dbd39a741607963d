//! What this host shows of itself, if one of the cluster's nodes is on it. Nothing is asked of other hosts.

use super::engine;
use mainstay_model::spec::{Node, Spec};
use mainstay_plan::Machine;
use std::net::{ToSocketAddrs as _, UdpSocket};
use std::path::Path;

/// Is this address one of this host's? Binding to it tells, without a packet.
pub(crate) fn is_here(host: &str) -> bool {
    let found = (host, 0).to_socket_addrs().map(|all| all.take(8).collect::<Vec<_>>()).unwrap_or_default();
    found.iter().any(|address| UdpSocket::bind(address).is_ok())
}

/// The nodes that are on this host.
pub(crate) fn nodes_here(spec: &Spec) -> Vec<&Node> {
    spec.nodes.iter().filter(|node| is_here(&node.host)).collect()
}

/// What this host shows; `None` when none of the nodes that hold data is on it. Several nodes on one host share it.
pub(crate) fn measure(spec: &Spec, today: &str) -> Option<Machine> {
    let here: Vec<&Node> = nodes_here(spec).into_iter().filter(|node| !node.witness).collect();
    let node = here.first()?;
    let share = u64::try_from(here.len()).unwrap_or(1).max(1);
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let shared = if share > 1 { format!(", shared by {share} nodes") } else { String::new() };
    Some(Machine {
        node: node.name.clone(),
        cores: (cores / share).max(1),
        memory_gb: (memory_kb()? / share / 1024 + 512) / 1024,
        disk_gb: disk_bytes(&spec.node_dir(node))?.0 / share / (1 << 30),
        postgres: engine::find(spec.postgres.bin_dir.as_deref()).ok().map(|programs| u64::from(programs.major)),
        on: format!("the host of {}, {today}{shared}", node.name),
    })
    .filter(|machine| machine.memory_gb > 0 && machine.disk_gb > 0)
}

/// All memory, in kilobytes.
pub(crate) fn memory_kb() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Size and free space of the volume on which this directory is, or will be.
pub(crate) fn disk_bytes(dir: &Path) -> Option<(u64, u64)> {
    let there = dir.ancestors().find(|dir| dir.is_dir())?;
    let found = rustix::fs::statvfs(there).ok()?;
    Some((found.f_blocks.saturating_mul(found.f_frsize), found.f_bavail.saturating_mul(found.f_frsize)))
}

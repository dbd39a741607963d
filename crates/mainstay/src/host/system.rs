//! The operating system: kernel, library, who keeps the agent and the clock.

use super::places::Owners;
use super::{said, text};
use crate::local::{machine, processes, user};
use crate::target::Target;
use mainstay_model::spec::Node;
use mainstay_plan::doctor::facts::{Keeper, Reading, System};
use std::path::Path;

const UNIT: &str = "mainstay-agent.service";
/// Programs that keep the wall clock.
const TIME_SERVICES: [&str; 6] = ["chronyd", "ntpd", "systemd-timesyn", "ptp4l", "phc2sys", "openntpd"];

pub(super) async fn read(target: &Target, node: &Node, owners: &Owners, agent: Option<u32>) -> System {
    // Whose cluster it is sees all of it; where there is none yet, root should look.
    let not_root = !user::am_root() && (owners.agent_is_other() || !target.spec.node_dir(node).exists());
    System {
        not_root: not_root.then(|| user::me().name),
        kernel: text("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned()),
        libc: mainstay_ports::library::version(),
        address_here: machine::is_here(&node.host),
        keeper: keeper(target).await,
        clock_kept: clock_kept().await,
        open_files: open_files(agent).await,
    }
}

async fn keeper(target: &Target) -> Keeper {
    if processes::supervisor(target.layout.dir()).is_some() {
        return Keeper::Supervisor;
    }
    if !Path::new("/run/systemd/system").is_dir() {
        return Keeper::Nobody;
    }
    // It prints a word also when it fails: `disabled`, `not-found`; older ones print nothing for a unit that is not there.
    let state = said("systemctl", &["is-enabled", UNIT]).await;
    Keeper::Systemd(match state {
        Ok(word) if !word.is_empty() => Ok(word),
        Err(why) if why.contains("can not be run") || why.contains("no answer") => Err(why),
        _ => Ok("not installed".to_owned()),
    })
}

/// Does a time service keep the clock? What says so itself is believed first.
async fn clock_kept() -> Reading<bool> {
    if let Ok(word) = said("timedatectl", &["show", "--property=NTPSynchronized", "--value"]).await
        && word == "yes"
    {
        return Ok(true);
    }
    if let Ok(line) = said("chronyc", &["-c", "tracking"]).await
        && let Some(leap) = line.trim().rsplit(',').next()
        && line.contains(',')
    {
        return Ok(leap != "Not synchronised");
    }
    let running = running();
    let found = TIME_SERVICES.iter().find(|name| running.iter().any(|process| process == *name));
    match (found, contained()) {
        (Some(_), _) => Ok(true),
        (None, true) => Err("this is a container: the machine around it keeps the clock, or nobody does".to_owned()),
        (None, false) => Ok(false),
    }
}

/// The names of all processes.
pub(crate) fn running() -> Vec<String> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = processes.filter_map(|process| std::fs::read_to_string(process.path().join("comm")).ok());
    names.take(100_000).map(|name| name.trim().to_owned()).collect()
}

/// Is this a container, as far as it can be told from inside?
fn contained() -> bool {
    let marked = ["/.dockerenv", "/run/.containerenv", "/run/systemd/container"];
    let environment = std::fs::read("/proc/1/environ").unwrap_or_default();
    marked.iter().any(|path| Path::new(path).exists())
        || environment.split(|byte| *byte == 0).any(|entry| entry.starts_with(b"container="))
}

/// Of the agent, if it runs; else as its unit says; else of this program.
async fn open_files(agent: Option<u32>) -> Reading<u64> {
    if agent.is_none()
        && let Ok(word) = said("systemctl", &["show", "--property=LimitNOFILESoft", "--value", UNIT]).await
        && Path::new("/etc/systemd/system").join(UNIT).exists()
        && let Ok(limit) = word.parse()
    {
        return Ok(limit);
    }
    let path = agent.map_or_else(|| "/proc/self/limits".to_owned(), |pid| format!("/proc/{pid}/limits"));
    limit(&text(&path)?).ok_or_else(|| format!("{path} does not name it"))
}

/// `Max open files  1024  524288  files`
fn limit(table: &str) -> Option<u64> {
    let line = table.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let soft = line.split_whitespace().next()?;
    if soft == "unlimited" { Some(u64::MAX) } else { soft.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read() {
        let table = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 524288               files\n";
        assert_eq!(limit(table), Some(1024));
        assert_eq!(limit("Max open files unlimited unlimited files\n"), Some(u64::MAX));
        assert_eq!(limit("Max processes 3 3 processes\n"), None);
    }

    #[test]
    fn processes_are_seen() {
        assert!(running().iter().any(|name| !name.is_empty()));
    }
}

//! Faults of drills, as this host can make them: signals to the server's processes, and rules that cut it from the other nodes. Each is
//! undone from a file as well, should this agent end before it could.

use crate::durable::write_atomically;
use mainstay_model::Moment;
use mainstay_ports::clock::boot_now;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::io::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tracing::warn;

/// The number of our rules: they are found again, and removed, by it alone.
const PREFERENCE: &str = "7420";
/// How often a rule of that number is removed, at most: more are never made.
const RULES_MAX: usize = 600;
/// How long a process may take to stop.
const STOPS: Duration = Duration::from_millis(500);

/// What is in force, as the next agent of this node finds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InForce {
    /// Stopped processes, each with the moment of its beginning in the kernel's ticks.
    pub(crate) stopped: Vec<(u32, u64)>,
    /// Rules cut this host off.
    pub(crate) isolated: bool,
    /// When it ends (boot time of this host).
    pub(crate) until: Moment,
}

impl InForce {
    /// Notes it, before it happens.
    pub(crate) fn save(&self, path: &Path) -> Result<(), String> {
        let text = serde_json::to_vec(self).map_err(|error| error.to_string())?;
        write_atomically(path, &text).map_err(|error| format!("{} can not be written: {error}", path.display()))
    }

    /// What an agent that ended left in force.
    pub(crate) fn load(path: &Path) -> Option<InForce> {
        let text = std::fs::read(path).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Ends it. What is gone already needs no end.
    pub(crate) fn undo(&self, path: &Path) -> Result<(), String> {
        for (pid, since) in &self.stopped {
            // Its children may have been stopped before they could be noted. Going on harms nobody who was not.
            if began(*pid) == Some(*since) {
                children(*pid).into_iter().for_each(|(child, at)| go_on(child, at));
            }
            go_on(*pid, *since);
        }
        if self.isolated {
            join_again()?;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(format!("{} can not be removed: {error}", path.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Parent, and beginning, from `/proc/PID/stat`.
fn stat(pid: u32) -> Option<(char, u32, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let began = fields.nth(17)?.parse().ok()?;
    Some((state, parent, began))
}

fn signal(pid: u32, began: u64, signal: Signal) -> Result<(), String> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or("no process number")?;
    let process = pidfd_open(number, PidfdFlags::empty()).map_err(|error| format!("process {pid}: {error}"))?;
    // The number may be another process's by now; the descriptor is what was opened.
    if stat(pid).is_none_or(|(_, _, now)| now != began) {
        return Err(format!("process {pid} has ended"));
    }
    pidfd_send_signal(process, signal).map_err(|error| format!("process {pid} can not be signalled: {error}"))
}

fn go_on(pid: u32, began: u64) {
    // One that was killed meanwhile is what the drill is about.
    let _ = signal(pid, began, Signal::CONT);
}

/// When a process began; `None`: there is none of this number.
pub(crate) fn began(pid: u32) -> Option<u64> {
    stat(pid).filter(|(state, ..)| *state != 'Z').map(|(_, _, began)| began)
}

/// Kills a process that began then.
pub(crate) fn kill(pid: u32, began: u64) -> Result<(), String> {
    signal(pid, began, Signal::KILL)
}

/// Kills a process of ours that a lock names.
pub(crate) fn kill_locked(pid: Pid) -> Result<(), String> {
    kill_process(pid, Signal::KILL).map_err(|error| format!("process {}: {error}", pid.as_raw_nonzero()))
}

fn children(parent: u32) -> Vec<(u32, u64)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let (state, of, began) = stat(pid)?;
        (of == parent && state != 'Z').then_some((pid, began))
    })
    .collect()
}

/// The server's processes: the main one first. It is stopped before its children are looked for, so none comes after the look.
pub(crate) fn stop_main(pid: u32, began: u64) -> Result<(), String> {
    signal(pid, began, Signal::STOP)?;
    let begun = boot_now();
    while !matches!(stat(pid), Some(('T', ..))) {
        if boot_now().since(begun).to_std() > STOPS {
            return Err(format!("process {pid} does not stop"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Stops the children of a stopped main process. Those that ended in between are no loss.
pub(crate) fn stop_children(pid: u32) -> Vec<(u32, u64)> {
    let children = children(pid);
    children.into_iter().filter(|(child, began)| signal(*child, *began, Signal::STOP).is_ok()).collect()
}

/// A node that this host is to be cut from: where it is, and the ports of the cluster that it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Away {
    pub(crate) address: IpAddr,
    pub(crate) ports: Vec<u16>,
}

fn ip() -> Command {
    let mut command = Command::new("ip");
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin:/usr/bin:/bin")).stdin(Stdio::null());
    command
}

fn batch(family: &str, lines: &[String]) -> Result<(), String> {
    if lines.is_empty() {
        return Ok(());
    }
    let spawned =
        ip().args([family, "-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.map_err(|error| format!("`ip` can not be run ({error}): install iproute2"))?;
    let text = lines.join("\n") + "\n";
    let fed = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(text.as_bytes()));
    let done = child.wait_with_output().map_err(|error| format!("`ip`: {error}"))?;
    if done.status.success() && fed.is_ok() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr);
    let said = said.lines().next().unwrap_or("it said nothing");
    let right = if said.contains("not permitted") { "; the agent has not the right CAP_NET_ADMIN" } else { "" };
    Err(format!("`ip rule` failed: {said}{right}"))
}

/// The rules that let nothing of the cluster's ports leave for these hosts, in either role. What they send still arrives, and gets no
/// answer: as with a firewall that drops.
fn rules(away: &[Away], mine: &[u16], v4: bool) -> Vec<String> {
    let of_family = away.iter().filter(|away| away.address.is_ipv4() == v4);
    of_family
        .flat_map(|away| {
            let there = away.ports.iter().map(|port| ("dport", *port));
            let here = mine.iter().map(|port| ("sport", *port));
            there.chain(here).map(|(side, port)| {
                format!("rule add pref {PREFERENCE} to {} ipproto tcp {side} {port} blackhole", away.address)
            })
        })
        .collect()
}

/// What stands under our number now.
fn ours(family: &str) -> Result<String, String> {
    let shown = ip().args([family, "rule", "show", "pref", PREFERENCE]).output();
    let shown = shown.map_err(|error| format!("`ip` can not be run ({error}): install iproute2"))?;
    Ok(String::from_utf8_lossy(&shown.stdout).trim().to_owned())
}

/// Could this host be cut off? Nothing is changed.
pub(crate) fn can_isolate(away: &[Away]) -> Result<(), String> {
    if let Some(here) = away.iter().find(|away| away.address.is_loopback() || is_here(away.address)) {
        return Err(format!("{} is on this host: nodes of one host can not be cut from each other", here.address));
    }
    for family in ["-4", "-6"] {
        let held = ours(family)?;
        if !held.is_empty() {
            return Err(format!("rules with the number {PREFERENCE} exist already (`ip {family} rule`): {held}"));
        }
    }
    Ok(())
}

/// An address of this host can be bound.
fn is_here(address: IpAddr) -> bool {
    std::net::UdpSocket::bind((address, 0)).is_ok()
}

/// Cuts this host off.
pub(crate) fn isolate(away: &[Away], mine: &[u16]) -> Result<(), String> {
    let made = batch("-4", &rules(away, mine, true)).and_then(|()| batch("-6", &rules(away, mine, false)));
    if made.is_err() {
        let _ = join_again();
    }
    made
}

/// Removes every rule of ours.
pub(crate) fn join_again() -> Result<(), String> {
    for family in ["-4", "-6"] {
        let mut left = RULES_MAX;
        while left > 0 && !ours(family)?.is_empty() {
            left -= 1;
            let gone = ip().args([family, "rule", "del", "pref", PREFERENCE]).output();
            let gone = gone.map_err(|error| format!("`ip` can not be run: {error}"))?;
            if !gone.status.success() {
                let said = String::from_utf8_lossy(&gone.stderr).trim().to_owned();
                warn!(%said, "a rule of a drill can not be removed");
                return Err(format!("a rule can not be removed: {said}; `ip {family} rule del pref {PREFERENCE}`"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_name_both_roles_and_our_number() {
        let away = [Away { address: [10, 0, 0, 2].into(), ports: vec![7420, 5432] }];
        let lines = rules(&away, &[7420], true);
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0], "rule add pref 7420 to 10.0.0.2 ipproto tcp dport 7420 blackhole");
        assert_eq!(lines[2], "rule add pref 7420 to 10.0.0.2 ipproto tcp sport 7420 blackhole");
        assert!(rules(&away, &[7420], false).is_empty());
    }

    #[test]
    fn nodes_of_this_host_are_not_cut() {
        let away = [Away { address: [127, 0, 0, 2].into(), ports: vec![1] }];
        assert!(can_isolate(&away).unwrap_err().contains("on this host"));
    }

    #[test]
    fn a_process_is_stopped_with_its_children_and_goes_on_from_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut parent = Command::new("sh").args(["-c", "sleep 30 & wait"]).spawn().unwrap();
        let pid = parent.id();
        let mut child = Vec::new();
        for _ in 0..500 {
            child = children(pid);
            if !child.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let since = began(pid).unwrap();
        stop_main(pid, since).unwrap();
        let mut stopped = vec![(pid, since)];
        stopped.extend(stop_children(pid));
        assert_eq!(stopped.len(), 2);
        let path = dir.path().join("drill.json");
        // As an agent leaves it that dies before it could note the children.
        stopped.truncate(1);
        let force = InForce { stopped, isolated: false, until: Moment(5) };
        force.save(&path).unwrap();
        let found = InForce::load(&path).unwrap();
        assert_eq!(found, force);
        found.undo(&path).unwrap();
        for _ in 0..500 {
            if [pid, child[0].0].iter().all(|pid| !matches!(stat(*pid), Some(('T', ..)))) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_ne!(stat(pid).map(|(state, ..)| state), Some('T'));
        assert_ne!(stat(child[0].0).map(|(state, ..)| state), Some('T'));
        assert_eq!(InForce::load(&path), None);
        // The number of a process that has ended is nobody's.
        assert!(kill(child[0].0, child[0].1 + 1).unwrap_err().contains("has ended"));
        kill(child[0].0, child[0].1).unwrap();
        parent.wait().unwrap();
    }
}

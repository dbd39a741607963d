//! Two versions of the program on the hosts of one cluster: each host has its own place for it, and gets the other one put there while
//! everything runs, as an upgrade of the package does.

use super::cluster::HostCluster;
use super::host::{Host, program};
use crate::chaos::inject::Breach;
use crate::processes::{Pinned, kill_all};
use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Where a host has its program.
pub(super) const PLACE: &str = "/usr/local/bin/mainstay";
/// How long a daemon may take until it runs the other program.
const REPLACED: Duration = Duration::from_secs(30);

/// The two programs, and who has the new one.
pub(super) struct Versions {
    previous: PathBuf,
    new: PathBuf,
    changed: Mutex<BTreeSet<String>>,
}

impl Versions {
    /// # Errors
    /// When one of them is no file, or both are the same one.
    pub(super) fn new(previous: &Path, new: &Path) -> Result<Versions> {
        let file = |path: &Path| path.canonicalize().with_context(|| format!("the program {}", path.display()));
        let versions = Versions { previous: file(previous)?, new: file(new)?, changed: Mutex::default() };
        if same_file(&versions.previous, &versions.new) {
            bail!("{} is the program of this build: name another version's", previous.display());
        }
        Ok(versions)
    }

    fn program(&self, newer: bool) -> &Path {
        if newer { &self.new } else { &self.previous }
    }
}

/// Every host begins with the previous version.
pub(super) fn begin(cluster: &HostCluster) -> Result<()> {
    let Some(versions) = &cluster.versions else { return Ok(()) };
    cluster.hosts.values().chain([&cluster.client]).try_for_each(|host| put(host, &versions.previous))
}

/// Lays a program over what lay in its place. Who runs that goes on with it.
fn put(host: &Host, program: &Path) -> Result<()> {
    let script =
        format!("mkdir -p /usr/local/bin; [ -e {PLACE} ] || : > {PLACE}; mount --bind '{}' {PLACE}", program.display());
    host.run_now(&["sh", "-ec", &script]).map(drop)
}

fn same_file(one: &Path, other: &Path) -> bool {
    let number = |path: &Path| std::fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    number(one).is_some_and(|one| number(other) == Some(one))
}

/// Is it this program that the process runs?
fn runs(pid: u32, wanted: &Path) -> bool {
    same_file(Path::new(&format!("/proc/{pid}/exe")), wanted)
}

/// The daemon was told already: that it does not become the other program is the cluster's failure, not that of the fault.
async fn until_runs(what: &str, patience: Duration, runs: impl Fn() -> bool) -> Result<(), Breach> {
    let begun = Instant::now();
    while !runs() {
        if begun.elapsed() > patience {
            return Err(Breach(format!("{what} after {} s", patience.as_secs())));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// The next host that has the other version gets this one: the new program, or the previous one. The nodes come first, the clients' host last. An
/// agent is told to replace itself; a proxy is ended and started again.
///
/// # Errors
/// When every host has it, or the daemon does not run it in time.
pub(crate) async fn change_next(cluster: &HostCluster, newer: bool) -> Result<(Instant, String)> {
    let versions = cluster.versions.as_ref().context("there is one version only: name another program")?;
    let has = |host: &&Host| versions.changed.lock().is_ok_and(|changed| changed.contains(host.name()) == newer);
    let next = cluster.hosts.values().chain([&cluster.client]).find(|host| !has(host));
    let host = next.context("every host has that program")?;
    let wanted = versions.program(newer);
    put(host, wanted)?;
    let at = Instant::now();
    let word = if host.name() == cluster.client.name() { "proxy" } else { "agent" };
    let pid = program(host, word).with_context(|| format!("{} has no {word}", host.name()))?;
    if word == "agent" {
        Pinned::new(pid)?.signal(Signal::HUP)?;
    } else {
        kill_all(&[pid], &[])?;
    }
    let what = format!("the {word} of {} does not run {}", host.name(), wanted.display());
    until_runs(&what, REPLACED, || program(host, word).is_some_and(|pid| runs(pid, wanted))).await?;
    if let Ok(mut changed) = versions.changed.lock() {
        match newer {
            true => changed.insert(host.name().to_owned()),
            false => changed.remove(host.name()),
        };
    }
    let which = if newer { "new" } else { "previous" };
    Ok((at, format!("the {word} of {} is the {which} version now", host.name())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_daemon_that_was_told_and_stays_as_it_is_is_a_breach() {
        let stays: anyhow::Error =
            until_runs("the agent of db1 does not", Duration::ZERO, || false).await.unwrap_err().into();
        assert!(stays.is::<Breach>(), "{stays:#}");
        assert!(until_runs("it does not", Duration::ZERO, || true).await.is_ok());
    }
}

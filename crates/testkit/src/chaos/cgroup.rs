//! Control groups, for what signals can not do: a host whose every process is frozen at once, and a memory limit on one process.

use crate::hosts::host::Host;
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long the kernel may take to freeze or thaw.
const PATIENCE: Duration = Duration::from_secs(5);

/// A group of its own; it goes when dropped.
struct Group {
    root: PathBuf,
    path: PathBuf,
}

impl Group {
    /// Makes one below the first of these hierarchies that has this file.
    fn new(roots: &[&str], file: &str) -> Result<Group> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        for root in roots.iter().map(PathBuf::from).filter(|root| root.join("cgroup.procs").exists()) {
            let name = format!("mainstay-chaos-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            let path = root.join(name);
            if std::fs::create_dir(&path).is_err() {
                continue;
            }
            let group = Group { root, path };
            if group.path.join(file).exists() {
                return Ok(group);
            }
        }
        bail!("no control group with {file} can be made below {roots:?}")
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.path.join(file);
        std::fs::write(&path, text).with_context(|| format!("write {text} to {}", path.display()))
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.path.join(file)).unwrap_or_default()
    }

    fn members(&self) -> Vec<u32> {
        self.read("cgroup.procs").split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::write(self.path.join("cgroup.freeze"), "0");
        for pid in self.members() {
            let _ = std::fs::write(self.root.join("cgroup.procs"), pid.to_string());
        }
        let begun = Instant::now();
        while std::fs::remove_dir(&self.path).is_err() && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A host whose processes are frozen. They go on when this is dropped. If this program is killed they end with the host: the kernel kills
/// frozen processes too.
pub(crate) struct Frozen(Group);

impl Frozen {
    /// Freezes every process of a host but the first.
    ///
    /// # Errors
    /// When the kernel has no freezer, or one goes on.
    pub(crate) fn new(host: &Host) -> Result<(Frozen, String)> {
        let group = Group::new(&["/sys/fs/cgroup/unified", "/sys/fs/cgroup"], "cgroup.freeze")?;
        // Each sweep finds what was forked during the one before.
        for _ in 0..50 {
            let inside = group.members();
            let outside: Vec<u32> = host.processes().into_iter().filter(|pid| !inside.contains(pid)).collect();
            if outside.is_empty() {
                break;
            }
            // One that ended by itself meanwhile is as good.
            outside.iter().for_each(|pid| drop(group.write("cgroup.procs", &pid.to_string())));
        }
        let count = group.members().len();
        group.write("cgroup.freeze", "1")?;
        let begun = Instant::now();
        while !group.read("cgroup.events").contains("frozen 1") {
            if begun.elapsed() > PATIENCE {
                bail!("the processes of {} do not freeze", host.name());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        if count == 0 {
            bail!("no process runs on {}", host.name());
        }
        Ok((Frozen(group), format!("{count} processes of {} are frozen", host.name())))
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn thaw(self) -> Result<()> {
        self.0.write("cgroup.freeze", "0")
    }
}

/// A memory limit on one process.
pub(crate) struct Limited(Group);

impl Limited {
    /// Limits what this process takes from now on.
    ///
    /// # Errors
    /// When the kernel does not limit memory by groups.
    pub(crate) fn new(pid: u32, bytes: u64) -> Result<Limited> {
        let one = Group::new(&["/sys/fs/cgroup/memory"], "memory.limit_in_bytes");
        let (group, file) = match one {
            Ok(group) => (group, "memory.limit_in_bytes"),
            Err(_) => (Group::new(&["/sys/fs/cgroup"], "memory.max")?, "memory.max"),
        };
        group.write(file, &bytes.to_string())?;
        group.write("cgroup.procs", &pid.to_string())?;
        Ok(Limited(group))
    }

    /// How often the kernel has killed because of the limit.
    pub(crate) fn kills(&self) -> u64 {
        let file =
            if Path::new(&self.0.path).join("memory.events").exists() { "memory.events" } else { "memory.oom_control" };
        let text = self.0.read(file);
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }
}

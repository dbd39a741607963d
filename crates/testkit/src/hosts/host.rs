//! One virtual host: processes, network, mounts and a data volume of its own.
//!
//! Its first process (see `init`) holds the namespaces together. What it writes to `/etc`, `/var/lib`, `/usr/local` and `/run` stays its own;
//! `/var/lib/mainstay` is a file system in an image, which can be full, frozen or lost like a disk.

use super::command::{output, output_later, words};
use super::init::{OBEYED, Order, Service};
use super::inside::Inside;
use super::network::batch;
use crate::processes::{Pinned, kill_all, state};
use anyhow::{Context as _, Result, bail};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Where a host's data volume is mounted.
pub const VOLUME: &str = "/var/lib/mainstay";
/// How often a sweep for processes that were forked meanwhile is repeated.
const SWEEPS: u32 = 20;

/// Mounts the image `$1` as the host's volume. It is written past the machine's own cache where that can be done: else pages of it are
/// written back half a minute later, in the middle of what is measured, which no disk of a real host does.
const MOUNT: &str = r#"
mount -o loop,noinit_itable "$1" /var/lib/mainstay
losetup --direct-io=on "$(findmnt -n -o SOURCE /var/lib/mainstay)" || true
"#;

/// Makes the host's own view of the file system, then becomes its first process. `$1`: its directory, `$2`: its name, `$3`: this program,
/// `$4`: how its volume is mounted.
const SETUP: &str = r#"
set -e
mkdir -p "$1/top"
mount -t tmpfs -o size=256m,mode=755 tmpfs "$1/top"
for place in etc var/lib usr/local; do
    mkdir -p "$1/top/$place/upper" "$1/top/$place/work"
    mount -t overlay overlay -o "lowerdir=/$place,upperdir=$1/top/$place/upper,workdir=$1/top/$place/work" "/$place"
done
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /var/lib/mainstay /etc/mainstay
if [ -e "$1/data.img" ]; then sh -ec "$4" mount "$1/data.img"; fi
hostname "$2"
ip link set lo up
exec "$3" host-init "$1"
"#;

/// A running host. It ends when dropped, with everything in it.
pub struct Host {
    name: String,
    address: Ipv4Addr,
    dir: PathBuf,
    pub(super) outer: Child,
    init: u32,
    pub(super) orders: Mutex<Option<Orders>>,
    /// Its group of processes, where systemd is its first one.
    group: Option<PathBuf>,
}

/// The pipes to its first process.
type Orders = (ChildStdin, BufReader<ChildStdout>);

/// What a host is made of.
#[derive(Clone, Debug)]
pub struct Blueprint {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Where its image and logs lie, outside of it.
    pub dir: PathBuf,
    /// Size of its data volume in megabytes; 0: none.
    pub volume_mb: u32,
    /// The program with the command `host-init`.
    pub program: PathBuf,
}

impl Host {
    /// Makes its volume if need be, and starts it.
    ///
    /// # Errors
    /// When this is not root, or a program is missing.
    pub fn start(blueprint: &Blueprint) -> Result<Host> {
        std::fs::create_dir_all(&blueprint.dir)?;
        let image = blueprint.dir.join("data.img");
        if blueprint.volume_mb > 0 && !image.exists() {
            make_image(&image, blueprint.volume_mb)?;
        }
        let mut command =
            words(&["unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child", "--"]);
        command
            .args(["sh", "-c", SETUP, "host"])
            .arg(&blueprint.dir)
            .arg(&blueprint.name)
            .arg(&blueprint.program)
            .arg(MOUNT);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut outer = command.spawn().context("start a host (as root, with util-linux installed)")?;
        let orders = outer.stdin.take().context("a host without input")?;
        let mut said = BufReader::new(outer.stdout.take().context("a host without output")?);
        let mut line = String::new();
        said.read_line(&mut line)?;
        if line.trim() != "ready" {
            let _ = outer.kill();
            bail!("host {} did not start: its first process said {line:?}", blueprint.name);
        }
        Host::of(blueprint, outer, (orders, said), None)
    }

    pub(super) fn of(blueprint: &Blueprint, outer: Child, orders: Orders, group: Option<PathBuf>) -> Result<Host> {
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", outer.id()))?;
        let init = children.split_whitespace().next().context("the host's first process is not found")?.parse()?;
        let (name, address, dir) = (blueprint.name.clone(), blueprint.address, blueprint.dir.clone());
        Ok(Host { name, address, dir, outer, init, orders: Mutex::new(Some(orders)), group })
    }

    /// Is systemd its first process?
    #[must_use]
    pub fn has_systemd(&self) -> bool {
        self.group.is_some()
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its directory outside: image and logs of its services.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The number of its first process, outside.
    #[must_use]
    pub fn init(&self) -> u32 {
        self.init
    }

    /// The file that names its network.
    #[must_use]
    pub fn network(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.init))
    }

    /// A runtime in its network.
    ///
    /// # Errors
    /// When it can not be entered.
    pub fn inside(&self) -> Result<Inside> {
        Inside::start(&self.network())
    }

    /// A path of the host as this program reaches it.
    #[must_use]
    pub fn path(&self, inner: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inner}", self.init))
    }

    /// A command that will run inside.
    #[must_use]
    pub fn command(&self, inner: &[&str]) -> Command {
        let init = self.init.to_string();
        let mut command = words(&["nsenter", "-t", &init, "-m", "-u", "-n", "-p", "--"]);
        command.args(inner);
        command
    }

    /// Runs a command inside and returns what it printed.
    ///
    /// # Errors
    /// When it fails; its words are in the error.
    pub async fn run(&self, inner: &[&str]) -> Result<String> {
        output_later(self.command(inner)).await.with_context(|| format!("on {}", self.name))
    }

    pub(crate) fn run_now(&self, inner: &[&str]) -> Result<String> {
        output(&mut self.command(inner)).with_context(|| format!("on {}", self.name))
    }

    pub(crate) fn ip(&self, lines: &str) -> Result<()> {
        batch(&mut self.command(&["sh", "-c"]), lines).with_context(|| format!("on {}", self.name))
    }

    /// Tells its first process something, and waits until it has done it.
    ///
    /// # Errors
    /// When that is gone.
    pub fn order(&self, order: &Order) -> Result<()> {
        let mut line = serde_json::to_string(order)?;
        line.push('\n');
        let mut orders = self.orders.lock().map_err(|_| anyhow::anyhow!("a thread panicked with the host's lock"))?;
        let (pipe, said) = orders.as_mut().context("the host is ending")?;
        pipe.write_all(line.as_bytes()).with_context(|| format!("host {} has ended", self.name))?;
        line.clear();
        said.read_line(&mut line)?;
        if line.trim() != OBEYED {
            bail!("the first process of host {} answers {line:?} to {order:?}", self.name);
        }
        Ok(())
    }

    /// Starts a service and keeps it running. Its output is kept in `NAME.log` in the host's directory outside.
    ///
    /// # Errors
    /// When the host is gone.
    pub fn serve(&self, name: &str, words: &[&str], environment: &[(String, String)]) -> Result<()> {
        let own = |text: &&str| (*text).to_owned();
        self.order(&Order::Serve(Service {
            name: name.to_owned(),
            words: words.iter().map(own).collect(),
            environment: environment.iter().cloned().collect(),
            log: self.dir.join(format!("{name}.log")),
        }))
    }

    /// Every process in it but the first, by its number outside. The dead are not counted.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let Ok(own) = std::fs::read_link(format!("/proc/{}/ns/pid", self.init)) else { return Vec::new() };
        let inside = |pid: &u32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|theirs| theirs == own);
        let living = |pid: &u32| !matches!(state(*pid), None | Some('Z' | 'X'));
        crate::processes::all().into_iter().filter(|pid| *pid != self.init && inside(pid)).filter(living).collect()
    }

    /// The number outside of a process that calls itself so inside.
    ///
    /// # Errors
    /// When there is none.
    pub fn outer(&self, inner: u32) -> Result<u32> {
        let found = self.processes().into_iter().find(|pid| innermost(*pid) == Some(inner));
        found.with_context(|| format!("host {} has no process {inner}", self.name))
    }

    /// Kills every process of the host but the first, and makes sure that each is gone. Returns the moment of the first signal, and how many.
    ///
    /// # Errors
    /// When there was none, or one lives on.
    pub fn kill_everything(&self) -> Result<(Instant, usize)> {
        let first = self.processes();
        if first.is_empty() {
            bail!("no process runs on host {}", self.name);
        }
        let at = kill_all(&[], &first)?;
        for _ in 0..SWEEPS {
            let left = self.processes();
            if left.is_empty() {
                return Ok((at, first.len()));
            }
            kill_all(&[], &left)?;
        }
        bail!("processes of host {} live on after SIGKILL: {:?}", self.name, self.processes())
    }

    /// Makes a new, empty volume in place of the old one. Nothing may run in the host.
    ///
    /// # Errors
    /// When something runs there, or the system refuses.
    pub fn wipe(&self, volume_mb: u32) -> Result<()> {
        self.run_now(&["umount", VOLUME])?;
        let image = self.dir.join("data.img");
        std::fs::remove_file(&image)?;
        make_image(&image, volume_mb)?;
        self.run_now(&["sh", "-ec", MOUNT, "mount", &image.display().to_string()]).map(drop)
    }
}

fn innermost(pid: u32) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().last()?.parse().ok()
}

/// A host's processes of the program whose first word is this: `agent`, `guard`, `proxy`.
pub(crate) fn program(host: &Host, word: &str) -> Option<u32> {
    let is = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        words.next().is_some_and(|first| first.ends_with(b"mainstay") || first.ends_with(b"exe"))
            && words.next() == Some(word.as_bytes())
    };
    host.processes().into_iter().find(is)
}

pub(super) fn make_image(image: &Path, volume_mb: u32) -> Result<()> {
    std::fs::File::create(image)?.set_len(u64::from(volume_mb) * 1024 * 1024)?;
    output(words(&["mkfs.ext4", "-q", "-E", "lazy_itable_init=1,nodiscard"]).arg(image)).map(drop)
}

impl Drop for Host {
    fn drop(&mut self) {
        // Its first process ends when nobody gives it orders any more, and everything in the host with it.
        if let Ok(mut orders) = self.orders.lock() {
            drop(orders.take());
        }
        let outer = Pinned::new(self.outer.id());
        let ended = |seconds| outer.as_ref().is_ok_and(|outer| outer.ended_within(Duration::from_secs(seconds)));
        if !ended(if self.has_systemd() { 0 } else { 5 }) {
            let _ = Pinned::new(self.init).and_then(|init| init.signal(rustix::process::Signal::KILL));
            // Once its first process is gone nothing is left in its group.
            if !(self.has_systemd() && ended(10)) {
                let _ = self.outer.kill();
            }
        }
        let _ = self.outer.wait();
        if let Some(group) = &self.group {
            super::booted::remove_group(group);
        }
    }
}

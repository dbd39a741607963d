//! The proxy of this node: a process of its own that the agent starts, watches, and ends with the node. It outlives the agent: the next
//! one finds it by the lock that it holds, which also names its process.

use crate::generations::Generations;
use mainstay_model::NodeId;
use mainstay_model::layout::NodeLayout;
use mainstay_model::stored_spec::StoredSpec;
use mainstay_ports::priority::ordinarily;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::fs::OpenOptions;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// A new one holds its lock after this at the latest.
const COME_UP: Duration = Duration::from_secs(5);
/// Pause before it is started again; doubled each time it ends soon, up to the second.
const PAUSE_FIRST: Duration = Duration::from_millis(300);
const PAUSE_MOST: Duration = Duration::from_secs(10);
/// One that ran for this long did not end soon.
const LONG: Duration = Duration::from_secs(10);
/// How much of its log is read to see why it ended. Bytes.
const LOG_END: u64 = 4096;
/// How long it may take to end.
const END: Duration = Duration::from_secs(3);

/// How to start it.
#[derive(Clone, Debug)]
pub struct ProxyChild {
    /// This program.
    pub program: PathBuf,
    /// The cluster's file.
    pub config: PathBuf,
    /// This node.
    pub node: NodeId,
    /// Its files.
    pub layout: NodeLayout,
    /// Why it does not stay up, if so.
    pub down: watch::Sender<Option<String>>,
}

/// The process that holds this lock, if one does. Who looks shares it: two that look at once must not take each other for the proxy,
/// whose number in the file may be that of another process by then.
pub(crate) fn holder(lock: &Path) -> Option<Pid> {
    let file = OpenOptions::new().read(true).open(lock).ok()?;
    if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
        return None;
    }
    let text = std::fs::read_to_string(lock).ok()?;
    Pid::from_raw(text.trim().parse().ok()?)
}

/// In a proxy's environment: the virtual address for which its agent started it. Another agent can read there what this one knew.
const BEGUN_FOR: &str = "MAINSTAY_PROXY_ADDRESS";

fn shown(address: Option<Ipv4Addr>) -> String {
    address.map(|address| address.to_string()).unwrap_or_default()
}

/// For which virtual address it was started. `None`: it can not be told, also where its agent was of a version that did not say so: clients of a proxy
/// that is right are not to be cut off by an update.
fn begun_for(pid: Pid) -> Option<String> {
    let all = std::fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).ok().filter(|all| !all.is_empty())?;
    let name = format!("{BEGUN_FOR}=");
    let mut pairs = all.split(|byte| *byte == 0).filter_map(|pair| std::str::from_utf8(pair).ok());
    pairs.find_map(|pair| pair.strip_prefix(name.as_str())).map(str::to_owned)
}

/// Is there to be one, and at which virtual address does it listen too?
fn wish(stored: &StoredSpec) -> (bool, Option<Ipv4Addr>) {
    (stored.spec.proxy.on_nodes, stored.spec.proxy.address.map(|address| address.address))
}

/// How long to wait before the next start, after one that ran for `ran`. One that ran for long is started again at once; each that ended
/// soon, before or after it took its lock, doubles the pause for the next.
fn wait_after(ran: Duration, pause: &mut Duration) -> Duration {
    if ran >= LONG {
        *pause = PAUSE_FIRST;
        return Duration::ZERO;
    }
    let wait = *pause;
    *pause = (wait * 2).min(PAUSE_MOST);
    wait
}

/// The last reason to end that a proxy's log tells. Only its end is read.
fn last_error(log: &Path) -> Option<String> {
    let mut file = std::fs::File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_END))).ok()?;
    let mut end = Vec::new();
    file.take(LOG_END).read_to_end(&mut end).ok()?;
    let text = String::from_utf8_lossy(&end);
    text.lines().rev().find_map(|line| line.strip_prefix("error: ")).map(str::to_owned)
}

impl ProxyChild {
    /// Keeps it running while the specification wants one, for ever. One that was started for another virtual address, also by an earlier agent, is
    /// started again: it listens where it began to.
    pub async fn keep(self, generations: Arc<Generations>) {
        let mut news = generations.watch();
        let mut pause = PAUSE_FIRST;
        // Which proxy was first seen here with which address in force: what it does not tell itself is taken from that.
        let mut met: Option<(Pid, Option<Ipv4Addr>)> = None;
        loop {
            let (wanted, address) = wish(&news.borrow_and_update());
            let running = holder(&self.layout.proxy_lock());
            met = met.filter(|(pid, _)| Some(*pid) == running).or(running.map(|pid| (pid, address)));
            match (wanted, running) {
                (true, Some(pid)) if begun_for(pid).or(met.map(|(_, then)| shown(then))) != Some(shown(address)) => {
                    info!("proxy.address has changed: this node's proxy ends, and is started again");
                    self.end().await;
                }
                (true, Some(pid)) => {
                    let begun = Instant::now();
                    self.watch(pid, address, &mut news).await;
                    // One that is not wanted any more, or elsewhere, did not crash.
                    if wish(&news.borrow()) == (true, address) {
                        self.ended(begun.elapsed()).await;
                        let wait = wait_after(begun.elapsed(), &mut pause);
                        sleep(wait).await;
                    }
                }
                (true, None) => {
                    let begun = Instant::now();
                    self.start(address).await;
                    if holder(&self.layout.proxy_lock()).is_none() {
                        self.ended(Duration::ZERO).await;
                        let wait = wait_after(begun.elapsed().min(COME_UP), &mut pause);
                        sleep(wait).await;
                    }
                }
                (false, Some(_)) => {
                    self.end().await;
                    self.down.send_replace(None);
                }
                (false, None) => {
                    if news.changed().await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Notes why one that ended soon did.
    async fn ended(&self, ran: Duration) {
        if ran < LONG {
            let log = self.layout.proxy_log();
            // A disk may have stalled: not on the thread that renews the lease.
            let why = tokio::task::spawn_blocking(move || last_error(&log)).await.ok().flatten();
            let why = why.unwrap_or_else(|| "its log does not say why".to_owned());
            self.down.send_replace(Some(why));
        }
    }

    /// Returns when it has ended, or is not wanted any more as it is.
    async fn watch(&self, pid: Pid, address: Option<Ipv4Addr>, news: &mut watch::Receiver<Arc<StoredSpec>>) {
        let begun = Instant::now();
        loop {
            tokio::select! {
                () = sleep(LOOK) => {}
                changed = news.changed() => if changed.is_err() || wish(&news.borrow()) != (true, address) { return },
            }
            if begun.elapsed() >= LONG {
                self.down.send_if_modified(|down| down.take().is_some());
            }
            // Ours, also after this agent has replaced itself: what has ended is collected.
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
            if holder(&self.layout.proxy_lock()) != Some(pid) {
                return warn!(pid = pid.as_raw_nonzero().get(), "this node's proxy has ended; starting it again");
            }
        }
    }

    async fn start(&self, address: Option<Ipv4Addr>) {
        if !self.layout.proxy_cert().is_file() {
            error!(
                path = %self.layout.proxy_cert().display(),
                "this node's proxy has no certificate and does not start: run `mainstay pki issue` for this node, or set on_nodes = false in [proxy]"
            );
            return sleep(PAUSE_MOST).await;
        }
        let started = self.spawn(address);
        let pid = match started {
            Ok(pid) => pid,
            Err(problem) => return error!(%problem, "this node's proxy can not be started"),
        };
        let begun = Instant::now();
        while begun.elapsed() < COME_UP {
            if holder(&self.layout.proxy_lock()).is_some() {
                return info!(pid = pid.as_raw_nonzero().get(), "this node's proxy runs");
            }
            if !matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(None)) {
                return error!(log = %self.layout.proxy_log().display(), "this node's proxy ended at once; its log says why");
            }
            sleep(Duration::from_millis(20)).await;
        }
        warn!("this node's proxy does not come up");
    }

    fn spawn(&self, address: Option<Ipv4Addr>) -> std::io::Result<Pid> {
        std::fs::create_dir_all(self.layout.log())?;
        let log = OpenOptions::new().create(true).append(true).open(self.layout.proxy_log())?;
        let mut command = Command::new(&self.program);
        command.arg0("mainstay").arg("proxy").arg("--config").arg(&self.config);
        command.arg("--node").arg(self.node.as_str()).current_dir(self.layout.dir());
        command.env(BEGUN_FOR, shown(address));
        // A group of its own: what is typed at a terminal, or sent to the agent's group, is not for it.
        command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Pid::from_child(&ordinarily(|| command.spawn())?))
    }

    /// Ends it in order, and by force when that takes too long.
    pub async fn end(&self) {
        let begun = Instant::now();
        let Some(pid) = holder(&self.layout.proxy_lock()) else { return };
        let _ = kill_process(pid, Signal::TERM);
        while holder(&self.layout.proxy_lock()) == Some(pid) {
            if begun.elapsed() >= END {
                warn!(pid = pid.as_raw_nonzero().get(), "this node's proxy did not end in time; killing it");
                let _ = kill_process(pid, Signal::KILL);
                sleep(Duration::from_millis(50)).await;
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        info!("this node's proxy has ended");
    }
}

/// Held by the proxy for as long as it runs.
#[derive(Debug)]
pub struct ProxyLock {
    _file: std::fs::File,
}

impl ProxyLock {
    /// Takes the lock and writes this process's id into it. `None`: another proxy of this node runs.
    ///
    /// # Errors
    /// When the file can not be written.
    pub fn take(layout: &NodeLayout) -> std::io::Result<Option<Self>> {
        use std::io::Write as _;
        let mut file =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(layout.proxy_lock())?;
        // An agent that looks whether somebody holds it, holds it for a moment itself.
        let mut tries = 0;
        while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            tries += 1;
            if tries > 20 {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Some(Self { _file: file }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_ends_soon_after_it_took_its_lock_waits_longer_each_time() {
        let mut pause = PAUSE_FIRST;
        let waits: Vec<Duration> = (0..8).map(|_| wait_after(Duration::from_secs(1), &mut pause)).collect();
        assert_eq!(waits[..3], [PAUSE_FIRST, PAUSE_FIRST * 2, PAUSE_FIRST * 4]);
        assert_eq!(waits[7], PAUSE_MOST);
        assert_eq!(wait_after(LONG, &mut pause), Duration::ZERO, "a single crash costs no pause");
        assert_eq!(pause, PAUSE_FIRST);
    }

    /// Waits for the process that holds the lock to be another one than this.
    async fn other_than(layout: &NodeLayout, before: Option<Pid>) -> Option<Pid> {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(20) {
            let now = holder(&layout.proxy_lock());
            // Between two of them there is none for a moment.
            if now != before && (now.is_some() || before.is_none()) {
                return now;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("nobody else than {before:?} has the lock");
    }

    #[tokio::test]
    async fn another_virtual_address_takes_another_proxy() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let layout = NodeLayout::new(dir.path());
        for file in [layout.proxy_cert(), layout.proxy_lock()] {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, "").unwrap();
        }
        // Takes the lock as a proxy does, and stays.
        let program = dir.path().join("proxy.sh");
        let lock = layout.proxy_lock().display().to_string();
        let script =
            format!("#!/bin/sh\nexec 9<>'{lock}'\nflock -w 5 9 || exit 1\necho $$ >'{lock}'\nexec sleep 120\n");
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let text = "[cluster]\nname = \"c\"\n[[node]]\nname = \"db1\"\nhost = \"10.0.0.1\"\n";
        let spec = mainstay_model::config::parse(text, &[]).unwrap();
        let generations = Arc::new(Generations::load(dir.path().join("spec.json"), spec).unwrap());
        let child = ProxyChild {
            program,
            config: dir.path().join("mainstay.toml"),
            node: NodeId::new("db1").unwrap(),
            layout: layout.clone(),
            down: watch::Sender::new(None),
        };
        let change = |change: &dyn Fn(&mut mainstay_model::spec::Spec)| {
            let now = generations.now();
            let mut spec = now.spec.clone();
            change(&mut spec);
            assert!(generations.adopt(now.next(spec, "anna", "a change", 0)).unwrap());
        };
        let kept = tokio::spawn(child.clone().keep(Arc::clone(&generations)));
        let first = other_than(&layout, None).await;
        change(&|spec| spec.proxy.pool_size += 1);
        sleep(LOOK * 2).await;
        assert_eq!(holder(&layout.proxy_lock()), first, "what a proxy takes up while it runs costs no start");
        change(&|spec| spec.proxy.address = Some("10.0.0.100/24".parse().unwrap()));
        let second = other_than(&layout, first).await;
        // The agent misses the next change: whoever comes after it sees for what the proxy was started.
        kept.abort();
        change(&|spec| spec.proxy.address = None);
        let kept = tokio::spawn(child.clone().keep(Arc::clone(&generations)));
        other_than(&layout, second).await;
        assert_eq!(*child.down.borrow(), None, "none of them crashed");
        kept.abort();
        child.end().await;
        assert_eq!(holder(&layout.proxy_lock()), None);
    }

    #[test]
    fn the_last_reason_to_end_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("proxy.log");
        assert_eq!(last_error(&log), None);
        let text = format!(
            "error: the first\n{}\nerror: listen on 10.0.0.1:6432\n{{\"level\":\"INFO\"}}\n",
            "x".repeat(10_000)
        );
        std::fs::write(&log, text).unwrap();
        assert_eq!(last_error(&log).as_deref(), Some("listen on 10.0.0.1:6432"));
    }

    #[test]
    fn two_that_look_at_once_see_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let layout = NodeLayout::new(dir.path());
        std::fs::create_dir_all(layout.agent()).unwrap();
        // What a proxy that has ended leaves.
        drop(ProxyLock::take(&layout).unwrap().unwrap());
        let looks = std::fs::File::open(layout.proxy_lock()).unwrap();
        flock(&looks, FlockOperation::NonBlockingLockShared).unwrap();
        assert_eq!(holder(&layout.proxy_lock()), None);
    }

    #[test]
    fn the_lock_names_its_holder_and_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let layout = NodeLayout::new(dir.path());
        std::fs::create_dir_all(layout.agent()).unwrap();
        assert_eq!(holder(&layout.proxy_lock()), None);
        let held = ProxyLock::take(&layout).unwrap().unwrap();
        assert!(ProxyLock::take(&layout).unwrap().is_none());
        assert_eq!(holder(&layout.proxy_lock()), Pid::from_raw(i32::try_from(std::process::id()).unwrap()));
        drop(held);
        assert_eq!(holder(&layout.proxy_lock()), None);
    }
}

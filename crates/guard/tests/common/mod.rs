//! A guard of its own in a temporary directory, dummy servers, and what tests look at from outside.
#![allow(dead_code, unreachable_pub)]

use mainstay_guard::{GuardClient, reap_data_dir};
use mainstay_model::layout::NodeLayout;
use mainstay_model::{Moment, Span};
use mainstay_ports::clock::boot_now;
use mainstay_ports::process::{ServerProcess as _, StartCommand};
use rustix::process::{Pid, Signal, kill_process};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The guard's program.
pub(crate) const GUARD: &str = env!("CARGO_BIN_EXE_mainstay-guard");

/// A node's directory with a guard, both gone at the end.
pub(crate) struct Node {
    pub dir: tempfile::TempDir,
    pub layout: NodeLayout,
    pub guard: Child,
    pub client: GuardClient,
}

/// A node's directory, without a guard.
pub(crate) fn directory() -> (tempfile::TempDir, NodeLayout) {
    let dir = tempfile::tempdir().unwrap();
    let layout = NodeLayout::new(dir.path());
    for path in [layout.agent(), layout.data(), layout.log()] {
        std::fs::create_dir(path).unwrap();
    }
    // The database server's user must pass; only the agent's directory stays closed.
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    std::fs::set_permissions(layout.agent(), std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::set_permissions(layout.data(), std::fs::Permissions::from_mode(0o700)).unwrap();
    if let Some((user, group)) = server_user() {
        std::os::unix::fs::chown(layout.data(), Some(user), Some(group)).unwrap();
    }
    (dir, layout)
}

pub(crate) fn spawn_guard(layout: &NodeLayout) -> Child {
    let mut command = Command::new(GUARD);
    command.arg("--socket").arg(layout.guard_socket()).arg("--log").arg(layout.guard_log());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

impl Node {
    pub(crate) async fn new() -> Node {
        let (dir, layout) = directory();
        let guard = spawn_guard(&layout);
        let client = GuardClient::new(layout.guard_socket());
        let node = Node { dir, layout, guard, client };
        node.wait_for_guard().await;
        node
    }

    pub(crate) async fn wait_for_guard(&self) {
        eventually("the guard answers", async || self.client.status().await.is_ok()).await;
    }

    /// Ends the guard as the kernel would, and starts another.
    pub(crate) async fn replace_guard(&mut self) {
        let _ = self.guard.kill();
        self.guard.wait().unwrap();
        self.guard = spawn_guard(&self.layout);
        self.wait_for_guard().await;
    }

    /// A family like a database server's: sessions of their own, orphans, and one that ignores every polite signal.
    pub(crate) fn family(&self) -> StartCommand {
        self.shell(
            "sleep 600 & setsid sleep 600 & setsid sh -c 'trap \"\" INT TERM QUIT HUP; sleep 600; sleep 600' & \
             setsid sh -c 'setsid sleep 600 & exit' & exec sleep 600",
        )
    }

    pub(crate) fn shell(&self, script: &str) -> StartCommand {
        StartCommand {
            program: "/bin/sh".into(),
            arguments: vec!["-c".to_owned(), script.to_owned()],
            environment: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
            user: server_user(),
            data_dir: self.layout.data(),
            log_file: self.layout.server_log(),
        }
    }

    /// Starts the family and waits until all six are there: five that sleep and the shell that ignores signals.
    pub(crate) async fn start_family(&self, primary: Option<(mainstay_model::Term, Moment)>) -> u32 {
        let pid = self.client.start(self.family(), primary).await.unwrap();
        eventually("the family is complete", async || {
            let family = self.at_home();
            family.len() == 6 && family.into_iter().filter(|pid| name(*pid) == "sleep").count() == 5
        })
        .await;
        pid
    }

    pub(crate) fn at_home(&self) -> Vec<u32> {
        at_home(&self.layout.data())
    }

    pub(crate) fn guard_log(&self) -> String {
        std::fs::read_to_string(self.layout.guard_log()).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.guard.kill();
        let _ = self.guard.wait();
        let _ = reap_data_dir(&self.layout.data());
        if std::thread::panicking() {
            eprintln!("guard log:\n{}", self.guard_log());
            eprintln!("server log:\n{}", std::fs::read_to_string(self.layout.server_log()).unwrap_or_default());
        }
    }
}

/// The user that database servers run as; `None` if this is not root.
pub(crate) fn server_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.starts_with("postgres:")).expect("the user postgres");
    let mut fields = line.split(':').skip(2).map(|field| field.parse().unwrap());
    Some((fields.next().unwrap(), fields.next().unwrap()))
}

/// Living processes that work in this directory: this test's own view, apart from the guard's.
pub(crate) fn at_home(data: &Path) -> Vec<u32> {
    let data = std::fs::canonicalize(data).unwrap();
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data)).collect()
}

/// The state letter of a process, `None` if it is gone.
pub(crate) fn state(pid: u32) -> Option<char> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(')')?.1.trim().chars().next()
}

/// The name of a process's program.
pub(crate) fn name(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

/// Stops a process and waits until it is stopped.
pub(crate) async fn stop(pid: u32) {
    signal(pid, Signal::STOP);
    eventually("it is stopped", async || state(pid) == Some('T')).await;
}

/// Whatever is waited for comes within this, on a busy machine too.
const PATIENT: Duration = Duration::from_secs(60);
/// What happens at once is seen within this, on a busy machine too. How fast it is, benchmarks say.
pub(crate) const AT_ONCE: Span = Span(5000);

pub(crate) async fn eventually(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !is().await {
        assert!(begun.elapsed() < PATIENT, "not within {PATIENT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub(crate) async fn sleep_until(moment: Moment) {
    tokio::time::sleep(moment.since(boot_now()).to_std()).await;
}

/// Shortly before a deadline all of them are there. A look that ended after it says nothing, so it is taken while there is time.
pub(crate) async fn untouched_before(deadline: Moment, data: &Path, count: usize) {
    sleep_until(deadline - Span(250)).await;
    let found = at_home(data).len();
    if boot_now() < deadline {
        assert_eq!(found, count, "touched before the deadline");
    } else {
        println!("this machine was too busy to look before the deadline");
    }
}

pub(crate) fn ahead(millis: u64) -> Moment {
    boot_now() + Span(millis)
}

/// The example agent, built beside the guard.
pub(crate) fn example_agent() -> PathBuf {
    Path::new(GUARD).parent().unwrap().join("examples/agent")
}

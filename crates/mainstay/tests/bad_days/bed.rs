//! A cluster's files in a directory of its own, the agents that are started on them, and what is left of them in the process table.

use crate::support::{Everything, everything};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_mainstay");
/// Whatever is waited for comes within this.
const PATIENT: Duration = Duration::from_secs(90);
/// An agent that was asked to end has ended within this.
const ENDS: Duration = Duration::from_secs(60);

/// Files of a cluster whose nodes have joined. All of it, and every process that works in it, ends with it.
pub(crate) struct Bed {
    home: tempfile::TempDir,
    nodes: Vec<&'static str>,
    /// Which bed of this process it is.
    count: u32,
}

static BEDS: AtomicU32 = AtomicU32::new(0);
static LOGS: AtomicU32 = AtomicU32::new(0);

/// Room for a few copies of a small cluster.
fn roomy(place: &Path) -> bool {
    rustix::fs::statvfs(place).is_ok_and(|is| is.f_bavail.saturating_mul(is.f_frsize) > 2 << 30)
}

impl Bed {
    /// Makes the authority and lets these nodes join; names that begin with `w` are witnesses.
    pub(crate) fn new(nodes: &[&'static str]) -> Self {
        // In memory, if there is such a place: what is tested here are words, and each row copies a whole cluster's files.
        let place = [PathBuf::from("/dev/shm"), std::env::temp_dir()].into_iter().find(|place| roomy(place)).unwrap();
        let home = tempfile::Builder::new().prefix("ms").tempdir_in(place).unwrap();
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let bed = Self { home, nodes: nodes.to_vec(), count: BEDS.fetch_add(1, Ordering::Relaxed) };
        bed.write_file("");
        bed.done(&["pki", "init"]);
        for node in nodes {
            let bundle = bed.at("bundle");
            let bundle = bundle.to_str().unwrap();
            bed.done(&["pki", "issue", node, "--out", bundle]);
            bed.done(&["join", "--node", node, "--bundle", bundle]);
            std::fs::remove_dir_all(bundle).unwrap();
        }
        bed
    }

    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.home.path().join(path)
    }

    pub(crate) fn node(&self, name: &str) -> PathBuf {
        self.at("nodes").join(name)
    }

    /// An address that no other test uses.
    pub(crate) fn host(&self, name: &str) -> String {
        let place = self.nodes.iter().position(|node| *node == name).unwrap_or(200) + 1;
        let number = std::process::id();
        format!("127.{}.{}.{place}", 10 + number / 250 % 24 * 8 + self.count % 8, 1 + number % 250)
    }

    /// The text of the file, with more at its end.
    pub(crate) fn text(&self, more: &str) -> String {
        let mut text = "[cluster]\nname = \"orders\"\n".to_owned();
        for name in &self.nodes {
            let (host, dir) = (self.host(name), self.node(name));
            text.push_str(&format!("[[node]]\nname = \"{name}\"\nhost = \"{host}\"\ndir = \"{}\"\n", dir.display()));
            text.push_str(if name.starts_with('w') { "witness = true\n" } else { "" });
        }
        format!("{text}[proxy]\non_nodes = false\nhost = \"127.0.0.1\"\n{more}")
    }

    pub(crate) fn write_file(&self, more: &str) {
        std::fs::write(self.at("mainstay.toml"), self.text(more)).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .args(arguments)
            .env_clear()
            .env("HOME", self.home.path())
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("MAINSTAY_CONFIG", self.at("mainstay.toml"))
            .current_dir("/")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub(crate) fn done(&self, arguments: &[&str]) {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// A command that is started and not waited for.
    pub(crate) fn begin(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// What a command that reads says: its last line as an object, else nothing.
    pub(crate) fn read(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat());
        let out = String::from_utf8_lossy(&output.stdout);
        out.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default()
    }

    pub(crate) fn agent(&self, node: &'static str) -> Agent<'_> {
        self.agent_with(node, "mainstay.toml", &[])
    }

    pub(crate) fn agent_with(&self, node: &'static str, file: &str, environment: &[(&str, &str)]) -> Agent<'_> {
        let count = LOGS.fetch_add(1, Ordering::Relaxed);
        let log = self.at(&format!("{node}-{count}.log"));
        let out = std::fs::File::create(&log).unwrap();
        let mut command = self.command(&["agent", "--node", node, "--config", self.at(file).to_str().unwrap()]);
        command.envs(environment.iter().copied()).stdout(out.try_clone().unwrap()).stderr(out);
        Agent { bed: self, child: command.spawn().unwrap(), log }
    }

    /// The processes that belong to this cluster: they name its directory, or work in it.
    pub(crate) fn processes(&self) -> Vec<(i32, String)> {
        let home = self.home.path().to_str().unwrap();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let works_in = std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(home));
            // A process that has ended and not been waited for has no command line.
            if !line.is_empty() && (works_in || line.contains(home)) {
                found.push((pid, line));
            }
        }
        found
    }

    /// Nothing of it runs any more.
    pub(crate) fn nothing_left(&self) -> Result<(), String> {
        self.nothing_left_of("")
    }

    /// No process of it runs any more whose command line has these words (what is killed may take a moment to vanish).
    pub(crate) fn nothing_left_of(&self, words: &str) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            let left: Vec<_> = self.processes().into_iter().filter(|(_, line)| line.contains(words)).collect();
            if left.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > Duration::from_secs(20) {
                return Err(format!("left running: {left:?}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Kills all of it, for certain.
    pub(crate) fn kill_all(&self) {
        for _ in 0..20 {
            let all = self.processes();
            if all.is_empty() {
                return;
            }
            for (pid, _) in all {
                let pid = rustix::process::Pid::from_raw(pid).unwrap();
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What must not change: the data, and, if the agent does not even begin, its own files.
    pub(crate) fn precious(&self, node: &str, agent_too: bool) -> Everything {
        let dir = self.node(node);
        let mut all = everything(&dir.join("data"));
        let link = std::fs::read_link(dir.join("data")).unwrap_or_default();
        all.insert(dir.join("data"), (0, 0, link.into_os_string().into_encoded_bytes()));
        if agent_too {
            let passing = |path: &Path| path.extension().is_some_and(|kind| kind == "sock" || kind == "lock");
            all.extend(everything(&dir.join("agent")).into_iter().filter(|(path, _)| !passing(path)));
        }
        all
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.kill_all();
    }
}

/// A running agent. Killed with everything else of its bed, if it is not ended before.
pub(crate) struct Agent<'a> {
    bed: &'a Bed,
    child: Child,
    log: PathBuf,
}

impl<'a> Agent<'a> {
    pub(crate) fn bed(&self) -> &'a Bed {
        self.bed
    }

    /// What it has said so far, on one line.
    pub(crate) fn said(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&text).split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// The end of what it said, for people.
    pub(crate) fn last(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }

    /// Waits until this is so.
    pub(crate) fn until(&mut self, what: &str, mut so: impl FnMut(&Self) -> bool) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            if so(self) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                return Err(format!("not {what}: it has ended with {status}"));
            }
            if begun.elapsed() > PATIENT {
                return Err(format!("not {what} in time"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn until_writable(&mut self) -> Result<(), String> {
        self.until("writable", |agent| agent.bed.read(&["status"])["cluster"]["writable"] == true)
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, signal);
    }

    /// Waits for its end: its exit status, or the signal that ended it as a negative number.
    pub(crate) fn ended(&mut self) -> Result<i32, String> {
        let begun = Instant::now();
        while begun.elapsed() < ENDS {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Ok(status.code().unwrap_or_else(|| -status.signal().unwrap_or(0)));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(format!("it does not end within {ENDS:?}"))
    }

    /// Asks it to end in order; it must, and leave nothing running.
    pub(crate) fn end(mut self) -> Result<(), String> {
        self.signal(rustix::process::Signal::TERM);
        let ended = self.ended()?;
        if ended != 0 {
            return Err(format!("ended with {ended} after SIGTERM"));
        }
        Ok(())
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

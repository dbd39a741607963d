//! Real etcd servers for tests: on addresses of their own under 127.0.0.0/8, in a directory of their own, ended by their process ids.
//!
//! Needs the package `etcd-server`, and for snapshots `etcd-client`. `MAINSTAY_TEST_ETCD` names a directory with other versions of `etcd` and
//! `etcdctl`.

#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Slow machines need this for an election of etcd.
const UP: Duration = Duration::from_secs(60);

static NEXT: AtomicU32 = AtomicU32::new(1);

/// An address that no other test uses: from the process's id and a counter.
fn address() -> Ipv4Addr {
    let number = std::process::id() % 60_000;
    let [_, _, high, low] = number.to_be_bytes();
    let turn = NEXT.fetch_add(1, Ordering::Relaxed);
    Ipv4Addr::new(127, 100 + u8::try_from(turn % 100).unwrap(), high, low.max(1))
}

fn program(name: &str) -> PathBuf {
    let package = if name == "etcd" { "etcd-server" } else { "etcd-client" };
    let mut dirs: Vec<PathBuf> = std::env::var_os("MAINSTAY_TEST_ETCD").into_iter().map(PathBuf::from).collect();
    dirs.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let found = dirs.iter().map(|dir| dir.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("{name} is not installed. Debian, Ubuntu: apt-get install {package} (cargo xtask test does it); switch the service off afterwards")
    })
}

pub struct Member {
    pub address: Ipv4Addr,
    dir: PathBuf,
    child: Option<Child>,
}

pub struct Etcd {
    pub members: Vec<Member>,
    home: tempfile::TempDir,
    scheme: &'static str,
    options: Vec<String>,
    lives: u32,
}

impl Etcd {
    /// Starts that many members and waits until they answer.
    pub fn start(count: usize) -> Self {
        Self::start_with(count, "http", |_, _| Vec::new())
    }

    /// `options` gets the directory and the members' addresses.
    pub fn start_with(
        count: usize,
        scheme: &'static str,
        options: impl FnOnce(&Path, &[Ipv4Addr]) -> Vec<String>,
    ) -> Self {
        let home = tempfile::Builder::new().prefix("etcd").tempdir().unwrap();
        let members: Vec<Member> = (0..count)
            .map(|number| Member { address: address(), dir: home.path().join(format!("m{number}")), child: None })
            .collect();
        let addresses: Vec<Ipv4Addr> = members.iter().map(|member| member.address).collect();
        let options = options(home.path(), &addresses);
        let mut etcd = Self { members, home, scheme, options, lives: 0 };
        (0..count).for_each(|number| etcd.launch(number));
        etcd.wait();
        etcd
    }

    pub fn dir(&self) -> &Path {
        self.home.path()
    }

    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| format!("{}://{}:2379", self.scheme, member.address)).collect()
    }

    fn cluster(&self) -> String {
        let named =
            self.members.iter().enumerate().map(|(number, member)| format!("m{number}=http://{}:2380", member.address));
        named.collect::<Vec<_>>().join(",")
    }

    /// Starts a member; from what it kept, if it has something.
    pub fn launch(&mut self, number: usize) {
        let (client, peer) = {
            let address = self.members[number].address;
            (format!("{}://{address}:2379", self.scheme), format!("http://{address}:2380"))
        };
        self.lives += 1;
        let log = std::fs::File::create(self.home.path().join(format!("m{number}-{}.log", self.lives))).unwrap();
        let member = &self.members[number];
        let child = Command::new(program("etcd"))
            .args(["--name", &format!("m{number}"), "--data-dir", member.dir.to_str().unwrap()])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &self.cluster(), "--initial-cluster-state", "new"])
            .args(["--logger", "zap"])
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.members[number].child = Some(child);
    }

    /// Waits until every member that runs listens.
    pub fn wait(&mut self) {
        let until = Instant::now() + UP;
        for member in &mut self.members {
            let Some(child) = member.child.as_mut() else { continue };
            let at = SocketAddr::from((member.address, 2379));
            while TcpStream::connect_timeout(&at, Duration::from_secs(1)).is_err() {
                assert!(
                    child.try_wait().unwrap().is_none(),
                    "an etcd has ended; its log is in {}",
                    self.home.path().display()
                );
                assert!(Instant::now() < until, "an etcd does not listen on {at}");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    pub fn pid(&self, number: usize) -> u32 {
        self.members[number].child.as_ref().unwrap().id()
    }

    /// Ends a member as a crash would.
    pub fn kill(&mut self, number: usize) {
        if let Some(mut child) = self.members[number].child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn signal(&self, number: usize, signal: &str) {
        let done = Command::new("kill").args([signal, &self.pid(number).to_string()]).status().unwrap();
        assert!(done.success());
    }

    pub fn kill_all(&mut self) {
        (0..self.members.len()).for_each(|number| self.kill(number));
    }

    pub fn launch_all(&mut self) {
        (0..self.members.len()).for_each(|number| self.launch(number));
        self.wait();
    }

    pub fn ctl(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(program("etcdctl"));
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.endpoints()[0]]).args(arguments);
        command.output().unwrap()
    }

    pub fn ctl_ok(&self, arguments: &[&str]) -> String {
        let output = self.ctl(arguments);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "etcdctl {arguments:?}: {out} {err}");
        out.into_owned()
    }

    /// Of a single member: a copy of its present state.
    pub fn save(&self) -> PathBuf {
        let path = self.home.path().join("copy.db");
        let _ = std::fs::remove_file(&path);
        self.ctl_ok(&["snapshot", "save", path.to_str().unwrap()]);
        path
    }

    /// Of a single member: goes back to that state, as somebody does who restores a copy.
    pub fn restore(&mut self, copy: &Path) {
        self.kill_all();
        let (dir, peer) = (self.members[0].dir.clone(), format!("http://{}:2380", self.members[0].address));
        std::fs::remove_dir_all(&dir).unwrap();
        let tool = ["etcdutl", "etcdctl"].into_iter().find(|name| {
            *name == "etcdctl"
                || std::env::var_os("MAINSTAY_TEST_ETCD").is_some_and(|dir| Path::new(&dir).join(name).is_file())
        });
        let restored = Command::new(program(tool.unwrap()))
            .env("ETCDCTL_API", "3")
            .args(["snapshot", "restore", copy.to_str().unwrap(), "--name", "m0", "--data-dir", dir.to_str().unwrap()])
            .args(["--initial-cluster", &self.cluster(), "--initial-advertise-peer-urls", &peer])
            .output()
            .unwrap();
        assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
        self.launch_all();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill_all();
    }
}

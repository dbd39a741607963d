//! Bare hosts with a real sshd each, and an administrator whose ssh reaches them: for the tests of `mainstay apply`.

#![allow(dead_code, reason = "each test program uses its own part of it")]

pub(crate) mod existing;

use mainstay_testkit::cluster::program;
use mainstay_testkit::hosts::booted::system;
use mainstay_testkit::hosts::host::{Blueprint, Host};
use mainstay_testkit::hosts::network::Switch;
use mainstay_testkit::hosts::sshd::Admin;
use serde_json::Value;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub(crate) const FILE: &str = "/root/orders/mainstay.toml";
pub(crate) const CONFIG: &str = "/etc/mainstay/mainstay.toml";

/// Bare hosts, and an administrator whose ssh reaches them.
pub(crate) struct Bed {
    pub(crate) admin: Admin,
    pub(crate) hosts: Vec<Host>,
    pub(crate) program: PathBuf,
    pub(crate) switch: Switch,
    /// Of what hosts with systemd are made.
    system: Option<PathBuf>,
    // Removed last.
    dir: TempDir,
}

/// What a run of apply came to.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) answer: Value,
    pub(crate) said: String,
    pub(crate) took: Duration,
}

pub(crate) fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 78, 0, number)
}

/// The cluster's file with these nodes, and more.
pub(crate) fn file(nodes: &[u8], more: &str) -> String {
    let node = |number: &u8| format!("\n[[node]]\nname = \"db{number}\"\nhost = \"{}\"\n", address(*number));
    let nodes: String = nodes.iter().map(node).collect();
    format!(
        "# The cluster of this test.\n[cluster]\nname = \"orders\"\n{nodes}\n[postgres.parameters]\nshared_buffers = \"32MB\"\n\
         max_wal_size = \"128MB\"\nwal_keep_size = \"64MB\"\n{more}"
    )
}

impl Bed {
    pub(crate) fn new(hosts: u8) -> Bed {
        assert!(rustix::process::geteuid().is_root(), "virtual hosts need root: run this as root");
        let dir = tempfile::tempdir().unwrap();
        let start = |name: &str, number, volume_mb| {
            let (program, dir) = (env!("CARGO_BIN_EXE_testkit").into(), dir.path().join(name));
            Host::start(&Blueprint { name: name.to_owned(), address: address(number), dir, volume_mb, program })
                .unwrap()
        };
        let switch = Switch::start().unwrap();
        let hosts: Vec<Host> = (1..=hosts).map(|number| start(&format!("db{number}"), number, 1500)).collect();
        let admin = start("admin", 100, 0);
        hosts.iter().chain([&admin]).for_each(|host| switch.plug(host).unwrap());
        let admin = Admin::new(admin, dir.path()).unwrap();
        hosts.iter().for_each(|host| admin.let_in(host).unwrap());
        std::fs::create_dir(admin.home("orders")).unwrap();
        let program = program().unwrap().canonicalize().unwrap();
        Bed { admin, hosts, program, switch, system: None, dir }
    }

    /// The same with hosts whose first process is a systemd, with a Debian of their own. `place`: where that is kept.
    pub(crate) fn booted(hosts: u8, place: &Path) -> Bed {
        let mut bed = Bed::new(0);
        bed.system = Some(system(place).unwrap());
        bed.hosts = (1..=hosts).map(|number| bed.built(number)).collect();
        bed.hosts.iter().for_each(|host| bed.switched_on(host));
        bed
    }

    fn built(&self, number: u8) -> Host {
        let (name, program) = (format!("db{number}"), env!("CARGO_BIN_EXE_testkit").into());
        let dir = self.dir.path().join(&name);
        let blueprint = Blueprint { name, address: address(number), dir, volume_mb: 0, program };
        let host = Host::built(&blueprint, self.system.as_ref().unwrap()).unwrap();
        // Where it was on before, its cable goes a moment after it.
        let begun = Instant::now();
        while let Err(error) = self.switch.plug(&host) {
            assert!(begun.elapsed() < Duration::from_secs(10), "{error:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
        host
    }

    fn switched_on(&self, host: &Host) {
        let failed = host.power_on().unwrap();
        assert_eq!(failed, "", "units of {} failed", host.name());
        self.admin.let_in(host).unwrap();
    }

    /// Shuts a host down in order, and switches it on again.
    pub(crate) fn reboot(&mut self, number: u8) {
        let index = usize::from(number) - 1;
        self.hosts.remove(index).power_off().unwrap();
        let host = self.built(number);
        self.switched_on(&host);
        self.hosts.insert(index, host);
    }

    pub(crate) fn host(&self, number: u8) -> &Host {
        &self.hosts[usize::from(number) - 1]
    }

    pub(crate) fn write(&self, text: &str) {
        std::fs::write(self.admin.home("orders/mainstay.toml"), text).unwrap();
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let program = self.program.display().to_string();
        let mut words = vec![program.as_str()];
        words.extend_from_slice(arguments);
        self.admin.host.command(&words)
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(&[&["apply", "--file", FILE, "--yes", "--json"], arguments].concat());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Applies the file, and shows what it said.
    pub(crate) fn apply(&self, arguments: &[&str]) -> Ended {
        let begun = Instant::now();
        let output = self.start(arguments).wait_with_output().unwrap();
        ended(&output, begun.elapsed())
    }

    /// The same, which must go well.
    pub(crate) fn applied(&self, arguments: &[&str]) -> Ended {
        let ended = self.apply(arguments);
        if ended.code != Some(0) {
            self.show_logs();
        }
        assert_eq!(ended.code, Some(0), "{}", ended.said);
        ended
    }

    pub(crate) fn show_logs(&self) {
        for host in &self.hosts {
            let path = host.path("/var/lib/mainstay/orders/log/agent.log");
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- {}\n{}", host.name(), lines[lines.len().saturating_sub(15)..].join("\n"));
        }
    }

    /// How the cluster is, once every node does its part; after a minute as it is. A busy machine lets an answer be late.
    pub(crate) fn status(&self) -> Value {
        let begun = Instant::now();
        loop {
            let output = self.command(&["status", "--json", "--config", FILE]).output().unwrap();
            let status: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
            let nodes = status["nodes"].as_array().map_or(0, Vec::len);
            let whole = nodes > 0 && names(&status).len() == nodes && status["cluster"]["writable"] == true;
            if whole || begun.elapsed() > Duration::from_secs(60) {
                return status;
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// Nothing of ours is on this host.
    pub(crate) fn bare(&self, number: u8) -> bool {
        let host = self.host(number);
        let empty = |path: &str| std::fs::read_dir(host.path(path)).map_or(true, |mut all| all.next().is_none());
        let left = std::fs::read_dir(host.path("/usr/local/bin")).unwrap().flatten();
        let ours = left.filter(|entry| entry.file_name().to_string_lossy().contains("mainstay")).count();
        ours == 0 && empty("/etc/mainstay") && !host.path("/var/lib/mainstay/orders").exists()
    }
}

pub(crate) fn ended(output: &Output, took: Duration) -> Ended {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let said = format!("{err}{out}");
    println!("{said}\n── {:?} after {:.1} s", output.status.code(), took.as_secs_f64());
    let answer = out.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or(Value::Null);
    Ended { code: output.status.code(), answer, said, took }
}

pub(crate) fn names(status: &Value) -> Vec<String> {
    let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
    let well = nodes.iter().filter(|node| node["healthy"] == true);
    well.map(|node| node["name"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Stops a run of apply the hard way, wherever it is. Returns whether there was one.
pub(crate) fn kill_apply(bed: &Bed) -> bool {
    let ours = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        let program = words.next().unwrap_or_default().to_vec();
        program == bed.program.as_os_str().as_encoded_bytes() && words.next() == Some(b"apply")
    };
    let found: Vec<u32> = bed.admin.host.processes().into_iter().filter(ours).collect();
    for pid in &found {
        Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    }
    !found.is_empty()
}

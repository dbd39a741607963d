//! From an authority to joined hosts and people, with the real binary: by token and by bundle, and every way in which that must fail
//! without leaving anything behind. Starts no database server.

#![expect(clippy::unwrap_used, reason = "helpers of tests, too")]

use serde_json::Value;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use tempfile::TempDir;

/// The authority's host, the joining host, and where nodes keep their files.
struct Hosts {
    home: TempDir,
}

/// `pki serve`, ended with the test.
struct Serving {
    child: Child,
    at: String,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Hosts {
    fn new() -> Hosts {
        let home = tempfile::tempdir().unwrap();
        // The servers' user must be able to pass.
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let hosts = Hosts { home };
        for (host, cluster) in [("authority", "orders"), ("host", "orders"), ("stranger", "billing")] {
            std::fs::create_dir(hosts.path(host)).unwrap();
            let nodes = hosts.path("nodes");
            let mut text = format!("[cluster]\nname = \"{cluster}\"\n");
            for (node, witness) in [("db1", false), ("db2", false), ("db3", true)] {
                let dir = nodes.join(node).display().to_string();
                text.push_str(&format!(
                    "[[node]]\nname = \"{node}\"\nhost = \"127.0.0.{}\"\ndir = \"{dir}\"\n",
                    &node[2..]
                ));
                text.push_str(if witness { "witness = true\n" } else { "" });
            }
            std::fs::write(hosts.path(host).join("mainstay.toml"), text).unwrap();
        }
        hosts
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn command(&self, host: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
        command
            .args(arguments)
            .env_clear()
            .env("HOME", self.home.path())
            .env("PATH", "/usr/bin:/bin")
            .env("MAINSTAY_CONFIG", self.path(host).join("mainstay.toml"))
            .current_dir(self.home.path())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, host: &str, arguments: &[&str]) -> Output {
        self.command(host, arguments).output().unwrap()
    }

    fn done(&self, host: &str, arguments: &[&str]) -> String {
        let output = self.run(host, arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// It fails with this status, says this, says what to do next, and leaves the nodes' directories as they are.
    fn refused(&self, host: &str, arguments: &[&str], status: i32, says: &str) {
        let before = listing(&self.path("nodes"));
        let output = self.run(host, arguments);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {error}");
        assert!(error.contains(says) && error.contains("next:"), "{arguments:?}: {error}");
        assert_eq!(listing(&self.path("nodes")), before, "{arguments:?}");
    }

    fn token(&self, whom: &[&str]) -> String {
        self.done("authority", &[&["pki", "issue"], whom].concat()).trim().to_owned()
    }

    /// A file with this token.
    fn kept(&self, token: &str) -> String {
        static KEPT: AtomicU8 = AtomicU8::new(0);
        let path = self.path(&format!("token-{}", KEPT.fetch_add(1, Ordering::Relaxed)));
        std::fs::write(&path, token).unwrap();
        path.display().to_string()
    }

    fn serve(&self) -> Serving {
        // An address that no other test uses.
        static SERVED: AtomicU8 = AtomicU8::new(0);
        let (process, number) = (std::process::id(), SERVED.fetch_add(1, Ordering::Relaxed));
        let at = format!("127.{}.{}.{}:7422", 220 + number % 30, (process >> 8) % 256, process % 256);
        let mut command = self.command("authority", &["pki", "serve", "--listen", &at, "--for", "300s"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = String::new();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        lines.read_line(&mut first).unwrap();
        assert!(first.contains("Waiting on"), "{first}");
        // What it says later must find room.
        std::thread::spawn(move || lines.lines().count());
        Serving { child, at }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Every file below, with its length and mode.
fn listing(dir: &Path) -> Vec<(PathBuf, u64, u32)> {
    let mut list = Vec::new();
    let Ok(entries) = std::fs::read_dir(dir) else { return list };
    for entry in entries.flatten() {
        let metadata = entry.metadata().unwrap();
        list.push((entry.path(), if metadata.is_dir() { 0 } else { metadata.len() }, metadata.mode()));
        if metadata.is_dir() {
            list.extend(listing(&entry.path()));
        }
    }
    list.sort();
    list
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).mode() & 0o7777
}

#[test]
fn an_authority_is_made_once_and_whole() {
    let hosts = Hosts::new();
    hosts.refused("authority", &["pki", "issue", "db1"], 1, "the cluster's authority is not here");
    let made: Value = serde_json::from_str(&hosts.done("authority", &["pki", "init", "--json"])).unwrap();
    assert_eq!(made["fingerprint"].as_str().unwrap().len(), 64);
    let at = |name: &str| hosts.path("authority").join(name);
    for secret in ["pki/ca.key", "pki/admin.key", "secrets/app.password", "pki/issued.jsonl"] {
        assert_eq!(mode(&at(secret)), 0o600, "{secret}");
    }
    assert_eq!((mode(&at("pki")), mode(&at("secrets"))), (0o700, 0o700));
    let key = std::fs::read(at("pki/ca.key")).unwrap();
    hosts.refused("authority", &["pki", "init"], 1, "exists already");
    assert_eq!(std::fs::read(at("pki/ca.key")).unwrap(), key);
    hosts.refused("authority", &["pki", "serve"], 3, "no open token");
    hosts.refused("authority", &["pki", "issue", "db7"], 2, "has no node db7");
    hosts.refused("authority", &["pki", "issue", "db7"], 2, "--host HOST");
    hosts.done("authority", &["pki", "issue", "db7", "--host", "10.0.0.7"]);
    hosts.refused("authority", &["pki", "issue", "--proxy", "a/b"], 2, "is not a name");
}

#[test]
fn a_token_takes_its_host_in_once_and_nobody_else() {
    let hosts = Hosts::new();
    hosts.done("authority", &["pki", "init"]);
    let (token, other) = (hosts.token(&["db2"]), hosts.token(&["db3"]));
    let at = "127.0.0.1:1";
    hosts.refused("host", &["join", "--node", "db2", "--token", &token, "--at", at], 2, "not the token itself");
    hosts.refused("host", &["join", "--node", "db2", "--token", "/none", "--at", at], 2, "can not be read from /none");
    hosts.refused("host", &["join", "--node", "db2", "--token", &hosts.kept(&token), "--at", at], 1, "refused");
    let serving = hosts.serve();
    let join = |node: &'static str, token: &str, more: &[&str]| -> Vec<String> {
        let token = hosts.kept(token);
        let fixed = ["join", "--node", node, "--token", &token, "--at", &serving.at];
        fixed.iter().chain(more).map(|word| (*word).to_owned()).collect()
    };
    let refused = |host: &str, arguments: &[String], status: i32, says: &str| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        hosts.refused(host, &arguments, status, says);
    };
    refused("host", &join("db1", &token, &[]), 1, "the token is for node db2, not for node db1");
    refused("stranger", &join("db2", &token, &[]), 1, "the token is of the cluster orders, the file says billing");
    refused("host", &join("db2", &token[1..], &[]), 2, "not a whole join token");
    let forged = token.replacen(&token[17..25], "00000000", 1);
    refused("host", &join("db2", &forged, &[]), 1, "is not known here");
    let strange = format!("{}{}", &token[..66], "ab".repeat(32));
    refused("host", &join("db2", &strange, &[]), 1, "not the authority that the token names");
    assert!(!hosts.path("nodes").exists(), "nothing half-made is left");

    let good = join("db2", &token, &["--json"]);
    let good: Vec<&str> = good.iter().map(String::as_str).collect();
    let joined: Value = serde_json::from_str(&hosts.done("host", &good)).unwrap();
    assert_eq!(joined["already"], false);
    let node = hosts.path("nodes/db2");
    for (path, bits) in [
        ("", 0o711),
        ("agent", 0o700),
        ("agent/node.key", 0o600),
        ("agent/proxy.key", 0o600),
        ("agent/app.verifier", 0o600),
        ("agent/ca.crt", 0o644),
        ("data", 0o700),
        ("conf/server.key", 0o600),
        ("conf/replication.key", 0o600),
    ] {
        assert_eq!(mode(&node.join(path)), bits, "{path}");
    }
    let owner = |path: &str| std::fs::metadata(node.join(path)).unwrap().uid();
    assert_eq!((owner("conf"), owner("agent")), (owner("conf/server.key"), owner("agent/node.key")));
    let key = std::fs::read(node.join("agent/node.key")).unwrap();

    let again: Value = serde_json::from_str(&hosts.done("host", &good)).unwrap();
    assert_eq!(again["already"], true);
    refused("host", &join("db2", &token, &["--again"]), 2, "not confirmed");
    refused("host", &join("db2", &token, &["--again", "--yes"]), 1, "the token has been used already");
    assert_eq!(std::fs::read(node.join("agent/node.key")).unwrap(), key, "the keys in use are kept");

    // The last one comes, and the authority's side ends by itself.
    let last = join("db3", &other, &[]);
    hosts.done("host", &last.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(hosts.path("nodes/db3/agent/node.key").exists() && !hosts.path("nodes/db3/data").exists());
    let mut serving = serving;
    assert!(serving.child.wait().unwrap().success());
    let list: Value = serde_json::from_str(&hosts.done("authority", &["pki", "list", "--json"])).unwrap();
    assert_eq!((&list["used_tokens"], list["open_tokens"].as_array().unwrap().len()), (&Value::from(2), 0));
    assert_eq!(list["issued"].as_array().unwrap().len(), 1 + 4 + 2, "admin, four of db2, two of the witness");
}

#[test]
fn a_bundle_serves_its_node_only_and_renewal_is_asked_for() {
    let hosts = Hosts::new();
    hosts.done("authority", &["pki", "init"]);
    let (first, second) = (hosts.path("first"), hosts.path("second"));
    let (first, second) = (first.to_str().unwrap(), second.to_str().unwrap());
    hosts.done("authority", &["pki", "issue", "db1", "--out", first]);
    assert_eq!(mode(Path::new(first)), 0o700);
    hosts.refused("authority", &["pki", "issue", "db1", "--out", first], 1, "is not empty");
    hosts.refused("host", &["join", "--node", "db2", "--bundle", first], 1, "is for node db1");
    hosts.refused("stranger", &["join", "--node", "db1", "--bundle", first], 1, "is of the cluster orders");
    hosts.refused("host", &["join", "--node", "db1", "--bundle", "/nonexistent"], 2, "/nonexistent");
    hosts.done("host", &["join", "--node", "db1", "--bundle", first]);
    let key = || std::fs::read(hosts.path("nodes/db1/agent/node.key")).unwrap();
    let old = key();
    hosts.done("authority", &["pki", "issue", "db1", "--out", second]);
    hosts.done("host", &["join", "--node", "db1", "--bundle", second]);
    assert_eq!(key(), old, "without --again nothing changes");
    hosts.done("host", &["join", "--node", "db1", "--bundle", second, "--again", "--yes"]);
    assert_ne!(key(), old);
    // A file is missing: said, and mended on request.
    std::fs::remove_file(hosts.path("nodes/db1/conf/server.key")).unwrap();
    hosts.refused("host", &["join", "--node", "db1", "--bundle", second], 1, "does not");
    hosts.done("host", &["join", "--node", "db1", "--bundle", second, "--again", "--yes"]);
    assert_eq!(mode(&hosts.path("nodes/db1/conf/server.key")), 0o600);
    // A key that is not its certificate's.
    std::fs::copy(Path::new(first).join("node.key"), Path::new(second).join("node.key")).unwrap();
    let bad = ["join", "--node", "db1", "--bundle", second, "--again", "--yes"];
    let before = key();
    let output = hosts.run("host", &bad);
    assert!(text(&output.stderr).contains("do not belong together"), "{}", text(&output.stderr));
    assert_eq!(key(), before);
}

#[test]
fn a_person_joins_beside_the_file_and_another_authority_is_noticed() {
    let hosts = Hosts::new();
    hosts.done("authority", &["pki", "init"]);
    let token = hosts.kept(&hosts.token(&["--operator", "ann"]));
    let serving = hosts.serve();
    hosts.refused("host", &["join", "--admin", "ann", "--token", &token, "--at", &serving.at], 1, "for operator ann");
    assert!(!hosts.path("host/pki").exists());
    hosts.done("host", &["join", "--operator", "ann", "--token", &token, "--at", &serving.at]);
    assert_eq!(mode(&hosts.path("host/pki/operator.key")), 0o600);
    assert!(!hosts.path("host/pki/ca.key").exists());
    // The authority is made anew: what it issues does not silently replace what is there.
    std::fs::remove_dir_all(hosts.path("authority/pki")).unwrap();
    std::fs::remove_dir_all(hosts.path("authority/secrets")).unwrap();
    hosts.done("authority", &["pki", "init"]);
    let bundle = hosts.path("ann");
    hosts.done("authority", &["pki", "issue", "--operator", "ann", "--out", bundle.to_str().unwrap()]);
    hosts.refused("host", &["join", "--operator", "ann", "--bundle", bundle.to_str().unwrap()], 1, "another authority");
}

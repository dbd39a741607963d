//! A copy that is fed from the repository alone: it follows writes and a change of primary, goes on after whatever ended it, bears a repository that is
//! away, and becomes a database of its own with exactly what was archived. Starts real servers.

#![expect(clippy::unwrap_used, reason = "helpers of tests, too")]

#[path = "../../vault/tests/real/bucket_server/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the vault's own tests use the rest")]
mod bucket_server;
#[path = "support/local.rs"]
mod local;
#[path = "support/sql.rs"]
mod sql;
#[path = "support/until.rs"]
mod until;

use bucket_server::{Dialect, Fault, Server};
use local::Cluster;
use serde_json::Value;
use std::hash::BuildHasher as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;
use until::until;

const SUM: &str = "select count(*), md5(coalesce(string_agg(id || note, ',' order by id), '')) from ledger";

/// The copy, and whoever feeds it.
struct Copy {
    to: PathBuf,
    vault: PathBuf,
    running: Option<Child>,
}

impl Copy {
    fn of(cluster: &Cluster) -> Copy {
        let home = cluster.dir.parent().unwrap();
        Copy { to: home.join("copy"), vault: cluster.dir.join("vault"), running: None }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
        command.args(["follow", "--to", self.to.to_str().unwrap()]).args(arguments).stdin(Stdio::null());
        command
    }

    fn start(&mut self, arguments: &[&str]) {
        self.running = Some(self.command(arguments).spawn().unwrap());
    }

    /// Tells it; how it ended.
    fn end(&mut self, signal: &str) -> Option<i32> {
        let mut running = self.running.take().unwrap();
        assert!(Command::new("kill").args([signal, &running.id().to_string()]).status().unwrap().success());
        running.wait().unwrap().code()
    }

    /// What its server answers.
    fn ask(&self, text: &str) -> Option<String> {
        let socket = self.to.join("mainstay_run");
        let ran = Command::new("psql")
            .args(["-h", socket.to_str().unwrap(), "-U", "postgres", "-d", "app", "-XAtc", text])
            .output()
            .unwrap();
        ran.status.success().then(|| String::from_utf8_lossy(&ran.stdout).trim().to_owned())
    }

    fn shows(&self, rows: &str) {
        until(&format!("{rows} in the copy: {}", self.status(&[]).1), || {
            (self.ask(SUM).as_deref() == Some(rows)).then_some(())
        });
    }

    fn status(&self, more: &[&str]) -> (Option<i32>, Value) {
        let ran = self.command(&[&["--status", "--json"], more].concat()).output().unwrap();
        let out = String::from_utf8_lossy(&ran.stdout);
        let last = out.lines().last().and_then(|line| serde_json::from_str(line).ok());
        (ran.status.code(), last.unwrap_or_else(|| panic!("{out}")))
    }

    fn server(&self) -> Option<u32> {
        std::fs::read_to_string(self.to.join("postmaster.pid")).ok()?.lines().next()?.parse().ok()
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = running.kill();
            let _ = running.wait();
        }
        // Its own, by its own note.
        let stands = |pid: u32| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|at| at == self.to);
        if let Some(pid) = self.server().filter(|pid| stands(*pid)) {
            let _ = Command::new("kill").args(["-QUIT", &pid.to_string()]).status();
        }
    }
}

impl Cluster {
    fn write(&self, rows: u32) -> String {
        self.sql(&format!("insert into ledger(note) select md5(i::text) from generate_series(1, {rows}) i"));
        self.sql(SUM)
    }
}

fn bytes(lsn: &str) -> u64 {
    lsn.parse::<mainstay_model::Lsn>().unwrap().0
}

/// All files below a directory.
fn names(dir: &Path) -> Vec<PathBuf> {
    let (mut all, mut dirs) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { dirs.push(path) } else { all.push(path) }
        }
    }
    all.sort();
    all
}

/// A promoted copy, started as its owner would.
fn started(copy: &Copy, bin: &Path) -> Child {
    let is = copy.to.metadata().unwrap();
    let config = format!("config_file={}", copy.to.join("mainstay_scratch.conf").display());
    let mut command = Command::new(bin.join("postgres"));
    command.args(["-D", copy.to.to_str().unwrap(), "-c", &config]).current_dir(&copy.to).stderr(Stdio::null());
    command.uid(is.uid()).gid(is.gid());
    command.spawn().unwrap()
}

/// A promoted copy holds these rows, and takes writes.
fn is_its_own_with(copy: &Copy, rows: &str) {
    let mut server = started(copy, &programs(copy));
    until("the promoted copy", || copy.ask("select 1"));
    assert_eq!(copy.ask(SUM).as_deref(), Some(rows));
    let own = copy.ask("insert into ledger(note) values ('own') returning note");
    assert_eq!(own.as_deref().map(|text| &text[..3]), Some("own"));
    assert!(Command::new("kill").args(["-INT", &server.id().to_string()]).status().unwrap().success());
    server.wait().unwrap();
}

/// Where the server's programs are, by what the copy says of its last start.
fn programs(copy: &Copy) -> PathBuf {
    let text = std::fs::read_to_string(copy.to.join("postmaster.opts")).unwrap();
    Path::new(text.split_whitespace().next().unwrap()).parent().unwrap().to_owned()
}

#[test]
fn a_copy_follows_the_repository_alone_and_is_promoted_with_what_was_archived() {
    let cluster = Cluster::new();
    cluster.json(&["up", "--nodes", "2", "--wait", "180"]);
    cluster.healthy();
    cluster.json(&["set", "vault.switch_s=2"]);
    cluster.sql("create table ledger(id bigserial primary key, note text)");
    cluster.write(1000);
    until("a backup", || (cluster.answer(&["backup"]).0 == Some(0)).then_some(()));
    let mut copy = Copy::of(&cluster);
    let vault = copy.vault.to_str().unwrap().to_owned();
    let refused = copy.command(&[]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "no repository is named");

    // The backup, and what was written since.
    let rows = cluster.write(500);
    copy.start(&["--repository", &vault]);
    copy.shows(&rows);
    let well = || Some(copy.status(&["--most-age", "600"])).filter(|(code, _)| *code == Some(0));
    let (_, status) = until("well", well);
    assert!(status["runs"] == true && status["serves"] == true, "{status}");
    let old = copy.status(&["--most-age", "0"]);
    assert!(old.0 == Some(1) && old.1["problems"][0].as_str().unwrap().contains("may be 0 s old"), "{old:?}");
    assert!(copy.ask("create table x()").is_none(), "it takes no writes");
    let set = "select setting from pg_settings where name in ('archive_mode', 'primary_conninfo', 'listen_addresses') order by name";
    assert_eq!(copy.ask(set).as_deref(), Some("off"), "it reaches nobody, and nobody it");

    // A change of primary.
    until("a switchover", || (cluster.answer(&["switchover"]).0 == Some(0)).then_some(()));
    let rows = cluster.write(500);
    copy.shows(&rows);
    until("told", || (copy.status(&[]).1["timeline"].as_u64() > status["timeline"].as_u64()).then_some(()));

    // Killed, with its server left behind.
    copy.end("-KILL");
    let left = copy.server().unwrap();
    let (code, status) = copy.status(&[]);
    assert!(
        code == Some(1) && status["problems"][0].as_str().unwrap().contains("no `mainstay follow` runs"),
        "{status}"
    );
    let rows = cluster.write(500);
    copy.start(&[]);
    copy.shows(&rows);
    assert!(copy.server() != Some(left) && !Path::new(&format!("/proc/{left}")).exists());
    let second = copy.command(&[]).output().unwrap();
    assert_eq!(second.status.code(), Some(3), "one at a time");

    // The repository is away: what is there is read on, and then it goes on.
    let away = cluster.dir.join("away");
    std::fs::rename(&copy.vault, &away).unwrap();
    until("told", || copy.status(&[]).1["unread"].as_str().map(|_| ()));
    let unseen = cluster.write(500);
    assert_eq!(copy.ask(SUM).as_deref(), Some(rows.as_str()));
    std::fs::rename(&away, &copy.vault).unwrap();
    copy.shows(&unseen);
    until("told", || copy.status(&[]).1["unread"].is_null().then_some(()));

    // Ended in order, and made anew where it lies.
    assert_eq!(copy.end("-TERM"), Some(0));
    assert!(copy.server().is_none());
    let rows = cluster.write(500);
    let backup = || {
        let mark: Value =
            serde_json::from_slice(&std::fs::read(copy.to.join("mainstay_follow.json")).unwrap()).unwrap();
        mark["backup"].as_str().unwrap().to_owned()
    };
    let before = backup();
    until("a newer backup", || (cluster.answer(&["backup"]).0 == Some(0)).then_some(()));
    copy.start(&["--again", "--yes"]);
    copy.shows(&rows);
    let mark = std::fs::read_to_string(copy.to.join("mainstay_follow.json")).unwrap();
    assert!(!mark.contains(&before), "made of the newest backup: {mark}");

    promoted_with_what_was_archived(&cluster, copy, &rows);
}

/// The place is lost: nothing of what comes now is archived.
fn promoted_with_what_was_archived(cluster: &Cluster, mut copy: Copy, rows: &str) {
    let away = cluster.dir.join("away");
    std::fs::rename(&copy.vault, &away).unwrap();
    let lost = cluster.write(500);
    assert_ne!(lost, rows);
    let place = away.to_str().unwrap();
    let before = names(&away);
    let ran = copy.command(&["--promote", "--yes", "--json", "--repository", place]).output().unwrap();
    let out = String::from_utf8_lossy(&ran.stdout);
    assert_eq!(ran.status.code(), Some(0), "{out} {}", String::from_utf8_lossy(&ran.stderr));
    let answer: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert!(answer["all_archived"] == true && answer["repository_read"] == true, "{answer}");
    assert!(answer["timeline"].as_u64() > Some(1000), "{answer}");
    assert_eq!(copy.running.take().unwrap().wait().unwrap().code(), Some(0), "it was told to end");
    assert_eq!((names(&away), copy.server()), (before, None), "nothing was written there");

    // A database of its own, with exactly that.
    is_its_own_with(&copy, rows);
    let again = copy.command(&["--repository", place]).output().unwrap();
    assert_eq!(again.status.code(), Some(2), "nothing follows there again");
}

/// So often a promotion is killed; the long suite asks for more.
fn kills() -> u32 {
    std::env::var("MAINSTAY_FOLLOW_KILLS").map_or(2, |count| count.parse().unwrap())
}

#[test]
fn a_copy_of_a_bucket_is_promoted_with_all_that_is_archived_whenever_that_is_killed() {
    let (cluster, store) = (Cluster::new(), Server::start(Dialect::S3));
    cluster.json(&["up", "--nodes", "1", "--wait", "180"]);
    cluster.healthy();
    let beside = cluster.dir.parent().unwrap().to_owned();
    let place = store.address(&beside, "main", 5).display().to_string();
    cluster.json(&["set", &format!("vault.repository={place}"), "vault.switch_s=2"]);
    cluster.sql("create table ledger(id bigserial primary key, note text)");
    cluster.write(1000);
    until("a backup", || (cluster.answer(&["backup"]).0 == Some(0)).then_some(()));
    let mut copy = Copy::of(&cluster);
    copy.start(&["--repository", &place]);
    copy.shows(&cluster.write(500));

    // The bucket fails at every request, and at every third: what is there is read on, and then it goes on.
    store.storm(1, &[Fault::Status(503, "SlowDown")]);
    let told = until("told", || copy.status(&[]).1["unread"].as_str().map(str::to_owned));
    assert!(told.contains("503"), "{told}");
    assert!(copy.ask(SUM).is_some());
    store.storm(3, &[Fault::Status(500, "InternalError"), Fault::Cut]);
    copy.shows(&cluster.write(500));
    store.storm(0, &[]);
    assert_eq!(copy.end("-TERM"), Some(0));

    // Something is left to be brought in, and the cluster is gone.
    let rows = cluster.write(500);
    let end = bytes(&cluster.sql("select pg_current_wal_lsn()"));
    until("archived", || {
        let archived = cluster.json(&["archive", "status"])["archived"]["lsn"].as_str().map(bytes);
        (archived >= Some(end)).then_some(())
    });
    assert!(cluster.run(&["down"]).status.success());
    let saved = beside.join("saved");
    let copied = |from: &Path, to: &Path| {
        assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
    };
    copied(&copy.to, &saved);
    let promoting = || copy.command(&["--promote", "--yes", "--json"]);
    let promoted = |cut: &str| {
        let ran = promoting().output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        let log = std::fs::read_to_string(copy.to.join("mainstay_scratch.log")).unwrap_or_default();
        assert_eq!(ran.status.code(), Some(0), "{cut}: {out} {err} {log}");
        let answer: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
        assert!(answer["all_archived"] == true && answer["repository_read"] == true, "{cut}: {answer}");
        is_its_own_with(&copy, &rows);
        answer["timeline"].as_u64().unwrap()
    };
    let begun = Instant::now();
    let timeline = promoted("not killed");
    let took = begun.elapsed();
    for number in 0..kills() {
        std::fs::remove_dir_all(&copy.to).unwrap();
        copied(&saved, &copy.to);
        let chance = f64::from(std::collections::hash_map::RandomState::new().hash_one(number) as u32);
        let after = took.mul_f64((f64::from(number) + chance / f64::from(u32::MAX)) / f64::from(kills()));
        let mut running = promoting().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(after);
        running.kill().unwrap();
        running.wait().unwrap();
        if !copy.to.join("mainstay_follow.json").exists() {
            // It was done.
            is_its_own_with(&copy, &rows);
            continue;
        }
        let is = copy.status(&[]).1;
        assert_eq!(promoted(&format!("killed after {after:?} as {is}")), timeline);
    }
}

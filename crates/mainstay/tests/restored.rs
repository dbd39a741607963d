//! Backups of a cluster on this machine, and copies of it as it was: before and after a take-over, compared with what was written. Starts
//! real servers.

#![expect(clippy::unwrap_used, reason = "helpers of tests, too")]

#[path = "support/local.rs"]
mod local;
#[path = "support/lost_primary.rs"]
mod lost_primary;
#[path = "support/until.rs"]
mod until;

use local::Cluster;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use until::{PATIENCE, until};

/// What a copy is compared by.
const SUM: &str =
    "select count(*), coalesce(max(id), 0), md5(coalesce(string_agg(id || note, ',' order by id), '')) from ledger";

impl Cluster {
    /// One row, through the address for writes.
    fn sql(&self, text: &str) -> Vec<String> {
        let begun = Instant::now();
        loop {
            let output = self.run(&["connect", "--", "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", text]);
            if output.status.success() {
                let out = String::from_utf8_lossy(&output.stdout);
                let last = out.lines().rev().find(|line| line.contains('|') || !line.is_empty()).unwrap_or_default();
                return last.split('|').map(str::to_owned).collect();
            }
            // While a take-over goes on; a statement that may have been carried out is not sent again.
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(begun.elapsed() < PATIENCE && !text.contains("insert"), "{error}");
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// Adds rows, and says what the ledger holds then.
    fn write(&self, rows: u32) -> Vec<String> {
        self.sql(&format!("insert into ledger(note) select md5(i::text) from generate_series(1, {rows}) i"));
        self.sql(SUM)
    }

    /// The server's clock, between two writes.
    fn now(&self) -> String {
        std::thread::sleep(Duration::from_millis(20));
        let at = self.sql("select to_char(clock_timestamp() at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')");
        std::thread::sleep(Duration::from_millis(20));
        at[0].clone()
    }

    /// The ledger of a copy as of a moment.
    fn restored(&self, name: &str, moment: &[&str]) -> Vec<String> {
        let to = self.dir.parent().unwrap().join(name);
        let arguments = [&["restore", "--to", to.to_str().unwrap(), "--sql", SUM], moment].concat();
        let answer = self.json(&arguments);
        let row = answer["rows"][0].as_array().unwrap_or_else(|| panic!("{answer}"));
        row.iter().map(|field| field.as_str().unwrap().to_owned()).collect()
    }

    /// Begins a backup, once one can be begun.
    fn begin(&self) -> Value {
        self.once(&["backup", "--wait", "0"])
    }

    /// How backups stand, once they stand as wanted.
    fn backups_until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let backup = self.json(&["archive", "status"])["backup"].clone();
            if wanted(&backup) {
                return backup;
            }
            assert!(begun.elapsed() < PATIENCE, "not {what}: {backup}");
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Makes a backup, once none runs.
    fn backup(&self, options: &[&str]) -> Value {
        self.once(&[&["backup"], options].concat())["backup"].clone()
    }

    /// Takes a step that may have to wait for another.
    fn once(&self, arguments: &[&str]) -> Value {
        until(&arguments.join(" "), || {
            let (status, answer) = self.answer(arguments);
            assert!(matches!(status, Some(0 | 3)), "{answer}");
            (status == Some(0)).then_some(answer)
        })
    }
}

#[test]
fn a_copy_is_exactly_what_was_committed_then_before_and_after_a_take_over() {
    let cluster = Cluster::new();
    cluster.json(&["up", "--nodes", "3", "--wait", "180"]);
    cluster.healthy();
    cluster.sql("create table ledger(id bigserial primary key, note text)");
    cluster.write(1000);
    let none = cluster.dir.with_extension("none");
    let (status, answer) = until("a repository: the first look of whoever archives makes it", || {
        Some(cluster.answer(&["restore", "--to", none.to_str().unwrap()])).filter(|answered| answered.0 != Some(1))
    });
    assert_eq!(status, Some(3), "there is no backup yet: {answer}");

    let first = cluster.backup(&[]);
    let primary = cluster.json(&["status"])["cluster"]["primary"].clone();
    assert!(first["node"] != primary && first["incremental"] == false, "{first}");
    let before = cluster.write(500);
    let then = cluster.now();
    cluster.write(500);

    cluster.kill_primary();
    let after = cluster.write(700);
    let later = cluster.now();
    let last = cluster.write(300);
    let second = cluster.backup(&["--incremental"]);
    assert_eq!(second["incremental"], true, "{second}");
    assert!(second["stop"]["timeline"].as_u64() > first["stop"]["timeline"].as_u64(), "{first} {second}");

    assert_eq!(cluster.restored("then", &["--time", &then]), before, "before the take-over");
    assert_eq!(cluster.restored("later", &["--time", &later]), after, "after it");
    assert_eq!(cluster.restored("end", &["--time", &cluster.now()]), last, "nothing was written since");
    let newest = cluster.write(1);
    assert_eq!(cluster.restored("latest", &[]), newest, "what was committed a moment ago is archived first");
    assert_ne!(newest, last);

    // The copy of then is brought to the end: what it holds already is not written again.
    let copy = cluster.dir.parent().unwrap().join("then");
    let arguments = ["restore", "--to", copy.to_str().unwrap(), "--delta", "--sql", SUM];
    let answer = cluster.json(&arguments);
    let row = answer["rows"][0].as_array().unwrap_or_else(|| panic!("{answer}"));
    assert_eq!(row.iter().map(|field| field.as_str().unwrap()).collect::<Vec<_>>(), newest, "{answer}");
    assert!(answer["kept"].as_u64() > answer["bytes"].as_u64(), "{answer}");
    assert_eq!(answer["open_segment_archived"], true, "{answer}");
    // Ended while its server runs, it takes that with it, and the same command goes on.
    let slow = ["restore", "--to", copy.to_str().unwrap(), "--delta", "--yes", "--sql", "select pg_sleep(600)"];
    let mut running = cluster.command(&slow).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let pid = || std::fs::read_to_string(copy.join("postmaster.pid")).ok()?.lines().next()?.parse::<u32>().ok();
    let server = until("its server", pid);
    let end = Command::new("kill").args(["-TERM", &running.id().to_string()]).status().unwrap();
    assert!(end.success() && running.wait().unwrap().code() == Some(1));
    assert!(pid().is_none() && !Path::new(&format!("/proc/{server}")).exists());
    // From the older backup, as if the newer one were damaged; nothing else than a copy is written over.
    let answer = cluster.json(&[&arguments[..], &["--backup", first["label"].as_str().unwrap()]].concat());
    assert!(answer["backup"] == first["label"] && answer["rows"][0][0].as_str() == Some(&newest[0]), "{answer}");
    let data = cluster.dir.join("nodes/db1/data");
    for (place, says) in [(data.as_path(), "is no copy"), (cluster.dir.parent().unwrap(), "is no copy")] {
        let (status, answer) = cluster.answer(&["restore", "--to", place.to_str().unwrap(), "--delta"]);
        assert!(status == Some(2) && answer["error"].as_str().unwrap().contains(says), "{answer}");
    }
    cluster.healthy();

    let listed = cluster.json(&["backups"]);
    let labels: Vec<&Value> = listed["backups"].as_array().unwrap().iter().map(|backup| &backup["label"]).collect();
    assert_eq!(labels, [&first["label"], &second["label"]]);
    assert!(!listed["backups"][0]["kept"].as_array().unwrap().is_empty(), "{listed}");
    let verified = cluster.json(&["verify"]);
    assert_eq!(verified["good"].as_array().unwrap().len(), 2, "{verified}");

    // What can not be had is refused, and what can be had is named.
    let to = cluster.dir.parent().unwrap().join("early");
    let (status, answer) = cluster.answer(&["restore", "--to", to.to_str().unwrap(), "--time", "2001-01-01"]);
    assert_eq!(status, Some(3));
    assert!(answer["error"].as_str().unwrap().contains("the earliest moment is"), "{answer}");
    let (status, answer) = cluster.answer(&["restore", "--to", to.to_str().unwrap(), "--lsn", "FFFF/0"]);
    assert!(status == Some(3) && answer["error"].as_str().unwrap().contains("the latest position"), "{answer}");
    assert!(!to.exists());
}

#[test]
fn one_backup_at_a_time_in_a_repository_that_only_its_key_opens() {
    let cluster = Cluster::new();
    cluster.json(&["up", "--nodes", "2", "--wait", "180"]);
    cluster.healthy();
    cluster.sql("create table ledger(id bigserial primary key, note text)");
    let rows = cluster.write(100);
    let beside = |name: &str| cluster.dir.parent().unwrap().join(name).display().to_string();
    for name in ["ours", "other"] {
        let program = env!("CARGO_BIN_EXE_mainstay");
        let made = std::process::Command::new(program).args(["archive", "key", &beside(name)]).output().unwrap();
        assert!(made.status.success());
    }
    let (key, place) = (format!("vault.key_file={}", beside("ours")), format!("vault.repository={}", beside("sealed")));
    cluster.json(&["set", &place, &key, "vault.backup_mb_s=1"]);
    // It is begun once the new repository is in use; a megabyte a second leaves it running for a while.
    let running = cluster.begin();
    let status = cluster.json(&["status"]);
    let primary = status["cluster"]["primary"].as_str().unwrap().to_owned();
    let (code, answer) = cluster.answer(&["backup", "--wait", "0", "--from", &primary]);
    assert!(code == Some(3) && answer["error"].as_str().unwrap().contains("a backup runs on"), "{answer}");

    // Its agent dies: nobody waits for it for ever.
    let nodes = status["nodes"].as_array().unwrap();
    let agent = &nodes.iter().find(|node| node["name"] == running["node"]).unwrap()["agent_pid"];
    let killed = std::process::Command::new("kill").args(["-9", &agent.to_string()]).status().unwrap();
    assert!(killed.success());
    let state = cluster.backups_until("given up", |backup| backup["failed"]["token"] == running["token"]);
    assert!(state["running"].is_null() && state["last"].is_null(), "{state}");
    cluster.healthy();
    let running = cluster.begin();
    cluster.json(&["set", "--unset", "vault.backup_mb_s"]);
    cluster.backups_until("made, once the limit is gone", |backup| backup["last"]["token"] == running["token"]);
    let wrong = ["backups", "--repository", &beside("sealed"), "--key-file", &beside("other")].map(str::to_owned);
    let wrong: Vec<&str> = wrong.iter().map(String::as_str).collect();
    let (status, answer) = cluster.answer_bare(&wrong);
    assert!(status == Some(1) && answer["error"].as_str().unwrap().contains("does not open"), "{answer}");
    // Without the cluster, with the key alone.
    let right = ["backups", "--repository", &beside("sealed"), "--key-file", &beside("ours")].map(str::to_owned);
    let right: Vec<&str> = right.iter().map(String::as_str).collect();
    let (status, answer) = cluster.answer_bare(&right);
    assert!(status == Some(0) && answer["backups"].as_array().unwrap().len() == 1, "{answer}");
    assert_eq!(cluster.restored("copy", &[]), rows);

    // By the schedule, each minute.
    cluster.json(&["set", "vault.incremental_at=* * * * *"]);
    let state = cluster.backups_until("made by the schedule", |backup| backup["last"]["incremental"] == true);
    assert!(state["last"]["bytes"].as_u64() > state["last"]["stored"].as_u64(), "{state}");
}

#[test]
fn a_take_over_while_a_backup_runs_costs_at_most_that_backup() {
    let cluster = Cluster::new();
    cluster.json(&["up", "--nodes", "3", "--wait", "180"]);
    cluster.healthy();
    cluster.sql("create table ledger(id bigserial primary key, note text)");
    cluster.write(1000);
    // A megabyte a second: it is under way for long enough.
    cluster.json(&["set", "vault.backup_mb_s=1"]);
    let running = cluster.begin();
    cluster.backups_until("copying", |backup| backup["running"]["done"].as_u64() > Some(0));
    cluster.kill_primary();
    cluster.write(500);
    cluster.json(&["set", "--unset", "vault.backup_mb_s"]);
    let over =
        |backup: &Value| backup["last"]["token"] == running["token"] || backup["failed"]["token"] == running["token"];
    let state = cluster.backups_until("over", over);
    // It counts only if all of its log was read back; else it says why.
    let counts = state["last"]["token"] == running["token"];
    assert_ne!(counts, state["failed"]["token"] == running["token"], "{state}");
    assert!(counts || !state["failed"]["why"].as_str().unwrap().is_empty(), "{state}");
    let rows = cluster.write(100);
    cluster.backup(&[]);
    let verified = cluster.json(&["verify"]);
    assert_eq!(verified["good"].as_array().unwrap().len(), 1 + usize::from(counts), "{verified}");
    assert_eq!(cluster.restored("after", &[]), rows);
}

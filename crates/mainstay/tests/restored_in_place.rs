//! The whole cluster taken back in place, on this machine: exactly to the moment, and whole or not at all when it is interrupted. Starts real
//! servers.

#![expect(clippy::unwrap_used, reason = "helpers of tests, too")]

#[path = "support/local.rs"]
mod local;
#[path = "support/until.rs"]
mod until;

use local::Cluster;
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use until::until;

/// What is compared.
const SUM: &str =
    "select count(*), coalesce(max(id), 0), md5(coalesce(string_agg(id || note, ',' order by id), '')) from ledger";

fn kill(pid: &str) {
    assert!(Command::new("kill").args(["-9", pid]).status().unwrap().success(), "{pid}");
}

impl Cluster {
    fn try_sql(&self, text: &str) -> Result<String, String> {
        let output = self.run(&["connect", "--", "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", text]);
        let out = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let failed = || String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(out) } else { Err(failed()) }
    }

    fn sql(&self, text: &str) -> String {
        until(text, || self.try_sql(text).ok())
    }

    fn write(&self, rows: u32) -> String {
        self.try_sql(&format!("insert into ledger(note) select md5(i::text) from generate_series(1, {rows}) i"))
            .unwrap();
        self.sql(SUM)
    }

    /// The server's clock, between two writes.
    fn now(&self) -> String {
        std::thread::sleep(Duration::from_millis(30));
        let at = self.sql("select to_char(clock_timestamp() at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')");
        std::thread::sleep(Duration::from_millis(30));
        at
    }

    fn primary(&self) -> String {
        until("a primary", || Some(self.json(&["status"])["cluster"]["primary"].as_str()?.to_owned()))
    }

    fn agent(&self, node: &str) -> String {
        let status = self.json(&["status"]);
        let node = status["nodes"].as_array().unwrap().iter().find(|of| of["name"] == node).unwrap().clone();
        node["agent_pid"].as_u64().unwrap().to_string()
    }

    /// Directories of a node whose names begin so.
    fn beside(&self, node: &str, prefix: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.dir.join("nodes").join(node)).unwrap();
        let named = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
        named.map(|entry| entry.path()).collect()
    }

    fn backup(&self) -> Value {
        until("a backup", || {
            let (status, answer) = self.answer(&["backup"]);
            assert!(status == Some(0) || status == Some(3), "{answer}");
            (status == Some(0)).then_some(answer["backup"].clone())
        })
    }

    /// The command, going on beside the test.
    fn restoring(&self, options: &[&str]) -> std::process::Child {
        Command::new(env!("CARGO_BIN_EXE_mainstay"))
            .args(["restore", "--dir", self.dir.to_str().unwrap(), "--in-place", "--yes", "--json"])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn prepare(rows: u32) -> (Cluster, String, String) {
        let cluster = Cluster::new();
        cluster.json(&["up", "--nodes", "3", "--wait", "180"]);
        cluster.healthy();
        cluster.sql("create table ledger(id bigserial primary key, note text)");
        cluster.write(rows);
        cluster.backup();
        let then = cluster.write(500);
        let moment = cluster.now();
        cluster.write(700);
        (cluster, then, moment)
    }
}

#[test]
fn the_cluster_goes_back_to_a_moment_under_writes_and_on_from_there() {
    let (cluster, then, moment) = Cluster::prepare(1000);
    // What can not be had is refused, before anything is done.
    let (status, answer) = cluster.answer(&["restore", "--in-place", "--time", "2001-01-01"]);
    assert!(status == Some(3) && answer["error"].as_str().unwrap().contains("the earliest moment is"), "{answer}");
    let (status, answer) = cluster.answer(&["restore", "--in-place", "--lsn", "FFFF/0"]);
    assert!(status == Some(3) && answer["error"].as_str().unwrap().contains("the latest position"), "{answer}");
    assert_eq!(cluster.answer(&["restore"]).0, Some(2), "where to is always said");

    let before = cluster.json(&["status"]);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let answer = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                // Whether it was let in or not: after the moment nothing of it may be left.
                let _ =
                    cluster.try_sql("insert into ledger(id, note) values (1000000 + nextval('ledger_id_seq'), 'void')");
            }
        });
        let answer = cluster.answer(&["restore", "--in-place", "--time", &moment]);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        answer
    });
    assert_eq!(answer.0, Some(0), "{}", answer.1);
    let status = cluster.healthy();
    // Whatever was written since the doors opened again is new; of what came between nothing is left.
    cluster.sql("delete from ledger where id > 1000000");
    assert_eq!(cluster.sql(SUM), then);
    assert_eq!(status["cluster"]["primary"], before["cluster"]["primary"], "{status}");
    assert!(status["cluster"]["term"].as_u64() > before["cluster"]["term"].as_u64());
    let node = cluster.primary();
    let kept = cluster.beside(&node, "data.before-restore-");
    assert_eq!(kept.len(), 1, "the old data are kept");
    let named = until("the problem that names them", || {
        let status = cluster.json(&["status"]);
        let problems = status["problems"].as_array().unwrap().clone();
        problems.into_iter().find(|problem| problem["name"] == "old-data-kept")
    });
    assert!(named["hint"].as_str().unwrap().contains(kept[0].to_str().unwrap()), "{named}");
    let history = cluster.json(&["history", "--all"]);
    assert!(history["events"].as_array().unwrap().iter().any(|event| event["kind"] == "restored"), "{history}");
    // Every node is on the one new path.
    let timelines: Vec<&Value> = status["nodes"].as_array().unwrap().iter().map(|node| &node["timeline"]).collect();
    assert!(timelines.iter().all(|timeline| *timeline == timelines[0] && timeline.as_u64() > Some(16)), "{status}");

    // The archive goes on: moments before and after the restore can be had, and a new backup counts.
    let newest = cluster.write(50);
    let later = cluster.now();
    cluster.write(10);
    let made = cluster.backup();
    assert_eq!(made["stop"]["timeline"].as_u64(), timelines[0].as_u64(), "{made}");
    let copy = |name: &str, at: &str| {
        let to = cluster.dir.parent().unwrap().join(name);
        let answer = cluster.json(&["restore", "--to", to.to_str().unwrap(), "--sql", SUM, "--time", at]);
        let row = answer["rows"][0].as_array().unwrap().clone();
        row.iter().map(|field| field.as_str().unwrap()).collect::<Vec<_>>().join("|")
    };
    assert_eq!(copy("then", &moment), then);
    assert_eq!(copy("later", &later), newest);
    // And a take-over is an ordinary one.
    cluster.json(&["switchover"]);
    cluster.healthy();

    // Back to the latest moment: a node whose log does not go beyond it can follow the new timeline, over all numbers between.
    let last = cluster.sql(SUM);
    let (status, answer) = cluster.answer(&["restore", "--in-place"]);
    assert_eq!(status, Some(0), "{answer}");
    cluster.healthy();
    assert_eq!(cluster.sql(SUM), last);
    let history = cluster.json(&["history", "--all"]).to_string();
    assert!(!history.contains("can not be had from the primary"), "{history}");
}

#[test]
fn a_restore_that_is_interrupted_is_whole_or_did_not_happen() {
    let (cluster, then, moment) = Cluster::prepare(20_000);
    let now = cluster.sql(SUM);
    let node = cluster.primary();
    let options = ["--time", moment.as_str()];

    // The command dies while the copy is made: clients are let in again, and nothing is lost.
    let mut command = cluster.restoring(&options);
    until("being prepared", || cluster.beside(&node, "data.restored-").first().cloned());
    kill(&command.id().to_string());
    command.wait().unwrap();
    assert_eq!(cluster.sql(SUM), now);

    // The agent dies meanwhile: the command says so, and the next agent removes what was made.
    until("free again", || {
        // Asked before: the copy lies there for a moment only.
        let agent = cluster.agent(&node);
        // What the command that died left is not this one's.
        let left = cluster.beside(&node, "data.restored-");
        let mut command = cluster.restoring(&options);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(20) && command.try_wait().unwrap().is_none() {
            let new = cluster.beside(&node, "data.restored-").iter().any(|copy| !left.contains(copy));
            if new && command.try_wait().unwrap().is_none() {
                kill(&agent);
                let output = command.wait_with_output().unwrap();
                assert_eq!(output.status.code(), Some(1));
                return Some(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // The one before had not ended yet.
        command.wait().unwrap();
        None
    });
    cluster.healthy();
    until("removed", || cluster.beside(&node, "data.restored-").is_empty().then_some(()));
    assert_eq!(cluster.sql(SUM), now, "nothing has changed");

    // The agent dies as soon as everything later is void: whoever comes after goes on by itself.
    let node = cluster.primary();
    let agent = cluster.agent(&node);
    let mut command = cluster.restoring(&["--time", moment.as_str(), "--on", &node]);
    until("written", || {
        let (status, answer) = cluster.answer(&["recover"]);
        let nodes = answer["nodes"].as_object().cloned().unwrap_or_default();
        let written = nodes.values().any(|standing| !standing["record"][1]["restored"].is_null());
        (status == Some(0) && written).then_some(())
    });
    kill(&agent);
    kill(&command.id().to_string());
    command.wait().unwrap();
    until("restored all the same", || {
        let status = cluster.answer(&["status"]).1;
        let well = status["nodes"].as_array()?.iter().all(|node| node["healthy"] == true);
        (well && cluster.try_sql(SUM).ok()? == then).then_some(())
    });
    assert_eq!(cluster.beside(&node, "data.before-restore-").len(), 1);
    cluster.write(10);
}

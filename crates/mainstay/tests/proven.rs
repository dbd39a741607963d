//! Restore drills of a cluster on this machine: by hand, by the schedule, failing, and ended half-way. Starts real servers.

#![expect(clippy::unwrap_used, reason = "helpers of tests, too")]

#[path = "support/local.rs"]
mod local;
#[path = "support/until.rs"]
mod until;

use local::Cluster;
use serde_json::Value;
use std::path::PathBuf;
use until::until;

impl Cluster {
    fn sql(&self, text: &str) {
        until(text, || self.run(&["connect", "--", "-X", "-c", text]).status.success().then_some(()));
    }

    /// Takes a step once nothing else runs and the cluster can.
    fn once(&self, arguments: &[&str]) -> (Option<i32>, Value) {
        until(&arguments.join(" "), || {
            let (status, answer) = self.answer(arguments);
            (status != Some(3)).then_some((status, answer))
        })
    }

    fn state(&self) -> Value {
        self.json(&["archive", "status"])["backup"].clone()
    }

    fn problem(&self, name: &str) -> bool {
        let status = self.json(&["status"]);
        status["problems"].as_array().unwrap().iter().any(|problem| problem["name"] == name)
    }

    fn copies(&self) -> Vec<PathBuf> {
        let nodes = std::fs::read_dir(self.dir.join("nodes")).unwrap().flatten();
        nodes.map(|node| node.path().join("proof")).filter(|drill| drill.exists()).collect()
    }
}

#[test]
fn a_drill_proves_that_the_backups_can_be_restored_and_leaves_nothing() {
    let cluster = Cluster::new();
    cluster.json(&["up", "--nodes", "2", "--wait", "180"]);
    cluster.healthy();
    cluster.sql("create table ledger(id bigserial primary key, note text)");
    cluster.sql("insert into ledger(note) select md5(i::text) from generate_series(1, 20000) i");
    let (status, answer) = until("archived", || {
        let (status, answer) = cluster.answer(&["verify", "--drill"]);
        answer["error"].as_str().unwrap().contains("no backup yet").then_some((status, answer))
    });
    assert_eq!(status, Some(3), "{answer}");
    assert_eq!(cluster.once(&["backup"]).0, Some(0));

    let (status, answer) = cluster.once(&["verify", "--drill"]);
    assert_eq!(status, Some(0), "{answer}");
    let drill = &answer["drill"];
    assert!(drill["bytes"].as_u64() > Some(1 << 20) && drill["problem"].is_null(), "{answer}");
    let checked = drill["checked"].to_string();
    assert!(checked.contains("databases answer") && checked.contains("pg_amcheck"), "{answer}");
    assert_eq!(cluster.copies(), Vec::<PathBuf>::new(), "the copy is removed");
    assert_eq!(cluster.json(&["backups"])["drill"]["token"], drill["token"]);
    assert!(!cluster.problem("drill-failed"));

    // A copy that is not what it should be.
    cluster.json(&["set", "vault.drill_query=select count(*) from ledger where id < 0"]);
    let (status, answer) = cluster.once(&["verify", "--drill"]);
    assert!(status == Some(1) && answer["error"].as_str().unwrap().contains("drill_query"), "{answer}");
    assert!(cluster.problem("drill-failed"));
    assert_eq!(cluster.copies(), Vec::<PathBuf>::new());

    // The agent dies while a copy lies there: the next one removes it, and the lock is free again.
    let begun = cluster.state()["drill"]["token"].clone();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_mainstay"))
        .args(["verify", "--drill", "--dir", cluster.dir.to_str().unwrap()])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let copy = until("a copy", || cluster.copies().first().cloned());
    let name = copy.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    let status = cluster.json(&["status"]);
    let node = status["nodes"].as_array().unwrap().iter().find(|node| node["name"] == name.as_str()).unwrap().clone();
    let agent = node["agent_pid"].as_u64().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-9", &agent]).status().unwrap().success());
    command.kill().unwrap();
    command.wait().unwrap();
    until("removed", || cluster.copies().is_empty().then_some(()));
    until("given up", || {
        (cluster.state()["running"].is_null() && !cluster.state()["drill_cut"].is_null()).then_some(())
    });
    // It proved nothing: what the one before showed stands.
    assert_eq!(cluster.state()["drill"]["token"], begun);
    let here = |pid: PathBuf| std::fs::read_link(pid.join("cwd")).is_ok_and(|at| at.starts_with(&copy));
    let left = std::fs::read_dir("/proc").unwrap().flatten().any(|pid| here(pid.path()));
    assert!(!left, "no server is left on the copy");
    cluster.healthy();

    // By the schedule, each minute.
    cluster.json(&["set", "vault.drill_query=select count(*) from ledger", "vault.drill_at=* * * * *"]);
    let state = until("held by the schedule", || {
        let state = cluster.state();
        (state["drill"]["by"].to_string().contains("the schedule") && state["drill"]["problem"].is_null())
            .then_some(state)
    });
    assert!(state["drill_passed_ms"].as_u64() >= state["drill"]["ended_ms"].as_u64(), "{state}");
    assert!(!cluster.problem("drill-failed"));
}

//! `mainstay doctor` on a real cluster: what is well is seen as well, what is broken on purpose is seen, and the commands that it tells mend it.
//! What this machine itself lacks (a time service, swap) is of no matter here. Starts real servers.

#![expect(clippy::unwrap_used, reason = "helpers of tests, too")]

#[path = "support/local.rs"]
mod local;

use local::Cluster;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

impl Cluster {
    /// The answer of a doctor for one node; its exit status is what it says.
    fn doctor(&self, node: &str, more: &[&str]) -> Value {
        let (status, answer) = self.answer(&[&["doctor", "--node", node, "--no-write"], more].concat());
        let amiss = answer["amiss"].as_bool().unwrap_or_else(|| panic!("{answer}"));
        assert_eq!(status, Some(i32::from(amiss)), "{answer}");
        answer["nodes"][0].clone()
    }

    /// The findings of one check that are not fine.
    fn wrong(&self, node: &str, check: &str, more: &[&str]) -> Vec<Value> {
        let all = findings(&self.doctor(node, more), check);
        assert!(!all.is_empty(), "{check} was not looked at");
        all.into_iter().filter(|finding| finding["severity"] != "fine").collect()
    }

    /// The one problem of this check, once it is seen.
    fn problem(&self, node: &str, check: &str, words: &str, more: &[&str]) -> Value {
        let begun = Instant::now();
        loop {
            let wrong = self.wrong(node, check, more);
            let fits =
                |finding: &&Value| finding["severity"] == "problem" && finding["found"].to_string().contains(words);
            if let Some(found) = wrong.iter().find(fits) {
                return found.clone();
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{check} with {words:?} is not seen: {wrong:?}");
            std::thread::sleep(Duration::from_millis(300));
        }
    }
}

fn findings(node: &Value, check: &str) -> Vec<Value> {
    node["findings"].as_array().unwrap().iter().filter(|finding| finding["check"] == check).cloned().collect()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_doctor_sees_what_is_well_what_is_broken_and_tells_what_mends_it() {
    let cluster = Cluster::new();
    cluster.json(&["up", "--nodes", "3", "--name", "orders", "--wait", "180"]);
    cluster.healthy();
    for node in ["db1", "db2", "db3"] {
        let seen = cluster.doctor(node, &[]);
        assert_eq!((&seen["node"], &seen["stage"]), (&node.into(), &"running".into()));
        for (check, how_often) in [
            ("agent", 1),
            ("unit", 1),
            ("server", 1),
            ("server-user", 1),
            ("directories", 1),
            ("ports", 1),
            ("data", 1),
            ("certificates", 1),
            ("reach", 2),
            ("clock-offset", 2),
            ("libc-differs", 2),
            ("collations", 1),
        ] {
            let found = findings(&seen, check);
            // A busy machine may answer so late that clocks seem to differ: never by more than the question took.
            assert!(found.iter().all(|finding| finding["severity"] == "fine"), "{node} {check}: {found:?}");
            assert_eq!(found.len(), how_often, "{node} {check}: {found:?}");
        }
    }
    // Without --node all that are on this host are examined, and the disk is written to.
    let (_, all) = cluster.answer(&["doctor"]);
    assert_eq!(all["nodes"].as_array().unwrap().len(), 3);
    assert!(findings(&all["nodes"][2], "disk")[0]["found"].to_string().contains("durable write"), "{all}");
    let left = std::fs::read_dir(cluster.dir.join("nodes/db3")).unwrap().flatten();
    assert!(left.into_iter().all(|entry| !entry.file_name().to_string_lossy().contains("doctor")));

    // What it tells to type mends it.
    let agent = cluster.dir.join("nodes/db2/agent");
    std::fs::set_permissions(&agent, std::fs::Permissions::from_mode(0o755)).unwrap();
    let found = cluster.problem("db2", "directories", "has mode 755, it must be 700", &[]);
    let typed = std::process::Command::new("sh").arg("-c").arg(found["mend"][0].as_str().unwrap()).status().unwrap();
    assert!(typed.success() && mode(&agent) == 0o700);
    assert_eq!(cluster.wrong("db2", "directories", &[]), Vec::<Value>::new());

    whoever_may_not_look_is_told_so(&cluster);
    a_runbook_is_of_what_is_in_force(&cluster);

    cluster.json(&["down"]);
    assert_eq!(cluster.doctor("db1", &[])["stage"], "joined");
    let found = cluster.problem("db1", "agent", "does not answer", &[]);
    assert!(found["mend"][0].as_str().is_some_and(|mend| !mend.is_empty()), "{found}");
    // A certificate of another node, put there by mistake.
    let at = |node: &str| cluster.dir.join(format!("nodes/{node}/agent/node.crt"));
    std::fs::copy(at("db2"), at("db1")).unwrap();
    cluster.problem("db1", "certificates", "not for mainstay://orders/node/db1", &[]);
    std::fs::remove_file(at("db1")).unwrap();
    assert_eq!(cluster.doctor("db1", &[])["stage"], "new");
    cluster.problem("db1", "data", "has not joined", &[]);
}

/// A user who may not read the node's files learns what is not known, and nothing false. Only root can be somebody else.
fn whoever_may_not_look_is_told_so(cluster: &Cluster) {
    assert!(rustix::process::geteuid().is_root(), "this test becomes other users: run it as root");
    let program = cluster.dir.parent().unwrap().join("mainstay");
    std::fs::copy(env!("CARGO_BIN_EXE_mainstay"), &program).unwrap();
    let output = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .args(["doctor", "--json", "--no-write", "--node", "db1", "--dir"])
        .arg(&cluster.dir)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let node = &answer["nodes"][0];
    for (check, severity) in [
        ("user", "advice"),
        ("agent", "unknown"),
        ("certificates", "unknown"),
        ("data", "unknown"),
        ("ports", "fine"),
        ("peer", "unknown"),
        ("reach", "fine"),
    ] {
        let found = findings(node, check);
        assert!(!found.is_empty() && found.iter().all(|finding| finding["severity"] == severity), "{check}: {found:?}");
    }
}

/// The runbook says what is in force, also where the file says something else, and a runbook of before is found out.
fn a_runbook_is_of_what_is_in_force(cluster: &Cluster) {
    let book = cluster.dir.join("runbook.md");
    let book = book.to_str().unwrap();
    let told = |wanted: bool| {
        let begun = std::time::Instant::now();
        loop {
            let status = cluster.json(&["status"]);
            let problem =
                status["problems"].as_array().unwrap().iter().find(|problem| problem["name"] == "runbook-outdated");
            // Each agent learns of a write in the store by itself.
            if problem.is_some() == wanted {
                return problem.cloned().unwrap_or_default();
            }
            assert!(begun.elapsed() < std::time::Duration::from_secs(30), "{status}");
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    };
    let write = || {
        assert_eq!(cluster.json(&["runbook", "--markdown", book])["noted"], true);
        std::fs::read_to_string(book).unwrap()
    };
    assert!(write().contains("3000 ms at most until the older one has ended"));
    let outdated = ["--runbook", book];
    assert_eq!(cluster.wrong("db1", "runbook-outdated", &outdated), Vec::<Value>::new());
    let generation = cluster.json(&["set", "failover.lease_ms=4321"])["generation"].as_u64().unwrap();
    let found =
        cluster.problem("db1", "runbook-outdated", &format!("generation {generation} of orders holds"), &outdated);
    assert!(found["mend"][0].as_str().unwrap().contains("--markdown"), "{found}");
    let problem = told(true);
    assert!(problem["evidence"].as_str().unwrap().ends_with("changed since: failover.lease_ms"), "{problem}");
    let text = write();
    told(false);
    assert!(text.contains("4321 ms at most until the older one has ended"), "the file still says 3000");
    assert!(text.contains(&format!("Made from generation {generation} in force")));
    assert_eq!(cluster.wrong("db1", "runbook-outdated", &outdated), Vec::<Value>::new());
    // Whoever says --offline wants the file.
    assert_eq!(cluster.json(&["runbook", "--offline", "--markdown", book])["noted"], false);
    cluster.problem("db1", "runbook-outdated", "a file of orders", &outdated);
    cluster.json(&["set", "failover.lease_ms=4000"]);
    told(true);
    assert_eq!(cluster.json(&["runbook", "--forget"])["forgotten"], true);
    told(false);
}

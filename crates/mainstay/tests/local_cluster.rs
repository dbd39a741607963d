//! One cluster on this machine from its making to its end, through the commands a person types. Starts real servers.

#![expect(clippy::unwrap_used, reason = "helpers of tests, too")]

#[path = "support/local.rs"]
mod local;

use local::Cluster;
use std::path::{Path, PathBuf};

impl Cluster {
    fn sql(&self, options: &[&str], sql: &str) -> String {
        let mut all = vec!["connect"];
        all.extend(options);
        all.extend(["--", "-XAtqc", sql]);
        let output = self.run(&all);
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// The command lines of all processes that name this directory.
    fn command_lines(&self) -> Vec<String> {
        let dir = self.dir.to_str().unwrap();
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
        lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " ")).filter(|line| line.contains(dir)).collect()
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(files(&entry.path()));
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    found
}

/// No restart, no signal, no edited file: it hears of it from the agents.
fn a_proxy_of_its_own_takes_over_what_is_set(cluster: &Cluster, write: &str) {
    let said = |wanted: &str| {
        let begun = std::time::Instant::now();
        loop {
            let _other = std::net::TcpStream::connect(write).unwrap();
            let output = cluster.run(&["connect", "--", "-XAtqc", "select 'in'"]);
            let text = [output.stdout, output.stderr].concat();
            if String::from_utf8_lossy(&text).contains(wanted) {
                return;
            }
            assert!(begun.elapsed().as_secs() < 60, "never: {wanted}; last: {}", String::from_utf8_lossy(&text));
        }
    };
    said("in");
    cluster.json(&["set", "proxy.max_connections=1"]);
    said("the proxy serves 1 connections and takes no more");
    cluster.json(&["set", "--unset", "proxy.max_connections"]);
    said("in");
}

#[test]
fn a_cluster_lives_through_its_commands() {
    let cluster = Cluster::new();
    let up = cluster.json(&["up", "--nodes", "3", "--name", "orders", "--wait", "180"]);
    assert_eq!((&up["created"], &up["writable"], &up["nodes"]), (&true.into(), &true.into(), &3.into()));

    let status = cluster.healthy();
    assert_eq!(status["cluster"]["name"], "orders");
    cluster.sql(&[], "create table kept (id int primary key)");
    cluster.sql(&[], "insert into kept values (1)");
    assert_eq!(cluster.sql(&["--read"], "select pg_is_in_recovery()"), "t");

    let password = std::fs::read_to_string(cluster.dir.join("secrets/app.password")).unwrap().trim().to_owned();
    assert!(cluster.command_lines().iter().all(|line| !line.contains(&password)));
    let logs = files(&cluster.dir).into_iter().filter(|path| path.extension().is_some_and(|kind| kind == "log"));
    for log in logs {
        assert!(!String::from_utf8_lossy(&std::fs::read(&log).unwrap()).contains(&password), "{}", log.display());
    }

    let again = cluster.json(&["up"]);
    assert_eq!((&again["already_running"], &again["created"]), (&true.into(), &false.into()));

    a_proxy_of_its_own_takes_over_what_is_set(&cluster, status["routes"]["write"].as_str().unwrap());

    let before = status["cluster"]["primary"].as_str().unwrap().to_owned();
    let moved = cluster.json(&["switchover"]);
    assert_eq!(moved["from"], before.as_str());
    assert_ne!(moved["to"], before.as_str());
    assert!(moved["term"].as_u64() > status["cluster"]["term"].as_u64());
    let refused = cluster.run(&["switchover", "--to", moved["to"].as_str().unwrap(), "--yes"]);
    assert_eq!(refused.status.code(), Some(3));

    assert!(!cluster.json(&["history"])["events"].as_array().unwrap().is_empty());
    assert_eq!(cluster.json(&["why"])["nodes"].as_array().unwrap().len(), 3);

    let down = cluster.json(&["down"]);
    assert_eq!((&down["was_running"], &down["killed"]), (&true.into(), &serde_json::json!([])));
    assert_eq!(cluster.command_lines(), Vec::<String>::new());
    let stopped = cluster.run(&["status"]);
    assert_eq!(stopped.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&stopped.stderr).contains("mainstay up --dir"));

    let config = std::fs::read(cluster.dir.join("mainstay.toml")).unwrap();
    let third = cluster.json(&["up", "--wait", "180"]);
    assert_eq!((&third["created"], &third["already_running"]), (&false.into(), &false.into()));
    assert_eq!(std::fs::read(cluster.dir.join("mainstay.toml")).unwrap(), config);
    assert_eq!(cluster.sql(&[], "select count(*) from kept"), "1");

    // The file goes on naming a node that was taken out: what is in force counts.
    let primary = cluster.healthy()["cluster"]["primary"].as_str().unwrap().to_owned();
    let gone = ["db1", "db2"].into_iter().find(|node| *node != primary).unwrap();
    let removed = cluster.json(&["node", "remove", gone]);
    assert!(removed["next"][0].as_str().unwrap().contains("mainstay set --config"), "{removed}");
    cluster.json(&["down"]);
    assert_eq!(cluster.json(&["up", "--wait", "180"])["nodes"], 2);

    assert_eq!(cluster.json(&["down", "--destroy"])["destroyed"], true);
    assert!(!cluster.dir.exists());
}

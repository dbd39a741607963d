//! One cluster on this machine, operated through every verb that changes it. Starts real servers.

#![expect(clippy::unwrap_used, reason = "helpers of tests, too")]

#[path = "support/local.rs"]
mod local;

use local::Cluster;
use serde_json::Value;

impl Cluster {
    /// Runs a verb that must be refused with this exit status and these words.
    fn refused(&self, arguments: &[&str], status: i32, words: &str) {
        let (found, answer) = self.answer(arguments);
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(found == Some(status) && error.contains(words), "{arguments:?}: {found:?} {answer}");
    }

    fn status(&self) -> Value {
        self.json(&["status"])
    }

    fn primary(&self) -> String {
        self.status()["cluster"]["primary"].as_str().unwrap().to_owned()
    }

    fn pids(&self) -> Vec<Value> {
        self.status()["nodes"].as_array().unwrap().iter().map(|node| node["server_pid"].clone()).collect()
    }
}

#[test]
fn a_cluster_is_operated_through_its_commands() {
    let cluster = Cluster::new();
    cluster.json(&["up", "--nodes", "3", "--name", "orders", "--wait", "180"]);
    cluster.healthy();
    let primary = cluster.primary();
    let replica = ["db1", "db2", "db3"].into_iter().find(|name| **name != *primary).unwrap();

    // Without a terminal and without --yes nothing is done.
    let output = cluster.run(&["pause"]);
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));

    let paused = cluster.json(&["pause", "--note", "storage moves"]);
    assert_eq!(paused["paused"], true);
    assert_eq!(cluster.status()["configuration"]["paused"]["note"], "storage moves");
    assert_eq!(cluster.json(&["resume"])["paused"], false);

    let generation = cluster.json(&["set"])["generation"].as_u64().unwrap();
    cluster.refused(&["set", "failover.lease_ms=1"], 2, "out of bounds");
    let set = cluster.json(&["set", "failover.lease_ms=4000", "postgres.parameters.work_mem=5MB"]);
    assert_eq!(set["generation"], generation + 1);
    assert_eq!(cluster.json(&["set"])["spec"]["failover"]["lease_ms"], 4000);
    assert_eq!(cluster.json(&["set", "failover.lease_ms=4000"])["changed"], serde_json::json!([]));

    let set = cluster.json(&["set", "postgres.parameters.max_connections=123"]);
    assert_eq!(set["pending_restart"].as_object().unwrap().len(), 3, "{set}");
    let before = cluster.pids();
    let restarted = cluster.json(&["restart", "--pending"]);
    assert_eq!(restarted["pending_restart"], serde_json::json!({}), "{restarted}");
    assert!(cluster.pids().iter().zip(&before).all(|(now, before)| now != before));
    assert_eq!(cluster.json(&["restart", "--pending"])["restarted"], serde_json::json!([]));

    let primary_now = cluster.primary();
    cluster.refused(&["reinit", &primary_now], 3, "is the primary");
    let other = ["db1", "db2", "db3"].into_iter().find(|name| **name != *primary_now).unwrap();
    cluster.json(&["reinit", other]);

    let moved = cluster.json(&["failover", "--to", other]);
    assert_eq!(moved["to"], other);
    assert_eq!(cluster.json(&["set", "cluster.durability=async"])["changed"][0]["new"], "async");
    cluster.json(&["set", "--unset", "cluster.durability"]);

    cluster.refused(&["recover", "--from", replica], 3, "the store works");
    cluster.refused(&["node", "remove", other], 3, "is the primary");
    let history = cluster.json(&["history"]);
    let changes = history["changes"].as_array().unwrap();
    assert!(changes.len() >= 3, "{history}");
    assert!(!cluster.json(&["why", "last"])["nodes"].as_array().unwrap().is_empty());
}

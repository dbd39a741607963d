//! A new copy of a node is made of the repository instead of the primary, falls back on the primary when the repository can not serve, and is as good
//! as any: it takes over with everything that was committed. Starts real servers.

#![expect(clippy::unwrap_used, reason = "helpers of tests, too")]

#[path = "support/local.rs"]
mod local;
#[path = "support/sql.rs"]
mod sql;
#[path = "support/until.rs"]
mod until;

use local::Cluster;
use serde_json::Value;
use until::until;

const SUM: &str = "select count(*), md5(coalesce(string_agg(id || note, ',' order by id), '')) from ledger";

impl Cluster {
    fn write(&self, rows: u32) -> String {
        // Not sent again when it may have been carried out: nothing else happens then.
        self.sql(&format!("insert into ledger(note) select md5(i::text) from generate_series(1, {rows}) i"));
        self.sql(SUM)
    }

    /// What the history tells of this kind.
    fn told(&self, kind: &str) -> Vec<Value> {
        let all = self.json(&["history", "--all"]);
        let events = all["events"].as_array().unwrap_or_else(|| panic!("{all}")).iter();
        events.filter(|event| event["kind"] == kind).cloned().collect()
    }

    /// Gives the copy up and waits for the new one.
    fn reinit(&self, node: &str) {
        until("a node that may be cloned anew", || {
            let (status, answer) = self.answer(&["reinit", node, "--wait", "240"]);
            assert!(matches!(status, Some(0 | 3)), "{answer}");
            (status == Some(0)).then_some(())
        });
    }
}

#[test]
fn a_copy_made_of_the_repository_takes_over_with_everything() {
    let cluster = Cluster::new();
    cluster.json(&["up", "--nodes", "3", "--wait", "180"]);
    cluster.healthy();
    cluster.sql("create table ledger(id bigserial primary key, note text)");
    cluster.write(2000);
    until("a backup", || (cluster.answer(&["backup"]).0 == Some(0)).then_some(()));
    cluster.write(2000);
    cluster.json(&["set", "vault.clone_nodes=true"]);
    let status = cluster.healthy();
    let primary = status["cluster"]["primary"].as_str().unwrap().to_owned();
    let nodes = status["nodes"].as_array().unwrap();
    let replicas: Vec<&str> =
        nodes.iter().map(|node| node["name"].as_str().unwrap()).filter(|name| *name != primary).collect();

    // Out of reach: the primary is cloned, and the reason is told.
    let (vault, away) = (cluster.dir.join("vault"), cluster.dir.join("away"));
    std::fs::rename(&vault, &away).unwrap();
    cluster.reinit(replicas[0]);
    cluster.healthy();
    let told = cluster.told("vault-passed-over");
    assert!(told.len() == 1 && told[0]["node"] == replicas[0], "{told:?}");
    assert!(told[0]["text"].as_str().unwrap().contains("can not be reached"), "{told:?}");
    std::fs::rename(&away, &vault).unwrap();

    for replica in &replicas {
        cluster.reinit(replica);
    }
    cluster.healthy();
    let told = cluster.told("cloned-from-vault");
    assert_eq!(told.len(), 2, "{told:?} {:?}", cluster.told("vault-passed-over"));
    for replica in &replicas {
        let left = std::fs::read_dir(cluster.dir.join("nodes").join(replica)).unwrap();
        let left: Vec<String> = left.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert!(!left.iter().any(|name| name.starts_with("data.seed") || name == "data.new"), "{left:?}");
    }

    // One of them takes over.
    let rows = cluster.write(500);
    let node = nodes.iter().find(|node| node["name"] == *primary).unwrap();
    for key in ["agent_pid", "guard_pid", "server_pid"] {
        let pid = node[key].as_u64().unwrap().to_string();
        assert!(std::process::Command::new("kill").args(["-9", &pid]).status().unwrap().success(), "{key}");
    }
    until("a take-over", || (cluster.json(&["status"])["cluster"]["primary"] != *primary).then_some(()));
    assert_eq!(cluster.sql(SUM), rows);
    cluster.healthy();
    assert_ne!(cluster.write(100), rows);
}

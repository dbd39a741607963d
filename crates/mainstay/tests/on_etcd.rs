//! A cluster on this machine whose store is an etcd: take-over, switchover, members of the etcd lost and back, all of it lost and back, and an
//! etcd that is restored from an older copy. Starts real servers.

#![expect(clippy::unwrap_used, reason = "helpers of tests, too")]

#[path = "../../store/tests/common/etcd_servers.rs"]
mod etcd_servers;
#[path = "support/local.rs"]
mod local;
#[path = "support/until.rs"]
mod until;

use etcd_servers::Etcd;
use local::Cluster;
use serde_json::Value;
use until::until;

impl Cluster {
    fn up_on(&self, etcd: &Etcd, nodes: &str) {
        let endpoints = etcd.endpoints();
        let mut arguments = vec!["up", "--nodes", nodes, "--wait", "180"];
        arguments.extend(endpoints.iter().flat_map(|endpoint| ["--etcd", endpoint.as_str()]));
        let up = self.json(&arguments);
        assert_eq!(up["writable"], true, "{up}");
        self.healthy();
    }

    fn sql(&self, text: &str) -> String {
        until(text, || {
            let output = self.run(&["connect", "--", "-XAtqc", text]);
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        })
    }

    fn status(&self) -> Value {
        self.answer(&["status"]).1
    }

    fn problems(&self) -> Vec<String> {
        let status = self.status();
        let named = status["problems"].as_array().into_iter().flatten();
        named.filter_map(|problem| problem["name"].as_str().map(str::to_owned)).collect()
    }

    fn has_problem(&self, name: &str) {
        until(name, || self.problems().iter().any(|problem| problem == name).then_some(()));
    }

    fn primary(&self) -> Option<String> {
        self.status()["cluster"]["primary"].as_str().map(str::to_owned)
    }

    /// The primary's server, as the agents tell.
    fn server_pid(&self, node: &str) -> Option<i64> {
        let status = self.status();
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        nodes.into_iter().find(|known| known["name"] == node)?["server_pid"].as_i64()
    }

    /// No server lets anybody write.
    fn nobody_writes(&self) {
        until("without a primary", || (self.status()["cluster"]["writable"] == false).then_some(()));
    }
}

/// What the first generation says of the store may lead nowhere by now: a file is printed with what it says itself.
fn the_file_keeps_its_own_way(cluster: &Cluster) {
    cluster.json(&["set", "failover.lease_ms=4000"]);
    let config = cluster.dir.join("mainstay.toml");
    let before = std::fs::read_to_string(&config).unwrap();
    let of = |text: &str| mainstay_model::config::parse(text, &[]).unwrap();
    let mut file = of(&before);
    file.store.endpoints.reverse();
    let reversed = file.store.endpoints.clone();
    std::fs::write(&config, mainstay_model::config::render(&file)).unwrap();
    let printed = String::from_utf8(cluster.run(&["set"]).stdout).unwrap();
    let renewed = of(&printed);
    assert_eq!((renewed.store.endpoints, renewed.failover.lease_ms), (reversed, 4000), "{printed}");
    std::fs::write(&config, printed).unwrap();
    let same = cluster.json(&["set", "--file", config.to_str().unwrap()]);
    assert_eq!(same["changed"], serde_json::json!([]), "its own way is no wish to change that of the others: {same}");
    cluster.json(&["set", "failover.lease_ms=3000"]);
    std::fs::write(&config, before).unwrap();
}

#[test]
fn an_etcd_is_asked_before_anything_is_made_and_what_stays_in_it_is_named() {
    let (mut etcd, cluster, next) = (Etcd::start(1), Cluster::new(), Cluster::new());
    cluster.up_on(&etcd, "1");
    let down = cluster.json(&["down", "--destroy"]);
    assert_eq!(down["etcd_keys_left"], "/mainstay/main/", "{down}");
    let endpoint = etcd.endpoints().remove(0);
    let refused = |etcd: &str| {
        let (status, answer) = next.answer(&["up", "--nodes", "1", "--etcd", etcd]);
        assert_eq!((status, next.dir.exists()), (Some(3), false), "{answer}");
        answer.to_string()
    };
    let command = format!("etcdctl --endpoints={endpoint} del --prefix /mainstay/main/");
    until("the keys of the other cluster", || refused(&endpoint).contains(&command).then_some(()));
    etcd.kill_all();
    let away = refused(&endpoint);
    assert!(away.contains("does not answer") && away.contains("refused"), "{away}");
}

#[test]
fn a_cluster_lives_through_the_faults_of_its_etcd() {
    let (mut etcd, cluster) = (Etcd::start(3), Cluster::new());
    cluster.up_on(&etcd, "3");
    cluster.sql("create table kept (id int primary key)");
    cluster.sql("insert into kept values (1)");
    the_file_keeps_its_own_way(&cluster);
    let moved = cluster.json(&["switchover"]);
    assert_eq!(cluster.healthy()["cluster"]["primary"], moved["to"]);

    // The primary's server dies: another one takes over, or it is started in place; the term tells which, the row is there.
    let primary = cluster.primary().unwrap();
    let pid = cluster.server_pid(&primary).unwrap();
    assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    cluster.sql("insert into kept values (2)");
    cluster.healthy();

    // One member of three: nobody notices but the problems.
    etcd.kill(0);
    cluster.has_problem("store-member-lost");
    cluster.sql("insert into kept values (3)");
    cluster.json(&["switchover"]);
    cluster.healthy();

    // Two of three: no claim can be renewed, so nobody writes; then all by itself again.
    etcd.kill(1);
    cluster.has_problem("store-no-quorum");
    cluster.nobody_writes();
    etcd.launch(0);
    etcd.launch(1);
    etcd.wait();
    cluster.sql("insert into kept values (4)");
    cluster.healthy();

    // All of it.
    etcd.kill_all();
    cluster.nobody_writes();
    etcd.launch_all();
    cluster.sql("insert into kept values (5)");
    cluster.healthy();
    until("without problems", || cluster.problems().is_empty().then_some(()));
    assert_eq!(cluster.sql("select count(*) from kept"), "5");
    assert_eq!(cluster.answer(&["recover", "--from", "db1"]).0, Some(3), "a store that works is left alone");
}

#[test]
fn an_etcd_that_was_restored_is_noticed_and_a_person_decides() {
    let (mut etcd, cluster) = (Etcd::start(1), Cluster::new());
    cluster.up_on(&etcd, "2");
    cluster.sql("create table kept (id int primary key)");
    let copy = etcd.save();
    cluster.json(&["switchover"]);
    cluster.sql("insert into kept values (1)");
    cluster.healthy();
    etcd.restore(&copy);
    cluster.has_problem("store-distrusted");
    cluster.nobody_writes();
    // A person names the node that has most; the other one is refused, as acknowledged commits may be missing there.
    let recovered = until("recovered from one of them", || {
        let tried = ["db1", "db2"].map(|from| cluster.answer(&["recover", "--from", from, "--wait", "180"]));
        tried.into_iter().find(|(code, _)| *code == Some(0)).map(|(_, answer)| answer)
    });
    assert_eq!(recovered["writable"], true, "{recovered}");
    let after = cluster.healthy();
    assert!(after["cluster"]["term"].as_u64() >= Some(1_000_000), "{after}");
    assert_eq!(cluster.sql("select count(*) from kept"), "1");
    cluster.sql("insert into kept values (2)");
    until("without problems", || cluster.problems().is_empty().then_some(()));
}

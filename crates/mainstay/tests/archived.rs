//! The log of a cluster on this machine goes to its archive: from the first minute, over a take-over, and again after the repository
//! was away. Starts real servers.

#![expect(clippy::unwrap_used, reason = "helpers of tests, too")]

#[path = "support/local.rs"]
mod local;

use local::Cluster;
use serde_json::Value;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);

impl Cluster {
    fn archive(&self) -> Value {
        self.json(&["archive", "status"])
    }

    /// The answer, once it is as wanted.
    fn archive_until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let answer = self.archive();
            if wanted(&answer) {
                return answer;
            }
            assert!(begun.elapsed() < PATIENCE, "not {what}: {answer}");
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// Writes about this many megabytes of log through the address for writes.
    fn write(&self, megabytes: u32) {
        let sql = format!(
            "create table if not exists filler(n text); \
             insert into filler select repeat(md5(i::text), 31) from generate_series(1, {}) i",
            megabytes * 1000
        );
        let output = self.run(&["connect", "--", "-X", "-v", "ON_ERROR_STOP=1", "-c", &sql]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn archived(answer: &Value) -> (u64, u64) {
    let position = &answer["archived"];
    let lsn = position["lsn"].as_str().unwrap_or("0/0");
    let (high, low) = lsn.split_once('/').unwrap();
    let part = |text: &str| u64::from_str_radix(text, 16).unwrap();
    (position["timeline"].as_u64().unwrap_or(0), part(high) << 32 | part(low))
}

#[test]
fn the_log_is_archived_over_a_take_over_and_after_the_repository_was_away() {
    let cluster = Cluster::new();
    cluster.json(&["up", "--nodes", "3", "--wait", "180"]);
    cluster.healthy();
    cluster.write(40);
    let first = cluster.archive_until("two segments archived", |answer| archived(answer).1 >= 3 << 24);
    assert_eq!(first["problems"], serde_json::json!([]), "{first}");

    // Away: trouble is told, and nothing is lost meanwhile.
    let (vault, away) = (cluster.dir.join("vault"), cluster.dir.join("away"));
    std::fs::rename(&vault, &away).unwrap();
    cluster.write(40);
    cluster.archive_until("failing", |answer| answer["failing"].is_array());
    assert!(!vault.exists(), "no new repository was made in its place");

    // The primary dies with what it could not archive; the next one brings it.
    let primary = cluster.json(&["status"])["cluster"]["primary"].clone();
    let nodes = cluster.json(&["status"])["nodes"].clone();
    let pid = |key: &str| {
        let node = nodes.as_array().unwrap().iter().find(|node| node["name"] == primary).unwrap();
        node[key].as_u64().unwrap().to_string()
    };
    for key in ["agent_pid", "guard_pid", "server_pid"] {
        let killed = std::process::Command::new("kill").args(["-9", &pid(key)]).status().unwrap();
        assert!(killed.success(), "{key}");
    }
    let begun = Instant::now();
    while cluster.json(&["status"])["cluster"]["primary"] == primary {
        assert!(begun.elapsed() < PATIENCE, "nobody took over");
        std::thread::sleep(Duration::from_millis(300));
    }
    cluster.healthy();
    std::fs::rename(&away, &vault).unwrap();
    cluster.write(40);
    let after = cluster
        .archive_until("archived on the new timeline", |answer| archived(answer).0 > 1 && answer["failing"].is_null());
    assert_eq!(after["problems"], serde_json::json!([]), "a hole: {after}");
    assert!(archived(&after).1 > archived(&first).1 + (2 << 24), "{after}");
    assert!(after["term"].as_u64() > first["term"].as_u64());
}

#[test]
fn a_repository_that_hangs_costs_no_write_and_another_one_takes_its_place() {
    let cluster = Cluster::new();
    cluster.json(&["up", "--nodes", "1", "--wait", "180"]);
    cluster.healthy();
    cluster.write(40);
    let first = cluster.archive_until("two segments archived", |answer| archived(answer).1 >= 3 << 24);

    // A bucket's server that takes connections and says nothing, ever.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || listener.incoming().collect::<Vec<_>>());
    let keys = cluster.dir.parent().unwrap().join("keys");
    std::fs::write(&keys, "aws_access_key_id = a\naws_secret_access_key = b\n").unwrap();
    std::fs::set_permissions(&keys, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let place = format!("s3://orders/main?endpoint=http://127.0.0.1:{port}&timeout=1&credentials={}", keys.display());
    cluster.json(&["set", &format!("vault.repository={place}")]);
    cluster.write(40);
    let failing = cluster.archive_until("failing", |answer| answer["failing"].is_array());
    assert_eq!(failing["repository"], place.as_str(), "{failing}");
    let (status, answer) = cluster.answer(&["backups"]);
    assert!(status == Some(1) && answer["error"].as_str().unwrap().contains("can not be reached"), "{answer}");
    // Clients notice nothing of it.
    cluster.write(5);
    cluster.healthy();

    cluster.json(&["set", &format!("vault.repository={}", cluster.dir.join("vault").display())]);
    cluster.write(20);
    let after = cluster.archive_until("archived again", |answer| {
        answer["failing"].is_null() && archived(answer).1 > archived(&first).1 + (4 << 24)
    });
    assert_eq!(after["problems"], serde_json::json!([]), "{after}");
}

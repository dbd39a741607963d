//! The log of a cluster on this machine goes to its archive: from the first minute, over a take-over, and again after the repository
//! was away; so it does by a command of the operator's own. Starts real servers.

#![expect(clippy::unwrap_used, reason = "helpers of tests, too")]

#[path = "support/local.rs"]
mod local;
#[path = "support/lost_primary.rs"]
mod lost_primary;
#[path = "support/until.rs"]
mod until;

use local::Cluster;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use until::until;

impl Cluster {
    fn archive(&self) -> Value {
        self.json(&["archive", "status"])
    }

    /// The answer, once it is as wanted.
    fn archive_until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        until(what, || Some(self.archive()).filter(&wanted))
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
    cluster.kill_primary();
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

/// Numbers of the whole segments in a folder, whatever their timeline.
fn handed_over(folder: &Path) -> BTreeSet<u64> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let part = |text: &str| u64::from_str_radix(text, 16).unwrap();
    names
        .filter(|name| name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .map(|name| part(&name[8..16]) << 8 | part(&name[16..]))
        .collect()
}

/// Rule P19 for a command of the operator's own.
#[test]
fn what_a_dead_primary_did_not_hand_to_the_operators_command_its_successor_does() {
    let cluster = Cluster::new();
    cluster.json(&["up", "--nodes", "3", "--wait", "180"]);
    cluster.healthy();
    let folder = cluster.dir.parent().unwrap().join("tool");
    std::fs::create_dir(&folder).unwrap();
    // The servers run as another user, if this one is the superuser.
    std::fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let hold = folder.join("hold");
    let at = folder.display();
    let command = format!("test ! -e {at}/hold && cp %p {at}/.%f && mv {at}/.%f {at}/%f");
    let (status, refused) = cluster.answer(&["set", "postgres.archive_command=cp /a /b"]);
    assert!(status == Some(2) && refused.to_string().contains("%p"), "{refused}");
    cluster.json(&["set", &format!("postgres.archive_command={command}")]);
    let brought = |answer: &Value| archived(&serde_json::json!({ "archived": answer["command"]["archived"] }));
    let first = cluster.archive_until("told", |answer| brought(answer).1 > 0);
    assert_eq!(first["archive_command"], command.as_str());
    cluster.write(40);
    let first = cluster.archive_until("two segments on", |answer| brought(answer).1 >= brought(&first).1 + (2 << 24));
    assert!(handed_over(&folder).len() >= 2);

    // The tool fails, the primary goes on, and dies with what waits.
    std::fs::write(&hold, "").unwrap();
    let before = handed_over(&folder);
    cluster.write(60);
    let primary = cluster.kill_primary();
    let waits = cluster.archive_until("in the hands of the next", |answer| {
        answer["command"]["term"].as_u64() > first["command"]["term"].as_u64()
    });
    assert!(waits["command"]["gaps"] == serde_json::json!([]) && handed_over(&folder) == before, "{waits}");
    // Another change while nothing can be handed over: the timeline between is nobody's to hand over by itself.
    let status = cluster.json(&["status"]);
    let mut names = status["nodes"].as_array().unwrap().iter().map(|node| &node["name"]);
    let other = names.find(|name| **name != primary && **name != status["cluster"]["primary"]);
    cluster.json(&["switchover", "--to", other.unwrap().as_str().unwrap()]);
    let opened = waits["command"]["term"].as_u64();
    cluster.archive_until("in the hands of the third", |answer| answer["command"]["term"].as_u64() > opened);
    std::fs::remove_file(&hold).unwrap();
    cluster.write(40);
    let after = cluster.archive_until("on the new timeline", |answer| {
        brought(answer).0 > 2 && brought(answer).1 >= brought(&first).1 + (5 << 24)
    });
    for timeline in 2..=brought(&after).0 {
        assert!(folder.join(format!("{timeline:08X}.history")).exists(), "no history of timeline {timeline}");
    }
    let found = handed_over(&folder);
    let (oldest, newest) = (*found.first().unwrap(), *found.last().unwrap());
    assert_eq!(found.len() as u64, newest - oldest + 1, "a hole: {found:?}");
    assert!(newest > *before.last().unwrap() + 3 && after["problems"] == serde_json::json!([]), "{after}");

    // Taken back, nothing of it is told any more, and nothing waits for it.
    cluster.json(&["set", "--unset", "postgres.archive_command"]);
    cluster.archive_until("gone", |answer| answer["command"].is_null() && answer["archive_command"].is_null());
}

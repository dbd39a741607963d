//! A cluster whose repository lies in a bucket that locks what is written: its host is lost to somebody who has its keys, and what that one hid and
//! overwrote is found, verified and restored. Starts real servers.

#![expect(clippy::unwrap_used, reason = "helpers of tests, too")]

#[path = "../../vault/tests/real/bucket_server/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the vault's own tests use the rest")]
mod bucket_server;
#[path = "support/local.rs"]
mod local;
#[path = "support/until.rs"]
mod until;

use bucket_server::{Dialect, Server};
use local::Cluster;
use until::until;

const SUM: &str = "select count(*), md5(string_agg(note, ',' order by id)) from ledger";

impl Cluster {
    fn sql(&self, text: &str) -> String {
        let output = self.run(&["connect", "--", "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", text]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).lines().rev().find(|line| line.contains('|')).unwrap_or_default().into()
    }
}

#[test]
fn what_somebody_with_the_keys_of_a_host_hid_is_restored_as_of_before() {
    let (cluster, store) = (Cluster::new(), Server::start(Dialect::S3));
    cluster.json(&["up", "--nodes", "1", "--wait", "180"]);
    cluster.healthy();
    let beside = cluster.dir.parent().unwrap().to_owned();
    let plain = store.address(&beside, "main", 10).display().to_string();
    let locked = format!("{plain}&lock=30");

    // A bucket without object lock: the archive says what is missing.
    cluster.json(&["set", &format!("vault.repository={locked}")]);
    cluster.sql("create table ledger(id bigserial primary key, note text)");
    let failing = until("told that nothing is locked", || {
        let answer = cluster.json(&["archive", "status"]);
        answer["failing"].is_array().then(|| answer["failing"].to_string())
    });
    assert!(failing.contains("object lock"), "{failing}");

    // It is switched on, and all is written and locked.
    store.lock_bucket(None);
    cluster.sql("insert into ledger(note) select md5(i::text) from generate_series(1, 5000) i");
    let made = until("a backup", || Some(cluster.answer(&["backup"])).filter(|(status, _)| *status == Some(0)));
    let written = cluster.sql(SUM);
    let verified = cluster.json(&["verify"]);
    assert_eq!(verified["problems"], serde_json::json!([]), "the newest segment is locked: {verified}");
    assert_eq!(store.unlocked(), Vec::<String>::new());

    // The host is lost.
    assert!(cluster.run(&["down"]).status.success());
    std::thread::sleep(std::time::Duration::from_millis(20));
    let then = jiff::Timestamp::now();
    std::thread::sleep(std::time::Duration::from_millis(20));
    let attack = store.attack();
    assert!(attack.refused > 5 && attack.hidden > 1 && attack.overwritten > 1, "{attack:?}");

    // The plain address says that nothing is there, and what to do.
    let (status, answer) = cluster.answer_bare(&["backups", "--repository", &plain]);
    assert_eq!(status, Some(1), "{answer}");
    let says = answer.to_string();
    assert!(says.contains("holds no object vault.json") && says.contains("as_of="), "{says}");

    let view = format!("{plain}&as_of={then}");
    let (status, answer) = cluster.answer_bare(&["backups", "--repository", &view]);
    assert_eq!(status, Some(0), "{answer}");
    assert!(answer.to_string().contains(made.1["backup"]["label"].as_str().unwrap()), "{answer}");
    let (status, answer) = cluster.answer_bare(&["verify", "--repository", &view]);
    assert!(status == Some(0) && answer["problems"] == serde_json::json!([]), "{answer}");
    let copy = beside.join("copy");
    let to = copy.to_str().unwrap();
    let (status, answer) = cluster.answer_bare(&["restore", "--to", to, "--repository", &view, "--sql", SUM, "--yes"]);
    assert_eq!(status, Some(0), "{answer}");
    let row: Vec<&str> = answer["rows"][0].as_array().unwrap().iter().map(|field| field.as_str().unwrap()).collect();
    assert_eq!(row.join("|"), written);
    // A wrong moment is a wrong command line.
    let (status, answer) = cluster.answer_bare(&["backups", "--repository", &format!("{plain}&as_of=yesterday")]);
    assert!(status == Some(2) && answer.to_string().contains("2026-11-28T10:00:00Z"), "{answer}");
}

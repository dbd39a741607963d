//! Failures rehearsed on a cluster on this machine, as a person would. Starts real servers.

#![expect(clippy::unwrap_used, reason = "helpers of tests, too")]

#[path = "support/local.rs"]
mod local;

use local::Cluster;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs a drill that must come out as asked for; its last line.
fn drilled(cluster: &Cluster, kind: &str, page: &Path) -> Value {
    let answer = cluster.json(&["drill", kind, "--page", page.to_str().unwrap()]);
    let result = &answer["result"];
    assert_eq!(
        (&result["met"], &result["lost"], &result["duplicated"]),
        (&true.into(), &0.into(), &0.into()),
        "{answer}"
    );
    assert!(result["acknowledged"].as_u64().unwrap() > 100 && answer["amiss"] == serde_json::json!([]), "{answer}");
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("<svg") && page.contains(kind) && page.ends_with("</html>"));
    result.clone()
}

fn refused(cluster: &Cluster, arguments: &[&str], status: i32, words: &str) {
    let (found, answer) = cluster.answer(arguments);
    let error = answer["error"].as_str().unwrap_or_default();
    assert!(found == Some(status) && error.contains(words), "{arguments:?}: {found:?} {answer}");
}

#[test]
fn failures_are_rehearsed_and_measured() {
    let cluster = Cluster::new();
    // A program of the cluster's own, which is replaced while it runs, as an upgrade of the package does.
    let place = tempfile::tempdir().unwrap();
    let program = place.path().join("mainstay");
    std::fs::copy(env!("CARGO_BIN_EXE_mainstay"), &program).unwrap();
    let dir = cluster.dir.to_str().unwrap();
    let up = Command::new(&program)
        .args(["up", "--dir", dir, "--name", "orders", "--wait", "180"])
        .stdin(Stdio::null())
        .output();
    let up = up.unwrap();
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    let new = place.path().join("new");
    std::fs::copy(env!("CARGO_BIN_EXE_mainstay"), &new).unwrap();
    std::fs::rename(&new, &program).unwrap();
    cluster.healthy();
    let page = place.path().join("drill.html");

    let output = cluster.run(&["drill", "kill-server"]);
    assert_eq!(output.status.code(), Some(2), "nobody confirmed: {}", String::from_utf8_lossy(&output.stderr));
    let dry = cluster.json(&["drill", "kill-server", "--dry-run"]);
    let primary = dry["node"].as_str().unwrap().to_owned();
    refused(&cluster, &["drill", "isolate-primary"], 3, "on one host");
    refused(&cluster, &["drill", "stop-server", "--for", "1"], 2, "no longer than the lease");
    cluster.json(&["pause"]);
    refused(&cluster, &["drill", "kill-server"], 3, "paused");
    cluster.json(&["resume"]);
    cluster.healthy();

    let killed = drilled(&cluster, "kill-server", &page);
    assert_eq!(killed["from"], *primary);
    assert!(killed["term_after"].as_u64() > killed["term"].as_u64(), "{killed}");
    cluster.healthy();
    // Its supervisor starts the proxy again, although the program that it was started from is gone.
    drilled(&cluster, "lose-proxy", &page);

    let list = cluster.json(&["drill", "--list"]);
    let kinds: Vec<&str> =
        list["results"].as_array().unwrap().iter().map(|result| result["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["kill-server", "lose-proxy"]);
    let history = String::from_utf8(cluster.run(&["history"]).stdout).unwrap();
    assert!(history.contains(&format!("drill kill-server on {primary}")), "{history}");
    assert!(!history.contains("fault of a drill"), "its result tells of it: {history}");
    // What was declared is kept to: a hand-over is expected to take more than this second.
    cluster.json(&["set", "requirements.outage_server_s=1"]);
    refused(&cluster, &["drill", "switchover"], 3, "the declared outages would be exceeded");
    let schema =
        cluster.run(&["connect", "--", "-Atc", "select count(*) from pg_namespace where nspname = 'mainstay_drill'"]);
    assert_eq!(String::from_utf8_lossy(&schema.stdout).trim(), "0");
}

/// What can be known to be wrong is refused before anything happens, also where it is only asked what would.
fn wrong_from_the_beginning(cluster: &Cluster, place: &Path) {
    for dry in [&["--dry-run"][..], &[]] {
        let at = |page: &str, words: &str| {
            refused(cluster, &[&["drill", "kill-server", "--page", page], dry].concat(), 2, words);
        };
        at(place.to_str().unwrap(), "it is a directory");
        // Not tried out where nothing may be changed; root may write anywhere, as far as the mode tells.
        if dry.is_empty() {
            at("/proc/drill.html", "can not be written there");
        }
        let node = cluster.dir.join("nodes/db1/agent/node.crt");
        let identity = place.join("node");
        for kind in ["crt", "key"] {
            std::fs::copy(node.with_extension(kind), identity.with_extension(kind)).unwrap();
        }
        std::fs::copy(cluster.dir.join("pki/ca.crt"), place.join("ca.crt")).unwrap();
        let as_node = ["drill", "kill-server", "--identity", identity.to_str().unwrap()];
        refused(cluster, &[&as_node, dry].concat(), 1, "needs a certificate with the role admin");
    }
}

#[test]
fn a_drill_that_is_ended_from_outside_leaves_nothing_behind() {
    let cluster = Cluster::new();
    cluster.json(&["up", "--name", "orders", "--wait", "180"]);
    cluster.healthy();
    let place = tempfile::tempdir().unwrap();
    wrong_from_the_beginning(&cluster, place.path());
    interrupted(&cluster, &place.path().join("drill.html"));
    let schema =
        cluster.run(&["connect", "--", "-Atc", "select count(*) from pg_namespace where nspname = 'mainstay_drill'"]);
    assert_eq!(String::from_utf8_lossy(&schema.stdout).trim(), "0");
}

/// It takes its schema along, and the history tells of its fault.
fn interrupted(cluster: &Cluster, page: &Path) {
    let dir = cluster.dir.to_str().unwrap();
    let mut drill = Command::new(env!("CARGO_BIN_EXE_mainstay"))
        .args(["drill", "stop-server", "--for", "12", "--yes", "--dir", dir, "--page", page.to_str().unwrap()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = std::time::Instant::now();
    loop {
        let list = cluster.json(&["drill", "--list"]);
        if list["under_way"].as_str().is_some_and(|what| what.contains("was stopped")) {
            break;
        }
        assert!(begun.elapsed() < std::time::Duration::from_secs(60), "{list}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let ended = Command::new("kill").args(["-TERM", &drill.id().to_string()]).status().unwrap();
    assert!(ended.success());
    assert_eq!(drill.wait().unwrap().code(), Some(1), "it ended by itself, after cleaning up");
    cluster.healthy();
    let history = String::from_utf8(cluster.run(&["history"]).stdout).unwrap();
    assert_eq!(history.matches("fault of a drill on").count(), 1, "{history}");
}

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
    // What was declared is kept to: a hand-over is expected to take more than this second.
    cluster.json(&["set", "requirements.outage_server_s=1"]);
    refused(&cluster, &["drill", "switchover"], 3, "the declared outages would be exceeded");
    let schema =
        cluster.run(&["connect", "--", "-Atc", "select count(*) from pg_namespace where nspname = 'mainstay_drill'"]);
    assert_eq!(String::from_utf8_lossy(&schema.stdout).trim(), "0");
}

//! From a few answers to a file, a plan and a runbook: the commands as a person types them, without a cluster.
#![expect(clippy::unwrap_used, reason = "a test ends where it can not go on")]

use std::path::Path;
use std::process::{Command, Output, Stdio};

fn mainstay(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mainstay"))
        .args(arguments)
        .current_dir(dir)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const HOSTS: [&str; 6] = ["--host", "192.0.2.1,zone=a", "--host", "192.0.2.2,zone=b", "--host", "192.0.2.3,zone=c"];

fn file(dir: &Path, more: &str) {
    let made = mainstay(dir, &[&["init", "--name", "orders"][..], &HOSTS].concat());
    assert!(made.status.success(), "{}", err(&made));
    let path = dir.join("mainstay.toml");
    let text = std::fs::read_to_string(&path).unwrap() + more;
    std::fs::write(&path, text).unwrap();
}

#[test]
fn three_hosts_make_a_file_a_plan_and_a_runbook() {
    let dir = tempfile::tempdir().unwrap();
    file(dir.path(), "");
    let planned = mainstay(
        dir.path(),
        &["plan", "--offline", "--config", "mainstay.toml", "--html", "plan.html", "--write", "planned.toml", "--json"],
    );
    assert!(planned.status.success(), "{}", err(&planned));
    let last = out(&planned).lines().last().unwrap().to_owned();
    let json: serde_json::Value = serde_json::from_str(&last).unwrap();
    assert_eq!(json["sections"].as_array().unwrap().len(), 16);
    assert_eq!(json["written"].as_array().unwrap().len(), 2);
    let page = std::fs::read_to_string(dir.path().join("plan.html")).unwrap();
    assert!(page.contains("<svg") && !page.contains("<script") && !page.contains("<link"), "it needs nothing else");
    // The written file plans the same, and then everything in it is declared.
    let again = mainstay(dir.path(), &["plan", "--offline", "--config", "planned.toml", "--json"]);
    let json: serde_json::Value = serde_json::from_str(out(&again).lines().last().unwrap()).unwrap();
    let register = json["sections"][3].to_string();
    assert!(register.contains("shared_buffers") && !register.contains("mainstay set"), "{register}");
    let book = mainstay(dir.path(), &["runbook", "--offline", "--config", "mainstay.toml", "--html", "runbook.html"]);
    assert!(book.status.success(), "{}", err(&book));
    let page = std::fs::read_to_string(dir.path().join("runbook.html")).unwrap();
    for words in ["192.0.2.2", "three in the morning", "the database by hand", "STOP IF"] {
        assert!(page.contains(words), "{words}");
    }
}

#[test]
fn contradictions_are_refused_with_what_would_do() {
    let dir = tempfile::tempdir().unwrap();
    file(dir.path(), "write_latency_ms = 1\nclients = 5000\n");
    let planned = mainstay(dir.path(), &["plan", "--offline", "--config", "mainstay.toml", "--html", "plan.html"]);
    assert_eq!(planned.status.code(), Some(2));
    let said = err(&planned);
    for words in [
        "write_latency_ms = 1, but a commit takes about",
        "proxy.max_connections = 2000",
        "the nearest plans that work",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(!dir.path().join("plan.html").exists());
}

#[test]
fn a_file_is_never_replaced_and_mistakes_write_nothing() {
    let dir = tempfile::tempdir().unwrap();
    file(dir.path(), "# mine\n");
    let again = mainstay(dir.path(), &["init", "--host", "192.0.2.9"]);
    assert_eq!(again.status.code(), Some(3), "{}", err(&again));
    assert!(std::fs::read_to_string(dir.path().join("mainstay.toml")).unwrap().ends_with("# mine\n"));
    for (arguments, words) in [
        (&["init", "--file", "b.toml"][..], "no terminal to ask on"),
        (&["init", "--file", "b.toml", "--host", "192.0.2.1:5432"], "holds a port"),
        (&["init", "--file", "b.toml", "--host", "192.0.2.1,witness"], "no node holds data"),
    ] {
        let wrong = mainstay(dir.path(), arguments);
        assert_eq!(wrong.status.code(), Some(2), "{}", err(&wrong));
        assert!(err(&wrong).contains(words), "{}", err(&wrong));
        assert!(!dir.path().join("b.toml").exists());
    }
}

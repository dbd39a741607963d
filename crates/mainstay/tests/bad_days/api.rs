//! Calls that no agent of ours makes: too long, no JSON, unknown, by somebody without the right. Each gets its status and says why.

use crate::bed::Bed;
use mainstay_model::{ClusterName, NodeId};
use mainstay_net::{Authority, Credentials, Expect, Role, http, install_provider, write_file};
use serde_json::{Value, json};
use std::time::Duration;

/// What is sent, as whom, and what must come back.
struct Call {
    method: &'static str,
    path: &'static str,
    body: Option<Value>,
    admin: bool,
    status: u16,
    words: &'static [&'static str],
}

fn calls() -> Vec<Call> {
    let long = |bytes: usize| Some(Value::String("x".repeat(bytes)));
    let call = |method, path, body, admin, status, words| Call { method, path, body, admin, status, words };
    vec![
        call("GET", "/v1/statsu", None, true, 404, &["/v1/statsu"]),
        call("DELETE", "/v1/status", None, true, 405, &["does not take DELETE"]),
        call("POST", "/v1/command", long(70_000), true, 413, &["65536"]),
        call("POST", "/v1/spec", long(540_000), true, 413, &["524288"]),
        call("POST", "/v1/command", Some(json!("switch over")), true, 400, &[]),
        call("POST", "/v1/command", Some(json!({"command": {"fly": {}}})), true, 400, &[]),
        call("POST", "/v1/spec", Some(json!({"parent": 1})), true, 400, &[]),
        call("POST", "/v1/command", Some(json!({"by": "eve", "command": "reinit"})), false, 403, &["eve"]),
        call("POST", "/v1/spec", Some(json!({})), false, 403, &["reader"]),
    ]
}

#[test]
fn calls_that_are_wrong_are_refused_and_change_nothing() {
    install_provider();
    let bed = Bed::new(&["db1"]);
    let mut agent = bed.agent("db1");
    agent.until_writable().unwrap();
    let cluster = ClusterName::new("orders").unwrap();
    let authority = Authority::load(&cluster, &bed.at("pki/ca.crt"), &bed.at("pki/ca.key")).unwrap();
    let eve = authority.issue(&Role::Reader("eve".to_owned()), &[]).unwrap();
    write_file(&bed.at("eve.crt"), eve.cert_pem.as_bytes(), 0o644, None, false).unwrap();
    write_file(&bed.at("eve.key"), eve.key_pem.as_bytes(), 0o600, None, false).unwrap();
    let load = |cert: &str, key: &str| {
        Credentials::load(&cluster, &bed.at("pki/ca.crt"), &bed.at(cert), &bed.at(key)).unwrap()
    };
    let (admin, eve) = (load("pki/admin.crt", "pki/admin.key"), load("eve.crt", "eve.key"));
    let generation = bed.read(&["set"])["generation"].clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let address = format!("{}:7420", bed.host("db1")).parse().unwrap();
    let mut failed = Vec::new();
    for call in calls() {
        let who = if call.admin { &admin } else { &eve };
        let expect = Expect::Node(NodeId::new("db1").unwrap());
        let (what, limit) = ((call.method, call.path), Duration::from_secs(10));
        let answer = runtime.block_on(http::request(who, address, expect, what, call.body.as_ref(), limit));
        let (status, text) = answer.map_or_else(
            |error| (0, error.to_string()),
            |(status, bytes)| (status, String::from_utf8_lossy(&bytes).into_owned()),
        );
        let object: Value = serde_json::from_str(&text).unwrap_or_default();
        let told = object["error"].as_str().is_some_and(|error| !error.is_empty());
        if status != call.status || !told || !call.words.iter().all(|words| text.contains(words)) {
            failed.push(format!("{} {}: {status}, not {}: {text}", call.method, call.path, call.status));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert_eq!(bed.read(&["set"])["generation"], generation);
    let audit = std::fs::read_to_string(bed.node("db1").join("log/audit.log")).unwrap();
    assert!(audit.contains("eve"), "what was refused is written down too: {audit}");
    agent.end().unwrap();
    bed.nothing_left().unwrap();
}

//! What the other nodes are: of another cluster, of a clock of their own, two of one name. One node with data and two witnesses.

use crate::bed::{Agent, Bed};
use crate::lacking;
use mainstay_model::layout::NodeLayout;
use mainstay_model::{ClusterName, NodeId};
use mainstay_net::{Authority, Role};

fn problem(bed: &Bed, name: &str) -> String {
    let status = bed.read(&["status"]);
    let all = status["problems"].as_array().cloned().unwrap_or_default();
    let texts = all.iter().filter(|problem| problem["name"] == name);
    texts.map(|problem| format!("{} {}", problem["evidence"], problem["hint"])).collect()
}

fn shows(agent: &mut Agent<'_>, about: &Agent<'_>, name: &str, words: &[&str]) {
    let bed = agent.bed();
    let seen = agent.until(name, |_| lacking(&problem(bed, name), words).is_empty());
    seen.unwrap_or_else(|why| panic!("{why}: {words:?} in {:?}\n{}", bed.read(&["status"])["problems"], about.last()));
}

/// The library that gives a process another clock, where the distribution puts it.
fn faketime() -> String {
    let places = ["x86_64-linux-gnu", "aarch64-linux-gnu"].map(|kind| format!("/usr/lib/{kind}/faketime"));
    let found = places.into_iter().find(|place| std::path::Path::new(place).is_dir());
    format!(
        "{}/libfaketime.so.1",
        found.unwrap_or_else(|| panic!("libfaketime is needed: apt-get install libfaketime"))
    )
}

#[test]
fn neighbours_that_are_not_as_they_must_be_are_named() {
    let bed = Bed::new(&["db1", "w1", "w2"]);
    let twin = bed.at("twin");
    assert!(std::process::Command::new("cp").arg("-a").arg(bed.node("w1")).arg(&twin).status().unwrap().success());
    let mut first = bed.agent("db1");
    let second = bed.agent("w1");
    first.until_writable().unwrap();

    // A peer with a certificate of another cluster's authority that says it is of ours.
    let files = NodeLayout::new(bed.node("w2"));
    let real = ["crt", "key"].map(|kind| std::fs::read(files.agent().join(format!("node.{kind}"))).unwrap());
    let ca = std::fs::read(files.ca_cert()).unwrap();
    let other = Authority::create(&ClusterName::new("orders").unwrap()).unwrap();
    let issued = other.issue(&Role::Node(NodeId::new("w2").unwrap()), &[bed.host("w2")]).unwrap();
    std::fs::write(files.node_cert(), &issued.cert_pem).unwrap();
    std::fs::write(files.node_key(), &issued.key_pem).unwrap();
    std::fs::write(files.ca_cert(), other.cert_pem()).unwrap();
    let stranger = bed.agent("w2");
    shows(&mut first, &stranger, "node-unreachable", &["w2: its agent at", "another cluster", "mainstay join --again"]);
    stranger.end().unwrap();
    std::fs::write(files.node_cert(), &real[0]).unwrap();
    std::fs::write(files.node_key(), &real[1]).unwrap();
    std::fs::write(files.ca_cert(), ca).unwrap();

    // A clock that is years ahead: every certificate seems to have ended, here and there.
    let environment = [("LD_PRELOAD", &*faketime()), ("FAKETIME", "+3000d"), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
    let ahead = bed.agent_with("w2", "mainstay.toml", &environment);
    shows(
        &mut first,
        &ahead,
        "node-unreachable",
        &["w2: its agent at", "our certificate has expired", "is the clock of w2 wrong?"],
    );
    assert_eq!(bed.read(&["status"])["cluster"]["writable"], true);
    assert!(lacking(&ahead.said(), &["has expired", "mainstay pki issue"]).is_empty(), "{}", ahead.last());
    ahead.end().unwrap();

    // A copy of w1, as from an image, on a host of its own.
    let text = bed.text("").replace(&bed.node("w1").display().to_string(), &twin.display().to_string());
    std::fs::write(bed.at("twin.toml"), text.replace(&bed.host("w1"), &bed.host("the twin"))).unwrap();
    let doubled = bed.agent_with("w1", "twin.toml", &[]);
    shows(&mut first, &doubled, "two-agents-one-name", &["w1: two agents speak under this name", "end one of them"]);
    assert_eq!(bed.read(&["status"])["cluster"]["writable"], true);
    doubled.end().unwrap();

    second.end().unwrap();
    first.end().unwrap();
    bed.nothing_left().unwrap();
}

//! End to end, one fault per test, each on a cluster of its own made by the built program: what clients were told is compared with
//! what is there, and the old primary must be a replica again without anybody's help.
//!
//! They take turns even under a runner that starts them side by side: three servers on two cores are load enough.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use mainstay_testkit::cluster::{Cluster, primary};
use mainstay_testkit::faults::Fault;
use mainstay_testkit::idle;
use mainstay_testkit::trial::{self, Settings};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Waits for this test's turn. The lock ends with the process or the descriptor, whichever is first.
fn turn() -> OwnedFd {
    let path = std::env::temp_dir().join("mainstay-end-to-end.lock");
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let lock = rustix::fs::open(path, flags, Mode::from_raw_mode(0o600)).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    lock
}

/// Runs one fault and asserts what must hold; the time without writes must stay within `worst`, generously.
async fn survives(fault: Fault, worst: Duration) {
    let _turn = turn();
    let cluster = Cluster::temporary().await.unwrap();
    let report = trial::run(&cluster, fault, Settings::default()).await.unwrap();
    println!(
        "{}: {}; up in {:.1} s, gap {} ms, healed after {:.1} s, {} acknowledged, {} unknown",
        fault.name(),
        report.injected.evidence,
        cluster.up_took.as_secs_f64(),
        report.gap.length.as_millis(),
        report.healed_after.as_secs_f64(),
        report.verdict.acknowledged,
        report.verdict.unknown
    );
    assert!(report.verdict.acknowledged > 100, "{:?}", report.verdict);
    assert!(report.verdict.is_clean(), "{:?}", report.verdict);
    assert!(report.gap.length <= worst, "no acknowledged write for {:?}", report.gap.length);
    let old = report.status.nodes.iter().find(|node| node.name == report.injected.before).unwrap();
    let is_primary = primary(&report.status).unwrap().name == old.name;
    assert!(is_primary || (old.role == "replica" && old.state == "streaming"), "{old:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn server_killed() {
    survives(Fault::ServerKill, Duration::from_secs(3)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_process_of_a_node_killed() {
    survives(Fault::NodeKill, Duration::from_secs(6)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_stopped() {
    survives(Fault::ServerStop, Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_killed() {
    survives(Fault::AgentKill, Duration::from_secs(8)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_stopped_for_longer_than_the_lease() {
    survives(Fault::AgentStop, Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guard_killed() {
    survives(Fault::GuardKill, Duration::from_secs(8)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_cluster_killed_and_started_again() {
    survives(Fault::ClusterKill, Duration::from_secs(40)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn switchover_under_load() {
    survives(Fault::Switchover, Duration::from_secs(4)).await;
}

/// How many commits a proxy has looked up, as it tells who asks for its numbers.
fn commits_found(port: u16) -> u64 {
    let mut metrics = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    metrics.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    metrics.read_to_string(&mut text).unwrap();
    let found = text.lines().filter(|line| line.starts_with("mainstay_pool_commits_found_total{"));
    found.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

/// Commits whose server is lost before it answers: what clients are told of them is what became of them, and most of them are told. In doubt
/// stays one whose number had not come back yet.
#[tokio::test(flavor = "multi_thread")]
async fn commits_whose_answer_was_lost_are_looked_up() {
    let _turn = turn();
    let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let metrics = format!("proxy.metrics_port={port}");
    let cluster = Cluster::pooled_with(&["proxy.commit_outcome=true", &metrics]).await.unwrap();
    let settings = Settings { clients: 16, transactions: true, ..Settings::default() };
    let mut doubted = 0;
    for fault in [Fault::ServerKill, Fault::NodeKill] {
        let report = trial::run(&cluster, fault, settings).await.unwrap();
        println!("{}: {}; {:?}", fault.name(), report.injected.evidence, report.verdict);
        assert!(report.verdict.acknowledged > 100, "{:?}", report.verdict);
        assert!(report.verdict.is_clean(), "{:?}", report.verdict);
        doubted += report.verdict.unknown;
    }
    let found = commits_found(port);
    println!("{found} commits were looked up, {doubted} stayed in doubt");
    assert!(found > 0, "{found} commits were looked up, {doubted} stayed in doubt");
}

/// What an idle node costs: printed, and held to twice the promise (1 % of a core) in an optimised program, since a machine that is busy
/// otherwise makes every switch of tasks dearer; one built for debugging is held to ten times it.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_node_costs_little() {
    let _turn = turn();
    let cluster = Cluster::temporary().await.unwrap();
    let status = cluster.healed(Duration::from_secs(60)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let optimised = !cfg!(debug_assertions);
    for cost in idle::measure(&status, Duration::from_secs(20)).await.unwrap() {
        let megabytes = cost.resident / (1024 * 1024);
        println!("{}: agent and guard idle: {:.2} % of a core, {megabytes} MB", cost.node, cost.cpu_percent);
        assert!(cost.cpu_percent <= if optimised { 2.0 } else { 10.0 }, "{cost:?}");
        assert!(megabytes <= if optimised { 60 } else { 120 }, "{cost:?}");
    }
}

//! End to end on virtual hosts (needs root): one cluster for many faults, since making hosts is the slow part; a new one after a trial that did
//! not end as it must. Every fault is tried even if one before it failed; all that went wrong is named at the end.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use mainstay_model::Durability;
use mainstay_testkit::hosts::host::{Blueprint, Host};
use mainstay_testkit::hosts::network::{Switch, arrives, cut_towards};
use mainstay_testkit::hosts::page;
use mainstay_testkit::hosts::trial::{self, Settings};
use mainstay_testkit::hosts::{HostCluster, HostFault, Shape};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Runs these faults one after the other and asserts that each went as it must.
async fn survives(shape: Shape, faults: &[HostFault]) {
    let mut cluster = HostCluster::up(shape).await.unwrap();
    println!("{}: up after {:.1} s", shape.words(), cluster.up_took.as_secs_f64());
    let mut wrong = Vec::new();
    for fault in faults {
        match trial::run(&cluster, *fault, Settings::default()).await {
            Ok(report) => {
                println!("{}", report.line());
                assert!(report.verdict.acknowledged > 50 && report.single.acknowledged > 10, "{report:?}");
                wrong.extend(report.breaches().into_iter().map(|breach| format!("{}: {breach}", fault.name())));
            }
            Err(error) => {
                wrong.push(format!("{}: {error:#}", fault.name()));
                cluster = HostCluster::up(shape).await.unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", shape.words(), wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_on_three_hosts() {
    let of_a_disk = |fault: &HostFault| matches!(fault, HostFault::DiskFull | HostFault::DiskStall);
    let faults: Vec<HostFault> = HostFault::ALL.into_iter().filter(|fault| !of_a_disk(fault)).collect();
    survives(Shape::THREE, &faults).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_and_stalled_disks() {
    survives(Shape::THREE, &[HostFault::DiskFull, HostFault::DiskStall]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_alone_where_availability_was_chosen() {
    let shape = Shape { durability: Durability::Available, ..Shape::THREE };
    survives(shape, &[HostFault::ReplicasLost, HostFault::ServerKill]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_and_a_witness() {
    let shape = Shape { durability: Durability::Available, ..Shape::WITNESS };
    survives(shape, &[HostFault::ServerKill, HostFault::HostKill, HostFault::LinkCut, HostFault::Switchover]).await;
}

/// Paths below `/proc/NUMBER` of processes that name this directory.
fn living(dir: &Path) -> Vec<PathBuf> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let name = dir.to_string_lossy().into_owned();
    let names = |path: &PathBuf| {
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&name)
    };
    processes.filter(names).collect()
}

/// Loop devices on files of this directory.
fn loops(dir: &Path) -> usize {
    let devices =
        std::fs::read_dir("/sys/block").unwrap().flatten().map(|entry| entry.path().join("loop/backing_file"));
    let name = dir.to_string_lossy().into_owned();
    devices.filter_map(|file| std::fs::read_to_string(file).ok()).filter(|text| text.contains(&name)).count()
}

fn until(what: &str, met: impl Fn() -> bool) {
    let begun = Instant::now();
    while !met() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}: not within 30 s");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Hosts end with the program that made them, also when it had no chance to clean up.
#[test]
fn nothing_lives_on_after_the_maker_was_killed() {
    let place = tempfile::tempdir().unwrap();
    let mut maker = Command::new(env!("CARGO_BIN_EXE_testkit"));
    maker.args(["hosts", "--only", "server-kill"]).env("TMPDIR", place.path());
    let mut maker = maker.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let dir = place.path().join(format!("mainstay-hosts-{}-0", maker.id()));
    until("three hosts with a volume each", || loops(&dir) == 3 && living(&dir).len() >= 3);
    until("an agent runs", || dir.join("db3/agent.log").exists());
    maker.kill().unwrap();
    maker.wait().unwrap();
    until("every process ends and every loop device is free", || living(&dir).is_empty() && loops(&dir) == 0);
}

fn host(dir: &Path, name: &str, last: u8) -> Host {
    let blueprint = Blueprint {
        name: name.to_owned(),
        address: [10, 77, 0, last].into(),
        dir: dir.join(name),
        volume_mb: 20,
        program: env!("CARGO_BIN_EXE_testkit").into(),
    };
    Host::start(&blueprint).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn cables_are_cut_in_the_direction_that_is_meant() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (host(dir.path(), "one", 1), host(dir.path(), "two", 2));
    let switch = Switch::start().unwrap();
    switch.plug(&one).unwrap();
    switch.plug(&two).unwrap();
    let both = || (arrives(&one, &two).unwrap(), arrives(&two, &one).unwrap());
    assert_eq!(both(), (true, true));
    cut_towards(&one, &[two.address()], true).unwrap();
    assert_eq!(both(), (false, true));
    cut_towards(&one, &[two.address()], false).unwrap();
    assert_eq!(both(), (true, true));
    switch.connect(&one, false).unwrap();
    assert_eq!(both(), (false, false));
    switch.connect(&one, true).unwrap();
    assert_eq!(both(), (true, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_followed_on_hosts_and_nothing_of_it_reaches_this_machine() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (host(dir.path(), "one", 1), host(dir.path(), "two", 2));
    let path = dir.path().join("page.md");
    let text = "```sh\n# on every host\nhostname > /etc/mainstay/of-the-page\nhostname > /var/lib/mainstay/of-the-page\n```\n\
                ```sh\n# on two: look\ncat /etc/mainstay/of-the-page /var/lib/mainstay/of-the-page\n```\n";
    std::fs::write(&path, text).unwrap();
    let printed = page::follow(&path, &[&one, &two]).await.unwrap();
    assert_eq!(printed, ["", "", "two\ntwo\n"]);
    assert!(!Path::new("/etc/mainstay/of-the-page").exists() && !Path::new("/var/lib/mainstay/of-the-page").exists());
    std::fs::write(&path, "```sh\n# on one\nfalse\ntrue\n```\n").unwrap();
    let error = format!("{:#}", page::follow(&path, &[&one, &two]).await.unwrap_err());
    assert!(error.contains("page.md:1"), "{error}");
}

//! End to end on virtual hosts (needs root): one cluster for many faults, since making hosts is the slow part; a new one after a trial that did
//! not end as it must. Every fault is tried even if one before it failed; all that went wrong is named at the end.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use mainstay_model::status::Status;
use mainstay_model::{Durability, NodeId};
use mainstay_testkit::cluster::unhealed;
use mainstay_testkit::hosts::host::{Blueprint, Host};
use mainstay_testkit::hosts::network::{Switch, arrives, cut_towards};
use mainstay_testkit::hosts::page::{self, Reader, What};
use mainstay_testkit::hosts::trial::{self, Settings};
use mainstay_testkit::hosts::{HostCluster, HostFault, Shape};
use std::os::unix::fs::PermissionsExt as _;
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
    // Faults of disks have a test of their own.
    let elsewhere = |fault: &HostFault| matches!(fault, HostFault::DiskFull | HostFault::DiskStall);
    let faults: Vec<HostFault> = HostFault::ALL.into_iter().filter(|fault| !elsewhere(fault)).collect();
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
    use HostFault::{HostKill, LinkCut, MostReturn, ServerKill, Switchover};
    // The last one leaves a witness behind in an old store, too.
    survives(shape, &[ServerKill, HostKill, LinkCut, Switchover, MostReturn]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_at_work() {
    survives(Shape::THREE, &HostFault::OPERATED).await;
}

/// The findings of `mainstay doctor`, typed on a host: check, severity and text.
async fn findings(cluster: &HostCluster, node: &NodeId) -> Vec<(String, String, String)> {
    // It ends with status 1 where something is amiss, and this machine has no time service.
    let program = mainstay_testkit::cluster::program().unwrap().canonicalize().unwrap();
    let line =
        format!("{} doctor --config /etc/mainstay/mainstay.toml --node {node} --json || true", program.display());
    let said = cluster.host(node).unwrap().run(&["sh", "-c", &line]).await.unwrap();
    let answer: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let all = answer["nodes"][0]["findings"].as_array().unwrap_or_else(|| panic!("{answer}"));
    all.iter().map(|each| (text(&each["check"]), text(&each["severity"]), text(&each["found"]))).collect()
}

/// Hosts with a network, a volume and a clock each: what a doctor reads there is what there is.
#[tokio::test(flavor = "multi_thread")]
async fn a_doctor_sees_a_cut_cable_and_a_full_volume() {
    let cluster = HostCluster::up(Shape::THREE).await.unwrap();
    let (node, other) = (NodeId::new("db1").unwrap(), NodeId::new("db2").unwrap());
    let (here, there) = (cluster.host(&node).unwrap(), cluster.host(&other).unwrap());
    let found = findings(&cluster, &node).await;
    for check in [
        "address",
        "agent",
        "directories",
        "ports",
        "data",
        "certificates",
        "reach",
        "clock-offset",
        "libc-differs",
        "disk",
    ] {
        let of: Vec<_> = found.iter().filter(|(name, ..)| name == check).collect();
        // How fast a disk is is advice at most on a machine that others use.
        assert!(
            !of.is_empty() && of.iter().all(|(_, severity, _)| severity == "fine" || check == "disk"),
            "{check}: {of:?}"
        );
    }
    let mount = found.iter().find(|(name, ..)| name == "file-system").unwrap();
    assert!(mount.1 == "fine" && mount.2.contains("ext4"), "{mount:?}");

    cut_towards(here, &[there.address()], true).unwrap();
    assert!(!arrives(here, there).unwrap());
    let found = findings(&cluster, &node).await;
    let lost: Vec<_> = found.iter().filter(|(name, severity, _)| name == "reach" && severity == "problem").collect();
    assert!(lost.len() == 1 && lost[0].2.contains("db2"), "{found:?}");
    cut_towards(here, &[there.address()], false).unwrap();
    until("db2 is reached again", || arrives(here, there).unwrap());

    // Little room: nothing is written to see how fast the disk is.
    let dir =
        found.iter().find(|(name, ..)| name == "disk").map(|(_, _, text)| text.rsplit(' ').next().unwrap().to_owned());
    let fill = format!("fallocate -l $(($(df --output=avail -B1 {0} | tail -1) - 30000000)) {0}/filler", dir.unwrap());
    here.run(&["sh", "-c", &fill]).await.unwrap();
    let found = findings(&cluster, &node).await;
    let space: Vec<_> = found.iter().filter(|(name, ..)| name == "space").collect();
    assert!(space.len() == 1 && space[0].1 == "problem", "{space:?}");
    assert!(!found.iter().any(|(name, ..)| name == "disk"), "{found:?}");
}

/// The rules of a drill on a host.
async fn cuts(host: &Host) -> String {
    host.run(&["ip", "rule", "show", "pref", "7420"]).await.unwrap().trim().to_owned()
}

/// `mainstay drill isolate-primary`, typed on the clients' host; and an agent that ends while its host is cut off.
#[tokio::test(flavor = "multi_thread")]
async fn a_drill_cuts_the_primary_off_and_ends_by_itself() {
    let cluster = HostCluster::up(Shape::THREE).await.unwrap();
    let before = cluster.healed(Duration::from_secs(60)).await.unwrap();
    let (primary, host) = cluster.primary(&before).unwrap();
    let words = ["drill", "isolate-primary", "--yes", "--json", "--page", "/tmp/drill.html"];
    let said = cluster.run(&words, Duration::from_secs(300)).await.unwrap();
    let answer: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    let result = &answer["result"];
    assert_eq!((&result["met"], &result["lost"]), (&true.into(), &0.into()), "{answer}");
    assert_eq!(result["from"], primary.as_str());
    assert_ne!(result["to"], primary.as_str(), "another node took over: {answer}");
    // The host was away for two leases; nothing can have taken over in no time.
    assert!(result["write_gap_ms"].as_u64().unwrap() > 300, "{answer}");
    assert_eq!(cuts(host).await, "", "the agent joined its host again");
    let events = cluster.history().await.unwrap();
    assert!(events.iter().any(|event| event.kind == "drill" && event.text.contains("isolate-primary")));

    // As an agent leaves it that is killed while its host is cut off.
    let node = before.nodes.iter().find(|node| node.name == primary).unwrap();
    let file = Path::new(&node.data_dir).with_file_name("agent").join("drill.json");
    let left = r#"{"stopped":[],"isolated":true,"until":99999999999}"#;
    std::fs::write(host.path(file.to_str().unwrap()), left).unwrap();
    let rule = "ip rule add pref 7420 to 10.99.0.1 ipproto tcp dport 7420 blackhole";
    host.run(&["sh", "-c", rule]).await.unwrap();
    assert_ne!(cuts(host).await, "");
    host.run(&["sh", "-c", "kill -9 $(pgrep -f ' agent --config' | head -1)"]).await.unwrap();
    let begun = Instant::now();
    while !cuts(host).await.is_empty() || host.path(file.to_str().unwrap()).exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the next agent did not end it");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    cluster.healed(Duration::from_secs(90)).await.unwrap();
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

async fn follow_all(reader: &mut Reader<'_>) -> anyhow::Result<Vec<String>> {
    let mut printed = Vec::new();
    for block in reader.blocks()? {
        printed.extend(reader.follow(&block).await?);
    }
    reader.finish(Duration::from_secs(5)).await?;
    Ok(printed)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_followed_on_hosts_and_nothing_of_it_reaches_this_machine() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (host(dir.path(), "one", 1), host(dir.path(), "two", 2));
    let path = dir.path().join("page.md");
    let text = "```sh\n# on every host\nhostname > /etc/mainstay/of-the-page\nhostname > /var/lib/mainstay/of-the-page\n```\n\
                ```sh\n# on two: look\ncat /etc/mainstay/of-the-page /var/lib/mainstay/of-the-page\n```\n";
    std::fs::write(&path, text).unwrap();
    let mut reader = Reader::new(&path, &[&one, &two], dir.path());
    assert_eq!(follow_all(&mut reader).await.unwrap(), ["", "", "two\ntwo\n"]);
    assert!(!Path::new("/etc/mainstay/of-the-page").exists() && !Path::new("/var/lib/mainstay/of-the-page").exists());
    for wrong in ["```sh\n# on one\nfalse\ntrue\n```\n", "```sh\n# on one, in a second terminal\nfalse\n```\n"] {
        std::fs::write(&path, wrong).unwrap();
        let error = format!("{:#}", follow_all(&mut reader).await.unwrap_err());
        assert!(error.contains("page.md:1"), "{error}");
    }
}

const FILE: &str = "/etc/mainstay/mainstay.toml";

/// Waits as the page's reader does: until `status` shows one open primary, replicas that stream, and no problems.
async fn whole(host: &Host, at_most: Duration) -> Status {
    let begun = Instant::now();
    loop {
        let said = host.run(&["mainstay", "status", "--json", "--config", FILE]).await;
        let status = said.as_ref().ok().and_then(|text| serde_json::from_str::<Status>(text.lines().last()?).ok());
        match status {
            Some(status) if unhealed(&status).is_none() && status.problems.is_empty() => return status,
            _ => assert!(begun.elapsed() < at_most, "not whole after {at_most:?}: {said:?}"),
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// `docs/three-hosts.md`, typed as it stands there, to its end.
#[tokio::test(flavor = "multi_thread")]
async fn three_hosts_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let (page, packaging) = (docs.join("docs/three-hosts.md"), docs.join("packaging"));
    let fresh = |name: &str, last, volume_mb| {
        let (address, program) = ([10, 0, 0, last].into(), env!("CARGO_BIN_EXE_testkit").into());
        let blueprint = Blueprint { name: name.to_owned(), address, dir: dir.path().join(name), volume_mb, program };
        Host::start(&blueprint).unwrap()
    };
    let nodes = [fresh("db1", 1, 1500), fresh("db2", 2, 1500), fresh("db3", 3, 1500)];
    let app1 = fresh("app1", 10, 0);
    let hosts: Vec<&Host> = nodes.iter().chain([&app1]).collect();
    let switch = Switch::start().unwrap();
    hosts.iter().for_each(|host| switch.plug(host).unwrap());
    let (homes, checkout) = (dir.path().join("homes"), dir.path().join("checkout"));
    page::furnish(&hosts, &homes).unwrap();
    page::checkout(&mainstay_testkit::cluster::program().unwrap(), &packaging, &checkout).unwrap();
    let mut reader = Reader::new(&page, &hosts, &checkout);
    let followed = follow_three_hosts(&mut reader, &hosts, &homes).await;
    if followed.is_err() {
        for host in &hosts {
            for unit in ["mainstay-agent", "mainstay-proxy"] {
                let log = std::fs::read_to_string(host.path(&format!("/run/units/{unit}/log"))).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let end = lines.get(lines.len().saturating_sub(25)..).unwrap_or_default().join("\n");
                eprintln!("--- {} {unit}\n{end}", host.name());
            }
        }
    }
    followed.unwrap();
    // What was started is what lies in `packaging`, and the service manager's own way to end it is in order.
    for (host, unit) in hosts.iter().zip(["agent", "agent", "agent", "proxy"]) {
        let name = format!("mainstay-{unit}.service");
        let there = std::fs::read(host.path(&format!("/etc/systemd/system/{name}"))).unwrap();
        assert_eq!(there, std::fs::read(packaging.join(&name)).unwrap(), "{name} on {}", host.name());
    }
    reload_and_stop(&nodes).await;
}

async fn follow_three_hosts(reader: &mut Reader<'_>, hosts: &[&Host], homes: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/three-hosts.md"))?;
    let begun = Instant::now();
    let (db1, app1) = (hosts[0], hosts[3]);
    let mut seen = Vec::new();
    for block in reader.blocks()? {
        let number = block.section.split('.').next().unwrap_or_default().to_owned();
        if number == "6" && !seen.contains(&number) {
            whole(db1, Duration::from_secs(60)).await;
            // The reader types the password.
            let password = std::fs::read_to_string(db1.path("/etc/mainstay/secrets/app.password"))?;
            let file = homes.join("10.0.0.10/.pgpass");
            std::fs::write(&file, format!("127.0.0.1:6432:app:app:{}\n", password.trim()))?;
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
        }
        let before = if number == "7" && !seen.contains(&number) { Some(reader.primary().await?) } else { None };
        seen.push(number);
        let printed = reader.follow(&block).await?;
        if let Some(before) = before {
            taken_over(db1, &before).await;
            whole(db1, Duration::from_secs(60)).await;
        }
        let script = if let What::Script(script) = &block.what { script.as_str() } else { "" };
        if script.contains("select * from notes") {
            assert!(printed.concat().contains("before"), "{printed:?}");
        }
        if script.contains("history") {
            reader.finish(Duration::from_secs(5)).await?;
            let switchover = format!("mainstay switchover --config {FILE} --to db1 --yes");
            assert!(text.contains(&switchover));
            if reader.primary().await? != "db1" {
                db1.run(&["sh", "-c", &switchover]).await?;
            }
            assert_eq!(reader.primary().await?, "db1");
        }
        if script.contains("--operator ann") {
            let join = "mainstay join --config mainstay.toml --operator ann --at 10.0.0.1 --token -";
            assert!(text.contains(join));
            let token = printed.concat();
            let token = token.lines().rfind(|line| line.len() > 40 && !line.contains(' ')).unwrap_or_default();
            std::fs::write(homes.join("10.0.0.10/ann-token"), format!("{token}\n"))?;
            let script = format!(
                "set -eu; mkdir /root/ann; cd /root/ann; cp {FILE} mainstay.toml; {join} < /root/ann-token; mainstay status --config mainstay.toml"
            );
            app1.run(&["sh", "-c", &script]).await?;
        }
    }
    reader.finish(Duration::from_secs(5)).await?;
    assert!(seen.iter().any(|section| section == "8"), "{seen:?}");
    println!("three hosts by hand: {:.0} s for a script", begun.elapsed().as_secs_f64());
    Ok(())
}

/// The units' signals: a reload leaves the server as it is, a stop ends it in order, and the others go on.
async fn reload_and_stop(nodes: &[Host]) {
    let pids =
        |status: &Status| status.nodes.iter().map(|node| (node.name.to_string(), node.server_pid)).collect::<Vec<_>>();
    let before = whole(&nodes[0], Duration::from_secs(60)).await;
    for node in nodes {
        node.run(&["systemctl", "reload", "mainstay-agent"]).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = whole(&nodes[0], Duration::from_secs(30)).await;
    assert_eq!((pids(&before), before.cluster.term), (pids(&after), after.cluster.term));
    let primary = nodes.iter().position(|node| Some(node.name()) == after.cluster.primary.as_ref().map(|n| n.as_str()));
    let primary = primary.unwrap();
    nodes[primary].run(&["systemctl", "stop", "mainstay-agent"]).await.unwrap();
    assert!(!nodes[primary].processes().iter().any(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "postgres")
    }));
    taken_over(&nodes[(primary + 1) % nodes.len()], nodes[primary].name()).await;
}

/// Waits until another node than this is the open primary.
async fn taken_over(host: &Host, before: &str) {
    let begun = Instant::now();
    loop {
        let said = host.run(&["mainstay", "status", "--json", "--config", FILE]).await.unwrap_or_default();
        let status = said.lines().last().and_then(|line| serde_json::from_str::<Status>(line).ok());
        if status.is_some_and(|status| {
            status.cluster.writable && status.cluster.primary.is_some_and(|name| name.as_str() != before)
        }) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(15), "nobody took over: {said}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

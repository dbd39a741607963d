//! `mainstay apply` on hosts whose first process is a real systemd, each with a Debian of its own (needs root, `debootstrap`, and a network for the
//! first time). The long suite; CONTRIBUTING.md says when.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod apply_bed;

use apply_bed::existing::{NEW, SUM, old, old_on, on_host, pasted, shop, until};
use apply_bed::{Bed, FILE, ended, file, kill_apply, names};
use serde_json::Value;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// From three bare hosts to a cluster that has taken a write.
const BARE: Duration = Duration::from_secs(60);
/// A run that has nothing to do.
const NOTHING: Duration = Duration::from_secs(10);

fn bed() -> Bed {
    Bed::booted(3, &Path::new(env!("CARGO_TARGET_TMPDIR")).join("systems"))
}

/// Runs something on a host whether it ends well or not; what it printed, in a line.
fn said(bed: &Bed, number: u8, words: &[&str]) -> String {
    let output = bed.host(number).command(words).stdin(Stdio::null()).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Nothing on any host has failed, and what it says of itself is in its journal.
fn in_order(bed: &Bed) {
    for number in 1..=3 {
        assert_eq!(said(bed, number, &["systemctl", "--failed", "--no-legend", "--plain"]), "", "db{number}");
        assert_eq!(said(bed, number, &["systemctl", "is-enabled", "mainstay-agent"]), "enabled");
        let journal = said(bed, number, &["journalctl", "-u", "mainstay-agent", "--no-pager", "-o", "cat"]);
        assert!(journal.contains("Started mainstay-agent.service"), "{journal}");
        assert!(!journal.contains("Read-only file system") && !journal.contains("Permission denied"), "{journal}");
    }
}

fn nothing_left(bed: &Bed) {
    let again = bed.applied(&[]);
    assert_eq!(again.answer["changed"].as_bool(), Some(false), "{}", again.said);
    assert!(again.took < NOTHING, "{:.1} s", again.took.as_secs_f64());
}

/// Every host goes down and comes up, one after the other, and the cluster is whole after each.
fn each_reboots(bed: &mut Bed, also: impl Fn(&Bed, u8)) {
    for number in 1..=3 {
        let begun = Instant::now();
        bed.reboot(number);
        assert_eq!(names(&bed.status()), ["db1", "db2", "db3"], "after db{number} was started again");
        println!("db{number} was started again, and does its part: {:.1} s", begun.elapsed().as_secs_f64());
        also(bed, number);
    }
}

#[test]
fn three_bare_hosts_become_a_cluster_that_comes_back() {
    let mut bed = bed();
    bed.write(&file(&[1, 2, 3], ""));
    let first = bed.applied(&[]);
    assert!(first.said.contains("was acknowledged"), "{}", first.said);
    assert!(first.took < BARE, "{:.1} s", first.took.as_secs_f64());
    println!("from three bare hosts: {:.1} s", first.took.as_secs_f64());
    assert_eq!(names(&bed.status()), ["db1", "db2", "db3"]);
    nothing_left(&bed);
    in_order(&bed);
    each_reboots(&mut bed, |_, _| {});
    in_order(&bed);
    nothing_left(&bed);
}

/// A Debian server, and a standby of it, as its tools and units keep them.
struct Pair {
    major: String,
    data: String,
    unit: String,
}

impl Pair {
    /// The server on db2, the standby on db3.
    fn furnish(bed: &Bed) -> Pair {
        let major = said(bed, 2, &["ls", "/usr/lib/postgresql"]);
        let data = format!("/var/lib/postgresql/{major}/main");
        let pair = Pair { unit: format!("postgresql@{major}-main.service"), data, major };
        pair.create(bed, 2, "listen_addresses = '*'\nwork_mem = '9MB'\napp.tenant = 'north'\n");
        let hba = format!("/etc/postgresql/{}/main/pg_hba.conf", pair.major);
        let lines = "host replication follower 10.78.0.0/24 scram-sha-256\nhost all all 10.78.0.0/24 scram-sha-256\n";
        let before = std::fs::read_to_string(bed.host(2).path(&hba)).unwrap();
        std::fs::write(bed.host(2).path(&hba), format!("{before}{lines}")).unwrap();
        pair.start(bed, 2);
        old(bed, "postgres", "create role shop login password 'a pass''word'");
        old(bed, "postgres", "create role follower replication login password 'hidden'");
        old(bed, "postgres", "create database shop owner shop");
        old(bed, "postgres", "alter system set maintenance_work_mem = '33MB'");
        old(bed, "postgres", "select pg_reload_conf()");
        old(bed, "shop", "create table sold as select id, 'item ' || id as item from generate_series(1, 20000) id");
        old(bed, "shop", "alter table sold owner to shop");

        pair.create(bed, 3, "max_standby_streaming_delay = '15min'\n");
        std::fs::remove_dir_all(bed.host(3).path(&pair.data)).unwrap();
        let (place, dir) = ("host=10.78.0.2 user=follower password=hidden", pair.data.as_str());
        let copy = ["pg_basebackup", "-d", place, "-D", dir, "-R", "-C", "-S", "theirs", "-c", "fast"];
        on_host(bed, 3, &[&["runuser", "-u", "postgres", "--"], copy.as_slice()].concat());
        pair.start(bed, 3);
        until("the standby streams", || old(bed, "postgres", "select count(*) from pg_stat_replication") == "1");
        pair
    }

    fn create(&self, bed: &Bed, number: u8, conf: &str) {
        on_host(bed, number, &["pg_createcluster", &self.major, "main"]);
        let path = format!("/etc/postgresql/{}/main/conf.d/shop.conf", self.major);
        std::fs::write(bed.host(number).path(&path), conf).unwrap();
        on_host(bed, number, &["chmod", "644", &path]);
    }

    fn start(&self, bed: &Bed, number: u8) {
        on_host(bed, number, &["systemctl", "daemon-reload"]);
        on_host(bed, number, &["systemctl", "start", &self.unit]);
        assert_eq!(said(bed, number, &["systemctl", "is-active", &self.unit]), "active");
    }

    fn inode(&self, bed: &Bed, number: u8, dir: &str) -> u64 {
        std::fs::metadata(bed.host(number).path(dir).join("PG_VERSION")).unwrap().ino()
    }

    fn file(&self, more: &str) -> String {
        let mut text = file(&[1, 2, 3], more);
        for (number, key) in [(2, "adopt"), (3, "adopt_standby")] {
            let host = format!("host = \"10.78.0.{number}\"\n");
            text = text.replace(&host, &format!("{host}{key} = \"{}\"\n", self.data));
        }
        text
    }

    /// The old unit is off, and stays so.
    fn stays_off(&self, bed: &Bed, number: u8) {
        if number == 1 {
            return;
        }
        let shown = said(bed, number, &["systemctl", "show", "--property", "ActiveState", "--value", &self.unit]);
        assert_eq!(shown, "inactive", "db{number}");
        assert!(!bed.host(number).path(&self.data).exists(), "db{number}");
        let start = bed.host(number).command(&["systemctl", "start", &self.unit]).output().unwrap();
        let main = said(bed, number, &["systemctl", "show", "--property", "MainPID", "--value", &self.unit]);
        assert_eq!(main, "0", "{start:?}");
        drop(bed.host(number).command(&["systemctl", "reset-failed", &self.unit]).output());
    }
}

/// Writes to the old server as long as it takes writes; the numbers that it has acknowledged.
fn write_on(bed: &Bed, stop: &AtomicBool) -> Vec<u64> {
    let mut acknowledged = Vec::new();
    for id in 100_000.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let place = "host=10.78.0.2 port=5432 user=shop dbname=shop connect_timeout=2";
        let sql = format!("insert into sold values ({id}, 'while it goes on')");
        let words = ["env", "PGPASSWORD=a pass'word", "psql", "-XAtqw", "-d", place, "-c", &sql];
        if bed.admin.host.command(&words).stdin(Stdio::null()).output().unwrap().status.success() {
            acknowledged.push(id);
        } else {
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    acknowledged
}

/// Adopted under writes, the run ended the hard way as soon as the primary is stopped, and gone on with.
fn adopted_under_writes(bed: &Bed, pair: &Pair) {
    let stop = AtomicBool::new(false);
    let acknowledged = std::thread::scope(|scope| {
        let writes = scope.spawn(|| write_on(bed, &stop));
        let run = bed.start(&[]);
        until("the primary is stopped", || !bed.host(2).path(&format!("{}/postmaster.pid", pair.data)).exists());
        kill_apply(bed);
        let broken_off = ended(&run.wait_with_output().unwrap(), Duration::ZERO);
        for words in
            [format!("the unit {} is disabled", pair.unit), "start.conf says disabled".into(), "the way back".into()]
        {
            assert!(broken_off.said.contains(&words), "{words}: {}", broken_off.said);
        }
        let again = bed.applied(&[]);
        stop.store(true, Ordering::Relaxed);
        assert!(again.said.contains("was acknowledged"), "{}", again.said);
        writes.join().unwrap()
    });
    assert!(acknowledged.len() > 3, "{acknowledged:?}");
    let list = acknowledged.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let kept = shop(bed, "6432", &format!("select count(*) from sold where id in ({list})")).unwrap();
    assert_eq!(kept, acknowledged.len().to_string(), "every acknowledged write is there");
}

#[test]
fn a_debian_pair_becomes_a_cluster_and_goes_back() {
    let mut bed = bed();
    let pair = Pair::furnish(&bed);
    let inodes = [2, 3].map(|number| pair.inode(&bed, number, &pair.data));
    // As somebody does who has read the page: a look, what it says, and what the file says then.
    bed.write(&pair.file(""));
    let looked = bed.apply(&["--check"]);
    assert_eq!(looked.code, Some(3), "{}", looked.said);
    for words in ["work_mem = \"9MB\"", "the standby of", "max_standby_streaming_delay = \"15min\""] {
        assert!(looked.said.contains(words), "{words}: {}", looked.said);
    }
    bed.write(&pair.file(&pasted(&looked.said)));
    let planned = bed.command(&["plan", "--config", FILE]).output().unwrap();
    assert!(planned.status.success(), "{planned:?}");
    adopted_under_writes(&bed, &pair);
    assert_eq!(names(&bed.status()), ["db1", "db2", "db3"]);
    assert_eq!([2, 3].map(|number| pair.inode(&bed, number, NEW)), inodes, "nothing was copied");
    nothing_left(&bed);
    in_order(&bed);
    [2, 3].iter().for_each(|number| pair.stays_off(&bed, *number));

    each_reboots(&mut bed, |bed, number| pair.stays_off(bed, number));
    in_order(&bed);
    bed.write(&pair.file(&format!("{}max_connections = 130\n", pasted(&looked.said))));
    let restarted = bed.applied(&[]);
    assert!(restarted.said.contains("max_connections"), "{}", restarted.said);
    assert_eq!(shop(&bed, "6432", "show max_connections").as_deref(), Some("130"));
    nothing_left(&bed);
    assert_eq!([2, 3].map(|number| pair.inode(&bed, number, NEW)), inodes, "nothing was copied since");
    goes_back(&bed, &pair);
}

/// What an adoption has noted on a host, and its unit's and Debian's words are put back as docs/adopt.md says; the data lie in their place again.
fn put_back(bed: &Bed, pair: &Pair, number: u8) {
    on_host(bed, number, &["mv", NEW, &pair.data]);
    let note = bed.host(number).path("/var/lib/mainstay/orders/agent/adopted.json");
    let noted: Value = serde_json::from_str(&std::fs::read_to_string(&note).unwrap()).unwrap();
    assert_eq!(noted["unit"], pair.unit, "{noted}");
    let (place, said) = (noted["start_conf"][0].as_str().unwrap(), noted["start_conf"][1].as_str().unwrap());
    assert!(said.ends_with("auto\n"), "{noted}");
    let auto = bed.host(number).path(&format!("{}/postgresql.auto.conf", pair.data));
    std::fs::write(auto, noted["auto_conf"].as_str().unwrap()).unwrap();
    std::fs::write(bed.host(number).path(place), said).unwrap();
    on_host(bed, number, &["systemctl", "daemon-reload"]);
    std::fs::remove_file(note).unwrap();
}

/// As docs/adopt.md says it.
fn goes_back(bed: &Bed, pair: &Pair) {
    assert_eq!(shop(bed, "6432", "insert into sold values (0, 'after') returning id").as_deref(), Some("0"));
    if bed.status()["cluster"]["primary"] != "db2" {
        let moved = bed.command(&["switchover", "--to", "db2", "--yes", "--config", FILE]).output().unwrap();
        assert!(moved.status.success(), "{moved:?}");
    }
    let sum = shop(bed, "6432", SUM).unwrap();
    for number in [1, 3, 2] {
        on_host(bed, number, &["systemctl", "disable", "--now", "mainstay-agent"]);
    }
    let control = format!("/usr/lib/postgresql/{}/bin/pg_controldata", pair.major);
    let line = |number: u8| {
        let text = on_host(bed, number, &[&control, "-D", NEW]);
        let line = text.lines().find(|line| line.contains("s TimeLineID")).unwrap().to_owned();
        line.rsplit(' ').next().unwrap().parse::<u32>().unwrap()
    };
    assert!(line(2) >= line(1) && line(2) >= line(3));
    put_back(bed, pair, 2);
    on_host(bed, 2, &["sh", "-c", &format!("cd {} && rm -f postmaster.pid standby.signal", pair.data)]);
    on_host(bed, 2, &["pg_ctlcluster", &pair.major, "main", "start"]);
    let drop = "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name like 'mainstay_%'";
    old(bed, "postgres", drop);
    assert_eq!(old(bed, "shop", SUM), sum);
    assert_eq!(old(bed, "shop", "insert into sold values (-1, 'back') returning id"), "-1");
    assert_eq!(old(bed, "postgres", "show maintenance_work_mem"), "33MB");
    assert_eq!(said(bed, 2, &["systemctl", "is-active", &pair.unit]), "active");
    assert_eq!(old(bed, "postgres", "show data_directory"), pair.data);

    // Its standby, whose own files have fewer connections than it had as a node.
    old(bed, "postgres", "select pg_create_physical_replication_slot('theirs')");
    put_back(bed, pair, 3);
    let conf = format!("/etc/postgresql/{}/main/conf.d/back.conf", pair.major);
    let lines = format!(
        "{control} -D {} | sed -n 's/xact/transaction/; s/^\\(max_[a-z_]*\\) setting: */\\1 = /p' > {conf}",
        pair.data
    );
    on_host(bed, 3, &["sh", "-c", &lines]);
    on_host(bed, 3, &["pg_ctlcluster", &pair.major, "main", "start"]);
    let follows = || old(bed, "postgres", "select count(*) from pg_stat_replication where state = 'streaming'") == "1";
    until("the standby streams again", follows);
    on_host(bed, 3, &["rm", &conf]);
    on_host(bed, 3, &["pg_ctlcluster", &pair.major, "main", "restart"]);
    until("the standby streams with its own settings", follows);
    assert_eq!(old_on(bed, 3, "postgres", "show max_connections"), "100");
    let there = || old_on(bed, 3, "shop", "select count(*) from sold where id = -1") == "1";
    until("the standby has what came later", there);
    [2, 3].iter().for_each(|number| assert_eq!(said(bed, *number, &["systemctl", "is-active", &pair.unit]), "active"));
}

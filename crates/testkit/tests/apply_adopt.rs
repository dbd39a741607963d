//! `mainstay apply` adopts a server that exists (needs root): a Debian cluster with rows, a role, settings of its own and a place outside its
//! directory, killed half-way, gone on with, and nothing copied.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod apply_bed;

use apply_bed::{Bed, file, kill_apply, names};
use std::fs::read_to_string;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

const OLD: &str = "/var/lib/mainstay/pg/main";
const NEW: &str = "/var/lib/mainstay/orders/data";
const SUM: &str = "select count(*) || ' ' || md5(string_agg(id || item, ',' order by id)) from sold";

fn until(what: &str, ready: impl Fn() -> bool) {
    let begun = Instant::now();
    while !ready() {
        assert!(begun.elapsed() < Duration::from_secs(90), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn on_host(bed: &Bed, number: u8, words: &[&str]) -> String {
    let output = bed.host(number).command(words).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{words:?}: {said}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// As the superuser of the old server.
fn old(bed: &Bed, database: &str, sql: &str) -> String {
    on_host(
        bed,
        2,
        &["runuser", "-u", "postgres", "--", "psql", "-XAtqw", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql],
    )
}

/// As an application that knows the cluster's address.
fn shop(bed: &Bed, port: &str, sql: &str) -> Option<String> {
    let place = format!(
        "host=10.78.0.1,10.78.0.2,10.78.0.3 port={port} user=shop dbname=shop sslmode=require connect_timeout=5"
    );
    let words = ["env", "PGPASSWORD=a pass'word", "psql", "-XAtqw", "-v", "ON_ERROR_STOP=1", "-d", &place, "-c", sql];
    let output = bed.admin.host.command(&words).output().unwrap();
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A server as Debian's tools make it, with what people put into one.
fn furnish(bed: &Bed) -> String {
    let versions = std::fs::read_dir("/usr/lib/postgresql").unwrap().flatten();
    let major = versions.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).max().unwrap().to_string();
    let dir = bed.host(2).path("/var/lib/mainstay/pg");
    std::fs::create_dir(dir).unwrap();
    let log = "/var/lib/mainstay/pg/log";
    on_host(bed, 2, &["pg_createcluster", &major, "main", "-d", OLD, "-l", log, "-p", "5432", "--locale=C.UTF-8"]);
    let conf = bed.host(2).path(&format!("/etc/postgresql/{major}/main/postgresql.conf"));
    let text = read_to_string(&conf).unwrap();
    std::fs::write(&conf, format!("{text}\nlisten_addresses = '*'\nwork_mem = '9MB'\nfsync = off\n")).unwrap();
    on_host(bed, 2, &["pg_ctlcluster", &major, "main", "start"]);
    old(bed, "postgres", "create role shop login password 'a pass''word'");
    old(bed, "postgres", "create database shop owner shop");
    old(bed, "postgres", "alter system set maintenance_work_mem = '33MB'");
    old(bed, "shop", "create table sold as select id, 'item ' || id as item from generate_series(1, 20000) id");
    old(bed, "shop", "alter table sold owner to shop");
    on_host(bed, 2, &["install", "-d", "-o", "postgres", "/var/lib/mainstay/space"]);
    old(bed, "postgres", "create tablespace fast location '/var/lib/mainstay/space'");
    major
}

#[test]
fn an_existing_server_becomes_the_first_copy() {
    let bed = Bed::new(3);
    let major = furnish(&bed);
    let sum = old(&bed, "shop", SUM);
    let file_of = |dir: &str| std::fs::metadata(bed.host(2).path(dir).join("PG_VERSION")).unwrap().ino();
    let inode = file_of(OLD);
    let refused = |text: &str| {
        bed.write(text);
        let ended = bed.apply(&[]);
        assert_eq!(ended.code, Some(3), "{}", ended.said);
        assert!(ended.answer["error"].as_str().unwrap().contains("nothing was changed"), "{}", ended.said);
        assert_eq!(old(&bed, "shop", SUM), sum);
        ended.said
    };
    // Nobody named it: it is in the way.
    assert!(refused(&file(&[1, 2, 3], "")).contains("port 5432 (server) is in use"));
    let adopting = |more: &str| {
        let host = "host = \"10.78.0.2\"\n";
        file(&[1, 2, 3], more).replace(host, &format!("{host}adopt = \"{OLD}\"\n"))
    };
    let said = refused(&adopting(""));
    for words in ["DROP TABLESPACE", "parameters that the file does not mention", "work_mem = \"9MB\""] {
        assert!(said.contains(words), "{words}: {said}");
    }
    old(&bed, "postgres", "drop tablespace fast");
    // What it says can be pasted.
    let lines: Vec<&str> =
        said.lines().filter(|line| line.ends_with('"') && line.contains(" = \"") && !line.contains(':')).collect();
    let text = adopting(&format!("{}\n", lines.join("\n")));
    bed.write(&text);
    let looked = bed.apply(&["--check"]);
    for words in [
        "nothing is copied",
        "the way back",
        "start.conf says disabled",
        "maintenance_work_mem",
        "Mainstay sets these itself",
    ] {
        assert!(looked.said.contains(words), "{words}: {}", looked.said);
    }
    assert_eq!((looked.code, old(&bed, "shop", SUM)), (Some(3), sum.clone()));

    // Ended the hard way as soon as it has moved the data, and gone on with.
    let mut run = bed.start(&[]);
    until("the data are moved", || !bed.host(2).path(OLD).exists());
    kill_apply(&bed);
    run.wait().unwrap();
    let again = bed.applied(&[]);
    assert!(again.said.contains("was acknowledged"), "{}", again.said);
    assert_eq!(names(&bed.status()), ["db1", "db2", "db3"]);

    assert_eq!(shop(&bed, "6432", SUM), Some(sum.clone()));
    let show = |name: &str| shop(&bed, "6432", &format!("show {name}"));
    assert_eq!((show("work_mem").as_deref(), show("maintenance_work_mem").as_deref()), (Some("9MB"), Some("33MB")));
    assert_eq!(show("fsync").as_deref(), Some("on"));
    assert_eq!(shop(&bed, "6432", "insert into sold values (0, 'after') returning id").as_deref(), Some("0"));
    let now = "select count(*) from sold where id = 0 and pg_is_in_recovery()";
    until("replicas hold the rows", || shop(&bed, "6433", now).as_deref() == Some("1"));
    assert_eq!(bed.status()["cluster"]["primary"], "db2");
    // It is the same file, not a copy; and its old means find nothing to start.
    assert_eq!(file_of(NEW), inode);
    assert!(!bed.host(2).path(OLD).exists());
    let start = bed.host(2).command(&["pg_ctlcluster", &major, "main", "start"]).output().unwrap();
    assert!(!start.status.success());
    let noted = read_to_string(bed.host(2).path("/var/lib/mainstay/orders/agent/adopted.json")).unwrap();
    assert!(noted.contains(OLD) && noted.contains("start.conf"));

    let second = bed.applied(&[]);
    assert_eq!(
        (second.answer["changed"].as_bool(), second.answer["steps"].as_array().map(Vec::len)),
        (Some(false), Some(0))
    );
    println!("adopted; a second run: {:.1} s", second.took.as_secs_f64());
}

//! A server that exists on the second of the bare hosts, to be adopted.

use super::{Bed, ended, file, kill_apply, names};
use std::fs::read_to_string;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

pub(crate) const OLD: &str = "/var/lib/mainstay/pg/main";
/// Not `main`: the machine that runs this may have one.
pub(crate) const CLUSTER: &str = "shop";
pub(crate) const NEW: &str = "/var/lib/mainstay/orders/data";
pub(crate) const SUM: &str = "select count(*) || ' ' || md5(string_agg(id || item, ',' order by id)) from sold";

pub(crate) fn until(what: &str, ready: impl Fn() -> bool) {
    let begun = Instant::now();
    while !ready() {
        assert!(begun.elapsed() < Duration::from_secs(240), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn on_host(bed: &Bed, number: u8, words: &[&str]) -> String {
    let output = bed.host(number).command(words).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{words:?}: {said}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// As the superuser of the old server.
pub(crate) fn old(bed: &Bed, database: &str, sql: &str) -> String {
    old_on(bed, 2, database, sql)
}

/// The same on another host.
pub(crate) fn old_on(bed: &Bed, number: u8, database: &str, sql: &str) -> String {
    on_host(
        bed,
        number,
        &["runuser", "-u", "postgres", "--", "psql", "-XAtqw", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql],
    )
}

/// As an application that knows the cluster's address.
pub(crate) fn shop(bed: &Bed, port: &str, sql: &str) -> Option<String> {
    let place = format!(
        "host=10.78.0.1,10.78.0.2,10.78.0.3 port={port} user=shop dbname=shop sslmode=require connect_timeout=5"
    );
    let words = ["env", "PGPASSWORD=a pass'word", "psql", "-XAtqw", "-v", "ON_ERROR_STOP=1", "-d", &place, "-c", sql];
    let output = bed.admin.host.command(&words).output().unwrap();
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A server as Debian's tools make it, with what people put into one.
pub(crate) fn furnish(bed: &Bed) -> String {
    let versions = std::fs::read_dir("/usr/lib/postgresql").unwrap().flatten();
    let major = versions.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).max().unwrap().to_string();
    let dir = bed.host(2).path("/var/lib/mainstay/pg");
    std::fs::create_dir(dir).unwrap();
    let log = "/var/lib/mainstay/pg/log";
    on_host(bed, 2, &["pg_createcluster", &major, CLUSTER, "-d", OLD, "-l", log, "-p", "5432", "--locale=C.UTF-8"]);
    let conf = bed.host(2).path(&format!("/etc/postgresql/{major}/{CLUSTER}/postgresql.conf"));
    let text = read_to_string(&conf).unwrap();
    std::fs::write(
        &conf,
        format!("{text}\nlisten_addresses = '*'\nwork_mem = '9MB'\napp.tenant = 'north'\nfsync = off\n"),
    )
    .unwrap();
    on_host(bed, 2, &["pg_ctlcluster", &major, CLUSTER, "start"]);
    old(bed, "postgres", "create role shop login password 'a pass''word'");
    old(bed, "postgres", "create database shop owner shop");
    old(bed, "postgres", "alter system set maintenance_work_mem = '33MB'");
    old(bed, "postgres", "select pg_reload_conf()");
    old(bed, "shop", "create table sold as select id, 'item ' || id as item from generate_series(1, 20000) id");
    old(bed, "shop", "alter table sold owner to shop");
    on_host(bed, 2, &["install", "-d", "-o", "postgres", "/var/lib/mainstay/space"]);
    old(bed, "postgres", "create tablespace fast location '/var/lib/mainstay/space'");
    major
}

/// A standby of it on the third host, as people make one.
pub(crate) fn follow(bed: &Bed, major: &str) {
    old(bed, "postgres", "create role follower replication login password 'hidden'");
    let hba = bed.host(2).path(&format!("/etc/postgresql/{major}/{CLUSTER}/pg_hba.conf"));
    let text = read_to_string(&hba).unwrap();
    std::fs::write(&hba, format!("{text}\nhost replication follower 10.78.0.3/32 scram-sha-256\n")).unwrap();
    old(bed, "postgres", "select pg_reload_conf()");
    std::fs::create_dir(bed.host(3).path("/var/lib/mainstay/pg")).unwrap();
    let log = "/var/lib/mainstay/pg/log";
    on_host(bed, 3, &["pg_createcluster", major, CLUSTER, "-d", OLD, "-l", log, "-p", "5432", "--locale=C.UTF-8"]);
    let conf = bed.host(3).path(&format!("/etc/postgresql/{major}/{CLUSTER}/postgresql.conf"));
    let text = read_to_string(&conf).unwrap();
    std::fs::write(&conf, format!("{text}\nlisten_addresses = '*'\n")).unwrap();
    std::fs::remove_dir_all(bed.host(3).path(OLD)).unwrap();
    let place = "host=10.78.0.2 user=follower password=hidden";
    let copy = [
        "runuser",
        "-u",
        "postgres",
        "--",
        "pg_basebackup",
        "-d",
        place,
        "-D",
        OLD,
        "-R",
        "-C",
        "-S",
        "theirs",
        "-c",
        "fast",
    ];
    on_host(bed, 3, &["install", "-d", "-o", "postgres", "-g", "postgres", "-m", "700", OLD]);
    on_host(bed, 3, &copy);
    on_host(bed, 3, &["pg_ctlcluster", major, CLUSTER, "start"]);
    until("the standby streams", || old(bed, "postgres", "select count(*) from pg_stat_replication") == "1");
}

/// The file that names it, and more for `[postgres.parameters]`.
pub(crate) fn adopting(more: &str) -> String {
    let host = "host = \"10.78.0.2\"\n";
    file(&[1, 2, 3], more).replace(host, &format!("{host}adopt = \"{OLD}\"\n"))
}

/// The parameters that it says can be pasted.
pub(crate) fn pasted(said: &str) -> String {
    let lines = said.lines().filter(|line| line.ends_with('"') && line.contains(" = \"") && !line.contains(':'));
    lines.map(|line| format!("{line}\n")).collect()
}

/// The server and a standby of it become nodes. `interrupted`: ended the hard way as soon as the primary is stopped, and gone on with.
pub(crate) fn comes_along(interrupted: bool) {
    let bed = Bed::new(3);
    let major = furnish(&bed);
    old(&bed, "postgres", "drop tablespace fast");
    follow(&bed, &major);
    let sum = old(&bed, "shop", SUM);
    let file_of =
        |number: u8, dir: &str| std::fs::metadata(bed.host(number).path(dir).join("PG_VERSION")).unwrap().ino();
    let inodes = [2, 3].map(|number| file_of(number, OLD));
    // Its primary alone is named: it would be left behind.
    bed.write(&adopting(""));
    let alone = bed.apply(&[]);
    assert_eq!(alone.code, Some(3), "{}", alone.said);
    assert!(alone.said.contains("adopt_standby = "), "{}", alone.said);
    let host = "host = \"10.78.0.3\"\n";
    let text = adopting(&pasted(&alone.said)).replace(host, &format!("{host}adopt_standby = \"{OLD}\"\n"));
    bed.write(&text);
    assert_eq!(old_on(&bed, 3, "postgres", "select pg_is_in_recovery()"), "t");

    let run = if interrupted {
        let run = bed.start(&[]);
        until("the primary is stopped", || !bed.host(2).path(&format!("{OLD}/postmaster.pid")).exists());
        kill_apply(&bed);
        ended(&run.wait_with_output().unwrap(), Duration::ZERO)
    } else {
        bed.applied(&[])
    };
    for words in ["db3: the standby of", "becomes its copy, without a clone", "follows the old server to its end"] {
        assert!(run.said.contains(words), "{words}: {}", run.said);
    }
    let again = if interrupted { bed.applied(&[]) } else { run };
    assert!(again.said.contains("was acknowledged"), "{}", again.said);
    assert_eq!(names(&bed.status()), ["db1", "db2", "db3"]);
    assert_eq!(shop(&bed, "6432", SUM), Some(sum));
    assert_eq!([2, 3].map(|number| file_of(number, NEW)), inodes, "nothing was copied");
    assert!([2, 3].iter().all(|number| !bed.host(*number).path(OLD).exists()));
    assert!(!bed.host(3).path("/var/lib/mainstay/orders/data.adopted").exists());
    assert_eq!(shop(&bed, "6432", "insert into sold values (0, 'after') returning id").as_deref(), Some("0"));
    let now = "select count(*) from sold where id = 0 and pg_is_in_recovery()";
    until("replicas hold the rows", || shop(&bed, "6433", now).as_deref() == Some("1"));
    // The slot that it followed through is gone.
    let theirs = "select count(*) from pg_replication_slots where slot_name = 'theirs'";
    until("nothing keeps log for nobody", || shop(&bed, "6432", theirs).as_deref() == Some("0"));
    let second = bed.applied(&[]);
    assert_eq!(second.answer["changed"].as_bool(), Some(false));
}

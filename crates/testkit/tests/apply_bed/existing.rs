//! A server that exists on the second of the bare hosts, to be adopted.

use super::{Bed, file};
use std::fs::read_to_string;
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
    on_host(
        bed,
        2,
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

/// The file that names it, and more for `[postgres.parameters]`.
pub(crate) fn adopting(more: &str) -> String {
    let host = "host = \"10.78.0.2\"\n";
    file(&[1, 2, 3], more).replace(host, &format!("{host}adopt = \"{OLD}\"\n"))
}

//! `mainstay apply` adopts a server that exists (needs root): a Debian cluster with rows, a role, settings of its own and a place outside its
//! directory, killed half-way, gone on with, and nothing copied.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod apply_bed;

use apply_bed::existing::{CLUSTER, NEW, OLD, SUM, adopting, comes_along, furnish, old, pasted, shop, until};
use apply_bed::{Bed, ended, file, kill_apply, names};
use std::fs::read_to_string;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

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
        assert!((1..=3).all(|number| bed.bare(number)));
        ended.said
    };
    // Nobody named it: it is in the way.
    assert!(refused(&file(&[1, 2, 3], "")).contains("port 5432 (server) is in use"));
    old(&bed, "postgres", "alter role shop in database shop set synchronous_commit = off");
    // Nobody has read it yet.
    old(&bed, "postgres", "alter system set default_transaction_read_only = on");
    let said = refused(&adopting(""));
    let reset = "ALTER ROLE \"shop\" IN DATABASE \"shop\" RESET synchronous_commit;";
    let (stale, automatic) =
        ("was changed after its server read it", "alter system reset default_transaction_read_only;");
    for words in
        [reset, stale, automatic, "DROP TABLESPACE", "parameters that the file does not mention", "work_mem = \"9MB\""]
    {
        assert!(said.contains(words), "{words}: {said}");
    }
    old(&bed, "postgres", "drop tablespace fast");
    old(&bed, "postgres", reset);
    old(&bed, "postgres", "alter system reset default_transaction_read_only");
    old(&bed, "postgres", "select pg_reload_conf()");
    let text = adopting(&pasted(&said));
    bed.write(&text);
    // Ended the hard way as soon as it has moved the data, and gone on with.
    let run = bed.start(&[]);
    until("the data are moved", || !bed.host(2).path(OLD).exists());
    kill_apply(&bed);
    let broken_off = ended(&run.wait_with_output().unwrap(), Duration::ZERO);
    for words in [
        "nothing is copied",
        "the way back",
        "start.conf says disabled",
        "maintenance_work_mem",
        "Mainstay sets these itself",
    ] {
        assert!(broken_off.said.contains(words), "{words}: {}", broken_off.said);
    }
    let again = bed.applied(&[]);
    assert!(again.said.contains("was acknowledged"), "{}", again.said);
    assert_eq!(names(&bed.status()), ["db1", "db2", "db3"]);

    assert_eq!(shop(&bed, "6432", SUM), Some(sum.clone()));
    let show = |name: &str| shop(&bed, "6432", &format!("show {name}"));
    assert_eq!((show("work_mem").as_deref(), show("maintenance_work_mem").as_deref()), (Some("9MB"), Some("33MB")));
    assert_eq!((show("fsync").as_deref(), show("app.tenant").as_deref()), (Some("on"), Some("north")));
    assert_eq!(shop(&bed, "6432", "insert into sold values (0, 'after') returning id").as_deref(), Some("0"));
    let now = "select count(*) from sold where id = 0 and pg_is_in_recovery()";
    until("replicas hold the rows", || shop(&bed, "6433", now).as_deref() == Some("1"));
    assert_eq!(bed.status()["cluster"]["primary"], "db2");
    // It is the same file, not a copy; and its old means find nothing to start.
    assert_eq!(file_of(NEW), inode);
    assert!(!bed.host(2).path(OLD).exists());
    let start = bed.host(2).command(&["pg_ctlcluster", &major, CLUSTER, "start"]).output().unwrap();
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

#[test]
fn a_standby_comes_along_and_nothing_is_copied() {
    comes_along(false);
}

//! A backup that is interrupted at any step is none; one that succeeded is whole.

use crate::support::*;
use mainstay_vault::objects::{Fault, Objects};
use mainstay_vault::postgres::backup::{list, readable};
use mainstay_vault::postgres::restore::{Destination, Target, plan, restore};
use mainstay_vault::repository::VaultError;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p14_a_repository_lost_at_any_step_leaves_no_backup_and_the_next_one_succeeds() {
    let dir = place();
    let server = Server::new(dir.path(), "primary").await;
    let (memory, repository) = sealed();
    let mut archive = claim(&repository, &server, 1).await;
    let system = server.system().await;
    for steps in [0, 1, 3, 7, 12, 16, 20] {
        memory.set_fault(Fault::CutAfter(steps));
        let failed = backup(&repository, &server, &server, &mut archive).await;
        memory.set_fault(Fault::None);
        let held = list(&repository, system).unwrap();
        match failed {
            Err(_) => assert!(held.is_empty(), "{steps}"),
            Ok(manifest) => panic!("cut after {steps} steps, and it says that it succeeded: {}", manifest.label),
        }
    }
    memory.set_fault(Fault::Full);
    let full = backup(&repository, &server, &server, &mut archive).await.unwrap_err();
    assert!(full.to_string().contains("full"), "{full}");
    memory.set_fault(Fault::None);
    // An idle primary: nothing was written, and the backup is whole all the same.
    let manifest = backup(&repository, &server, &server, &mut archive).await.unwrap();
    assert_eq!(list(&repository, system).unwrap(), [manifest]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p14_without_an_archive_there_is_no_success() {
    let dir = place();
    let server = Server::new(dir.path(), "primary").await;
    let (_, repository) = sealed();
    let options = mainstay_vault::postgres::backup::Options {
        server: server.config(),
        primary: None,
        data: server.data.clone(),
        by: "n1".into(),
        threads: 1,
        patience: Duration::from_secs(2),
    };
    let error = mainstay_vault::postgres::backup::full(&repository, &options, &Arc::default()).await.unwrap_err();
    assert!(error.to_string().contains("the archive did not get 0000000100000000"), "{error}");
    assert!(list(&repository, server.system().await).unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p05_a_server_that_dies_in_mid_backup_fails_it_and_a_stop_is_obeyed() {
    let dir = place();
    let mut server = Server::new(dir.path(), "primary").await;
    let (_, repository) = sealed();
    let mut archive = claim(&repository, &server, 1).await;
    let system = server.system().await;
    let watch = held_back();
    let stopping = async {
        under_way(&watch).await;
        watch.stop.store(true, Ordering::Relaxed);
    };
    let (stopped, ()) = tokio::join!(backup_watched(&repository, &server, &server, &mut archive, &watch), stopping);
    assert!(stopped.unwrap_err().to_string().contains("stopped"));
    let options = mainstay_vault::postgres::backup::Options {
        server: server.config(),
        primary: None,
        data: server.data.clone(),
        by: "n1".into(),
        threads: 2,
        patience: Duration::from_secs(5),
    };
    let watch = held_back();
    let working = mainstay_vault::postgres::backup::full(&repository, &options, &watch);
    let killing = async {
        under_way(&watch).await;
        server.kill();
        watch.rate.store(0, Ordering::Relaxed);
    };
    let (killed, ()) = tokio::join!(working, killing);
    assert!(killed.is_err());
    assert!(list(&repository, system).unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p11_a_damaged_page_is_named_and_does_not_end_the_backup() {
    let dir = place();
    let server = Server::new(dir.path(), "primary").await;
    let (_, repository) = sealed();
    let mut archive = claim(&repository, &server, 1).await;
    let mut oracle = Oracle::new(&server).await;
    oracle.write(100).await;
    oracle.run("CHECKPOINT").await;
    let path = one(&server.connect().await, "SELECT pg_relation_filepath('ticks')").await;
    let file = std::fs::OpenOptions::new().write(true).open(server.data.join(&path)).unwrap();
    file.write_all_at(b"damage", 3 * 8192 + 4000).unwrap();
    let manifest = backup(&repository, &server, &server, &mut archive).await.unwrap();
    assert_eq!(manifest.corrupt, [(path, 3)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_a_damaged_object_stops_a_restore_before_the_copy_could_be_started() {
    let dir = place();
    let server = Server::new(dir.path(), "primary").await;
    let (memory, repository) = sealed();
    let mut archive = claim(&repository, &server, 1).await;
    let manifest = backup(&repository, &server, &server, &mut archive).await.unwrap();
    let made = plan(&repository, manifest.system, Target::Immediate, None).unwrap();
    let packs = memory.list(&format!("backups/{}/{}/pack", manifest.system, manifest.label)).unwrap();
    let pack = packs.iter().max_by_key(|entry| entry.size).unwrap();
    memory.tamper(&pack.key, |bytes| bytes[pack.size as usize / 2] ^= 1);
    let to = Destination { data: dir.path().join("copy"), owner: user(), threads: 2, ..Destination::default() };
    for bad in ["copy", "/tmp/it's", "/tmp/100%d"] {
        let error = restore(&repository, &made, &Destination { data: bad.into(), ..to.clone() }).unwrap_err();
        assert!(error.to_string().contains("absolute path"), "{error}");
    }
    let error = restore(&repository, &made, &to).unwrap_err();
    assert!(matches!(error, VaultError::Damaged(_)), "{error}");
    assert!(!to.data.join("global/pg_control").exists());
    memory.tamper(&pack.key, |bytes| bytes[pack.size as usize / 2] ^= 1);
    // Cut off in the middle: the same; and the next try, onto what is there, completes.
    memory.set_fault(Fault::Unreachable);
    let error = restore(&repository, &made, &Destination { delta: true, ..to.clone() }).unwrap_err();
    assert!(!error.is_missing() && !to.data.join("global/pg_control").exists(), "{error}");
    memory.set_fault(Fault::None);
    restore(&repository, &made, &Destination { delta: true, ..to.clone() }).unwrap();
    assert!(to.data.join("global/pg_control").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p34_what_retention_leaves_can_be_restored_and_every_damage_is_found() {
    use mainstay_vault::retention::{Policy, examine, remove};
    use mainstay_vault::verify::verify;
    let dir = place();
    let server = Server::new(dir.path(), "primary").await;
    let (memory, repository) = sealed();
    let mut archive = claim(&repository, &server, 1).await;
    let mut oracle = Oracle::new(&server).await;
    let mut labels = Vec::new();
    for _ in 0..3 {
        oracle.write(5).await;
        labels.push(backup(&repository, &server, &server, &mut archive).await.unwrap().label);
    }
    let system = server.system().await;
    let report = verify(&repository, system).unwrap();
    assert!(report.problems.is_empty() && report.good.len() == 3 && report.window.is_some(), "{report:?}");
    let now = report.good[2].1;
    let verdict = examine(&repository, system, Policy { count: 2, span: None }, now).unwrap();
    assert_eq!(verdict.removed, [labels[0].clone()].into());
    let before = memory.list("").unwrap().len();
    remove(&repository, system, SIZE, &verdict).unwrap();
    assert!(memory.list("").unwrap().len() < before && !verdict.log.is_empty());
    assert_eq!(examine(&repository, system, Policy { count: 2, span: None }, now).unwrap().removed.len(), 0);
    let report = verify(&repository, system).unwrap();
    assert!(report.problems.is_empty() && report.good.len() == 2 && report.window.is_some(), "{report:?}");
    // Each object of what is left, damaged or lost, is found.
    for entry in memory.list("").unwrap() {
        let name = entry.key.to_string();
        if !(name.starts_with("log/") || name.contains("/pack-")) {
            continue;
        }
        let good = memory.read(&entry.key, None).unwrap();
        memory.tamper(&entry.key, |bytes| bytes[good.len() / 2] ^= 4);
        assert!(!verify(&repository, system).unwrap().problems.is_empty(), "{name}");
        memory.tamper(&entry.key, |bytes| *bytes = good);
    }
    // A damaged manifest takes nothing from the other backup, and nothing is removed beside it.
    let named = mainstay_vault::objects::Key::new(format!("backups/{system}/{}/manifest", labels[2])).unwrap();
    let whole = memory.read(&named, None).unwrap();
    for (at, len) in [(0, whole.len()), (whole.len() / 2, whole.len()), (0, 0), (3, 9), (20, whole.len() / 2)] {
        memory.tamper(&named, |bytes| {
            bytes.clone_from(&whole);
            bytes[at] ^= 4;
            bytes.truncate(len);
        });
        let (good, unreadable) = readable(&repository, system).unwrap();
        assert!(good.len() == 1 && unreadable.len() == 1, "{at} {len}: {unreadable:?}");
        let verdict = examine(&repository, system, Policy { count: 1, span: None }, now).unwrap();
        assert!(verdict.removed.is_empty() && verdict.log.is_empty(), "{at} {len}: {verdict:?}");
        let made = plan(&repository, system, Target::Latest, None).unwrap();
        assert!(made.base.label == labels[1] && made.unreadable.len() == 1, "{:?}", made.unreadable);
        assert!(!verify(&repository, system).unwrap().problems.is_empty());
    }
    memory.set_fault(Fault::Unreachable);
    assert!(verify(&repository, system).is_err(), "out of reach is not a verdict");
    assert!(readable(&repository, system).is_err());
}

//! Restores to random moments are exact; impossible ones are refused.

use crate::support::*;
use mainstay_vault::objects::{Key, Objects};
use mainstay_vault::postgres::archive::SWEEP_MAX;
use mainstay_vault::postgres::delta::copy_at;
use mainstay_vault::postgres::restore::{Destination, Target, plan, plan_from, restore};
use mainstay_vault::postgres::scratch::Scratch;
use mainstay_vault::repository::VaultError;
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::Ordering;

/// A simple generator: which points are tried differs from run to run, and a failure names them.
fn random(below: usize) -> usize {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap();
    usize::try_from(u64::from_le_bytes(bytes) % below as u64).unwrap()
}

async fn random_points(count: usize) {
    let dir = place();
    let server = Server::new(dir.path(), "primary").await;
    let (_, repository) = sealed();
    let mut archive = claim(&repository, &server, 1).await;
    let mut oracle = Oracle::new(&server).await;
    oracle.write(50).await;
    // A backup in the middle of writes.
    let (manifest, ()) = tokio::join!(backup(&repository, &server, &server, &mut archive), oracle.write(400));
    let manifest = manifest.unwrap();
    assert!(manifest.corrupt.is_empty() && manifest.server.checksums);
    oracle.write(600).await;
    oracle.run("SELECT pg_create_restore_point('before the release')").await;
    let named = oracle.ticks.len();
    oracle.write(50).await;
    oracle.switch().await;
    sweep(&mut archive, &server).await.unwrap();
    let copy = dir.path().join("copy");
    let after = oracle.ticks.iter().position(|tick| tick.micros > manifest.ended).unwrap();
    for round in 0..count {
        let at = after + random(oracle.ticks.len() - after - 1);
        let tick = oracle.ticks[at];
        let target = match round % 4 {
            0 => Target::Time(tick.micros),
            1 => Target::Position(tick.lsn),
            2 => Target::Transaction(tick.xid),
            _ => Target::Name("before the release".into()),
        };
        let expected = if round % 4 == 3 { named as i64 } else { tick.n };
        let made = plan(&repository, manifest.system, target.clone(), None).unwrap();
        let found = ticks_at(&repository, &made, &copy, round > 0).await;
        assert_eq!(found, (1..=expected).collect::<Vec<_>>(), "{target:?}, tick {tick:?}");
    }
    let latest = plan(&repository, manifest.system, Target::Latest, None).unwrap();
    let found = ticks_at(&repository, &latest, &copy, true).await;
    assert_eq!(found.len(), oracle.ticks.len());
}

/// Of each of the two tests; the long suite asks for more.
fn points() -> usize {
    std::env::var("MAINSTAY_RESTORE_POINTS").map_or(10, |count| count.parse::<usize>().unwrap().div_ceil(2))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p23_random_moments_are_exact_one() {
    random_points(points()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p23_random_moments_are_exact_two() {
    random_points(points()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p23_impossible_targets_are_refused_with_the_nearest_possible_ones() {
    let dir = place();
    let server = Server::new(dir.path(), "primary").await;
    let (memory, repository) = sealed();
    let mut archive = claim(&repository, &server, 1).await;
    let mut oracle = Oracle::new(&server).await;
    oracle.write(3).await;
    let manifest = backup(&repository, &server, &server, &mut archive).await.unwrap();
    for _ in 0..3 {
        oracle.write(3).await;
        oracle.switch().await;
    }
    sweep(&mut archive, &server).await.unwrap();
    let refused = |target: Target| plan(&repository, manifest.system, target, None).unwrap_err().to_string();
    let early = refused(Target::Time(manifest.began - 1));
    assert!(early.contains("earliest moment") && early.contains(&manifest.stop.lsn.to_string()), "{early}");
    let late = refused(Target::Time(manifest.ended + 3_600_000_000));
    assert!(late.contains("not in the archive") && late.contains("latest position"), "{late}");
    let newest = plan(&repository, manifest.system, Target::Latest, None).unwrap();
    assert!(oracle.ticks.last().unwrap().micros < newest.brought + 1000);
    let last = plan(&repository, manifest.system, Target::Time(newest.brought), None).unwrap();
    assert!(last.base.label == manifest.label && last.brought == newest.brought, "drills choose up to this moment");
    assert!(refused(Target::Time(newest.brought + 1)).contains("not in the archive"));
    assert!(refused(Target::Position(mainstay_model::Lsn(newest.reaches.0 + 1))).contains("not in the archive"));
    // A hole: what lies before it can be had, what lies after it is refused, and nothing is left out silently.
    let hole = memory.list(&format!("log/{}/", manifest.system)).unwrap();
    let second_last = &hole[hole.len() - 2].key;
    memory.delete(second_last).unwrap();
    let latest = plan(&repository, manifest.system, Target::Latest, None).unwrap_err();
    assert!(matches!(latest, VaultError::NotArchived(_)), "it may be on its way: {latest:?}");
    for more in 0..=SWEEP_MAX {
        let key = format!("log/{}/0000000100000000000000{:02X}", manifest.system, 0x40 + more);
        memory.create(&Key::new(key).unwrap()).unwrap().commit().unwrap();
    }
    let latest = plan(&repository, manifest.system, Target::Latest, None).unwrap_err();
    assert!(matches!(latest, VaultError::Impossible(_)), "so much later nothing fills it: {latest:?}");
    let latest = latest.to_string();
    assert!(latest.contains(second_last.last()) && latest.contains("missing"), "{latest}");
    let before = plan(&repository, manifest.system, Target::Position(oracle.ticks[3].lsn), None).unwrap();
    assert_eq!(ticks_at(&repository, &before, &dir.path().join("copy"), false).await, [1, 2, 3, 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p10_tablespaces_come_back_at_their_new_place_and_a_delta_keeps_what_is_there() {
    let dir = place();
    let server = Server::new(dir.path(), "primary").await;
    let space = dir.path().join("space");
    own_dir(&space);
    let (_, repository) = sealed();
    let mut archive = claim(&repository, &server, 1).await;
    let mut oracle = Oracle::new(&server).await;
    oracle.run(&format!("CREATE TABLESPACE there LOCATION '{}'", space.display())).await;
    oracle.run("ALTER TABLE ticks SET TABLESPACE there").await;
    oracle.write(20).await;
    let manifest = backup(&repository, &server, &server, &mut archive).await.unwrap();
    assert_eq!(manifest.tablespaces.values().collect::<Vec<_>>(), [&space.display().to_string()]);
    let made = plan(&repository, manifest.system, Target::Immediate, None).unwrap();
    let copy = dir.path().join("copy");
    assert_eq!(ticks_at(&repository, &made, &copy, false).await.len(), 20);
    let number = manifest.tablespaces.keys().next().unwrap();
    let link = std::fs::read_link(copy.join(format!("pg_tblspc/{number}"))).unwrap();
    assert_eq!(
        link,
        dir.path().join(format!("copy.tablespace-{number}")),
        "the cluster's own tablespace is left alone"
    );
    let to = Destination { data: copy.clone(), owner: user(), delta: true, threads: 2, ..Destination::default() };
    let restored = restore(&repository, &made, &to).unwrap();
    assert!(restored.kept > restored.written, "{restored:?}");
    assert_eq!(ticks_at(&repository, &made, &copy, true).await.len(), 20);
    let error = restore(&repository, &made, &Destination { delta: false, ..to.clone() }).unwrap_err().to_string();
    assert!(error.contains("is not empty"), "{error}");
    // Of what the copy got since nothing stays, in tablespaces neither.
    let beside = dir.path().join(format!("copy.tablespace-{number}"));
    let version = std::fs::read_dir(&beside).unwrap().next().unwrap().unwrap().path();
    for other in [version.join("999/1"), copy.join("base/99999/1")] {
        std::fs::create_dir(other.parent().unwrap()).unwrap();
        std::fs::write(&other, "left").unwrap();
    }
    // Broken off: no server starts there, and the next attempt knows whose it is.
    let ended = std::sync::Arc::new(mainstay_vault::postgres::backup::Watch::default());
    ended.stop.store(true, Ordering::Relaxed);
    restore(&repository, &made, &Destination { watch: ended, ..to.clone() }).unwrap_err();
    assert!(!copy.join("global/pg_control").exists() && !copy.join("base/99999").exists());
    assert!(!version.join("999").exists());
    assert_eq!(copy_at(&copy).unwrap(), manifest.system);
    assert!(Scratch::start(&bin(), &made, &copy, user(), PATIENCE).await.is_err());
    let restored = restore(&repository, &made, &to).unwrap();
    assert!(restored.kept > restored.written, "{restored:?}");
    assert_eq!(copy_at(&copy).unwrap(), manifest.system);
    assert!(!copy.join("mainstay_unfinished").exists());
    assert_eq!(ticks_at(&repository, &made, &copy, true).await.len(), 20);
    // The mark can not be written: nothing was changed, and the copy is its owner's again.
    let full = copy.join("mainstay_unfinished.new");
    std::fs::create_dir_all(full.join("full")).unwrap();
    let is = |path: &Path| path.metadata().map(|is| (is.uid(), is.permissions().mode() & 0o7777)).unwrap();
    let before = is(&copy);
    let error = restore(&repository, &made, &to).unwrap_err().to_string();
    assert!(error.starts_with(&full.display().to_string()), "{error}");
    assert!(is(&copy) == before && copy.join("global/pg_control").exists());
    std::fs::remove_dir_all(full).unwrap();
    // A tablespace's place that is another's is refused, and whoever works there goes on.
    let (other, theirs) = (dir.path().join("other"), dir.path().join(format!("other.tablespace-{number}")));
    std::fs::create_dir(&theirs).unwrap();
    std::fs::write(theirs.join("file"), "").unwrap();
    std::fs::set_permissions(&theirs, Permissions::from_mode(0o755)).unwrap();
    let error = restore(&repository, &made, &Destination { data: other.clone(), ..to }).unwrap_err().to_string();
    assert!(error.contains("is no tablespace"), "{error}");
    assert_eq!(theirs.metadata().unwrap().permissions().mode() & 0o7777, 0o755);
    assert!(theirs.join("file").exists() && !other.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_puts_in_the_place_of_a_copy_is_not_touched() {
    let dir = place();
    let server = Server::new(dir.path(), "primary").await;
    let (_, repository) = sealed();
    let mut archive = claim(&repository, &server, 1).await;
    let manifest = backup(&repository, &server, &server, &mut archive).await.unwrap();
    let made = plan(&repository, manifest.system, Target::Immediate, None).unwrap();
    let (copy, away, other) = (dir.path().join("copy"), dir.path().join("away"), dir.path().join("other"));
    let mut to = Destination { data: copy.clone(), owner: user(), threads: 2, ..Destination::default() };
    for delta in [false, true] {
        to.delta = delta;
        std::fs::create_dir_all(other.join("global")).unwrap();
        std::fs::write(other.join("global/pg_control"), "another's").unwrap();
        std::fs::set_permissions(&other, Permissions::from_mode(0o755)).unwrap();
        let over = std::sync::atomic::AtomicBool::new(false);
        let done = std::thread::scope(|scope| {
            let putting = scope.spawn(|| {
                // What there is only while it is being filled.
                let (mark, control) = (copy.join("mainstay_unfinished"), copy.join("global/pg_control"));
                while !(if delta { !control.exists() } else { mark.exists() } || over.load(Ordering::Relaxed)) {
                    std::thread::yield_now();
                }
                std::fs::rename(&copy, &away).unwrap();
                std::os::unix::fs::symlink(&other, &copy).unwrap();
            });
            let done = restore(&repository, &made, &to);
            over.store(true, Ordering::Relaxed);
            putting.join().unwrap();
            done
        });
        // It may have been too late, on a machine that has much else to do.
        assert!(done.as_ref().map_or_else(|error| error.to_string().contains("was moved away"), |_| true), "{done:?}");
        let names: Vec<_> = std::fs::read_dir(&other).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["global"]);
        assert_eq!(std::fs::read_to_string(other.join("global/pg_control")).unwrap(), "another's");
        let is = other.metadata().unwrap();
        assert_eq!((is.uid(), is.permissions().mode() & 0o7777), (rustix::process::geteuid().as_raw(), 0o755));
        // Brought back it is an old copy, or one that can be gone on with.
        std::fs::remove_file(&copy).unwrap();
        std::fs::rename(&away, &copy).unwrap();
    }
    let restored = restore(&repository, &made, &to).unwrap();
    assert!(restored.kept > restored.written, "{restored:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_named_before_the_newest_backup_is_had_from_an_older_one() {
    let dir = place();
    let server = Server::new(dir.path(), "primary").await;
    let (_, repository) = sealed();
    let mut archive = claim(&repository, &server, 1).await;
    let mut oracle = Oracle::new(&server).await;
    oracle.write(5).await;
    let first = backup(&repository, &server, &server, &mut archive).await.unwrap();
    oracle.write(5).await;
    oracle.run("SELECT pg_create_restore_point('before')").await;
    oracle.write(5).await;
    backup(&repository, &server, &server, &mut archive).await.unwrap();
    oracle.switch().await;
    sweep(&mut archive, &server).await.unwrap();
    let named = || Target::Name("before".into());
    let newest = plan(&repository, first.system, named(), None).unwrap();
    let to = Destination { data: dir.path().join("newest"), owner: user(), threads: 2, ..Destination::default() };
    restore(&repository, &newest, &to).unwrap();
    let error = Scratch::start(&bin(), &newest, &to.data, user(), PATIENCE).await.err().unwrap().to_string();
    assert!(error.contains("\"before\" is not in the archived log") && error.contains("--backup"), "{error}");
    let older = plan_from(&repository, first.system, named(), None, Some(&first.label)).unwrap();
    assert_eq!(ticks_at(&repository, &older, &dir.path().join("older"), false).await.len(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p32_a_backup_on_top_of_another_restores_exactly_and_holds_only_what_changed() {
    use mainstay_vault::postgres::backup::incremental;
    let dir = place();
    let server = Server::new(dir.path(), "primary").await;
    let (memory, repository) = sealed();
    let mut archive = claim(&repository, &server, 1).await;
    let mut oracle = Oracle::new(&server).await;
    oracle.write(500).await;
    oracle
        .run("CREATE TABLE dropped AS SELECT generate_series(1, 50000) AS n; CREATE TABLE cut AS TABLE dropped")
        .await;
    let base = std::sync::Arc::new(backup(&repository, &server, &server, &mut archive).await.unwrap());
    for round in 0..2 {
        oracle.write(100).await;
        oracle.run("DROP TABLE IF EXISTS dropped; TRUNCATE cut; UPDATE ticks SET filler = filler WHERE n = 7").await;
        oracle.run(&format!("CREATE TABLE new_{round} AS SELECT generate_series(1, 20000) AS n")).await;
        let before = memory_bytes(&memory, &base.label);
        let watch = std::sync::Arc::default();
        let options = options(&server, &server);
        let working = incremental(&repository, &options, &watch, base.clone());
        let top = while_archiving(&mut archive, &server, working).await.unwrap();
        assert!(top.base.is_some() && before > 4 * memory_bytes(&memory, &top.label), "{before}");
        let made = plan(&repository, top.system, Target::Immediate, None).unwrap();
        assert_eq!(made.base.label, top.label);
        let copy = dir.path().join(format!("copy{round}"));
        assert_eq!(ticks_at(&repository, &made, &copy, false).await.len(), oracle.ticks.len());
        assert_eq!(ticks_at(&repository, &made, &copy, true).await.len(), oracle.ticks.len());
    }
    let top = plan(&repository, base.system, Target::Latest, None).unwrap().base;
    let (options, watch) = (options(&server, &server), std::sync::Arc::default());
    let refused = incremental(&repository, &options, &watch, std::sync::Arc::new(top)).await;
    assert!(refused.unwrap_err().to_string().contains("no full backup"));
    let report = mainstay_vault::verify::verify(&repository, base.system).unwrap();
    assert!(report.problems.is_empty() && report.good.len() == 3, "{report:?}");
}

fn memory_bytes(memory: &mainstay_vault::objects::Memory, label: &str) -> u64 {
    let all = memory.list("backups/").unwrap();
    all.iter()
        .filter(|entry| entry.key.as_str().contains(label) && entry.key.last() != "manifest")
        .map(|entry| entry.size)
        .sum()
}

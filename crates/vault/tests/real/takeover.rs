//! Backups and the archive while the right to be primary changes hands.

use crate::support::*;
use mainstay_model::{Position, Timeline};
use mainstay_vault::postgres::archive::gaps;
use mainstay_vault::postgres::backup::{Options, Watch, full, list};
use mainstay_vault::postgres::restore::{Target, plan, plan_from};
use mainstay_vault::repository::{Repository, VaultError};
use std::sync::Arc;
use std::sync::atomic::Ordering;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p19_the_log_that_a_dead_primary_did_not_archive_is_brought_by_the_next_one() {
    let dir = place();
    let mut old = Server::new(dir.path(), "old").await;
    let (memory, repository) = sealed();
    let mut archive = claim(&repository, &old, 1).await;
    let mut oracle = Oracle::new(&old).await;
    oracle.write(10).await;
    let new = old.replica(dir.path(), "new").await;
    // From the replica.
    let manifest = backup(&repository, &new, &old, &mut archive).await.unwrap();
    assert!(manifest.server.replica);
    for _ in 0..3 {
        oracle.write(20).await;
        oracle.switch().await;
    }
    oracle.write(20).await;
    oracle.replayed_by(&new).await;
    old.kill();
    new.promote().await;
    let mut oracle = Oracle::again(&new, oracle.ticks).await;
    oracle.write(20).await;
    oracle.switch().await;
    let before = gaps(
        &repository,
        manifest.system,
        SIZE,
        manifest.start,
        Position { timeline: Timeline(1), lsn: oracle.ticks[60].lsn },
    );
    assert!(!before.unwrap().is_empty(), "the dead primary left a gap");
    let mut owner = claim(&repository, &new, 2).await;
    // The history comes first: what the log lacks up to there is on its way, and not lost.
    owner.push("00000002.history", &std::fs::read(new.data.join("pg_wal/00000002.history")).unwrap()).unwrap();
    let soon = plan(&repository, manifest.system, Target::Latest, None).unwrap_err();
    assert!(matches!(soon, VaultError::NotArchived(_)) && soon.to_string().contains("is missing"), "{soon:?}");
    let done = sweep(&mut owner, &new).await.unwrap();
    assert!(done.problems.is_empty() && done.pushed.len() > 2, "{done:?}");
    assert!(done.pushed.iter().any(|name| name.ends_with(".partial")), "{done:?}");
    assert!(matches!(archive.push("00000002.history", b"1\t0/3000000\tx\n"), Err(VaultError::Deposed { .. })));
    let end = Position { timeline: Timeline(2), lsn: oracle.ticks.last().unwrap().lsn };
    assert_eq!(gaps(&repository, manifest.system, SIZE, manifest.start, end).unwrap(), []);
    // Restored across the fork, with nothing left out.
    let made = plan(&repository, manifest.system, Target::Latest, None).unwrap();
    assert_eq!(made.timeline, Timeline(2));
    let copied = ticks_at(&repository, &made, &dir.path().join("copy"), false).await;
    assert_eq!(copied.len(), oracle.ticks.len());
    // A host that may only write makes a backup that counts on the new timeline too.
    let writer = Repository::open(Arc::new(memory), None).unwrap();
    assert!(!writer.readable());
    let second = backup(&writer, &new, &new, &mut owner).await.unwrap();
    assert_eq!(second.stop.timeline, Timeline(2));
    let report = mainstay_vault::verify::verify(&repository, second.system).unwrap();
    assert!(report.problems.is_empty() && report.good.len() == 2, "{report:?}");
    // From the older one, when the newer is damaged, say.
    let older = |label: &str| plan_from(&repository, manifest.system, Target::Latest, None, Some(label));
    assert_eq!(older(&manifest.label).unwrap().base.label, manifest.label);
    assert_eq!(plan(&repository, manifest.system, Target::Latest, None).unwrap().base.label, second.label);
    let unknown = older("20010101T000000-000000").unwrap_err().to_string();
    assert!(unknown.contains("there is no backup") && unknown.contains(&second.label), "{unknown}");
    let unknown = plan(&repository, manifest.system, Target::Latest, Some(Timeline(9))).unwrap_err().to_string();
    assert!(unknown.contains("knows no timeline 9; it holds 1, 2"), "{unknown}");
}

/// A node that was cloned has the history of the timeline that it was cloned on, and none before: with it as the primary a new repository gets no others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_that_begins_late_needs_no_history_but_the_last() {
    let dir = place();
    let (first, mut servers) = (Server::new(dir.path(), "first").await, Vec::new());
    let mut oracle = Oracle::new(&first).await;
    oracle.write(10).await;
    servers.push(first);
    for name in ["second", "third"] {
        let mut old = servers.pop().unwrap();
        let new = old.replica(dir.path(), name).await;
        oracle.replayed_by(&new).await;
        old.kill();
        new.promote().await;
        oracle = Oracle::again(&new, oracle.ticks).await;
        servers.push(new);
    }
    let primary = servers.pop().unwrap();
    std::fs::remove_file(primary.data.join("pg_wal/00000002.history")).unwrap();
    let (_, repository) = sealed();
    let mut owner = claim(&repository, &primary, 3).await;
    let made = backup(&repository, &primary, &primary, &mut owner).await.unwrap();
    assert_eq!(made.stop.timeline, Timeline(3));
    oracle.write(10).await;
    oracle.switch().await;
    let done = sweep(&mut owner, &primary).await.unwrap();
    assert!(done.problems.is_empty(), "{done:?}");
    let made = plan(&repository, made.system, Target::Latest, None).unwrap();
    assert!(made.timeline == Timeline(3) && made.path.0.len() == 2, "{made:?}");
    let copied = ticks_at(&repository, &made, &dir.path().join("copy"), false).await;
    assert_eq!(copied.len(), oracle.ticks.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p13_a_promotion_in_mid_backup_fails_it() {
    let dir = place();
    let old = Server::new(dir.path(), "old").await;
    let (_, repository) = sealed();
    let mut archive = claim(&repository, &old, 1).await;
    let new = old.replica(dir.path(), "new").await;
    let watch = held_back();
    let promoting = async {
        under_way(&watch).await;
        new.promote().await;
        watch.rate.store(0, Ordering::Relaxed);
    };
    let copying = backup_watched(&repository, &new, &old, &mut archive, &watch);
    let (result, ()) = tokio::join!(copying, promoting);
    let error = result.unwrap_err().to_string();
    assert!(error.contains("promoted"), "{error}");
    assert!(list(&repository, old.system().await).unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p13_a_replicas_copy_that_a_take_over_came_into_counts_on_the_new_timeline() {
    let dir = place();
    let mut old = Server::new(dir.path(), "old").await;
    let (_, repository) = sealed();
    let mut archive = claim(&repository, &old, 1).await;
    let mut oracle = Oracle::new(&old).await;
    oracle.write(10).await;
    let (second, third) = (old.replica(dir.path(), "second").await, old.replica(dir.path(), "third").await);
    // What the copy needs of the old timeline lies in a segment that the old primary never ends.
    oracle.write(10).await;
    sweep(&mut archive, &old).await.unwrap();
    let mut owner = claim(&repository, &third, 2).await;
    let (watch, options) = (held_back(), options(&second, &third));
    let (over, is_over) = tokio::sync::oneshot::channel::<()>();
    let copying = async {
        let made = full(&repository, &options, &watch).await;
        let _ = over.send(());
        made
    };
    let moving = async {
        under_way(&watch).await;
        oracle.replayed_by(&second).await;
        oracle.replayed_by(&third).await;
        old.kill();
        third.promote().await;
        let client = second.connect().await;
        let upstream = format!("ALTER SYSTEM SET primary_conninfo = 'user=postgres host={}'", third.run.display());
        client.batch_execute(&upstream).await.unwrap();
        client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        watch.rate.store(0, Ordering::Relaxed);
        while_archiving(&mut owner, &third, is_over).await
    };
    let (made, _) = tokio::join!(copying, moving);
    let manifest = made.unwrap();
    assert_eq!((manifest.start.timeline, manifest.stop.timeline), (Timeline(1), Timeline(2)));
    let report = mainstay_vault::verify::verify(&repository, manifest.system).unwrap();
    assert!(report.problems.is_empty() && report.good.len() == 1, "{report:?}");
    let made = plan(&repository, manifest.system, Target::Latest, None).unwrap();
    assert_eq!(made.timeline, Timeline(2));
    let copied = ticks_at(&repository, &made, &dir.path().join("copy"), false).await;
    assert_eq!(copied.len(), oracle.ticks.len());
}

/// The copy is made, and nobody archives the log that it waits for.
async fn waits_for_the_log(watch: &Watch) {
    let begun = std::time::Instant::now();
    while !watch.stopped.load(Ordering::Relaxed) {
        assert!(begun.elapsed() < PATIENCE, "the backup does not come to its end");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// The backup's node leads at its end, and archives what the backup waits for.
async fn promoted_while_it_waits(started_anew: bool) {
    let dir = place();
    let mut old = Server::new(dir.path(), "old").await;
    let (_, repository) = sealed();
    let _archive = claim(&repository, &old, 1).await;
    let mut oracle = Oracle::new(&old).await;
    let mut new = old.replica(dir.path(), "new").await;
    oracle.write(10).await;
    oracle.switch().await;
    oracle.write(1).await;
    oracle.replayed_by(&new).await;
    // Nobody ends the old primary's last segment: only on the new timeline it is ever whole.
    let options = Options { patience: PATIENCE, primary: None, ..options(&new, &old) };
    let watch = Arc::<Watch>::default();
    let (over, is_over) = tokio::sync::oneshot::channel::<()>();
    let copying = async {
        let made = full(&repository, &options, &watch).await;
        let _ = over.send(());
        made
    };
    let moving = async {
        waits_for_the_log(&watch).await;
        oracle.write(10).await;
        oracle.replayed_by(&new).await;
        old.kill();
        if started_anew {
            new = new.again().await;
        }
        new.promote().await;
        let ending = "SELECT pg_logical_emit_message(false, 'test', 'end'); SELECT pg_switch_wal()";
        new.connect().await.batch_execute(ending).await.unwrap();
        let mut owner = claim(&repository, &new, 2).await;
        let _ = while_archiving(&mut owner, &new, is_over).await;
        sweep(&mut owner, &new).await.unwrap();
        new
    };
    let (made, new) = tokio::join!(copying, moving);
    let manifest = made.unwrap();
    assert_eq!((manifest.start.timeline, manifest.stop.timeline), (Timeline(1), Timeline(2)));
    let report = mainstay_vault::verify::verify(&repository, manifest.system).unwrap();
    assert!(report.problems.is_empty() && report.good.len() == 1, "{report:?}");
    let mut oracle = Oracle::again(&new, oracle.ticks).await;
    oracle.write(5).await;
    oracle.switch().await;
    sweep(&mut claim(&repository, &new, 3).await, &new).await.unwrap();
    let made = plan(&repository, manifest.system, Target::Latest, None).unwrap();
    assert_eq!(made.timeline, Timeline(2));
    let copied = ticks_at(&repository, &made, &dir.path().join("copy"), false).await;
    assert_eq!(copied.len(), oracle.ticks.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_counts_when_its_node_is_promoted_while_it_waits_for_the_log() {
    promoted_while_it_waits(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_counts_when_its_server_is_started_anew_and_promoted_while_it_waits_for_the_log() {
    promoted_while_it_waits(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_counts_when_its_server_dies_while_it_waits_for_the_log() {
    let dir = place();
    let old = Server::new(dir.path(), "old").await;
    let (_, repository) = sealed();
    let mut archive = claim(&repository, &old, 1).await;
    let mut oracle = Oracle::new(&old).await;
    let mut new = old.replica(dir.path(), "new").await;
    oracle.write(10).await;
    oracle.replayed_by(&new).await;
    let (watch, options) = (Arc::<Watch>::default(), Options { patience: PATIENCE, ..options(&new, &old) });
    let (over, is_over) = tokio::sync::oneshot::channel::<()>();
    let copying = async {
        let made = full(&repository, &options, &watch).await;
        let _ = over.send(());
        made
    };
    let dying = async {
        waits_for_the_log(&watch).await;
        new.kill();
        // It is seen that nobody answers before the log comes.
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        let _ = while_archiving(&mut archive, &old, is_over).await;
    };
    let (made, ()) = tokio::join!(copying, dying);
    let manifest = made.unwrap();
    let report = mainstay_vault::verify::verify(&repository, manifest.system).unwrap();
    assert!(report.problems.is_empty() && report.good.len() == 1, "{report:?}");
    let made = plan(&repository, manifest.system, Target::Latest, None).unwrap();
    let copied = ticks_at(&repository, &made, &dir.path().join("copy"), false).await;
    assert_eq!(copied.len(), oracle.ticks.len());
}

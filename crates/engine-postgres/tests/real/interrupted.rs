//! Rejoining from whatever a fault leaves: tools killed half-way, files missing, files too many.

use crate::support::{Cluster, Node, is, setting, until, value};
use mainstay_model::{CopyId, Lost, ServerState, Timeline};
use mainstay_ports::engine::{Engine, EngineError};
use std::path::Path;
use std::time::Duration;

/// The first node goes on alone and dies; the second is primary.
async fn diverged(cluster: &Cluster) {
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    first.write(2000).await;
    second.until_replayed(first).await;
    let (end, _) = second.recruit().await;
    let client = first.admin().await;
    value(&client, "insert into ledger (note) select 'lost' from generate_series(1, 37)").await;
    first.kill().await;
    second.promote(&setting(0, &[]), &end, 2).await;
    second.pg.open().await.unwrap();
}

async fn streams_without_the_lost(node: &Node, source: &Node) {
    node.pg.start_standby(node.copy(), Some(&source.id)).await.unwrap();
    node.until_receiving().await;
    node.until_replayed(source).await;
    assert_eq!(node.sql("select count(*) from ledger where note = 'lost'").await, "0");
}

fn check(lost: &Lost) {
    assert_eq!(lost.commits, Some(1), "{lost:?}");
    assert!(lost.report.contains("insert 37"), "{lost:?}");
    let kept = std::path::Path::new(&lost.kept);
    assert!(kept.join("pg_control").exists() && kept.join("lost.json").exists(), "{lost:?}");
}

/// Begins a call and gives it up after this time, as a kill order does.
async fn cut_short<T>(node: &Node, after: Duration, call: impl Future<Output = T>) -> Option<T> {
    let done = tokio::time::timeout(after, call).await.ok();
    node.kill().await;
    done
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewind_that_is_killed_anywhere_ends_in_a_replica_and_reports_once() {
    let cluster = Cluster::running(2).await;
    diverged(&cluster).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    let mut outcomes = Vec::new();
    let mut reported = None;
    for step in 1..=40_u64 {
        // Far apart in the end, so that one gets through on a busy machine too.
        let after = Duration::from_millis(step * 25 + step.saturating_sub(25) * 400);
        let done = cut_short(first, after, first.pg.rewind(&second.id)).await;
        outcomes.push(format!("{done:?}").chars().take(24).collect::<String>());
        match done {
            None => {}
            Some(Ok(lost)) => {
                reported = lost;
                break;
            }
            Some(Err(EngineError::Broken(_))) => {
                reported = (*first.pg).clone_from(&second.id, first.copy()).await.unwrap();
                break;
            }
            // As the caller does: again.
            Some(Err(error)) => println!("step {step}: {error}"),
        }
    }
    println!("{outcomes:?}");
    assert!(outcomes.len() > 2, "nothing was interrupted");
    check(&reported.unwrap());
    assert_eq!(std::fs::read_dir(first.options.layout.diverged()).unwrap().count(), 1, "kept more than once");
    streams_without_the_lost(first, second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn data_that_a_rewind_left_half_way_never_start_and_are_cloned_anew() {
    let mut cluster = Cluster::running(2).await;
    diverged(&cluster).await;
    // A pg_rewind that dies in the middle.
    let dies = "echo 'rewinding from last common checkpoint' >&2\nkill -9 $$";
    let _programs = cluster.nodes[0].replace_program("pg_rewind", |_| dies.to_owned());
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    let broken = first.pg.rewind(&second.id).await;
    assert!(matches!(broken, Err(EngineError::Broken(_))), "{broken:?}");
    let copy = first.copy();
    for broken in [
        first.pg.start_standby(copy, Some(&second.id)).await,
        first.pg.rewind(&second.id).await.map(drop),
        first.pg.restart_in_place(None).await.map(drop),
    ] {
        assert!(matches!(broken, Err(EngineError::Broken(_))), "{broken:?}");
    }
    check(&(*first.pg).clone_from(&second.id, copy).await.unwrap().unwrap());
    streams_without_the_lost(first, second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_over_diverged_data_keeps_what_they_held_and_killed_anywhere_costs_no_copy() {
    let cluster = Cluster::running(2).await;
    diverged(&cluster).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    let dir = first.options.layout.dir().to_owned();
    let old_rows = |name: &str| dir.join(name).join("PG_VERSION").exists();
    let mut reported = None;
    let mut cut = 0;
    for step in 1..=60_u64 {
        let copy = CopyId::new(0xabc0 + step).unwrap();
        let call = (*first.pg).clone_from(&second.id, copy);
        match cut_short(first, Duration::from_millis(step * 30 + step.saturating_sub(30) * 400), call).await {
            Some(done) => {
                reported = done.unwrap();
                *first.copy.lock().unwrap() = copy;
                break;
            }
            None => cut += 1,
        }
        assert!(old_rows("data") || old_rows("data.old"), "no copy is left after step {step}");
    }
    println!("{cut} clones cut short");
    assert!(cut > 2, "nothing was interrupted");
    check(&reported.unwrap());
    assert!(old_rows("data.old") && !dir.join("data.new").exists() && !dir.join("data.gone").exists());
    streams_without_the_lost(first, second).await;
    // A source that is gone in the middle costs nothing either.
    let copies = || std::fs::read_dir(&dir).unwrap().flatten().filter(|e| e.path().join("PG_VERSION").exists()).count();
    let before = copies();
    first.pg.stop_standby().await.unwrap();
    second.kill().await;
    let failed = (*first.pg).clone_from(&second.id, first.copy()).await;
    assert!(matches!(failed, Err(EngineError::NotYet(_))), "{failed:?}");
    assert_eq!(copies(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_outlives_seconds_in_which_its_host_stands_still() {
    let mut cluster = Cluster::running(2).await;
    // Longer than the time after which a server lets go of a replica that says nothing.
    let stands_still = |real: &Path| {
        format!(
            "{} \"$@\" &\nbackup=$!\nuntil ls \"$2\"/pg_wal/0* >/dev/null 2>&1; do kill -0 $backup || exit 1; sleep 0.01; done\n\
             receives=$(cat /proc/$backup/task/$backup/children)\n\
             kill -STOP $backup $receives && sleep 6 && kill -CONT $backup $receives\nwait $backup",
            real.display()
        )
    };
    let _programs = cluster.nodes[1].replace_program("pg_basebackup", stands_still);
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    second.kill().await;
    let begun = std::time::Instant::now();
    second.clone_from(first).await;
    assert!(begun.elapsed() > Duration::from_secs(6), "it did not stand still");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_clone_left_out_is_told_by_the_next_one_when_nobody_heard_of_the_first() {
    let mut cluster = Cluster::running(2).await;
    diverged(&cluster).await;
    let source = cluster.nodes[1].id.clone();
    let clone = async |node: &Node| (*node.pg).clone_from(&source, node.copy()).await.unwrap();
    check(&clone(&cluster.nodes[0]).await.unwrap());
    // The agent died before it took that in.
    cluster.nodes[0].forget();
    check(&clone(&cluster.nodes[0]).await.unwrap());
    // The start is ordered once it was taken in.
    streams_without_the_lost(&cluster.nodes[0], &cluster.nodes[1]).await;
    cluster.nodes[0].kill().await;
    assert_eq!(clone(&cluster.nodes[0]).await, None, "told twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_from_another_primary_tells_what_a_rewind_left_out_and_what_it_leaves_out_itself() {
    let mut cluster = Cluster::running(3).await;
    {
        let [first, second, third] = &cluster.nodes[..] else { panic!() };
        third.until_replayed(first).await;
        third.pg.recruit().await.unwrap();
        second.until_replayed(first).await;
    }
    diverged(&cluster).await;
    let [first, second, third] = &cluster.nodes[..] else { panic!() };
    third.pg.follow(third.copy(), &second.id).await.unwrap();
    third.until_replayed(second).await;
    let (end, _) = third.recruit().await;
    value(&second.admin().await, "insert into ledger (note) select 'late' from generate_series(1, 11)").await;
    check(&first.pg.rewind(&second.id).await.unwrap().unwrap());
    // Its agent died before it took that in; and the primary that it was rewound to is left behind itself.
    second.kill().await;
    third.promote(&setting(0, &[]), &end, 3).await;
    third.pg.open().await.unwrap();
    cluster.nodes[0].forget();
    let (first, third) = (&cluster.nodes[0], &cluster.nodes[2]);
    let told = (*first.pg).clone_from(&third.id, first.copy()).await.unwrap().unwrap().apart();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].report.contains("insert 11") && told[0].from.timeline == Timeline(2), "{told:?}");
    check(&told[1]);
    streams_without_the_lost(first, third).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leftovers_and_missing_files_do_not_keep_a_standby_from_streaming() {
    let mut cluster = Cluster::running(2).await;
    let layout = cluster.nodes[1].options.layout.clone();
    let (data, conf) = (layout.data(), layout.conf());
    let owner = cluster.nodes[1].options.user;
    let put = |path: std::path::PathBuf, text: &str| {
        std::fs::write(&path, text).unwrap();
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::chown(path, Some(uid), Some(gid)).unwrap();
        }
    };
    let label = "START WAL LOCATION: 0/1000028 (file 000000010000000000000001)\nCHECKPOINT LOCATION: 0/1000060\n\
                 BACKUP METHOD: streamed\nBACKUP FROM: primary\nSTART TIME: 2026-11-22 23:41:20 UTC\nLABEL: left\nSTART TIMELINE: 1\n";
    let damages: [(&str, bool, &dyn Fn()); 8] = [
        ("no standby.signal", false, &|| std::fs::remove_file(data.join("standby.signal")).unwrap()),
        ("recovery.signal", false, &|| put(data.join("recovery.signal"), "")),
        ("promote", false, &|| put(data.join("promote"), "")),
        ("postmaster.pid", false, &|| put(data.join("postmaster.pid"), "1\n/nowhere\n")),
        ("backup_label", true, &|| put(data.join("backup_label"), label)),
        ("half a clone", false, &|| {
            std::fs::create_dir_all(layout.dir().join("data.new/base")).unwrap();
            put(layout.dir().join("data.new/PG_VERSION"), "15\n");
        }),
        ("damaged configuration", false, &|| {
            put(conf.join("postgresql.conf"), "\u{fffd} not a configuration");
            put(conf.join("pg_hba.conf"), "nonsense\n");
        }),
        ("no configuration", false, &|| {
            for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
                std::fs::remove_file(conf.join(name)).unwrap();
            }
        }),
    ];
    for (what, in_order, damage) in damages {
        let second = &cluster.nodes[1];
        if in_order {
            second.pg.stop_standby().await.unwrap()
        } else {
            second.kill().await
        }
        damage();
        cluster.nodes[1].forget();
        let (first, second) = (cluster.nodes[0].id.clone(), &cluster.nodes[1]);
        let started = second.pg.start_standby(second.copy(), Some(&first)).await;
        assert_eq!(started, Ok(()), "{what}");
        second.until_receiving().await;
        second.until_replayed(&cluster.nodes[0]).await;
        println!("streams again: {what}");
    }
    assert!(is(&cluster.nodes[1], ServerState::Standby).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_with_missing_files_is_said_to_be_broken_and_cloned_anew() {
    let cluster = Cluster::running(2).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    for name in ["global/pg_control", "PG_VERSION", "pg_notify", "pg_wal"] {
        second.kill().await;
        let path = second.options.layout.data().join(name);
        if path.is_dir() {
            std::fs::remove_dir_all(&path).unwrap()
        } else {
            std::fs::remove_file(&path).unwrap()
        }
        let broken = second.pg.start_standby(second.copy(), Some(&first.id)).await;
        assert!(matches!(broken, Err(EngineError::Broken(_))), "{name}: {broken:?}");
        until("down", || is(second, ServerState::Down)).await;
        second.clone_from(first).await;
        second.until_replayed(first).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tablespaces_are_cloned_beside_the_data_and_go_with_the_last_copy_that_uses_them() {
    let cluster = Cluster::running(2).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    second.kill().await;
    let place = first.options.layout.dir().join("fast disk");
    std::fs::create_dir(&place).unwrap();
    if let Some((uid, gid)) = first.options.user {
        std::os::unix::fs::chown(&place, Some(uid), Some(gid)).unwrap();
    }
    let client = first.admin().await;
    client.batch_execute(&format!("create tablespace fast location '{}'", place.display())).await.unwrap();
    client
        .batch_execute("create table kept (id int) tablespace fast; insert into kept select generate_series(1, 500)")
        .await
        .unwrap();
    let places = second.options.layout.dir().join("tablespaces");
    for clones in 1..=4 {
        second.clone_from(first).await;
        second.until_replayed(first).await;
        assert_eq!(second.sql("select count(*) from kept").await, "500");
        // This copy's, and that of the one aside.
        assert_eq!(std::fs::read_dir(&places).unwrap().count(), clones.min(2), "after clone {clones}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_copy_takes_the_datas_place_from_whatever_an_interruption_left() {
    let cluster = Cluster::running(2).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    second.pg.stop_standby().await.unwrap();
    let layout = second.options.layout.clone();
    let (data, kept) = (layout.data(), layout.dir().join("data.before-restore-1"));
    let copied = |from: &Path, to: &Path| {
        assert!(std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
    };
    let copy = CopyId::new(77).unwrap();
    let ready = layout.restored(copy);
    copied(&data, &ready);
    std::fs::write(data.join("old"), "").unwrap();
    let adopt = async || second.pg.adopt_restored(copy, Timeline(1)).await.unwrap();
    let adopted = || !ready.exists() && !data.join("old").exists() && kept.join("old").exists();
    adopt().await;
    assert!(adopted());
    // Said again, because nobody heard that it was done.
    adopt().await;
    assert!(adopted());
    // Ended between the renames: there are no data at all.
    std::fs::rename(&data, &ready).unwrap();
    adopt().await;
    assert!(adopted() && !layout.dir().join("data.before-restore-2").exists());
    // Another copy than the one that was prepared, and one that is gone, cost the data nothing.
    let other = CopyId::new(78).unwrap();
    copied(&data, &layout.restored(other));
    for (copy, says) in [(other, "not the restored copy"), (CopyId::new(79).unwrap(), "is gone")] {
        let error = second.pg.adopt_restored(copy, Timeline(9)).await.unwrap_err().to_string();
        assert!(error.contains(says) && adopted(), "{error}");
    }
    second.pg.start_standby(copy, Some(&first.id)).await.unwrap();
    second.until_receiving().await;
}

//! Disks that are full, that fill up, that stall: on small volumes of their own, made from an image by root. These tests fail, and say so,
//! when they can not make one.

use crate::support::{Cluster, Node, is, until};
use mainstay_model::ServerState;
use mainstay_ports::engine::{Engine, EngineError};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// An ext4 volume on a file; gone with it.
struct Volume {
    dir: tempfile::TempDir,
    mounted: PathBuf,
}

fn run(program: &str, arguments: &[&str]) {
    let ran = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{program} {arguments:?}: {said} (volumes of their own need root and loop devices)");
}

impl Volume {
    fn new(mib: u64) -> Volume {
        Self::with_reserve(mib, 0)
    }
    /// Some of it for root alone, in percent.
    fn with_reserve(mib: u64, percent: u8) -> Volume {
        let dir = tempfile::Builder::new().prefix("mpgvol").tempdir_in(crate::support::place()).unwrap();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let (image, mounted) = (dir.path().join("image"), dir.path().join("volume"));
        std::fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        std::fs::create_dir(&mounted).unwrap();
        let volume = Volume { mounted: mounted.clone(), dir };
        let text = |path: &Path| path.display().to_string();
        run("mkfs.ext4", &["-q", "-m", &percent.to_string(), "-O", "^has_journal", &text(&image)]);
        run("mount", &["-o", "loop", &text(&image), &text(&mounted)]);
        volume
    }
    fn home(&self) -> PathBuf {
        self.mounted.join("node")
    }
    fn free(&self) -> u64 {
        let is = rustix::fs::statvfs(&self.mounted).unwrap();
        is.f_bavail * is.f_frsize
    }
    fn freeze(&self) {
        run("fsfreeze", &["-f", &self.mounted.display().to_string()]);
    }
    fn thaw(&self) {
        run("fsfreeze", &["-u", &self.mounted.display().to_string()]);
    }
    /// Takes room until this much is left.
    fn fill(&self, left: u64) {
        let file = std::fs::File::create(self.mounted.join("ballast")).unwrap();
        let size = self.free().saturating_sub(left);
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size).unwrap();
    }
    fn release(&self) {
        std::fs::remove_file(self.mounted.join("ballast")).unwrap();
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let mounted = self.mounted.display().to_string();
        let _ = Command::new("fsfreeze").args(["-u", &mounted]).output();
        for _ in 0..20 {
            if Command::new("umount").arg(&mounted).output().is_ok_and(|ran| ran.status.success()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let _ = Command::new("umount").args(["-l", &mounted]).output();
        let _ = &self.dir;
    }
}

/// A cluster whose first node lies on the volume. Dropped before the volume.
async fn on(volume: &Volume, count: u8) -> Cluster {
    let home = volume.home();
    let cluster = Cluster::placed("", count, &|node| (node.as_str() == "n1").then(|| home.clone()), |options| {
        for (name, value) in [("max_wal_size", "64MB"), ("min_wal_size", "32MB")] {
            options.parameters.insert(name.into(), value.into());
        }
    });
    Cluster::run(cluster).await
}

/// A cluster whose second node lies on the volume, and its server has died.
async fn with_a_dead_replica_on(volume: &Volume) -> Cluster {
    let home = volume.mounted.join("other");
    let cluster = Cluster::placed("", 2, &|node| (node.as_str() == "n2").then(|| home.clone()), |_| {});
    let cluster = Cluster::run(cluster).await;
    cluster.nodes[1].kill().await;
    cluster
}

async fn segment(node: &Node) -> Result<(), tokio_postgres::Error> {
    let client = node.try_admin().await?;
    client.batch_execute("select pg_logical_emit_message(false, 'x', 'x'); select pg_switch_wal()").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_replica_never_fills_the_primarys_disk_and_is_cloned_when_it_returns() {
    let volume = Volume::new(800);
    let cluster = on(&volume, 2).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    first.write(100).await;
    second.until_replayed(first).await;
    second.kill().await;
    let mut least = u64::MAX;
    // A third more log than the volume has room for.
    for written in 0..66 {
        segment(first).await.unwrap();
        least = least.min(volume.free());
        if written % 6 == 5 {
            first.pg.maintain_slots(&[], None).await.unwrap();
            first.sql("checkpoint").await;
        }
    }
    println!("least free: {} MiB", least >> 20);
    assert!(least > 100 << 20, "only {} MiB were free", least >> 20);
    assert!(is(first, ServerState::Primary).await);
    second.pg.start_standby(second.copy(), Some(&first.id)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let streams = "select count(*) from pg_stat_replication where state = 'streaming'";
    assert_eq!(first.sql(streams).await, "0", "the log that it needs is still there: nothing was tested");
    second.clone_from(first).await;
    second.until_replayed(first).await;
    // Something else takes the room: slots are told at once to keep less.
    let kept =
        || async { first.sql("select setting::int from pg_settings where name = 'max_slot_wal_keep_size'").await };
    let before: u64 = kept().await.parse().unwrap();
    volume.fill(100 << 20);
    until("the bound is lower", || async {
        first.pg.maintain_slots(&[], None).await.unwrap();
        kept().await.parse::<u64>().unwrap() <= 50
    })
    .await;
    assert!(before > 50, "it was low already: {before}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_on_a_full_disk_ends_and_comes_back_when_there_is_room() {
    let volume = Volume::new(400);
    let cluster = on(&volume, 1).await;
    let node = &cluster.nodes[0];
    node.write(100).await;
    volume.fill(20 << 20);
    let began = Instant::now();
    while segment(node).await.is_ok() {
        assert!(began.elapsed() < Duration::from_secs(120), "the disk does not fill");
    }
    until("the server ended", || is(node, ServerState::Down)).await;
    let log = std::fs::read_to_string(node.options.layout.server_log()).unwrap();
    assert!(log.contains("PANIC") && log.contains("No space left on device"), "it ended for another reason");
    node.process.kill_all();
    let began = Instant::now();
    for _ in 0..3 {
        let error = node.pg.restart_in_place(None).await.unwrap_err();
        assert!(
            matches!(&error, EngineError::Failed(text) if text.contains("is full") && text.contains("free some space")),
            "{error}"
        );
    }
    assert!(began.elapsed() < Duration::from_secs(30), "it was tried although it can not work");
    assert!(node.pg.probe().await.symptom.is_some_and(|text| text.contains("is full")));
    volume.release();
    node.pg.restart_in_place(None).await.unwrap();
    node.pg.open().await.unwrap();
    node.write(100).await;
    assert_eq!(node.sql("select count(*) from ledger").await, "200");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_for_the_server_but_not_for_root_is_seen() {
    let volume = Volume::with_reserve(400, 10);
    let cluster = on(&volume, 1).await;
    let node = &cluster.nodes[0];
    node.write(100).await;
    let probed = node.options.layout.data().join("pg_stat_tmp/mainstay.probe");
    until("the disk was probed", || async { node.pg.probe().await.silent == 0 && probed.exists() }).await;
    volume.fill(0);
    let began = Instant::now();
    let client = node.admin().await;
    let error =
        client.batch_execute("create table big as select repeat('x', 500) from generate_series(1, 20000)").await;
    let error = error.unwrap_err().as_db_error().unwrap().message().to_owned();
    assert!(error.contains("No space left on device"), "the disk is not full: {error}");
    std::fs::write(volume.mounted.join("of root"), vec![0; 4 << 20])
        .expect("the reserve is used up: nothing was tested");
    until("it is seen", || async {
        let seen = node.pg.probe().await;
        seen.silent > 500 && seen.symptom.is_some_and(|text| text.contains("volume is full"))
    })
    .await;
    println!("seen after {:?}", began.elapsed());
    volume.release();
    until("it is no longer so", || async { node.pg.probe().await.silent == 0 }).await;
    node.write(100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_that_does_not_fit_changes_nothing_and_says_what_it_needs() {
    let volume = Volume::new(700);
    let cluster = with_a_dead_replica_on(&volume).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    volume.fill(60 << 20);
    let free = volume.free();
    for _ in 0..2 {
        let error = (*second.pg).clone_from(&first.id, second.copy()).await.unwrap_err();
        assert!(matches!(&error, EngineError::NotYet(text) if text.contains("MiB are free")), "{error}");
    }
    assert!(volume.free() + (1 << 20) >= free, "a clone that failed left something");
    assert!(second.options.layout.data().join("PG_VERSION").exists());
    volume.release();
    second.clone_from(first).await;
    // The copy aside goes when the room is needed, but only while the node's own copy is in use.
    let old = second.options.layout.dir().join("data.old");
    second.pg.maintain_slots(&[], None).await.unwrap();
    volume.fill(100 << 20);
    second.pg.recruit().await.unwrap();
    second.pg.maintain_slots(&[], None).await.unwrap();
    assert!(old.join("PG_VERSION").exists(), "a copy was removed although the node's own is not in use");
    second.pg.follow(second.copy(), &first.id).await.unwrap();
    second.until_receiving().await;
    second.pg.maintain_slots(&[], None).await.unwrap();
    assert!(!old.exists() && volume.free() > 120 << 20);
    second.until_replayed(first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_that_ran_out_of_room_costs_its_source_nothing_until_there_is_more() {
    let volume = Volume::new(700);
    let cluster = with_a_dead_replica_on(&volume).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    let more = volume.mounted.join("more");
    let file = std::fs::File::create(&more).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 200 << 20).unwrap();
    // Somebody else takes the room while the clone is under way.
    let half_made = second.options.layout.dir().join("data.new/base");
    let fill = async {
        until("the clone is under way", || async { half_made.exists() }).await;
        let ballast = std::fs::File::create(volume.mounted.join("ballast")).unwrap();
        let grow = |to: u64| rustix::fs::fallocate(&ballast, rustix::fs::FallocateFlags::empty(), 0, to << 20);
        let mut size = 0;
        while half_made.exists() {
            size = if grow(size + 8).is_ok() { size + 8 } else { size };
            tokio::task::yield_now().await;
        }
    };
    let (failed, ()) = tokio::join!((*second.pg).clone_from(&first.id, second.copy()), fill);
    let failed = failed.unwrap_err();
    assert!(matches!(&failed, EngineError::NotYet(text) if text.contains("No space left on device")), "{failed}");
    volume.release();
    let before = first.flushed().await;
    for _ in 0..3 {
        let error = (*second.pg).clone_from(&first.id, second.copy()).await.unwrap_err();
        assert!(matches!(&error, EngineError::NotYet(text) if text.contains("MiB are free")), "{error}");
    }
    assert_eq!(before.0 >> 24, first.flushed().await.0 >> 24, "the source began a new file of its log");
    drop(file);
    std::fs::remove_file(more).unwrap();
    second.clone_from(first).await;
    second.until_replayed(first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_disk_is_seen_and_holds_up_neither_probes_nor_the_caller() {
    let volume = Volume::new(300);
    let cluster = on(&volume, 1).await;
    let node = &cluster.nodes[0];
    node.write(10).await;
    let probed = node.options.layout.data().join("pg_stat_tmp/mainstay.probe");
    until("the disk was probed", || async { node.pg.probe().await.silent == 0 && probed.exists() }).await;
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    volume.freeze();
    let (began, mut slowest) = (Instant::now(), Duration::ZERO);
    let seen = loop {
        let asked = Instant::now();
        let seen = node.pg.probe().await;
        slowest = slowest.max(asked.elapsed());
        if seen.silent >= 1000 && seen.symptom.as_ref().is_some_and(|text| text.contains("data volume")) {
            break seen;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "not seen: {seen:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    println!("seen after {:?}: {:?}, slowest probe {slowest:?}", began.elapsed(), seen.symptom);
    assert!(slowest < Duration::from_secs(10), "a probe waited for the disk: {slowest:?}");
    // Orders that write can be given up, and do not pile up.
    assert!(
        tokio::time::timeout(Duration::from_millis(300), node.pg.open()).await.is_err(),
        "the volume is not frozen"
    );
    let before = threads();
    let given_up = node.pg.open().await.unwrap_err();
    assert!(matches!(&given_up, EngineError::NotYet(text) if text.contains("does not write")), "{given_up}");
    for _ in 0..5 {
        node.pg.probe().await;
    }
    assert!(threads() <= before + 1, "{} threads, {before} before", threads());
    volume.thaw();
    until("alive again", || async { node.pg.probe().await.silent == 0 }).await;
    node.pg.open().await.unwrap();
    node.write(10).await;
}

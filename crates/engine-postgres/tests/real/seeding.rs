//! New copies from a seed instead of the primary: taken where it serves, the primary where it does not, and nothing is left of what broke off.

use crate::support::{Cluster, until};
use async_trait::async_trait;
use mainstay_ports::engine::Engine;
use mainstay_ports::seed::{Seed, SeedWish};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

/// What it does when it is asked.
#[derive(Clone, Copy, PartialEq)]
enum Serves {
    /// It writes half of a copy, and fails.
    Half,
    /// It writes half of a copy, and hangs.
    Never,
    Well,
}

/// Copies a stopped replica's data.
struct Kept {
    from: PathBuf,
    serves: Mutex<Serves>,
    told: Mutex<Vec<String>>,
}

#[async_trait]
impl Seed for Kept {
    fn wanted(&self) -> bool {
        true
    }

    async fn fill(&self, wish: SeedWish) -> Result<String, String> {
        assert!(!wish.into.exists() && wish.kept_from.0 > 0);
        let serves = *self.serves.lock().unwrap();
        if serves == Serves::Well {
            assert!(Command::new("cp").arg("-a").arg(&self.from).arg(&wish.into).status().unwrap().success());
            return Ok("of what was kept".to_owned());
        }
        std::fs::create_dir_all(wish.into.join("base")).unwrap();
        std::fs::write(wish.into.join("PG_VERSION"), "15\n").unwrap();
        if serves == Serves::Never {
            std::future::pending::<()>().await;
        }
        Err("half of it is not there".to_owned())
    }

    fn made(&self, of: &str) {
        self.told.lock().unwrap().push(format!("made {of}"));
    }

    fn passed_over(&self, why: &str) {
        self.told.lock().unwrap().push(format!("passed over: {why}"));
    }
}

fn left(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("data.seed") || name == "data.new").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_serves_or_the_primary_does_and_half_a_copy_is_never_used() {
    let cluster = Cluster::running(2).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    first.write(1000).await;
    second.until_replayed(first).await;
    second.pg.stop_standby().await.unwrap();
    let layout = &second.options.layout;
    let (dir, data) = (layout.dir().to_owned(), layout.data());
    let kept = dir.join("kept");
    assert!(Command::new("cp").arg("-a").arg(&data).arg(&kept).status().unwrap().success());
    std::fs::write(kept.join("from_the_seed"), "").unwrap();
    first.write(1000).await;
    let seed = Arc::new(Kept { from: kept, serves: Mutex::new(Serves::Never), told: Mutex::default() });
    second.pg.take_seed(Arc::clone(&seed) as Arc<dyn Seed>);
    let told = || seed.told.lock().unwrap().last().cloned().unwrap_or_default();

    // Given up half-way, as by a kill: the next one removes what is left. It fails, and the primary serves.
    tokio::select! {
        done = (*second.pg).clone_from(&first.id, second.copy()) => panic!("{done:?}"),
        () = until("half a copy", || async { left(&dir).len() == 2 }) => {}
    }
    *seed.serves.lock().unwrap() = Serves::Half;
    (*second.pg).clone_from(&first.id, second.copy()).await.unwrap();
    assert_eq!(told(), "passed over: half of it is not there");
    assert!(left(&dir).is_empty() && !data.join("from_the_seed").exists(), "{:?}", left(&dir));
    let streams = async || {
        second.pg.start_standby(second.copy(), Some(&first.id)).await.unwrap();
        second.until_receiving().await;
        second.until_replayed(first).await;
        assert_eq!(second.sql("select count(*) from ledger").await, first.sql("select count(*) from ledger").await);
        second.pg.stop_standby().await.unwrap();
    };
    streams().await;

    *seed.serves.lock().unwrap() = Serves::Well;
    (*second.pg).clone_from(&first.id, second.copy()).await.unwrap();
    assert_eq!(told(), "made of what was kept");
    assert!(left(&dir).is_empty() && data.join("from_the_seed").exists(), "{:?}", left(&dir));
    first.write(100).await;
    streams().await;

    // One that is given up again so soon was of no use.
    (*second.pg).clone_from(&first.id, second.copy()).await.unwrap();
    assert!(told().contains("a new one is needed"), "{}", told());
    assert!(!data.join("from_the_seed").exists());
    streams().await;
}

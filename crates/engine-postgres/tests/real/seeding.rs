//! New copies from a seed instead of the primary: taken where it serves, the primary where it does not, and nothing is left of what broke off.

use crate::support::{Cluster, Node, until};
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

impl Kept {
    fn of(node: &Node, serves: Serves) -> Arc<Kept> {
        let from = node.options.layout.dir().join("kept");
        assert!(Command::new("cp").arg("-a").arg(node.options.layout.data()).arg(&from).status().unwrap().success());
        std::fs::write(from.join("from_the_seed"), "").unwrap();
        Arc::new(Kept { from, serves: Mutex::new(serves), told: Mutex::default() })
    }
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

/// The copy streams, and that is seen.
async fn come_through(node: &Node) {
    let mark = node.options.layout.conf().join("seeded");
    until("a copy that has come through", || async {
        node.pg.maintain_slots(&[], None).await.unwrap();
        !mark.exists()
    })
    .await;
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
    let seed = Kept::of(second, Serves::Never);
    first.write(1000).await;
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
    second.pg.start_standby(second.copy(), Some(&first.id)).await.unwrap();
    come_through(second).await;
    streams().await;

    // One that is given up again so soon was of no use.
    (*second.pg).clone_from(&first.id, second.copy()).await.unwrap();
    assert!(told().contains("s old and a new one is needed"), "{}", told());
    assert!(!data.join("from_the_seed").exists());
    streams().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_the_seed_that_never_streamed_is_followed_by_one_of_the_primary() {
    let mut cluster = Cluster::running(2).await;
    let source = cluster.nodes[0].id.clone();
    cluster.nodes[1].until_replayed(&cluster.nodes[0]).await;
    cluster.nodes[1].pg.stop_standby().await.unwrap();
    let seed = Kept::of(&cluster.nodes[1], Serves::Well);
    cluster.nodes[0].write(1000).await;
    let (told, data) =
        (|| seed.told.lock().unwrap().last().cloned().unwrap_or_default(), cluster.nodes[1].options.layout.data());
    for (says, of_seed) in
        [("made of", true), ("has not come to stream", false), ("made of", true), ("has not come to stream", false)]
    {
        // Whatever an agent remembers is gone.
        cluster.nodes[1].forget();
        cluster.nodes[1].pg.take_seed(Arc::clone(&seed) as Arc<dyn Seed>);
        (*cluster.nodes[1].pg).clone_from(&source, cluster.nodes[1].copy()).await.unwrap();
        assert!(told().contains(says), "{}", told());
        assert_eq!(data.join("from_the_seed").exists(), of_seed);
    }
    for _ in 0..2 {
        cluster.nodes[1].forget();
        cluster.nodes[1].pg.take_seed(Arc::clone(&seed) as Arc<dyn Seed>);
        (*cluster.nodes[1].pg).clone_from(&source, cluster.nodes[1].copy()).await.unwrap();
        assert!(told().contains("made of"), "{}", told());
        cluster.nodes[1].pg.start_standby(cluster.nodes[1].copy(), Some(&source)).await.unwrap();
        come_through(&cluster.nodes[1]).await;
        cluster.nodes[1].pg.stop_standby().await.unwrap();
    }
}

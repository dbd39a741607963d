//! A standby's data that were brought here take the place of a clone if they are a beginning of the primary's log, and stay untouched if not.

use crate::support::{Cluster, Node};
use mainstay_model::adoption::Adoption;
use mainstay_ports::engine::Engine as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

/// As `mainstay apply` leaves them.
fn bring(node: &Node, system: u64) -> PathBuf {
    let layout = &node.options.layout;
    let ready = layout.adopted();
    if layout.data().exists() {
        std::fs::rename(layout.data(), &ready).unwrap();
    }
    let noted = Adoption {
        directory: "/srv/standby".into(),
        system: mainstay_model::SystemId(system),
        unit: None,
        enabled: false,
        start_conf: None,
        auto_conf: None,
        slots: Vec::new(),
    };
    std::fs::create_dir_all(layout.adoption().parent().unwrap()).unwrap();
    std::fs::write(layout.adoption(), serde_json::to_vec(&noted).unwrap()).unwrap();
    ready
}

async fn streams(node: &Node, source: &Node) {
    node.pg.start_standby(node.copy(), Some(&source.id)).await.unwrap();
    node.until_receiving().await;
    node.until_replayed(source).await;
    assert_eq!(node.sql("select count(*) from ledger").await, source.sql("select count(*) from ledger").await);
    node.pg.stop_standby().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adopted_standbys_data_serve_if_they_are_a_beginning_of_the_primarys_log() {
    let cluster = Cluster::running(2).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    let layout = &second.options.layout;
    let system: u64 = first.sql("select system_identifier from pg_control_system()").await.parse().unwrap();
    first.write(1000).await;
    second.until_replayed(first).await;
    second.pg.stop_standby().await.unwrap();
    let inode = |path: PathBuf| std::fs::metadata(path.join("PG_VERSION")).unwrap().ino();
    let was = inode(layout.data());
    // A standby's own settings come along.
    let theirs =
        "primary_conninfo = 'host=nowhere'\nprimary_slot_name = 'theirs'\nrecovery_target_time = '2001-01-01'\n";
    std::fs::write(layout.data().join("postgresql.auto.conf"), theirs).unwrap();
    first.write(1000).await;

    // Those of another server stay where they are, and a clone is made.
    let ready = bring(second, system + 1);
    (*second.pg).clone_from(&first.id, second.copy()).await.unwrap();
    assert!(inode(ready.clone()) == was && inode(layout.data()) != was);
    streams(second, first).await;

    // Beside other data they wait; then they serve, and nothing is copied.
    bring_back(second, &ready, system);
    (*second.pg).clone_from(&first.id, second.copy()).await.unwrap();
    assert!(inode(layout.data()) == was && !ready.exists());
    // Whoever died before that was told is told to clone again, as another copy: they are here already.
    (*second.pg).clone_from(&first.id, mainstay_model::CopyId::new(77).unwrap()).await.unwrap();
    assert!(inode(layout.data()) == was && !layout.dir().join("data.old").exists());
    streams(second, first).await;
    // Once a server has run on them they are a copy like others, and whoever wants a new one gets it.
    (*second.pg).clone_from(&first.id, second.copy()).await.unwrap();
    assert!(inode(layout.data()) != was && inode(layout.dir().join("data.old")) == was);
    let was = inode(layout.data());

    // Neither a server that crashed nor one that was promoted.
    second.pg.start_standby(second.copy(), Some(&first.id)).await.unwrap();
    second.until_receiving().await;
    second.kill().await;
    let ready = bring(second, system);
    (*second.pg).clone_from(&first.id, second.copy()).await.unwrap();
    assert!(inode(ready.clone()) == was && inode(layout.data()) != was);
    std::fs::remove_dir_all(layout.data()).unwrap();
    std::fs::remove_file(ready.join("standby.signal")).unwrap();
    (*second.pg).clone_from(&first.id, second.copy()).await.unwrap();
    assert!(inode(ready) == was && inode(layout.data()) != was);
}

/// The clone goes, so that the place is free.
fn bring_back(node: &Node, ready: &std::path::Path, system: u64) {
    std::fs::remove_dir_all(node.options.layout.data()).unwrap();
    assert!(ready.exists());
    bring(node, system);
}

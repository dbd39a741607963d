//! Backup, archive, restore, retention and verification of a real server's database in a bucket, over a bad network, cut off and full.

use crate::bucket_server::{Dialect, Fault, Server as Store};
use crate::support::*;
use mainstay_vault::keys::SecretKey;
use mainstay_vault::objects::{Bucket, Objects};
use mainstay_vault::postgres::backup::list;
use mainstay_vault::postgres::restore::{Destination, Target, plan, restore};
use mainstay_vault::repository::Repository;
use mainstay_vault::retention::{Policy, examine, remove};
use mainstay_vault::verify::verify;
use std::sync::Arc;

fn opened(store: &Store, dir: &std::path::Path, secret: &SecretKey) -> (Arc<dyn Objects>, Repository) {
    let objects: Arc<dyn Objects> = Arc::new(Bucket::open(&store.address(dir, "main", 10)).unwrap());
    Repository::create(objects.clone(), &[secret.public()]).unwrap();
    (objects.clone(), Repository::open(objects, Some(secret.clone())).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p14_p37_a_bucket_behind_a_bad_network_holds_what_a_folder_would() {
    holds_what_a_folder_would(Dialect::S3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p14_p37_a_container_of_azure_behind_a_bad_network_holds_what_a_folder_would() {
    holds_what_a_folder_would(Dialect::Azure).await;
}

async fn holds_what_a_folder_would(dialect: Dialect) {
    let dir = place();
    let (server, store) = (Server::new(dir.path(), "primary").await, Store::start(dialect));
    let secret = SecretKey::generate().unwrap();
    let (objects, repository) = opened(&store, dir.path(), &secret);
    store.storm(
        7,
        &[
            Fault::Status(503, "SlowDown"),
            Fault::Cut,
            Fault::AnswerLost,
            Fault::Lost,
            Fault::Swapped,
            Fault::Status(500, "InternalError"),
        ],
    );
    let mut archive = claim(&repository, &server, 1).await;
    let mut oracle = Oracle::new(&server).await;
    oracle.write(50).await;
    let labels = two_backups(&repository, &server, &mut archive, &mut oracle).await;
    while_archiving(&mut archive, &server, tokio::time::sleep(std::time::Duration::from_secs(1))).await;
    sweep(&mut archive, &server).await.unwrap();
    let system = server.system().await;
    let made = plan(&repository, system, Target::Latest, None).unwrap();
    let to = Destination { data: dir.path().join("copy"), owner: user(), threads: 2, ..Destination::default() };
    restore(&repository, &made, &to).unwrap();
    let report = verify(&repository, system).unwrap();
    assert!(report.problems.is_empty() && report.good.len() == 2 && report.window.is_some(), "{report:?}");
    let verdict = examine(&repository, system, Policy { count: 1, span: None }, report.good[1].1).unwrap();
    assert_eq!(verdict.removed, [labels[0].clone()].into());
    remove(&repository, system, SIZE, &verdict).unwrap();
    let report = verify(&repository, system).unwrap();
    assert!(report.problems.is_empty() && report.good.len() == 1, "{report:?}");
    assert_eq!(store.unfinished(), 0);
    store.storm(1, &[]);
    assert!(store.requests.load(std::sync::atomic::Ordering::Relaxed) > 100);
    // A damaged pack is found, whatever the network says of its length.
    let pack = objects.list("backups/").unwrap().into_iter().find(|entry| entry.key.as_str().contains("pack")).unwrap();
    store.tamper(&format!("main/{}", pack.key), |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    });
    assert!(!verify(&repository, system).unwrap().problems.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p14_a_bucket_that_is_full_or_refuses_at_any_step_leaves_no_backup_and_the_next_one_succeeds() {
    leaves_no_backup(Dialect::S3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p14_a_container_of_azure_that_is_full_or_refuses_leaves_no_backup_and_the_next_one_succeeds() {
    leaves_no_backup(Dialect::Azure).await;
}

async fn leaves_no_backup(dialect: Dialect) {
    let dir = place();
    let (server, store) = (Server::new(dir.path(), "primary").await, Store::start(dialect));
    let secret = SecretKey::generate().unwrap();
    let (_, repository) = opened(&store, dir.path(), &secret);
    let mut archive = claim(&repository, &server, 1).await;
    let system = server.system().await;
    for steps in [0, 2, 5, 9, 14] {
        // From that request on nothing is allowed any more: as if the process had been killed there.
        store.faults(
            (0..steps).map(|_| Fault::None).chain(std::iter::repeat_n(Fault::Status(403, "AccessDenied"), 100_000)),
        );
        let options = options(&server, &server);
        let failed = mainstay_vault::postgres::backup::full(&repository, &options, &Arc::default()).await;
        store.faults([]);
        assert!(failed.is_err() && list(&repository, system).unwrap().is_empty(), "{steps}");
    }
    store.room(Some(200_000));
    let full = backup(&repository, &server, &server, &mut archive).await.unwrap_err();
    assert!(full.to_string().contains("full"), "{full}");
    assert!(list(&repository, system).unwrap().is_empty());
    // What Azure was given of an object that was not finished it removes by itself.
    assert!(dialect == Dialect::Azure || store.unfinished() == 0);
    store.room(None);
    let manifest = backup(&repository, &server, &server, &mut archive).await.unwrap();
    assert_eq!(list(&repository, system).unwrap(), [manifest]);
}

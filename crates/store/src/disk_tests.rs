//! Disks that fail or stall under a member. One voter is enough: it is its own majority.

use crate::journal::Sync;
use crate::{RaftOptions, RaftStore};
use async_trait::async_trait;
use mainstay_model::NodeId;
use mainstay_ports::peer::{Channel, LinkChange, PeerError, Peers};
use mainstay_ports::store::{CasOutcome, Store};
use mainstay_ports::store_suite::put;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::broadcast;

const SHORT: Duration = Duration::from_secs(2);

struct Nobody(broadcast::Sender<LinkChange>);

#[async_trait]
impl Peers for Nobody {
    fn send(&self, _to: &NodeId, _channel: Channel, _body: Vec<u8>) {}
    async fn request(
        &self,
        to: &NodeId,
        _channel: Channel,
        _body: Vec<u8>,
        _timeout: Duration,
    ) -> Result<Vec<u8>, PeerError> {
        Err(PeerError::NotConnected(to.to_string()))
    }
    fn links(&self) -> broadcast::Receiver<LinkChange> {
        self.0.subscribe()
    }
    fn connected(&self, _node: &NodeId) -> bool {
        false
    }
}

const GOOD: u64 = 0;
const FAILS: u64 = 1;

async fn alone(dir: &Path, disk: &Arc<AtomicU64>) -> Arc<RaftStore> {
    let me = NodeId::new("alone").unwrap();
    let options = RaftOptions::new(me.clone(), vec![me], dir.to_owned());
    let disk = Arc::clone(disk);
    let sync: Sync = Arc::new(move |file| match disk.load(Ordering::SeqCst) {
        FAILS => Err(std::io::Error::other("injected")),
        stall => {
            std::thread::sleep(Duration::from_millis(stall));
            file.sync_data()
        }
    });
    RaftStore::start_on(options, Arc::new(Nobody(broadcast::channel(1).0)), sync).await.unwrap().0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failed_fsync_the_member_never_pretends() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(AtomicU64::new(GOOD));
    let store = alone(dir.path(), &disk).await;
    let before = put(store.as_ref(), "k", b"before").await;
    disk.store(FAILS, Ordering::SeqCst);
    let during = store.compare_and_set("k", Some(before), b"during".to_vec(), SHORT).await;
    assert_eq!(during, CasOutcome::Unknown, "it may be on the disk");
    disk.store(GOOD, Ordering::SeqCst);
    let after = store.compare_and_set("k", Some(before), b"after".to_vec(), SHORT).await;
    assert!(matches!(&after, CasOutcome::Unavailable(why) if why.contains("injected")), "{after:?}");
    assert!(store.read("k", SHORT).await.is_err());
    assert_eq!(store.leader(), None);
    store.stop().await;
    drop(store);
    let store = alone(dir.path(), &disk).await;
    let read = store.read("k", Duration::from_secs(20)).await.unwrap().unwrap();
    assert!([b"before".to_vec(), b"during".to_vec()].contains(&read.value), "{read:?}");
    put(store.as_ref(), "k", b"goes on").await;
    store.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_stalls_costs_the_leadership_and_gives_it_back() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(AtomicU64::new(GOOD));
    let store = alone(dir.path(), &disk).await;
    let before = put(store.as_ref(), "k", b"before").await;
    disk.store(3_500, Ordering::SeqCst);
    let mut leader = store.watch_leader();
    let writer = Arc::clone(&store);
    let write = tokio::spawn(async move {
        writer.compare_and_set("k", Some(before), b"slow".to_vec(), Duration::from_secs(20)).await
    });
    tokio::time::timeout(SHORT * 2, leader.wait_for(Option::is_none)).await.unwrap().unwrap();
    disk.store(GOOD, Ordering::SeqCst);
    assert!(matches!(write.await.unwrap(), CasOutcome::Done(_)), "its entry survived and was committed later");
    put(store.as_ref(), "k", b"fast again").await;
    store.stop().await;
}

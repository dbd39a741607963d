//! Disks that fail or stall under a member. Where the member's own disk is meant one voter is enough: it is its own majority.

use crate::journal::Sync;
use crate::{RaftOptions, RaftStore};
use async_trait::async_trait;
use mainstay_model::NodeId;
use mainstay_ports::peer::{Caller, Channel, Handler, Handlers, LinkChange, PeerError, Peers};
use mainstay_ports::store::{CasOutcome, Store};
use mainstay_ports::store_suite::put;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
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

/// Members of one process: what one sends, the other's handler gets, at once and in order.
#[derive(Clone)]
struct Room {
    me: NodeId,
    doors: Arc<Mutex<BTreeMap<NodeId, Handlers>>>,
    runtime: tokio::runtime::Handle,
    links: broadcast::Sender<LinkChange>,
}

impl Room {
    fn handler(&self, to: &NodeId, channel: Channel) -> Option<Arc<dyn Handler>> {
        self.doors.lock().unwrap().get(to)?.get(&channel).cloned()
    }
}

#[async_trait]
impl Peers for Room {
    fn send(&self, to: &NodeId, channel: Channel, body: Vec<u8>) {
        let Some(handler) = self.handler(to, channel) else { return };
        let from = Caller::Node(self.me.clone());
        self.runtime.spawn(async move { handler.message(&from, body).await });
    }
    async fn request(
        &self,
        to: &NodeId,
        channel: Channel,
        body: Vec<u8>,
        _timeout: Duration,
    ) -> Result<Vec<u8>, PeerError> {
        let handler = self.handler(to, channel).ok_or_else(|| PeerError::NotConnected(to.to_string()))?;
        handler.request(&Caller::Node(self.me.clone()), body).await.map_err(PeerError::Refused)
    }
    fn links(&self) -> broadcast::Receiver<LinkChange> {
        self.links.subscribe()
    }
    fn connected(&self, _node: &NodeId) -> bool {
        true
    }
}

/// Longer than an election time-out (500 ms), far from what counts as a stalled disk.
const SLOW: u64 = 1_200;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leader_that_is_heard_stays_though_its_followers_disks_are_slow() {
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<NodeId> = ["db1", "db2", "db3"].map(|name| NodeId::new(name).unwrap()).to_vec();
    let doors = Arc::new(Mutex::new(BTreeMap::new()));
    let mut members = Vec::new();
    for me in &names {
        let room = Room {
            me: me.clone(),
            doors: Arc::clone(&doors),
            runtime: tokio::runtime::Handle::current(),
            links: broadcast::channel(1).0,
        };
        let disk = Arc::new(AtomicU64::new(GOOD));
        let slow = Arc::clone(&disk);
        let sync: Sync = Arc::new(move |file| {
            std::thread::sleep(Duration::from_millis(slow.load(Ordering::SeqCst)));
            file.sync_data()
        });
        let options = RaftOptions::new(me.clone(), names.clone(), dir.path().join(me.as_str()));
        let (store, handlers) = RaftStore::start_on(options, Arc::new(room), sync).await.unwrap();
        doors.lock().unwrap().insert(me.clone(), handlers);
        members.push((me.clone(), store, disk));
    }
    let before = put(members[0].1.as_ref(), "k", b"before").await;
    let leader = members[0].1.leader().unwrap();
    let (followers, leads): (Vec<_>, Vec<_>) = members.iter().partition(|(name, ..)| *name != leader);
    followers.iter().for_each(|(_, _, disk)| disk.store(SLOW, Ordering::SeqCst));
    let store = &leads[0].1;
    let mut seen = store.watch_leader();
    seen.borrow_and_update();
    let begun = tokio::time::Instant::now();
    let written = store.compare_and_set("k", Some(before), b"slow".to_vec(), Duration::from_secs(10)).await;
    assert!(matches!(written, CasOutcome::Done(_)), "{written:?}");
    assert!(begun.elapsed() >= Duration::from_millis(SLOW), "the disks were slow");
    assert!(!seen.has_changed().unwrap(), "the leadership changed: {:?}", store.leader());
    followers.iter().for_each(|(_, _, disk)| disk.store(GOOD, Ordering::SeqCst));
    for (_, store, _) in &members {
        store.stop().await;
    }
}

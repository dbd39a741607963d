//! Members inside the process, on real directories, joined by a [`Wire`].

use super::wire::Wire;
use async_trait::async_trait;
use mainstay_model::NodeId;
use mainstay_ports::store::Store;
use mainstay_ports::store_suite::Fixture;
use mainstay_store::{RaftOptions, RaftStore};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

pub const PATIENT: Duration = Duration::from_secs(20);

pub fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

pub struct Cluster {
    pub wire: Arc<Wire>,
    pub nodes: Vec<NodeId>,
    pub stores: BTreeMap<NodeId, Arc<RaftStore>>,
    pub snapshot_every: u64,
    dir: tempfile::TempDir,
}

impl Cluster {
    /// Three members that have started; there may be no leader yet.
    pub async fn start(snapshot_every: u64) -> Self {
        let nodes = ["a", "b", "c"].map(node).to_vec();
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = Self { wire: Wire::new(), nodes, stores: BTreeMap::new(), snapshot_every, dir };
        for node in cluster.nodes.clone() {
            cluster.up(&node).await;
        }
        cluster
    }

    pub fn dir(&self, node: &NodeId) -> PathBuf {
        self.dir.path().join(node.as_str())
    }

    pub async fn up(&mut self, node: &NodeId) {
        let mut options = RaftOptions::new(node.clone(), self.nodes.clone(), self.dir(node));
        options.snapshot_every = self.snapshot_every;
        let (store, handlers) = RaftStore::start(options, self.wire.peers(node)).await.unwrap();
        self.wire.up(node, handlers);
        self.stores.insert(node.clone(), store);
    }

    /// Starts a member that waits to be added to this store.
    #[allow(dead_code)] // Each test program uses its own part of these helpers.
    pub async fn join(&mut self, node: &NodeId, group: u64) {
        let mut options = RaftOptions::new(node.clone(), Vec::new(), self.dir(node));
        options.group = group;
        let (store, handlers) = RaftStore::start(options, self.wire.peers(node)).await.unwrap();
        self.wire.up(node, handlers);
        self.stores.insert(node.clone(), store);
    }

    pub async fn down(&mut self, node: &NodeId, seen: bool) {
        self.wire.down(node, seen);
        self.stores.remove(node).unwrap().stop().await;
    }

    pub fn store(&self, node: &NodeId) -> &Arc<RaftStore> {
        &self.stores[node]
    }

    /// The leader on which all running members among these agree.
    pub async fn leader(&self, among: &[NodeId]) -> NodeId {
        let end = Instant::now() + PATIENT;
        loop {
            let mut leaders: Vec<_> = among.iter().map(|node| self.stores[node].leader()).collect();
            leaders.dedup();
            if let [Some(leader)] = &leaders[..]
                && among.contains(leader)
            {
                return leader.clone();
            }
            assert!(Instant::now() < end, "no leader: {leaders:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn others(&self, but: &NodeId) -> Vec<NodeId> {
        self.nodes.iter().filter(|node| *node != but).cloned().collect()
    }
}

#[async_trait]
impl Fixture for Cluster {
    fn doors(&self) -> Vec<Arc<dyn Store>> {
        self.stores.values().map(|store| Arc::clone(store) as Arc<dyn Store>).collect()
    }

    async fn restart(&mut self) -> bool {
        for node in self.nodes.clone() {
            self.down(&node, false).await;
        }
        for node in self.nodes.clone() {
            self.up(&node).await;
        }
        true
    }

    async fn cut(&mut self) -> bool {
        let nodes = self.nodes.clone();
        self.wire.split(&[&nodes[..1], &nodes[1..2], &nodes[2..]]);
        // Until the leader has noticed it could still answer from before.
        tokio::time::sleep(Duration::from_millis(50)).await;
        true
    }

    async fn heal(&mut self) {
        self.wire.heal();
    }
}

//! The conformance suite, for the memory store and for the embedded Raft.

mod common;

use async_trait::async_trait;
use common::cluster::Cluster;
use mainstay_ports::store::Store;
use mainstay_ports::store_suite::{self, Fixture};
use mainstay_store::MemoryStore;
use std::sync::Arc;

struct Memory(Arc<MemoryStore>);

#[async_trait]
impl Fixture for Memory {
    fn doors(&self) -> Vec<Arc<dyn Store>> {
        (0..3).map(|_| Arc::clone(&self.0) as Arc<dyn Store>).collect()
    }
    async fn restart(&mut self) -> bool {
        false
    }
    async fn cut(&mut self) -> bool {
        false
    }
    async fn heal(&mut self) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory() {
    store_suite::run(&mut Memory(Arc::new(MemoryStore::new()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raft() {
    store_suite::run(&mut Cluster::start(4096).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raft_with_a_snapshot_each_few_entries() {
    store_suite::run(&mut Cluster::start(7).await).await;
}

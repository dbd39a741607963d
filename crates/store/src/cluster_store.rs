//! The store that a cluster has: the nodes' own, or an etcd. What the one has and the other has not is said here.

use crate::etcd::EtcdStore;
use crate::raft_store::RaftStore;
use async_trait::async_trait;
use mainstay_model::api::StoreStanding;
use mainstay_model::{NodeId, Revision};
use mainstay_ports::store::{CasOutcome, Store, StoreError, Versioned};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// See the module.
#[derive(Clone)]
pub enum ClusterStore {
    /// Each node holds a part.
    Raft(Arc<RaftStore>),
    /// An etcd that others run.
    Etcd(Arc<EtcdStore>),
}

impl ClusterStore {
    /// The embedded one, if that is it: members and leadership are ours only there.
    #[must_use]
    pub fn embedded(&self) -> Option<&Arc<RaftStore>> {
        match self {
            Self::Raft(store) => Some(store),
            Self::Etcd(_) => None,
        }
    }

    /// The etcd, if that is it.
    #[must_use]
    pub fn etcd(&self) -> Option<&Arc<EtcdStore>> {
        match self {
            Self::Raft(_) => None,
            Self::Etcd(store) => Some(store),
        }
    }

    /// The node that leads it, as far as this one knows. An etcd is led by no node of ours.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.embedded().and_then(|store| store.leader())
    }

    /// This node does not believe what its etcd shows, or the store was made anew without it: then it takes part in no take-over either. A candidate that trusts the same etcd may go by a record of which copies count that is older than what this
    /// node has seen, and would take too few answers for enough. The nodes' own store never goes back.
    #[must_use]
    pub fn distrusts(&self) -> bool {
        self.etcd().is_some_and(|etcd| !etcd.is_believed())
    }

    /// Nothing was ever written, as far as this node knows.
    #[must_use]
    pub fn is_new(&self) -> bool {
        match self {
            Self::Raft(store) => store.is_new(),
            Self::Etcd(store) => store.is_new(),
        }
    }

    /// This node's view of it, without asking anybody.
    #[must_use]
    pub fn standing(&self) -> StoreStanding {
        match self {
            Self::Raft(store) => store.standing(),
            Self::Etcd(store) => StoreStanding {
                group: store.group(),
                failure: store.failure(),
                etcd: Some(store.standing()),
                ..StoreStanding::default()
            },
        }
    }

    /// Stops this node's part.
    pub async fn stop(&self) {
        match self {
            Self::Raft(store) => store.stop().await,
            Self::Etcd(store) => store.stop().await,
        }
    }
}

#[async_trait]
impl Store for ClusterStore {
    async fn read(&self, key: &str, timeout: Duration) -> Result<Option<Versioned>, StoreError> {
        match self {
            Self::Raft(store) => store.read(key, timeout).await,
            Self::Etcd(store) => store.read(key, timeout).await,
        }
    }

    async fn compare_and_set(
        &self,
        key: &str,
        expected: Option<Revision>,
        value: Vec<u8>,
        timeout: Duration,
    ) -> CasOutcome {
        match self {
            Self::Raft(store) => store.compare_and_set(key, expected, value, timeout).await,
            Self::Etcd(store) => store.compare_and_set(key, expected, value, timeout).await,
        }
    }

    fn watch(&self, key: &str) -> watch::Receiver<Option<Versioned>> {
        match self {
            Self::Raft(store) => store.watch(key),
            Self::Etcd(store) => store.watch(key),
        }
    }
}

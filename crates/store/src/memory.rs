//! The store in memory: for tests. One process, nothing durable, always available.

use async_trait::async_trait;
use mainstay_model::Revision;
use mainstay_ports::store::{CasOutcome, Store, StoreError, VALUE_BYTES_MAX, Versioned};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// A store in memory. Clones of its `Arc` are its members.
#[derive(Default)]
pub struct MemoryStore {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    revision: u64,
    keys: BTreeMap<String, watch::Sender<Option<Versioned>>>,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn read(&self, key: &str, _timeout: Duration) -> Result<Option<Versioned>, StoreError> {
        Ok(self.inner().keys.get(key).and_then(|sender| sender.borrow().clone()))
    }

    async fn compare_and_set(
        &self,
        key: &str,
        expected: Option<Revision>,
        value: Vec<u8>,
        _timeout: Duration,
    ) -> CasOutcome {
        if value.len() > VALUE_BYTES_MAX {
            return CasOutcome::Unavailable(format!("the value has {} bytes; {VALUE_BYTES_MAX} may", value.len()));
        }
        let mut inner = self.inner();
        let next = inner.revision + 1;
        let sender = inner.keys.entry(key.to_owned()).or_insert_with(|| watch::Sender::new(None));
        let present = sender.borrow().clone();
        if present.as_ref().map(|versioned| versioned.revision) != expected {
            return CasOutcome::Conflict(present);
        }
        sender.send_replace(Some(Versioned { revision: Revision(next), value }));
        inner.revision = next;
        CasOutcome::Done(Revision(next))
    }

    fn watch(&self, key: &str) -> watch::Receiver<Option<Versioned>> {
        self.inner().keys.entry(key.to_owned()).or_insert_with(|| watch::Sender::new(None)).subscribe()
    }
}

//! The store: a small linearizable map with compare-and-set and watch. Nothing else, so that Raft, etcd and the simulator's
//! model can pass one suite.
//!
//! Contract:
//! 1. `compare_and_set` takes effect at most once and atomically. `Done` means that it is durable on a majority.
//! 2. `Unknown` means that it may have taken effect, or may still do so later. `Unavailable` means that it never will.
//! 3. `read` is linearizable: it shows every write that was `Done` before the read began.
//! 4. Revisions of a key only rise, also across restarts of members and changes of leader; each successful write gets a new one.
//! 5. A watch shows the newest value it knows, may skip values and may be stale, and never goes back to a lower revision. A
//!    new watch shows the present local value at once, if there is one.
//! 6. Every call ends within its time-out.

use async_trait::async_trait;
use mainstay_model::Revision;
use std::time::Duration;
use tokio::sync::watch;

/// The longest value a key may hold, in bytes.
pub const VALUE_BYTES_MAX: usize = 256 * 1024;

/// A value with its revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The revision of the write that made it.
    pub revision: Revision,
    /// The bytes (JSON in practice, so that people can read them).
    pub value: Vec<u8>,
}

/// How a compare-and-set ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CasOutcome {
    /// Written and durable.
    Done(Revision),
    /// The key was not at the expected revision; here is what it holds (`None`: it does not exist).
    Conflict(Option<Versioned>),
    /// No answer: it may have happened, or may still happen.
    Unknown,
    /// It did not and will not happen: no leader, no quorum, the value is too long.
    Unavailable(String),
}

/// A read that could not be answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No quorum within the time-out; trying again may help.
    #[error("the store did not answer: {0}")]
    Unavailable(String),
}

/// The store. See the module's contract.
#[async_trait]
pub trait Store: Send + Sync {
    /// Linearizable read.
    ///
    /// # Errors
    /// When no quorum answers in time.
    async fn read(&self, key: &str, timeout: Duration) -> Result<Option<Versioned>, StoreError>;

    /// Writes `value` if the key is at `expected` (`None`: if it does not exist).
    async fn compare_and_set(
        &self,
        key: &str,
        expected: Option<Revision>,
        value: Vec<u8>,
        timeout: Duration,
    ) -> CasOutcome;

    /// The newest value this member knows, now and whenever it changes.
    fn watch(&self, key: &str) -> watch::Receiver<Option<Versioned>>;
}

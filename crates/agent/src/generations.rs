//! What the operator wants now: the newest generation this node has seen, kept in a file, followed in the store, and seeded from the
//! node's own file when a cluster has none yet.

use crate::durable::write_atomically;
use crate::record::RECORD_KEY;
use mainstay_model::NodeId;
use mainstay_model::spec::Spec;
use mainstay_model::stored_spec::{FileState, SPEC_KEY, StoredSpec};
use mainstay_ports::clock::wall_now_ms;
use mainstay_ports::store::{CasOutcome, Store, Versioned};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{error, info, warn};

const TIMEOUT: Duration = Duration::from_secs(2);
/// Pause before seeding, or writing the file, is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// The node's own file belongs to another cluster than what the node has kept.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} was written by a node of the cluster {kept}, and the configuration file names the cluster {file}: \
     give this node the right file, or another directory", path.display()
)]
pub struct AnotherCluster {
    path: PathBuf,
    kept: String,
    file: String,
}

/// The generations, as one node knows them.
pub struct Generations {
    file: Spec,
    cache: PathBuf,
    now: watch::Sender<Arc<StoredSpec>>,
}

impl Generations {
    /// Begins with what the node has kept, else with its file.
    ///
    /// # Errors
    /// When what it has kept is of another cluster.
    pub fn load(cache: PathBuf, file: Spec) -> Result<Self, AnotherCluster> {
        let kept = std::fs::read(&cache).ok().and_then(|text| match serde_json::from_slice::<StoredSpec>(&text) {
            Ok(stored) => Some(stored),
            Err(problem) => {
                warn!(path = %cache.display(), %problem, "can not be read; going by the configuration file until the store answers");
                None
            }
        });
        if let Some(kept) = &kept
            && kept.spec.cluster.name != file.cluster.name
        {
            let (kept, file) = (kept.spec.cluster.name.to_string(), file.cluster.name.to_string());
            return Err(AnotherCluster { path: cache, kept, file });
        }
        let first = kept.unwrap_or_else(|| StoredSpec::of_file(file.clone()));
        Ok(Self { file, cache, now: watch::Sender::new(Arc::new(first)) })
    }

    /// The generation this node goes by.
    #[must_use]
    pub fn now(&self) -> Arc<StoredSpec> {
        Arc::clone(&self.now.borrow())
    }

    /// It, and every later one.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<StoredSpec>> {
        self.now.subscribe()
    }

    /// How the node's own file relates to it.
    #[must_use]
    pub fn file_state(&self) -> FileState {
        self.now().compare(&self.file)
    }

    /// Goes by this generation from now on, if it is newer; keeps it first.
    ///
    /// # Errors
    /// When it can not be kept: nothing changes.
    pub fn adopt(&self, stored: StoredSpec) -> io::Result<bool> {
        let now = self.now();
        if stored.generation < now.generation || stored == *now {
            return Ok(false);
        }
        write_atomically(&self.cache, &serde_json::to_vec_pretty(&stored).map_err(io::Error::other)?)?;
        info!(generation = stored.generation, by = %stored.by, change = %stored.change, "a new specification");
        self.now.send_replace(Arc::new(stored));
        Ok(true)
    }

    /// Follows the store's key, and seeds it while a record exists and it does not.
    pub async fn follow(&self, me: &NodeId, store: &dyn Store) {
        let (mut shown, mut record) = (store.watch(SPEC_KEY), store.watch(RECORD_KEY));
        loop {
            let present = shown.borrow_and_update().clone();
            let founded = record.borrow_and_update().is_some();
            let again = match present {
                Some(versioned) => self.take(&versioned),
                None if founded => self.seed(me, store).await,
                None => false,
            };
            tokio::select! {
                changed = shown.changed() => if changed.is_err() { return },
                changed = record.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(AGAIN), if again => {}
            }
        }
    }

    /// True: try again later.
    fn take(&self, versioned: &Versioned) -> bool {
        let Some(stored) = parse(versioned) else { return false };
        let kept = self.adopt(stored);
        if let Err(problem) = &kept {
            error!(path = %self.cache.display(), %problem, "the new specification can not be kept; trying again: free space or mend the disk");
        }
        kept.is_err()
    }

    async fn seed(&self, me: &NodeId, store: &dyn Store) -> bool {
        let spec = self.now().spec.clone();
        let first = StoredSpec {
            generation: self.now().generation.max(1),
            wall_ms: wall_now_ms(),
            by: me.to_string(),
            change: "taken from the configuration file".to_owned(),
            ..StoredSpec::of_file(spec)
        };
        let Ok(value) = serde_json::to_vec(&first) else { return false };
        // If another node was faster, the watch shows it.
        !matches!(store.compare_and_set(SPEC_KEY, None, value, TIMEOUT).await, CasOutcome::Done(_))
    }
}

/// One generation as the store keeps it.
#[must_use]
pub fn parse(versioned: &Versioned) -> Option<StoredSpec> {
    match serde_json::from_slice(&versioned.value) {
        Ok(stored) => Some(stored),
        Err(problem) => {
            error!(revision = versioned.revision.0, %problem, "the specification in the store can not be read; is an older mainstay running here?");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_store::MemoryStore;

    fn spec(name: &str) -> Spec {
        let text = format!("[cluster]\nname = \"{name}\"\n[[node]]\nname = \"db1\"\nhost = \"10.0.0.1\"\n");
        mainstay_model::config::parse(&text, &[]).unwrap()
    }

    #[tokio::test]
    async fn the_file_seeds_the_store_once_a_record_exists_and_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, store) = (dir.path().join("spec.json"), Arc::new(MemoryStore::new()));
        let mine = Arc::new(Generations::load(cache.clone(), spec("orders")).unwrap());
        assert_eq!((mine.now().generation, mine.file_state()), (0, FileState::Same));
        let task = tokio::spawn({
            let (mine, store) = (Arc::clone(&mine), Arc::clone(&store));
            async move { mine.follow(&NodeId::new("db1").unwrap(), &*store).await }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(store.watch(SPEC_KEY).borrow().is_none(), "no record: nothing is founded yet");
        store.compare_and_set(RECORD_KEY, None, b"{}".to_vec(), TIMEOUT).await;
        let mut news = mine.watch();
        news.wait_for(|now| now.generation == 1).await.unwrap();
        // A later generation, and then an older one that a slow watch shows.
        let mut next = spec("orders");
        next.failover.lease_ms = 5000;
        let second = mine.now().next(next, "anna", "lease", 0);
        let held = store.watch(SPEC_KEY).borrow().clone().unwrap();
        store.compare_and_set(SPEC_KEY, Some(held.revision), serde_json::to_vec(&second).unwrap(), TIMEOUT).await;
        news.wait_for(|now| now.generation == 2).await.unwrap();
        assert_eq!(mine.file_state(), FileState::Older(1));
        assert!(!mine.adopt(parse(&held).unwrap()).unwrap(), "an older one never comes back");
        task.abort();
        let again = Generations::load(cache.clone(), spec("orders")).unwrap();
        assert_eq!(again.now().generation, 2, "it was kept");
        assert!(Generations::load(cache, spec("other")).is_err(), "another cluster's directory");
    }
}

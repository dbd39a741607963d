//! The lives of the cluster's primaries as the store keeps them, and by them: what became of a commit whose answer was lost with its server
//! (docs/adr/0054). Absent: the rule, which is `mainstay_model::outcome`'s.

use crate::routes::Routes;
use mainstay_model::outcome::{CommitAnswer, CommitQuestion, RUNS_KEY, Runs, Shared};
use mainstay_ports::clock::boot_now;
use mainstay_ports::engine::{Engine, PrimaryRun};
use mainstay_ports::store::{CasOutcome, Store, Versioned};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tracing::debug;

/// A write or a read of the store takes no longer.
const STORE_TIMEOUT: Duration = Duration::from_secs(1);
/// Another agent may write at the same time: so often it is tried.
const TRIES: usize = 4;
/// How often it is looked whether this node's server serves as primary, and is noted.
const PAUSE: Duration = Duration::from_millis(100);

/// So many questions are answered at once.
const AT_ONCE: usize = 4;

/// The store's list.
#[derive(Clone)]
pub struct RunNotes {
    store: Arc<dyn Store>,
}

impl RunNotes {
    /// The list in this store.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// Before a primary is started again in place: notes that it is. No start without it: a run that nobody knows of could not be told from
    /// the one before it.
    ///
    /// # Errors
    /// When the store does not confirm it.
    pub async fn begin(&self) -> Result<(), String> {
        for _ in 0..TRIES {
            let (held, mut runs) = self.read().await?;
            runs.begin();
            if self.write(held, &runs).await? {
                return Ok(());
            }
        }
        Err(format!("the store's key {RUNS_KEY} is written by others all the time"))
    }

    async fn read(&self) -> Result<(Option<Versioned>, Runs), String> {
        let held = self.store.read(RUNS_KEY, STORE_TIMEOUT).await.map_err(|error| error.to_string())?;
        let runs = match &held {
            None => Runs::default(),
            // A list that a newer version wrote otherwise is begun anew: what it said is not known, and nothing is concluded from it.
            Some(held) => serde_json::from_slice(&held.value).unwrap_or_default(),
        };
        Ok((held, runs))
    }

    /// False: somebody else has written.
    async fn write(&self, held: Option<Versioned>, runs: &Runs) -> Result<bool, String> {
        let value = serde_json::to_vec(runs).map_err(|error| error.to_string())?;
        match self.store.compare_and_set(RUNS_KEY, held.map(|held| held.revision), value, STORE_TIMEOUT).await {
            CasOutcome::Done(_) => Ok(true),
            CasOutcome::Conflict(_) => Ok(false),
            CasOutcome::Unknown => Err("the store did not confirm that a start is noted".to_owned()),
            CasOutcome::Unavailable(why) => Err(format!("the store does not take notes: {why}")),
        }
    }
}

/// Answers for the server of this node while it is the open primary.
#[derive(Clone)]
pub struct Outcomes {
    engine: Arc<dyn Engine>,
    routes: Routes,
    notes: RunNotes,
    /// Proxies may have many questions at once, and a primary that has just come up has other things to do.
    turns: Arc<Semaphore>,
}

impl Outcomes {
    /// Of this node.
    #[must_use]
    pub fn new(engine: &Arc<dyn Engine>, routes: &Routes, notes: &RunNotes) -> Self {
        Self {
            engine: Arc::clone(engine),
            routes: routes.clone(),
            notes: notes.clone(),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// What became of a commit.
    ///
    /// # Errors
    /// When this node's server is no open primary, or it or the store does not answer: nothing is known then.
    pub async fn of(&self, question: CommitQuestion) -> Result<CommitAnswer, String> {
        let _turn = self.turns.acquire().await.map_err(|error| error.to_string())?;
        self.serving()?;
        // In this order: the list is read when this run is the primary already, so that it tells of every run between.
        let run = self.engine.primary_run().await.map_err(|error| error.to_string())?;
        let (_, runs) = self.notes.read().await?;
        let answer = match runs.shared(question.run, question.at, run.id, &run.past) {
            Shared::NotYet => CommitAnswer::Later("its server was started again, which is not noted yet".to_owned()),
            Shared::Unknown(why) => CommitAnswer::Unknown(why.to_owned()),
            Shared::No => CommitAnswer::Aborted,
            Shared::Yes => self.engine.transaction(question.number).await.map_err(|error| error.to_string())?,
        };
        // It was this run that answered, and it is the primary still.
        let after = self.engine.primary_run().await.map_err(|error| error.to_string())?;
        self.serving()?;
        if after.id == run.id { Ok(answer) } else { Err("the server was started again meanwhile".to_owned()) }
    }

    fn serving(&self) -> Result<(), String> {
        let serves = self.routes.serving(boot_now()).is_some();
        serves.then_some(()).ok_or_else(|| "this node's server is no primary that clients are led to".to_owned())
    }

    /// Notes the run that serves, once.
    async fn note(&self) -> Result<PrimaryRun, String> {
        for _ in 0..TRIES {
            // The list first: a start in place that is noted after this makes the write fail, and one before it had ended its server before.
            let (held, mut runs) = self.notes.read().await?;
            let run = self.engine.primary_run().await.map_err(|error| error.to_string())?;
            self.serving()?;
            if !runs.open(run.id, run.from) || self.notes.write(held, &runs).await? {
                return Ok(run);
            }
        }
        Err("others write all the time".to_owned())
    }
}

/// Notes each run of this node's server once it serves as primary, for ever.
pub async fn keep(outcomes: Outcomes) {
    let mut noted = None;
    loop {
        tokio::time::sleep(PAUSE).await;
        let opening = outcomes.routes.opening(boot_now());
        if opening.is_none() || opening == noted {
            continue;
        }
        match outcomes.note().await {
            Ok(run) => {
                debug!(timeline = run.id.timeline.0, "this run of the primary is noted");
                noted = opening;
            }
            Err(why) => debug!(why, "this run of the primary is not noted yet"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use async_trait::async_trait;
    use mainstay_model::outcome::{Run, RunId, Started};
    use mainstay_model::{Revision, Timeline};
    use mainstay_ports::store::StoreError;
    use mainstay_store::memory::MemoryStore;
    use std::sync::Mutex;
    use tokio::sync::watch;

    /// Another agent writes in front of the first writes; then the store says nothing.
    struct Crowded {
        inside: MemoryStore,
        before: Mutex<usize>,
        mute: bool,
    }

    #[async_trait]
    impl Store for Crowded {
        async fn read(&self, key: &str, timeout: Duration) -> Result<Option<Versioned>, StoreError> {
            self.inside.read(key, timeout).await
        }

        async fn compare_and_set(
            &self,
            key: &str,
            expected: Option<Revision>,
            value: Vec<u8>,
            timeout: Duration,
        ) -> CasOutcome {
            let others = std::mem::take(&mut *self.before.lock().unwrap());
            if others > 0 {
                *self.before.lock().unwrap() = others - 1;
                let id = RunId { timeline: Timeline(7), started: Started(i64::try_from(others).unwrap()) };
                let mut runs = RunNotes::new(Arc::new(MemoryStore::new())).read().await.unwrap().1;
                runs.open(id, None);
                let held = self.inside.read(key, timeout).await.unwrap();
                let theirs = serde_json::to_vec(&runs).unwrap();
                let done = self.inside.compare_and_set(key, held.map(|held| held.revision), theirs, timeout).await;
                assert!(matches!(done, CasOutcome::Done(_)));
            }
            if self.mute {
                CasOutcome::Unknown
            } else {
                self.inside.compare_and_set(key, expected, value, timeout).await
            }
        }

        fn watch(&self, key: &str) -> watch::Receiver<Option<Versioned>> {
            self.inside.watch(key)
        }
    }

    pub(crate) fn crowded(before: usize, mute: bool) -> RunNotes {
        RunNotes::new(Arc::new(Crowded { inside: MemoryStore::new(), before: Mutex::new(before), mute }))
    }

    #[tokio::test]
    async fn a_start_is_noted_behind_what_others_wrote_meanwhile_or_is_none() {
        let notes = crowded(2, false);
        notes.begin().await.unwrap();
        let (_, runs) = notes.read().await.unwrap();
        assert!(matches!(runs.0[..], [Run::Open { .. }, Run::Begun]), "{runs:?}");
        assert!(crowded(TRIES, false).begin().await.unwrap_err().contains("all the time"));
        assert!(crowded(0, true).begin().await.unwrap_err().contains("did not confirm"));
    }

    #[tokio::test]
    async fn a_list_that_can_not_be_read_proves_nothing_and_is_begun_anew() {
        let store = Arc::new(MemoryStore::new());
        store.compare_and_set(RUNS_KEY, None, b"{\"new\": 1}".to_vec(), STORE_TIMEOUT).await;
        let notes = RunNotes::new(store);
        assert_eq!(notes.read().await.unwrap().1, Runs::default());
        notes.begin().await.unwrap();
        assert_eq!(notes.read().await.unwrap().1, Runs(vec![Run::Begun]));
    }
}

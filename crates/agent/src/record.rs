//! The record's key in the store: JSON in, JSON out, outcomes translated for the decision.

use mainstay_decide::io::{CasResult, Input};
use mainstay_model::{Record, Revision};
use mainstay_ports::store::{CasOutcome, Store, Versioned};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::error;

pub use mainstay_model::stored_spec::RECORD_KEY;

/// No answer after this is an unknown outcome. A quarter of the default lease, so that a lost reply leaves room for more tries.
const CAS_TIMEOUT: Duration = Duration::from_millis(750);

fn parse(versioned: Versioned) -> Option<(Revision, Record)> {
    match serde_json::from_slice(&versioned.value) {
        Ok(record) => Some((versioned.revision, record)),
        Err(problem) => {
            // A record that can not be read must not be taken for a missing one: the cluster would be founded anew.
            error!(revision = versioned.revision.0, %problem, "the record in the store can not be read; is an older mainstay running here?");
            None
        }
    }
}

/// Passes every newer record that the watch shows to the decision.
pub async fn watch(store: Arc<dyn Store>, inputs: mpsc::Sender<Input>) {
    let mut receiver = store.watch(RECORD_KEY);
    loop {
        let shown = receiver.borrow_and_update().clone();
        if let Some((revision, record)) = shown.and_then(parse)
            && inputs.send(Input::Watched(revision, record)).await.is_err()
        {
            return;
        }
        if receiver.changed().await.is_err() {
            return;
        }
    }
}

/// Carries out one compare-and-set.
pub async fn compare_and_set(store: Arc<dyn Store>, expected: Option<Revision>, record: Record) -> CasResult {
    let value = match serde_json::to_vec(&record) {
        Ok(value) => value,
        Err(_) => return CasResult::Unavailable,
    };
    match store.compare_and_set(RECORD_KEY, expected, value, CAS_TIMEOUT).await {
        CasOutcome::Done(revision) => CasResult::Done(revision),
        CasOutcome::Conflict(None) => CasResult::Conflict(None),
        CasOutcome::Conflict(Some(versioned)) => match parse(versioned) {
            Some(seen) => CasResult::Conflict(Some(seen)),
            None => CasResult::Unavailable,
        },
        CasOutcome::Unknown => CasResult::Unknown,
        CasOutcome::Unavailable(_) => CasResult::Unavailable,
    }
}

/// A linearizable read; `None` = no answer, or one that can not be understood.
pub async fn read(store: Arc<dyn Store>) -> Option<Option<(Revision, Record)>> {
    match store.read(RECORD_KEY, CAS_TIMEOUT).await {
        Ok(None) => Some(None),
        Ok(Some(versioned)) => parse(versioned).map(Some),
        Err(_) => None,
    }
}

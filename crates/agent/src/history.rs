//! The cluster's history: facts that every node adds to one bounded list in the store.

use mainstay_model::Event;
use mainstay_ports::clock::wall_now_ms;
use mainstay_ports::store::{CasOutcome, Store, StoreError, Versioned};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::{info, warn};

/// The key of the list.
pub const HISTORY_KEY: &str = "history";
/// How many events are kept; older ones go. At about 400 bytes each this stays within the store's limit for a value.
const EVENTS_MAX: usize = 400;
/// How many events wait while the store is away; the oldest of these are logged and dropped first.
const WAITING_MAX: usize = 200;
const TIMEOUT: Duration = Duration::from_secs(2);

/// Writes events to the log at once, and to the store as soon as it answers, in batches.
pub async fn keep(store: Arc<dyn Store>, mut events: mpsc::Receiver<Event>) {
    let mut waiting: Vec<Event> = Vec::new();
    loop {
        let pause = if waiting.is_empty() { Duration::from_secs(3600) } else { Duration::from_millis(300) };
        tokio::select! {
            event = events.recv() => {
                let Some(mut event) = event else { return };
                event.wall_ms = wall_now_ms();
                info!(kind = %event.kind, term = event.term.0, text = %event.text, "event");
                waiting.push(event);
                if waiting.len() > WAITING_MAX {
                    waiting.remove(0);
                }
            }
            () = tokio::time::sleep(pause) => {}
        }
        if events.is_empty() && !waiting.is_empty() && append(&*store, &waiting).await {
            waiting.clear();
        }
    }
}

async fn append(store: &dyn Store, new: &[Event]) -> bool {
    let mut held = store.watch(HISTORY_KEY).borrow().clone();
    // Each round loses only to another node's successful append, so a few rounds are enough; the rest waits for the next time.
    for _ in 0..5 {
        let mut list = parse(held.as_ref());
        // An append without reply may have happened: do not add twice.
        list.extend(new.iter().filter(|event| !list.contains(event)).cloned().collect::<Vec<_>>());
        let surplus = list.len().saturating_sub(EVENTS_MAX);
        list.drain(..surplus);
        let Ok(value) = serde_json::to_vec(&list) else { return true };
        match store.compare_and_set(HISTORY_KEY, held.as_ref().map(|at| at.revision), value, TIMEOUT).await {
            CasOutcome::Done(_) => return true,
            CasOutcome::Conflict(seen) => held = seen,
            CasOutcome::Unknown | CasOutcome::Unavailable(_) => return false,
        }
    }
    warn!("the history was too busy to add to; trying again");
    false
}

fn parse(held: Option<&Versioned>) -> Vec<Event> {
    held.and_then(|versioned| serde_json::from_slice(&versioned.value).ok()).unwrap_or_default()
}

/// The history, newest last.
///
/// # Errors
/// When the store does not answer and this member knows nothing of it.
pub async fn read(store: &dyn Store) -> Result<Vec<Event>, StoreError> {
    match store.read(HISTORY_KEY, TIMEOUT).await {
        Ok(held) => Ok(parse(held.as_ref())),
        Err(error) => {
            let known = store.watch(HISTORY_KEY).borrow().clone();
            known.map(|held| parse(Some(&held))).ok_or(error)
        }
    }
}

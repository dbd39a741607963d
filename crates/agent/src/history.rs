//! The cluster's history: facts that every node adds to one bounded list in the store.

use mainstay_model::Event;
use mainstay_ports::clock::wall_now_ms;
use mainstay_ports::store::{CasOutcome, Store, StoreError, VALUE_BYTES_MAX, Versioned};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::{info, warn};

pub use mainstay_model::stored_spec::HISTORY_KEY;
/// How many events are kept; older ones go.
const EVENTS_MAX: usize = 400;
/// How much they may take together, as they are written; older ones go. A list beyond the store's limit could never be written again.
const BYTES_MAX: usize = VALUE_BYTES_MAX / 4 * 3;
/// An event's sentence is cut here, in bytes.
const TEXT_BYTES_MAX: usize = 8 * 1024;
/// How many events wait while the store is away; the oldest of these are logged and dropped first.
const WAITING_MAX: usize = 200;
const TIMEOUT: Duration = Duration::from_secs(2);
/// How long a reader waits for the store before it gets what this member knows: well below the patience of whoever asks its agent, since
/// the history is asked for on days when the store has no majority.
const READ: Duration = Duration::from_millis(600);

/// An event with its number in the cluster's history: it rises for ever, also when older events have gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbered {
    /// The number; 0 in a list that an agent of an earlier format wrote, until it is numbered.
    #[serde(default)]
    pub sequence: u64,
    /// The event. Its fields stand beside the number, so that agents of the earlier format read the list too.
    #[serde(flatten)]
    pub event: Event,
}

/// Writes events to the log at once, and to the store as soon as it answers, in batches.
pub async fn keep(store: Arc<dyn Store>, mut events: mpsc::Receiver<Event>) {
    let mut waiting: Vec<Event> = Vec::new();
    let mut highest = 0;
    loop {
        let pause = if waiting.is_empty() { Duration::from_secs(3600) } else { Duration::from_millis(300) };
        tokio::select! {
            event = events.recv() => {
                let Some(mut event) = event else { return };
                if event.change.is_some() && mainstay_ports::sabotage::on("silent-history") {
                    continue;
                }
                if event.wall_ms == 0 {
                    event.wall_ms = wall_now_ms();
                }
                event.text.truncate(event.text.floor_char_boundary(TEXT_BYTES_MAX));
                info!(kind = %event.kind, term = event.term.0, text = %event.text, "event");
                waiting.push(event);
                if waiting.len() > WAITING_MAX {
                    waiting.remove(0);
                }
            }
            () = tokio::time::sleep(pause) => {}
        }
        if events.is_empty() && !waiting.is_empty() && append(&*store, &waiting, &mut highest).await {
            waiting.clear();
        }
    }
}

/// `highest`: the highest number that this agent has seen, in case an agent of the earlier format wrote the list without numbers.
async fn append(store: &dyn Store, new: &[Event], highest: &mut u64) -> bool {
    let mut held = store.watch(HISTORY_KEY).borrow().clone();
    // Each round loses only to another node's successful append, so a few rounds are enough; the rest waits for the next time.
    for _ in 0..5 {
        let list = with_new(parse(held.as_ref()), new, *highest);
        *highest = list.last().map_or(*highest, |last| last.sequence.max(*highest));
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

/// The list with the new events, numbered and cut.
fn with_new(mut list: Vec<Numbered>, new: &[Event], highest: u64) -> Vec<Numbered> {
    for event in new {
        // An append without reply may have happened: do not add twice.
        if !list.iter().any(|old| old.event == *event) {
            list.push(Numbered { sequence: 0, event: event.clone() });
        }
    }
    let mut last = if list.iter().any(|numbered| numbered.sequence > 0) { 0 } else { highest };
    for numbered in &mut list {
        if numbered.sequence <= last {
            numbered.sequence = last + 1;
        }
        last = numbered.sequence;
    }
    let mut bytes = 0;
    let fits = |numbered: &&Numbered| {
        bytes += serde_json::to_vec(numbered).map_or(0, |text| text.len() + 1);
        bytes <= BYTES_MAX
    };
    let kept = list.iter().rev().take(EVENTS_MAX).take_while(fits).count();
    list.drain(..list.len() - kept);
    list
}

fn parse(held: Option<&Versioned>) -> Vec<Numbered> {
    held.and_then(|versioned| serde_json::from_slice(&versioned.value).ok()).unwrap_or_default()
}

/// The history, newest last.
///
/// # Errors
/// When the store does not answer and this member knows nothing of it.
pub async fn read(store: &dyn Store) -> Result<Vec<Numbered>, StoreError> {
    let list = match store.read(HISTORY_KEY, READ).await {
        Ok(held) => parse(held.as_ref()),
        Err(error) => {
            let known = store.watch(HISTORY_KEY).borrow().clone();
            known.map(|held| parse(Some(&held))).ok_or(error)?
        }
    };
    // A list of the earlier format shows the numbers that it will get.
    Ok(with_new(list, &[], 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_model::{NodeId, Term};

    fn event(wall_ms: u64) -> Event {
        Event {
            node: NodeId::new("db1").unwrap(),
            wall_ms,
            term: Term(1),
            kind: "primary-opened".to_owned(),
            text: format!("at {wall_ms}"),
            change: None,
            lost: None,
        }
    }

    fn numbers(list: &[Numbered]) -> Vec<u64> {
        list.iter().map(|numbered| numbered.sequence).collect()
    }

    /// Without a majority: every read runs into its time-out.
    struct Mute(std::sync::Mutex<Duration>, tokio::sync::watch::Sender<Option<Versioned>>);

    #[async_trait::async_trait]
    impl Store for Mute {
        async fn read(&self, _: &str, timeout: Duration) -> Result<Option<Versioned>, StoreError> {
            *self.0.lock().unwrap() = timeout;
            Err(StoreError::Unavailable("no leader".to_owned()))
        }

        async fn compare_and_set(
            &self,
            _: &str,
            _: Option<mainstay_model::Revision>,
            _: Vec<u8>,
            _: Duration,
        ) -> CasOutcome {
            CasOutcome::Unknown
        }

        fn watch(&self, _: &str) -> tokio::sync::watch::Receiver<Option<Versioned>> {
            self.1.subscribe()
        }
    }

    #[tokio::test]
    async fn without_a_majority_what_is_known_is_told_before_the_asker_gives_up() {
        let value = serde_json::to_vec(&[event(1)]).unwrap();
        let known = Versioned { revision: mainstay_model::Revision(7), value };
        let store = Mute(std::sync::Mutex::default(), tokio::sync::watch::Sender::new(Some(known)));
        assert_eq!(numbers(&read(&store).await.unwrap()), [1]);
        // `mainstay history` waits 1500 ms for an agent, its connection included.
        assert!(*store.0.lock().unwrap() < Duration::from_secs(1), "{:?}", store.0);
    }

    #[test]
    fn numbers_rise_for_ever() {
        let mut list = Vec::new();
        for at in 0..1000 {
            list = with_new(list, &[event(at), event(at)], 0);
        }
        assert_eq!(list.len(), EVENTS_MAX);
        assert_eq!((list.first().unwrap().sequence, list.last().unwrap().sequence), (601, 1000));
    }

    #[test]
    fn long_events_never_make_a_list_that_the_store_does_not_take() {
        let mut list = Vec::new();
        for at in 0..200 {
            let long = Event { text: "x".repeat(TEXT_BYTES_MAX), ..event(at) };
            list = with_new(list, &[long], 0);
        }
        assert!(serde_json::to_vec(&list).unwrap().len() <= VALUE_BYTES_MAX);
        assert!(list.len() > 20, "{} events are kept", list.len());
        assert_eq!(list.last().unwrap().sequence, 200, "the newest is among them");
    }

    #[test]
    fn the_earlier_format_is_read_and_reads_ours() {
        let old = serde_json::to_vec(&[event(1), event(2)]).unwrap();
        let list: Vec<Numbered> = serde_json::from_slice(&old).unwrap();
        let list = with_new(list, &[event(3)], 0);
        assert_eq!(numbers(&list), [1, 2, 3]);
        let ours = serde_json::to_vec(&list).unwrap();
        let read: Vec<Event> = serde_json::from_slice(&ours).unwrap();
        assert_eq!(read, [event(1), event(2), event(3)]);
        // Such an agent wrote the list back without numbers: they go on from the highest that was seen.
        let bare = serde_json::from_slice(&serde_json::to_vec(&read).unwrap()).unwrap();
        assert_eq!(numbers(&with_new(bare, &[event(4)], 3)), [4, 5, 6, 7]);
        // It added one at the end of a numbered list.
        let mut mixed = list;
        mixed.push(Numbered { sequence: 0, event: event(4) });
        assert_eq!(numbers(&with_new(mixed, &[], 0)), [1, 2, 3, 4]);
    }
}

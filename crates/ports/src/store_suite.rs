//! The store's conformance suite: what every implementation of [`Store`] must pass. It panics at the first breach.
//!
//! Absent: crashes in the middle of things (each implementation kills its own processes), speed.

use crate::store::{CasOutcome, Store, VALUE_BYTES_MAX, Versioned};
use async_trait::async_trait;
use mainstay_model::Revision;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Long enough for an election under load.
const PATIENT: Duration = Duration::from_secs(20);
/// What a call may take beyond its time-out on a busy machine.
const SLACK: Duration = Duration::from_secs(5);

/// A store under test, with one door per member.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// The members, all of the same store.
    fn doors(&self) -> Vec<Arc<dyn Store>>;
    /// Stops all members and starts them from what they kept; false if there is nothing to restart.
    async fn restart(&mut self) -> bool;
    /// Makes every decision impossible; false if that cannot be done.
    async fn cut(&mut self) -> bool;
    /// Ends the cut.
    async fn heal(&mut self);
}

/// Runs all cases. The store must be up and its keys `suite-*` unused.
pub async fn run(fixture: &mut dyn Fixture) {
    compare_and_set_compares(&fixture.doors()).await;
    a_read_shows_what_was_done_elsewhere(&fixture.doors()).await;
    one_of_many_equal_writers_wins(&fixture.doors()).await;
    exactly_the_successes_show(&fixture.doors(), "suite-count", 12, 15).await;
    a_watch_never_goes_back(&fixture.doors()).await;
    a_new_watch_shows_the_present_value(&fixture.doors()).await;
    the_value_size_is_limited(&fixture.doors()).await;
    revisions_rise_over_a_restart(fixture).await;
    calls_end_in_time_without_a_quorum(fixture).await;
}

/// Writes until it is done; for tests that are about something else.
///
/// # Panics
/// When it does not succeed in 20 s, or another writer interferes.
pub async fn put(store: &dyn Store, key: &str, value: &[u8]) -> Revision {
    let end = Instant::now() + PATIENT;
    loop {
        let Ok(present) = store.read(key, PATIENT).await else { continue };
        if present.as_ref().is_some_and(|present| present.value == value) {
            return present.map(|present| present.revision).unwrap_or_default();
        }
        let expected = present.map(|present| present.revision);
        if let CasOutcome::Done(revision) = store.compare_and_set(key, expected, value.to_vec(), PATIENT).await {
            return revision;
        }
        assert!(Instant::now() < end, "no write of {key} succeeded in {PATIENT:?}");
    }
}

async fn done(store: &dyn Store, key: &str, expected: Option<Revision>, value: &[u8]) -> Revision {
    match store.compare_and_set(key, expected, value.to_vec(), PATIENT).await {
        CasOutcome::Done(revision) => revision,
        other => panic!("a write of {key} at {expected:?} must succeed, but: {other:?}"),
    }
}

async fn compare_and_set_compares(doors: &[Arc<dyn Store>]) {
    let store = doors[0].as_ref();
    let read = store.read("suite-cas", PATIENT).await;
    assert_eq!(read, Ok(None), "a key that was never written does not exist");
    let missing = store.compare_and_set("suite-cas", Some(Revision(1)), b"x".to_vec(), PATIENT).await;
    assert_eq!(missing, CasOutcome::Conflict(None), "a key that does not exist is at no revision");
    let first = done(store, "suite-cas", None, b"one").await;
    let present = Versioned { revision: first, value: b"one".to_vec() };
    let again = store.compare_and_set("suite-cas", None, b"x".to_vec(), PATIENT).await;
    assert_eq!(again, CasOutcome::Conflict(Some(present.clone())), "a key is created once");
    let wrong = store.compare_and_set("suite-cas", Some(Revision(first.0 + 1_000_000)), b"x".to_vec(), PATIENT).await;
    assert_eq!(wrong, CasOutcome::Conflict(Some(present.clone())), "a revision of the future is not the present one");
    assert_eq!(store.read("suite-cas", PATIENT).await, Ok(Some(present)), "what failed left nothing behind");
    let second = done(store, "suite-cas", Some(first), b"two").await;
    assert!(second > first, "revisions rise");
    let stale = store.compare_and_set("suite-cas", Some(first), b"x".to_vec(), PATIENT).await;
    assert!(matches!(stale, CasOutcome::Conflict(Some(_))), "an old revision is refused, also after success at it");
    let other = done(store, "suite-cas-other", None, b"").await;
    assert!(other != first && other != second, "each write has a revision of its own");
}

async fn a_read_shows_what_was_done_elsewhere(doors: &[Arc<dyn Store>]) {
    let mut revision = None;
    for round in 0..20_u8 {
        let writer = doors[usize::from(round) % doors.len()].as_ref();
        let written = done(writer, "suite-read", revision, &[round]).await;
        revision = Some(written);
        for door in doors {
            let read = door.read("suite-read", PATIENT).await;
            let expected = Versioned { revision: written, value: vec![round] };
            assert_eq!(read, Ok(Some(expected)), "a read after a write shows it, through every door");
        }
    }
}

async fn one_of_many_equal_writers_wins(doors: &[Arc<dyn Store>]) {
    for round in 0..5 {
        let key = format!("suite-race-{round}");
        let tasks: Vec<_> = (0..24_u8)
            .map(|writer| {
                let (door, key) = (Arc::clone(&doors[usize::from(writer) % doors.len()]), key.clone());
                tokio::spawn(async move { (writer, door.compare_and_set(&key, None, vec![writer], PATIENT).await) })
            })
            .collect();
        let mut winners = Vec::new();
        for task in tasks {
            match task.await {
                Ok((writer, CasOutcome::Done(_))) => winners.push(writer),
                Ok((_, CasOutcome::Conflict(Some(_)))) => {}
                other => panic!("each of the others must see the winner, but: {other:?}"),
            }
        }
        assert_eq!(winners.len(), 1, "one creation of a key succeeds");
        let read = doors[0].read(&key, PATIENT).await;
        assert_eq!(read.ok().flatten().map(|versioned| versioned.value), Some(winners), "the winner's value stands");
    }
}

/// How a crowd of counting writers fared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Additions that were done.
    pub done: u64,
    /// Additions whose outcome nobody knows.
    pub unknown: u64,
}

/// One writer that adds one to a counter `times` times, whatever happens; each addition is tried again only after a conflict, or
/// when it is certain that it did not happen.
pub async fn add(store: &dyn Store, key: &str, times: u64, patience: Duration) -> Count {
    let mut count = Count::default();
    let mut present = None;
    while count.done + count.unknown < times {
        let value = number(present.as_ref()) + 1;
        let expected = present.as_ref().map(|present: &Versioned| present.revision);
        let bytes = value.to_string().into_bytes();
        match store.compare_and_set(key, expected, bytes.clone(), patience).await {
            CasOutcome::Done(revision) => {
                count.done += 1;
                present = Some(Versioned { revision, value: bytes });
            }
            CasOutcome::Conflict(other) => present = other,
            CasOutcome::Unavailable(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            CasOutcome::Unknown => {
                count.unknown += 1;
                while let Err(_no_quorum) = store.read(key, patience).await.map(|read| present = read) {}
            }
        }
    }
    count
}

/// A counter's value; 0 if it does not exist.
#[must_use]
pub fn number(versioned: Option<&Versioned>) -> u64 {
    let text = versioned.map(|versioned| String::from_utf8_lossy(&versioned.value).into_owned());
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Many writers add to one counter: it shows each success once, and of the unknown ones at most each once.
///
/// # Panics
/// When it does not.
pub async fn exactly_the_successes_show(doors: &[Arc<dyn Store>], key: &str, writers: usize, times: u64) {
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let (door, key) = (Arc::clone(&doors[writer % doors.len()]), key.to_owned());
            tokio::spawn(async move { add(door.as_ref(), &key, times, PATIENT).await })
        })
        .collect();
    let mut total = Count::default();
    for task in tasks {
        let Ok(count) = task.await else { panic!("a writer panicked") };
        total.done += count.done;
        total.unknown += count.unknown;
    }
    let Ok(read) = doors[0].read(key, PATIENT).await else { panic!("the counter cannot be read") };
    let shown = number(read.as_ref());
    assert!(shown >= total.done, "{} additions succeeded and only {shown} show", total.done);
    assert!(shown <= total.done + total.unknown, "{shown} additions show, but {total:?}");
    assert!(total.done > 0, "no addition succeeded, so nothing was tested");
}

async fn a_watch_never_goes_back(doors: &[Arc<dyn Store>]) {
    let watchers: Vec<_> = doors
        .iter()
        .map(|door| {
            let mut watch = door.watch("suite-watch");
            tokio::spawn(async move {
                let (mut last, mut seen) = (None, 0);
                loop {
                    let shown = watch.borrow_and_update().clone();
                    let revision = shown.as_ref().map(|shown| shown.revision);
                    assert!(revision >= last, "a watch went back from {last:?} to {revision:?}");
                    seen += u32::from(revision > last);
                    last = revision;
                    if number(shown.as_ref()) == 60 {
                        return seen;
                    }
                    assert!(watch.changed().await.is_ok(), "a watch ended");
                }
            })
        })
        .collect();
    let mut revision = None;
    for value in 1..=60 {
        let door = doors[value % doors.len()].as_ref();
        revision = Some(done(door, "suite-watch", revision, value.to_string().as_bytes()).await);
    }
    for watcher in watchers {
        let seen = tokio::time::timeout(PATIENT, watcher).await;
        assert!(matches!(seen, Ok(Ok(1..))), "every watch must see the last value: {seen:?}");
    }
}

async fn a_new_watch_shows_the_present_value(doors: &[Arc<dyn Store>]) {
    done(doors[0].as_ref(), "suite-present", None, b"here").await;
    for door in doors {
        let mut first = door.watch("suite-present");
        let shown = tokio::time::timeout(PATIENT, first.wait_for(Option::is_some)).await;
        assert!(matches!(shown, Ok(Ok(_))), "a watch must show the value in the end");
        // This member knows it now: another watch needs no change to show it.
        let second = door.watch("suite-present").borrow().clone();
        assert_eq!(second.map(|shown| shown.value), Some(b"here".to_vec()));
    }
}

async fn the_value_size_is_limited(doors: &[Arc<dyn Store>]) {
    let store = doors[doors.len() - 1].as_ref();
    let revision = done(store, "suite-size", None, &vec![7; VALUE_BYTES_MAX]).await;
    let outcome = store.compare_and_set("suite-size", Some(revision), vec![8; VALUE_BYTES_MAX + 1], PATIENT).await;
    assert!(matches!(outcome, CasOutcome::Unavailable(_)), "a value that is too long is refused for good: {outcome:?}");
    for door in doors {
        let read = door.read("suite-size", PATIENT).await.ok().flatten();
        let read = read.map(|versioned| (versioned.revision, versioned.value.len()));
        assert_eq!(read, Some((revision, VALUE_BYTES_MAX)), "the longest value comes back, through every door");
    }
    done(store, "suite-size", Some(revision), b"").await;
}

async fn revisions_rise_over_a_restart(fixture: &mut dyn Fixture) {
    let before = put(fixture.doors()[0].as_ref(), "suite-restart", b"before").await;
    let mut latest = put(fixture.doors()[0].as_ref(), "suite-restart-other", b"latest").await;
    for _ in 0..3 {
        if !fixture.restart().await {
            return;
        }
        let doors = fixture.doors();
        for door in &doors {
            let kept = Versioned { revision: before, value: b"before".to_vec() };
            assert_eq!(door.read("suite-restart", PATIENT).await, Ok(Some(kept)), "what was done survives a restart");
        }
        let after = done(doors[doors.len() - 1].as_ref(), "suite-restart-other", Some(latest), b"after").await;
        assert!(after > latest, "revisions rise over a restart");
        latest = after;
    }
}

async fn calls_end_in_time_without_a_quorum(fixture: &mut dyn Fixture) {
    let doors = fixture.doors();
    let before = put(doors[0].as_ref(), "suite-cut", b"0").await;
    if !fixture.cut().await {
        return;
    }
    let (mut impossible, mut possible) = (Vec::new(), vec![b"0".to_vec()]);
    for limit in [0, 50, 400, 1500].map(Duration::from_millis) {
        for (number, door) in doors.iter().enumerate() {
            let value = format!("{number} {limit:?}").into_bytes();
            let start = Instant::now();
            let outcome = door.compare_and_set("suite-cut", Some(before), value.clone(), limit).await;
            assert!(start.elapsed() < limit + SLACK, "a write with {limit:?} took {:?}", start.elapsed());
            match outcome {
                CasOutcome::Unknown => possible.push(value),
                CasOutcome::Unavailable(_) => impossible.push(value),
                other => panic!("nothing can be decided without a quorum, but: {other:?}"),
            }
            let start = Instant::now();
            let read = door.read("suite-cut", limit).await;
            assert!(read.is_err(), "nothing can be known without a quorum, but: {read:?}");
            assert!(start.elapsed() < limit + SLACK, "a read with {limit:?} took {:?}", start.elapsed());
        }
    }
    fixture.heal().await;
    // Whatever is still under way gets time to arrive.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let Ok(Some(read)) = doors[0].read("suite-cut", PATIENT).await else { panic!("no read after the cut was healed") };
    assert!(!impossible.contains(&read.value), "a write that was unavailable took effect");
    assert!(possible.contains(&read.value), "a value that nobody wrote");
    put(doors[0].as_ref(), "suite-cut", b"healed").await;
}

//! A standby that runs and can not tell where its log ends: for how long, and when its copy is given up for that. Such a copy can neither
//! follow (is its log a prefix?) nor answer a recruit, and trying again for ever would leave its node out. Absent: reading the log (the
//! engine), and the clone.

use crate::mind::Mind;
use mainstay_model::{Lsn, Moment, OrderFailure, ServerState, Span};

/// So long the end of the log must not have been found, nothing replayed meanwhile.
const UNREAD_MS: u64 = 10_000;
/// And that by so many attempts at least: one that hangs says little about the log.
const ATTEMPTS: u32 = 3;

/// The end of the log was looked for and not found.
#[derive(Clone, Debug)]
pub(crate) struct Unread {
    since: Moment,
    last: Moment,
    attempts: u32,
    /// Replay stood here.
    replay: Option<Lsn>,
    why: String,
}

impl Mind {
    /// An attempt to read the end of the log did not succeed.
    pub(crate) fn note_unread(&mut self, failure: Option<&OrderFailure>) {
        let Some(OrderFailure::NotYet(why) | OrderFailure::Broken(why) | OrderFailure::Error(why)) = failure else {
            return;
        };
        let seen = self.server.seen.as_ref();
        let replay = seen.and_then(|seen| seen.replay);
        // A log that is still being read has an end that is not reached yet; a server or a disk that stands still says nothing about it.
        let well = seen.is_some_and(|seen| seen.silent == 0 && seen.state == ServerState::Standby);
        let now = self.now;
        let goes_on = |before: &Unread| well && before.replay == replay && now.since(before.last).0 < UNREAD_MS;
        let fresh = Unread { since: now, last: now, attempts: 0, replay, why: String::new() };
        let before = self.server.unread.take().filter(goes_on).unwrap_or(fresh);
        self.server.unread = Some(Unread { last: now, attempts: before.attempts + 1, why: why.clone(), ..before });
    }

    /// A copy whose log's end can not be told is given up, unless it could be the last one. Says whether that was done.
    pub(crate) fn plan_unread(&mut self) -> bool {
        let Some(Unread { since, attempts, why, .. }) = self.server.unread.clone() else { return false };
        if self.config.paused || attempts < ATTEMPTS || self.now.since(since).0 < UNREAD_MS {
            return false;
        }
        if let Err(kept) = self.useless_copy_spare(true) {
            self.reason("log-end", format!("it can not be told where this log ends ({why}); the copy is kept: {kept}"));
            return false;
        }
        let waited = self.now.since(since);
        self.give_up_copy(&format!("it could not be told for {waited} where its log ends ({why})"));
        self.server.retry_at = self.now;
        if !self.plan_clone() {
            self.until(self.now + Span(UNREAD_MS));
        }
        true
    }
}

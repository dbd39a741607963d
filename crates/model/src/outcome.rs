//! What became of a commit whose answer was lost with its server: which run of which server it was given to, and whether the log that runs
//! now shares that run's log up to a position behind which the commit's record lies (docs/adr/0054).
//!
//! A transaction's number alone proves nothing: a log that lost its tail hands the same numbers out again. PURE.

use crate::{Lineage, Lsn, Timeline};
use serde::{Deserialize, Serialize};

/// The store's key of [`Runs`].
pub const RUNS_KEY: &str = "runs";
/// Runs that are kept, newest last. A commit of an older one is not looked up.
const RUNS_MAX: usize = 32;

/// When a server process started, microseconds since 1970 by its host's clock, as the server itself says: tells its lives on one timeline apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Started(pub i64);

/// A life of a server as a primary. Two of them never have both in common: each promotion has a timeline of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunId {
    /// The timeline it writes.
    pub timeline: Timeline,
    /// The process.
    pub started: Started,
}

/// An entry of [`Runs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Run {
    /// A primary is about to be started again in place, or was and has not said more: from where its log is its own is not known.
    Begun,
    /// This one was open to clients.
    Open {
        /// Which one.
        id: RunId,
        /// For one that was started in place: where the first record of its own begins, but for one that may stand before it at the beginning of
        /// a page, in the place of a record that was torn there. `None`: not known, or it began by a promotion, of which the lineage tells.
        from: Option<Lsn>,
    },
}

/// The lives of the cluster's primaries, newest last, as the store keeps them. An entry [`Run::Begun`] is durable before any primary is
/// started in place, so that none is missing between two that are there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Runs(pub Vec<Run>);

/// What a proxy asks the primary's agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitQuestion {
    /// The run that had the transaction.
    pub run: RunId,
    /// A record of the transaction ends here, and its commit's record begins no earlier.
    pub at: Lsn,
    /// The transaction's number, with its epoch (`xid8`).
    pub number: u64,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CommitAnswer {
    /// It is committed, and as many copies hold it as the cluster's durability asks for.
    Committed,
    /// It is not, and never will be.
    Aborted,
    /// Not known yet: ask again.
    Later(String),
    /// It can not be proven.
    Unknown(String),
}

/// Does the log that runs now hold a run's log up to a position?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shared {
    /// Yes: a number that was given out before it means the same transaction in both.
    Yes,
    /// No: nothing that was written behind it is there.
    No,
    /// The run that answers is not noted yet: soon it can be told.
    NotYet,
    /// It can not be told, and why.
    Unknown(&'static str),
}

impl Runs {
    /// A primary is about to be started in place.
    pub fn begin(&mut self) {
        self.add(Run::Begun);
    }

    /// This one is open to clients. False: that was known.
    pub fn open(&mut self, id: RunId, from: Option<Lsn>) -> bool {
        if self.0.iter().any(|run| matches!(run, Run::Open { id: known, .. } if *known == id)) {
            return false;
        }
        // What was begun since an opening on the same timeline was begun by this run's own agent; of another timeline it stays: nobody may take
        // that one's log for unbroken.
        let begun = self.0.iter().rev().take_while(|run| **run == Run::Begun).count();
        let before = self.0.len() - begun;
        let again = before.checked_sub(1).and_then(|last| self.0.get(last));
        let again = matches!(again, Some(Run::Open { id: last, .. }) if last.timeline == id.timeline);
        // Begun twice, it says from where it went on after the last time only.
        let from = from.filter(|_| again && begun == 1);
        if again {
            self.0.truncate(before);
        }
        self.add(Run::Open { id, from });
        true
    }

    fn add(&mut self, run: Run) {
        self.0.push(run);
        let more = self.0.len().saturating_sub(RUNS_MAX);
        self.0.drain(..more);
    }

    /// Does the log of `now`, with this past, hold the log of `run` up to `at`? Read after it was known that `now` is the primary.
    #[must_use]
    pub fn shared(&self, run: RunId, at: Lsn, now: RunId, past: &Lineage) -> Shared {
        if run == now {
            return Shared::Yes;
        }
        let is = |known: &Run| matches!(known, Run::Open { id, .. } if *id == run);
        let Some(place) = self.0.iter().position(is) else { return Shared::Unknown("its server's run is not noted") };
        // Where the log left what that run wrote, first of all. On its own timeline by starts in place, from it by a promotion.
        let mut left = Lsn(u64::MAX);
        if run.timeline != now.timeline {
            match past.0.iter().find(|fork| fork.timeline == run.timeline) {
                Some(fork) => left = fork.lsn,
                None => return Shared::Unknown("the log that runs now does not come from its server's"),
            }
        }
        let noted = self.0.iter().any(|known| matches!(known, Run::Open { id, .. } if *id == now));
        for later in &self.0[place + 1..] {
            match later {
                Run::Begun if !noted => return Shared::NotYet,
                Run::Begun => return Shared::Unknown("a server was started again since, and has not said from where"),
                Run::Open { id, from } if id.timeline == run.timeline => match from {
                    Some(from) if may_be_torn(at, *from) => {
                        return Shared::Unknown("its record lies where the log of its server was torn");
                    }
                    Some(from) => left = left.min(*from),
                    None => return Shared::Unknown("its server was started again since, from an unknown position"),
                },
                Run::Open { .. } => {}
            }
        }
        if left >= at { Shared::Yes } else { Shared::No }
    }
}

/// A log that ends in the middle of a record which goes on in the next page is gone on with by a record that says so, at the beginning of that
/// page (PostgreSQL, `XLOG_OVERWRITE_CONTRECORD`), and only then the recovery's checkpoint comes: what ends between is not known to be there.
fn may_be_torn(at: Lsn, from: Lsn) -> bool {
    const PAGE: u64 = 8192;
    /// A page's long head, that record, and what aligns them, generously.
    const BETWEEN: u64 = 192;
    at <= from && from.0 - at.0 < BETWEEN && at.0 % PAGE < BETWEEN
}

#[cfg(test)]
#[path = "outcome_tests.rs"]
mod tests;

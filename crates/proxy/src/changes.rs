//! What clients notice of a change of the primary, planned or not: who was held and for how long, and which errors they got. One report
//! for each, when it is over. Absent: what happened in the cluster, which its own history tells.

use crate::table::{Held, View};
use mainstay_model::{Moment, Span};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// So long after the route is open again a change is over, whoever still waits.
const OVER: Span = Span::seconds(5);
/// And no sooner than this, so that what is let go is counted.
const AFTER: Span = Span(200);
/// A server's death is felt by clients before the route tells of it: errors of so long before count.
const BEFORE: Span = Span::seconds(2);
/// Errors that are remembered for that.
const RECENT_MAX: usize = 1024;
/// Codes that are told apart.
const CODES_MAX: usize = 32;
/// The code of connections that were cut without a word, since this proxy does not look into them.
pub(crate) const CUT: &str = "cut";

/// One change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The epoch before.
    pub from_epoch: u64,
    /// The epoch after.
    pub epoch: u64,
    /// The primary's agent said beforehand that it was near.
    pub planned: bool,
    /// For how long new work was not let through, in milliseconds.
    pub closed_ms: u64,
    /// Clients that were held: those that waited when it began, and those that began to wait while it lasted, each once.
    pub held: u64,
    /// The longest that one of them was held, in microseconds; what it had waited before the change began is not counted.
    pub longest_hold_us: u64,
    /// Errors that clients got from the proxy, by SQLSTATE; `cut`: connections that were cut.
    pub errors: BTreeMap<String, u64>,
    /// Of those, the ones that said that the outcome of a commit is not known.
    pub unknown_commits: u64,
}

impl Change {
    fn error(&mut self, code: &str) {
        self.unknown_commits += u64::from(code == "08007");
        if self.errors.len() < CODES_MAX || self.errors.contains_key(code) {
            *self.errors.entry(code.to_owned()).or_default() += 1;
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    begun: Option<Moment>,
    opened: Option<Moment>,
    now: Change,
    last: Option<Change>,
    count: u64,
    epoch: u64,
    was_open: bool,
    recent: VecDeque<(Moment, &'static str)>,
}

/// The change under way, and the last one.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// The number of the change under way; 0: there is none.
    under_way: AtomicU64,
    inner: Mutex<Inner>,
}

impl Changes {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client begins to be held. `counted` is the client's own: the change in which it was counted last.
    pub(crate) fn held(&self, counted: &mut u64) {
        let number = self.under_way.load(Ordering::Relaxed);
        if number != 0 && std::mem::replace(counted, number) != number {
            self.lock().now.held += 1;
        }
    }

    /// One that was held for so long goes on. It is counted already: when it began to wait, or with those that waited when the change began.
    pub(crate) fn let_go(&self, us: u64, now: Moment, counted: &mut u64) {
        let number = self.under_way.load(Ordering::Relaxed);
        if number == 0 {
            return;
        }
        *counted = number;
        let mut inner = self.lock();
        if let Some(begun) = inner.begun {
            let here = us.min(now.since(begun).0.saturating_mul(1000));
            inner.now.longest_hold_us = inner.now.longest_hold_us.max(here);
        }
    }

    /// A client gets an error.
    pub(crate) fn error(&self, code: &'static str, now: Moment) {
        let mut inner = self.lock();
        if inner.begun.is_some() {
            inner.now.error(code);
        } else {
            if inner.recent.len() >= RECENT_MAX {
                inner.recent.pop_front();
            }
            inner.recent.push_back((now, code));
        }
    }

    /// The route as it is now, looked at again and again; `waiting` clients are held. A report, when a change is over.
    pub(crate) fn look(&self, view: &View, waiting: u64, now: Moment) -> Option<Change> {
        let mut inner = self.lock();
        let open = view.write.is_some();
        let changed = open && view.epoch.0 != inner.epoch;
        if inner.begun.is_none() && inner.was_open && (!open || changed) {
            inner.begun = Some(now);
            inner.now = Change { from_epoch: inner.epoch, held: waiting, ..Change::default() };
            for (at, code) in std::mem::take(&mut inner.recent) {
                if now.since(at) <= BEFORE {
                    inner.now.error(code);
                }
            }
            self.under_way.store(inner.count + 1, Ordering::Relaxed);
        }
        inner.now.planned |= view.held == Held::Draining;
        inner.was_open |= open;
        if open {
            inner.epoch = view.epoch.0;
        }
        let begun = inner.begun?;
        if !open {
            inner.opened = None;
            return None;
        }
        let opened = *inner.opened.get_or_insert(now);
        let since = now.since(opened);
        if (waiting > 0 || since < AFTER) && since < OVER {
            return None;
        }
        self.under_way.store(0, Ordering::Relaxed);
        (inner.begun, inner.opened) = (None, None);
        let mut change = std::mem::take(&mut inner.now);
        (change.epoch, change.closed_ms) = (view.epoch.0, opened.since(begun).0);
        inner.count += 1;
        inner.last = Some(change.clone());
        Some(change)
    }

    /// The last one that is over, and how many there were.
    pub(crate) fn last(&self) -> (u64, Option<Change>) {
        let inner = self.lock();
        (inner.count, inner.last.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{RouteTable, Target};
    use mainstay_model::{NodeId, Term};

    fn view(epoch: u64, held: Held) -> View {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        let target = Target { epoch: Term(epoch), node: NodeId::new("db1").unwrap(), address };
        let write = (held == Held::No).then_some(target);
        View { epoch: Term(epoch), write, held, ..RouteTable::new(0, Span(0)).view(Moment(1)) }
    }

    #[test]
    fn each_client_is_held_once_and_no_longer_than_the_change() {
        let changes = Changes::default();
        let look = |epoch, held, waiting, at| changes.look(&view(epoch, held), waiting, Moment(at));
        look(1, Held::No, 0, 2);
        // Two wait for a server already, one of them for long.
        let (mut old, mut new) = ([0, 0], 0);
        old.iter_mut().for_each(|counted| changes.held(counted));
        assert_eq!(look(1, Held::NoPrimary, 2, 10_000), None);
        changes.held(&mut new);
        assert_eq!(look(2, Held::No, 3, 10_300), None);
        old.iter_mut().for_each(|counted| changes.let_go(9_900_000, Moment(10_310), counted));
        changes.let_go(200_000, Moment(10_320), &mut new);
        // And each waits again for one of the few connections.
        for counted in old.iter_mut().chain([&mut new]) {
            changes.held(counted);
            changes.let_go(1_000, Moment(10_330), counted);
        }
        let report = look(2, Held::No, 0, 10_600).unwrap();
        assert_eq!((report.held, report.longest_hold_us), (3, 310_000));
        look(2, Held::Closed, 0, 20_000);
        changes.held(&mut new);
        let next = look(2, Held::No, 0, 20_100).or_else(|| look(2, Held::No, 0, 20_400)).unwrap();
        assert_eq!(next.held, 1, "another change counts anew");
    }

    #[test]
    fn a_change_is_reported_once_with_what_clients_noticed() {
        let changes = Changes::default();
        let look = |epoch, held, waiting, at| changes.look(&view(epoch, held), waiting, Moment(at));
        assert_eq!(look(0, Held::Silence, 0, 1), None, "the beginning is no change");
        assert_eq!(look(1, Held::No, 0, 2), None);
        let (mut before, mut first, mut second) = (0, 0, 0);
        changes.held(&mut before);
        changes.error("53300", Moment(3));
        assert_eq!(look(1, Held::Draining, 0, 10), None);
        changes.held(&mut first);
        changes.held(&mut second);
        changes.error("08007", Moment(11));
        assert_eq!(look(2, Held::NoPrimary, 2, 100), None);
        assert_eq!(look(2, Held::No, 2, 300), None);
        changes.let_go(290_000, Moment(300), &mut first);
        assert_eq!(look(2, Held::No, 0, 400), None, "those let go are counted");
        let report = look(2, Held::No, 0, 520).unwrap();
        let errors = BTreeMap::from([("08007".to_owned(), 1), ("53300".to_owned(), 1)]);
        let wanted = Change {
            from_epoch: 1,
            epoch: 2,
            planned: true,
            closed_ms: 290,
            held: 2,
            longest_hold_us: 290_000,
            errors,
            unknown_commits: 1,
        };
        assert_eq!(report, wanted);
        assert_eq!((look(2, Held::No, 0, 900), changes.last()), (None, (1, Some(wanted))));
        // Straight from one primary to the next; somebody waits for ever. What was felt just before belongs to it.
        changes.error("25006", Moment(5_000));
        changes.error("40001", Moment(9_000));
        assert_eq!(look(3, Held::No, 7, 10_000), None);
        let change = look(3, Held::No, 7, 10_000 + OVER.0).unwrap();
        assert_eq!(
            (change.epoch, change.planned, change.errors),
            (3, false, BTreeMap::from([("40001".to_owned(), 1)]))
        );
    }
}

//! What must hold, checked at every event that could break it: S1, S2', S3, S4, S5 and "what was visible stays". Knows the truth
//! of the whole virtual world; nothing in it reaches a decision.

use crate::event::Node;
use crate::server::{Entry, Process};
use crate::shape::Micros;
use crate::world::World;
use mainstay_model::record::ClaimState;
use mainstay_model::{Record, Term};
use std::collections::{BTreeMap, BTreeSet};

/// How late a guard may be and still counts as punctual, after it or its host stood still.
const GRACE: Micros = 25_000;
/// So long after a node heard of a rebuilt store its server may still be open.
const SUPERSEDED_GRACE: Micros = 400_000;

/// Within this time a kill that failed is given again.
const KILL_AGAIN: Micros = 2_000_000;

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which one: `S1`, `S3`, `L1` …
    pub rule: &'static str,
    /// When, in microseconds.
    pub at: Micros,
    /// What was seen.
    pub what: String,
}

/// A log that was opened to clients.
#[derive(Clone, Debug)]
pub struct Opened {
    /// In which term.
    pub term: Term,
    /// Where.
    pub node: Node,
    /// The ids of its records at that moment, rising.
    pub entries: Vec<u64>,
}

/// What clients were told and could see.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Acknowledged commits: id, and the highest term of which it is known that they must be in its log (the one that acknowledged it,
    /// or a later one that opened with it).
    pub acknowledged: BTreeMap<u64, Term>,
    /// Records that were visible at an opening, with the highest such term.
    pub visible: BTreeMap<u64, Term>,
    /// Every commit that was ever acknowledged, those whose loss was allowed included.
    pub told: BTreeSet<u64>,
    /// Terms whose claim may lose something: the mode was asynchronous, or an operator accepted it.
    pub lossy: BTreeSet<Term>,
    /// Terms of which a node reported that something may be lost.
    pub reported: BTreeSet<Term>,
    /// The opening of the highest term.
    pub newest: Option<Opened>,
    /// Who was primary of a term.
    pub primaries: BTreeMap<Term, Node>,
    /// When the last commit was acknowledged.
    pub last_ack: Micros,
}

fn has(entries: &[u64], id: u64) -> bool {
    entries.binary_search(&id).is_ok()
}

impl World {
    /// A rule is broken; the first time counts.
    pub(crate) fn violate(&mut self, rule: &'static str, what: String) {
        self.trace(None, || format!("VIOLATION {rule}: {what}"));
        if self.violation.is_none() {
            self.violation = Some(Violation { rule, at: self.now, what });
        }
    }

    /// Was there a claim between these terms that may lose something?
    pub(crate) fn forgiven(&self, from: Term, to: Term) -> bool {
        from < to
            && self
                .ledger
                .lossy
                .range((std::ops::Bound::Excluded(from), std::ops::Bound::Included(to)))
                .next()
                .is_some()
    }

    /// Has the store been rebuilt, and does this term belong to the lost one?
    pub(crate) fn orphaned(&self, term: Term) -> bool {
        u64::from(self.group) > term.incarnation()
    }

    /// Commits that this opening may lose: they must have been reported.
    fn forgive(&mut self, node: Node, term: Term, entries: &[u64]) {
        let gone = |of: &BTreeMap<u64, Term>| -> Vec<(u64, Term)> {
            let missing = of.iter().filter(|(id, by)| **by <= term && !has(entries, **id));
            missing.map(|(id, by)| (*id, *by)).filter(|(_, by)| self.forgiven(*by, term)).collect()
        };
        let (acknowledged, visible) = (gone(&self.ledger.acknowledged), gone(&self.ledger.visible));
        for (id, by) in acknowledged {
            self.ledger.acknowledged.remove(&id);
            self.counters.losses += 1;
            let told = self.ledger.reported.range((std::ops::Bound::Excluded(by), std::ops::Bound::Included(term)));
            if told.count() == 0 {
                let what = format!("n{node} opens in term {term} without commit {id} of term {by}, and nobody said so");
                self.violate("S6", what);
            }
        }
        for (id, _) in visible {
            self.ledger.visible.remove(&id);
        }
    }

    /// A server left recovery as primary of this term.
    pub(crate) fn primary_of_term(&mut self, node: Node, term: Term) {
        self.trace(Some(node), || format!("server is primary of term {term}"));
        let first = *self.ledger.primaries.entry(term).or_insert(node);
        if first != node {
            self.violate("S3", format!("n{first} and n{node} are both primary of term {term}"));
        }
    }

    /// Clients may enter.
    pub(crate) fn opened(&mut self, node: Node) {
        self.counters.openings += 1;
        let server = &self.nodes[node].server;
        let term = server.term;
        let entries: Vec<u64> = server.log.iter().filter(|entry| entry.client).map(|entry| entry.id).collect();
        self.trace(Some(node), || format!("OPENS in term {term} with {} commits", entries.len()));
        let open: Vec<Node> = (0..self.nodes.len()).filter(|other| *other != node && self.is_open(*other)).collect();
        if !open.is_empty() {
            self.counters.double_openings += 1;
        }
        if self.orphaned(term) {
            return;
        }
        for other in open {
            let theirs = self.nodes[other].server.term;
            if !self.orphaned(theirs)
                && self.forgiven(theirs, term)
                && (0..self.nodes.len()).all(|one| self.punctual(one))
            {
                let what = format!(
                    "n{node} opens in term {term}, which may lose commits, while n{other} is open in term {theirs}"
                );
                self.violate("S2", what);
            }
        }
        self.forgive(node, term, &entries);
        {
            let lost = |of: &BTreeMap<u64, Term>| {
                of.iter().find(|(id, by)| **by <= term && !has(&entries, **id)).map(|(id, by)| (*id, *by))
            };
            let acknowledged = lost(&self.ledger.acknowledged);
            let visible = lost(&self.ledger.visible);
            if let Some((id, by)) = acknowledged {
                let what = format!("n{node} opens in term {term} without commit {id}, acknowledged in term {by}");
                self.violate("S1", what);
            }
            if let Some((id, by)) = visible {
                self.violate("V", format!("n{node} opens in term {term} without record {id}, visible in term {by}"));
            }
        }
        for id in &entries {
            let seen = self.ledger.visible.entry(*id).or_insert(term);
            *seen = (*seen).max(term);
            if let Some(by) = self.ledger.acknowledged.get_mut(id) {
                *by = (*by).max(term);
            }
        }
        if self.ledger.newest.as_ref().is_none_or(|newest| newest.term <= term) {
            self.ledger.newest = Some(Opened { term, node, entries });
        }
    }

    /// Commits from `from` up to `upto` in this server's log are acknowledged.
    pub(crate) fn acknowledge(&mut self, node: Node, from: usize, upto: usize) {
        let server = &self.nodes[node].server;
        let term = server.term;
        let told: Vec<u64> = server.log[from..upto]
            .iter()
            .filter(|entry| entry.client && entry.term == term)
            .map(|entry| entry.id)
            .collect();
        self.check_lease(node, "acknowledges");
        let newer = self.ledger.newest.as_ref().filter(|newest| newest.term > term);
        let mut lost = None;
        if let Some(newest) = newer {
            self.counters.late_acks += told.len() as u64;
            lost = told.iter().find(|id| !has(&newest.entries, **id)).map(|id| (*id, newest.term));
        }
        if self.orphaned(term) {
            self.counters.orphans += told.len() as u64;
            return;
        }
        if let Some((id, newest)) = lost.filter(|(_, newest)| self.forgiven(term, *newest)) {
            // A loss that is allowed, of a commit that was acknowledged too late: only if some guard was not punctual.
            if (0..self.nodes.len()).all(|one| self.punctual(one)) {
                let what =
                    format!("n{node} of term {term} acknowledges commit {id} after term {newest} opened without it");
                self.violate("S2", what);
            }
            return;
        }
        if let Some((id, newest)) = lost {
            let what = format!(
                "n{node} of term {term} acknowledges commit {id}, which the log opened in term {newest} has not"
            );
            self.violate("S1", what);
        }
        for id in told {
            self.counters.acknowledged += 1;
            self.ledger.last_ack = self.now;
            self.ledger.told.insert(id);
            self.ledger.acknowledged.insert(id, term);
        }
    }

    /// Is this server open to clients?
    pub(crate) fn is_open(&self, node: Node) -> bool {
        let server = &self.nodes[node].server;
        server.process == Process::Primary && server.open && self.server_runs(node)
    }

    /// Has this host's guard been able to act in time?
    pub(crate) fn punctual(&self, node: Node) -> bool {
        let host = &self.nodes[node];
        let stood_still = host.guard.late_until.max(host.guard.paused_until).max(host.frozen_until);
        self.now >= stood_still + GRACE
    }

    /// S5 for one server.
    pub(crate) fn check_lease(&mut self, node: Node, doing: &str) {
        if !self.punctual(node) {
            return;
        }
        let until = self.nodes[node].renewed;
        if until.is_none_or(|until| self.now > until) {
            let since = until.map_or(0, |until| self.now - until) / 1000;
            self.violate("S5", format!("n{node} {doing} {since} ms after its lease had run out"));
        }
        // An agent that died or stood still since can not end its server: then the lease does, which is checked above, and which it must
        // not renew (see `record_written`).
        let acts = self.nodes[node].mind.is_some();
        let heard = self.nodes[node].heard_rebuilt.filter(|_| acts && self.orphaned(self.nodes[node].server.term));
        let since = heard.map(|heard| self.could_end(node, heard));
        if since.is_some_and(|since| self.now > since + SUPERSEDED_GRACE) {
            self.violate("S2", format!("n{node} {doing} although it heard of the rebuilt store"));
        }
    }

    /// From when on this host was able to end its server, after its agent heard that it must: it and its guard run, and a kill that the
    /// host could not carry out is given again. The lease ends the server meanwhile.
    fn could_end(&self, node: Node, heard: Micros) -> Micros {
        let host = &self.nodes[node];
        let again = host.kill_failed.map_or(0, |failed| failed + KILL_AGAIN);
        heard.max(self.agent_resumes(node)).max(host.guard.paused_until).max(again)
    }

    /// S5 for every server, at every event.
    pub(crate) fn check_open(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].server.open && self.is_open(node) {
                self.check_lease(node, "is open");
            }
        }
    }

    /// Everything from `keep` on leaves this log: no acknowledged commit may lose its last copy.
    pub(crate) fn truncate(&mut self, node: Node, keep: usize) {
        let log = &self.nodes[node].server.log;
        let gone: Vec<Entry> = log[keep.min(log.len())..].to_vec();
        {
            let newest = self.store.newest().map_or(Term(0), |(_, record)| record.term);
            let must = |entry: &&Entry| {
                let by = self.ledger.acknowledged.get(&entry.id);
                by.is_some_and(|by| !self.forgiven(*by, newest)) && !self.elsewhere(node, entry.id)
            };
            let lost = gone.iter().find(must);
            if let Some(entry) = lost.copied() {
                self.violate("S4", format!("n{node} drops the last copy of acknowledged commit {}", entry.id));
            }
        }
        let server = &mut self.nodes[node].server;
        server.log.truncate(keep);
        server.flushed = server.flushed.min(keep);
        server.replayed = server.replayed.min(keep);
    }

    pub(crate) fn elsewhere(&self, node: Node, id: u64) -> bool {
        (0..self.nodes.len()).any(|other| {
            other != node && self.nodes[other].server.log.binary_search_by(|entry| entry.id.cmp(&id)).is_ok()
        })
    }

    /// The store took a write: counts it, checks the term, and lets a fault follow.
    pub(crate) fn record_written(&mut self, node: Node, sent: Micros, before: Option<&Record>, after: &Record) {
        if self.trace.on && !crate::host::renews(before, after) {
            self.trace(Some(node), || format!("STORE {}", crate::host::brief(after)));
        }
        let mine = after.holder.as_ref() == Some(&self.names[node]);
        let heard = self.nodes[node].heard_rebuilt.filter(|_| self.orphaned(after.term));
        if mine && after.state == ClaimState::Held && heard.is_some_and(|heard| sent > heard) {
            self.violate("S2", format!("n{node} renews term {} although it heard of the rebuilt store", after.term));
        }
        if mine && matches!(after.state, ClaimState::Held | ClaimState::Founding) {
            let renewed = &mut self.nodes[node].renewed;
            let lease = after.lease.unwrap_or(self.shape.lease).0 * 1000 * 104 / 100;
            *renewed = Some(renewed.unwrap_or(0).max(sent + lease));
        }
        let Some(before) = before else { return };
        if after.term < before.term {
            self.violate("S3", format!("the term falls from {} to {}", before.term, after.term));
        }
        if after.term > before.term {
            self.counters.elections += 1;
        }
        if after.state == ClaimState::Held && before.state != ClaimState::Held {
            self.counters.claims += 1;
            self.check_lossy_claim(node, before, after);
            self.protocol_step(node, "claim");
        } else if after.members != before.members || after.quorum != before.quorum {
            self.counters.sync_writes += 1;
            if after.members.len() == 1 && before.members.len() > 1 {
                self.counters.degradations += 1;
            }
            self.protocol_step(node, "sync");
        }
        if after.state == ClaimState::Free && before.state == ClaimState::Held && self.stuck(node) {
            self.counters.handed_doomed += 1;
        }
        if after.state == ClaimState::Free
            && before.state == ClaimState::Held
            && after.reason.contains("has not come up")
        {
            self.counters.idle_released += 1;
        }
        if after.state == ClaimState::Free && after.wanted.is_some() && before.state == ClaimState::Held {
            self.counters.switchovers += 1;
        }
    }
}

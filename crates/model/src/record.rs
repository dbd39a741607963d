//! The record: the one key of the store that says who may be primary and which copies hold what was acknowledged.
//!
//! One key, so that a successful raise of the term *is* the read of members and quorum (take-over protocol, 3.4).

use crate::{CopyId, Lineage, Lsn, NodeId, Position, Span, SystemId, Term, Timeline};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The store's version of a key. A later write has a higher revision. Never 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// How a commit is protected, as the operator asked for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Block writes rather than acknowledge what could be lost.
    #[default]
    Strict,
    /// Go on alone when no replica is left, and say so.
    Available,
    /// Never wait; a take-over may lose the newest writes, and reports them.
    Async,
}

impl Durability {
    /// The mode's name, as the file writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Available => "available",
            Self::Async => "async",
        }
    }
}

impl std::fmt::Display for Durability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// What the holder of the term does with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClaimState {
    /// The cluster's first copy is being made; nothing can be lost yet.
    Founding,
    /// Nobody holds the term: the last holder released it, its server stopped.
    Free,
    /// The holder collects recruits.
    Electing,
    /// The holder may serve as primary while it renews.
    Held,
}

/// The record. `leader`, `members` and `quorum` tell which copies must be asked before a next primary may open:
/// `quorum + 1` distinct copies of `members`, or the leader itself, stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The current term.
    pub term: Term,
    /// Who holds it; `None` when free.
    pub holder: Option<NodeId>,
    /// What the holder does with it.
    pub state: ClaimState,
    /// Changes at every attempt to renew.
    pub grant: u64,
    /// Who was the last to claim (state held); its log holds everything acknowledged.
    pub leader: Option<NodeId>,
    /// M: voters and the leader, each with its copy.
    pub members: BTreeMap<NodeId, CopyId>,
    /// q: an election needs q + 1 distinct answers of the members.
    pub quorum: u32,
    /// The last timeline number handed out.
    pub timeline: Timeline,
    /// The path of the leader's log before `timeline`: its last entry is where the leader left the log it was elected with.
    pub lineage: Lineage,
    /// Who should stand next, when a holder stepped down in favour of somebody; others hold back.
    pub wanted: Option<NodeId>,
    /// Commits are acknowledged without waiting while this is set (mode async).
    pub asynchronous: bool,
    /// The data's identity, once the first copy exists.
    pub system: Option<SystemId>,
    /// The lease for which the last grant was given. Who waits for a lease to run out waits for this one, whatever its own setting
    /// says: the setting may change while a grant holds. `None`: written by a version that did not say. Zero: no lease runs, the last
    /// leader's own release says that its server is stopped.
    #[serde(default)]
    pub lease: Option<Span>,
    /// The newest timeline whose claim could not prove that its log held everything acknowledged: the mode was asynchronous and the last
    /// leader did not answer, or an operator accepted a loss. What a log holds that left the history before it may be acknowledged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lossy: Option<Timeline>,
    /// For how long new work was held when the last holder stopped its server and released the term (a switchover): so much earlier than
    /// the release the gap that clients see began. Decides nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Span>,
    /// The cluster was brought back to an earlier moment, the last time that this was done: what lies behind that moment on the path of before
    /// is void (docs/adr/0031).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<Box<Restored>>,
    /// Why the right to be primary changed hands last, for people: written by who released the term, or raised it. Decides nothing.
    #[serde(default)]
    pub reason: String,
}

/// A restore of the whole cluster in place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// Where the restored copy lies; until its data are in their place nobody else can be primary.
    pub node: NodeId,
    /// That copy.
    pub copy: CopyId,
    /// The timeline that begins at the moment: higher than every number that was handed out before.
    pub timeline: Timeline,
    /// The path to it; its last entry is the moment. A log that is on neither is void.
    pub lineage: Lineage,
    /// So long after this record came the last primary's lease may still run.
    pub wait: Span,
    /// Which moment, and who asked for it.
    pub what: String,
}

impl Restored {
    /// Does a log that ends there hold anything that was made void?
    #[must_use]
    pub fn voids(&self, end: Position) -> bool {
        end.timeline < self.timeline && !self.lineage.contains(end, self.timeline, Lsn(u64::MAX))
    }
}

impl Record {
    /// The restore in place that nobody has claimed yet: only its copy may be elected.
    #[must_use]
    pub fn restoring(&self) -> Option<&Restored> {
        self.restored.as_deref().filter(|restored| restored.timeline == self.timeline)
    }

    /// The record that a store rebuilt from `node` begins with: its copy is the only member, and it is to stand. `self` is the newest
    /// record that it knows, `term` the first of the new incarnation. `skip`: so many timeline numbers are left out, because members of the old
    /// store may have used them, or use them yet, and two logs under one number could not be told apart; each costs a small file at the
    /// promotion. Marked as lossy always: what members of the lost store acknowledged among themselves, before or after, can not be known.
    /// A restore in place that this copy is no part of is given up: it would make the only copy that may lead void.
    #[must_use]
    pub fn recovered(&self, node: &NodeId, copy: CopyId, term: Term, skip: u32) -> Record {
        let timeline = Timeline(self.timeline.0 + skip);
        // Members are on the restored path: nothing else streams from there.
        let part = |restored: &Restored| restored.copy == copy || self.members.get(node) == Some(&copy);
        let restored = self.restored.clone().filter(|restored| part(restored));
        let given_up = self.restored.as_ref().filter(|_| restored.is_none());
        let given_up =
            given_up.map(|was| format!("; its copy is no part of the restore to {}, which is given up", was.what));
        Record {
            term,
            holder: None,
            state: ClaimState::Free,
            members: BTreeMap::from([(node.clone(), copy)]),
            quorum: 0,
            timeline,
            wanted: Some(node.clone()),
            lossy: Some(timeline),
            restored,
            reason: format!("the store was rebuilt from {node}{}", given_up.unwrap_or_default()),
            ..self.clone()
        }
    }
}

/// From whom a standby streams, and of which term that server is primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// The node to stream from.
    pub node: NodeId,
    /// The term in which to do so; a server whose upstream's term is not the promise starts without upstream.
    pub term: Term,
}

/// What a node keeps durably, outside the data directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Durable {
    /// The node follows no term older than this; it never falls.
    pub promise: Term,
    /// Where the standby streams from; `None` = cut.
    pub upstream: Option<Upstream>,
    /// The copy in the data directory; `None` = none, or not whole.
    pub copy: Option<CopyId>,
    /// The log was found to have diverged from the leader of this term, at this end: kept until the rewind is verified.
    pub diverged: Option<(Term, Position)>,
    /// The cluster's data, as its record named them last: others are never started here, also while no store can be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<SystemId>,
}

/// Where a primary's recovery ended: what must be confirmed by enough members before clients enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryEnd {
    /// The timeline the server runs on now.
    pub timeline: Timeline,
    /// Every byte before this must be held by |M| − q members.
    pub lsn: Lsn,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovered_copy_is_never_void_by_a_restore_that_it_is_no_part_of() {
        let node = |name: &str| NodeId::new(name).unwrap();
        let copy = |number: u64| CopyId::new(number).unwrap();
        let restored = Restored {
            node: node("a"),
            copy: copy(9),
            timeline: Timeline(20),
            lineage: Lineage::default(),
            wait: Span(0),
            what: "a moment".to_owned(),
        };
        let record = Record {
            term: Term(12),
            holder: None,
            state: ClaimState::Free,
            grant: 4,
            leader: Some(node("a")),
            members: BTreeMap::from([(node("a"), copy(9))]),
            quorum: 0,
            timeline: Timeline(20),
            lineage: Lineage::default(),
            wanted: None,
            asynchronous: false,
            system: None,
            lease: None,
            lossy: None,
            held: None,
            restored: Some(Box::new(restored)),
            reason: String::new(),
        };
        let from = |record: &Record, name: &str, number: u64| {
            record.recovered(&node(name), copy(number), record.term.next_incarnation(), 16)
        };
        // While the restored copy waits every other one is void, also the same node's old one.
        for (name, number) in [("b", 2), ("a", 1)] {
            let next = from(&record, name, number);
            assert_eq!(next.restored, None);
            assert!(next.reason.contains("the restore to a moment"), "{}", next.reason);
        }
        let kept = from(&record, "a", 9);
        assert!(kept.restored.is_some() && !kept.reason.contains("given up"));
        // Cloned from it: what it made void stays void.
        let members = BTreeMap::from([(node("b"), copy(7))]);
        let later = Record { timeline: Timeline(21), members, ..record };
        assert!(from(&later, "b", 7).restored.is_some());
        assert_eq!(from(&later, "b", 2).restored, None);
    }
}

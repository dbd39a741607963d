//! Facts for the record, and the reasons behind decisions.

use crate::{Lsn, Moment, NodeId, Position, Span, Term, Timeline};
use serde::{Deserialize, Serialize};

/// A decision, or a decision not to act, in words for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// When (this host's clock).
    pub at: Moment,
    /// A stable name of the rule, for programs: `stand`, `hold-back`, `recruit`, `fence` …
    pub rule: String,
    /// A sentence: what was decided, from which evidence.
    pub text: String,
    /// The term it concerns.
    pub term: Term,
}

/// A fact for the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Who says so.
    pub node: NodeId,
    /// Milliseconds since 1970 by that host's wall clock: for people, decides nothing. 0 until the agent fills it in.
    pub wall_ms: u64,
    /// The term it concerns.
    pub term: Term,
    /// A stable name: `primary-opened`, `primary-lost`, `switchover`, `rewound`, `cloned`, `degraded`, `operator` …
    pub kind: String,
    /// A sentence with the evidence, positions and durations.
    pub text: String,
    /// With `primary-opened`: how the right to be primary came here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
    /// With `rewound`, `cloned` and `diverged`: what left the cluster's history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<Lost>,
}

/// One change of primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Why: what ended the last reign, or who asked.
    pub cause: String,
    /// The primary before, if one is known.
    pub from: Option<NodeId>,
    /// The primary now.
    pub to: NodeId,
    /// The timeline it serves on.
    pub timeline: Timeline,
    /// Where the new timeline left the old log; `None` for a restart in place and for the first copy.
    pub fork: Option<Position>,
    /// Where recovery ended.
    pub end: Lsn,
    /// From when the loss was seen here until clients could enter; `None` if this node did not see it.
    pub gap: Option<Span>,
    /// Commits were acknowledged without waiting (async), or the operator accepted a loss: at most this many bytes of the old primary's log
    /// beyond the fork were heard of. `Some(0)`: none was heard of. `None`: nothing acknowledged can be missing.
    pub at_risk_bytes: Option<u64>,
}

/// What a diverged log held that is not in the cluster's history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// The last position that both logs share.
    pub from: Position,
    /// Where the diverged log ended.
    pub to: Position,
    /// Commits in between, if they could be counted.
    pub commits: Option<u64>,
    /// They may have been acknowledged (the mode was async, or a loss was accepted); otherwise they never were.
    #[serde(default)]
    pub may_be_acknowledged: bool,
    /// Where the report and the kept log lie, on the node that says so; empty if nothing could be kept.
    pub kept: String,
    /// What it held, for people: transactions, relations, operations. A few lines at most.
    pub report: String,
    /// What this node's data lost before, if nobody has heard of it yet: the node died before it could tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<Lost>,
}

impl Lost {
    /// So many are told together.
    const MOST: usize = 8;

    /// Each by itself, this one first.
    #[must_use]
    pub fn apart(mut self) -> Vec<Lost> {
        let also = std::mem::take(&mut self.also);
        std::iter::once(self).chain(also.into_iter().flat_map(Lost::apart)).collect()
    }

    /// This one, and what was lost before and is not told yet. Of two that end at the same place, which are one log, the one that reaches
    /// further back stays.
    #[must_use]
    pub fn and(self, earlier: Option<Lost>) -> Lost {
        let mut all = self.apart();
        for lost in earlier.into_iter().flat_map(Lost::apart) {
            match all.iter_mut().find(|known| known.to == lost.to) {
                Some(known) if lost.from < known.from => *known = lost,
                Some(_) => {}
                None => all.push(lost),
            }
        }
        all.truncate(Self::MOST);
        let also = all.split_off(1);
        Lost { also, ..all.remove(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Lsn, Timeline};

    fn lost(from: u64, to: u64) -> Lost {
        let at = |lsn| Position { timeline: Timeline(1), lsn: Lsn(lsn) };
        Lost { from: at(from), to: at(to), ..Lost::default() }
    }

    #[test]
    fn what_was_lost_before_is_told_besides_and_one_log_once() {
        let both = lost(50, 60).and(Some(lost(10, 20)));
        assert_eq!(both.clone().apart(), [lost(50, 60), lost(10, 20)]);
        let again = lost(55, 60).and(Some(both));
        assert_eq!(again.apart(), [lost(50, 60), lost(10, 20)]);
        assert_eq!(lost(50, 60).and(None), lost(50, 60));
        let many = (1..100).fold(lost(0, 1), |all, n| lost(n, n + 1).and(Some(all)));
        assert_eq!(many.apart().len(), Lost::MOST);
    }
}

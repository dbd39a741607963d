//! Facts for the record, and the reasons behind decisions.

use crate::{Moment, NodeId, Term};
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
    /// A stable name: `primary-opened`, `primary-lost`, `switchover`, `rewound`, `cloned`, `degraded` …
    pub kind: String,
    /// A sentence with the evidence, positions and durations.
    pub text: String,
}

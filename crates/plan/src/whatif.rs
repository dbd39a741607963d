//! What a rehearsal of the planned cluster showed. The rehearsal is another room's (`crates/rehearse`); plans only read it.

use crate::layout::{Layout, Pace, Writes};
use mainstay_model::NodeId;
use std::collections::BTreeSet;

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Commits were acknowledged again; the longest gap between two.
    Serves {
        /// Milliseconds of the rehearsal.
        gap_ms: u64,
    },
    /// They were not.
    Stopped,
}

/// One rehearsed failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WhatIf {
    /// The hosts that failed; none: the primary's database server died.
    pub failed: BTreeSet<NodeId>,
    /// Who was primary when it began.
    pub primary: NodeId,
    /// How they followed each other.
    pub pace: Pace,
    /// How it ended.
    pub ended: Ended,
    /// A commit that had been acknowledged was missing afterwards.
    pub lost: bool,
}

impl WhatIf {
    /// Was the primary among them?
    #[must_use]
    pub fn hits_primary(&self) -> bool {
        self.failed.is_empty() || self.failed.contains(&self.primary)
    }

    /// Does the arithmetic say the same?
    #[must_use]
    pub fn agrees(&self, layout: &Layout) -> bool {
        let expected = layout.after(&self.failed, self.hits_primary() && !self.failed.is_empty(), self.pace);
        (expected == Writes::GoOn) == matches!(self.ended, Ended::Serves { .. })
    }
}

//! Asynchronous mode may lose acknowledged commits. Then what is reported as lost must cover what was measured.

use mainstay_model::Event;
use std::collections::BTreeSet;

/// What the history reports of lost commits that may have been acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reported {
    /// How many reports there are.
    pub reports: usize,
    /// Commits in them.
    pub commits: u64,
    /// In one of them they could not be counted.
    pub uncounted: bool,
}

/// Adds up what the history reports.
#[must_use]
pub fn reported(events: &[Event]) -> Reported {
    let mut seen = BTreeSet::new();
    let mut sum = Reported::default();
    let losses = events.iter().filter_map(|event| event.lost.as_ref().map(|lost| (event, lost)));
    for (event, lost) in losses.filter(|(_, lost)| lost.may_be_acknowledged) {
        // One loss is told more than once: as it is found, and as it is replaced.
        if !seen.insert((event.node.as_str(), lost.from.lsn.0, lost.to.lsn.0)) {
            continue;
        }
        sum.reports += 1;
        sum.commits += lost.commits.unwrap_or(0);
        sum.uncounted |= lost.commits.is_none();
    }
    sum
}

/// What is not right, in words.
#[must_use]
pub fn wrong(measured: u64, events: &[Event]) -> Option<String> {
    let reported = reported(events);
    let covered = measured <= reported.commits || (reported.uncounted && reported.reports > 0);
    (!covered).then(|| {
        format!("{measured} acknowledged commits are lost, and {} are reported: {reported:?}", reported.commits)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_model::event::Lost;
    use mainstay_model::{Lsn, NodeId, Position, Term, Timeline};

    fn lost(commits: Option<u64>, may_be_acknowledged: bool, from: u64) -> Event {
        let at = |lsn| Position { timeline: Timeline(1), lsn: Lsn(lsn) };
        let lost = Lost { from: at(from), to: at(from + 9), commits, may_be_acknowledged, ..Lost::default() };
        let (node, kind) = (NodeId::new("db1").unwrap(), "rewound".to_owned());
        Event { node, wall_ms: 1, term: Term(2), kind, text: String::new(), change: None, lost: Some(lost) }
    }

    #[test]
    fn a_loss_must_be_reported_and_one_report_counts_once() {
        assert_eq!(wrong(0, &[]), None);
        assert!(wrong(1, &[]).is_some());
        assert_eq!(wrong(3, &[lost(Some(3), true, 1)]), None);
        assert!(wrong(4, &[lost(Some(3), true, 1), lost(Some(3), true, 1)]).is_some());
        assert_eq!(wrong(4, &[lost(Some(3), true, 1), lost(Some(1), true, 90)]), None);
        assert!(wrong(1, &[lost(Some(3), false, 1)]).is_some(), "what was never acknowledged is no report");
        assert_eq!(wrong(1, &[lost(None, true, 1)]), None);
    }
}

//! Asynchronous mode may lose acknowledged commits. Then what is reported as lost must cover what was measured.

use mainstay_model::Event;
use std::collections::{BTreeMap, BTreeSet};

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

/// Copies of which the history says that they were rewound, and later that the log which they were to lose was still there. A node does not
/// believe its own rewind, and reads the log again; so nothing goes wrong with the data, but what was told is not what happened.
#[must_use]
pub fn false_rewinds(events: &[Event]) -> Vec<String> {
    let mut diverged: BTreeMap<&str, (String, bool)> = BTreeMap::new();
    let mut found = Vec::new();
    for event in events {
        let node = event.node.as_str();
        if event.kind == "diverged" {
            let end = event.text.strip_prefix("this log ends at ").and_then(|rest| rest.split(' ').next());
            let end = end.unwrap_or_default().to_owned();
            if diverged.get(node).is_some_and(|(before, claimed)| *claimed && *before == end) {
                found.push(format!("{node} said that it was rewound, and its log to {end} diverges as before"));
            }
            diverged.insert(node, (end, false));
        } else if let (Some((end, claimed)), "rewound" | "cloned") = (diverged.get_mut(node), event.kind.as_str()) {
            match &event.lost {
                None => *claimed |= event.kind == "rewound",
                Some(lost) if *claimed && lost.to.to_string() == *end => {
                    found.push(format!(
                        "{node} said that it was rewound, and the log to {end} was there yet: {}",
                        event.text
                    ));
                }
                Some(_) => {}
            }
        }
    }
    found
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

    #[test]
    fn a_rewind_that_did_not_happen_is_told_by_the_loss_that_comes_later() {
        let told = |kind: &str, text: &str, lost: Option<Lost>| Event {
            kind: kind.to_owned(),
            text: text.to_owned(),
            lost,
            ..super::tests::lost(None, true, 1)
        };
        let at = |lsn| Position { timeline: Timeline(1), lsn: Lsn(lsn) };
        let to = |lsn| Some(Lost { from: at(1), to: at(lsn), ..Lost::default() });
        let diverged = || told("diverged", "this log ends at 1@0/20 and is no prefix of the leader's: rewind", None);
        let honest = [diverged(), told("rewound", "kept", to(0x20)), told("rewound", "kept, told again", to(0x20))];
        assert!(false_rewinds(&honest).is_empty(), "an agent that died tells it twice");
        let older = [diverged(), told("rewound", "nothing new", None), told("cloned", "another log", to(0x30))];
        assert!(false_rewinds(&older).is_empty());
        let lied = [diverged(), told("rewound", "in words", None), told("cloned", "anew", to(0x20))];
        assert_eq!(false_rewinds(&lied).len(), 1, "{:?}", false_rewinds(&lied));
        let again = [diverged(), told("rewound", "in words", None), diverged()];
        assert_eq!(false_rewinds(&again).len(), 1, "{:?}", false_rewinds(&again));
    }
}

//! The history as people read it: which changes of primary there were, what each lost, and how one event is named.
//!
//! An event's name is the number that the agents give it (`#12`), which rises for ever. Agents that give none are of an earlier version: then
//! a change of primary is named by its term (`t4`), which is as stable.

use mainstay_model::{Change, Event, Lost, Term};
use serde::{Deserialize, Serialize};

/// An event with its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    /// Its number, if the agents give one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sequence: Option<u64>,
    /// What happened.
    #[serde(flatten)]
    pub(crate) event: Event,
}

impl Told {
    /// How it is named on the command line.
    pub(crate) fn name(&self) -> String {
        match self.sequence {
            Some(sequence) => format!("#{sequence}"),
            None if self.is_change() => format!("t{}", self.event.term),
            None => "-".to_owned(),
        }
    }

    /// Did a primary open?
    pub(crate) fn is_change(&self) -> bool {
        self.event.change.is_some() || self.event.kind == "primary-opened"
    }
}

/// One change of primary, with what is known of its losses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Row {
    /// The event.
    #[serde(flatten)]
    pub(crate) told: Told,
    /// What left the history with it, as the nodes reported when they came back.
    pub(crate) losses: Vec<Lost>,
}

/// All pages as one list: each event once, in the order in which they became part of the history.
pub(crate) fn merge(pages: Vec<Vec<Told>>) -> Vec<Told> {
    let mut events: Vec<Told> = Vec::new();
    for told in pages.into_iter().flatten() {
        match events.iter_mut().find(|known| known.event == told.event) {
            Some(known) => known.sequence = known.sequence.or(told.sequence),
            None => events.push(told),
        }
    }
    events.sort_by_key(|told| (told.sequence.is_some(), told.sequence, told.event.wall_ms, told.event.term));
    events
}

/// The changes of primary, oldest first, each with the losses that were reported after it and before the next.
pub(crate) fn changes(events: &[Told]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for told in events {
        if told.is_change() {
            rows.push(Row { told: told.clone(), losses: Vec::new() });
        } else if let Some(lost) = &told.event.lost {
            // The log left the history where the new timeline begins: that is the change it belongs to, however late the node came back.
            let fork = |row: &Row| row.told.event.change.as_ref().and_then(|change| change.fork);
            let place = rows.iter().rposition(|row| fork(row) == Some(lost.from)).or_else(|| rows.len().checked_sub(1));
            if let Some(row) = place.and_then(|place| rows.get_mut(place)) {
                row.losses.push(lost.clone());
            }
        }
    }
    rows
}

/// Several nodes may have held the same log that was left behind, each as much of it as it had got: the longest counts.
fn logs<'a>(losses: impl Iterator<Item = &'a Lost>) -> Vec<&'a Lost> {
    let mut logs: Vec<&Lost> = Vec::new();
    for lost in losses {
        let same = |known: &&mut &Lost| known.from == lost.from && known.to.timeline == lost.to.timeline;
        match logs.iter_mut().find(same) {
            Some(known) if known.to < lost.to => *known = lost,
            Some(_) => {}
            None => logs.push(lost),
        }
    }
    logs
}

/// So many commits.
pub(crate) fn counted(commits: u64) -> String {
    if commits == 1 { "1 commit".to_owned() } else { format!("{commits} commits") }
}

/// What was lost, in a few words.
pub(crate) fn loss(change: Option<&Change>, losses: &[Lost]) -> String {
    let acknowledged = logs(losses.iter().filter(|lost| lost.may_be_acknowledged));
    if !acknowledged.is_empty() {
        let bytes: u64 = acknowledged.iter().map(|lost| lost.to.lsn.0.saturating_sub(lost.from.lsn.0)).sum();
        let commits = acknowledged.iter().map(|lost| lost.commits).sum::<Option<u64>>();
        let commits = commits.map(|count| format!("{}, ", counted(count))).unwrap_or_default();
        return format!("lost {commits}{}", crate::output::table::bytes(bytes));
    }
    match change.map(|change| change.at_risk_bytes) {
        Some(Some(0)) => "none heard of at risk".to_owned(),
        Some(Some(bytes)) => format!("up to {} at risk", crate::output::table::bytes(bytes)),
        Some(None) => "nothing lost".to_owned(),
        None => String::new(),
    }
}

/// Which event a person means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The one with this number.
    Number(u64),
    /// The change of primary to this term.
    Of(Term),
    /// The last change of primary.
    Last,
}

impl std::str::FromStr for Wanted {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is no event: say its number as `mainstay history` shows it, t4 for the change to term 4, or last"
            )
        };
        if text == "last" {
            return Ok(Wanted::Last);
        }
        let number = |digits: &str| digits.parse::<u64>().map_err(|_| wrong());
        match text.strip_prefix('t') {
            Some(term) => number(term).map(|term| Wanted::Of(Term(term))),
            None => number(text.strip_prefix('#').unwrap_or(text)).map(Wanted::Number),
        }
    }
}

/// The event that is meant.
pub(crate) fn find(events: &[Told], wanted: Wanted) -> Option<&Told> {
    match wanted {
        Wanted::Number(number) => events.iter().find(|told| told.sequence == Some(number)),
        Wanted::Of(term) => {
            let of_term = |told: &&Told| told.event.term == term;
            events
                .iter()
                .rev()
                .filter(of_term)
                .find(|told| told.is_change())
                .or_else(|| events.iter().rev().find(of_term))
        }
        Wanted::Last => events.iter().rev().find(|told| told.is_change()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::examples::{at, name};
    use mainstay_model::{Lsn, Span, Timeline};

    #[test]
    fn a_log_that_two_nodes_left_behind_was_lost_once() {
        let lost = |from: u64, to: u64, timeline: u32, commits: u64| Lost {
            from: at(15, from),
            to: at(timeline, to),
            commits: Some(commits),
            may_be_acknowledged: true,
            ..Lost::default()
        };
        let both = [lost(1000, 2000, 16, 5), lost(1000, 3000, 16, 7)];
        assert_eq!(loss(None, &both), loss(None, &both[1..]), "one log, held by two");
        let apart = [lost(1000, 2000, 16, 5), lost(1000, 3000, 17, 7)];
        assert!(loss(None, &apart).starts_with("lost 12 commits"), "two logs: {}", loss(None, &apart));
    }

    fn told(sequence: Option<u64>, wall_ms: u64, term: u64, kind: &str) -> Told {
        let event = Event {
            node: name("db2"),
            wall_ms,
            term: Term(term),
            kind: kind.into(),
            text: String::new(),
            change: None,
            lost: None,
        };
        Told { sequence, event }
    }

    fn opened(sequence: u64, term: u64, fork: u64, at_risk_bytes: Option<u64>) -> Told {
        let mut told = told(Some(sequence), sequence, term, "primary-opened");
        told.event.change = Some(Change {
            cause: "the server of db1 ended".into(),
            from: Some(name("db1")),
            to: name("db2"),
            timeline: Timeline(2),
            fork: Some(at(1, fork)),
            end: Lsn(fork + 8),
            gap: Some(Span(412)),
            at_risk_bytes,
        });
        told
    }

    fn lost(sequence: u64, from: u64, to: u64, may_be_acknowledged: bool) -> Told {
        let mut told = told(Some(sequence), sequence, 9, "rewound");
        let (from, to) = (at(1, from), at(1, to));
        told.event.lost = Some(Lost { from, to, commits: Some(3), may_be_acknowledged, ..Lost::default() });
        told
    }

    #[test]
    fn pages_become_one_list_and_numbers_are_kept() {
        let (first, second) = (told(Some(1), 50, 1, "founded"), told(Some(2), 40, 2, "primary-opened"));
        let unnumbered = Told { sequence: None, ..second.clone() };
        let merged = merge(vec![vec![unnumbered], vec![first.clone(), second.clone()]]);
        assert_eq!(merged, [first, second], "numbers order, not the clocks of several hosts");
        let old = merge(vec![vec![told(None, 9, 2, "b"), told(None, 3, 1, "a")]]);
        assert_eq!(old.iter().map(|told| told.event.wall_ms).collect::<Vec<_>>(), [3, 9]);
    }

    #[test]
    fn a_late_loss_belongs_to_its_own_change() {
        let events =
            [opened(1, 2, 100, None), opened(2, 3, 500, Some(0)), lost(3, 100, 164, false), lost(4, 500, 2548, true)];
        let rows = changes(&events);
        assert_eq!(rows.iter().map(|row| row.losses.len()).collect::<Vec<_>>(), [1, 1]);
        let words: Vec<String> = rows.iter().map(|row| loss(row.told.event.change.as_ref(), &row.losses)).collect();
        assert_eq!(words, ["nothing lost", "lost 3 commits, 2.0 kB"]);
        assert_eq!(loss(opened(1, 2, 1, Some(4096)).event.change.as_ref(), &[]), "up to 4.0 kB at risk");
    }

    #[test]
    fn events_are_named_in_three_ways() {
        let events = [opened(7, 2, 1, None), told(Some(8), 8, 2, "degraded"), opened(9, 3, 1, None)];
        let number = |text: &str| find(&events, text.parse().unwrap()).and_then(|told| told.sequence);
        assert_eq!(["8", "#8", "t2", "last", "99", "t9"].map(number), [Some(8), Some(8), Some(7), Some(9), None, None]);
        assert!("yesterday".parse::<Wanted>().unwrap_err().contains("last"));
        assert_eq!((events[0].name(), told(None, 1, 4, "primary-opened").name()), ("#7".to_owned(), "t4".to_owned()));
    }
}

//! Terms and timelines only rise, each has one owner, and the history tells every change that was seen.

use super::super::look::Look;
use crate::hosts::sampler::Sample;
use mainstay_model::Event;
use std::collections::{BTreeMap, BTreeSet};

/// What is not right, in words. `first`: the term as the run began; changes before it are not of this run.
#[must_use]
pub fn wrong(looks: &[Look], events: &[Event], samples: &[Sample], first: u64) -> Vec<String> {
    let mut wrong = one_owner_each(looks);
    let opened: Vec<(u64, String, i64)> = events
        .iter()
        .filter_map(|event| event.change.as_ref().map(|change| (event, change)))
        .map(|(event, change)| (event.term.0, change.to.to_string(), i64::from(change.timeline.0)))
        .collect();
    wrong.extend(opened_twice(&opened));
    wrong.extend(sampled(samples, &opened, looks, first));
    wrong
}

/// A term has one primary.
fn one_owner_each(looks: &[Look]) -> Vec<String> {
    let mut owners: BTreeMap<u64, BTreeSet<&str>> = BTreeMap::new();
    for look in looks {
        owners.entry(look.term).or_default().extend(look.primary.iter().map(|primary| primary.as_str()));
    }
    let several = owners.into_iter().filter(|(_, owners)| owners.len() > 1);
    several.map(|(term, owners)| format!("term {term} was seen with several primaries: {owners:?}")).collect()
}

fn opened_twice(opened: &[(u64, String, i64)]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut sorted = opened.to_vec();
    sorted.sort();
    sorted.dedup();
    for pair in sorted.windows(2) {
        let [(term, node, timeline), (next, other, later)] = pair else { continue };
        if term == next && node != other {
            wrong.push(format!("the history has two primaries of term {term}: {node} and {other}"));
        }
        if later < timeline {
            wrong.push(format!("timeline {later} of term {next} is lower than {timeline} of term {term}"));
        }
        if later == timeline && node != other {
            wrong.push(format!("{node} and {other} opened on one timeline, {timeline}"));
        }
    }
    wrong
}

/// Who acknowledged writes, on which timeline, must be what the history says.
fn sampled(samples: &[Sample], opened: &[(u64, String, i64)], looks: &[Look], first: u64) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut nodes: BTreeMap<i64, BTreeSet<&str>> = BTreeMap::new();
    for sample in samples {
        nodes.entry(i64::from(sample.timeline)).or_default().insert(&sample.node);
    }
    for (timeline, nodes) in &nodes {
        if nodes.len() > 1 {
            wrong.push(format!("several nodes acknowledged on timeline {timeline}: {nodes:?}"));
        }
    }
    // The first timeline may have been opened before the history that was kept.
    let beginning = nodes.keys().next().copied();
    for (timeline, nodes) in nodes.iter().filter(|(timeline, _)| Some(**timeline) != beginning) {
        for node in nodes {
            if !opened.iter().any(|(_, to, on)| to == node && on == timeline) {
                wrong.push(format!("{node} acknowledged on timeline {timeline}, and the history does not tell of it"));
            }
        }
    }
    let told: BTreeSet<u64> = opened.iter().map(|(term, ..)| *term).collect();
    let seen: BTreeSet<u64> = looks.iter().filter(|look| look.primary.is_some()).map(|look| look.term).collect();
    let untold = seen.into_iter().filter(|term| *term > first && !told.contains(term));
    wrong.extend(untold.map(|term| format!("term {term} had an open primary, and the history does not tell of it")));
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_model::event::Change;
    use mainstay_model::{Lsn, NodeId, Term, Timeline};
    use std::time::Duration;

    fn look(term: u64, primary: &str) -> Look {
        Look { at_ms: term, term, primary: Some(NodeId::new(primary).unwrap()), nodes: vec![] }
    }

    fn opened(term: u64, to: &str, timeline: u32) -> Event {
        let node = NodeId::new(to).unwrap();
        let change = Change {
            cause: String::new(),
            from: None,
            to: node.clone(),
            timeline: Timeline(timeline),
            fork: None,
            end: Lsn(0),
            gap: None,
            at_risk_bytes: None,
        };
        let kind = "primary-opened".to_owned();
        Event { node, wall_ms: 1, term: Term(term), kind, text: String::new(), change: Some(change), lost: None }
    }

    fn sample(node: &str, timeline: i32) -> Sample {
        Sample { node: node.to_owned(), sequence: 1, timeline, acknowledged: Duration::ZERO }
    }

    #[test]
    fn a_take_over_that_is_told_is_right() {
        let looks = [look(1, "db1"), look(3, "db2")];
        let events = [opened(1, "db1", 1), opened(3, "db2", 2)];
        assert_eq!(wrong(&looks, &events, &[sample("db1", 1), sample("db2", 2)], 1), Vec::<String>::new());
        // A restart in place: another term, the same timeline and node.
        let events = [opened(1, "db1", 1), opened(2, "db1", 1)];
        assert_eq!(wrong(&[look(1, "db1"), look(2, "db1")], &events, &[sample("db1", 1)], 1), Vec::<String>::new());
    }

    #[test]
    fn two_owners_of_a_term_or_a_timeline_are_found() {
        assert!(!wrong(&[look(1, "db1"), look(1, "db2")], &[], &[], 1).is_empty());
        assert!(!wrong(&[], &[opened(2, "db1", 2), opened(2, "db2", 3)], &[], 1).is_empty());
        assert!(!wrong(&[], &[opened(2, "db1", 2), opened(3, "db2", 2)], &[], 1).is_empty());
        assert!(!wrong(&[], &[], &[sample("db1", 1), sample("db2", 1)], 1).is_empty());
        assert!(!wrong(&[], &[opened(2, "db1", 5), opened(3, "db2", 4)], &[], 1).is_empty());
    }

    #[test]
    fn a_change_that_the_history_does_not_tell_is_found() {
        assert_eq!(wrong(&[], &[opened(1, "db1", 1)], &[sample("db1", 1), sample("db2", 2)], 1).len(), 1);
        assert_eq!(wrong(&[look(1, "db1"), look(2, "db2")], &[opened(1, "db1", 1)], &[], 1).len(), 1);
    }
}

//! Who could take over now, who would have to be asked, and what is missing: the arithmetic of an election as far as a command can see it.

use crate::failure::{Failure, Outcome};
use mainstay_model::api::Standing;
use mainstay_model::{NodeId, Position, Record, Span, Term};
use std::collections::BTreeMap;

/// The lease of a record that does not say its own.
const LEASE: Span = Span(3000);

/// What can be seen beforehand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outlook {
    /// Who would stand.
    pub(crate) candidate: NodeId,
    /// How far its log reaches.
    pub(crate) position: Option<Position>,
    /// The present term.
    pub(crate) term: Term,
    /// Members of the record that answer and still have the copy that it counts.
    pub(crate) answering: Vec<NodeId>,
    /// How many of these an election needs; the last leader itself, stopped, is enough alone.
    pub(crate) needed: u32,
    /// Members that do not answer, or have another copy, each with why.
    pub(crate) missing: Vec<(NodeId, String)>,
    /// The last leader is among the missing.
    pub(crate) leader_missing: Option<NodeId>,
    /// Enough answer: nothing that was acknowledged can be lost.
    pub(crate) enough: bool,
    /// Commits were acknowledged without waiting.
    pub(crate) asynchronous: bool,
    /// How long the last holder may serve after its last renewal.
    pub(crate) lease: Span,
}

/// The newest record that somebody knows.
pub(crate) fn newest_record(standings: &BTreeMap<NodeId, Standing>) -> Option<&Record> {
    let known = standings.values().filter_map(|standing| standing.record.as_ref());
    known.max_by_key(|(revision, record)| (record.term, *revision)).map(|(_, record)| record)
}

/// Which of the record's members answer with the copy that it counts, and why the others do not count.
pub(crate) fn members(
    record: &Record,
    standings: &BTreeMap<NodeId, Standing>,
    silent: &BTreeMap<NodeId, String>,
) -> (Vec<NodeId>, Vec<(NodeId, String)>) {
    let (mut answering, mut missing) = (Vec::new(), Vec::new());
    for (node, copy) in &record.members {
        match standings.get(node) {
            Some(standing) if standing.copy.as_ref() == Some(copy) => answering.push(node.clone()),
            Some(standing) if standing.copy.is_none() => {
                missing.push((node.clone(), "its copy is not whole".to_owned()))
            }
            Some(_) => missing.push((node.clone(), "it has another copy than the one that counts".to_owned())),
            None => {
                let why = silent.get(node).cloned().unwrap_or_else(|| "it is not one of the nodes any more".to_owned());
                missing.push((node.clone(), why));
            }
        }
    }
    (answering, missing)
}

/// Looks ahead.
///
/// # Errors
/// When no node can stand, or the wanted one can not.
pub(crate) fn look(
    standings: &BTreeMap<NodeId, Standing>,
    silent: &BTreeMap<NodeId, String>,
    primary: Option<&NodeId>,
    to: Option<&NodeId>,
) -> Outcome<Outlook> {
    let record = newest_record(standings).ok_or_else(|| {
        Failure::not_now("no node that answers knows the record of who may be primary")
            .hint("see `mainstay status`; if the store has lost its majority for ever: `mainstay recover --from NODE`")
    })?;
    let fit = |standing: &&Standing| standing.copy.is_some() && Some(&standing.node) != primary;
    let candidate = match to {
        Some(to) => wanted(standings, silent, primary, to)?,
        None => standings.values().filter(fit).max_by_key(|standing| standing.position).ok_or_else(|| {
            Failure::not_now("no replica with a whole copy answers").hint("see `mainstay status`; nothing was changed")
        })?,
    };
    let (answering, missing) = members(record, standings, silent);
    let leader_answers = record.leader.as_ref().is_some_and(|leader| answering.contains(leader));
    let needed = record.quorum.saturating_add(1);
    Ok(Outlook {
        candidate: candidate.node.clone(),
        position: candidate.position,
        term: record.term,
        enough: leader_answers || answering.len() >= needed as usize,
        leader_missing: record.leader.clone().filter(|_| !leader_answers),
        answering,
        needed,
        missing,
        asynchronous: record.asynchronous,
        lease: record.lease.unwrap_or(LEASE),
    })
}

fn wanted<'a>(
    standings: &'a BTreeMap<NodeId, Standing>,
    silent: &BTreeMap<NodeId, String>,
    primary: Option<&NodeId>,
    to: &NodeId,
) -> Outcome<&'a Standing> {
    if primary == Some(to) {
        return Err(Failure::not_now(format!("{to} is the primary already")));
    }
    match standings.get(to) {
        Some(standing) if standing.copy.is_some() => Ok(standing),
        Some(_) => Err(Failure::not_now(format!("{to} has no whole copy of the data: it can not become primary"))),
        None => {
            let why = silent.get(to).cloned().unwrap_or_else(|| "no answer".to_owned());
            Err(Failure::not_now(format!("the agent of {to} does not answer: {why}"))
                .hint("name another node, or none"))
        }
    }
}

impl Outlook {
    /// What is missing, and what going on all the same would risk.
    pub(crate) fn risk(&self) -> String {
        let mut lines = vec![format!(
            "{} of the {} members that an election needs answer{}",
            self.answering.len(),
            self.needed,
            if self.answering.is_empty() { String::new() } else { format!(" ({})", list(&self.answering)) }
        )];
        for (node, why) in &self.missing {
            let role = if self.leader_missing.as_ref() == Some(node) { ", the last primary," } else { "" };
            lines.push(format!("{node}{role} is missing: {why}"));
        }
        let known = self.position.map_or_else(|| "an unknown position".to_owned(), |position| position.to_string());
        lines.push(format!(
            "{} has the log up to {known}; what the missing members alone hold beyond it would be lost. How far their logs reach can not be \
             known while they do not answer",
            self.candidate
        ));
        lines.push(format!(
            "the take-over would first wait until the last lease has run out (at most {}); the missing members' logs are kept and reported \
             when they come back",
            self.lease
        ));
        lines.join("\n")
    }
}

/// Names with commas.
pub(crate) fn list(names: &[NodeId]) -> String {
    names.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::examples::{name, standing};

    fn known(standings: Vec<Standing>) -> BTreeMap<NodeId, Standing> {
        standings.into_iter().map(|standing| (standing.node.clone(), standing)).collect()
    }

    fn silent(names: &[&str]) -> BTreeMap<NodeId, String> {
        names.iter().map(|text| (name(text), "connection refused".to_owned())).collect()
    }

    #[test]
    fn the_best_log_stands_and_enough_answers_are_enough() {
        let standings = known(vec![standing(2, 100), standing(3, 200)]);
        let outlook = look(&standings, &silent(&["db1"]), None, None).unwrap();
        assert_eq!(outlook.candidate, name("db3"));
        assert!(outlook.enough, "two of two");
        assert_eq!(outlook.leader_missing, Some(name("db1")));
        let outlook = look(&standings, &silent(&["db1"]), None, Some(&name("db2"))).unwrap();
        assert_eq!(outlook.candidate, name("db2"));
    }

    #[test]
    fn with_too_few_answers_the_risk_is_told() {
        let outlook = look(&known(vec![standing(2, 100)]), &silent(&["db1", "db3"]), None, None).unwrap();
        assert!(!outlook.enough);
        let risk = outlook.risk();
        for words in [
            "1 of the 2 members",
            "db1, the last primary, is missing: connection refused",
            "db3 is missing",
            "2@0/64",
            "3000 ms",
        ] {
            assert!(risk.contains(words), "{words}: {risk}");
        }
    }

    #[test]
    fn the_last_leader_alone_is_enough_and_another_copy_does_not_count() {
        let outlook = look(&known(vec![standing(1, 300)]), &silent(&["db2", "db3"]), None, None).unwrap();
        assert!(outlook.enough);
        let mut cloned = standing(3, 500);
        cloned.copy = Some(crate::plan::examples::copy(9));
        let outlook = look(&known(vec![standing(2, 100), cloned]), &silent(&["db1"]), None, None).unwrap();
        assert!(!outlook.enough, "a new copy never answers for the old one");
        assert_eq!(outlook.candidate, name("db3"), "but it may stand");
    }

    #[test]
    fn nodes_that_can_not_take_over_are_refused() {
        let mut broken = standing(3, 500);
        broken.copy = None;
        let standings = known(vec![standing(1, 300), standing(2, 100), broken]);
        let refused =
            |to: &str| look(&standings, &silent(&["db4"]), Some(&name("db1")), Some(&name(to))).unwrap_err().error;
        assert!(refused("db1").contains("primary already"));
        assert!(refused("db3").contains("no whole copy"));
        assert!(refused("db4").contains("connection refused"));
        assert_eq!(look(&standings, &silent(&[]), Some(&name("db1")), None).unwrap().candidate, name("db2"));
        assert!(look(&known(vec![standing(1, 1)]), &silent(&[]), Some(&name("db1")), None).is_err());
    }
}

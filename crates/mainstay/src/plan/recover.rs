//! May the store be rebuilt from this node, from which term on, and what could be missing in its data?

use super::failover::{list, members, newest_record};
use crate::failure::{Failure, Outcome};
use mainstay_model::api::Standing;
use mainstay_model::spec::Spec;
use mainstay_model::{Durability, NodeId, Position, Term};
use std::collections::BTreeMap;

/// What a recovery would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// The first term of the new incarnation.
    pub(crate) term: Term,
    /// The other nodes that answer: they give their part of the old store up and join the new one.
    pub(crate) others: Vec<NodeId>,
    /// Nodes that do not answer: they must be kept off until they are told to join.
    pub(crate) lost: Vec<NodeId>,
    /// What may be lost; empty: nothing that was acknowledged can be missing.
    pub(crate) doubts: Vec<String>,
    /// How many replicas a commit still waits for that are not there: writes stay blocked until they are, or the durability is another.
    pub(crate) replicas_short: u32,
    /// The store is an etcd: the other nodes have no part of it that they could give up, and need not be told.
    pub(crate) etcd: bool,
}

/// Works it out.
///
/// # Errors
/// When the store works or will by itself, or the node can not be the source.
pub(crate) fn choose(
    standings: &BTreeMap<NodeId, Standing>,
    silent: &BTreeMap<NodeId, String>,
    from: &NodeId,
    spec: &Spec,
) -> Outcome<Choice> {
    let Some(source) = standings.get(from) else {
        let why = silent.get(from).cloned().unwrap_or_else(|| "no answer".to_owned());
        return Err(Failure::failed(format!("the agent of {from} does not answer: {why}"))
            .hint("start it first, or name another node: the table shows who answers"));
    };
    store_is_lost(standings)?;
    if source.copy.is_none() {
        return Err(Failure::not_now(format!("{from} has no whole copy of the data"))
            .hint("name a node whose copy is whole: the table shows it"));
    }
    let highest = standings
        .values()
        .flat_map(|standing| [Some(standing.promise), standing.record.as_ref().map(|(_, record)| record.term)])
        .flatten()
        .max()
        .unwrap_or_default();
    let others: Vec<NodeId> = standings.keys().filter(|node| *node != from).cloned().collect();
    let holds_data = |node: &&NodeId| spec.node(node).is_some_and(|node| !node.witness);
    let replicas = u32::try_from(others.iter().filter(holds_data).count()).unwrap_or(u32::MAX);
    let waits = if spec.cluster.durability == Durability::Strict { spec.sync_replicas() } else { 0 };
    Ok(Choice {
        etcd: source.store.etcd.is_some(),
        replicas_short: waits.saturating_sub(replicas),
        term: highest.next_incarnation(),
        others,
        lost: silent.keys().cloned().collect(),
        doubts: doubts(standings, silent, source),
    })
}

/// Refuses while somebody leads the store, or while a majority could elect a leader by itself.
fn store_is_lost(standings: &BTreeMap<NodeId, Standing>) -> Outcome {
    if standings.values().any(|standing| standing.store.etcd.is_some()) {
        return etcd_is_distrusted(standings);
    }
    if let Some((node, leader)) =
        standings.values().find_map(|standing| Some((&standing.node, standing.store.leader.as_ref()?)))
    {
        return Err(Failure::not_now(format!("the store works: {node} says that {leader} leads it"))
            .hint("there is nothing to recover; see `mainstay status` and `mainstay why`"));
    }
    let group = standings.values().map(|standing| standing.store.group).max().unwrap_or_default();
    let voters =
        standings.values().filter(|standing| standing.store.group == group).map(|standing| &standing.store.voters);
    let voters = voters.max_by_key(|voters| voters.len()).cloned().unwrap_or_default();
    let able = |node: &&NodeId| {
        standings.get(*node).is_some_and(|standing| {
            standing.store.group == group && !standing.store.joining && standing.store.failure.is_none()
        })
    };
    let answering: Vec<NodeId> = voters.iter().filter(able).cloned().collect();
    if !voters.is_empty() && answering.len() * 2 > voters.len() {
        return Err(Failure::not_now(format!(
            "{} of the {} members of the store answer ({}): that is a majority, and it elects a leader by itself",
            answering.len(),
            voters.len(),
            list(&answering)
        ))
        .hint("wait a few seconds, then see `mainstay status`; if they can not reach each other, mend the network"));
    }
    Ok(())
}

/// An etcd that works and that nobody distrusts is left alone; one that does not answer has to be brought back first: the store is made anew in it.
fn etcd_is_distrusted(standings: &BTreeMap<NodeId, Standing>) -> Outcome {
    let etcd = |standing: &Standing| standing.store.etcd.as_ref().is_some_and(|etcd| etcd.works);
    // One that has evidence against etcd is enough: a node that has seen nothing of what was lost trusts in good faith.
    let distrusted = standings.values().any(|standing| standing.store.failure.is_some());
    if let (false, Some(trusts)) = (distrusted, standings.values().find(|standing| etcd(standing))) {
        return Err(Failure::not_now(format!("the store works: {} reads and writes etcd", trusts.node))
            .hint("there is nothing to recover; see `mainstay status` and `mainstay why`"));
    }
    if !standings.values().any(etcd) {
        return Err(Failure::not_now("etcd answers none of the nodes")
            .hint("bring more than half of its members back, or restore it: the cluster's part of it is made anew in a working etcd only; see `mainstay status`"));
    }
    Ok(())
}

fn doubts(standings: &BTreeMap<NodeId, Standing>, silent: &BTreeMap<NodeId, String>, source: &Standing) -> Vec<String> {
    let mut doubts = Vec::new();
    let shown =
        |position: Option<Position>| position.map_or_else(|| "an unknown position".to_owned(), |at| at.to_string());
    for other in standings.values().filter(|other| other.copy.is_some() && other.position > source.position) {
        doubts.push(format!(
            "{} has more of the log ({}) than {} ({}): recover from {} instead",
            other.node,
            shown(other.position),
            source.node,
            shown(source.position),
            other.node
        ));
    }
    match newest_record(standings) {
        None => {
            doubts.push("no node that answers knows the record of which copies hold what was acknowledged".to_owned())
        }
        Some(record) => {
            let (answering, missing) = members(record, standings, silent);
            let leader_answers = record.leader.as_ref().is_some_and(|leader| answering.contains(leader));
            let needed = record.quorum.saturating_add(1);
            if !leader_answers && answering.len() < needed as usize {
                let names: Vec<NodeId> = missing.into_iter().map(|(node, _)| node).collect();
                doubts.push(format!(
                    "only {} of the {needed} members that would prove it complete answer; acknowledged commits may be on {} alone",
                    answering.len(),
                    list(&names)
                ));
            }
            if record.asynchronous && !leader_answers {
                doubts.push("commits were acknowledged without waiting (durability async), and the last primary does not answer".to_owned());
            }
        }
    }
    doubts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::examples::{name, record, standing};
    use mainstay_model::Revision;
    use std::fmt::Write as _;

    /// Chooses in a cluster of three data nodes.
    fn choose(
        standings: &BTreeMap<NodeId, Standing>,
        silent: &BTreeMap<NodeId, String>,
        from: &NodeId,
    ) -> Outcome<Choice> {
        super::choose(standings, silent, from, &spec("strict"))
    }

    fn spec(durability: &str) -> Spec {
        let mut text = format!("[cluster]\nname = \"a\"\ndurability = \"{durability}\"\n");
        for number in 1..=3 {
            let _ = write!(text, "[[node]]\nname = \"db{number}\"\nhost = \"10.0.0.{number}\"\n");
        }
        mainstay_model::config::parse(&text, &[]).unwrap()
    }

    #[test]
    fn alone_and_strict_writes_stay_blocked() {
        let (standings, silent) = (lost(vec![standing(3, 100)]), silent(&["db1", "db2"]));
        assert_eq!(choose(&standings, &silent, &name("db3")).unwrap().replicas_short, 1);
        let available = super::choose(&standings, &silent, &name("db3"), &spec("available")).unwrap();
        assert_eq!(available.replicas_short, 0);
    }

    fn lost(mut standings: Vec<Standing>) -> BTreeMap<NodeId, Standing> {
        standings.iter_mut().for_each(|standing| standing.store.leader = None);
        standings.into_iter().map(|standing| (standing.node.clone(), standing)).collect()
    }

    fn silent(names: &[&str]) -> BTreeMap<NodeId, String> {
        names.iter().map(|text| (name(text), "no route".to_owned())).collect()
    }

    #[test]
    fn one_of_three_begins_the_next_incarnation() {
        let mut only = standing(3, 100);
        only.promise = Term(1_000_005);
        let choice = choose(&lost(vec![only]), &silent(&["db1", "db2"]), &name("db3")).unwrap();
        assert_eq!(choice.term, Term(2_000_000));
        assert_eq!((choice.others.len(), choice.lost.len()), (0, 2));
        assert!(choice.doubts[0].contains("only 1 of the 2 members"), "{:?}", choice.doubts);
    }

    #[test]
    fn a_store_that_works_or_will_is_left_alone() {
        let leading: BTreeMap<_, _> = [(name("db3"), standing(3, 1))].into();
        let failure = choose(&leading, &silent(&["db1"]), &name("db3")).unwrap_err();
        assert!(failure.error.contains("db2 leads it"), "{}", failure.error);
        assert_eq!(failure.status, crate::failure::NOT_NOW);
        let failure = choose(&lost(vec![standing(2, 1), standing(3, 1)]), &silent(&["db1"]), &name("db3")).unwrap_err();
        assert!(failure.error.contains("that is a majority"), "{}", failure.error);
    }

    #[test]
    fn a_member_whose_store_is_broken_is_no_voice() {
        let mut broken = standing(2, 1);
        broken.store.failure = Some("the journal is damaged".to_owned());
        assert!(choose(&lost(vec![broken, standing(3, 1)]), &silent(&["db1"]), &name("db3")).is_ok());
    }

    #[test]
    fn one_node_that_distrusts_an_etcd_is_enough() {
        let of_etcd = |number: u64, failure: Option<&str>| {
            let mut standing = standing(number, 1);
            standing.store.etcd = Some(mainstay_model::etcd::EtcdStanding { works: true, ..Default::default() });
            standing.store.failure = failure.map(ToOwned::to_owned);
            standing
        };
        let trusting = lost(vec![of_etcd(1, None), of_etcd(2, None)]);
        assert!(choose(&trusting, &silent(&[]), &name("db1")).unwrap_err().error.contains("the store works"));
        let divided = lost(vec![of_etcd(1, Some("seen less")), of_etcd(2, None)]);
        assert!(choose(&divided, &silent(&["db3"]), &name("db1")).unwrap().etcd);
    }

    #[test]
    fn the_source_must_answer_and_be_whole_and_the_best() {
        let five = |mut standing: Standing| {
            standing.store.voters = ["db1", "db2", "db3", "db4", "db5"].map(name).to_vec();
            standing
        };
        let standings = lost(vec![five(standing(2, 500)), five(standing(3, 100))]);
        assert!(choose(&standings, &silent(&["db1"]), &name("db1")).unwrap_err().error.contains("no route"));
        let choice = choose(&standings, &silent(&["db1"]), &name("db3")).unwrap();
        assert!(choice.doubts[0].contains("recover from db2 instead"), "{:?}", choice.doubts);
        assert_eq!(choice.others, [name("db2")]);
        assert_eq!(choose(&standings, &silent(&["db1"]), &name("db2")).unwrap().doubts, Vec::<String>::new());
        let mut witness = five(standing(3, 1));
        witness.copy = None;
        assert!(choose(&lost(vec![witness]), &silent(&[]), &name("db3")).unwrap_err().error.contains("no whole copy"));
    }

    #[test]
    fn without_waiting_something_may_always_be_missing() {
        let mut only = standing(3, 100);
        let mut told = record(0);
        told.asynchronous = true;
        told.members.retain(|node, _| *node == name("db1"));
        only.record = Some((Revision(9), told));
        let choice = choose(&lost(vec![only]), &silent(&["db1", "db2"]), &name("db3")).unwrap();
        assert!(choice.doubts.iter().any(|doubt| doubt.contains("durability async")), "{:?}", choice.doubts);
    }
}

//! An empty store directory asks the other nodes before it founds anything (`docs/adr/0011`).

use crate::door::StoreReply;
use mainstay_model::NodeId;
use mainstay_ports::peer::Peers;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{info, warn};

/// Pause between two rounds of questions.
const PAUSE: Duration = Duration::from_millis(200);
/// How often the log says what is waited for.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// What an agent can say of its part of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Its directory is empty, and it asks around too.
    #[default]
    Empty,
    /// It has founded a store in which nothing was written yet.
    Founding,
    /// It waits to be taken in.
    Joining,
    /// It is a member of a store.
    Member,
    /// It has a directory and has not read it yet.
    Unknown,
}

/// How an empty directory begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    /// With the nodes of the file as its members.
    Found,
    /// As nobody's member, until this store's leader has added it.
    Join {
        /// Which store.
        group: u64,
    },
    /// Too little is known.
    Wait(String),
}

/// Found or join? `above`: only a store of this incarnation or a later one counts, and nothing is founded.
#[must_use]
pub fn found_or_join(
    me: &NodeId,
    listed: &[NodeId],
    answers: &BTreeMap<NodeId, StoreReply>,
    above: Option<u64>,
) -> Begin {
    let fits = |reply: &&StoreReply| above.is_none_or(|above| reply.term.incarnation() >= above);
    let members = answers.values().filter(|reply| reply.part == Part::Member).filter(fits);
    if let Some(best) = members.max_by_key(|reply| (reply.term, reply.standing.leader.is_some())) {
        return Begin::Join { group: best.standing.group };
    }
    if above.is_some() {
        return Begin::Wait("waiting for a node that belongs to the rebuilt store".to_owned());
    }
    let same = |reply: &StoreReply| {
        let (mut mine, mut theirs) = (listed.to_vec(), reply.listed.clone());
        mine.sort();
        theirs.sort();
        mine == theirs
    };
    let empty = |reply: &StoreReply| matches!(reply.part, Part::Empty | Part::Founding);
    let agree = answers.iter().filter(|(node, reply)| listed.contains(node) && empty(reply) && same(reply)).count() + 1;
    let need = listed.len() / 2 + 1;
    if agree >= need {
        return Begin::Found;
    }
    let differing: Vec<&str> =
        answers.iter().filter(|(_, reply)| empty(reply) && !same(reply)).map(|(node, _)| node.as_str()).collect();
    if !differing.is_empty() {
        return Begin::Wait(format!(
            "the configuration file here lists other nodes than that of {}: make them the same",
            differing.join(", ")
        ));
    }
    let silent = listed.iter().filter(|node| *node != me && !answers.contains_key(node)).map(NodeId::as_str);
    let silent: Vec<&str> = silent.collect();
    Begin::Wait(format!(
        "waiting for more than half of the nodes: {agree} of {} ready, {need} needed; no answer from {}",
        listed.len(),
        if silent.is_empty() { "none".to_owned() } else { silent.join(", ") }
    ))
}

/// Asks until it is known how to begin. Ends only with an answer; the caller may drop it.
pub async fn ask_around(me: &NodeId, listed: &[NodeId], peers: &Arc<dyn Peers>, above: Option<u64>) -> Begin {
    let mut said: Option<(Instant, String)> = None;
    loop {
        let answers = crate::door::ask_all_stores(me, listed, peers).await;
        match found_or_join(me, listed, &answers, above) {
            Begin::Wait(why) => {
                let due = said.as_ref().is_none_or(|(at, text)| *text != why || at.elapsed() >= SAY_EVERY);
                if due {
                    info!("{why}");
                    said = Some((Instant::now(), why));
                }
            }
            Begin::Found => {
                info!("founding the cluster's store: more than half of the nodes are there and have none");
                return Begin::Found;
            }
            Begin::Join { group } => {
                warn!(
                    group,
                    "the store's directory is empty here, and a store exists: waiting until its leader takes this node in"
                );
                return Begin::Join { group };
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_model::Term;
    use mainstay_model::api::StoreStanding;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn listed() -> Vec<NodeId> {
        ["a", "b", "c"].map(node).to_vec()
    }

    fn reply(part: Part, group: u64, term: u64) -> StoreReply {
        let standing = StoreStanding { group, ..StoreStanding::default() };
        StoreReply { part, standing, term: Term(term), listed: listed(), ..StoreReply::default() }
    }

    fn decide(answers: &[(&str, StoreReply)], above: Option<u64>) -> Begin {
        let answers = answers.iter().map(|(name, reply)| (node(name), reply.clone())).collect();
        found_or_join(&node("a"), &listed(), &answers, above)
    }

    #[test]
    fn half_is_not_enough_to_found_and_more_than_half_is() {
        assert!(matches!(decide(&[], None), Begin::Wait(_)));
        assert_eq!(decide(&[("b", reply(Part::Empty, 0, 0))], None), Begin::Found);
        assert_eq!(decide(&[("b", reply(Part::Founding, 0, 0))], None), Begin::Found);
        for part in [Part::Joining, Part::Unknown] {
            assert!(matches!(decide(&[("b", reply(part, 0, 0))], None), Begin::Wait(_)), "{part:?} promises nothing");
        }
        let two = [node("a"), node("b")];
        assert!(matches!(found_or_join(&two[0], &two, &BTreeMap::new(), None), Begin::Wait(_)));
        assert_eq!(found_or_join(&two[0], &two[..1], &BTreeMap::new(), None), Begin::Found);
    }

    #[test]
    fn one_member_is_enough_to_join() {
        let answers = [("b", reply(Part::Empty, 0, 0)), ("c", reply(Part::Member, 5, 7))];
        assert_eq!(decide(&answers, None), Begin::Join { group: 5 });
    }

    #[test]
    fn of_two_stores_the_later_incarnation_counts() {
        let answers = [("b", reply(Part::Member, 0, 900)), ("c", reply(Part::Member, 5, 1_000_000))];
        assert_eq!(decide(&answers, None), Begin::Join { group: 5 });
        assert!(matches!(decide(&answers[..1], Some(1)), Begin::Wait(_)), "the old store is not joined again");
        let empty = [("b", reply(Part::Empty, 0, 0)), ("c", reply(Part::Empty, 0, 0))];
        assert!(matches!(decide(&empty, Some(1)), Begin::Wait(_)), "nothing is founded beside a rebuilt store");
    }

    #[test]
    fn files_that_list_other_nodes_found_nothing() {
        let other = StoreReply { listed: vec![node("a"), node("b")], ..reply(Part::Empty, 0, 0) };
        let Begin::Wait(why) = decide(&[("b", other)], None) else { panic!("founded") };
        assert!(why.contains("lists other nodes than that of b"), "{why}");
    }
}

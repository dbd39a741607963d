//! Whose file is wrong? A node that has just started finds less in its etcd than it has seen there. Either etcd was restored, which concerns every node,
//! or its own `[store]` leads elsewhere, which concerns nobody else. It looks the same to that node, so the others are asked what they see *now*.
//!
//! The proof that theirs is another etcd needs no write: the revision of one etcd never falls. It is read here, then there, then here again, each
//! time through etcd's consensus. What is read there below the first, or above the last, is not of this etcd. Whatever is in doubt concerns every
//! node, as before.

use crate::api::AgentQuestion;
use mainstay_model::NodeId;
use mainstay_ports::peer::{Channel, Peers};
use mainstay_store::ClusterStore;
use mainstay_store::etcd::{EtcdStore, Floor, ShownThere};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How long one look at an etcd may take, and one question to a node, which looks at its own.
const LOOK: Duration = Duration::from_secs(1);
const ASK: Duration = Duration::from_millis(1500);
/// So often in a row every other node must say so.
const ROUNDS: u32 = 3;
/// After this the evidence concerns every node. Shorter than what others that start wait for this one to tell.
const WITHIN: Duration = Duration::from_secs(15);

/// What a node has seen in its etcd.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Seen {
    /// Of the store of this number.
    pub group: u64,
    /// Each key's newest state.
    pub floors: BTreeMap<String, Floor>,
}

/// Answers another node.
pub(crate) async fn answer(store: &ClusterStore, seen: &Seen) -> ShownThere {
    match store.etcd() {
        Some(etcd) => etcd.shows(seen.group, &seen.floors, LOOK).await,
        None => ShownThere::Unknown,
    }
}

/// One round: what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    /// Every other node sees all of it, in another etcd.
    Ours,
    /// One sees less, too.
    Everybodys,
    /// Somebody is silent, or may ask the same etcd.
    Open,
}

/// `before` and `after`: this node's etcd, before the others were asked and after they had answered. An etcd that went back between the two would
/// show the same once; not again and again.
fn judge(before: u64, after: u64, asked: usize, told: &[ShownThere]) -> Round {
    if told.contains(&ShownThere::Less) {
        return Round::Everybodys;
    }
    let another =
        |there: &ShownThere| matches!(there, ShownThere::All(revision) if *revision < before || *revision > after);
    match asked > 0 && told.len() == asked && told.iter().all(another) {
        true => Round::Ours,
        false => Round::Open,
    }
}

/// What has been found out so far.
#[derive(Default)]
pub(crate) struct Whose {
    since: Option<Instant>,
    ours: u32,
}

impl Whose {
    /// While the node is not sure: asks once. `others`: every other node of the cluster.
    pub(crate) async fn look(&mut self, store: &Arc<EtcdStore>, others: &[NodeId], peers: &Arc<dyn Peers>) {
        if store.unsure().is_none() {
            return;
        }
        let round = async {
            let before = store.revision_now(LOOK).await?;
            let told = ask(store, others, peers).await;
            let after = store.revision_now(LOOK).await?;
            Some(judge(before, after, others.len(), &told))
        };
        match round.await.unwrap_or(Round::Open) {
            Round::Everybodys => store.settle(false),
            Round::Open => self.ours = 0,
            Round::Ours => {
                self.ours += 1;
                if self.ours >= ROUNDS {
                    store.settle(true);
                }
            }
        }
        self.bound(store);
    }

    /// Whatever hinders asking: not for ever.
    pub(crate) fn bound(&mut self, store: &EtcdStore) {
        match store.unsure() {
            None => (self.since, self.ours) = (None, 0),
            Some(_) if self.since.get_or_insert_with(Instant::now).elapsed() >= WITHIN => store.settle(false),
            Some(_) => {}
        }
    }
}

async fn ask(store: &EtcdStore, others: &[NodeId], peers: &Arc<dyn Peers>) -> Vec<ShownThere> {
    let seen = Seen { group: store.group(), floors: store.floors() };
    let Ok(body) = serde_json::to_vec(&AgentQuestion::Shows(seen)) else { return Vec::new() };
    let mut asked = JoinSet::new();
    for node in others {
        let (peers, body, node) = (Arc::clone(peers), body.clone(), node.clone());
        asked.spawn(async move {
            // An earlier version does not know the question: it has not answered.
            let answer = peers.request(&node, Channel::Ask, body, ASK).await.ok()?;
            serde_json::from_slice(&answer).ok()
        });
    }
    asked.join_all().await.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ShownThere::{All, Less, Unknown};

    #[test]
    fn only_where_every_other_node_sees_all_of_it_in_another_etcd_is_it_this_nodes_file() {
        for (before, after, told, round) in [
            (100, 101, &[All(900), All(901)][..], Round::Ours),
            (900, 901, &[All(100), All(101)], Round::Ours),
            (100, 101, &[All(900), All(50)], Round::Ours),
            (100, 104, &[All(102), All(900)], Round::Open),
            (100, 100, &[All(100), All(100)], Round::Open),
            (100, 101, &[All(900)], Round::Open),
            (100, 101, &[All(900), Unknown], Round::Open),
            (100, 101, &[All(900), Less], Round::Everybodys),
            (100, 101, &[Less], Round::Everybodys),
        ] {
            assert_eq!(judge(before, after, 2, told), round, "{before} {after} {told:?}");
        }
        assert_eq!(judge(1, 1, 0, &[]), Round::Open, "nobody else is there to say so");
    }
}

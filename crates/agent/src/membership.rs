//! The store's members follow the specification: whoever leads the store adds and removes them, one at a time. And how a node learns
//! that it was removed.

use crate::door::{self, ClusterQuestion, StoreReply};
use crate::generations::{self, Generations};
use crate::record::RECORD_KEY;
use mainstay_model::api::StoreStanding;
use mainstay_model::stored_spec::{SPEC_KEY, StoredSpec};
use mainstay_model::{Event, NodeId, Record, Term};
use mainstay_ports::clock::wall_now_ms;
use mainstay_ports::peer::Peers;
use mainstay_ports::store::Store;
use mainstay_store::{ClusterStore, RaftStore};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::{debug, info, warn};

const PAUSE: Duration = Duration::from_secs(1);
const READ: Duration = Duration::from_secs(2);
/// Rounds without a leader after which a node asks the others for a newer specification.
const LONELY: u32 = 5;

/// One change of the store's members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Give this node the log, and then a vote.
    Add(NodeId),
    /// Take this node's vote.
    Remove(NodeId),
    /// The leader itself goes: hand the leadership to this node.
    Pass(NodeId),
}

/// What the leader does next, if anything. `wanted`: the nodes of the specification; `counted`: the nodes that the record counts;
/// `connected`: those that are connected to this one.
#[must_use]
pub fn next_step(
    me: &NodeId,
    standing: &StoreStanding,
    wanted: &BTreeSet<NodeId>,
    counted: &BTreeSet<NodeId>,
    connected: &BTreeSet<NodeId>,
) -> Option<Step> {
    let surplus = |node: &&NodeId| !wanted.contains(node) && !counted.contains(node);
    let mut members = standing.learners.iter().chain(&standing.voters);
    let mut successors = standing.voters.iter().filter(|node| wanted.contains(node) && connected.contains(node));
    if let Some(node) = members.find(surplus) {
        if node != me {
            return Some(Step::Remove(node.clone()));
        }
        if let Some(next) = successors.next() {
            return Some(Step::Pass(next.clone()));
        }
    }
    let missing = wanted.iter().find(|node| !standing.voters.contains(node) && connected.contains(node));
    missing.map(|node| Step::Add(node.clone()))
}

/// Has this node been removed, by what the other nodes say? Only a leader of the same store knows.
#[must_use]
pub fn removed(me: &NodeId, group: u64, generation: u64, replies: &[(NodeId, StoreReply)]) -> bool {
    replies.iter().any(|(from, reply)| {
        let members = reply.standing.voters.iter().chain(&reply.standing.learners);
        reply.standing.leader.as_ref() == Some(from)
            && reply.standing.group == group
            && reply.generation >= generation
            && !reply.listed.contains(me)
            && !members.into_iter().any(|member| member == me)
    })
}

/// What the task works with.
pub struct Members {
    /// Who.
    pub me: NodeId,
    /// The store.
    pub store: Arc<ClusterStore>,
    /// The other agents.
    pub peers: Arc<dyn Peers>,
    /// What the operator wants.
    pub generations: Arc<Generations>,
    /// Facts for the history.
    pub events: mpsc::Sender<Event>,
}

impl Members {
    /// Looks each second, while this node leads the store.
    pub async fn keep(self) {
        // The members of an etcd are not ours.
        let Some(raft) = self.store.embedded().cloned() else { return };
        loop {
            sleep(PAUSE).await;
            if raft.leader().as_ref() == Some(&self.me)
                && self.seems_due(&raft)
                && let Some((step, term)) = self.look(&raft).await
            {
                self.carry_out(&raft, step, term).await;
            }
        }
    }

    /// By what this node shows anyway: an idle store is not asked each second.
    fn seems_due(&self, raft: &RaftStore) -> bool {
        let now = self.generations.now();
        let wanted: BTreeSet<NodeId> = now.spec.nodes.iter().map(|node| node.name.clone()).collect();
        let connected = wanted.iter().filter(|node| self.peers.connected(node)).cloned().collect();
        next_step(&self.me, &raft.standing(), &wanted, &BTreeSet::new(), &connected).is_some()
    }

    /// Specification and record as the store has them now: a leader that has just come must not go by what it remembers.
    async fn look(&self, raft: &RaftStore) -> Option<(Step, Term)> {
        let spec = generations::parse(&raft.read(SPEC_KEY, READ).await.ok()??)?;
        let record: Record = serde_json::from_slice(&raft.read(RECORD_KEY, READ).await.ok()??.value).ok()?;
        let wanted: BTreeSet<NodeId> = spec.spec.nodes.iter().map(|node| node.name.clone()).collect();
        let counted = record.members.keys().chain(&record.holder).chain(&record.leader).cloned().collect();
        let standing = raft.standing();
        let near = self.near(&standing, &wanted).await;
        next_step(&self.me, &standing, &wanted, &counted, &near).map(|step| (step, record.term))
    }

    /// Who is connected; of those without a vote, who is of this store or waits for it: another one would never catch up.
    async fn near(&self, standing: &StoreStanding, wanted: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let mut near: BTreeSet<NodeId> = wanted.iter().filter(|node| self.peers.connected(node)).cloned().collect();
        let asked: Vec<NodeId> = near.iter().filter(|node| !standing.voters.contains(node)).cloned().collect();
        if !asked.is_empty() {
            let replies = door::ask_all_stores(&self.me, &asked, &self.peers).await;
            near.retain(|node| {
                let same = replies.get(node).is_some_and(|reply| reply.standing.group == standing.group);
                standing.voters.contains(node) || same
            });
        }
        near
    }

    async fn carry_out(&self, raft: &RaftStore, step: Step, term: Term) {
        let (result, kind, text) = match &step {
            Step::Add(node) => (raft.add_member(node).await, "member-added", format!("{node} votes in the store")),
            Step::Remove(node) => {
                (raft.remove_member(node).await, "member-removed", format!("{node} has no vote in the store any more"))
            }
            Step::Pass(to) => {
                debug!(%to, "this node is to leave the store: passing its leadership on");
                let _ = raft.transfer_leader(to).await;
                return;
            }
        };
        match result {
            Ok(()) => {
                info!(?step, "the store's members have changed");
                let (node, kind) = (self.me.clone(), kind.to_owned());
                let wall_ms = wall_now_ms();
                // Lost only when hundreds wait; it stands in the log too.
                let _ = self.events.try_send(Event { node, wall_ms, term, kind, text, change: None, lost: None });
            }
            Err(problem) => warn!(?step, %problem, "the store's members have not changed; trying again"),
        }
    }

    /// Completes once this node is certainly removed: its specification does not name it, and the store has no place for it.
    pub async fn until_removed(&self) -> Arc<StoredSpec> {
        if self.store.etcd().is_some() {
            return self.until_left_out().await;
        }
        let mut lonely = 0;
        loop {
            sleep(PAUSE).await;
            lonely = if self.store.leader().is_some() { 0 } else { lonely + 1 };
            let now = self.generations.now();
            let listed = now.spec.node(&self.me).is_some();
            if listed && lonely < LONELY {
                continue;
            }
            let nodes: Vec<NodeId> = now.spec.nodes.iter().map(|node| node.name.clone()).collect();
            let replies: Vec<(NodeId, StoreReply)> =
                door::ask_all_stores(&self.me, &nodes, &self.peers).await.into_iter().collect();
            let group = self.store.standing().group;
            if listed {
                self.learn(group, now.generation, &replies).await;
                lonely = 0;
            } else if removed(&self.me, group, now.generation, &replies) {
                return now;
            }
        }
    }

    /// An etcd itself tells: neither its specification nor its record knows this node any more.
    async fn until_left_out(&self) -> Arc<StoredSpec> {
        loop {
            sleep(PAUSE).await;
            let now = self.generations.now();
            if now.spec.node(&self.me).is_none()
                && let Ok(Some(spec)) = self.store.read(SPEC_KEY, READ).await
                && generations::parse(&spec).is_some_and(|stored| stored.spec.node(&self.me).is_none())
                && let Ok(Some(held)) = self.store.read(RECORD_KEY, READ).await
                && let Ok(record) = serde_json::from_slice::<Record>(&held.value)
                && !record.members.keys().chain(&record.holder).any(|node| *node == self.me)
            {
                return now;
            }
        }
    }

    /// A node that hears of no leader may have been removed while it was down: then the others know a newer specification.
    async fn learn(&self, group: u64, generation: u64, replies: &[(NodeId, StoreReply)]) {
        let newer = replies.iter().filter(|(_, reply)| reply.standing.group == group && reply.generation > generation);
        let Some((node, _)) = newer.max_by_key(|(_, reply)| reply.generation) else { return };
        let Some(stored) = door::ask::<StoredSpec>(&self.peers, node, ClusterQuestion::Spec).await else { return };
        if let Err(problem) = self.generations.adopt(stored) {
            warn!(%problem, %node, "its newer specification can not be kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn set(names: &[&str]) -> BTreeSet<NodeId> {
        names.iter().map(|name| node(name)).collect()
    }

    fn standing(voters: &[&str], learners: &[&str]) -> StoreStanding {
        let list = |names: &[&str]| names.iter().map(|name| node(name)).collect();
        StoreStanding { voters: list(voters), learners: list(learners), ..StoreStanding::default() }
    }

    fn step(voters: &[&str], learners: &[&str], wanted: &[&str], counted: &[&str], near: &[&str]) -> Option<Step> {
        next_step(&node("a"), &standing(voters, learners), &set(wanted), &set(counted), &set(near))
    }

    #[test]
    fn who_is_wanted_and_connected_is_added() {
        let all = ["a", "b", "c"];
        assert_eq!(step(&all, &[], &all, &all, &all), None);
        assert_eq!(step(&all, &[], &["a", "b", "c", "d"], &all, &["b", "c"]), None, "d is not there yet");
        let add = Some(Step::Add(node("d")));
        assert_eq!(step(&all, &[], &["a", "b", "c", "d"], &all, &["b", "c", "d"]), add);
        assert_eq!(step(&all, &["d"], &["a", "b", "c", "d"], &all, &["b", "c", "d"]), add, "a learner has no vote yet");
    }

    #[test]
    fn nobody_loses_the_vote_while_the_record_counts_them() {
        let all = ["a", "b", "c"];
        assert_eq!(step(&all, &[], &["a", "b"], &all, &["b", "c"]), None);
        assert_eq!(step(&all, &[], &["a", "b"], &["a", "b"], &["b", "c"]), Some(Step::Remove(node("c"))));
        assert_eq!(step(&["a", "b"], &["c"], &["a", "b"], &[], &["b"]), Some(Step::Remove(node("c"))));
    }

    #[test]
    fn the_leader_passes_on_before_it_goes() {
        let all = ["a", "b", "c"];
        assert_eq!(step(&all, &[], &["b", "c"], &["b", "c"], &["c"]), Some(Step::Pass(node("c"))));
        assert_eq!(step(&all, &[], &["b", "c"], &["b", "c"], &[]), None, "nobody is there to lead");
    }

    #[test]
    fn only_a_leader_of_the_same_store_says_who_is_removed() {
        let mut reply = StoreReply { standing: standing(&["b", "c"], &[]), generation: 3, ..StoreReply::default() };
        let is = |reply: &StoreReply| removed(&node("a"), 0, 3, &[(node("b"), reply.clone())]);
        assert!(!is(&reply), "b does not lead");
        reply.standing.leader = Some(node("b"));
        assert!(is(&reply));
        assert!(!is(&StoreReply { generation: 2, ..reply.clone() }), "it knows less than we do");
        assert!(!is(&StoreReply { listed: vec![node("a")], ..reply.clone() }));
        reply.standing.learners = vec![node("a")];
        assert!(!is(&reply), "still a member");
        reply.standing = StoreStanding { group: 9, leader: Some(node("b")), ..standing(&["b"], &[]) };
        assert!(!is(&reply), "another store");
    }
}

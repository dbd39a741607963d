//! The operator: wishes that reach each node at another time, commands, nodes that come and go, and a store that is rebuilt.

use crate::event::{Happening, Node};
use crate::faults::Fault;
use crate::network::STORE;
use crate::server::{Process, Server};
use crate::shape::MS;
use crate::store::Store;
use crate::world::World;
use mainstay_decide::{Config, Input};
use mainstay_model::{ClaimState, Command, Durability, Durable, Event, Message, NodeId, Record, Revision, Span, Term};
use std::collections::BTreeSet;

/// One generation of what the operator wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Data nodes.
    pub listed: BTreeSet<Node>,
    /// Those that may not become primary.
    pub excluded: BTreeSet<NodeId>,
    /// The mode.
    pub durability: Durability,
    /// n.
    pub sync_replicas: u32,
    /// The lease.
    pub lease: Span,
    /// No take-over, restart or rejoin by itself.
    pub paused: bool,
}

impl Wish {
    /// Would two data nodes, and as many as commits are to wait for, be left without one of them? Otherwise the operator is refused.
    pub(crate) fn can_spare_one(&self) -> bool {
        self.listed.len() > 2.max(1 + self.sync_replicas as usize)
    }
}

/// So far a rebuilt store's revisions go beyond the last of the lost one.
const REVISION_STEP: u64 = 1_000_000_000;

/// Numbers of commands, to count what was accepted.
pub(crate) const FAILOVER: u64 = 1;
pub(crate) const FAILOVER_WITH_LOSS: u64 = 2;
const RESTART: u64 = 3;
const RESTART_IN_PLACE: u64 = 4;
pub(crate) const REINIT: u64 = 5;

impl World {
    pub(crate) fn first_wish(&mut self) {
        let wish = Wish {
            listed: (0..self.shape.listed).collect(),
            excluded: BTreeSet::new(),
            durability: self.shape.durability,
            sync_replicas: self.shape.sync_replicas,
            lease: self.shape.lease,
            paused: false,
        };
        for node in &wish.listed {
            self.nodes[*node].joined = true;
        }
        self.wishes.push(wish);
    }

    /// The newest generation.
    pub(crate) fn wish(&self) -> &Wish {
        &self.wishes[self.wishes.len() - 1]
    }

    /// A new generation: every node learns it in its own time.
    pub(crate) fn new_wish(&mut self, wish: Wish) {
        self.wish_within(wish, |world, _| {
            let most = if world.healed || world.rng.chance(4000) { 60 } else { 2_500 };
            world.rng.range(1, most) * MS
        });
    }

    /// The same; `delay` says how long each node takes to learn it.
    pub(crate) fn wish_within(&mut self, wish: Wish, delay: impl Fn(&mut World, Node) -> u64) {
        if *self.wish() == wish {
            return;
        }
        self.trace(None, || format!("WISH {wish:?}"));
        self.wishes.push(wish);
        let generation = self.wishes.len() - 1;
        for node in 0..self.nodes.len() {
            let delay = delay(self, node);
            self.queue.push(self.now + delay, Happening::Learn(node, generation));
        }
    }

    pub(crate) fn learn(&mut self, node: Node, generation: usize) {
        if self.nodes[node].generation >= generation || !self.nodes[node].joined {
            return;
        }
        if !self.agent_runs(node) || !self.net.passes(self.now, STORE, node) {
            self.queue.push(self.now + 120 * MS, Happening::Learn(node, generation));
            return;
        }
        self.nodes[node].generation = generation;
        let config = self.config(node, 0);
        self.input(node, Input::Configured(Box::new(config)));
    }

    /// What a node goes by.
    pub(crate) fn config(&self, node: Node, seed: u64) -> Config {
        let wish = &self.wishes[self.nodes[node].generation];
        let listed = wish.listed.iter().map(|one| (self.names[*one].clone(), *one as u32));
        Config {
            me: self.names[node].clone(),
            data_nodes: listed.collect(),
            excluded: wish.excluded.clone(),
            founder: None,
            durability: wish.durability,
            sync_replicas: wish.sync_replicas,
            lease: wish.lease,
            margin: Span(self.shape.margin.0 * wish.lease.0 / self.shape.lease.0),
            suspicion: Span(350),
            ping: Span(90),
            hang: Span(1500),
            seed,
            paused: wish.paused,
            plants: self.plants.clone(),
        }
    }

    /// Something that the operator does.
    pub(crate) fn operate(&mut self, fault: Fault, node: Node) {
        let mut wish = self.wish().clone();
        match fault {
            Fault::Failover => self.command(node, FAILOVER, Command::Failover { accept_data_loss: false }),
            Fault::FailoverWithLoss => {
                if self.rng.chance(6000) {
                    let until = self.now + self.rng.range(2_500, 6_000) * MS;
                    for other in (0..self.nodes.len()).filter(|other| *other != node).collect::<Vec<_>>() {
                        self.net.cut(node, other, until);
                        self.net.cut(other, node, until);
                    }
                }
                self.command(node, FAILOVER_WITH_LOSS, Command::Failover { accept_data_loss: true });
            }
            Fault::Restart => self.command(node, RESTART, Command::Restart { in_place: false }),
            Fault::RestartInPlace => self.command(node, RESTART_IN_PLACE, Command::Restart { in_place: true }),
            Fault::Reinit => self.command(node, REINIT, Command::Reinit),
            Fault::Pause | Fault::Resume => {
                wish.paused = fault == Fault::Pause;
                let counter = if wish.paused { &mut self.counters.pauses } else { &mut self.counters.resumes };
                *counter += u64::from(self.wishes.last().is_some_and(|old| old.paused != wish.paused));
            }
            Fault::NodeAdded => self.add_node(&mut wish),
            Fault::NodeRemoved => {
                // The command asks for a primary, and for another one; that it is another one may be over by the time the wish is written.
                let spare = wish.can_spare_one() && self.serving().is_some();
                self.counters.nodes_removed += u64::from(spare && wish.listed.remove(&node));
            }
            Fault::NodeReplaced => self.replace_node(node),
            Fault::Mode => self.change_mode(&mut wish),
            Fault::SyncReplicas => {
                let most = if wish.listed.len() > 2 { 2 } else { 1 };
                wish.sync_replicas = self.rng.range(1, most) as u32;
                self.counters.sync_changes += u64::from(self.wish().sync_replicas != wish.sync_replicas);
            }
            Fault::Lease => {
                wish.lease = Span(*[800, 1200, 2400, 3600].get(self.rng.index(4)).unwrap_or(&1200));
                self.counters.lease_changes += u64::from(self.wish().lease != wish.lease);
            }
            Fault::StoreLost => self.lose_store(),
            _ => {}
        }
        self.new_wish(wish);
    }

    pub(crate) fn command(&mut self, node: Node, id: u64, command: Command) {
        self.input(node, Input::Operator { id, by: "operator".to_owned(), command });
    }

    pub(crate) fn replied_to_operator(&mut self, node: Node, id: u64, accepted: bool) {
        if !accepted {
            self.counters.refusals += 1;
            return;
        }
        let host = &mut self.nodes[node];
        match id {
            FAILOVER | FAILOVER_WITH_LOSS => {
                host.failing_over = true;
                host.accepts_loss |= id == FAILOVER_WITH_LOSS;
                self.counters.failovers += 1;
            }
            RESTART => self.counters.restarts_ordered += 1,
            RESTART_IN_PLACE => self.counters.restarts_in_place += 1,
            REINIT => self.counters.reinits += 1,
            _ => {}
        }
    }

    fn change_mode(&mut self, wish: &mut Wish) {
        let modes = [Durability::Strict, Durability::Available, Durability::Async];
        let mode = *modes.get(self.rng.index(3)).unwrap_or(&Durability::Strict);
        if mode == wish.durability {
            return;
        }
        wish.durability = mode;
        match mode {
            Durability::Strict => self.counters.to_strict += 1,
            Durability::Available => self.counters.to_available += 1,
            Durability::Async => self.counters.to_async += 1,
        }
    }

    // ---- nodes -------------------------------------------------------------------------------------------------------

    fn add_node(&mut self, wish: &mut Wish) {
        let Some(node) = (0..self.nodes.len()).find(|node| !wish.listed.contains(node)) else { return };
        wish.listed.insert(node);
        self.counters.nodes_added += 1;
        if !self.nodes[node].joined {
            self.nodes[node].joined = true;
            self.nodes[node].group = self.group;
            self.nodes[node].generation = self.wishes.len() - 1;
            let soon = self.now + self.rng.range(20, 400) * MS;
            self.queue.push(soon, Happening::AgentStart(node));
        }
    }

    /// A host is wiped, unless the operator would be told that its copy is needed: the last leader's copy, or enough members, must be whole.
    fn replace_node(&mut self, node: Node) {
        let Some((_, record)) = self.store.newest() else { return };
        let whole = |name: &NodeId| {
            let other = crate::world::number(name);
            other != node
                && self.nodes[other].disk.copy == record.members.get(name).copied()
                && self.nodes[other].disk.copy.is_some()
        };
        let leader = record.leader.as_ref().is_some_and(whole);
        let leads =
            record.leader.as_ref() == Some(&self.names[node]) || record.holder.as_ref() == Some(&self.names[node]);
        let count = record.members.keys().filter(|name| whole(name)).count();
        let needed = self.nodes[node]
            .server
            .log
            .iter()
            .any(|entry| self.ledger.acknowledged.contains_key(&entry.id) && !self.elsewhere(node, entry.id));
        let strict = self.wishes.iter().all(|wish| wish.durability == Durability::Strict);
        // A leader's write may be under way: its host is wiped only after its release.
        let free = record.state == ClaimState::Free;
        let spare =
            if leads { strict && free && !record.asynchronous && count > record.quorum as usize } else { leader };
        if !spare || needed || record.state == ClaimState::Founding {
            return;
        }
        self.wipe(node);
    }

    /// The host comes back with an empty disk.
    pub(crate) fn wipe(&mut self, node: Node) {
        self.counters.nodes_replaced += 1;
        self.trace(Some(node), || "the host is wiped and replaced".to_owned());
        self.agent_dies(node, "its host is wiped");
        self.server_ends(node, "its host is wiped");
        let generation = self.wishes.len() - 1;
        let host = &mut self.nodes[node];
        let life = host.server.life;
        host.server = Server { life, ..Server::default() };
        (host.disk, host.gate, host.disk_written) = (Durable::default(), Durable::default(), false);
        (host.promised, host.generation, host.lost) = (Term(0), generation, None);
        host.dropped_acknowledged.clear();
    }

    // ---- a store that is rebuilt ---------------------------------------------------------------------------------------

    fn lose_store(&mut self) {
        if self.store_lost
            || !self.shape.store_loss_for_ever
            || self.store.newest().is_none_or(|(_, record)| record.system.is_none())
        {
            return;
        }
        self.trace(None, || "the store has lost its majority for ever".to_owned());
        self.store_lost = true;
        self.store.away_until = u64::MAX;
        // Somebody notices, and waits until no lease can run any more.
        let lease = self
            .store
            .newest()
            .and_then(|(_, record)| record.lease)
            .unwrap_or(self.shape.lease)
            .0
            .max(self.wish().lease.0);
        let wait = lease * 14 / 10 * MS + self.rng.range(300, 900) * MS;
        self.queue.push(self.now + wait, Happening::Recover);
    }

    fn known_record(&self, node: Node) -> Option<Record> {
        let mind = self.nodes[node].mind.as_ref()?;
        mind.summary().record.map(|(_, record)| record)
    }

    /// Rebuilds the store from one node; the others join it now or later.
    pub(crate) fn recover(&mut self) {
        if !self.store_lost || self.group > 0 {
            return;
        }
        let listed = self.wish().listed.clone();
        let fit: Vec<Node> = (0..self.nodes.len())
            .filter(|node| listed.contains(node) && self.agent_runs(*node))
            .filter(|node| {
                self.nodes[*node].disk.copy.is_some()
                    && self.known_record(*node).is_some_and(|record| record.system.is_some())
            })
            .collect();
        let has_all = |node: &Node| {
            let log = &self.nodes[*node].server.log;
            self.ledger
                .acknowledged
                .keys()
                .chain(self.ledger.visible.keys())
                .all(|id| log.binary_search_by(|entry| entry.id.cmp(id)).is_ok())
        };
        let complete: Vec<Node> = fit.iter().copied().filter(|node| has_all(node)).collect();
        let from = if self.rng.chance(7000) && !complete.is_empty() { &complete } else { &fit };
        let Some(node) = from.get(self.rng.index(from.len())).copied() else {
            self.queue.push(self.now + 200 * MS, Happening::Recover);
            return;
        };
        let lossy = !has_all(&node);
        let (Some(copy), Some(known)) = (self.nodes[node].disk.copy, self.known_record(node)) else { return };
        let term = known.term.next_incarnation();
        let record = known.recovered(&self.names[node], copy, term, 16);
        self.trace(Some(node), || format!("RECOVER: {}", crate::host::brief(&record)));
        self.counters.recoveries += 1;
        // As the real one: its agent begins anew in the rebuilt store.
        self.agent_dies(node, "rebuilds the store");
        self.rebuilt_whole = !lossy;
        if lossy {
            self.ledger.lossy.insert(term);
        }
        self.lost_store = std::mem::take(&mut self.store);
        self.lost_store.away_until = if self.rng.chance(5000) { self.now } else { u64::MAX };
        // As the real one: no revision of the lost store is met again.
        let lost = self.lost_store.newest().map_or(0, |(revision, _)| revision.0);
        self.store = Store { versions: vec![(Revision(lost + REVISION_STEP), record)], ..Store::default() };
        self.group = 1;
        self.nodes[node].group = 1;
        self.watch_begins(node);
        let until = self.now + self.rng.range(300, 5_000) * MS;
        let mut away = Vec::new();
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            if self.healed || !self.nodes[other].joined || self.rng.chance(4000) {
                self.join(other);
            } else {
                away.push(other);
            }
        }
        for other in away {
            self.cut_from_joined(other, until);
            let later = until + self.rng.range(100, 1_500) * MS;
            self.queue.push(later, Happening::Join(other));
        }
    }

    /// A member of the lost store is on the other side of the network.
    fn cut_from_joined(&mut self, node: Node, until: u64) {
        for other in (0..self.nodes.len()).filter(|other| self.nodes[*other].group == self.group) {
            self.net.cut(node, other, until);
            self.net.cut(other, node, until);
        }
    }

    /// The operator lets a node of the lost store join: its agent begins anew in the rebuilt one.
    pub(crate) fn join(&mut self, node: Node) {
        if self.nodes[node].group == self.group {
            return;
        }
        self.trace(Some(node), || "joins the rebuilt store".to_owned());
        self.agent_dies(node, "joins the rebuilt store");
        self.nodes[node].group = self.group;
        self.nodes[node].heard_rebuilt = None;
    }

    /// Did this input tell a node of the lost store that there is a rebuilt one?
    pub(crate) fn note_contact(&mut self, node: Node, input: &Input) {
        if self.nodes[node].group == self.group || self.nodes[node].heard_rebuilt.is_some() {
            return;
        }
        let heard = match input {
            Input::Peer(_, Message::Presence(presence)) => presence.promise.incarnation() > 0,
            Input::Peer(_, Message::Recruit { term }) => term.incarnation() > 0,
            _ => false,
        };
        if heard {
            self.counters.superseded += 1;
            self.nodes[node].heard_rebuilt = Some(self.now);
        }
    }

    /// The end of faults: wishes that a cluster can come to rest with, and everybody in one store.
    pub(crate) fn heal_wishes(&mut self) {
        let mut wish = self.wish().clone();
        wish.excluded.clear();
        wish.paused = false;
        self.new_wish(wish);
        if self.store_lost {
            self.recover();
            (0..self.nodes.len()).for_each(|node| self.join(node));
        }
        self.lost_store.away_until = u64::MAX;
    }

    // ---- what must hold ------------------------------------------------------------------------------------------------

    /// While paused a node raises the term only if it was invited, or an operator ordered it.
    pub(crate) fn check_pause(&mut self, node: Node, wanted: &Record) {
        let Some(mind) = self.nodes[node].mind.as_ref() else { return };
        let raises = wanted.state == ClaimState::Electing;
        let invited = wanted.wanted.as_ref() == Some(&self.names[node]);
        if raises && mind.config().paused && !invited && !self.nodes[node].failing_over {
            self.violate("pause", format!("n{node} raises the term to {} by itself while paused", wanted.term));
        }
    }

    /// A claim that may lose something needs the mode, or an operator who accepted that.
    pub(crate) fn check_lossy_claim(&mut self, node: Node, before: &Record, after: &Record) {
        let lossy = after.lossy == Some(after.timeline);
        let shrinks = after.quorum == 0 && after.members.len() == 1 && before.members.len() > 1 && !before.asynchronous;
        if lossy || shrinks {
            self.counters.lossy_claims += 1;
            let accepted = self.nodes[node].accepts_loss;
            let inherits = before.lossy == Some(before.timeline);
            // A store rebuilt from a copy that held everything warns, and yet nothing may be missing.
            let whole = self.rebuilt_whole && before.reason.starts_with("the store was rebuilt");
            if inherits && whole && !accepted && !before.asynchronous {
                return;
            }
            if accepted || before.asynchronous || inherits {
                self.ledger.lossy.insert(after.term);
            } else {
                self.violate("S6", format!("n{node} claims term {} with a loss that nobody accepted", after.term));
            }
            self.counters.forced += u64::from(accepted && !before.asynchronous);
        }
    }

    /// What the history says must fit the truth.
    pub(crate) fn reported(&mut self, node: Node, event: &Event) {
        match event.kind.as_str() {
            "forced" | "asynchronous-take-over" | "loss-possible" => drop(self.ledger.reported.insert(event.term)),
            "failover-failed" | "primary-opened" => {
                // The acceptance stands: a claim that was under way may still land.
                self.nodes[node].failing_over = false;
                let risk = event.change.as_ref().is_some_and(|change| change.at_risk_bytes.is_some());
                let told = risk || self.ledger.reported.contains(&event.term);
                if event.kind == "primary-opened" && !told && self.ledger.lossy.contains(&event.term) {
                    self.violate("S6", format!("n{node} opened term {} without naming what is at risk", event.term));
                }
            }
            "rewound" | "cloned" => {
                let dropped = std::mem::take(&mut self.nodes[node].dropped_acknowledged);
                let warned = event.lost.as_ref().is_some_and(|lost| lost.may_be_acknowledged);
                if !dropped.is_empty() && !warned {
                    self.violate("S6", format!("n{node} reports acknowledged commits as never acknowledged"));
                }
            }
            _ => {}
        }
    }

    /// Servers of removed nodes that were stopped.
    pub(crate) fn count_removed(&mut self, node: Node) {
        if !self.wish().listed.contains(&node) && self.nodes[node].server.process == Process::Standby {
            self.counters.removed_stopped += 1;
        }
    }
}

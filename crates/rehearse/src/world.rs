//! The small world: a store that answers while a majority of the votes is up, or an etcd that always does, a network that delivers, servers that obey and take their time.
//! A few milliseconds a step, no chance: the same cluster and the same failures end the same.

use crate::server::{Db, crash};
use mainstay_decide::{CasResult, Config, Input, Mind, Output};
use mainstay_model::record::Durable;
use mainstay_model::spec::Spec;
use mainstay_model::{
    ClaimState, Moment, NodeId, Order, OrderFailure, OrderId, Outcome, Position, Record, Revision, ServerObservation,
    ServerState, Span, SystemId, Walsender,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

/// One step of the world. Nothing in it is faster than a few of these.
const STEP_MS: u64 = 5;
/// How long the store gives no answer after a voter was lost: its own election, with room.
pub(crate) const STORE_PAUSE_MS: u64 = 1000;

#[derive(Clone)]
struct Work {
    id: OrderId,
    stale: bool,
    order: Order,
    done_at: u64,
}

/// A node: its decisions and its server.
#[derive(Clone)]
pub(crate) struct Node {
    mind: Mind,
    pub(crate) alive: bool,
    witness: bool,
    pub(crate) durable: Option<Durable>,
    pub(crate) data: Option<SystemId>,
    pub(crate) db: Db,
    probe_at: u64,
    work: Option<Work>,
    kill: Option<(OrderId, u64)>,
}

/// The world.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) store: Option<(Revision, Record)>,
    names: Rc<[NodeId]>,
    inputs: VecDeque<(u64, NodeId, Input)>,
    store_from: u64,
    asynchronous: bool,
    /// The store is an etcd that goes on, whichever nodes are lost.
    etcd: bool,
    pub(crate) systems: u64,
    /// The newest acknowledged position, and when that was.
    pub(crate) acknowledged: Option<(Position, u64)>,
    /// An acknowledged position was missing in the log of a primary that opened.
    pub(crate) lost: bool,
}

/// How long an order takes: what real servers take on a machine that is busy with nothing else, rounded up.
fn duration(order: &Order) -> u64 {
    match order {
        Order::Promote { .. } => 300,
        Order::StartStandby | Order::Clone { .. } | Order::Rewind { .. } => 500,
        Order::RestartInPlace => 1500,
        _ => 50,
    }
}

fn config(spec: &Spec, me: &NodeId) -> Config {
    let places = spec.nodes.iter().zip(0u32..).filter(|(node, _)| !node.witness);
    Config {
        me: me.clone(),
        data_nodes: places.map(|(node, place)| (node.name.clone(), place)).collect(),
        excluded: BTreeSet::new(),
        founder: None,
        durability: spec.cluster.durability,
        sync_replicas: spec.sync_replicas(),
        lease: spec.failover.lease(),
        margin: Span(spec.failover.lease_ms * spec.failover.margin_percent / 100),
        suspicion: Span(spec.failover.suspicion_ms),
        ping: Span(spec.failover.ping_ms),
        hang: Span(spec.failover.suspicion_ms.saturating_mul(2)),
        seed: 7,
        paused: false,
        plants: BTreeSet::new(),
    }
}

impl World {
    /// Nothing is founded yet.
    pub(crate) fn new(spec: &Spec) -> World {
        let node = |node: &mainstay_model::spec::Node| Node {
            mind: Mind::new(config(spec, &node.name), None, None, 1),
            alive: true,
            witness: node.witness,
            durable: None,
            data: None,
            db: Db::default(),
            probe_at: 0,
            work: None,
            kill: None,
        };
        World {
            now: 1000,
            nodes: spec.nodes.iter().map(|each| (each.name.clone(), node(each))).collect(),
            store: None,
            names: spec.nodes.iter().map(|node| node.name.clone()).collect(),
            inputs: VecDeque::new(),
            store_from: 0,
            asynchronous: spec.cluster.durability == mainstay_model::Durability::Async,
            etcd: spec.store.is_etcd(),
            systems: 0,
            acknowledged: None,
            lost: false,
        }
    }

    /// Runs until every living node is settled under one open primary, or the time is over.
    pub(crate) fn settle(&mut self, limit_ms: u64) -> Option<NodeId> {
        let until = self.now + limit_ms;
        while self.now < until {
            self.tick();
            if let Some(primary) = self.settled() {
                return Some(primary);
            }
        }
        None
    }

    fn settled(&self) -> Option<NodeId> {
        let open = |node: &Node| node.db.state == ServerState::Primary && node.db.open;
        let mut primaries = self.nodes.iter().filter(|(_, node)| open(node)).map(|(name, _)| name);
        let (Some(primary), None) = (primaries.next(), primaries.next()) else { return None };
        let (_, record) = self.store.as_ref()?;
        let living: Vec<_> = self.nodes.iter().filter(|(_, node)| node.alive && !node.witness).collect();
        let follows = |name: &NodeId, node: &Node| {
            name == primary || (node.db.state == ServerState::Standby && node.db.upstream.as_ref() == Some(primary))
        };
        let members = self.asynchronous || record.members.len() == living.len();
        let calm = living.iter().all(|(name, node)| node.work.is_none() && node.kill.is_none() && follows(name, node));
        let held = record.state == ClaimState::Held && record.leader.as_ref() == Some(primary);
        (held && members && calm).then(|| primary.clone())
    }

    /// The host is gone, without a word.
    pub(crate) fn lose(&mut self, name: &NodeId) {
        if let Some(node) = self.nodes.get_mut(name) {
            crash(&mut node.db);
            (node.alive, node.work, node.kill) = (false, None, None);
        }
        if !self.etcd {
            self.store_from = self.now + STORE_PAUSE_MS;
        }
    }

    /// The database server alone dies; its agent sees it.
    pub(crate) fn crash_server(&mut self, name: &NodeId) {
        if let Some(node) = self.nodes.get_mut(name) {
            crash(&mut node.db);
        }
        self.inputs.push_back((self.now + 1, name.clone(), Input::ServerExited));
    }

    fn store_answers(&self) -> bool {
        let alive = self.nodes.values().filter(|node| node.alive).count();
        self.now >= self.store_from && (self.etcd || alive > self.nodes.len() / 2)
    }

    /// So many milliseconds.
    pub(crate) fn run(&mut self, span_ms: u64) {
        let until = self.now + span_ms;
        while self.now < until {
            self.tick();
        }
    }

    /// One step.
    pub(crate) fn tick(&mut self) {
        self.now += STEP_MS;
        self.replicate();
        self.write_and_acknowledge();
        self.guard();
        self.finish_orders();
        self.deliver();
        let names = Rc::clone(&self.names);
        for name in names.iter() {
            self.let_think(name);
        }
    }

    fn let_think(&mut self, name: &NodeId) {
        let Some(node) = self.nodes.get_mut(name).filter(|node| node.alive) else { return };
        if self.now >= node.probe_at && !node.witness {
            node.probe_at = self.now + node.mind.probe_interval().0.max(1);
            let seen = self.observe(name);
            self.feed(name, Input::Observed(seen));
        } else if node.mind.wake().is_none_or(|wake| wake.0 <= self.now) {
            self.feed(name, Input::Tick);
        }
    }

    fn deliver(&mut self) {
        for _ in 0..self.inputs.len() {
            let Some((at, name, input)) = self.inputs.pop_front() else { break };
            if at > self.now {
                self.inputs.push_back((at, name, input));
            } else if self.nodes.get(&name).is_some_and(|node| node.alive) {
                self.feed(&name, input);
            }
        }
    }

    fn feed(&mut self, name: &NodeId, input: Input) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        for output in node.mind.step(Moment(self.now), input) {
            self.carry_out(name, output);
        }
    }

    fn carry_out(&mut self, name: &NodeId, output: Output) {
        let now = self.now;
        let answers = self.store_answers();
        let Some(node) = self.nodes.get_mut(name) else { return };
        match output {
            Output::Persist(durable) => node.durable = Some(durable),
            Output::Read(read) => {
                let answer = Input::Read(read, answers.then(|| self.store.clone()));
                self.inputs.push_back((now + 2, name.clone(), answer));
            }
            Output::Cas(cas, expected, record) => self.compare_and_set(name, cas, expected, record),
            Output::Send(to, message) => {
                if self.nodes.get(&to).is_some_and(|node| node.alive) {
                    self.inputs.push_back((now + 1, to, Input::Peer(name.clone(), message)));
                }
            }
            Output::Deadline(_, at) => node.db.deadline = Some(at),
            Output::Order(id, _, Order::Kill) => {
                if let Some(work) = node.work.take() {
                    if matches!(work.order, Order::Rewind { .. } | Order::Clone { .. }) {
                        node.db.copy = None;
                    }
                    let aborted = Input::Ordered(work.id, Outcome::Failed(OrderFailure::Aborted));
                    self.inputs.push_back((now + 1, name.clone(), aborted));
                }
                node.kill = Some((id, now + 20));
            }
            Output::Order(id, term, order) => {
                let stale = node.durable.as_ref().is_some_and(|durable| term < durable.promise);
                let done_at = now + duration(&order);
                node.work = Some(Work { id, stale, order, done_at });
            }
            Output::Route(..) | Output::Event(_) | Output::Reply(..) | Output::Reason(_) => {}
        }
    }

    fn compare_and_set(&mut self, name: &NodeId, cas: u64, expected: Option<Revision>, record: Record) {
        let present = self.store.as_ref().map(|(revision, _)| *revision);
        let result = if !self.store_answers() {
            CasResult::Unavailable
        } else if present == expected {
            let revision = Revision(present.map_or(1, |revision| revision.0 + 1));
            self.store = Some((revision, record.clone()));
            for other in self.nodes.keys() {
                self.inputs.push_back((self.now + 2, other.clone(), Input::Watched(revision, record.clone())));
            }
            CasResult::Done(revision)
        } else {
            CasResult::Conflict(self.store.clone())
        };
        self.inputs.push_back((self.now + 2, name.clone(), Input::Cas(cas, result)));
    }

    fn observe(&self, name: &NodeId) -> ServerObservation {
        let Some(node) = self.nodes.get(name) else { return ServerObservation::default() };
        let db = &node.db;
        let mut seen = ServerObservation { at: Moment(self.now), state: db.state, open: db.open, ..Default::default() };
        if db.state == ServerState::Down {
            return seen;
        }
        seen.timeline = Some(db.end.position.timeline);
        seen.end = Some(db.end.position.lsn);
        seen.receiving = self.streams(name);
        for (other, replica) in &self.nodes {
            if replica.db.upstream.as_ref() == Some(name)
                && self.streams(other)
                && let Some(copy) = replica.db.copy
            {
                let at = replica.db.end.position.lsn;
                seen.walsenders.push(Walsender { node: other.clone(), copy, flush: at, replay: at, streaming: true });
            }
        }
        seen
    }

    /// Does this standby stream from its upstream?
    fn streams(&self, name: &NodeId) -> bool {
        let Some(replica) = self.nodes.get(name).map(|node| &node.db) else { return false };
        let Some(from) = replica.upstream.as_ref().and_then(|upstream| self.nodes.get(upstream)).map(|node| &node.db)
        else {
            return false;
        };
        replica.state == ServerState::Standby
            && from.state != ServerState::Down
            && from.end.lineage.contains(replica.end.position, from.end.position.timeline, from.end.position.lsn)
    }

    fn replicate(&mut self) {
        let names = Rc::clone(&self.names);
        for name in names.iter() {
            if !self.streams(name) {
                continue;
            }
            let upstream = self.nodes.get(name).and_then(|node| node.db.upstream.as_ref());
            let end = upstream.and_then(|upstream| self.nodes.get(upstream)).map(|node| node.db.end.clone());
            if let (Some(end), Some(node)) = (end, self.nodes.get_mut(name)) {
                node.db.end = end;
            }
        }
    }

    /// The open primary writes; what its setting confirms is acknowledged.
    fn write_and_acknowledge(&mut self) {
        let open = |node: &Node| node.db.state == ServerState::Primary && node.db.open;
        let names: Vec<NodeId> =
            self.nodes.iter().filter(|(_, node)| open(node)).map(|(name, _)| name.clone()).collect();
        for name in names {
            let Some(db) = self.nodes.get(&name).map(|node| node.db.clone()) else { continue };
            let held = self.acknowledged.is_none_or(|(position, _)| {
                db.end.lineage.contains(position, db.end.position.timeline, db.end.position.lsn)
            });
            let newest = self.nodes.values().filter(|node| open(node)).map(|node| node.db.end.position.timeline).max();
            if newest != Some(db.end.position.timeline) {
                continue;
            }
            self.lost |= !held;
            let flushed = |node: &NodeId, copy| {
                self.streams(node)
                    && self.nodes.get(node).is_some_and(|replica| {
                        replica.db.upstream.as_ref() == Some(&name)
                            && replica.db.copy == Some(copy)
                            && replica.db.end.position == db.end.position
                    })
            };
            let confirmed = db.setting.copies.iter().filter(|(node, copy)| flushed(node, **copy)).count();
            if confirmed >= db.setting.need as usize {
                self.acknowledged = Some((db.end.position, self.now));
            }
            if let Some(node) = self.nodes.get_mut(&name) {
                node.db.end.position.lsn.0 += 1;
            }
        }
    }

    fn guard(&mut self) {
        let now = Moment(self.now);
        for (name, node) in &mut self.nodes {
            if node.db.state == ServerState::Primary && node.db.deadline.is_some_and(|at| now > at) {
                crash(&mut node.db);
                self.inputs.push_back((self.now + 1, name.clone(), Input::Fenced("deadline".to_owned())));
            }
        }
    }

    fn finish_orders(&mut self) {
        let names = Rc::clone(&self.names);
        for name in names.iter() {
            let now = self.now;
            let Some(node) = self.nodes.get_mut(name) else { continue };
            if let Some((kill, _)) = node.kill.take_if(|(_, at)| *at <= now) {
                crash(&mut node.db);
                self.inputs.push_back((now, name.clone(), Input::Ordered(kill, Outcome::Done)));
            }
            if let Some(work) = node.work.take_if(|work| work.done_at <= now) {
                let outcome =
                    if work.stale { Outcome::Failed(OrderFailure::Stale) } else { self.execute(name, work.order) };
                self.inputs.push_back((now, name.clone(), Input::Ordered(work.id, outcome)));
            }
        }
    }
}

//! A small perfect world around several machines: a store that answers, a network that delivers, servers that obey. It has no
//! faults of its own; tests add one each (a kill, a restart of one agent after one output). The simulator is elsewhere.
#![allow(dead_code, reason = "each test uses its part")]

mod servers;

use servers::crash;

use mainstay_decide::{CasResult, Config, Input, Mind, Output};
use mainstay_model::record::{Durability, Durable};
use mainstay_model::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A node's name.
pub(crate) fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

/// A configuration of nodes `a`, `b`, `c` … with the default times.
pub(crate) fn config(me: &str, nodes: &[&str], durability: Durability, n: u32) -> Config {
    let places = nodes.iter().zip(0u32..).map(|(name, place)| (id(name), place));
    Config {
        me: id(me),
        data_nodes: places.collect(),
        excluded: BTreeSet::new(),
        durability,
        sync_replicas: n,
        lease: Span(3000),
        margin: Span(600),
        suspicion: Span(1000),
        ping: Span(250),
        hang: Span(2000),
        seed: 7,
        founder: None,
        paused: false,
        plants: BTreeSet::new(),
    }
}

/// A database server that does as it is told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Db {
    pub(crate) state: ServerState,
    pub(crate) end: LogEnd,
    pub(crate) upstream: Option<NodeId>,
    pub(crate) copy: Option<CopyId>,
    pub(crate) setting: SyncSetting,
    pub(crate) open: bool,
    pub(crate) deadline: Option<Moment>,
}

#[derive(Clone)]
struct Work {
    id: OrderId,
    stale: bool,
    order: Order,
    done_at: u64,
}

#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) mind: Mind,
    config: Config,
    pub(crate) alive: bool,
    pub(crate) durable: Option<Durable>,
    pub(crate) data: Option<SystemId>,
    pub(crate) db: Db,
    pub(crate) life: u64,
    probe_at: u64,
    work: Option<Work>,
    kill: Option<(OrderId, u64)>,
    pub(crate) route: Option<(Term, RouteState, Moment)>,
}

/// The world.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) store: Option<(Revision, Record)>,
    inputs: VecDeque<(u64, NodeId, u64, Input)>,
    pub(crate) acknowledged: Vec<Position>,
    pub(crate) cut_off: BTreeSet<NodeId>,
    pub(crate) outputs: u64,
    /// Restart the agent that gave this output, right after it; `true`: with its whole node.
    pub(crate) interrupt_after: Option<(u64, bool)>,
    pub(crate) interrupted: Option<String>,
    /// What happened, if `traced`.
    pub(crate) trace: Vec<String>,
    pub(crate) traced: bool,
    systems: u64,
    /// What this node writes is not answered, and it is told of nothing new; `true`: its writes are taken all the same.
    pub(crate) unanswered: Option<(NodeId, bool)>,
    /// Restored copies that lie ready.
    pub(crate) prepared: BTreeMap<NodeId, (CopyId, LogEnd)>,
    /// Events, and answers to commands.
    pub(crate) events: Vec<Event>,
    /// Reasons, in words.
    pub(crate) reasons: Vec<String>,
    replies: Vec<Result<String, String>>,
}

const ORDER_MS: u64 = 8;

impl World {
    pub(crate) fn new(nodes: &[&str], durability: Durability, n: u32) -> World {
        let mut world = World {
            now: 1000,
            nodes: BTreeMap::new(),
            store: None,
            inputs: VecDeque::new(),
            acknowledged: Vec::new(),
            cut_off: BTreeSet::new(),
            outputs: 0,
            interrupt_after: None,
            interrupted: None,
            trace: Vec::new(),
            traced: false,
            systems: 0,
            unanswered: None,
            prepared: BTreeMap::new(),
            events: Vec::new(),
            reasons: Vec::new(),
            replies: Vec::new(),
        };
        for name in nodes {
            let config = config(name, nodes, durability, n);
            let mind = Mind::new(config.clone(), None, None, 1);
            let node = Node {
                mind,
                config,
                alive: true,
                durable: None,
                data: None,
                db: Db::default(),
                life: 1,
                probe_at: 0,
                work: None,
                kill: None,
                route: None,
            };
            world.nodes.insert(id(name), node);
        }
        world
    }

    /// Runs until every node is settled under one open primary, or the time is over.
    pub(crate) fn settle(&mut self, limit_ms: u64) -> Result<NodeId, String> {
        let until = self.now + limit_ms;
        while self.now < until {
            self.tick();
            if let Some(primary) = self.settled() {
                return Ok(primary);
            }
        }
        Err(format!("not settled after {limit_ms} ms: {}", self.picture()))
    }

    pub(crate) fn run(&mut self, span_ms: u64) {
        for _ in 0..span_ms {
            self.tick();
        }
    }

    pub(crate) fn picture(&self) -> String {
        let mut text = format!("record {:?}\n", self.store);
        for (name, node) in &self.nodes {
            let summary = node.mind.summary();
            text += &format!(
                "{name}: alive {} {:?} db {:?} {} up {:?} open {} | {:?} order {:?} durable {:?}\n",
                node.alive,
                summary.role,
                node.db.state,
                node.db.end.position,
                node.db.upstream,
                node.db.open,
                summary.primary_of,
                summary.order,
                node.durable
            );
        }
        let tail = self.trace.len().saturating_sub(60);
        text + &self.trace[tail..].join("\n")
    }

    pub(crate) fn primary(&self) -> Option<NodeId> {
        let open: Vec<_> =
            self.nodes.iter().filter(|(_, node)| node.db.state == ServerState::Primary && node.db.open).collect();
        (open.len() == 1).then(|| open[0].0.clone())
    }

    fn settled(&self) -> Option<NodeId> {
        let primary = self.primary()?;
        let (_, record) = self.store.as_ref()?;
        let living: Vec<_> = self.nodes.iter().filter(|(_, node)| node.alive).collect();
        let follow = living.iter().all(|(name, node)| {
            **name == primary || (node.db.state == ServerState::Standby && node.db.upstream.as_ref() == Some(&primary))
        });
        let members = self.nodes[&primary].config.durability == Durability::Async
            || (record.members.len() == living.len()
                && living
                    .iter()
                    .all(|(name, node)| record.members.get(*name) == node.durable.as_ref().unwrap().copy.as_ref()));
        let calm = living.iter().all(|(_, node)| node.work.is_none() && node.kill.is_none());
        (record.state == ClaimState::Held && record.leader.as_ref() == Some(&primary) && follow && members && calm)
            .then_some(primary)
    }

    /// Changes the configuration of every node, or of one.
    pub(crate) fn configure(&mut self, only: Option<&NodeId>, change: impl Fn(&mut Config)) {
        let names: Vec<_> = self.nodes.keys().filter(|name| only.is_none_or(|only| only == *name)).cloned().collect();
        for name in names {
            let node = self.nodes.get_mut(&name).unwrap();
            change(&mut node.config);
            let config = Box::new(node.config.clone());
            if node.alive {
                self.feed(&name, Input::Configured(config));
            }
        }
    }

    /// An operator's command; what the node answers.
    pub(crate) fn command(&mut self, name: &NodeId, command: Command) -> Result<String, String> {
        self.replies.clear();
        self.feed(name, Input::Operator { id: 1, by: "test".to_owned(), command });
        self.replies.pop().unwrap()
    }

    /// The store is rebuilt from this node, as `recover` does it: the next incarnation, its copy alone.
    pub(crate) fn recover(&mut self, from: &NodeId) {
        let (_, old) = self.store.clone().unwrap();
        let copy = self.nodes[from].durable.as_ref().unwrap().copy.unwrap();
        let record = old.recovered(from, copy, old.term.next_incarnation(), 16);
        self.store = Some((Revision(1), record.clone()));
        for (other, node) in &self.nodes {
            if node.alive {
                self.inputs.push_back((
                    self.now + 1,
                    other.clone(),
                    node.life,
                    Input::Watched(Revision(1), record.clone()),
                ));
            }
        }
    }

    /// A copy of the cluster as it was at this position of its present path lies ready on a node.
    pub(crate) fn prepare(&mut self, node: &NodeId, back: u64, timeline: u32) -> Restoration {
        let primary = self.primary().unwrap();
        let now = self.nodes[&primary].db.end.clone();
        let moment = Position { timeline: now.position.timeline, lsn: Lsn(now.position.lsn.0.saturating_sub(back)) };
        let lineage = LogEnd { position: moment, lineage: now.lineage }.forked();
        let copy = CopyId::new(u64::from(timeline) << 32 | 0xabc).unwrap();
        let timeline = Timeline(timeline);
        let end = LogEnd { position: Position { timeline, lsn: Lsn(moment.lsn.0 + 3) }, lineage: lineage.clone() };
        self.prepared.insert(node.clone(), (copy, end));
        let system = self.store.as_ref().unwrap().1.system.unwrap();
        Restoration { copy, system, timeline, lineage, what: "a moment".to_owned() }
    }

    /// Gives one input to a node's machine now.
    pub(crate) fn input(&mut self, name: &NodeId, input: Input) {
        self.feed(name, input);
    }

    // ---- faults ----

    pub(crate) fn kill_server(&mut self, name: &NodeId) {
        let node = self.nodes.get_mut(name).unwrap();
        crash(&mut node.db);
        let life = node.life;
        self.inputs.push_back((self.now + 1, name.clone(), life, Input::ServerExited));
    }

    pub(crate) fn kill_node(&mut self, name: &NodeId) {
        let node = self.nodes.get_mut(name).unwrap();
        crash(&mut node.db);
        node.alive = false;
        node.work = None;
        node.kill = None;
        let others: Vec<_> = self.nodes.keys().filter(|other| *other != name).cloned().collect();
        for other in others {
            let life = self.nodes[&other].life;
            self.inputs.push_back((self.now + 1, other.clone(), life, Input::PeerLink(name.clone(), false)));
        }
    }

    /// The host answers and nothing listens any more.
    pub(crate) fn show_all_refused(&mut self, dead: &NodeId) {
        let others: Vec<_> = self.nodes.keys().filter(|other| *other != dead).cloned().collect();
        for other in others {
            let life = self.nodes[&other].life;
            let input = Input::Evidence(dead.clone(), mainstay_decide::Evidence::AllRefused);
            self.inputs.push_back((self.now + 2, other, life, input));
        }
    }

    /// Starts an agent anew; its server goes on as it is.
    pub(crate) fn restart_agent(&mut self, name: &NodeId) {
        let node = self.nodes.get_mut(name).unwrap();
        node.life += 1;
        node.alive = true;
        node.work = None;
        node.kill = None;
        node.probe_at = self.now + 5;
        node.mind = Mind::new(node.config.clone(), node.durable.clone(), node.data, node.life);
        if let Some(record) = self.store.clone() {
            self.inputs.push_back((self.now + 1, name.clone(), node.life, Input::Watched(record.0, record.1)));
        }
        let life = node.life;
        self.inputs.push_back((self.now + 1, name.clone(), life, Input::Tick));
        let others: Vec<_> = self.nodes.keys().filter(|other| *other != name).cloned().collect();
        for other in others {
            let life = self.nodes[&other].life;
            self.inputs.push_back((self.now + 1, other, life, Input::PeerLink(name.clone(), true)));
        }
    }

    // ---- time ----

    fn tick(&mut self) {
        self.now += 1;
        self.replicate();
        self.write_and_acknowledge();
        self.guard();
        self.finish_orders();
        self.deliver();
        let names: Vec<_> = self.nodes.keys().cloned().collect();
        for name in names {
            let (probe, wake) = {
                let node = &self.nodes[&name];
                if !node.alive {
                    continue;
                }
                (self.now >= node.probe_at, node.mind.wake().is_none_or(|wake| wake.0 <= self.now))
            };
            if probe {
                let interval = self.nodes[&name].mind.probe_interval().0;
                self.nodes.get_mut(&name).unwrap().probe_at = self.now + interval;
                let seen = self.observe(&name);
                self.feed(&name, Input::Observed(seen));
            } else if wake {
                self.feed(&name, Input::Tick);
            }
        }
        self.check();
    }

    fn deliver(&mut self) {
        for _ in 0..self.inputs.len() {
            let Some((at, name, life, input)) = self.inputs.pop_front() else { break };
            if at > self.now {
                self.inputs.push_back((at, name, life, input));
            } else if self.nodes[&name].alive && self.nodes[&name].life == life {
                self.feed(&name, input);
            }
        }
    }

    fn feed(&mut self, name: &NodeId, input: Input) {
        if self.traced && !matches!(input, Input::Tick | Input::Observed(_) | Input::Peer(_, Message::Presence(_))) {
            self.trace.push(format!("{} {name} <- {input:?}", self.now));
        }
        let now = Moment(self.now);
        let outputs = self.nodes.get_mut(name).unwrap().mind.step(now, input);
        for output in outputs {
            if self.traced && !matches!(output, Output::Send(_, Message::Presence(_))) {
                self.trace.push(format!("{} {name} -> {output:?}", self.now));
            }
            let counts =
                !matches!(output, Output::Reason(_) | Output::Event(_) | Output::Send(_, Message::Presence(_)));
            let last = counts && self.interrupt_after.is_some_and(|(after, _)| after == self.outputs + 1);
            let label = if last { format!("{name} {output:?}") } else { String::new() };
            self.carry_out(name, output);
            if counts {
                self.outputs += 1;
                if last {
                    let whole = self.interrupt_after.take().is_some_and(|(_, whole)| whole);
                    self.trace.push(format!("{} INTERRUPT after {label}", self.now));
                    self.interrupted = Some(label);
                    if whole {
                        self.kill_node(name);
                    }
                    self.restart_agent(name);
                    return;
                }
            }
        }
    }

    fn carry_out(&mut self, name: &NodeId, output: Output) {
        let now = self.now;
        let life = self.nodes[name].life;
        match output {
            Output::Persist(durable) => self.nodes.get_mut(name).unwrap().durable = Some(durable),
            Output::Read(read) => {
                let answer = Input::Read(read, Some(self.store.clone()));
                self.inputs.push_back((now + 2, name.clone(), life, answer));
            }
            Output::Cas(cas, expected, record) => self.compare_and_set(name, cas, expected, record),
            Output::Send(to, message) => {
                let reachable = !self.cut_off.contains(name) && !self.cut_off.contains(&to);
                if let Some(node) = self.nodes.get(&to).filter(|node| node.alive && reachable) {
                    self.inputs.push_back((now + 1, to.clone(), node.life, Input::Peer(name.clone(), message)));
                }
            }
            Output::Deadline(_, at) => self.nodes.get_mut(name).unwrap().db.deadline = Some(at),
            Output::Order(id, _, Order::Kill) => {
                let node = self.nodes.get_mut(name).unwrap();
                if let Some(work) = node.work.take() {
                    if matches!(work.order, Order::Rewind { .. } | Order::Clone { .. }) {
                        node.db.copy = None;
                    }
                    let aborted = Input::Ordered(work.id, Outcome::Failed(OrderFailure::Aborted));
                    self.inputs.push_back((now + 1, name.clone(), life, aborted));
                }
                self.nodes.get_mut(name).unwrap().kill = Some((id, now + 3));
            }
            Output::Order(id, term, order) => {
                let node = self.nodes.get_mut(name).unwrap();
                assert!(node.work.is_none(), "a second order while one runs: {order:?}");
                let done_at = now + ORDER_MS;
                let stale = node.durable.as_ref().is_some_and(|durable| term < durable.promise);
                node.work = Some(Work { id, stale, order, done_at });
            }
            Output::Route(term, state, at) => self.nodes.get_mut(name).unwrap().route = Some((term, state, at)),
            Output::Event(event) => self.events.push(event),
            Output::Reply(_, reply) => self.replies.push(reply),
            Output::Reason(reason) => self.reasons.push(format!("{name} {}: {}", reason.rule, reason.text)),
        }
    }

    fn compare_and_set(&mut self, name: &NodeId, cas: u64, expected: Option<Revision>, record: Record) {
        let life = self.nodes[name].life;
        let present = self.store.as_ref().map(|(revision, _)| *revision);
        let unanswered = self.unanswered.as_ref().filter(|(of, _)| of == name).map(|(_, taken)| *taken);
        let result = if unanswered == Some(false) {
            CasResult::Unknown
        } else if present == expected {
            let revision = Revision(present.map_or(1, |revision| revision.0 + 1));
            if let Some(restored) = &record.restored {
                self.acknowledged.retain(|at| !restored.voids(*at));
            }
            self.store = Some((revision, record.clone()));
            let deaf = self.unanswered.as_ref().map(|(of, _)| of);
            for (other, node) in self.nodes.iter().filter(|(other, _)| Some(*other) != deaf) {
                let watched = Input::Watched(revision, record.clone());
                self.inputs.push_back((self.now + 2, other.clone(), node.life, watched));
            }
            CasResult::Done(revision)
        } else {
            CasResult::Conflict(self.store.clone())
        };
        let result = if unanswered.is_some() { CasResult::Unknown } else { result };
        self.inputs.push_back((self.now + 2, name.clone(), life, Input::Cas(cas, result)));
    }

    // ---- servers ----

    fn observe(&self, name: &NodeId) -> ServerObservation {
        let node = &self.nodes[name];
        let db = &node.db;
        let mut seen = ServerObservation { at: Moment(self.now), state: db.state, open: db.open, ..Default::default() };
        if db.state == ServerState::Down {
            return seen;
        }
        seen.timeline = Some(db.end.position.timeline);
        seen.end = Some(db.end.position.lsn);
        seen.receiving = self.streams(name);
        for (other, replica) in &self.nodes {
            if replica.db.upstream.as_ref() == Some(name) && self.streams(other) {
                seen.walsenders.push(Walsender {
                    node: other.clone(),
                    copy: replica.db.copy.unwrap(),
                    flush: replica.db.end.position.lsn,
                    replay: replica.db.end.position.lsn,
                    streaming: true,
                });
            }
        }
        seen
    }

    /// Does this standby stream from its upstream?
    fn streams(&self, name: &NodeId) -> bool {
        let replica = &self.nodes[name].db;
        let Some(source) = replica.upstream.as_ref().and_then(|upstream| self.nodes.get(upstream)) else {
            return false;
        };
        let from = &source.db;
        replica.state == ServerState::Standby
            && from.state != ServerState::Down
            && from.end.lineage.contains(replica.end.position, from.end.position.timeline, from.end.position.lsn)
    }

    fn replicate(&mut self) {
        let names: Vec<_> = self.nodes.keys().cloned().collect();
        for name in names {
            if self.streams(&name) {
                let upstream = self.nodes[&name].db.upstream.clone().unwrap();
                let end = self.nodes[&upstream].db.end.clone();
                self.nodes.get_mut(&name).unwrap().db.end = end;
            }
        }
    }

    /// The open primary writes; what its setting confirms is acknowledged.
    fn write_and_acknowledge(&mut self) {
        let names: Vec<_> = self.nodes.keys().cloned().collect();
        for name in names {
            let db = self.nodes[&name].db.clone();
            if db.state != ServerState::Primary {
                continue;
            }
            let flushed = |node: &NodeId, copy: &CopyId| {
                self.streams(node)
                    && self.nodes[node].db.upstream.as_ref() == Some(&name)
                    && self.nodes[node].db.copy == Some(*copy)
                    && self.nodes[node].db.end.position == db.end.position
            };
            let confirmed = db.setting.copies.iter().filter(|(node, copy)| flushed(node, copy)).count();
            let restored = self.store.as_ref().and_then(|(_, record)| record.restored.clone());
            let void = restored.is_some_and(|restored| restored.voids(db.end.position));
            if confirmed >= db.setting.need as usize && db.open && !void {
                self.acknowledged.push(db.end.position);
                if self.acknowledged.len() > 50 {
                    self.acknowledged.remove(0);
                }
            }
            if db.open {
                self.nodes.get_mut(&name).unwrap().db.end.position.lsn.0 += 1;
            }
        }
    }

    fn guard(&mut self) {
        let now = Moment(self.now);
        let late: Vec<_> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.db.state == ServerState::Primary && node.db.deadline.is_some_and(|at| now > at))
            .map(|(name, _)| name.clone())
            .collect();
        for name in late {
            let node = self.nodes.get_mut(&name).unwrap();
            crash(&mut node.db);
            let life = node.life;
            self.inputs.push_back((self.now + 1, name, life, Input::Fenced("deadline".to_owned())));
        }
    }

    fn finish_orders(&mut self) {
        let names: Vec<_> = self.nodes.keys().cloned().collect();
        for name in names {
            let now = self.now;
            let node = self.nodes.get_mut(&name).unwrap();
            let life = node.life;
            if let Some((kill, _)) = node.kill.take_if(|(_, at)| *at <= now) {
                crash(&mut node.db);
                self.inputs.push_back((now, name.clone(), life, Input::Ordered(kill, Outcome::Done)));
            }
            let node = self.nodes.get_mut(&name).unwrap();
            if let Some(work) = node.work.take_if(|work| work.done_at <= now) {
                let outcome =
                    if work.stale { Outcome::Failed(OrderFailure::Stale) } else { self.execute(&name, work.order) };
                self.inputs.push_back((now, name, life, Input::Ordered(work.id, outcome)));
            }
        }
    }

    fn check(&self) {
        let open: Vec<_> = self.nodes.iter().filter(|(_, node)| node.db.open).map(|(name, _)| name.clone()).collect();
        for name in &open {
            let db = &self.nodes[name].db;
            let newest =
                self.nodes.values().filter(|node| node.db.open).map(|node| node.db.end.position.timeline).max();
            if newest != Some(db.end.position.timeline) {
                continue;
            }
            for acknowledged in &self.acknowledged {
                assert!(
                    db.end.lineage.contains(*acknowledged, db.end.position.timeline, db.end.position.lsn),
                    "acknowledged {acknowledged} is not in {name}'s log\n{}",
                    self.picture()
                );
            }
        }
    }
}

//! One virtual cluster: the queue of happenings, everything in it, and the loop. One thread; the same seed gives the same world,
//! event by event.

use crate::counters::Counters;
use crate::event::{Happening, Node, Queue};
use crate::faults::Fault;
use crate::host::{Guard, Host};
use crate::invariants::{Ledger, Violation};
use crate::network::Network;
use crate::operator::Wish;
use crate::rng::Rng;
use crate::server::{Entry, Process, Server};
use crate::shape::{MS, Micros, Shape};
use crate::store::Store;
use crate::trace::Trace;
use mainstay_decide::Plant;
use mainstay_model::record::ClaimState;
use mainstay_model::{
    CopyId, Durability, Durable, Lineage, NodeId, Record, Revision, RouteState, SystemId, Term, Timeline,
};
use std::collections::{BTreeMap, BTreeSet};

/// Most events in one schedule: beyond it the schedule counts as running wild.
const EVENTS_MAX: u64 = 400_000;

/// A virtual cluster.
#[derive(Debug)]
pub struct World {
    /// True time, in microseconds.
    pub now: Micros,
    /// What will happen.
    pub queue: Queue,
    /// The only source of chance.
    pub rng: Rng,
    /// What the schedule was drawn as.
    pub shape: Shape,
    /// The nodes' names.
    pub names: Vec<NodeId>,
    /// The nodes.
    pub nodes: Vec<Host>,
    /// The store.
    pub store: Store,
    /// The network.
    pub net: Network,
    /// The truth about commits.
    pub ledger: Ledger,
    /// What happened.
    pub counters: Counters,
    /// What is printed on replay.
    pub trace: Trace,
    /// Planted faults.
    pub plants: BTreeSet<Plant>,
    /// The operator's wishes, one generation after the other.
    pub wishes: Vec<Wish>,
    /// The members that are left over when the store was rebuilt go on with this one.
    pub lost_store: Store,
    /// How often the store was rebuilt.
    pub group: u32,
    /// The store has lost its majority for ever.
    pub store_lost: bool,
    /// It was rebuilt from a copy that held everything acknowledged.
    pub rebuilt_whole: bool,
    /// The first broken promise.
    pub violation: Option<Violation>,
    /// No more faults.
    pub healed: bool,
    /// Aimed faults that are left.
    pub targeted_left: u32,
    /// The id of the newest log record.
    pub last_entry: u64,
    /// Numbers connections.
    pub next_conn: u64,
    /// Clients write in a hurry until then.
    pub rush_until: Micros,
    /// Numbers orders.
    pub next_order: u64,
    settled: u32,
    done: bool,
}

/// The node's place, from its name.
#[must_use]
pub fn number(name: &NodeId) -> Node {
    name.as_str().as_bytes().get(1).map_or(0, |digit| usize::from(digit - b'0'))
}

impl World {
    /// The world of this seed.
    #[must_use]
    pub fn new(seed: u64, plants: &BTreeSet<Plant>, traced: bool) -> World {
        let mut rng = Rng::new(seed);
        let shape = Shape::draw(&mut rng, plants);
        let names: Vec<NodeId> = (0..shape.nodes).filter_map(|node| NodeId::new(format!("n{node}")).ok()).collect();
        let nodes = (0..shape.nodes)
            .map(|_| Host {
                up: true,
                clock_offset: rng.range(1_000, 100_000) * MS,
                guard: Guard { alive: true, ..Guard::default() },
                ..Host::default()
            })
            .collect();
        let targeted_left = shape.targeted_most;
        let mut world = World {
            now: 0,
            queue: Queue::default(),
            rng,
            shape,
            names,
            nodes,
            store: Store::default(),
            net: Network::default(),
            ledger: Ledger::default(),
            counters: Counters::default(),
            trace: Trace::new(traced),
            plants: plants.clone(),
            wishes: Vec::new(),
            lost_store: Store::default(),
            group: 0,
            store_lost: false,
            rebuilt_whole: false,
            violation: None,
            healed: false,
            targeted_left,
            last_entry: 0,
            next_conn: 0,
            rush_until: 0,
            next_order: 0,
            settled: 0,
            done: false,
        };
        world.first_wish();
        if !world.shape.found {
            world.populate();
        }
        world.schedule_first();
        world
    }

    /// A cluster that has run before: equal logs, the first term free.
    fn populate(&mut self) {
        let system = SystemId(self.rng.draw());
        let log: Vec<Entry> =
            (1..=20).map(|id| Entry { id, timeline: Timeline(1), term: Term(1), client: true }).collect();
        self.last_entry = 20;
        let mut members = BTreeMap::new();
        for node in 0..self.shape.listed {
            let Some(copy) = CopyId::new(self.rng.draw() | 1) else { continue };
            members.insert(self.names[node].clone(), copy);
            let host = &mut self.nodes[node];
            host.disk = Durable { promise: Term(1), copy: Some(copy), ..Durable::default() };
            host.disk_written = true;
            host.promised = Term(1);
            host.server =
                Server { data: Some(system), log: log.clone(), flushed: 20, replayed: 20, ..Server::default() };
        }
        let asynchronous = self.shape.durability == Durability::Async;
        let quorum = u32::try_from(self.shape.listed).unwrap_or(1) - 1 - self.shape.sync_replicas;
        if asynchronous {
            members.retain(|node, _| *node == self.names[0]);
        }
        let record = Record {
            term: Term(1),
            holder: None,
            state: ClaimState::Free,
            grant: 1,
            leader: self.names.first().cloned(),
            members,
            quorum: if asynchronous { 0 } else { quorum },
            timeline: Timeline(1),
            lineage: Lineage::default(),
            wanted: None,
            asynchronous,
            system: Some(system),
            lease: Some(self.shape.lease),
            lossy: None,
            restored: None,
            held: None,
            reason: String::new(),
        };
        self.store.versions.push((Revision(1), record));
    }

    fn schedule_first(&mut self) {
        for node in 0..self.nodes.len() {
            let start = self.rng.range(1, 60) * MS;
            self.queue.push(start, Happening::AgentStart(node));
            self.queue.push(self.rng.range(50, 350) * MS, Happening::WatchAgain(node));
        }
        self.queue.push(70 * MS, Happening::Links);
        self.queue.push(100 * MS, Happening::Clients);
        let first = self.rng.range(200, 1500) * MS;
        self.queue.push(first, Happening::NextFault);
        self.queue.push(self.shape.heal_at, Happening::Heal);
        if self.shape.scenario.is_some() {
            let begin = self.rng.range(2_000, 3_500) * MS;
            self.queue.push(begin, Happening::Act(0));
        }
        if self.shape.store_loss_for_ever {
            let lost = self.rng.range(1_000, 6_000) * MS;
            self.queue.push(lost, Happening::Fault(Fault::StoreLost, 0));
        }
    }

    /// Runs to the end, or to the first broken promise.
    pub fn run(&mut self) {
        while !self.done && self.violation.is_none() {
            let Some((at, what)) = self.queue.pop() else { break };
            self.now = self.now.max(at);
            self.counters.events += 1;
            if self.counters.events > EVENTS_MAX {
                self.violate("L1", "the schedule runs wild: too many events".to_owned());
                break;
            }
            self.trace.fold(self.now, &what);
            self.happen(what);
            self.check_open();
        }
        self.trace.finish(self.last_entry, self.counters.acknowledged);
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Tick(node, number) => self.tick(node, number),
            Happening::Probe(node, life) => self.probe(node, life),
            Happening::Input(node, life, input) => {
                if self.nodes[node].life == life {
                    self.input(node, *input);
                }
            }
            Happening::Peer { to, from, message } => {
                let from = self.names[from].clone();
                self.input(to, mainstay_decide::Input::Peer(from, *message));
            }
            Happening::Request(request) => self.serve(*request),
            Happening::Reply(node, life, reply) => self.replied(node, life, *reply),
            Happening::Timeout(node, life, id, read) => self.timed_out(node, life, id, read),
            Happening::Watch(node, version) => self.watch_shows(node, version),
            Happening::WatchAgain(node) => self.watch_again(node),
            Happening::Order(node, number) => self.order_step(node, number),
            Happening::Guard(node) => self.guard_wakes(node),
            Happening::Kill(node, life, why) => self.killed(node, life, why),
            Happening::Links => self.check_links(),
            Happening::Look { node, life, at, looks, told } => self.look(node, life, at, looks, told),
            Happening::Resume(node) => self.resume(node),
            Happening::AgentStart(node) => self.agent_starts(node),
            Happening::GuardStart(node) => self.guard_starts(node),
            Happening::HostStart(node) => self.host_starts(node),
            Happening::StartsWork(node) => self.starts_work(node),
            Happening::NextFault => self.next_fault(),
            Happening::Fault(fault, node) => self.strike(fault, node),
            Happening::Heal => self.heal(),
            Happening::Learn(node, generation) => self.learn(node, generation),
            Happening::Recover => self.recover(),
            Happening::Act(step) => self.act(step),
            Happening::Join(node) => self.join(node),
            Happening::Settled => self.look_settled(),
            other => self.happen_to_server(other),
        }
    }

    fn happen_to_server(&mut self, what: Happening) {
        match what {
            Happening::Hot(node, life) => self.server_hot(node, life),
            Happening::Replayed(node, life) => self.server_replayed(node, life),
            Happening::Promoting(node, life, finished) => self.promoting(node, life, finished),
            Happening::Connect(node, life) => self.connect(node, life),
            Happening::Lost(node, conn) => self.lost(node, conn),
            Happening::Pump(node, conn) => self.pump(node, conn),
            Happening::Batch { from, to, conn, at, entries } => self.batch(from, to, conn, at, entries),
            Happening::Flushed { node, life, conn, upto } => self.standby_flushed(node, life, conn, upto),
            Happening::Report { to, to_life, conn, copy, upto } => self.report(to, to_life, conn, copy, upto),
            Happening::Adopt(node, life, who, number) => self.adopt(node, life, who, number),
            Happening::Clients => self.clients_write(),
            Happening::Rush => self.clients_rush(),
            _ => {}
        }
    }

    /// Is all well again? Twice in a row ends the schedule; the end of time without it breaks L1.
    fn look_settled(&mut self) {
        let wrong = self.unsettled();
        self.settled = if wrong.is_none() { self.settled + 1 } else { 0 };
        if self.settled >= 2 && self.now >= self.shape.linger_until {
            self.done = true;
            return;
        }
        if self.settled == 0 && self.now >= self.shape.end_at {
            let what = wrong.unwrap_or_default();
            self.violate("L1", format!("{} ms after the heal: {what}", (self.now - self.shape.heal_at) / MS));
            return;
        }
        let next = self.now + 250 * MS;
        self.queue.push(next, Happening::Settled);
    }

    /// What is not well, if anything.
    fn unsettled(&self) -> Option<String> {
        let open: Vec<Node> = (0..self.nodes.len()).filter(|node| self.is_open(*node)).collect();
        let [primary] = open[..] else { return Some(format!("open primaries: {open:?}")) };
        if self.now > self.ledger.last_ack + 400 * MS {
            return Some("no commit is acknowledged".to_owned());
        }
        if self.nodes[primary].route != RouteState::Open {
            return Some(format!("n{primary}'s route is {:?}", self.nodes[primary].route));
        }
        let Some((_, record)) = self.store.newest() else { return Some("no record".to_owned()) };
        let server = &self.nodes[primary].server;
        let wish = self.wish();
        if !wish.listed.contains(&primary) {
            return Some(format!("n{primary} is primary and not listed"));
        }
        for node in (0..self.nodes.len()).filter(|node| *node != primary) {
            if !wish.listed.contains(&node) {
                if self.nodes[node].server.process != Process::Down {
                    return Some(format!("n{node} is not listed, and its server runs"));
                }
                continue;
            }
            let streams = server.senders.values().any(|sender| sender.standby == node && sender.streaming);
            if !streams {
                return Some(format!("n{node} does not stream from n{primary}"));
            }
            let copy = self.nodes[node].gate.copy;
            let member = record.members.get(&self.names[node]).copied();
            if wish.durability != Durability::Async && (copy.is_none() || member != copy) {
                return Some(format!("n{node} is not a member with its copy"));
            }
        }
        None
    }

    /// A line of the trace; the text is made only if somebody reads it.
    pub(crate) fn trace(&mut self, node: Option<Node>, text: impl FnOnce() -> String) {
        if self.trace.on {
            self.trace.line(self.now, node, text());
        }
    }
}

//! Faults: some thirty kinds, at random (half of them aimed at the primary), and some right after the protocol's own steps.

use crate::event::{Happening, Node};
use crate::host::Guard;
use crate::network::STORE;
use crate::server::Process;
use crate::shape::{MS, Micros};
use crate::world::World;
use mainstay_decide::{Input, Plant};
use mainstay_model::Command;

macro_rules! faults {
    ($($name:ident $weight:literal $text:literal;)*) => {
        /// A kind of fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Fault { $(#[doc = $text] $name,)* }
        impl Fault {
            const WEIGHTS: &'static [(Fault, u64)] = &[$((Fault::$name, $weight)),*];
            /// For people.
            #[must_use]
            pub const fn text(self) -> &'static str { match self { $(Fault::$name => $text,)* } }
        }
    };
}

faults! {
    AgentDies 10 "the agent dies";
    AgentDiesMidway 5 "the agent dies between two outputs";
    AgentPauses 8 "the agent stands still";
    GuardPauses 3 "the guard stands still";
    GuardAndAgentPause 2 "guard and agent stand still";
    GuardDies 3 "the guard dies and the server with it";
    ServerDies 10 "the server dies";
    ServerStops 4 "the server stands still";
    HostDies 8 "the host loses power";
    HostFreezes 6 "the host stands still";
    CutFromPeers 6 "the node is cut from its peers";
    CutFromStore 6 "the node is cut from the store";
    CutFromAll 8 "the node is cut from everything";
    OneWayOut 4 "nothing leaves the node";
    OneWayIn 4 "nothing reaches the node";
    OneWayStore 3 "the store's answers do not reach the node";
    PairCut 8 "two nodes do not reach each other";
    Halves 4 "the cluster falls into halves";
    StoreAway 5 "the store is away";
    StoreSlow 4 "the store is slow";
    NetworkSlow 3 "the network is slow";
    NetworkLossy 3 "the network loses much";
    WatchFrozen 4 "the node's watch shows nothing new";
    SlowDisk 4 "the disk is slow";
    DiskFrozen 5 "the disk stands still";
    Unstartable 3 "the copy can not be started any more";
    StartsFail 3 "the node's server does not start for a while";
    LogGone 3 "the log that the copy needs is gone";
    SlowStream 8 "the log reaches the node slowly";
    StreamBreaks 4 "the node's stream breaks";
    AllServersDie 2 "every server dies";
    AllHostsDie 1 "every host loses power";
    Switchover 10 "the operator asks for a switchover";
    Exclude 4 "the operator takes a node out of the electable set";
    Include 3 "the operator takes all nodes in again";
    RoleAndAgentDie 3 "server and agent die together";
    Failover 7 "the operator orders a failover";
    FailoverWithLoss 5 "the operator orders a failover and accepts a loss";
    Restart 5 "the operator restarts a server";
    RestartInPlace 5 "the operator restarts a primary in place";
    Reinit 5 "the operator has a copy made anew";
    Pause 4 "the operator pauses the cluster";
    Resume 11 "the operator resumes the cluster";
    NodeAdded 5 "a node is added";
    NodeRemoved 4 "a node is removed";
    NodeReplaced 4 "a host is wiped and replaced";
    Mode 7 "the durability is changed";
    SyncReplicas 4 "the number of replicas that commits wait for is changed";
    Lease 5 "the lease is changed";
    StoreLost 0 "the store loses its majority for ever";
}

/// For so long after the heal a server does not start, sometimes: its holder's patience (ten seconds), and an election.
const STARTS_FAIL: Micros = 15_000 * MS;
/// Then there is this time for all to be well.
const AFTER_STARTS_FAIL: Micros = 9_000 * MS;

const TARGETED: &[Fault] = &[
    Fault::AgentDies,
    Fault::AgentDiesMidway,
    Fault::ServerDies,
    Fault::HostDies,
    Fault::AgentPauses,
    Fault::HostFreezes,
    Fault::CutFromPeers,
    Fault::CutFromStore,
    Fault::CutFromAll,
    Fault::StoreAway,
    Fault::OneWayStore,
    Fault::RoleAndAgentDie,
];

impl World {
    /// The next random fault.
    pub(crate) fn next_fault(&mut self) {
        if self.healed {
            return;
        }
        let can = |fault: Fault| self.shape.operator || (fault as usize) < Fault::Failover as usize;
        let kinds: Vec<&(Fault, u64)> = Fault::WEIGHTS.iter().filter(|(fault, _)| can(*fault)).collect();
        let total: u64 = kinds.iter().map(|(_, weight)| weight).sum();
        let mut pick = self.rng.below(total);
        let mut fault = Fault::AgentDies;
        for (kind, weight) in kinds {
            if pick < *weight {
                fault = *kind;
                break;
            }
            pick -= weight;
        }
        let primary = (0..self.nodes.len()).find(|node| self.nodes[*node].server.process == Process::Primary);
        let any = self.rng.index(self.nodes.len());
        let node = primary.filter(|_| self.rng.chance(5000)).unwrap_or(any);
        self.strike(fault, node);
        let mean = self.shape.fault_pause;
        let pause = self.rng.range(mean / 10, mean * 2);
        self.queue.push(self.now + pause, Happening::NextFault);
    }

    /// The protocol took one of its own steps: a fault may follow closely.
    pub(crate) fn protocol_step(&mut self, node: Node, step: &'static str) {
        if !self.healed && self.rng.chance(6000) {
            if self.now >= self.rush_until {
                self.queue.push(self.now, Happening::Rush);
            }
            self.rush_until = self.now + 120 * MS;
        }
        if self.healed || self.targeted_left == 0 || !self.rng.chance(self.shape.targeted) {
            return;
        }
        self.targeted_left -= 1;
        self.counters.targeted += 1;
        let fault = *TARGETED.get(self.rng.index(TARGETED.len())).unwrap_or(&Fault::AgentDies);
        let any = self.rng.index(self.nodes.len());
        let at = if self.rng.chance(7000) { node } else { any };
        let delay = self.rng.below(120 * MS);
        self.trace(Some(node), || format!("a fault will follow the {step}"));
        self.queue.push(self.now + delay, Happening::Fault(fault, at));
    }

    fn while_(&mut self) -> Micros {
        let most = if self.rng.chance(3000) { 3_000 } else { 900 };
        self.now + self.rng.range(20, most) * MS
    }

    /// A fault happens.
    pub(crate) fn strike(&mut self, fault: Fault, node: Node) {
        let any = fault == Fault::StoreLost;
        if self.healed || (!any && (!self.nodes[node].up || !self.nodes[node].joined)) {
            return;
        }
        self.trace(Some(node), || format!("FAULT {}", fault.text()));
        let until = self.while_();
        match fault {
            Fault::AgentDies => self.agent_dies(node, "killed"),
            Fault::AgentDiesMidway => self.nodes[node].dies_after = Some(self.rng.range(1, 12) as u32),
            Fault::AgentPauses => self.pause_agent(node, until),
            Fault::GuardPauses => self.pause_guard(node, until),
            Fault::GuardAndAgentPause => {
                self.pause_agent(node, until);
                self.pause_guard(node, until);
            }
            Fault::GuardDies => self.guard_dies(node),
            Fault::ServerDies => self.server_ends(node, "killed"),
            Fault::ServerStops => self.stop_server(node, until),
            Fault::HostDies => self.host_dies(node),
            Fault::HostFreezes => {
                self.nodes[node].frozen_until = self.nodes[node].frozen_until.max(until);
                self.queue.push(until, Happening::Resume(node));
            }
            Fault::AllServersDie => (0..self.nodes.len()).for_each(|one| self.server_ends(one, "killed")),
            Fault::AllHostsDie => (0..self.nodes.len()).for_each(|one| self.host_dies(one)),
            Fault::RoleAndAgentDie => {
                self.agent_dies(node, "killed");
                self.server_ends(node, "killed");
            }
            Fault::SlowStream => self.nodes[node].slow_stream_until = until,
            Fault::SlowDisk => self.nodes[node].slow_disk_until = until,
            Fault::DiskFrozen => self.freeze_disk(node),
            Fault::Unstartable | Fault::LogGone => self.spoil_copy(fault, node),
            Fault::StartsFail => self.fail_starts(node),
            Fault::StreamBreaks => self.lose_connection(node),
            Fault::Switchover => self.ask_switchover(node),
            Fault::Exclude | Fault::Include => self.change_excluded(fault, node),
            fault if fault as usize >= Fault::Failover as usize => self.operate(fault, node),
            _ => self.strike_network(fault, node, until),
        }
    }

    fn strike_network(&mut self, fault: Fault, node: Node, until: Micros) {
        let nodes = self.nodes.len();
        match fault {
            Fault::CutFromPeers | Fault::CutFromAll => {
                (0..nodes).filter(|other| *other != node).for_each(|other| self.cut_both(node, other, until));
                if fault == Fault::CutFromAll {
                    self.cut_both(node, STORE, until);
                }
            }
            Fault::CutFromStore => self.cut_both(node, STORE, until),
            Fault::OneWayOut => (0..nodes).filter(|to| *to != node).for_each(|to| self.net.cut(node, to, until)),
            Fault::OneWayIn => (0..nodes).filter(|to| *to != node).for_each(|to| self.net.cut(to, node, until)),
            Fault::OneWayStore => self.net.cut(STORE, node, until),
            Fault::PairCut => {
                let other = self.rng.index(nodes);
                self.cut_both(node, other, until);
            }
            Fault::Halves => {
                let side: Vec<bool> = (0..nodes).map(|_| self.rng.chance(5000)).collect();
                let store = self.rng.chance(5000);
                for one in 0..nodes {
                    (0..nodes)
                        .filter(|other| side[one] != side[*other])
                        .for_each(|other| self.net.cut(one, other, until));
                    if side[one] != store {
                        self.cut_both(one, STORE, until);
                    }
                }
            }
            Fault::StoreAway => self.store.away_until = until,
            Fault::StoreSlow => self.store.slow_until = until,
            Fault::NetworkSlow => self.net.slow_until = until,
            Fault::NetworkLossy => self.net.lossy_until = until,
            Fault::WatchFrozen => self.store.watch_frozen[node] = until,
            _ => {}
        }
    }

    fn cut_both(&mut self, one: usize, other: usize, until: Micros) {
        if one != other {
            self.net.cut(one, other, until);
            self.net.cut(other, one, until);
        }
    }

    fn pause_agent(&mut self, node: Node, until: Micros) {
        self.nodes[node].agent_paused_until = self.nodes[node].agent_paused_until.max(until);
        self.queue.push(until, Happening::Resume(node));
    }

    fn pause_guard(&mut self, node: Node, until: Micros) {
        let guard = &mut self.nodes[node].guard;
        guard.paused_until = guard.paused_until.max(until);
        guard.late_until = guard.late_until.max(until);
        self.queue.push(until, Happening::Resume(node));
    }

    fn stop_server(&mut self, node: Node, until: Micros) {
        if self.nodes[node].server.process.runs() {
            self.nodes[node].server.stopped_until = until;
            self.nodes[node].stopped_since = self.now;
        }
    }

    /// Long enough, often, to be seen as hung and to be handed over.
    fn freeze_disk(&mut self, node: Node) {
        if self.disk_frozen(node) {
            return;
        }
        let until = (self.now + self.rng.range(300, 5_000) * MS).min(self.shape.heal_at.max(self.now + MS));
        self.nodes[node].disk_frozen_until = until;
        self.nodes[node].stopped_since = self.now;
        self.counters.disks_frozen += 1;
        self.queue.push(until, Happening::Resume(node));
    }

    /// An open primary that others can clone from: one of a lost store has its server open until it hears, and is none.
    pub(crate) fn serving(&self) -> Option<Node> {
        (0..self.nodes.len()).find(|node| self.is_open(*node) && !self.orphaned(self.nodes[*node].server.term))
    }

    /// One copy at a time, a replica's or the primary's own, while a primary serves: a cluster that lost more copies than its mode allows can not be
    /// asked to heal.
    fn spoil_copy(&mut self, fault: Fault, node: Node) {
        let spoilt = self.nodes.iter().any(|host| host.server.unstartable || host.server.gone_at.is_some());
        let Some(primary) = self.serving().filter(|_| !spoilt) else { return };
        let replica =
            |node: Node| matches!(self.nodes[node].server.process, Process::Standby | Process::Starting(false));
        let another = (0..self.nodes.len()).any(|other| other != primary && replica(other));
        if fault == Fault::Unstartable && (replica(node) || (node == primary && another)) {
            self.nodes[node].server.unstartable = true;
            self.counters.unstartable += 1;
            self.server_ends(node, "its control file broke");
        } else if fault != Fault::Unstartable && node != primary && replica(node) {
            self.nodes[node].server.gone_at = Some(primary);
            self.counters.log_gone += 1;
            self.lose_connection(node);
        }
    }

    /// A full volume, a port that is taken: nothing is wrong with the copy, and the server does not come up. Half of the time that lasts beyond
    /// the heal, for so long that others must have taken over.
    fn fail_starts(&mut self, node: Node) {
        if self.nodes.iter().any(|host| host.starts_fail) {
            return;
        }
        self.counters.starts_failed += 1;
        self.nodes[node].starts_fail = true;
        self.server_ends(node, "its volume is full");
        if self.rng.chance(3000) {
            self.agent_dies(node, "killed");
        }
        let lasts = self.rng.chance(5000);
        let soon = (self.now + self.rng.range(500, 6_000) * MS).min(self.shape.heal_at.max(self.now));
        let until = if lasts { self.shape.heal_at + STARTS_FAIL } else { soon };
        if lasts {
            self.shape.linger_until = self.shape.linger_until.max(until);
            self.shape.end_at = self.shape.end_at.max(until + AFTER_STARTS_FAIL);
        }
        // Else it starts, and reads its log for so long.
        self.nodes[node].reads_until = if self.rng.chance(5000) { until } else { 0 };
        self.queue.push(until, Happening::StartsWork(node));
    }

    /// Its server would start again. Does it hold the term still, though others could have taken over?
    pub(crate) fn starts_work(&mut self, node: Node) {
        (self.nodes[node].starts_fail, self.nodes[node].reads_until) = (false, 0);
        let long = self.healed && self.now >= self.shape.heal_at + STARTS_FAIL;
        let newest = self.store.newest().map(|(_, record)| record);
        let holds = newest.is_some_and(|record| record.holder.as_ref() == Some(&self.names[node]));
        if long && holds && !self.is_open(node) && self.others_can_elect(node) {
            let what =
                format!("n{node} holds the term though its server did not start for long, and others could serve");
            self.violate("L1", what);
        }
    }

    /// Can the others elect one of theirs without this node, whatever its log holds?
    fn others_can_elect(&self, node: Node) -> bool {
        let Some((_, record)) = self.store.newest().filter(|_| !self.store_lost) else { return false };
        let whole = |other: Node| {
            let copy = self.nodes[other].gate.copy;
            other != node && copy.is_some() && record.members.get(&self.names[other]).copied() == copy
        };
        let sound = |other: Node| !self.nodes[other].server.unstartable && self.nodes[other].server.gone_at.is_none();
        let count = (0..self.nodes.len()).filter(|other| whole(*other)).count();
        let leader = record.leader.as_ref().is_some_and(|leader| whole(crate::world::number(leader)));
        let listed = (0..self.nodes.len()).any(|other| whole(other) && self.wish().listed.contains(&other));
        let enough = leader || count > record.quorum as usize;
        !record.asynchronous && enough && listed && (0..self.nodes.len()).all(sound)
    }

    /// Can the others elect nobody without this node's copy, by the record? So it is for a moment while a member is being taken out.
    fn is_needed(&self, node: Node) -> bool {
        let Some((_, record)) = self.store.newest().filter(|(_, record)| !record.asynchronous) else { return false };
        let whole = |other: Node| {
            let copy = self.nodes[other].gate.copy;
            other != node && copy.is_some() && record.members.get(&self.names[other]).copied() == copy
        };
        (0..self.nodes.len()).filter(|other| whole(*other)).count() <= record.quorum as usize
    }

    fn guard_dies(&mut self, node: Node) {
        self.nodes[node].guard = Guard { late_until: self.nodes[node].guard.late_until, ..Guard::default() };
        self.server_ends(node, "its guard died");
        let back = self.now + self.rng.range(40, 300) * MS;
        self.queue.push(back, Happening::GuardStart(node));
    }

    fn host_dies(&mut self, node: Node) {
        if !self.nodes[node].up {
            return;
        }
        self.server_ends(node, "power failure");
        self.order_dies(node);
        let host = &mut self.nodes[node];
        host.mind = None;
        host.life += 1;
        host.up = false;
        (host.frozen_until, host.agent_paused_until, host.disk_frozen_until) = (0, 0, 0);
        host.server.stuck = false;
        host.blocked.clear();
        host.guard = Guard::default();
        self.power_fails(node);
        self.net.link[node] = Default::default();
        if self.rng.chance(1000) {
            self.lose_promise(node);
        }
        let back = self.now + self.rng.range(150, 2_500) * MS;
        self.queue.push(back, Happening::HostStart(node));
    }

    /// A host comes back: its guard at once, its agent soon.
    pub(crate) fn host_starts(&mut self, node: Node) {
        if self.nodes[node].up {
            return;
        }
        self.nodes[node].up = true;
        // The kernel refuses what old connections send: peers see them fall.
        self.agent_links_fall(node);
        self.guard_starts(node);
        let soon = self.now + self.rng.range(5, 80) * MS;
        self.queue.push(soon, Happening::AgentStart(node));
    }

    /// A guard begins.
    pub(crate) fn guard_starts(&mut self, node: Node) {
        if self.nodes[node].up && !self.nodes[node].guard.alive {
            self.nodes[node].guard = Guard { alive: true, ..Guard::default() };
        }
    }

    fn ask_switchover(&mut self, node: Node) {
        let to = self.rng.index(self.nodes.len());
        let to = self.rng.chance(7000).then(|| self.names[to].clone());
        self.input(node, Input::Operator { id: 0, by: "operator".to_owned(), command: Command::Switchover { to } });
    }

    fn change_excluded(&mut self, fault: Fault, node: Node) {
        let mut wish = self.wish().clone();
        if fault == Fault::Include {
            wish.excluded.clear();
        } else if wish.excluded.len() + 2 < wish.listed.len() {
            wish.excluded.insert(self.names[node].clone());
        }
        self.new_wish(wish);
    }

    /// The end of faults: everything is reachable, everything starts again.
    pub(crate) fn heal(&mut self) {
        self.trace(None, || "HEAL".to_owned());
        self.healed = true;
        self.net.heal();
        self.store.away_until = 0;
        self.store.slow_until = 0;
        self.store.watch_frozen = Default::default();
        self.heal_wishes();
        let serving = self.serving().is_some();
        for node in 0..self.nodes.len() {
            // The broken copy may be the one that counts: somebody mends it by hand.
            if !serving || self.is_needed(node) {
                self.nodes[node].server.unstartable = false;
            }
        }
        for node in 0..self.nodes.len() {
            let host = &mut self.nodes[node];
            let now = self.now;
            for until in [&mut host.frozen_until, &mut host.agent_paused_until, &mut host.guard.paused_until] {
                *until = (*until).min(now);
            }
            host.guard.late_until = host.guard.late_until.min(now);
            host.server.stopped_until = host.server.stopped_until.min(now);
            (host.slow_disk_until, host.slow_stream_until) = (0, 0);
            host.disk_frozen_until = host.disk_frozen_until.min(now);
            host.dies_after = None;
            self.host_starts(node);
            self.guard_starts(node);
            self.resume(node);
            self.queue.push(now + 20 * MS, Happening::AgentStart(node));
        }
        let first = self.now + 600 * MS;
        self.queue.push(first, Happening::Settled);
    }

    /// A kill reaches a server.
    pub(crate) fn killed(&mut self, node: Node, life: u32, why: &'static str) {
        if self.nodes[node].server.life != life {
            return;
        }
        if why == "late cut" {
            if self.plants.contains(&Plant::PositionBeforeCut) {
                self.nodes[node].server.upstream = None;
                self.cut_receiver(node);
            }
            return;
        }
        if self.now < self.nodes[node].frozen_until {
            let resume = self.nodes[node].frozen_until;
            self.queue.push(resume, Happening::Kill(node, life, why));
            return;
        }
        self.server_ends(node, why);
    }
}

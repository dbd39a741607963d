//! A host: its clock, its disk, its agent (the real `Mind`, driven as the shell of a real agent drives it) and its guard.

use crate::event::{Happening, Node};
use crate::orders::Running;
use crate::server::Server;
use crate::shape::{MS, Micros};
use crate::world::World;
use mainstay_decide::{CasResult, Input, Mind, Output, Plant};
use mainstay_model::{Durable, Message, Moment, Record, RouteState, Span, Term};
use std::collections::BTreeSet;

/// Most inputs that wait for a stopped agent; a real one's queues are bounded too.
const INBOX: usize = 1024;

/// The guard's state.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    /// Its process runs.
    pub alive: bool,
    /// Stopped until then.
    pub paused_until: Micros,
    /// Until when the server may serve, in the host's own time.
    pub deadline: Option<(Term, Moment)>,
    /// Came while it was stopped.
    pub pending: Option<(Term, Moment)>,
    /// It was not punctual before this moment.
    pub late_until: Micros,
}

/// A host.
#[derive(Debug, Default)]
pub struct Host {
    /// It has power.
    pub up: bool,
    /// All of it stands still until then.
    pub frozen_until: Micros,
    /// Added to its clock.
    pub clock_offset: Micros,
    /// The agent's promise file and the copy's id.
    pub disk: Durable,
    /// A file was ever written.
    pub disk_written: bool,
    /// The highest promise ever made durable here, lost files included.
    pub promised: Term,
    /// The decisions; `None`: no agent process.
    pub mind: Option<Box<Mind>>,
    /// Which agent process.
    pub life: u32,
    /// The agent stands still until then.
    pub agent_paused_until: Micros,
    /// What waits for it.
    pub inbox: Vec<Input>,
    /// The moment and number of its timer.
    pub timer: (Option<Moment>, u64),
    /// Its open write to the store.
    pub cas_open: Option<u64>,
    /// Its open read.
    pub read_open: Option<u64>,
    /// The deadline it last wished for.
    pub wished: Option<(Term, Moment)>,
    /// What the agent keeps of the durable state in memory (the gate).
    pub gate: Durable,
    /// What it tells proxies.
    pub route: RouteState,
    /// The order that runs.
    pub order: Option<Running>,
    /// The agent dies after this many further outputs.
    pub dies_after: Option<u32>,
    /// The guard.
    pub guard: Guard,
    /// The server and its data.
    pub server: Server,
    /// Since when the server process stands still.
    pub stopped_since: Micros,
    /// Flushes take long until then.
    pub slow_disk_until: Micros,
    /// Its volume is frozen until then: nothing becomes durable, and killed processes do not go.
    pub disk_frozen_until: Micros,
    /// Its server does not start: its volume is full, say.
    pub starts_fail: bool,
    /// It does start then, as a standby, and reads its log until this moment.
    pub reads_until: Micros,
    /// Outputs that wait for a durable promise, in order.
    pub blocked: Vec<Output>,
    /// This life of its agent knows that its dead server's processes are not gone.
    pub told_doomed: bool,
    /// What its upstream sends comes late until then.
    pub slow_stream_until: Micros,
    /// Until when its grants allow it to serve, in true time: each one's sending and lease.
    pub renewed: Option<Micros>,
    /// It was listed once: its agent runs.
    pub joined: bool,
    /// The generation of the operator's wishes that it goes by.
    pub generation: usize,
    /// Which store its agent is a member of.
    pub group: u32,
    /// A failover was ordered here, and is not over.
    pub failing_over: bool,
    /// The operator accepted a loss at this node.
    pub accepts_loss: bool,
    /// When its agent first heard of a later incarnation.
    pub heard_rebuilt: Option<Micros>,
    /// When the host last could not carry out a kill.
    pub kill_failed: Option<Micros>,
    /// Acknowledged commits that orders took out of this log, which their source has not; of which nobody was told.
    pub dropped_acknowledged: BTreeSet<u64>,
    /// The note on its disk of what an order took out of this log: it goes when a clone is in its place or a standby answers, not before.
    pub lost: Option<mainstay_model::Lost>,
}

impl World {
    /// The host's clock, in milliseconds.
    #[must_use]
    pub(crate) fn local(&self, node: Node, at: Micros) -> u64 {
        (self.nodes[node].clock_offset + at * self.shape.clock_rates[node] / 1_000_000) / MS
    }

    /// When the host's clock will show this.
    #[must_use]
    pub(crate) fn when(&self, node: Node, moment: Moment) -> Micros {
        let own = (moment.0.saturating_mul(MS)).saturating_sub(self.nodes[node].clock_offset);
        (own.saturating_mul(1_000_000)).div_ceil(self.shape.clock_rates[node])
    }

    /// Does the kernel answer?
    #[must_use]
    pub(crate) fn host_answers(&self, node: Node) -> bool {
        self.nodes[node].up && self.now >= self.nodes[node].frozen_until
    }

    /// Does the agent run?
    #[must_use]
    pub(crate) fn agent_runs(&self, node: Node) -> bool {
        self.nodes[node].mind.is_some() && self.now >= self.agent_resumes(node)
    }

    /// When a stopped agent goes on.
    #[must_use]
    pub(crate) fn agent_resumes(&self, node: Node) -> Micros {
        let host = &self.nodes[node];
        let blocked = if host.blocked.is_empty() { 0 } else { host.disk_frozen_until };
        host.agent_paused_until.max(host.frozen_until).max(blocked)
    }

    /// Does its volume stand still?
    #[must_use]
    pub(crate) fn disk_frozen(&self, node: Node) -> bool {
        self.now < self.nodes[node].disk_frozen_until
    }

    /// Are there processes of a dead server that can not end?
    #[must_use]
    pub(crate) fn stuck(&self, node: Node) -> bool {
        self.nodes[node].server.stuck && self.disk_frozen(node)
    }

    /// Does the guard run?
    #[must_use]
    pub(crate) fn guard_runs(&self, node: Node) -> bool {
        let host = &self.nodes[node];
        host.up && host.guard.alive && self.now >= host.guard.paused_until.max(host.frozen_until)
    }

    /// The agent will get this after the delay, if it still lives.
    pub(crate) fn input_in(&mut self, node: Node, delay: Micros, input: Input) {
        let life = self.nodes[node].life;
        self.queue.push(self.now + delay, Happening::Input(node, life, Box::new(input)));
    }

    /// The agent gets this.
    pub(crate) fn input(&mut self, node: Node, input: Input) {
        if self.nodes[node].mind.is_none() {
            return;
        }
        if !self.agent_runs(node) {
            if self.nodes[node].inbox.len() < INBOX && !matches!(input, Input::Tick) {
                self.nodes[node].inbox.push(input);
            }
            return;
        }
        self.step(node, input);
    }

    fn step(&mut self, node: Node, input: Input) {
        let now = Moment(self.local(node, self.now));
        if self.trace.on && interesting(&input) {
            self.trace(Some(node), || format!("  in  {input:?}"));
        }
        self.counters.steps += 1;
        self.note_contact(node, &input);
        let seen = matches!(&input, Input::Watched(..) | Input::Cas(_, CasResult::Conflict(_) | CasResult::Unknown));
        let Some(mind) = self.nodes[node].mind.as_mut() else { return };
        let outputs = mind.step(now, input);
        let wake = mind.wake();
        if seen && outputs.iter().any(|output| matches!(output, Output::Deadline(..))) {
            self.counters.seen_renewals += 1;
        }
        self.carry_out_all(node, outputs);
        if self.nodes[node].mind.is_some() {
            self.set_timer(node, now, wake);
        }
    }

    /// Carries outputs out in order; what follows a promise that can not be made durable now waits for it.
    fn carry_out_all(&mut self, node: Node, outputs: Vec<Output>) {
        let mut outputs = outputs.into_iter();
        while let Some(output) = outputs.next() {
            if matches!(output, Output::Persist(_)) && self.disk_frozen(node) {
                self.trace(Some(node), || "  the promise can not be made durable: the agent waits".to_owned());
                self.counters.blocked_promises += 1;
                self.nodes[node].blocked = std::iter::once(output).chain(outputs).collect();
                let thaw = self.nodes[node].disk_frozen_until;
                self.queue.push(thaw, Happening::Resume(node));
                return;
            }
            self.carry_out(node, output);
            if let Some(left) = self.nodes[node].dies_after.as_mut() {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    self.agent_dies(node, "between two outputs");
                    return;
                }
            }
        }
    }

    fn set_timer(&mut self, node: Node, now: Moment, wake: Option<Moment>) {
        let wake = wake.unwrap_or(now + Span(1000)).min(now + Span(1000)).max(now + Span(1));
        let (armed, number) = self.nodes[node].timer;
        if armed.is_some_and(|armed| armed <= wake && armed >= now) {
            return;
        }
        self.nodes[node].timer = (Some(wake), number + 1);
        let late = if self.rng.chance(self.weather(100)) { 60 * MS } else { MS };
        let at = self.when(node, wake) + self.rng.below(late);
        self.queue.push(at.max(self.now + 1), Happening::Tick(node, number + 1));
    }

    /// The agent's timer ran out.
    pub(crate) fn tick(&mut self, node: Node, number: u64) {
        if self.nodes[node].timer.1 != number || self.nodes[node].mind.is_none() {
            return;
        }
        self.nodes[node].timer.0 = None;
        if self.agent_runs(node) {
            self.step(node, Input::Tick);
        } else {
            let resume = self.agent_resumes(node);
            self.queue.push(resume, Happening::Tick(node, number));
        }
    }

    /// The agent looks at its server.
    pub(crate) fn probe(&mut self, node: Node, life: u32) {
        if self.nodes[node].life != life || self.nodes[node].mind.is_none() {
            return;
        }
        if !self.agent_runs(node) {
            let resume = self.agent_resumes(node);
            self.queue.push(resume, Happening::Probe(node, life));
            return;
        }
        let seen = self.observe(node);
        let late = self.rng.chance(self.weather(100));
        let delay = self.rng.range(300, if late { 400 * MS } else { 6 * MS });
        self.input_in(node, delay, Input::Observed(seen));
        let interval = self.nodes[node].mind.as_ref().map_or(Span(500), |mind| mind.probe_interval());
        let next = self.now + delay + interval.0.max(5) * MS;
        self.queue.push(next, Happening::Probe(node, life));
    }

    fn carry_out(&mut self, node: Node, output: Output) {
        match output {
            Output::Persist(durable) => {
                self.trace(Some(node), || format!("  persist {durable:?}"));
                let host = &mut self.nodes[node];
                host.promised = host.promised.max(durable.promise);
                if !self.plants.contains(&Plant::PromiseInMemory) {
                    host.disk = durable.clone();
                } else {
                    host.disk.copy = durable.copy;
                }
                host.disk_written = true;
                host.gate = durable;
            }
            Output::Read(id) => self.ask_store(node, id, None),
            Output::Cas(id, expected, record) => {
                if self.trace.on && !renews(self.store_of(node).newest().map(|(_, newest)| newest), &record) {
                    let at = expected.map_or(0, |revision| revision.0);
                    self.trace(Some(node), || format!("  write {id} at {at}: {}", brief(&record)));
                }
                self.check_pause(node, &record);
                self.ask_store(node, id, Some((expected, record)));
            }
            Output::Send(to, message) => {
                if self.trace.on && !matches!(message, Message::Presence(_)) {
                    self.trace(Some(node), || format!("  to {to}: {message:?}"));
                }
                if let Message::Answer(_) = message {
                    self.protocol_step(node, "answer");
                }
                let to = crate::world::number(&to);
                self.send_peer(node, to, message);
            }
            Output::Deadline(term, until) => {
                self.nodes[node].wished = Some((term, until));
                self.extend(node, term, until);
            }
            Output::Order(id, term, order) => self.begin_order(node, id, term, order),
            Output::Route(term, state, _) => {
                if self.nodes[node].route != state {
                    self.trace(Some(node), || format!("  route {state:?} term {term}"));
                    if state == RouteState::Draining {
                        self.proxies_say(node, term);
                    }
                }
                self.nodes[node].route = state;
            }
            Output::Event(event) => {
                self.trace(Some(node), || format!("  event {}: {}", event.kind, event.text));
                self.reported(node, &event);
            }
            Output::Reply(id, reply) => {
                self.trace(Some(node), || format!("  reply {id}: {reply:?}"));
                self.replied_to_operator(node, id, reply.is_ok());
            }
            Output::Reason(reason) => self.trace(Some(node), || format!("  why {}: {}", reason.rule, reason.text)),
        }
    }

    /// Proxies confirm a drain, or not, early or late: the decision must be as safe with every such word as without.
    fn proxies_say(&mut self, node: Node, term: Term) {
        let names = |count: u64| (0..count).map(|number| format!("proxy{number}")).collect::<Vec<_>>();
        if self.rng.chance(3000) {
            return;
        }
        let (waiting, late) = (names(self.rng.range(0, 2)), names(self.rng.range(0, 1)));
        self.input_in(node, 0, Input::Proxies { term, waiting, late });
        let delay = self.rng.range(0, 1500) * MS;
        self.input_in(node, delay, Input::Proxies { term, waiting: Vec::new(), late: Vec::new() });
    }

    /// Begins an agent process.
    pub(crate) fn agent_starts(&mut self, node: Node) {
        if !self.nodes[node].up || self.nodes[node].mind.is_some() {
            return;
        }
        if !self.nodes[node].joined {
            return;
        }
        let seed = self.rng.draw();
        let config = self.config(node, seed);
        let life = self.rng.draw();
        let host = &mut self.nodes[node];
        host.life += 1;
        host.gate = host.disk.clone();
        host.inbox.clear();
        host.blocked.clear();
        host.told_doomed = false;
        (host.cas_open, host.read_open, host.order, host.wished) = (None, None, None, None);
        host.timer = (None, host.timer.1 + 1);
        host.agent_paused_until = 0;
        host.dies_after = None;
        host.heard_rebuilt = None; // what it heard it kept in memory only
        let durable = host.disk_written.then(|| host.disk.clone());
        host.mind = Some(Box::new(Mind::new(config, durable, host.server.data, life)));
        let life = host.life;
        self.trace(Some(node), || format!("agent starts (life {life})"));
        if !self.nodes[node].guard.alive {
            self.nodes[node].guard = Guard { alive: true, ..Guard::default() };
        }
        self.input(node, Input::Tick);
        self.watch_begins(node);
        let soon = self.now + self.rng.range(MS, 20 * MS);
        self.queue.push(soon, Happening::Probe(node, life));
    }

    /// The agent's process ends; the guard and the server go on.
    pub(crate) fn agent_dies(&mut self, node: Node, why: &'static str) {
        if self.nodes[node].mind.is_none() {
            return;
        }
        self.trace(Some(node), || format!("agent dies: {why}"));
        self.order_dies(node);
        self.nodes[node].blocked.clear();
        self.nodes[node].mind = None;
        self.nodes[node].life += 1;
        self.nodes[node].route = RouteState::Closed;
        self.agent_links_fall(node);
        if self.rng.chance(1000) {
            self.lose_promise(node);
        }
        let most = if self.rng.chance(5000) { 120 } else { 1500 };
        let back = self.now + self.rng.range(15, most) * MS;
        self.queue.push(back, Happening::AgentStart(node));
    }

    /// The promise file is lost; the copy's id has a file of its own.
    pub(crate) fn lose_promise(&mut self, node: Node) {
        let host = &mut self.nodes[node];
        if !host.disk_written {
            return;
        }
        host.disk = Durable { copy: host.disk.copy, ..Durable::default() };
        self.counters.lost_promises += 1;
        self.trace(Some(node), || "the promise file is lost".to_owned());
    }

    /// Something that stood still goes on.
    pub(crate) fn resume(&mut self, node: Node) {
        if self.guard_runs(node) {
            if let Some((term, until)) = self.nodes[node].guard.pending.take() {
                self.extend(node, term, until);
            }
            self.guard_wakes(node);
        }
        if self.agent_runs(node) {
            let blocked = std::mem::take(&mut self.nodes[node].blocked);
            self.carry_out_all(node, blocked);
            for input in std::mem::take(&mut self.nodes[node].inbox) {
                self.input(node, input);
            }
        }
    }

    /// The agent moves the deadline.
    fn extend(&mut self, node: Node, term: Term, until: Moment) {
        if !self.nodes[node].guard.alive || !self.nodes[node].server.process.runs() {
            return;
        }
        if !self.guard_runs(node) {
            self.nodes[node].guard.pending = Some((term, until));
            return;
        }
        let held = self.nodes[node].guard.deadline;
        if held.is_some_and(|held| held >= (term, until)) {
            return;
        }
        self.set_deadline(node, term, until);
    }

    /// The guard takes a deadline.
    pub(crate) fn set_deadline(&mut self, node: Node, term: Term, until: Moment) {
        self.nodes[node].guard.deadline = Some((term, until));
        let at = self.when(node, until) + self.rng.below(5 * MS);
        self.queue.push(at.max(self.now), Happening::Guard(node));
    }

    /// The guard looks at its deadline.
    pub(crate) fn guard_wakes(&mut self, node: Node) {
        if !self.guard_runs(node) || self.plants.contains(&Plant::GuardNeverKills) {
            return;
        }
        let now = Moment(self.local(node, self.now));
        let passed = self.nodes[node].guard.deadline.is_some_and(|(_, until)| now >= until);
        if passed && self.nodes[node].server.process.runs() {
            let life = self.nodes[node].server.life;
            let delay = self.rng.range(300, 8 * MS);
            self.queue.push(self.now + delay, Happening::Kill(node, life, "deadline passed"));
        }
    }
}

fn interesting(input: &Input) -> bool {
    let dull =
        matches!(input, Input::Tick | Input::Observed(_) | Input::Watched(..) | Input::Cas(_, CasResult::Done(_)));
    !dull && !matches!(input, Input::Peer(_, Message::Presence(_)))
}

/// Does a write only renew?
pub(crate) fn renews(before: Option<&Record>, after: &Record) -> bool {
    before.is_some_and(|before| Record { grant: after.grant, ..before.clone() } == *after)
}

/// A record in one line.
pub(crate) fn brief(record: &Record) -> String {
    let members: Vec<String> = record.members.iter().map(|(node, copy)| format!("{node}:{copy}")).collect();
    let name = |node: &Option<mainstay_model::NodeId>| node.as_ref().map_or("-".to_owned(), ToString::to_string);
    format!(
        "term {} {:?} holder {} grant {} leader {} M {} q {} timeline {} wanted {}",
        record.term,
        record.state,
        name(&record.holder),
        record.grant,
        name(&record.leader),
        members.join(","),
        record.quorum,
        record.timeline,
        name(&record.wanted)
    )
}

//! Orders to a server, carried out as an agent's executor and engine do: one at a time, after a delay, compared with the durable
//! promise when they begin, in steps that can break half-way.

use crate::event::{Happening, Node};
use crate::server::Process;
use crate::shape::{MS, Micros};
use crate::world::World;
use mainstay_decide::{Input, Plant};
use mainstay_model::record::ClaimState;
use mainstay_model::{Order, OrderFailure, OrderId, Outcome, Term};

/// An order on its way.
#[derive(Clone, Debug)]
pub struct Running {
    /// Its number.
    pub id: OrderId,
    /// Its term.
    pub term: Term,
    /// What to do.
    pub order: Order,
    /// How far it got.
    pub step: u8,
    /// Tells its timer from an older order's.
    pub number: u64,
    /// It gives up then.
    pub until: Micros,
    /// The server process that it waits for.
    pub life: u32,
    /// A setting must be confirmed by every walsender beyond this position.
    pub marker: Option<usize>,
}

pub(crate) enum Next {
    /// Go on after this time.
    In(Micros),
    /// It ended.
    End(Outcome),
}

pub(crate) fn not_yet(why: &str) -> Next {
    Next::End(Outcome::Failed(OrderFailure::NotYet(why.to_owned())))
}

pub(crate) fn error(why: &str) -> Next {
    Next::End(Outcome::Failed(OrderFailure::Error(why.to_owned())))
}

pub(crate) fn broken(why: &str) -> Next {
    Next::End(Outcome::Failed(OrderFailure::Broken(why.to_owned())))
}

pub(crate) const DONE: Next = Next::End(Outcome::Done);

impl World {
    /// The agent was told to do this.
    pub(crate) fn begin_order(&mut self, node: Node, id: OrderId, term: Term, order: Order) {
        self.trace(Some(node), || format!("  order {} term {term}: {order:?}", id.0));
        if self.nodes[node].told_doomed && !matches!(order, Order::Kill) {
            self.violate(
                "shell",
                format!("n{node} gave order {order:?} while its dead server's processes are not gone"),
            );
        }
        if let Some(earlier) = self.nodes[node].order.take() {
            let legal = matches!(order, Order::Kill);
            if !legal {
                self.violate("shell", format!("n{node} gave order {order:?} while {:?} ran", earlier.order));
            }
            let aborted = Outcome::Failed(OrderFailure::Aborted);
            self.input_in(node, 0, Input::Ordered(earlier.id, aborted));
        }
        let elects = self.store_of(node).newest().is_some_and(|(_, record)| {
            record.state == ClaimState::Electing && record.holder.as_ref() == Some(&self.names[node])
        });
        if elects && matches!(order, Order::Follow { .. }) {
            self.counters.fast_forwards += 1;
        }
        self.next_order += 1;
        let number = self.next_order;
        let late = self.rng.chance(self.weather(500)) && !matches!(order, Order::Kill);
        let delay = if late { self.rng.range(5, 400) * MS } else { self.rng.range(100, 4 * MS) };
        let until = self.now + delay + 1_500 * MS;
        self.nodes[node].order = Some(Running { id, term, order, step: 0, number, until, life: 0, marker: None });
        self.queue.push(self.now + delay, Happening::Order(node, number));
    }

    /// The running order goes on.
    pub(crate) fn order_step(&mut self, node: Node, number: u64) {
        let Some(running) = self.nodes[node].order.clone().filter(|running| running.number == number) else { return };
        if !self.agent_runs(node) {
            let resume = self.agent_resumes(node);
            self.queue.push(resume.max(self.now + 1), Happening::Order(node, number));
            return;
        }
        // What touches the volume waits for it; only signals do not.
        if self.disk_frozen(node) && !matches!(running.order, Order::Kill) {
            self.queue.push(self.now + 20 * MS, Happening::Order(node, number));
            return;
        }
        let next = if running.step == 0 && !self.admitted(node, &running) {
            Next::End(Outcome::Failed(OrderFailure::Stale))
        } else {
            self.perform(node, &running)
        };
        match next {
            Next::In(delay) => {
                if let Some(running) = self.nodes[node].order.as_mut() {
                    running.step = running.step.saturating_add(1);
                }
                self.queue.push(self.now + delay.max(1), Happening::Order(node, number));
            }
            Next::End(outcome) => {
                self.nodes[node].order = None;
                self.trace(Some(node), || format!("  order {} ended: {outcome:?}", running.id.0));
                let delay = self.rng.range(50, 2 * MS);
                self.input_in(node, delay, Input::Ordered(running.id, outcome));
                let life = self.nodes[node].life;
                let seen = self.observe(node);
                self.queue.push(self.now + delay + 500, Happening::Input(node, life, Box::new(Input::Observed(seen))));
            }
        }
    }

    /// The check against the durable promise when an order begins.
    fn admitted(&mut self, node: Node, running: &Running) -> bool {
        if matches!(running.order, Order::Kill) {
            return true;
        }
        let skip = match running.order {
            Order::Follow { .. } => self.plants.contains(&Plant::LateFollow),
            Order::Promote { .. } => self.plants.contains(&Plant::LatePromote),
            Order::RestartInPlace => self.plants.contains(&Plant::RestartWithoutCheck),
            Order::Rewind { .. } => self.plants.contains(&Plant::LateRewind),
            _ => false,
        };
        if !skip && running.term < self.nodes[node].gate.promise {
            return false;
        }
        if running.term < self.nodes[node].promised {
            let promised = self.nodes[node].promised;
            let what =
                format!("n{node} carries out {:?} of term {} after promising {promised}", running.order, running.term);
            self.violate("S3", what);
        }
        true
    }

    fn perform(&mut self, node: Node, running: &Running) -> Next {
        match &running.order {
            // In order or not makes no difference to a log that is flushed.
            Order::Kill => self.kill(node, running),
            Order::Stop => {
                if running.step == 0 {
                    self.count_removed(node);
                }
                self.kill(node, running)
            }
            Order::StartStandby => self.start_standby(node, running),
            Order::Recruit => self.recruit(node, running),
            Order::ReadEnd => self.read_end(node, running),
            Order::Follow { upstream } => self.follow(node, crate::world::number(upstream)),
            Order::Promote { timeline, fork, .. } => self.promote(node, running, *timeline, *fork),
            Order::Open => self.open(node, running),
            Order::Close => {
                self.nodes[node].server.open = false;
                DONE
            }
            Order::SetSync { .. } => self.set_sync(node, running),
            Order::Checkpoint => self.checkpoint(node, running),
            Order::StopClean { keep } => {
                let keep = keep.iter().map(crate::world::number).collect();
                self.stop_clean(node, running, keep)
            }
            Order::RestartInPlace => self.restart_in_place(node, running),
            Order::Rewind { source } => self.rewind(node, running, crate::world::number(source)),
            Order::Clone { source, .. } => self.clone_from(node, running, crate::world::number(source)),
            // No schedule restores in place: `decide/tests/restores.rs` does.
            Order::Adopt { .. } => error("no restored copy lies ready"),
            Order::Bootstrap { copy, setting } => {
                if running.step == 0 {
                    let server = &mut self.nodes[node].server;
                    server.setting = setting.clone();
                    server.copy = Some(*copy);
                }
                self.bootstrap(node, running)
            }
        }
    }

    fn kill(&mut self, node: Node, running: &Running) -> Next {
        if !self.guard_runs(node) && self.nodes[node].guard.alive {
            // The guard stands still: the agent waits for a while.
            if running.step <= 20 {
                return Next::In(20 * MS);
            }
            self.nodes[node].kill_failed = Some(self.now);
            return error("the guard does not answer");
        }
        if running.step == 0 {
            return Next::In(self.rng.range(300, 8 * MS));
        }
        if self.disk_frozen(node) && self.nodes[node].server.process.runs() && self.rng.chance(6000) {
            // Not every process is signalled yet, as far as two looks can tell.
            self.nodes[node].kill_failed = Some(self.now);
            return error("some processes may still run");
        }
        self.server_ends(node, "killed by order");
        let stuck = self.stuck(node);
        self.nodes[node].told_doomed = stuck;
        if stuck { Next::End(Outcome::Doomed) } else { DONE }
    }

    fn start_standby(&mut self, node: Node, running: &Running) -> Next {
        let Some(copy) = self.nodes[node].gate.copy else { return broken("no whole copy to start") };
        let process = self.nodes[node].server.process;
        if running.life == 0 {
            if process.runs() {
                return if matches!(process, Process::Standby | Process::Starting(false)) {
                    DONE
                } else {
                    error("runs as primary")
                };
            }
            if self.nodes[node].server.data.is_none() {
                return broken("no data directory");
            }
            if self.nodes[node].server.unstartable {
                return broken("its control file can not be read");
            }
            if self.nodes[node].starts_fail && self.nodes[node].reads_until == 0 {
                return error("no space left on its volume");
            }
            if !self.guard_runs(node) {
                return if running.step > 20 { error("the guard does not answer") } else { Next::In(30 * MS) };
            }
            let gate = &self.nodes[node].gate;
            let upstream = gate
                .upstream
                .as_ref()
                .filter(|upstream| upstream.term == gate.promise)
                .map(|upstream| upstream.node.clone());
            let keeps = self.plants.contains(&Plant::CutNotDurable) && upstream.is_none();
            let server = &mut self.nodes[node].server;
            if !keeps {
                server.upstream = upstream.as_ref().map(crate::world::number);
            }
            server.copy = Some(copy);
            self.start_server(node, false);
            let life = self.nodes[node].server.life;
            self.remember(node, life, None);
            return Next::In(10 * MS);
        }
        if self.nodes[node].server.life != running.life || !process.runs() {
            return error("the server ended while it started");
        }
        if process == Process::Standby {
            self.nodes[node].lost = None; // the rewind has been heard of
            return DONE;
        }
        if self.now <= running.until {
            Next::In(10 * MS)
        } else if self.nodes[node].starts_fail {
            not_yet("it reads its log")
        } else {
            error("the server does not answer")
        }
    }

    /// What the running order waits for.
    pub(crate) fn remember(&mut self, node: Node, life: u32, marker: Option<usize>) {
        if let Some(running) = self.nodes[node].order.as_mut() {
            running.life = life;
            running.marker = marker;
        }
    }

    fn recruit(&mut self, node: Node, running: &Running) -> Next {
        if self.nodes[node].server.process == Process::Down {
            return error("no server runs");
        }
        if matches!(
            self.nodes[node].server.process,
            Process::Primary | Process::Promoting(..) | Process::Starting(true)
        ) {
            return error("the server is no standby");
        }
        if !self.server_runs(node) {
            return if self.now > running.until { not_yet("the server stands still") } else { Next::In(50 * MS) };
        }
        if self.plants.contains(&Plant::PositionBeforeCut) && running.step == 0 {
            let end = self.reported_end(node);
            let life = self.nodes[node].server.life;
            let delay = self.rng.range(5, 120) * MS;
            self.queue.push(self.now + delay, Happening::Kill(node, life, "late cut"));
            return Next::End(Outcome::Ended(end));
        }
        if running.step == 0 {
            return Next::In(self.rng.range(300, 12 * MS));
        }
        if !self.plants.contains(&Plant::CutNotDurable) {
            self.nodes[node].server.upstream = None;
        }
        self.cut_receiver(node);
        self.read_end(node, running)
    }

    fn read_end(&mut self, node: Node, running: &Running) -> Next {
        let server = &self.nodes[node].server;
        if server.data.is_none() {
            return error("no data directory");
        }
        if server.process.runs() {
            if server.receiver.is_some() || !matches!(server.process, Process::Standby | Process::Starting(false)) {
                return error("the stream is not cut, or the server is no standby");
            }
            let early = self.plants.contains(&Plant::PositionBeforeRead) && server.process == Process::Standby;
            if !server.end_known && !early {
                return if self.now > running.until { not_yet("recovery reads still") } else { Next::In(15 * MS) };
            }
        } else if running.step == 0 {
            return Next::In(self.rng.range(2, 40) * MS);
        }
        Next::End(Outcome::Ended(self.reported_end(node)))
    }

    fn follow(&mut self, node: Node, upstream: Node) -> Next {
        let Some(copy) = self.nodes[node].gate.copy else { return broken("no whole copy to follow with") };
        if !matches!(self.nodes[node].server.process, Process::Standby | Process::Starting(false)) {
            return error("no standby runs");
        }
        self.cut_receiver(node);
        let server = &mut self.nodes[node].server;
        server.upstream = Some(upstream);
        server.copy = Some(copy);
        let life = server.life;
        let late = if self.rng.chance(self.weather(500)) { 1_000 } else { 40 };
        let delay = self.rng.range(1, late) * MS;
        self.queue.push(self.now + delay, Happening::Connect(node, life));
        DONE
    }

    /// The agent died: a tool it ran dies with it, what a server does goes on.
    pub(crate) fn order_dies(&mut self, node: Node) {
        self.nodes[node].order = None;
    }
}

//! Orders by which a server becomes, or serves as, primary: promotion, opening, the synchronous setting, stop, restart, founding.

use crate::event::{Happening, Node};
use crate::orders::{DONE, Next, Running, error, not_yet};
use crate::server::Process;
use crate::shape::MS;
use crate::world::World;
use mainstay_decide::Plant;
use mainstay_model::record::RecoveryEnd;
use mainstay_model::{Lsn, Moment, Order, Outcome, Position, SystemId, Term, Timeline};

impl World {
    /// Does the guard hold a deadline for this term that lies ahead?
    fn deadline_ahead(&self, node: Node, term: Term) -> bool {
        let now = Moment(self.local(node, self.now));
        self.nodes[node].guard.deadline.is_some_and(|(of, until)| of == term && until > now)
    }

    pub(crate) fn promote(&mut self, node: Node, running: &Running, timeline: Timeline, fork: Position) -> Next {
        let late = self.plants.contains(&Plant::LatePromote);
        let unchecked = late || self.plants.contains(&Plant::PromoteWithoutDeadline);
        if running.life == 0 {
            if !unchecked && !self.deadline_ahead(node, running.term) {
                return if running.step > 10 { not_yet("no deadline ahead") } else { Next::In(40 * MS) };
            }
            let server = &self.nodes[node].server;
            if server.process != Process::Standby || !server.end_known || !self.server_runs(node) {
                return not_yet("no standby that has read its log");
            }
            if !late && (server.upstream.is_some() || server.receiver.is_some()) {
                return error("the stream is not cut");
            }
            let end = server.log_end(server.log.len()).position;
            if !late && end != fork {
                return error("the log ends elsewhere");
            }
            self.cut_receiver(node);
            return self.begin_promotion(node, running, timeline);
        }
        let server = &self.nodes[node].server;
        if server.life != running.life || !server.process.runs() {
            return error("the server ended while it was promoted");
        }
        if server.process == Process::Primary {
            let lsn = Lsn(server.flushed as u64);
            return Next::End(Outcome::Promoted(RecoveryEnd { timeline, lsn }));
        }
        Next::In(10 * MS)
    }

    fn begin_promotion(&mut self, node: Node, running: &Running, timeline: Timeline) -> Next {
        let Order::Promote { setting, .. } = &running.order else { return error("no promotion") };
        let server = &mut self.nodes[node].server;
        server.upstream = None;
        server.setting = setting.clone();
        server.setting_number += 1;
        (server.view, server.view_number) = (server.setting.clone(), server.setting_number);
        server.process = Process::Promoting(timeline, running.term);
        let life = server.life;
        self.close_senders(node, |_| false);
        let takes = self.rng.range(20, 300) * MS;
        self.queue.push(self.now + takes / 2, Happening::Promoting(node, life, false));
        self.queue.push(self.now + takes, Happening::Promoting(node, life, true));
        self.remember(node, life, None);
        self.protocol_step(node, "promotion");
        Next::In(takes)
    }

    pub(crate) fn open(&mut self, node: Node, running: &Running) -> Next {
        if running.step == 0 {
            return Next::In(self.rng.range(200, 5 * MS));
        }
        if self.nodes[node].server.process != Process::Primary || !self.server_runs(node) {
            return error("no primary runs");
        }
        if !self.nodes[node].server.open {
            self.nodes[node].server.open = true;
            self.opened(node);
            self.protocol_step(node, "opening");
        }
        DONE
    }

    pub(crate) fn set_sync(&mut self, node: Node, running: &Running) -> Next {
        let Order::SetSync { setting } = &running.order else { return error("no setting") };
        let process = self.nodes[node].server.process;
        if process != Process::Primary || (running.life != 0 && self.nodes[node].server.life != running.life) {
            return error("no primary runs");
        }
        if !self.server_runs(node) {
            return Next::In(50 * MS);
        }
        if running.life == 0 {
            self.change_setting(node, setting.clone());
            self.counters.settings += 1;
            self.protocol_step(node, "setting");
            let life = self.nodes[node].server.life;
            if self.plants.contains(&Plant::SettingAtOnce) {
                let end = Lsn(self.nodes[node].server.flushed as u64);
                return Next::End(Outcome::Confirmed(end));
            }
            self.remember(node, life, None);
            return Next::In(15 * MS);
        }
        self.confirm_setting(node, running)
    }

    fn confirm_setting(&mut self, node: Node, running: &Running) -> Next {
        let number = self.nodes[node].server.setting_number;
        if self.now > running.until {
            // Whoever has not confirmed is ended.
            let marker = running.marker.unwrap_or(usize::MAX);
            self.close_senders(node, |sender| sender.view_number == number && sender.flush >= marker);
        }
        let server = &self.nodes[node].server;
        let adopted =
            server.view_number == number && server.senders.values().all(|sender| sender.view_number == number);
        let Some(marker) = running.marker else {
            if adopted {
                self.append(node, false);
                let server = &mut self.nodes[node].server;
                server.flushed = server.log.len();
                let marker = server.flushed;
                self.remember(node, running.life, Some(marker));
                self.wake_senders(node);
            }
            return Next::In(12 * MS);
        };
        if adopted && server.senders.values().all(|sender| sender.flush >= marker) {
            return Next::End(Outcome::Confirmed(Lsn(server.flushed as u64)));
        }
        Next::In(12 * MS)
    }

    /// Mostly short; sometimes there is more to write than the order waits for, and the server goes on with it.
    pub(crate) fn checkpoint(&mut self, node: Node, running: &Running) -> Next {
        if self.nodes[node].server.process != Process::Primary || !self.server_runs(node) {
            return error("no primary runs");
        }
        match running.step {
            0 if self.rng.chance(100) => Next::In(3_000 * MS),
            0 => Next::In(self.rng.range(5, 300) * MS),
            _ if self.rng.chance(200) => not_yet("no checkpoint in time"),
            _ => DONE,
        }
    }

    pub(crate) fn stop_clean(&mut self, node: Node, running: &Running, keep: Vec<Node>) -> Next {
        if self.nodes[node].server.process != Process::Primary || !self.server_runs(node) {
            return error("no primary runs");
        }
        if running.marker.is_none() {
            let server = &mut self.nodes[node].server;
            server.open = false;
            self.close_senders(node, |sender| keep.contains(&sender.standby));
            self.append(node, false);
            let server = &mut self.nodes[node].server;
            server.flushed = server.log.len();
            let (life, end) = (server.life, server.flushed);
            self.remember(node, life, Some(end));
            self.wake_senders(node);
            return Next::In(10 * MS);
        }
        let server = &self.nodes[node].server;
        let end = server.flushed;
        if server.senders.values().all(|sender| sender.flush >= end) || running.step > 40 {
            self.server_ends(node, "stopped in order");
            return Next::End(Outcome::Ended(self.reported_end(node)));
        }
        Next::In(10 * MS)
    }

    pub(crate) fn restart_in_place(&mut self, node: Node, running: &Running) -> Next {
        if running.life == 0 {
            let now = Moment(self.local(node, self.now));
            let unchecked = self.plants.contains(&Plant::RestartWithoutCheck);
            let wished = self.nodes[node].wished;
            let ahead = wished.filter(|(term, until)| *term == running.term && *until > now);
            if ahead.is_none() && !unchecked {
                return not_yet("no deadline ahead");
            }
            if self.nodes[node].server.process.runs() {
                return error("a server runs");
            }
            if !self.guard_runs(node) {
                return if running.step > 10 { error("the guard does not answer") } else { Next::In(30 * MS) };
            }
            if self.nodes[node].server.unstartable {
                return error("its control file can not be read");
            }
            if self.nodes[node].starts_fail {
                return error("no space left on its volume");
            }
            if !self.nodes[node].server.as_primary || self.nodes[node].server.data.is_none() {
                return error("it was started as a standby since");
            }
            if self.plants.contains(&Plant::RestartWithSettingEmptied) {
                self.nodes[node].server.setting = mainstay_model::SyncSetting::default();
            }
            self.nodes[node].server.term = running.term;
            self.nodes[node].server.upstream = None;
            self.start_server(node, true);
            if let Some((term, until)) = ahead {
                self.set_deadline(node, term, until);
            }
            let life = self.nodes[node].server.life;
            self.remember(node, life, None);
            return Next::In(20 * MS);
        }
        let server = &self.nodes[node].server;
        if server.life != running.life || !server.process.runs() {
            return error("the server ended while it started");
        }
        if server.process == Process::Primary {
            self.counters.restarts += 1;
            let server = &self.nodes[node].server;
            let end = RecoveryEnd { timeline: server.timeline, lsn: Lsn(server.flushed as u64) };
            return Next::End(Outcome::Restarted(end));
        }
        Next::In(10 * MS)
    }

    pub(crate) fn bootstrap(&mut self, node: Node, running: &Running) -> Next {
        if running.life == 0 {
            let now = Moment(self.local(node, self.now));
            let ahead = self.nodes[node].wished.filter(|(term, until)| *term == running.term && *until > now);
            if self.nodes[node].server.process.runs() {
                return error("a server runs");
            }
            if running.step == 0 {
                return Next::In(self.rng.range(50, 300) * MS);
            }
            let Some((term, until)) = ahead else { return not_yet("no deadline ahead") };
            if !self.guard_runs(node) {
                return error("the guard does not answer");
            }
            self.truncate(node, 0);
            let system = SystemId(self.rng.draw());
            let server = &mut self.nodes[node].server;
            server.data = Some(system);
            server.term = running.term;
            self.start_server(node, true);
            self.set_deadline(node, term, until);
            let life = self.nodes[node].server.life;
            self.remember(node, life, None);
            return Next::In(20 * MS);
        }
        let server = &self.nodes[node].server;
        if server.life != running.life || !server.process.runs() {
            return error("the server ended while it started");
        }
        if let (Process::Primary, Some(system)) = (server.process, server.data) {
            let end = RecoveryEnd { timeline: server.timeline, lsn: Lsn(server.flushed as u64) };
            return Next::End(Outcome::Founded { system, end });
        }
        Next::In(10 * MS)
    }
}

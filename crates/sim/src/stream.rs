//! Replication and commits: connections, batches of records, flush reports, and when a commit is let go. Each walsender counts by
//! the setting that it has read itself.

use crate::event::{Happening, Node};
use crate::server::{Entry, Process, Receiver, Sender};
use crate::shape::MS;
use crate::world::World;
use mainstay_model::{CopyId, RouteState, SyncSetting};

/// Most records in one batch.
const BATCH: usize = 64;

impl World {
    /// A standby tries to reach its upstream.
    pub(crate) fn connect(&mut self, node: Node, life: u32) {
        let server = &self.nodes[node].server;
        if server.life != life || server.receiver.is_some() || !server.process.runs() || !server.end_known {
            return;
        }
        let (Some(upstream), Some(copy)) = (server.upstream, server.copy) else { return };
        if !matches!(server.process, Process::Standby | Process::Starting(false)) {
            return;
        }
        let end = server.log_end(server.log.len());
        let late = if self.rng.chance(self.weather(500)) { 1_200 } else { 150 };
        let again = self.now + self.rng.range(40, late) * MS;
        let there = self.server_runs(upstream)
            && matches!(self.nodes[upstream].server.process, Process::Primary | Process::Standby)
            && self.nodes[upstream].server.end_known
            && self.net.both(self.now, node, upstream)
            && self.server_writes(node);
        let gone = self.nodes[node].server.gone_at == Some(upstream);
        if !there || gone || !self.nodes[upstream].server.serves(&end) {
            self.queue.push(again, Happening::Connect(node, life));
            return;
        }
        self.next_conn += 1;
        let conn = self.next_conn;
        let upstream_life = self.nodes[upstream].server.life;
        self.nodes[node].server.receiver = Some(Receiver { conn, upstream, upstream_life });
        let at = end.position.lsn.0 as usize;
        let now = self.now;
        self.close_senders(upstream, |sender| sender.standby != node);
        let theirs = &mut self.nodes[upstream].server;
        let (view, view_number) = (theirs.view.clone(), theirs.view_number);
        let behind = view_number != theirs.setting_number;
        let sender = Sender {
            standby: node,
            copy,
            sent: at,
            flush: 0,
            streaming: false,
            busy: false,
            view,
            view_number,
            heard: now,
        };
        theirs.senders.insert(conn, sender);
        if behind {
            let number = theirs.setting_number;
            let delay = self.rng.range(0, 300 * MS);
            self.queue.push(self.now + delay, Happening::Adopt(upstream, upstream_life, Some(conn), number));
        }
        self.trace(Some(node), || format!("streams from n{upstream} from {at}"));
        let delay = self.packet();
        self.queue
            .push(self.now + delay, Happening::Report { to: upstream, to_life: upstream_life, conn, copy, upto: at });
        self.queue.push(self.now + delay, Happening::Pump(upstream, conn));
    }

    /// Ends a standby's connection at its own end.
    pub(crate) fn cut_receiver(&mut self, node: Node) {
        self.nodes[node].server.receiver = None;
    }

    /// An upstream closes the connections that are not to be kept; the standbys see it soon, or when nothing comes any more.
    pub(crate) fn close_senders(&mut self, node: Node, keep: impl Fn(&Sender) -> bool) {
        let senders = &mut self.nodes[node].server.senders;
        let closed: Vec<(u64, Node)> =
            senders.iter().filter(|(_, sender)| !keep(sender)).map(|(conn, sender)| (*conn, sender.standby)).collect();
        senders.retain(|_, sender| keep(sender));
        for (conn, standby) in closed {
            let seen = self.nodes[node].up && self.net.both(self.now, node, standby);
            let delay = if seen { self.rng.range(200, 5 * MS) } else { self.shape.stream_timeout };
            self.queue.push(self.now + delay, Happening::Lost(standby, conn));
        }
    }

    /// A standby's connection is over.
    pub(crate) fn lost(&mut self, node: Node, conn: u64) {
        if self.nodes[node].server.receiver.is_some_and(|receiver| receiver.conn == conn) {
            self.lose_connection(node);
        }
    }

    /// Ends a standby's connection; it tries again.
    pub(crate) fn lose_connection(&mut self, node: Node) {
        self.cut_receiver(node);
        let life = self.nodes[node].server.life;
        let delay = self.rng.range(20, 150) * MS;
        self.queue.push(self.now + delay, Happening::Connect(node, life));
    }

    /// A walsender's timer: is the other end still there, and is there something to send?
    pub(crate) fn pump(&mut self, node: Node, conn: u64) {
        let Some(sender) = self.nodes[node].server.senders.get(&conn) else { return };
        let (standby, heard, busy) = (sender.standby, sender.heard, sender.busy);
        let linked = self.nodes[standby].server.receiver.is_some_and(|receiver| receiver.conn == conn);
        let reachable = self.net.both(self.now, node, standby);
        if (!linked && reachable) || self.now > heard + self.shape.stream_timeout {
            self.nodes[node].server.senders.remove(&conn);
            if linked {
                self.lose_connection(standby);
            }
            return;
        }
        if reachable && !busy && self.server_runs(node) && self.server_runs(standby) {
            // The keep-alive and its answer.
            let now = self.now;
            if let Some(sender) = self.nodes[node].server.senders.get_mut(&conn) {
                sender.heard = now;
            }
        }
        self.send_batch(node, conn);
        self.queue.push(self.now + 200 * MS, Happening::Pump(node, conn));
    }

    fn send_batch(&mut self, node: Node, conn: u64) {
        if !self.server_runs(node) {
            return;
        }
        let server = &mut self.nodes[node].server;
        let end = server.flushed;
        let Some(sender) = server.senders.get_mut(&conn) else { return };
        let (at, standby) = (sender.sent, sender.standby);
        if sender.busy || !self.net.both(self.now, node, standby) {
            return;
        }
        if end <= at {
            sender.streaming = true;
            return;
        }
        let upto = end.min(at + BATCH);
        sender.sent = upto;
        sender.busy = true;
        sender.streaming |= upto == end;
        let entries: Vec<Entry> = server.log[at..upto].to_vec();
        let slow = self.now < self.nodes[standby].slow_stream_until;
        let delay = self.packet() + if slow { self.rng.range(0, 500) * MS } else { 0 };
        self.queue.push(self.now + delay, Happening::Batch { from: node, to: standby, conn, at, entries });
    }

    /// Something was written: wake the walsenders that are idle.
    pub(crate) fn wake_senders(&mut self, node: Node) {
        let idle: Vec<u64> =
            self.nodes[node].server.senders.iter().filter(|(_, sender)| !sender.busy).map(|(conn, _)| *conn).collect();
        for conn in idle {
            self.send_batch(node, conn);
        }
    }

    /// Records arrived at a standby.
    pub(crate) fn batch(&mut self, from: Node, to: Node, conn: u64, at: usize, entries: Vec<Entry>) {
        let server = &self.nodes[to].server;
        if server.receiver.is_none_or(|receiver| receiver.conn != conn) || server.log.len() != at {
            return;
        }
        if !self.server_writes(to) || !self.net.passes(self.now, from, to) {
            let again = self.server_resumes(to).max(self.now + 20 * MS);
            self.queue.push(again, Happening::Batch { from, to, conn, at, entries });
            return;
        }
        let server = &mut self.nodes[to].server;
        server.log.extend(entries);
        server.replayed = server.log.len();
        let (life, upto) = (server.life, server.log.len());
        let slow = self.now < self.nodes[to].slow_disk_until;
        let delay = if slow { self.rng.range(20, 400) * MS } else { self.rng.range(200, 4 * MS) };
        self.queue.push(self.now + delay, Happening::Flushed { node: to, life, conn, upto });
        if !self.nodes[to].server.senders.is_empty() && self.nodes[to].server.process == Process::Standby {
            self.nodes[to].server.flushed = self.nodes[to].server.flushed.max(upto);
            self.wake_senders(to);
        }
    }

    /// A standby's log is safe on its disk: it says so.
    pub(crate) fn standby_flushed(&mut self, node: Node, life: u32, conn: u64, upto: usize) {
        if self.nodes[node].server.life != life || !self.nodes[node].server.process.runs() {
            return;
        }
        if !self.server_writes(node) {
            let resume = self.server_resumes(node);
            self.queue.push(resume, Happening::Flushed { node, life, conn, upto });
            return;
        }
        let server = &mut self.nodes[node].server;
        let upto = upto.min(server.log.len());
        server.flushed = server.flushed.max(upto);
        let Some(receiver) = server.receiver.filter(|receiver| receiver.conn == conn) else { return };
        let Some(copy) = server.copy else { return };
        let delay = self.packet();
        let report = Happening::Report { to: receiver.upstream, to_life: receiver.upstream_life, conn, copy, upto };
        self.queue.push(self.now + delay, report);
    }

    /// A flush report reached the upstream.
    pub(crate) fn report(&mut self, to: Node, to_life: u32, conn: u64, copy: CopyId, upto: usize) {
        if self.nodes[to].server.life != to_life || !self.nodes[to].server.process.runs() {
            return;
        }
        let standby = self.nodes[to].server.senders.get(&conn).map(|sender| sender.standby);
        let Some(standby) = standby else { return };
        if !self.server_runs(to) || !self.net.passes(self.now, standby, to) {
            let again = self.server_resumes(to).max(self.now + 20 * MS);
            self.queue.push(again, Happening::Report { to, to_life, conn, copy, upto });
            return;
        }
        let now = self.now;
        if let Some(sender) = self.nodes[to].server.senders.get_mut(&conn) {
            sender.flush = sender.flush.max(upto);
            sender.busy = false;
            sender.heard = now;
        }
        self.release(to, conn);
        self.send_batch(to, conn);
    }

    /// A walsender lets commits go by its own view of the setting.
    fn release(&mut self, node: Node, conn: u64) {
        let server = &self.nodes[node].server;
        let Some(sender) = server.senders.get(&conn) else { return };
        let name = &self.names[sender.standby];
        if server.process != Process::Primary || sender.view.copies.get(name) != Some(&sender.copy) {
            return;
        }
        let need = sender.view.need as usize;
        let view = &sender.view;
        let mut flushes: Vec<usize> = server
            .senders
            .values()
            .filter(|one| one.streaming && view.copies.get(&self.names[one.standby]) == Some(&one.copy))
            .map(|one| one.flush)
            .collect();
        if need == 0 || flushes.len() < need {
            return;
        }
        flushes.sort_unstable_by(|one, other| other.cmp(one));
        let upto = flushes[need - 1].min(server.flushed);
        self.release_upto(node, upto);
    }

    fn release_upto(&mut self, node: Node, upto: usize) {
        let from = self.nodes[node].server.released;
        if upto <= from {
            return;
        }
        self.nodes[node].server.released = upto;
        self.acknowledge(node, from, upto);
    }

    /// Clients write, and again after a while.
    pub(crate) fn clients_write(&mut self) {
        self.write_everywhere();
        let pause = if self.rng.chance(1000) { 150 * MS } else { self.rng.range(8, 60) * MS };
        self.queue.push(self.now + pause, Happening::Clients);
    }

    /// Clients write, and again very soon, while the protocol's own step is fresh.
    pub(crate) fn clients_rush(&mut self) {
        self.write_everywhere();
        if self.now < self.rush_until {
            let pause = self.rng.range(500, 6 * MS);
            self.queue.push(self.now + pause, Happening::Rush);
        }
    }

    /// Clients write wherever a server lets them in.
    fn write_everywhere(&mut self) {
        for node in 0..self.nodes.len() {
            let server = &self.nodes[node].server;
            let open = server.process == Process::Primary && server.open && self.server_writes(node);
            if !open || self.nodes[node].route == RouteState::Draining {
                continue;
            }
            self.append(node, true);
            let server = &mut self.nodes[node].server;
            server.flushed = server.log.len();
            server.replayed = server.flushed;
            let upto = server.flushed;
            let waits = server.view.need > 0;
            if !waits {
                self.release_upto(node, upto);
            }
            self.wake_senders(node);
        }
    }

    /// The setting's file was changed and a reload sent: each process reads it when it gets to it.
    pub(crate) fn change_setting(&mut self, node: Node, setting: SyncSetting) {
        let server = &mut self.nodes[node].server;
        server.setting = setting;
        server.setting_number += 1;
        let (number, life) = (server.setting_number, server.life);
        let mut who: Vec<Option<u64>> = vec![None];
        who.extend(server.senders.keys().map(|conn| Some(*conn)));
        for one in who {
            let most = if self.rng.chance(2500) { 300 * MS } else { 8 * MS };
            let delay = self.rng.range(100, most);
            self.queue.push(self.now + delay, Happening::Adopt(node, life, one, number));
        }
    }

    /// A process reads the setting's file.
    pub(crate) fn adopt(&mut self, node: Node, life: u32, who: Option<u64>, number: u32) {
        if self.nodes[node].server.life != life || !self.nodes[node].server.process.runs() {
            return;
        }
        if !self.server_runs(node) {
            let resume = self.server_resumes(node);
            self.queue.push(resume, Happening::Adopt(node, life, who, number));
            return;
        }
        let server = &mut self.nodes[node].server;
        let setting = server.setting.clone();
        let newest = server.setting_number;
        match who {
            Some(conn) => {
                if let Some(sender) = server.senders.get_mut(&conn) {
                    (sender.view, sender.view_number) = (setting, newest);
                }
            }
            None => {
                let empties = setting.need == 0;
                (server.view, server.view_number) = (setting, newest);
                if empties && server.process == Process::Primary {
                    let upto = server.flushed;
                    self.release_upto(node, upto);
                }
            }
        }
    }
}

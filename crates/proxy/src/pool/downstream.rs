//! From servers to clients. Everything passes, but for answers to what the proxy itself asked; it counts what is due, so that it
//! knows to whom the server belongs next. Absent: requests.

use super::client::Client;
use super::server::{Due, Server, Stage, Unsynced};
use super::settings::DATE_STYLE;
use super::upstream::{CHUNK, Flow, spared};
use super::worker::Worker;
use mainstay_wire::frame::Header;
use mainstay_wire::reply::Reply;
use mainstay_wire::text::{Change, Pin};
use mainstay_wire::{WireError, header, message};

/// Bytes of a message that must be seen whole.
const SEEN_MAX: usize = CHUNK / 2;

impl Worker {
    /// Takes what a server sent for its client; says how much of it was used.
    pub(crate) fn downstream(
        &mut self,
        server: &mut Server,
        client: &mut Client,
        bytes: &[u8],
    ) -> Result<usize, WireError> {
        let mut at = server.skip.min(bytes.len());
        server.skip -= at;
        let mut flow = Flow::new(bytes, 0, std::mem::take(&mut self.down_buffer));
        let mut done = Ok(());
        if at > 0 && server.muted {
            flow.cut(0..at);
        }
        own_answers(server, &mut flow, at);
        while let Some(head) = match header(&bytes[at..]) {
            Ok(head) => head,
            Err(error) => {
                done = Err(error);
                None
            }
        } {
            let there = bytes.len() - at;
            if server.due.front() == Some(&Due::Number) && head.tag != b'S' {
                if there < head.length {
                    break;
                }
                if let Err(error) = Self::number_answer(server, &bytes[at..at + head.length]) {
                    done = Err(error);
                    break;
                }
                flow.cut(at..at + head.length);
                at += head.length;
                own_answers(server, &mut flow, at);
                continue;
            }
            // Bodies pass; those that say something must be whole.
            let rows = matches!(head.tag, b'D' | b'd');
            if !rows && there < head.length && head.length <= SEEN_MAX {
                break;
            }
            let seen = there.min(head.length);
            if rows {
                if server.muted {
                    flow.cut(at..at + seen);
                }
            } else {
                self.answer(server, client, &mut flow, at, head, seen);
            }
            server.skip = head.length - seen;
            at += seen;
            own_answers(server, &mut flow, at);
        }
        let passed = flow.pass(at);
        if !passed.is_empty() {
            self.bytes.1 += passed.len() as u64;
            if let Some(pool) = self.pools.get_mut(server.pool) {
                pool.numbers.bytes_out += passed.len() as u64;
            }
            // The next client's request may be on its way before this one has its answer.
            self.rest(server, client);
            client.link.ending |= client.write(passed).is_err();
        } else {
            self.rest(server, client);
        }
        self.down_buffer = flow.out;
        done.map(|()| at)
    }

    fn answer(
        &mut self,
        server: &mut Server,
        client: &mut Client,
        flow: &mut Flow<'_>,
        at: usize,
        head: Header,
        seen: usize,
    ) {
        let message = &flow.whole()[at..at + seen];
        let front = server.due.front().copied();
        let mut swallow = server.muted;
        match head.tag {
            b'1' | b'2' | b'3' | b'n' | b'I' | b's' => swallow |= pop(server, head.tag, front),
            b'T' if matches!(front, Some(Due::Describe | Due::DescribeStatement)) => drop(server.due.pop_front()),
            b'C' => {
                if self.command(server, client, message, flow, at, seen) {
                    return;
                }
                swallow |= pop(server, b'C', front);
            }
            b'E' => swallow |= self.error(server, client, message),
            b'N' => {
                server.unreplicated |= message::is_unreplicated_commit(message);
            }
            b'S' => server.note_parameter(message),
            b'G' | b'W' => {
                begin_copy(server);
                self.goes_on(client);
            }
            b'Z' => {
                swallow = false;
                if server.unreplicated {
                    // Committed by a `Sync`: the statement's own end is behind us already, but not that of the request.
                    self.unreplicated(server, flow.cut(at..at));
                }
                self.ready(server, client, message);
                self.goes_on(client);
            }
            _ => {}
        }
        if swallow {
            flow.cut(at..at + seen);
        }
    }

    /// The end of a command. True: the client was told something else.
    fn command(
        &mut self,
        server: &mut Server,
        client: &mut Client,
        message: &[u8],
        flow: &mut Flow<'_>,
        at: usize,
        seen: usize,
    ) -> bool {
        let tag = message.get(5..message.len().saturating_sub(1)).unwrap_or_default();
        match tag {
            b"LISTEN" => drop(client.pin.get_or_insert(Pin::Listen)),
            b"PREPARE" => drop(client.pin.get_or_insert(Pin::Prepared)),
            b"LOAD" => server.tainted = true,
            b"DISCARD ALL" => {
                server.statements.clear();
                client.statements.clear();
                (client.unnamed, client.pin) = (None, None);
                client.pending.clear();
                client.settings = std::rc::Rc::clone(&client.start_settings);
                server.applied = std::rc::Rc::clone(&self.no_settings);
            }
            b"DEALLOCATE ALL" => {
                server.statements.clear();
                client.statements.clear();
            }
            b"ROLLBACK" => client.erred = true,
            _ => {}
        }
        // Whatever was committed is told: what is lost from here on is something else.
        server.number = None;
        if let Some(error) = self.number_error(server, tag) {
            pop(server, b'C', server.due.front().copied());
            flow.cut(at..at + seen).extend_from_slice(&error);
            return true;
        }
        if !server.unreplicated {
            return false;
        }
        server.muted = true;
        pop(server, b'C', server.due.front().copied());
        self.unreplicated(server, flow.cut(at..at + seen));
        true
    }

    /// A commit that may be lost is never shown as plain success.
    fn unreplicated(&mut self, server: &mut Server, out: &mut Vec<u8>) {
        server.unreplicated = false;
        if let Some(pool) = self.pools.get_mut(server.pool) {
            pool.numbers.unreplicated_commits += 1;
            pool.numbers.error(b"08007");
        }
        let error = Reply::error(
            "ERROR",
            "08007",
            "the transaction is committed here, but its wait for the replicas was cancelled",
            "It may be lost if the primary is lost now.",
            "Look whether it took effect before you repeat it; do not cancel commits.",
        );
        error.encode(out);
    }

    /// An error: what it ends besides the request. True: it is not for the client.
    fn error(&mut self, server: &mut Server, client: &mut Client, message: &[u8]) -> bool {
        client.erred = true;
        if matches!(message::field(message, b'V'), Some(b"FATAL" | b"PANIC")) {
            let words = message::field(message, b'M').unwrap_or_default();
            server.last_words = Some(String::from_utf8_lossy(words).into_owned());
            return true;
        }
        if let Some(pool) = self.pools.get_mut(server.pool) {
            pool.numbers.error(message::field(message, b'C').unwrap_or_default());
        }
        match server.due.front() {
            Some(Due::Query | Due::Call) | None => false,
            Some(_) => {
                self.drop_until_sync(server);
                false
            }
        }
    }

    fn drop_until_sync(&mut self, server: &mut Server) {
        server.copying = false;
        while let Some(due) = server.due.front().copied() {
            match due {
                Due::Sync => return,
                Due::Parse(id) | Due::OwnParse(id) => server.statements.remove(id),
                // Which of its statements it has is not known any more.
                Due::OwnClose => server.tainted = true,
                _ => {}
            }
            server.due.pop_front();
        }
        server.discarding = true;
    }

    /// `ReadyForQuery`: the end of a request.
    fn ready(&mut self, server: &mut Server, client: &mut Client, message: &[u8]) {
        while let Some(due) = server.due.pop_front() {
            if due.is_cycle() {
                break;
            }
        }
        server.status = message.get(5).copied().unwrap_or(b'E');
        (server.muted, server.unreplicated, server.copying) = (false, false, false);
        if let Some(pool) = self.pools.get_mut(server.pool) {
            pool.numbers.queries += 1;
        }
        if server.status == b'I' {
            self.end_of_transaction(server, client);
        } else if server.due.is_empty() {
            // What comes next is in the transaction; only its end commits.
            client.may_commit = client.commit_bound;
        }
    }

    fn end_of_transaction(&mut self, server: &mut Server, client: &mut Client) {
        if let Some(pool) = self.pools.get_mut(server.pool) {
            pool.numbers.transactions += 1;
            server.transactions += 1;
            pool.numbers.times.add(self.now_us.saturating_sub(server.began_us));
        }
        server.began_us = self.now_us;
        (server.number, server.number_failed) = (None, None);
        if !client.pending.is_empty() {
            self.settle(server, client);
        }
        if server.due.is_empty() {
            client.clean_slate();
        } else {
            // What is under way already began outside of a transaction.
            client.may_commit = true;
        }
    }

    /// What became of the settings that the transaction changed.
    fn settle(&mut self, server: &mut Server, client: &mut Client) {
        let mut changes = std::mem::take(&mut client.pending);
        changes.iter_mut().for_each(|change| as_it_is(server, change));
        if client.uncertain || (client.erred && client.many) {
            // A part of it may have been undone.
            client.pin.get_or_insert(Pin::Setting);
        }
        if client.erred {
            return;
        }
        let here = server.applied.with(&changes, &self.no_settings);
        match (client.settings.with(&changes, &client.start_settings), here) {
            (Some(wanted), Some(here)) => {
                client.settings = self.settings.intern(wanted);
                server.applied = self.settings.intern(here);
            }
            _ => drop(client.pin.get_or_insert(Pin::Setting)),
        }
    }

    /// A server and its client part, unless the client has to stay.
    pub(crate) fn rest(&mut self, server: &mut Server, client: &mut Client) {
        let stays = client.pin.is_some() || client.skip > 0 || client.server != Some(server.id);
        if !matches!(server.stage, Stage::Busy) || !server.is_at_rest() {
            return;
        }
        if stays {
            // `RESET` led to what the server began with; the client began with something else.
            let differs = !std::rc::Rc::ptr_eq(&server.applied, &client.settings);
            if client.pin.is_some() && client.skip == 0 && client.server == Some(server.id) && differs {
                self.apply(server, client, None);
            }
            return;
        }
        client.server = None;
        client.unnamed_here = false;
        client.since = self.now;
        self.release(server);
    }
}

/// A setting of two parts by both, as the server has told it: carried to another server, one part alone would meet another's rest.
fn as_it_is(server: &Server, change: &mut Change) {
    let style = server.parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case(DATE_STYLE));
    if let (Change::Set { name, sql }, Some((_, value))) = (change, style)
        && name == DATE_STYLE
    {
        *sql = format!("SET DateStyle TO '{}'", value.replace('\'', "''"));
    }
}

/// The answers that no server gives, when it is their turn: not in the middle of a message.
fn own_answers(server: &mut Server, flow: &mut Flow<'_>, at: usize) {
    while let Some(due @ (Due::SparedParse | Due::SparedClose | Due::SparedDeallocate | Due::SparedComplete)) =
        server.due.front().copied()
    {
        if server.skip > 0 {
            return;
        }
        server.due.pop_front();
        spared(due, server.status, flow.cut(at..at));
    }
}

/// Takes the answer that was due. True: it is not for the client.
fn pop(server: &mut Server, tag: u8, front: Option<Due>) -> bool {
    let fits = matches!(
        (tag, front),
        (b'1', Some(Due::Parse(_) | Due::OwnParse(_)))
            | (b'2', Some(Due::Bind))
            | (b'3', Some(Due::Close | Due::OwnClose))
            | (b'n', Some(Due::Describe | Due::DescribeStatement))
            | (b'C' | b'I' | b's', Some(Due::Execute))
    );
    if fits {
        server.due.pop_front();
    }
    fits && matches!(front, Some(Due::OwnParse(_) | Due::OwnClose))
}

/// A server that takes rows ignores a `Sync` until they end: those that were sent with the request have no answer.
fn begin_copy(server: &mut Server) {
    server.copying = true;
    if server.due.front() == Some(&Due::Execute) {
        server.due.retain(|due| *due != Due::Sync);
        server.unsynced = Unsynced::Work;
    }
}

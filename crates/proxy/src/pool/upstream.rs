//! From clients to servers. Whole messages are looked at by their header; what must be changed is changed on the way, in the same
//! write as its neighbours. Absent: answers.

use super::client::{Client, Failed};
use super::queue::Attached;
use super::read_after::{may_name_another, not_followed, tied_behind};
use super::server::{Commit, Due, Server, Stage, Unsynced};
use super::statements::{OF_CLIENT_MAX, PREFIX, Statement, Statements};
use super::worker::{End, Worker};
use mainstay_wire::frame::{Header, is_request};
use mainstay_wire::reply::{self, Reply};
use mainstay_wire::text::{Traits, traits};
use mainstay_wire::{WireError, header, message};
use std::ops::Range;
use std::rc::Rc;

/// Bytes read at once; a message that must be seen whole is not longer.
pub(crate) const CHUNK: usize = 64 * 1024;
/// Texts of prepared statements of one client.
const STATEMENT_BYTES_MAX: usize = 16 << 20;

/// Bytes on their way, copied only when one of them must be changed.
pub(crate) struct Flow<'a> {
    bytes: &'a [u8],
    from: usize,
    pub(crate) out: Vec<u8>,
}

impl<'a> Flow<'a> {
    pub(crate) fn new(bytes: &'a [u8], from: usize, mut out: Vec<u8>) -> Self {
        out.clear();
        Self { bytes, from, out }
    }

    /// Everything before `at` passes; what stands there is left out.
    pub(crate) fn cut(&mut self, at: Range<usize>) -> &mut Vec<u8> {
        if at.start > self.from {
            self.out.extend_from_slice(&self.bytes[self.from..at.start]);
        }
        self.from = at.end;
        &mut self.out
    }

    /// All the bytes.
    pub(crate) fn whole(&self) -> &'a [u8] {
        self.bytes
    }

    /// What passes before `end`.
    pub(crate) fn pass(&mut self, end: usize) -> &[u8] {
        if self.out.is_empty() {
            return self.bytes.get(self.from..end).unwrap_or_default();
        }
        if end > self.from {
            self.out.extend_from_slice(&self.bytes[self.from..end]);
            self.from = end;
        }
        &self.out
    }
}

/// What became of one message.
enum Step {
    /// On to this place.
    To(usize),
    /// It is not whole yet.
    Wait,
}

impl Worker {
    /// Takes what a client sent; says how much of it was used.
    pub(crate) fn upstream(&mut self, client: &mut Client, bytes: &[u8]) -> Result<usize, End> {
        if client.failed != Failed::No {
            return self.after_loss(client, bytes);
        }
        let mut server = client.server.and_then(|id| self.servers.take(id));
        if let Some(unready) = server.take_if(|server| !matches!(server.stage, Stage::Busy)) {
            self.put_server(unready);
            return Ok(0);
        }
        if client.skip == 0
            && bytes.first() != Some(&b'X')
            && let Some(drained) = server.take_if(|server| client.pin.is_some() && self.holds_back(server))
        {
            // It stays in the client's inbox: sent on when the route opens again, gone with the session when the server is lost.
            self.put_server(drained);
            return Ok(0);
        }
        if let Some(tied) = server.take_if(|server| tied_behind(client, server)) {
            self.put_server(tied);
            return Err(not_followed());
        }
        let done = self.pass_up(client, &mut server, bytes);
        if let Some(server) = server {
            self.put_server(server);
        }
        done
    }

    fn pass_up(&mut self, client: &mut Client, held: &mut Option<Box<Server>>, bytes: &[u8]) -> Result<usize, End> {
        let mut at = client.skip.min(bytes.len());
        client.skip -= at;
        let mut flow = Flow::new(bytes, 0, std::mem::take(&mut self.up_buffer));
        let mut wrong = None;
        while let Some(head) = header(&bytes[at..])? {
            if !is_request(head.tag) || head.tag == b'p' {
                return Err(WireError::Tag(char::from(head.tag)).into());
            }
            if held.as_ref().is_some_and(|server| may_name_another(client, server)) {
                break;
            }
            let whole = bytes.len() - at >= head.length;
            if held.is_none() {
                // A server is not made to wait for a client that is still writing.
                if !whole && head.length <= CHUNK {
                    break;
                }
                match self.lead_in(client, head.tag)? {
                    Some(server) => *held = Some(server),
                    None => break,
                }
                flow = Flow::new(bytes, at, flow.out);
            }
            let Some(server) = held.as_mut() else { break };
            match self.request(client, server, &mut flow, at, head, whole) {
                Ok(Step::To(next)) => at = next,
                Ok(Step::Wait) => break,
                Err(end) => {
                    wrong = Some(end);
                    break;
                }
            }
        }
        if let Some(server) = held.as_mut() {
            if server.is_at_rest() {
                self.let_go.push(server.id);
            }
            let passed = flow.pass(at);
            if !passed.is_empty() {
                self.bytes.0 += passed.len() as u64;
                if let Some(pool) = self.pools.get_mut(server.pool) {
                    pool.numbers.bytes_in += passed.len() as u64;
                }
                server.link.ending |= server.write(passed).is_err();
            }
        }
        self.up_buffer = flow.out;
        wrong.map_or(Ok(at), Err)
    }

    /// A server for a client that begins; `None`: it waits.
    fn lead_in(&mut self, client: &mut Client, tag: u8) -> Result<Option<Box<Server>>, End> {
        if tag == b'X' {
            return Err(End::Bye);
        }
        match self.attach(client)? {
            Attached::Waits => Ok(None),
            Attached::Has(id) => {
                client.clean_slate();
                Ok(self.servers.take(id))
            }
        }
    }

    fn request(
        &mut self,
        client: &mut Client,
        server: &mut Server,
        flow: &mut Flow<'_>,
        at: usize,
        head: Header,
        whole: bool,
    ) -> Result<Step, End> {
        let end = at + head.length;
        let there = flow.bytes.len();
        match head.tag {
            b'X' => return Err(End::Bye),
            b'd' => {}
            b'c' | b'f' => server.copying = false,
            // The answers come; the transaction stays open until `Sync`.
            b'H' => {}
            b'S' if server.copying => {}
            b'S' => {
                server.due.push_back(Due::Sync);
                (server.discarding, server.unsynced) = (false, Unsynced::Nothing);
            }
            b'F' => {
                server.commit = Commit::No;
                self.begin(client, server, Due::Call);
            }
            b'E' => push(server, Due::Execute),
            b'Q' if whole => return self.simple(client, server, flow, at..end),
            b'Q' if head.length > CHUNK => {
                // Nobody looks into it: it may do anything.
                server.tainted = true;
                server.commit = Commit::No;
                client.may_commit = true;
                self.begin(client, server, Due::Query);
            }
            b'B' => return self.bind(client, server, flow, at, head.length),
            b'P' if head.length > CHUNK => {
                return Err(End::Refuse(Reply::error(
                    "FATAL",
                    "54000",
                    "the text of a statement to prepare is too long for a pool",
                    &format!("It is {} bytes long; {CHUNK} are the most.", head.length),
                    "Send it as a simple query, or connect to a proxy in session mode.",
                )));
            }
            b'P' if whole => self.parse(client, server, flow, at..end)?,
            b'D' | b'C' if whole => self.about(client, server, flow, at..end, head.tag)?,
            b'D' | b'C' if head.length > CHUNK => return Err(WireError::Body("a name without end").into()),
            _ => return Ok(Step::Wait),
        }
        client.skip = end.saturating_sub(there);
        Ok(Step::To(end.min(there)))
    }

    /// A request after which `ReadyForQuery` comes begins.
    fn begin(&mut self, client: &mut Client, server: &mut Server, due: Due) {
        client.may_commit |= server.status == b'I';
        push(server, due);
        // It ends the transaction of an extended request before it, as `Sync` does.
        server.unsynced = Unsynced::Nothing;
    }

    fn simple(
        &mut self,
        client: &mut Client,
        server: &mut Server,
        flow: &mut Flow<'_>,
        at: Range<usize>,
    ) -> Result<Step, End> {
        let traits = traits(message::query(&flow.bytes[at.clone()])?);
        if let Some(name) = &traits.deallocate
            && client.statements.remove(name.as_bytes()).is_some()
        {
            let out = flow.cut(at.clone());
            if server.unsynced == Unsynced::Nothing || server.discarding {
                self.answer_spared(client, server, Due::SparedDeallocate);
            } else {
                // It would end the transaction of the request before it: the server has to do that.
                out.extend(b"S\0\0\0\x04");
                server.due.extend([Due::SparedComplete, Due::Sync]);
                server.unsynced = Unsynced::Nothing;
            }
            return Ok(Step::To(at.end));
        }
        note(client, server, &traits);
        self.ask_number(client, server, flow, at.start, &traits);
        self.begin(client, server, Due::Query);
        Ok(Step::To(at.end))
    }

    fn parse(
        &mut self,
        client: &mut Client,
        server: &mut Server,
        flow: &mut Flow<'_>,
        at: Range<usize>,
    ) -> Result<(), End> {
        let whole = &flow.bytes[at.clone()];
        let found = message::parse(whole)?;
        let (rest, query) = (&whole[found.rest], &whole[found.query]);
        if self.pooling.commit_outcome {
            self.ask_number(client, server, flow, at.start, &traits(query));
        }
        if found.name.is_empty() {
            if client.unnamed.as_ref().is_none_or(|known| *known.rest != *rest) {
                client.unnamed = Some(Statement::unnamed(rest, query));
            }
            client.unnamed_here = true;
            push(server, Due::Parse(0));
            return Ok(());
        }
        let statement = self.statements.intern(rest, query);
        let bytes: usize = client.statements.values().map(|known| known.rest.len()).sum();
        if client.statements.len() >= OF_CLIENT_MAX || bytes >= STATEMENT_BYTES_MAX {
            return Err(End::Refuse(Reply::error(
                "FATAL",
                "53400",
                "this client has prepared too many statements",
                &format!("{OF_CLIENT_MAX} statements and {STATEMENT_BYTES_MAX} bytes of text are the most."),
                "Close statements that are not used any more.",
            )));
        }
        client.statements.insert(whole[found.name].into(), Rc::clone(&statement));
        if server.statements.has(statement.id) {
            flow.cut(at);
            if let Some(pool) = self.pools.get_mut(server.pool) {
                pool.numbers.parses_saved += 1;
            }
            self.answer_spared(client, server, Due::SparedParse);
        } else {
            let out = flow.cut(at);
            give(&self.statements, server, &statement, out, Due::Parse(statement.id));
        }
        Ok(())
    }

    fn bind(
        &mut self,
        client: &mut Client,
        server: &mut Server,
        flow: &mut Flow<'_>,
        at: usize,
        length: usize,
    ) -> Result<Step, End> {
        let there = flow.bytes.len();
        let head = &flow.bytes[at..there.min(at + length)];
        let Ok(name) = message::bound(head) else {
            let hopeless = head.len() == length || head.len() >= CHUNK / 2;
            return if hopeless { Err(WireError::Body("names without end").into()) } else { Ok(Step::Wait) };
        };
        let statement = self.statement_of(client, &head[name.clone()]);
        if statement.is_none() {
            server.commit = Commit::No;
        }
        if let Some(statement) = statement {
            self.ask_number(client, server, flow, at, &statement.traits);
            let own = statement.id != 0 && !server.statements.has(statement.id);
            let unnamed = statement.id == 0 && !client.unnamed_here;
            if own || unnamed {
                let out = flow.cut(at..at);
                give(&self.statements, server, &statement, out, Due::OwnParse(statement.id));
                client.unnamed_here |= unnamed;
            }
            note(client, server, &statement.traits);
            client.commit_bound |= statement.traits.commits;
            if statement.id != 0 {
                let grown = (length - 1 + statement.name.len()).wrapping_sub(name.len());
                let portal = &head[5..name.start];
                let out = flow.cut(at..at + name.end);
                out.push(b'B');
                out.extend(u32::try_from(grown).unwrap_or(u32::MAX).to_be_bytes());
                out.extend_from_slice(portal);
                out.extend_from_slice(&statement.name);
            }
        }
        client.may_commit |= server.status == b'I';
        push(server, Due::Bind);
        let end = at + length;
        client.skip = end.saturating_sub(there);
        Ok(Step::To(end.min(there)))
    }

    /// What a client means by a name. One that it did not give passes, and the server says that there is none.
    fn statement_of(&self, client: &Client, name: &[u8]) -> Option<Rc<Statement>> {
        if name.is_empty() { client.unnamed.clone() } else { client.statements.get(name).cloned() }
    }

    fn about(
        &mut self,
        client: &mut Client,
        server: &mut Server,
        flow: &mut Flow<'_>,
        at: Range<usize>,
        tag: u8,
    ) -> Result<(), End> {
        let whole = &flow.bytes[at.clone()];
        let about = message::about(whole)?;
        let due = match (tag, about.statement) {
            (b'D', true) => Due::DescribeStatement,
            (b'D', false) => Due::Describe,
            _ => Due::Close,
        };
        let name = &whole[about.name];
        if !about.statement {
            push(server, due);
            return Ok(());
        }
        if tag == b'C' && !name.is_empty() {
            // It stays on its server, for others and for the next time.
            client.statements.remove(name);
            flow.cut(at);
            self.answer_spared(client, server, Due::SparedClose);
            return Ok(());
        }
        if tag == b'C' {
            client.unnamed = None;
        }
        // The proxy's own names are nobody's to look at.
        let foreign = name.starts_with(PREFIX.as_bytes());
        let statement = self.statement_of(client, name);
        if let Some(statement) = &statement {
            let missing = if statement.id == 0 { !client.unnamed_here } else { !server.statements.has(statement.id) };
            if missing {
                let out = flow.cut(at.start..at.start);
                give(&self.statements, server, statement, out, Due::OwnParse(statement.id));
                client.unnamed_here |= statement.id == 0;
            }
        }
        let renamed = statement.as_ref().filter(|statement| statement.id != 0).map(|statement| &*statement.name);
        if let Some(name) = renamed.or(foreign.then_some(b"?")) {
            reply::message(flow.cut(at), tag, |out| {
                out.push(b'S');
                out.extend_from_slice(name);
                out.push(0);
            });
        }
        push(server, due);
        Ok(())
    }

    /// An answer that the proxy gives itself: now, or when its turn comes.
    fn answer_spared(&mut self, client: &mut Client, server: &mut Server, due: Due) {
        if server.discarding {
            return;
        }
        if server.due.is_empty() {
            let mut out = Vec::new();
            spared(due, server.status, &mut out);
            client.link.ending |= client.write(&out).is_err();
        } else {
            server.due.push_back(due);
        }
    }
}

/// The bytes of an answer that no server gives.
pub(crate) fn spared(due: Due, status: u8, out: &mut Vec<u8>) {
    match due {
        Due::SparedParse => out.extend(b"1\0\0\0\x04"),
        Due::SparedClose => out.extend(b"3\0\0\0\x04"),
        Due::SparedDeallocate => {
            reply::complete(out, "DEALLOCATE");
            reply::ready(out, status);
        }
        Due::SparedComplete => reply::complete(out, "DEALLOCATE"),
        _ => {}
    }
}

/// A server that passes everything over until a `Sync` answers nothing of it.
fn push(server: &mut Server, due: Due) {
    if !server.discarding {
        server.due.push_back(due);
    }
    let texts = matches!(due, Due::Parse(_) | Due::OwnParse(_) | Due::Describe | Due::DescribeStatement | Due::Close);
    server.unsynced = server.unsynced.max(if texts { Unsynced::Texts } else { Unsynced::Work });
}

/// Gives a statement to a server, and closes its oldest if it has too many.
fn give(all: &Statements, server: &mut Server, statement: &Statement, out: &mut Vec<u8>, due: Due) {
    if server.discarding {
        return;
    }
    if statement.id != 0
        && let Some(oldest) = server.statements.add(statement.id)
    {
        reply::message(out, b'C', |out| {
            out.push(b'S');
            out.extend_from_slice(&all.name(oldest));
            out.push(0);
        });
        server.due.push_back(Due::OwnClose);
    }
    statement.parse(out);
    push(server, due);
}

/// Remembers what a text will leave behind.
fn note(client: &mut Client, server: &mut Server, traits: &Traits) {
    if let Some(pin) = traits.pin {
        client.pin.get_or_insert(pin);
    }
    client.may_commit |= traits.commits;
    client.many |= traits.statements > 1;
    client.uncertain |= traits.back_to_savepoint;
    client.pending.extend_from_slice(&traits.changes);
    debug_assert!(matches!(server.stage, Stage::Busy));
}

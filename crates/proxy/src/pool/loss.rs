//! A server is lost: what its client is told, honestly, and what the client may go on with. Nothing that reached a server is sent again.
//!
//! Nothing sent yet: the client waits for another server and notices nothing. A transaction open and nothing under way: it is gone, and
//! the client hears so (40001) with its next request. Under way without a commit: 40001 at once. Under way with a commit, or without a
//! transaction: nobody knows (08007).
//! With `commit_outcome` it is found out for a commit alone ([`super::outcome`]).

use super::client::{Client, Failed, Stage as ClientStage};
use super::server::{Due, Server, Stage, Unsynced};
use super::upstream::CHUNK;
use super::worker::{End, Worker};
use mainstay_wire::frame::is_request;
use mainstay_wire::reply::{self, Reply};
use mainstay_wire::text::{Traits, traits};
use mainstay_wire::{WireError, header, message};

impl Worker {
    /// Closes a server that broke, or may not stay; `why` for its client.
    pub(crate) fn lose(&mut self, mut server: Box<Server>, why: &str) {
        let client = server.client.take().and_then(|id| self.clients.take(id));
        server.link.break_off();
        if !server.is_in() {
            self.login_failed(&server, why);
        }
        if let Some(mut client) = client {
            let words = server.last_words.clone().unwrap_or_else(|| why.to_owned());
            self.lost(&server, &mut client, &words);
            let id = client.id;
            self.put_client(client, id);
        }
        self.close_server(server);
    }

    fn lost(&mut self, server: &Server, client: &mut Client, why: &str) {
        // What is left of a message that is under way comes still, and is passed over: it is no request of its own.
        client.server = None;
        client.unnamed_here = false;
        // A tied session has state on the server, even while it is only given its settings back.
        let applying = matches!(server.stage, Stage::Applying) && client.pin.is_none();
        if applying || matches!(client.stage, ClientStage::Entering) {
            // Nothing of the client's was sent.
            client.waiting_since = None;
            self.resume.push(client.id);
            return;
        }
        if let Some(pool) = self.pools.get_mut(server.pool) {
            pool.numbers.lost += 1;
        }
        // An extended request goes on until its `Sync`; what it ran may have committed by itself. Texts alone are given to the next server.
        let unsynced = server.unsynced == Unsynced::Work && client.may_commit;
        let under_way = !server.due.is_empty() || server.copying || server.discarding || unsynced;
        let in_transaction = server.status != b'I';
        let changes = !client.pending.is_empty();
        client.pending.clear();
        if let Some(pin) = client.pin {
            let what = format!("The session was tied to it: {}.", pin.why());
            let code = if under_way && client.may_commit { "08007" } else { "57P01" };
            return self.end_by_loss(client, code, &what, why);
        }
        if !under_way {
            if in_transaction {
                client.failed = Failed::Untold;
                self.resume.push(client.id);
            }
            return;
        }
        // The proxy's own question is nothing to the client, nor is half of its answer.
        let own = server.due.front() == Some(&Due::Number);
        let simple = server.due.iter().skip(usize::from(own)).eq([&Due::Query]) && !server.copying;
        let whole = server.skip == 0 && (own || server.inbox.is_empty());
        let code = if client.may_commit { "08007" } else { "40001" };
        if code == "08007" && !changes && self.look_up(server, client, why) {
            return;
        }
        if !simple || !whole || !client.inbox.is_empty() {
            return self.end_by_loss(client, code, "", why);
        }
        let mut out = Vec::new();
        self.note_error(Some(server.pool), code);
        self.loss(server.pool, code, why, "ERROR", "").encode(&mut out);
        // Without an open transaction, or at its commit, there is nothing left to end.
        let open = in_transaction && code == "40001";
        reply::ready(&mut out, if open { b'E' } else { b'I' });
        client.failed = if open { Failed::Told } else { Failed::No };
        client.clean_slate();
        client.link.ending |= client.write(&out).is_err();
    }

    pub(crate) fn loss(
        &mut self,
        pool: usize,
        code: &'static str,
        why: &str,
        severity: &'static str,
        what: &str,
    ) -> Reply {
        if code == "08007"
            && let Some(pool) = self.pools.get_mut(pool)
        {
            pool.numbers.unknown_commits += 1;
        }
        let (message, detail, hint) = match code {
            "08007" => (
                "the database server was lost before it answered: whether the transaction was committed is not known",
                "It was not sent a second time.",
                "Look whether it took effect before you repeat it.",
            ),
            "40001" => (
                "the transaction was aborted: its database server was lost",
                "Nothing of it was committed.",
                "Begin the transaction again.",
            ),
            _ => ("the session ended: its database server was lost", "", "Connect again."),
        };
        let detail = [what, detail, why].iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(" ");
        Reply::error(severity, code, message, &detail, hint)
    }

    pub(crate) fn end_by_loss(&mut self, client: &mut Client, code: &'static str, what: &str, why: &str) {
        let index = client.pool.unwrap_or(usize::MAX);
        let error = self.loss(index, code, why, "FATAL", what);
        self.refuse(client, &error);
    }

    /// A client whose transaction was lost with its server: it is heard until it has ended the transaction.
    pub(crate) fn after_loss(&mut self, client: &mut Client, bytes: &[u8]) -> Result<usize, End> {
        let mut at = client.skip.min(bytes.len());
        client.skip -= at;
        let mut out = Vec::new();
        while client.failed != Failed::No
            && let Some(head) = header(&bytes[at..])?
        {
            if !is_request(head.tag) {
                return Err(WireError::Tag(char::from(head.tag)).into());
            }
            if head.tag == b'X' {
                return Err(End::Bye);
            }
            let end = at + head.length;
            let text = matches!(head.tag, b'Q' | b'P');
            if text && end > bytes.len() && head.length <= CHUNK {
                break;
            }
            let traits = if text && end <= bytes.len() { read(head.tag, &bytes[at..end])? } else { Traits::default() };
            if traits.ends && head.tag == b'P' && !client.until_sync {
                // Ended by a statement that is yet to be described and bound: the whole session ends instead, which says the same.
                return Err(End::Refuse(self.loss(client.pool.unwrap_or(usize::MAX), "40001", "", "FATAL", "")));
            }
            self.request_after_loss(client, head.tag, &traits, &mut out);
            client.skip = end.saturating_sub(bytes.len());
            at = end.min(bytes.len());
        }
        if !out.is_empty() {
            client.link.ending |= client.write(&out).is_err();
        }
        Ok(at)
    }

    fn request_after_loss(&mut self, client: &mut Client, tag: u8, traits: &Traits, out: &mut Vec<u8>) {
        match (tag, client.failed) {
            (b'Q', failed) if traits.ends => {
                if failed == Failed::Untold && traits.commits {
                    // Many take any end of a `COMMIT` but an error for success.
                    self.tell_loss(client, out);
                } else {
                    reply::complete(out, "ROLLBACK");
                }
                reply::ready(out, b'I');
                client.failed = Failed::No;
            }
            (b'Q', _) => {
                self.tell_loss(client, out);
                reply::ready(out, b'E');
            }
            (b'S', failed) => {
                if failed == Failed::Untold {
                    // The end of a request whose beginning went to the server that was lost.
                    self.tell_loss(client, out);
                }
                reply::ready(out, b'E');
                client.until_sync = false;
            }
            (b'P' | b'B' | b'D' | b'E' | b'C' | b'F', _) if !client.until_sync => {
                self.tell_loss(client, out);
                client.until_sync = tag != b'F';
                if tag == b'F' {
                    reply::ready(out, b'E');
                }
            }
            _ => {}
        }
    }

    fn tell_loss(&mut self, client: &mut Client, out: &mut Vec<u8>) {
        if client.failed == Failed::Told {
            let text = "current transaction is aborted, commands ignored until end of transaction block";
            return Reply::error("ERROR", "25P02", text, "", "").encode(out);
        }
        client.failed = Failed::Told;
        self.note_error(client.pool, "40001");
        self.loss(client.pool.unwrap_or(usize::MAX), "40001", "", "ERROR", "").encode(out);
    }
}

/// What a request's text does.
fn read(tag: u8, whole: &[u8]) -> Result<Traits, WireError> {
    let text = if tag == b'Q' { message::query(whole)? } else { &whole[message::parse(whole)?.query] };
    Ok(traits(text))
}

//! A commit whose answer was lost with its server, and what became of it (docs/adr/0054): in front of a `COMMIT` its transaction's number is
//! asked for, and a record of it written; when the server is lost before it answers, the client waits while the next primary's agent is asked.
//! Absent: the rule (`mainstay_model::outcome`), and statements that commit by themselves: there is no moment at which they have a number.

use super::client::{Client, Stage as ClientStage};
use super::hub::Asked;
use super::server::{Commit, Due, Server, Unsynced};
use super::slab::Id;
use super::upstream::Flow;
use super::worker::Worker;
use crate::hold::Kind;
use mainstay_model::outcome::{CommitAnswer, CommitQuestion};
use mainstay_model::{Lsn, Moment, Span};
use mainstay_wire::WireError;
use mainstay_wire::message;
use mainstay_wire::reply;
use mainstay_wire::text::Traits;

/// One row: the transaction's number and where a record of it ends, if it has a number. The record is a message to nobody, of the
/// transaction: a log that holds it can not hand the number out again. Names are written out, so that nothing in a search path answers.
const QUESTION: &str = "SELECT pg_catalog.pg_current_xact_id_if_assigned()::pg_catalog.text, \
    pg_catalog.pg_logical_emit_message(true, 'mainstay', '')::pg_catalog.text \
    WHERE pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL";
/// Longer than it was to be looked up, by this: nobody has answered, and the client hears that nothing is known.
const SLACK: Span = Span::seconds(2);

/// A client whose commit is looked up.
pub(crate) struct LookedUp {
    /// The pool of the server that was lost.
    pool: usize,
    serial: u64,
    /// What the client waits for, of its request.
    due: Vec<Due>,
    /// What the server said last, or why it was lost.
    why: String,
    until: Moment,
}

impl Worker {
    /// Asks in front of a commit, if it is one, and the first thing of its request. With anything else in the same request it is not looked up,
    /// and with the next request the number is forgotten: it is of one commit.
    pub(crate) fn ask_number(
        &mut self,
        client: &mut Client,
        server: &mut Server,
        flow: &mut Flow<'_>,
        at: usize,
        traits: &Traits,
    ) {
        if !self.pooling.commit_outcome {
            return;
        }
        let plain = traits.commits && traits.ends && traits.statements == 1 && !traits.back_to_savepoint;
        let first = server.due.is_empty() && server.unsynced == Unsynced::Nothing && !server.discarding;
        let open = server.status == b'T' && client.kind == Kind::Write && client.pin.is_none();
        if !first && plain && server.commit == Commit::Alone {
            // It was prepared, and now it is bound.
            return;
        }
        (server.number, server.number_failed) = (None, None);
        if !plain || !first || !open || server.run.is_none() {
            server.commit = Commit::No;
            return;
        }
        server.commit = Commit::Alone;
        reply::query(flow.cut(at..at), QUESTION);
        server.due.push_back(Due::Number);
        // A simple query ends the statement without name.
        client.unnamed_here = false;
    }

    /// A message of the answer to that, which nobody else sees.
    pub(crate) fn number_answer(server: &mut Server, whole: &[u8]) -> Result<(), WireError> {
        match whole.first() {
            Some(b'D') => {
                let text = |value: Option<&[u8]>| std::str::from_utf8(value?).ok().map(str::to_owned);
                let [number, at] = message::row::<2>(whole);
                let number = text(number).and_then(|text| text.parse().ok());
                server.number = number.zip(text(at).and_then(|text| text.parse::<Lsn>().ok()));
            }
            Some(b'E') => {
                if matches!(message::field(whole, b'V'), Some(b"FATAL" | b"PANIC")) {
                    let words = message::field(whole, b'M').unwrap_or_default();
                    server.last_words = Some(String::from_utf8_lossy(words).into_owned());
                } else if server.due.iter().skip(1).eq([&Due::Query]) {
                    server.number_failed = Some(whole.to_vec());
                } else {
                    // Its commit will do nothing, and what comes behind it in the same request would be done all the same.
                    let words = message::field(whole, b'M').unwrap_or_default();
                    server.last_words = Some(String::from_utf8_lossy(words).into_owned());
                    return Err(WireError::Body("an error in front of a commit"));
                }
            }
            Some(b'Z') => {
                server.due.pop_front();
                server.status = whole.get(5).copied().unwrap_or(b'E');
            }
            _ => {}
        }
        Ok(())
    }

    /// Can it be found out what became of this client's commit? Then it waits for that.
    pub(crate) fn look_up(&mut self, server: &Server, client: &mut Client, why: &str) -> bool {
        let due: Vec<Due> = server.due.iter().copied().collect();
        if server.commit != Commit::Alone {
            return false;
        }
        let (Some((number, at)), Some(run)) = (server.number, server.run) else { return false };
        let alone = client.inbox.is_empty() && client.skip == 0 && client.pin.is_none() && !client.many;
        let whole = server.skip == 0 && server.unsynced == Unsynced::Nothing && !server.copying && !server.discarding;
        if !self.pooling.commit_outcome || !alone || !whole || !is_answerable(&due) {
            return false;
        }
        let budget = Span(u64::try_from(self.options.hold.as_millis()).unwrap_or(u64::MAX));
        let question = CommitQuestion { run, at, number };
        self.looked_up += 1;
        let serial = self.looked_up;
        let asked = Asked { thread: self.thread, client: client.id, serial, question, until: self.now + budget };
        if !self.hub.ask_outcome(asked) {
            return false;
        }
        let until = self.now + budget + SLACK;
        let (pool, why) = (server.pool, why.to_owned());
        client.stage = ClientStage::LookedUp(Box::new(LookedUp { pool, serial, due, why, until }));
        true
    }

    /// It is known now, or will not be. What comes too late is for nobody.
    pub(crate) fn outcome(&mut self, id: Id, serial: u64, answer: &CommitAnswer) {
        let Some(mut client) = self.clients.take(id) else { return };
        match std::mem::replace(&mut client.stage, ClientStage::Ready) {
            ClientStage::LookedUp(looked_up) if looked_up.serial == serial => {
                self.tell_outcome(&mut client, &looked_up, answer);
                self.resume.push(id);
            }
            other => client.stage = other,
        }
        self.put_client(client, id);
    }

    fn tell_outcome(&mut self, client: &mut Client, looked_up: &LookedUp, answer: &CommitAnswer) {
        let mut out = Vec::new();
        match answer {
            CommitAnswer::Committed => {
                self.count(looked_up.pool);
                looked_up.due.iter().for_each(|due| committed(*due, &mut out));
            }
            CommitAnswer::Aborted => {
                self.count(looked_up.pool);
                self.note_error(Some(looked_up.pool), "40001");
                self.loss(looked_up.pool, "40001", &looked_up.why, "ERROR", "").encode(&mut out);
                reply::ready(&mut out, b'I');
            }
            CommitAnswer::Later(why) | CommitAnswer::Unknown(why) => {
                let what = format!("It could not be found out: {why}.");
                if looked_up.due != [Due::Query] {
                    return self.end_by_loss(client, "08007", &what, &looked_up.why);
                }
                self.note_error(Some(looked_up.pool), "08007");
                self.loss(looked_up.pool, "08007", &looked_up.why, "ERROR", &what).encode(&mut out);
                reply::ready(&mut out, b'I');
            }
        }
        client.clean_slate();
        client.link.ending |= client.write(&out).is_err();
    }

    fn count(&mut self, pool: usize) {
        if let Some(pool) = self.pools.get_mut(pool) {
            pool.numbers.commits_found += 1;
        }
    }

    /// Those whose answer was lost on its way.
    pub(crate) fn tick_outcomes(&mut self) {
        for id in self.clients.ids() {
            let late = match self.clients.get(id).map(|client| &client.stage) {
                Some(ClientStage::LookedUp(looked_up)) if self.now > looked_up.until => looked_up.serial,
                _ => continue,
            };
            self.outcome(id, late, &CommitAnswer::Unknown("nobody has answered in time".to_owned()));
        }
    }

    /// The commit came to nothing, since the question in front of it failed: what is said of that is the error, and not `ROLLBACK`, which
    /// many take for success.
    pub(crate) fn number_error(&mut self, server: &mut Server, tag: &[u8]) -> Option<Vec<u8>> {
        let error = server.number_failed.take().filter(|_| tag == b"ROLLBACK")?;
        if let Some(pool) = self.pools.get_mut(server.pool) {
            pool.numbers.error(message::field(&error, b'C').unwrap_or_default());
        }
        server.muted = true;
        Some(error)
    }
}

/// One simple query, or one request with one `Execute`, up to its `Sync`.
fn is_answerable(due: &[Due]) -> bool {
    let simple = matches!(due, [Due::Query]);
    let known = |due: &Due| {
        matches!(
            due,
            Due::Parse(_)
                | Due::OwnParse(_)
                | Due::SparedParse
                | Due::Bind
                | Due::Describe
                | Due::Execute
                | Due::OwnClose
        )
    };
    let extended = due.split_last().is_some_and(|(last, before)| {
        *last == Due::Sync
            && before.iter().all(known)
            && before.iter().filter(|due| **due == Due::Execute).count() == 1
            && before.iter().filter(|due| **due == Due::Bind).count() <= 1
    });
    simple || extended
}

/// What a server would have said.
fn committed(due: Due, out: &mut Vec<u8>) {
    match due {
        Due::Parse(_) | Due::SparedParse => out.extend(b"1\0\0\0\x04"),
        Due::Bind => out.extend(b"2\0\0\0\x04"),
        Due::Describe => out.extend(b"n\0\0\0\x04"),
        Due::Execute => reply::complete(out, "COMMIT"),
        Due::Query => {
            reply::complete(out, "COMMIT");
            reply::ready(out, b'I');
        }
        Due::Sync => reply::ready(out, b'I'),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_commit_alone_is_answered_in_a_servers_place() {
        let extended = [Due::Parse(0), Due::Bind, Due::Describe, Due::Execute, Due::Sync];
        assert!(is_answerable(&[Due::Query]) && is_answerable(&extended) && is_answerable(&extended[3..]));
        for not in [&extended[4..], &extended[..4], &[Due::Query, Due::Query], &[Due::Number, Due::Query], &[]] {
            assert!(!is_answerable(not), "{not:?}");
        }
        assert!(!is_answerable(&[Due::Execute, Due::Execute, Due::Sync]));
        let mut out = Vec::new();
        extended.iter().for_each(|due| committed(*due, &mut out));
        assert_eq!(out, b"1\0\0\0\x042\0\0\0\x04n\0\0\0\x04C\0\0\0\x0bCOMMIT\0Z\0\0\0\x05I");
    }
}

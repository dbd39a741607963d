//! Reading one's own writes on the address for reads: a session names a position of the log (`SET mainstay.read_after = '0/16B3748'`), and
//! from its next transaction on it reads from servers only that have replayed up to there. One that has not is asked again, soon and within a
//! bound; what it has replayed once it never loses while its connection lives. Absent: where the position comes from (the client asked
//! the primary after its commit), and any other replica: each is only a moment behind, or gets no readers.

use super::client::{Client, Stage as ClientStage};
use super::server::{Server, Stage, Unsynced};
use super::settings::READ_AFTER;
use super::worker::{End, Worker};
use crate::hold::Kind;
use mainstay_model::Lsn;
use mainstay_wire::message;
use mainstay_wire::reply::{self, Reply};
use mainstay_wire::text::Change;

/// Bytes of a page of the log, and of its head; the first page of a segment has a longer one.
const PAGE: u64 = 8192;
const HEAD: u64 = 24;
const LONG_HEAD: u64 = 40;
/// The smallest segments that there are.
const SEGMENT_LEAST: u64 = 1 << 20;

/// What this client's next transaction has to see. On the address for writes it sees everything anyhow.
pub(crate) fn read_after(client: &Client) -> Result<Option<Lsn>, End> {
    if client.kind == Kind::Write {
        return Ok(None);
    }
    client.settings.read_after().map_err(|value| {
        End::Refuse(Reply::error(
            "FATAL",
            "22023",
            &format!("{READ_AFTER} is {value:?}, which is no position of the log"),
            "Nothing was sent to a server.",
            "Set it to what pg_current_wal_insert_lsn() says on the primary after the commit, such as '0/16B3748', or RESET it.",
        ))
    })
}

/// The statements, and behind them the question whether the server has replayed so far.
pub(crate) fn with_question(statements: String, after: Option<Lsn>) -> String {
    let Some(after) = after.map(last_needed) else { return statements };
    let question = format!(
        "SELECT NOT pg_catalog.pg_is_in_recovery() OR pg_catalog.pg_last_wal_replay_lsn() >= '{after}'::pg_catalog.pg_lsn"
    );
    if statements.is_empty() { question } else { format!("{statements}\n;\n{question}") }
}

/// At the beginning of a page the primary names the place behind the page's head, where the next record will be: replay gets there only
/// with that record. What is before it ends where the page begins.
fn last_needed(after: Lsn) -> Lsn {
    let (in_page, in_segment) = (after.0 % PAGE, after.0 % SEGMENT_LEAST);
    if in_segment == LONG_HEAD || in_page == HEAD { Lsn(after.0 - in_page) } else { after }
}

/// A row of an answer: what it says to that question. What settings answer is overwritten by it.
pub(crate) fn heard(server: &mut Server, row: &[u8]) {
    let [said] = message::row::<1>(row);
    if let Some((_, caught_up)) = &mut server.asked {
        *caught_up = said == Some(b"t");
    }
}

/// Does a request that is under way change the position? What was sent behind it stays in the client's inbox until it counts: it may belong
/// to the next transaction, and to another server.
pub(crate) fn may_name_another(client: &Client, server: &Server) -> bool {
    let named = |change: &Change| match change {
        Change::Set { name, .. } | Change::Reset(name) => name == READ_AFTER,
        Change::ResetAll => true,
    };
    let whole = server.unsynced == Unsynced::Nothing && !server.copying;
    client.kind == Kind::Read && whole && !server.due.is_empty() && client.pending.iter().any(named)
}

/// A client that has to stay with a server which may not have replayed what it asks for.
pub(crate) fn tied_behind(client: &Client, server: &Server) -> bool {
    // What is no position is not passed over either.
    let behind = || client.settings.read_after().map_or(true, |named| named > Some(server.replayed));
    client.kind == Kind::Read && client.pin.is_some() && server.rests() && behind()
}

/// That can not be helped.
pub(crate) fn not_followed() -> End {
    End::Refuse(Reply::error(
        "FATAL",
        "0A000",
        &format!("{READ_AFTER} can not be followed in a session that is tied to its server"),
        "Nothing was sent to a server. SHOW CLIENTS at the proxy's console tells what ties a session.",
        "Name the position in another session, or before what ties this one.",
    ))
}

impl Worker {
    /// Has this server not replayed what its client has to see? Then it is asked again soon.
    pub(crate) fn is_behind(&mut self, server: &mut Server) -> bool {
        match server.asked.take() {
            Some((after, true)) => {
                server.replayed = server.replayed.max(after);
                false
            }
            Some((_, false)) => {
                self.behind.push(server.id);
                true
            }
            None => false,
        }
    }

    /// Such a request has come to its end, or wants rows: its client goes on.
    pub(crate) fn goes_on(&mut self, client: &Client) {
        if client.kind == Kind::Read && !client.inbox.is_empty() {
            self.resume.push(client.id);
        }
    }

    /// Asks those that are behind again.
    pub(crate) fn tick_behind(&mut self) {
        for id in std::mem::take(&mut self.behind) {
            let Some(mut server) = self.servers.take(id) else { continue };
            let client = server.client.filter(|_| matches!(server.stage, Stage::Applying));
            if let Some(mut client) = client.and_then(|id| self.clients.take(id)) {
                self.ask_again(&mut server, &mut client);
                let id = client.id;
                self.put_client(client, id);
            }
            self.put_server(server);
        }
    }

    fn ask_again(&mut self, server: &mut Server, client: &mut Client) {
        let since = *client.behind_since.get_or_insert(self.now);
        let cancelled = matches!(client.stage, ClientStage::Ready) && client.inbox.is_empty();
        let (late, after) = (self.now.since(since) > self.pooling.queue, client.read_after);
        if let (Some(after), false, false) = (after, late, cancelled) {
            let mut out = Vec::new();
            reply::query(&mut out, &with_question(String::new(), Some(after)));
            (server.asked, server.since) = (Some((after, false)), self.now);
            server.link.ending |= server.write(&out).is_err();
            return;
        }
        (client.server, client.behind_since) = (None, None);
        self.release(server);
        if late && !cancelled {
            let after = after.unwrap_or_default();
            let text = format!("the replica has not replayed the log up to {after} in time");
            let detail = "Nothing of the request was sent to a server.";
            let hint =
                "Read through the address for writes meanwhile; \"mainstay status\" tells how far replicas are behind.";
            self.refuse(client, &Reply::error("FATAL", "57P03", &text, detail, hint));
        } else {
            self.resume.push(client.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_at_a_page_does_not_wait_for_the_next_record() {
        let needed = |lsn: u64| last_needed(Lsn(lsn)).0;
        assert_eq!(needed(0x0300_0028), 0x0300_0000);
        assert_eq!(needed(0x0300_2018), 0x0300_2000);
        for plain in [0x0300_0000, 0x0300_0030, 0x0300_2000, 0x0300_2028, 0x0300_20a0] {
            assert_eq!(needed(plain), plain, "{plain:x}");
        }
        let question = with_question("set a.b = 1 -- x".to_owned(), Some(Lsn(0x1_0000_0a00)));
        assert!(question.starts_with("set a.b = 1 -- x\n;\nSELECT ") && question.contains("'1/A00'"), "{question}");
        assert_eq!(with_question("x".to_owned(), None), "x");
    }
}

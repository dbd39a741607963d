//! A connection to a database server: what is known of it between two events.

use super::client::flush;
use super::link::Link;
use super::scram::Proof;
use super::settings::Settings;
use super::slab::Id;
use super::statements::OnServer;
use crate::registry::Place;
use mainstay_model::outcome::RunId;
use mainstay_model::{Lsn, Moment};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

/// Parameters that a server reports, at most.
const PARAMETERS_MAX: usize = 64;

/// How far a connection has come.
pub(crate) enum Stage {
    /// The network has to say yes.
    Connecting,
    /// It was asked for TLS.
    AskedTls,
    /// Logging in.
    LoggingIn(Option<Box<Proof>>),
    /// In; it has to show that it is the server it should be.
    Checking(Shown),
    /// Nobody has it.
    Free,
    /// A client has it.
    Busy,
    /// A client has it and waits until it has that client's settings.
    Applying,
}

/// What a server has shown of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) system: Option<u64>,
    pub(crate) in_recovery: Option<bool>,
    pub(crate) timeline: Option<u32>,
    pub(crate) started: Option<i64>,
    pub(crate) plain_strings: bool,
}

/// What a server was sent of an extended request whose `Sync` it was not sent yet. Its transaction is open, whatever `ReadyForQuery` said
/// last: `Flush` brings the answers, and ends nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Unsynced {
    Nothing,
    /// Texts to prepare, and questions about them: every server would say the same.
    Texts,
    /// Statements to run.
    Work,
}

/// The request that is under way, or was last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Commit {
    /// Not a commit alone.
    No,
    /// A commit of the transaction that was open, and nothing else; it was asked for its number.
    Alone,
}

/// An answer that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// To a simple query: up to `ReadyForQuery`.
    Query,
    /// To the proxy's own question in front of a commit: swallowed up to `ReadyForQuery`.
    Number,
    /// To a function call: up to `ReadyForQuery`.
    Call,
    /// `ReadyForQuery`.
    Sync,
    /// `ParseComplete`, of a statement that the server then has.
    Parse(u64),
    /// The same for a `Parse` of the proxy's own: swallowed.
    OwnParse(u64),
    /// `ParseComplete` that no server sends: the proxy does when its turn comes.
    SparedParse,
    /// `BindComplete`.
    Bind,
    /// `RowDescription` or `NoData`, of a portal.
    Describe,
    /// The same of a statement, behind `ParameterDescription`.
    DescribeStatement,
    /// The end of an `Execute`.
    Execute,
    /// `CloseComplete`.
    Close,
    /// The same for a `Close` of the proxy's own: swallowed.
    OwnClose,
    /// `CloseComplete` that no server sends.
    SparedClose,
    /// `CommandComplete` of a `DEALLOCATE` and `ReadyForQuery`, that no server sends.
    SparedDeallocate,
    /// The same without `ReadyForQuery`, which the server sends.
    SparedComplete,
}

impl Due {
    /// Ends with `ReadyForQuery`.
    pub(crate) fn is_cycle(self) -> bool {
        matches!(self, Due::Query | Due::Call | Due::Sync)
    }
}

/// See the module.
pub(crate) struct Server {
    pub(crate) id: Id,
    pub(crate) link: Link,
    pub(crate) pool: usize,
    pub(crate) place: Place,
    pub(crate) stage: Stage,
    pub(crate) client: Option<Id>,
    pub(crate) inbox: Vec<u8>,
    pub(crate) outbox: Vec<u8>,
    pub(crate) due: VecDeque<Due>,
    /// As `ReadyForQuery` said last: `I`, `T` or `E`.
    pub(crate) status: u8,
    pub(crate) unsynced: Unsynced,
    /// Bytes of a message that pass as they are.
    pub(crate) skip: usize,
    pub(crate) applied: Rc<Settings>,
    pub(crate) parameters: Vec<(String, String)>,
    pub(crate) statements: OnServer,
    pub(crate) process: u32,
    pub(crate) secret: u32,
    /// Requests to cancel that are under way: nobody else may get it before they are done.
    pub(crate) cancels: usize,
    /// Its state is not known well enough for the next client.
    pub(crate) tainted: bool,
    /// It has replayed the log up to here, as far as is known.
    pub(crate) replayed: Lsn,
    /// It is asked whether it has replayed up to here, and what it says.
    pub(crate) asked: Option<(Lsn, bool)>,
    /// It takes rows from its client.
    pub(crate) copying: bool,
    /// It passes over everything up to a `Sync`, after an error.
    pub(crate) discarding: bool,
    /// The rest of this cycle is kept from the client, which has got an error instead.
    pub(crate) muted: bool,
    /// A commit was not replicated: its end must not look like success.
    pub(crate) unreplicated: bool,
    /// As a primary: which life of it.
    pub(crate) run: Option<RunId>,
    /// Is it asked to commit, and nothing else?
    pub(crate) commit: Commit,
    /// What its client's commit is known by.
    pub(crate) number: Option<(u64, Lsn)>,
    /// The question for that failed, and the transaction with it.
    pub(crate) number_failed: Option<Vec<u8>>,
    /// What it said before it closed.
    pub(crate) last_words: Option<String>,
    pub(crate) born: Moment,
    pub(crate) since: Moment,
    pub(crate) began_us: u64,
    /// Transactions ended.
    pub(crate) transactions: u64,
}

impl Server {
    pub(crate) fn new(id: Id, link: Link, pool: usize, place: Place, settings: Rc<Settings>, now: Moment) -> Self {
        Self {
            id,
            link,
            pool,
            place,
            stage: Stage::Connecting,
            client: None,
            inbox: Vec::new(),
            outbox: Vec::new(),
            due: VecDeque::new(),
            status: b'I',
            unsynced: Unsynced::Nothing,
            skip: 0,
            applied: settings,
            parameters: Vec::new(),
            statements: OnServer::default(),
            process: 0,
            secret: 0,
            cancels: 0,
            tainted: false,
            replayed: Lsn(0),
            asked: None,
            copying: false,
            discarding: false,
            muted: false,
            unreplicated: false,
            run: None,
            commit: Commit::No,
            number: None,
            number_failed: None,
            last_words: None,
            born: now,
            since: now,
            began_us: 0,
            transactions: 0,
        }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let taken = if self.outbox.is_empty() { self.link.send(bytes)? } else { 0 };
        self.outbox.extend_from_slice(bytes.get(taken..).unwrap_or_default());
        Ok(())
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        flush(&mut self.link, &mut self.outbox)
    }

    /// Logged in and checked.
    pub(crate) fn is_in(&self) -> bool {
        matches!(self.stage, Stage::Free | Stage::Busy | Stage::Applying)
    }

    /// Nothing is under way and no transaction is open.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.due.is_empty()
            && self.status == b'I'
            && self.unsynced == Unsynced::Nothing
            && self.skip == 0
            && self.inbox.is_empty()
            && !self.copying
            && !self.discarding
    }

    /// It has a client that does nothing, and no transaction.
    pub(crate) fn rests(&self) -> bool {
        matches!(self.stage, Stage::Busy) && self.is_at_rest()
    }

    /// Remembers what a `ParameterStatus` says.
    pub(crate) fn note_parameter(&mut self, message: &[u8]) {
        let Some((name, value)) = mainstay_wire::message::parameter(message) else { return };
        let (name, value) = (String::from_utf8_lossy(name), String::from_utf8_lossy(value).into_owned());
        if let Some((_, held)) = self.parameters.iter_mut().find(|(known, _)| *known == name) {
            *held = value;
        } else if self.parameters.len() < PARAMETERS_MAX {
            self.parameters.push((name.into_owned(), value));
        }
    }
}

//! A client's connection: what is known of it between two events. Idle it owns no buffers.

use super::link::Link;
use super::outcome::LookedUp;
use super::scram::Challenge;
use super::settings::Settings;
use super::slab::Id;
use super::statements::Statement;
use crate::hold::Kind;
use mainstay_model::{Lsn, Moment};
use mainstay_wire::text::{Change, Pin};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

/// How far a client has come.
pub(crate) enum Stage {
    /// It has to say who it is.
    Start,
    /// It has to prove it.
    Proving(Box<Proving>),
    /// It is who it says; a server has to show that it would be let in, and how its settings read.
    Entering,
    /// It works.
    Ready,
    /// Its commit's answer was lost with the server, and is looked up.
    LookedUp(Box<LookedUp>),
    /// It talks to the proxy itself; since then it waits for the settings to be read anew.
    Admin { may_change: bool, reloads: Option<Moment> },
    /// Nothing more is heard from it; what is left for it is written, then it is closed.
    Closing,
}

/// Between a client's name and its proof.
pub(crate) struct Proving {
    pub(crate) parameters: Vec<(String, String)>,
    pub(crate) exchange: Exchange,
}

/// Where the exchange stands.
pub(crate) enum Exchange {
    First,
    Last(Box<Challenge>),
    /// A broken place, between two states.
    Broken,
}

/// What became of a transaction whose server was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// Nothing was lost.
    No,
    /// It was, and the client does not know yet.
    Untold,
    /// The client knows; it has to end the transaction.
    Told,
}

/// See the module.
pub(crate) struct Client {
    pub(crate) id: Id,
    pub(crate) link: Link,
    /// Hash of the certificate that it was shown, to bind its channel to.
    pub(crate) certificate: Option<Arc<[u8]>>,
    pub(crate) kind: Kind,
    pub(crate) stage: Stage,
    /// It comes from this host.
    pub(crate) near: bool,
    /// There is room for it. One more is heard out and told that there is none.
    pub(crate) welcome: bool,
    /// Read and not used yet.
    pub(crate) inbox: Vec<u8>,
    /// Not taken by the client yet.
    pub(crate) outbox: Vec<u8>,
    pub(crate) pool: Option<usize>,
    pub(crate) server: Option<Id>,
    /// Bytes of a message that pass as they are.
    pub(crate) skip: usize,
    pub(crate) secret: u32,
    pub(crate) settings: Rc<Settings>,
    pub(crate) start_settings: Rc<Settings>,
    /// Changes of settings that the transaction has made so far.
    pub(crate) pending: Vec<Change>,
    pub(crate) statements: HashMap<Box<[u8]>, Rc<Statement>>,
    /// The last `Parse` without name.
    pub(crate) unnamed: Option<Rc<Statement>>,
    /// Its server has that.
    pub(crate) unnamed_here: bool,
    pub(crate) pin: Option<Pin>,
    /// Its next transaction has to see the log up to here.
    pub(crate) read_after: Option<Lsn>,
    /// Since when its server is behind that.
    pub(crate) behind_since: Option<Moment>,
    pub(crate) waiting_since: Option<Moment>,
    pub(crate) wait_began_us: u64,
    /// The change of the primary in which it was last counted as held.
    pub(crate) counted: u64,
    /// What it has sent while it waits.
    pub(crate) held_bytes: u64,
    /// When it connected, or came to its stage.
    pub(crate) since: Moment,
    /// What is under way may have committed when no answer comes.
    pub(crate) may_commit: bool,
    /// A commit was bound in this transaction: it may be run by a later request that does not show it.
    pub(crate) commit_bound: bool,
    /// The transaction went back to a savepoint.
    pub(crate) uncertain: bool,
    /// Something in this transaction failed.
    pub(crate) erred: bool,
    /// A request had several statements.
    pub(crate) many: bool,
    pub(crate) failed: Failed,
    /// Everything up to the next `Sync` is passed over.
    pub(crate) until_sync: bool,
}

/// Bytes for a slow client that are kept before its server has to wait.
pub(crate) const OUTBOX_STOP: usize = 1;

impl Client {
    pub(crate) fn new(id: Id, link: Link, kind: Kind, near: bool, settings: Rc<Settings>, now: Moment) -> Self {
        Self {
            id,
            link,
            certificate: None,
            kind,
            stage: Stage::Start,
            near,
            welcome: true,
            inbox: Vec::new(),
            outbox: Vec::new(),
            pool: None,
            server: None,
            skip: 0,
            secret: 0,
            start_settings: Rc::clone(&settings),
            settings,
            pending: Vec::new(),
            statements: HashMap::new(),
            unnamed: None,
            unnamed_here: false,
            pin: None,
            read_after: None,
            behind_since: None,
            waiting_since: None,
            wait_began_us: 0,
            counted: 0,
            held_bytes: 0,
            since: now,
            may_commit: false,
            commit_bound: false,
            uncertain: false,
            erred: false,
            many: false,
            failed: Failed::No,
            until_sync: false,
        }
    }

    /// Writes, or keeps what is not taken.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let taken = if self.outbox.is_empty() { self.link.send(bytes)? } else { 0 };
        self.outbox.extend_from_slice(bytes.get(taken..).unwrap_or_default());
        Ok(())
    }

    /// Writes what was kept.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        flush(&mut self.link, &mut self.outbox)
    }

    pub(crate) fn is_slow(&self) -> bool {
        self.outbox.len() >= OUTBOX_STOP
    }

    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.stage, Stage::Ready)
    }

    /// It begins a transaction, or has ended one.
    pub(crate) fn clean_slate(&mut self) {
        self.pending.clear();
        (self.may_commit, self.commit_bound) = (false, false);
        (self.uncertain, self.erred, self.many) = (false, false, false);
    }
}

/// Writes what is kept for a connection.
pub(crate) fn flush(link: &mut Link, kept: &mut Vec<u8>) -> io::Result<()> {
    link.push()?;
    let mut done = 0;
    while done < kept.len() {
        match link.send(&kept[done..])? {
            0 => break,
            taken => done += taken,
        }
    }
    if done == kept.len() {
        *kept = Vec::new();
    } else {
        kept.drain(..done);
    }
    Ok(())
}

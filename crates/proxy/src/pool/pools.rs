//! A pool: the servers of one user on one database by one address, and who waits for them.
//! Absent: moving anybody (see [`super::queue`]).

use super::scram::Keys;
use super::settings::Settings;
use super::slab::Id;
use super::stats::PoolNumbers;
use crate::hold::Kind;
use mainstay_model::Moment;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

/// Whose servers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) kind: Kind,
    pub(crate) user: String,
    pub(crate) database: String,
}

/// See the module.
pub(crate) struct Pool {
    pub(crate) key: Key,
    /// Of the last client that proved itself.
    pub(crate) keys: Option<Keys>,
    pub(crate) free: Vec<Id>,
    pub(crate) waiting: VecDeque<Id>,
    /// All its connections.
    pub(crate) servers: usize,
    /// Those that are not in yet.
    pub(crate) opening: usize,
    /// Clients.
    pub(crate) clients: usize,
    /// After a failure, not before.
    pub(crate) retry_at: Moment,
    pub(crate) failures: u32,
    /// How a server's parameters read with these settings: what a client is told when it enters.
    pub(crate) greetings: HashMap<Rc<Settings>, Rc<[u8]>>,
    pub(crate) numbers: PoolNumbers,
}

/// Settings whose greeting is kept.
const GREETINGS_MAX: usize = 256;

impl Pool {
    pub(crate) fn new(key: Key) -> Self {
        let numbers = PoolNumbers {
            database: key.database.clone(),
            user: key.user.clone(),
            reads: key.kind == Kind::Read,
            ..PoolNumbers::default()
        };
        Self {
            key,
            keys: None,
            free: Vec::new(),
            waiting: VecDeque::new(),
            servers: 0,
            opening: 0,
            clients: 0,
            retry_at: Moment(0),
            failures: 0,
            greetings: HashMap::new(),
            numbers,
        }
    }

    pub(crate) fn keep_greeting(&mut self, settings: &Rc<Settings>, greeting: Rc<[u8]>) {
        if self.greetings.len() >= GREETINGS_MAX {
            self.greetings.clear();
        }
        self.greetings.insert(Rc::clone(settings), greeting);
    }

    /// How many more connections this many waiting clients call for.
    pub(crate) fn lacking(&self, size: usize) -> usize {
        let wanted = self.waiting.len().saturating_sub(self.opening);
        wanted.min(size.saturating_sub(self.servers))
    }
}

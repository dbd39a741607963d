//! A pool: the servers of one user on one database by one address, and who waits for them.
//! Absent: moving anybody (see [`super::queue`]).

use super::scram::Keys;
use super::server::{Server, Stage};
use super::settings::Settings;
use super::slab::Id;
use super::stats::{NodeNumbers, PoolNumbers};
use crate::hold::Kind;
use mainstay_model::{Moment, Span};
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
    /// Since when nobody is in it.
    empty_since: Option<Moment>,
    /// Its place is free for another pool.
    pub(crate) gone: bool,
}

/// An empty pool is kept for so long, and its numbers with it, if it has done something.
const KEPT: Span = Span::seconds(600);
/// And if it has not: nobody could log in there.
const KEPT_UNUSED: Span = Span::seconds(5);
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
            empty_since: None,
            gone: false,
        }
    }

    /// Nobody is in it: no client, and no connection to a server.
    pub(crate) fn is_empty(&self) -> bool {
        self.clients == 0 && self.servers == 0 && self.waiting.is_empty()
    }

    /// It has been empty for long enough to be forgotten.
    pub(crate) fn is_over(&mut self, now: Moment) -> bool {
        if !self.is_empty() || self.gone {
            self.empty_since = None;
            return false;
        }
        let kept = if self.numbers.transactions > 0 { KEPT } else { KEPT_UNUSED };
        now.since(*self.empty_since.get_or_insert(now)) > kept
    }

    pub(crate) fn keep_greeting(&mut self, settings: &Rc<Settings>, greeting: Rc<[u8]>) {
        if self.greetings.len() >= GREETINGS_MAX {
            self.greetings.clear();
        }
        self.greetings.insert(Rc::clone(settings), greeting);
    }

    /// A connection as it is now, for the numbers that are told.
    pub(crate) fn count(numbers: &mut PoolNumbers, server: &Server) {
        let node = server.place.target().node.to_string();
        let of_node = numbers.nodes.entry(node).or_default();
        of_node.transactions += server.transactions;
        match server.stage {
            Stage::Free => of_node.idle += 1,
            Stage::Busy | Stage::Applying => of_node.busy += 1,
            _ => of_node.login += 1,
        }
    }

    /// A connection ends: what was done over it stays.
    pub(crate) fn left(&mut self, server: &Server) {
        let node = server.place.target().node.as_str();
        match self.numbers.nodes.get_mut(node) {
            Some(numbers) => numbers.transactions += server.transactions,
            None => {
                let numbers = NodeNumbers { transactions: server.transactions, ..NodeNumbers::default() };
                self.numbers.nodes.insert(node.to_owned(), numbers);
            }
        }
    }

    /// How many more connections this many waiting clients call for.
    pub(crate) fn lacking(&self, size: usize) -> usize {
        let wanted = self.waiting.len().saturating_sub(self.opening);
        wanted.min(size.saturating_sub(self.servers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_pool_is_over_soon_or_later_and_one_that_is_used_never() {
        let mut pool = Pool::new(Key { kind: Kind::Write, user: "u".into(), database: "d".into() });
        let at = |seconds: u64| Moment(1) + Span::seconds(seconds);
        pool.clients = 1;
        assert!(!pool.is_over(at(0)) && !pool.is_over(at(9000)));
        pool.clients = 0;
        assert!(!pool.is_over(at(9001)) && !pool.is_over(at(9005)), "counted from when it became empty");
        assert!(pool.is_over(at(9007)));
        pool.servers = 1;
        assert!(!pool.is_over(at(9008)));
        (pool.servers, pool.numbers.transactions) = (0, 1);
        assert!(!pool.is_over(at(9009)) && !pool.is_over(at(9600)));
        assert!(pool.is_over(at(9610)));
        pool.gone = true;
        assert!(!pool.is_over(at(99_999)));
    }
}

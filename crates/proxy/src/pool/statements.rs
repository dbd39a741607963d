//! Prepared statements by protocol: equal texts are one statement, whoever prepared them, under one name on every server.
//! A server gets it once and keeps its plan. Absent: `PREPARE` in SQL, which ties a client to its server.

use mainstay_wire::text::Traits;
use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;

/// Of one client, at most.
pub(crate) const OF_CLIENT_MAX: usize = 5000;
/// On one server, at most: the oldest is closed then.
pub(crate) const ON_SERVER_MAX: usize = 500;
/// Unused texts are looked for when there are more than this.
const KEPT: usize = 10_000;
const KEPT_BYTES: usize = 64 << 20;
/// Begins the names on servers.
pub(crate) const PREFIX: &str = "mainstay_";

/// A text with its types, and what it does.
#[derive(Debug)]
pub(crate) struct Statement {
    pub(crate) id: u64,
    /// Its name on servers.
    pub(crate) name: Box<[u8]>,
    /// What follows the name in a `Parse`.
    pub(crate) rest: Rc<[u8]>,
    pub(crate) traits: Traits,
}

impl Statement {
    /// One without name: it is nobody else's.
    pub(crate) fn unnamed(rest: &[u8], query: &[u8]) -> Rc<Self> {
        let traits = mainstay_wire::text::traits(query);
        Rc::new(Self { id: 0, name: Box::default(), rest: rest.into(), traits })
    }

    /// Appends a `Parse` of it.
    pub(crate) fn parse(&self, out: &mut Vec<u8>) {
        mainstay_wire::reply::message(out, b'P', |out| {
            out.extend(&*self.name);
            out.push(0);
            out.extend(&*self.rest);
        });
    }
}

/// All that are in use.
#[derive(Debug)]
pub(crate) struct Statements {
    /// Makes the names such that no client can guess them: `EXECUTE` in SQL would find them.
    secret: u32,
    known: HashMap<Rc<[u8]>, Rc<Statement>>,
    next: u64,
    bytes: usize,
}

impl Statements {
    pub(crate) fn new(secret: u32) -> Self {
        Self { secret, known: HashMap::new(), next: 0, bytes: 0 }
    }

    /// A statement's name on servers.
    pub(crate) fn name(&self, id: u64) -> Vec<u8> {
        format!("{PREFIX}{:08x}_{id}", self.secret).into_bytes()
    }

    pub(crate) fn intern(&mut self, rest: &[u8], query: &[u8]) -> Rc<Statement> {
        if let Some(known) = self.known.get(rest) {
            return Rc::clone(known);
        }
        if self.known.len() >= KEPT || self.bytes >= KEPT_BYTES {
            self.known.retain(|_, statement| Rc::strong_count(statement) > 1);
            self.bytes = self.known.keys().map(|rest| rest.len()).sum();
        }
        self.bytes += rest.len();
        self.next += 1;
        let rest: Rc<[u8]> = rest.into();
        let name = self.name(self.next).into_boxed_slice();
        let traits = mainstay_wire::text::traits(query);
        let statement = Rc::new(Statement { id: self.next, name, rest: Rc::clone(&rest), traits });
        self.known.insert(rest, Rc::clone(&statement));
        statement
    }
}

/// What one server has.
#[derive(Debug, Default)]
pub(crate) struct OnServer {
    has: HashSet<u64>,
    order: VecDeque<u64>,
}

impl OnServer {
    pub(crate) fn has(&self, id: u64) -> bool {
        self.has.contains(&id)
    }

    /// One more. If there are too many, one to close.
    pub(crate) fn add(&mut self, id: u64) -> Option<u64> {
        self.has.insert(id);
        self.order.push_back(id);
        if self.has.len() <= ON_SERVER_MAX {
            return None;
        }
        while let Some(oldest) = self.order.pop_front() {
            if self.has.remove(&oldest) {
                return Some(oldest);
            }
        }
        None
    }

    pub(crate) fn remove(&mut self, id: u64) {
        if self.has.remove(&id) {
            self.order.retain(|known| *known != id);
        }
    }

    pub(crate) fn clear(&mut self) {
        self.has.clear();
        self.order.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_one_and_a_full_server_closes_its_oldest() {
        let mut all = Statements::new(7);
        let one = all.intern(b"select 1\0\0\0", b"select 1");
        assert!(Rc::ptr_eq(&one, &all.intern(b"select 1\0\0\0", b"select 1")));
        assert!(!Rc::ptr_eq(&one, &all.intern(b"select 1\0\0\x01\0\0\0\x17", b"select 1")));
        let mut server = OnServer::default();
        let closed: Vec<_> = (1..=ON_SERVER_MAX as u64 + 2).filter_map(|id| server.add(id)).collect();
        assert_eq!(closed, [1, 2]);
        assert!(!server.has(2) && server.has(3) && server.has.len() == ON_SERVER_MAX);
    }
}

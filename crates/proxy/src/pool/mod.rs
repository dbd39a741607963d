//! Pooling: many clients share few server connections, one transaction at a time.
//!
//! Each thread ([`worker`]) has its own listeners, clients and servers, and shares nothing on the way of a query: a client and the
//! server that it borrows are always on one thread. What all threads obey (the route, who may log in) comes through the [`hub`].
//! The way of bytes: [`upstream`] takes what clients send, [`downstream`] what servers answer; both walk over headers, pass bodies on
//! as they came, and look only into what a shared server makes necessary: names of statements, settings, ends of transactions.
//!
//! What must never happen: a request that reached a server is sent a second time; a server with one client's state serves another;
//! a connection of an older epoch carries new work.
//! Absent: sessions of replication, which are refused; any second opinion on who is primary.

mod admin;
mod cancel;
mod client;
mod downstream;
mod drive;
mod enter;
pub(crate) mod hub;
mod link;
mod loss;
mod options;
mod outcome;
mod pools;
mod queue;
mod read_after;
mod run;
mod scram;
mod server;
mod server_login;
mod settings;
mod slab;
mod statements;
mod stats;
mod upstream;
mod worker;

pub use hub::{Asked, Login, Logins};
pub use options::{PoolOptions, Shown, TlsShown, TlsTo};
pub use run::{Pooled, PooledProxy};
pub use stats::{NodeNumbers, PoolNumbers};

//! Proxy: client connections follow the route.
//!
//! Whole TCP connections go to the primary (writes) or to replicas within a lag bound (reads). What the agents say decides,
//! never a poll of a server. The path of a report: [`feed`] asks one agent and dates its word, [`RouteTable`] (pure) merges
//! them, the registry cuts what may no longer stand, and new connections follow or are held.
//!
//! Absent: any knowledge of SQL, pooling, TLS termination (TLS passes through), a check of the server's role, and a cancel
//! request's way back to its own server on the read address.

#![forbid(unsafe_code)]

mod accept;
mod changes;
mod control;
pub mod feed;
mod hold;
mod options;
pub mod pool;
mod proxy;
mod recall;
mod registry;
mod relay;
mod socket;
mod stats;
pub mod table;
pub mod wire;

pub use changes::Change;
pub use feed::{RouteReport, Standing, TimedReport, feed};
pub use options::ProxyOptions;
pub use proxy::{Proxy, ProxyError, Whole};
pub use stats::{Snapshot, Stats};
pub use table::{Hearing, Held, RouteTable, Target, View};

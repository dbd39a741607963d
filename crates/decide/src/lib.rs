//! Brain: what to do now. PURE: no clock, no I/O, no randomness of its own, no `HashMap`.
//!
//! [`Mind`] is the take-over protocol as one deterministic state machine: inputs in, outputs out. The shell around it (the
//! agent on a host, or the simulator) obeys the contract in [`io`] and makes no choice of its own.

#![forbid(unsafe_code)]

mod candidate;
mod claim;
mod crash;
mod doubt;
mod explain;
mod failover;
mod found;
pub mod io;
mod mind;
mod open;
mod operator;
mod orders;
mod peers;
pub mod plant;
pub mod quorum;
mod random;
mod recruit;
mod reign;
mod restart;
mod restore;
mod server;
pub mod summary;
mod switchover;
mod sync;
mod view;

pub use io::{CasResult, Config, Evidence, Input, Output};
pub use mind::Mind;
pub use plant::Plant;
pub use summary::{PeerSummary, Role, Summary};

//! Agent: the daemon on a node. It observes, lets `mainstay-decide` decide, and carries out what was decided.
//!
//! ```text
//!  probes ─┐                                          ┌─► executor ─► engine, guard
//!  links ──┤                                          ├─► store (record, history)
//!  peers ──┼─► inputs ─► mind_loop ─► decide::Mind ───┼─► peers
//!  store ──┤            (one task)                    ├─► routes ─► proxies
//!  orders ─┘                                          └─► reasons, events ─► API
//! ```
//! Nothing here chooses: which node, term, setting or moment, all come out of the decision.

#![forbid(unsafe_code)]

pub mod address;
pub mod api;
pub mod api_cluster;
pub mod archive_command;
pub mod archiver;
pub mod audit;
mod backup_job;
mod backup_outcome;
mod backup_wish;
pub mod backups;
pub mod certificates;
mod clone_seed;
pub mod deadline;
pub mod door;
pub mod drain;
mod drill_faults;
pub mod drills;
pub mod durable;
pub mod etcd;
pub mod evidence;
pub mod executor;
pub mod first_seen;
pub mod follow;
pub mod founding;
pub mod generations;
pub mod handed_over;
pub mod handlers;
pub mod health;
pub mod history;
pub mod intent;
pub mod keeper;
pub mod leadership;
pub mod leased;
pub mod library;
pub mod lifecycle;
pub mod lives;
pub mod membership;
pub mod mind_loop;
pub mod no_server;
pub mod plain;
pub mod probes;
pub mod problems;
pub mod proxy_child;
pub mod record;
mod restore_checks;
pub mod restore_drill;
pub mod restorer;
pub mod roles;
pub mod routes;
mod runbooks;
pub mod runs;
pub mod schedule;
pub mod setup;
mod setup_engine;
mod setup_ground;
pub mod shelves;
pub mod slots;
pub mod status;
pub mod transition;

pub use lifecycle::{Ended, Signal};
pub use setup::{AgentOptions, run};
pub use setup_engine::NodeRemoved;

//! Store: memory, embedded Raft and etcd behind one trait ([`mainstay_ports::store::Store`]).
//!
//! ```text
//!  callers ──► RaftStore ──► driver thread (the only owner of the Raft state) ──► peers
//!                 ▲  watch        │  batches            ▲ persisted
//!                 └───────────────┴──► writer thread ───┘ (journal: append, fsync, checkpoint)
//! ```
//!
//! Absent: transport (it comes in as [`mainstay_ports::peer::Peers`]), leases and any other meaning of the values.

#![forbid(unsafe_code)]

mod cluster_store;
mod codec;
mod command;
#[cfg(test)]
mod disk_tests;
mod driver;
mod driver_ready;
mod driver_requests;
pub mod etcd;
mod frame;
mod handler;
mod journal;
mod log_bridge;
pub mod memory;
mod mirror;
mod raft_store;
mod rebuild;
mod request;
mod shared;
mod state;
mod writer;

pub use cluster_store::ClusterStore;
pub use memory::MemoryStore;
pub use raft_store::{Member, RaftError, RaftOptions, RaftStore, StartError};
pub use rebuild::{Look, RebuildError, Rebuilt, look, rebuild, set_aside};

//! The vault: backups of a running server, the archive of its log, restores to any moment, and what proves them.
//!
//! A repository (`repository.rs`) lies on a store of objects (`objects`); what each holds is sealed (`seal.rs`, docs/vault-format.md).
//! Absent: choosing who may archive (the caller's term says so) and starting a cluster's servers.

#![forbid(unsafe_code)]

mod hex;
pub mod keys;
pub mod objects;
pub mod repository;
mod seal;

pub use seal::Header;
pub mod postgres;
pub mod retention;
pub mod verify;

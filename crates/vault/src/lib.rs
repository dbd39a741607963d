//! The vault: backups of a running server, the archive of its log, restores to any moment, and what proves them.
//!
//! A repository (`repository.rs`) lies on a store of objects (`objects`); what each holds is sealed (`seal.rs`, docs/vault-format.md).
//! Read on in `postgres/backup.rs` (a backup, full or on top of one), `postgres/archive.rs` (the log and who owns it), `postgres/restore.rs` (a plan, then
//! the files), `retention.rs` and `verify.rs`. Calls that touch a store block, but for those that are `async`.
//!
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

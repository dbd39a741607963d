//! PostgreSQL: what a backup of a running server is, what its log is called, and how a copy is brought to a moment of the past.

pub mod archive;
pub mod backup;
pub(crate) mod content;
mod control;
mod copy;
pub mod delta;
pub(crate) mod fetch;
mod fill;
pub mod follow;
mod hand;
pub mod handed;
pub mod log;
pub mod look;
pub mod manifest;
pub mod owner;
pub(crate) mod pages;
mod place;
pub mod restore;
pub mod scratch;
pub mod several;
mod walk;
mod way;

//! Doors: what a room of the workshop must do, in prose and as a trait, with a conformance suite where two rooms do the same.

#![forbid(unsafe_code)]

pub mod clock;
pub mod engine;
pub mod library;
pub mod peer;
pub mod priority;
pub mod process;
pub mod route_board;
pub mod sabotage;
pub mod seed;
pub mod store;
#[cfg(feature = "suite")]
pub mod store_suite;

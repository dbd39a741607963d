//! Networks for tests: one inside the process with cuts, loss and delay (`wire`), one over TCP between processes (`tcp`).

#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, clippy::expect_used)]

pub mod cluster;
pub mod process;
pub mod tcp;
pub mod wire;

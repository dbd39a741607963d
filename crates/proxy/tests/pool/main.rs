//! Pooling in front of real PostgreSQL servers, with real clients.

// A helper that cannot go on fails its test.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

mod bounds;
mod cancelling;
mod changing;
mod drivers;
mod faults;
mod hostile;
mod looked_up;
mod reading;
mod refused;
mod requests;
mod sharing;
mod support;

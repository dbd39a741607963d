//! Pooling in front of real PostgreSQL servers, with real clients.

// A helper that cannot go on fails its test.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

mod changing;
mod hostile;
mod refused;
mod sharing;
mod support;

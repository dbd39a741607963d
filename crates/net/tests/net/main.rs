//! The room from outside: real sockets on loopback, real certificates.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends at its first surprise")]

mod api;
mod common;
mod hostile;
mod join;
mod links;
mod renewal;
mod trust;

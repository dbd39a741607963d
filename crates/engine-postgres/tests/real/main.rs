//! The engine against real servers: each measured fact that a take-over depends on, and each order.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

mod cutting;
mod promoting;
mod rejoining;
mod running;
mod slots;
mod support;
mod syncing;

//! The engine against real servers: each measured fact that a take-over depends on, and each order.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

mod bad_days;
mod configuring;
mod cutting;
mod disk;
mod existing;
mod interrupted;
mod outcomes;
mod promoting;
mod rejoining;
mod running;
mod seeding;
mod slots;
mod support;
mod syncing;

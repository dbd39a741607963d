//! The vault with real servers.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bucket;
mod moments;
mod steps;
mod support;
mod takeover;

//! The vault with real servers: of the database, and of buckets.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bucket;
mod bucket_server;
mod locked;
mod moments;
mod network;
mod steps;
mod support;
mod takeover;

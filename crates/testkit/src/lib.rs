//! Testkit: real clusters, faults and ledgers, for tests, the demonstration and the benchmark.
//!
//! It judges from outside: it runs the built program as a person would, writes through the address that the program gives
//! out, and looks at processes through `/proc`. Absent: any knowledge of how a decision is made.

#![forbid(unsafe_code)]

pub mod chaos;
pub mod cluster;
pub mod faults;
pub mod hosts;
pub mod idle;
pub mod ledger;
pub mod processes;
pub mod statistics;
pub mod trial;

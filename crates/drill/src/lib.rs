//! Drills, seen from outside: a client of its own writes a marker row every few milliseconds through the write address and reads through the
//! read address while something fails on purpose, and what it was told is held against what was asked for.
//!
//! It knows nothing of how the cluster decides: it judges by what clients are told. Pure: [`judge`], [`page`]. Absent: letting the fault
//! happen, which an agent does (`mainstay-agent`, `drills`), and asking people (`mainstay drill`).

pub mod access;
pub mod judge;
pub mod marker;
pub mod page;
mod tls;

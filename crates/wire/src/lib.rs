//! Bytes and messages of PostgreSQL's protocol 3.0: no sockets, no clock, no allocation per message.
//!
//! A proxy walks over headers and passes bodies on as they are; only the few messages that it must understand are looked into.
//! Everything here takes bytes that anybody may have sent: each length is checked before it is used, and nothing is reserved
//! because a message says that it is long.
//! Absent: values, types, replication.

#![forbid(unsafe_code)]

pub mod frame;
pub mod message;
pub mod reply;
pub mod startup;
pub mod text;

pub use frame::{Header, WireError, header};
pub use startup::{Startup, startup};

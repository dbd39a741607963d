//! Words: the plain values that every other room speaks in.
//!
//! PURE: no clock, no I/O, no randomness, no `HashMap`. A type for every quantity, so that a term can not be
//! taken for a timeline nor a host for a copy.

#![forbid(unsafe_code)]

pub mod adoption;
pub mod api;
pub mod bucket;
mod bucket_moment;
pub mod command;
pub mod config;
pub mod config_assign;
pub mod config_check;
mod config_check_store;
mod config_check_vault;
pub mod config_reference;
mod config_repositories;
pub mod cron;
pub mod drill;
pub mod etcd;
pub mod event;
pub mod ids;
pub mod layout;
pub mod logins;
pub mod message;
pub mod observation;
pub mod order;
pub mod outcome;
pub mod position;
pub mod record;
pub mod repositories;
pub mod requirements;
pub mod route;
pub mod setting;
pub mod shell;
pub mod spec;
pub mod status;
pub mod stored_spec;
pub mod time;
pub mod vault;
pub mod virtual_address;

pub use command::{Command, Restoration};
pub use event::{Change, Event, Lost, Reason};
pub use ids::{ClusterName, CopyId, NodeId, RepositoryName, SystemId, Term};
pub use message::{Answer, Message, Presence};
pub use observation::{Room, ServerObservation, ServerState, Walsender};
pub use order::{Order, OrderFailure, OrderId, Outcome};
pub use position::{Lineage, LogEnd, Lsn, Position, Timeline};
pub use record::{ClaimState, Durability, Durable, Record, Revision, Upstream};
pub use route::{Route, RouteState};
pub use setting::SyncSetting;
pub use time::{Moment, Span};

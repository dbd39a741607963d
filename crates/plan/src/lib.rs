//! Plans: from what is asked and what was measured to a plan with its reasons, or to the contradictions that stand in its way.
//!
//! PURE: no clock, no I/O; today, the measurements and the rehearsal of failures come in as arguments. Begin at `plan.rs`.

#![forbid(unsafe_code)]

pub mod apply;
pub mod availability;
pub mod backup;
mod by_hand;
pub mod day;
pub mod doctor;
pub mod engine;
pub mod facts;
pub mod html;
pub mod layout;
pub mod markdown;
pub mod objectives;
pub mod parameters;
pub mod patroni;
mod picture;
mod plan;
pub mod refusal;
pub mod report;
pub mod runbook;
pub mod scenarios;
mod sections;
pub mod stamp;
mod store_lost;
mod vaulted;
pub mod whatif;

pub use facts::{Facts, Machine, Rehearsed, Running};
pub use plan::{Plan, lint, plan, risks};

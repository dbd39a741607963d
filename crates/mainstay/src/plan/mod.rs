//! What a command is going to do, worked out from what the agents said: pure functions, no I/O. Commands show the plan, ask, and carry it out;
//! the agents check each order again.

pub(crate) mod changes;
pub(crate) mod drill;
pub(crate) mod failover;
pub(crate) mod in_store;
pub(crate) mod recover;
pub(crate) mod restart;
pub(crate) mod settings;
pub(crate) mod sizes;

#[cfg(test)]
pub(crate) mod examples;

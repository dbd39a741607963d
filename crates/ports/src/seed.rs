//! What a new copy of the data can be made of instead of the running primary: a backup, and the log after it.
//!
//! Contract: what is filled in is a copy as a clone of that primary would be one: of the same data, on the path to its timeline, and with all log up to
//! where the primary still has it. Whoever asked checks the first, starts it as a standby, and has it stream the rest. When it can not be had, the
//! primary is cloned.

use async_trait::async_trait;
use mainstay_model::{Lineage, Lsn, SystemId, Timeline};
use std::path::PathBuf;

/// Which copy is wanted, and where.
#[derive(Clone, Debug)]
pub struct SeedWish {
    /// The new data directory: not there yet, and nobody else's for ever. One that is not filled stays to be removed.
    pub into: PathBuf,
    /// Where its tablespaces go, each below its number; nobody else's either.
    pub tablespaces: PathBuf,
    /// The server's programs: of the version that is to run on it.
    pub programs: PathBuf,
    /// Of which data.
    pub system: SystemId,
    /// The primary's timeline.
    pub timeline: Timeline,
    /// The path to it.
    pub lineage: Lineage,
    /// The primary keeps its log from here on until the copy streams.
    pub kept_from: Lsn,
}

/// Where copies can be had beside the primary.
#[async_trait]
pub trait Seed: Send + Sync {
    /// Does the operator want new copies from there?
    fn wanted(&self) -> bool;
    /// Fills the directory: the data and all log from there, durable, and the servers' user's. Says of what it was made, or why it can not be. Dropped
    /// half-way it ends soon, and writes nowhere else meanwhile.
    async fn fill(&self, wish: SeedWish) -> Result<String, String>;
    /// A copy was made of this.
    fn made(&self, of: &str);
    /// The primary is cloned instead, for this reason.
    fn passed_over(&self, why: &str);
}

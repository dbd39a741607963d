//! The server's process with the newest deadline: making a first copy, or recovering from a crash, may take longer than a lease, and
//! the lease is renewed meanwhile. A start as primary therefore takes the deadline that holds when it happens, not the one that held
//! when its order began.

use crate::deadline::Deadlines;
use async_trait::async_trait;
use mainstay_model::{Moment, Term};
use mainstay_ports::process::{Fenced, GuardStatus, ProcessError, ServerProcess, StartCommand, StopMode};
use std::sync::Arc;

/// Passes everything on; a start as primary gets the newest deadline of its term.
pub struct Leased {
    process: Arc<dyn ServerProcess>,
    deadlines: Deadlines,
}

impl Leased {
    /// Wraps a process.
    #[must_use]
    pub fn new(process: Arc<dyn ServerProcess>, deadlines: Deadlines) -> Self {
        Self { process, deadlines }
    }
}

#[async_trait]
impl ServerProcess for Leased {
    async fn start(&self, command: StartCommand, primary: Option<(Term, Moment)>) -> Result<u32, ProcessError> {
        let newest = match primary {
            None => None,
            Some((term, given)) => {
                let newest = self.deadlines.ahead(term, None).await;
                Some((term, newest.map_or(given, |newest| newest.max(given))))
            }
        };
        self.process.start(command, newest).await
    }
    async fn extend(&self, term: Term, deadline: Moment) -> Result<(), ProcessError> {
        self.process.extend(term, deadline).await
    }
    async fn stop(&self, mode: StopMode) -> Result<(), ProcessError> {
        self.process.stop(mode).await
    }
    async fn reload(&self) -> Result<(), ProcessError> {
        self.process.reload().await
    }
    async fn fence(&self, reason: String) -> Result<Fenced, ProcessError> {
        self.process.fence(reason).await
    }
    async fn status(&self) -> Result<GuardStatus, ProcessError> {
        self.process.status().await
    }
    async fn exited(&self) -> Result<(), ProcessError> {
        self.process.exited().await
    }
}

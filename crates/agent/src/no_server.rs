//! A witness: votes, answers, and has no database server. Stands where an engine and a guard would.

use async_trait::async_trait;
use mainstay_model::record::RecoveryEnd;
use mainstay_model::{
    CopyId, LogEnd, Lost, Lsn, Moment, NodeId, Position, ServerObservation, SyncSetting, SystemId, Term, Timeline,
};
use mainstay_ports::engine::{Capabilities, Configured, Deadline, Engine, EngineError, EngineSettings};
use mainstay_ports::process::{Fenced, GuardStatus, ProcessError, ServerProcess, StartCommand, StopMode};
use std::collections::BTreeSet;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct NoServer;

const WHY: &str = "a witness has no database server";

fn none<T>() -> Result<T, EngineError> {
    Err(EngineError::Failed(WHY.to_owned()))
}

fn refused<T>() -> Result<T, ProcessError> {
    Err(ProcessError::Refused(WHY.to_owned()))
}

#[async_trait]
impl Engine for NoServer {
    fn capabilities(&self) -> Capabilities {
        Capabilities { elects_itself: false, quorum_commit: false, rewind: false }
    }
    async fn version(&self) -> Result<String, EngineError> {
        none()
    }
    async fn probe(&self) -> ServerObservation {
        ServerObservation::default()
    }
    async fn has_data(&self) -> Option<SystemId> {
        None
    }
    async fn bootstrap(
        &self,
        _copy: CopyId,
        _setting: &SyncSetting,
        _deadline: Deadline,
    ) -> Result<(SystemId, RecoveryEnd), EngineError> {
        none()
    }
    async fn start_standby(&self, _copy: CopyId, _upstream: Option<&NodeId>) -> Result<(), EngineError> {
        none()
    }
    async fn recruit(&self) -> Result<LogEnd, EngineError> {
        none()
    }
    async fn log_end(&self) -> Result<LogEnd, EngineError> {
        none()
    }
    async fn follow(&self, _copy: CopyId, _upstream: &NodeId) -> Result<(), EngineError> {
        none()
    }
    async fn promote(
        &self,
        _setting: &SyncSetting,
        _timeline: Timeline,
        _fork: Position,
    ) -> Result<RecoveryEnd, EngineError> {
        none()
    }
    async fn open(&self) -> Result<(), EngineError> {
        none()
    }
    async fn close(&self) -> Result<(), EngineError> {
        none()
    }
    async fn set_sync(&self, _setting: &SyncSetting) -> Result<Lsn, EngineError> {
        none()
    }
    async fn checkpoint(&self) -> Result<(), EngineError> {
        none()
    }
    async fn stop_clean(&self, _keep: &BTreeSet<NodeId>) -> Result<LogEnd, EngineError> {
        none()
    }
    async fn restart_in_place(&self, _deadline: Deadline) -> Result<RecoveryEnd, EngineError> {
        none()
    }
    async fn rewind(&self, _source: &NodeId) -> Result<Option<Lost>, EngineError> {
        none()
    }
    async fn clone_from(&self, _source: &NodeId, _copy: CopyId) -> Result<Option<Lost>, EngineError> {
        none()
    }
    async fn stop_standby(&self) -> Result<(), EngineError> {
        none()
    }
    async fn configure(&self, _settings: &EngineSettings) -> Result<Configured, EngineError> {
        Ok(Configured::default())
    }
    async fn maintain_slots(
        &self,
        _members: &[(NodeId, Option<Lsn>)],
        _archived: Option<Lsn>,
    ) -> Result<(), EngineError> {
        Ok(())
    }
}

#[async_trait]
impl ServerProcess for NoServer {
    async fn start(&self, _command: StartCommand, _primary: Option<(Term, Moment)>) -> Result<u32, ProcessError> {
        refused()
    }
    async fn extend(&self, _term: Term, _deadline: Moment) -> Result<(), ProcessError> {
        refused()
    }
    async fn stop(&self, _mode: StopMode) -> Result<(), ProcessError> {
        Ok(())
    }
    async fn reload(&self) -> Result<(), ProcessError> {
        Ok(())
    }
    async fn fence(&self, _reason: String) -> Result<Fenced, ProcessError> {
        Ok(Fenced::Gone)
    }
    async fn status(&self) -> Result<GuardStatus, ProcessError> {
        Ok(GuardStatus::default())
    }
    async fn exited(&self) -> Result<(), ProcessError> {
        Ok(())
    }
}

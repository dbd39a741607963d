//! PostgreSQL 15 to 18 behind the [`Engine`] trait: one server on one node, started and ended through its guard.
//!
//! Absent: choosing anything (that is `decide`), and watching the server's process (that is the guard). The agent's sessions go over
//! the Unix socket with peer authentication, replication goes by client certificate, so no superuser password exists. Settings live
//! outside the data directory. What PostgreSQL does in a take-over was measured; each fact has a test under `tests/`.

#![forbid(unsafe_code)]

mod adopt;
mod bootstrap;
mod clients;
mod clone;
mod config;
mod configure;
mod diverged;
mod existing;
mod files;
mod held;
mod inspect;
mod logins;
mod options;
mod outcome;
mod probe;
mod proc;
mod promote;
mod recruit;
mod rewind;
mod seed;
mod server;
mod slots;
mod source;
mod sql;
mod standby;
mod stop;
mod sync;
mod tablespaces;
mod tools;
mod unfinished;
mod wal;

pub use config::{REPLICATOR, default_parameters, without_owned};
pub use inspect::Finding;
pub use options::{OptionsError, PostgresOptions, find_bin_dir, owned_parameters};
pub use server::Postgres;

use async_trait::async_trait;
use mainstay_model::logins::Logins;
use mainstay_model::outcome::CommitAnswer;
use mainstay_model::record::RecoveryEnd;
use mainstay_model::{CopyId, LogEnd, Lost, Lsn, NodeId, Position, ServerObservation, SyncSetting, SystemId, Timeline};
use mainstay_ports::engine::{Capabilities, Configured, Deadline, Engine, EngineError, EngineSettings, PrimaryRun};
use std::collections::BTreeSet;
use std::time::Duration;

#[async_trait]
impl Engine for Postgres {
    fn capabilities(&self) -> Capabilities {
        Capabilities { elects_itself: false, quorum_commit: true, rewind: true }
    }

    async fn version(&self) -> Result<String, EngineError> {
        let ran = self.run("postgres", &["--version".to_owned()], Duration::from_secs(5)).await?;
        let version = ran.out.split_whitespace().nth(2).map(str::to_owned);
        version.ok_or_else(|| EngineError::Failed(format!("postgres --version says {:?}", ran.out.trim())))
    }

    async fn probe(&self) -> ServerObservation {
        self.look().await
    }

    async fn logins(&self) -> Result<Logins, EngineError> {
        self.who_may_log_in().await
    }

    async fn primary_run(&self) -> Result<PrimaryRun, EngineError> {
        self.life().await
    }

    async fn transaction(&self, number: u64) -> Result<CommitAnswer, EngineError> {
        self.became_of(number).await
    }

    fn take_seed(&self, seed: std::sync::Arc<dyn mainstay_ports::seed::Seed>) {
        self.seed.take(seed);
    }

    fn local_address(&self) -> Option<(std::path::PathBuf, u16)> {
        Some((self.socket_dir().to_owned(), self.options.port))
    }

    async fn has_data(&self) -> Option<SystemId> {
        tools::system_id(&self.data())
    }

    async fn bootstrap(
        &self,
        copy: CopyId,
        setting: &SyncSetting,
        deadline: Deadline,
    ) -> Result<(SystemId, RecoveryEnd), EngineError> {
        self.found(copy, setting, deadline).await
    }

    async fn start_standby(&self, copy: CopyId, upstream: Option<&NodeId>) -> Result<(), EngineError> {
        self.run_standby(copy, upstream).await
    }

    async fn recruit(&self) -> Result<LogEnd, EngineError> {
        self.cut_and_read().await
    }

    async fn log_end(&self) -> Result<LogEnd, EngineError> {
        self.end_of_log().await
    }

    async fn follow(&self, copy: CopyId, upstream: &NodeId) -> Result<(), EngineError> {
        self.follow_upstream(copy, upstream).await
    }

    async fn promote(
        &self,
        setting: &SyncSetting,
        timeline: Timeline,
        fork: Position,
    ) -> Result<RecoveryEnd, EngineError> {
        self.become_primary(setting, timeline, fork).await
    }

    async fn open(&self) -> Result<(), EngineError> {
        self.let_in().await
    }

    async fn close(&self) -> Result<(), EngineError> {
        self.keep_out().await.map(drop)
    }

    async fn set_sync(&self, setting: &SyncSetting) -> Result<Lsn, EngineError> {
        self.change_sync(setting).await
    }

    async fn checkpoint(&self) -> Result<(), EngineError> {
        self.checkpoint_early().await
    }

    async fn stop_clean(&self, keep: &BTreeSet<NodeId>) -> Result<LogEnd, EngineError> {
        self.step_down(keep).await
    }

    async fn restart_in_place(&self, deadline: Deadline) -> Result<RecoveryEnd, EngineError> {
        self.run_primary_again(deadline).await
    }

    async fn rewind(&self, source: &NodeId) -> Result<Option<Lost>, EngineError> {
        self.rewind_to(source).await
    }

    async fn clone_from(&self, source: &NodeId, copy: CopyId) -> Result<Option<Lost>, EngineError> {
        self.clone_source(source, copy).await
    }

    async fn adopt_restored(&self, copy: CopyId, timeline: Timeline) -> Result<(), EngineError> {
        self.adopt(copy, timeline).await
    }

    async fn stop_standby(&self) -> Result<(), EngineError> {
        self.stop_replica().await
    }

    async fn configure(&self, settings: &EngineSettings) -> Result<Configured, EngineError> {
        self.change_settings(settings).await
    }

    async fn maintain_slots(
        &self,
        members: &[(NodeId, Option<Lsn>)],
        archived: Option<Lsn>,
    ) -> Result<(), EngineError> {
        self.keep_slots(members, archived).await
    }
}

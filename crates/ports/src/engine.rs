//! A database engine on one node. No lowest common denominator: what an engine can not do it says in its capabilities.
//!
//! Contract:
//! 1. One call that changes something runs at a time (the agent's mailbox sees to that); `probe` runs beside it.
//! 2. A call that is dropped half-way (its future cancelled), or ends because the server was killed under it, leaves a state from
//!    which `start_standby`, `rewind` or `clone_from` goes on; the copy's wholeness is the caller's to keep (`Durable::copy`).
//! 3. Nothing here chooses: which upstream, which setting, which timeline all come with the order.
//! 4. "Verified" means: seen on the server after the change, not inferred from a tool's exit status.

use crate::seed::Seed;
use async_trait::async_trait;
use mainstay_model::logins::Logins;
use mainstay_model::outcome::{CommitAnswer, RunId};
use mainstay_model::record::RecoveryEnd;
use mainstay_model::{
    CopyId, Lineage, LogEnd, Lost, Lsn, Moment, NodeId, Position, ServerObservation, SyncSetting, SystemId, Term,
    Timeline,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What an engine can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// It elects its primary by itself (MongoDB); Mainstay steers and leaves the election alone.
    pub elects_itself: bool,
    /// Commits can wait for a quorum of replicas.
    pub quorum_commit: bool,
    /// A diverged log can be rewound.
    pub rewind: bool,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// Not possible yet, nothing was destroyed; trying again may help.
    #[error("{0}")]
    NotYet(String),
    /// The copy in the data directory is not whole any more.
    #[error("the copy is not whole: {0}")]
    Broken(String),
    /// It failed otherwise; says what, where, why and what to do next.
    #[error("{0}")]
    Failed(String),
}

/// What an operator may change while the cluster runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineSettings {
    /// Where the servers of the other data nodes listen: host and port.
    pub peers: BTreeMap<NodeId, (String, u16)>,
    /// Server parameters.
    pub parameters: BTreeMap<String, String>,
    /// Access lines, before the default ones.
    pub hba: Vec<String>,
    /// The log is kept until it is archived, as far as the volume has the room.
    pub archived: bool,
    /// What the server runs for each finished segment; `None`: nothing.
    pub archive_command: Option<String>,
}

/// How a server goes by its settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configured {
    /// Parameters whose new value waits for a restart.
    pub pending_restart: Vec<String>,
    /// Parameters that the server did not take, each with its reason.
    pub refused: Vec<(String, String)>,
}

/// A life of a primary, as its server and its files tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrimaryRun {
    /// Which one.
    pub id: RunId,
    /// If it was started in place: where the log ended that it found; `None`: it was not, or that is not known any more.
    pub from: Option<Lsn>,
    /// The path of its log.
    pub past: Lineage,
}

/// What must be in force in the server's start (checked by the guard).
pub type Deadline = Option<(Term, Moment)>;

/// A database engine on one node. See the module's contract.
#[async_trait]
pub trait Engine: Send + Sync {
    /// What it can do.
    fn capabilities(&self) -> Capabilities;
    /// The server's version for people, `15.18`.
    async fn version(&self) -> Result<String, EngineError>;
    /// Looks at the server; never fails, never takes longer than about a second: what it can not see it leaves empty, and says
    /// in `silent` and `symptom` for how long the server has not answered.
    async fn probe(&self) -> ServerObservation;
    /// Who may log in, for proxies that prove clients themselves. Of the running server; replicas know the same.
    async fn logins(&self) -> Result<Logins, EngineError> {
        Err(EngineError::Failed("this engine tells nobody who may log in".to_owned()))
    }
    /// The life of the running primary, and from where its log is its own.
    async fn primary_run(&self) -> Result<PrimaryRun, EngineError> {
        Err(EngineError::Failed("this engine does not tell its lives apart".to_owned()))
    }
    /// What became of a transaction of this log: to be asked only if its number means the same there as to whoever asks. `Committed` says
    /// too that as many copies hold it as the synchronous setting names.
    async fn transaction(&self, _number: u64) -> Result<CommitAnswer, EngineError> {
        Err(EngineError::Failed("this engine tells nothing of transactions".to_owned()))
    }
    /// Where this host's server is reached as its superuser: the directory of its Unix socket, and its port.
    fn local_address(&self) -> Option<(std::path::PathBuf, u16)> {
        None
    }
    /// Is there a data directory that looks whole (system identifier readable)?
    async fn has_data(&self) -> Option<SystemId>;

    /// Makes the first copy, with the application's role and database, and runs it as primary with clients out.
    async fn bootstrap(
        &self,
        copy: CopyId,
        setting: &SyncSetting,
        deadline: Deadline,
    ) -> Result<(SystemId, RecoveryEnd), EngineError>;
    /// Starts the server as a standby; waits until it answers queries. No upstream: it streams from nobody. `Broken`: no server can start
    /// from these data any more, however often it is tried. Nothing is touched on a node that is not fit to run a server (`Failed`).
    async fn start_standby(&self, copy: CopyId, upstream: Option<&NodeId>) -> Result<(), EngineError>;
    /// Cuts the stream durably, verifies that no walreceiver exists and none comes back, and reads the log to its end.
    async fn recruit(&self) -> Result<LogEnd, EngineError>;
    /// The exact end of the log of a running standby whose stream is cut, or of a stopped server.
    async fn log_end(&self) -> Result<LogEnd, EngineError>;
    /// Streams from `upstream` from now on (settings durable, then reload).
    async fn follow(&self, copy: CopyId, upstream: &NodeId) -> Result<(), EngineError>;
    /// Clients out, setting in the file, timeline numbers below `timeline` reserved, promote; verifies that the server runs on
    /// exactly `timeline`, forked exactly at `fork`. The deadline is the guard's already.
    async fn promote(
        &self,
        setting: &SyncSetting,
        timeline: Timeline,
        fork: Position,
    ) -> Result<RecoveryEnd, EngineError>;
    /// Lets clients in.
    async fn open(&self) -> Result<(), EngineError>;
    /// Keeps clients out and ends those that are in, repeated until none is left.
    async fn close(&self) -> Result<(), EngineError>;
    /// Changes the synchronous setting; returns when it is confirmed: a new connection shows it, and each connected walsender
    /// has reported a flush of something written afterwards, or was ended. The returned position is the log's end after that.
    async fn set_sync(&self, setting: &SyncSetting) -> Result<Lsn, EngineError>;
    /// Writes a checkpoint while clients work; `NotYet` after a few seconds, while the server goes on writing it.
    async fn checkpoint(&self) -> Result<(), EngineError>;
    /// Switchover: a short checkpoint, end other walsenders than `keep`'s, clients out, stop in order; says where the log ends.
    async fn stop_clean(&self, keep: &BTreeSet<NodeId>) -> Result<LogEnd, EngineError>;
    /// Starts a crashed primary as primary again, clients out, synchronous setting untouched.
    async fn restart_in_place(&self, deadline: Deadline) -> Result<RecoveryEnd, EngineError>;
    /// Keeps what the diverged log holds beyond the common past, reports it, rewinds to the running primary `source`, and verifies.
    /// The server is stopped before and after. `None`: nothing had diverged.
    async fn rewind(&self, source: &NodeId) -> Result<Option<Lost>, EngineError>;
    /// Moves the old data directory aside and clones from the running primary `source`. The server is stopped after. `Some`: the old
    /// data held a log that had diverged; it is kept as before a rewind.
    async fn clone_from(&self, source: &NodeId, copy: CopyId) -> Result<Option<Lost>, EngineError>;
    /// New copies may be made of this from now on, instead of the running primary. An engine without a use for it lets it be.
    fn take_seed(&self, _seed: Arc<dyn Seed>) {}
    /// Puts the restored copy that lies ready beside the data into their place; the old data are moved aside and stay. The server is stopped
    /// before and after. Called again once it is there, it changes nothing: the copy is known by its timeline, which no other one has.
    async fn adopt_restored(&self, _copy: CopyId, _timeline: Timeline) -> Result<(), EngineError> {
        Err(EngineError::Failed("this engine restores nothing in place".to_owned()))
    }
    /// Stops a running standby in order.
    async fn stop_standby(&self) -> Result<(), EngineError>;
    /// Goes by these settings from now on: durable, the running server reloaded, access lines of an open server too. Settings that need
    /// a restart wait for one; a standby that starts takes the higher of its own value and its primary's where a standby must not have
    /// less. Nothing changes when a value is not one that this server understands.
    async fn configure(&self, settings: &EngineSettings) -> Result<Configured, EngineError>;
    /// Keeps a slot for each other data node that the settings name (on the primary for streaming, on standbys advanced), and drops those
    /// of others; how much log they keep follows the free space. `members` says how far each is known to have flushed,
    /// `archived` up to where the archive holds the log: with `EngineSettings::archived` a slot keeps what comes after, on every node.
    async fn maintain_slots(&self, members: &[(NodeId, Option<Lsn>)], archived: Option<Lsn>)
    -> Result<(), EngineError>;
}

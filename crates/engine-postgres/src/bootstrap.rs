//! The cluster's first copy: `initdb`, or an existing server's data; the roles, the application's database. Runs once in a cluster's life.

use crate::config::REPLICATOR;
use crate::files;
use crate::server::{Postgres, STATEMENT, failed};
use crate::sql::{Session, literal};
use mainstay_model::record::RecoveryEnd;
use mainstay_model::{CopyId, SyncSetting, SystemId};
use mainstay_ports::engine::{Deadline, EngineError};
use std::time::Duration;

/// There while the first copy is being made: what lies in the data directory is then half-made and may be wiped.
pub(crate) const HALF_MADE: &str = "bootstrapping";

impl Postgres {
    /// See [`mainstay_ports::engine::Engine::bootstrap`].
    pub(crate) async fn found(
        &self,
        copy: CopyId,
        setting: &SyncSetting,
        deadline: Deadline,
    ) -> Result<(SystemId, RecoveryEnd), EngineError> {
        if self.server_pid().await?.is_some() {
            return Err(failed("a server runs already; it must be stopped before a first copy is made"));
        }
        if self.adopts() {
            // Until then the old server may hold this node's port.
            self.await_existing().await?;
        }
        self.refuse_bad_start(|found| found.blocks()).await?;
        if self.adopts() {
            self.take_existing().await?
        } else {
            self.init_data().await?
        }
        self.set_floors(crate::held::Floors::default());
        self.write(Some(false), |live| {
            live.copy = Some(copy);
            live.upstream = None;
            live.setting = SyncSetting::default();
            live.blocked = false;
        })
        .await?;
        let session = self.launch(deadline).await?;
        self.make_roles(&session).await?;
        self.drop_slots_of_before(&session).await?;
        self.provide_slots(&session).await;
        self.change_sync(setting).await?;
        let end = self.recovery_end(&session).await?;
        let system = crate::tools::system_id(&self.data()).ok_or_else(|| failed("the new data has no identity"))?;
        let conf = self.options.layout.conf();
        files::remove(&conf, HALF_MADE).map_err(|error| failed(format!("{}/{HALF_MADE}: {error}", conf.display())))?;
        Ok((system, end))
    }

    async fn init_data(&self) -> Result<(), EngineError> {
        let (data, conf) = (self.data(), self.options.layout.conf());
        let say = |error: std::io::Error| failed(format!("could not prepare {}: {error}", data.display()));
        let is_empty = std::fs::read_dir(&data).map_or(true, |mut entries| entries.next().is_none());
        if !is_empty && !conf.join(HALF_MADE).exists() {
            return Err(failed(format!("{} is not empty; a first copy is never made over data", data.display())));
        }
        files::ensure_dir(&conf, 0o700, self.owner()).map_err(say)?;
        files::write_atomic(&conf, HALF_MADE, b"", 0o600, self.owner()).map_err(say)?;
        if data.exists() {
            std::fs::remove_dir_all(&data).map_err(say)?;
        }
        files::ensure_dir(&data, 0o700, self.owner()).map_err(say)?;
        let arguments = [
            "-D",
            &data.display().to_string(),
            "--username=postgres",
            "--data-checksums",
            "--auth-local=peer",
            "--auth-host=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
        ];
        let ran = self.run("initdb", &arguments.map(str::to_owned), Duration::from_secs(120)).await?;
        if ran.success { Ok(()) } else { Err(failed(format!("initdb failed: {} {}", ran.err.trim(), ran.out.trim()))) }
    }

    async fn make_roles(&self, session: &Session) -> Result<(), EngineError> {
        let verifier = &self.options.app_verifier;
        if !verifier.starts_with("SCRAM-SHA-256$") {
            return Err(failed("the application role's verifier is not a SCRAM-SHA-256 verifier"));
        }
        let functions = "pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean), pg_read_binary_file(text), \
             pg_read_binary_file(text, bigint, bigint, boolean)";
        // Nothing of the verifier in the log, not even when the statement fails.
        session.rows("set log_min_error_statement = panic", STATEMENT).await?;
        // What is there stays as it is: adopted data may have these roles, and an attempt before may have made some.
        let made = [
            ("pg_roles where rolname = 'app'", format!("create role app login password {}", literal(verifier))),
            (
                &*format!("pg_roles where rolname = '{REPLICATOR}'"),
                format!("create role {REPLICATOR} login replication"),
            ),
            ("pg_database where datname = 'app'", "create database app owner app".to_owned()),
        ];
        for (there, statement) in made {
            let known = session.value(&format!("select count(*) from {there}"), STATEMENT).await?;
            if known == "0" {
                session.rows(&statement, STATEMENT * 4).await?;
            }
        }
        let statements = [
            format!("alter role {REPLICATOR} login replication"),
            format!("grant execute on function {functions} to {REPLICATOR}"),
            // So that the one who rewinds can ask for the checkpoint without which pg_rewind sees no divergence.
            format!("grant pg_checkpoint to {REPLICATOR}"),
        ];
        for statement in statements {
            session.rows(&statement, STATEMENT * 4).await?;
        }
        Ok(())
    }
}

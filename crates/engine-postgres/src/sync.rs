//! The synchronous setting: changing it, and knowing that it is in force.
//!
//! Each walsender reads the file on its own and releases commits by what it has read. One that has flushed-reports of a record written
//! after the reload was signalled has read it: to send that record it went through its loop, at whose top it reads the file, before it
//! could treat the report. Whether commits wait at all is a flag that the checkpointer sets; it is proven by a commit that waits.

use crate::config::parse_copy_name;
use crate::server::{Postgres, STATEMENT, failed, not_yet};
use crate::sql::Session;
use mainstay_model::{Lsn, SyncSetting};
use mainstay_ports::engine::EngineError;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// A walsender that has not confirmed for this long is ended.
const PATIENCE: Duration = Duration::from_millis(1000);
/// How long a confirmation may take in all.
const LIMIT: Duration = Duration::from_secs(5);

const MARK: &str = "select pg_logical_emit_message(true, 'mainstay', '')";

/// How a commit that should wait for replicas did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// It was seen waiting.
    Waits,
    /// It came back: either nobody waits, or replicas were faster than the look.
    CameBack,
}

impl Postgres {
    /// See [`mainstay_ports::engine::Engine::set_sync`].
    pub(crate) async fn change_sync(&self, setting: &SyncSetting) -> Result<Lsn, EngineError> {
        if setting.need > 0 && !self.is_proven().await? {
            self.arm().await?;
        }
        if setting.need == 0 {
            self.set_proven(None);
        }
        let new = setting.clone();
        let session = self
            .apply(None, |live| {
                live.setting = new;
                live.blocked = false;
            })
            .await?;
        if session.in_recovery(STATEMENT).await? {
            return Err(not_yet("the server is not primary"));
        }
        self.check_names(&session).await?;
        self.confirm(&session).await
    }

    /// Commits wait for nobody at all from now on, proven. Used when it is not known that they wait: the flag of the server, once
    /// set, stays set through changes from one non-empty setting to another.
    pub(crate) async fn arm(&self) -> Result<(), EngineError> {
        let session = self.apply(None, |live| live.blocked = true).await?;
        let began = Instant::now();
        loop {
            if self.probe_commit(&session).await? == Proof::Waits {
                self.set_proven(self.server_pid().await?);
                return Ok(());
            }
            if began.elapsed() > LIMIT {
                return Err(failed("the server does not make commits wait although synchronous_standby_names is set"));
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Proves after a start or promotion that commits wait, if they should.
    pub(crate) async fn prove_waiting(&self, session: &Session) -> Result<(), EngineError> {
        let live = self.live().await;
        if live.setting.need == 0 && !live.blocked {
            return Ok(());
        }
        self.check_names(session).await?;
        if self.probe_commit(session).await? == Proof::Waits {
            self.set_proven(self.server_pid().await?);
            return Ok(());
        }
        // It came back at once: perhaps confirmed by replicas that are attached already. Nobody can confirm the next one.
        self.arm().await?;
        let session = self.apply(None, |live| live.blocked = false).await?;
        self.check_names(&session).await
    }

    /// Was it seen in this life of the server, and of this agent, that commits wait?
    async fn is_proven(&self) -> Result<bool, EngineError> {
        let running = self.server_pid().await?;
        Ok(running.is_some() && self.proven() == running)
    }

    /// The server's value is the one in the file.
    async fn check_names(&self, session: &Session) -> Result<(), EngineError> {
        let wanted = crate::config::standby_names(&self.live().await);
        let shown = session.value("select current_setting('synchronous_standby_names')", STATEMENT).await?;
        if shown == wanted {
            return Ok(());
        }
        Err(failed(format!(
            "synchronous_standby_names is {shown:?} instead of {wanted:?}: something overrides Mainstay's file"
        )))
    }

    /// Commits once in a session of its own, and looks whether it waits.
    async fn probe_commit(&self, session: &Session) -> Result<Proof, EngineError> {
        let own = self.session(STATEMENT).await?;
        let pid = own.value("set synchronous_commit = on; select pg_backend_pid()", STATEMENT).await?;
        let look = format!("select wait_event from pg_stat_activity where pid = {pid}");
        let commit = own.rows(MARK, STATEMENT);
        tokio::pin!(commit);
        loop {
            tokio::select! {
                done = &mut commit => {
                    done?;
                    return Ok(Proof::CameBack);
                }
                waits = session.value(&look, STATEMENT) => {
                    if waits? == "SyncRep" {
                        // Ends the wait, not the commit, which is a mark without content.
                        session.value(&format!("select pg_terminate_backend({pid})"), STATEMENT).await?;
                        return Ok(Proof::Waits);
                    }
                }
            }
        }
    }

    /// Waits until each walsender that was there at the reload has confirmed or is gone; then says where the log ends.
    async fn confirm(&self, session: &Session) -> Result<Lsn, EngineError> {
        let began = Instant::now();
        // Listed after the postmaster had read the file: whoever comes later was forked with the new setting.
        let mut open = walsenders(session).await?;
        session.value(MARK, STATEMENT).await?;
        let mark = end_of_log(session).await?;
        loop {
            let now = walsenders(session).await?;
            open.retain(|who, _| now.get(who).is_some_and(|flush| *flush < mark));
            if open.is_empty() {
                return end_of_log(session).await;
            }
            if began.elapsed() > PATIENCE {
                for (pid, _) in open.keys() {
                    session.value(&format!("select pg_terminate_backend({pid})"), STATEMENT).await?;
                }
            }
            if began.elapsed() > LIMIT {
                let pids: Vec<&String> = open.keys().map(|(pid, _)| pid).collect();
                return Err(not_yet(format!("walsenders {pids:?} neither confirm the synchronous setting nor end")));
            }
            sleep(Duration::from_millis(if began.elapsed().as_millis() < 50 { 1 } else { 10 })).await;
        }
    }
}

/// Where the flushed log ends.
pub(crate) async fn end_of_log(session: &Session) -> Result<Lsn, EngineError> {
    session.value("select pg_current_wal_flush_lsn()", STATEMENT).await?.parse().map_err(failed)
}

/// The walsenders that can release commits (they carry a copy's name), by process and its start, with what they say is flushed.
async fn walsenders(session: &Session) -> Result<BTreeMap<(String, String), Lsn>, EngineError> {
    let sql = "select pid, backend_start, application_name, coalesce(flush_lsn, '0/0') from pg_stat_replication";
    let rows = session.rows(sql, STATEMENT).await?;
    let known = rows.into_iter().filter_map(|row| {
        let mut row = row.into_iter().map(Option::unwrap_or_default);
        let who = (row.next()?, row.next()?);
        parse_copy_name(&row.next()?)?;
        Some((who, row.next()?.parse().ok()?))
    });
    Ok(known.collect())
}

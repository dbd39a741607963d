//! Letting clients in and keeping them out. Out means three things at once: `pg_hba.conf` reduced to the agent's and the other
//! servers' lines, every session ended, and every connection ended that is still authenticating by the old lines.

use crate::server::{Postgres, STATEMENT, failed, not_yet};
use crate::sql::Session;
use mainstay_ports::engine::EngineError;
use rustix::process::Signal;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Which sessions are clients'. The agent's own are known by what no client can have at once: the superuser, over the Unix socket.
pub(crate) const IS_CLIENT: &str = "backend_type = 'client backend' and pid <> pg_backend_pid() \
     and usename is distinct from 'mainstay_replicator' \
     and not (usesysid = 10 and client_port = -1 and application_name = 'mainstay_agent')";

/// How long ending all clients may take.
const LIMIT: Duration = Duration::from_secs(5);

impl Postgres {
    /// Lets clients in.
    pub(crate) async fn let_in(&self) -> Result<(), EngineError> {
        let session = self.apply(Some(true), |_| {}).await?;
        let wrong = self.wrong_access_lines(&session).await?;
        if wrong.is_empty() {
            return Ok(());
        }
        // The server goes on with the lines it had; the file must say the same.
        self.apply(Some(false), |_| {}).await?;
        Err(failed(format!(
            "clients can not be let in: [[postgres.hba]] gives a line that the server refuses ({wrong}); correct it"
        )))
    }

    /// Keeps clients out and ends those that are in.
    pub(crate) async fn keep_out(&self) -> Result<Session, EngineError> {
        let session = self.apply(Some(false), |_| {}).await?;
        self.end_unauthenticated().await?;
        self.end_clients(&session).await?;
        Ok(session)
    }

    /// Ends sessions until none is left.
    pub(crate) async fn end_clients(&self, session: &Session) -> Result<(), EngineError> {
        let began = Instant::now();
        loop {
            let left = end_clients_once(session).await?;
            if left == 0 {
                return Ok(());
            }
            if began.elapsed() > LIMIT {
                return Err(not_yet(format!("{left} client sessions do not end")));
            }
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Ends connections that have not authenticated yet: they were forked with the `pg_hba.conf` of before, and show in no view.
    pub(crate) async fn end_unauthenticated(&self) -> Result<(), EngineError> {
        let Some(postmaster) = self.server_pid().await? else { return Ok(()) };
        let fresh = crate::proc::title(postmaster);
        for (pid, title) in crate::proc::children(postmaster) {
            let is_ours = title.contains(" mainstay_replicator ") || title.contains(" postgres postgres [local]");
            let authenticating =
                title.ends_with(" authentication") || title.ends_with(" initializing") || title == fresh;
            if authenticating && !is_ours {
                self.signal(pid, Signal::TERM)?;
            }
        }
        Ok(())
    }
}

/// Asks every client's session to end; says how many there were.
pub(crate) async fn end_clients_once(session: &Session) -> Result<u64, EngineError> {
    let sql = format!("select count(pg_terminate_backend(pid)) from pg_stat_activity where {IS_CLIENT}");
    Ok(session.value(&sql, STATEMENT).await?.parse().unwrap_or(0))
}

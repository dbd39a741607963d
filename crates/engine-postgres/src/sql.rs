//! Sessions of the agent at its own server: over the Unix socket, every statement with a time-out, never waiting for replicas.

use crate::config::{AGENT, GENERATION};
use mainstay_ports::engine::EngineError;
use std::path::Path;
use std::time::Duration;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage, Statement};

/// One connection; dropping it ends it.
pub(crate) struct Session {
    client: Client,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        // The client's drop sends the goodbye; a driver whose peer is stopped would wait for ever.
        let driver = self.driver.abort_handle();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                tokio::time::sleep(Duration::from_millis(200)).await;
                driver.abort();
            });
        } else {
            driver.abort();
        }
    }
}

/// Why a statement gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SqlError {
    /// Nothing came back in time.
    #[error("no answer within {0} ms")]
    Silent(u128),
    /// The server answered, and refused: a sign of life.
    #[error("{0}")]
    Refused(String),
    /// Nobody listens, or the connection broke.
    #[error("{0}")]
    Gone(String),
}

impl From<tokio_postgres::Error> for SqlError {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(answer) => SqlError::Refused(format!("{}: {}", answer.severity(), answer.message())),
            None => {
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
                SqlError::Gone(format!("{error}{cause}"))
            }
        }
    }
}

impl From<SqlError> for EngineError {
    fn from(error: SqlError) -> Self {
        match error {
            SqlError::Silent(_) | SqlError::Gone(_) => EngineError::NotYet(format!("the local server: {error}")),
            SqlError::Refused(_) => EngineError::Failed(format!("the local server: {error}")),
        }
    }
}

/// One row, as text; NULL is `None`.
pub(crate) type Row = Vec<Option<String>>;

/// Awaits at most this long.
pub(crate) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, SqlError> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(SqlError::Silent(limit.as_millis())),
    }
}

impl Session {
    /// Opens a connection to `database` as the superuser.
    pub(crate) async fn open(dir: &Path, port: u16, database: &str, limit: Duration) -> Result<Session, SqlError> {
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(dir)
            .port(port)
            .user("postgres")
            .dbname(database)
            .application_name(AGENT)
            .connect_timeout(limit);
        config.options(
            "-c search_path=pg_catalog -c synchronous_commit=local -c statement_timeout=30000 -c lock_timeout=5000 \
             -c default_transaction_read_only=off -c idle_in_transaction_session_timeout=60000 -c log_statement=none \
             -c log_min_duration_statement=-1 -c client_min_messages=warning",
        );
        let (client, connection) = within(limit, config.connect(NoTls)).await?;
        let driver = tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Session { client, driver })
    }

    /// Runs statements; gives all rows.
    pub(crate) async fn rows(&self, sql: &str, limit: Duration) -> Result<Vec<Row>, SqlError> {
        let messages = within(limit, self.client.simple_query(sql)).await?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect()),
            _ => None,
        });
        Ok(rows.collect())
    }

    /// Runs statements; gives the last row, empty if there is none.
    pub(crate) async fn row(&self, sql: &str, limit: Duration) -> Result<Row, SqlError> {
        Ok(self.rows(sql, limit).await?.pop().unwrap_or_default())
    }

    /// Runs statements; gives the last row's first value, empty for NULL.
    pub(crate) async fn value(&self, sql: &str, limit: Duration) -> Result<String, SqlError> {
        Ok(self.row(sql, limit).await?.into_iter().next().flatten().unwrap_or_default())
    }

    /// Which generation of the configuration the postmaster had read when this session began.
    pub(crate) async fn generation(&self, limit: Duration) -> Result<u64, SqlError> {
        let shown = self.value(&format!("select current_setting('{GENERATION}', true)"), limit).await?;
        Ok(shown.parse().unwrap_or(0))
    }

    /// Is the server in recovery?
    pub(crate) async fn in_recovery(&self, limit: Duration) -> Result<bool, SqlError> {
        Ok(self.value("select pg_is_in_recovery()", limit).await? == "t")
    }

    /// Prepares a statement that is run again and again.
    pub(crate) async fn prepare(&self, sql: &str, limit: Duration) -> Result<Statement, SqlError> {
        within(limit, self.client.prepare(sql)).await
    }

    /// Runs a prepared statement without parameters whose columns are all text.
    pub(crate) async fn prepared(&self, statement: &Statement, limit: Duration) -> Result<Row, SqlError> {
        let row = within(limit, self.client.query_one(statement, &[])).await?;
        Ok((0..row.len()).map(|at| row.try_get::<_, Option<String>>(at).ok().flatten()).collect())
    }

    /// Is the connection known to be broken?
    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }
}

/// The text as an SQL literal.
pub(crate) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if text.contains('\\') { format!(" E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

//! How the marker's clients reach the cluster: an address with one or more hosts, tried in turn, as a driver of an application does.

use crate::tls::Tls;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::config::{ChannelBinding, SslMode};
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Config};

/// How long a connection to one host may take.
const CONNECT: Duration = Duration::from_secs(2);

/// Where, and as whom.
#[derive(Clone)]
pub struct Access {
    /// The hosts, each with a proxy.
    pub hosts: Vec<String>,
    /// Their port.
    pub port: u16,
    config: Config,
    tls: Tls,
}

/// As whom.
#[derive(Clone)]
pub struct Login {
    /// The role.
    pub role: String,
    /// The database.
    pub database: String,
    /// The role's password.
    pub password: String,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.hosts.join(","), self.port)
    }
}

/// What a client was told of one statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Done, without a warning.
    Acknowledged,
    /// An error that says that nothing was done.
    Failed,
    /// The connection broke, the answer did not come, or it came with a warning.
    Unknown,
}

/// One connection; dropping it ends it.
pub(crate) struct Link {
    pub(crate) client: Client,
    warnings: Arc<AtomicU64>,
    driver: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Access {
    /// An address.
    ///
    /// # Errors
    /// When the authority can not be used.
    pub fn new(hosts: Vec<String>, port: u16, login: &Login, authority: &[u8]) -> Result<Access, String> {
        let mut config = Config::new();
        config
            .user(&login.role)
            .password(&login.password)
            .dbname(&login.database)
            .application_name("mainstay drill")
            .connect_timeout(CONNECT)
            .channel_binding(ChannelBinding::Disable)
            .ssl_mode(SslMode::Require);
        Ok(Access { hosts, port, config, tls: Tls::of(authority)? })
    }

    /// A connection to the host of this place, counted over.
    pub(crate) async fn connect(&self, place: usize) -> Result<Link, String> {
        let host = self.hosts.get(place % self.hosts.len().max(1)).ok_or("there is no host")?;
        let mut config = self.config.clone();
        config.host(host).port(self.port);
        let connecting = tokio::time::timeout(CONNECT * 2, config.connect(self.tls.clone())).await;
        let (client, mut connection) = connecting
            .map_err(|_| format!("{host}:{}: no connection within {} s", self.port, CONNECT.as_secs() * 2))?
            .map_err(|error| format!("{host}:{}: {}", self.port, words(&error)))?;
        let warnings = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&warnings);
        let driver = tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notice(notice) = message
                    && notice.severity() == "WARNING"
                {
                    counted.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        Ok(Link { client, warnings, driver })
    }
}

impl Link {
    /// Runs a statement; `keep`: the connection is good for another one.
    pub(crate) async fn run(&self, statement: &str, patience: Duration) -> (Told, bool) {
        let before = self.warnings.load(Ordering::SeqCst);
        match tokio::time::timeout(patience, self.client.batch_execute(statement)).await {
            // A commit whose wait for replicas was cancelled comes with a warning: it may be lost.
            Ok(Ok(())) if self.warnings.load(Ordering::SeqCst) == before => (Told::Acknowledged, true),
            Ok(Ok(())) => (Told::Unknown, true),
            Ok(Err(error)) => (told(&error), false),
            Err(_) => (Told::Unknown, false),
        }
    }
}

/// Does this error say that nothing was done?
fn told(error: &tokio_postgres::Error) -> Told {
    let Some(answer) = error.as_db_error() else { return Told::Unknown };
    let class = answer.code().code().get(..2).unwrap_or_default();
    // The server ended, or the proxy lost it, perhaps after the commit.
    let broken = class == "08" || class == "57" && *answer.code() != SqlState::CANNOT_CONNECT_NOW;
    if broken || answer.severity() == "FATAL" && class != "53" { Told::Unknown } else { Told::Failed }
}

/// An error with its cause.
pub(crate) fn words(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(answer) => format!("{} ({})", answer.message(), answer.code().code()),
        None => {
            let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
            format!("{error}{cause}")
        }
    }
}

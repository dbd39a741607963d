//! What an operator can set for pooling. Absent: reading it from a file.

use mainstay_model::{NodeId, Span};
use std::path::PathBuf;
use std::sync::Arc;

/// Makes the TLS settings for the server of a node; `None`: that one can not be reached with TLS.
pub type TlsTo = Arc<dyn Fn(&NodeId) -> Option<Arc<rustls::ClientConfig>> + Send + Sync>;

/// What a client that asks for TLS is shown, and settings that show it.
#[derive(Clone)]
pub struct Shown {
    /// The settings.
    pub config: Arc<rustls::ServerConfig>,
    /// The certificate in them, to which clients bind their channel; empty: they can not.
    pub certificate: Vec<u8>,
}

/// Says what clients are shown now: certificates are renewed while the proxy runs.
pub type TlsShown = Arc<dyn Fn() -> Shown + Send + Sync>;

/// The settings of pooling, beside those of [`crate::ProxyOptions`].
#[derive(Clone)]
pub struct PoolOptions {
    /// Threads; each has its part of every pool.
    pub threads: usize,
    /// Server connections per user, database and address.
    pub size: usize,
    /// How many more when somebody has waited for `reserve_after`.
    pub reserve: usize,
    /// Pools that a thread keeps, at most: one for each user, database and address.
    pub pools: usize,
    /// See there.
    pub reserve_after: Span,
    /// How long a request waits for a server connection while there is a primary.
    pub queue: Span,
    /// What became of a commit whose answer was lost with its server is looked up.
    pub commit_outcome: bool,
    /// A server connection that nobody needed for this long is closed.
    pub idle: Span,
    /// A server connection older than this is closed when it is free.
    pub life: Span,
    /// For clients that ask for TLS; `None`: they are told that there is none.
    pub tls: Option<TlsShown>,
    /// For servers elsewhere than on this host.
    pub tls_to: Option<TlsTo>,
    /// The node of this host, and the directory of its server's Unix socket with the port, if that may be used.
    pub local: Option<(NodeId, PathBuf)>,
    /// Clients from elsewhere than this host must use TLS.
    pub require_tls: bool,
}

impl std::fmt::Debug for PoolOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PoolOptions").field("threads", &self.threads).field("size", &self.size).finish_non_exhaustive()
    }
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            threads: 1,
            size: 20,
            reserve: 0,
            pools: 2000,
            reserve_after: Span::seconds(5),
            queue: Span::seconds(30),
            commit_outcome: false,
            idle: Span::seconds(600),
            life: Span::seconds(3600),
            tls: None,
            tls_to: None,
            local: None,
            require_tls: true,
        }
    }
}

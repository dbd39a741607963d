//! Net: the cluster authority, mutual TLS, and framed messages between the processes of a cluster.
//!
//! One port per agent carries both: framed messages (ALPN `mainstay/1`, see [`mesh`]) and HTTP/1.1 for the API (see [`http`]).
//! Both sides always show a certificate of the cluster's own authority; who the other side is comes from that certificate alone
//! ([`identity`]). Absent here: what messages mean, whether a node still belongs to the cluster, revocation lists.

#![forbid(unsafe_code)]

mod backoff;
mod client;
pub mod credentials;
mod files;
mod frame;
pub mod http;
pub mod identity;
pub mod join;
mod link;
mod listener;
pub mod mesh;
mod peer;
pub mod pki;
pub mod reason;
mod seldom;
mod socket;
pub mod tls;
pub mod token;

pub use client::Client;
pub use credentials::Credentials;
pub use files::write_file;
pub use frame::{BODY_BYTES_MAX, RAFT_BODY_BYTES_MAX, body_max};
pub use http::HttpServe;
pub use identity::{Expect, Identity, Role};
pub use listener::ServerStream;
pub use mesh::{Mesh, MeshOptions};
pub use pki::{Authority, Issued, KeyRequest};
pub use tls::install_provider;
pub use token::Token;

/// What to do about an address that can not be listened on.
fn listening(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrNotAvailable => {
            "this host does not have that address: is it another node's name, or has the host a new one? (`mainstay node replace NAME --host HOST`)"
        }
        _ => "is another agent running there?",
    }
}

/// Why something of this room failed: what, where, why.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A file could not be read or written.
    #[error("{what} {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// Which file.
        path: std::path::PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A key that others than its owner can read is no secret any more.
    #[error(
        "the key {path} can be read by others than its owner (mode {mode:03o}); set it to 0600, and issue it anew if others may have read it"
    )]
    LooseKey {
        /// Which file.
        path: std::path::PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A certificate or key is not what it should be.
    #[error("certificate: {0}")]
    Certificate(String),
    /// A connection could not be made.
    #[error("connect to {address}: {reason}")]
    Connect {
        /// Where to.
        address: std::net::SocketAddr,
        /// Why not.
        reason: String,
    },
    /// Joining the cluster failed.
    #[error("{0}")]
    Join(join::Refusal),
    /// The listener could not be opened.
    #[error("listen on {address}: {source}; {}", listening(source))]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// An HTTP exchange failed.
    #[error("{method} {path} at {address}: {reason}")]
    Http {
        /// The method.
        method: String,
        /// The path.
        path: String,
        /// Whom.
        address: std::net::SocketAddr,
        /// Why not.
        reason: String,
    },
}

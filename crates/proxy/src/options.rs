//! What an operator can set, with defaults that suit a small cluster. Absent: reading them from a file.

use mainstay_model::Span;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The proxy's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyOptions {
    /// Where clients that write connect. Port 0 = any free one.
    pub write: Vec<SocketAddr>,
    /// Where clients that only read connect.
    pub read: Vec<SocketAddr>,
    /// Of those, an address that this host may have only at times: it is listened on all the same.
    pub floating: Option<IpAddr>,
    /// A replica gets new read connections while it is at most this many bytes of log behind.
    pub max_lag_bytes: u64,
    /// How long a new connection waits for a server before it gets an error.
    pub hold: Duration,
    /// Connections in total, held ones included. One more gets an error.
    pub max_connections: usize,
    /// Connections that wait for a server, at most. One more gets an error at once.
    pub max_held: usize,
    /// Bytes that those have sent, at most; mode transaction. Whoever sends more gets an error.
    pub max_held_bytes: usize,
    /// How long one attempt to connect to a server may take.
    pub connect_timeout: Duration,
    /// How soon a server that refused is tried again, by one connection on behalf of all.
    pub retry: Duration,
    /// Least distance between two held connections that are let go: 200 µs is 50 each 10 ms.
    pub release_every: Duration,
    /// How long readers may stay with, and come to, replicas that no current primary vouches for.
    pub read_grace: Span,
    /// A connection that says nothing for this long never reaches a server.
    pub first_byte: Duration,
    /// A peer that confirms nothing for this long is gone. Also ends a client that stops reading for as long, so not too short:
    /// dead servers are noticed by the route, in milliseconds.
    pub peer_timeout: Duration,
    /// Connections that the kernel may keep waiting to be accepted, per address.
    pub backlog: u32,
}

/// Settings that may change while a proxy runs: whoever needs them looks at what they are now.
#[derive(Debug, Default)]
pub(crate) struct Live<T>(Mutex<Arc<T>>);

impl<T: Clone> Live<T> {
    pub(crate) fn new(first: T) -> Self {
        Self(Mutex::new(Arc::new(first)))
    }

    pub(crate) fn now(&self) -> Arc<T> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut T)) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = T::clone(&held);
        change(&mut next);
        *held = Arc::new(next);
    }
}

impl ProxyOptions {
    /// The defaults at these addresses.
    #[must_use]
    pub fn new(write: Vec<SocketAddr>, read: Vec<SocketAddr>) -> Self {
        Self { write, read, ..Self::default() }
    }
}

impl Default for ProxyOptions {
    fn default() -> Self {
        Self {
            write: Vec::new(),
            read: Vec::new(),
            floating: None,
            max_lag_bytes: 16 * 1024 * 1024,
            hold: Duration::from_secs(30),
            max_connections: 4000,
            max_held: 2000,
            max_held_bytes: 64 * 1024 * 1024,
            connect_timeout: Duration::from_secs(1),
            retry: Duration::from_millis(15),
            release_every: Duration::from_micros(200),
            read_grace: Span::seconds(10),
            first_byte: Duration::from_secs(15),
            peer_timeout: Duration::from_secs(300),
            backlog: 1024,
        }
    }
}

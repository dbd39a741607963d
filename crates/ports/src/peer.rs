//! Messages between the processes of a cluster, over mutual TLS. The sender's name comes from its certificate.
//!
//! Contract:
//! 1. `send` never blocks: queues are bounded, a message to a peer that is not connected, or whose queue is full, is dropped.
//! 2. Messages of one channel to one peer arrive in order, at most once per `send`.
//! 3. `request` ends within its time-out; a time-out says nothing about whether the other side acted.
//! 4. `links` shows each peer's connection, up or down, within milliseconds of a close.

use crate::clock;
use async_trait::async_trait;
use mainstay_model::NodeId;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;

/// Who called, by its certificate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Caller {
    /// An agent.
    Node(NodeId),
    /// A proxy, by name.
    Proxy(String),
    /// A person or program that may change everything.
    Admin(String),
    /// One that may switch over, fail over without loss, restart, pause and resume.
    Operator(String),
    /// One that may look.
    Reader(String),
}

impl Caller {
    /// The name in the certificate.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Caller::Node(node) => node.as_str(),
            Caller::Proxy(name) | Caller::Admin(name) | Caller::Operator(name) | Caller::Reader(name) => name,
        }
    }
    /// The role in the certificate.
    #[must_use]
    pub fn role(&self) -> &'static str {
        match self {
            Caller::Node(_) => "node",
            Caller::Proxy(_) => "proxy",
            Caller::Admin(_) => "admin",
            Caller::Operator(_) => "operator",
            Caller::Reader(_) => "reader",
        }
    }
}

/// What a message is about. Each has one handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Channel {
    /// Raft's own messages.
    Raft,
    /// Store requests that a follower passes to the leader.
    Store,
    /// [`mainstay_model::Message`]s.
    Mind,
    /// Route feeds (proxies).
    Route,
    /// Questions between agents for the API (status, history, reasons).
    Ask,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// No connection; the request was not sent.
    #[error("{0} is not connected")]
    NotConnected(String),
    /// No answer in time, or the connection broke: it may have been carried out.
    #[error("{0} did not answer")]
    NoAnswer(String),
    /// It answered with an error.
    #[error("{0}")]
    Refused(String),
}

/// A peer's connection went up or down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkChange {
    /// The peer.
    pub node: NodeId,
    /// Up or down.
    pub up: bool,
    /// When it was seen.
    pub at: mainstay_model::Moment,
}

impl LinkChange {
    /// A change seen now.
    #[must_use]
    pub fn now(node: NodeId, up: bool) -> Self {
        Self { node, up, at: clock::boot_now() }
    }
}

/// Sends to peers. See the module's contract.
#[async_trait]
pub trait Peers: Send + Sync {
    /// Best effort, one way.
    fn send(&self, to: &NodeId, channel: Channel, body: Vec<u8>);
    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// See [`PeerError`].
    async fn request(
        &self,
        to: &NodeId,
        channel: Channel,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, PeerError>;
    /// Changes of connections from now on.
    fn links(&self) -> broadcast::Receiver<LinkChange>;
    /// Is this peer connected now?
    fn connected(&self, node: &NodeId) -> bool;
    /// Why there is no connection to this peer, by the last attempt; `None` while there is one, or nothing is known.
    fn failure(&self, _node: &NodeId) -> Option<String> {
        None
    }
}

/// Receives on one channel.
#[async_trait]
pub trait Handler: Send + Sync {
    /// A one-way message. Must not block for long: it holds up the connection's other messages.
    async fn message(&self, from: &Caller, body: Vec<u8>);
    /// A request; an `Err` goes back as [`PeerError::Refused`].
    async fn request(&self, from: &Caller, body: Vec<u8>) -> Result<Vec<u8>, String>;
}

/// Handlers by channel, set before the listener starts.
pub type Handlers = std::collections::BTreeMap<Channel, Arc<dyn Handler>>;

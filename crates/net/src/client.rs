//! A connection without a mesh: what commands and tests use to ask one agent.

use crate::NetError;
use crate::credentials::Credentials;
use crate::identity::Expect;
use crate::link::{Outgoing, answer_within, open_frames};
use crate::tls::ALPN_FRAMES;
use mainstay_ports::peer::{Channel, PeerError};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::watch;

/// One connection to one agent; it does not come back when it breaks. Dropping it closes it.
pub struct Client {
    name: String,
    outgoing: Outgoing,
    ended: watch::Receiver<bool>,
}

impl Client {
    /// Connects, and returns once the agent has let us in.
    ///
    /// # Errors
    /// When nobody answers within 1 s, or one side does not accept the other.
    pub async fn connect(address: SocketAddr, expect: Expect, credentials: &Credentials) -> Result<Client, NetError> {
        let name = match &expect {
            Expect::Node(node) => node.to_string(),
            Expect::Server(name) => name.to_string(),
            Expect::AnyNode => address.to_string(),
        };
        let config = credentials.client_config(expect, ALPN_FRAMES)?;
        let (outgoing, driver) = open_frames(address, config).await?;
        let (ending, ended) = watch::channel(false);
        tokio::spawn(async move {
            let why = driver.run().await;
            tracing::debug!(%address, %why, "connection ended");
            ending.send_replace(true);
        });
        Ok(Client { name, outgoing, ended })
    }

    /// Best effort, one way; says whether it was put into the queue.
    pub fn send(&self, channel: Channel, body: Vec<u8>) -> bool {
        self.outgoing.send(channel, body)
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub async fn request(&self, channel: Channel, body: Vec<u8>, limit: Duration) -> Result<Vec<u8>, PeerError> {
        let answer = self.outgoing.request(&self.name, channel, body)?;
        answer_within(&self.name, limit, answer).await
    }

    /// Completes when the connection has ended.
    pub async fn closed(&self) {
        // An error means that the task is gone, and with it the connection.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }
}

//! What other processes send an agent: decisions' messages, and proxies' questions about the route.

use crate::lives::Lives;
use async_trait::async_trait;
use mainstay_decide::io::Input;
use mainstay_model::Message;
use mainstay_ports::peer::{Caller, Handler};
use mainstay_ports::route_board::RouteBoard;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Passes messages of other agents' decisions to the loop.
pub struct MindHandler {
    /// To the loop.
    pub inputs: mpsc::Sender<Input>,
    /// Notes which process speaks under which name.
    pub lives: Arc<Lives>,
}

#[async_trait]
impl Handler for MindHandler {
    async fn message(&self, from: &Caller, body: Vec<u8>) {
        // Only agents may speak here; what can not be read comes from a newer version and is left out.
        if let (Caller::Node(node), Ok(message)) = (from, serde_json::from_slice(&body)) {
            if let Message::Presence(presence) = &message {
                self.lives.heard(node, presence.life);
            }
            let _ = self.inputs.send(Input::Peer(node.clone(), message)).await;
        }
    }

    async fn request(&self, _from: &Caller, _body: Vec<u8>) -> Result<Vec<u8>, String> {
        Err("this channel takes messages, not requests".to_owned())
    }
}

/// Answers proxies.
pub struct RouteHandler(pub Arc<RouteBoard>);

#[async_trait]
impl Handler for RouteHandler {
    async fn message(&self, _from: &Caller, _body: Vec<u8>) {}

    async fn request(&self, from: &Caller, body: Vec<u8>) -> Result<Vec<u8>, String> {
        let request = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        if let Caller::Proxy(name) = from {
            self.0.heard(name, &request);
        }
        serde_json::to_vec(&self.0.answer(request).await).map_err(|error| error.to_string())
    }
}

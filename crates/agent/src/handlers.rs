//! What other processes send an agent: decisions' messages, and proxies' questions about the route.

use crate::lives::Lives;
use async_trait::async_trait;
use mainstay_decide::io::Input;
use mainstay_model::Message;
use mainstay_ports::peer::{Caller, Handler};
use mainstay_ports::route_board::RouteBoard;
use mainstay_store::ClusterStore;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Passes messages of other agents' decisions to the loop.
pub struct MindHandler {
    /// To the loop.
    inputs: mpsc::Sender<Input>,
    /// Notes which process speaks under which name.
    lives: Arc<Lives>,
    /// While this node does not believe it, it hears of no candidates.
    store: Arc<ClusterStore>,
}

impl MindHandler {
    /// `inputs`: to the loop.
    #[must_use]
    pub fn new(inputs: mpsc::Sender<Input>, lives: &Arc<Lives>, store: &Arc<ClusterStore>) -> Arc<Self> {
        Arc::new(Self { inputs, lives: Arc::clone(lives), store: Arc::clone(store) })
    }
}

#[async_trait]
impl Handler for MindHandler {
    async fn message(&self, from: &Caller, body: Vec<u8>) {
        // Only agents may speak here; what can not be read comes from a newer version and is left out.
        if let (Caller::Node(node), Ok(message)) = (from, serde_json::from_slice(&body)) {
            if let Message::Presence(presence) = &message {
                self.lives.heard(node, presence.life);
            }
            if is_part_of_a_take_over(&message) && self.store.distrusts() {
                return;
            }
            let _ = self.inputs.send(Input::Peer(node.clone(), message)).await;
        }
    }

    async fn request(&self, _from: &Caller, _body: Vec<u8>) -> Result<Vec<u8>, String> {
        Err("this channel takes messages, not requests".to_owned())
    }
}

/// Does it make a node promise, or tell a candidate what it may build on?
pub(crate) fn is_part_of_a_take_over(message: &Message) -> bool {
    matches!(message, Message::Recruit { .. } | Message::Answer(_))
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

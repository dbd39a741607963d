//! What arrives from other members: Raft's messages, and requests that a follower passes to the leader.

use crate::frame::Frame;
use crate::request::{Answer, Request};
use crate::shared::{Event, Shared};
use async_trait::async_trait;
use mainstay_ports::peer::{Caller, Handler};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Asks this member's driver and waits. `None`: no answer in time, so it may have been carried out or may still be.
pub(crate) async fn ask_driver(shared: &Shared, request: Request, timeout: Duration) -> Option<Answer> {
    let (reply, answer) = oneshot::channel();
    let bytes = if let Request::Cas(command) = &request { command.key.len() + command.value.len() } else { 0 };
    let deadline = Instant::now() + timeout;
    if !shared.offer(Event::Request { request, deadline, reply }, bytes) {
        let why = shared.failure().cloned().unwrap_or_else(|| "too many requests wait here".to_owned());
        return Some(Answer::NotProposed(why));
    }
    tokio::time::timeout_at(deadline.into(), answer).await.ok()?.ok()
}

/// Takes Raft's messages.
pub(crate) struct RaftHandler(pub(crate) Arc<Shared>);

#[async_trait]
impl Handler for RaftHandler {
    async fn message(&self, from: &Caller, body: Vec<u8>) {
        let Caller::Node(from) = from else { return };
        let Ok(frame) = Frame::decode(&body) else {
            tracing::warn!(%from, "a Raft message that cannot be read: is another version running there?");
            return;
        };
        if !self.0.ours(from, frame.group) {
            return;
        }
        let _ = self.0.offer(Event::Raft { from: from.clone(), frame: Box::new(frame) }, body.len());
    }

    async fn request(&self, _from: &Caller, _body: Vec<u8>) -> Result<Vec<u8>, String> {
        Err("the raft channel takes messages only".to_owned())
    }
}

/// Takes requests for the leader.
pub(crate) struct StoreHandler(pub(crate) Arc<Shared>);

#[async_trait]
impl Handler for StoreHandler {
    async fn message(&self, _from: &Caller, _body: Vec<u8>) {}

    async fn request(&self, from: &Caller, body: Vec<u8>) -> Result<Vec<u8>, String> {
        let Caller::Node(from) = from else {
            return Err("only members may use the store channel".to_owned());
        };
        let (group, request, timeout) = Request::decode(&body).map_err(|error| error.to_string())?;
        if !self.0.ours(from, group) {
            return Ok(Answer::NotProposed("it is a member of another store".to_owned()).encode());
        }
        let answer = ask_driver(&self.0, request, timeout).await.unwrap_or(Answer::Unknown);
        Ok(answer.encode())
    }
}

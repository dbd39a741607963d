//! Keeps a slot for every other data node, on the primary and on replicas alike, moved forward as those nodes advance, so that a node
//! that was away finds the log it needs at whoever is primary then.

use crate::mind_loop::{Question, Snapshot};
use mainstay_model::{Lsn, NodeId, ServerObservation, ServerState};
use mainstay_ports::engine::Engine;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::sleep;
use tracing::debug;

const PAUSE: Duration = Duration::from_secs(10);

/// What the task works with.
pub struct Slots {
    /// The other data nodes.
    pub others: watch::Receiver<Vec<NodeId>>,
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// The last probe.
    pub observed: watch::Receiver<ServerObservation>,
    /// Questions to the loop.
    pub questions: mpsc::Sender<Question>,
    /// Told whenever an order begins.
    pub order_begins: Arc<Notify>,
}

impl Slots {
    /// Runs for ever. Orders come first: one that begins ends a maintenance that runs (it is only a few short statements, each
    /// complete in itself).
    pub async fn keep(self) {
        loop {
            sleep(PAUSE).await;
            let (question, answer) = oneshot::channel();
            if self.questions.send(question).await.is_err() {
                return;
            }
            let Ok(snapshot) = answer.await else { continue };
            let serves = matches!(self.observed.borrow().state, ServerState::Primary | ServerState::Standby);
            if !serves || snapshot.summary.order.is_some() {
                continue;
            }
            let members = self.members(&snapshot);
            tokio::select! {
                result = self.engine.maintain_slots(&members) => if let Err(error) = result {
                    debug!(%error, "slots are not maintained this time");
                },
                () = self.order_begins.notified() => debug!("an order came before the slots"),
            }
        }
    }

    /// How far each other node has flushed: by its connection here, or by what it said itself.
    fn members(&self, snapshot: &Snapshot) -> Vec<(NodeId, Option<Lsn>)> {
        let observed = self.observed.borrow();
        let flushed = |node: &NodeId| {
            let sender = observed.walsenders.iter().find(|sender| sender.node == *node).map(|sender| sender.flush);
            let said = snapshot.summary.peers.get(node).and_then(|peer| peer.presence.as_ref()?.position);
            sender.or(said.map(|position| position.lsn))
        };
        let others = self.others.borrow().clone();
        others.iter().map(|node| (node.clone(), flushed(node))).collect()
    }
}

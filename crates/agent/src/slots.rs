//! Keeps a slot for every other data node, on the primary and on replicas alike, moved forward as those nodes advance, so that a node
//! that was away finds the log it needs at whoever is primary then.

use crate::mind_loop::{self, Question, Snapshot};
use mainstay_model::{Lsn, NodeId, ServerObservation, ServerState, Timeline};
use mainstay_ports::engine::{Configured, Engine};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

const PAUSE: Duration = Duration::from_secs(10);
/// After an order that was in the way.
const SOON: Duration = Duration::from_secs(1);

/// What the task works with.
pub struct Slots {
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// The last probe.
    pub observed: watch::Receiver<ServerObservation>,
    /// Told whenever the server has taken its settings.
    pub configured: watch::Receiver<Configured>,
    /// Up to where the log of a timeline is archived wherever it must be.
    pub archived: Box<dyn Fn(Option<Timeline>) -> Option<Lsn> + Send + Sync>,
    /// Questions to the loop.
    pub questions: mpsc::Sender<Question>,
    /// Told whenever an order begins.
    pub order_begins: Arc<Notify>,
}

impl Slots {
    /// Runs for ever. Orders come first: one that begins ends a maintenance that runs (it is only a few short statements, each
    /// complete in itself).
    pub async fn keep(mut self) {
        let (mut before, mut pause, mut failing) = (self.observed.borrow().state, PAUSE, false);
        while self.due(&mut before, pause).await {
            pause = PAUSE;
            if !serves(self.observed.borrow().state) {
                continue;
            }
            if self.questions.is_closed() {
                return;
            }
            let Some(snapshot) = mind_loop::ask(&self.questions, mind_loop::ANSWER).await else { continue };
            if snapshot.summary.order.is_some() {
                pause = SOON;
                continue;
            }
            let members = self.members(&snapshot);
            let timeline = self.observed.borrow().timeline;
            let archived = (self.archived)(timeline);
            tokio::select! {
                result = self.engine.maintain_slots(&members, archived) => {
                    match &result {
                        Ok(()) if failing => info!("replication slots are maintained again"),
                        Ok(()) => {}
                        Err(error) if failing => debug!(%error, "replication slots are still not maintained"),
                        Err(error) => warn!(%error, "replication slots are not maintained; this is tried again"),
                    }
                    failing = result.is_err();
                }
                () = self.order_begins.notified() => {
                    debug!("an order came before the slots");
                    pause = SOON;
                }
            }
        }
    }

    /// Waits for the next maintenance: for this long, or until the server goes by other settings, or has become what it was not before.
    /// `false`: the agent ends.
    async fn due(&mut self, before: &mut ServerState, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        loop {
            let state = self.observed.borrow_and_update().state;
            if std::mem::replace(before, state) != state && serves(state) {
                return true;
            }
            tokio::select! {
                () = sleep_until(end) => return true,
                changed = self.configured.changed() => return changed.is_ok(),
                changed = self.observed.changed() => if changed.is_err() { return false },
            }
        }
    }

    /// How far each other node has flushed: by its connection here, or by what it said itself. The engine knows which nodes there are.
    fn members(&self, snapshot: &Snapshot) -> Vec<(NodeId, Option<Lsn>)> {
        let observed = self.observed.borrow();
        let flushed = |node: &NodeId| {
            let sender = observed.walsenders.iter().find(|sender| sender.node == *node).map(|sender| sender.flush);
            let said = snapshot.summary.peers.get(node).and_then(|peer| peer.presence.as_ref()?.position);
            sender.or(said.map(|position| position.lsn))
        };
        let heard = snapshot.summary.peers.keys();
        let nodes: BTreeSet<&NodeId> = heard.chain(observed.walsenders.iter().map(|sender| &sender.node)).collect();
        nodes.into_iter().map(|node| (node.clone(), flushed(node))).collect()
    }
}

fn serves(state: ServerState) -> bool {
    matches!(state, ServerState::Primary | ServerState::Standby)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::tests::Stuck;
    use mainstay_decide::summary::Summary;
    use mainstay_model::Moment;
    use std::sync::Mutex;
    use std::sync::atomic::Ordering;
    use tokio::time::sleep;

    /// Well before the regular pause is over.
    async fn until_maintained(engine: &Stuck, times: u32) {
        let began = Instant::now();
        while engine.maintained.load(Ordering::SeqCst) < times {
            assert!(began.elapsed() < PAUSE / 2, "not maintained for the {times}. time");
            sleep(Duration::from_millis(10)).await;
        }
        sleep(Duration::from_millis(200)).await;
        assert_eq!(engine.maintained.load(Ordering::SeqCst), times);
    }

    #[tokio::test]
    async fn slots_are_maintained_at_once_after_a_promotion_and_new_settings_and_soon_after_an_order() {
        let engine = Arc::new(Stuck::default());
        let observed = watch::Sender::new(ServerObservation::default());
        let configured = watch::Sender::new(Configured::default());
        let (questions, mut asked) = mpsc::channel::<Question>(1);
        let order = Arc::new(Mutex::new(None));
        let running = Arc::clone(&order);
        tokio::spawn(async move {
            while let Some(question) = asked.recv().await {
                let summary = Summary { order: *running.lock().unwrap(), ..Summary::default() };
                let _ = question.send(Snapshot { summary, reasons: Vec::new(), since_ms: 0 });
            }
        });
        let slots = Slots {
            engine: engine.clone(),
            observed: observed.subscribe(),
            archived: Box::new(|_| None),
            configured: configured.subscribe(),
            questions,
            order_begins: Arc::default(),
        };
        tokio::spawn(slots.keep());
        let show = |state| observed.send_modify(|seen| seen.state = state);
        sleep(Duration::from_millis(50)).await;
        show(ServerState::Standby);
        until_maintained(&engine, 1).await;
        show(ServerState::Standby);
        configured.send_replace(Configured::default());
        until_maintained(&engine, 2).await;
        *order.lock().unwrap() = Some(("promote", Moment(1)));
        show(ServerState::Primary);
        sleep(Duration::from_millis(200)).await;
        assert_eq!(engine.maintained.load(Ordering::SeqCst), 2, "an order runs");
        *order.lock().unwrap() = None;
        until_maintained(&engine, 3).await;
        show(ServerState::Down);
        configured.send_replace(Configured::default());
        until_maintained(&engine, 3).await;
    }
}

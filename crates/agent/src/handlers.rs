//! What other processes send an agent: decisions' messages, and proxies' questions about the route.

use crate::lives::Lives;
use async_trait::async_trait;
use mainstay_decide::io::Input;
use mainstay_model::{Message, NodeId, Term};
use mainstay_ports::peer::{Caller, Handler};
use mainstay_ports::route_board::RouteBoard;
use mainstay_store::ClusterStore;
use mainstay_store::etcd::EtcdStore;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::debug;

/// Etcd confirms within this what a candidate goes by, or this node hears nothing of that one, until it asks again. A candidate waits no
/// longer for answers either.
const CONFIRM: Duration = Duration::from_secs(1);
/// So many candidates' questions wait for that at once, one of each.
const CONFIRMING_MAX: usize = 8;

/// Passes messages of other agents' decisions to the loop.
pub struct MindHandler {
    /// To the loop.
    inputs: mpsc::Sender<Input>,
    /// Notes which process speaks under which name.
    lives: Arc<Lives>,
    /// While this node does not believe it, it hears of no candidates.
    store: Arc<ClusterStore>,
    /// What waits for etcd.
    confirming: Arc<Mutex<BTreeSet<(NodeId, Term)>>>,
}

impl MindHandler {
    /// `inputs`: to the loop.
    #[must_use]
    pub fn new(inputs: mpsc::Sender<Input>, lives: &Arc<Lives>, store: &Arc<ClusterStore>) -> Arc<Self> {
        Arc::new(Self { inputs, lives: Arc::clone(lives), store: Arc::clone(store), confirming: Arc::default() })
    }

    /// Lets a candidate's question through once etcd has shown, after it came, all that this node has seen of it, and a record that this
    /// candidate has raised to that term. What etcd showed before says nothing: it may have been restored from an older copy since, while
    /// this node was cut off from it or not running, and the candidate would go by a record whose quorum is smaller. Beside the other
    /// messages: a slow etcd must not make the candidate look silent. (They may overtake each other on their way in any case.)
    fn confirm_first(&self, etcd: Arc<EtcdStore>, from: NodeId, term: Term) {
        {
            let mut confirming = locked(&self.confirming);
            if confirming.len() >= CONFIRMING_MAX || !confirming.insert((from.clone(), term)) {
                return;
            }
        }
        let (inputs, confirming) = (self.inputs.clone(), Arc::clone(&self.confirming));
        tokio::spawn(async move {
            let record = etcd.confirmed_record(CONFIRM).await;
            if record.is_some_and(|record| is_raised_by(&record.value, &from, term)) {
                let _ = inputs.send(Input::Peer(from.clone(), Message::Recruit { term })).await;
            } else {
                debug!(%from, %term, "a candidate is not heard: etcd does not confirm what it and this node go by");
            }
            // Not before the loop has taken it: while that is busy, each repetition would wait beside this one.
            locked(&confirming).remove(&(from, term));
        });
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whose term it is, also in a record that a newer version has written.
fn is_raised_by(record: &[u8], candidate: &NodeId, term: Term) -> bool {
    #[derive(Deserialize)]
    struct Raised {
        term: Term,
        holder: Option<NodeId>,
    }
    serde_json::from_slice::<Raised>(record)
        .is_ok_and(|raised| raised.term == term && raised.holder.as_ref() == Some(candidate))
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
            if let (Message::Recruit { term }, Some(etcd)) = (&message, self.store.etcd()) {
                // Another node may have seen more than this one and etcd. It is being asked, and so will the candidate ask again.
                if !etcd.is_compared() {
                    return debug!(from = %node, %term, "a candidate is not heard: the other nodes have not told what they saw");
                }
                return self.confirm_first(Arc::clone(etcd), node.clone(), *term);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_candidate_is_known_by_the_record_that_it_raised() {
        let db2 = NodeId::new("db2").unwrap();
        let raised = br#"{"term":7,"holder":"db2","state":"electing","of_a_newer_version":1}"#;
        assert!(is_raised_by(raised, &db2, Term(7)));
        assert!(!is_raised_by(raised, &db2, Term(8)) && !is_raised_by(raised, &NodeId::new("db3").unwrap(), Term(7)));
        assert!(!is_raised_by(br#"{"term":7,"holder":null}"#, &db2, Term(7)) && !is_raised_by(b"7", &db2, Term(7)));
    }
}

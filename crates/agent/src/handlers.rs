//! What other processes send an agent: decisions' messages, and proxies' questions about the route.

use crate::lives::Lives;
use async_trait::async_trait;
use mainstay_decide::io::Input;
use mainstay_model::{Message, NodeId};
use mainstay_ports::peer::{Caller, Handler};
use mainstay_ports::route_board::RouteBoard;
use mainstay_store::ClusterStore;
use mainstay_store::etcd::EtcdStore;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tracing::debug;

/// Etcd confirms within this what a candidate goes by, or this node hears nothing of that one: it asks again.
const CONFIRM: Duration = Duration::from_secs(1);
/// So many candidates' questions wait for that at once.
const CONFIRMING_MAX: usize = 4;

/// Passes messages of other agents' decisions to the loop.
pub struct MindHandler {
    /// To the loop.
    inputs: mpsc::Sender<Input>,
    /// Notes which process speaks under which name.
    lives: Arc<Lives>,
    /// While this node does not believe it, it hears of no candidates.
    store: Arc<ClusterStore>,
    confirming: Arc<Semaphore>,
}

impl MindHandler {
    /// `inputs`: to the loop.
    #[must_use]
    pub fn new(inputs: mpsc::Sender<Input>, lives: &Arc<Lives>, store: &Arc<ClusterStore>) -> Arc<Self> {
        let confirming = Arc::new(Semaphore::new(CONFIRMING_MAX));
        Arc::new(Self { inputs, lives: Arc::clone(lives), store: Arc::clone(store), confirming })
    }

    /// Lets a candidate's question through once etcd has shown, after it came, all that this node has seen of it. What etcd showed before says
    /// nothing: it may have been restored from an older copy since, while this node was cut off from it or not running, and the candidate
    /// would go by a record whose quorum is smaller. Beside the other messages: a slow etcd must not make the candidate look silent.
    fn confirm_first(&self, etcd: Arc<EtcdStore>, from: NodeId, message: Message) {
        let Ok(permit) = Arc::clone(&self.confirming).try_acquire_owned() else { return };
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            if etcd.confirms(CONFIRM).await {
                let _ = inputs.send(Input::Peer(from, message)).await;
            } else {
                debug!(%from, "a candidate is not heard: etcd does not confirm what this node has seen of it");
            }
            drop(permit);
        });
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
            if let (Message::Recruit { .. }, Some(etcd)) = (&message, self.store.etcd()) {
                return self.confirm_first(Arc::clone(etcd), node.clone(), message);
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
    use mainstay_model::{NodeId, Revision, Term};
    use mainstay_store::etcd::{EtcdOptions, EtcdStore, Origin};

    #[tokio::test]
    async fn who_does_not_believe_etcd_hears_of_no_candidates() {
        let (dir, me) = (tempfile::tempdir().unwrap(), NodeId::new("db1").unwrap());
        let text = "[cluster]\nname = \"c\"\n[store]\nkind = \"etcd\"\nendpoints = [\"http://127.0.0.1:9\"]\n\
                    [[node]]\nname = \"db1\"\nhost = \"10.0.0.1\"\n";
        let spec = mainstay_model::config::parse(text, &[]).unwrap();
        let options = EtcdOptions::of(&spec, &me, "ours".to_owned(), dir.path().join("etcd.json")).unwrap();
        let origin = Origin { authority: "ours".to_owned(), ..Origin::default() };
        let etcd = EtcdStore::start(options, Some((origin, Revision(4)))).unwrap();
        let (inputs, mut queue) = mpsc::channel(4);
        let store = Arc::new(ClusterStore::Etcd(Arc::clone(&etcd)));
        let handler = MindHandler::new(inputs, &Arc::default(), &store);
        let from = Caller::Node(NodeId::new("db2").unwrap());
        let recruit = serde_json::to_vec(&Message::Recruit { term: Term(7) }).unwrap();
        handler.message(&from, recruit.clone()).await;
        assert!(queue.try_recv().is_ok());
        etcd.distrust("seen less".to_owned());
        handler.message(&from, recruit).await;
        assert!(queue.try_recv().is_err(), "no promise, no answer");
        handler.message(&from, serde_json::to_vec(&Message::Ask { term: Term(7) }).unwrap()).await;
        assert!(queue.try_recv().is_ok(), "what makes nobody promise is still heard");
    }
}

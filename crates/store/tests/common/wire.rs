//! A network inside the process. Messages of one pair arrive in order; cuts, loss and delay are set while it runs.

use async_trait::async_trait;
use mainstay_model::NodeId;
use mainstay_ports::peer::{Caller, Channel, Handlers, LinkChange, PeerError, Peers};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{broadcast, mpsc};

#[derive(Default)]
struct Rules {
    up: BTreeMap<NodeId, Arc<Handlers>>,
    cut: BTreeSet<(NodeId, NodeId)>,
    loss_percent: u64,
    delay: Duration,
    random: u64,
    delivered: u64,
    lost: u64,
}

type Queue = mpsc::Sender<(Channel, Vec<u8>)>;

pub struct Wire {
    rules: Mutex<Rules>,
    queues: Mutex<BTreeMap<(NodeId, NodeId), Queue>>,
    links: Mutex<BTreeMap<NodeId, broadcast::Sender<LinkChange>>>,
}

impl Wire {
    pub fn new() -> Arc<Self> {
        let rules = Rules { random: 0x9e37_79b9_7f4a_7c15, ..Rules::default() };
        Arc::new(Self { rules: Mutex::new(rules), queues: Mutex::default(), links: Mutex::default() })
    }

    pub fn peers(self: &Arc<Self>, me: &NodeId) -> Arc<dyn Peers> {
        Arc::new(WirePeers { wire: Arc::clone(self), me: me.clone() })
    }

    pub fn up(&self, node: &NodeId, handlers: Handlers) {
        self.rules.lock().unwrap().up.insert(node.clone(), Arc::new(handlers));
    }

    /// The process is gone; if `seen`, its peers notice that their connections closed.
    pub fn down(&self, node: &NodeId, seen: bool) {
        self.rules.lock().unwrap().up.remove(node);
        if seen {
            for (other, sender) in self.links.lock().unwrap().iter() {
                if other != node {
                    let _ = sender.send(LinkChange::now(node.clone(), false));
                }
            }
        }
    }

    /// From now on nothing passes between the groups. Nobody notices but by silence.
    pub fn split(&self, groups: &[&[NodeId]]) {
        let mut rules = self.rules.lock().unwrap();
        rules.cut.clear();
        for (number, one) in groups.iter().enumerate() {
            for other in groups.iter().skip(number + 1) {
                for a in *one {
                    for b in *other {
                        rules.cut.insert((a.clone(), b.clone()));
                        rules.cut.insert((b.clone(), a.clone()));
                    }
                }
            }
        }
    }

    /// Nothing passes in this direction.
    pub fn cut_one_way(&self, from: &NodeId, to: &NodeId) {
        self.rules.lock().unwrap().cut.insert((from.clone(), to.clone()));
    }

    pub fn trouble(&self, loss_percent: u64, delay: Duration) {
        let mut rules = self.rules.lock().unwrap();
        rules.loss_percent = loss_percent;
        rules.delay = delay;
    }

    pub fn heal(&self) {
        let mut rules = self.rules.lock().unwrap();
        rules.cut.clear();
        rules.loss_percent = 0;
        rules.delay = Duration::ZERO;
    }

    /// Messages and requests that passed, and that were lost or cut off.
    pub fn counts(&self) -> (u64, u64) {
        let rules = self.rules.lock().unwrap();
        (rules.delivered, rules.lost)
    }

    fn passes(&self, from: &NodeId, to: &NodeId) -> bool {
        let mut rules = self.rules.lock().unwrap();
        rules.random ^= rules.random << 13;
        rules.random ^= rules.random >> 7;
        rules.random ^= rules.random << 17;
        let lost = rules.random % 100 < rules.loss_percent;
        let passes = !lost && !rules.cut.contains(&(from.clone(), to.clone())) && rules.up.contains_key(from);
        if passes {
            rules.delivered += 1;
        } else {
            rules.lost += 1;
        }
        passes
    }

    fn handlers(&self, node: &NodeId) -> Option<Arc<Handlers>> {
        self.rules.lock().unwrap().up.get(node).cloned()
    }

    async fn wait(&self) {
        let delay = self.rules.lock().unwrap().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
    }

    fn queue(self: &Arc<Self>, from: &NodeId, to: &NodeId) -> Queue {
        let mut queues = self.queues.lock().unwrap();
        let open = queues.entry((from.clone(), to.clone())).or_insert_with(|| {
            let (sender, mut receiver) = mpsc::channel::<(Channel, Vec<u8>)>(1024);
            let (wire, from, to) = (Arc::clone(self), from.clone(), to.clone());
            tokio::spawn(async move {
                while let Some((channel, body)) = receiver.recv().await {
                    wire.wait().await;
                    let Some(handlers) = wire.handlers(&to) else { continue };
                    if wire.passes(&from, &to)
                        && let Some(handler) = handlers.get(&channel)
                    {
                        handler.message(&Caller::Node(from.clone()), body).await;
                    }
                }
            });
            sender
        });
        open.clone()
    }
}

struct WirePeers {
    wire: Arc<Wire>,
    me: NodeId,
}

#[async_trait]
impl Peers for WirePeers {
    fn send(&self, to: &NodeId, channel: Channel, body: Vec<u8>) {
        let _ = self.wire.queue(&self.me, to).try_send((channel, body));
    }

    async fn request(
        &self,
        to: &NodeId,
        channel: Channel,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, PeerError> {
        let Some(handler) = self.wire.handlers(to).and_then(|handlers| handlers.get(&channel).cloned()) else {
            return Err(PeerError::NotConnected(to.to_string()));
        };
        let (wire, me, peer) = (Arc::clone(&self.wire), self.me.clone(), to.clone());
        // The other side carries on, also when nobody waits any more.
        let call = tokio::spawn(async move {
            wire.wait().await;
            if !wire.passes(&me, &peer) {
                return None;
            }
            let answer = handler.request(&Caller::Node(me.clone()), body).await;
            wire.wait().await;
            wire.passes(&peer, &me).then_some(answer)
        });
        match tokio::time::timeout(timeout, call).await {
            Ok(Ok(Some(answer))) => answer.map_err(PeerError::Refused),
            Ok(Ok(None)) => {
                tokio::time::sleep(timeout).await;
                Err(PeerError::NoAnswer(to.to_string()))
            }
            _ => Err(PeerError::NoAnswer(to.to_string())),
        }
    }

    fn links(&self) -> broadcast::Receiver<LinkChange> {
        let mut links = self.wire.links.lock().unwrap();
        links.entry(self.me.clone()).or_insert_with(|| broadcast::channel(64).0).subscribe()
    }

    fn connected(&self, node: &NodeId) -> bool {
        self.wire.handlers(node).is_some()
    }
}

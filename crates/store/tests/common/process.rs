//! Members as processes: the child's side, and the parent's with doors to each child, kill −9, stop and restart.

use super::tcp::{TcpPeers, listen};
use async_trait::async_trait;
use mainstay_model::{NodeId, Revision};
use mainstay_ports::peer::{Caller, Channel, Handler, Handlers, PeerError, Peers};
use mainstay_ports::store::{CasOutcome, Store, StoreError, Versioned};
use mainstay_ports::store_suite::Fixture;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// In the environment of a child: what it is to be.
pub const SPEC: &str = "STORE_TEST_MEMBER";
/// How long beyond a request's own time-out the parent waits for its answer.
const GRACE: Duration = Duration::from_millis(300);

#[derive(Clone, Serialize, Deserialize)]
pub struct Spec {
    pub me: NodeId,
    pub dir: PathBuf,
    pub addresses: BTreeMap<NodeId, SocketAddr>,
}

/// This process's task as a child, if it is one.
pub fn child_spec() -> Option<Spec> {
    std::env::var(SPEC).ok().map(|text| serde_json::from_str(&text).unwrap())
}

#[derive(Serialize, Deserialize)]
enum Ask {
    Read { key: String, millis: u64 },
    Set { key: String, expected: Option<u64>, value: Vec<u8>, millis: u64 },
    Seen { key: String },
    Leader,
}

#[derive(Serialize, Deserialize)]
enum Told {
    Value(Option<(u64, Vec<u8>)>),
    Done(u64),
    Conflict(Option<(u64, Vec<u8>)>),
    Unknown,
    Unavailable(String),
    Leader(Option<NodeId>),
}

fn flat(versioned: Option<Versioned>) -> Option<(u64, Vec<u8>)> {
    versioned.map(|versioned| (versioned.revision.0, versioned.value))
}

fn full(flat: Option<(u64, Vec<u8>)>) -> Option<Versioned> {
    flat.map(|(revision, value)| Versioned { revision: Revision(revision), value })
}

/// The child's door for its parent.
struct Door {
    store: Arc<dyn Store>,
    leader: watch::Receiver<Option<NodeId>>,
}

#[async_trait]
impl Handler for Door {
    async fn message(&self, _from: &Caller, _body: Vec<u8>) {}

    async fn request(&self, _from: &Caller, body: Vec<u8>) -> Result<Vec<u8>, String> {
        let told = match serde_json::from_slice(&body).unwrap() {
            Ask::Read { key, millis } => match self.store.read(&key, Duration::from_millis(millis)).await {
                Ok(value) => Told::Value(flat(value)),
                Err(StoreError::Unavailable(why)) => Told::Unavailable(why),
            },
            Ask::Set { key, expected, value, millis } => {
                let timeout = Duration::from_millis(millis);
                match self.store.compare_and_set(&key, expected.map(Revision), value, timeout).await {
                    CasOutcome::Done(revision) => Told::Done(revision.0),
                    CasOutcome::Conflict(present) => Told::Conflict(flat(present)),
                    CasOutcome::Unknown => Told::Unknown,
                    CasOutcome::Unavailable(why) => Told::Unavailable(why),
                }
            }
            Ask::Seen { key } => Told::Value(flat(self.store.watch(&key).borrow().clone())),
            Ask::Leader => Told::Leader(self.leader.borrow().clone()),
        };
        Ok(serde_json::to_vec(&told).unwrap())
    }
}

/// A store as a child serves it.
pub struct Candidate {
    pub store: Arc<dyn Store>,
    pub leader: watch::Receiver<Option<NodeId>>,
    pub handlers: Handlers,
}

/// The child's life; it ends by being killed.
pub async fn serve(spec: &Spec, start: impl AsyncFnOnce(Arc<dyn Peers>) -> Candidate) {
    let peers = TcpPeers::dial(spec.me.as_str(), &spec.addresses);
    let mut candidate = start(peers).await;
    let door = Door { store: candidate.store, leader: candidate.leader };
    candidate.handlers.insert(Channel::Ask, Arc::new(door));
    listen(spec.addresses[&spec.me], candidate.handlers).await;
}

/// The parent's door to a child's store.
#[derive(Clone)]
pub struct Remote {
    peers: Arc<TcpPeers>,
    node: NodeId,
    watches: Arc<Mutex<BTreeMap<String, watch::Receiver<Option<Versioned>>>>>,
}

impl Remote {
    async fn ask(&self, ask: &Ask, timeout: Duration) -> Result<Told, PeerError> {
        let body = serde_json::to_vec(ask).unwrap();
        let answer = self.peers.request(&self.node, Channel::Ask, body, timeout + GRACE).await?;
        Ok(serde_json::from_slice(&answer).unwrap())
    }
}

fn millis(timeout: Duration) -> u64 {
    u64::try_from(timeout.as_millis()).unwrap()
}

#[async_trait]
impl Store for Remote {
    async fn read(&self, key: &str, timeout: Duration) -> Result<Option<Versioned>, StoreError> {
        let end = Instant::now() + timeout;
        loop {
            match self.ask(&Ask::Read { key: key.to_owned(), millis: millis(timeout) }, timeout).await {
                Ok(Told::Value(value)) => return Ok(full(value)),
                Err(PeerError::NotConnected(_)) if Instant::now() < end => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                _ => return Err(StoreError::Unavailable("no answer from the child".to_owned())),
            }
        }
    }

    async fn compare_and_set(
        &self,
        key: &str,
        expected: Option<Revision>,
        value: Vec<u8>,
        timeout: Duration,
    ) -> CasOutcome {
        let expected = expected.map(|revision| revision.0);
        let end = Instant::now() + timeout;
        let ask = Ask::Set { key: key.to_owned(), expected, value, millis: millis(timeout) };
        loop {
            return match self.ask(&ask, timeout).await {
                Ok(Told::Done(revision)) => CasOutcome::Done(Revision(revision)),
                Ok(Told::Conflict(present)) => CasOutcome::Conflict(full(present)),
                Ok(Told::Unavailable(why)) => CasOutcome::Unavailable(why),
                Err(PeerError::NotConnected(_)) if Instant::now() < end => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
                Err(PeerError::NotConnected(why)) => CasOutcome::Unavailable(why),
                _ => CasOutcome::Unknown,
            };
        }
    }

    fn watch(&self, key: &str) -> watch::Receiver<Option<Versioned>> {
        let mut watches = self.watches.lock().unwrap();
        if let Some(open) = watches.get(key) {
            return open.clone();
        }
        let (sender, receiver) = watch::channel(None);
        watches.insert(key.to_owned(), receiver.clone());
        tokio::spawn(poll(self.clone(), key.to_owned(), sender));
        receiver
    }
}

/// Shows what the child's own watch shows; a restarted child may begin with less than was seen before.
async fn poll(remote: Remote, key: String, sender: watch::Sender<Option<Versioned>>) {
    loop {
        if let Ok(Told::Value(value)) = remote.ask(&Ask::Seen { key: key.clone() }, GRACE).await {
            let (value, revision) =
                (full(value), |versioned: &Option<Versioned>| versioned.as_ref().map(|it| it.revision));
            sender.send_if_modified(|seen| {
                let newer = revision(&value) > revision(seen);
                if newer {
                    *seen = value;
                }
                newer
            });
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// Ports at an address that no other test uses: members that are started again need theirs, and whoever connects from the common
/// address may be given any free one there.
fn own_ports() -> impl Iterator<Item = (Ipv4Addr, u16)> {
    static USED: AtomicU8 = AtomicU8::new(0);
    let (process, number) = (std::process::id().to_be_bytes(), USED.fetch_add(1, Ordering::Relaxed));
    (7431..).map(move |port| (Ipv4Addr::new(127, 220 + number % 30, process[2], process[3]), port))
}

/// Three children.
pub struct Processes {
    pub nodes: Vec<NodeId>,
    pub children: BTreeMap<NodeId, Child>,
    doors: BTreeMap<NodeId, Arc<Remote>>,
    specs: BTreeMap<NodeId, Spec>,
    spawn: Box<dyn Fn() -> Command + Send + Sync>,
}

impl Processes {
    pub async fn start(dir: &Path, spawn: impl Fn() -> Command + Send + Sync + 'static) -> Self {
        let nodes: Vec<NodeId> = ["a", "b", "c"].map(|name| NodeId::new(name).unwrap()).to_vec();
        let addresses: BTreeMap<NodeId, SocketAddr> =
            nodes.iter().cloned().zip(own_ports().map(SocketAddr::from)).collect();
        let spec =
            |node: &NodeId| Spec { me: node.clone(), dir: dir.join(node.as_str()), addresses: addresses.clone() };
        let specs = nodes.iter().map(|node| (node.clone(), spec(node))).collect();
        let peers = TcpPeers::dial("PARENT", &addresses);
        let remote = |node: &NodeId| Remote { peers: Arc::clone(&peers), node: node.clone(), watches: Arc::default() };
        let doors = nodes.iter().map(|node| (node.clone(), Arc::new(remote(node)))).collect();
        let mut processes = Self { nodes, children: BTreeMap::new(), doors, specs, spawn: Box::new(spawn) };
        for node in processes.nodes.clone() {
            processes.up(&node);
        }
        processes
    }

    pub fn up(&mut self, node: &NodeId) {
        let spec = serde_json::to_string(&self.specs[node]).unwrap();
        let child = (self.spawn)().env(SPEC, spec).stdout(Stdio::null()).spawn().unwrap();
        self.children.insert(node.clone(), child);
    }

    /// SIGKILL, and the proof that it was that which ended the child.
    pub fn kill(&mut self, node: &NodeId) {
        use std::os::unix::process::ExitStatusExt as _;
        let mut child = self.children.remove(node).unwrap();
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9), "{node} was to be ended by SIGKILL");
    }

    pub fn signal(&self, node: &NodeId, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.children[node]);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub fn door(&self, node: &NodeId) -> Arc<dyn Store> {
        Arc::clone(&self.doors[node]) as Arc<dyn Store>
    }

    pub async fn leader_at(&self, node: &NodeId) -> Option<NodeId> {
        match self.doors[node].ask(&Ask::Leader, Duration::ZERO).await {
            Ok(Told::Leader(leader)) => leader,
            _ => None,
        }
    }

    /// The leader among the running members, once one of them names one that runs.
    pub async fn leader(&self) -> NodeId {
        let end = Instant::now() + Duration::from_secs(30);
        while Instant::now() < end {
            for node in self.children.keys() {
                if let Some(leader) = self.leader_at(node).await.filter(|leader| self.children.contains_key(leader)) {
                    return leader;
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("no leader within 30 s");
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in self.children.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[async_trait]
impl Fixture for Processes {
    fn doors(&self) -> Vec<Arc<dyn Store>> {
        self.nodes.iter().map(|node| self.door(node)).collect()
    }

    async fn restart(&mut self) -> bool {
        for node in self.nodes.clone() {
            self.kill(&node);
        }
        for node in self.nodes.clone() {
            self.up(&node);
        }
        true
    }

    async fn cut(&mut self) -> bool {
        for node in &self.nodes[1..] {
            self.signal(node, rustix::process::Signal::STOP);
        }
        true
    }

    async fn heal(&mut self) {
        for node in &self.nodes[1..] {
            self.signal(node, rustix::process::Signal::CONT);
        }
    }
}

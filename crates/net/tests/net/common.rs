//! What the tests share: a cluster's authority, certificates, meshes on free ports, and handlers that write down what comes.

use async_trait::async_trait;
use mainstay_model::{ClusterName, NodeId};
use mainstay_net::{Authority, Credentials, Mesh, Role};
use mainstay_ports::peer::{Caller, Channel, Handler, Handlers, LinkChange, Peers};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::broadcast;

/// Whatever is waited for comes within this, on a busy machine too.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// What is seen at once is seen before the first time-out that would show it as well (five seconds), on a busy machine too.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(4);

pub(crate) fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

pub(crate) fn cluster() -> ClusterName {
    ClusterName::new("orders").unwrap()
}

pub(crate) struct Pki {
    pub(crate) authority: Authority,
    pub(crate) trusted: String,
}

impl Pki {
    pub(crate) fn new() -> Pki {
        let authority = Authority::create(&cluster()).unwrap();
        let trusted = authority.cert_pem().to_owned();
        Pki { authority, trusted }
    }

    pub(crate) fn credentials(&self, role: &Role) -> Arc<Credentials> {
        self.credentials_from(&self.authority, &cluster(), role)
    }

    pub(crate) fn credentials_from(
        &self,
        authority: &Authority,
        cluster: &ClusterName,
        role: &Role,
    ) -> Arc<Credentials> {
        let issued = authority.issue(role, &["127.0.0.1".to_owned()]).unwrap();
        Credentials::from_pem(cluster, &self.trusted, &issued.cert_pem, &issued.key_pem).unwrap()
    }

    pub(crate) fn node(&self, name: &str) -> Arc<Credentials> {
        self.credentials(&Role::Node(node(name)))
    }

    pub(crate) fn proxy(&self) -> Arc<Credentials> {
        self.credentials(&Role::Proxy("p1".to_owned()))
    }

    pub(crate) fn admin(&self) -> Arc<Credentials> {
        self.credentials(&Role::Admin("ann".to_owned()))
    }

    /// A serving mesh on a free port, without peers yet.
    pub(crate) async fn mesh(&self, name: &str, handlers: Handlers) -> (Arc<Mesh>, SocketAddr) {
        let mesh = Mesh::with_credentials(self.node(name), Some(loopback()), BTreeMap::new()).unwrap();
        let address = mesh.serve(handlers, None).await.unwrap().unwrap();
        (mesh, address)
    }
}

pub(crate) fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// Writes down messages; answers a request with its own body, after `delay`.
#[derive(Default)]
pub(crate) struct Echo {
    pub(crate) heard: Mutex<Vec<(Caller, Vec<u8>)>>,
    pub(crate) delay: Duration,
}

#[async_trait]
impl Handler for Echo {
    async fn message(&self, from: &Caller, body: Vec<u8>) {
        self.heard.lock().unwrap().push((from.clone(), body));
    }
    async fn request(&self, _from: &Caller, body: Vec<u8>) -> Result<Vec<u8>, String> {
        tokio::time::sleep(self.delay).await;
        if body == b"no" { Err("I will not".to_owned()) } else { Ok(body) }
    }
}

pub(crate) fn everywhere(handler: &Arc<Echo>) -> Handlers {
    [Channel::Raft, Channel::Store, Channel::Mind, Channel::Route, Channel::Ask]
        .into_iter()
        .map(|channel| (channel, handler.clone() as Arc<dyn Handler>))
        .collect()
}

pub(crate) fn echo() -> (Arc<Echo>, Handlers) {
    let handler = Arc::new(Echo::default());
    let handlers = everywhere(&handler);
    (handler, handlers)
}

/// Waits until `condition` holds, and says how long it took.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < SOON, "{what}: not within {SOON:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    began.elapsed()
}

pub(crate) async fn connected(mesh: &Mesh, to: &str) {
    until(&format!("connected to {to}"), || mesh.connected(&node(to))).await;
}

pub(crate) async fn next_change(links: &mut broadcast::Receiver<LinkChange>) -> (String, bool) {
    let change = tokio::time::timeout(SOON, links.recv()).await.expect("a change of a link").unwrap();
    (change.node.to_string(), change.up)
}

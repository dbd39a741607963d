//! The mesh: this process's connections to its peers, and the port on which others reach it. Implements [`Peers`].
//!
//! One outgoing connection per peer carries this side's messages, its requests and their answers. Idle, it costs nothing but the
//! kernel's keep-alive each second. A process without a port (a proxy) is a mesh whose `listen` is `None`. Renewed certificates are taken up
//! while it runs.

use crate::NetError;
use crate::credentials::Credentials;
use crate::http::HttpServe;
use crate::link::{answer_within, lock};
use crate::listener::Listener;
use crate::peer::Peer;
use async_trait::async_trait;
use mainstay_model::{ClusterName, NodeId};
use mainstay_ports::peer::{Caller, Channel, Handlers, LinkChange, PeerError, Peers};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio::task::AbortHandle;

/// How many changes of links a slow reader may be behind before it misses some.
const LINK_CHANGES_MAX: usize = 256;

/// What a mesh needs to know.
#[derive(Clone, Debug)]
pub struct MeshOptions {
    /// Which cluster.
    pub cluster: ClusterName,
    /// Who this is; the certificate must say the same.
    pub me: Caller,
    /// Where to listen; `None`: nowhere.
    pub listen: Option<SocketAddr>,
    /// The agents to keep connections to (an entry for this node itself is left out).
    pub peers: BTreeMap<NodeId, SocketAddr>,
    /// The cluster authority, PEM.
    pub ca: PathBuf,
    /// The own certificate, PEM.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
}

/// The connections. See the module. Dropping the last handle closes all of them.
pub struct Mesh {
    credentials: Arc<Credentials>,
    me: Caller,
    listen: Option<SocketAddr>,
    links: broadcast::Sender<LinkChange>,
    peers: Arc<PeerTable>,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    serving: bool,
    tasks: Vec<AbortHandle>,
    listener: Option<Arc<Listener>>,
}

/// The peers by name, each with its task once the mesh runs.
#[derive(Default)]
pub(crate) struct PeerTable {
    peers: Mutex<BTreeMap<NodeId, Entry>>,
}

struct Entry {
    peer: Arc<Peer>,
    task: Option<AbortHandle>,
}

impl PeerTable {
    pub(crate) fn get(&self, node: &NodeId) -> Option<Arc<Peer>> {
        lock(&self.peers).get(node).map(|entry| entry.peer.clone())
    }

    fn reopen(&self) {
        lock(&self.peers).values().for_each(|entry| entry.peer.reopen());
    }
}

impl Entry {
    fn start(&mut self) {
        if self.task.is_none() {
            self.task = Some(tokio::spawn(self.peer.clone().run()).abort_handle());
        }
    }

    fn end(self) {
        if let Some(task) = self.task {
            task.abort();
        }
        self.peer.removed();
    }
}

impl Mesh {
    /// Reads the credentials. Nothing runs before [`Mesh::serve`].
    ///
    /// # Errors
    /// When a file can not be read or the certificate names somebody else than `me`.
    pub fn new(options: MeshOptions) -> Result<Arc<Self>, NetError> {
        let MeshOptions { cluster, me, listen, peers, ca, cert, key } = options;
        let credentials = Credentials::load(&cluster, &ca, &cert, &key)?;
        if credentials.identity().role.caller().as_ref() != Some(&me) {
            let identity = credentials.identity();
            return Err(NetError::Certificate(format!("{} names {identity}, not {me:?}", cert.display())));
        }
        Self::with_credentials(credentials, listen, peers)
    }

    /// The same from credentials already read.
    ///
    /// # Errors
    /// When the certificate's role may not call agents.
    pub fn with_credentials(
        credentials: Arc<Credentials>,
        listen: Option<SocketAddr>,
        peers: BTreeMap<NodeId, SocketAddr>,
    ) -> Result<Arc<Self>, NetError> {
        let identity = credentials.identity();
        let me = identity.role.caller();
        let me = me.ok_or_else(|| NetError::Certificate(format!("{identity} may not call agents")))?;
        if credentials.expired() {
            // It goes on trying: the clock may be wrong, and others judge by theirs.
            tracing::error!(%identity, "our own certificate has expired; `mainstay pki issue` and `mainstay join --again` give a new one");
        }
        let (links, _) = broadcast::channel(LINK_CHANGES_MAX);
        let (peer_table, running) = (Arc::default(), Mutex::default());
        let mesh = Arc::new(Self { credentials, me, listen, links, peers: peer_table, running });
        mesh.set_peers(peers);
        Ok(mesh)
    }

    /// Opens the port (if one was given), and begins to connect to the peers. Returns where it listens.
    /// Call it once, inside a tokio runtime, with every handler ready.
    ///
    /// # Errors
    /// When the port can not be opened, or it was called before.
    pub async fn serve(
        &self,
        handlers: Handlers,
        http: Option<Arc<dyn HttpServe>>,
    ) -> Result<Option<SocketAddr>, NetError> {
        let mut bound = None;
        if let Some(address) = self.listen {
            let failed = |source| NetError::Listen { address, source };
            let socket = TcpListener::bind(address).await.map_err(failed)?;
            bound = Some((socket.local_addr().map_err(failed)?, socket));
        }
        {
            let mut running = lock(&self.running);
            if std::mem::replace(&mut running.serving, true) {
                return Err(NetError::Certificate("this mesh serves already".to_owned()));
            }
        }
        for entry in lock(&self.peers.peers).values_mut() {
            entry.start();
        }
        self.start_renewing();
        let Some((address, socket)) = bound else { return Ok(None) };
        let (credentials, peers) = (Arc::clone(&self.credentials), self.peers.clone());
        let (callers, proxies, refusals) = (Mutex::default(), Mutex::default(), Mutex::default());
        let listener = Arc::new(Listener { credentials, handlers, http, peers, callers, proxies, refusals });
        let mut running = lock(&self.running);
        running.tasks.push(tokio::spawn(Arc::clone(&listener).run(socket)).abort_handle());
        running.listener = Some(listener);
        Ok(Some(address))
    }

    /// Takes up renewed files. A process without a port then opens its connections anew, so that the agents see what it shows now; between
    /// agents a closed connection means more, and theirs stay.
    fn start_renewing(&self) {
        let peers = self.listen.is_none().then(|| Arc::clone(&self.peers));
        let taken = move || peers.iter().for_each(|peers| peers.reopen());
        let renewing = tokio::spawn(Arc::clone(&self.credentials).keep_renewed(taken)).abort_handle();
        lock(&self.running).tasks.push(renewing);
    }

    /// Proxies that came within the last day, each with the end of the certificate that it showed last, in seconds since 1970.
    #[must_use]
    pub fn proxies(&self) -> BTreeMap<String, i64> {
        let listener = lock(&self.running).listener.clone();
        listener.map(|listener| listener.proxies()).unwrap_or_default()
    }

    /// From which addresses this node's agents are connected here.
    #[must_use]
    pub fn places(&self, node: &NodeId) -> Vec<IpAddr> {
        let listener = lock(&self.running).listener.clone();
        listener.map(|listener| listener.places(&Caller::Node(node.clone()))).unwrap_or_default()
    }

    /// Replaces the list of peers: connections to those that stay are untouched, others are opened or closed.
    pub fn set_peers(&self, peers: BTreeMap<NodeId, SocketAddr>) {
        let serving = lock(&self.running).serving;
        let mut table = lock(&self.peers.peers);
        let mut old = std::mem::take(&mut *table);
        for (node, address) in peers {
            if self.me == Caller::Node(node.clone()) {
                continue;
            }
            if let Some(entry) = old.remove(&node) {
                if entry.peer.address == address {
                    table.insert(node, entry);
                    continue;
                }
                entry.end();
            }
            let credentials = Arc::clone(&self.credentials);
            let mut entry =
                Entry { peer: Peer::new(node.clone(), address, credentials, self.links.clone()), task: None };
            if serving {
                entry.start();
            }
            table.insert(node, entry);
        }
        old.into_values().for_each(Entry::end);
    }

    /// Who this is.
    #[must_use]
    pub fn me(&self) -> &Caller {
        &self.me
    }

    /// What this process shows and trusts.
    #[must_use]
    pub fn credentials(&self) -> &Arc<Credentials> {
        &self.credentials
    }

    /// Closes the port and every connection; the mesh can not be used again.
    pub fn close(&self) {
        {
            let mut running = lock(&self.running);
            running.tasks.drain(..).for_each(|task| task.abort());
            running.listener = None;
        }
        std::mem::take(&mut *lock(&self.peers.peers)).into_values().for_each(Entry::end);
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.close();
    }
}

#[async_trait]
impl Peers for Mesh {
    fn send(&self, to: &NodeId, channel: Channel, body: Vec<u8>) {
        let outgoing = self.peers.get(to).and_then(|peer| peer.current());
        if !outgoing.is_some_and(|outgoing| outgoing.send(channel, body)) {
            tracing::trace!(peer = %to, ?channel, "message dropped");
        }
    }

    async fn request(
        &self,
        to: &NodeId,
        channel: Channel,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, PeerError> {
        let answer = {
            let outgoing = self.peers.get(to).and_then(|peer| peer.current());
            let outgoing = outgoing.ok_or_else(|| PeerError::NotConnected(to.to_string()))?;
            outgoing.request(to.as_str(), channel, body)?
        };
        answer_within(to.as_str(), timeout, answer).await
    }

    fn links(&self) -> broadcast::Receiver<LinkChange> {
        self.links.subscribe()
    }

    fn connected(&self, node: &NodeId) -> bool {
        self.peers.get(node).is_some_and(|peer| peer.is_up())
    }

    fn failure(&self, node: &NodeId) -> Option<String> {
        self.peers.get(node).and_then(|peer| peer.failure())
    }
}

//! The outgoing connection to one peer: opened, kept, opened again; and the news of its going up and down.
//!
//! The link counts as down when the outgoing connection closes, and also when the last connection *from* the peer closes: then a
//! ping over the outgoing one must be answered before the link counts as up again.

use crate::NetError;
use crate::backoff::Backoff;
use crate::credentials::Credentials;
use crate::identity::Expect;
use crate::link::{ClientStream, Driver, Outgoing, lock, open_frames};
use crate::reason;
use crate::seldom::Seldom;
use crate::tls::ALPN_FRAMES;
use mainstay_model::NodeId;
use mainstay_ports::peer::LinkChange;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::{Instant, sleep, sleep_until};

/// A connection that lived for this long ended for a new reason: try again at once.
const LASTED: Duration = Duration::from_secs(1);
/// A ping must be answered within this.
const PONG_TIMEOUT: Duration = Duration::from_secs(1);

/// One peer.
pub(crate) struct Peer {
    pub(crate) node: NodeId,
    pub(crate) address: SocketAddr,
    credentials: Arc<Credentials>,
    links: broadcast::Sender<LinkChange>,
    state: Mutex<State>,
    /// The last connection from the peer has closed.
    incoming_closed: watch::Sender<()>,
    /// A connection from the peer has come: it is there, no need to wait.
    nudge: Notify,
    /// The present connection is to be replaced by another.
    reopen: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    current: Option<Arc<Outgoing>>,
    up: bool,
    removed: bool,
    /// Why the last attempt to connect, or the last connection, ended.
    failure: Option<String>,
}

impl Peer {
    pub(crate) fn new(
        node: NodeId,
        address: SocketAddr,
        credentials: Arc<Credentials>,
        links: broadcast::Sender<LinkChange>,
    ) -> Arc<Self> {
        let state = Mutex::new(State::default());
        let (incoming_closed, reopen) = (watch::Sender::new(()), watch::Sender::new(()));
        Arc::new(Self { node, address, credentials, links, state, incoming_closed, nudge: Notify::new(), reopen })
    }

    /// The present connection, if there is one.
    pub(crate) fn current(&self) -> Option<Arc<Outgoing>> {
        lock(&self.state).current.clone()
    }

    /// Is the link up?
    pub(crate) fn is_up(&self) -> bool {
        lock(&self.state).up
    }

    /// Why there is no connection; `None` while there is one.
    pub(crate) fn failure(&self) -> Option<String> {
        let state = lock(&self.state);
        if state.current.is_some() { None } else { state.failure.clone() }
    }

    fn failed(&self, why: String) {
        lock(&self.state).failure = Some(why);
    }

    /// A connection from this peer was accepted.
    pub(crate) fn incoming_opened(&self) {
        if !self.is_up() {
            self.nudge.notify_one();
        }
    }

    /// The last connection from this peer has ended.
    pub(crate) fn incoming_closed(&self) {
        self.incoming_closed.send_replace(());
    }

    /// The present connection ends, and another is opened at once.
    pub(crate) fn reopen(&self) {
        self.reopen.send_replace(());
    }

    /// The peer is no longer one of ours.
    pub(crate) fn removed(&self) {
        lock(&self.state).removed = true;
        self.set(None, false);
    }

    fn set_up(&self, up: bool) {
        let current = self.current();
        self.set(current, up);
    }

    fn set(&self, current: Option<Arc<Outgoing>>, up: bool) {
        let mut state = lock(&self.state);
        let up = up && !state.removed;
        state.current = if state.removed { None } else { current };
        if std::mem::replace(&mut state.up, up) != up {
            tracing::info!(peer = %self.node, up, "link");
            // Sent under the lock so that changes are seen in their order; nobody listening is no error.
            let _ = self.links.send(LinkChange::now(self.node.clone(), up));
        }
    }

    /// Connects for ever.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut backoff = Backoff::default();
        let mut said = Seldom::default();
        loop {
            tokio::select! {
                () = sleep(backoff.pause()) => {}
                () = self.nudge.notified() => {}
            }
            match self.open().await {
                Ok((outgoing, driver)) => {
                    let began = Instant::now();
                    let why = self.keep(Arc::new(outgoing), driver).await;
                    self.failed(format!("the connection ended: {}", reason::calling(&why)));
                    self.set(None, false);
                    tracing::debug!(peer = %self.node, %why, "connection ended");
                    if began.elapsed() > LASTED {
                        backoff.reset();
                    }
                }
                Err(error) => {
                    let reason = error.to_string();
                    if said.may_say(&reason) {
                        tracing::info!(peer = %self.node, %reason, "no connection; will go on trying");
                    }
                    self.failed(reason);
                }
            }
        }
    }

    async fn open(&self) -> Result<(Outgoing, Driver<ClientStream>), NetError> {
        let config = self.credentials.client_config(Expect::Node(self.node.clone()), ALPN_FRAMES)?;
        open_frames(self.address, config).await
    }

    async fn keep(&self, outgoing: Arc<Outgoing>, driver: Driver<ClientStream>) -> std::io::Error {
        let mut incoming_closed = self.incoming_closed.subscribe();
        let mut reopen = self.reopen.subscribe();
        self.set(Some(outgoing.clone()), true);
        let mut pong_by: Option<Instant> = None;
        let driving = driver.run();
        tokio::pin!(driving);
        loop {
            let late = async {
                match pong_by {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                why = &mut driving => return why,
                Ok(()) = reopen.changed() => return std::io::Error::other("it is opened anew, with a renewed certificate"),
                Ok(()) = incoming_closed.changed() => {
                    self.set_up(false);
                    outgoing.ping();
                    pong_by.get_or_insert_with(|| Instant::now() + PONG_TIMEOUT);
                }
                () = outgoing.pong() => {
                    pong_by = None;
                    self.set_up(true);
                }
                () = late => return std::io::Error::other("no answer to a ping"),
            }
        }
    }
}

//! Finding a server for a new connection, and waiting for one: bounded in time and number, woken by the route, tried again soon
//! by one on behalf of all while a server refuses, let go at a measured pace.
//! Absent: copying, and any second chance for a connection that already reached a server.

use crate::options::{Live, ProxyOptions};
use crate::pool::TlsShown;
use crate::registry::{Registry, Ticket};
use crate::socket::tune;
use crate::stats::{Gauge, Stats, add};
use crate::table::Held;
use crate::wire::{CANNOT_CONNECT_NOW, Refusal, TOO_MANY_CONNECTIONS};
use mainstay_model::NodeId;
use mainstay_ports::clock::boot_now;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

/// How often a waiting client is looked after.
const GONE_EVERY: Duration = Duration::from_millis(100);
/// Servers whose refusals are remembered.
const REFUSING_MAX: usize = 128;

/// Which address a client came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Write,
    Read,
}

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) options: Arc<Live<ProxyOptions>>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) registry: Registry,
    /// Changes with every change of the view.
    pub(crate) news: watch::Receiver<Held>,
    pub(crate) gate: Gate,
    /// For clients that ask for TLS and are refused; those that are served have it from their server.
    pub(crate) tls: Option<TlsShown>,
}

/// How a search ended.
pub(crate) enum Found {
    Server(TcpStream, Ticket),
    GaveUp(Refusal),
    /// The client went away.
    Left,
}

/// Why an attempt did not connect: when to try again at the latest.
enum Missed {
    /// The route allows none.
    Nothing(Held),
    /// All fit servers refused, or did so a moment ago.
    Refused(Duration),
}

/// Which servers refuse, and the pace of release.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// The next moment at which one connection may try.
    refusing: Mutex<BTreeMap<SocketAddr, Instant>>,
    reopened: Notify,
    next_release: Mutex<Option<Instant>>,
}

impl Gate {
    fn may_try(&self, address: SocketAddr, retry: Duration) -> bool {
        let mut refusing = self.refusing.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match refusing.get_mut(&address) {
            Some(next) if now < *next => false,
            Some(next) => {
                *next = now + retry;
                true
            }
            None => true,
        }
    }

    fn tried(&self, address: SocketAddr, connected: bool, retry: Duration) {
        let mut refusing = self.refusing.lock().unwrap_or_else(PoisonError::into_inner);
        if !connected {
            if refusing.len() >= REFUSING_MAX {
                refusing.clear();
            }
            refusing.insert(address, Instant::now() + retry);
        } else if refusing.remove(&address).is_some() {
            self.reopened.notify_waiters();
        }
    }

    /// The moment at which the next held connection may go.
    fn turn(&self, every: Duration) -> Instant {
        let mut next = self.next_release.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let turn = next.map_or(now, |next| next.max(now));
        *next = Some(turn + every);
        turn
    }
}

/// Finds a server, waiting if need be.
pub(crate) async fn find(shared: &Shared, kind: Kind, client: &TcpStream) -> Found {
    let begun = Instant::now();
    let deadline = begun + shared.options.now().hold;
    let mut news = shared.news.clone();
    let mut held: Option<Gauge<'_>> = None;
    let mut counted = 0;
    loop {
        news.mark_unchanged();
        let mut reopened = std::pin::pin!(shared.gate.reopened.notified());
        reopened.as_mut().enable();
        let (why, again) = match attempt(shared, kind, held.is_some(), deadline).await {
            Ok((server, ticket)) => {
                note_hold(shared, held.is_some(), begun, &mut counted);
                return Found::Server(server, ticket);
            }
            Err(Missed::Nothing(why)) => (why, deadline),
            Err(Missed::Refused(wait)) => (Held::No, deadline.min(Instant::now() + wait)),
        };
        if Instant::now() >= deadline {
            add(&shared.stats.refused_hold);
            return Found::GaveUp(in_vain(why, shared.options.now().hold));
        }
        if held.is_none() {
            held = Gauge::at_most(&shared.stats.held, shared.options.now().max_held);
            if held.is_none() {
                add(&shared.stats.refused_held_full);
                return Found::GaveUp(crowded(why, shared.options.now().max_held));
            }
            add(&shared.stats.held_total);
            shared.stats.changes.held(&mut counted);
        }
        tokio::select! {
            _ = news.changed() => {}
            () = reopened => {}
            () = sleep_until(again) => {}
            () = gone(client) => {
                add(&shared.stats.left_while_held);
                return Found::Left;
            }
        }
    }
}

fn note_hold(shared: &Shared, held: bool, begun: Instant, counted: &mut u64) {
    if held {
        let waited = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        shared.stats.longest_hold_ms.fetch_max(waited, Ordering::Relaxed);
        shared.stats.changes.let_go(waited.saturating_mul(1000), boot_now(), counted);
    }
}

/// Tries each fit server once.
async fn attempt(shared: &Shared, kind: Kind, held: bool, deadline: Instant) -> Result<(TcpStream, Ticket), Missed> {
    let retry = shared.options.now().retry;
    let mut tried: Vec<NodeId> = Vec::new();
    let mut wait = None;
    loop {
        let replica = if kind == Kind::Read { shared.registry.enter_replica(&tried) } else { None };
        let last = replica.is_none();
        let entered = replica.map_or_else(|| shared.registry.enter_primary(boot_now()), Ok);
        let ticket = match (entered, wait) {
            (Ok(ticket), _) => ticket,
            (Err(_), Some(wait)) => return Err(Missed::Refused(wait)),
            (Err(why), None) => return Err(Missed::Nothing(why)),
        };
        let (node, address) = (ticket.place.target().node.clone(), ticket.place.target().address);
        if shared.gate.may_try(address, retry) {
            match connect(shared, ticket, held, deadline).await {
                Some(found) => return Ok(found),
                None => wait = Some(retry),
            }
        } else {
            // Somebody else tries that one; his success wakes all.
            wait = wait.or(Some(retry * 3));
        }
        if last {
            return Err(Missed::Refused(wait.unwrap_or(retry)));
        }
        tried.push(node);
    }
}

/// One attempt; ends at once when the route forbids it meanwhile.
async fn connect(shared: &Shared, mut ticket: Ticket, held: bool, deadline: Instant) -> Option<(TcpStream, Ticket)> {
    let address = ticket.place.target().address;
    let connecting = async {
        if held {
            sleep_until(shared.gate.turn(shared.options.now().release_every)).await;
        }
        let left = deadline.saturating_duration_since(Instant::now()).max(shared.options.now().retry);
        timeout(shared.options.now().connect_timeout.min(left), TcpStream::connect(address)).await
    };
    let connected = tokio::select! {
        biased;
        _ = &mut ticket.cut => return None,
        connected = connecting => connected.ok().and_then(Result::ok),
    };
    shared.gate.tried(address, connected.is_some(), shared.options.now().retry);
    if connected.is_none() {
        add(&shared.stats.connect_failed);
    }
    let server = connected?;
    tune(&server, shared.options.now().peer_timeout);
    Some((server, ticket))
}

/// Ends when the client closed its side. What it sent stays unread, so that only the kernel's flag tells.
async fn gone(client: &TcpStream) {
    loop {
        tokio::time::sleep(GONE_EVERY).await;
        match client.ready(Interest::READABLE).await {
            Ok(ready) if !ready.is_read_closed() => {}
            _ => return,
        }
    }
}

fn in_vain(why: Held, hold: Duration) -> Refusal {
    Refusal {
        code: CANNOT_CONNECT_NOW,
        message: format!("no database server can take this connection now: {why}"),
        detail: format!("The proxy held it for {} ms. Nothing was sent to a server.", hold.as_millis()),
        hint: "Connect again; \"mainstay status\" and \"mainstay why\" tell what the cluster waits for.".to_owned(),
    }
}

fn crowded(why: Held, most: usize) -> Refusal {
    Refusal {
        code: TOO_MANY_CONNECTIONS,
        message: format!("too many connections wait for a database server: {why}"),
        detail: format!("The proxy holds {most} at most. Nothing was sent to a server."),
        hint: "Connect again in a moment; \"mainstay status\" tells the state of the cluster.".to_owned(),
    }
}

/// For a client over the limit of all connections.
pub(crate) fn full(most: usize) -> Refusal {
    Refusal {
        code: TOO_MANY_CONNECTIONS,
        message: format!("the proxy serves {most} connections and takes no more"),
        detail: "Nothing was sent to a server.".to_owned(),
        hint: "Close connections that are not used, or raise the proxy's max_connections.".to_owned(),
    }
}

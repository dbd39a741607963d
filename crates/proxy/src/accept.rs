//! Accepting, limits, and the life of one connection. A fault in one ends that one only.
//! Absent: the search for a server (`hold`) and copying (`relay`).

use crate::hold::{Found, Kind, Shared, find, full};
use crate::recall;
use crate::registry::{Cut, Place};
use crate::relay::{Ended, farewell, relay};
use crate::socket::tune;
use crate::stats::{Gauge, add};
use crate::wire;
use mainstay_ports::clock::boot_now;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tracing::{debug, error, warn};

/// Clients over the limit that are told so at the same time; more are just closed.
pub(crate) const POLITE_MAX: usize = 64;
/// After a failure to accept (no descriptors left, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How many connections are served. The limit may be changed meanwhile: it is asked for at each one that comes, so that those that are over it leave
/// no place behind when they end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Served(Arc<AtomicUsize>);

impl Served {
    fn take(&self, most: usize) -> Option<Serving> {
        let room = |now: usize| (now < most).then(|| now + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).ok().map(|_| Serving(Arc::clone(&self.0)))
    }
}

/// One of them.
struct Serving(Arc<AtomicUsize>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The two limits on connections.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    pub(crate) served: Served,
    pub(crate) polite: Arc<Semaphore>,
}

/// Accepts for ever. Dropping it ends its connections.
pub(crate) async fn accept(shared: Arc<Shared>, kind: Kind, listener: TcpListener, slots: Slots) {
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => admit(&shared, kind, client, &slots, &mut tasks),
                Err(error) => {
                    warn!(%error, "cannot accept a connection; see the limit of open files");
                    add(&shared.stats.accept_failed);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = tasks.join_next() => note(&shared, ended),
        }
    }
}

fn note(shared: &Shared, ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        add(&shared.stats.panicked);
        error!(%error, "a fault in the proxy ended one connection; please report it");
    }
}

fn admit(shared: &Arc<Shared>, kind: Kind, client: TcpStream, slots: &Slots, tasks: &mut JoinSet<()>) {
    add(&shared.stats.accepted);
    let shared = Arc::clone(shared);
    if let Some(slot) = slots.served.take(shared.options.now().max_connections) {
        tasks.spawn(serve(shared, kind, client, slot));
        return;
    }
    add(&shared.stats.refused_full);
    if let Ok(slot) = Arc::clone(&slots.polite).try_acquire_owned() {
        tasks.spawn(turn_away(Arc::clone(&shared), client, full(shared.options.now().max_connections), Some(slot)));
    }
}

async fn turn_away(
    shared: Arc<Shared>,
    mut client: TcpStream,
    refusal: wire::Refusal,
    slot: Option<OwnedSemaphorePermit>,
) {
    shared.stats.changes.error(refusal.code, boot_now());
    if let Err(error) = wire::refuse(&mut client, &refusal, shared.tls.as_ref()).await {
        debug!(%error, "a client did not hear its refusal");
    }
    farewell(&mut client).await;
    drop(slot);
}

async fn serve(shared: Arc<Shared>, kind: Kind, mut client: TcpStream, _slot: Serving) {
    tune(&client, shared.options.now().peer_timeout);
    // The client speaks first. One that does not, a health check or a scan, must not cost a server process.
    let first = tokio::time::timeout(shared.options.now().first_byte, client.peek(&mut [0; 1])).await;
    if !matches!(first, Ok(Ok(1))) {
        add(&shared.stats.silent);
        return;
    }
    if let Some(request) = recall::request(&client).await {
        recall::pass_on(&shared, request).await;
        return farewell(&mut client).await;
    }
    let (mut server, mut ticket) = match find(&shared, kind, &client).await {
        Found::Server(server, ticket) => (server, ticket),
        Found::GaveUp(refusal) => return turn_away(Arc::clone(&shared), client, refusal, None).await,
        Found::Left => return,
    };
    let stats = &shared.stats;
    add(stats.connected(kind));
    if kind == Kind::Read && matches!(ticket.place, Place::Primary(_)) {
        add(&stats.read_on_primary);
    }
    let _open = Gauge::new(stats.open(kind));
    match relay(&mut client, &mut server, &mut ticket.cut, stats).await {
        Ended::Closed => {}
        Ended::Cut(Cut::Epoch) => add(&stats.cut_by_epoch),
        Ended::Cut(Cut::Fence) => add(&stats.cut_by_fence),
        Ended::Cut(Cut::Replica) => add(&stats.cut_replica),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lower_limit_counts_those_that_came_before_and_a_higher_one_lets_more_in() {
        let served = Served::default();
        let (one, two) = (served.take(3), served.take(3));
        assert!(one.is_some() && two.is_some() && served.take(1).is_none());
        drop(one);
        assert!(served.take(1).is_none(), "the other one is still there");
        drop(two);
        let one = served.take(1);
        assert!(one.is_some() && served.take(1).is_none() && served.take(2).is_some());
    }
    use crate::hold::Gate;
    use crate::registry::Registry;
    use crate::table::{Held, RouteTable};
    use mainstay_model::{Moment, Span};
    use std::sync::atomic::Ordering;

    fn shared() -> Arc<Shared> {
        let registry = Registry::new(RouteTable::new(0, Span(0)).view(Moment(1)));
        let news = tokio::sync::watch::channel(Held::Silence).1;
        Arc::new(Shared {
            options: Arc::default(),
            stats: Arc::default(),
            registry,
            news,
            gate: Gate::default(),
            tls: None,
        })
    }

    #[tokio::test]
    async fn a_fault_in_one_connection_is_counted_and_gives_back_what_it_held() {
        let shared = shared();
        let slots = Arc::new(Semaphore::new(1));
        let mut tasks = JoinSet::new();
        let (slot, faulty) = (Arc::clone(&slots).try_acquire_owned().unwrap(), Arc::clone(&shared));
        tasks.spawn(async move {
            let _held = (slot, Gauge::new(&faulty.stats.held));
            panic!("planted");
        });
        let ended = tasks.join_next().await.unwrap();
        note(&shared, ended);
        assert_eq!(shared.stats.panicked.load(Ordering::Relaxed), 1);
        assert_eq!((slots.available_permits(), shared.stats.snapshot().held), (1, 0));
    }
}

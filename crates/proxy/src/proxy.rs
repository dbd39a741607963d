//! The proxy as a whole: binds its addresses, follows the reports, and tells the rest what changed.
//! Absent: where reports come from.

use crate::accept::{POLITE_MAX, Served, Slots, accept};
use crate::control::{Control, Obey};
use crate::feed::TimedReport;
use crate::hold::{Gate, Kind, Shared};
use crate::options::{Live, ProxyOptions};
use crate::pool::TlsShown;
use crate::registry::Registry;
use crate::socket::listen;
use crate::stats::Stats;
use crate::table::{Held, RouteTable, View};
use mainstay_model::Moment;
use mainstay_ports::clock::boot_now;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

/// Why a proxy cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {error}; free it or choose another in [proxy]")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
    /// The system gives the proxy not what it needs.
    #[error("the proxy cannot begin: {error}")]
    System {
        /// What the system said.
        error: std::io::Error,
    },
    /// There is nothing to listen on.
    #[error("the proxy has no address to listen on; name one in [proxy]")]
    NoAddress,
}

/// A proxy that listens and does not serve yet.
pub struct Proxy {
    options: Arc<Live<ProxyOptions>>,
    stats: Arc<Stats>,
    tls: Option<TlsShown>,
    write: Vec<TcpListener>,
    read: Vec<TcpListener>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("write", &self.write).field("read", &self.read).finish_non_exhaustive()
    }
}

impl Proxy {
    /// Listens on all its addresses; clients queue in the kernel until [`Proxy::run`]. Needs a runtime.
    ///
    /// # Errors
    /// When an address cannot be listened on, or there is none.
    pub fn bind(options: ProxyOptions, stats: Arc<Stats>) -> Result<Self, ProxyError> {
        if options.write.is_empty() && options.read.is_empty() {
            return Err(ProxyError::NoAddress);
        }
        let bind_all = |addresses: &[SocketAddr]| -> Result<Vec<TcpListener>, ProxyError> {
            let bind = |address: &SocketAddr| {
                let floating = options.floating == Some(address.ip());
                listen(*address, options.backlog, floating)
                    .map_err(|error| ProxyError::Listen { address: *address, error })
            };
            addresses.iter().map(bind).collect()
        };
        let (write, read) = (bind_all(&options.write)?, bind_all(&options.read)?);
        Ok(Self { options: Arc::new(Live::new(options)), stats, tls: None, write, read })
    }

    /// To change settings while it runs.
    #[must_use]
    pub fn handle(&self) -> Whole {
        Whole { options: Arc::clone(&self.options) }
    }

    /// Clients that ask for TLS and can not be served are shown this certificate and told within TLS. Without, they hear that there is
    /// no TLS, which is not true of those that are served.
    #[must_use]
    pub fn showing(self, tls: TlsShown) -> Self {
        Self { tls: Some(tls), ..self }
    }

    /// The addresses it listens on for writes.
    #[must_use]
    pub fn write_addresses(&self) -> Vec<SocketAddr> {
        self.write.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// The addresses it listens on for reads.
    #[must_use]
    pub fn read_addresses(&self) -> Vec<SocketAddr> {
        self.read.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Serves until `stop` is done; then every connection is closed. If the reports end, it fences itself like one that
    /// hears nothing any more.
    pub async fn run<Stop>(self, reports: mpsc::Receiver<TimedReport>, stop: Stop)
    where
        Stop: Future<Output = ()>,
    {
        let now = self.options.now();
        let view = RouteTable::new(now.max_lag_bytes, now.read_grace).view(boot_now());
        let (news, heard) = watch::channel(view.held);
        let slots = Slots { served: Served::default(), polite: Arc::new(Semaphore::new(POLITE_MAX)) };
        let registry = Registry::new(view);
        let (options, stats, tls, gate) = (self.options, self.stats, self.tls, Gate::default());
        let shared = Arc::new(Shared { options, stats, registry, news: heard, gate, tls });
        let mut listeners = JoinSet::new();
        let write = self.write.into_iter().map(|listener| (Kind::Write, listener));
        for (kind, listener) in write.chain(self.read.into_iter().map(|listener| (Kind::Read, listener))) {
            listeners.spawn(accept(Arc::clone(&shared), kind, listener, slots.clone()));
        }
        let stats = Arc::clone(&shared.stats);
        let control = Control::new(
            Arc::clone(&shared.options),
            stats,
            Relayed { stats: Arc::clone(&shared.stats), news, registry: shared.registry.clone() },
        );
        tokio::select! {
            () = control.follow(reports) => {}
            () = stop => {}
        }
        listeners.shutdown().await;
    }
}

/// What may be changed while it runs.
#[derive(Clone, Debug)]
pub struct Whole {
    options: Arc<Live<ProxyOptions>>,
}

impl Whole {
    /// Changes settings; no connection ends by it. Addresses stay as they are. Fewer connections than are open now: those stay, and nobody takes the
    /// place of one that ends until there are fewer.
    pub fn change(&self, change: impl FnOnce(&mut ProxyOptions)) {
        self.options.change(change);
    }
}

/// Whole connections obey through their registry, and those who wait hear of it.
struct Relayed {
    stats: Arc<Stats>,
    news: watch::Sender<Held>,
    registry: Registry,
}

impl Obey for Relayed {
    fn obey(&self, view: &View, until: Moment) -> usize {
        self.registry.allow(view, until).len()
    }

    fn news(&self, view: &View) {
        self.news.send_replace(view.held);
    }

    fn waiting(&self) -> u64 {
        self.stats.held.load(Ordering::Relaxed)
    }

    fn cuts_are_seen(&self) -> bool {
        true
    }
}

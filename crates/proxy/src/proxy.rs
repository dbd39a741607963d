//! The proxy as a whole: binds its addresses, follows the reports, and tells the rest what changed.
//! Absent: where reports come from.

use crate::accept::{POLITE_MAX, Slots, accept};
use crate::feed::TimedReport;
use crate::hold::{Gate, Kind, Shared};
use crate::options::ProxyOptions;
use crate::registry::Registry;
use crate::socket::listen;
use crate::stats::{Stats, add};
use crate::table::{Hearing, Held, RouteTable, View};
use mainstay_ports::clock::boot_now;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

/// The view is worked out anew at least this often: the runtime's clock stands still while the host is suspended, the
/// validity of a route does not.
const TICK_MAX: Duration = Duration::from_millis(100);
/// Reports taken before the view is worked out.
const REPORTS_PER_TURN: usize = 64;

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
    /// There is nothing to listen on.
    #[error("the proxy has no address to listen on; name one in [proxy]")]
    NoAddress,
}

/// A proxy that listens and does not serve yet.
#[derive(Debug)]
pub struct Proxy {
    options: ProxyOptions,
    stats: Arc<Stats>,
    write: Vec<TcpListener>,
    read: Vec<TcpListener>,
}

/// Binds and serves until `stop` is done. See [`Proxy`].
///
/// # Errors
/// When it cannot listen.
pub async fn run<Stop>(
    options: ProxyOptions,
    reports: mpsc::Receiver<TimedReport>,
    stats: Arc<Stats>,
    stop: Stop,
) -> Result<(), ProxyError>
where
    Stop: Future<Output = ()>,
{
    Proxy::bind(options, stats)?.run(reports, stop).await;
    Ok(())
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
                listen(*address, options.backlog).map_err(|error| ProxyError::Listen { address: *address, error })
            };
            addresses.iter().map(bind).collect()
        };
        let (write, read) = (bind_all(&options.write)?, bind_all(&options.read)?);
        Ok(Self { options, stats, write, read })
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
        let table = RouteTable::new(self.options.max_lag_bytes, self.options.read_grace);
        let view = table.view(boot_now());
        let (news, heard) = watch::channel(view.held);
        let served = Arc::new(Semaphore::new(self.options.max_connections.min(Semaphore::MAX_PERMITS)));
        let slots = Slots { served, polite: Arc::new(Semaphore::new(POLITE_MAX)) };
        let registry = Registry::new(view.clone());
        let shared =
            Arc::new(Shared { options: self.options, stats: self.stats, registry, news: heard, gate: Gate::default() });
        let mut listeners = JoinSet::new();
        let write = self.write.into_iter().map(|listener| (Kind::Write, listener));
        for (kind, listener) in write.chain(self.read.into_iter().map(|listener| (Kind::Read, listener))) {
            listeners.spawn(accept(Arc::clone(&shared), kind, listener, slots.clone()));
        }
        let control = Control { table, view, news, shared };
        tokio::select! {
            () = control.follow(reports) => {}
            () = stop => {}
        }
        listeners.shutdown().await;
    }
}

/// Turns reports and time into what may enter and stay.
struct Control {
    table: RouteTable,
    view: View,
    news: watch::Sender<Held>,
    shared: Arc<Shared>,
}

impl Control {
    async fn follow(mut self, mut reports: mpsc::Receiver<TimedReport>) {
        let mut heard = Vec::with_capacity(REPORTS_PER_TURN);
        let mut fed = true;
        loop {
            self.apply();
            let now = boot_now();
            let change = self.table.next_change(now).map(|moment| moment.since(now).to_std());
            let pause = change.map_or(TICK_MAX, |change| change.min(TICK_MAX));
            tokio::select! {
                count = reports.recv_many(&mut heard, REPORTS_PER_TURN), if fed => {
                    if count == 0 {
                        error!("the feed of routes ended; the proxy will hold all new connections");
                        fed = false;
                    }
                    heard.drain(..).for_each(|report| self.hear(report));
                }
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn hear(&mut self, report: TimedReport) {
        let stats = &self.shared.stats;
        add(&stats.reports);
        let (from, epoch) = (report.report.from.clone(), report.report.route.epoch);
        match self.table.hear(report, boot_now()) {
            Hearing::Taken => {}
            Hearing::Older => add(&stats.reports_older),
            Hearing::Refused => {
                add(&stats.reports_refused);
                warn!(%from, %epoch, "refused a route: an agent may name only its own node as primary");
            }
            Hearing::Conflict => {
                add(&stats.reports_conflict);
                error!(%from, %epoch, "refused a second primary of one epoch; run \"mainstay why\" on both nodes");
            }
        }
    }

    /// First what may stay, then the news to those who wait.
    fn apply(&mut self) {
        let view = self.table.view(boot_now());
        let cuts = self.shared.registry.allow(&view, self.table.until());
        if view == self.view {
            return;
        }
        let write = view.write.as_ref().map(|target| target.node.as_str()).unwrap_or_default();
        let before = (self.view.epoch, self.view.held, &self.view.write);
        if before != (view.epoch, view.held, &view.write) {
            info!(epoch = %view.epoch, primary = write, held = ?view.held, cut = cuts.len(), "the route changed");
        }
        let stats = &self.shared.stats;
        stats.epoch.store(view.epoch.0, Ordering::Relaxed);
        stats.open.store(u64::from(view.write.is_some()), Ordering::Relaxed);
        self.news.send_replace(view.held);
        self.view = view;
    }
}

//! The pooling proxy as a whole: binds its addresses, starts its threads, and tells them what changed.
//! Absent: where reports and logins come from.

use super::hub::{Asked, Hub, Logins, Mail};
use super::options::PoolOptions;
use super::stats::{DESCRIBED, PoolNumbers};
use super::worker::{Parts, Worker};
use crate::control::{Control, Obey};
use crate::feed::TimedReport;
use crate::hold::Kind;
use crate::options::ProxyOptions;
use crate::proxy::ProxyError;
use crate::stats::Stats;
use crate::table::View;
use mainstay_model::outcome::CommitAnswer;
use mainstay_model::{Moment, NodeId};
use mainstay_ports::route_board::Holds;
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::mpsc;

/// A pooling proxy that listens and does not serve yet.
pub struct PooledProxy {
    parts: Parts,
    listeners: Vec<Vec<(Kind, TcpListener)>>,
}

/// What others may ask a running one.
#[derive(Clone)]
pub struct Pooled(Arc<Hub>);

impl Pooled {
    /// Tells it who may log in. Until the first time nobody may.
    pub fn set_logins(&self, logins: Logins) {
        self.0.set_logins(logins);
    }

    /// Changes settings; nobody's connection ends by it. Addresses, threads and certificates stay as they are.
    pub fn change(&self, change: impl FnOnce(&mut ProxyOptions, &mut PoolOptions)) {
        self.0.options.change(|options| self.0.pooling.change(|pooling| change(options, pooling)));
        self.0.wake_all();
    }

    /// Done when somebody at the console has asked for the settings to be read anew. They have to be read after this, and not before.
    pub async fn reload_wanted(&self) {
        self.0.reload.notified().await;
        self.0.reload_begins();
    }

    /// Tells whoever had asked for that at the console by then: they are, or why not.
    pub fn reloaded(&self, outcome: &Result<(), String>) {
        self.0.reloaded(outcome);
    }

    /// Commits that are to be looked up, as soon as there are some. Each gets an answer by [`Self::found`].
    pub async fn commits_in_doubt(&self) -> Vec<Asked> {
        loop {
            let asked = self.0.outcomes();
            if !asked.is_empty() {
                return asked;
            }
            self.0.look_up.notified().await;
        }
    }

    /// What became of one.
    pub fn found(&self, asked: &Asked, answer: CommitAnswer) {
        self.0.post(asked.thread, Mail::Outcome { client: asked.client, serial: asked.serial, answer });
    }

    /// Somebody at the console holds all work back.
    #[must_use]
    pub fn paused(&self) -> bool {
        self.0.paused.load(Ordering::Relaxed)
    }

    /// The primary, as far as is known.
    #[must_use]
    pub fn primary(&self) -> Option<NodeId> {
        self.0.rules().view.keep.as_ref().map(|target| target.node.clone())
    }

    /// What is held for a planned change, once every thread holds it.
    #[must_use]
    pub fn holds(&self) -> Option<Holds> {
        self.0.holds()
    }

    /// The numbers of every pool.
    #[must_use]
    pub fn numbers(&self) -> Vec<PoolNumbers> {
        self.0.numbers()
    }

    /// The numbers in Prometheus' text format.
    #[must_use]
    pub fn prometheus(&self) -> String {
        let mut samples = String::new();
        self.numbers().iter().for_each(|numbers| numbers.prometheus(&mut samples));
        // Samples of one name stand together, below the lines that describe it.
        let mut text = String::with_capacity(2 * samples.len());
        for (name, kind, what) in DESCRIBED {
            let of_name = |line: &&str| {
                let rest = line.strip_prefix("mainstay_pool_").and_then(|line| line.strip_prefix(name));
                rest.is_some_and(|rest| rest.starts_with('{'))
            };
            let mut lines = samples.lines().filter(of_name).peekable();
            if lines.peek().is_some() {
                text.push_str(&format!("# HELP mainstay_pool_{name} {what}\n# TYPE mainstay_pool_{name} {kind}\n"));
                lines.for_each(|line| text.extend([line, "\n"]));
            }
        }
        text
    }
}

impl Obey for Arc<Hub> {
    fn obey(&self, view: &View, until: Moment) -> usize {
        self.set_view(view, until);
        0
    }

    fn news(&self, _view: &View) {}

    fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    fn cuts_are_seen(&self) -> bool {
        // Who works on a server that is cut hears an error, which is counted there.
        false
    }
}

impl PooledProxy {
    /// Listens on all its addresses, with a listener of its own for each thread.
    ///
    /// # Errors
    /// When an address cannot be listened on, or there is none.
    pub fn bind(options: ProxyOptions, pooling: PoolOptions, stats: Arc<Stats>) -> Result<Self, ProxyError> {
        if options.write.is_empty() && options.read.is_empty() {
            return Err(ProxyError::NoAddress);
        }
        let threads = pooling.threads.max(1);
        let mut listeners: Vec<Vec<(Kind, TcpListener)>> = (0..threads).map(|_| Vec::new()).collect();
        let writes = options.write.iter().map(|address| (Kind::Write, *address));
        for (kind, mut address) in writes.chain(options.read.iter().map(|address| (Kind::Read, *address))) {
            for of_thread in &mut listeners {
                let wrong = |error: std::io::Error| ProxyError::Listen { address, error };
                let floating = options.floating == Some(address.ip());
                let listener = listener(address, options.backlog, threads > 1, floating).map_err(wrong)?;
                // Port 0 means any, but the same one for all threads.
                address = listener.local_addr().map_err(wrong)?;
                of_thread.push((kind, listener));
            }
        }
        let system = |error: std::io::Error| ProxyError::System { error };
        let wakes: Result<Vec<OwnedFd>, _> =
            (0..threads).map(|_| eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)).collect();
        let hub = Arc::new(Hub::new(wakes.map_err(|error| system(error.into()))?, options, pooling));
        let mock_secret = Worker::secret().ok_or_else(|| system(std::io::Error::other("no random numbers")))?;
        Ok(Self { parts: Parts { hub, stats, mock_secret }, listeners })
    }

    /// The addresses it listens on for writes, then those for reads.
    #[must_use]
    pub fn addresses(&self) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
        let of = |wanted: Kind| {
            let all = self.listeners.first().into_iter().flatten();
            all.filter(|(kind, _)| *kind == wanted).filter_map(|(_, listener)| listener.local_addr().ok()).collect()
        };
        (of(Kind::Write), of(Kind::Read))
    }

    /// To tell it who may log in, and to ask for its numbers.
    #[must_use]
    pub fn handle(&self) -> Pooled {
        Pooled(Arc::clone(&self.parts.hub))
    }

    /// Serves until `stop` is done; then every connection is closed.
    ///
    /// # Errors
    /// When a thread can not be started.
    pub async fn run<Stop>(self, reports: mpsc::Receiver<TimedReport>, stop: Stop) -> Result<(), ProxyError>
    where
        Stop: Future<Output = ()>,
    {
        let system = |error: std::io::Error| ProxyError::System { error };
        let hub = Arc::clone(&self.parts.hub);
        let stats = Arc::clone(&self.parts.stats);
        let parts = Arc::new(self.parts);
        let mut threads = Vec::new();
        for (index, listeners) in self.listeners.into_iter().enumerate() {
            let parts = Arc::clone(&parts);
            let run = move || match Worker::new(index, &parts, listeners) {
                Ok(worker) => worker.run(),
                Err(error) => tracing::error!(%error, "a thread of the proxy can not begin"),
            };
            threads.push(std::thread::Builder::new().name(format!("pool-{index}")).spawn(run).map_err(system)?);
        }
        let control = Control::new(Arc::clone(&hub.options), stats, Arc::clone(&hub));
        tokio::select! {
            () = control.follow(reports) => {}
            () = stop => {}
        }
        hub.stopping.store(true, Ordering::Relaxed);
        hub.wake_all();
        let joined =
            tokio::task::spawn_blocking(move || threads.into_iter().filter_map(|thread| thread.join().err()).count());
        if joined.await.unwrap_or(1) > 0 {
            return Err(ProxyError::System {
                error: std::io::Error::other("a thread of the proxy died by a fault of its own"),
            });
        }
        Ok(())
    }
}

fn listener(address: SocketAddr, backlog: u32, shared: bool, floating: bool) -> std::io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    if shared {
        sockopt::set_socket_reuseport(&fd, true)?;
    }
    if floating {
        sockopt::set_ip_freebind(&fd, true)?;
    }
    bind(&fd, &address)?;
    listen(&fd, i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(TcpListener::from(fd))
}

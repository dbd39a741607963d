//! A proxy of whole connections, and an agent's words by hand.

use crate::support::{LOCAL, until};
use mainstay_model::route::RouteMember;
use mainstay_model::{Route, RouteState, Term};
use mainstay_ports::clock::boot_now;
use mainstay_proxy::{Proxy, ProxyOptions, RouteReport, Snapshot, Stats, TimedReport};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

pub struct Whole {
    pub write: SocketAddr,
    stats: Arc<Stats>,
    reports: mpsc::Sender<TimedReport>,
    task: JoinHandle<()>,
}

impl Whole {
    pub fn start(options: ProxyOptions) -> Self {
        let stats = Arc::new(Stats::default());
        let proxy = Proxy::bind(options, Arc::clone(&stats)).unwrap();
        let write = proxy.write_addresses()[0];
        assert_ne!(write, LOCAL);
        let (reports, heard) = mpsc::channel(64);
        let task = tokio::spawn(proxy.run(heard, std::future::pending()));
        Self { write, stats, reports, task }
    }

    pub async fn open(&self, server: &RouteMember, epoch: u64) {
        let route = Route {
            epoch: Term(epoch),
            leader: Some(server.clone()),
            replicas: vec![],
            state: RouteState::Open,
            valid_ms: 600_000,
        };
        let report = RouteReport { from: server.node.clone(), route };
        self.reports.send(TimedReport { report, sent: boot_now() }).await.unwrap();
        until("the route is open", async || self.now().epoch == epoch && self.now().open == 1).await;
    }

    pub fn now(&self) -> Snapshot {
        self.stats.snapshot()
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        self.task.abort();
    }
}

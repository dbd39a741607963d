//! A proxy of whole connections, and programs that are run to their end. The tests of drivers share it.

use crate::support::{LOCAL, Postgres, until};
use mainstay_model::{NodeId, Route, RouteState, Term};
use mainstay_ports::clock::boot_now;
use mainstay_proxy::{Proxy, ProxyOptions, RouteReport, Stats, TimedReport};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Nothing that is tried here takes longer, on a busy machine either.
const LONG: Duration = Duration::from_secs(240);
/// A proxy of whole connections.
pub struct Whole {
    pub address: SocketAddr,
    /// Kept, so that the proxy does not hear of an end of its feed.
    _reports: mpsc::Sender<TimedReport>,
    serving: JoinHandle<()>,
}

impl Whole {
    pub async fn start(server: &Postgres) -> Self {
        let stats = Arc::new(Stats::default());
        let proxy = Proxy::bind(ProxyOptions::new(vec![LOCAL], vec![]), Arc::clone(&stats)).unwrap();
        let address = proxy.write_addresses()[0];
        let (reports, heard) = mpsc::channel(1);
        let serving = tokio::spawn(proxy.run(heard, std::future::pending()));
        let (epoch, state) = (Term(1), RouteState::Open);
        let route = Route { epoch, leader: Some(server.member()), replicas: Vec::new(), state, valid_ms: 600_000 };
        let report = RouteReport { from: NodeId::new(&server.name).unwrap(), route };
        reports.send(TimedReport { report, sent: boot_now() }).await.unwrap();
        until("the route is open", async || stats.snapshot().open == 1).await;
        Self { address, _reports: reports, serving }
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Runs it to its end; what it printed. Its errors are part of a failure's text.
pub async fn output(program: &Path, arguments: &[&str], directory: &Path) -> String {
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).env("PGPASSWORD", "secret").env("PGSSLMODE", "disable").current_dir(directory);
    let run = tokio::time::timeout(LONG, command.kill_on_drop(true).output()).await;
    let output = run.expect("it ends in time").unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{} {arguments:?}: {}\n{said}\n{wrong}", program.display(), output.status);
    said.into_owned()
}

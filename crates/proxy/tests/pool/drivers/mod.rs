//! What real drivers and programs see through a proxy of either kind, beside what they see without one.

use crate::support::{Bench, LOCAL, Postgres, bin, until, value};
use mainstay_model::{NodeId, Route, RouteState, Term};
use mainstay_ports::clock::boot_now;
use mainstay_proxy::pool::PoolOptions;
use mainstay_proxy::{Proxy, ProxyOptions, RouteReport, Stats, TimedReport};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Nothing that is tried here takes longer, on a busy machine either.
const LONG: Duration = Duration::from_secs(240);
/// Sessions at once: more than the pool has servers.
const AT_ONCE: usize = 4;

/// A proxy of whole connections.
struct Whole {
    address: SocketAddr,
    /// Kept, so that the proxy does not hear of an end of its feed.
    _reports: mpsc::Sender<TimedReport>,
    serving: JoinHandle<()>,
}

impl Whole {
    async fn start(server: &Postgres) -> Self {
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
async fn output(program: &Path, arguments: &[&str], directory: &Path) -> String {
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).env("PGPASSWORD", "secret").env("PGSSLMODE", "disable").current_dir(directory);
    let run = tokio::time::timeout(LONG, command.kill_on_drop(true).output()).await;
    let output = run.expect("it ends in time").unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{} {arguments:?}: {}\n{said}\n{wrong}", program.display(), output.status);
    said.into_owned()
}

/// TPC-B by one protocol, and whether exactly what was asked for was done.
async fn pgbench(server: &Postgres, proxy: SocketAddr, protocol: &str) {
    let port = proxy.port().to_string();
    let place = ["-h", "127.0.0.1", "-p", &port, "-U", "app", "-n"];
    // A thread for each client: one that prepares blocks its thread, and those of the same thread would keep their servers meanwhile.
    let rounds = [&place[..], &["-M", protocol, "-c", "6", "-j", "6", "-t", "40", "shop"]].concat();
    let said = output(&bin("pgbench"), &rounds, server.dir.path()).await;
    assert!(said.contains("number of transactions actually processed: 240/240"), "{protocol}: {said}");
    assert!(said.contains("number of failed transactions: 0"), "{protocol}: {said}");
}

#[tokio::test]
async fn pgbench_does_exactly_what_it_was_asked_through_both_kinds_of_proxy() {
    let server = Postgres::start("db1").await;
    let bench = Bench::start(&server, PoolOptions { size: 3, ..PoolOptions::default() }).await;
    bench.open(&server, 1, vec![]).await;
    let whole = Whole::start(&server).await;
    let port = bench.write.port().to_string();
    output(
        &bin("pgbench"),
        &["-h", "127.0.0.1", "-p", &port, "-U", "app", "-i", "-q", "-s", "1", "shop"],
        server.dir.path(),
    )
    .await;
    for proxy in [bench.write, whole.address] {
        for protocol in ["simple", "extended", "prepared"] {
            pgbench(&server, proxy, protocol).await;
        }
    }
    let client = bench.app().await;
    let balances = "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history) and \
                    (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history)";
    assert_eq!(value(&client, balances).await, "t");
    assert_eq!(value(&client, "select count(*) from pgbench_history").await, (6 * 240).to_string());
    assert_eq!(bench.pool().pinned, 0, "nothing that it does ties a client to a server");
    drop(whole);
    bench.end().await;
}

/// The same session many times at once through each kind of proxy, beside one without.
async fn compare(program: &str, before: &[&str]) {
    let server = Postgres::start("db1").await;
    let bench = Bench::start(&server, PoolOptions { size: 2 * AT_ONCE, ..PoolOptions::default() }).await;
    bench.open(&server, 1, vec![]).await;
    let whole = Whole::start(&server).await;
    let session = async |address: SocketAddr, name: String| {
        let port = address.port().to_string();
        let arguments = [before, &[&port, &name]].concat();
        output(Path::new(program), &arguments, server.dir.path()).await.replace(&name, "NAME")
    };
    let direct = session(server.address, "direct".to_owned()).await;
    assert!(direct.contains("done"), "{direct}");
    for (kind, address) in [("whole", whole.address), ("pool", bench.write)] {
        let runs = (0..AT_ONCE).map(|number| session(address, format!("{kind}{number}")));
        for said in futures_util::future::join_all(runs).await {
            assert_eq!(said, direct, "through the proxy, kind {kind}, and without");
        }
    }
    until("everybody has left", async || bench.pool().clients == 0).await;
    drop(whole);
    bench.end().await;
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pool/drivers").join(name)
}

#[tokio::test]
#[ignore = "the long suite: needs python3-psycopg2, see CONTRIBUTING.md"]
async fn psycopg_sees_no_difference() {
    compare("/usr/bin/python3", &[script("session.py").to_str().unwrap()]).await;
}

#[tokio::test]
#[ignore = "the long suite: needs a JDK of 11 or later and libpostgresql-jdbc-java, see CONTRIBUTING.md"]
async fn jdbc_sees_no_difference() {
    let session = script("Session.java");
    let driver = "/usr/share/java/postgresql.jar";
    assert!(Path::new(driver).exists(), "{driver} is missing: install libpostgresql-jdbc-java");
    compare("java", &["-Xshare:auto", "-cp", driver, session.to_str().unwrap()]).await;
}

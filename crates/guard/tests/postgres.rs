//! Real servers under load: what a client was told, against the moment when the guard says that nothing is left.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{AT_ONCE, Node, ahead, eventually, server_user, signal, state, stop};
use mainstay_guard::reap_data_dir;
use mainstay_model::{Moment, Span, Term};
use mainstay_ports::clock::boot_now;
use mainstay_ports::process::{ServerProcess as _, StartCommand, StopMode};
use rustix::process::Signal;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_postgres::NoTls;

fn bin(name: &str) -> PathBuf {
    let versions = (15..=18).map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin/{name}")));
    versions.into_iter().find(|path| path.exists()).expect("PostgreSQL's server programs under /usr/lib/postgresql")
}

struct Postgres {
    node: Node,
    /// An address of its own: a port of a shared one could be taken by anybody before the server has it.
    host: String,
}

const PORT: u16 = 5432;

/// When each acknowledgement reached a client.
type Acknowledged = Arc<Mutex<Vec<Moment>>>;

impl Postgres {
    async fn new(primary: Option<(Term, Moment)>) -> Postgres {
        let node = Node::new().await;
        let mut initdb = Command::new(bin("initdb"));
        initdb
            .args(["--no-sync", "--auth=trust", "--username=postgres", "--pgdata"])
            .arg(node.layout.data())
            .current_dir("/");
        if let Some((user, group)) = server_user() {
            initdb.uid(user).gid(group);
        }
        assert!(initdb.output().unwrap().status.success());
        static SERVERS: AtomicU32 = AtomicU32::new(1);
        let (process, number) = (std::process::id(), SERVERS.fetch_add(1, Ordering::Relaxed));
        let host = format!("127.{}.{}.{}", 210 + (process >> 8) % 40, process % 256, number % 250 + 1);
        let server = Postgres { node, host };
        server.node.client.start(server.command(), primary).await.unwrap();
        eventually("it accepts connections", async || server.connect().await.is_some()).await;
        let client = server.connect().await.unwrap();
        client.batch_execute("CREATE TABLE IF NOT EXISTS t (id bigserial PRIMARY KEY)").await.unwrap();
        server
    }

    fn command(&self) -> StartCommand {
        let data = self.node.layout.data();
        let listen = format!("listen_addresses={}", self.host);
        let port = format!("port={PORT}");
        let words = [
            "-D",
            data.to_str().unwrap(),
            "-c",
            &listen,
            "-c",
            &port,
            "-c",
            "unix_socket_directories=",
            "-c",
            "restart_after_crash=off",
            "-c",
            "autovacuum=off",
        ];
        StartCommand {
            program: bin("postgres"),
            arguments: words.iter().map(|word| (*word).to_owned()).collect(),
            environment: vec![("LC_ALL".to_owned(), "C".to_owned())],
            user: server_user(),
            data_dir: data,
            log_file: self.node.layout.server_log(),
        }
    }

    async fn connect(&self) -> Option<tokio_postgres::Client> {
        let text = format!("host={} port={PORT} user=postgres dbname=postgres connect_timeout=5", self.host);
        let (client, connection) = tokio_postgres::connect(&text, NoTls).await.ok()?;
        tokio::spawn(connection);
        Some(client)
    }

    /// Four clients that write without pause, and one whose statements take long; all of them are at it.
    async fn load(&self) -> Acknowledged {
        let acknowledged = Acknowledged::default();
        for statement in
            ["INSERT INTO t DEFAULT VALUES"; 4].into_iter().chain(["INSERT INTO t SELECT FROM pg_sleep(0.4)"])
        {
            let (client, acknowledged) = (self.connect().await.unwrap(), acknowledged.clone());
            tokio::spawn(async move {
                while client.execute(statement, &[]).await.is_ok() {
                    acknowledged.lock().unwrap().push(boot_now());
                }
            });
        }
        eventually("the load is busy", async || acknowledged.lock().unwrap().len() >= 50).await;
        acknowledged
    }

    fn everyone(&self) -> Vec<u32> {
        self.node.at_home()
    }

    async fn nobody_left(&self) -> Moment {
        eventually("nobody is left", async || self.everyone().is_empty()).await;
        boot_now()
    }
}

/// After what has come already was read: clients run in this process too, and are told in their turn.
async fn all_heard() -> Moment {
    tokio::time::sleep(Duration::from_millis(200)).await;
    boot_now()
}

/// Nothing is acknowledged from now on, although the load ran until `busy_until`.
async fn assert_silent(acknowledged: &Acknowledged, busy_until: Moment) {
    let end = all_heard().await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    let times = acknowledged.lock().unwrap().clone();
    let last = times.iter().max().copied().unwrap();
    println!(
        "{} acknowledgements; the last {} after the event, {} before the end",
        times.len(),
        last.since(busy_until),
        end.since(last)
    );
    assert!(
        times.iter().filter(|time| **time + Span(1500) > busy_until).count() > 3,
        "the load was busy when it happened"
    );
    assert!(last <= end, "acknowledged {} after nothing was left", last.since(end));
}

#[tokio::test]
async fn no_acknowledgement_after_the_deadline_has_fenced() {
    let server = Postgres::new(Some((Term(1), ahead(60_000)))).await;
    let acknowledged = server.load().await;
    let deadline = ahead(1000);
    server.node.client.extend(Term(2), deadline).await.unwrap();
    let end = server.nobody_left().await;
    println!("deadline to nothing left: {}", end.since(deadline));
    assert!(end >= deadline && end.since(deadline) < AT_ONCE);
    assert_silent(&acknowledged, deadline).await;
}

#[tokio::test]
async fn no_acknowledgement_after_a_fence_was_answered_even_if_the_postmaster_is_stopped() {
    let server = Postgres::new(Some((Term(1), ahead(60_000)))).await;
    let acknowledged = server.load().await;
    let postmaster = server.node.client.status().await.unwrap().server_pid.unwrap();
    stop(postmaster).await;
    let asked = boot_now();
    server.node.client.fence("stopped".to_owned()).await.unwrap();
    let end = boot_now();
    println!("fence of a stopped server under load took {}", end.since(asked));
    assert!(server.everyone().is_empty() && end.since(asked) < AT_ONCE);
    assert_silent(&acknowledged, asked).await;
}

#[tokio::test]
async fn no_acknowledgement_after_a_killed_postmaster_was_noticed() {
    let server = Postgres::new(Some((Term(1), ahead(60_000)))).await;
    let acknowledged = server.load().await;
    let postmaster = server.node.client.status().await.unwrap().server_pid.unwrap();
    let killed = boot_now();
    signal(postmaster, Signal::KILL);
    server.node.client.exited().await.unwrap();
    println!("exit known after {}", boot_now().since(killed));
    server.node.client.fence("its orphans".to_owned()).await.unwrap();
    let end = boot_now();
    println!("kill to nothing left: {}", end.since(killed));
    assert!(server.everyone().is_empty() && end.since(killed) < AT_ONCE);
    assert_silent(&acknowledged, killed).await;
}

#[tokio::test]
async fn a_killed_guard_stops_the_server_and_a_stopped_backend_is_reaped() {
    let mut server = Postgres::new(Some((Term(1), ahead(60_000)))).await;
    let acknowledged = server.load().await;
    let (postmaster, guard) = (server.node.client.status().await.unwrap().server_pid.unwrap(), server.node.guard.id());
    let backend = server.everyone().into_iter().max().unwrap();
    assert_ne!(backend, postmaster);
    stop(backend).await;
    let killed = boot_now();
    signal(guard, Signal::KILL);
    eventually("the guard is dead", async || state(guard) == Some('Z')).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(server.everyone().contains(&backend), "SIGQUIT does not reach a stopped process");
    assert!(reap_data_dir(&server.node.layout.data()).unwrap() >= 1);
    server.nobody_left().await;
    assert_silent(&acknowledged, killed).await;
    // And the data survive: the next guard starts it again.
    server.node.replace_guard().await;
    server.node.client.start(server.command(), None).await.unwrap();
    eventually("it recovers", async || server.connect().await.is_some()).await;
    let rows: i64 = server.connect().await.unwrap().query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0);
    assert!(rows >= i64::try_from(acknowledged.lock().unwrap().len()).unwrap());
}

#[tokio::test]
async fn a_killed_guard_alone_is_enough_for_a_healthy_server() {
    let server = Postgres::new(Some((Term(1), ahead(60_000)))).await;
    let acknowledged = server.load().await;
    let killed = boot_now();
    signal(server.node.guard.id(), Signal::KILL);
    let end = server.nobody_left().await;
    println!("guard killed to nothing left: {}", end.since(killed));
    assert!(end.since(killed) < AT_ONCE);
    assert_silent(&acknowledged, killed).await;
}

#[tokio::test]
async fn a_fast_stop_is_clean_and_the_next_start_is_a_server_without_deadline() {
    let server = Postgres::new(Some((Term(1), ahead(60_000)))).await;
    server.node.client.stop(StopMode::Fast).await.unwrap();
    server.node.client.exited().await.unwrap();
    eventually("the guard knows", async || server.node.client.status().await.unwrap().server_pid.is_none()).await;
    assert_eq!(server.node.client.status().await.unwrap().last_exit.unwrap(), "exit status 0");
    let begun = boot_now();
    server.node.client.start(server.command(), None).await.unwrap();
    eventually("it accepts connections", async || server.connect().await.is_some()).await;
    println!("start to first connection: {}", boot_now().since(begun));
    assert_eq!(server.node.client.status().await.unwrap().deadline, None);
    server.node.client.shutdown(Span(10_000)).await.unwrap();
    assert!(server.everyone().is_empty());
    let log = std::fs::read_to_string(server.node.layout.server_log()).unwrap();
    assert!(log.contains("database system is shut down"));
}

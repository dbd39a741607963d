//! A pool in front of one PostgreSQL server, without a cluster: for measuring (`cargo xtask bench proxy`) and for looking at it.
//!
//! `pool LISTEN SERVER SOCKET_DIR THREADS SIZE [unix]`: who may log in is read through the Unix socket as the superuser `postgres`.

use mainstay_model::route::RouteMember;
use mainstay_model::{NodeId, Route, RouteState, SystemId, Term};
use mainstay_ports::clock::boot_now;
use mainstay_proxy::pool::{Login, Logins, PoolOptions, PooledProxy};
use mainstay_proxy::{ProxyOptions, RouteReport, Stats, TimedReport};
use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::{NoTls, SimpleQueryMessage};

/// How often the route is told anew.
const SAY_EVERY: Duration = Duration::from_secs(10);

async fn logins(directory: &str, port: u16) -> Result<Logins, Box<dyn Error>> {
    let mut config = tokio_postgres::Config::new();
    let (client, connection) =
        config.host_path(directory).port(port).user("postgres").dbname("postgres").connect(NoTls).await?;
    tokio::spawn(connection);
    let sql = "select rolname, rolpassword, (select system_identifier from pg_control_system()) from pg_authid \
               where rolcanlogin and rolpassword is not null";
    let mut logins = Logins::default();
    for message in client.simple_query(sql).await? {
        let SimpleQueryMessage::Row(row) = message else { continue };
        let text = |at: usize| row.get(at).unwrap_or_default().to_owned();
        logins.system = text(2).parse().ok().map(SystemId);
        logins.roles.push(Login { name: text(0), verifier: text(1), superuser: false, monitor: false });
    }
    Ok(logins)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [listen, server, directory, threads, size, unix @ ..] = &words[..] else {
        return Err("pool LISTEN SERVER SOCKET_DIR THREADS SIZE [unix]".into());
    };
    let (listen, server): (SocketAddr, SocketAddr) = (listen.parse()?, server.parse()?);
    let node = NodeId::new("db1").map_err(|error| error.to_string())?;
    let socket = PathBuf::from(directory).join(format!(".s.PGSQL.{}", server.port()));
    let pooling = PoolOptions {
        threads: threads.parse()?,
        size: size.parse()?,
        local: (!unix.is_empty()).then(|| (node.clone(), socket)),
        ..PoolOptions::default()
    };
    let options = ProxyOptions { max_connections: 100_000, ..ProxyOptions::new(vec![listen], Vec::new()) };
    let proxy = PooledProxy::bind(options, pooling, Arc::new(Stats::default()))?;
    proxy.handle().set_logins(logins(directory, server.port()).await?);
    let (reports, heard) = tokio::sync::mpsc::channel(8);
    tokio::spawn(async move {
        loop {
            let leader = RouteMember { node: node.clone(), address: server, lag_bytes: Some(0) };
            let (epoch, state) = (Term(1), RouteState::Open);
            let route = Route { epoch, leader: Some(leader), replicas: Vec::new(), state, valid_ms: 600_000 };
            let report = RouteReport { from: node.clone(), route };
            if reports.send(TimedReport { report, sent: boot_now() }).await.is_err() {
                return;
            }
            tokio::time::sleep(SAY_EVERY).await;
        }
    });
    proxy.run(heard, std::future::pending()).await?;
    Ok(())
}

//! What real programs do through a proxy of either kind. Drivers: `tests/drivers_long.rs`.

mod whole;

use crate::support::{Bench, Postgres, bin, value};
use mainstay_proxy::pool::PoolOptions;
use std::net::SocketAddr;
use whole::{Whole, output};

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

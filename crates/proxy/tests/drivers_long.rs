//! What real drivers see through a proxy of either kind, beside what they see without one. The long suite: needs `python3-psycopg2`, a JDK of
//! 11 or later and `libpostgresql-jdbc-java`, and fails without; CONTRIBUTING.md says when.

// A helper that cannot go on fails its test; this file uses a part of them.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

#[path = "pool/support.rs"]
mod support;
#[path = "pool/drivers/whole.rs"]
mod whole;

use mainstay_proxy::pool::PoolOptions;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use support::{Bench, Postgres, until};
use whole::{Whole, output};

/// Sessions at once.
const AT_ONCE: usize = 4;

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
async fn psycopg_sees_no_difference() {
    compare("/usr/bin/python3", &[script("session.py").to_str().unwrap()]).await;
}

#[tokio::test]
async fn jdbc_sees_no_difference() {
    let session = script("Session.java");
    let driver = "/usr/share/java/postgresql.jar";
    assert!(Path::new(driver).exists(), "{driver} is missing: install libpostgresql-jdbc-java");
    compare("java", &["-Xshare:auto", "-cp", driver, session.to_str().unwrap()]).await;
}

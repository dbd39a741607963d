//! Bytes that no client of good will sends, and clients that leave in the middle.

use crate::support::{Bench, Postgres, SOON, until, value};
use mainstay_proxy::pool::PoolOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn answer(bench: &Bench, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(bench.write).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut heard = Vec::new();
    // Refused at once: either told, or just closed.
    let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut heard)).await.expect("still open");
    heard
}

#[tokio::test]
async fn nobody_gets_in_or_holds_anything_by_strange_bytes() {
    let server = Postgres::start("db1").await;
    let bench = Bench::start(&server, PoolOptions { size: 1, reserve: 0, ..PoolOptions::default() }).await;
    bench.open(&server, 1, vec![]).await;
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../wire/fuzz/corpus/startup");
    let refused = ["ssl-then-clear-bytes", "password-before-startup", "huge-length", "cancel", "cancel-long"];
    for name in refused {
        let heard = answer(&bench, &std::fs::read(corpus.join(name)).unwrap()).await;
        assert!(heard.is_empty() || heard[0] == b'E', "{name}: {heard:?}");
    }
    // The whole start of a session, and then a query instead of a proof.
    let mut early = std::fs::read(corpus.join("session")).unwrap();
    early.extend(b"Q\0\0\0\x0dselect 1\0");
    let heard = answer(&bench, &early).await;
    assert!(heard.starts_with(b"R") && !heard.contains(&b'Z'), "{heard:?}");
    // A client that leaves in the middle of a message, of a transaction, and while it waits.
    let good = bench.app().await;
    for _ in 0..5 {
        let (a, b) = (bench.app().await, bench.app().await);
        a.batch_execute("begin").await.unwrap();
        let waiting = tokio::spawn(async move { b.batch_execute("select 1").await });
        until("it waits", async || bench.pool().waiting == 1).await;
        waiting.abort();
        drop(a);
        until("nobody waits", async || bench.pool().waiting == 0 || bench.pool().busy == 0).await;
    }
    assert_eq!(value(&good, "select 1").await, "1");
    until("only one client is left", async || bench.pool().clients == 1).await;
    bench.end().await;
}

//! Limits, hostile clients, and what is copied.

mod support;

use mainstay_proxy::ProxyOptions;
use std::time::Duration;
use support::{AT_ONCE, Bench, Client, SOON, Server, options, pattern, ssl_request, startup, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

#[tokio::test]
async fn bulk_arrives_whole_both_ways_and_half_closing_works() {
    let (bench, server) = (Bench::start(options()), Server::start("db1").await);
    bench.open(&server, 1, vec![]).await;
    let mut client = Client::connect(bench.write).await;
    client.send(b"flood 20000000\n").await;
    let mut got = vec![0; 20_000_000];
    client.0.read_exact(&mut got).await.unwrap();
    assert!(got == pattern(20_000_000));
    client.send(b"eat\n").await;
    client.send(&pattern(20_000_000)).await;
    client.0.shutdown().await.unwrap();
    assert_eq!(client.line().await, "20000000 true\n");
    assert!(client.end().await.is_empty());
    let now = bench.now();
    assert!(now.bytes_to_client >= 20_000_000 && now.bytes_to_server >= 20_000_000);
    until("closed", async || bench.now().write_open == 0).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_its_server_and_nobody_else() {
    let (bench, server) = (Bench::start(options()), Server::start("db1").await);
    bench.open(&server, 1, vec![]).await;
    let mut slow = Vec::new();
    for _ in 0..4 {
        let mut client = Client::connect(bench.write).await;
        client.send(b"flood 64000000\n").await;
        slow.push(client);
    }
    let mut before = u64::MAX;
    until("the flood stands still", async || {
        let last = std::mem::replace(&mut before, bench.now().bytes_to_client);
        tokio::time::sleep(ms(150)).await;
        last == before && before > 0
    })
    .await;
    assert!(before < 128_000_000, "the proxy took {before} bytes that nobody read");
    let begun = Instant::now();
    let mut client = Client::hello(bench.write).await;
    assert_eq!(client.line().await, "db1:hello\n");
    assert!(begun.elapsed() < AT_ONCE);
    drop(slow);
    until("slots are free again", async || bench.now().write_open == 1).await;
}

#[tokio::test]
async fn silent_clients_never_reach_a_server() {
    let bench = Bench::start(ProxyOptions { first_byte: ms(200), ..options() });
    let server = Server::start("db1").await;
    bench.open(&server, 1, vec![]).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(Client::connect(bench.write).await);
    }
    drop(Client::connect(bench.write).await);
    for client in &mut silent {
        assert!(client.end().await.is_empty());
    }
    until("counted", async || bench.now().silent == 51).await;
    assert_eq!(server.accepted(), 0);
}

#[tokio::test]
async fn one_connection_too_many_is_told_so_and_slots_come_back() {
    let bench = Bench::start(ProxyOptions { max_connections: 3, ..options() });
    let server = Server::start("db1").await;
    bench.open(&server, 1, vec![]).await;
    let mut served = Vec::new();
    for _ in 0..3 {
        let mut client = Client::hello(bench.write).await;
        assert_eq!(client.line().await, "db1:hello\n");
        served.push(client);
    }
    let mut extra = Client::connect(bench.read).await;
    extra.send(&ssl_request()).await;
    extra.send(&startup()).await;
    let answer = extra.end().await;
    assert!(answer.starts_with(b"NE") && String::from_utf8_lossy(&answer).contains("\0C53300\0"));
    // A crowd that says nothing does not keep the proxy from serving.
    let mut crowd = Vec::new();
    for _ in 0..200 {
        crowd.push(Client::connect(bench.write).await);
    }
    until("turned away", async || bench.now().refused_full == 201).await;
    served.pop();
    until("a slot is free", async || bench.now().write_open == 2).await;
    let mut client = Client::hello(bench.write).await;
    assert_eq!(client.line().await, "db1:hello\n");
}

#[tokio::test]
async fn the_held_are_bounded_and_those_who_leave_make_room() {
    let bench = Bench::start(ProxyOptions { max_held: 2, ..options() });
    let (first, _second) = (Client::hello(bench.write).await, Client::hello(bench.write).await);
    until("held", async || bench.now().held == 2).await;
    let mut third = Client::connect(bench.write).await;
    third.send(&startup()).await;
    let answer = third.end().await;
    assert!(String::from_utf8_lossy(&answer).contains("\0C53300\0"));
    assert_eq!(bench.now().refused_held_full, 1);
    drop(first);
    until("noticed", async || bench.now().left_while_held == 1 && bench.now().held == 1).await;
    let mut fourth = Client::connect(bench.write).await;
    fourth.send(&startup()).await;
    until("held again", async || bench.now().held == 2).await;
}

#[tokio::test]
async fn garbage_and_dawdling_in_a_refusal_end_without_an_answer() {
    let bench = Bench::start(ProxyOptions { hold: ms(50), ..options() });
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 3000], &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]] {
        let mut client = Client::connect(bench.write).await;
        client.send(garbage).await;
        assert!(client.end().await.is_empty());
    }
    let mut dawdler = Client::connect(bench.write).await;
    dawdler.send(&startup()[..9]).await;
    let begun = Instant::now();
    assert!(dawdler.end().await.is_empty());
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert_eq!(bench.now().panicked, 0);
}

#[tokio::test]
async fn a_server_s_last_words_arrive_though_the_client_still_talks() {
    let (bench, server) = (Bench::start(options()), Server::start("db1").await);
    bench.open(&server, 1, vec![]).await;
    let mut client = Client::hello(bench.write).await;
    assert_eq!(client.line().await, "db1:hello\n");
    client.send(b"last words\n").await;
    until("answered", async || bench.now().bytes_to_client >= 25).await;
    server.kill().await;
    let _ = client.0.get_mut().write_all(b"more\nmore\n").await;
    assert_eq!(client.end().await, b"db1:last words\n");
    until("closed", async || bench.now().write_open == 0).await;
}

#[tokio::test]
async fn a_server_that_says_goodbye_is_heard_by_a_client_that_is_still_sending() {
    let (bench, server) = (Bench::start(options()), Server::start("db1").await);
    bench.open(&server, 1, vec![]).await;
    for _ in 0..50 {
        let mut client = Client::connect(bench.write).await;
        client.send(&[&b"bye\n"[..], &b"too late\n".repeat(20_000)].concat()).await;
        let mut rest = Vec::new();
        client.0.read_to_end(&mut rest).await.expect("a clean end, no reset");
        assert_eq!(rest, b"bye\n");
    }
}

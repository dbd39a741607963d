//! Connections follow the route: hold and release, cut, fence, drain, reads.

mod support;

use mainstay_model::{NodeId, RouteState, Span};
use mainstay_ports::clock::boot_now;
use mainstay_ports::route_board::{RouteBoard, RouteRequest};
use mainstay_proxy::{ProxyOptions, Standing, feed};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::{AT_ONCE, Bench, Client, SOON, Server, options, ssl_request, startup, until};
use tokio::time::Instant;

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

#[tokio::test]
async fn a_new_connection_waits_for_a_primary_and_loses_nothing() {
    let (bench, server) = (Bench::start(options()), Server::start("db1").await);
    let mut client = Client::hello(bench.write).await;
    until("held", async || bench.now().held == 1).await;
    assert!(client.is_open_after(ms(50)).await);
    let begun = Instant::now();
    bench.open(&server, 1, vec![]).await;
    assert_eq!(client.line().await, "db1:hello\n");
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    let now = bench.now();
    assert_eq!((now.held, now.held_total, now.write_open), (0, 1, 1));
    assert!(now.longest_hold_ms >= 50);
}

#[tokio::test]
async fn a_hold_in_vain_ends_with_an_error_that_says_why() {
    let bench = Bench::start(ProxyOptions { hold: ms(150), ..options() });
    for address in [bench.write, bench.read] {
        let mut client = Client::connect(address).await;
        let begun = Instant::now();
        client.send(&[ssl_request(), startup()].concat()).await;
        let answer = client.end().await;
        assert!(begun.elapsed() >= ms(150));
        assert_eq!(&answer[..2], b"NE");
        let text = String::from_utf8_lossy(&answer);
        assert!(text.contains("SFATAL\0") && text.contains("\0C57P03\0"), "{text}");
        assert!(text.contains("no agent has told the route yet"), "{text}");
    }
    assert_eq!((bench.now().refused_hold, bench.now().held), (2, 0));
}

#[tokio::test]
async fn a_refusing_server_is_tried_again_soon_and_without_a_new_route() {
    let (bench, server) = (Bench::start(options()), Server::start("db1").await);
    bench.open(&server, 1, vec![]).await;
    let address = server.kill().await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(Client::hello(bench.write).await);
    }
    until("held", async || bench.now().held == 5).await;
    until("it is tried", async || bench.now().connect_failed >= 5).await;
    let (begun, before) = (Instant::now(), bench.now().connect_failed);
    tokio::time::sleep(ms(300)).await;
    let most = 60 * (1 + begun.elapsed().as_millis() as u64 / 300);
    let tries = bench.now().connect_failed - before;
    assert!(tries < most, "one tries on behalf of all: {tries}");
    let _server = Server::start_at("db1", address).await;
    let begun = Instant::now();
    for client in &mut clients {
        assert_eq!(client.line().await, "db1:hello\n");
    }
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_dead_server_s_clients_go_to_the_next_one_at_once() {
    let (bench, dead, next) = (Bench::start(options()), Server::start("db1").await, Server::start("db2").await);
    bench.open(&dead, 1, vec![]).await;
    dead.kill().await;
    let mut client = Client::hello(bench.write).await;
    until("held", async || bench.now().held == 1).await;
    let begun = Instant::now();
    bench.open(&next, 2, vec![]).await;
    assert_eq!(client.line().await, "db2:hello\n");
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_higher_epoch_cuts_both_sides_at_once() {
    let (bench, old, new) = (Bench::start(options()), Server::start("db1").await, Server::start("db2").await);
    bench.open(&old, 1, vec![]).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = Client::hello(bench.write).await;
        assert_eq!(client.line().await, "db1:hello\n");
        clients.push(client);
    }
    let begun = Instant::now();
    bench.say(&new, 2, RouteState::Closed, 0, vec![]).await;
    for client in &mut clients {
        assert!(client.end().await.is_empty());
    }
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    until("the old server's side is cut", async || old.open() == 0).await;
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    assert_eq!(bench.now().cut_by_epoch, 20);
    assert_eq!(old.resets.load(Ordering::SeqCst), 20, "nothing under way may reach the old server");
    bench.say(&old, 1, RouteState::Open, 60_000, vec![]).await;
    let mut late = Client::hello(bench.write).await;
    assert!(late.is_open_after(ms(100)).await, "the old leader's word counts no more");
    assert_eq!(old.accepted(), 20);
    bench.open(&new, 2, vec![]).await;
    assert_eq!(late.line().await, "db2:hello\n");
}

#[tokio::test]
async fn a_stale_view_fences() {
    let (bench, server) = (Bench::start(options()), Server::start("db1").await);
    let begun = Instant::now();
    bench.say(&server, 1, RouteState::Open, 2000, vec![]).await;
    let mut client = Client::hello(bench.write).await;
    assert_eq!(client.line().await, "db1:hello\n");
    assert!(client.is_open_after(ms(1000)).await);
    assert!(client.end().await.is_empty());
    let cut = begun.elapsed();
    assert!(cut >= ms(1950) && cut < ms(2000) + AT_ONCE, "{cut:?}");
    let mut late = Client::hello(bench.write).await;
    assert!(late.is_open_after(ms(50)).await);
    until("the server's side is cut", async || server.open() == 0).await;
    until("held", async || bench.now().held == 1).await;
    assert_eq!((bench.now().cut_by_fence, bench.now().open), (1, 0));
    bench.open(&server, 1, vec![]).await;
    assert_eq!(late.line().await, "db1:hello\n");
}

#[tokio::test]
async fn a_renewed_route_never_cuts() {
    let (bench, server) = (Bench::start(options()), Server::start("db1").await);
    bench.say(&server, 1, RouteState::Open, 2000, vec![]).await;
    let mut client = Client::hello(bench.write).await;
    assert_eq!(client.line().await, "db1:hello\n");
    for round in 0..10 {
        tokio::time::sleep(ms(300)).await;
        bench.say(&server, 1, RouteState::Open, 2000, vec![]).await;
        assert_eq!(client.ask(&round.to_string()).await, format!("db1:{round}\n"));
    }
}

#[tokio::test]
async fn draining_holds_the_new_and_lets_the_old_finish() {
    let (bench, old, new) = (Bench::start(options()), Server::start("db1").await, Server::start("db2").await);
    bench.open(&old, 1, vec![]).await;
    let mut worker = Client::hello(bench.write).await;
    assert_eq!(worker.line().await, "db1:hello\n");
    bench.say(&old, 1, RouteState::Draining, 60_000, vec![]).await;
    until("draining", async || bench.now().open == 0).await;
    let mut late = Client::hello(bench.write).await;
    assert!(late.is_open_after(ms(80)).await);
    assert_eq!(worker.ask("commit").await, "db1:commit\n");
    bench.open(&new, 2, vec![]).await;
    assert_eq!(late.line().await, "db2:hello\n");
    assert!(worker.end().await.is_empty());
    assert_eq!(old.accepted(), 1);
}

#[tokio::test]
async fn held_connections_are_let_go_at_a_pace() {
    let bench = Bench::start(ProxyOptions { release_every: ms(2), ..options() });
    let server = Server::start("db1").await;
    let mut clients = Vec::new();
    for _ in 0..100 {
        clients.push(Client::hello(bench.write).await);
    }
    until("held", async || bench.now().held == 100).await;
    bench.open(&server, 1, vec![]).await;
    for client in &mut clients {
        assert_eq!(client.line().await, "db1:hello\n");
    }
    let at = server.accepted.lock().unwrap().clone();
    let span = at[99].duration_since(at[0]);
    assert!(span >= ms(180), "{span:?}");
}

#[tokio::test]
async fn reads_spread_over_fit_replicas_and_fall_back_to_the_primary() {
    let bench = Bench::start(options());
    let (primary, a, b, behind) = (
        Server::start("db1").await,
        Server::start("db2").await,
        Server::start("db3").await,
        Server::start("db4").await,
    );
    bench.open(&primary, 1, vec![a.member(0), b.member(1000), behind.member(1001)]).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = Client::hello(bench.read).await;
        let name = client.line().await;
        clients.push((name, client));
    }
    assert_eq!((primary.open(), a.open(), b.open(), behind.open()), (0, 10, 10, 0));
    // The least loaded one gets the next; one that is down is passed over.
    clients.retain(|(name, _)| name == "db2:hello\n");
    until("half have left", async || bench.now().read_open == 10).await;
    for _ in 0..10 {
        let mut client = Client::hello(bench.read).await;
        assert_eq!(client.line().await, "db3:hello\n");
        clients.push((String::new(), client));
    }
    let b_member = b.member(0);
    b.kill().await;
    for _ in 0..3 {
        let mut client = Client::hello(bench.read).await;
        assert_eq!(client.line().await, "db2:hello\n");
        clients.push((String::new(), client));
    }
    bench.say(&primary, 1, RouteState::Open, 60_000, vec![behind.member(5000), b_member]).await;
    until("passed on", async || bench.reports.capacity() == 64).await;
    let mut client = Client::hello(bench.read).await;
    assert_eq!(client.line().await, "db1:hello\n");
    assert_eq!(bench.now().read_on_primary, 1);
}

#[tokio::test]
async fn readers_survive_a_take_over_unless_their_server_changes_role() {
    let bench = Bench::start(ProxyOptions { read_grace: Span(3000), ..options() });
    let (old, a, b) = (Server::start("db1").await, Server::start("db2").await, Server::start("db3").await);
    bench.open(&old, 1, vec![a.member(0), b.member(0)]).await;
    let (mut first, mut second) = (Client::hello(bench.read).await, Client::hello(bench.read).await);
    let (one, two) = (first.line().await, second.line().await);
    assert_ne!(one, two);
    if one.starts_with("db3") {
        std::mem::swap(&mut first, &mut second);
    }
    bench.say(&a, 2, RouteState::Closed, 0, vec![]).await;
    assert_eq!(first.ask("still").await, "db2:still\n", "without a primary reads go on");
    bench.open(&a, 2, vec![]).await;
    assert!(first.end().await.is_empty(), "its server became the primary");
    assert_eq!(second.ask("still").await, "db3:still\n");
    let begun = Instant::now();
    assert!(second.end().await.is_empty(), "its server never followed");
    assert!(begun.elapsed() > ms(1000), "{:?}", begun.elapsed());
    assert_eq!(bench.now().cut_replica, 2);
}

#[tokio::test]
async fn a_read_on_the_primary_is_fenced_like_a_write() {
    let (bench, server) = (Bench::start(options()), Server::start("db1").await);
    bench.open(&server, 1, vec![]).await;
    let mut client = Client::hello(bench.read).await;
    assert_eq!(client.line().await, "db1:hello\n");
    bench.say(&server, 2, RouteState::Closed, 0, vec![]).await;
    assert!(client.end().await.is_empty());
    assert_eq!(bench.now().cut_by_epoch, 1);
}

#[tokio::test]
async fn boards_feeds_and_proxy_work_together_and_an_ended_feed_fences() {
    let (bench, a, b) = (Bench::start(options()), Server::start("db1").await, Server::start("db2").await);
    let mut feeds = tokio::task::JoinSet::new();
    let mut boards = Vec::new();
    for server in [&a, &b] {
        let board = Arc::new(RouteBoard::new(boards.len() as u64 + (1 << 40)));
        boards.push(Arc::clone(&board));
        let ask = move |body: Vec<u8>| {
            let board = Arc::clone(&board);
            async move {
                let request: RouteRequest = serde_json::from_slice(&body)?;
                serde_json::to_vec(&board.answer(request).await)
            }
        };
        feeds.spawn(feed(NodeId::new(&server.name).unwrap(), ask, Standing::default(), bench.reports.clone()));
    }
    let open = |server: &Server, epoch| mainstay_model::Route {
        epoch: mainstay_model::Term(epoch),
        leader: Some(server.member(0)),
        replicas: vec![],
        state: RouteState::Open,
        valid_ms: 0,
    };
    boards[0].publish(open(&a, 1), boot_now() + Span(60_000));
    let mut client = Client::hello(bench.write).await;
    assert_eq!(client.line().await, "db1:hello\n");
    let begun = Instant::now();
    boards[1].publish(open(&b, 2), boot_now() + Span(60_000));
    assert!(client.end().await.is_empty());
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    let mut client = Client::hello(bench.write).await;
    assert_eq!(client.line().await, "db2:hello\n");
    boards[1].publish(open(&b, 2), boot_now() + Span(5000));
    let heard = Instant::now();
    until("the deadline is heard", async || client.ask("x").await == "db2:x\n" && heard.elapsed() > ms(300)).await;
    feeds.shutdown().await;
    client.end().await;
    assert_eq!(bench.now().cut_by_fence, 1);
}

#[tokio::test]
async fn stopping_closes_everything_and_a_taken_address_is_named() {
    let (mut bench, server) = (Bench::start(options()), Server::start("db1").await);
    bench.open(&server, 1, vec![]).await;
    let mut client = Client::hello(bench.write).await;
    assert_eq!(client.line().await, "db1:hello\n");
    let stats = Arc::clone(&bench.stats);
    let taken = ProxyOptions::new(vec![bench.write], vec![]);
    let error = mainstay_proxy::Proxy::bind(taken, stats).unwrap_err().to_string();
    assert!(error.contains(&bench.write.to_string()), "{error}");
    bench.stop.take().unwrap().send(()).unwrap();
    tokio::time::timeout(SOON, &mut bench.task).await.unwrap().unwrap();
    client.end().await;
    assert!(tokio::net::TcpStream::connect(bench.write).await.is_err());
    until("the server's side is closed", async || server.open() == 0).await;
}

#[tokio::test]
async fn a_request_to_cancel_reaches_every_server_that_works_for_clients_and_is_never_held() {
    let (bench, primary) = (Bench::start(options()), Server::start("db1").await);
    let (one, two, idle) = (Server::start("db2").await, Server::start("db3").await, Server::start("db4").await);
    let request = [&[0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e][..], &[1, 2, 3, 4, 5, 6, 7, 8]].concat();
    // Nobody works for anybody: it ends at once, though there is no primary.
    let mut cancel = Client::connect(bench.write).await;
    cancel.send(&request).await;
    cancel.end().await;
    bench.open(&primary, 1, vec![one.member(0), two.member(0)]).await;
    let mut readers = [Client::hello(bench.read).await, Client::hello(bench.read).await];
    for reader in &mut readers {
        reader.line().await;
    }
    assert_eq!((one.open(), two.open()), (1, 1));
    bench.open(&primary, 1, vec![one.member(0), two.member(0), idle.member(0)]).await;
    // In pieces, too.
    let mut cancel = Client::connect(bench.read).await;
    cancel.send(&request[..6]).await;
    tokio::time::sleep(ms(20)).await;
    cancel.send(&request[6..]).await;
    until("both have heard it", async || one.accepted() == 2 && two.accepted() == 2).await;
    assert_eq!((primary.accepted(), idle.accepted(), bench.now().held_total), (0, 0, 0));
    assert_eq!(readers[0].ask("still").await.split(':').nth(1), Some("still\n"));
}

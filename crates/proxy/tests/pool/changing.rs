//! The primary changes, or dies: who notices, and what those are told.

use crate::support::{Bench, Postgres, code, pair, rows, until, value};
use mainstay_model::{RouteState, Term};
use mainstay_ports::route_board::Holds;
use mainstay_proxy::ProxyOptions;
use mainstay_proxy::pool::PoolOptions;
use std::time::Duration;

async fn promote(server: &Postgres) {
    server.sql("select pg_promote()").await;
    until("it is promoted", async || server.sql("select pg_is_in_recovery()").await[0][0] == "f").await;
}

#[tokio::test]
async fn a_planned_change_costs_clients_a_wait_and_no_error() {
    let (a, b) = pair().await;
    let bench = Bench::start(&a, PoolOptions { size: 4, ..PoolOptions::default() }).await;
    bench.open(&a, 1, vec![b.member()]).await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        let client = bench.app().await;
        assert_eq!(value(&client, "select inet_server_port()").await, a.address.port().to_string());
        clients.push(client);
    }
    let open = clients.pop().unwrap();
    open.batch_execute("begin").await.unwrap();
    bench.say(&a, 1, RouteState::Draining, vec![b.member()]).await;
    until("the proxy knows", async || bench.now().open == 0).await;
    let holds = |under_way| Some(Holds { epoch: Term(1), under_way });
    until("the proxy says that one is under way", async || bench.pooled.holds() == holds(1)).await;
    let statement = clients[0].prepare("select inet_server_port()");
    let held = async {
        let statement = statement.await.unwrap();
        clients[0].query_one(&statement, &[]).await.unwrap().get::<_, i32>(0)
    };
    let others =
        futures_util::future::join_all(clients[1..].iter().map(|client| value(client, "select inet_server_port()")));
    let change = async {
        // The open transaction goes on and ends; new work waits.
        assert_eq!(value(&open, "select inet_server_port()").await, a.address.port().to_string());
        open.batch_execute("commit").await.unwrap();
        until("work waits", async || bench.pool().waiting == 7).await;
        until("nobody has a server", async || bench.pool().busy == 0).await;
        until("the proxy says that none is under way", async || bench.pooled.holds() == holds(0)).await;
        promote(&b).await;
        bench.open(&b, 2, vec![]).await;
    };
    let (first, others, ()) = tokio::join!(held, others, change);
    assert_eq!(first, i32::from(b.address.port()));
    assert!(others.iter().all(|port| *port == b.address.port().to_string()), "{others:?}");
    assert_eq!(value(&open, "select inet_server_port()").await, b.address.port().to_string());
    assert_eq!((bench.pool().lost, bench.pooled.holds()), (0, None));
    until("the change is reported", async || bench.changes().0 == 1).await;
    let (_, change) = bench.changes();
    assert_eq!((change.from_epoch, change.epoch, change.planned), (1, 2, true), "{change:?}");
    assert!(change.held >= 7 && change.errors.is_empty() && change.longest_hold_us > 0, "{change:?}");
    bench.end().await;
}

#[tokio::test]
async fn in_a_drain_a_tied_session_sends_nothing_new_either() {
    let server = Postgres::start("db1").await;
    let bench = Bench::start(&server, PoolOptions::default()).await;
    bench.open(&server, 1, vec![]).await;
    let client = bench.app().await;
    client.batch_execute("create table t (id int)").await.unwrap();
    client.batch_execute("listen news").await.unwrap();
    let none = Some(Holds { epoch: Term(1), under_way: 0 });
    let count = async || value(&client, "select count(*) from t").await;
    // The transaction that is open goes on to its end.
    client.batch_execute("begin").await.unwrap();
    bench.say(&server, 1, RouteState::Draining, vec![]).await;
    until("it is under way", async || bench.pooled.holds().is_some_and(|holds| holds.under_way == 1)).await;
    client.batch_execute("insert into t values (1)").await.unwrap();
    client.batch_execute("commit").await.unwrap();
    until("nothing is under way", async || bench.pooled.holds() == none).await;
    // What comes then waits, and goes on when nothing was changed.
    let mut late = Box::pin(client.batch_execute("insert into t values (2)"));
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut late).await.is_err(), "it was sent");
    assert_eq!(bench.pooled.holds(), none);
    bench.open(&server, 1, vec![]).await;
    late.await.unwrap();
    assert_eq!(count().await, "2");
    // Or ends with the session, and nothing of it was done.
    bench.say(&server, 1, RouteState::Draining, vec![]).await;
    until("nothing is under way", async || bench.pooled.holds() == none).await;
    let mut late = Box::pin(client.batch_execute("insert into t values (3)"));
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut late).await.is_err(), "it was sent");
    bench.open(&server, 2, vec![]).await;
    assert_eq!(code(&late.await.unwrap_err()), "57P01");
    assert_eq!(value(&bench.app().await, "select count(*) from t").await, "2");
    bench.end().await;
}

#[tokio::test]
async fn when_the_primary_dies_only_work_under_way_is_lost_and_said_to_be() {
    let (mut a, b) = pair().await;
    let bench = Bench::start(&a, PoolOptions::default()).await;
    bench.open(&a, 1, vec![b.member()]).await;
    let (idle, quiet, busy, alone, tied) =
        (bench.app().await, bench.app().await, bench.app().await, bench.app().await, bench.app().await);
    idle.batch_execute("create table t (id int)").await.unwrap();
    until("the replica has it", async || {
        a.sql("select replay_lsn = pg_current_wal_flush_lsn() from pg_stat_replication").await[0][0] == "t"
    })
    .await;
    quiet.batch_execute("begin; insert into t values (1)").await.unwrap();
    busy.batch_execute("begin; insert into t values (2)").await.unwrap();
    tied.batch_execute("create temp table x (id int)").await.unwrap();
    let busy_task = tokio::spawn(async move { (busy.batch_execute("select pg_sleep(60)").await, busy) });
    let alone_task =
        tokio::spawn(async move { (alone.batch_execute("insert into t select 3 from pg_sleep(60)").await, alone) });
    until("both work", async || {
        a.sql("select count(*) from pg_stat_activity where wait_event = 'PgSleep'").await[0][0] == "2"
    })
    .await;
    a.kill();
    let (error, busy) = busy_task.await.unwrap();
    assert_eq!(code(&error.unwrap_err()), "40001", "in a transaction, no commit under way");
    let (error, alone) = alone_task.await.unwrap();
    assert_eq!(code(&error.unwrap_err()), "08007", "it was its own commit");
    until("the tied one hears it", async || tied.is_closed()).await;
    promote(&b).await;
    bench.open(&b, 2, vec![]).await;
    // Sessions live on; the lost transactions have to be ended, as after any error.
    assert_eq!(code(&quiet.batch_execute("insert into t values (1)").await.unwrap_err()), "40001");
    assert_eq!(code(&quiet.batch_execute("select 1").await.unwrap_err()), "25P02");
    assert_eq!(code(&quiet.query("select 1", &[]).await.unwrap_err()), "25P02");
    quiet.batch_execute("rollback").await.unwrap();
    until("the change is reported", async || bench.changes().0 == 1).await;
    let (_, change) = bench.changes();
    assert_eq!(
        (change.planned, change.unknown_commits, change.errors.get("08007")),
        (false, 1, Some(&1)),
        "{change:?}"
    );
    assert!(change.errors.contains_key("40001") && change.errors.contains_key("57P01"), "{change:?}");
    // Ended by the extended protocol the session ends with it.
    assert_eq!(code(&busy.query("rollback", &[]).await.unwrap_err()), "40001");
    for client in [&idle, &quiet, &alone] {
        assert_eq!(value(client, "select count(*) from t").await, "0", "nothing was sent twice");
    }
    bench.end().await;
}

#[tokio::test]
async fn a_tied_session_whose_server_is_lost_while_it_gets_its_settings_back_ends() {
    let server = Postgres::start("db1").await;
    let bench = Bench::start(&server, PoolOptions::default()).await;
    bench.open(&server, 1, vec![]).await;
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(bench.write.port()).user("app").password("secret").dbname("shop");
    config.options("-c default_text_search_config=german");
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute("create temp table mine (id int)").await.unwrap();
    // The setting's value is looked up in a table: nobody remembers it any more, and then nobody gets at it. `RESET` needs no look.
    let mut place = tokio_postgres::Config::new();
    place.host_path(server.dir.path()).port(server.address.port()).user("postgres").dbname("shop");
    let (boss, connection) = place.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    boss.batch_execute("vacuum full pg_ts_config").await.unwrap();
    boss.batch_execute("begin; lock table pg_ts_config in access exclusive mode").await.unwrap();
    client.batch_execute("reset default_text_search_config").await.unwrap();
    let waits = "select pid from pg_stat_activity where usename = 'app' and wait_event_type = 'Lock'";
    until("its settings are on their way", async || server.sql(waits).await.len() == 1).await;
    let mut next = Box::pin(client.batch_execute("insert into mine values (1)"));
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut next).await.is_err(), "it was sent");
    server.sql("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'").await;
    boss.batch_execute("rollback").await.unwrap();
    assert_eq!(code(&next.await.unwrap_err()), "57P01");
    until("the session ends", async || client.is_closed()).await;
    until("nobody is tied", async || bench.pool().pinned == 0).await;
    bench.end().await;
}

#[tokio::test]
async fn a_server_that_is_not_what_the_route_says_carries_nothing() {
    let (a, b) = pair().await;
    let other = Postgres::start("db3").await;
    let options = ProxyOptions { hold: Duration::from_millis(300), ..ProxyOptions::default() };
    let pooling = PoolOptions { queue: mainstay_model::Span(700), ..PoolOptions::default() };
    let options = ProxyOptions { write: vec![crate::support::LOCAL], read: vec![crate::support::LOCAL], ..options };
    let bench = Bench::with(&a, pooling, options).await;
    // It knows the role as well, so that only the check can tell.
    let verifier = a.sql("select rolpassword from pg_authid where rolname = 'app'").await.remove(0).remove(0);
    other.sql(&format!("alter role app password '{verifier}'")).await;
    // A replica that is said to be the primary; then another cluster's server.
    for (server, epoch) in [(&b, 1), (&other, 2)] {
        bench.open(server, epoch, vec![]).await;
        let error = bench.try_client(bench.write, "app", "secret", "shop").await.map(|_| ()).unwrap_err();
        assert_eq!(code(&error), "53300", "{}", server.name);
    }
    bench.open(&a, 3, vec![]).await;
    let client = bench.app().await;
    assert_eq!(value(&client, "select 1").await, "1");
    // Nothing known of a primary: its connections end, and nobody is served.
    bench.say(&b, 4, RouteState::Closed, vec![]).await;
    until("fenced", async || bench.now().open == 0 && bench.now().cut_by_epoch > 0).await;
    assert_eq!(code(&client.batch_execute("select 1").await.unwrap_err()), "57P03");
    bench.end().await;
}

#[tokio::test]
async fn what_waits_is_bounded_in_bytes_and_nothing_of_it_is_sent() {
    let server = Postgres::start("db1").await;
    let options = ProxyOptions { hold: crate::support::SOON, max_held_bytes: 50_000, ..ProxyOptions::default() };
    let options = ProxyOptions { write: vec![crate::support::LOCAL], read: vec![crate::support::LOCAL], ..options };
    let bench = Bench::with(&server, PoolOptions::default(), options).await;
    bench.open(&server, 1, vec![]).await;
    let clients = [bench.app().await, bench.app().await, bench.app().await];
    clients[0].batch_execute("create table t (body text)").await.unwrap();
    bench.say(&server, 1, RouteState::Draining, vec![]).await;
    until("the proxy knows", async || bench.now().open == 0).await;
    let long = format!("insert into t values ('{}')", "x".repeat(30_000));
    let (first, second) = (clients[0].batch_execute(&long), clients[1].batch_execute(&long));
    let rest = async {
        until("one waits and one is refused", async || {
            bench.pool().waiting == 1 && bench.pool().errors.get("53400") == Some(&1)
        })
        .await;
        // There is room for a small one.
        let small = clients[2].batch_execute("insert into t values ('y')");
        let open = async {
            until("both wait", async || bench.pool().waiting == 2).await;
            bench.open(&server, 1, vec![]).await;
        };
        tokio::join!(small, open).0.unwrap();
    };
    let (first, second, ()) = tokio::join!(first, second, rest);
    let refused = [first, second].into_iter().filter_map(Result::err).map(|error| code(&error)).collect::<Vec<_>>();
    assert_eq!(refused, ["53400"]);
    assert_eq!(value(&bench.app().await, "select count(*) from t").await, "2");
    bench.end().await;
}

#[tokio::test]
async fn reads_go_to_replicas_and_stay_when_the_primary_changes() {
    let (a, b) = pair().await;
    let bench = Bench::start(&a, PoolOptions::default()).await;
    bench.open(&a, 1, vec![b.member()]).await;
    let reader = bench.client(bench.read, "app", "secret").await;
    assert_eq!(value(&reader, "select pg_is_in_recovery()").await, "t");
    assert_eq!(code(&reader.batch_execute("create table no (id int)").await.unwrap_err()), "25006");
    assert_eq!(value(&bench.app().await, "select pg_is_in_recovery()").await, "f");
    // Without replicas the primary serves reads.
    bench.open(&a, 2, vec![]).await;
    let late = bench.client(bench.read, "app", "secret").await;
    assert_eq!(value(&late, "select pg_is_in_recovery()").await, "f");
    bench.end().await;
}

#[tokio::test]
async fn the_console_speaks_the_usual_words_and_pauses() {
    let server = Postgres::start("db1").await;
    let bench = Bench::start(&server, PoolOptions::default()).await;
    bench.open(&server, 1, vec![]).await;
    let client = bench.app().await;
    value(&client, "select 1").await;
    let boss = bench.try_client(bench.write, "boss", "boss", "pgbouncer").await.unwrap();
    for (what, wanted) in [
        ("pools", "app"),
        ("databases", "shop"),
        ("stats", "app"),
        ("clients", "app"),
        ("servers", "db1"),
        ("config", "20"),
    ] {
        let shown = rows(boss.simple_query(&format!("SHOW {what};")).await.unwrap());
        assert!(shown.iter().flatten().any(|value| value == wanted), "{what}: {shown:?}");
    }
    assert!(rows(boss.simple_query("show version").await.unwrap())[0][0].starts_with("Mainstay"));
    assert_eq!(code(&boss.simple_query("show nonsense").await.map(|_| ()).unwrap_err()), "42601");
    // Settings change under the clients' feet, and nobody's connection ends.
    for (outcome, wanted) in [(Err("line 3: no such key".to_owned()), Some("F0000")), (Ok(()), None)] {
        let (said, ()) = tokio::join!(boss.batch_execute("reload"), async {
            tokio::time::timeout(crate::support::SOON, bench.pooled.reload_wanted()).await.expect("it is heard");
            bench.pooled.reloaded(&outcome);
        });
        assert_eq!(said.err().map(|error| code(&error)).as_deref(), wanted);
    }
    // Nobody reads them: that is said, too, and the console goes on.
    assert_eq!(code(&boss.batch_execute("reload").await.unwrap_err()), "F0000");
    let stats = rows(boss.simple_query("show stats").await.unwrap());
    assert!(stats.iter().any(|row| row[1] == "app" && row.last().is_some_and(|last| last == "write")), "{stats:?}");
    bench.pooled.change(|options, pooling| (options.max_connections, pooling.size) = (2, 7));
    let config = rows(boss.simple_query("show config").await.unwrap());
    assert!(config.iter().any(|row| row[0] == "default_pool_size" && row[1] == "7"), "{config:?}");
    assert_eq!(value(&client, "select 3").await, "3");
    assert_eq!(code(&bench.try_client(bench.write, "app", "secret", "shop").await.map(drop).unwrap_err()), "53300");
    bench.pooled.change(|options, _| options.max_connections = 100);
    assert!(rows(boss.simple_query("show changes").await.unwrap()).is_empty());
    assert_eq!(code(&client.simple_query("select 1/0").await.map(drop).unwrap_err()), "22012");
    // The driver goes on at the error, before the server is done with it: a statement that is sent then belongs to the same work.
    assert_eq!(value(&client, "select 4").await, "4");
    boss.batch_execute("pause").await.unwrap();
    let waiting = tokio::spawn(async move { value(&client, "select 2").await });
    until("it waits", async || {
        assert!(!waiting.is_finished(), "it did not wait: {:?}", bench.pool());
        bench.pool().waiting == 1
    })
    .await;
    boss.batch_execute("resume").await.unwrap();
    assert_eq!(waiting.await.unwrap(), "2");
    let labels = "database=\"shop\",user=\"app\",address=\"write\"";
    let samples = [
        format!("# TYPE mainstay_pool_transactions_total counter\nmainstay_pool_transactions_total{{{labels}}} "),
        format!("mainstay_pool_errors_total{{{labels},sqlstate=\"22012\"}} 1\n"),
        format!("mainstay_pool_node_servers{{{labels},node=\"db1\",state=\"idle\"}} "),
        format!("mainstay_pool_transaction_us{{{labels},quantile=\"0.99\"}} "),
    ];
    until("the numbers are told", async || {
        let text = bench.pooled.prometheus();
        samples.iter().all(|sample| text.contains(sample))
    })
    .await;
    bench.end().await;
}

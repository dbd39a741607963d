//! Pools come and go with those who use them, within a bound; and the numbers of the whole proxy count what pools do.

use crate::support::{Bench, LOCAL, Postgres, SOON, bin, code, until, value};
use mainstay_proxy::ProxyOptions;
use mainstay_proxy::pool::PoolOptions;

#[tokio::test]
async fn names_of_databases_that_do_not_exist_leave_no_pools_behind() {
    let server = Postgres::start("db1").await;
    let bench = Bench::start(&server, PoolOptions { pools: 4, ..PoolOptions::default() }).await;
    bench.open(&server, 1, vec![]).await;
    let app = bench.app().await;
    assert_eq!(value(&app, "select 1").await, "1");
    for number in 0..20 {
        let wrong = bench.try_client(bench.write, "app", "secret", &format!("none{number}")).await.map(drop);
        assert_eq!(code(&wrong.unwrap_err()), "3D000");
    }
    assert!(bench.pooled.numbers().len() <= 4, "{:?}", bench.pooled.numbers());
    until("only the one that is used is left", async || bench.pooled.numbers().len() == 1).await;
    // Those that are full of clients stay, and others are told.
    let others = [("other", "other"), ("boss", "boss")];
    let mut inside = Vec::new();
    for (user, password) in others {
        inside.push(bench.client(bench.write, user, password).await);
    }
    inside.push(bench.client(bench.read, "app", "secret").await);
    let refused = bench.try_client(bench.read, "boss", "boss", "shop").await.map(drop).unwrap_err();
    assert_eq!(code(&refused), "53300");
    assert_eq!(value(&app, "select 2").await, "2");
    bench.end().await;
}

#[tokio::test]
async fn the_proxys_own_numbers_count_what_pools_do() {
    let server = Postgres::start("db1").await;
    let options = ProxyOptions { hold: SOON, ..ProxyOptions::new(vec![LOCAL], vec![LOCAL]) };
    let bench = Bench::with(&server, PoolOptions { size: 1, ..PoolOptions::default() }, options).await;
    bench.open(&server, 1, vec![]).await;
    let (a, b) = (bench.app().await, bench.app().await);
    let reader = bench.client(bench.read, "app", "secret").await;
    assert_eq!((bench.now().write_open, bench.now().read_open), (2, 1));
    a.batch_execute("begin").await.unwrap();
    let (waited, ()) = tokio::join!(value(&b, "select 1"), async {
        until("it waits", async || bench.now().held == 1).await;
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        a.batch_execute("commit").await.unwrap();
    });
    assert_eq!(waited, "1");
    let now = bench.now();
    assert_eq!((now.held, now.write_connected, now.read_connected, now.read_on_primary), (0, 2, 1, 1), "{now:?}");
    assert!(now.held_total >= 1 && now.longest_hold_ms >= 20, "{now:?}");
    until("bytes are told", async || bench.now().bytes_to_server > 20 && bench.now().bytes_to_client > 20).await;
    // One leaves while it waits.
    a.batch_execute("begin").await.unwrap();
    let place = format!("host=127.0.0.1 port={} user=app dbname=shop sslmode=disable", bench.write.port());
    let mut psql = tokio::process::Command::new(bin("psql"));
    let psql = psql.args(["-Xqc", "select 2", &place]).env("PGPASSWORD", "secret").kill_on_drop(true).spawn().unwrap();
    until("it waits", async || bench.now().held == 1).await;
    drop(psql);
    until("it is gone", async || bench.now().left_while_held == 1 && bench.now().held == 0).await;
    drop((a, b, reader));
    until("nobody is left", async || bench.now().write_open == 0 && bench.now().read_open == 0).await;
    bench.end().await;
}

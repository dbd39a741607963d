//! Who waits for a server and thinks better of it: the request is taken back, says so, and never runs. The session goes on.

use crate::support::{Bench, Postgres, code, until, value};
use mainstay_model::RouteState;
use mainstay_proxy::pool::PoolOptions;
use tokio_postgres::{Client, NoTls};

fn one() -> PoolOptions {
    PoolOptions { size: 1, reserve: 0, ..PoolOptions::default() }
}

async fn bench(server: &Postgres) -> Bench {
    let bench = Bench::start(server, one()).await;
    bench.open(server, 1, vec![]).await;
    bench.app().await.batch_execute("create table t (id int)").await.unwrap();
    bench
}

/// Ctrl-C.
async fn cancel(client: &Client) {
    client.cancel_token().cancel_query(NoTls).await.unwrap();
}

async fn waits(bench: &Bench, count: u64) {
    until("it waits", async || bench.pool().waiting == count).await;
}

async fn count(client: &Client) -> String {
    value(client, "select count(*) from t").await
}

#[tokio::test]
async fn a_request_that_waits_for_a_full_pool_is_taken_back() {
    let server = Postgres::start("db1").await;
    let bench = bench(&server).await;
    let (a, b, c) = (bench.app().await, bench.app().await, bench.app().await);
    let insert = b.prepare("insert into t values ($1)").await.unwrap();
    a.batch_execute("begin").await.unwrap();
    for extended in [false, true] {
        let request = async {
            match extended {
                true => b.execute(&insert, &[&1_i32]).await.map(drop),
                false => b.batch_execute("insert into t values (1)").await,
            }
        };
        let (cancelled, ()) = tokio::join!(request, async {
            waits(&bench, 1).await;
            cancel(&b).await;
        });
        assert_eq!(code(&cancelled.unwrap_err()), "57014");
        waits(&bench, 0).await;
    }
    // Of two that were sent together only the first is meant; somebody else's turn is not touched.
    let (first, second) = (b.batch_execute("insert into t values (2)"), b.batch_execute("insert into t values (3)"));
    let (first, second, other, ()) = tokio::join!(first, second, c.batch_execute("insert into t values (4)"), async {
        waits(&bench, 2).await;
        cancel(&b).await;
        until("one is told", async || bench.pool().errors.get("57014") == Some(&3)).await;
        a.batch_execute("commit").await.unwrap();
    });
    assert_eq!(code(&first.unwrap_err()), "57014");
    second.unwrap();
    other.unwrap();
    assert_eq!(value(&b, "select string_agg(id::text, ' ' order by id) from t").await, "3 4");
    // Nothing waits: a late word is nobody's.
    cancel(&b).await;
    assert_eq!(count(&b).await, "2");
    waits(&bench, 0).await;
    bench.end().await;
}

#[tokio::test]
async fn a_request_that_waits_for_a_primary_or_the_end_of_a_pause_is_taken_back() {
    let server = Postgres::start("db1").await;
    let bench = bench(&server).await;
    let client = bench.app().await;
    let boss = bench.try_client(bench.write, "boss", "boss", "mainstay").await.unwrap();
    for state in [None, Some(RouteState::Draining), Some(RouteState::Closed)] {
        match state {
            None => boss.batch_execute("pause").await.unwrap(),
            Some(state) => {
                bench.say(&server, 1, state, vec![]).await;
                until("the proxy knows", async || bench.now().open == 0).await;
            }
        }
        let (cancelled, ()) = tokio::join!(client.batch_execute("insert into t values (1)"), async {
            waits(&bench, 1).await;
            cancel(&client).await;
        });
        assert_eq!(code(&cancelled.unwrap_err()), "57014", "{state:?}");
        match state {
            None => boss.batch_execute("resume").await.unwrap(),
            Some(_) => bench.open(&server, 1, vec![]).await,
        }
        assert_eq!(count(&client).await, "0", "{state:?}");
        waits(&bench, 0).await;
    }
    bench.end().await;
}

#[tokio::test]
async fn a_tied_session_takes_back_what_a_planned_change_holds() {
    let server = Postgres::start("db1").await;
    let bench = bench(&server).await;
    let client = bench.app().await;
    client.batch_execute("create temp table mine (id int)").await.unwrap();
    bench.say(&server, 1, RouteState::Draining, vec![]).await;
    until("nothing is under way", async || bench.pooled.holds().is_some_and(|holds| holds.under_way == 0)).await;
    let mut late = Box::pin(client.batch_execute("insert into t values (1)"));
    // Whether it has arrived shows only in its answer.
    let cancelled = loop {
        tokio::select! {
            biased;
            answer = &mut late => break answer,
            () = tokio::time::sleep(std::time::Duration::from_millis(50)) => cancel(&client).await,
        }
    };
    assert_eq!(code(&cancelled.unwrap_err()), "57014");
    bench.open(&server, 1, vec![]).await;
    assert_eq!(count(&client).await, "0");
    client.batch_execute("insert into mine values (1)").await.expect("the session and its table are still there");
    bench.end().await;
}

#[tokio::test]
async fn a_request_that_is_not_whole_ends_its_session_rather_than_be_taken_for_another() {
    let server = Postgres::start("db1").await;
    let bench = bench(&server).await;
    let (a, b) = (bench.app().await, bench.app().await);
    a.batch_execute("begin").await.unwrap();
    // More than is read at once.
    let long = format!("insert into t select 1 where '{}' = ''", "x".repeat(200_000));
    let (cancelled, ()) = tokio::join!(b.batch_execute(&long), async {
        waits(&bench, 1).await;
        cancel(&b).await;
    });
    assert_eq!(code(&cancelled.unwrap_err()), "57014");
    until("its session ends", async || b.is_closed()).await;
    a.batch_execute("commit").await.unwrap();
    assert_eq!(count(&a).await, "0");
    bench.end().await;
}

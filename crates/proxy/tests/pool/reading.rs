//! Reading one's own writes on the address for reads.

use crate::requests::{Session, query, synced};
use crate::support::{Bench, LOCAL, Postgres, SOON, code, pair, until, value};
use mainstay_model::Span;
use mainstay_proxy::ProxyOptions;
use mainstay_proxy::pool::PoolOptions;
use std::time::Duration;
use tokio_postgres::{Client, NoTls};

async fn write(writer: &Client) -> String {
    writer.batch_execute("insert into t values (1)").await.unwrap();
    value(writer, "select pg_current_wal_insert_lsn()").await
}

async fn replays(replica: &Postgres, yes: bool) {
    replica.sql(if yes { "select pg_wal_replay_resume()" } else { "select pg_wal_replay_pause()" }).await;
    let wanted = if yes { "not paused" } else { "paused" };
    until("replay is as wanted", async || replica.sql("select pg_get_wal_replay_pause_state()").await[0][0] == wanted)
        .await;
}

#[tokio::test]
async fn a_reader_waits_until_its_replica_has_what_it_names() {
    let (a, b) = pair().await;
    let pooling = PoolOptions { size: 1, ..PoolOptions::default() };
    let bench = Bench::start(&a, pooling).await;
    bench.open(&a, 1, vec![b.member()]).await;
    let (writer, reader) = (bench.app().await, bench.client(bench.read, "app", "secret").await);
    let other = bench.client(bench.read, "app", "secret").await;
    writer.batch_execute("create table t (id int)").await.unwrap();
    until("the replica has it", async || {
        a.sql("select replay_lsn = pg_current_wal_flush_lsn() from pg_stat_replication").await[0][0] == "t"
    })
    .await;
    for round in 1..=3 {
        replays(&b, false).await;
        let after = write(&writer).await;
        assert_eq!(value(&other, "select count(*) from t").await, (round - 1).to_string(), "nobody else waits");
        // The position itself may be given to a server that is behind.
        reader.batch_execute(&format!("set mainstay.read_after = '{after}'")).await.unwrap();
        let mut count = Box::pin(value(&reader, "select count(*) from t"));
        assert!(tokio::time::timeout(Duration::from_millis(400), &mut count).await.is_err(), "it was read too soon");
        replays(&b, true).await;
        assert_eq!(tokio::time::timeout(SOON, count).await.unwrap(), round.to_string());
    }
    // Whoever thinks better of it goes on.
    replays(&b, false).await;
    let after = write(&writer).await;
    reader.batch_execute(&format!("set mainstay.read_after = '{after}'")).await.unwrap();
    let mut late = Box::pin(reader.batch_execute("select 1"));
    let cancelled = loop {
        tokio::select! {
            biased;
            answer = &mut late => break answer,
            () = tokio::time::sleep(Duration::from_millis(50)) => {
                reader.cancel_token().cancel_query(NoTls).await.unwrap();
            }
        }
    };
    assert_eq!(code(&cancelled.unwrap_err()), "57014");
    replays(&b, true).await;
    assert_eq!(value(&reader, "select count(*) from t").await, "4");
    // With no replica the primary serves reads, and has everything.
    bench.open(&a, 2, vec![]).await;
    let late = bench.client(bench.read, "app", "secret").await;
    let after = write(&writer).await;
    late.batch_execute(&format!("set mainstay.read_after = '{after}'")).await.unwrap();
    assert_eq!(value(&late, "select count(*) from t").await, "5");
    bench.end().await;
}

#[tokio::test]
async fn a_position_that_does_not_come_or_is_none_is_said_and_never_passed_over() {
    let (a, b) = pair().await;
    let pooling = PoolOptions { queue: Span(700), ..PoolOptions::default() };
    let options = ProxyOptions { hold: SOON, ..ProxyOptions::new(vec![LOCAL], vec![LOCAL]) };
    let bench = Bench::with(&a, pooling, options).await;
    bench.open(&a, 1, vec![b.member()]).await;
    for (before, value, wanted) in [
        ("select 1", "'FFFF/0'", "57P03"),
        ("select 1", "'yesterday'", "22023"),
        ("prepare p as select 1", "'FFFF/0'", "0A000"),
        ("prepare p as select 1", "'yesterday'", "0A000"),
    ] {
        let reader = bench.client(bench.read, "app", "secret").await;
        reader.batch_execute(before).await.unwrap();
        reader.batch_execute(&format!("set mainstay.read_after = {value}")).await.unwrap();
        assert_eq!(code(&reader.batch_execute("select 1").await.unwrap_err()), wanted, "{value}");
        until("its session ends", async || reader.is_closed()).await;
    }
    // It is nothing to those who write.
    let writer = bench.app().await;
    writer.batch_execute("set mainstay.read_after = 'FFFF/0'").await.unwrap();
    assert_eq!(value(&writer, "select 1").await, "1");
    bench.end().await;
}

#[tokio::test]
async fn a_position_counts_for_what_was_sent_together_with_it() {
    let (a, b) = pair().await;
    let bench = Bench::start(&a, PoolOptions::default()).await;
    bench.open(&a, 1, vec![b.member()]).await;
    let writer = bench.app().await;
    writer.batch_execute("create table t (id int)").await.unwrap();
    until("the replica has it", async || {
        a.sql("select replay_lsn = pg_current_wal_flush_lsn() from pg_stat_replication").await[0][0] == "t"
    })
    .await;
    let mut reader = Session::open(bench.read).await;
    let count = "select count(*) from t";
    let ways = |after: &str| {
        let set = format!("set mainstay.read_after = '{after}'");
        let simple = vec![query(&set), query(count)];
        let block = vec![query("begin"), query(&set), query("commit"), query(count)];
        let extended = [synced(&set), synced(count)].concat();
        [simple, block, extended]
    };
    for way in 0..3 {
        replays(&b, false).await;
        let after = write(&writer).await;
        reader.send(&ways(&after)[way]).await;
        let before = ["C ZI", "C ZT", "1 2 C ZI"][way];
        assert_eq!(reader.up_to('Z').await, before);
        if way == 1 {
            assert_eq!((reader.up_to('Z').await, reader.up_to('Z').await), ("C ZT".to_owned(), "C ZI".to_owned()));
        }
        let early = tokio::time::timeout(Duration::from_millis(400), reader.message()).await;
        assert!(early.is_err(), "it was read too soon: {early:?}");
        replays(&b, true).await;
        let row = format!("D{}", way + 1);
        let heard = reader.up_to('Z').await;
        assert!(heard.contains(&row) && heard.ends_with("C ZI"), "{heard}");
    }
    // Rows that are sent along with their statement, where the primary serves reads.
    bench.open(&a, 2, vec![]).await;
    let mut reader = Session::open(bench.read).await;
    let rows = [('d', b"7\n".to_vec()), ('c', Vec::new())];
    let mut all = vec![query("begin"), query("set mainstay.read_after = '0/1'"), query("copy t from stdin")];
    all.extend(rows);
    all.extend([query("commit"), query(count)]);
    reader.send(&all).await;
    for heard in ["C ZT", "C ZT", "G C ZT", "C ZI", "T D4 C ZI"] {
        assert_eq!(reader.up_to('Z').await, heard);
    }
    bench.end().await;
}

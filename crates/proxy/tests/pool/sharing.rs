//! Many clients on few servers: what each sees must be as if it had one for itself.

use crate::support::{Bench, Postgres, code, until, value};
use futures_util::SinkExt;
use mainstay_proxy::pool::PoolOptions;
use std::pin::pin;
use std::time::Duration;
use tokio_postgres::CopyInSink;
use tokio_postgres::types::Type;

fn one() -> PoolOptions {
    PoolOptions { size: 1, reserve: 0, ..PoolOptions::default() }
}

#[tokio::test]
async fn many_clients_share_one_server_and_none_sees_anothers_state() {
    let server = Postgres::start("db1").await;
    let bench = Bench::start(&server, one()).await;
    bench.open(&server, 1, vec![]).await;
    let (a, b) = (bench.app().await, bench.app().await);
    let pid = value(&a, "select pg_backend_pid()").await;
    assert_eq!(value(&b, "select pg_backend_pid()").await, pid, "one server for both");
    a.batch_execute("set work_mem = '3MB'; set app.tenant = '7'").await.unwrap();
    b.batch_execute("set app.tenant = '8'").await.unwrap();
    for _ in 0..3 {
        assert_eq!(value(&a, "select current_setting('app.tenant') || current_setting('work_mem')").await, "73MB");
        assert_eq!(value(&b, "select current_setting('app.tenant') || current_setting('work_mem')").await, "84MB");
    }
    // What is rolled back was never set; what is local ends with its transaction.
    a.batch_execute("begin").await.unwrap();
    a.batch_execute("set app.tenant = '10'").await.unwrap();
    a.batch_execute("rollback").await.unwrap();
    a.batch_execute("begin; set local app.tenant = '11'; commit").await.unwrap();
    assert_eq!(value(&b, "select current_setting('app.tenant')").await, "8");
    assert_eq!(value(&a, "select current_setting('app.tenant')").await, "7");
    a.batch_execute("begin; set app.tenant = '12'; commit").await.unwrap();
    assert_eq!(value(&b, "show app.tenant").await, "8");
    assert_eq!(value(&a, "show app.tenant").await, "12");
    a.batch_execute("reset all; set role helper").await.unwrap();
    assert_eq!(value(&b, "select current_user || current_setting('work_mem')").await, "app4MB");
    assert_eq!(value(&a, "select current_user || coalesce(current_setting('app.tenant', true), '')").await, "helper");
    let pool = bench.pool();
    assert!(pool.pinned == 0, "{pool:?}");
    bench.end().await;
}

#[tokio::test]
async fn prepared_statements_work_on_whichever_server_and_are_shared() {
    let server = Postgres::start("db1").await;
    let bench = Bench::start(&server, PoolOptions { size: 2, ..one() }).await;
    bench.open(&server, 1, vec![]).await;
    let mut clients = Vec::new();
    for _ in 0..6 {
        let client = bench.app().await;
        let add = client.prepare_typed("select $1 + 1", &[Type::INT4]).await.unwrap();
        let text = client.prepare("select $1::text || 'x'").await.unwrap();
        clients.push((client, add, text));
    }
    for round in 0..5_i32 {
        let tasks = clients.iter().map(|(client, add, text)| async move {
            let row = client.query_one(add, &[&round]).await.unwrap();
            assert_eq!(row.get::<_, i32>(0), round + 1);
            let row = client.query_one(text, &[&"y"]).await.unwrap();
            assert_eq!(row.get::<_, String>(0), "yx");
            // Wrong values are an error of the server, and the statement lives on.
            assert_eq!(code(&client.query("select 1/$1::int", &[&0_i32]).await.unwrap_err()), "22012");
        });
        futures_util::future::join_all(tasks).await;
    }
    // One client closes its own: the others keep theirs.
    let (client, add, _) = clients.remove(0);
    drop(add);
    value(&client, "select 1").await;
    let (client, add, _) = &clients[0];
    assert_eq!(client.query_one(add, &[&1_i32]).await.unwrap().get::<_, i32>(0), 2);
    until("parses are spared", async || bench.pool().parses_saved > 0).await;
    // A statement that somebody else prepared is nobody's business.
    assert_eq!(code(&client.batch_execute("execute mainstay_1(1)").await.unwrap_err()), "26000");
    bench.end().await;
}

#[tokio::test]
async fn a_transaction_keeps_its_server_and_others_wait_for_it() {
    let server = Postgres::start("db1").await;
    let bench = Bench::start(&server, one()).await;
    bench.open(&server, 1, vec![]).await;
    let (a, b) = (bench.app().await, bench.app().await);
    a.batch_execute("create table t (id int)").await.unwrap();
    a.batch_execute("begin; insert into t values (1)").await.unwrap();
    let waiting = tokio::spawn(async move { value(&b, "select count(*) from t").await });
    until("somebody waits", async || bench.pool().waiting == 1).await;
    a.batch_execute("commit").await.unwrap();
    assert_eq!(waiting.await.unwrap(), "1");
    // A client that leaves in the middle takes its transaction with it.
    a.batch_execute("begin; insert into t values (2)").await.unwrap();
    drop(a);
    let c = bench.app().await;
    assert_eq!(value(&c, "select count(*) from t").await, "1");
    bench.end().await;
}

#[tokio::test]
async fn state_that_only_one_server_has_ties_its_client_and_says_why() {
    let server = Postgres::start("db1").await;
    let bench = Bench::start(&server, PoolOptions { size: 10, ..one() }).await;
    bench.open(&server, 1, vec![]).await;
    let boss = bench.try_client(bench.write, "boss", "boss", "mainstay").await.unwrap();
    for (sql, why, then) in [
        ("create temp table mine (id int)", "temporary table", "select count(*) from mine"),
        ("listen news", "LISTEN", "select 1"),
        ("select pg_advisory_lock(5)", "session-level advisory lock", "select pg_advisory_unlock(5)"),
        ("begin; declare c cursor with hold for select 1; commit", "cursor with hold", "fetch c"),
        ("prepare p as select 1", "PREPARE in SQL", "execute p"),
        ("select set_config('a.b', 'c', false)", "set_config for the session", "show a.b"),
        ("begin; set a.b = 'd'; rollback", "a setting that can not be followed", "select 1"),
    ] {
        let client = bench.app().await;
        client.batch_execute(sql).await.unwrap();
        let shown = crate::support::rows(boss.simple_query("show clients").await.unwrap());
        assert!(shown.iter().any(|row| row[5] == why), "{sql}: {shown:?}");
        value(&client, then).await;
        // The next client of that server must find nothing of it.
        drop(client);
        let next = bench.app().await;
        assert_eq!(value(&next, "select count(*) from pg_locks where locktype = 'advisory'").await, "0");
        assert_eq!(value(&next, "select coalesce(current_setting('a.b', true), '')").await, "");
        until("it is let go", async || {
            let shown = crate::support::rows(boss.simple_query("show clients").await.unwrap());
            shown.iter().all(|row| row[5].is_empty())
        })
        .await;
    }
    // Everything given up, the client shares again.
    let client = bench.app().await;
    client.batch_execute("create temp table mine (id int)").await.unwrap();
    client.batch_execute("discard all").await.unwrap();
    until("not tied any more", async || bench.pool().pinned == 0).await;
    bench.end().await;
}

#[tokio::test]
async fn rows_in_bulk_go_both_ways() {
    let server = Postgres::start("db1").await;
    let bench = Bench::start(&server, one()).await;
    bench.open(&server, 1, vec![]).await;
    let (client, other) = (bench.app().await, bench.app().await);
    client.batch_execute("create table t (id int, body text)").await.unwrap();
    for _ in 0..2 {
        let sink = client.copy_in::<_, Chunk>("copy t from stdin").await.unwrap();
        send_rows(sink, 20_000).await;
        assert_eq!(value(&other, "select count(*) from t").await, "20000");
        client.batch_execute("truncate t").await.unwrap();
    }
    let long = value(&client, "select repeat('x', 5000000)").await;
    assert_eq!(long.len(), 5_000_000);
    let text = format!("select length('{}')", "y".repeat(3_000_000));
    assert_eq!(value(&client, &text).await, "3000000");
    let big = "z".repeat(2_000_000);
    let row = client.query_one("select length($1::text)", &[&big]).await.unwrap();
    assert_eq!(row.get::<_, i32>(0), 2_000_000);
    assert_eq!(code(&client.copy_in::<_, Chunk>("copy nowhere from stdin").await.map(|_| ()).unwrap_err()), "42P01");
    assert_eq!(value(&other, "select 1").await, "1");
    bench.end().await;
}

/// Rows for `COPY`.
type Chunk = std::io::Cursor<Vec<u8>>;

async fn send_rows(sink: CopyInSink<Chunk>, count: usize) {
    let mut sink = pin!(sink);
    for part in 0..10 {
        let row = |id| format!("{}\tsome text that fills\n", part * count + id);
        let rows: String = (0..count / 10).map(row).collect();
        sink.send(std::io::Cursor::new(rows.into_bytes())).await.unwrap();
    }
    assert_eq!(sink.finish().await.unwrap(), count as u64);
}

#[tokio::test]
async fn who_can_not_prove_itself_stays_out_and_hears_no_more_than_that() {
    let server = Postgres::start("db1").await;
    let bench = Bench::start(&server, one()).await;
    bench.open(&server, 1, vec![]).await;
    for (user, password, database, wanted) in [
        ("app", "wrong", "shop", "28P01"),
        ("nobody", "secret", "shop", "28P01"),
        ("app", "secret", "nowhere", "3D000"),
        ("app", "secret", "mainstay", "42501"),
    ] {
        let error = bench.try_client(bench.write, user, password, database).await.map(|_| ()).unwrap_err();
        assert_eq!(code(&error), wanted, "{user} {password} {database}");
    }
    // A change of the password counts as soon as it is told, without a restart.
    let old = bench.app().await;
    server.sql("alter role app password 'new'").await;
    bench.pooled.set_logins(server.logins().await);
    assert!(bench.try_client(bench.write, "app", "secret", "shop").await.is_err());
    let new = bench.client(bench.write, "app", "new").await;
    assert_eq!(value(&new, "select 1").await + &value(&old, "select 1").await, "11");
    bench.end().await;
}

#[tokio::test]
async fn a_commit_whose_wait_for_replicas_was_cancelled_is_no_success() {
    let server = Postgres::start("db1").await;
    let bench = Bench::start(&server, PoolOptions { size: 3, ..one() }).await;
    bench.open(&server, 1, vec![]).await;
    let looks = bench.app().await;
    looks.batch_execute("create table t (id int)").await.unwrap();
    let insert = "insert into t values ($1)";
    server.sql("create table probe ()").await;
    server.sql("alter system set synchronous_standby_names = 'nobody'").await;
    server.sql("select pg_reload_conf()").await;
    let waits = async |count: &str| {
        until("the commit waits", async || {
            server.sql("select count(*) from pg_stat_activity where wait_event = 'SyncRep'").await[0][0] == count
        })
        .await;
    };
    // The server's other processes read the setting when they get to it: from the first commit that waits, all do.
    tokio::select! {
        () = async { loop { server.sql("insert into probe default values").await; } } => {}
        () = waits("1") => {}
    }
    server.sql("select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'").await;
    waits("0").await;
    for way in ["simple", "of several", "extended", "in a transaction"] {
        let client = bench.app().await;
        let cancel = client.cancel_token();
        let task = tokio::spawn(async move {
            let outcome = match way {
                "simple" => client.batch_execute("insert into t values (1)").await,
                "of several" => client.batch_execute("begin; insert into t values (1); commit").await,
                "extended" => client.execute(insert, &[&1_i32]).await.map(drop),
                _ => {
                    client.batch_execute("begin").await.unwrap();
                    client.execute(insert, &[&1_i32]).await.unwrap();
                    client.query("commit", &[]).await.map(drop)
                }
            };
            (outcome, client)
        });
        waits("1").await;
        cancel.cancel_query(tokio_postgres::NoTls).await.unwrap();
        let (outcome, client) = task.await.unwrap();
        assert_eq!(outcome.as_ref().map_err(code), Err("08007".to_owned()), "{way}");
        // The session goes on, and what follows is not taken for more of the same.
        assert_eq!(value(&client, "select 1").await, "1", "{way}");
    }
    assert_eq!(value(&looks, "select count(*) from t").await, "4", "committed all the same");
    until("counted", async || bench.pool().unreplicated_commits == 4).await;
    bench.end().await;
}

#[tokio::test]
async fn a_cancel_hits_its_own_query_only() {
    let server = Postgres::start("db1").await;
    let bench = Bench::start(&server, PoolOptions { size: 2, ..one() }).await;
    bench.open(&server, 1, vec![]).await;
    let (a, b) = (bench.app().await, bench.app().await);
    let (cancel_a, cancel_b) = (a.cancel_token(), b.cancel_token());
    let slow = tokio::spawn(async move { (a.batch_execute("select pg_sleep(60)").await, a) });
    until("it sleeps", async || {
        value(&b, "select count(*) from pg_stat_activity where query ~ '^select pg_sleep'").await == "1"
    })
    .await;
    // An idle client's key does nothing, least of all to others.
    cancel_b.cancel_query(tokio_postgres::NoTls).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!slow.is_finished());
    cancel_a.cancel_query(tokio_postgres::NoTls).await.unwrap();
    let (outcome, a) = slow.await.unwrap();
    assert_eq!(code(&outcome.unwrap_err()), "57014");
    assert_eq!(value(&a, "select 1").await, "1");
    bench.end().await;
}

#[tokio::test]
async fn settings_of_two_parts_and_of_the_beginning_are_whole_wherever_they_go() {
    let server = Postgres::start("db1").await;
    let bench = Bench::start(&server, PoolOptions { size: 2, ..one() }).await;
    bench.open(&server, 1, vec![]).await;
    let (a, b) = (bench.app().await, bench.app().await);
    a.batch_execute("set datestyle to sql").await.unwrap();
    a.batch_execute("set datestyle to ymd").await.unwrap();
    b.batch_execute("set datestyle to german").await.unwrap();
    for _ in 0..3 {
        assert_eq!(value(&a, "show datestyle").await, "SQL, YMD");
        assert_eq!(value(&b, "show datestyle").await, "German, DMY");
    }
    // Tied to its server, a session gets back what it began with, not what the server did.
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(bench.write.port()).user("app").password("secret").dbname("shop");
    let (client, connection) = config.options("-c work_mem=3MB").connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute("prepare p as select 1").await.unwrap();
    for back in ["reset work_mem", "reset all", "begin; reset work_mem; commit", "discard all"] {
        client.batch_execute("set work_mem = '5MB'").await.unwrap();
        assert_eq!(value(&client, "show work_mem").await, "5MB");
        client.batch_execute(back).await.unwrap();
        assert_eq!(value(&client, "show work_mem").await, "3MB", "{back}");
    }
    bench.end().await;
}

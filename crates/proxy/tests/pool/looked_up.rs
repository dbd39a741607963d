//! What became of a commit is asked only of a commit alone, and is told in the form in which it was asked for. Whoever is asked here says
//! always that it is committed: a question too many would be heard.

use crate::requests::{Message, Session, bind, describe, execute, parse, query, run, sync};
use crate::support::{Bench, Postgres, until, value};
use mainstay_model::outcome::CommitAnswer;
use mainstay_proxy::pool::PoolOptions;

async fn bench(server: &Postgres) -> Bench {
    let bench = Bench::start(server, PoolOptions { commit_outcome: true, ..PoolOptions::default() }).await;
    bench.open(server, 1, vec![]).await;
    bench.app().await.batch_execute("create table t (id int)").await.unwrap();
    let pooled = bench.pooled.clone();
    tokio::spawn(async move {
        loop {
            for asked in pooled.commits_in_doubt().await {
                pooled.found(&asked, CommitAnswer::Committed);
            }
        }
    });
    bench
}

/// A session with a transaction that has written.
async fn writing(bench: &Bench) -> Session {
    let mut session = Session::open(bench.write).await;
    session.send(&[query("begin")]).await;
    assert_eq!(session.up_to('Z').await, "C ZT");
    session.send(&[query("insert into t values (1)")]).await;
    assert_eq!(session.up_to('Z').await, "C ZT");
    session
}

/// Sends it, and ends its server as soon as that waits for `event`.
async fn lost(server: &Postgres, session: &mut Session, messages: &[Message], event: &str) {
    session.send(messages).await;
    let waits = format!("select pid from pg_stat_activity where usename = 'app' and wait_event = '{event}'");
    until("it is under way", async || server.sql(&waits).await.len() == 1).await;
    server.sql("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'").await;
}

#[tokio::test]
async fn what_comes_with_a_commit_or_after_it_is_not_taken_for_it() {
    let server = Postgres::start("db1").await;
    let bench = bench(&server).await;
    let slow = "insert into t select 2 from pg_sleep(60)";
    let many = |texts: &[&str]| texts.iter().flat_map(|text| run(text)).chain([sync()]).collect::<Vec<_>>();
    // Behind a commit that was answered already.
    let mut session = writing(&bench).await;
    session.send(&run("commit")).await;
    assert_eq!(session.up_to('C').await, "1 2 C");
    lost(&server, &mut session, &many(&[slow]), "PgSleep").await;
    assert!(session.up_to('Z').await.ends_with("E08007"));
    // In one request with it.
    let mut session = writing(&bench).await;
    lost(&server, &mut session, &many(&["commit", slow]), "PgSleep").await;
    assert!(session.up_to('Z').await.ends_with("E08007"));
    // In a transaction that began with its end.
    let mut session = writing(&bench).await;
    session.send(&many(&["commit", "begin"])).await;
    assert_eq!(session.up_to('Z').await, "1 2 C 1 2 C ZT");
    lost(&server, &mut session, &[query(slow)], "PgSleep").await;
    assert!(session.up_to('Z').await.starts_with('E'));
    // Prepared only.
    let mut session = writing(&bench).await;
    session.send(&[parse("end", "commit"), describe("end"), sync()]).await;
    assert_eq!(session.up_to('Z').await, "1 t n ZT");
    lost(&server, &mut session, &[query(slow)], "PgSleep").await;
    assert_eq!(session.up_to('Z').await, "E40001 ZE");
    assert_eq!(bench.pool().commits_found, 0);
    assert_eq!(value(&bench.app().await, "select count(*) from t where id = 2").await, "0");
    bench.end().await;
}

#[tokio::test]
async fn it_is_told_in_the_form_in_which_it_was_asked_for() {
    let server = Postgres::start("db1").await;
    let bench = bench(&server).await;
    server.sql("alter system set synchronous_standby_names = 'nobody'").await;
    server.sql("select pg_reload_conf()").await;
    let named = [parse("end", "commit"), bind("end"), execute(), sync()];
    let unnamed = [&run("commit")[..], &[sync()]].concat();
    let forms: [(&[Message], &str); 3] = [(&[query("commit")], "C ZI"), (&unnamed, "1 2 C ZI"), (&named, "1 2 C ZI")];
    for (messages, heard) in forms {
        let mut session = writing(&bench).await;
        session.send(messages).await;
        let waits = "select pid from pg_stat_activity where wait_event = 'SyncRep'";
        until("it waits", async || server.sql(waits).await.len() == 1).await;
        // Nothing is heard of it any more.
        let pid: i32 = server.sql(waits).await[0][0].parse().unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::STOP)
            .unwrap();
        bench.open(&server, bench.now().epoch + 1, vec![]).await;
        assert_eq!(session.up_to('Z').await, heard);
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::CONT)
            .unwrap();
        server.sql("select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'").await;
        until("it is gone", async || server.sql(waits).await.is_empty()).await;
        // The session goes on.
        session.send(&[query("select 7")]).await;
        assert_eq!(session.up_to('Z').await, "T D7 C ZI");
    }
    until("counted", async || bench.pool().commits_found == 3).await;
    bench.end().await;
}

#[tokio::test]
async fn who_may_not_write_the_record_commits_as_ever() {
    let server = Postgres::start("db1").await;
    server.shop("revoke execute on function pg_logical_emit_message(boolean, text, text) from public").await;
    let bench = bench(&server).await;
    let client = bench.app().await;
    client.batch_execute("begin; insert into t values (1)").await.unwrap();
    client.batch_execute("commit").await.unwrap();
    assert_eq!(value(&client, "select count(*) from t").await, "1");
    bench.end().await;
}

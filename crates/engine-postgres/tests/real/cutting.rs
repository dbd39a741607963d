//! Recruiting: the stream is cut for good, and the position is the end of the log on disk.

use crate::support::{Cluster, is, setting, until, value};
use mainstay_model::{ServerState, Timeline};
use mainstay_ports::engine::{Engine, EngineError};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_recruit_is_cut_for_good_and_says_where_its_log_ends() {
    let cluster = Cluster::running(2).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    let mut times = Vec::new();
    for _ in 0..10 {
        first.write(50).await;
        let flushed = first.flushed().await;
        until("received", || async { second.pg.probe().await.end >= Some(flushed) }).await;
        let (end, took) = second.recruit().await;
        times.push(took);
        assert!(end.position.lsn >= flushed && end.position.timeline == Timeline(1) && end.lineage.0.is_empty());
        first.write(50).await;
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert!(second.processes("walreceiver").is_empty(), "a walreceiver came back");
        assert_eq!(second.pg.log_end().await.unwrap(), end, "the log grew after the cut");
        second.pg.follow(second.copy(), &first.id).await.unwrap();
        second.until_receiving().await;
    }
    times.sort();
    println!("recruit: median {:?}, worst {:?}", times[times.len() / 2], times[times.len() - 1]);
    assert!(times[times.len() - 1] < Duration::from_secs(3), "{times:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_cut_while_replay_is_paused() {
    let cluster = Cluster::running(2).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    second.sql("select pg_wal_replay_pause()").await;
    first.write(2000).await;
    let flushed = first.flushed().await;
    until("received", || async { second.pg.probe().await.end >= Some(flushed) }).await;
    assert!(second.pg.probe().await.replay < Some(flushed), "replay was not paused");
    let (end, took) = second.recruit().await;
    assert!(end.position.lsn >= flushed, "the position is not that of the log on disk");
    assert!(took < Duration::from_secs(4), "{took:?}");
    first.write(10).await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert_eq!(second.pg.log_end().await.unwrap(), end);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_and_the_position_survive_a_kill() {
    let cluster = Cluster::running(2).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    first.write(5000).await;
    let flushed = first.flushed().await;
    until("received", || async { second.pg.probe().await.end >= Some(flushed) }).await;
    let (end, _) = second.recruit().await;
    second.process.kill_all();
    until("gone", || is(second, ServerState::Down)).await;
    let unclean = second.pg.log_end().await;
    assert!(matches!(unclean, Err(EngineError::NotYet(_))), "{unclean:?}");
    second.pg.start_standby(second.copy(), None).await.unwrap();
    first.write(10).await;
    assert_eq!(second.pg.recruit().await.unwrap(), end, "the end of the log on disk changed with a restart");
    assert!(second.processes("walreceiver").is_empty());
    // A crashed primary, started as a standby: all that it had flushed.
    let client = first.admin().await;
    value(&client, "insert into ledger (note) select 'last' from generate_series(1, 20000)").await;
    let flushed = first.flushed().await;
    first.process.kill_all();
    until("gone", || is(first, ServerState::Down)).await;
    first.pg.start_standby(first.copy(), None).await.unwrap();
    let end = first.pg.recruit().await.unwrap();
    assert!(end.position.lsn >= flushed, "{} < {flushed}", end.position);
    // Stopped in order, the same end is read from the files alone.
    first.process.kill_all();
    until("gone", || is(first, ServerState::Down)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_holds_up_replay_does_not_hold_up_a_recruit() {
    let cluster = Cluster::running(2).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    let end = conflicting_query(first, second).await;
    let (found, took) = second.recruit().await;
    assert!(found.position.lsn >= end && took < Duration::from_secs(4), "{took:?}");
}

/// A query on the replica that conflicts with what it must replay; returns what the primary has flushed.
pub(crate) async fn conflicting_query(
    first: &crate::support::Node,
    second: &crate::support::Node,
) -> mainstay_model::Lsn {
    first.write(1000).await;
    let flushed = first.flushed().await;
    until("replayed", || async { second.pg.probe().await.replay >= Some(flushed) }).await;
    let reader = second.app().await.unwrap();
    tokio::spawn(async move {
        let _ = reader
            .batch_execute("begin isolation level repeatable read; select count(*) from pg_class; select pg_sleep(60)")
            .await;
    });
    until("the query runs", || async {
        second.sql("select count(*) from pg_stat_activity where query like '%pg_sleep(60)%' and usename = 'app'").await
            != "0"
    })
    .await;
    first.sql("delete from ledger").await;
    first.sql("vacuum ledger").await;
    first.sql("drop table ledger").await;
    let flushed = first.flushed().await;
    until("received", || async { second.pg.probe().await.end >= Some(flushed) }).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(second.pg.probe().await.replay < Some(flushed), "nothing held up the replay");
    flushed
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_server_stopped_in_order_is_read_from_its_files() {
    let cluster = Cluster::running(2).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    first.write(500).await;
    let keep = [second.id.clone()].into();
    let end = first.pg.stop_clean(&keep).await.unwrap();
    assert_eq!(first.pg.log_end().await.unwrap(), end);
    // The replica received the last record of the shutdown before the old primary went.
    let (other, _) = second.recruit().await;
    assert_eq!(other, end);
    second.promote(&setting(0, &[]), &other, 2).await;
    // Pure continuation: the stopped server follows without a rewind.
    first.pg.start_standby(first.copy(), Some(&second.id)).await.unwrap();
    first.until_receiving().await;
}

//! What became of a transaction, and where a life of a primary begins: numbers do come again.

use crate::support::{Cluster, Node, is, setting, until, value};
use mainstay_model::outcome::CommitAnswer;
use mainstay_model::{Lsn, ServerState, Timeline};
use mainstay_ports::engine::Engine;

/// Begins a transaction as a proxy knows it: its session, its number, and where a record of it ends.
async fn begun(node: &Node) -> (tokio_postgres::Client, u64, Lsn) {
    let client = node.admin().await;
    client.batch_execute("begin").await.unwrap();
    let said =
        value(&client, "select pg_current_xact_id() || '|' || pg_logical_emit_message(true, 'mainstay', '')").await;
    let (number, at) = said.split_once('|').unwrap();
    (client, number.parse().unwrap(), at.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_in_place_says_up_to_where_it_found_the_log_and_numbers_come_again_only_behind() {
    let cluster = Cluster::running(1).await;
    let node = &cluster.nodes[0];
    let mut again = 0;
    for _ in 0..6 {
        let before = node.pg.primary_run().await.unwrap();
        assert_eq!(before.id.timeline, Timeline(1));
        // Committed with others' records behind it, and one that is only begun: its records are in memory, mostly.
        let (kept, kept_number, kept_at) = begun(node).await;
        kept.batch_execute("commit").await.unwrap();
        let (_open, number, at) = begun(node).await;
        node.process.kill_all();
        until("the server is gone", || is(node, ServerState::Down)).await;
        node.pg.restart_in_place(None).await.unwrap();
        let run = node.pg.primary_run().await.unwrap();
        assert!(run.id.started != before.id.started && run.past.0.is_empty(), "{run:?}");
        let from = run.from.expect("nothing came between the start and the look");
        assert!(from >= kept_at, "it was flushed by its commit");
        assert_eq!(node.pg.transaction(kept_number).await.unwrap(), CommitAnswer::Committed);
        let (next, next_number, _) = begun(node).await;
        next.batch_execute("commit").await.unwrap();
        let comes_again = next_number == number;
        assert!(!comes_again || from < at, "{number} was handed out twice, and its record is there: {from} {at}");
        if from >= at {
            assert_eq!(node.pg.transaction(number).await.unwrap(), CommitAnswer::Aborted);
        }
        again += u32::from(comes_again);
    }
    assert!(again > 0, "no number came again: the test shows nothing");
    // A life that goes on stays the same one, whoever asks.
    let run = node.pg.primary_run().await.unwrap();
    node.sql("checkpoint").await;
    assert_eq!(node.pg.primary_run().await.unwrap(), run);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_counts_when_its_replicas_hold_it_and_a_promotion_tells_its_fork() {
    let cluster = Cluster::running(2).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    first.pg.set_sync(&setting(1, &[second])).await.unwrap();
    let (client, number, _) = begun(first).await;
    assert!(matches!(first.pg.transaction(number).await.unwrap(), CommitAnswer::Later(_)));
    client.batch_execute("commit").await.unwrap();
    assert_eq!(first.pg.transaction(number).await.unwrap(), CommitAnswer::Committed);
    let (client, undone, _) = begun(first).await;
    client.batch_execute("rollback").await.unwrap();
    assert_eq!(first.pg.transaction(undone).await.unwrap(), CommitAnswer::Aborted);
    // Its wait ends with its session: it is committed here, and nobody else has it.
    let receivers = second.processes("walreceiver");
    assert!(!receivers.is_empty());
    for pid in &receivers {
        second.stop_process(*pid).await;
    }
    let (client, alone, _) = begun(first).await;
    let waits = tokio::spawn(async move { client.batch_execute("commit").await });
    until("it waits", || async {
        first.sql("select count(*) from pg_stat_activity where wait_event = 'SyncRep'").await == "1"
    })
    .await;
    assert!(matches!(first.pg.transaction(alone).await.unwrap(), CommitAnswer::Later(_)), "it is in progress");
    first.sql("select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'").await;
    assert!(waits.await.unwrap().is_err());
    until("its session is gone", || async {
        first.sql(&format!("select pg_xact_status('{alone}')")).await == "committed"
    })
    .await;
    let answer = first.pg.transaction(alone).await.unwrap();
    assert!(matches!(answer, CommitAnswer::Later(_)), "nobody else holds it: {answer:?}");
    receivers.iter().for_each(|pid| crate::support::kill(*pid, rustix::process::Signal::CONT));
    until("it is held", || async { first.pg.transaction(alone).await.unwrap() == CommitAnswer::Committed }).await;

    first.process.kill_all();
    let (end, _) = second.recruit().await;
    assert!(second.pg.primary_run().await.is_err(), "a standby has no run");
    second.promote(&setting(0, &[]), &end, 2).await;
    let run = second.pg.primary_run().await.unwrap();
    assert_eq!((run.id.timeline, run.from, run.past.0.last()), (Timeline(2), None, Some(&end.position)));
    assert_eq!(second.pg.transaction(alone).await.unwrap(), CommitAnswer::Committed);
}

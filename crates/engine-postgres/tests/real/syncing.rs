//! The synchronous setting: names with copies, confirmation by every walsender, no waiting for the dead.

use crate::support::{Cluster, kill, setting, until};
use mainstay_model::{CopyId, Lsn, SyncSetting};
use mainstay_ports::engine::{Engine, EngineError};
use rustix::process::Signal;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn commits_wait_for_the_named_copy_and_for_no_other_of_the_same_node() {
    let cluster = Cluster::running(2).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    let began = Instant::now();
    let confirmed = first.pg.set_sync(&setting(1, &[second])).await.unwrap();
    println!("from nobody to one: {:?}", began.elapsed());
    first.write(10).await;
    assert!(first.flushed().await > confirmed);
    // The same node with another copy is nobody: commits block.
    let other = CopyId::new(0xdead).unwrap();
    let stranger = SyncSetting { need: 1, copies: [(second.id.clone(), other)].into() };
    first.pg.set_sync(&stranger).await.unwrap();
    let client = first.app().await.unwrap();
    let commit = tokio::spawn(async move { client.batch_execute("create table waits (id int)").await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!commit.is_finished(), "another copy confirmed");
    first.pg.set_sync(&setting(1, &[second])).await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), commit).await.unwrap().unwrap().unwrap();
    // More confirmations than copies: blocks as well; none: nobody waits.
    first.pg.set_sync(&setting(2, &[second])).await.unwrap();
    let client = first.app().await.unwrap();
    let commit = tokio::spawn(async move { client.batch_execute("create table waits_too (id int)").await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!commit.is_finished());
    first.pg.set_sync(&setting(0, &[])).await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), commit).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_walsender_that_has_not_read_the_setting_delays_its_confirmation() {
    let cluster = Cluster::running(3).await;
    let [first, second, third] = &cluster.nodes[..] else { panic!() };
    first.pg.set_sync(&setting(1, &[second, third])).await.unwrap();
    let senders = first.walsenders(2).await;
    kill(senders[0], Signal::STOP);
    let (pg, smaller) = (first.pg.clone(), setting(1, &[third]));
    let change = tokio::spawn(async move { pg.set_sync(&smaller).await });
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!change.is_finished(), "confirmed although one walsender still releases commits by the old setting");
    kill(senders[0], Signal::CONT);
    change.await.unwrap().unwrap();
    // One that never goes on: no confirmation at all.
    until("both stream", || async { first.pg.probe().await.walsenders.iter().filter(|w| w.streaming).count() == 2 })
        .await;
    let senders = first.walsenders(2).await;
    kill(senders[0], Signal::STOP);
    let change = first.pg.set_sync(&setting(1, &[second])).await;
    assert!(matches!(change, Err(EngineError::NotYet(_))), "{change:?}");
    kill(senders[0], Signal::CONT);
    until("it is gone or confirms", || async { first.pg.set_sync(&setting(1, &[second])).await.is_ok() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_before_a_switchover_is_written_while_clients_work() {
    let cluster = Cluster::running(2).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    let client = first.app().await.unwrap();
    first.write(500).await;
    let flushed = first.flushed().await;
    first.pg.checkpoint().await.unwrap();
    let redo = first.sql("select redo_lsn from pg_control_checkpoint()").await;
    assert!(redo.parse::<Lsn>().unwrap() >= flushed, "{redo} is before {flushed}");
    client.simple_query("select 1").await.unwrap();
    let standby = second.pg.checkpoint().await;
    assert!(matches!(standby, Err(EngineError::NotYet(_))), "{standby:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_does_not_answer_is_dropped_from_a_confirmation_and_from_a_switchover() {
    let cluster = Cluster::running(3).await;
    let [first, second, third] = &cluster.nodes[..] else { panic!() };
    first.pg.set_sync(&setting(1, &[second, third])).await.unwrap();
    let receiver = third.processes("walreceiver");
    kill(receiver[0], Signal::STOP);
    let began = Instant::now();
    first.pg.set_sync(&setting(1, &[second])).await.unwrap();
    let took = began.elapsed();
    assert!(took > Duration::from_millis(900), "nobody waited for it: {took:?}");
    kill(receiver[0], Signal::CONT);
    until("both stream", || async { first.pg.probe().await.walsenders.iter().filter(|w| w.streaming).count() == 2 })
        .await;
    first.write(10).await;
    kill(third.processes("walreceiver")[0], Signal::STOP);
    first.write(10).await;
    let given_up = || {
        let log = std::fs::read_to_string(first.options.layout.server_log()).unwrap();
        log.matches("due to replication timeout").count()
    };
    let (began, before) = (Instant::now(), given_up());
    let end = first.pg.stop_clean(&[second.id.clone()].into()).await.unwrap();
    let took = began.elapsed();
    println!("stop with a dead replica: {took:?}");
    assert_eq!(given_up(), before, "the stop waited for a dead replica: {took:?}");
    let (other, _) = second.recruit().await;
    assert_eq!(other, end);
    kill(third.processes("walreceiver").first().copied().unwrap_or(receiver[0]), Signal::CONT);
}

//! Settings that change while servers run, and those that a standby must hold at least as high as its primary.

use crate::support::{Cluster, Node, setting, until};
use mainstay_ports::engine::Engine;

fn names(refused: &[(String, String)]) -> Vec<&str> {
    refused.iter().map(|(name, _)| name.as_str()).collect()
}

fn file(node: &Node) -> String {
    let text = std::fs::read_to_string(node.options.layout.conf().join("postgresql.conf")).unwrap();
    // Without the generation, which any write raises.
    text.lines().filter(|line| !line.contains("generation")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_refuses_changes_nothing_and_comes_back_in_its_own_words() {
    let cluster = Cluster::running(1).await;
    let node = &cluster.nodes[0];
    let before = (file(node), std::fs::read_to_string(node.options.layout.conf().join("pg_hba.conf")).unwrap());
    let cases = [
        ("work_mem", "much", "invalid value for parameter \"work_mem\": \"much\""),
        ("work_memory", "1MB", "unrecognized configuration parameter"),
        ("max_connections", "5", "no connection is left"),
        ("shared_preload_libraries", "no_such_library", "no library \"no_such_library\""),
        ("port", "1", "set by Mainstay"),
    ];
    for (name, value, words) in cases {
        let said =
            node.pg.configure(&node.settings_with(&[("maintenance_work_mem", "99MB"), (name, value)])).await.unwrap();
        assert_eq!(names(&said.refused), [name], "{said:?}");
        assert!(said.refused[0].1.contains(words), "{said:?}");
        assert_eq!(file(node), before.0, "{name}");
    }
    let mut settings = node.settings_with(&[("work_mem", "7MB")]);
    settings.hba = vec!["host all all not/an/address scram-sha-256".to_owned()];
    let said = node.pg.configure(&settings).await.unwrap();
    assert_eq!(names(&said.refused), ["postgres.hba"], "{said:?}");
    let after = (file(node), std::fs::read_to_string(node.options.layout.conf().join("pg_hba.conf")).unwrap());
    assert_eq!(after, before);
    assert_eq!(node.sql("show work_mem").await, "4MB");
    node.app().await.unwrap();
    assert!(!node.options.layout.conf().join("candidate.conf").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_taken_at_once_or_wait_for_a_restart_and_a_stopped_server_takes_them_at_its_start() {
    let cluster = Cluster::running(1).await;
    let node = &cluster.nodes[0];
    let mut settings = node.settings_with(&[("work_mem", "7MB"), ("shared_buffers", "24MB")]);
    settings.hba = vec!["host all app 127.0.0.0/8 reject".to_owned()];
    let said = node.pg.configure(&settings).await.unwrap();
    assert_eq!((said.pending_restart, said.refused), (vec!["shared_buffers".to_owned()], Vec::new()));
    assert_eq!(node.sql("show work_mem").await, "7MB");
    assert_eq!(node.sql("show shared_buffers").await, "16MB");
    assert!(node.app().await.is_err(), "the new access line does not count");
    node.restart_primary().await;
    assert_eq!(node.sql("show shared_buffers").await, "24MB");
    assert!(node.pg.configure(&settings).await.unwrap().pending_restart.is_empty());
    node.kill().await;
    let wrong = node.pg.configure(&node.settings_with(&[("work_mem", "much")])).await.unwrap();
    assert_eq!(names(&wrong.refused), ["work_mem"]);
    node.pg.configure(&node.settings_with(&[("work_mem", "9MB")])).await.unwrap();
    node.pg.restart_in_place(None).await.unwrap();
    node.pg.open().await.unwrap();
    assert_eq!(node.sql("show work_mem").await, "9MB");
    node.app().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn raising_goes_replicas_first_and_lowering_primary_first_and_no_standby_breaks() {
    const ALL: &str = "select string_agg(setting, ',' order by name) from pg_settings where name in \
        ('max_connections', 'max_locks_per_transaction', 'max_prepared_transactions', 'max_wal_senders', 'max_worker_processes')";
    let cluster = Cluster::running(2).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    let refused = first.pg.stop_standby().await;
    assert!(
        matches!(refused, Err(mainstay_ports::engine::EngineError::Failed(_))),
        "a primary was stopped: {refused:?}"
    );
    let high = [
        ("max_connections", "300"),
        ("max_locks_per_transaction", "96"),
        ("max_prepared_transactions", "5"),
        ("max_wal_senders", "30"),
        ("max_worker_processes", "12"),
    ];
    for node in [first, second] {
        assert_eq!(node.pg.configure(&node.settings_with(&high)).await.unwrap().pending_restart.len(), 5);
    }
    second.restart_standby(first).await;
    assert_eq!(second.sql(ALL).await, "300,96,5,30,12");
    first.restart_primary().await;
    assert_eq!(first.sql(ALL).await, "300,96,5,30,12");
    second.until_receiving().await;
    second.until_replayed(first).await;
    // Down again: the replica keeps the higher ones, also through a restart, until its primary has less.
    for node in [first, second] {
        let said = node.pg.configure(&node.settings_with(&[("max_connections", "100")])).await.unwrap();
        assert!(said.pending_restart.contains(&"max_connections".to_owned()), "{said:?}");
    }
    second.restart_standby(first).await;
    assert_eq!(second.sql(ALL).await, "300,96,5,30,12");
    second.until_replayed(first).await;
    let said = second.pg.configure(&second.settings_with(&[("max_connections", "100")])).await.unwrap();
    assert_eq!(said.pending_restart, ["max_connections"]);
    first.restart_primary().await;
    assert_eq!(first.sql("show max_connections").await, "100");
    second.until_receiving().await;
    second.until_replayed(first).await;
    second.restart_standby(first).await;
    assert_eq!(second.sql(ALL).await, "100,64,0,20,8");
    let said = second.pg.configure(&second.settings_with(&[("max_connections", "100")])).await.unwrap();
    assert!(said.pending_restart.is_empty(), "{said:?}");
    // One that is promoted with the higher values in force has the lower ones waiting.
    for node in [first, second] {
        node.pg.configure(&node.settings()).await.unwrap();
    }
    second.restart_standby(first).await;
    first.restart_primary().await;
    second.until_receiving().await;
    second.until_replayed(first).await;
    let lowest = second.settings_with(&[("max_connections", "60")]);
    second.pg.configure(&lowest).await.unwrap();
    second.restart_standby(first).await;
    first.process.kill_all();
    let (end, _) = second.recruit().await;
    second.promote(&setting(0, &[]), &end, 2).await;
    assert_eq!(second.sql("show max_connections").await, "200");
    assert_eq!(second.pg.configure(&lowest).await.unwrap().pending_restart, ["max_connections"]);
    second.pg.open().await.unwrap();
    second.restart_primary().await;
    assert_eq!(second.sql("show max_connections").await, "60");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_was_raised_first_holds_its_replica_up_until_that_restarts() {
    let cluster = Cluster::running(2).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    first.pg.configure(&first.settings_with(&[("max_connections", "333")])).await.unwrap();
    first.restart_primary().await;
    until("the symptom names the setting", || async {
        let seen = second.pg.probe().await;
        seen.silent > 0 && seen.symptom.is_some_and(|text| text.contains("max_connections is 200 here and 333"))
    })
    .await;
    second.restart_standby(first).await;
    second.until_replayed(first).await;
    assert_eq!(second.sql("show max_connections").await, "333");
    until("it is well", || async { second.pg.probe().await.silent == 0 }).await;
    // A pause by somebody's wish is no symptom.
    second.sql("select pg_wal_replay_pause()").await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    until("it is well although paused", || async {
        let seen = second.pg.probe().await;
        seen.silent == 0 && seen.symptom.is_none()
    })
    .await;
    assert_eq!(second.sql("select pg_get_wal_replay_pause_state()").await, "paused");
}

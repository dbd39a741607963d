//! Rewinding a diverged log, and cloning.

use crate::support::{Cluster, is, recruit_alike, setting, until, value};
use mainstay_model::{ServerState, Timeline};
use mainstay_ports::engine::{Engine, EngineError};

#[tokio::test(flavor = "multi_thread")]
async fn a_diverged_log_is_kept_reported_and_rewound() {
    let cluster = Cluster::running(2).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    first.write(100).await;
    let flushed = first.flushed().await;
    until("received", || async { second.pg.probe().await.end >= Some(flushed) }).await;
    let (end, _) = second.recruit().await;
    // The old primary goes on alone, then crashes.
    let client = first.admin().await;
    value(&client, "insert into ledger (note) select 'lost' from generate_series(1, 37)").await;
    first.process.kill_all();
    until("gone", || is(first, ServerState::Down)).await;
    second.promote(&setting(0, &[]), &end, 2).await;
    second.pg.open().await.unwrap();
    // Straight after the promotion, when pg_rewind on its own would say that nothing is to be done.
    let lost = first.pg.rewind(&second.id).await.unwrap().unwrap();
    println!("{lost:?}");
    let report = &lost.report;
    assert!(report.contains("1 committed transactions") && report.contains("insert 37"), "{report}");
    assert!(lost.from.timeline == Timeline(1) && lost.to > lost.from, "{lost:?}");
    let kept = std::fs::read_dir(first.options.layout.diverged()).unwrap().flatten().next().unwrap().path();
    assert!(
        kept.join("pg_control").exists() && kept.join("000000010000000000000001").exists()
            || std::fs::read_dir(&kept).unwrap().count() >= 2
    );
    assert!(first.options.layout.data().join("standby.signal").exists());
    assert!(is(first, ServerState::Down).await);
    first.pg.start_standby(first.copy(), Some(&second.id)).await.unwrap();
    first.until_receiving().await;
    second.write(1).await;
    let flushed = second.flushed().await;
    until("replayed", || async { first.pg.probe().await.replay >= Some(flushed) }).await;
    assert_eq!(first.sql("select count(*) from ledger where note = 'lost'").await, "0");
    assert_eq!(first.sql("select count(*) from ledger").await, "101");
    until("the new timeline shows", || async { first.pg.probe().await.timeline == Some(Timeline(2)) }).await;
    assert_eq!(first.sql("show port").await, first.options.port.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn both_primaries_of_two_quick_take_overs_are_rewound() {
    let cluster = Cluster::running(3).await;
    let [first, second, third] = &cluster.nodes[..] else { panic!() };
    first.write(100).await;
    second.until_replayed(first).await;
    third.until_replayed(first).await;
    let end = recruit_alike(first, &[second, third]).await;
    let lost = |node| async move {
        value(
            &crate::support::Node::admin(node).await,
            "insert into ledger (note) select 'lost' from generate_series(1, 9)",
        )
        .await
    };
    lost(first).await;
    first.kill().await;
    let began = std::time::Instant::now();
    second.promote(&setting(0, &[]), &end, 2).await;
    third.pg.follow(third.copy(), &second.id).await.unwrap();
    third.until_replayed(second).await;
    let (end, _) = third.recruit().await;
    lost(second).await;
    // Before its first checkpoint: the control file still speaks of the timeline of before.
    second.kill().await;
    third.promote(&setting(0, &[]), &end, 3).await;
    third.pg.open().await.unwrap();
    println!("two take-overs in {:?}", began.elapsed());
    for (node, on) in [(second, 2), (first, 1)] {
        let began = std::time::Instant::now();
        let lost = node.pg.rewind(&third.id).await.unwrap().unwrap();
        println!("{} rewound in {:?}: {}", node.id, began.elapsed(), lost.report);
        assert!(lost.commits == Some(1) && lost.report.contains("insert 9"), "{}", lost.report);
        assert_eq!((lost.from.timeline, lost.to.timeline), (Timeline(on), Timeline(on)));
        node.pg.start_standby(node.copy(), Some(&third.id)).await.unwrap();
        node.until_replayed(third).await;
        assert_eq!(node.sql("select count(*) from ledger where note = 'lost'").await, "0");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_a_prefix_is_left_as_it_is() {
    let cluster = Cluster::running(2).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    second.recruit().await;
    first.write(10).await;
    assert_eq!(second.pg.rewind(&first.id).await.unwrap(), None);
    assert!(!second.options.layout.diverged().exists());
    second.pg.start_standby(second.copy(), Some(&first.id)).await.unwrap();
    second.until_receiving().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_keeps_the_old_data_aside_and_a_source_that_is_gone_changes_nothing() {
    let cluster = Cluster::running(2).await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    let before = second.copy();
    second.clone_from(first).await;
    assert_ne!(second.copy(), before);
    let dir = second.options.layout.dir();
    assert!(dir.join("data.old/PG_VERSION").exists() && !dir.join("data.new").exists());
    until("the new copy is known", || async {
        first.pg.probe().await.walsenders.iter().any(|w| w.copy == second.copy())
    })
    .await;
    first.process.kill_all();
    until("gone", || is(first, ServerState::Down)).await;
    let failed = (*second.pg).clone_from(&first.id, before).await;
    assert!(matches!(failed, Err(EngineError::NotYet(_))), "{failed:?}");
    let failed = second.pg.rewind(&first.id).await;
    assert!(matches!(failed, Err(EngineError::NotYet(_))), "{failed:?}");
    assert!(second.pg.has_data().await.is_some());
}

//! End to end on virtual hosts (needs root): one cluster for many faults, since making hosts is the slow part; a new one after a trial that did
//! not end as it must. Every fault is tried even if one before it failed; all that went wrong is named at the end.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use mainstay_model::Durability;
use mainstay_testkit::hosts::trial::{self, Settings};
use mainstay_testkit::hosts::{HostCluster, HostFault, Shape};

/// Runs these faults one after the other and asserts that each went as it must.
async fn survives(shape: Shape, faults: &[HostFault]) {
    let mut cluster = HostCluster::up(shape).await.unwrap();
    println!("{}: up after {:.1} s", shape.words(), cluster.up_took.as_secs_f64());
    let mut wrong = Vec::new();
    for fault in faults {
        match trial::run(&cluster, *fault, Settings::default()).await {
            Ok(report) => {
                println!("{}", report.line());
                assert!(report.verdict.acknowledged > 50 && report.single.acknowledged > 10, "{report:?}");
                wrong.extend(report.breaches().into_iter().map(|breach| format!("{}: {breach}", fault.name())));
            }
            Err(error) => {
                wrong.push(format!("{}: {error:#}", fault.name()));
                cluster = HostCluster::up(shape).await.unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", shape.words(), wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_on_three_hosts() {
    survives(Shape::THREE, &HostFault::ALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_alone_where_availability_was_chosen() {
    let shape = Shape { durability: Durability::Available, ..Shape::THREE };
    survives(shape, &[HostFault::ReplicasLost, HostFault::ServerKill]).await;
}

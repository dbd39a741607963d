//! A cluster on an etcd, on virtual hosts (needs root): what one node's wrong file does, and what an etcd does that went back while a node was off.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use mainstay_model::NodeId;
use mainstay_model::spec::StoreKind;
use mainstay_model::status::Status;
use mainstay_testkit::hosts::{HostCluster, Shape, etcd};
use mainstay_testkit::ledger::Ledger;
use std::time::{Duration, Instant};

const CONFIG: &str = "/etc/mainstay/mainstay.toml";
/// What an agent has seen is on its disk after this at the latest.
const KEPT: Duration = Duration::from_secs(12);
const PATIENT: Duration = Duration::from_secs(60);

async fn up() -> (HostCluster, NodeId) {
    let cluster = HostCluster::up(Shape::THREE.on(StoreKind::Etcd)).await.unwrap();
    let status = cluster.healed(PATIENT).await.unwrap();
    let (primary, _) = cluster.primary(&status).unwrap();
    let replica = cluster.data_nodes().map(|(name, _)| name.clone()).find(|name| *name != primary).unwrap();
    (cluster, replica)
}

async fn until(cluster: &HostCluster, what: &str, so: impl Fn(&Status) -> bool) -> Status {
    let begun = Instant::now();
    loop {
        let status = cluster.status().await;
        if let Ok(status) = &status
            && so(status)
        {
            return status.clone();
        }
        if begun.elapsed() > PATIENT {
            cluster.show_logs();
            panic!("not in time: {what}: {status:#?}");
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

fn has(status: &Status, problem: &str, words: &[&str]) -> bool {
    let holds = |evidence: &str| words.iter().all(|word| evidence.contains(word));
    status.problems.iter().any(|found| found.name == problem && holds(&found.evidence))
}

/// Ends a node's agent; it is started again at once, and reads its file.
async fn restart_agent(cluster: &HostCluster, node: &NodeId) {
    cluster.host(node).unwrap().run(&["sh", "-c", "kill -9 $(pgrep -f ' agent --config' | head -1)"]).await.unwrap();
}

/// `[store]` of one node's file leads to a copy of the etcd: that node refuses it and says so, and the others go on.
#[tokio::test(flavor = "multi_thread")]
async fn one_nodes_wrong_file_concerns_that_node_only() {
    let (cluster, node) = up().await;
    let client = cluster.client.inside().unwrap();
    let ledger = Ledger::start_on(client.handle(), &cluster.uri(), 2).await.unwrap();
    let copy = cluster.dir().join("copy.db");
    etcd::save(&cluster, &copy).await.unwrap();
    let url = etcd::serve_copy(&cluster, &copy).await.unwrap();
    tokio::time::sleep(KEPT).await;
    let file = cluster.host(&node).unwrap().path(CONFIG);
    let right = std::fs::read_to_string(&file).unwrap();
    let lines = right.lines().map(|line| match line.starts_with("endpoints") {
        true => format!("endpoints = [\"{url}\"]"),
        false => line.to_owned(),
    });
    let wrong = lines.collect::<Vec<_>>().join("\n");
    assert_ne!(wrong.trim(), right.trim());
    std::fs::write(&file, wrong).unwrap();
    let term = cluster.status().await.unwrap().cluster.term;
    restart_agent(&cluster, &node).await;
    let words = [node.as_str(), "leads to another etcd", "Mend store.endpoints"];
    let status = until(&cluster, "the node says so", |status| has(status, "store-cut-off", &words)).await;
    assert!(!has(&status, "store-distrusted", &[]), "{:#?}", status.problems);
    assert_eq!((status.cluster.writable, status.cluster.term), (true, term));
    // Not for a moment only, and there is nothing to recover.
    tokio::time::sleep(Duration::from_secs(5)).await;
    ledger.progress(20, Duration::from_secs(10)).await.unwrap();
    let refused = cluster.run(&["recover", "--from", node.as_str(), "--yes"], PATIENT).await.unwrap_err();
    assert!(format!("{refused:#}").contains("the store works"), "{refused:#}");
    // Another node may still become the primary meanwhile.
    cluster.run(&["switchover", "--yes"], PATIENT).await.unwrap();
    std::fs::write(&file, right).unwrap();
    restart_agent(&cluster, &node).await;
    cluster.healed(PATIENT).await.unwrap();
    let status = until(&cluster, "no problem is left", |status| status.problems.is_empty()).await;
    assert!(status.cluster.writable);
    let records = ledger.finish().await.unwrap();
    let verdict = records.verify_on(client.handle()).await.unwrap();
    assert!(verdict.acknowledged > 100 && verdict.lost.is_empty() && verdict.duplicated.is_empty(), "{verdict:?}");
}

/// The other direction: etcd went back while one node was off, and the others remember nothing that it lacks. The one that comes back is believed by
/// all, although it has just started, too.
#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_went_back_while_a_node_was_off_is_believed_by_nobody() {
    let (cluster, node) = up().await;
    let copy = cluster.dir().join("copy.db");
    etcd::save(&cluster, &copy).await.unwrap();
    // The copy lacks two renewals of the claim for each second of this, and nothing else: no promise shows it.
    tokio::time::sleep(KEPT * 2).await;
    for (name, host) in &cluster.hosts {
        cluster.keep(name, false).unwrap();
        host.kill_everything().unwrap();
    }
    etcd::restore(&cluster, &copy).await.unwrap();
    for (name, host) in cluster.hosts.iter().filter(|(name, _)| **name != node) {
        // As if these had seen nothing of it.
        host.run(&["rm", "-rf", "/var/lib/mainstay/orders/agent/etcd.json"]).await.unwrap();
        cluster.keep(name, true).unwrap();
    }
    until(&cluster, "they go by it", |status| status.cluster.writable).await;
    cluster.keep(&node, true).unwrap();
    let evidence = format!("{node}:");
    let status = until(&cluster, "nobody believes it", |status| {
        has(status, "store-distrusted", &[&evidence]) && !status.cluster.writable
    });
    let status = status.await;
    assert!(!has(&status, "store-cut-off", &["leads to another etcd"]), "{:#?}", status.problems);
    // A start does not end that: it is on the disk.
    restart_agent(&cluster, &node).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    until(&cluster, "nor is it forgotten", |status| has(status, "store-distrusted", &[&evidence])).await;
}

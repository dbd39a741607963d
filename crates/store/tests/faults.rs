//! Faults that a process can make for itself: cuts, loss, stops, lost and torn directories; and changes of leader and members.

#![allow(clippy::unwrap_used)] // The helpers of tests, too, end the test when something is wrong.

mod common;

use common::cluster::{Cluster, PATIENT, node};
use mainstay_model::NodeId;
use mainstay_ports::store::{CasOutcome, Store};
use mainstay_ports::store_suite::{Count, Fixture as _, add, number, put};
use mainstay_store::{Member, RaftError, rebuild, set_aside};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

const SHORT: Duration = Duration::from_millis(1500);

async fn started() -> (Cluster, NodeId) {
    let cluster = Cluster::start(4096).await;
    let leader = cluster.leader(&cluster.nodes).await;
    (cluster, leader)
}

fn journal(dir: &Path) -> PathBuf {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("journal-")).max().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_cut_off_steps_down_and_promises_nothing() {
    let (cluster, old) = started().await;
    let others = cluster.others(&old);
    let before = put(cluster.store(&old).as_ref(), "k", b"before").await;
    cluster.wire.split(&[std::slice::from_ref(&old), &others]);
    let cut_off = Arc::clone(cluster.store(&old));
    let at_once = cut_off.compare_and_set("k", Some(before), b"at once".to_vec(), SHORT).await;
    assert_eq!(at_once, CasOutcome::Unknown, "it was in the log and may still get through");
    let mut leader = cut_off.watch_leader();
    timeout(PATIENT, leader.wait_for(Option::is_none)).await.unwrap().unwrap();
    let later = cut_off.compare_and_set("k", Some(before), b"later".to_vec(), SHORT).await;
    assert!(matches!(later, CasOutcome::Unavailable(_)), "nobody proposed it: {later:?}");
    assert!(cut_off.read("k", SHORT).await.is_err(), "a leader of the past must not answer reads");
    let new = cluster.leader(&others).await;
    put(cluster.store(&new).as_ref(), "k", b"by the majority").await;
    cluster.wire.heal();
    let read = cut_off.read("k", PATIENT).await.unwrap().unwrap();
    assert_eq!(read.value, b"by the majority", "what the old leader kept to itself is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_proposal_is_known_to_be_lost() {
    let (cluster, old) = started().await;
    let others = cluster.others(&old);
    let before = put(cluster.store(&old).as_ref(), "k", b"before").await;
    cluster.wire.split(&[std::slice::from_ref(&old), &others]);
    let cut_off = Arc::clone(cluster.store(&old));
    let waiting =
        tokio::spawn(async move { cut_off.compare_and_set("k", Some(before), b"lost".to_vec(), PATIENT).await });
    let new = cluster.leader(&others).await;
    put(cluster.store(&new).as_ref(), "k", b"kept").await;
    cluster.wire.heal();
    // Its place in the log was taken, so it is not tried blindly but found to conflict.
    let outcome = waiting.await.unwrap();
    assert!(matches!(&outcome, CasOutcome::Conflict(Some(now)) if now.value == b"kept"), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_hears_nothing_does_not_disturb_the_leader() {
    let (cluster, leader) = started().await;
    let deaf = cluster.others(&leader)[0].clone();
    for other in cluster.others(&deaf) {
        cluster.wire.cut_one_way(&other, &deaf);
    }
    let mut watch = cluster.store(&leader).watch_leader();
    let changed = timeout(Duration::from_secs(3), watch.wait_for(|seen| seen.as_ref() != Some(&leader))).await;
    assert!(changed.is_err(), "the leader lost its place to a member that only asks");
    assert!(cluster.store(&deaf).leader().is_none(), "the deaf member must have noticed, else nothing was tested");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_connection_is_evidence_enough_for_a_new_leader() {
    let (mut cluster, mut old) = started().await;
    let mut times = Vec::new();
    for _ in 0..4 {
        let others = cluster.others(&old);
        let mut watches: Vec<_> = others.iter().map(|node| cluster.store(node).watch_leader()).collect();
        cluster.wire.down(&old, true);
        let start = Instant::now();
        for watch in &mut watches {
            let new = |seen: &Option<NodeId>| seen.as_ref().is_some_and(|seen| *seen != old);
            timeout(PATIENT, watch.wait_for(new)).await.unwrap().unwrap();
        }
        times.push(start.elapsed());
        cluster.stores.remove(&old).unwrap().stop().await;
        cluster.up(&old).await;
        put(cluster.store(&old).as_ref(), "k", b"back").await;
        old = cluster.leader(&cluster.nodes).await;
    }
    println!("a new leader after the old one's connections closed: {times:?}");
    // Whoever only waits for the time-out is never as fast, however fast the machine is.
    assert!(times.iter().any(|took| *took < Duration::from_millis(500)), "no faster than the time-out: {times:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_hold_under_loss_delay_cuts_and_restarts() {
    let mut cluster = Cluster::start(40).await;
    cluster.wire.trouble(10, Duration::from_millis(3));
    let end = Instant::now() + Duration::from_secs(12);
    let mut writers = Vec::new();
    for door in cluster.doors().into_iter().take(2) {
        writers.push(tokio::spawn(async move {
            let mut total = Count::default();
            while Instant::now() < end {
                let count = add(door.as_ref(), "count", 1, Duration::from_millis(700)).await;
                total.done += count.done;
                total.unknown += count.unknown;
            }
            total
        }));
    }
    let (victim, nodes) = (cluster.nodes[2].clone(), cluster.nodes.clone());
    let mut round = 0;
    while Instant::now() < end - Duration::from_secs(2) {
        sleep(Duration::from_millis(900)).await;
        let alone = round % nodes.len();
        let others = cluster.others(&nodes[alone]);
        match round % 2 {
            0 => cluster.wire.split(&[&nodes[alone..=alone], &others]),
            _ => {
                cluster.wire.split(&[]);
                cluster.down(&victim, round % 4 == 1).await;
                cluster.up(&victim).await;
            }
        }
        round += 1;
    }
    let (passed, lost) = cluster.wire.counts();
    cluster.wire.heal();
    let mut total = Count::default();
    for writer in writers {
        let count = writer.await.unwrap();
        total.done += count.done;
        total.unknown += count.unknown;
    }
    for door in cluster.doors() {
        let shown = number(door.read("count", PATIENT).await.unwrap().as_ref());
        assert!(shown >= total.done && shown <= total.done + total.unknown, "{shown} show of {total:?}");
    }
    println!("{passed} messages passed, {lost} did not; {total:?}");
    assert!(lost * 20 > passed, "there was no trouble: {lost} of {passed} lost");
    assert!(total.done > 20, "too little was written: {total:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_far_behind_catches_up_by_a_snapshot() {
    let mut cluster = Cluster::start(10).await;
    let leader = cluster.leader(&cluster.nodes).await;
    let late = cluster.others(&leader)[0].clone();
    cluster.down(&late, true).await;
    let old = journal(&cluster.dir(&late));
    // More than what is kept behind a snapshot, so that the entries alone are not enough.
    for round in 0..15_u8 {
        put(cluster.store(&leader).as_ref(), "big", &vec![round; 200_000]).await;
    }
    cluster.snapshot_every = 1_000_000;
    cluster.up(&late).await;
    let mut watch = cluster.store(&late).watch("big");
    let last = watch.wait_for(|seen| seen.as_ref().is_some_and(|seen| seen.value[0] == 14));
    timeout(PATIENT, last).await.unwrap().unwrap();
    assert_ne!(journal(&cluster.dir(&late)), old, "it takes no snapshots of its own, so this one came from the leader");
    // It is a full member again: it can make a majority, also from what it has on the disk.
    let third = cluster.others(&late).into_iter().find(|node| *node != leader).unwrap();
    cluster.down(&third, true).await;
    cluster.down(&late, true).await;
    cluster.up(&late).await;
    put(cluster.store(&late).as_ref(), "after", b"fine").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_journal_is_cut_and_the_member_goes_on() {
    let (mut cluster, leader) = started().await;
    put(cluster.store(&leader).as_ref(), "k", b"one").await;
    for victim in cluster.nodes.clone() {
        cluster.down(&victim, true).await;
        let path = journal(&cluster.dir(&victim));
        let bytes = std::fs::read(&path).unwrap();
        // As if a write had been under way: the beginning of a frame that says it is longer.
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(&bytes[..30]).unwrap();
        cluster.up(&victim).await;
        put(cluster.store(&victim).as_ref(), "torn", victim.as_str().as_bytes()).await;
    }
    assert_eq!(cluster.store(&leader).read("k", PATIENT).await.unwrap().unwrap().value, b"one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leadership_moves_where_it_is_asked_to() {
    let (cluster, leader) = started().await;
    let asker = cluster.others(&leader)[0].clone();
    for to in cluster.nodes.clone().into_iter().chain([leader]) {
        cluster.store(&asker).transfer_leader(&to).await.unwrap();
        assert_eq!(cluster.leader(&cluster.nodes).await, to);
        put(cluster.store(&asker).as_ref(), "k", to.as_str().as_bytes()).await;
    }
    let stranger = cluster.store(&asker).transfer_leader(&node("nobody")).await;
    assert!(matches!(stranger, Err(RaftError::Refused(_))), "{stranger:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go() {
    let (mut cluster, leader) = started().await;
    put(cluster.store(&leader).as_ref(), "k", b"kept").await;
    let (asker, gone) = (cluster.others(&leader)[0].clone(), cluster.others(&leader)[1].clone());
    let new = node("d");
    cluster.up(&new).await;
    assert!(cluster.store(&new).read("k", SHORT).await.is_err(), "whoever is no member knows nothing");
    cluster.store(&asker).add_member(&new).await.unwrap();
    let read = cluster.store(&new).read("k", PATIENT).await.unwrap().unwrap();
    assert_eq!(read.value, b"kept");
    let refused = cluster.store(&asker).remove_member(&leader).await;
    assert!(matches!(refused, Err(RaftError::Refused(_))), "the leader does not saw its own branch: {refused:?}");
    cluster.store(&asker).remove_member(&gone).await.unwrap();
    let member = |node: &NodeId| Member { node: node.clone(), learner: false };
    let mut expected = vec![member(&leader), member(&asker), member(&new)];
    expected.sort();
    assert_eq!(cluster.store(&leader).members(), expected);
    cluster.down(&gone, true).await;
    // The new member's vote counts: with one of the old ones it is a majority.
    cluster.down(&asker, true).await;
    put(cluster.store(&new).as_ref(), "k", b"with the new one").await;
    // Members are remembered over a restart, whatever the options say.
    cluster.up(&asker).await;
    for node in [&leader, &new] {
        cluster.down(node, true).await;
        cluster.up(node).await;
    }
    put(cluster.store(&new).as_ref(), "k", b"after the restart").await;
    assert_eq!(cluster.store(&new).members(), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lost_its_directory_does_not_vote_until_added_anew() {
    let (mut cluster, leader) = started().await;
    let others = cluster.others(&leader);
    let (lost, other) = (others[0].clone(), others[1].clone());
    put(cluster.store(&leader).as_ref(), "k", b"one").await;
    // The leader soon writes down which directories it has met.
    sleep(Duration::from_secs(2)).await;
    cluster.down(&lost, true).await;
    std::fs::remove_dir_all(cluster.dir(&lost)).unwrap();
    cluster.up(&lost).await;
    cluster.down(&leader, true).await;
    // The other one is a minority, whatever the member without memory would say.
    let outcome = cluster.store(&other).compare_and_set("x", None, b"x".to_vec(), Duration::from_secs(3)).await;
    assert!(matches!(outcome, CasOutcome::Unavailable(_)), "a forgotten vote was counted: {outcome:?}");
    assert_eq!(cluster.store(&other).leader(), None);
    cluster.up(&leader).await;
    cluster.store(&other).remove_member(&lost).await.unwrap();
    cluster.store(&other).add_member(&lost).await.unwrap();
    let read = cluster.store(&lost).read("k", PATIENT).await.unwrap().unwrap();
    assert_eq!(read.value, b"one");
    let leader = cluster.leader(&cluster.nodes).await;
    let third = cluster.others(&leader).into_iter().find(|node| *node != lost).unwrap_or_else(|| other.clone());
    cluster.down(&third, true).await;
    put(cluster.store(&lost).as_ref(), "k", b"two").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_on_followers_follow_at_once() {
    let (cluster, leader) = started().await;
    let follower = cluster.others(&leader)[0].clone();
    let mut watch = cluster.store(&follower).watch("k");
    let mut lags = Vec::new();
    let mut revision = None;
    for round in 0..100_u8 {
        let outcome = cluster.store(&leader).compare_and_set("k", revision, vec![round], PATIENT).await;
        let done = Instant::now();
        let CasOutcome::Done(at) = outcome else { panic!("{outcome:?}") };
        timeout(PATIENT, watch.wait_for(|seen| seen.as_ref().is_some_and(|seen| seen.revision >= at)))
            .await
            .unwrap()
            .unwrap();
        lags.push(done.elapsed());
        revision = Some(at);
    }
    lags.sort();
    println!("a follower shows a write {:?} (median), {:?} (p99) after the leader's answer", lags[50], lags[98]);
    // Far below a heartbeat: it is told, it does not find out.
    assert!(lags[50] < Duration::from_millis(50), "median {:?}", lags[50]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuilt_store_and_the_old_one_do_not_hear_each_other() {
    let (mut cluster, leader) = started().await;
    let old = put(cluster.store(&leader).as_ref(), "k", b"before").await;
    let me = cluster.others(&leader)[0].clone();
    let other = cluster.others(&leader)[1].clone();
    let mut seen = cluster.store(&me).watch("k");
    timeout(PATIENT, seen.wait_for(Option::is_some)).await.unwrap().unwrap();
    cluster.down(&me, true).await;
    let new = |_: &_| Ok(BTreeMap::from([("k".to_owned(), b"rebuilt".to_vec())]));
    rebuild(&cluster.dir(&me), &me, 77, new).unwrap();
    cluster.join(&me, 0).await;
    // Alone it is a majority, though the two others live and have one of their own.
    let read = cluster.store(&me).read("k", PATIENT).await.unwrap().unwrap();
    assert_eq!(read.value, b"rebuilt");
    assert!(read.revision > old);
    put(cluster.store(&leader).as_ref(), "k", b"old majority").await;
    put(cluster.store(&me).as_ref(), "k", b"new minority").await;
    let end = Instant::now() + PATIENT;
    while cluster.store(&me).foreign() == 0 {
        assert!(Instant::now() < end, "the old members never called: nothing was tested");
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(cluster.store(&me).standing().group, 77);
    assert_eq!(cluster.store(&me).standing().voters, std::slice::from_ref(&me));
    // An old member comes over: its directory is moved aside, and the new leader takes it in.
    cluster.down(&other, true).await;
    assert!(set_aside(&cluster.dir(&other)).unwrap().is_some());
    cluster.join(&other, 77).await;
    assert!(cluster.store(&other).standing().joining);
    cluster.store(&me).add_member(&other).await.unwrap();
    let read = cluster.store(&other).read("k", PATIENT).await.unwrap().unwrap();
    assert_eq!(read.value, b"new minority");
    assert!(!cluster.store(&other).standing().joining);
    // The group is remembered.
    for node in [&me, &other] {
        cluster.down(node, true).await;
        cluster.join(node, 0).await;
    }
    put(cluster.store(&other).as_ref(), "k", b"after the restart").await;
    assert_eq!(cluster.store(&me).standing().group, 77);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_directory_of_another_node_is_refused() {
    let (mut cluster, leader) = started().await;
    let (mine, thief) = (cluster.others(&leader)[0].clone(), node("d"));
    cluster.down(&mine, true).await;
    std::fs::rename(cluster.dir(&mine), cluster.dir(&thief)).unwrap();
    let options = mainstay_store::RaftOptions::new(thief.clone(), Vec::new(), cluster.dir(&thief));
    let refused =
        mainstay_store::RaftStore::start(options, cluster.wire.peers(&thief)).await.err().unwrap().to_string();
    assert!(refused.contains(&format!("belongs to the node {mine}")), "{refused}");
    assert!(refused.contains("mainstay node replace"), "{refused}");
}

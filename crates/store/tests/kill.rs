//! Members as real processes, killed with SIGKILL at any moment and restarted from their directories.
//!
//! Each test starts this test program again as the children; the environment tells a child what it is.

#![allow(clippy::unwrap_used)] // The helpers of tests, too, end the test when something is wrong.

mod common;

use common::process::{Candidate, Processes, child_spec, serve};
use mainstay_model::NodeId;
use mainstay_ports::store_suite::{self, Count, Fixture as _, add, number};
use mainstay_store::{RaftOptions, RaftStore};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// If this process is a child: be a member until killed.
fn child() {
    let Some(spec) = child_spec() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(serve(&spec, async |peers| {
        let voters = spec.addresses.keys().cloned().collect();
        let mut options = RaftOptions::new(spec.me.clone(), voters, spec.dir.clone());
        options.snapshot_every = 200;
        let (store, handlers) = RaftStore::start(options, peers).await.unwrap();
        Candidate { leader: store.watch_leader(), store, handlers }
    }));
}

fn again(test: &'static str) -> impl Fn() -> Command {
    move || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([test, "--exact", "--nocapture"]);
        command
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn the_suite_passes_when_restart_means_kill() {
    child();
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let mut processes = Processes::start(dir.path(), again("the_suite_passes_when_restart_means_kill")).await;
        processes.leader().await;
        store_suite::run(&mut processes).await;
    });
}

/// Adds until told to stop.
async fn add_until(processes: &Processes, stop: &Arc<AtomicBool>) -> Vec<tokio::task::JoinHandle<Count>> {
    let doors = processes.doors();
    let writers = (0..6).map(|writer| {
        let (door, stop) = (Arc::clone(&doors[writer % doors.len()]), Arc::clone(stop));
        tokio::spawn(async move {
            let mut total = Count::default();
            while !stop.load(Ordering::SeqCst) {
                let count = add(door.as_ref(), "killed", 1, Duration::from_millis(1500)).await;
                total.done += count.done;
                total.unknown += count.unknown;
            }
            total
        })
    });
    writers.collect()
}

async fn until_another_leads(processes: &Processes, old: &NodeId) -> Duration {
    let start = Instant::now();
    loop {
        let leader = processes.leader().await;
        if leader != *old {
            return start.elapsed();
        }
        assert!(start.elapsed() < Duration::from_secs(60), "no new leader after the death of {old}");
    }
}

#[test]
fn no_acknowledged_write_is_lost_or_doubled_by_kills() {
    child();
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let mut processes =
            Processes::start(dir.path(), again("no_acknowledged_write_is_lost_or_doubled_by_kills")).await;
        processes.leader().await;
        let stop = Arc::new(AtomicBool::new(false));
        let writers = add_until(&processes, &stop).await;
        let mut gaps = Vec::new();
        for round in 0..8 {
            tokio::time::sleep(Duration::from_millis(700)).await;
            let leader = processes.leader().await;
            let victims = if round % 4 == 3 { processes.nodes.clone() } else { vec![leader.clone()] };
            for victim in &victims {
                processes.kill(victim);
            }
            if victims.len() == 1 {
                gaps.push(until_another_leads(&processes, &leader).await);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            for victim in &victims {
                processes.up(victim);
            }
        }
        stop.store(true, Ordering::SeqCst);
        let mut total = Count::default();
        for writer in writers {
            let count = writer.await.unwrap();
            total.done += count.done;
            total.unknown += count.unknown;
        }
        for door in processes.doors() {
            let shown = number(door.read("killed", Duration::from_secs(20)).await.unwrap().as_ref());
            assert!(shown >= total.done, "{shown} show of {total:?}");
            assert!(shown <= total.done + total.unknown, "{shown} show of {total:?}");
        }
        assert!(total.done > 100, "too little was written to prove anything: {total:?}");
        gaps.sort();
        println!("new leader after kill: {gaps:?}; writes {total:?}");
    });
}

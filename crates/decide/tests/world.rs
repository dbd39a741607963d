//! Whole clusters of machines in a small perfect world: take-over, switchover, rejoin, founding, and every multi-step change
//! interrupted after every single output.
#![allow(clippy::unwrap_used, reason = "a test ends where it can not go on")]

mod common;

use common::{World, id};
use mainstay_decide::Input;
use mainstay_model::record::Durability;
use mainstay_model::{Command, NodeId, ServerState};

fn founded(nodes: &[&str], durability: Durability, n: u32) -> (World, NodeId) {
    let mut world = World::new(nodes, durability, n);
    let primary = world.settle(20_000).unwrap();
    (world, primary)
}

fn three() -> (World, NodeId) {
    founded(&["a", "b", "c"], Durability::Strict, 1)
}

#[test]
fn founding_ends_with_everybody_in_the_sync_set() {
    for durability in [Durability::Strict, Durability::Available, Durability::Async] {
        for nodes in [&["a", "b"][..], &["a", "b", "c"], &["a", "b", "c", "d", "e"]] {
            let n = (nodes.len() / 2) as u32;
            let (world, primary) = founded(nodes, durability, n);
            assert_eq!(primary, id("a"));
            assert!(world.now < 8000, "founding took {} ms", world.now);
        }
    }
}

#[test]
fn a_crashed_server_is_handed_over_at_once() {
    let (mut world, old) = three();
    let since = world.now;
    world.kill_server(&old);
    world.run(1);
    while world.primary().is_none() {
        world.run(1);
        assert!(world.now - since < 300, "{}", world.picture());
    }
    assert_ne!(world.primary(), Some(old));
    world.settle(5000).unwrap();
}

#[test]
fn a_dead_node_is_replaced_at_once_on_evidence_and_after_suspicion_without() {
    for (evidence, limit) in [(true, 400), (false, 2000)] {
        let (mut world, old) = three();
        let since = world.now;
        world.kill_node(&old);
        if evidence {
            world.show_all_refused(&old);
        }
        while world.primary().is_none() {
            world.run(1);
            assert!(world.now - since < limit, "{}", world.picture());
        }
        world.settle(5000).unwrap();
        world.restart_agent(&old);
        world.settle(10_000).unwrap();
    }
}

#[test]
fn a_switchover_is_short() {
    let (mut world, old) = three();
    let since = world.now;
    request(&mut world, &old, "c");
    while world.primary() != Some(id("c")) {
        world.run(1);
        assert!(world.now - since < 400, "{}", world.picture());
    }
    world.settle(5000).unwrap();
}

#[test]
fn a_cluster_that_was_killed_comes_back() {
    for durability in [Durability::Strict, Durability::Available, Durability::Async] {
        let (mut world, _) = founded(&["a", "b", "c"], durability, 1);
        for name in ["a", "b", "c"] {
            world.kill_node(&id(name));
        }
        world.run(5000);
        for name in ["c", "b", "a"] {
            world.restart_agent(&id(name));
        }
        world.settle(10_000).unwrap();
    }
}

#[test]
fn a_restarted_agent_adopts_its_running_primary_without_a_gap() {
    let (mut world, old) = three();
    world.run(50);
    world.restart_agent(&old);
    for _ in 0..3000 {
        world.run(1);
        assert_eq!(world.primary(), Some(old.clone()), "{}", world.picture());
    }
    world.settle(100).unwrap();
}

#[test]
fn two_nodes_strict_block_and_available_go_on() {
    for (durability, goes_on) in [(Durability::Strict, false), (Durability::Available, true)] {
        let (mut world, primary) = founded(&["a", "b"], durability, 1);
        world.kill_node(&id("b"));
        world.run(4000);
        assert_eq!(world.primary(), Some(primary.clone()));
        let before = world.acknowledged.last().copied();
        world.run(100);
        assert_eq!(world.acknowledged.last().copied() != before, goes_on, "{}", world.picture());
        let summary = world.nodes[&primary].mind.summary();
        assert_eq!((summary.blocked, summary.degraded), (!goes_on, goes_on));
        world.restart_agent(&id("b"));
        world.settle(5000).unwrap();
        world.run(3000);
        let summary = world.nodes[&primary].mind.summary();
        assert!(!summary.blocked && !summary.degraded);
    }
}

#[test]
fn without_a_fit_replica_the_server_restarts_in_place() {
    let (mut world, primary) = founded(&["a", "b"], Durability::Available, 1);
    world.kill_node(&id("b"));
    world.run(4000);
    world.kill_server(&primary);
    world.run(300);
    assert_eq!(world.primary(), Some(primary), "{}", world.picture());
    assert_eq!(world.store.as_ref().unwrap().1.term.0, 1);
}

fn request(world: &mut World, primary: &NodeId, to: &str) {
    world.input(
        primary,
        Input::Operator { id: 1, by: "test".to_owned(), command: Command::Switchover { to: Some(id(to)) } },
    );
}

/// A change, from a settled cluster.
type Change = fn(&mut World, &NodeId);

/// The change in a copy of this world, interrupted after so many outputs. `None`: it had fewer.
fn interrupted_once(
    settled: &World,
    old: &NodeId,
    change: Change,
    after: u64,
    whole: bool,
    traced: bool,
) -> Option<Result<(), String>> {
    let mut world = settled.clone();
    world.outputs = 0;
    world.traced = traced;
    world.interrupt_after = Some((after, whole));
    change(&mut world, old);
    world.run(1500);
    world.interrupted.as_ref()?;
    for name in ["a", "b", "c"] {
        if !world.nodes[&id(name)].alive {
            world.restart_agent(&id(name));
        }
    }
    let what = world.interrupted.clone().unwrap_or_default();
    Some(world.settle(8_000).map(drop).map_err(|text| format!("after output {after}, {what}: {text}")))
}

fn interrupted(change: Change, whole: bool) {
    let (mut settled, old) = three();
    settled.run(20);
    let mut steps = 0;
    for after in 1..400 {
        match interrupted_once(&settled, &old, change, after, whole, false) {
            None => break,
            Some(Ok(())) => steps += 1,
            Some(Err(_)) => panic!("{:?}", interrupted_once(&settled, &old, change, after, whole, true)),
        }
    }
    assert!(steps > 15, "only {steps} steps were interrupted");
}

fn crash(world: &mut World, old: &NodeId) {
    world.kill_server(old);
}
fn switch(world: &mut World, old: &NodeId) {
    request(world, old, "b");
}
fn lose_and_return(world: &mut World, old: &NodeId) {
    let replica = if *old == id("c") { id("b") } else { id("c") };
    world.kill_node(&replica);
    world.run(1300);
    world.restart_agent(&replica);
}
fn diverge_and_return(world: &mut World, old: &NodeId) {
    world.kill_node(old);
    // Unacknowledged writes that only the old primary has.
    world.nodes.get_mut(old).unwrap().db.end.position.lsn.0 += 500;
    world.show_all_refused(old);
    world.run(600);
    world.restart_agent(old);
}

#[test]
fn take_over_interrupted_after_every_output() {
    interrupted(crash, false);
}
#[test]
fn take_over_interrupted_with_the_whole_node_after_every_output() {
    interrupted(crash, true);
}
#[test]
fn switchover_interrupted_after_every_output() {
    interrupted(switch, false);
    interrupted(switch, true);
}
#[test]
fn sync_change_interrupted_after_every_output() {
    interrupted(lose_and_return, false);
    interrupted(lose_and_return, true);
}
#[test]
fn rejoin_interrupted_after_every_output() {
    interrupted(diverge_and_return, false);
    interrupted(diverge_and_return, true);
}

#[test]
fn a_diverged_node_is_rewound_and_streams() {
    let (mut world, old) = three();
    world.traced = true;
    diverge_and_return(&mut world, &old);
    world.settle(5000).unwrap();
    assert!(world.trace.iter().any(|line| line.contains("Rewind")), "it was rewound, not cloned");
    assert_eq!(world.nodes[&old].db.state, ServerState::Standby);
}

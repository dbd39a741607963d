//! Whole clusters of machines in a small perfect world: take-over, switchover, rejoin, founding, and every multi-step change
//! interrupted after every single output.
#![allow(clippy::unwrap_used, reason = "a test ends where it can not go on")]

mod common;

use common::{World, id};
use mainstay_decide::Input;
use mainstay_model::record::Durability;
use mainstay_model::{Command, NodeId, ServerState, Span, Term};

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
fn where_a_server_is_adopted_its_node_founds_and_nobody_else_ever_does() {
    let adopting = || {
        let mut world = World::new(&["a", "b", "c"], Durability::Strict, 1);
        world.configure(None, |config| config.founder = Some(id("c")));
        world
    };
    let mut world = adopting();
    assert_eq!(world.settle(20_000), Ok(id("c")));
    // However long it takes: the founder is down before it began, or after it had claimed the right.
    for before_ms in [0, 50, 100, 200, 400] {
        let mut world = adopting();
        world.run(before_ms);
        if world.primary().is_some() {
            continue;
        }
        world.kill_node(&id("c"));
        world.run(60_000);
        assert_eq!(world.primary(), None, "after {before_ms} ms: {}", world.picture());
    }
}

#[test]
fn a_store_that_is_away_is_told_of_once_however_often_a_node_stands() {
    let (mut world, old) = founded(&["a", "b"], Durability::Available, 1);
    world.run(3000);
    world.unanswered = Some((id("b"), false));
    world.kill_node(&old);
    world.reasons.clear();
    world.run(50_000);
    let told = |rule: &str| world.reasons.iter().filter(|text| text.starts_with(rule)).count();
    assert_eq!((told("b stand:"), told("b not-raised:")), (1, 1), "{:#?}", world.reasons);
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
fn a_switchover_loses_nothing_in_asynchronous_mode_either() {
    let (mut world, old) = founded(&["a", "b", "c"], Durability::Async, 1);
    world.run(300);
    request(&mut world, &old, "c");
    world.run(1500);
    assert_eq!(world.settle(5000), Ok(id("c")));
    assert_eq!(world.store.as_ref().unwrap().1.lossy, None, "the old primary answered");
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
    order(world, primary, Command::Switchover { to: Some(id(to)) });
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

#[test]
fn a_recovered_strict_cluster_opens_once_a_second_node_holds_everything() {
    let (mut world, old) = three();
    let [from, back] = [id("b"), id("c")];
    assert_eq!(old, id("a"));
    for name in [&old, &back] {
        world.kill_node(name);
    }
    world.run(100);
    world.recover(&from);
    world.run(4000);
    assert_eq!(world.nodes[&from].db.state, ServerState::Primary, "{}", world.picture());
    assert_eq!(world.primary(), None, "strict: alone it does not open");
    let warned = world.events.iter().find(|event| event.kind == "loss-possible").unwrap();
    for words in ["after a rebuilt store", "can not be known", "a, the last leader"] {
        assert!(warned.text.contains(words), "{words}: {}", warned.text);
    }
    world.restart_agent(&back);
    assert_eq!(world.settle(8000).as_ref(), Ok(&from));
    assert!(world.store.as_ref().unwrap().1.term > Term(1_000_000));
    // The old primary was on another host all the time, and comes back with its old log.
    world.restart_agent(&old);
    world.settle(8000).unwrap();
}

#[test]
fn a_wiped_node_lets_a_recovered_strict_cluster_open_too() {
    let (mut world, old) = founded(&["a", "b"], Durability::Strict, 1);
    world.kill_node(&id("b"));
    world.run(1500);
    world.kill_server(&old);
    world.recover(&old);
    world.run(4000);
    assert_eq!(world.primary(), None);
    let node = world.nodes.get_mut(&id("b")).unwrap();
    (node.durable, node.data, node.db) = (None, None, common::Db::default());
    world.restart_agent(&id("b"));
    assert_eq!(world.settle(8000).as_ref(), Ok(&old));
}

#[test]
fn a_node_is_removed_and_taken_in_again() {
    let (mut world, old) = three();
    let without = |config: &mut mainstay_decide::Config| config.data_nodes.retain(|name, _| *name != id("c"));
    world.configure(None, without);
    world.run(1500);
    let record = &world.store.as_ref().unwrap().1;
    assert_eq!(record.members.keys().cloned().collect::<Vec<_>>(), [id("a"), id("b")]);
    assert_eq!(world.nodes[&id("c")].db.state, ServerState::Down, "{}", world.picture());
    assert_eq!(world.primary(), Some(old.clone()));
    world.configure(None, |config| config.data_nodes.extend([(id("c"), 2)]));
    assert_eq!(world.settle(5000), Ok(old));
}

#[test]
fn a_removed_primary_hands_over_and_stops() {
    let (mut world, old) = three();
    world.configure(None, |config| config.data_nodes.retain(|name, _| *name != id("a")));
    world.run(3000);
    assert!(world.primary().is_some_and(|primary| primary != old), "{}", world.picture());
    assert_eq!(world.nodes[&old].db.state, ServerState::Down, "{}", world.picture());
}

#[test]
fn durability_changes_in_every_direction_while_running() {
    let modes = [Durability::Strict, Durability::Available, Durability::Async];
    for from in modes {
        for to in modes {
            let (mut world, primary) = founded(&["a", "b", "c"], from, 1);
            // Each node learns it at another time.
            for name in ["b", "a", "c"] {
                world.configure(Some(&id(name)), |config| config.durability = to);
                world.run(40);
            }
            world.run(2000);
            assert_eq!(world.settle(3000), Ok(primary.clone()), "{from} to {to}");
            let record = &world.store.as_ref().unwrap().1;
            let expected = if to == Durability::Async { (1, true) } else { (3, false) };
            assert_eq!((record.members.len(), record.asynchronous), expected, "{from} to {to}");
            world.kill_node(&primary);
            world.show_all_refused(&primary);
            world.run(6000);
            world.restart_agent(&primary);
            world.settle(8000).unwrap();
        }
    }
}

#[test]
fn while_paused_nothing_is_taken_over_and_a_switchover_works() {
    let (mut world, old) = three();
    world.configure(None, |config| config.paused = true);
    assert!(world.command(&old, Command::Switchover { to: Some(id("b")) }).is_ok());
    world.run(1500);
    assert_eq!(world.settle(3000), Ok(id("b")), "the old primary follows");
    world.kill_server(&id("b"));
    world.run(10_000);
    assert_eq!(world.primary(), None);
    assert_eq!(world.nodes[&id("b")].db.state, ServerState::Down);
    let (term, holder) = world.store.as_ref().map(|(_, record)| (record.term, record.holder.clone())).unwrap();
    assert_eq!(holder, Some(id("b")), "the claim is kept");
    world.configure(None, |config| config.paused = false);
    world.settle(5000).unwrap();
    assert!(world.store.as_ref().unwrap().1.term >= term);
}

#[test]
fn an_ordered_failover_needs_no_suspicion_and_tells_its_cause() {
    let (mut world, old) = three();
    assert!(world.command(&id("c"), Command::Failover { accept_data_loss: false }).is_ok());
    world.run(1000);
    assert_eq!(world.settle(5000), Ok(id("c")));
    assert_ne!(old, id("c"));
    let change = world.events.iter().filter_map(|event| event.change.clone()).next_back().unwrap();
    assert_eq!(
        (change.cause.as_str(), change.from, change.at_risk_bytes),
        ("failover to c, ordered by test", Some(old), None)
    );
}

#[test]
fn a_forced_failover_waits_for_the_lease_and_keeps_one_copy() {
    let (mut world, old) = founded(&["a", "b", "c"], Durability::Strict, 1);
    // Its lease is longer than what the others are configured with.
    world.configure(Some(&old), |config| (config.lease, config.margin) = (Span(6000), Span(1200)));
    world.run(1500);
    for name in [&old, &id("b")] {
        world.kill_node(name);
    }
    let since = world.now;
    assert!(world.command(&id("c"), Command::Failover { accept_data_loss: true }).is_ok());
    while world.nodes[&id("c")].db.state != ServerState::Primary {
        world.run(1);
        assert!(world.now - since < 9000, "{}", world.picture());
    }
    assert!(world.now - since > 6500, "after {} ms", world.now - since);
    let record = &world.store.as_ref().unwrap().1;
    assert_eq!((record.members.len(), record.quorum, record.lossy), (1, 0, Some(record.timeline)));
    assert!(world.events.iter().any(|event| event.kind == "forced" && event.text.contains("a, b")));
    world.restart_agent(&id("b"));
    world.restart_agent(&old);
    assert_eq!(world.settle(8000), Ok(id("c")));
}

#[test]
fn a_primary_restarts_in_place_and_a_replica_on_request() {
    let (mut world, old) = three();
    assert!(world.command(&old, Command::Restart { in_place: false }).is_err());
    assert!(world.command(&old, Command::Restart { in_place: true }).is_ok());
    world.run(20);
    assert!(world.command(&old, Command::Restart { in_place: true }).is_err());
    world.run(1000);
    assert_eq!(world.settle(3000), Ok(old.clone()));
    assert_eq!(world.store.as_ref().unwrap().1.term, Term(1));
    assert!(world.events.iter().any(|event| event.kind == "restarted"));
    let replica = id("c");
    assert!(world.command(&replica, Command::Restart { in_place: false }).is_ok());
    world.run(12);
    assert_eq!(world.nodes[&replica].db.state, ServerState::Down);
    assert_eq!(world.settle(3000), Ok(old));
}

#[test]
fn a_replica_is_cloned_anew_on_request() {
    let (mut world, old) = three();
    let replica = id("b");
    let copy = world.nodes[&replica].durable.as_ref().unwrap().copy;
    world.run(300);
    assert!(world.command(&old, Command::Reinit).is_err());
    assert!(world.command(&replica, Command::Reinit).is_ok());
    world.run(500);
    assert_eq!(world.settle(5000), Ok(old));
    assert_ne!(world.nodes[&replica].durable.as_ref().unwrap().copy, copy);
}

fn order(world: &mut World, node: &NodeId, command: Command) {
    world.input(node, Input::Operator { id: 1, by: "test".to_owned(), command });
}
fn restart_in_place(world: &mut World, old: &NodeId) {
    order(world, old, Command::Restart { in_place: true });
}
fn fail_over(world: &mut World, old: &NodeId) {
    let replica = if *old == id("c") { id("b") } else { id("c") };
    order(world, &replica, Command::Failover { accept_data_loss: true });
}
fn clone_anew(world: &mut World, old: &NodeId) {
    let replica = if *old == id("c") { id("b") } else { id("c") };
    world.run(300);
    order(world, &replica, Command::Reinit);
}
fn remove_and_return(world: &mut World, _: &NodeId) {
    world.configure(None, |config| config.data_nodes.retain(|name, _| *name != id("c")));
    world.run(600);
    world.configure(None, |config| config.data_nodes.extend([(id("c"), 2)]));
}
fn to_async_and_back(world: &mut World, _: &NodeId) {
    world.configure(None, |config| config.durability = Durability::Async);
    world.run(600);
    world.configure(None, |config| config.durability = Durability::Strict);
}

#[test]
fn commands_interrupted_after_every_output() {
    for change in [restart_in_place as Change, fail_over, clone_anew] {
        interrupted(change, false);
        interrupted(change, true);
    }
}
#[test]
fn configuration_changes_interrupted_after_every_output() {
    for change in [remove_and_return as Change, to_async_and_back] {
        interrupted(change, false);
        interrupted(change, true);
    }
}

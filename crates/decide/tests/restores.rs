//! Restores of the whole cluster in place, in the small perfect world: only the restored history goes on, whatever is interrupted.
#![allow(clippy::unwrap_used, reason = "a test ends where it can not go on")]

mod common;

use common::{World, id};
use mainstay_model::record::Durability;
use mainstay_model::{Command, NodeId, RouteState, ServerState, Timeline};

const MODES: [Durability; 3] = [Durability::Strict, Durability::Available, Durability::Async];

fn founded(durability: Durability) -> (World, NodeId) {
    let mut world = World::new(&["a", "b", "c"], durability, 1);
    let primary = world.settle(20_000).unwrap();
    world.run(500);
    (world, primary)
}

/// Every living node is on the restored path, under one primary.
fn restored(world: &World, timeline: Timeline) -> bool {
    world.nodes.values().filter(|node| node.alive).all(|node| {
        let end = &node.db.end;
        end.lineage.0.iter().any(|left| left.timeline == timeline)
    })
}

fn order(world: &mut World, node: &NodeId, back: u64) -> Timeline {
    let wanted = world.prepare(node, back, 9);
    let timeline = wanted.timeline;
    world.command(node, Command::Restore(Box::new(wanted))).unwrap();
    timeline
}

#[test]
fn all_nodes_go_on_from_the_moment_whoever_holds_the_copy() {
    for durability in MODES {
        for node in ["a", "b", "c"] {
            let (mut world, old) = founded(durability);
            assert_eq!(old, id("a"));
            world.traced = true;
            let timeline = order(&mut world, &id(node), 300);
            // The old primary never serves beside the new one.
            for _ in 0..12_000 {
                world.run(1);
                assert!(world.nodes.values().filter(|node| node.db.open).count() <= 1, "{}", world.picture());
            }
            assert_eq!(world.settle(5000), Ok(id(node)), "{durability}");
            assert!(restored(&world, timeline), "{}", world.picture());
            assert!(!world.trace.iter().any(|line| line.contains("Order(") && line.contains("Rewind")));
            assert!(world.events.iter().any(|event| event.kind == "restored"));
            // And the next take-over is an ordinary one.
            world.kill_server(&id(node));
            world.run(5000);
            world.settle(5000).unwrap();
            assert!(restored(&world, timeline));
        }
    }
}

#[test]
fn the_copy_waits_for_the_last_primarys_lease_and_only_for_that() {
    for (node, cut_off) in [("b", true), ("a", false)] {
        let (mut world, old) = founded(Durability::Available);
        if cut_off {
            // It hears nobody, and serves until its lease ends.
            world.cut_off.insert(old.clone());
        }
        let begun = world.now;
        order(&mut world, &id(node), 100);
        while world.nodes[&id(node)].db.end.position.timeline < Timeline(9) {
            world.run(1);
            assert!(world.now - begun < 5000, "{}", world.picture());
        }
        assert_eq!(world.now - begun >= 3600, cut_off);
    }
}

#[test]
fn nobody_forestalls_a_restored_copy_whose_node_is_down() {
    for durability in MODES {
        let (mut world, _) = founded(durability);
        let timeline = order(&mut world, &id("c"), 300);
        world.run(20);
        world.kill_node(&id("c"));
        world.show_all_refused(&id("c"));
        world.run(15_000);
        assert_eq!(world.primary(), None, "what the others hold is void");
        let refused = world.command(&id("b"), Command::Failover { accept_data_loss: true }).unwrap_err();
        assert!(refused.contains("nobody else"), "{refused}");
        let again = world.clone();
        world.restart_agent(&id("c"));
        assert_eq!(world.settle(15_000), Ok(id("c")), "it goes on by itself");
        assert!(restored(&world, timeline));

        // Or another node is restored instead, and the first copy is void.
        let mut world = again;
        let mut wanted = mainstay_model::Restoration {
            copy: mainstay_model::CopyId::new(77).unwrap(),
            system: world.store.as_ref().unwrap().1.system.unwrap(),
            timeline: Timeline(9),
            lineage: world.store.as_ref().unwrap().1.lineage.clone(),
            what: "a moment".to_owned(),
        };
        let number_used = world.command(&id("b"), Command::Restore(Box::new(wanted.clone()))).unwrap_err();
        assert!(number_used.contains("prepare the copy again"), "{number_used}");
        wanted.timeline = Timeline(20);
        let (_, mut end) = world.prepared[&id("c")].clone();
        end.position.timeline = Timeline(20);
        world.prepared.insert(id("b"), (wanted.copy, end));
        world.command(&id("b"), Command::Restore(Box::new(wanted))).unwrap();
        world.run(8000);
        world.restart_agent(&id("c"));
        assert_eq!(world.settle(15_000), Ok(id("b")));
        assert!(restored(&world, Timeline(20)), "{}", world.picture());
    }
}

#[test]
fn void_copies_never_lead_even_when_commits_wait_for_nobody() {
    let (mut world, _) = founded(Durability::Async);
    let timeline = order(&mut world, &id("c"), 300);
    world.run(20);
    // Before the others are cloned the new primary is gone, too.
    for node in ["a", "b"] {
        world.kill_node(&id(node));
    }
    while world.primary() != Some(id("c")) {
        world.run(1);
    }
    world.kill_node(&id("c"));
    for node in ["a", "b"] {
        world.restart_agent(&id(node));
    }
    world.run(15_000);
    assert!(world.nodes.values().filter(|node| node.alive).all(|node| node.db.end.position.timeline < timeline));
    assert_eq!(world.primary(), None, "{}", world.picture());
    world.restart_agent(&id("c"));
    world.settle(20_000).unwrap();
    assert!(restored(&world, timeline), "{}", world.picture());
}

#[test]
fn a_restore_interrupted_after_every_output_is_whole_or_did_not_happen() {
    for (node, whole) in [("a", false), ("a", true), ("c", false), ("c", true)] {
        let (settled, _) = founded(Durability::Strict);
        let (mut steps, mut went_on) = (0, 0);
        for after in 1..100 {
            let mut world = settled.clone();
            (world.outputs, world.interrupt_after) = (0, Some((after, whole)));
            let wanted = world.prepare(&id(node), 300, 9);
            // The answer to the command may be the last thing that this life gave.
            world.input(
                &id(node),
                mainstay_decide::Input::Operator {
                    id: 1,
                    by: "test".to_owned(),
                    command: Command::Restore(Box::new(wanted)),
                },
            );
            for _ in 0..6000 {
                world.run(1);
                if world.interrupted.is_some() {
                    break;
                }
            }
            if world.interrupted.is_none() {
                break;
            }
            for name in ["a", "b", "c"] {
                if !world.nodes[&id(name)].alive {
                    world.restart_agent(&id(name));
                }
            }
            let what = world.interrupted.clone().unwrap_or_default();
            let settled = world.settle(15_000);
            assert!(settled.is_ok(), "after output {after}, {what}: {settled:?}");
            let written = world.store.as_ref().unwrap().1.restored.is_some();
            assert_eq!(restored(&world, Timeline(9)), written, "after output {after}, {what}: {}", world.picture());
            (steps, went_on) = (steps + 1, went_on + u32::from(written));
        }
        assert!(steps > 15 && went_on > 10, "only {steps} steps, {went_on} after the write");
    }
}

#[test]
fn a_write_without_an_answer_is_unknown_until_the_record_tells() {
    let told = |world: &World, kind: &str| world.events.iter().any(|event| event.kind == kind);
    for taken in [true, false] {
        let (mut world, old) = founded(Durability::Strict);
        world.events.clear();
        assert_eq!(old, id("a"));
        world.cut_off.insert(id("c"));
        world.unanswered = Some((id("c"), taken));
        let timeline = order(&mut world, &id("c"), 300);
        world.run(9000);
        assert!(!told(&world, "restore-refused") && !told(&world, "restored"), "{:?}", world.events);
        world.run(3000);
        assert!(told(&world, "restore-unknown") && !told(&world, "restore-refused"), "{:?}", world.events);
        // A later version of the record tells.
        world.unanswered = None;
        world.cut_off.clear();
        world.run(5000);
        world.settle(20_000).unwrap();
        assert_eq!(restored(&world, timeline), taken, "{}", world.picture());
        assert_eq!((told(&world, "restored"), told(&world, "restore-refused")), (taken, !taken), "{:?}", world.events);
    }
}

#[test]
fn a_recover_from_another_node_gives_up_a_restore_that_waits() {
    let (mut world, _) = founded(Durability::Strict);
    order(&mut world, &id("c"), 300);
    world.run(20);
    world.kill_node(&id("c"));
    world.run(100);
    assert!(world.store.as_ref().unwrap().1.restoring().is_some());
    world.recover(&id("b"));
    assert_eq!(world.store.as_ref().unwrap().1.restored, None);
    world.run(20_000);
    assert_eq!(world.primary(), Some(id("b")), "{}", world.picture());
}

#[test]
fn clients_are_kept_out_as_long_as_that_is_asked_and_no_longer() {
    let (mut world, old) = founded(Durability::Strict);
    world.command(&old, Command::Hold { for_ms: 2000 }).unwrap();
    world.run(100);
    assert!(!world.nodes[&old].db.open);
    assert_eq!(world.nodes[&old].route.map(|(_, state, _)| state), Some(RouteState::Closed));
    let busy = world.command(&old, Command::Switchover { to: None }).unwrap_err();
    assert!(busy.contains("kept out"), "{busy}");
    world.run(1500);
    world.command(&old, Command::Hold { for_ms: 2000 }).unwrap();
    world.run(1500);
    assert!(!world.nodes[&old].db.open && world.nodes[&old].db.state == ServerState::Primary);
    assert_eq!(world.nodes[&old].route.map(|(_, state, _)| state), Some(RouteState::Closed), "renewals open nothing");
    world.run(1000);
    assert!(world.nodes[&old].db.open, "{}", world.picture());
    assert_eq!(world.nodes[&old].route.map(|(_, state, _)| state), Some(RouteState::Open));
    world.command(&old, Command::Hold { for_ms: 60_000 }).unwrap();
    world.run(100);
    world.command(&old, Command::Hold { for_ms: 0 }).unwrap();
    world.run(100);
    assert!(world.nodes[&old].db.open);
    assert!(world.command(&id("b"), Command::Hold { for_ms: 1 }).unwrap_err().contains("not an open primary"));
}

//! Asked to end at every stage of an agent's start, and keys that were half made: all of it ends soon, nothing runs on, and what was begun
//! can be begun again.

use crate::bed::{Agent, Bed};
use rustix::process::Signal;
use std::time::Duration;

/// It has ended in order, or, before it listens for signals, by the signal itself; nothing is left of it.
fn ends(mut agent: Agent<'_>, signal: Signal, what: &str) {
    agent.signal(signal);
    let ended = agent.ended().unwrap_or_else(|why| panic!("{what}, {signal:?}: {why}\n{}", agent.last()));
    assert!(ended == 0 || ended == -signal.as_raw(), "{what}, {signal:?}: ended with {ended}\n{}", agent.last());
    let left = agent.bed().nothing_left();
    left.unwrap_or_else(|why| panic!("{what}, {signal:?}: {why}\n{}", agent.last()));
}

#[test]
fn an_agent_that_waits_for_others_ends_when_it_is_asked() {
    let bed = Bed::new(&["db1", "db2", "db3"]);
    for signal in [Signal::TERM, Signal::INT] {
        for after in [0, 30, 60, 90, 120, 200] {
            let agent = bed.agent("db1");
            std::thread::sleep(Duration::from_millis(after));
            ends(agent, signal, &format!("{after} ms after its start"));
        }
        let mut agent = bed.agent("db1");
        agent.until("waiting", |agent| agent.said().contains("waiting for more than half of the nodes")).unwrap();
        ends(agent, signal, "waiting for the others");
    }
    assert!(std::fs::read_dir(bed.node("db1").join("data")).unwrap().next().is_none(), "nothing was made");
}

#[test]
fn an_agent_that_makes_a_copy_ends_when_it_is_asked_and_makes_it_later() {
    let bed = Bed::new(&["db1", "db2"]);
    let runs = |agent: &Agent<'_>, words: &str| agent.bed().processes().iter().any(|(_, line)| line.contains(words));
    for signal in [Signal::TERM, Signal::INT] {
        let other = bed.agent("db2");
        let mut agent = bed.agent("db1");
        // db1 stands first in the file and makes the first copy.
        agent.until("founding", |agent| runs(agent, "initdb")).unwrap();
        let mut other = other;
        agent.signal(signal);
        other.signal(signal);
        let ended = [agent.ended(), other.ended()];
        assert_eq!(ended, [Ok(0), Ok(0)], "{signal:?}\n{}", agent.last());
        bed.nothing_left().unwrap_or_else(|why| panic!("{signal:?} while founding: {why}\n{}", agent.last()));
    }
    let mut primary = bed.agent("db1");
    for signal in [Signal::TERM, Signal::INT] {
        let mut agent = bed.agent("db2");
        // The program itself: the primary's end of the copy that was cut before bears its name too, for a moment.
        agent.until("cloning", |agent| runs(agent, "bin/pg_basebackup")).unwrap();
        agent.signal(signal);
        let ended = agent.ended();
        assert_eq!(ended, Ok(0), "{signal:?} while cloning\n{}", agent.last());
        let left = bed.nothing_left_of("nodes/db2");
        left.unwrap_or_else(|why| panic!("{signal:?} while cloning: {why}\n{}", agent.last()));
    }
    let replica = bed.agent("db2");
    primary.until_writable().unwrap();
    let streams = |agent: &Agent<'_>| {
        let status = agent.bed().read(&["status"]);
        status["nodes"][1]["state"] == "streaming"
    };
    primary.until("followed by a replica", streams).unwrap_or_else(|why| panic!("{why}\n{}", replica.last()));
    replica.end().unwrap();
    primary.end().unwrap();
    bed.nothing_left().unwrap();
}

#[test]
fn an_authority_that_was_half_made_and_a_join_that_was_interrupted_are_done_again() {
    let bed = Bed::new(&["db1"]);
    for after in (0..120).step_by(12) {
        for dir in ["pki", "secrets"] {
            let _ = std::fs::remove_dir_all(bed.at(dir));
        }
        let mut child = bed.begin(&["pki", "init"]);
        std::thread::sleep(Duration::from_millis(after));
        let _ = child.kill();
        child.wait().unwrap();
        let again = bed.run(&["pki", "init"]);
        let said = String::from_utf8_lossy(&again.stderr).into_owned();
        if !again.status.success() {
            assert!(said.contains("exists already") && said.contains("next:"), "after {after} ms: {said}");
        }
        // What is there is whole, or is said to be half-made with the way out.
        let bundle = bed.at(&format!("bundle-{after}"));
        let issued = bed.run(&["pki", "issue", "db1", "--out", bundle.to_str().unwrap()]);
        let why = String::from_utf8_lossy(&issued.stderr).into_owned();
        assert!(issued.status.success(), "killed after {after} ms: {said}\n{why}");
    }
    let bundle = bed.at("bundle-108");
    for after in (0..120).step_by(12) {
        let _ = std::fs::remove_dir_all(bed.node("db1"));
        let join = ["join", "--node", "db1", "--bundle", bundle.to_str().unwrap()];
        let mut child = bed.begin(&join);
        std::thread::sleep(Duration::from_millis(after));
        let _ = child.kill();
        child.wait().unwrap();
        let mut again = bed.run(&join);
        if !again.status.success() {
            let said = String::from_utf8_lossy(&again.stderr).into_owned();
            assert!(said.contains("--again"), "killed after {after} ms: {said}");
            again = bed.run(&[&join[..], &["--again", "--yes"]].concat());
        }
        assert!(again.status.success(), "killed after {after} ms: {}", String::from_utf8_lossy(&again.stderr));
    }
    // With an authority of its own, the node works.
    let mut agent = bed.agent("db1");
    agent.until_writable().unwrap_or_else(|why| panic!("{why}\n{}", agent.last()));
    agent.end().unwrap();
}

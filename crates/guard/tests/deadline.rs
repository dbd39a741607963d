//! The deadline: it fences by itself, it never moves back, and nothing about agent or guard makes it forget.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{
    AT_ONCE, Node, ahead, at_home, directory, eventually, example_agent, signal, sleep_until, state, stop,
    untouched_before,
};
use mainstay_guard::{GuardClient, reap_data_dir};
use mainstay_model::{Span, Term};
use mainstay_ports::clock::boot_now;
use mainstay_ports::process::{ProcessError, ServerProcess as _};
use rustix::process::Signal;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

fn assert_refused(result: Result<(), ProcessError>, words: &str) {
    match result {
        Err(ProcessError::Refused(text)) => assert!(text.contains(words), "{text:?} does not say {words:?}"),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn when_it_passes_nothing_of_the_server_is_left() {
    let node = Node::new().await;
    let deadline = ahead(3000);
    node.start_family(Some((Term(3), deadline))).await;
    assert_eq!(node.client.status().await.unwrap().deadline, Some((Term(3), deadline)));
    untouched_before(deadline, &node.layout.data(), 6).await;
    eventually("nobody is left", async || node.at_home().is_empty()).await;
    let late = boot_now().since(deadline);
    println!("deadline to nothing left: {late}");
    assert!(boot_now() >= deadline && late < AT_ONCE, "{late}");
    eventually("the guard knows", async || node.client.status().await.unwrap().server_pid.is_none()).await;
    let status = node.client.status().await.unwrap();
    assert_eq!((status.fenced, status.deadline), (1, None));
    assert!(status.last_exit.clone().unwrap().contains("of term 3 passed"), "{status:?}");
    // The log has a thread of its own.
    eventually("it is logged", async || node.guard_log().contains("of term 3 passed")).await;
    // The next one is a standby: it has no deadline, and none can be moved before somebody sets one.
    node.start_family(None).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!((node.at_home().len(), node.client.status().await.unwrap().deadline), (6, None));
}

#[tokio::test]
async fn it_moves_forward_only_and_terms_only_rise() {
    let node = Node::new().await;
    assert_refused(node.client.extend(Term(5), ahead(1000)).await, "no server runs");
    node.start_family(None).await;
    let late = ahead(60_000);
    node.client.extend(Term(5), late).await.unwrap();
    node.client.extend(Term(5), ahead(20_000)).await.unwrap();
    assert_eq!(node.client.status().await.unwrap().deadline, Some((Term(5), late)), "never back");
    assert_refused(node.client.extend(Term(4), ahead(90_000)).await, "older than term 5");
    assert_refused(node.client.extend(Term(6), boot_now()).await, "has passed");
    assert_eq!(node.client.status().await.unwrap().deadline, Some((Term(5), late)));
    let sooner = ahead(2000);
    node.client.extend(Term(6), sooner).await.unwrap();
    assert_eq!(node.client.status().await.unwrap().deadline, Some((Term(6), sooner)), "a higher term brings its own");
    node.client.exited().await.unwrap();
    assert!(boot_now() >= sooner);
    // The term outlives the server.
    assert_refused(node.client.start(node.family(), Some((Term(5), ahead(1000)))).await.map(drop), "older than term 6");
    assert_refused(node.client.start(node.family(), Some((Term(6), boot_now()))).await.map(drop), "has passed");
    assert_eq!(node.at_home().len(), 0);
}

#[tokio::test]
async fn an_agent_that_extends_keeps_the_server_and_one_that_goes_away_does_not_touch_it() {
    let node = Node::new().await;
    let pid = node.start_family(Some((Term(1), ahead(3000)))).await;
    let deadline = ahead(4000);
    let first = GuardClient::new(node.layout.guard_socket());
    first.extend(Term(1), deadline).await.unwrap();
    drop(first);
    let second = GuardClient::new(node.layout.guard_socket());
    assert_eq!(second.status().await.unwrap().server_pid, Some(pid), "adopted");
    untouched_before(deadline, &node.layout.data(), 6).await;
    second.exited().await.unwrap();
    assert!(boot_now() >= deadline && node.at_home().is_empty());
}

struct Agent {
    child: Child,
    server: u32,
}

/// An agent in a process of its own, which starts its guard itself.
fn agent(dir: &std::path::Path, lease: Span) -> Agent {
    let mut command = Command::new(example_agent());
    command.arg(dir).arg(common::GUARD).arg(lease.0.to_string()).args([
        "/bin/sh",
        "-c",
        "setsid sleep 600 & exec sleep 600",
    ]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let server = line.trim().parse().unwrap();
    Agent { child, server }
}

/// What the fault does to the agent, and for how long the server must live and then die.
async fn agent_fault(fault: Signal) {
    let (_dir, layout) = directory();
    let mut agent = agent(layout.dir(), Span(3000));
    let client = GuardClient::new(layout.guard_socket());
    tokio::time::sleep(Duration::from_millis(4000)).await;
    assert_eq!(at_home(&layout.data()).len(), 2, "an agent that extends keeps the server beyond its first deadline");
    signal(agent.child.id(), fault);
    let dead = if fault == Signal::KILL { 'Z' } else { 'T' };
    eventually("the fault has happened", async || state(agent.child.id()) == Some(dead)).await;
    let status = client.status().await.unwrap();
    let (_, deadline) = status.deadline.unwrap();
    assert_eq!(status.server_pid, Some(agent.server));
    assert!(deadline.since(boot_now()) > Span(500));
    untouched_before(deadline, &layout.data(), 2).await;
    client.exited().await.unwrap();
    let late = boot_now().since(deadline);
    println!("{fault:?} to the agent: fenced {late} after the deadline");
    assert!(boot_now() >= deadline && late < AT_ONCE);
    assert!(at_home(&layout.data()).is_empty());
    agent.child.kill().unwrap();
    agent.child.wait().unwrap();
    client.shutdown(Span(0)).await.unwrap();
}

#[tokio::test]
async fn a_killed_agent_leaves_the_server_until_the_deadline() {
    agent_fault(Signal::KILL).await;
}

#[tokio::test]
async fn a_stopped_agent_leaves_the_server_until_the_deadline() {
    agent_fault(Signal::STOP).await;
}

#[tokio::test]
async fn a_standby_outlives_its_agent_and_a_new_agent_finds_the_same_guard() {
    let (_dir, layout) = directory();
    let mut agent = agent(layout.dir(), Span(0));
    agent.child.kill().unwrap();
    agent.child.wait().unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(at_home(&layout.data()).len(), 2);
    let guard = GuardClient::new(layout.guard_socket()).status().await.unwrap().guard_pid;
    let client = mainstay_guard::ensure_guard(&layout, common::GUARD.as_ref(), &[]).await.unwrap();
    let status = client.status().await.unwrap();
    assert_eq!((status.guard_pid, status.server_pid), (guard, Some(agent.server)));
    client.shutdown(Span(0)).await.unwrap();
    assert!(at_home(&layout.data()).is_empty());
}

/// Stated, not hoped: a guard that does not run does not fence. It does so at once when it runs again.
#[tokio::test]
async fn a_stopped_guard_fences_as_soon_as_it_runs_again() {
    let node = Node::new().await;
    let deadline = ahead(3000);
    node.start_family(Some((Term(1), deadline))).await;
    stop(node.guard.id()).await;
    sleep_until(deadline + Span(500)).await;
    assert_eq!(node.at_home().len(), 6, "nobody fences while the guard is stopped");
    assert!(matches!(node.client.extend(Term(1), deadline + Span(100)).await, Err(ProcessError::GuardGone(_))));
    signal(node.guard.id(), Signal::CONT);
    let woke = boot_now();
    eventually("nobody is left", async || node.at_home().is_empty()).await;
    println!("woken guard: nothing left after {}", boot_now().since(woke));
    assert!(boot_now().since(woke) < AT_ONCE, "a late extension that has passed itself changes nothing");
}

#[tokio::test]
async fn an_agent_can_fence_beside_a_stopped_guard() {
    let node = Node::new().await;
    node.start_family(Some((Term(1), ahead(60_000)))).await;
    stop(node.guard.id()).await;
    // Signals are counted: one that takes a moment to die gets a second one.
    assert!(reap_data_dir(&node.layout.data()).unwrap() >= 6);
    assert!(node.at_home().is_empty());
    signal(node.guard.id(), Signal::CONT);
    node.client.exited().await.unwrap();
    eventually("the guard knows", async || node.client.status().await.unwrap().server_pid.is_none()).await;
}

/// Extensions that arrived before the guard could run count: the lease behind them was renewed.
#[tokio::test]
async fn an_extension_in_the_socket_of_a_starved_guard_counts() {
    let node = Node::new().await;
    node.start_family(Some((Term(1), ahead(60_000)))).await;
    let deadline = ahead(1000);
    node.client.extend(Term(2), deadline).await.unwrap();
    stop(node.guard.id()).await;
    let later = ahead(60_000);
    let client = GuardClient::new(node.layout.guard_socket());
    let asked = tokio::spawn(async move { client.extend(Term(2), later).await });
    sleep_until(deadline + Span(200)).await;
    signal(node.guard.id(), Signal::CONT);
    asked.await.unwrap().unwrap();
    assert_eq!(node.client.status().await.unwrap().deadline, Some((Term(2), later)));
    assert_eq!(node.at_home().len(), 6);
}

#[tokio::test]
async fn a_busy_machine_does_not_make_it_late() {
    let node = Node::new().await;
    node.start_family(Some((Term(1), ahead(60_000)))).await;
    let hogs: Vec<Child> =
        (0..8).map(|_| Command::new("/bin/sh").args(["-c", "while :; do :; done"]).spawn().unwrap()).collect();
    let deadline = ahead(1500);
    node.client.extend(Term(2), deadline).await.unwrap();
    node.client.exited().await.unwrap();
    let late = boot_now().since(deadline);
    for mut hog in hogs {
        hog.kill().unwrap();
        hog.wait().unwrap();
    }
    println!("eight busy loops: fenced {late} after the deadline, as an ordinary process sees it");
    assert!(late < AT_ONCE, "{late}");
    assert!(node.at_home().is_empty());
}

//! `mainstay restart`: restarts the database servers in an order that keeps the cluster in service, and waits at each step.

use super::status::summary;
use super::switchover::{Order, hand_over};
use super::wait::{self, Verdict, seconds};
use crate::cli::{Global, Restart};
use crate::failure::{Failure, Outcome};
use crate::output::progress::Progress;
use crate::output::{self, confirm};
use crate::plan::restart::{Step, Wish, cost, cut_short, done, lowered, plan};
use crate::session::Session;
use mainstay_model::status::Status;
use mainstay_model::{Command, NodeId};
use mainstay_ports::clock::boot_now;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long agents may take to say that nothing waits any more: before a second round, and at the end.
const SETTLE: Duration = Duration::from_secs(8);
const SETTLE_LAST: Duration = Duration::from_secs(40);
const EACH: Duration = Duration::from_millis(200);

/// Restarts.
///
/// # Errors
/// When it can not be done now, or a step does not come to its end; the steps after it are not begun.
pub(crate) async fn run(options: Restart, global: Global) -> Outcome {
    let mut session = Session::open_for(&options.which, &options.nodes).await?;
    within(&mut session, options, global).await
}

/// The same for a cluster that is found already.
///
/// # Errors
/// As [`run`].
pub(crate) async fn within(session: &mut Session, options: Restart, global: Global) -> Outcome {
    let wish = Wish { nodes: options.nodes.clone(), pending: options.pending, in_place: options.in_place };
    let before = session.status().await?;
    let waiting = if options.pending { pending(session) } else { BTreeMap::new() };
    let steps = plan(&before, &waiting, &wish)?;
    if steps.is_empty() {
        return nothing(global);
    }
    let mut progress = Progress::new();
    for (place, step) in steps.iter().enumerate() {
        progress.say(&format!("{}. {}", place + 1, step.words()));
    }
    let question =
        format!("Restart {} of cluster {}? {}.", servers(&steps), before.cluster.name, cost(&before, &waiting, &steps));
    confirm(global.yes, &question)?;
    let begun = boot_now();
    let each_step = Duration::from_secs(options.wait);
    let mut restarted: Vec<NodeId> = Vec::new();
    let mut round = steps;
    // A second round only for parameters that were lowered, which the first one can not bring about.
    for second in [false, true] {
        for (place, step) in round.iter().enumerate() {
            if let Err(failure) = carry_out(session, step, each_step, &mut progress).await {
                let left: Vec<NodeId> = round.iter().skip(place).map(|step| node_of(step).clone()).collect();
                return Err(cut_short(failure, &restarted, &left));
            }
            if !restarted.contains(node_of(step)) {
                restarted.push(node_of(step).clone());
            }
        }
        let at_most = if second { SETTLE_LAST } else { SETTLE };
        let left = settle(session, &restarted, at_most).await;
        match lowered(&session.status().await?, &left) {
            Some(steps) if options.pending && !second => {
                progress.say("Parameters were lowered: the primary must hold them first, so it restarts in place; writes wait meanwhile");
                round = steps;
            }
            _ => break,
        }
    }
    report(session, &restarted, options.pending, boot_now().since(begun).0, global).await
}

/// What still waits on these nodes, once they have had time to say that nothing does.
async fn settle(session: &mut Session, restarted: &[NodeId], at_most: Duration) -> BTreeMap<NodeId, Vec<String>> {
    let until = tokio::time::Instant::now() + at_most;
    loop {
        session.refresh().await;
        let left = pending(session);
        if !restarted.iter().any(|node| left.contains_key(node)) || tokio::time::Instant::now() >= until {
            return left;
        }
        tokio::time::sleep(EACH).await;
    }
}

fn nothing(global: Global) -> Outcome {
    if global.json {
        output::object(&json!({ "restarted": [], "verified": ["no parameter waits for a restart"] }));
    } else {
        output::line("Nothing to do: no parameter waits for a restart.");
    }
    Ok(())
}

/// Which parameters wait for a restart, by node.
pub(crate) fn pending(session: &Session) -> BTreeMap<NodeId, Vec<String>> {
    let of =
        |(node, answer): (&NodeId, &mainstay_model::api::SpecAnswer)| (node.clone(), answer.pending_restart.clone());
    session.specs.iter().map(of).filter(|(_, names)| !names.is_empty()).collect()
}

fn node_of(step: &Step) -> &NodeId {
    match step {
        Step::Replica(node) | Step::HandOver(node) | Step::InPlace(node) => node,
    }
}

fn servers(steps: &[Step]) -> String {
    let names: Vec<&str> = steps.iter().map(|step| node_of(step).as_str()).collect();
    if names.len() == 1 {
        format!("the server of {}", names.join(""))
    } else {
        format!("the servers of {}", names.join(", "))
    }
}

async fn carry_out(session: &Session, step: &Step, at_most: Duration, progress: &mut Progress) -> Outcome {
    let before = session.status().await?;
    match step {
        Step::Replica(node) => restart(session, node, false, &before, at_most, progress).await,
        Step::InPlace(node) => restart(session, node, true, &before, at_most, progress).await,
        Step::HandOver(node) => {
            if before.cluster.primary.as_ref() != Some(node) {
                // The role moved meanwhile: what remains is an ordinary replica.
                return restart(session, node, false, &before, at_most, progress).await;
            }
            let order = Order { from: node.clone(), term: before.cluster.term, to: None };
            hand_over(session, &order, progress).await?;
            progress.step(&format!("Waiting until {node} streams again"));
            wait_for(session, node, &before, at_most, progress).await
        }
    }
}

async fn restart(
    session: &Session,
    node: &NodeId,
    in_place: bool,
    before: &Status,
    at_most: Duration,
    progress: &mut Progress,
) -> Outcome {
    progress.step(&format!("Restarting {}{node}", if in_place { "the primary " } else { "" }));
    // A primary may have been elected there meanwhile: without `in_place` its agent refuses, which is what is wanted.
    if let Err(failure) = session.command(node, Command::Restart { in_place }).await {
        progress.fail();
        return Err(failure);
    }
    wait_for(session, node, before, at_most, progress).await
}

async fn wait_for(
    session: &Session,
    node: &NodeId,
    before: &Status,
    at_most: Duration,
    progress: &mut Progress,
) -> Outcome {
    let Some(known) = before.nodes.iter().find(|known| known.name == *node) else {
        return Err(Failure::failed(format!("{node} is not in the status any more")));
    };
    let was_writable = before.cluster.writable;
    let after = wait::until(session, at_most, progress, |status| {
        if done(known, status) && (status.cluster.writable || !was_writable) {
            return Verdict::Done;
        }
        let state = status.nodes.iter().find(|now| now.name == *node).map_or("gone", |now| now.state.as_str());
        Verdict::Wait(format!("{node} is {state}"))
    })
    .await?;
    let state = after.nodes.iter().find(|now| now.name == *node).map(|now| format!("{} {}", now.role, now.state));
    progress.finish(&state.unwrap_or_default());
    Ok(())
}

async fn report(session: &Session, restarted: &[NodeId], all: bool, took_ms: u64, global: Global) -> Outcome {
    let after = session.status().await?;
    let waiting = pending(session);
    let left =
        format!("parameters still wait for a restart on {}", names(&waiting.keys().cloned().collect::<Vec<_>>()));
    if all && !waiting.is_empty() {
        return Err(Failure::failed(format!("{} restarted, but {left}", names(restarted)))
            .hint("what waits: `mainstay status`; why a server does not take it: its log/server.log, and its agent's log (`journalctl -u mainstay-agent`)"));
    }
    let mut verified = vec![format!("new server processes on {}", names(restarted))];
    verified.push(if waiting.is_empty() { "no parameter waits for a restart".to_owned() } else { left });
    wait::prove_writes(session, &after, &mut verified).await;
    if global.json {
        output::object(&json!({
            "restarted": restarted, "pending_restart": waiting, "primary": after.cluster.primary, "term": after.cluster.term,
            "seconds": seconds(took_ms), "verified": verified,
        }));
    } else {
        output::line(&format!(
            "Restarted {} in {}: {}.",
            names(restarted),
            mainstay_model::Span(took_ms),
            summary(&after)
        ));
        output::line(&format!("Verified: {}.", verified.join("; ")));
    }
    Ok(())
}

fn names(nodes: &[NodeId]) -> String {
    crate::plan::failover::list(nodes)
}

//! Waits until a cluster really works: a primary takes writes, every replica streams, and one write through the front address
//! was acknowledged.

use super::psql;
use crate::failure::{Failure, Outcome};
use crate::output::progress::Progress;
use crate::session::Session;
use crate::target::Target;
use mainstay_model::status::Status;
use std::time::Duration;
use tokio::time::Instant;

/// How often the agents are asked.
const EACH: Duration = Duration::from_millis(100);

/// Waits, at most this long. `alive` says why waiting is pointless, if it is.
///
/// # Errors
/// What was still missing.
pub(crate) async fn wait(
    target: &Target,
    at_most: Duration,
    progress: &mut Progress,
    alive: impl Fn() -> Outcome,
) -> Outcome<Status> {
    let mut session = Session::of(target.clone()).await?;
    let until = Instant::now() + at_most;
    let mut stage = Stage::Agents;
    let mut missing = Vec::new();
    progress.step(stage.words());
    while Instant::now() < until {
        alive()?;
        match session.agents.status().await {
            Ok(status) => {
                if status.nodes.len() < session.spec().nodes.len() {
                    // The file may name nodes that were taken out since it was written: what is in force counts.
                    session.refresh().await;
                }
                let (reached, left) = judge(&session.target, &status);
                missing = left;
                while stage < reached {
                    stage = stage.next();
                    progress.step(stage.words());
                }
                if reached == Stage::Write {
                    match prove(target).await {
                        Ok(()) => {
                            progress.finish("");
                            return Ok(status);
                        }
                        Err(failure) => missing = vec![failure.error],
                    }
                }
            }
            Err(failure) => missing = vec![failure.error],
        }
        if let Some(first) = missing.first().and_then(|text| text.lines().next()) {
            progress.detail(first);
        }
        tokio::time::sleep(EACH).await;
    }
    progress.fail();
    Err(Failure::failed(format!("the cluster did not come up within {} s\n{}", at_most.as_secs(), missing.join("\n"))))
}

async fn prove(target: &Target) -> Outcome {
    let target = target.clone();
    let proof = tokio::task::spawn_blocking(move || psql::prove_write(&target));
    proof.await.map_err(|error| Failure::failed(error.to_string()))?
}

/// What is being waited for, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Agents answer.
    Agents,
    /// A primary is open.
    Primary,
    /// Replicas stream.
    Replicas,
    /// A write is acknowledged.
    Write,
}

impl Stage {
    /// In words.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Stage::Agents => "Starting the agents",
            Stage::Primary => "Waiting for a primary that takes writes",
            Stage::Replicas => "Waiting for every replica to stream",
            Stage::Write => "Writing through the write address",
        }
    }

    /// The one after it.
    pub(crate) fn next(self) -> Stage {
        match self {
            Stage::Agents => Stage::Primary,
            Stage::Primary => Stage::Replicas,
            Stage::Replicas | Stage::Write => Stage::Write,
        }
    }
}

/// How far it is, and what is missing.
pub(crate) fn judge(target: &Target, status: &Status) -> (Stage, Vec<String>) {
    let silent: Vec<String> = status
        .nodes
        .iter()
        .filter(|node| node.agent_pid.is_none())
        .map(|node| format!("{}: {}", node.name, node.state))
        .collect();
    let agents_wanted = target.spec.nodes.len();
    if status.nodes.len() < agents_wanted || silent.len() == agents_wanted {
        let mut missing = silent;
        if status.nodes.len() < agents_wanted {
            missing.push(format!("{agents_wanted} nodes are wanted, and the agents know {}", status.nodes.len()));
        }
        return (Stage::Agents, missing);
    }
    let problems = |status: &Status| status.problems.iter().map(|problem| problem.evidence.clone()).collect::<Vec<_>>();
    if !status.cluster.writable || status.cluster.primary.is_none() {
        let mut missing = vec!["no primary takes writes yet".to_owned()];
        missing.extend(problems(status));
        return (Stage::Primary, missing);
    }
    let waiting: Vec<String> = status
        .nodes
        .iter()
        .filter(|node| !node.healthy)
        .map(|node| format!("{}: {} {}", node.name, node.role, node.state))
        .collect();
    if waiting.is_empty() { (Stage::Write, Vec::new()) } else { (Stage::Replicas, waiting) }
}

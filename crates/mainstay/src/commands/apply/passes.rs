//! The end of a run: the cluster works, seen from outside.

use super::Run;
use super::fleet::Fleet;
use crate::client::Agents;
use crate::failure::{Failure, Outcome};
use crate::local::psql;
use crate::local::ready::{Stage, judge};
use crate::on_host::proof::Proof;
use crate::output::progress::Progress;
use crate::target::Target;
use mainstay_model::NodeId;
use mainstay_model::status::Status;
use std::time::Duration;
use tokio::time::Instant;

const EACH: Duration = Duration::from_millis(200);
/// How long one question over ssh may take.
const QUESTION: Duration = Duration::from_secs(20);
/// How long a cluster that needed nothing may take to show that it works.
const STILL: Duration = Duration::from_secs(60);

/// The cluster's status: from the agents themselves, or where this machine does not reach them, as a node's host sees it.
async fn status(target: &Target, fleet: &Fleet) -> Outcome<Status> {
    let mut agents = Agents::of(target)?;
    agents.reach(fleet.known_ways());
    let direct = agents.status().await;
    let Err(failure) = direct else { return direct };
    for node in fleet.nodes() {
        if let Ok(status) = fleet.ask::<Status>(node, "status", &(), QUESTION).await {
            // They answer, and not to this machine.
            fleet.ways(&target.spec.nodes).await;
            return Ok(status);
        }
    }
    Err(failure)
}

/// A write through the write address: from here, or from a node's host. Says from where.
async fn prove(target: &Target, fleet: &Fleet, text: &str) -> Outcome<String> {
    let own = target.clone();
    let here = tokio::task::spawn_blocking(move || psql::prove_write(&own)).await;
    let failure = match here.map_err(|error| Failure::failed(error.to_string()))? {
        Ok(()) => return Ok("from here".into()),
        Err(failure) => failure,
    };
    let password = psql::app_password(target)?;
    let data: Vec<&NodeId> = target.spec.nodes.iter().filter(|node| !node.witness).map(|node| &node.name).collect();
    for node in data.into_iter().filter(|node| fleet.has(node)) {
        let proof = Proof { file: text.to_owned(), password: password.clone() };
        if fleet.ask::<serde_json::Value>(node, "prove", &proof, QUESTION).await.is_ok() {
            return Ok(format!("from the host of {node}"));
        }
    }
    Err(failure)
}

impl Run {
    /// Waits until the cluster works: an open primary, every other node doing its part, and a write acknowledged.
    pub(super) async fn whole(&self, at_most: Duration) -> Outcome<(Status, String)> {
        let mut progress = Progress::new();
        let (until, mut stage) = (Instant::now() + at_most, Stage::Agents);
        progress.step(stage.words());
        loop {
            let missing = match status(&self.target, &self.fleet).await {
                Ok(status) => {
                    let (reached, left) = judge(&self.target, &status);
                    while stage < reached {
                        stage = stage.next();
                        progress.step(stage.words());
                    }
                    if reached == Stage::Write {
                        match prove(&self.target, &self.fleet, &self.text).await {
                            Ok(from) => {
                                progress.finish(&from);
                                return Ok((status, from));
                            }
                            Err(failure) => failure.error,
                        }
                    } else {
                        left.join("\n")
                    }
                }
                Err(failure) => failure.error,
            };
            if let Some(first) = missing.lines().next() {
                progress.detail(first);
            }
            if Instant::now() >= until {
                progress.fail();
                return Err(Failure::failed(format!("the cluster does not work after {} s\n{missing}", at_most.as_secs()))
                    .hint("it goes on by itself if it can; mainstay status and mainstay why say what it waits for; apply can be typed again"));
            }
            tokio::time::sleep(EACH).await;
        }
    }

    /// The last look: what was verified.
    pub(super) async fn verify(&mut self, changed: bool) -> Outcome<Status> {
        let at_most = if changed { Duration::from_secs(self.options.wait) } else { STILL };
        let (status, from) = self.whole(at_most).await?;
        if changed {
            self.verified.push("a second look at every host found nothing left to do".into());
        } else {
            self.verified
                .push("every host has the program, file, certificates and running agent that it is to have".into());
        }
        let nodes: Vec<String> =
            status.nodes.iter().map(|node| format!("{} is {} {}", node.name, node.role, node.state)).collect();
        self.verified.push(nodes.join(", "));
        self.verified.push(format!("a write through {} was acknowledged ({from})", status.routes.write));
        Ok(status)
    }
}

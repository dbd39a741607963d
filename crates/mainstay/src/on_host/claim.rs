//! Asks the node's agent until the cluster is ready for an existing server's data. What counts is `mainstay_plan::apply::adopt`'s to say.

use crate::client::{Agents, decode};
use crate::failure::{Failure, Outcome};
use crate::on_host::CONFIG;
use crate::target::Target;
use mainstay_model::NodeId;
use mainstay_model::api::{SpecAnswer, Standing};
use mainstay_plan::apply::adopt::{Claim, Seen};
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// How long this node may take to hold the right to make the first copy: a store is founded and led.
const CLAIM: Duration = Duration::from_secs(120);
const EACH: Duration = Duration::from_millis(100);

/// Waits until the cluster is ready. The existing server goes on meanwhile.
///
/// # Errors
/// When it has a first copy already, or does not become ready in time.
pub(super) async fn until_claimed(node: &NodeId) -> Outcome {
    let agents = Agents::of(&Target::read(Path::new(CONFIG))?)?;
    let until = Instant::now() + CLAIM;
    let mut claim = Claim::default();
    loop {
        let spec = agents.ask(node, "GET", "/v1/spec", None).await.ok();
        let spec: Option<SpecAnswer> = spec.and_then(|answer| decode(&answer));
        // Without a generation it is the node's own file, which is nobody's wish yet.
        let stored = spec.map(|answer| answer.stored).filter(|stored| stored.generation > 0);
        let founder = stored.as_ref().and_then(|stored| stored.spec.founder());
        let standing = agents.ask(node, "GET", "/v1/standing", None).await.ok();
        let standing: Option<Standing> = standing.and_then(|answer| decode(&answer));
        let record = standing.and_then(|standing| standing.record).map(|(_, record)| record);
        let seat = record.as_ref().map(|record| (record.state, record.holder.as_ref(), record.term));
        match claim.see(node, founder, seat) {
            Seen::Ready => return Ok(()),
            Seen::Over(term) => {
                let what = format!("the cluster has its data already (term {term})");
                return Err(Failure::failed(what)
                    .hint("this run has not touched the existing server; take `adopt` out of the file to leave it"));
            }
            Seen::Wait => {}
        }
        if Instant::now() >= until {
            let what = match founder {
                Some(named) if named == node => "does not hold the right to make the first copy",
                _ => "does not go by a specification in force that names the server to adopt",
            };
            let what = format!("the cluster is not ready: after {} s the agent of {node} {what}", CLAIM.as_secs());
            return Err(Failure::not_now(what).hint(
                "this run has not touched the existing server; more than half of the agents must reach each other: mainstay status, mainstay why",
            ));
        }
        tokio::time::sleep(EACH).await;
    }
}

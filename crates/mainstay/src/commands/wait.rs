//! Waiting for the cluster to come to what a command asked for, and the proofs at the end.

use super::status::summary;
use crate::failure::{Failure, Outcome};
use crate::local::psql;
use crate::output::progress::Progress;
use crate::session::Session;
use crate::target::Target;
use mainstay_model::status::Status;
use std::time::Duration;
use tokio::time::Instant;

/// How often the agents are asked.
const EACH: Duration = Duration::from_millis(150);

/// What a look at the cluster means.
pub(crate) enum Verdict {
    /// It is as it was asked for.
    Done,
    /// Not yet; what is still missing.
    Wait(String),
    /// It will not come about.
    Over(Failure),
}

/// Looks at the status until it is as asked for, at most this long.
///
/// # Errors
/// When it will not come about, or did not in time: what was still missing.
pub(crate) async fn until(
    session: &Session,
    at_most: Duration,
    progress: &mut Progress,
    mut judge: impl FnMut(&Status) -> Verdict,
) -> Outcome<Status> {
    let until = Instant::now() + at_most;
    let mut missing = "no agent answered".to_owned();
    loop {
        if let Ok(status) = session.agents.status().await {
            match judge(&status) {
                Verdict::Done => return Ok(status),
                Verdict::Over(failure) => {
                    progress.fail();
                    return Err(failure);
                }
                Verdict::Wait(what) => missing = format!("{what}; now: {}", summary(&status)),
            }
            progress.detail(&missing);
        }
        if Instant::now() >= until {
            progress.fail();
            return Err(Failure::failed(format!("not within {} s: {missing}", at_most.as_secs()))
                .hint("it goes on by itself if it can: see `mainstay status`, `mainstay history` and `mainstay why`"));
        }
        tokio::time::sleep(EACH).await;
    }
}

/// A real write through the front address, where this user may make one.
pub(crate) async fn prove(target: &Target) -> bool {
    let target = target.clone();
    tokio::task::spawn_blocking(move || psql::prove_write(&target).is_ok()).await.unwrap_or(false)
}

/// What was verified about writes, as text.
pub(crate) async fn prove_writes(session: &Session, status: &Status, verified: &mut Vec<String>) {
    if prove(&session.target).await {
        verified.push(format!("a write through {} was acknowledged", status.routes.write));
    }
}

/// Milliseconds as seconds, for programs.
#[expect(clippy::cast_precision_loss, reason = "milliseconds of a short time")]
pub(crate) fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

//! `mainstay pause` and `mainstay resume`: automatic take-over, restart and rejoin off and on.

use super::history::time;
use crate::cli::{Global, Pause, Resume, Which};
use crate::failure::{Failure, Outcome};
use crate::output::{self, confirm};
use crate::session::Session;
use jiff::tz::TimeZone;
use mainstay_model::api::{PauseWish, SpecAnswer};
use serde_json::json;
use std::time::Duration;

/// How long every node that answers may take to know of it.
const AT_MOST: Duration = Duration::from_secs(10);
const EACH: Duration = Duration::from_millis(150);

/// Pauses.
///
/// # Errors
/// When it is refused or nobody answers.
pub(crate) async fn pause(options: Pause, global: Global) -> Outcome {
    let note = if options.note.is_empty() { String::new() } else { format!(" Note: {}.", options.note) };
    change(&options.which, true, options.note, &format!(
        "No take-over, restart or rejoin happens by itself until `mainstay resume`: a failure of the primary stops writes.{note}"
    ), global)
    .await
}

/// Resumes.
///
/// # Errors
/// When it is refused or nobody answers.
pub(crate) async fn resume(options: Resume, global: Global) -> Outcome {
    change(
        &options.which,
        false,
        String::new(),
        "Take-over, restart and rejoin happen by themselves again, at once where one is due.",
        global,
    )
    .await
}

async fn change(which: &Which, paused: bool, note: String, effect: &str, global: Global) -> Outcome {
    let mut session = Session::open(which).await?;
    let already = session.stored().and_then(|stored| stored.paused.clone());
    if already.is_some() == paused && session.stored().is_some() && note.is_empty() {
        let text = match already {
            Some(since) => {
                format!("paused already, by {} since {}", since.by, time(since.wall_ms, &TimeZone::system()))
            }
            None => "not paused".to_owned(),
        };
        return say(&session, paused, vec![text], global);
    }
    let verb = if paused { "Pause" } else { "Resume" };
    confirm(global.yes, &format!("{verb} the cluster {}? {effect}", session.spec().cluster.name))?;
    let wish = PauseWish { paused, by: crate::local::user::who(), note };
    let body = session.post_any("/v1/pause", &wish).await?;
    let answer: SpecAnswer = serde_json::from_value(body)
        .map_err(|error| Failure::failed(format!("the answer can not be read: {error}")))?;
    let generation = answer.stored.generation;
    let known = until_known(&mut session, generation, paused).await;
    let verb = if paused { "paused" } else { "resumed" };
    say(&session, paused, vec![format!("generation {generation} says that it is {verb}"), known], global)
}

/// Waits until every node that answers goes by it; the others follow when they are back.
async fn until_known(session: &mut Session, generation: u64, paused: bool) -> String {
    let until = tokio::time::Instant::now() + AT_MOST;
    loop {
        session.refresh().await;
        let behind: Vec<&str> = session
            .specs
            .iter()
            .filter(|(_, answer)| answer.stored.generation < generation || answer.stored.paused.is_some() != paused)
            .map(|(node, _)| node.as_str())
            .collect();
        let (knowing, all) = (session.specs.len() - behind.len(), session.agents.names().len());
        if behind.is_empty() || tokio::time::Instant::now() >= until {
            return format!("{knowing} of {all} nodes know it");
        }
        tokio::time::sleep(EACH).await;
    }
}

fn say(session: &Session, paused: bool, verified: Vec<String>, global: Global) -> Outcome {
    if global.json {
        output::object(&json!({ "cluster": session.spec().cluster.name, "paused": paused, "verified": verified }));
    } else {
        let state = if paused { "is paused" } else { "runs on its own" };
        output::line(&format!("The cluster {} {state}.", session.spec().cluster.name));
        output::line(&format!("Verified: {}.", verified.join("; ")));
    }
    Ok(())
}

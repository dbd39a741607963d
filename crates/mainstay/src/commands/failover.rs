//! `mainstay failover`: lets a replica take over without the primary's help, and says beforehand what that could cost.

use super::status::summary;
use super::wait::{self, Verdict, seconds};
use crate::cli::{Failover, Global};
use crate::failure::{Failure, Outcome};
use crate::output::progress::Progress;
use crate::output::{self, confirm};
use crate::plan::failover::{Outlook, list, look};
use crate::session::Session;
use mainstay_model::Command;
use mainstay_model::status::Status;
use mainstay_ports::clock::boot_now;
use serde_json::json;
use std::time::Duration;

/// How long the take-over may last beyond the wait for the last lease.
const AT_MOST: Duration = Duration::from_secs(30);

/// How long the store may take to elect its own leader before it counts as without a majority.
const STORE_ELECTION: Duration = Duration::from_secs(5);

/// Fails over.
///
/// # Errors
/// When too few members answer (exit status 3), it is refused, or does not come about.
pub(crate) async fn run(options: Failover, global: Global) -> Outcome {
    let session = Session::open_for(&options.which, options.to.as_ref()).await?;
    if let Some(to) = &options.to
        && session.spec().node(to).is_some_and(|node| node.witness)
    {
        return Err(Failure::usage(format!("{to} is a witness: it holds no data")));
    }
    let before = with_majority(&session).await?;
    let (standings, silent) = session.standings().await;
    if standings.is_empty() {
        return Err(Failure::failed("no agent tells what its node knows")
            .hint("agents of an earlier version can not: upgrade them"));
    }
    let primary = before.cluster.primary.clone();
    let outlook = look(&standings, &silent, primary.as_ref(), options.to.as_ref())?;
    let progress = Progress::new();
    tell(&progress, &before, &outlook);
    if !outlook.enough && !options.accept_data_loss {
        return Err(Failure::not_now(format!(
            "too few members answer for a take-over without loss\n{}",
            outlook.risk()
        ))
        .hint("bring a missing node back, or, if they are lost for ever: `mainstay failover --accept-data-loss`"));
    }
    confirm(global.yes, &question(&before, &outlook))?;
    carry_out(&session, &before, &outlook, &options, global, progress).await
}

/// The status. Without a majority of the store no term can be raised, whatever would be accepted; its own election is waited for.
async fn with_majority(session: &Session) -> Outcome<Status> {
    let until = tokio::time::Instant::now() + STORE_ELECTION;
    loop {
        let status = session.status().await?;
        if let Some(problem) = status.problems.iter().find(|problem| problem.name == "store-distrusted") {
            return Err(Failure::not_now(format!("the store is not believed: {}", problem.evidence))
                .hint("`mainstay recover` shows what each node knows; see docs/etcd.md; nothing was changed"));
        }
        let Some(problem) = status.problems.iter().find(|problem| problem.name == "store-no-quorum") else {
            return Ok(status);
        };
        if tokio::time::Instant::now() >= until {
            if session.spec().store.is_etcd() {
                return Err(Failure::not_now(format!("nobody can become primary: {}", problem.evidence))
                    .hint(format!("{}; nothing was changed", problem.hint)));
            }
            return Err(Failure::not_now("the store has no majority of its votes: nobody can become primary")
                .hint("start more nodes; if they are lost for ever: `mainstay recover`; nothing was changed"));
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Says what can be seen before it asks.
fn tell(progress: &Progress, before: &Status, outlook: &Outlook) {
    let position = outlook.position.map(|position| format!(", log up to {position}")).unwrap_or_default();
    progress.say(&format!("Next primary: {}{position}", outlook.candidate));
    progress.say(&format!(
        "Members that answer: {} ({} needed{})",
        if outlook.answering.is_empty() { "none".to_owned() } else { list(&outlook.answering) },
        outlook.needed,
        if outlook.leader_missing.is_none() { ", or the last primary alone" } else { "" }
    ));
    for (node, why) in &outlook.missing {
        progress.say(&format!("Missing: {node}: {why}"));
    }
    if let Some(primary) = &before.cluster.primary {
        let works = if before.cluster.writable { "takes writes" } else { "is open, but its writes are blocked" };
        progress.say(&format!(
            "{primary} is primary and {works}: `mainstay switchover` hands its role over without ending work in flight"
        ));
    }
    if outlook.asynchronous && outlook.leader_missing.is_some() {
        progress.say("Durability is async and the last primary does not answer: its newest commits may be lost, and are reported");
    }
    if !outlook.enough {
        progress.say(&format!("--accept-data-loss: {}", outlook.risk()));
    }
}

fn question(before: &Status, outlook: &Outlook) -> String {
    let (name, candidate) = (&before.cluster.name, &outlook.candidate);
    if !outlook.enough {
        return format!(
            "Make {candidate} primary of cluster {name}, and accept that acknowledged commits may be lost?"
        );
    }
    match &before.cluster.primary {
        Some(primary) => format!(
            "Take the role from {primary} and make {candidate} primary of cluster {name}? Work in flight is ended."
        ),
        None => format!("Make {candidate} primary of cluster {name}?"),
    }
}

async fn carry_out(
    session: &Session,
    before: &Status,
    outlook: &Outlook,
    options: &Failover,
    global: Global,
    mut progress: Progress,
) -> Outcome {
    let begun = boot_now();
    progress.step(&format!("Failing over to {}", outlook.candidate));
    let command = Command::Failover { accept_data_loss: options.accept_data_loss };
    if let Err(failure) = session.command(&outlook.candidate, command).await {
        progress.fail();
        return Err(failure);
    }
    let at_most = AT_MOST + outlook.lease.to_std();
    let after = wait::until(session, at_most, &mut progress, |status| {
        let newer = status.cluster.term > outlook.term.max(before.cluster.term);
        if newer && status.cluster.primary.is_some() && status.cluster.writable {
            Verdict::Done
        } else {
            Verdict::Wait("no primary of a newer term takes writes yet".to_owned())
        }
    })
    .await?;
    let took = boot_now().since(begun);
    let now = after.cluster.primary.clone().map(|node| node.to_string()).unwrap_or_default();
    progress.finish(&format!("{now} takes writes"));
    let mut verified = vec![format!("{now} is primary of term {} and takes writes", after.cluster.term)];
    wait::prove_writes(session, &after, &mut verified).await;
    if global.json {
        output::object(&json!({
            "from": before.cluster.primary, "to": after.cluster.primary, "term": after.cluster.term, "seconds": seconds(took.0),
            "accepted_data_loss": !outlook.enough, "missing": outlook.missing.iter().map(|(node, _)| node).collect::<Vec<_>>(),
            "verified": verified,
        }));
    } else {
        output::line(&format!("Failed over to {now} in {took}: {}.", summary(&after)));
        output::line(&format!("Verified: {}.", verified.join("; ")));
        if !outlook.enough {
            output::line("What the missing members alone hold is reported by `mainstay history` when they come back.");
        }
    }
    Ok(())
}

//! `mainstay recover`: when more than half of the nodes are lost for ever, one node's data and knowledge go on as a new incarnation.

use super::status::summary;
use super::wait::{self, Verdict, seconds};
use crate::cli::{Global, Recover};
use crate::failure::{Failure, Outcome};
use crate::output::progress::Progress;
use crate::output::table::render;
use crate::output::{self, confirm};
use crate::plan::failover::list;
use crate::plan::recover::{Choice, choose};
use crate::session::Session;
use mainstay_model::NodeId;
use mainstay_model::api::{RecoverWish, Standing, StoreStanding};
use mainstay_ports::clock::boot_now;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

const EACH: Duration = Duration::from_millis(250);
/// How often another node is asked to join: it restarts itself meanwhile.
const TRIES: usize = 3;

/// Shows what each node knows, or recovers.
///
/// # Errors
/// When the store works, the node can not be the source, or something could be missing and that was not accepted.
pub(crate) async fn run(options: Recover, global: Global) -> Outcome {
    let session = Session::open_for(&options.which, options.from.as_ref()).await?;
    let (standings, silent) = session.standings().await;
    if standings.is_empty() {
        return Err(crate::client::with_advice(crate::client::nobody(&silent), &session.target));
    }
    let table = table(&standings, &silent);
    let Some(from) = &options.from else {
        if global.json {
            output::object(&json!({ "nodes": standings, "silent": silent }));
        } else {
            output::line(table.trim_end());
            output::line(
                "\nNothing was changed. To rebuild the cluster from one of them: mainstay recover --from NODE",
            );
        }
        return Ok(());
    };
    let progress = Progress::new();
    progress.say(table.trim_end());
    let choice = choose(&standings, &silent, from, session.spec())?;
    tell(&progress, from, &choice);
    if !choice.doubts.is_empty() && !options.accept_data_loss {
        return Err(Failure::not_now(format!("acknowledged commits may be missing\n{}", choice.doubts.join("\n")))
            .hint("bring a lost node back if it can be; else accept it with --accept-data-loss; nothing was changed"));
    }
    confirm(global.yes, &format!("Rebuild the cluster {} from {from} alone?", session.spec().cluster.name))?;
    carry_out(&session, &standings, from, &choice, &options, global, progress).await
}

/// What each node knows.
fn table(standings: &BTreeMap<NodeId, Standing>, silent: &BTreeMap<NodeId, String>) -> String {
    let dash = || "-".to_owned();
    let mut rows: Vec<Vec<String>> = Vec::new();
    for standing in standings.values() {
        let record = standing.record.as_ref().map(|(_, record)| record);
        rows.push(vec![
            standing.node.to_string(),
            if standing.copy.is_some() { "whole".to_owned() } else { "none".to_owned() },
            standing.position.map_or_else(dash, |position| position.to_string()),
            standing.promise.to_string(),
            record.map_or_else(dash, |record| record.term.to_string()),
            record.and_then(|record| record.leader.as_ref()).map_or_else(dash, ToString::to_string),
            store(standing),
        ]);
    }
    let mut text =
        render(&["NODE", "COPY", "LOG UP TO", "PROMISE", "TERM", "PRIMARY", "STORE"], &rows, output::width());
    for (node, why) in silent {
        text.push_str(&format!("{node}: {why}\n"));
    }
    text
}

fn store(standing: &Standing) -> String {
    let store = &standing.store;
    if let Some(failure) = &store.failure {
        return failure.clone();
    }
    if let Some(etcd) = &store.etcd {
        return if etcd.works { "etcd".to_owned() } else { "etcd does not answer".to_owned() };
    }
    match &store.leader {
        _ if store.joining => "waits to be taken in".to_owned(),
        Some(leader) => format!("led by {leader}"),
        None => format!("no leader of {}", store.voters.len()),
    }
}

fn tell(progress: &Progress, from: &NodeId, choice: &Choice) {
    progress.say(&format!(
        "{from} goes on from its own data in term {}, as the only member; commits then wait for replicas as they come",
        choice.term
    ));
    if choice.etcd {
        return tell_of_etcd(progress, choice);
    }
    if !choice.others.is_empty() {
        progress.say(&format!(
            "{} give their part of the old store up (it is moved aside) and join; their data are treated like any diverged copy",
            list(&choice.others)
        ));
    }
    if !choice.lost.is_empty() {
        progress.say(&format!(
            "Keep {} off: as a majority, cut off from here, they could elect a primary of their own. When they come back they stay out until `mainstay reinit NODE`",
            list(&choice.lost)
        ));
    }
    if choice.replicas_short > 0 {
        progress.say(&blocked(choice));
    }
    choice.doubts.iter().for_each(|doubt| progress.say(&format!("Doubt: {doubt}")));
}

/// The other nodes find the store that was made anew by themselves.
fn tell_of_etcd(progress: &Progress, choice: &Choice) {
    if !choice.others.is_empty() {
        progress.say(&format!(
            "{} find what is made anew in etcd by themselves, and follow; their data are treated like any diverged copy",
            list(&choice.others)
        ));
    }
    if !choice.lost.is_empty() {
        progress.say(&format!(
            "{} will do the same when they come back: the old place in etcd is gone, so they can elect nobody by it",
            list(&choice.lost)
        ));
    }
    if choice.replicas_short > 0 {
        progress.say(&blocked(choice));
    }
    choice.doubts.iter().for_each(|doubt| progress.say(&format!("Doubt: {doubt}")));
}

/// What is to be done about the nodes that did not answer.
fn next_of_lost(choice: &Choice) -> Option<String> {
    let lost = (!choice.lost.is_empty()).then(|| list(&choice.lost))?;
    Some(match choice.etcd {
        true => {
            format!("Next: start the agents of {lost}, or `mainstay node remove NAME` for each that is gone for good")
        }
        false => format!("Next: keep {lost} off; `mainstay node replace NAME` or `node remove NAME` for each"),
    })
}

fn blocked(choice: &Choice) -> String {
    let count = choice.replicas_short;
    format!(
        "Durability is strict and {count} replica{} for it {} missing: writes stay blocked until a node has joined (`mainstay node replace`), or until \
         `mainstay set cluster.durability=available`",
        if count == 1 { "" } else { "s" },
        if count == 1 { "is" } else { "are" }
    )
}

fn wish(from: &NodeId, choice: &Choice) -> RecoverWish {
    let lossy = !choice.doubts.is_empty();
    RecoverWish { from: from.clone(), lossy, term: choice.term, by: crate::local::user::who() }
}

async fn carry_out(
    session: &Session,
    standings: &BTreeMap<NodeId, Standing>,
    from: &NodeId,
    choice: &Choice,
    options: &Recover,
    global: Global,
    mut progress: Progress,
) -> Outcome {
    let begun = boot_now();
    let wish = wish(from, choice);
    let old_group = standings.get(from).map(|standing| standing.store.group).unwrap_or_default();
    progress.step(&format!("Rebuilding the store on {from}"));
    let asked = session.post(from, "/v1/recover", &wish).await;
    // The agent restarts itself: an answer that is lost on the way says nothing, a refusal does.
    if let Err(failure) = asked
        && !failure.error.contains("does not answer")
    {
        progress.fail();
        return Err(failure);
    }
    let until = Instant::now() + Duration::from_secs(options.wait);
    rebuilt(session, from, old_group, until, &mut progress).await?;
    progress.finish("it works with the new one");
    let mut joined = Vec::new();
    for other in &choice.others {
        progress.step(&format!("Asking {other} to join"));
        match join(session, other, &wish).await {
            Ok(()) => joined.push(other.clone()),
            Err(failure) => progress.say(&format!("{other} does not join yet: {}", failure.error)),
        }
    }
    let writes = choice.replicas_short == 0;
    progress.step(if writes { "Waiting for a primary that takes writes" } else { "Waiting for a primary" });
    let left = until.saturating_duration_since(Instant::now()).max(Duration::from_secs(10));
    let after = wait::until(session, left, &mut progress, |status| {
        // Without the replicas that strict commits wait for, clients are not let in: the server runs, and its node says what it waits for.
        let waits = status
            .nodes
            .iter()
            .any(|node| node.name == *from && ["promoting", "waiting", "running"].contains(&node.state.as_str()));
        let open = status.cluster.writable && status.cluster.primary.is_some();
        if status.cluster.term >= choice.term && (open || (!writes && waits)) {
            Verdict::Done
        } else {
            Verdict::Wait(format!("no primary of term {} takes writes yet", choice.term))
        }
    })
    .await?;
    let now = after.cluster.primary.as_ref().unwrap_or(from);
    progress.finish(now.as_str());
    let mut verified = vec![format!("{now} holds term {} in the new store", after.cluster.term)];
    if after.cluster.writable {
        verified.push(format!("{now} takes writes"));
        wait::prove_writes(session, &after, &mut verified).await;
    }
    let took = boot_now().since(begun);
    if global.json {
        output::object(&json!({
            "from": from, "term": after.cluster.term, "primary": after.cluster.primary, "joined": joined, "writable": after.cluster.writable, "keep_off": if choice.etcd { &[] } else { choice.lost.as_slice() },
            "doubts": choice.doubts, "seconds": seconds(took.0), "verified": verified,
        }));
    } else {
        output::line(&format!("Recovered from {from} in {took}: {}.", summary(&after)));
        output::line(&format!("Verified: {}.", verified.join("; ")));
        if !after.cluster.writable && !writes {
            output::line(&format!("{}.", blocked(choice)));
        }
        next_of_lost(choice).iter().for_each(|next| output::line(next));
    }
    Ok(())
}

fn works(store: &StoreStanding, from: &NodeId) -> bool {
    store.leader.as_ref() == Some(from) || store.etcd.as_ref().is_some_and(|etcd| etcd.works)
}

async fn rebuilt(session: &Session, from: &NodeId, old_group: u64, until: Instant, progress: &mut Progress) -> Outcome {
    loop {
        let (standings, silent) = session.standings().await;
        let store = standings.get(from).map(|standing| &standing.store);
        if store.is_some_and(|store| store.group != old_group && works(store, from)) {
            return Ok(());
        }
        let missing = match (store, silent.get(from)) {
            (Some(store), _) if store.group == old_group => "it still has its old store".to_owned(),
            (Some(_), _) => "its new store has no leader yet".to_owned(),
            (None, why) => why.cloned().unwrap_or_else(|| "no answer".to_owned()),
        };
        if Instant::now() >= until {
            progress.fail();
            return Err(Failure::failed(format!("{from} did not rebuild the store in time: {missing}"))
                .hint(format!("look at the agent's log on {from} (`journalctl -u mainstay-agent`); the old store is moved aside, not removed; this command may be run again")));
        }
        progress.detail(&missing);
        tokio::time::sleep(EACH).await;
    }
}

async fn join(session: &Session, node: &NodeId, wish: &RecoverWish) -> Outcome {
    let mut last = Ok(());
    for _ in 0..TRIES {
        last = session.post(node, "/v1/recover", wish).await.map(|_| ());
        if last.is_ok() {
            break;
        }
        tokio::time::sleep(EACH).await;
    }
    last
}

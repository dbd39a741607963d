//! `mainstay restore --in-place`: the whole cluster goes back to an earlier moment (docs/adr/0031). This command asks; one node's agent prepares
//! the copy, and the decisions carry it out. Ended at any step, the cluster goes on: as it was before the hand-over, restored after it.

use super::backup::going;
use super::restore::{end_segment, named};
use super::shelf::of_agents;
use super::status::summary;
use super::wait::{self, Verdict, seconds};
use crate::cli::{Global, Restore};
use crate::client::decode;
use crate::failure::{Failure, Outcome};
use crate::output::progress::Progress;
use crate::output::table::{ago, bytes};
use crate::output::{self, confirm};
use crate::plan::failover::list;
use crate::session::Session;
use mainstay_model::spec::Spec;
use mainstay_model::status::Status;
use mainstay_model::vault::{RestoreAsk, RestorePhase, RestorePlan, RestoreState, RestoreWish};
use mainstay_model::{Command, Durability, Event, Lsn, Moment, NodeId, Term, Timeline};
use mainstay_ports::clock::{boot_now, wall_now_ms};
use mainstay_vault::postgres::restore::{Target, time_text};
use serde_json::json;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

const LOOK: Duration = Duration::from_millis(400);
/// Clients are kept out for so long beyond the last word of this command.
const HOLD_MS: u64 = 20_000;
const HOLD_EACH: Duration = Duration::from_secs(4);
/// Ending all clients may take so long.
const SHUT_MS: u64 = 30_000;
/// Looking at the repository may take so long.
const PLAN: Duration = Duration::from_secs(600);
/// The one write of the hand-over may take so long; the agent gives it up sooner.
const WRITTEN: Duration = Duration::from_secs(60);
/// An agent that does not answer for so long is gone.
const SILENCE_MS: u64 = 60_000;

/// What this command did so far.
#[derive(Default)]
struct Mine {
    /// The restore that it asked for last.
    token: AtomicU64,
    /// It had clients put out.
    holds: AtomicBool,
    /// It handed the copy over, and that was not refused.
    handed: AtomicBool,
}

/// Goes back.
///
/// # Errors
/// When the moment can not be had, there is no room, or something fails before the hand-over: nothing was changed then.
pub(crate) async fn run(options: Restore, target: Target, global: Global) -> Outcome {
    let session = Session::open_for(&options.shelf.which, options.on.as_ref()).await?;
    let mut wish = wish(&target, &options, session.spec())?;
    let before = session.status().await?;
    let node = choose(&session, &before, options.on.as_ref()).await?;
    let mut progress = Progress::new();
    // Only whether these can be had may depend on it; the others end it once clients are out. Of the latest moment the log that a switchover or a
    // take-over left behind may be on its way.
    let recent = matches!(target, Target::Time(_) | Target::Position(_) | Target::Latest);
    if recent && before.cluster.primary.is_some() {
        end_segment(&session, &mut progress).await;
    }
    progress.step(&format!("Asking {node} whether it can be had"));
    let asked = ask(&session, &node, RestoreAsk::Plan(wish.clone())).await?;
    let planned = follow(&session, &node, asked.token, PLAN, &mut progress).await?;
    progress.finish("yes");
    let plan = planned.plan.unwrap_or_else(|| RestorePlan {
        backup: String::new(),
        timeline: Timeline(0),
        files: 0,
        log: 0,
        reaches: Lsn(0),
        free: None,
        needs: 0,
        unreadable: Vec::new(),
        repository: None,
        passed_over: Vec::new(),
    });
    // What is confirmed is done: not one of a repository that is behind, should this one go away meanwhile.
    wish.repository = wish.repository.take().or_else(|| plan.repository.clone());
    super::backups::warn(&plan.unreadable);
    super::shelf::tell_passed_over(&plan.passed_over);
    tell(&progress, &session, &node, &target, &plan, &before);
    confirm(global.yes, &format!("Take the cluster {} back, and lose what came later?", session.spec().cluster.name))?;
    let begun = boot_now();
    let mine = Mine::default();
    mine.token.store(asked.token, Relaxed);
    // Until the record shows the copy: what is committed before is lost.
    let done = tokio::select! {
        done = hand_over(&session, &node, &mine, (&mut wish, plan.timeline), &before, &mut progress) => done,
        refused = keep_out(&session, &mine, before.cluster.primary.is_some()) => Err(refused),
    };
    match done {
        Ok((ready, lost, term)) => {
            finish(&session, &node, term, (&ready, &lost), &options, (global, begun), progress).await
        }
        Err(failure) => {
            // While that is unknown it may yet be taken up: then nobody is let in before their time is over.
            if !mine.handed.load(Relaxed) {
                let_in(&session, &mine).await;
            }
            Err(failure)
        }
    }
}

/// Has the copy made and handed over, until the record shows it. Says what is lost, and the record's term.
async fn hand_over(
    session: &Session,
    node: &NodeId,
    mine: &Mine,
    (wish, timeline): (&mut RestoreWish, Timeline),
    before: &Status,
    progress: &mut Progress,
) -> Outcome<(RestoreState, String, Term)> {
    let ready = prepare(session, node, mine, (wish, timeline), before, progress).await?;
    let lost = lost(session, &ready).await;
    progress.say(&format!("The copy ends at {}. {lost}", shown(&ready)));
    progress.step("Handing it over");
    let refused = refusals(session, node).await;
    let commit = RestoreAsk::Commit { token: ready.token, by: crate::local::user::who() };
    mine.handed.store(true, Relaxed);
    if let Err(failure) = ask(session, node, commit).await {
        // Unanswered it may have been taken up: the record tells.
        let unanswered = ["does not answer", "can not be read"].iter().any(|what| failure.error.contains(what));
        if !unanswered {
            mine.handed.store(false, Relaxed);
            progress.fail();
            return Err(failure);
        }
    }
    let term = written(session, node, mine, refused, progress).await?;
    Ok((ready, lost, term))
}

/// Which restores this node's decisions gave up, as far as the history can be read.
async fn refusals(session: &Session, node: &NodeId) -> Option<Vec<Event>> {
    let told = super::history::read(session).await.ok()?;
    let events = told.into_iter().map(|told| told.event);
    Some(events.filter(|event| event.node == *node && event.kind == "restore-refused").collect())
}

/// Waits until the record shows this very copy. Says its term.
async fn written(
    session: &Session,
    node: &NodeId,
    mine: &Mine,
    known: Option<Vec<Event>>,
    progress: &mut Progress,
) -> Outcome<Term> {
    let (begun, token) = (boot_now(), mine.token.load(Relaxed));
    loop {
        let (standings, _) = session.standings().await;
        let records = standings.into_values().filter_map(|standing| standing.record).map(|(_, record)| record);
        let mut shows =
            records.filter(|record| record.restored.as_ref().is_some_and(|restored| restored.copy.number() == token));
        if let Some(record) = shows.next() {
            return Ok(record.term);
        }
        if let Some(known) = &known {
            let told = refusals(session, node).await.unwrap_or_default();
            let new =
                |event: &&Event| !known.iter().any(|old| (old.wall_ms, &old.text) == (event.wall_ms, &event.text));
            if let Some(event) = told.iter().find(new) {
                mine.handed.store(false, Relaxed);
                progress.fail();
                return Err(Failure::failed(event.text.clone())
                    .hint("nothing was changed, and clients are let in again; mend what it says, and restore again"));
            }
        }
        if boot_now().since(begun).0 > u64::try_from(WRITTEN.as_millis()).unwrap_or(u64::MAX) {
            progress.fail();
            let says =
                format!("whether the cluster goes back is unknown: no record shows it within {} s", WRITTEN.as_secs());
            return Err(Failure::failed(says).hint(
                "look at `mainstay status` and `mainstay history` before anything else: `restored` there says that it does, `restore-refused` that nothing was changed",
            ));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn wish(target: &Target, options: &Restore, spec: &Spec) -> Outcome<RestoreWish> {
    Ok(RestoreWish {
        target: target.clone(),
        timeline: options.timeline.map(Timeline),
        backup: options.backup.clone(),
        repository: of_agents(&options.shelf, spec, "a restore in place")?,
        complete: false,
        complete_to: None,
        wait_s: options.wait,
    })
}

/// Where the copy is prepared: named, or the primary, whose data are the most complete ones to keep; without one, the data node whose log reaches
/// furthest.
async fn choose(session: &Session, status: &Status, on: Option<&NodeId>) -> Outcome<NodeId> {
    let data = |node: &NodeId| session.spec().node(node).is_some_and(|node| !node.witness);
    if let Some(node) = on {
        if !data(node) {
            return Err(Failure::usage(format!("{node} is a witness: it holds no data")));
        }
        return Ok(node.clone());
    }
    if let Some(primary) = &status.cluster.primary {
        return Ok(primary.clone());
    }
    let (standings, silent) = session.standings().await;
    let best = standings.values().filter(|standing| data(&standing.node)).max_by_key(|standing| standing.position);
    best.map(|standing| standing.node.clone())
        .ok_or_else(|| crate::client::with_advice(crate::client::nobody(&silent), &session.target))
}

async fn ask(session: &Session, node: &NodeId, ask: RestoreAsk) -> Outcome<RestoreState> {
    let body = session.post(node, "/v1/restore", &ask).await?;
    serde_json::from_value(body)
        .map_err(|error| Failure::failed(format!("the answer of {node} can not be read: {error}")))
}

/// Clients are kept out while this command goes on. Ends only when the first word of that is refused; one that is missed later is made up for by
/// the next.
async fn keep_out(session: &Session, mine: &Mine, needed: bool) -> Failure {
    let mut first = needed;
    loop {
        let primary = session.agents.status().await.ok().and_then(|status| status.cluster.primary);
        if let Some(primary) = primary {
            match session.command(&primary, Command::Hold { for_ms: HOLD_MS }).await {
                Err(failure) if first && !mine.handed.load(Relaxed) => return failure,
                Err(_) => {}
                Ok(_) => {
                    mine.holds.store(true, Relaxed);
                    first = false;
                }
            }
        }
        tokio::time::sleep(HOLD_EACH).await;
    }
}

/// Lets clients in again, as far as somebody can be told; else they are when the time is over. One who keeps them out for another restore is
/// not forestalled.
async fn let_in(session: &Session, mine: &Mine) {
    let (answers, _) = session.agents.ask_all("/v1/restore").await;
    let mut states = answers.values().filter_map(decode::<Option<RestoreState>>).flatten();
    let others = states.any(|state| state.token != mine.token.load(Relaxed) && state.phase != RestorePhase::Failed);
    if others || !mine.holds.load(Relaxed) {
        return;
    }
    let primary = session.agents.status().await.ok().and_then(|status| status.cluster.primary);
    if let Some(primary) = primary {
        let _ = session.command(&primary, Command::Hold { for_ms: 0 }).await;
    }
}

/// Until it is planned, lies ready, or failed.
async fn follow(
    session: &Session,
    node: &NodeId,
    token: u64,
    most: Duration,
    progress: &mut Progress,
) -> Outcome<RestoreState> {
    let (begun, mut heard, mut phase) = (boot_now(), boot_now(), RestorePhase::Planning);
    loop {
        tokio::time::sleep(LOOK).await;
        let now = boot_now();
        let answer = session.agents.ask(node, "GET", "/v1/restore", None).await.ok();
        let state = answer.as_ref().and_then(decode::<Option<RestoreState>>);
        match state {
            Some(Some(state)) if state.token == token => {
                heard = now;
                if let Some(why) = state.failure {
                    progress.fail();
                    let failed = if state.impossible { Failure::not_now(why) } else { Failure::failed(why) };
                    return Err(failed.hint("nothing of the cluster was changed; mend what it says, or choose another moment or node (--on)"));
                }
                if state.phase != phase {
                    phase = state.phase;
                    match phase {
                        RestorePhase::Writing => progress.step(&format!("Writing the files on {node}")),
                        RestorePhase::Recovering => progress.step("Recovering"),
                        RestorePhase::Planned | RestorePhase::Ready => return Ok(state),
                        RestorePhase::Planning | RestorePhase::Failed => {}
                    }
                }
                if phase == RestorePhase::Writing {
                    progress.detail(&going(state.done, state.total, now.since(begun).0));
                }
            }
            Some(_) => {
                progress.fail();
                return Err(Failure::failed(format!(
                    "the agent of {node} knows nothing of this restore any more: it was restarted"
                ))
                .hint("nothing of the cluster was changed; what was prepared is removed by itself; begin again"));
            }
            None if now.since(heard).0 > SILENCE_MS => {
                progress.fail();
                return Err(Failure::failed(format!("the agent of {node} does not answer any more")).hint(
                    "nothing of the cluster was changed; begin again, on another node with --on if this one is lost",
                ));
            }
            None => {}
        }
        if now.since(begun).0 > u64::try_from(most.as_millis()).unwrap_or(u64::MAX) {
            progress.fail();
            let _ = ask(session, node, RestoreAsk::Drop { token }).await;
            return Err(Failure::not_now(format!("not within {} s", most.as_secs()))
                .hint("nothing of the cluster was changed; give it more time with --wait"));
        }
    }
}

/// All that was committed is archived, of the timeline whose segment was ended: only when the copy goes along that one its end is a moment. It is named
/// then, for the newest timeline that the archive knows may be another by the time that the copy is made.
fn settle(wish: &mut RestoreWish, planned: Timeline, ended: Option<Timeline>) {
    wish.complete = ended == Some(planned);
    if wish.complete {
        wish.timeline = ended;
    }
}

/// Waits until clients are out, has archived what they committed, and has the copy made.
async fn prepare(
    session: &Session,
    node: &NodeId,
    mine: &Mine,
    (wish, timeline): (&mut RestoreWish, Timeline),
    before: &Status,
    progress: &mut Progress,
) -> Outcome<RestoreState> {
    if before.cluster.primary.is_some() {
        progress.step("Keeping clients out");
        until_shut(session).await.inspect_err(|_| progress.fail())?;
        progress.finish("until it is done, or for a while after this command is gone");
        let ended = end_segment(session, progress).await;
        settle(wish, timeline, ended.map(|ended| ended.timeline));
        let several = wish.complete && session.spec().vault.several();
        wish.complete_to = ended.filter(|_| several).map(|ended| ended.end);
    }
    progress.step("Looking at the repository");
    let asked = ask(session, node, RestoreAsk::Prepare(wish.clone())).await.inspect_err(|_| progress.fail())?;
    mine.token.store(asked.token, Relaxed);
    // The recovery has its own limit; so much beside it for the files.
    let most = Duration::from_secs(wish.wait_s.saturating_mul(2));
    let ready = follow(session, node, asked.token, most, progress).await?;
    progress.finish("the copy lies ready");
    Ok(ready)
}

/// Only then is what is archived all that was committed.
async fn until_shut(session: &Session) -> Outcome {
    let begun = boot_now();
    while boot_now().since(begun).0 < SHUT_MS {
        if session.standings().await.0.values().any(|standing| standing.shut) {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
    Err(Failure::not_now("the primary does not get rid of its clients")
        .hint("nothing was changed, and they are let in again; `mainstay why` says what hinders it"))
}

fn shown(ready: &RestoreState) -> String {
    let at = ready.moment.map_or_else(|| "an unknown position".to_owned(), |moment| moment.to_string());
    let time = ready.last_commit.map(|micros| format!(", its last commit was made at {}", time_text(micros)));
    format!("{at}{}", time.unwrap_or_default())
}

/// What is given up, as far as it is known.
async fn lost(session: &Session, ready: &RestoreState) -> String {
    let (standings, _) = session.standings().await;
    let end = standings.values().filter_map(|standing| standing.position).max();
    match (ready.moment, end) {
        (Some(moment), Some(end)) if end.lsn > moment.lsn => {
            let since = ready.last_commit.and_then(|micros| u64::try_from(micros / 1000).ok());
            let since = since.map(|ms| format!(", of the last {}", ago(wall_now_ms().saturating_sub(ms) / 1000)));
            format!("Lost: {} of the log after it{}.", bytes(end.lsn.0 - moment.lsn.0), since.unwrap_or_default())
        }
        (Some(_), Some(_)) => "Nothing that any node's log holds lies after it.".to_owned(),
        _ => "How much of the log lies after it is not known.".to_owned(),
    }
}

fn tell(progress: &Progress, session: &Session, node: &NodeId, target: &Target, plan: &RestorePlan, before: &Status) {
    let spec = session.spec();
    progress.say(&format!(
        "{node} goes back to {}: from the backup {}{} ({}) and {} of the log, on timeline {}, beside its data ({} needed, {} free)",
        named(target),
        plan.backup,
        plan.repository.as_ref().map_or_else(String::new, |name| format!(" in {name}")),
        bytes(plan.files),
        bytes(plan.log),
        plan.timeline,
        bytes(plan.needs),
        plan.free.map_or_else(|| "unknown".to_owned(), bytes),
    ));
    let since = match target {
        Target::Time(micros) => {
            let ms = u64::try_from(micros / 1000).unwrap_or(0);
            format!(": everything of the last {}", ago(wall_now_ms().saturating_sub(ms) / 1000))
        }
        _ => String::new(),
    };
    progress.say(&format!(
        "WHAT WAS COMMITTED AFTER THAT MOMENT IS LOST{since}. Exactly how much is said when the copy lies ready"
    ));
    let others: Vec<NodeId> = spec
        .nodes
        .iter()
        .filter(|other| other.name != *node && !other.witness)
        .map(|other| other.name.clone())
        .collect();
    if before.cluster.primary.is_some() {
        progress.say("From now on clients are kept out, for writing and reading on the primary, until it is done");
    }
    if !others.is_empty() {
        progress.say(&format!("{} are cloned anew from {node} (each keeps one old copy as data.old)", list(&others)));
    }
    if spec.cluster.durability == Durability::Strict && spec.sync_replicas() > 0 {
        progress.say(&format!(
            "Durability is strict: clients are let in once {} of them {} cloned",
            spec.sync_replicas(),
            if spec.sync_replicas() == 1 { "is" } else { "are" }
        ));
    }
    progress.say(&format!(
        "The data of before stay on {node}, as {}N in its directory: nothing removes them but you",
        mainstay_model::layout::KEPT_PREFIX
    ));
}

async fn finish(
    session: &Session,
    node: &NodeId,
    term: Term,
    (ready, lost): (&RestoreState, &str),
    options: &Restore,
    (global, begun): (Global, Moment),
    mut progress: Progress,
) -> Outcome {
    let most = Duration::from_secs(options.wait);
    wait::until(session, most, &mut progress, |status| {
        let open = status.cluster.writable && status.cluster.primary.as_ref() == Some(node);
        if status.cluster.term >= term && open {
            Verdict::Done
        } else {
            Verdict::Wait(format!("{node} does not lead yet"))
        }
    })
    .await
    .map_err(|failure| {
        failure.hint("the hand-over goes on by itself: see `mainstay status`, `mainstay history`, `mainstay why`")
    })?;
    progress.finish(&format!("{node} leads, and clients are let in"));
    progress.step("Waiting for the other nodes");
    let after = wait::until(session, most, &mut progress, |status| {
        let behind: Vec<NodeId> =
            status.nodes.iter().filter(|node| !node.healthy).map(|node| node.name.clone()).collect();
        if behind.is_empty() { Verdict::Done } else { Verdict::Wait(format!("{} not back yet", list(&behind))) }
    })
    .await?;
    progress.finish("all are back");
    let mut verified = vec![
        format!("a server recovered the copy up to {}", shown(ready)),
        format!("{node} leads in term {}", after.cluster.term),
    ];
    wait::prove_writes(session, &after, &mut verified).await;
    let took = boot_now().since(begun);
    if global.json {
        output::object(&json!({
            "node": node, "moment": ready.moment, "last_commit": ready.last_commit.map(time_text), "term": after.cluster.term,
            "lost": lost, "seconds": seconds(took.0), "verified": verified,
        }));
        return Ok(());
    }
    output::line(&format!("The cluster went back to {} in {took}: {}.", shown(ready), summary(&after)));
    output::line(lost);
    output::line(&format!("Verified: {}.", verified.join("; ")));
    output::line(&format!(
        "Next: look whether the data are as they should be; then remove what `mainstay status` names on {node}, and make a backup: `mainstay backup`"
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_archive_is_a_moment_only_on_the_timeline_that_was_ended() {
        let wish = |timeline| RestoreWish {
            target: Target::Time(1),
            timeline,
            backup: None,
            repository: None,
            complete: true,
            complete_to: None,
            wait_s: 1,
        };
        for (asked, ended, complete, then) in [
            (None, Some(Timeline(3)), true, Some(Timeline(3))),
            (Some(Timeline(3)), Some(Timeline(3)), true, Some(Timeline(3))),
            (Some(Timeline(3)), Some(Timeline(4)), false, Some(Timeline(3))),
            (None, Some(Timeline(4)), false, None),
            (None, None, false, None),
        ] {
            let mut wish = wish(asked);
            settle(&mut wish, Timeline(3), ended);
            assert_eq!((wish.complete, wish.timeline), (complete, then));
        }
    }
}

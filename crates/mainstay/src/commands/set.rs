//! `mainstay set`: shows or changes the specification in force. A change is a new generation, worked out and checked here as the file is, and
//! checked again by the agents.

use super::history::time;
use super::restart::pending;
use super::wait::seconds;
use crate::cli::{Global, Set};
use crate::failure::{Failure, Outcome};
use crate::local::engine::owned_parameters;
use crate::output::progress::Progress;
use crate::output::{self, confirm};
use crate::plan::failover::newest_record;
use crate::plan::settings::{keep_first_copy, notes, refuse, takes_first_copy};
use crate::session::Session;
use crate::target::{Target, absolute};
use jiff::tz::TimeZone;
use mainstay_model::config::{parse, render};
use mainstay_model::config_assign::{Assignment, Difference, Operation, assign, check_names, difference};
use mainstay_model::spec::Spec;
use mainstay_model::stored_spec::StoredSpec;
use mainstay_model::{Durability, NodeId};
use mainstay_ports::clock::boot_now;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// How long the nodes that answer may take to go by a new generation.
const KNOWN: Duration = Duration::from_secs(15);
/// How long the record may take to show another durability: replicas must have caught up for some.
const RECORDED: Duration = Duration::from_secs(60);
/// How long a server may take to say that a parameter waits for a restart.
const PENDING: Duration = Duration::from_secs(2);
/// For how long what waits must stay the same to be believed: servers answer one after the other.
const STILL: Duration = Duration::from_millis(600);
const EACH: Duration = Duration::from_millis(150);

/// Shows or changes.
///
/// # Errors
/// When the wish is wrong (usage), not possible now, or not seen to take effect.
pub(crate) async fn run(options: Set, global: Global) -> Outcome {
    let changes = assignments(&options)?;
    let file = options.file.as_deref().map(read_file).transpose()?;
    check_early(&options, &changes)?;
    let mut session = Session::open(&options.which).await?;
    let stored = session.in_force()?.clone();
    let new = match (&file, changes.is_empty()) {
        (Some(spec), _) => from_file(spec, &session, &stored),
        (None, true) => return show(&session, &stored, global),
        (None, false) => assign(&stored.spec, &changes, owned_parameters())
            .map_err(|error| Failure::usage(error.to_string()).hint("nothing was changed"))?,
    };
    let differences = difference(&stored.spec, &new);
    refuse(&stored.spec, &new, &differences)?;
    first_copy(&session, &stored.spec, &new).await?;
    if differences.is_empty() {
        return unchanged(&stored, global);
    }
    let progress = Progress::new();
    differences.iter().for_each(|difference| progress.say(&format!("  {difference}")));
    notes(&stored.spec, &new, &differences).iter().for_each(|note| progress.say(note));
    confirm(
        global.yes,
        &format!("Change this in the cluster {} (generation {})?", new.cluster.name, stored.generation + 1),
    )?;
    carry_out(&mut session, new, &differences, global, progress).await
}

/// A server that is being adopted stays named until its data are the cluster's.
pub(super) async fn first_copy(session: &Session, old: &Spec, new: &Spec) -> Outcome {
    if !takes_first_copy(old, new) {
        return Ok(());
    }
    let (standings, _) = session.standings().await;
    keep_first_copy(old, new, newest_record(&standings).and_then(|record| record.system))
}

fn assignments(options: &Set) -> Outcome<Vec<Assignment>> {
    let mut changes = Vec::new();
    for text in &options.assignments {
        changes.push(
            Assignment::parse(text)
                .map_err(|error| Failure::usage(error).hint("nothing was changed; examples: mainstay set --help"))?,
        );
    }
    changes.extend(options.unset.iter().map(|key| Assignment { key: key.clone(), operation: Operation::Unset }));
    let mut keys: Vec<&str> = changes
        .iter()
        .filter(|change| !matches!(change.operation, Operation::Add(_) | Operation::Remove(_)))
        .map(|change| change.key.as_str())
        .collect();
    keys.sort_unstable();
    match keys.windows(2).find(|pair| pair.first() == pair.last()) {
        Some(pair) => Err(Failure::usage(format!("{} is given twice", pair.first().copied().unwrap_or_default()))
            .hint("nothing was changed")),
        None => Ok(changes),
    }
}

fn read_file(path: &Path) -> Outcome<Spec> {
    let path = absolute(path)?;
    let shown = path.display();
    let text = crate::given::text(&path)
        .map_err(|error| Failure::usage(format!("--file {shown}: {error}")).hint("nothing was changed"))?;
    parse(&text, owned_parameters())
        .map_err(|error| Failure::usage(format!("{shown} holds mistakes:\n{error}")).hint("nothing was changed"))
}

/// What an edited file asks for. The way to an etcd that the cluster's own file says is not a wish to change that of the others: what this command
/// prints says it, too.
fn from_file(spec: &Spec, session: &Session, stored: &StoredSpec) -> Spec {
    if spec.store == session.file().store { spec.with_store_of(&stored.spec) } else { spec.clone() }
}

/// Mistyped keys are known without any agent.
fn check_early(options: &Set, changes: &[Assignment]) -> Outcome {
    let target = Target::find(&options.which)?;
    check_names(&target.spec, changes).map_err(|error| Failure::usage(error.to_string()).hint("nothing was changed"))
}

/// The specification in force, as a file.
fn show(session: &Session, stored: &StoredSpec, global: Global) -> Outcome {
    let spec = session.for_file(stored);
    let files: BTreeMap<&NodeId, _> = session.specs.iter().map(|(node, answer)| (node, answer.file)).collect();
    if global.json {
        output::object(&json!({
            "generation": stored.generation, "wall_ms": stored.wall_ms, "by": stored.by, "change": stored.change,
            "paused": stored.paused, "spec": spec, "pending_restart": pending(session), "files": files,
        }));
        return Ok(());
    }
    output::line(&format!("# {}", made(stored)));
    if let Some(paused) = &stored.paused {
        let note = if paused.note.is_empty() { String::new() } else { format!(": {}", paused.note) };
        output::line(&format!("# paused by {} since {}{note}", paused.by, time(paused.wall_ms, &TimeZone::system())));
    }
    for (node, names) in pending(session) {
        output::line(&format!("# {node} waits for a restart: {} (mainstay restart --pending)", names.join(", ")));
    }
    if spec.store.is_etcd() {
        let file = session.target.config.display();
        output::line(&format!("# [store] is each node's own affair: here as {file} says it"));
    }
    output::line(render(&spec).trim_end());
    Ok(())
}

/// Which generation, by whom, when.
pub(crate) fn made(stored: &StoredSpec) -> String {
    if stored.generation == 0 {
        return "generation 0: as the file says; the store has taken none up yet".to_owned();
    }
    let change = if stored.change.is_empty() { String::new() } else { format!(": {}", stored.change) };
    format!(
        "generation {}, made by {} at {}{change}",
        stored.generation,
        stored.by,
        time(stored.wall_ms, &TimeZone::system())
    )
}

fn unchanged(stored: &StoredSpec, global: Global) -> Outcome {
    if global.json {
        output::object(&json!({ "generation": stored.generation, "changed": [], "verified": ["it is so already"] }));
    } else {
        output::line(&format!("Nothing to do: generation {} says so already.", stored.generation));
    }
    Ok(())
}

async fn carry_out(
    session: &mut Session,
    new: Spec,
    differences: &[Difference],
    global: Global,
    mut progress: Progress,
) -> Outcome {
    let begun = boot_now();
    let (stored, verified) = bring_about(session, new, differences, &mut progress).await?;
    report(session, &stored, differences, &verified, boot_now().since(begun).0, global);
    Ok(())
}

/// Writes the generation, and waits until it is seen to be in force. Returns it with what was verified.
///
/// # Errors
/// When it is refused, or not seen to take effect.
pub(super) async fn bring_about(
    session: &mut Session,
    new: Spec,
    differences: &[Difference],
    progress: &mut Progress,
) -> Outcome<(StoredSpec, Vec<String>)> {
    let change = differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let durability =
        differences.iter().any(|difference| difference.key == "cluster.durability").then_some(new.cluster.durability);
    progress.step("Writing the new generation");
    let stored = match session.propose(new, change.chars().take(500).collect()).await {
        Ok(stored) => stored,
        Err(failure) => {
            progress.fail();
            return Err(failure);
        }
    };
    progress.finish(&format!("generation {}", stored.generation));
    let mut verified = vec![format!("generation {} is in force", stored.generation)];
    verified.push(until_known(session, stored.generation, progress).await);
    if let Some(wanted) = durability {
        verified.push(until_recorded(session, wanted, progress).await?);
    }
    if differences.iter().any(|difference| difference.key.starts_with("postgres.parameters.")) {
        until_pending(session).await;
    }
    Ok((stored, verified))
}

/// Waits until the servers have said which parameters wait for a restart, or time enough to say that none does.
async fn until_pending(session: &mut Session) {
    let (until, mut seen, mut since) = (Instant::now() + PENDING, pending(session), Instant::now());
    while Instant::now() < until && (seen.is_empty() || since.elapsed() < STILL) {
        tokio::time::sleep(EACH).await;
        session.refresh().await;
        let now = pending(session);
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
}

/// Waits until every node that answers goes by this generation; the others follow when they are back.
pub(crate) async fn until_known(session: &mut Session, generation: u64, progress: &mut Progress) -> String {
    progress.step("Waiting until the nodes go by it");
    let until = Instant::now() + KNOWN;
    loop {
        session.refresh().await;
        let knowing = session.specs.values().filter(|answer| answer.stored.generation >= generation).count();
        let (answering, all) = (session.specs.len(), session.agents.names().len());
        if (knowing == answering && answering > 0) || Instant::now() >= until {
            let text = format!("{knowing} of {all} nodes go by it");
            progress.finish(&text);
            return text;
        }
        progress.detail(&format!("{knowing} of {answering}"));
        tokio::time::sleep(EACH).await;
    }
}

/// Waits until the record shows how commits are protected.
async fn until_recorded(session: &Session, wanted: Durability, progress: &mut Progress) -> Outcome<String> {
    progress.step(&format!("Waiting until commits are protected as durability {wanted} says"));
    let until = Instant::now() + RECORDED;
    loop {
        let (standings, _) = session.standings().await;
        let shown = newest_record(&standings).map(|record| record.asynchronous);
        if shown == Some(wanted == Durability::Async) {
            let text = match wanted {
                Durability::Async => "without waiting",
                Durability::Strict => "only once enough replicas hold them",
                Durability::Available => "once the replicas that are there hold them",
            };
            progress.finish("");
            return Ok(format!("the record says that commits are acknowledged {text}"));
        }
        if Instant::now() >= until {
            progress.fail();
            return Err(Failure::failed(format!(
                "durability {wanted} is wanted, but after {} s the record does not show it yet: commits go on as before",
                RECORDED.as_secs()
            ))
            .hint("the primary changes over when enough replicas have caught up: see `mainstay status` and `mainstay why`"));
        }
        tokio::time::sleep(EACH).await;
    }
}

fn report(
    session: &Session,
    stored: &StoredSpec,
    differences: &[Difference],
    verified: &[String],
    took_ms: u64,
    global: Global,
) {
    let waiting = pending(session);
    if global.json {
        let changed: Vec<_> =
            differences.iter().map(|it| json!({ "key": it.key, "old": it.old, "new": it.new })).collect();
        output::object(&json!({
            "generation": stored.generation, "changed": changed, "pending_restart": waiting, "seconds": seconds(took_ms), "verified": verified,
        }));
        return;
    }
    output::line(&format!(
        "Changed {} key{} in {}.",
        differences.len(),
        if differences.len() == 1 { "" } else { "s" },
        mainstay_model::Span(took_ms)
    ));
    output::line(&format!("Verified: {}.", verified.join("; ")));
    for (node, names) in &waiting {
        output::line(&format!("{node} waits for a restart: {}", names.join(", ")));
    }
    if !waiting.is_empty() {
        output::line("Next: mainstay restart --pending");
    }
}

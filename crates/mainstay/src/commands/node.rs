//! `mainstay node add`, `node remove`, `node replace`: which nodes the cluster has. A command writes what is wanted; the cluster carries it out,
//! also when the command is interrupted.

use super::set::until_known;
use crate::cli::{Global, Node as Options, NodeAdd, NodeRemove, NodeReplace, NodeVerb};
use crate::failure::{Failure, Outcome};
use crate::local::engine::owned_parameters;
use crate::output::progress::Progress;
use crate::output::{self, confirm};
use crate::plan::failover::newest_record;
use crate::plan::in_store::{is_in, votes};
use crate::plan::sizes::{Shape, warnings};
use crate::session::Session;
use mainstay_model::NodeId;
use mainstay_model::api::ReplaceWish;
use mainstay_model::config_check::check;
use mainstay_model::spec::{Node, Spec};
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;

const EACH: Duration = Duration::from_millis(200);

/// Runs the verb.
///
/// # Errors
/// When the wish is wrong, not possible now, or not seen to take effect.
pub(crate) async fn run(options: Options, global: Global) -> Outcome {
    match options.verb {
        NodeVerb::Add(options) => add(options, global).await,
        NodeVerb::Remove(options) => remove(options, global).await,
        NodeVerb::Replace(options) => replace(options, global).await,
    }
}

pub(super) fn checked(spec: &Spec) -> Outcome {
    let problems: Vec<String> = check(spec, owned_parameters()).into_iter().map(|problem| problem.text).collect();
    if problems.is_empty() { Ok(()) } else { Err(Failure::usage(problems.join("\n")).hint("nothing was changed")) }
}

async fn add(options: NodeAdd, global: Global) -> Outcome {
    let mut session = Session::open(&options.which).await?;
    let node = Node {
        name: options.node.clone(),
        host: options.host.clone(),
        zone: options.zone.clone(),
        witness: options.witness,
        port: options.port,
        agent_port: options.agent_port,
        health_port: options.health_port,
        dir: options.data_dir.clone(),
        adopt: None,
        adopt_standby: None,
        interface: None,
    };
    let before = session.spec().clone();
    let mut spec = before.clone();
    let mut progress = Progress::new();
    let mut verified = Vec::new();
    match before.node(&node.name) {
        Some(known) if *known == node => progress.say(&format!("{} is one of the nodes already", node.name)),
        Some(_) => {
            return Err(Failure::usage(format!("a node is called {} already, with other settings", node.name)).hint(
                "for another host: `mainstay node replace`; for other settings: `mainstay set node.NAME.KEY=VALUE`",
            ));
        }
        None => {
            spec.nodes.push(node.clone());
            checked(&spec)?;
            session.in_force()?;
            say_shapes(&progress, &before, &spec);
            let kind = if node.witness { "witness" } else { "data node" };
            confirm(
                global.yes,
                &format!("Add the {kind} {} at {} to the cluster {}?", node.name, node.host, before.cluster.name),
            )?;
            let change = format!("node {} added at {}", node.name, node.host);
            verified.extend(write(&mut session, spec, change, &mut progress).await?);
        }
    }
    let next = next_steps(&session, &node);
    joined(&session, &node, options.wait, &mut progress, &mut verified).await?;
    report(&session, &node.name, "added", &verified, if options.wait > 0 { Vec::new() } else { next }, global);
    Ok(())
}

/// Says how votes and commits change.
fn say_shapes(progress: &Progress, before: &Spec, after: &Spec) {
    let (before, after) = (Shape::of(before), Shape::of(after));
    progress.say(&format!("Now:  {}", before.words()));
    progress.say(&format!("Then: {}", after.words()));
    warnings(before, after).iter().for_each(|warning| progress.say(&format!("Note: {warning}")));
}

/// Writes a generation, and waits until the nodes go by it.
pub(super) async fn write(
    session: &mut Session,
    spec: Spec,
    change: String,
    progress: &mut Progress,
) -> Outcome<Vec<String>> {
    progress.step("Writing the new generation");
    let stored = match session.propose(spec, change).await {
        Ok(stored) => stored,
        Err(failure) => {
            progress.fail();
            return Err(failure);
        }
    };
    progress.finish(&format!("generation {}", stored.generation));
    let known = until_known(session, stored.generation, progress).await;
    Ok(vec![format!("generation {} is in force", stored.generation), known])
}

/// How the file here comes to say what is in force. It is written beside itself first: a shell empties what it writes to before anything reads it.
fn renew_file(session: &Session) -> String {
    let here = session.target.config.display();
    format!("here: mainstay set --config {here} > {here}.new && mv {here}.new {here}")
}

/// What must be typed here and on the new host.
fn next_steps(session: &Session, node: &Node) -> Vec<String> {
    let here = session.target.config.display();
    let there = "/etc/mainstay/mainstay.toml";
    let (name, host) = (&node.name, &node.host);
    let engine = if node.witness { "mainstay" } else { "mainstay and PostgreSQL" };
    vec![
        renew_file(session),
        format!("here: mainstay pki issue {name} --config {here} > {name}.token; mainstay pki serve --config {here}"),
        format!("on {host}: install {engine}; copy {here} to {there}, and {name}.token"),
        format!("on {host}: mainstay join --config {there} --node {name} --at THIS-HOST --token - < {name}.token"),
        format!("on {host}: start its agent: mainstay agent --config {there} --node {name}, or its systemd unit"),
    ]
}

/// Waits until the node has its part in the store, and does what its role asks.
pub(super) async fn joined(
    session: &Session,
    node: &Node,
    seconds: u64,
    progress: &mut Progress,
    verified: &mut Vec<String>,
) -> Outcome {
    if seconds == 0 {
        return Ok(());
    }
    // An etcd counts no nodes: there a node is in once it goes by that.
    let etcd = session.spec().store.is_etcd();
    let (does, does_not) = match etcd {
        true => ("goes by the etcd", "does not go by the etcd yet"),
        false => ("votes", "does not vote yet"),
    };
    progress.step(&format!("Waiting until {} {does}{}", node.name, if node.witness { "" } else { " and streams" }));
    let until = Instant::now() + Duration::from_secs(seconds);
    loop {
        let (standings, _) = session.standings().await;
        let is_in = is_in(&standings, &node.name, false);
        let status = session.agents.status().await.ok();
        let known = status.as_ref().and_then(|status| status.nodes.iter().find(|known| known.name == node.name));
        let healthy = known.is_some_and(|known| known.healthy);
        if is_in && healthy {
            let state = known.map(|known| known.state.clone()).unwrap_or_default();
            progress.finish(&state);
            verified.push(format!("{} {does}, and is {state}", node.name));
            return Ok(());
        }
        let missing = format!(
            "{} {}, and is {}",
            node.name,
            if is_in { does } else { does_not },
            known.map_or("unknown to the agents", |known| known.state.as_str())
        );
        if Instant::now() >= until {
            progress.fail();
            return Err(Failure::failed(format!("not within {seconds} s: {missing}"))
                .hint("the cluster takes it in by itself once its agent runs: see `mainstay status` and that node's agent's log (`journalctl -u mainstay-agent` there)"));
        }
        progress.detail(&missing);
        tokio::time::sleep(EACH).await;
    }
}

async fn remove(options: NodeRemove, global: Global) -> Outcome {
    let mut session = Session::open_for(&options.which, [&options.node]).await?;
    let before = session.spec().clone();
    let mut spec = before.clone();
    spec.nodes.retain(|node| node.name != options.node);
    checked(&spec)?;
    let status = session.status().await?;
    dispensable(status.cluster.primary.as_ref(), &options.node)?;
    super::set::first_copy(&session, &before, &spec).await?;
    session.in_force()?;
    let mut progress = Progress::new();
    say_shapes(&progress, &before, &spec);
    let last = if spec.store.is_etcd() { "It is let go" } else { "A vote is taken back" };
    progress.say(&format!("Its agent ends its server in order and stops; its data stay on its host. {last} only once no commit counts on {}", options.node));
    confirm(global.yes, &format!("Take {} out of the cluster {}?", options.node, before.cluster.name))?;
    let change = format!("node {} removed", options.node);
    let mut verified = write(&mut session, spec, change, &mut progress).await?;
    gone(&session, &options, &mut progress, &mut verified).await?;
    let file = "on the other nodes' hosts, if they have a file of their own: the same (the files still name it; `status` says file-older)";
    let next = vec![renew_file(&session), file.to_owned()];
    report(&session, &options.node, "removed", &verified, next, global);
    Ok(())
}

/// A node goes only while another one is the primary: without one, what it holds may be what the others need to get there.
pub(super) fn dispensable(primary: Option<&NodeId>, node: &NodeId) -> Outcome {
    if primary.is_none() {
        return Err(Failure::not_now(format!("no primary is known, and what {node} holds may be needed for one: it stays"))
            .hint("`mainstay status` and `mainstay why` say what the cluster waits for; remove it once there is a primary; nothing was changed"));
    }
    not_primary(primary, node, "removed")
}

/// The primary hands its role over before it goes.
pub(super) fn not_primary(primary: Option<&NodeId>, node: &NodeId, what: &str) -> Outcome {
    if primary == Some(node) {
        return Err(Failure::not_now(format!("{node} is the primary: it can not be {what}"))
            .hint("hand its role over first: `mainstay switchover` (or `--to NODE`); nothing was changed"));
    }
    Ok(())
}

/// Waits until neither the record nor the store counts it.
pub(super) async fn gone(
    session: &Session,
    options: &NodeRemove,
    progress: &mut Progress,
    verified: &mut Vec<String>,
) -> Outcome {
    if options.wait == 0 {
        return Ok(());
    }
    let node = &options.node;
    progress.step(&format!("Waiting until the cluster no longer counts {node}"));
    let until = Instant::now() + Duration::from_secs(options.wait);
    loop {
        let (standings, _) = session.standings().await;
        let record = newest_record(&standings);
        let counted = record.is_some_and(|record| record.members.contains_key(node));
        let votes = votes(&standings, node, false);
        if !counted && !votes && record.is_some() {
            progress.finish("");
            verified.push(format!("neither the record nor the store counts {node}"));
            return Ok(());
        }
        let missing = match (counted, session.spec().store.is_etcd()) {
            (true, _) => "the record still counts it for commits",
            (false, false) => "the store still counts its vote",
            (false, true) => "no node that answers tells the record",
        };
        if Instant::now() >= until {
            progress.fail();
            return Err(Failure::failed(format!("not within {} s: {missing}", options.wait))
                .hint("the cluster goes on with it by itself; what holds it back: `mainstay status`, `mainstay why`"));
        }
        progress.detail(missing);
        tokio::time::sleep(EACH).await;
    }
}

async fn replace(options: NodeReplace, global: Global) -> Outcome {
    let mut session = Session::open_for(&options.which, [&options.node]).await?;
    let before = session.spec().clone();
    let mut spec = before.clone();
    if let (Some(host), Some(node)) = (&options.host, spec.nodes.iter_mut().find(|node| node.name == options.node)) {
        node.host.clone_from(host);
    }
    checked(&spec)?;
    let status = session.status().await?;
    not_primary(status.cluster.primary.as_ref(), &options.node, "replaced")?;
    let answers = status.nodes.iter().any(|node| node.name == options.node && node.agent_pid.is_some());
    let moved = spec != before;
    if answers && !moved {
        // A host that joined anew and waits for its vote answers, too.
        let (standings, _) = session.standings().await;
        if standings
            .get(&options.node)
            .is_none_or(|standing| !standing.store.joining && standing.store.failure.is_none())
        {
            return Err(Failure::not_now(format!(
                "{} answers, and {}: there is nothing to replace",
                options.node,
                if before.store.is_etcd() { "goes by the store" } else { "has its part of the store" }
            ))
            .hint("to clone its data anew: `mainstay reinit`; if its host is to go: stop its agent there first"));
        }
    }
    let mut progress = Progress::new();
    let etcd = before.store.is_etcd();
    let taken = if etcd {
        format!("{} is taken in anew once its agent has started with an empty directory", options.node)
    } else {
        format!("Its old vote is taken back and given anew to {}", options.node)
    };
    progress.say(&format!("{taken}; its old copy counts as lost. The old host must stay off"));
    confirm(global.yes, &format!("Replace {} of the cluster {}?", options.node, before.cluster.name))?;
    let mut verified = Vec::new();
    if moved {
        let change = format!("node {} replaced at {}", options.node, options.host.clone().unwrap_or_default());
        verified.extend(write(&mut session, spec, change, &mut progress).await?);
    }
    progress.step(if etcd { "Telling the agents" } else { "Taking the old vote back" });
    let wish = ReplaceWish { node: options.node.clone(), by: crate::local::user::who() };
    if let Err(failure) = session.post_any("/v1/replace", &wish).await {
        progress.fail();
        return Err(failure);
    }
    progress.finish("");
    // An etcd has no vote of a node to take back.
    verified.extend((!etcd).then(|| format!("the store was told to take the old vote of {} back", options.node)));
    let Some(node) = session.spec().node(&options.node).cloned() else {
        return Err(Failure::failed(format!("{} is not one of the nodes any more", options.node)));
    };
    let next = next_steps(&session, &node);
    joined(&session, &node, options.wait, &mut progress, &mut verified).await?;
    report(&session, &node.name, "replaced", &verified, if options.wait > 0 { Vec::new() } else { next }, global);
    Ok(())
}

fn report(session: &Session, node: &NodeId, what: &str, verified: &[String], next: Vec<String>, global: Global) {
    let generation = session.stored().map(|stored| stored.generation);
    if global.json {
        output::object(
            &json!({ "node": node, "done": what, "generation": generation, "verified": verified, "next": next }),
        );
        return;
    }
    output::line(&format!("The node {node} is {what}."));
    if !verified.is_empty() {
        output::line(&format!("Verified: {}.", verified.join("; ")));
    }
    if !next.is_empty() {
        output::line("Next:");
        next.iter().for_each(|step| output::line(&format!("  {step}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_goes_only_while_another_one_is_the_primary() {
        let name = |text: &str| NodeId::new(text).unwrap();
        assert!(dispensable(Some(&name("db1")), &name("db2")).is_ok());
        for (primary, says) in [(None, "no primary is known"), (Some(&name("db2")), "db2 is the primary")] {
            let failure = dispensable(primary, &name("db2")).unwrap_err();
            assert!(failure.error.contains(says) && failure.hint.is_some(), "{}", failure.error);
            assert_eq!(failure.status, crate::failure::NOT_NOW);
        }
    }
}

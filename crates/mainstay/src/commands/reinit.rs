//! `mainstay reinit`: a node's copy of the data is given up, moved aside, and cloned anew. A node that a rebuilt store left behind, also a
//! witness, joins that store by it.

use super::wait::{self, Verdict, seconds};
use crate::cli::{Global, Reinit};
use crate::failure::{Failure, Outcome};
use crate::output::progress::Progress;
use crate::output::table::bytes;
use crate::output::{self, confirm};
use crate::plan::sizes::Shape;
use crate::session::Session;
use mainstay_model::status::{NodeStatus, Problem, Status};
use mainstay_model::{Command, NodeId};
use mainstay_ports::clock::boot_now;
use serde_json::json;
use std::time::Duration;

/// Clones a node anew.
///
/// # Errors
/// When the node is the primary, or a witness that belongs to the store in use, nobody can be cloned from, or it does not stream in time.
pub(crate) async fn run(options: Reinit, global: Global) -> Outcome {
    let session = Session::open_for(&options.which, [&options.node]).await?;
    let node = &options.node;
    let before = session.status().await?;
    let known = check_now(&session, &before, &options)?;
    if session.spec().node(node).is_some_and(|node| node.witness) {
        confirm(global.yes, &format!("Let the witness {node} leave its old store and join the rebuilt one?"))?;
        return take_in(&session, &options, global).await;
    }
    let behind = known.lag_bytes.map(|lag| format!(", {} behind", bytes(lag))).unwrap_or_default();
    let progress = Progress::new();
    progress.say(&format!(
        "{node} is {} {}{behind}; its data in {} are moved aside, not removed",
        known.role,
        known.state,
        place(known)
    ));
    progress.say(&format!(
        "The cluster: {}; until {node} streams again it has one copy less",
        Shape::of(session.spec()).words()
    ));
    if let Some(cost) = cost(&before, known) {
        progress.say(cost);
    }
    confirm(
        global.yes,
        &format!(
            "Give the copy of {node} up and clone it anew from the primary? The disk must hold both copies meanwhile."
        ),
    )?;
    clone_anew(&session, &before, &options, global, progress).await
}

/// What it costs beside a copy.
fn cost(before: &Status, node: &NodeStatus) -> Option<&'static str> {
    let confirms = |other: &&NodeStatus| other.sync && other.name != node.name;
    let alone = node.sync && !before.nodes.iter().any(|other| confirms(&other));
    (alone && before.cluster.durability == "strict")
        .then_some("No other replica confirms commits now: writes wait until it streams again (durability strict)")
}

fn place(node: &NodeStatus) -> &str {
    if node.data_dir.is_empty() { "its directory" } else { &node.data_dir }
}

fn check_now<'a>(session: &Session, before: &'a Status, options: &Reinit) -> Outcome<&'a NodeStatus> {
    let node = &options.node;
    let witness = session.spec().node(node).is_some_and(|node| node.witness);
    if witness && !left_behind(before, node) {
        return Err(Failure::usage(format!("{node} is a witness: it holds no data"))
            .hint("a witness whose store is damaged or lost is replaced: `mainstay node replace`"));
    }
    if before.cluster.primary.as_ref() == Some(node) {
        return Err(Failure::not_now(format!("{node} is the primary: its copy is the one that is cloned from"))
            .hint("hand its role over first: `mainstay switchover`; nothing was changed"));
    }
    before.nodes.iter().find(|known| known.name == *node && known.agent_pid.is_some()).ok_or_else(|| {
        Failure::not_now(format!("the agent of {node} does not answer")).hint("start it first; nothing was changed")
    })
}

/// Is this node of a store that was rebuilt without it?
fn left_behind(status: &Status, node: &NodeId) -> bool {
    let of = |problem: &Problem| problem.evidence.split(' ').next() == Some(node.as_str());
    status.problems.iter().any(|problem| problem.name == "superseded" && of(problem))
}

/// A witness of an older store joins the rebuilt one.
async fn take_in(session: &Session, options: &Reinit, global: Global) -> Outcome {
    let node = &options.node;
    let joined = |status: &Status| {
        let now = status.nodes.iter().find(|now| now.name == *node);
        let votes = now.is_some_and(|now| now.role == "witness" && now.healthy);
        if votes && !left_behind(status, node) {
            return Verdict::Done;
        }
        Verdict::Wait(format!("{node} is {}", now.map_or("gone", |now| now.state.as_str())))
    };
    let doing = format!("Letting {node} join the rebuilt store");
    let words = Words { doing, done: "Took in", is: "a witness of the rebuilt store" };
    carry_out(session, options, global, Progress::new(), words, joined).await
}

async fn clone_anew(
    session: &Session,
    before: &Status,
    options: &Reinit,
    global: Global,
    progress: Progress,
) -> Outcome {
    let node = &options.node;
    let was = before.nodes.iter().find(|known| known.name == *node).and_then(|known| known.server_pid);
    let cloned = |status: &Status| {
        let Some(now) = status.nodes.iter().find(|now| now.name == *node) else {
            return Verdict::Over(Failure::failed(format!("{node} is not one of the nodes any more")));
        };
        // The same process: the clone has not begun.
        if now.healthy && now.server_pid.is_some() && now.server_pid != was {
            return Verdict::Done;
        }
        Verdict::Wait(format!("{node} is {}", now.state))
    };
    let words = Words { doing: format!("Cloning {node} anew"), done: "Cloned anew", is: "a replica" };
    carry_out(session, options, global, progress, words, cloned).await
}

/// What is said on the way.
struct Words {
    doing: String,
    done: &'static str,
    /// What the node is in the end.
    is: &'static str,
}

/// Gives the order, and waits until it has come about.
async fn carry_out(
    session: &Session,
    options: &Reinit,
    global: Global,
    mut progress: Progress,
    words: Words,
    judge: impl FnMut(&Status) -> Verdict,
) -> Outcome {
    let (node, begun) = (&options.node, boot_now());
    progress.step(&words.doing);
    let accepted = match session.command(node, Command::Reinit).await {
        Ok(accepted) => accepted,
        Err(failure) => {
            progress.fail();
            return Err(failure);
        }
    };
    if options.wait == 0 {
        progress.finish("taken up");
        return say(global, ("Asked", node), None, &[accepted.text]);
    }
    let after = wait::until(session, Duration::from_secs(options.wait), &mut progress, judge).await?;
    let state = after.nodes.iter().find(|now| now.name == *node).map(|now| now.state.clone()).unwrap_or_default();
    progress.finish(&state);
    let verified = [format!("{node} is {}, {state}", words.is)];
    say(global, (words.done, node), Some(boot_now().since(begun).0), &verified)
}

fn say(global: Global, (done, node): (&str, &NodeId), took_ms: Option<u64>, verified: &[String]) -> Outcome {
    if global.json {
        output::object(&json!({ "node": node, "seconds": took_ms.map(seconds), "verified": verified }));
    } else {
        let took = took_ms.map(|ms| format!(" in {}", mainstay_model::Span(ms))).unwrap_or_default();
        output::line(&format!("{done}: {node}{took}."));
        output::line(&format!("Verified: {}.", verified.join("; ")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::examples::{node, status};

    #[test]
    fn a_node_of_an_older_store_is_known_by_its_problem() {
        let mut all =
            status(vec![node("db1", "primary", true), node("w1", "witness", false), node("w", "witness", true)]);
        let problem = |name: &str, evidence: &str| Problem {
            name: name.to_owned(),
            severity: "critical".to_owned(),
            evidence: evidence.to_owned(),
            hint: String::new(),
            since: None,
        };
        all.problems = vec![
            problem("superseded", "w1 is of a store that was rebuilt without it (term 3)"),
            problem("node-unreachable", "w: its agent does not answer"),
        ];
        let behind = |name: &str| left_behind(&all, &NodeId::new(name).unwrap());
        assert!(behind("w1") && !behind("w") && !behind("db1"));
    }

    #[test]
    fn it_is_said_when_writes_would_wait() {
        let three = |third: bool, durability: &str| {
            let mut all =
                status(vec![node("db1", "primary", true), node("db2", "replica", true), node("db3", "replica", third)]);
            all.cluster.durability = durability.to_owned();
            all
        };
        let of = |all: Status, place: usize| cost(&all, &all.nodes[place]);
        assert!(of(three(false, "strict"), 1).is_some_and(|text| text.contains("writes wait")));
        assert_eq!(of(three(true, "strict"), 1), None, "the other one confirms");
        assert_eq!(of(three(false, "strict"), 2), None, "it does not confirm now");
        assert_eq!(of(three(false, "available"), 1), None);
    }
}

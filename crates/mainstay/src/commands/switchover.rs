//! `mainstay switchover`: asks the cluster to hand the primary's role over, and watches until another node takes writes.

use super::status::summary;
use super::why::check_node;
use crate::cli::{Global, Switchover};
use crate::client::{Agents, Answer, with_advice};
use crate::failure::{Failure, Outcome};
use crate::local::{psql, user};
use crate::output::progress::Progress;
use crate::output::{self, confirm};
use crate::target::Target;
use mainstay_model::status::Status;
use mainstay_model::{Command, NodeId, Term};
use mainstay_ports::clock::boot_now;
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;

/// How long another primary may take to open.
const AT_MOST: Duration = Duration::from_secs(30);
/// How often the agents are asked meanwhile.
const EACH: Duration = Duration::from_millis(100);

/// Hands the role over.
///
/// # Errors
/// When it is refused now (exit status 3), asked wrongly, or does not come about.
pub(crate) async fn run(options: Switchover, global: Global) -> Outcome {
    let target = Target::find(&options.which)?;
    check_node(&target, options.to.as_ref())?;
    let agents = Agents::of(&target)?;
    let before = agents.status().await.map_err(|failure| with_advice(failure, &target))?;
    let from = check_now(&target, &before, options.to.as_ref())?;
    let aim = options.to.as_ref().map_or_else(|| "the best replica".to_owned(), ToString::to_string);
    confirm(
        global.yes,
        &format!(
            "Hand the primary's role of cluster {} from {from} to {aim}? New work waits for a moment; open transactions may be ended.",
            before.cluster.name
        ),
    )?;
    let begun = boot_now();
    let mut progress = Progress::new();
    progress.step(&format!("Switching over from {from} to {aim}"));
    let order = Order { from, term: before.cluster.term, to: options.to.clone() };
    ask(&agents, &order).await?;
    let after = watch(&agents, &order, &mut progress).await?;
    let took = boot_now().since(begun);
    let now = after.cluster.primary.clone().map(|node| node.to_string()).unwrap_or_default();
    progress.finish(&format!("{now} takes writes"));
    let proven = prove(&target).await;
    let mut verified = vec![format!("{now} is primary of term {} and takes writes", after.cluster.term)];
    if proven {
        verified.push(format!("a write through {} was acknowledged", after.routes.write));
    }
    if global.json {
        output::object(&json!({
            "from": order.from, "to": after.cluster.primary, "term": after.cluster.term,
            "seconds": seconds(took.0), "verified": verified,
        }));
    } else {
        output::line(&format!("Switched over from {} to {now} in {took}: {}.", order.from, summary(&after)));
        output::line(&format!("Verified: {}.", verified.join("; ")));
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds of a short time")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

struct Order {
    from: NodeId,
    term: Term,
    to: Option<NodeId>,
}

/// What can be seen beforehand, so that nobody is asked in vain. The agents check again.
fn check_now(target: &Target, status: &Status, to: Option<&NodeId>) -> Outcome<NodeId> {
    let Some(from) = status.cluster.primary.clone() else {
        return Err(Failure::not_now("there is no open primary to hand over from")
            .hint("see `mainstay status` and `mainstay why`"));
    };
    if let Some(to) = to {
        if *to == from {
            return Err(Failure::not_now(format!("{to} is the primary already")));
        }
        if target.spec.node(to).is_some_and(|node| node.witness) {
            return Err(Failure::usage(format!("{to} is a witness: it holds no data")));
        }
    }
    Ok(from)
}

/// Tells the primary's agent; if that does not answer, any other.
async fn ask(agents: &Agents, order: &Order) -> Outcome {
    let body = json!({ "command": Command::Switchover { to: order.to.clone() }, "by": user::who() });
    let answer = agents.ask(&order.from, "POST", "/v1/command", Some(&body)).await;
    let answer: Answer = answer.map_err(|why| {
        Failure::failed(format!("the agent of {} does not answer: {why}", order.from))
            .hint("whether it took the order is unknown; see `mainstay status` and `mainstay history`")
    })?;
    match answer.status {
        200..300 => Ok(()),
        409 | 503 => Err(Failure::not_now(format!("no switchover now: {}", answer.error()))
            .hint("see `mainstay status`; nothing was changed")),
        400 | 404 | 422 => Err(Failure::usage(answer.error())),
        _ => Err(Failure::failed(format!("the agent of {} refuses: {}", order.from, answer.error()))),
    }
}

/// Watches until another node is primary of a higher term and takes writes.
async fn watch(agents: &Agents, order: &Order, progress: &mut Progress) -> Outcome<Status> {
    let until = Instant::now() + AT_MOST;
    let mut last = "no agent answered".to_owned();
    let mut stayed_since: Option<Instant> = None;
    while Instant::now() < until {
        if let Ok(status) = agents.status().await {
            let (now, term) = (status.cluster.primary.as_ref(), status.cluster.term);
            if now.is_some_and(|now| *now != order.from) && term > order.term && status.cluster.writable {
                return Ok(status);
            }
            // Back on the old one under a newer term: it was undone.
            if now == Some(&order.from) && term > order.term && status.cluster.writable {
                let since = *stayed_since.get_or_insert_with(Instant::now);
                if since.elapsed() > Duration::from_secs(2) {
                    progress.fail();
                    return Err(Failure::failed(format!("the role came back to {} (term {term})", order.from))
                        .hint("`mainstay history` and `mainstay why` say why"));
                }
            }
            last = summary(&status);
            progress.detail(&last);
        }
        tokio::time::sleep(EACH).await;
    }
    progress.fail();
    Err(Failure::failed(format!("no other primary took writes within {} s; now: {last}", AT_MOST.as_secs()))
        .hint("`mainstay history` and `mainstay why` say what happened"))
}

/// A real write through the front address, where this user may make one.
async fn prove(target: &Target) -> bool {
    let target = target.clone();
    tokio::task::spawn_blocking(move || psql::prove_write(&target).is_ok()).await.unwrap_or(false)
}

//! `mainstay switchover`: asks the cluster to hand the primary's role over, and watches until another node takes writes.

use super::history;
use super::status::summary;
use super::wait::{self, Verdict, seconds};
use crate::cli::{Global, Switchover};
use crate::failure::{Failure, Outcome};
use crate::output::progress::Progress;
use crate::output::{self, confirm};
use crate::plan::changes::Told;
use crate::session::Session;
use mainstay_model::status::Status;
use mainstay_model::{Command, NodeId, Term};
use mainstay_ports::clock::boot_now;
use serde_json::json;
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::time::Instant;

/// How long another primary may take to open.
const AT_MOST: Duration = Duration::from_secs(30);
/// For how long a role that came back counts as "under way still".
const BACK: Duration = Duration::from_secs(2);

/// How often the history is looked into for a refusal.
const LOOK: Duration = Duration::from_secs(1);

/// Hands the role over.
///
/// # Errors
/// When it is refused now (exit status 3), asked wrongly, or does not come about.
pub(crate) async fn run(options: Switchover, global: Global) -> Outcome {
    let session = Session::open_for(&options.which, options.to.as_ref()).await?;
    let before = session.status().await?;
    let from = check_now(&session, &before, options.to.as_ref())?;
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
    let order = Order { from, term: before.cluster.term, to: options.to.clone() };
    let after = hand_over(&session, &order, &mut progress).await?;
    let took = boot_now().since(begun);
    let now = after.cluster.primary.clone().map(|node| node.to_string()).unwrap_or_default();
    let mut verified = vec![format!("{now} is primary of term {} and takes writes", after.cluster.term)];
    wait::prove_writes(&session, &after, &mut verified).await;
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

/// Who hands over to whom.
pub(crate) struct Order {
    /// The primary.
    pub(crate) from: NodeId,
    /// Its term.
    pub(crate) term: Term,
    /// The wanted next one.
    pub(crate) to: Option<NodeId>,
}

/// What can be seen beforehand, so that nobody is asked in vain. The agents check again.
fn check_now(session: &Session, status: &Status, to: Option<&NodeId>) -> Outcome<NodeId> {
    let Some(from) = status.cluster.primary.clone() else {
        return Err(Failure::not_now("there is no open primary to hand over from")
            .hint("see `mainstay status` and `mainstay why`; without a primary there is `mainstay failover`"));
    };
    if let Some(to) = to {
        if *to == from {
            return Err(Failure::not_now(format!("{to} is the primary already")));
        }
        if session.spec().node(to).is_some_and(|node| node.witness) {
            return Err(Failure::usage(format!("{to} is a witness: it holds no data")));
        }
    }
    Ok(from)
}

/// Asks the primary to hand over, and waits until another node is primary of a higher term and takes writes.
///
/// # Errors
/// When it is refused, or does not come about.
pub(crate) async fn hand_over(session: &Session, order: &Order, progress: &mut Progress) -> Outcome<Status> {
    let aim = order.to.as_ref().map_or_else(|| "the best replica".to_owned(), ToString::to_string);
    progress.step(&format!("Switching over from {} to {aim}", order.from));
    let told = history::read(session).await.map(|events| newest(&events)).unwrap_or_default();
    let accepted = session.command(&order.from, Command::Switchover { to: order.to.clone() }).await;
    if let Err(failure) = accepted {
        progress.fail();
        return Err(failure);
    }
    let refusal = tokio::sync::OnceCell::new();
    let mut back: Option<Instant> = None;
    let watched = wait::until(session, AT_MOST, progress, |status| {
        let (now, term) = (status.cluster.primary.as_ref(), status.cluster.term);
        if now.is_some_and(|now| *now != order.from) && term > order.term && status.cluster.writable {
            return Verdict::Done;
        }
        // Back on the old one under a newer term: it was undone.
        if now == Some(&order.from) && term > order.term && status.cluster.writable {
            let since = *back.get_or_insert_with(Instant::now);
            if since.elapsed() > BACK {
                return Verdict::Over(
                    Failure::failed(format!("the role came back to {} (term {term})", order.from))
                        .hint("`mainstay history` and `mainstay why` say why"),
                );
            }
        }
        if let Some(why) = refusal.get() {
            return Verdict::Over(
                Failure::not_now(format!("{} did not hand over: {why}", order.from))
                    .hint("nothing was changed; `mainstay why` says more"),
            );
        }
        Verdict::Wait("no other primary takes writes yet".to_owned())
    });
    let after = tokio::select! {
        after = watched => after?,
        never = watch_refusal(session, order, told, &refusal) => match never {},
    };
    let now = after.cluster.primary.as_ref().map_or("none", NodeId::as_str);
    progress.finish(&format!("{now} takes writes"));
    Ok(after)
}

/// The number of the newest event.
fn newest(events: &[Told]) -> u64 {
    events.iter().filter_map(|told| told.sequence).max().unwrap_or(0)
}

/// What the primary said after this event, should it have taken the order back.
fn refused(events: &[Told], from: &NodeId, told: u64) -> Option<String> {
    let newer = |event: &&Told| event.sequence.is_some_and(|sequence| sequence > told);
    let its = |event: &&Told| event.event.node == *from && event.event.kind == "switchover-refused";
    events.iter().filter(newer).find(its).map(|event| event.event.text.clone())
}

/// Looks into the history, until the other future is done, whether the primary took the order back.
async fn watch_refusal(session: &Session, order: &Order, told: u64, refusal: &OnceCell<String>) -> Infallible {
    loop {
        tokio::time::sleep(LOOK).await;
        let events = history::read(session).await.unwrap_or_default();
        if let Some(why) = refused(&events, &order.from, told) {
            let _ = refusal.set(why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_model::Event;

    fn told(sequence: u64, node: &str, kind: &str) -> Told {
        let text = format!("the server did not end a checkpoint within 20.0 s: work goes on here ({sequence})");
        let node = NodeId::new(node).unwrap();
        let event = Event { node, wall_ms: 1, term: Term(3), kind: kind.to_owned(), text, change: None, lost: None };
        Told { sequence: Some(sequence), event }
    }

    #[test]
    fn only_a_refusal_by_the_primary_after_the_order_counts() {
        let from = NodeId::new("db1").unwrap();
        let mut events = vec![told(4, "db1", "switchover-refused"), told(5, "db1", "switchover-begun")];
        let before = newest(&events);
        assert_eq!(before, 5);
        events.extend([told(6, "db2", "switchover-refused"), told(7, "db1", "rewound")]);
        assert_eq!(refused(&events, &from, before), None);
        events.push(told(8, "db1", "switchover-refused"));
        assert!(refused(&events, &from, before).unwrap().contains("within 20.0 s: work goes on here (8)"));
    }
}

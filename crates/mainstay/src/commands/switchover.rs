//! `mainstay switchover`: asks the cluster to hand the primary's role over, and watches until another node takes writes.

use super::status::summary;
use super::wait::{self, Verdict, seconds};
use crate::cli::{Global, Switchover};
use crate::failure::{Failure, Outcome};
use crate::output::progress::Progress;
use crate::output::{self, confirm};
use crate::session::Session;
use mainstay_model::status::Status;
use mainstay_model::{Command, NodeId, Term};
use mainstay_ports::clock::boot_now;
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;

/// How long another primary may take to open.
const AT_MOST: Duration = Duration::from_secs(30);
/// For how long a role that came back counts as "under way still".
const BACK: Duration = Duration::from_secs(2);

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
    let accepted = session.command(&order.from, Command::Switchover { to: order.to.clone() }).await;
    if let Err(failure) = accepted {
        progress.fail();
        return Err(failure);
    }
    let mut back: Option<Instant> = None;
    let after = wait::until(session, AT_MOST, progress, |status| {
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
        Verdict::Wait("no other primary takes writes yet".to_owned())
    })
    .await?;
    let now = after.cluster.primary.as_ref().map_or("none", NodeId::as_str);
    progress.finish(&format!("{now} takes writes"));
    Ok(after)
}

//! The course of a drill: the marker's clients at work, the fault, and looks at the cluster until it is whole again.

use super::switchover::{Order, hand_over};
use crate::failure::{Failure, Outcome};
use crate::local::processes;
use crate::output::progress::Progress;
use crate::plan::drill::{Plan, fault};
use crate::session::Session;
use mainstay_drill::marker::Marker;
use mainstay_drill::page::Look;
use mainstay_model::Span;
use mainstay_model::api::Accepted;
use mainstay_model::drill::{DrillCommand, DrillKind, DrillWish};
use mainstay_model::status::Status;
use rustix::process::Signal;
use std::pin::pin;
use std::time::Duration;
use tokio::time::sleep;

/// Time without a fault at the beginning, to see what is usual here.
const BEFORE: Duration = Duration::from_secs(3);
/// Acknowledged writes in that time that show that the marker works.
const PROOF: u64 = 30;
/// How often the agents are asked.
const LOOK: Duration = Duration::from_millis(100);
/// Looked at for at least so long after the fault, and for so long once all is well again.
const AT_LEAST_MS: u64 = 4000;
const WELL_MS: u64 = 1500;
/// And for at most so long after a fault is over.
const AT_MOST_MS: u64 = 180_000;
/// Looks that are kept.
const LOOKS_MAX: usize = 4000;
/// An isolation begins so long after it was accepted, so that the answer arrives.
const ISOLATION_BEGINS_MS: u64 = 500;

/// What was seen of it.
pub(crate) struct Course {
    /// What was done, in the agent's words.
    pub(crate) fault: String,
    /// When, by the marker's time.
    pub(crate) fault_ms: u64,
    pub(crate) at_ms: u64,
    /// What the agents said.
    pub(crate) looks: Vec<Look>,
    /// The last status.
    pub(crate) after: Option<Status>,
    /// Since when all is well, by the marker's time.
    pub(crate) well_since_ms: Option<u64>,
}

/// Looks at the cluster while something happens.
struct Watch<'a> {
    session: &'a Session,
    marker: &'a Marker,
    looks: Vec<Look>,
    after: Option<Status>,
    well_since_ms: Option<u64>,
}

impl Watch<'_> {
    async fn look(&mut self) {
        let at_ms = self.marker.now_ms();
        let Ok(status) = self.session.agents.status().await else {
            self.well_since_ms = None;
            return;
        };
        let nodes = status.nodes.iter().map(|node| (node.name.clone(), node.role.clone(), node.state.clone()));
        let look = Look { at_ms, term: status.cluster.term, nodes: nodes.collect() };
        let same = |last: &Look| last.term == look.term && last.nodes == look.nodes;
        if !self.looks.last().is_some_and(same) && self.looks.len() < LOOKS_MAX {
            self.looks.push(look);
        }
        let well = status.cluster.writable && status.nodes.iter().all(|node| node.healthy);
        self.well_since_ms = if well { self.well_since_ms.or(Some(at_ms)) } else { None };
        self.after = Some(status);
    }

    /// Until it is over.
    async fn until(&mut self, ended: impl Future<Output = ()>) {
        let mut ended = pin!(ended);
        loop {
            self.look().await;
            tokio::select! {
                () = &mut ended => return,
                () = sleep(LOOK) => {}
            }
        }
    }
}

/// Lets it happen, and watches.
///
/// # Errors
/// When the marker does not work, or the fault is refused: nothing happened then.
pub(crate) async fn course(
    session: &Session,
    marker: &Marker,
    plan: &Plan,
    before: &Status,
    progress: &mut Progress,
) -> Outcome<Course> {
    let mut watch = Watch { session, marker, looks: Vec::new(), after: None, well_since_ms: None };
    progress.step("Watching the cluster as it is");
    watch.until(sleep(BEFORE)).await;
    if marker.acknowledged() < PROOF {
        progress.fail();
        return Err(Failure::not_now(format!(
            "only {} writes of the marker were acknowledged in {} s",
            marker.acknowledged(),
            BEFORE.as_secs()
        ))
        .hint("is the write address overloaded? nothing was changed"));
    }
    progress.finish(&format!("{} writes acknowledged", marker.acknowledged()));
    let at_ms = mainstay_ports::clock::wall_now_ms();
    let begun_ms = marker.now_ms();
    watch.well_since_ms = None;
    let fault = if plan.kind == DrillKind::Switchover {
        switch(&mut watch, before, progress).await?
    } else {
        progress.step(&format!("{} {}", plan.kind, plan.node.as_ref().map(ToString::to_string).unwrap_or_default()));
        let done = strike(session, plan, before).await;
        done.inspect_err(|_| progress.fail())?
    };
    let delay = if plan.kind == DrillKind::IsolatePrimary { ISOLATION_BEGINS_MS } else { 0 };
    let fault_ms = begun_ms + delay;
    until_well(&mut watch, plan, fault_ms, progress).await;
    let Watch { looks, after, well_since_ms, .. } = watch;
    Ok(Course { fault, fault_ms, at_ms, looks, after, well_since_ms })
}

async fn switch(watch: &mut Watch<'_>, before: &Status, progress: &mut Progress) -> Outcome<String> {
    let from = before.cluster.primary.clone().ok_or_else(|| Failure::not_now("there is no primary"))?;
    let order = Order { from: from.clone(), term: before.cluster.term, to: None };
    let session = watch.session;
    let mut handing = pin!(hand_over(session, &order, progress));
    let after = loop {
        tokio::select! {
            after = &mut handing => break after?,
            () = async { watch.look().await; sleep(LOOK).await } => {}
        }
    };
    let to = after.cluster.primary.map(|node| node.to_string()).unwrap_or_default();
    Ok(format!("{from} handed the role over to {to}"))
}

/// Asks for the fault.
async fn strike(session: &Session, plan: &Plan, before: &Status) -> Outcome<String> {
    let Some(wish) = fault(plan, before) else { return kill_local_proxy(session) };
    let node = wish.node.clone();
    let wish = DrillWish { command: DrillCommand::DrillFault(wish), by: crate::local::user::who() };
    let body = session.post(&node, "/v1/drill", &wish).await?;
    let accepted: Accepted = serde_json::from_value(body)
        .map_err(|error| Failure::failed(format!("the answer of {node} can not be read: {error}")))?;
    Ok(accepted.text)
}

/// The proxy of a cluster on this machine is none of a node's: it is the caller's own process, or root's.
fn kill_local_proxy(session: &Session) -> Outcome<String> {
    let found = processes::of_cluster(session.target.layout.dir()).into_iter().find(|process| process.what == "proxy");
    let proxy = found.ok_or_else(|| {
        Failure::not_now("no proxy of this cluster runs on this machine")
            .hint("proxies on hosts of their own are killed there; watch with your own clients")
    })?;
    proxy.signal(Signal::KILL);
    Ok(format!("the proxy, process {}, was killed", proxy.pid.as_raw_nonzero()))
}

/// Until every node has done its part for a while, and the marker writes.
async fn until_well(watch: &mut Watch<'_>, plan: &Plan, fault_ms: u64, progress: &mut Progress) {
    let over_ms = fault_ms + plan.lasts_ms.unwrap_or(0);
    let mut wrote = None;
    loop {
        watch.look().await;
        let now = watch.marker.now_ms();
        let acknowledged = watch.marker.acknowledged();
        let state = watch.after.as_ref().map(super::status::summary).unwrap_or_default();
        progress.detail(&format!("{} after the fault; {state}", Span(now.saturating_sub(fault_ms))));
        if now > over_ms {
            let since = *wrote.get_or_insert(acknowledged);
            let well = watch.well_since_ms.is_some_and(|since| now >= since.max(over_ms) + WELL_MS);
            if well && acknowledged >= since + PROOF && now >= fault_ms + AT_LEAST_MS {
                progress.finish(&state);
                return;
            }
        }
        if now >= over_ms + AT_MOST_MS {
            progress.fail();
            return;
        }
        sleep(LOOK).await;
    }
}

//! `mainstay why`: each node's last decisions with their reasons, what holds it back now, and the reasons around one event.

use super::history::{self, event_line, time};
use crate::cli::{Global, Why};
use crate::client::{nobody, with_advice};
use crate::failure::{Failure, Outcome};
use crate::output::{self, Colour, paint};
use crate::plan::changes::{Told, Wanted, find};
use crate::session::Session;
use crate::target::Target;
use jiff::tz::TimeZone;
use mainstay_model::NodeId;
use mainstay_model::config::nearest;
use mainstay_ports::clock::wall_now_ms;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// How long before an event its reasons begin, and how long after it they end, milliseconds. Clocks of hosts differ by less, as a rule.
const BEFORE_MS: u64 = 10_000;
const AFTER_MS: u64 = 5_000;
/// A reason that still holds is said again once a minute; what is older does not hold any more.
const HOLDS_MS: u64 = 90_000;
/// The rules that say why nothing is done.
const HOLDING: [&str; 3] = ["hold-back", "refused", "paused"];

#[derive(Deserialize)]
struct Page {
    nodes: Vec<NodeReasons>,
}

#[derive(Clone, Deserialize, serde::Serialize)]
struct NodeReasons {
    node: NodeId,
    reasons: Vec<Value>,
}

/// Shows the reasons, oldest first.
///
/// # Errors
/// When no agent answers, the event is unknown, or the node is not one of the cluster's.
pub(crate) async fn run(options: Why, global: Global) -> Outcome {
    let wanted = options.event.as_deref().map(str::parse::<Wanted>).transpose().map_err(Failure::usage)?;
    let session = Session::open_for(&options.which, options.node.as_ref()).await?;
    let event = match wanted {
        Some(wanted) => Some(event(&session, wanted).await?),
        None => None,
    };
    let window =
        event.as_ref().map(|told| (told.event.wall_ms.saturating_sub(BEFORE_MS), told.event.wall_ms + AFTER_MS));
    let mut nodes = reasons(&session, window).await?;
    nodes.retain(|node| options.node.as_ref().is_none_or(|wanted| *wanted == node.node));
    let now = if event.is_none() { holding(&nodes, wall_now_ms()) } else { BTreeMap::new() };
    if global.json {
        output::object(&json!({ "event": event, "nodes": nodes, "holding_back": now }));
        return Ok(());
    }
    if nodes.is_empty() {
        return Err(Failure::failed("that node's agent did not tell its reasons").hint("see `mainstay status`"));
    }
    show(event.as_ref(), &nodes, &now);
    Ok(())
}

async fn event(session: &Session, wanted: Wanted) -> Outcome<Told> {
    let events = history::read(session).await?;
    find(&events, wanted).cloned().ok_or_else(|| {
        let known = match (events.first(), events.last()) {
            (Some(first), Some(last)) => format!("{} to {} are kept", first.name(), last.name()),
            _ => "none is kept".to_owned(),
        };
        Failure::usage(format!("there is no such event: {known}")).hint("`mainstay history --all` lists them")
    })
}

/// Every node's reasons, in this window of wall time if one is given.
async fn reasons(session: &Session, window: Option<(u64, u64)>) -> Outcome<Vec<NodeReasons>> {
    let path = match window {
        Some((since, until)) => format!("/v1/why?since_ms={since}&until_ms={until}"),
        None => "/v1/why".to_owned(),
    };
    let (answers, silent) = session.agents.ask_all(&path).await;
    let pages: Vec<Page> = answers.values().filter_map(crate::client::decode).collect();
    if pages.is_empty() {
        return Err(with_advice(nobody(&silent), &session.target));
    }
    let mut nodes = merge(pages);
    if let Some((since, until)) = window {
        // Agents of an earlier version do not know the window.
        let inside = |reason: &Value| wall_ms(reason).is_none_or(|at| at >= since && at <= until);
        nodes.iter_mut().for_each(|node| node.reasons.retain(inside));
    }
    Ok(nodes)
}

fn wall_ms(reason: &Value) -> Option<u64> {
    reason.get("wall_ms").and_then(Value::as_u64)
}

/// What holds each node back now: its last reason, if that is one not to act and still holds.
fn holding(nodes: &[NodeReasons], now_ms: u64) -> BTreeMap<NodeId, Value> {
    let holds = |reason: &&Value| {
        let rule = fields(reason).get("rule").and_then(Value::as_str).unwrap_or_default();
        HOLDING.contains(&rule) && wall_ms(reason).is_some_and(|at| now_ms.saturating_sub(at) < HOLDS_MS)
    };
    nodes.iter().filter_map(|node| Some((node.node.clone(), node.reasons.last().filter(holds)?.clone()))).collect()
}

fn show(event: Option<&Told>, nodes: &[NodeReasons], now: &BTreeMap<NodeId, Value>) {
    let zone = TimeZone::system();
    if let Some(told) = event {
        output::line(&event_line(told, &zone));
        let cause = told.event.change.as_ref().map(|change| change.cause.as_str()).filter(|cause| !cause.is_empty());
        cause.into_iter().for_each(|cause| output::line(&format!("cause: {cause}")));
        output::line("Reasons around it, by each host's own clock:");
    }
    for node in nodes {
        output::line(&paint(Colour::Cyan, node.node.as_str()));
        node.reasons.iter().for_each(|reason| output::line(&format!("  {}", row(reason, &zone))));
        if node.reasons.is_empty() {
            let text = if event.is_some() { "no reason of that time is kept any more" } else { "nothing decided yet" };
            output::line(&format!("  {text}"));
        }
    }
    if !now.is_empty() {
        output::line(&paint(Colour::Yellow, "held back now"));
        for (node, reason) in now {
            let text = fields(reason).get("text").and_then(Value::as_str).unwrap_or("-");
            output::line(&format!("  {node}: {text}"));
        }
    }
}

/// Is this node one of the cluster's?
pub(crate) fn check_node(target: &Target, node: Option<&NodeId>) -> Outcome {
    let Some(node) = node else { return Ok(()) };
    if target.spec.node(node).is_some() {
        return Ok(());
    }
    let names: Vec<&str> = target.spec.nodes.iter().map(|node| node.name.as_str()).collect();
    let advice = match nearest(node.as_str(), &names) {
        Some(near) => format!("did you mean {near}? Its nodes are {}", names.join(", ")),
        None => format!("its nodes are {}", names.join(", ")),
    };
    Err(Failure::usage(format!("the cluster {} has no node {node}", target.spec.cluster.name)).hint(advice))
}

/// Each node once, with the longest list that somebody had.
fn merge(pages: Vec<Page>) -> Vec<NodeReasons> {
    let mut nodes: BTreeMap<NodeId, NodeReasons> = BTreeMap::new();
    for found in pages.into_iter().flat_map(|page| page.nodes) {
        match nodes.get(&found.node) {
            Some(known) if known.reasons.len() >= found.reasons.len() => {}
            _ => {
                nodes.insert(found.node.clone(), found);
            }
        }
    }
    nodes.into_values().collect()
}

fn fields(reason: &Value) -> &Value {
    reason.get("reason").filter(|inner| inner.is_object()).unwrap_or(reason)
}

/// A reason is shown by the fields it has: agents of another version may tell more.
fn row(reason: &Value, zone: &TimeZone) -> String {
    let inner = fields(reason);
    let text = |key: &str| inner.get(key).and_then(Value::as_str).unwrap_or("-");
    let term = inner.get("term").and_then(Value::as_u64).unwrap_or(0);
    let when = match reason.get("wall_ms").and_then(Value::as_u64) {
        Some(wall_ms) => time(wall_ms, zone),
        None => inner
            .get("at")
            .and_then(Value::as_u64)
            .map_or_else(|| "-".to_owned(), |at| mainstay_model::Moment(at).to_string()),
    };
    format!("{when}  term {term:<4} {:<14} {}", text("rule"), text("text"))
}

#[cfg(test)]
mod tests {
    use super::{NodeReasons, holding, row};
    use crate::plan::examples::name;
    use jiff::tz::TimeZone;
    use serde_json::json;

    #[test]
    fn only_what_still_holds_is_said_to_hold_back() {
        let node = |text: &str, rule: &str, wall_ms: u64| NodeReasons {
            node: name(text),
            reasons: vec![json!({"wall_ms": wall_ms, "rule": rule, "text": "because", "term": 3})],
        };
        let mut went_on = node("db4", "hold-back", 950_000);
        went_on.reasons.push(json!({"wall_ms": 960_000, "rule": "stand", "text": "because", "term": 4}));
        let nodes = [
            went_on,
            node("db1", "hold-back", 950_000),
            node("db2", "hold-back", 1_000),
            node("db3", "stand", 950_000),
        ];
        assert_eq!(holding(&nodes, 1_000_000).into_keys().collect::<Vec<_>>(), [name("db1")]);
    }

    #[test]
    fn reasons_are_shown_dated_or_not() {
        let reason = json!({"at": 12_345, "rule": "stand", "text": "nobody holds term 3", "term": 3});
        assert_eq!(row(&reason, &TimeZone::UTC), "12.345  term 3    stand          nobody holds term 3");
        let dated = json!({"wall_ms": 1_700_000_000_123_u64, "reason": reason});
        assert_eq!(
            row(&dated, &TimeZone::UTC),
            "2023-11-14 22:13:20.123  term 3    stand          nobody holds term 3"
        );
    }
}

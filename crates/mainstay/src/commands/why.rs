//! `mainstay why`: each node's last decisions with their reasons.

use super::history::time;
use crate::cli::{Global, Why};
use crate::client::{Agents, nobody, with_advice};
use crate::failure::{Failure, Outcome};
use crate::output::{self, Colour, paint};
use crate::target::Target;
use jiff::tz::TimeZone;
use mainstay_model::NodeId;
use mainstay_model::config::nearest;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

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
/// When no agent answers, or the node is not one of the cluster's.
pub(crate) async fn run(options: Why, global: Global) -> Outcome {
    let target = Target::find(&options.which)?;
    check_node(&target, options.node.as_ref())?;
    let agents = Agents::of(&target)?;
    let (answers, silent) = agents.ask_all("/v1/why").await;
    let pages: Vec<Page> = answers.values().filter_map(crate::client::decode).collect();
    if pages.is_empty() {
        return Err(with_advice(nobody(&silent), &target));
    }
    let mut nodes = merge(pages);
    nodes.retain(|node| options.node.as_ref().is_none_or(|wanted| *wanted == node.node));
    if global.json {
        output::object(&json!({ "nodes": nodes }));
        return Ok(());
    }
    if nodes.is_empty() {
        let why = options.node.as_ref().and_then(|node| silent.get(node)).cloned().unwrap_or_default();
        return Err(Failure::failed(format!("that node's agent did not tell its reasons {why}").trim().to_owned()));
    }
    for node in &nodes {
        output::line(&paint(Colour::Cyan, node.node.as_str()));
        for reason in &node.reasons {
            output::line(&format!("  {}", row(reason, &TimeZone::system())));
        }
        if node.reasons.is_empty() {
            output::line("  nothing decided yet");
        }
    }
    Ok(())
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

/// A reason is shown by the fields it has: agents of another version may tell more.
fn row(reason: &Value, zone: &TimeZone) -> String {
    let inner = reason.get("reason").filter(|inner| inner.is_object()).unwrap_or(reason);
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
    use super::row;
    use jiff::tz::TimeZone;
    use serde_json::json;

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

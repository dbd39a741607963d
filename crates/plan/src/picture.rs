//! The nodes as a picture: zones side by side, nodes in them, who streams from whom, and where clients come in.

use crate::facts::Facts;
use crate::html::escape;
use mainstay_model::spec::Node;
use std::fmt::Write as _;

const BOX_WIDE: usize = 190;
const BOX_HIGH: usize = 86;
const GAP: usize = 22;
const TOP: usize = 110;

/// As SVG, without style sheet of its own: the page has it.
#[must_use]
pub(crate) fn draw(facts: &Facts<'_>) -> String {
    let columns = columns(facts);
    let tallest = columns.iter().map(|(_, nodes)| nodes.len()).max().unwrap_or(1);
    let wide = columns.len() * (BOX_WIDE + 2 * GAP) + GAP;
    let high = TOP + tallest * (BOX_HIGH + GAP) + 2 * GAP + 10;
    let mut out = String::new();
    let name = escape(facts.spec.cluster.name.as_str());
    let _ = write!(
        out,
        "<svg class=\"picture\" viewBox=\"0 0 {wide} {high}\" role=\"img\" aria-label=\"Nodes of {name}\" style=\"max-width:{wide}px\">\
         <defs><marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" orient=\"auto\"><path d=\"M0 0L8 4L0 8z\" class=\"tip\"/></marker></defs>"
    );
    let proxy = &facts.spec.proxy;
    let middle = wide / 2;
    let _ = write!(
        out,
        "<rect class=\"clients\" x=\"{}\" y=\"8\" width=\"190\" height=\"52\" rx=\"8\"/><text x=\"{middle}\" y=\"30\" class=\"strong\">applications</text>\
         <text x=\"{middle}\" y=\"48\">writes {}, reads {}</text>",
        middle - 95,
        proxy.write_port,
        proxy.read_port
    );
    for (place, (zone, nodes)) in columns.iter().enumerate() {
        column(&mut out, facts, Column { place, zone: zone.as_deref(), nodes, tallest, middle });
    }
    out.push_str("</svg>");
    out
}

fn columns<'a>(facts: &Facts<'a>) -> Vec<(Option<String>, Vec<&'a Node>)> {
    let mut found: Vec<(Option<String>, Vec<&Node>)> = Vec::new();
    let zoned = facts.spec.nodes.iter().any(|node| node.zone.is_some());
    for node in &facts.spec.nodes {
        let known = found.iter().position(|(zone, _)| zoned && *zone == node.zone);
        // Without zones: rows of four.
        let fullest = found.iter().enumerate().min_by_key(|(_, (_, nodes))| nodes.len()).map(|(place, _)| place);
        let place = known.or(if zoned || found.len() < 4 { None } else { fullest });
        match place.and_then(|place| found.get_mut(place)) {
            Some((_, nodes)) => nodes.push(node),
            None => found.push((node.zone.clone(), vec![node])),
        }
    }
    found
}

struct Column<'a> {
    place: usize,
    zone: Option<&'a str>,
    nodes: &'a [&'a Node],
    tallest: usize,
    middle: usize,
}

fn column(out: &mut String, facts: &Facts<'_>, column: Column<'_>) {
    let left = GAP + column.place * (BOX_WIDE + 2 * GAP);
    let center = left + GAP / 2 + BOX_WIDE / 2;
    let high = column.tallest * (BOX_HIGH + GAP) + GAP + 6;
    if let Some(zone) = column.zone {
        let _ = write!(
            out,
            "<rect class=\"zone\" x=\"{left}\" y=\"{}\" width=\"{}\" height=\"{high}\" rx=\"10\"/><text x=\"{}\" y=\"{}\" class=\"small left\">zone {}</text>",
            TOP - 8,
            BOX_WIDE + GAP,
            left + 10,
            TOP + 8,
            escape(zone)
        );
    }
    if facts.spec.proxy.on_nodes {
        let _ = write!(
            out,
            "<path class=\"way\" marker-end=\"url(#tip)\" d=\"M{} 60 C{} 90 {center} 76 {center} {}\"/>",
            column.middle,
            column.middle,
            TOP - 12
        );
    }
    for (row, node) in column.nodes.iter().enumerate() {
        let (x, y) = (left + GAP / 2, TOP + 14 + row * (BOX_HIGH + GAP));
        let class = if node.witness { "witness" } else { "data" };
        let what =
            if node.witness { "witness: a vote".to_owned() } else { format!("PostgreSQL :{}, a vote", node.port) };
        let _ = write!(
            out,
            "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{BOX_WIDE}\" height=\"{BOX_HIGH}\" rx=\"8\"/><text x=\"{center}\" y=\"{}\" class=\"strong\">{}</text>\
             <text x=\"{center}\" y=\"{}\">{}</text><text x=\"{center}\" y=\"{}\" class=\"small\">{what}</text>",
            y + 26,
            escape(node.name.as_str()),
            y + 46,
            escape(&short(&node.host)),
            y + 66
        );
    }
}

/// A long host name would leave its box.
fn short(host: &str) -> String {
    if host.chars().count() <= 24 { host.to_owned() } else { host.chars().take(23).collect::<String>() + "…" }
}

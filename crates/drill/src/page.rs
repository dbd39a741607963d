//! A drill as one page that needs nothing else: writes and reads in time, the gap, who was primary in which term, and the numbers.

use crate::judge::{Seen, per_slice};
use crate::marker::Records;
use mainstay_model::drill::DrillResult;
use mainstay_model::{NodeId, Span, Term};
use std::fmt::Write as _;

/// Slices of the picture's time, in milliseconds: so many that a column is never wider than this.
const SLICE_MS: u64 = 10;
const COLUMNS_MAX: u64 = 1000;
const LEFT: u64 = 96;
const WIDE: u64 = 1120;
const HIGH: u64 = 120;
const LANE: u64 = 24;

/// What the agents said at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// When, in milliseconds since the marker began.
    pub at_ms: u64,
    /// The term.
    pub term: Term,
    /// Each node with its role and state.
    pub nodes: Vec<(NodeId, String, String)>,
}

/// What a page shows.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    /// The cluster's name.
    pub cluster: &'a str,
    /// When, for people.
    pub date: &'a str,
    /// What the agent said that it did.
    pub fault: &'a str,
    /// When the fault began, in milliseconds since the marker began.
    pub fault_ms: u64,
    /// The judgement.
    pub result: &'a DrillResult,
    /// The numbers.
    pub seen: &'a Seen,
    /// Everything that the clients were told.
    pub records: &'a Records,
    /// What the agents said, in time.
    pub looks: &'a [Look],
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03} s", ms / 1000, ms % 1000)
}

const STYLE: &str = "body{margin:0 auto;max-width:1200px;padding:24px;font:15px/1.5 system-ui,sans-serif;color:#1b2733}
h1{font-size:1.6rem;margin:.2em 0}.made{color:#5a6b7b}.met{color:#17663a}.not{color:#b3261e}
table{border-collapse:collapse;margin:1em 0}th,td{text-align:left;padding:5px 14px 5px 0;border-bottom:1px solid #d5dde5;vertical-align:top}
svg{width:100%;height:auto;background:#fafbfc;border:1px solid #d5dde5;font:11px system-ui,sans-serif}
.w{fill:#0b5d8f}.r{fill:#7fb98a}.gap{fill:#f6d5d2}.fault{stroke:#b3261e}.term{stroke:#8a97a5;stroke-dasharray:3 3}
.primary{fill:#2f6fde}.streaming{fill:#7fb98a}.witness{fill:#b9a7d6}.unreachable{fill:#d9534f}.other{fill:#f0ad4e}";

/// The page.
#[must_use]
pub fn page(shown: &Shown<'_>) -> String {
    let result = shown.result;
    let (class, word) = if result.met { ("met", "as asked for") } else { ("not", "not as asked for") };
    let title = format!("Drill {} of {}", result.kind, shown.cluster);
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\"><title>{0}</title>\
         <style>{STYLE}</style></head><body><h1>{0}: <span class=\"{class}\">{word}</span></h1><p class=\"made\">{1}, by {2}</p><p>{3}</p>",
        escape(&title),
        escape(shown.date),
        escape(&result.by),
        escape(shown.fault)
    );
    for why in &result.why {
        let _ = write!(out, "<p class=\"not\">{}</p>", escape(why));
    }
    picture(&mut out, shown);
    out.push_str(
        "<p class=\"made\">Blue: acknowledged writes; green: answered reads; red band: the longest time without an acknowledged write; red line: \
         the fault. Lanes: blue primary, green streaming, red unreachable, yellow anything else.</p>",
    );
    numbers(&mut out, shown);
    out.push_str("</body></html>");
    out
}

fn numbers(out: &mut String, shown: &Shown<'_>) {
    let (result, seen) = (shown.result, shown.seen);
    let writes = seen.writes;
    let allowed = |value: Option<u64>| value.map_or_else(|| "not declared".to_owned(), |value| format!("{value} s"));
    let rows = [
        ("Longest time without an acknowledged write", Span(seen.write.length_ms).to_string()),
        ("Allowed by [requirements]", allowed(result.outage_allowed_s)),
        ("Longest time without an answered read", Span(seen.read.length_ms).to_string()),
        ("The same for writes before the fault", Span(seen.usual_ms).to_string()),
        ("Acknowledged writes", writes.acknowledged.to_string()),
        ("Acknowledged and lost", format!("{} ({} back)", writes.lost, Span(writes.lost_ms))),
        ("Loss allowed by [requirements]", allowed(result.loss_allowed_s)),
        (
            "Writes whose fate the client did not learn",
            format!("{}, of which {} are there", writes.unknown, writes.unknown_there),
        ),
        ("Refused writes", writes.failed.to_string()),
        ("There more than once", writes.duplicated.to_string()),
        ("Primary", result.passage()),
        (
            "Every node does its part again after",
            result.whole_after_ms.map_or("not in time".to_owned(), |ms| Span(ms).to_string()),
        ),
        ("Durability", result.durability.clone()),
    ];
    out.push_str("<table>");
    for (what, value) in rows {
        let _ = write!(out, "<tr><th>{}</th><td>{}</td></tr>", escape(what), escape(&value));
    }
    out.push_str("</table>");
}

fn bars(out: &mut String, class: &str, slices: &[u64], (x0, width): (u64, u64), bottom: u64) {
    let most = slices.iter().copied().max().unwrap_or(0).max(1);
    let count = slices.len().max(1) as u64;
    let mut path = String::new();
    for (place, value) in slices.iter().enumerate().filter(|(_, value)| **value > 0) {
        let place = place as u64;
        let (left, right) = (x0 + place * width / count, x0 + (place + 1) * width / count);
        let high = (value * (HIGH - 14) / most).max(1);
        let _ = write!(path, "M{left} {bottom}v-{high}h{}v{high}z", (right - left).max(1));
    }
    let _ = write!(out, "<path class=\"{class}\" d=\"{path}\"/>");
}

fn picture(out: &mut String, shown: &Shown<'_>) {
    let end = shown.records.ran_ms.max(1);
    let width = WIDE - LEFT - 8;
    let x = |ms: u64| LEFT + ms.min(end) * width / end;
    let nodes: Vec<&NodeId> =
        shown.looks.first().map_or(Vec::new(), |look| look.nodes.iter().map(|node| &node.0).collect());
    let lanes = 2 * HIGH + 16;
    let high = lanes + nodes.len() as u64 * LANE + 26;
    let _ =
        write!(out, "<svg viewBox=\"0 0 {WIDE} {high}\" role=\"img\" aria-label=\"writes, reads and roles in time\">");
    let gap = shown.seen.write;
    let (from, to) = (x(gap.from_ms), x(gap.from_ms + gap.length_ms));
    // Inside its band if that is wide enough, else beside it, above the bars.
    let label = if to - from > 70 { from + 8 } else { to + 4 };
    let _ = write!(
        out,
        "<rect class=\"gap\" x=\"{from}\" y=\"0\" width=\"{}\" height=\"{lanes}\"/><text x=\"{}\" y=\"{}\">{}</text>",
        (to - from).max(1),
        label,
        HIGH / 2,
        Span(gap.length_ms)
    );
    let slice = SLICE_MS.max(end / COLUMNS_MAX);
    for (place, (class, label, operations)) in
        [("w", "writes", &shown.records.writes), ("r", "reads", &shown.records.reads)].into_iter().enumerate()
    {
        let bottom = HIGH + place as u64 * (HIGH + 8);
        let _ = write!(
            out,
            "<text x=\"6\" y=\"{}\">{label} per</text><text x=\"6\" y=\"{}\">{slice} ms</text>",
            bottom - 40,
            bottom - 26
        );
        bars(out, class, &per_slice(operations, slice, end), (LEFT, width), bottom);
    }
    roles(out, shown, &nodes, lanes, x);
    let fault = x(shown.fault_ms);
    let _ = write!(
        out,
        "<line class=\"fault\" x1=\"{fault}\" y1=\"0\" x2=\"{fault}\" y2=\"{}\"/><text x=\"{}\" y=\"11\">{}</text>",
        high - 20,
        fault + 4,
        shown.result.kind
    );
    let ticks = 10;
    for tick in 0..=ticks {
        let at = end * tick / ticks;
        let _ = write!(
            out,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            x(at).min(WIDE - 30),
            high - 6,
            seconds(at)
        );
    }
    out.push_str("</svg>");
}

fn roles(out: &mut String, shown: &Shown<'_>, nodes: &[&NodeId], top: u64, x: impl Fn(u64) -> u64) {
    let end = shown.records.ran_ms;
    for (lane, node) in nodes.iter().enumerate() {
        let y = top + lane as u64 * LANE;
        let _ = write!(out, "<text x=\"6\" y=\"{}\">{}</text>", y + 15, escape(node.as_str()));
        for (place, look) in shown.looks.iter().enumerate() {
            let until = shown.looks.get(place + 1).map_or(end, |next| next.at_ms);
            let Some((_, role, state)) = look.nodes.iter().find(|(name, ..)| name == *node) else { continue };
            let class = match (role.as_str(), state.as_str()) {
                ("primary", "running") => "primary",
                ("witness", _) => "witness",
                (_, "streaming") => "streaming",
                (_, "unreachable") => "unreachable",
                _ => "other",
            };
            let (from, to) = (x(look.at_ms), x(until));
            let _ = write!(
                out,
                "<rect class=\"{class}\" x=\"{from}\" y=\"{}\" width=\"{}\" height=\"{}\"><title>{}: {}, {}</title></rect>",
                y + 4,
                to.saturating_sub(from).max(1),
                LANE - 8,
                escape(node.as_str()),
                escape(role),
                escape(state)
            );
        }
    }
    let mut term = shown.looks.first().map(|look| look.term);
    for look in shown.looks.iter().filter(|look| look.term > Term(0)) {
        if term != Some(look.term) {
            term = Some(look.term);
            let at = x(look.at_ms);
            let bottom = top + nodes.len() as u64 * LANE;
            let _ = write!(
                out,
                "<line class=\"term\" x1=\"{at}\" y1=\"0\" x2=\"{at}\" y2=\"{bottom}\"/><text x=\"{}\" y=\"24\">term {}</text>",
                at + 4,
                look.term
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::tests::{records, result};
    use crate::judge::{judged, seen};
    use mainstay_model::Durability;

    #[test]
    fn a_page_is_whole_and_trusts_no_text() {
        let (records, mut result) = (records(), result());
        result.by = "<script>ann</script>".to_owned();
        let seen = seen(&records, 1000);
        let result = judged(result, &seen, Durability::Strict);
        let look = |at_ms, term, role: &str| Look {
            at_ms,
            term: Term(term),
            nodes: vec![(NodeId::new("db1").unwrap(), role.to_owned(), "running".to_owned())],
        };
        let looks = [look(0, 3, "primary"), look(1500, 4, "none")];
        let fault = "the server of db1, process 12, was killed";
        let page = page(&Shown {
            cluster: "orders",
            date: "2026-11-27 13:00:00",
            fault,
            fault_ms: 1000,
            result: &result,
            seen: &seen,
            records: &records,
            looks: &looks,
        });
        assert!(page.contains("&lt;script&gt;ann") && !page.contains("<script>"));
        assert!(page.contains("<svg") && page.contains(">term 4<") && page.contains("700 ms") && page.contains(fault));
        assert!(page.contains("as asked for") && page.ends_with("</html>"));
        assert!(!page.contains("http"), "nothing is fetched from elsewhere");
        assert_eq!(page.matches("<rect").count(), page.matches("</rect>").count() + 1);
    }
}

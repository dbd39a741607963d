//! The report as one page without anything outside of it: per node a line of roles in time, the terms, write gaps, faults.

use super::report::{Report, Verdict};
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Width of the drawing, and of the names at its left.
const WIDTH: u64 = 1200;
const LEFT: u64 = 120;
const LANE: u64 = 26;
/// Colours by role and state.
const COLOURS: [(&str, &str); 6] = [
    ("primary", "#2f6fde"),
    ("streaming", "#7fb98a"),
    ("witness", "#b9a7d6"),
    ("unreachable", "#d9534f"),
    ("other", "#f0ad4e"),
    ("gap", "#c0392b"),
];

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn colour(name: &str) -> &'static str {
    COLOURS.iter().find(|(known, _)| *known == name).map_or("#f0ad4e", |(_, colour)| colour)
}

/// The page.
#[must_use]
pub fn page(report: &Report) -> String {
    let mut html = String::from(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Mainstay: chaos</title><style>\
         body{font:14px/1.5 system-ui,sans-serif;margin:2rem;color:#222}table{border-collapse:collapse}td,th{padding:.2rem .7rem;\
         border-bottom:1px solid #ddd;text-align:left;vertical-align:top}svg{background:#fafafa;border:1px solid #ddd;max-width:100%}\
         .failed{color:#c0392b}.passed{color:#2e7d32}.invalid{color:#b26a00}text{font:11px system-ui,sans-serif}</style>",
    );
    let class = match report.verdict {
        Verdict::Passed => "passed",
        Verdict::Invalid => "invalid",
        Verdict::Failed => "failed",
    };
    let _ = write!(html, "<h1>Chaos, seed {}: <span class=\"{class}\">{class}</span></h1>", report.plan.seed);
    let _ = write!(html, "<p>{}</p><p>{}</p>", escape(&report.plan.shape.words()), escape(&report.line()));
    for text in report.wrong.iter().chain(&report.invalid) {
        let _ = write!(html, "<p class=\"failed\">{}</p>", escape(text));
    }
    html.push_str(&drawing(report));
    html.push_str("<p>");
    for (name, colour) in COLOURS {
        let _ = write!(
            html,
            "<span style=\"background:{colour};color:#fff;padding:0 .5rem;margin-right:.5rem\">{name}</span>"
        );
    }
    html.push_str(
        "</p><h2>Faults</h2><table><tr><th>Round<th>Fault<th>Node<th>From, s<th>To, s<th>Verified<th>Evidence</tr>",
    );
    for fault in &report.told {
        let _ = write!(
            html,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}</tr>",
            fault.round,
            fault.kind.name(),
            escape(&fault.node),
            seconds(fault.from_ms),
            seconds(fault.to_ms),
            if fault.verified { "yes" } else { "no" },
            escape(&fault.evidence)
        );
    }
    html.push_str("</table><h2>Rounds</h2><table><tr><th>Round<th>Longest gap, ms<th>Writable after healing, ms<th>Whole after healing, ms</tr>");
    for (number, round) in report.rounds.iter().enumerate() {
        let shown = |value: Option<u64>| value.map_or_else(|| "never".to_owned(), |value| value.to_string());
        let (writable, whole) = (shown(round.writable_after_ms), shown(round.whole_after_ms));
        let _ = write!(html, "<tr><td>{}<td>{}<td>{writable}<td>{whole}</tr>", number + 1, round.gap_ms);
    }
    let _ = write!(html, "</table><h2>Plan</h2><pre>{}</pre></html>", escape(&report.plan.to_string()));
    html
}

fn seconds(ms: u64) -> String {
    format!("{}.{}", ms / 1000, ms % 1000 / 100)
}

/// One bar.
fn bar(svg: &mut String, (from, to): (u64, u64), lane: u64, colour: &str, title: &str) {
    let _ = write!(
        svg,
        "<rect x=\"{from}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"{colour}\"><title>{}</title></rect>",
        lane * LANE + 4,
        to.saturating_sub(from).max(2),
        LANE - 8,
        escape(title)
    );
}

fn drawing(report: &Report) -> String {
    let end = report.took_ms.max(1);
    let x = |ms: u64| LEFT + ms.min(end) * (WIDTH - LEFT - 10) / end;
    let nodes: BTreeSet<&str> =
        report.looks.iter().flat_map(|look| &look.nodes).map(|(node, ..)| node.as_str()).collect();
    let lanes = nodes.len() as u64 + 4;
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"timeline\">", lanes * LANE + 20);
    let label = |svg: &mut String, lane: u64, text: &str| {
        let _ = write!(svg, "<text x=\"6\" y=\"{}\">{}</text>", lane * LANE + 17, escape(text));
    };
    label(&mut svg, 0, "term");
    let mut term = 0;
    for look in &report.looks {
        if look.term != term {
            term = look.term;
            let at = x(look.at_ms);
            let _ = write!(svg, "<line x1=\"{at}\" y1=\"0\" x2=\"{at}\" y2=\"{}\" stroke=\"#bbb\"/>", lanes * LANE);
            let _ = write!(svg, "<text x=\"{}\" y=\"17\">{term}</text>", at + 2);
        }
    }
    for (number, node) in nodes.iter().enumerate() {
        let lane = number as u64 + 1;
        label(&mut svg, lane, node);
        for (place, look) in report.looks.iter().enumerate() {
            let until = report.looks.get(place + 1).map_or(end, |next| next.at_ms);
            let Some((_, role, state)) = look.nodes.iter().find(|(name, ..)| name.as_str() == *node) else { continue };
            let shown = match (role.as_str(), state.as_str()) {
                ("primary" | "witness", _) => role,
                (_, "streaming" | "unreachable") => state,
                _ => "other",
            };
            bar(&mut svg, (x(look.at_ms), x(until)), lane, colour(shown), &format!("{node}: {role}, {state}"));
        }
    }
    let below = nodes.len() as u64 + 1;
    label(&mut svg, below, "no write for");
    for round in report.rounds.iter().filter(|round| round.gap_ms > 0) {
        let span = (x(round.gap_from_ms), x(round.gap_from_ms + round.gap_ms));
        bar(&mut svg, span, below, colour("gap"), &format!("{} ms", round.gap_ms));
    }
    for fault in &report.told {
        // Two lanes, for faults that overlap.
        let second = report.told.iter().any(|other| other.round == fault.round && other.from_ms < fault.from_ms);
        let lane = below + 1 + u64::from(second);
        let title = format!("{} on {}: {}", fault.kind.name(), fault.node, fault.evidence);
        bar(&mut svg, (x(fault.from_ms), x(fault.to_ms)), lane, if fault.verified { "#666" } else { "#ddd" }, &title);
        let _ = write!(svg, "<text x=\"{}\" y=\"{}\">{}</text>", x(fault.from_ms), lane * LANE + 17, fault.kind.name());
    }
    label(&mut svg, below + 1, "faults");
    svg.push_str("</svg>");
    svg
}

#[cfg(test)]
mod tests {
    use super::super::fault::Kind;
    use super::super::plan::{Wish, plan};
    use super::super::report::Told;
    use super::*;

    #[test]
    fn a_page_is_whole_and_shows_what_is_wrong_without_trusting_it() {
        let mut report = Report::new(plan(&Wish { seed: 1, minutes: 1, ..Wish::default() }));
        report.wrong("<script>lost</script>");
        let node = "db1".to_owned();
        let evidence = "gone".to_owned();
        report.told.push(Told {
            round: 1,
            kind: Kind::ServerKill,
            node,
            from_ms: 1,
            to_ms: 9,
            verified: true,
            evidence,
        });
        report.took_ms = 1000;
        report.judge();
        let page = page(&report);
        assert!(page.contains("&lt;script&gt;lost") && !page.contains("<script>"));
        assert!(page.contains("<svg") && page.contains("server-kill") && page.ends_with("</html>"));
        assert!(!page.contains("http"), "nothing is fetched from elsewhere");
    }
}

//! `mainstay doctor`: what is amiss on this host, and what mends it. Reads and judges; changes nothing.

use crate::cli::{Doctor, Global};
use crate::failure::{Failure, Outcome, USAGE};
use crate::given;
use crate::host::{Seen, gather};
use crate::local::machine::nodes_here;
use crate::output::progress::Progress;
use crate::output::table::wrap;
use crate::output::{self, Colour, paint};
use crate::target::absolute;
use mainstay_model::spec::Node;
use mainstay_plan::doctor::facts::{Book, Reading, Stage};
use mainstay_plan::doctor::{Finding, Severity, amiss, examine};
use mainstay_plan::stamp::Stamp;
use serde_json::json;
use std::path::Path;

/// One node's findings.
struct Examined {
    node: Node,
    stage: Stage,
    findings: Vec<Finding>,
}

/// Runs the command.
///
/// # Errors
/// When the file can not be read, no node is on this host, or something must be mended.
pub(crate) async fn run(options: Doctor, global: Global) -> Outcome {
    let runbook = options.runbook.as_deref().map(read).transpose()?;
    let mut progress = Progress::new();
    progress.step("ask the cluster");
    let seen = Seen::look(&options.which).await?;
    let nodes = nodes(&seen, &options)?;
    let book = runbook.map(|(path, text)| book(&seen, path, text));
    let mut all = Vec::new();
    for node in nodes {
        progress.step(&format!("look at {}", node.name));
        let mut facts = gather(&seen, &node, !options.no_write).await;
        // Of several nodes on one host the first one's findings name it.
        facts.runbook = book.clone().filter(|_| all.is_empty());
        all.push(Examined { stage: facts.stage, findings: examine(&seen.target.spec, &node, &facts), node });
    }
    progress.finish("");
    drop(progress);
    let amiss = all.iter().any(|each| amiss(&each.findings));
    if global.json {
        let nodes: Vec<_> = all
            .iter()
            .map(|each| json!({ "node": each.node.name, "host": each.node.host, "stage": each.stage, "findings": each.findings }))
            .collect();
        let cluster = &seen.target.spec.cluster.name;
        output::object(&json!({ "cluster": cluster, "generation": seen.generation, "amiss": amiss, "nodes": nodes }));
    } else {
        all.iter().for_each(|each| show(each, options.all));
    }
    if amiss { Err(Failure::said()) } else { Ok(()) }
}

/// Which nodes are examined.
fn nodes(seen: &Seen, options: &Doctor) -> Outcome<Vec<Node>> {
    let spec = &seen.target.spec;
    if let Some(name) = &options.node {
        super::check_node(&seen.target, Some(name))?;
        return Ok(spec.node(name).cloned().into_iter().collect());
    }
    let here: Vec<Node> = nodes_here(spec).into_iter().cloned().collect();
    if here.is_empty() {
        let error = format!("no node of the cluster {} has an address of this host", spec.cluster.name);
        return Err(
            Failure::usage(error).hint("run it on a node's own host, or say which node this is with --node NODE")
        );
    }
    Ok(here)
}

/// The runbook: where it is, and its text, or why that can not be read.
fn read(path: &Path) -> Outcome<(String, Reading<String>)> {
    let path = absolute(path)?;
    let shown = path.display().to_string();
    match given::text(&path) {
        Ok(text) => Ok((shown, Ok(text))),
        Err(error) => {
            let why = format!("{shown}: {error}");
            let failure = given::unreadable(&error, format!("--runbook {why}"));
            // Of one that is there and closed to this user the findings tell.
            if failure.status == USAGE { Err(failure) } else { Ok((shown, Err(why))) }
        }
    }
}

/// The runbook, and what it must fit.
fn book(seen: &Seen, path: String, text: Reading<String>) -> Book {
    let made_from = text.map(|text| Stamp::find(&text));
    Book { path, made_from, now: Stamp::of(&seen.target.spec, seen.generation) }
}

/// How a severity is shown.
fn word(severity: Severity) -> (&'static str, Colour) {
    match severity {
        Severity::Problem => ("problem", Colour::Red),
        Severity::Unknown => ("unknown", Colour::Yellow),
        Severity::Advice => ("advice", Colour::Cyan),
        Severity::Fine => ("fine", Colour::Green),
    }
}

fn show(examined: &Examined, all: bool) {
    let Examined { node, stage, findings } = examined;
    let stage = match stage {
        Stage::New => "has not joined",
        Stage::Joined => "has joined, its agent does not answer",
        Stage::Running => "its agent runs",
    };
    let count = |severity: Severity| {
        let count = findings.iter().filter(|finding| finding.severity == severity).count();
        format!("{count} {}", word(severity).0)
    };
    let counts = [Severity::Problem, Severity::Unknown, Severity::Advice, Severity::Fine].map(count).join(", ");
    output::line(&format!("{} ({}): {stage}; {counts}", paint(Colour::Cyan, node.name.as_str()), node.host));
    let shown: Vec<&Finding> = findings.iter().filter(|finding| all || finding.severity != Severity::Fine).collect();
    let reasons = |finding: &Finding| (finding.severity, finding.why.clone(), finding.mend.clone());
    for (place, finding) in shown.iter().enumerate() {
        // What is fine, or has the same reason as the one above, is a list; the reason stands at its end.
        let above = place.checked_sub(1).and_then(|above| shown.get(above));
        if above.is_none_or(|above| reasons(above) != reasons(finding)) {
            output::line("");
        }
        let below = shown.get(place + 1);
        lines(finding, below.is_none_or(|below| reasons(below) != reasons(finding)));
    }
    output::line("");
}

fn lines(finding: &Finding, with_reason: bool) {
    let width = usize::from(output::width()).clamp(40, 120);
    let (severity, colour) = word(finding.severity);
    let below = |first: &str, text: &str| {
        for (place, line) in wrap(text, width.saturating_sub(9)).iter().enumerate() {
            output::line(&format!("{}{line}", if place == 0 { first } else { "         " }));
        }
    };
    let head = format!("{severity:<9}");
    below(&paint(colour, &head), &format!("{}: {}", finding.check, finding.found));
    if !with_reason {
        return;
    }
    if !finding.why.is_empty() {
        below("    why  ", &finding.why);
    }
    // To be pasted: never broken.
    for (place, mend) in finding.mend.iter().enumerate() {
        output::line(&format!("{}{mend}", if place == 0 { "   mend  " } else { "         " }));
    }
}

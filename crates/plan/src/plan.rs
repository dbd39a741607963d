//! The plan as a whole: refused with reasons, or accepted with everything that it says.

use crate::availability::{Assumed, a_year, percent, without_writes};
use crate::facts::Facts;
use crate::layout::Layout;
use crate::objectives::take_over_s;
use crate::parameters::{parameters, sizes};
use crate::refusal::{Contradiction, contradictions};
use crate::report::{Mark, Report, Statement};
use crate::{picture, sections};
use mainstay_model::spec::Spec;

/// An accepted plan.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What it says.
    pub report: Report,
    /// The file with the derived parameters in it.
    pub spec: Spec,
}

/// The plan for this file.
///
/// # Errors
/// The contradictions between what is asked and what this cluster can do.
pub fn plan(facts: &Facts<'_>) -> Result<Plan, Vec<Contradiction>> {
    let found = contradictions(facts);
    if !found.is_empty() {
        return Err(found);
    }
    let mut spec = facts.spec.clone();
    for parameter in parameters(facts) {
        if parameter.mark == Mark::Derived {
            spec.postgres.parameters.insert(parameter.name.to_owned(), parameter.value);
        }
    }
    let report = Report {
        kind: "Plan",
        cluster: facts.spec.cluster.name.to_string(),
        date: facts.today.to_string(),
        summary: summary(facts),
        sections: sections::all(facts),
        picture: picture::draw(facts),
    };
    Ok(Plan { report, spec })
}

fn summary(facts: &Facts<'_>) -> Vec<Statement> {
    let layout = Layout::of(facts.spec);
    let seconds = take_over_s(facts, &layout);
    #[expect(clippy::cast_precision_loss, reason = "a few seconds")]
    let without = without_writes(&layout, &Assumed::of(facts.asked(), seconds as f64));
    let witnesses = layout.votes() - layout.data();
    let count = |count: usize, one: &str| format!("{count} {one}{}", if count == 1 { "" } else { "s" });
    let bears = match layout.bears() {
        0 => "no host may fail without writes standing still".to_owned(),
        1 => "any one host may fail and writes go on by themselves".to_owned(),
        bears => format!("any {bears} hosts may fail, one after the other, and writes go on by themselves"),
    };
    let schedule = crate::backup::schedule(facts);
    let texts = [
        format!(
            "{}, {}, durability {}: a commit is in {} before it is acknowledged; {bears}.",
            count(layout.data(), "data node"),
            match witnesses {
                0 => "no witness".to_owned(),
                1 => "1 witness".to_owned(),
                more => format!("{more} witnesses"),
            },
            layout.durability,
            if layout.copies() == 1 { "1 copy".to_owned() } else { format!("{} copies", layout.copies()) }
        ),
        if layout.data() > 1 && layout.bears() > 0 {
            format!(
                "A lost primary costs about {seconds} s without writes (rehearsed with the real decisions). Expected availability of writes: {}, {} a year without.",
                percent(without),
                a_year(without)
            )
        } else {
            format!("Expected availability of writes: {}, {} a year without.", percent(without), a_year(without))
        },
        format!(
            "Server: {} connections, {} shared buffers; {} parameters are derived in section 4.",
            sizes(facts).connections,
            crate::parameters::size(sizes(facts).shared_mb),
            parameters(facts).len()
        ),
        format!(
            "Backups: a base once in {} h and the log without a break, {} days restorable; a restore takes about {}.",
            schedule.every_h,
            facts.asked().retention_days,
            crate::objectives::span(schedule.restore_s)
        ),
    ];
    texts.into_iter().map(|text| Statement { text, mark: Mark::Derived }).collect()
}

/// What an accepted plan must satisfy whatever was asked. Empty: it does.
#[must_use]
pub fn lint(plan: &Plan, owned: &[&str]) -> Vec<String> {
    let mut found: Vec<String> =
        mainstay_model::config_check::check(&plan.spec, owned).into_iter().map(|problem| problem.text).collect();
    let report = &plan.report;
    if report.sections.iter().map(|section| section.number).ne(1..=16) {
        found.push("the sections are not 1 to 16".to_owned());
    }
    for section in &report.sections {
        if section.blocks.is_empty() {
            found.push(format!("section {} is empty", section.number));
        }
        for block in &section.blocks {
            lint_block(block, section.number, &mut found);
        }
    }
    found
}

fn lint_block(block: &crate::report::Block, section: usize, found: &mut Vec<String>) {
    use crate::report::Block;
    match block {
        Block::Say(lines) => found.extend(
            lines
                .iter()
                .filter(|line| line.text.trim().len() < 5)
                .map(|line| format!("section {section}: empty sentence {line:?}")),
        ),
        Block::Table { caption, head, rows } => {
            for row in rows {
                if row.cells.len() != head.len() {
                    found.push(format!(
                        "section {section}, {caption}: {} cells under {} columns",
                        row.cells.len(),
                        head.len()
                    ));
                }
                if row.cells.iter().zip(head).any(|(cell, name)| cell.trim().is_empty() && !name.is_empty()) {
                    found.push(format!("section {section}, {caption}: an empty cell in {:?}", row.cells));
                }
            }
        }
        Block::Code { caption, text } if text.trim().is_empty() => {
            found.push(format!("section {section}, {caption}: no commands"))
        }
        Block::Code { .. } | Block::Picture => {}
    }
}

/// What the summary and the terminal show of risks.
#[must_use]
pub fn risks(facts: &Facts<'_>) -> Vec<String> {
    sections::risks(facts)
}

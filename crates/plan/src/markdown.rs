//! A report as Markdown.

use crate::report::{Block, Report, Section, Statement};
use std::fmt::Write as _;

/// The whole report.
#[must_use]
pub fn page(report: &Report) -> String {
    let mut out = format!(
        "# {} of the cluster {}\n\nMade on {}. In brackets and in the last column: where a statement comes from.\n\n## In short\n\n",
        report.kind, report.cluster, report.date
    );
    say(&mut out, &report.summary);
    for each in &report.sections {
        section(&mut out, each);
    }
    out
}

/// One section.
pub fn section(out: &mut String, section: &Section) {
    let _ = write!(out, "\n## {}. {}\n", section.number, section.title);
    for block in &section.blocks {
        match block {
            Block::Say(lines) => {
                out.push('\n');
                say(out, lines);
            }
            Block::Table { caption, head, rows } => {
                let _ = write!(
                    out,
                    "\n**{caption}**\n\n| {} | From |\n|{}\n",
                    head.join(" | "),
                    "---|".repeat(head.len() + 1)
                );
                for row in rows {
                    let cells: Vec<String> =
                        row.cells.iter().map(|cell| cell.replace('|', "\\|").replace('\n', " ")).collect();
                    let _ = writeln!(out, "| {} | {} |", cells.join(" | "), row.mark.words());
                }
            }
            Block::Code { caption, text } => {
                let _ = write!(out, "\n{caption}:\n\n```sh\n{text}\n```\n");
            }
            Block::Picture => {}
        }
    }
}

fn say(out: &mut String, lines: &[Statement]) {
    for line in lines {
        let _ = writeln!(out, "* {} *[{}]*", line.text, line.mark.words());
    }
}

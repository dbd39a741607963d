//! `mainstay runbook`: the emergency plan of this cluster, from the specification in force and its state; from its file if nobody can be asked. Changes nothing but the files that it is told
//! to write.

use super::plan::{Basis, gather, write};
use crate::cli::{Global, Runbook};
use crate::failure::Outcome;
use crate::output;
use crate::output::progress::Progress;
use mainstay_plan::runbook::runbook;
use mainstay_plan::{html, markdown};
use serde_json::json;

/// Runs the command.
///
/// # Errors
/// When the file can not be read, or a page can not be written.
pub(crate) async fn run(options: Runbook, global: Global) -> Outcome {
    let mut progress = Progress::new();
    let gathered = gather(&options.which, Basis::InForce, options.offline, &mut progress).await?;
    let report = runbook(&gathered.facts());
    drop(progress);
    let mut written = Vec::new();
    for (path, text) in [(&options.markdown, markdown::page(&report)), (&options.html, html::page(&report))] {
        if let Some(path) = path {
            written.push(write(path, &text)?);
        }
    }
    if global.json {
        output::object(&json!({
            "cluster": report.cluster, "date": report.date, "summary": report.summary, "sections": report.sections, "written": written,
        }));
    } else if written.is_empty() {
        output::line(markdown::page(&report).trim_end());
    } else {
        written.iter().for_each(|path| output::line(&format!("Written: {path}")));
        output::line("Keep a copy outside the cluster, and one on paper.");
    }
    Ok(())
}

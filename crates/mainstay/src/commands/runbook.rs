//! `mainstay runbook`: the emergency plan of this cluster, from the specification in force and its state; from its file if nobody can be asked. Changes nothing but the files that it is told
//! to write.

use super::plan::{Basis, gather};
use crate::cli::{Global, Runbook, Which};
use crate::failure::Outcome;
use crate::output;
use crate::output::file::write_all;
use crate::output::progress::Progress;
use crate::session::Session;
use mainstay_model::api::RunbookWish;
use mainstay_plan::runbook::runbook;
use mainstay_plan::{html, markdown};
use serde_json::json;

/// Runs the command.
///
/// # Errors
/// When the file can not be read, or a page can not be written.
pub(crate) async fn run(options: Runbook, global: Global) -> Outcome {
    if options.forget {
        return forget(&options.which, global).await;
    }
    let mut progress = Progress::new();
    let gathered = gather(&options.which, Basis::InForce, options.offline, &mut progress).await?;
    let report = runbook(&gathered.facts());
    let pages = [(&options.markdown, markdown::page(&report)), (&options.html, html::page(&report))];
    let written = write_all(pages)?;
    let generation = gathered.running.as_ref().map(|running| running.generation);
    let noted = match generation.filter(|_| !written.is_empty()) {
        Some(generation) => {
            progress.step("tell the agents from what it was made");
            let noted = note(&options.which, Some(generation)).await;
            progress.finish(if noted.is_ok() { "noted" } else { "not noted" });
            Some(noted)
        }
        None => None,
    };
    drop(progress);
    if let Some(Err(failure)) = &noted {
        // The pages are written all the same.
        output::errline(&format!("status will not say when it is outdated: {failure}"));
    }
    if global.json {
        output::object(&json!({
            "cluster": report.cluster, "date": report.date, "summary": report.summary, "sections": report.sections, "written": written,
            "noted": matches!(noted, Some(Ok(()))),
        }));
    } else if written.is_empty() {
        output::line(markdown::page(&report).trim_end());
    } else {
        written.iter().for_each(|path| output::line(&format!("Written: {path}")));
        output::line("Keep a copy outside the cluster, and one on paper.");
    }
    Ok(())
}

/// Tells an agent what the copies that are kept were made from; `None`: there are none.
async fn note(which: &Which, generation: Option<u64>) -> Outcome {
    let session = Session::open(which).await?;
    let wish = RunbookWish { generation, by: crate::local::user::who() };
    session.post_any("/v1/runbook", &wish).await.map(drop)
}

async fn forget(which: &Which, global: Global) -> Outcome {
    note(which, None).await?;
    if global.json {
        output::object(&json!({ "forgotten": true }));
    } else {
        output::line("No runbook is expected any more: none can be outdated.");
    }
    Ok(())
}

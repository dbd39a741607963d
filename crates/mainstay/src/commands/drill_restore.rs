//! `mainstay verify --drill`: a node restores a random moment beside its data, looks at it, and removes it; this watches, and tells.

use super::backup::{best, going, look};
use super::shelf::of_agents;
use crate::cli::{Global, Verify};
use crate::failure::{Failure, Outcome};
use crate::output::progress::Progress;
use crate::output::table::{ago, bytes};
use crate::output::{self, Colour, paint};
use crate::session::Session;
use mainstay_model::vault::{BackupBegun, BackupState, BackupWish, DrillDone};
use mainstay_ports::clock::{boot_now, wall_now_ms};
use mainstay_vault::postgres::restore::time_text;
use serde_json::json;
use std::time::Duration;

const LOOK: Duration = Duration::from_millis(500);

/// Holds a drill.
///
/// # Errors
/// When it can not begin, fails, or does not end in time.
pub(crate) async fn run(options: &Verify, global: Global) -> Outcome {
    let session = Session::open_for(&options.shelf.which, options.on.iter()).await?;
    let repository = of_agents(&options.shelf, session.spec(), "a drill")?;
    let status = session.status().await?;
    let nobody =
        || Failure::not_now("no node has a server that is well").hint("see `mainstay status`; nothing was changed");
    let node = options.on.clone().or_else(|| best(&status)).ok_or_else(nobody)?;
    let mut progress = Progress::new();
    progress.step(&format!("Restoring a random moment on {node}"));
    let wish = BackupWish { incremental: false, drill: true, repository, by: crate::local::user::who() };
    let begun = session.post(&node, "/v1/backup", &wish).await.inspect_err(|_| progress.fail())?;
    let begun: BackupBegun = serde_json::from_value(begun)
        .map_err(|error| Failure::failed(format!("the answer of {node} can not be read: {error}")))?;
    let done = until_done(&session, &begun, Duration::from_secs(options.wait), &progress).await;
    let done = done.inspect_err(|_| progress.fail())?;
    if let Some(problem) = &done.problem {
        progress.fail();
        return Err(Failure::failed(format!("the drill on {node} failed: {problem}"))
            .hint("until one passes nobody knows whether the backups can be restored; see `mainstay verify`, and mend what it says"));
    }
    progress.finish("passed; the copy is removed");
    if global.json {
        output::object(&json!({ "drill": done, "verified": done.checked }));
        return Ok(());
    }
    output::line(&words(&done));
    output::line(&format!("Verified: {}.", done.checked.join("; ")));
    Ok(())
}

async fn until_done(session: &Session, begun: &BackupBegun, wait: Duration, progress: &Progress) -> Outcome<DrillDone> {
    let since = boot_now();
    loop {
        tokio::time::sleep(LOOK).await;
        let state = look(session).await.unwrap_or_default();
        let ended = [state.drill, state.drill_cut].into_iter().flatten().find(|done| done.token == begun.token);
        if let Some(done) = ended {
            return Ok(done);
        }
        let passed = boot_now().since(since).0;
        if let Some(running) = state.running.filter(|running| running.token == begun.token) {
            let written = running.total > 0 && running.done >= running.total;
            let detail = if written {
                "recovering and reading it".to_owned()
            } else {
                going(running.done, running.total, passed)
            };
            progress.detail(&detail);
        }
        if passed >= u64::try_from(wait.as_millis()).unwrap_or(u64::MAX) {
            return Err(Failure::not_now(format!(
                "the drill on {} has not ended within {} s",
                begun.node,
                wait.as_secs()
            ))
            .hint("it goes on; `mainstay archive status` shows how"));
        }
    }
}

/// The last drill, in one line.
pub(super) fn words(done: &DrillDone) -> String {
    let moment = done.asked.map_or_else(|| "the end of the backup".to_owned(), time_text);
    let on = done.node.as_ref().map_or_else(String::new, |node| format!(" on {node}"));
    let of = done.repository.as_ref().map_or_else(String::new, |name| format!(" of {name}"));
    match &done.problem {
        None => format!(
            "{moment} was restored{on} from {}{of}: {} in {}, recovered in {}.",
            done.backup,
            bytes(done.bytes),
            ago(done.write_ms / 1000),
            ago(done.recover_ms / 1000)
        ),
        Some(why) => format!("the last drill{of}{on} failed: {why}"),
    }
}

/// How drills stand, for other commands.
pub(super) fn show(state: &BackupState) {
    let since = |ms: u64| ago(wall_now_ms().saturating_sub(ms) / 1000);
    if let Some(cut) = &state.drill_cut {
        output::line(&format!("drill       cut off {} ago: {}", since(cut.ended_ms), words(cut)));
    }
    match &state.drill {
        None => output::line("drill       none yet: mainstay verify --drill"),
        Some(done) if done.problem.is_none() => {
            output::line(&format!("drill       {} ago: {}", since(done.ended_ms), words(done)));
        }
        Some(done) => {
            let passed = state
                .drill_passed_ms
                .map_or_else(|| "none passed yet".to_owned(), |ms| format!("one passed {} ago", since(ms)));
            output::line(&paint(
                Colour::Red,
                &format!("drill       {} ago: {}; {passed}", since(done.ended_ms), words(done)),
            ));
        }
    }
}

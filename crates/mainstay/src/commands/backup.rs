//! `mainstay backup`: a node's agent makes a backup; this watches until it counts.

use crate::cli::{Backup, Global};
use crate::client::decode;
use crate::failure::{Failure, Outcome};
use crate::output;
use crate::output::progress::Progress;
use crate::output::table::{ago, bytes};
use crate::session::Session;
use mainstay_model::NodeId;
use mainstay_model::status::Status;
use mainstay_model::vault::{ArchiveAnswer, BackupBegun, BackupMade, BackupState, BackupWish};
use mainstay_ports::clock::boot_now;
use serde_json::json;
use std::time::Duration;

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(500);

/// Makes a backup.
///
/// # Errors
/// When nobody can make one, one runs already, or it does not come to count in time.
pub(crate) async fn run(options: Backup, global: Global) -> Outcome {
    let session = Session::open_for(&options.which, options.from.iter()).await?;
    super::shelf::check_known(session.spec(), options.repository.as_ref())?;
    let status = session.status().await?;
    let node = match &options.from {
        Some(node) => node.clone(),
        None => best(&status).ok_or_else(|| {
            Failure::not_now("no node has a server that is well").hint("see `mainstay status`; nothing was changed")
        })?,
    };
    let mut progress = Progress::new();
    let kind = if options.incremental { "an incremental" } else { "a full" };
    let into = options.repository.as_ref().map(|name| format!(" in {name}")).unwrap_or_default();
    progress.step(&format!("Making {kind} backup from {node}{into}"));
    let (incremental, repository) = (options.incremental, options.repository.clone());
    let wish = BackupWish { incremental, drill: false, repository, by: crate::local::user::who() };
    let begun = session.post(&node, "/v1/backup", &wish).await;
    let begun = begun.and_then(|body| {
        serde_json::from_value::<BackupBegun>(body)
            .map_err(|error| Failure::failed(format!("the answer of {node} can not be read: {error}")))
    });
    let begun = begun.inspect_err(|_| progress.fail())?;
    if options.wait == 0 {
        progress.finish("begun");
        return if global.json {
            output::object(&json!({ "node": node, "token": begun.token, "verified": [] }));
            Ok(())
        } else {
            output::line("Begun; `mainstay archive status` shows how it goes.");
            Ok(())
        };
    }
    let made = until_made(&session, &begun, Duration::from_secs(options.wait), &progress).await;
    let made = made.inspect_err(|_| progress.fail())?;
    progress.finish(&made.label);
    say(&made, global);
    Ok(())
}

/// A replica that streams, one that no commit waits for if there is one; else the primary.
pub(super) fn best(status: &Status) -> Option<NodeId> {
    let well = status.nodes.iter().filter(|node| node.healthy && node.role != "witness");
    let rank = |role: &str, sync: bool| match (role, sync) {
        ("replica", false) => 0,
        ("replica", true) => 1,
        _ => 2,
    };
    well.min_by_key(|node| rank(&node.role, node.sync)).map(|node| node.name.clone())
}

/// What some agent of the cluster knows of backups: any of them, since the one that makes it may have ended.
pub(super) async fn look(session: &Session) -> Option<BackupState> {
    let (answers, _) = session.agents.ask_all("/v1/archive").await;
    let told = answers.values().filter_map(decode::<ArchiveAnswer>).filter_map(|answer| answer.backup);
    let beat = |state: &BackupState| {
        let drilled = state.drill.as_ref().map(|drill| drill.ended_ms);
        (state.last.as_ref().map(|last| last.ended_ms).max(drilled), state.running.as_ref().map(|running| running.beat))
    };
    told.max_by_key(beat)
}

async fn until_made(
    session: &Session,
    begun: &BackupBegun,
    wait: Duration,
    progress: &Progress,
) -> Outcome<BackupMade> {
    let since = boot_now();
    loop {
        tokio::time::sleep(LOOK).await;
        let state = look(session).await.unwrap_or_default();
        if let Some(made) = state.last.filter(|made| made.token == begun.token) {
            return Ok(made);
        }
        if let Some(failed) = state.failed.filter(|failed| failed.token == begun.token) {
            return Err(Failure::failed(format!("the backup on {} does not count: {}", failed.node, failed.why))
                .hint("mend what it says, then begin anew; `mainstay archive status` shows how the log is archived"));
        }
        let passed = boot_now().since(since);
        if let Some(running) = state.running.filter(|running| running.token == begun.token) {
            progress.detail(&going(running.done, running.total, passed.0));
        }
        if passed.0 >= u64::try_from(wait.as_millis()).unwrap_or(u64::MAX) {
            return Err(Failure::not_now(format!(
                "the backup on {} has not come to its end within {} s",
                begun.node,
                wait.as_secs()
            ))
            .hint("it goes on; `mainstay archive status` shows how"));
        }
    }
}

/// How far it is, how fast, and for how long still.
pub(crate) fn going(done: u64, total: u64, passed_ms: u64) -> String {
    if total == 0 {
        return "looking at the files".to_owned();
    }
    if done >= total {
        return format!("{}, waiting for the log", bytes(done));
    }
    let rate = done.saturating_mul(1000) / passed_ms.max(1);
    let left = (total - done).checked_div(rate);
    let left = left.map(|seconds| format!(", {} left", ago(seconds))).unwrap_or_default();
    format!("{} of {} ({} %), {}/s{left}", bytes(done), bytes(total), done.saturating_mul(100) / total, bytes(rate))
}

fn say(made: &BackupMade, global: Global) {
    let verified =
        [format!("every segment of the log from {} to {} was read back from the repository", made.start, made.stop)];
    if global.json {
        output::object(&json!({ "backup": made, "verified": verified }));
        return;
    }
    let kind = if made.incremental { "incremental" } else { "full" };
    let took = made.ended_ms.saturating_sub(made.begun_ms) / 1000;
    output::line(&format!(
        "{} ({kind}): {} of the database, {} in the repository, {}.",
        made.label,
        bytes(made.bytes),
        bytes(made.stored),
        ago(took)
    ));
    if made.corrupt > 0 {
        output::line(&format!("{} blocks were damaged on the server already: see `mainstay verify`.", made.corrupt));
    }
    if !made.removed.is_empty() {
        output::line(&format!("Removed, since nothing keeps them: {}.", made.removed.join(", ")));
    }
    if let Some(remark) = &made.remark {
        output::line(&format!("But: {remark}."));
    }
    output::line(&format!("Verified: {}.", verified.join("; ")));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::examples::{name, node, status};

    #[test]
    fn a_replica_that_no_commit_waits_for_makes_it() {
        let mut all =
            status(vec![node("db1", "primary", true), node("db2", "replica", true), node("db3", "replica", true)]);
        all.nodes[2].sync = false;
        assert_eq!(best(&all), Some(name("db3")));
        all.nodes[2].healthy = false;
        assert_eq!(best(&all), Some(name("db2")));
        all.nodes[1].healthy = false;
        assert_eq!(best(&all), Some(name("db1")));
        all.nodes[0].healthy = false;
        assert_eq!(best(&all), None);
    }

    #[test]
    fn progress_says_how_long_still() {
        assert_eq!(going(0, 0, 10), "looking at the files");
        assert_eq!(going(25 << 20, 100 << 20, 1000), "25 MB of 100 MB (25 %), 25 MB/s, 3 s left");
        assert_eq!(going(5, 5, 0), "5 B, waiting for the log");
    }
}

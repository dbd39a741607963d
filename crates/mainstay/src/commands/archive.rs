//! `mainstay archive`: how far the log is archived; and the key of an encrypted repository.

use crate::cli::{Archive, ArchiveKey, ArchiveStatus, ArchiveVerb, Global};
use crate::client::{decode, nobody, with_advice};
use crate::commands::backup::going;
use crate::failure::{Failure, Outcome};
use crate::output::table::{ago, bytes};
use crate::output::{self, Colour, paint};
use crate::session::Session;
use mainstay_model::status::{Problem, Status};
use mainstay_model::vault::{ArchiveAnswer, ArchiveState, BackupState};
use mainstay_ports::clock::wall_now_ms;
use mainstay_vault::keys::SecretKey;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Runs what was asked for.
///
/// # Errors
/// Why it was not done.
pub(crate) fn run(options: Archive, global: Global) -> Outcome {
    match options.verb {
        ArchiveVerb::Status(options) => super::one_thread(status(options, global)),
        ArchiveVerb::Key(options) => key(&options, global),
    }
}

async fn status(options: ArchiveStatus, global: Global) -> Outcome {
    let session = Session::open(&options.which).await?;
    let (answers, silent) = session.agents.ask_all("/v1/archive").await;
    let told = answers.values().filter_map(decode::<ArchiveAnswer>);
    // Of several members of the store the one that has seen most.
    let rank = |answer: &ArchiveAnswer| answer.state.as_ref().map(|state| (state.term, state.archived_ms));
    let best = told.max_by_key(rank).ok_or_else(|| with_advice(nobody(&silent), &session.target))?;
    let cluster = session.status().await?;
    let problems: Vec<&Problem> = cluster.problems.iter().filter(|found| found.name.starts_with("archive-")).collect();
    let state = best.state.filter(|state| Some(&state.repository) == best.repository.as_ref());
    let lag = state.as_ref().and_then(|state| lag(state, &cluster));
    let mut backup = best.backup.unwrap_or_default();
    forget(&mut backup);
    let elsewhere = elsewhere(&backup, best.repository.as_deref());
    if global.json {
        output::object(&json!({
            "repository": best.repository, "archived": state.as_ref().and_then(|state| state.archived),
            "archived_ms": state.as_ref().and_then(|state| state.archived_ms),
            "term": state.as_ref().map(|state| state.term), "node": state.as_ref().and_then(|state| state.node.clone()),
            "lag_bytes": lag.map(|(bytes, _)| bytes), "lag_segments": lag.map(|(_, segments)| segments),
            "failing": state.as_ref().and_then(|state| state.failing.clone()), "problems": problems,
            "backup": backup, "backup_elsewhere": elsewhere,
            "archive_command": best.archive_command, "command": best.command,
        }));
        return Ok(());
    }
    if let Some(place) = &best.repository {
        output::line(&format!("repository  {place}"));
        show(state.as_ref(), lag);
        show_backups(&backup, elsewhere.as_deref());
    }
    if let Some(command) = &best.archive_command {
        output::line(&format!("command     {command}"));
        show(best.command.as_ref(), best.command.as_ref().and_then(|state| self::lag(state, &cluster)));
    }
    if best.repository.is_none() && best.archive_command.is_none() {
        output::line("Nothing is archived: no repository is named (`mainstay set vault.repository=/a/folder`).");
        return Ok(());
    }
    for problem in problems {
        output::line(&paint(Colour::Red, &format!("{}: {}", problem.name, problem.evidence)));
        output::line(&format!("  {}", problem.hint));
    }
    Ok(())
}

fn show(state: Option<&ArchiveState>, lag: Option<(u64, u64)>) {
    let Some(state) = state else { return output::line("archived    nothing yet") };
    let since = state.archived_ms.map(|at| format!(", {} ago", ago(wall_now_ms().saturating_sub(at) / 1000)));
    let archived = state.archived.map_or_else(|| "nothing yet".to_owned(), |at| at.to_string());
    output::line(&format!("archived    {archived}{}", since.unwrap_or_default()));
    if let Some((behind, segments)) = lag {
        output::line(&format!("waiting     {segments} whole segments, {} in all", bytes(behind)));
    }
    let owner = state.node.as_ref().map(ToString::to_string).unwrap_or_default();
    output::line(&format!("owner       {owner}, term {}", state.term));
    if let Some((since, why)) = &state.failing {
        let since = ago(wall_now_ms().saturating_sub(*since) / 1000);
        output::line(&paint(Colour::Yellow, &format!("not archiving for {since}: {why}")));
    }
}

/// A failure explains why there is no newer backup: one that came before the newest explains nothing.
fn forget(backup: &mut BackupState) {
    let last = backup.last.as_ref().map(|made| made.ended_ms);
    backup.failed.take_if(|failed| last.is_some_and(|ended| ended >= failed.at_ms));
}

/// Where the last backup lies, if that is not the repository in force: nothing can be restored from here then.
fn elsewhere(backup: &BackupState, repository: Option<&str>) -> Option<String> {
    let made = backup.last.as_ref()?;
    (Some(made.repository.as_str()) != repository).then(|| made.repository.clone())
}

fn show_backups(backup: &BackupState, elsewhere: Option<&str>) {
    let now = wall_now_ms();
    let since = |at: u64| ago(now.saturating_sub(at) / 1000);
    match &backup.last {
        None => output::line("backup      none yet: mainstay backup"),
        Some(made) => {
            output::line(&format!("backup      {}, ended {} ago", made.label, since(made.ended_ms)));
            if let Some(place) = elsewhere {
                let says =
                    format!("            in another repository, {place}: none in this one yet (mainstay backup)");
                output::line(&paint(Colour::Yellow, &says));
            }
        }
    }
    super::drill_restore::show(backup);
    if let Some(running) = &backup.running {
        let going = going(running.done, running.total, now.saturating_sub(running.begun_ms));
        let what = if running.drill { "a drill " } else { "" };
        output::line(&format!("running     {what}on {}: {going}", running.node));
    }
    if let Some(failed) = &backup.failed {
        output::line(&paint(
            Colour::Yellow,
            &format!("failed      on {} {} ago: {}", failed.node, since(failed.at_ms), failed.why),
        ));
    }
}

/// What the primary has written and the archive does not hold: bytes, and whole segments.
fn lag(state: &ArchiveState, cluster: &Status) -> Option<(u64, u64)> {
    let primary = cluster.nodes.iter().find(|node| Some(&node.name) == cluster.cluster.primary.as_ref())?;
    let behind = primary.position?.0.saturating_sub(state.archived?.lsn.0);
    Some((behind, behind / state.segment_size.max(1)))
}

fn key(options: &ArchiveKey, global: Global) -> Outcome {
    let file = crate::target::absolute(&options.file)?;
    let mut public = file.clone().into_os_string();
    public.push(".public");
    let public = PathBuf::from(public);
    let secret = SecretKey::generate().map_err(|error| Failure::failed(error.to_string()))?;
    write(&file, &secret.to_text(), 0o600)?;
    // Both or none: a secret key without its word on what it is for would only be in the way of the next attempt.
    write(&public, &format!("{}\n", secret.public().to_text()), 0o644).inspect_err(|_| {
        let _ = std::fs::remove_file(&file);
    })?;
    if global.json {
        output::object(&json!({ "key_file": file, "public": public, "fingerprint": secret.public().fingerprint() }));
        return Ok(());
    }
    output::line(&format!("Made {} (reads and writes) and {} (writes only).", file.display(), public.display()));
    output::line("Without the first one an encrypted repository is lost: keep a copy of it away from these hosts.");
    Ok(())
}

/// A new file, durable before anything is sealed with it; one that is there is never overwritten.
fn write(path: &Path, text: &str, mode: u32) -> Outcome {
    mainstay_net::write_file(path, text.as_bytes(), mode, None, false).map_err(|error| {
        Failure::failed(error.to_string()).hint("nothing was made; name a new file in a directory that is there")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::from_value;

    #[test]
    fn an_old_failure_and_a_backup_elsewhere_are_not_taken_for_how_things_stand() {
        let state = |failed_at: u64| -> BackupState {
            from_value(json!({
                "running": null, "last_full": null,
                "last": {
                    "token": 1, "label": "L", "system": 1, "repository": "/old", "node": "db1", "incremental": false,
                    "start": { "timeline": 1, "lsn": "0/1" }, "stop": { "timeline": 1, "lsn": "0/2" }, "begun_ms": 10, "ended_ms": 20,
                    "bytes": 0, "stored": 0, "corrupt": 0, "removed": [], "remark": null,
                },
                "failed": { "token": 2, "node": "db1", "incremental": false, "at_ms": failed_at, "why": "full" },
            }))
            .unwrap()
        };
        for (at, shown) in [(15, false), (25, true)] {
            let mut state = state(at);
            forget(&mut state);
            assert_eq!(state.failed.is_some(), shown, "{at}");
        }
        assert_eq!(elsewhere(&state(1), Some("/new")).as_deref(), Some("/old"));
        assert_eq!(elsewhere(&state(1), Some("/old")), None);
        let mut none = BackupState { last: None, ..state(1) };
        forget(&mut none);
        assert!(none.failed.is_some() && elsewhere(&none, Some("/new")).is_none());
    }
}

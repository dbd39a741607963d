//! `mainstay archive`: how far the log is archived; and the key of an encrypted repository.

use crate::cli::{Archive, ArchiveKey, ArchiveStatus, ArchiveVerb, Global};
use crate::client::{decode, nobody, with_advice};
use crate::commands::backup::going;
use crate::failure::{Failure, Outcome};
use crate::output::table::{ago, bytes};
use crate::output::{self, Colour, paint};
use crate::session::Session;
use mainstay_model::RepositoryName;
use mainstay_model::status::{Problem, Status};
use mainstay_model::vault::{ArchiveAnswer, ArchiveState, BackupState, BackupsOf};
use mainstay_ports::clock::wall_now_ms;
use mainstay_vault::keys::SecretKey;
use serde_json::{Value, json};
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
    let seen = |state: Option<&ArchiveState>| state.map(|state| (state.term, state.archived_ms));
    let rank = |answer: &ArchiveAnswer| {
        let others = answer.repositories.iter().filter_map(|one| seen(one.state.as_ref())).max();
        (seen(answer.state.as_ref()), others, seen(answer.command.as_ref()))
    };
    let best = told.max_by_key(rank).ok_or_else(|| with_advice(nobody(&silent), &session.target))?;
    let cluster = session.status().await?;
    let problems: Vec<&Problem> = cluster.problems.iter().filter(|found| found.name.starts_with("archive-")).collect();
    let repositories: Vec<Standing> = standings(&best, &cluster);
    let mut backup = best.backup.unwrap_or_default();
    let first = repositories.first();
    let state = first.and_then(|first| first.state.as_ref());
    if repositories.len() < 2 {
        in_force(&mut backup, state);
    }
    forget(&mut backup);
    let elsewhere = if repositories.len() < 2 { elsewhere(&backup, state) } else { None };
    if global.json {
        let lag = first.and_then(|first| first.lag);
        let mut told = json!({
            "repository": best.repository, "archived": state.and_then(|state| state.archived),
            "archived_ms": state.and_then(|state| state.archived_ms),
            "term": state.map(|state| state.term), "node": state.and_then(|state| state.node.clone()),
            "lag_bytes": lag.map(|(bytes, _)| bytes), "lag_segments": lag.map(|(_, segments)| segments),
            "failing": state.and_then(|state| state.failing.clone()), "problems": problems,
            "backup": backup, "backup_elsewhere": elsewhere,
            "archive_command": best.archive_command, "command": best.command,
        });
        if let (true, Some(object)) = (repositories.len() > 1, told.as_object_mut()) {
            object.insert("repositories".to_owned(), repositories.iter().map(|one| one.json(&backup)).collect());
        }
        output::object(&told);
        return Ok(());
    }
    if repositories.is_empty() && best.archive_command.is_none() {
        output::line("Nothing is archived: no repository is named (`mainstay set vault.repository=/a/folder`).");
        return Ok(());
    }
    if !repositories.is_empty() {
        repositories.iter().for_each(|one| one.show(&backup));
        show_backups(&backup, elsewhere.as_deref(), repositories.len() > 1);
    }
    if let Some(command) = &best.archive_command {
        output::line(&format!("command     {command}"));
        show(best.command.as_ref(), best.command.as_ref().and_then(|state| lag(state, &cluster)));
    }
    for problem in problems {
        output::line(&paint(Colour::Red, &format!("{}: {}", problem.name, problem.evidence)));
        output::line(&format!("  {}", problem.hint));
    }
    Ok(())
}

/// How one repository stands.
struct Standing {
    /// By what it is called, where there are several.
    name: Option<RepositoryName>,
    place: String,
    optional: bool,
    /// What was written of this very place.
    state: Option<ArchiveState>,
    /// Bytes and whole segments.
    lag: Option<(u64, u64)>,
}

fn standings(answer: &ArchiveAnswer, cluster: &Status) -> Vec<Standing> {
    let one = |name: Option<RepositoryName>, place: &str, optional: bool, state: &Option<ArchiveState>| {
        let state = state.clone().filter(|state| state.repository == place);
        let lag = state.as_ref().and_then(|state| lag(state, cluster));
        Standing { name, place: place.to_owned(), optional, state, lag }
    };
    if answer.repositories.is_empty() {
        return answer.repository.iter().map(|place| one(None, place, false, &answer.state)).collect();
    }
    let each = answer.repositories.iter();
    each.map(|told| one(Some(told.name.clone()), &told.place, told.optional, &told.state)).collect()
}

impl Standing {
    fn backups(&self, backup: &BackupState) -> Option<BackupsOf> {
        Some(backup.of(self.name.as_ref()?, self.state.as_ref().map(|state| state.id.as_str()), false))
    }

    fn json(&self, backup: &BackupState) -> Value {
        let state = self.state.as_ref();
        let of = self.backups(backup);
        json!({
            "name": self.name, "repository": self.place, "optional": self.optional,
            "archived": state.and_then(|state| state.archived), "archived_ms": state.and_then(|state| state.archived_ms),
            "term": state.map(|state| state.term), "lag_bytes": self.lag.map(|(bytes, _)| bytes),
            "lag_segments": self.lag.map(|(_, segments)| segments),
            "failing": state.and_then(|state| state.failing.clone()),
            "gaps": state.map(|state| state.gaps.clone()).unwrap_or_default(), "backup": of,
        })
    }

    fn show(&self, backup: &BackupState) {
        let optional = if self.optional { " (optional)" } else { "" };
        let name = self.name.as_ref().map(|name| format!("{name}{optional}: ")).unwrap_or_default();
        output::line(&format!("repository  {name}{}", self.place));
        show(self.state.as_ref(), self.lag);
        let Some(of) = self.backups(backup) else { return };
        let now = wall_now_ms();
        match &of.last {
            None => output::line("backup      none in this one yet"),
            Some(made) => {
                let since = ago(now.saturating_sub(made.ended_ms) / 1000);
                output::line(&format!("backup      {}, ended {since} ago", made.label));
            }
        }
    }
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

/// Of the only repository in force the newest backup, which is told also after there were several: the last one of all may lie in another one.
fn in_force(backup: &mut BackupState, state: Option<&ArchiveState>) {
    let Some(id) = state.map(|state| state.id.as_str()) else { return };
    // Backups are found by the repository, whatever it was called.
    let own = backup.of(&RepositoryName::main(), Some(id), false);
    if own.last.is_some() {
        (backup.last, backup.last_full) = (own.last, own.last_full);
    }
}

/// A failure explains why there is no newer backup: one that came before the newest explains nothing.
fn forget(backup: &mut BackupState) {
    let last = backup.last.as_ref().map(|made| made.ended_ms);
    backup.failed.take_if(|failed| last.is_some_and(|ended| ended >= failed.at_ms));
}

/// Which repository holds the last backup, if that is not the one in force: nothing can be restored from here then.
fn elsewhere(backup: &BackupState, state: Option<&ArchiveState>) -> Option<String> {
    let (made, id) = (backup.last.as_ref()?, state.map(|state| state.id.as_str()));
    (Some(made.repository.as_str()) != id).then(|| made.repository.clone())
}

fn show_backups(backup: &BackupState, elsewhere: Option<&str>, several: bool) {
    let now = wall_now_ms();
    let since = |at: u64| ago(now.saturating_sub(at) / 1000);
    match &backup.last {
        // Told with each.
        _ if several => {}
        None => output::line("backup      none yet: mainstay backup"),
        Some(made) => {
            output::line(&format!("backup      {}, ended {} ago", made.label, since(made.ended_ms)));
            if let Some(id) = elsewhere {
                let says = format!("            in another repository ({id}): none in this one yet (mainstay backup)");
                output::line(&paint(Colour::Yellow, &says));
            }
        }
    }
    super::drill_restore::show(backup);
    if let Some(running) = &backup.running {
        let going = going(running.done, running.total, now.saturating_sub(running.begun_ms));
        let what = if running.drill { "a drill " } else { "" };
        let to = running.to.as_ref().map(|name| format!("in {name} ")).unwrap_or_default();
        output::line(&format!("running     {what}{to}on {}: {going}", running.node));
    }
    if let Some(failed) = &backup.failed {
        output::line(&paint(
            Colour::Yellow,
            &format!(
                "failed      {}on {} {} ago: {}",
                failed.to.as_ref().map(|name| format!("in {name} ")).unwrap_or_default(),
                failed.node,
                since(failed.at_ms),
                failed.why
            ),
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
    use mainstay_model::vault::BackupMade;
    use serde_json::from_value;

    #[test]
    fn an_old_failure_and_a_backup_elsewhere_are_not_taken_for_how_things_stand() {
        let state = |failed_at: u64| -> BackupState {
            from_value(json!({
                "running": null, "last_full": null,
                "last": {
                    "token": 1, "label": "L", "system": 1, "repository": "old", "node": "db1", "incremental": false,
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
        let known = |id: &str| ArchiveState { id: id.to_owned(), ..ArchiveState::default() };
        assert_eq!(elsewhere(&state(1), Some(&known("new"))).as_deref(), Some("old"));
        assert_eq!(elsewhere(&state(1), Some(&known("old"))), None);
        let mut none = BackupState { last: None, ..state(1) };
        forget(&mut none);
        assert!(none.failed.is_some() && elsewhere(&none, Some(&known("new"))).is_none());
    }
    #[test]
    fn of_one_repository_that_is_left_of_several_its_own_backup_is_told() {
        let made = |repository: &str, ended_ms: u64| -> BackupMade {
            from_value(json!({
                "token": 1, "label": format!("{repository}-{ended_ms}"), "system": 1, "repository": repository, "node": "db1",
                "incremental": false, "start": { "timeline": 1, "lsn": "0/1" }, "stop": { "timeline": 1, "lsn": "0/2" }, "begun_ms": 1,
                "ended_ms": ended_ms, "bytes": 0, "stored": 0, "corrupt": 0,
            }))
            .unwrap()
        };
        let of =
            |made: BackupMade| BackupsOf { last_full: Some(made.clone()), last: Some(made), ..BackupsOf::default() };
        let mut state =
            BackupState { last: Some(made("far", 9)), last_full: Some(made("far", 9)), ..BackupState::default() };
        for (name, of) in [("main", of(made("near", 5))), ("far", of(made("far", 9)))] {
            state.each.insert(RepositoryName::new(name).unwrap(), of);
        }
        let known = |id: &str| ArchiveState { id: id.to_owned(), ..ArchiveState::default() };
        let told = |id: &str| {
            let mut state = state.clone();
            in_force(&mut state, Some(&known(id)));
            let full = state.last_full.as_ref().map(|made| made.label.clone());
            (state.last.as_ref().map(|made| made.label.clone()), full, elsewhere(&state, Some(&known(id))))
        };
        let label = |text: &str| Some(text.to_owned());
        assert_eq!(told("near"), (label("near-5"), label("near-5"), None));
        assert_eq!(told("far"), (label("far-9"), label("far-9"), None));
        assert_eq!(told("new"), (label("far-9"), label("far-9"), label("far")), "none in this one yet");
    }
}

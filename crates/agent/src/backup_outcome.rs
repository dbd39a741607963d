//! What became of a backup or a restore drill, as it stands in the store and in the history.

use crate::backup_job::{Done, Made};
use crate::restore_drill as drill;
use mainstay_model::RepositoryName;
use mainstay_model::vault::{BackupFailed, BackupMade, BackupRunning, BackupState, DrillDone};
use mainstay_ports::clock::wall_now_ms;
use mainstay_vault::postgres::manifest::Manifest;

const GONE: &str = "its agent ended before it was done";

/// Kind and text of the event. `to`: in which of several repositories.
pub(crate) fn told(result: &Result<Done, String>, drill: bool, to: Option<&RepositoryName>) -> (&'static str, String) {
    let (kind, text) = match result {
        Ok(Done::Made(made)) => ("backup-made", made_text(made)),
        Ok(Done::Drilled(done)) => drill::told(done),
        Err(why) if drill => ("drill-failed", drill::problem(why)),
        Err(why) => ("backup-failed", why.clone()),
    };
    (kind, to.map_or_else(|| text.clone(), |to| format!("{to}: {text}")))
}

/// What was begun came to nothing.
pub(crate) fn give_up(state: &mut BackupState, running: &BackupRunning, why: &str) {
    if running.drill {
        drilled(state, &drill::failed(running, why));
    } else {
        let failed = given_up(running, why);
        if let Some(to) = &running.to {
            state.note(to, |of| of.failed = Some(failed.clone()));
        }
        state.failed = Some(failed);
    }
}

/// Its agent is gone. A drill then showed nothing, bad or good, and is held again.
pub(crate) fn cut_off(state: &mut BackupState, running: &BackupRunning) {
    if running.drill {
        state.drill_cut = Some(drill::failed(running, GONE));
    } else {
        give_up(state, running, GONE);
    }
}

pub(crate) fn drilled(state: &mut BackupState, done: &DrillDone) {
    state.drill_cut = None;
    if done.problem.is_none() {
        state.drill_passed_ms = Some(done.ended_ms);
    }
    if let Some(repository) = &done.repository {
        state.note(repository, |of| of.drill = Some(done.clone()));
    }
    state.drill = Some(done.clone());
}

fn given_up(running: &BackupRunning, why: &str) -> BackupFailed {
    BackupFailed {
        token: running.token,
        node: running.node.clone(),
        incremental: running.incremental,
        to: running.to.clone(),
        at_ms: wall_now_ms(),
        why: why.to_owned(),
    }
}

fn stored(manifest: &Manifest) -> u64 {
    manifest.packs.iter().map(|pack| pack.size).sum()
}

fn made_text(made: &Made) -> String {
    let kind = if made.manifest.base.is_some() { "incremental" } else { "full" };
    let bytes: u64 = made.manifest.files.iter().map(|file| file.size).sum();
    let corrupt = match made.manifest.corrupt.len() {
        0 => String::new(),
        count => format!("; DAMAGED BLOCKS: {count}, the server held them so"),
    };
    let remark = made.remark.as_ref().map(|remark| format!("; {remark}")).unwrap_or_default();
    let (label, stored) = (&made.manifest.label, stored(&made.manifest));
    format!("{label} ({kind}): {bytes} bytes, {stored} in the repository{corrupt}{remark}")
}

pub(crate) fn record(state: &mut BackupState, running: &BackupRunning, made: &Made) {
    let manifest = &made.manifest;
    let entry = BackupMade {
        token: running.token,
        label: manifest.label.clone(),
        system: manifest.system,
        repository: made.repository.clone(),
        to: running.to.clone(),
        node: running.node.clone(),
        incremental: manifest.base.is_some(),
        start: manifest.start,
        stop: manifest.stop,
        begun_ms: running.begun_ms,
        ended_ms: wall_now_ms(),
        bytes: manifest.files.iter().map(|file| file.size).sum(),
        stored: stored(manifest),
        corrupt: manifest.corrupt.len() as u64,
        removed: made.removed.clone(),
        remark: made.remark.clone(),
    };
    if let Some(to) = &running.to {
        state.note(to, |of| {
            if manifest.base.is_none() {
                of.last_full = Some(entry.clone());
            }
            of.last = Some(entry.clone());
        });
    }
    if manifest.base.is_none() {
        state.last_full = Some(entry.clone());
    }
    state.last = Some(entry);
}

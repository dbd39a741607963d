//! `mainstay backups`: what the repository holds, and why; `mainstay verify`: all of it read and checked.

use super::shelf::{Book, Shelf, blocking, tell_passed_over};
use crate::cli::{Backups, Global, Verify};
use crate::failure::{Failure, Outcome};
use crate::output::progress::Progress;
use crate::output::table::{bytes, render};
use crate::output::{self, Colour, paint};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use mainstay_model::vault::BackupState;
use mainstay_model::{RepositoryName, SystemId};
use mainstay_ports::clock::wall_now_ms;
use mainstay_vault::postgres::backup;
use mainstay_vault::postgres::manifest::Manifest;
use mainstay_vault::postgres::restore::time_text;
use mainstay_vault::repository::VaultError;
use mainstay_vault::retention::{self, Policy, Verdict};
use mainstay_vault::verify::verify as verify_all;
use serde_json::{Value, json};

/// What one repository holds.
struct Held {
    name: Option<RepositoryName>,
    place: String,
    system: SystemId,
    all: Vec<Manifest>,
    verdict: Option<Verdict>,
    unreadable: Vec<String>,
}

/// Looks at one. This blocks.
fn held(book: Book) -> Result<Held, VaultError> {
    let Book { repository, system, name, vault } = book;
    let (all, unreadable) = backup::readable(&repository, system)?;
    let unreadable: Vec<String> = unreadable.iter().map(ToString::to_string).collect();
    // A repository that was named comes without the cluster's retention; if none can be read nothing is removed, so there is nothing to say about why
    // one is kept.
    let policy = vault.map(|vault| Policy::of(&vault)).filter(|_| !all.is_empty());
    let now = i64::try_from(wall_now_ms()).unwrap_or(i64::MAX).saturating_mul(1000);
    let verdict = policy.map(|policy| retention::examine(&repository, system, policy, now)).transpose()?;
    Ok(Held { name, place: repository.place(), system, all, verdict, unreadable })
}

/// Lists the backups.
///
/// # Errors
/// When no repository can be read.
pub(crate) async fn list(options: Backups, global: Global) -> Outcome {
    let shelf = Shelf::open(&options.shelf).await?;
    let (books, passed) = shelf.all().await?;
    let all = blocking(move || books.into_iter().map(held).collect::<Result<Vec<Held>, VaultError>>()).await?;
    tell_passed_over(&passed);
    all.iter().for_each(|held| warn(&held.unreadable));
    let drill = drilled(&shelf).await;
    if global.json {
        output::object(&listed(&all, &passed, drill.as_ref()));
        return Ok(());
    }
    for held in &all {
        show(held, options.why);
    }
    drill.iter().filter(|_| all.iter().any(Held::any)).for_each(super::drill_restore::show);
    Ok(())
}

impl Held {
    fn any(&self) -> bool {
        !self.all.is_empty() || !self.unreadable.is_empty()
    }
}

/// As `--json` says it: what stands at the top is of the first one that can be read, and of all of them the backups.
fn listed(all: &[Held], passed: &[String], drill: Option<&BackupState>) -> Value {
    let rows = |held: &Held| held.all.iter().map(|manifest| object(manifest, held)).collect::<Vec<Value>>();
    let unreadable: Vec<&String> = all.iter().flat_map(|held| &held.unreadable).collect();
    let first = all.first();
    let mut told = json!({
        "repository": first.map(|held| &held.place), "system": first.map(|held| held.system),
        "backups": all.iter().flat_map(rows).collect::<Vec<Value>>(), "unreadable": unreadable,
        "drill": drill.and_then(|state| state.drill.as_ref()), "passed_over": passed,
    });
    let named = |held: &Held| json!({ "name": held.name, "repository": held.place, "backups": held.all.len() });
    if let (true, Some(object)) = (all.iter().any(|held| held.name.is_some()), told.as_object_mut()) {
        object.insert("repositories".to_owned(), all.iter().map(named).collect());
    }
    told
}

fn show(held: &Held, with_reasons: bool) {
    if let Some(name) = &held.name {
        output::line(&format!("repository  {name}: {}", held.place));
    }
    if !held.any() {
        let of = held.name.as_ref().map(|name| format!(" --repository {name}")).unwrap_or_default();
        output::line(&format!("{} holds no backup yet: make one with `mainstay backup{of}`.", held.place));
        return;
    }
    let zone = TimeZone::system();
    let rows: Vec<Vec<String>> = held.all.iter().map(|manifest| row(manifest, &zone)).collect();
    let head = ["BACKUP", "KIND", "ENDED", "DATABASE", "STORED", "LOG FROM", "TO"];
    output::line(render(&head, &rows, output::width()).trim_end());
    if with_reasons && held.all.is_empty() {
        output::line("Nothing is removed as long as no backup can be read.");
    } else if with_reasons {
        held.all.iter().for_each(|manifest| output::line(&why(manifest, held.verdict.as_ref())));
    }
}

/// How drills stand, if the cluster can be asked.
async fn drilled(shelf: &Shelf) -> Option<BackupState> {
    super::backup::look(shelf.session.as_ref()?).await
}

/// Says which backups are there and can not be read.
pub(super) fn warn(unreadable: &[String]) {
    for says in unreadable {
        output::errline(&paint(Colour::Yellow, &format!("a backup can not be read: {says}")));
    }
}

fn kind(manifest: &Manifest) -> &'static str {
    if manifest.base.is_some() { "incremental" } else { "full" }
}

fn sizes(manifest: &Manifest) -> (u64, u64) {
    (manifest.files.iter().map(|file| file.size).sum(), manifest.packs.iter().map(|pack| pack.size).sum())
}

fn row(manifest: &Manifest, zone: &TimeZone) -> Vec<String> {
    let ended = Timestamp::from_microsecond(manifest.ended).map(|at| at.to_zoned(zone.clone()));
    let (size, stored) = sizes(manifest);
    vec![
        manifest.label.clone(),
        kind(manifest).to_owned(),
        ended.map_or_else(|_| "-".to_owned(), |at| at.strftime("%Y-%m-%d %H:%M:%S").to_string()),
        bytes(size),
        bytes(stored),
        manifest.start.to_string(),
        manifest.stop.to_string(),
    ]
}

fn reasons(manifest: &Manifest, verdict: Option<&Verdict>) -> Vec<String> {
    verdict.and_then(|verdict| verdict.kept.get(&manifest.label)).cloned().unwrap_or_default()
}

fn why(manifest: &Manifest, verdict: Option<&Verdict>) -> String {
    let reasons = reasons(manifest, verdict);
    match (verdict, reasons.as_slice()) {
        (None, _) => format!("{}: only a cluster's file says what is kept", manifest.label),
        (_, []) => format!("{}: nothing keeps it; the next backup removes it", manifest.label),
        (_, reasons) => format!("{}: {}", manifest.label, reasons.join("; ")),
    }
}

fn object(manifest: &Manifest, held: &Held) -> Value {
    let (size, stored) = sizes(manifest);
    let mut told = json!({
        "label": manifest.label, "kind": kind(manifest), "base": manifest.base.as_ref().map(|base| &base.label),
        "began": time_text(manifest.began), "ended": time_text(manifest.ended), "bytes": size, "stored": stored,
        "start": manifest.start, "stop": manifest.stop, "version": manifest.server.version,
        "replica": manifest.server.replica, "corrupt": manifest.corrupt, "kept": reasons(manifest, held.verdict.as_ref()),
    });
    if let (Some(name), Some(object)) = (&held.name, told.as_object_mut()) {
        object.insert("repository".to_owned(), json!(name));
    }
    told
}

/// Reads everything and says what can be restored.
///
/// # Errors
/// When something is wrong, or the repository can not be read.
pub(crate) async fn verify(options: Verify, global: Global) -> Outcome {
    if options.drill {
        return super::drill_restore::run(&options, global).await;
    }
    let shelf = Shelf::open(&options.shelf).await?;
    let (book, passed) = shelf.first().await?;
    tell_passed_over(&passed);
    let drill = drilled(&shelf).await;
    let (repository, system) = (book.repository.clone(), book.system);
    let mut progress = Progress::new();
    let place = book.name.as_ref().map_or_else(|| repository.place(), |name| format!("{name}: {}", repository.place()));
    progress.step(&format!("Reading everything in {place}"));
    let report = blocking(move || verify_all(&repository, system)).await.inspect_err(|_| progress.fail())?;
    progress.finish(&format!("{} objects", report.objects));
    let window = report.window.map(|(from, to)| json!({ "from": time_text(from), "to": to }));
    if report.problems.is_empty() {
        if global.json {
            let good: Vec<&String> = report.good.iter().map(|(label, _)| label).collect();
            output::object(
                &json!({ "system": system, "good": good, "objects": report.objects, "window": window, "problems": [],
                    "repository": book.repository.place(), "repository_name": book.name, "passed_over": passed,
                    "drill": drill.as_ref().and_then(|state| state.drill.as_ref()) }),
            );
            return Ok(());
        }
        output::line(&format!("{} backups are whole.", report.good.len()));
        if let Some((from, to)) = report.window {
            output::line(&format!("Every moment from {} on can be restored, up to {to} of the log.", time_text(from)));
        }
        drill.iter().for_each(super::drill_restore::show);
        return Ok(());
    }
    for problem in &report.problems {
        output::errline(&paint(Colour::Red, problem));
    }
    for (label, ended) in &report.good {
        output::errline(&format!("whole: {label}, ended {}", time_text(*ended)));
    }
    Err(Failure::failed(format!(
        "{} things are wrong in the repository{}: {}",
        report.problems.len(),
        book.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default(),
        report.problems.join("; ")
    ))
    .hint("make a new full backup now; what is damaged is named above"))
}

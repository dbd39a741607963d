//! `mainstay backups`: what the repositories hold, and why; `mainstay verify`: all of it read and checked.

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
use mainstay_vault::verify::{Report, verify as verify_all};
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

/// What a look at each gives, and why some can not be read: of several one that breaks after it was opened costs the others nothing. `Err`: all do.
fn each<T>(
    books: Vec<Book>,
    several: bool,
    look: impl Fn(Book) -> Result<T, VaultError>,
) -> Result<(Vec<T>, Vec<String>), VaultError> {
    let (mut all, mut unread) = (Vec::new(), Vec::new());
    for book in books {
        let name = book.name.clone().filter(|_| several);
        match (look(book), name) {
            (Ok(found), _) => all.push(found),
            (Err(error), Some(name)) => unread.push(format!("{name}: {error}")),
            (Err(error), None) => return Err(error),
        }
    }
    if all.is_empty() { Err(VaultError::Server(unread.join("; "))) } else { Ok((all, unread)) }
}

/// Lists the backups.
///
/// # Errors
/// When no repository can be read.
pub(crate) async fn list(options: Backups, global: Global) -> Outcome {
    let shelf = Shelf::open(&options.shelf).await?;
    let (books, mut passed) = shelf.all().await?;
    tell_passed_over(&passed);
    let several = shelf.several();
    let (all, unread) = blocking(move || each(books, several, held)).await?;
    tell_passed_over(&unread);
    passed.extend(unread);
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

/// What was read of one repository.
struct Looked {
    name: Option<RepositoryName>,
    place: String,
    system: SystemId,
    report: Report,
}

/// Reads everything in each repository and says what can be restored.
///
/// # Errors
/// When something is wrong, or one of them can not be read: that the others are whole says nothing of it.
pub(crate) async fn verify(options: Verify, global: Global) -> Outcome {
    if options.drill {
        return super::drill_restore::run(&options, global).await;
    }
    let shelf = Shelf::open(&options.shelf).await?;
    let (books, mut unread) = shelf.all().await?;
    let drill = drilled(&shelf).await;
    let (mut progress, mut all) = (Progress::new(), Vec::new());
    for book in books {
        match read(book, &mut progress).await {
            Ok(looked) => all.push(looked),
            Err((place, failure)) if shelf.several() => unread.push(format!("{place}: {}", failure.error)),
            Err((_, failure)) => return Err(failure),
        }
    }
    let wrong = wrong(&all, &unread);
    if wrong.is_none() && global.json {
        output::object(&verified(&all, drill.as_ref()));
        return Ok(());
    }
    if !global.json {
        all.iter().for_each(tell);
    }
    if let Some(failure) = wrong {
        return Err(failure);
    }
    drill.iter().for_each(super::drill_restore::show);
    Ok(())
}

/// Reads one; else says which.
async fn read(book: Book, progress: &mut Progress) -> Result<Looked, (String, Failure)> {
    let Book { repository, system, name, .. } = book;
    let place = repository.place();
    let shown = name.as_ref().map_or_else(|| place.clone(), |name| format!("{name}: {place}"));
    progress.step(&format!("Reading everything in {shown}"));
    let report = blocking(move || verify_all(&repository, system)).await.map_err(|failure| {
        progress.fail();
        (name.as_ref().map_or_else(|| place.clone(), ToString::to_string), failure)
    })?;
    progress.finish(&format!("{} objects", report.objects));
    Ok(Looked { name, place, system, report })
}

fn tell(looked: &Looked) {
    let (report, of) = (&looked.report, looked.name.as_ref().map(|name| format!("{name}: ")).unwrap_or_default());
    if report.problems.is_empty() {
        let whole = if report.good.len() == 1 { "backup is" } else { "backups are" };
        output::line(&format!("{of}{} {whole} whole.", report.good.len()));
        if let Some((from, to)) = report.window {
            let from = time_text(from);
            output::line(&format!("{of}Every moment from {from} on can be restored, up to {to} of the log."));
        }
        return;
    }
    for problem in &report.problems {
        output::errline(&paint(Colour::Red, &format!("{of}{problem}")));
    }
    for (label, ended) in &report.good {
        output::errline(&format!("{of}whole: {label}, ended {}", time_text(*ended)));
    }
}

/// The end, unless everything in every repository is whole.
fn wrong(all: &[Looked], unread: &[String]) -> Option<Failure> {
    let named = |looked: &Looked| looked.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
    let bad: Vec<&Looked> = all.iter().filter(|looked| !looked.report.problems.is_empty()).collect();
    let damaged = bad.iter().map(|looked| {
        let (problems, of) = (&looked.report.problems, named(looked));
        format!("{} things are wrong in the repository{of}: {}", problems.len(), problems.join("; "))
    });
    let unread = unread.iter().map(|says| format!("not everything was read: {says}"));
    let says: Vec<String> = damaged.chain(unread).collect();
    if says.is_empty() {
        return None;
    }
    let hint = match bad.iter().find_map(|looked| looked.name.as_ref()) {
        _ if bad.is_empty() => {
            "mend what it says and verify again: what the others hold does not show that this one is whole".to_owned()
        }
        Some(name) => format!(
            "make a new full backup in what is damaged now (`mainstay backup --repository {name}`); it is named above"
        ),
        None => "make a new full backup now; what is damaged is named above".to_owned(),
    };
    Some(Failure::failed(says.join("; ")).hint(hint))
}

/// As `--json` says it: what stands at the top is of the first one.
fn verified(all: &[Looked], drill: Option<&BackupState>) -> Value {
    let one = |looked: &Looked| {
        let good: Vec<&String> = looked.report.good.iter().map(|(label, _)| label).collect();
        let window = looked.report.window.map(|(from, to)| json!({ "from": time_text(from), "to": to }));
        json!({
            "system": looked.system, "good": good, "objects": looked.report.objects, "window": window, "problems": [],
            "repository": looked.place, "repository_name": looked.name,
        })
    };
    let mut told = all.first().map(one).unwrap_or_default();
    if let Some(object) = told.as_object_mut() {
        object.insert("passed_over".to_owned(), json!([]));
        object.insert("drill".to_owned(), json!(drill.and_then(|state| state.drill.as_ref())));
        if all.len() > 1 {
            object.insert("repositories".to_owned(), all.iter().map(one).collect());
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_vault::objects;
    use mainstay_vault::repository::Repository;

    fn name(text: &str) -> RepositoryName {
        RepositoryName::new(text).unwrap()
    }

    fn looked(called: Option<&str>, problems: &[&str]) -> Looked {
        let problems = problems.iter().map(|says| (*says).to_owned()).collect();
        let report = Report { problems, ..Report::default() };
        Looked { name: called.map(name), place: "/v".to_owned(), system: SystemId(1), report }
    }

    #[test]
    fn one_that_breaks_after_it_was_opened_costs_the_others_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let books = |names: &[Option<&str>]| -> Vec<Book> {
            let repository = |at: usize| {
                let objects = objects::make(&dir.path().join(at.to_string())).unwrap();
                if Repository::is_in(&*objects).unwrap() {
                    return Repository::open(objects, None).unwrap();
                }
                Repository::create(objects, &[]).unwrap()
            };
            let book = |(at, called): (usize, &Option<&str>)| Book {
                repository: repository(at),
                system: SystemId(1),
                name: called.map(name),
                vault: None,
            };
            names.iter().enumerate().map(book).collect()
        };
        let look = |bad: &'static str| {
            move |book: Book| match book.name {
                Some(name) if name.as_str() == bad || bad == "all" => Err(VaultError::Damaged("broken".into())),
                None => Err(VaultError::Damaged("broken".into())),
                Some(name) => Ok(name.to_string()),
            }
        };
        let both = [Some("near"), Some("far")];
        let (found, unread) = each(books(&both), true, look("near")).unwrap();
        assert_eq!((found, unread.len()), (vec!["far".to_owned()], 1));
        assert!(unread[0].starts_with("near: damaged: broken"), "{unread:?}");
        let error = each(books(&both), true, look("all")).unwrap_err().to_string();
        assert!(error.contains("near: damaged: ") && error.contains("; far: damaged: "), "{error}");
        for one in [None, Some("near")] {
            assert!(
                matches!(each(books(&[one]), false, look("near")), Err(VaultError::Damaged(_))),
                "as it is with one"
            );
        }
        // The only one that could be opened of several is named, too.
        let error = each(books(&[Some("far")]), true, look("far")).unwrap_err().to_string();
        assert!(error.contains("far: damaged: broken"), "{error}");
    }

    #[test]
    fn verify_ends_well_only_if_every_repository_was_read_and_is_whole() {
        let (near, far) = (looked(Some("near"), &[]), looked(Some("far"), &["a pack is gone"]));
        assert_eq!(wrong(&[looked(None, &[])], &[]), None);
        assert_eq!(wrong(&[looked(Some("near"), &[]), looked(Some("far"), &[])], &[]), None);
        let failure = wrong(&[near], &["far: away".to_owned()]).unwrap();
        assert_eq!((failure.status, failure.error.as_str()), (1, "not everything was read: far: away"));
        let failure = wrong(&[looked(Some("near"), &[]), far], &[]).unwrap();
        assert_eq!(failure.error, "1 things are wrong in the repository far: a pack is gone");
        assert!(failure.hint.unwrap().contains("`mainstay backup --repository far`"));
        let failure = wrong(&[looked(None, &["a", "b"])], &[]).unwrap();
        assert_eq!(failure.error, "2 things are wrong in the repository: a; b");
        let told = verified(&[looked(Some("near"), &[]), looked(Some("far"), &[])], None);
        assert!(told["repository_name"] == "near" && told["repositories"][1]["repository_name"] == "far", "{told}");
        assert!(verified(&[looked(None, &[])], None).get("repositories").is_none());
    }
}

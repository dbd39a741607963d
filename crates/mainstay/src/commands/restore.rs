//! `mainstay restore`: a copy of the database as it was at a moment, in a new directory beside the cluster, recovered and checked.

use super::backups::warn;
use super::copy_files::write;
use super::restore_room::Room;
use super::shelf::{Place, Shelf, blocking, failure, none_serves, passed_over, tell_passed_over};
use crate::cli::{self, Global, Restore};
use crate::client::decode;
use crate::failure::{Failure, NOT_NOW, Outcome};
use crate::local::{
    engine, place,
    user::{self, User},
};
use crate::moment;
use crate::output::progress::Progress;
use crate::output::table::bytes;
use crate::output::{self, Colour, confirm, paint};
use crate::session::Session;
use crate::target::{self, absolute};
use jiff::Timestamp;
use mainstay_model::vault::{ArchiveAnswer, ArchiveState, SegmentEnded};
use mainstay_model::{Lsn, Position, SystemId, Timeline};
use mainstay_ports::clock::boot_now;
use mainstay_vault::postgres::delta::{copy_at, is_begun};
use mainstay_vault::postgres::restore::{Destination, Plan, Restored, Target, check_path, plan_from, time_text};
use mainstay_vault::postgres::scratch::{Scratch, tell_to_stop};
use mainstay_vault::postgres::several::{Chosen, Elsewhere, choose};
use mainstay_vault::repository::{Repository, VaultError};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the open segment may take to come to the archive.
const SEGMENT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(300);
/// How long the server of a recovery that was ended may take to stop.
const STOP: Duration = Duration::from_secs(60);

/// Restores.
///
/// # Errors
/// When the moment can not be had (the nearest one is named), the directory is not empty, or the recovery fails.
pub(crate) async fn run(options: Restore, global: Global) -> Outcome {
    let target = target(&options)?;
    let Some(to) = &options.to else { return super::restore_in_place::run(options, target, global).await };
    let data = place_of(to)?;
    let old = if options.delta { Some(copy_of(&data)?) } else { check_place(&data).map(|()| None)? };
    let owner = user::server_user()?;
    if !options.files_only {
        check_server(&data, owner.as_ref())?;
    }
    let shelf = Shelf::open(&options.shelf).await?;
    check_apart(&data, &taken(&shelf, &options.shelf)?, options.delta)?;
    let mut progress = Progress::new();
    let (choice, known) = planned(&shelf, (&target, &options), (&data, old), &mut progress).await?;
    let made = &choice.made;
    warn(&made.unreadable);
    tell_passed_over(&choice.passed);
    // Found before anything is written.
    let bin = if options.files_only { None } else { Some(programs(&shelf, made)?) };
    progress.say(&choice.place.says(&words(made, &data)));
    confirm(
        global.yes,
        if options.delta {
            "Bring the copy there to this moment? What it holds else is lost; the cluster is not touched."
        } else {
            "Make this copy? The cluster is not touched."
        },
    )?;
    let restored = files(&shelf, &choice, (&data, options.delta), &mut progress).await?;
    let end = match &bin {
        Some(bin) => Some(recover(bin, (made, known.complete), &data, &options, &mut progress).await?),
        None => None,
    };
    say(global, (&choice, known.open), &data, (&restored, end.as_ref()), bin.as_deref());
    Ok(())
}

/// What is known of the end of the archive.
#[derive(Clone, Copy, Default)]
struct Known {
    /// It holds all that was committed up to now.
    complete: bool,
    /// The open segment came to it; `None`: nobody was asked for it.
    open: Option<bool>,
}

/// From which repository a copy comes, and how.
struct Choice {
    place: Place,
    repository: Repository,
    made: Plan,
    /// Where else something may lie that is damaged there.
    elsewhere: Elsewhere,
    /// Why others were passed over.
    passed: Vec<String>,
}

/// The plan of the first repository that has the moment; `Err`: what is not archived yet.
async fn plans(shelf: &Shelf, target: &Target, options: &Restore) -> Outcome<Result<Choice, String>> {
    let later = matches!(target, Target::Time(at) if *at > Timestamp::now().as_microsecond());
    let (timeline, target, backup) = (options.timeline.map(Timeline), target.clone(), options.backup.clone());
    let (places, wanted) = shelf.places();
    let (mut others, more) = (places.clone(), shelf.others());
    let work = move || {
        let (chosen, passed) = choose(places.len(), &target, |at| {
            let none = || VaultError::Impossible("there is no repository".to_owned());
            let (target, backup) = (target.clone(), backup.clone());
            places.get(at).ok_or_else(none)?.ask(places.len() > 1, wanted, move |(repository, system)| {
                let made = plan_from(&repository, system, target, timeline, backup.as_deref())?;
                Ok((repository, made))
            })
        });
        let chosen = chosen.and_then(|chosen| Some((places.get(chosen.at)?.clone(), chosen)));
        let Some((place, Chosen { at, repository, plan: made })) = chosen else {
            return match none_serves(&places, passed) {
                VaultError::NotArchived(says) if !later => Ok(Err(says)),
                error => Err(error),
            };
        };
        others.remove(at);
        others.extend(more);
        let elsewhere = elsewhere(others, wanted);
        Ok(Ok(Choice { place, repository, made, elsewhere, passed: passed_over(&places, &passed) }))
    };
    blocking(work).await
}

/// The other repositories, opened only if something is damaged in the one that was taken.
fn elsewhere(places: Vec<Place>, wanted: Option<SystemId>) -> Elsewhere {
    places.into_iter().fold(Elsewhere::default(), |all, place| {
        let at = place.place.clone();
        all.and(&at, move || Ok(place.look(wanted)?.0))
    })
}

/// Shows that it is looked for in several repositories, of which one may take its time.
async fn looking<T>(shelf: &Shelf, progress: &mut Progress, plans: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    if !shelf.several() {
        return plans.await;
    }
    progress.step("Looking for the moment in the repositories");
    let found = plans.await;
    match &found {
        Ok(_) => progress.finish("done"),
        Err(_) => progress.fail(),
    }
    found
}

/// The plan with all that was committed up to now in the archive, for which there is room; and whether that is certain. `old`: of which database the
/// copy is that lies there.
async fn planned(
    shelf: &Shelf,
    (target, options): (&Target, &Restore),
    (data, old): (&Path, Option<SystemId>),
    progress: &mut Progress,
) -> Outcome<(Choice, Known)> {
    let mut room = Room::at(data, options.delta);
    let mut fits = |choice: &Choice| {
        old.map_or(Ok(()), |is| check_copy(data, is, choice.made.base.system))?;
        room.check(&choice.made)
    };
    let not_yet = |says: String| failure(&VaultError::NotArchived(says));
    let Some(session) = shelf.session.as_ref().filter(|_| *target != Target::Immediate) else {
        let choice = looking(shelf, progress, plans(shelf, target, options)).await?.map_err(not_yet)?;
        return fits(&choice).map(|()| (choice, Known::default()));
    };
    // Before the primary ends a segment for nothing.
    if let Ok(choice) = looking(shelf, progress, plans(shelf, target, options)).await? {
        if !options.files_only {
            programs(shelf, &choice.made)?;
        }
        fits(&choice)?;
    }
    let ended = end_segment(session, progress).await;
    let choice = plans(shelf, target, options).await?.map_err(not_yet)?;
    fits(&choice)?;
    let whole = |ended: &Ended| choice.made.reaches >= ended.end;
    // Where another timeline was left says nothing of when.
    let complete = ended.is_some_and(|ended| ended.timeline == choice.made.timeline && whole(&ended));
    // Of several the one that is taken may be behind.
    let open = ended.is_some_and(|ended| !shelf.several() || ended.timeline != choice.made.timeline || whole(&ended));
    Ok((choice, Known { complete, open: Some(open) }))
}

fn target(options: &Restore) -> Outcome<Target> {
    Ok(if let Some(text) = &options.time {
        Target::Time(moment::here(text).map_err(|why| Failure::usage(format!("--time {why}")))?)
    } else if let Some(lsn) = options.lsn {
        Target::Position(lsn)
    } else if let Some(name) = &options.restore_point {
        let target = Target::Name(name.clone());
        target.check().map_err(|why| Failure::usage(format!("--restore-point: {why}")))?;
        target
    } else if let Some(id) = options.transaction {
        Target::Transaction(id)
    } else if options.immediate {
        Target::Immediate
    } else {
        Target::Latest
    })
}

/// Where a copy is to be: a path that its server can do with.
pub(super) fn place_of(to: &Path) -> Outcome<PathBuf> {
    let data = absolute(to)?;
    let unfit =
        |error: VaultError| Failure::usage(error.to_string()).hint("name another directory; nothing was changed");
    check_path(&data).map(|()| data).map_err(unfit)
}

/// Nothing is ever written over what is there.
fn check_place(data: &Path) -> Outcome {
    match std::fs::read_dir(data).map(|entries| entries.count()) {
        Ok(1..) => Err(Failure::usage(format!("{} is not empty", data.display()))
            .hint("name a directory that does not exist yet; nothing was changed")),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::usage(format!("{}: {error}", data.display()))),
    }
}

/// Of which database a directory is a copy.
fn copy_of(data: &Path) -> Outcome<SystemId> {
    copy_at(data).map_err(|error| {
        Failure::usage(error.to_string())
            .hint("without --delta a new copy is made in a directory that is not there yet; nothing was changed")
    })
}

/// Nothing is written over the copy of another database.
fn check_copy(data: &Path, is: SystemId, system: SystemId) -> Outcome {
    if is == system {
        return Ok(());
    }
    Err(Failure::usage(format!("{} is a copy of the database {is}, and the repository's is {system}", data.display()))
        .hint(
            "name a copy of this database, or a directory that is not there yet without --delta; nothing was changed",
        ))
}

/// The directories that belong to the repository and to the cluster's nodes.
pub(super) fn taken(shelf: &Shelf, options: &cli::Shelf) -> Outcome<Vec<PathBuf>> {
    let named = options.repository.as_deref().map(absolute).transpose()?;
    // With a repository that is named no cluster is needed, and yet one may be on this host.
    let found = target::Target::find(&options.which).ok();
    let spec = shelf.spec.clone().or_else(|| found.as_ref().map(|found| found.spec.clone()));
    let nodes = spec.iter().flat_map(|spec| spec.nodes.iter().map(|node| spec.node_dir(node)));
    // What lies beside the file of a cluster on this machine goes with it.
    let whole = found.iter().map(|found| found.layout.dir().to_owned());
    let places = spec.iter().flat_map(|spec| spec.vault.each()).map(|table| table.place);
    Ok(nodes.chain(whole).chain(places).chain(named).collect())
}

/// The path without links, as far as it is there.
fn settled(path: &Path) -> PathBuf {
    let there = path.ancestors().find_map(|above| Some((above.canonicalize().ok()?, path.strip_prefix(above).ok()?)));
    there.map_or_else(|| path.to_owned(), |(above, rest)| above.components().chain(rest.components()).collect())
}

/// A copy inside the cluster or the repository would be taken for a part of it: backed up, archived, or removed with it.
pub(super) fn check_apart(data: &Path, taken: &[PathBuf], delta: bool) -> Outcome {
    let refuse = |says: String| {
        Err(Failure::usage(says)
            .hint("name a directory outside of clusters and repositories, for example below /srv; nothing was changed"))
    };
    let place = settled(data);
    if let Some(whose) = taken.iter().find(|whose| place.starts_with(settled(whose))) {
        return refuse(format!("{} lies in {}, which the cluster uses", data.display(), whose.display()));
    }
    for above in place.ancestors() {
        for (mark, what) in [("PG_VERSION", "a database's directory"), ("vault.json", "a repository")] {
            // An old copy is a database's directory itself.
            let itself = delta && above == place && mark == "PG_VERSION";
            if !itself && above.join(mark).symlink_metadata().is_ok() {
                return refuse(format!("{} lies in {}, which is {what}", data.display(), above.display()));
            }
        }
    }
    Ok(())
}

/// A server must get there, and its socket must have room.
pub(super) fn check_server(data: &Path, owner: Option<&User>) -> Outcome {
    place::check_reachable(data, owner).map_err(|failure| {
        failure.hint("name another directory with --to, for example below /srv; nothing was changed")
    })?;
    let socket = data.join("mainstay_run/.s.PGSQL.5432");
    let over = socket.as_os_str().len().saturating_sub(place::SOCKET_PATH_MOST);
    if over == 0 {
        return Ok(());
    }
    let says = format!("the path {} is {over} bytes too long: a Unix socket below it would not fit", data.display());
    Err(Failure::usage(says).hint("name a shorter directory with --to, or write the files only: --files-only"))
}

/// What the primary has ended, and brought to the archive.
#[derive(Clone, Copy)]
pub(super) struct Ended {
    /// On this timeline.
    pub(super) timeline: Timeline,
    /// What was committed before lies before this.
    pub(super) end: Lsn,
}

/// What was committed a moment ago lies in a segment that is still open: the primary ends it, and it is waited until it is archived, in each repository
/// to which anything can be brought. A cluster that can not be asked is no reason to stop: then the archive is what there is. Says up to where all is
/// archived now in one of them at least, if it is known.
pub(super) async fn end_segment(session: &Session, progress: &mut Progress) -> Option<Ended> {
    progress.step("Archiving the open segment of the log");
    let ended = session.post_any("/v1/archive", &json!({})).await.ok();
    let Some(ended) = ended.and_then(|body| serde_json::from_value::<SegmentEnded>(body).ok()) else {
        progress.finish("nobody can be asked: what is archived counts");
        return None;
    };
    // What an earlier primary archived beyond the place where its timeline was left says nothing of this one's.
    let ours = |at: &Position| ended.timeline.is_none_or(|timeline| at.timeline == timeline);
    let there = |state: &ArchiveState| state.archived.filter(ours).is_some_and(|at| at.lsn >= ended.end);
    let (since, mut any) = (boot_now(), false);
    while boot_now().since(since).0 < u64::try_from(SEGMENT.as_millis()).unwrap_or(u64::MAX) {
        let (answers, _) = session.agents.ask_all("/v1/archive").await;
        let told: Vec<Vec<ArchiveState>> = answers.values().filter_map(decode::<ArchiveAnswer>).map(states).collect();
        any = told.iter().flatten().any(there);
        // One that fails now does not hold up the others.
        let all = |states: &Vec<ArchiveState>| states.iter().all(|state| there(state) || state.failing.is_some());
        if any && told.iter().any(|states| states.iter().any(there) && all(states)) {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    if !any {
        progress.finish("it is not there yet: what is archived counts");
        return None;
    }
    progress.finish(&format!("up to {}", ended.end));
    ended.timeline.map(|timeline| Ended { timeline, end: ended.end })
}

/// How the archive stands in each repository.
fn states(answer: ArchiveAnswer) -> Vec<ArchiveState> {
    if answer.repositories.is_empty() {
        return answer.state.into_iter().collect();
    }
    answer.repositories.into_iter().filter_map(|repository| repository.state).collect()
}

/// The server's programs, of the version that the backup is of.
fn programs(shelf: &Shelf, made: &Plan) -> Outcome<PathBuf> {
    let wanted = shelf.spec.as_ref().and_then(|spec| spec.postgres.bin_dir.clone());
    let major = made.base.server.version / 10_000;
    programs_of(major, wanted).map_err(|failure| match failure.status {
        NOT_NOW => failure.hint(format!("install PostgreSQL {major} here, or write the files only: --files-only")),
        _ => failure,
    })
}

/// The same for a major version, in this directory if one is named.
pub(super) fn programs_of(major: u32, wanted: Option<PathBuf>) -> Outcome<PathBuf> {
    let standard = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
    let standard = standard.join("postgres").is_file().then_some(standard);
    let found = engine::find(wanted.or(standard).as_deref())?;
    if found.major == major {
        return Ok(found.bin_dir);
    }
    Err(Failure::not_now(format!("the backup is of PostgreSQL {major}, and this host has {}", found.major))
        .hint(format!("install PostgreSQL {major} here")))
}

/// A moment as people name it.
pub(super) fn named(target: &Target) -> String {
    match target {
        Target::Latest => "the latest moment".to_owned(),
        Target::Immediate => "the end of the backup".to_owned(),
        Target::Time(time) => time_text(*time),
        Target::Position(lsn) => format!("position {lsn}"),
        Target::Name(name) => format!("the restore point {name:?}"),
        Target::Transaction(id) => format!("transaction {id}"),
    }
}

fn words(made: &Plan, data: &Path) -> String {
    let moment = named(&made.target);
    format!(
        "{} as of {moment}, on timeline {}: from the backup {} ({}), and {} of the log up to {}",
        data.display(),
        made.timeline,
        made.base.label,
        bytes(made.files()),
        bytes(made.log_bytes()),
        made.reaches
    )
}

async fn files(
    shelf: &Shelf,
    choice: &Choice,
    (data, delta): (&Path, bool),
    progress: &mut Progress,
) -> Outcome<Restored> {
    let made = &choice.made;
    let owner = user::server_user()?.map(|user| (user.uid, user.gid));
    let to = Destination {
        data: data.to_owned(),
        owner,
        delta,
        elsewhere: choice.elsewhere.clone(),
        ..Destination::default()
    };
    let done = write(choice.repository.clone(), made.clone(), to, progress).await.map_err(|failure| {
        if !is_begun(data) {
            return failure;
        }
        failure.hint(format!(
            "what was written stays in {}: no server starts there. Go on with --delta, or remove it; is the backup {} damaged, take an older one \
             (--backup, `mainstay backups`){}",
            data.display(),
            made.base.label,
            if shelf.several() { ", or take it from another repository (--repository NAME)" } else { "" }
        ))
    })?;
    let kept = if delta { format!(", {} were there", bytes(done.kept)) } else { String::new() };
    let healed = match done.healed {
        0 => String::new(),
        count => format!(", {count} files of it from another repository: damaged or missing in this one"),
    };
    progress.finish(&format!("{} and {} segments of the log{healed}{kept}", bytes(done.written), done.log));
    Ok(done)
}

/// What came of the recovery.
struct Recovered {
    /// The copy's log ends here.
    end: Lsn,
    /// The answer to the query.
    rows: Option<Vec<Vec<Option<String>>>>,
}

/// Lets a server recover the copy, ask it, and stop it again.
async fn recover(
    bin: &Path,
    (made, complete): (&Plan, bool),
    data: &Path,
    options: &Restore,
    progress: &mut Progress,
) -> Outcome<Recovered> {
    progress.step("Recovering");
    let owner = user::server_user()?.map(|user| (user.uid, user.gid));
    let result = async {
        let wait = Duration::from_secs(options.wait);
        let (scratch, _) = Scratch::start_or_latest(bin, made, data, owner, (wait, None), complete).await?;
        let end = scratch.reached().await;
        let rows = match &options.sql {
            Some(query) => scratch.ask(&options.database, query).await.map(Some),
            None => Ok(None),
        };
        scratch.stop().await?;
        Ok(Recovered { end: end?, rows: rows? })
    };
    let stays =
        format!("what was written stays in {}; the same command with --delta goes on from there", data.display());
    let mut result = std::pin::pin!(result);
    let done: Outcome<Recovered> = tokio::select! {
        done = &mut result => done.map_err(|error: VaultError| failure(&error)),
        ended = super::end_signal() => {
            // Its server ends with it, and in order: it would hold the directory, also by what it leaves there.
            tell_to_stop(data);
            drop(tokio::time::timeout(STOP, &mut result).await);
            Err(ended.err().unwrap_or_else(|| Failure::failed("ended before the copy was recovered")))
        }
    };
    let end = done.map_err(|error| error.hint(stays));
    let end = end.inspect_err(|_| progress.fail())?;
    progress.finish(&format!("up to {}", end.end));
    Ok(end)
}

fn say(
    global: Global,
    (choice, open): (&Choice, Option<bool>),
    data: &Path,
    (restored, recovered): (&Restored, Option<&Recovered>),
    bin: Option<&Path>,
) {
    let made = &choice.made;
    let end = recovered.map(|recovered| recovered.end);
    let rows = recovered.and_then(|recovered| recovered.rows.as_ref());
    let verified = end.map(|end| format!("a server recovered it up to {end} and opened it"));
    if global.json {
        output::object(&json!({
            "to": data, "backup": made.base.label, "timeline": made.timeline, "bytes": restored.written, "kept": restored.kept,
            "segments": restored.log, "end": end, "rows": rows, "verified": verified.iter().collect::<Vec<_>>(),
            "open_segment_archived": open, "repository": choice.place.place, "repository_name": choice.place.name,
            "passed_over": choice.passed, "healed": restored.healed,
        }));
        return;
    }
    for row in rows.into_iter().flatten() {
        let fields: Vec<&str> = row.iter().map(|field| field.as_deref().unwrap_or("(null)")).collect();
        output::line(&fields.join("  "));
    }
    output::line(&format!("{} is there.", data.display()));
    if restored.healed > 0 {
        let says = format!(
            "{} files of the log are damaged or missing in {} and came from another repository: look at it (`mainstay verify`).",
            restored.healed,
            choice.place.place.display()
        );
        output::line(&paint(Colour::Yellow, &says));
    }
    if let (Some(verified), Some(bin)) = (verified, bin) {
        output::line(&format!("Verified: {verified}."));
        output::line(&format!(
            "Look at it: start `{}/postgres -D {1} -c config_file={1}/mainstay_scratch.conf` as its owner, then `psql -h {1}/mainstay_run -U postgres app`.",
            bin.display(),
            data.display()
        ));
    } else {
        output::line("No server has recovered it yet: it asks for its log in its directory mainstay_log.");
    }
    if let Some(says) = short_of(&made.target, made.reaches, open) {
        output::line(&paint(Colour::Yellow, &says));
    }
}

/// The latest moment was wanted, and what the archive holds is not known to be all.
fn short_of(target: &Target, reaches: Lsn, open: Option<bool>) -> Option<String> {
    (*target == Target::Latest && open == Some(false)).then(|| {
        format!(
            "NOT the latest moment: the log that was open is not in the archive. What was committed after {reaches} may be missing \
             (`mainstay archive status` says why; once that is mended, bring the copy there with --delta)."
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_written_over_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        check_place(dir.path()).unwrap();
        check_place(&dir.path().join("new")).unwrap();
        std::fs::write(dir.path().join("x"), "").unwrap();
        assert!(check_place(dir.path()).unwrap_err().error.contains("is not empty"));
        assert!(check_place(&dir.path().join("x")).is_err());
        check_server(&dir.path().join("y"), None).unwrap();
        assert_eq!(place_of(Path::new("/srv/copy")).unwrap(), Path::new("/srv/copy"));
        let quote = place_of(Path::new("/srv/o'clock")).unwrap_err();
        assert!(quote.error.contains("o'clock") && quote.status == crate::failure::USAGE, "{}", quote.error);
        assert!(check_server(&dir.path().join("y".repeat(90)), None).unwrap_err().error.contains("too long"));
    }

    #[test]
    fn a_copy_that_is_not_the_latest_says_so_at_its_end() {
        let says = short_of(&Target::Latest, Lsn(0x0500_0000), Some(false)).unwrap();
        assert!(says.contains("NOT the latest moment") && says.contains("0/5000000"), "{says}");
        for (target, open) in [(Target::Latest, Some(true)), (Target::Latest, None), (Target::Immediate, Some(false))] {
            assert_eq!(short_of(&target, Lsn(1), open), None, "{target:?} {open:?}");
        }
    }

    #[test]
    fn no_copy_is_made_inside_a_cluster_or_a_repository() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["n1/data", "old/base", "vault/backups"] {
            std::fs::create_dir_all(at(name)).unwrap();
        }
        std::os::unix::fs::symlink(at("n1"), at("link")).unwrap();
        std::fs::write(at("old/PG_VERSION"), "17").unwrap();
        std::fs::write(at("vault/vault.json"), "{}").unwrap();
        let taken = [at("n1"), at("gone")];
        for inside in ["n1", "n1/data/new", "link/new/deep", "gone/new", "old/base/new", "vault/backups/new"] {
            let failure = check_apart(&at(inside), &taken, false).unwrap_err();
            assert_eq!(failure.status, crate::failure::USAGE, "{inside}");
            assert!(failure.error.contains("lies in") && failure.hint.is_some(), "{inside}: {}", failure.error);
        }
        for apart in ["n1.copy", "new/deep", "n2"] {
            check_apart(&at(apart), &taken, false).unwrap();
        }
        // An old copy may be written over, what lies in it may not be a copy.
        check_apart(&at("old"), &taken, true).unwrap();
        assert!(
            check_apart(&at("old/base"), &taken, true).is_err() && check_apart(&at("vault"), &taken, true).is_err()
        );
    }
}

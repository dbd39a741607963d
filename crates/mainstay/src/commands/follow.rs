//! `mainstay follow`: a copy that is fed from the repository alone (docs/adr/0051). Here: what the directory is, and the copy made; `follow_run.rs` keeps
//! it going, `follow_status.rs` says how it stands, `follow_promote.rs` makes a database of its own of it.

use super::copy_files::write;
use super::follow_run::Follower;
use super::restore::{check_apart, check_server, place_of, programs_of, taken};
use super::restore_room::Room;
use super::shelf::{Shelf, blocking, failure};
use crate::cli::{self, Follow, Global};
use crate::failure::{Failure, Outcome};
use crate::given;
use crate::local::processes::Lock;
use crate::local::user;
use crate::output::confirm;
use crate::output::progress::Progress;
use crate::output::table::bytes;
use crate::target::absolute;
use mainstay_ports::clock::boot_now;
use mainstay_vault::postgres::delta::is_begun;
use mainstay_vault::postgres::follow::{Found, Listen, Mark, begin, found, unnoted};
use mainstay_vault::postgres::restore::{Destination, Plan, Restored, time_text};
use mainstay_vault::repository::{Repository, VaultError};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Whoever only looks has the directory for a moment.
const LOCK: Duration = Duration::from_secs(3);

/// Follows, or one of the other things.
///
/// # Errors
/// When there is no such copy and none can be made, or what was asked does not come about.
pub(crate) fn run(options: Follow, global: Global) -> Outcome {
    if options.status {
        return super::follow_status::run(&options, global);
    }
    // A repository that hangs must not keep this from ending.
    super::daemon(0, false, async {
        if options.promote {
            return super::follow_promote::run(options, global).await;
        }
        let here = Here::of(&options)?;
        let (mark, _lock) = copy(&here, &options, global).await?;
        let bin = programs(&mark, &options)?;
        super::start_log();
        Follower::new(bin, mark, &here, options.listen())?.run().await
    })
}

impl Follow {
    fn listen(&self) -> Listen {
        Listen { addresses: self.port.map(|_| self.listen.clone()), port: self.port.unwrap_or(5432) }
    }
}

/// Where the copy is, and whose.
pub(super) struct Here {
    pub(super) data: PathBuf,
    pub(super) owner: Option<(u32, u32)>,
}

impl Here {
    /// As it is asked for.
    ///
    /// # Errors
    /// When a server can not get there.
    pub(super) fn of(options: &Follow) -> Outcome<Here> {
        let data = place_of(&options.to)?;
        let owner = user::server_user()?;
        check_server(&data, owner.as_ref()).map_err(|failure| {
            failure.hint(
                "name another directory with --to, with a short path, for example below /srv; nothing was changed",
            )
        })?;
        Ok(Here { data, owner: owner.map(|user| (user.uid, user.gid)) })
    }

    /// What lies there.
    ///
    /// # Errors
    /// When that can not be read.
    pub(super) fn found(&self) -> Outcome<Found> {
        found(&self.data, self.owner).map_err(|error| failure(&error))
    }
}

/// The programs of the copy's version.
pub(super) fn programs(mark: &Mark, options: &Follow) -> Outcome<PathBuf> {
    programs_of(mark.version / 10_000, options.bin_dir.clone())
}

/// One at a time works there. `None`: somebody else does.
///
/// # Errors
/// When the directory can not be opened.
pub(super) async fn hold(data: &Path, patience: Duration) -> Outcome<Option<Lock>> {
    let since = boot_now();
    loop {
        let lock = Lock::directory(data)?;
        if lock.is_some() || u128::from(boot_now().since(since).0) > patience.as_millis() {
            return Ok(lock);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn held(data: &Path) -> Failure {
    Failure::not_now(format!("another mainstay works on {}", data.display()))
        .hint("it goes on by itself: `mainstay follow --status --to DIR` says how it stands; end it first, if it is to be started otherwise")
}

/// The copy that is there, or a new one.
async fn copy(here: &Here, options: &Follow, global: Global) -> Outcome<(Mark, Lock)> {
    let before = here.found()?;
    check(&before, here, options, global)?;
    let made = matches!(before, Found::Nothing) && directory(&here.data)?;
    // One at a time, also while it is made.
    let lock = hold(&here.data, LOCK).await?.ok_or_else(|| held(&here.data))?;
    let now = here.found()?;
    if std::mem::discriminant(&now) != std::mem::discriminant(&before) {
        return Err(Failure::not_now(format!("somebody else was at work on {}", here.data.display()))
            .hint("look what it is now (mainstay follow --status --to DIR), and start this again"));
    }
    let mark = match now {
        Found::Follows(mark) if !options.again => return Ok((moved(&mark, options)?, lock)),
        Found::Follows(mark) => {
            super::follow_run::end_left_over(&here.data).await?;
            // No server runs there: what one noted that did not end in order is no sign of one.
            unnoted(&here.data, here.owner).map_err(|error| failure(&error))?;
            make(here, Some(&mark), options, true).await
        }
        Found::Begun => make(here, None, options, true).await,
        _ => make(here, None, options, false).await,
    };
    if mark.is_err() && made {
        // Nothing was written: then nothing stays. What holds anything is left.
        let _ = std::fs::remove_dir(&here.data);
    }
    mark?;
    Ok((marked(here)?, lock))
}

/// Can what was asked be done with what lies there? Asks where something is lost.
fn check(found: &Found, here: &Here, options: &Follow, global: Global) -> Outcome {
    match found {
        Found::Promoted(_) => Err(promoted(&here.data)),
        Found::Other => {
            Err(Failure::usage(format!("{} holds something, and no copy that follows", here.data.display()))
                .hint("name a directory that is not there yet; nothing was changed"))
        }
        Found::Nothing if options.again => Err(Failure::usage(format!("{} is not there", here.data.display()))
            .hint("without --again it is made; nothing was changed")),
        Found::Nothing | Found::Begun => named(options, None).map(drop),
        Found::Follows(_) if options.again => confirm(
            global.yes,
            &format!("Make {} anew? What it holds else than the repository is lost.", here.data.display()),
        ),
        Found::Follows(mark) => moved(mark, options).map(drop),
    }
}

/// Makes the directory; says whether it was not there.
fn directory(data: &Path) -> Outcome<bool> {
    match std::fs::DirBuilder::new().mode(0o700).create(data) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(Failure::failed(format!("{} can not be made: {error}", data.display()))
            .hint("make the directory above it, or name another one; nothing was changed")),
    }
}

/// What a copy that was promoted is told.
pub(super) fn promoted(data: &Path) -> Failure {
    Failure::not_now(format!("{} was promoted: it is a database of its own, and follows no more", data.display()))
        .hint("`mainstay follow --promote --to DIR` brings a promotion to its end that broke off; to follow again, name another directory")
}

fn marked(here: &Here) -> Outcome<Mark> {
    match here.found()? {
        Found::Follows(mark) => Ok(*mark),
        _ => Err(Failure::failed(format!(
            "{} was made, and is no copy that follows: something else was at work there",
            here.data.display()
        ))),
    }
}

/// The same from another place, or with another key, if that was said. Nothing is written before the repository was read there.
pub(super) fn moved(mark: &Mark, options: &Follow) -> Outcome<Mark> {
    if options.repository.is_none() && options.key_file.is_none() {
        return Ok(mark.clone());
    }
    let (repository, key_file) = named(options, Some(mark))?;
    Ok(Mark { repository, key_file, ..mark.clone() })
}

/// Which repository, and the file of its key.
fn named(options: &Follow, mark: Option<&Mark>) -> Outcome<(PathBuf, Option<PathBuf>)> {
    let text = options.repository.as_deref().and_then(Path::to_str).unwrap_or_default();
    if mainstay_model::bucket::Address::parse(text).is_ok_and(|address| address.as_of().is_some()) {
        return Err(Failure::usage(
            "as_of in an address shows a repository as it was: nothing comes to it any more that could be followed",
        )
        .hint("leave as_of out to follow; `mainstay restore --to DIR` makes a copy as of a moment"));
    }
    given::check("--key-file", options.key_file.as_deref())?;
    let key = options.key_file.as_deref().map(absolute).transpose()?;
    let key = key.or_else(|| mark.and_then(|mark| mark.key_file.clone()));
    let place = match (&options.repository, mark) {
        (Some(place), _) => super::shelf::settled(place)?,
        (None, Some(mark)) => mark.repository.clone(),
        (None, None) => {
            return Err(Failure::usage("there is no copy yet, and no repository is named").hint(
                "say --repository PLACE: the folder of the repository, s3://… or azure://…; nothing was changed",
            ));
        }
    };
    Ok((place, key))
}

/// Makes the copy, or goes on with one that was begun.
async fn make(here: &Here, mark: Option<&Mark>, options: &Follow, delta: bool) -> Outcome {
    let (place, key) = named(options, mark)?;
    let system = options.system.or(mark.map(|mark| mark.system.0));
    let asked =
        cli::Shelf { which: cli::Which::default(), repository: Some(place.clone()), key_file: key.clone(), system };
    let shelf = Shelf::open(&asked).await?;
    check_apart(&here.data, &taken(&shelf, &asked)?, delta)?;
    let (places, wanted) = shelf.places();
    let backup = options.backup.clone();
    let (repository, plan, mark) = blocking(move || {
        let none = || VaultError::Impossible("there is no repository".to_owned());
        let (repository, system) = places.first().ok_or_else(none)?.look(wanted)?;
        let plan = begin(&repository, system, backup.as_deref())?;
        let mark = Mark::of(&repository, &plan, (&place, key.as_deref()))?;
        Ok((repository, plan, mark))
    })
    .await?;
    Room::at(&here.data, delta).check(&plan)?;
    programs(&mark, options)?;
    let mut progress = Progress::new();
    progress.say(&format!(
        "{} follows {}: from the backup {} of {} ({}), on timeline {}",
        here.data.display(),
        mark.repository.display(),
        mark.backup,
        time_text(mark.ended),
        bytes(plan.files()),
        plan.timeline
    ));
    let done = files(here, (repository, plan), &mark, delta, &mut progress).await?;
    let kept = if delta { format!(", {} were there", bytes(done.kept)) } else { String::new() };
    progress.finish(&format!("{}{kept}", bytes(done.written)));
    Ok(())
}

async fn files(
    here: &Here,
    (repository, plan): (Repository, Plan),
    mark: &Mark,
    delta: bool,
    progress: &mut Progress,
) -> Outcome<Restored> {
    let to = Destination {
        data: here.data.clone(),
        owner: here.owner,
        delta,
        follows: Some(mark.to_bytes().map_err(|error| failure(&error))?),
        ..Destination::default()
    };
    write(repository, plan, to, progress).await.map_err(|failure| {
        if !is_begun(&here.data) {
            return failure;
        }
        failure.hint(format!(
            "what was written stays in {0}: no server starts there. mainstay follow --repository '{1}' --to {0} (and --key-file, --system where they were \
             named) goes on. Is the backup {2} damaged, take an older one (--backup, `mainstay backups`)",
            here.data.display(),
            mark.repository.display(),
            mark.backup
        ))
    })
}

//! The repositories that `backups`, `verify` and `restore` read, on this host: the cluster's, one of them by its name, or a place, without any cluster.

use crate::cli::Shelf as Options;
use crate::failure::{Failure, Outcome};
use crate::given;
use crate::output::progress::Progress;
use crate::output::{self, Colour, paint};
use crate::session::Session;
use crate::target::{Target, absolute};
use mainstay_model::bucket::{Address, is_bucket};
use mainstay_model::spec::{Spec, Vault};
use mainstay_model::{RepositoryName, SystemId};
use mainstay_vault::objects::ObjectError;
use mainstay_vault::postgres::look::look_at;
use mainstay_vault::repository::{Repository, VaultError};
use std::path::{Path, PathBuf};

/// What says that a place is a repository.
const CHARTER: &str = "vault.json";

/// Where repositories are.
pub(crate) struct Shelf {
    /// In the order of preference; never empty.
    places: Vec<Place>,
    /// The cluster's others, if one was chosen by its name: what is damaged may be whole there.
    others: Vec<Place>,
    /// Of which database, if that was said.
    wanted: Option<SystemId>,
    /// The cluster, if its agents can be asked.
    pub(crate) session: Option<Session>,
    /// What the cluster is to be; `None`: a repository was named instead.
    pub(crate) spec: Option<Spec>,
}

/// Where one is.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// By what the cluster calls it, where it has several.
    pub(crate) name: Option<RepositoryName>,
    /// Its folder, or its address.
    pub(crate) place: PathBuf,
    key: Option<PathBuf>,
    /// The vault with this repository alone; `None`: it was named without the cluster.
    vault: Option<Vault>,
}

/// An open repository.
pub(crate) struct Book {
    /// The repository.
    pub(crate) repository: Repository,
    /// The database in it.
    pub(crate) system: SystemId,
    /// By what the cluster calls it, where it has several.
    pub(crate) name: Option<RepositoryName>,
    /// What holds for it; `None`: it was named without the cluster.
    pub(crate) vault: Option<Vault>,
}

impl Place {
    /// A sentence about it, with its name where there are several.
    pub(crate) fn says(&self, text: &dyn std::fmt::Display) -> String {
        self.name.as_ref().map_or_else(|| text.to_string(), |name| format!("{name}: {text}"))
    }

    /// Opens it and finds the database. This blocks.
    ///
    /// # Errors
    /// When it can not be reached or read, or holds no database, or several.
    pub(crate) fn look(&self, wanted: Option<SystemId>) -> Result<(Repository, SystemId), VaultError> {
        look(&self.place, self.key.as_deref(), wanted)
    }

    /// The same, and what is asked of it then. One of several that hangs is given up, so that another one can serve. This blocks.
    ///
    /// # Errors
    /// The same, and those of `then`.
    pub(crate) fn ask<T: Send + 'static>(
        &self,
        several: bool,
        wanted: Option<SystemId>,
        then: impl FnOnce((Repository, SystemId)) -> Result<T, VaultError> + Send + 'static,
    ) -> Result<T, VaultError> {
        let place = self.clone();
        look_at(several, &self.place, move || then(place.look(wanted)?))
    }
}

/// What a bucket still has.
const AS_OF: &str = "A bucket that keeps versions still has what was there: name a moment before that at the end of the address, with ?as_of=2026-11-28T10:00:00Z, \
                     or &as_of=… after other words (docs/backup.md)";

/// An error of the vault as a command's end: what could not be reached is another thing than what can not be had.
pub(crate) fn failure(error: &VaultError) -> Failure {
    match error {
        VaultError::Impossible(_) | VaultError::NotArchived(_) | VaultError::NothingLater(_) => Failure::not_now(error.to_string())
            .hint("choose what can be had, as it says; `mainstay verify` shows the span, `mainstay archive status` how far the log is archived"),
        VaultError::Object(ObjectError::Unreachable(_)) => Failure::failed(error.to_string())
            .hint("make the repository reachable from this host (is the volume mounted, the network up?), or name its place here with --repository DIR"),
        VaultError::Object(ObjectError::Refused(_)) => Failure::failed(error.to_string())
            .hint("do as it says; if it tells of rights, run this as a user who may read the repository, or look at its keys"),
        VaultError::Damaged(says) if says.starts_with(CHARTER) => Failure::failed(error.to_string())
            .hint(format!("did somebody write over it? {AS_OF}")),
        VaultError::Object(ObjectError::Missing(name)) if name.starts_with(CHARTER) && name.contains("s3://") => Failure::failed(error.to_string())
            .hint(format!("name the place of a repository itself: the prefix with vault.json in it. Was it there, and somebody removed it? {AS_OF}")),
        VaultError::Object(ObjectError::Missing(name)) if name.starts_with(CHARTER) => Failure::failed(error.to_string())
            .hint("name the place of a repository itself: the folder or prefix with vault.json in it; `mainstay archive status` names the cluster's, which is made with the first log that is archived"),
        VaultError::WrongKey { .. } => Failure::failed(error.to_string())
            .hint("name the file of that key with --key-file FILE, or in vault.key_file"),
        VaultError::NoKey { .. } => Failure::failed(error.to_string())
            .hint("name the file of the repository's secret key with --key-file FILE, or in vault.key_file"),
        VaultError::Crypto(_) => Failure::failed(error.to_string())
            .hint("do as it says, or name another file of the repository's secret key (--key-file FILE, or vault.key_file)"),
        VaultError::File { .. } => Failure::failed(error.to_string())
            .hint("is the path right, and may this user read it? A key file is named by --key-file FILE, or by vault.key_file"),
        _ => Failure::failed(error.to_string()),
    }
}

/// Work that blocks.
///
/// # Errors
/// Its own.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VaultError> + Send + 'static,
) -> Outcome<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| failure(&error)),
        Err(error) => Err(Failure::failed(error.to_string())),
    }
}

impl Shelf {
    /// Finds where they are.
    ///
    /// # Errors
    /// When there is no repository, or none of that name.
    pub(crate) async fn open(options: &Options) -> Outcome<Shelf> {
        given::check("--key-file", options.key_file.as_deref()).map_err(|failure| {
            failure.hint("name the file of the repository's secret key (`mainstay archive key` made it)")
        })?;
        let key = options.key_file.as_deref().map(absolute).transpose()?;
        let wanted = options.system.map(SystemId);
        if let Some(place) = &options.repository {
            return match bare(place) {
                Some(name) => by_name(options, &name, (key, wanted)).await,
                None => Ok(alone(outside(place, key)?, wanted)),
            };
        }
        let (session, spec) = cluster(options).await?;
        let vault = spec.as_ref().map(|spec| spec.vault.clone()).unwrap_or_default();
        let places: Vec<Place> = vault.names().iter().filter_map(|name| of_cluster(&vault, name, &key)).collect();
        if places.is_empty() {
            return Err(Failure::usage("this cluster has no repository")
                .hint("mainstay set vault.repository=/a/folder (or s3://…, azure://…), or say --repository PLACE"));
        }
        Ok(Shelf { places, others: Vec::new(), wanted, session, spec })
    }

    /// All of them, and the database that was asked for.
    pub(crate) fn places(&self) -> (Vec<Place>, Option<SystemId>) {
        (self.places.clone(), self.wanted)
    }

    /// What else the cluster has.
    pub(crate) fn others(&self) -> Vec<Place> {
        self.others.clone()
    }

    /// Are there several?
    pub(crate) fn several(&self) -> bool {
        self.places.len() > 1
    }

    /// All that can be read, and why others can not.
    ///
    /// # Errors
    /// When none can be read.
    pub(crate) async fn all(&self) -> Outcome<(Vec<Book>, Vec<String>)> {
        let (places, wanted) = self.places();
        // One of several may take its time.
        let mut progress = self.several().then(Progress::new);
        if let Some(progress) = &mut progress {
            progress.step(&format!("Opening {} repositories", places.len()));
        }
        let opened = blocking(move || {
            let (mut books, mut passed) = (Vec::new(), Vec::new());
            for (at, place) in places.iter().enumerate() {
                match place.ask(places.len() > 1, wanted, Ok) {
                    Ok((repository, system)) => {
                        let (name, vault) = (place.name.clone(), place.vault.clone());
                        books.push(Book { repository, system, name, vault });
                    }
                    Err(error) => passed.push((at, error)),
                }
            }
            if books.is_empty() {
                Err(none_serves(&places, passed))
            } else {
                Ok((books, passed_over(&places, &passed)))
            }
        })
        .await;
        match (&opened, &mut progress) {
            (Ok((books, _)), Some(progress)) => progress.finish(&format!("{} answer", books.len())),
            (Err(_), Some(progress)) => progress.fail(),
            _ => {}
        }
        opened
    }
}

/// Why some were passed over, a sentence each.
pub(crate) fn passed_over(places: &[Place], passed: &[(usize, VaultError)]) -> Vec<String> {
    passed.iter().filter_map(|(at, error)| Some(places.get(*at)?.says(error))).collect()
}

/// The end where none serves: the only one's own, or what is wrong with each.
pub(crate) fn none_serves(places: &[Place], mut passed: Vec<(usize, VaultError)>) -> VaultError {
    if passed.len() < 2 {
        let none = || VaultError::Impossible("there is no repository".to_owned());
        return passed.pop().map_or_else(none, |(_, error)| error);
    }
    let says = passed_over(places, &passed).join("; ");
    let later =
        |(_, error): &(usize, VaultError)| matches!(error, VaultError::NotArchived(_) | VaultError::NothingLater(_));
    let never = |(_, error): &(usize, VaultError)| matches!(error, VaultError::Impossible(_));
    if passed.iter().any(later) {
        VaultError::NotArchived(says)
    } else if passed.iter().all(never) {
        VaultError::Impossible(says)
    } else {
        VaultError::Server(says)
    }
}

/// Tells people which repositories were passed over.
pub(crate) fn tell_passed_over(passed: &[String]) {
    for says in passed {
        output::errline(&paint(Colour::Yellow, &format!("passed over: {says}")));
    }
}

/// A word that may be the name of a repository: a place has a `/` as a rule.
fn bare(place: &Path) -> Option<RepositoryName> {
    RepositoryName::new(place.to_str()?).ok()
}

/// One of the cluster's.
fn of_cluster(vault: &Vault, name: &RepositoryName, key: &Option<PathBuf>) -> Option<Place> {
    let only = vault.only(name)?;
    Some(Place {
        name: Some(name.clone()).filter(|_| vault.several()),
        place: only.place()?.to_path_buf(),
        key: key.clone().or_else(|| only.key_file.clone()),
        vault: Some(only),
    })
}

/// One that no cluster is needed for.
fn outside(place: &Path, key: Option<PathBuf>) -> Outcome<Place> {
    // A bucket's address is no path.
    let place = if is_bucket(place) {
        Address::parse(place.to_str().unwrap_or_default()).map_err(|why| {
            Failure::usage(format!("--repository: {why}"))
                .hint("write it as s3://BUCKET/PREFIX?endpoint=https://HOST&… or azure://CONTAINER/PREFIX?account=NAME&… in quotes (docs/backup.md)")
        })?;
        place.to_path_buf()
    } else {
        absolute(place)?
    };
    Ok(Place { name: None, place, key, vault: None })
}

/// The place of a repository that no cluster is needed for, as it is opened.
///
/// # Errors
/// When it is no address.
pub(crate) fn settled(place: &Path) -> Outcome<PathBuf> {
    Ok(outside(place, None)?.place)
}

/// The cluster's repository of this name; else a folder that is called so.
async fn by_name(
    options: &Options,
    name: &RepositoryName,
    (key, wanted): (Option<PathBuf>, Option<SystemId>),
) -> Outcome<Shelf> {
    let found = cluster(options).await;
    let names = match &found {
        Ok((_, Some(spec))) => spec.vault.names(),
        _ => Vec::new(),
    };
    if let (true, Ok((session, Some(spec)))) = (names.contains(name), found) {
        let places: Vec<Place> = of_cluster(&spec.vault, name, &key).into_iter().collect();
        // A key that was named is this one's.
        let others = names.iter().filter(|other| *other != name);
        let others = others.filter_map(|other| of_cluster(&spec.vault, other, &None)).collect();
        return Ok(Shelf { places, others, wanted, session, spec: Some(spec) });
    }
    let place = outside(Path::new(name.as_str()), key)?;
    if !names.is_empty() && !place.place.exists() {
        let failure = unknown(name, &names, ", and no folder here is called so");
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        return Err(failure.hint(format!(
            "its repositories: {}; a place is written as /a/folder, s3://… or azure://…",
            names.join(", ")
        )));
    }
    Ok(alone(place, wanted))
}

/// A place without any cluster.
fn alone(place: Place, wanted: Option<SystemId>) -> Shelf {
    Shelf { places: vec![place], others: Vec::new(), wanted, session: None, spec: None }
}

/// A repository of the cluster, where only its agents read it.
///
/// # Errors
/// When a place is named instead.
pub(crate) fn of_agents(options: &Options, spec: &Spec, what: &str) -> Outcome<Option<RepositoryName>> {
    let Some(place) = &options.repository else { return Ok(None) };
    let wrong = || {
        Failure::usage(format!("--repository {}: {what} reads one of the cluster's repositories", place.display()))
            .hint("say it by its name (`mainstay archive status` shows them); nothing was changed")
    };
    let name = bare(place).ok_or_else(wrong)?;
    check_known(spec, Some(&name))?;
    Ok(Some(name))
}

/// Has the cluster a repository that is called so?
///
/// # Errors
/// When it has none: the command is wrong, and nobody is asked.
pub(crate) fn check_known(spec: &Spec, name: Option<&RepositoryName>) -> Outcome {
    let names = spec.vault.names();
    match name.filter(|name| !names.contains(name)) {
        Some(name) => Err(unknown(name, &names, "")),
        None => Ok(()),
    }
}

fn unknown(name: &RepositoryName, names: &[RepositoryName], besides: &str) -> Failure {
    let failure = Failure::usage(format!("this cluster has no repository {name}{besides}"));
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    match names.as_slice() {
        [] => failure.hint("mainstay set vault.repository=/a/folder (or s3://…) makes one; nothing was changed"),
        names => failure.hint(format!("its repositories: {}; nothing was changed", names.join(", "))),
    }
}

/// The cluster, as its agents say, or its file alone.
async fn cluster(options: &Options) -> Outcome<(Option<Session>, Option<Spec>)> {
    let target = Target::find(&options.which)?;
    crate::identity::check_named(&target)?;
    match Session::open(&options.which).await {
        Ok(session) => {
            let spec = session.spec().clone();
            Ok((Some(session), Some(spec)))
        }
        // Nobody can be asked, or this user may not ask: the file says where the repository is.
        Err(_) => Ok((None, Some(target.spec))),
    }
}

fn look(place: &Path, key: Option<&Path>, wanted: Option<SystemId>) -> Result<(Repository, SystemId), VaultError> {
    let repository = Repository::at(place, key).map_err(|error| match error {
        VaultError::Object(ObjectError::Missing(name)) => {
            VaultError::Object(ObjectError::Missing(format!("{name} in {}", place.display())))
        }
        other => other,
    })?;
    if !repository.readable() {
        let says = format!(
            "{} is encrypted, and no secret key is at hand: say --key-file FILE (a file that ends in .public only writes)",
            place.display()
        );
        return Err(VaultError::Impossible(says));
    }
    let systems = repository.systems()?;
    let system = match (wanted, systems.as_slice()) {
        (Some(wanted), all) if all.contains(&wanted) => wanted,
        (None, [only]) => *only,
        (_, []) => return Err(VaultError::Impossible(format!("{} holds nothing yet", place.display()))),
        (_, all) => {
            let all: Vec<String> = all.iter().map(ToString::to_string).collect();
            let says = format!("{} holds the databases {}: say which with --system", place.display(), all.join(", "));
            return Err(VaultError::Impossible(says));
        }
    };
    Ok((repository, system))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_finds_a_repository_gone_or_overwritten_is_told_of_the_bucket_as_it_was() {
        let gone = VaultError::Object(ObjectError::Missing(format!("{CHARTER} in s3://vault/main")));
        for error in [gone, VaultError::Damaged(format!("{CHARTER}: EOF while parsing"))] {
            assert!(failure(&error).hint.is_some_and(|hint| hint.contains("as_of=2026")), "{error}");
        }
        let other = failure(&VaultError::Damaged("backups/7/a/manifest".to_owned()));
        assert!(other.hint.is_none_or(|hint| !hint.contains("as_of=")));
    }
}

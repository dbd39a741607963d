//! The repository that `backups`, `verify` and `restore` read, on this host: the cluster's, or one that is named, without any cluster.

use crate::cli::Shelf as Options;
use crate::failure::{Failure, Outcome};
use crate::given;
use crate::session::Session;
use crate::target::{Target, absolute};
use mainstay_model::SystemId;
use mainstay_model::bucket::{Address, is_bucket};
use mainstay_model::spec::Spec;
use mainstay_vault::objects::ObjectError;
use mainstay_vault::repository::{Repository, VaultError};
use std::path::{Path, PathBuf};

/// What says that a place is a repository.
const CHARTER: &str = "vault.json";

/// What was found.
pub(crate) struct Shelf {
    /// The repository.
    pub(crate) repository: Repository,
    /// The database in it.
    pub(crate) system: SystemId,
    /// The cluster, if its agents can be asked.
    pub(crate) session: Option<Session>,
    /// What the cluster is to be; `None`: a repository was named instead.
    pub(crate) spec: Option<Spec>,
}

/// An error of the vault as a command's end: what could not be reached is another thing than what can not be had.
pub(crate) fn failure(error: &VaultError) -> Failure {
    match error {
        VaultError::Impossible(_) | VaultError::NotArchived(_) | VaultError::NothingLater(_) => Failure::not_now(error.to_string())
            .hint("choose what can be had, as it says; `mainstay verify` shows the span, `mainstay archive status` how far the log is archived"),
        VaultError::Object(ObjectError::Unreachable(_)) => Failure::failed(error.to_string())
            .hint("make the repository reachable from this host (is the volume mounted, the network up?), or name its place here with --repository DIR"),
        VaultError::Object(ObjectError::Refused(_)) => Failure::failed(error.to_string())
            .hint("run this as a user who may read the repository"),
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
    /// Finds it.
    ///
    /// # Errors
    /// When there is no repository, this host does not reach it, or it can not be read with this key.
    pub(crate) async fn open(options: &Options) -> Outcome<Shelf> {
        given::check("--key-file", options.key_file.as_deref()).map_err(|failure| {
            failure.hint("name the file of the repository's secret key (`mainstay archive key` made it)")
        })?;
        let (session, spec) = if options.repository.is_some() { (None, None) } else { cluster(options).await? };
        let vault = spec.as_ref().map(|spec| spec.vault.clone()).unwrap_or_default();
        let named = |path: &Option<PathBuf>| path.as_deref().map(absolute).transpose();
        // A bucket's address is no path.
        let bucket = options.repository.clone().filter(|place| is_bucket(place));
        if let Some(text) = bucket.as_ref().and_then(|place| place.to_str()) {
            Address::parse(text).map_err(|why| {
                Failure::usage(format!("--repository: {why}"))
                    .hint("write it as s3://BUCKET/PREFIX?endpoint=https://HOST&… in quotes (docs/backup.md)")
            })?;
        }
        let place = if bucket.is_some() { bucket } else { named(&options.repository)? };
        let place = place.or(vault.repository).ok_or_else(|| {
            Failure::usage("this cluster has no repository")
                .hint("mainstay set vault.repository=/a/folder (or s3://…), or say --repository PLACE")
        })?;
        let key = named(&options.key_file)?.or(vault.key_file);
        let wanted = options.system.map(SystemId);
        let (repository, system) = blocking(move || look(&place, key.as_deref(), wanted)).await?;
        Ok(Shelf { repository, system, session, spec })
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

//! Which cluster a command means, and its file. `--dir`, then `--config`, then `--name`, then MAINSTAY_CONFIG, then the standard
//! place: `main`, or the only cluster there.

use crate::cli::Which;
use crate::failure::{FAILED, Failure, Outcome};
use crate::given;
use mainstay_model::layout::ClusterLayout;
use mainstay_model::spec::Spec;
use std::path::{Path, PathBuf};

/// The name of a cluster that nobody named.
pub(crate) const DEFAULT_NAME: &str = "main";

/// A cluster's file, read.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// The file.
    pub(crate) config: PathBuf,
    /// What it says.
    pub(crate) spec: Spec,
    /// The directory it stands in: certificates and secrets lie next to it.
    pub(crate) layout: ClusterLayout,
    /// Whose certificate to show, if not the one next to the file.
    pub(crate) identity: Option<PathBuf>,
}

/// Where `up` keeps clusters that were given no directory.
///
/// # Errors
/// When there is no home directory.
pub(crate) fn standard_place() -> Outcome<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/mainstay"));
    }
    let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    data.or_else(|| home().map(|home| home.join(".local/share")))
        .map(|data| data.join("mainstay"))
        .ok_or_else(|| Failure::usage("there is no home directory (HOME is not set): say --dir DIR"))
}

/// The directory that is meant, without `--config`.
pub(crate) fn directory(dir: Option<&Path>, name: Option<&str>) -> Outcome<PathBuf> {
    if let Some(dir) = dir {
        return absolute(dir);
    }
    let place = standard_place()?;
    if let Some(name) = name {
        return Ok(place.join(name));
    }
    let main = place.join(DEFAULT_NAME);
    if has_config(&main) {
        return Ok(main);
    }
    let mut others = clusters_in(&place).into_iter();
    match (others.next(), others.next()) {
        (Some(only), None) => Ok(only),
        _ => Ok(main),
    }
}

/// Where the files of clusters on real hosts lie: `NAME.toml`, or `NAME/mainstay.toml`.
const ON_HOSTS: &str = "/etc/mainstay";

/// The file that is meant when neither a directory nor a file was named: of a cluster on this machine, else of one on real hosts.
fn standard_config(name: Option<&str>) -> Outcome<PathBuf> {
    let here = ClusterLayout::new(directory(None, name)?).config();
    if here.is_file() {
        return Ok(here);
    }
    let found = on_hosts(Path::new(ON_HOSTS), name);
    match found.as_slice() {
        [only] => Ok(only.clone()),
        [] => Ok(here),
        several => {
            let names: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
            Err(Failure::usage(format!("which cluster? There are {}", names.join(", ")))
                .hint("say which with --name NAME, --config FILE or MAINSTAY_CONFIG"))
        }
    }
}

/// Which cluster a file describes, if it can be read.
fn cluster_of(path: &Path) -> Option<String> {
    let text = given::text(path).ok()?;
    let spec = mainstay_model::config::parse(&text, crate::local::engine::owned_parameters()).ok()?;
    Some(spec.cluster.name.to_string())
}

/// The files of clusters on real hosts, of this name or of any, in order of their names.
fn on_hosts(place: &Path, name: Option<&str>) -> Vec<PathBuf> {
    if let Some(name) = name {
        let named = [place.join(format!("{name}.toml")), place.join(name).join("mainstay.toml")];
        let only = Some(place.join("mainstay.toml")).filter(|path| cluster_of(path).as_deref() == Some(name));
        return named.into_iter().chain(only).filter(|path| path.is_file()).take(1).collect();
    }
    let entries =
        std::fs::read_dir(place).map(|entries| entries.flatten().take(1000).collect()).unwrap_or_else(|_| Vec::new());
    let mut found: Vec<PathBuf> = entries
        .into_iter()
        .map(|entry| entry.path())
        .filter_map(|path| match path.extension() {
            Some(kind) if kind == "toml" && path.is_file() => Some(path),
            _ => Some(path.join("mainstay.toml")).filter(|path| path.is_file()),
        })
        .collect();
    found.sort();
    found
}

/// The directories with a cluster's file in this directory, in order of their names.
pub(crate) fn clusters_in(place: &Path) -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(place).map(|entries| entries.flatten().take(1000).collect()).unwrap_or_else(|_| Vec::new());
    let mut found: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).filter(|dir| has_config(dir)).collect();
    found.sort();
    found
}

fn has_config(dir: &Path) -> bool {
    ClusterLayout::new(dir).config().is_file()
}

/// The path from the root on, so that daemons with another working directory find it too.
pub(crate) fn absolute(path: &Path) -> Outcome<PathBuf> {
    let path = std::path::absolute(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    let plain: PathBuf = path.components().collect();
    if plain.components().any(|part| part == std::path::Component::ParentDir) {
        return Ok(plain.canonicalize().unwrap_or_else(|_| without_parents(&plain)));
    }
    Ok(plain)
}

/// A path that is not there yet, without "..": above a link lies what is above its target.
fn without_parents(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        if part == std::path::Component::ParentDir {
            out = out.canonicalize().unwrap_or(out);
            out.pop();
        } else {
            out.push(part);
        }
    }
    out
}

impl Target {
    /// Finds and reads the cluster that is meant.
    ///
    /// # Errors
    /// When there is none, its file can not be read, or holds mistakes.
    pub(crate) fn find(which: &Which) -> Outcome<Target> {
        let mut named = true;
        let config = match (&which.dir, &which.config, &which.name) {
            (Some(dir), _, _) => ClusterLayout::new(absolute(dir)?).config(),
            (_, Some(config), _) => absolute(config)?,
            (_, _, Some(name)) => standard_config(Some(name.as_str()))?,
            _ => match std::env::var_os("MAINSTAY_CONFIG").filter(|value| !value.is_empty()) {
                Some(config) => absolute(Path::new(&config))?,
                None => {
                    named = false;
                    standard_config(None)?
                }
            },
        };
        let mut target = Self::read(&config).map_err(|failure| match named || config.exists() {
            true => failure,
            // Nothing that was typed is wrong.
            false => Failure { status: FAILED, ..failure },
        })?;
        target.identity = which.identity.as_deref().map(absolute).transpose()?;
        Ok(target)
    }

    /// Reads a cluster's file.
    ///
    /// # Errors
    /// When it can not be read, or holds mistakes.
    pub(crate) fn read(config: &Path) -> Outcome<Target> {
        Self::with_text(config).map(|(target, _)| target)
    }

    /// The same, with the text that was read.
    ///
    /// # Errors
    /// As [`Target::read`].
    pub(crate) fn with_text(config: &Path) -> Outcome<(Target, String)> {
        let text = given::text(config).map_err(|error| no_file(config, &error))?;
        let spec = mainstay_model::config::parse(&text, crate::local::engine::owned_parameters())
            .map_err(|error| Failure::usage(format!("{} holds mistakes:\n{error}", config.display())))?;
        let dir = config.parent().unwrap_or(Path::new("/"));
        let target = Target { config: config.to_owned(), spec, layout: ClusterLayout::new(dir), identity: None };
        Ok((target, text))
    }
}

fn no_file(config: &Path, error: &std::io::Error) -> Failure {
    let name = config.display();
    match error.kind() {
        std::io::ErrorKind::NotFound => Failure::usage(format!("there is no cluster: {name} does not exist"))
            .hint("copy the file of the cluster from one of its hosts, or say where it is with --config, --dir or MAINSTAY_CONFIG; \
                   `mainstay up` makes a cluster on this machine"),
        std::io::ErrorKind::PermissionDenied => Failure::failed(format!("{name} can not be read: {error}"))
            .hint("run it as the user that owns the cluster (root, if root made it)"),
        _ => given::unreadable(error, format!("{name} can not be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::{absolute, on_hosts};
    use std::path::Path;

    #[test]
    fn a_path_that_is_not_there_yet_goes_up_where_a_link_leads() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(home.join("deep/below")).unwrap();
        std::os::unix::fs::symlink(home.join("deep/below"), home.join("link")).unwrap();
        for (given, is) in [
            ("link/../new", "deep/new"),
            ("deep/../new/one", "new/one"),
            ("not/there/../new", "not/new"),
            ("deep/below/..", "deep"),
        ] {
            assert_eq!(absolute(&home.join(given)).unwrap(), home.join(is), "{given}");
        }
        assert_eq!(absolute(Path::new("/../../new")).unwrap(), Path::new("/new"));
    }

    #[test]
    fn files_of_clusters_on_hosts_are_found() {
        let place = tempfile::tempdir().unwrap();
        let at = |path: &str| place.path().join(path);
        assert!(on_hosts(place.path(), None).is_empty());
        std::fs::create_dir(at("orders")).unwrap();
        std::fs::write(at("orders/mainstay.toml"), "").unwrap();
        std::fs::write(at("bills.toml"), "").unwrap();
        std::fs::write(at("notes.txt"), "").unwrap();
        assert_eq!(on_hosts(place.path(), None), [at("bills.toml"), at("orders/mainstay.toml")]);
        assert_eq!(on_hosts(place.path(), Some("orders")), [at("orders/mainstay.toml")]);
        assert_eq!(on_hosts(place.path(), Some("bills")), [at("bills.toml")]);
        assert!(on_hosts(place.path(), Some("notes")).is_empty());
        std::fs::write(at("mainstay.toml"), "[cluster]\nname = \"shop\"\n[[node]]\nname = \"a\"\nhost = \"h\"\n")
            .unwrap();
        assert_eq!(on_hosts(place.path(), Some("shop")), [at("mainstay.toml")]);
    }
}

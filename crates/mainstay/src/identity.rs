//! With whose certificate the agents are asked: the administrator's next to the cluster's file, or the one that `--identity` names.

use crate::failure::{Failure, Outcome};
use crate::target::Target;
use mainstay_model::layout::NodeLayout;
use mainstay_net::{Credentials, NetError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Certificate, key and authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Papers {
    cert: PathBuf,
    key: PathBuf,
    authority: PathBuf,
}

/// Reads the papers with which people call.
///
/// # Errors
/// When they are missing, can not be read, can be read by others, or are another cluster's.
pub(crate) fn credentials(target: &Target) -> Outcome<Arc<Credentials>> {
    let papers = match &target.identity {
        Some(named) => find(named)?,
        None => beside(target),
    };
    let cluster = &target.spec.cluster.name;
    Credentials::load(cluster, &papers.authority, &papers.cert, &papers.key).map_err(|error| {
        let failure = Failure::failed(format!("the cluster's API can not be called: {error}"));
        failure.hint(advice(&error, &papers, cluster.as_str()))
    })
}

/// Does what was named serve? A command that can do without asking goes on when nothing was named, but whoever named a certificate wants its
/// cluster asked: an answer without would be another one than it looks.
///
/// # Errors
/// As [`credentials`], if one was named.
pub(crate) fn check_named(target: &Target) -> Outcome {
    if target.identity.is_some() { credentials(target).map(drop) } else { Ok(()) }
}

/// Those next to the file: an administrator's, else an operator's, else a reader's; on a node's host without any, the node's own, which may
/// look. What is there but closed to this user is passed over for the next, as long as there is a next.
fn beside(target: &Target) -> Papers {
    let pki = target.layout.pki();
    let of = |role: &str| Papers {
        cert: pki.join(role).with_extension("crt"),
        key: pki.join(role).with_extension("key"),
        authority: target.layout.ca_cert(),
    };
    let standard = Path::new("/var/lib/mainstay").join(target.spec.cluster.name.as_str());
    let nodes = target.spec.nodes.iter().map(|node| {
        let layout = NodeLayout::new(node.dir.clone().unwrap_or_else(|| standard.clone()));
        Papers { cert: layout.node_cert(), key: layout.node_key(), authority: layout.ca_cert() }
    });
    let usable = |papers: &Papers| std::fs::File::open(&papers.key).is_ok() && papers.cert.is_file();
    let people = ["admin", "operator", "reader"].into_iter().map(of);
    people.chain(nodes).find(usable).unwrap_or_else(|| of("admin"))
}

fn advice(error: &NetError, papers: &Papers, cluster: &str) -> String {
    match error {
        NetError::LooseKey { path, .. } => format!("chmod 600 {}", path.display()),
        NetError::File { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            "name your certificate with --identity (or MAINSTAY_IDENTITY), as `mainstay pki issue` made it; or run this where the \
             cluster's pki/ lies"
                .to_owned()
        }
        NetError::File { .. } => {
            "run this as the user that owns the cluster's files (root, if root made them), or name a certificate of your own with --identity"
                .to_owned()
        }
        _ => format!(
            "{} must be a certificate that the authority of the cluster {cluster} issued to you: name another with --identity",
            papers.cert.display()
        ),
    }
}

/// `DIR` with one certificate and key in it, or the common beginning of both files' names. `ca.crt` lies beside them.
fn find(named: &Path) -> Outcome<Papers> {
    if named.is_dir() {
        return in_directory(named);
    }
    let prefix = match named.extension() {
        Some(kind) if kind == "crt" || kind == "key" => named.with_extension(""),
        _ => named.to_owned(),
    };
    let with = |kind: &str| {
        let mut path = prefix.clone().into_os_string();
        path.push(kind);
        PathBuf::from(path)
    };
    let papers = Papers { cert: with(".crt"), key: with(".key"), authority: prefix.with_file_name("ca.crt") };
    for path in [&papers.cert, &papers.key, &papers.authority] {
        if !path.is_file() {
            return Err(Failure::usage(format!("--identity {}: there is no {}", named.display(), path.display()))
                .hint(instead(&prefix)));
        }
    }
    Ok(papers)
}

/// What lies beside a name that is not there: `mainstay join` names the files after the role, not after the person.
fn instead(prefix: &Path) -> String {
    let there = prefix.parent().and_then(|dir| pairs_in(dir).ok()).unwrap_or_default();
    let names: Vec<String> = there.iter().map(|pair| pair.display().to_string()).collect();
    if names.is_empty() {
        return "name the directory, or the beginning, of NAME.crt and NAME.key; ca.crt lies beside them".to_owned();
    }
    format!("there is: {} (`mainstay join` calls the files after the role)", names.join(", "))
}

/// Certificates with their keys in a directory, without their endings.
fn pairs_in(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir)?;
    let mut pairs: Vec<PathBuf> = entries
        .flatten()
        .take(1000)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "crt") && path.with_extension("key").is_file())
        .map(|path| path.with_extension(""))
        .filter(|path| path.file_name().is_some_and(|name| name != "ca"))
        .collect();
    pairs.sort();
    Ok(pairs)
}

fn in_directory(dir: &Path) -> Outcome<Papers> {
    let wrong = |text: String| Failure::usage(format!("--identity {}: {text}", dir.display()));
    let pairs = pairs_in(dir).map_err(|error| wrong(error.to_string()))?;
    let admin = pairs.iter().find(|pair| pair.file_name().is_some_and(|name| name == "admin"));
    match (pairs.as_slice(), admin) {
        ([only], _) | (_, Some(only)) => find(only),
        ([], _) => Err(wrong("it holds no certificate with its key (NAME.crt, NAME.key)".to_owned())),
        (several, None) => {
            let names: Vec<String> = several.iter().map(|pair| pair.display().to_string()).collect();
            Err(wrong("it holds several".to_owned()).hint(format!("name one: {}", names.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::find;

    fn touch(dir: &std::path::Path, names: &[&str]) {
        for name in names {
            std::fs::write(dir.join(name), "").unwrap();
        }
    }

    #[test]
    fn papers_are_found_by_directory_and_by_prefix() {
        let dir = tempfile::tempdir().unwrap();
        assert!(find(dir.path()).unwrap_err().error.contains("no certificate"));
        touch(dir.path(), &["ca.crt", "ca.key", "ann.crt", "ann.key"]);
        let ann = find(dir.path()).unwrap();
        assert_eq!(ann.cert, dir.path().join("ann.crt"));
        assert_eq!(ann.authority, dir.path().join("ca.crt"));
        for named in ["ann", "ann.crt", "ann.key"] {
            assert_eq!(find(&dir.path().join(named)).unwrap(), ann, "{named}");
        }
        touch(dir.path(), &["ben.crt", "ben.key"]);
        let failure = find(dir.path()).unwrap_err();
        assert!(failure.error.contains("several") && failure.hint.unwrap().contains("ben"));
        touch(dir.path(), &["admin.crt", "admin.key"]);
        assert_eq!(find(dir.path()).unwrap().cert, dir.path().join("admin.crt"));
        let failure = find(&dir.path().join("eve")).unwrap_err();
        assert!(failure.error.contains("eve.crt"), "{}", failure.error);
        let hint = failure.hint.unwrap();
        assert!(hint.contains("ann") && hint.contains("after the role"), "{hint}");
        let empty = tempfile::tempdir().unwrap();
        let hint = find(&empty.path().join("eve")).unwrap_err().hint.unwrap();
        assert!(hint.contains("NAME.crt"), "{hint}");
    }
}

//! The cluster authority beside the cluster's file, what it issues, and where that is put. One implementation for `up`, `pki` and `join`.

use super::user::User;
use super::{engine, node_dir, secrets};
use crate::failure::{Failure, Outcome};
use mainstay_model::ClusterName;
use mainstay_model::layout::{ClusterLayout, NodeLayout};
use mainstay_model::spec::Spec;
use mainstay_net::{Authority, Issued, Role, pki, write_file};
use mainstay_ports::clock::wall_now_ms;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// The name in the first administrator's certificate.
pub(crate) const ADMIN: &str = "admin";
/// How many lines of what was issued are shown at most.
const ISSUED_MAX: usize = 10_000;

/// The authority with its files.
pub(crate) struct Keys {
    layout: ClusterLayout,
    authority: Authority,
}

/// One line of what was issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IssuedLine {
    /// `node`, `server`, `replication`, `proxy`, `admin`, `operator`, `reader`.
    pub(crate) role: String,
    /// For whom.
    pub(crate) name: String,
    /// Until when it is valid, seconds since 1970.
    pub(crate) until: i64,
    /// When it was issued, milliseconds since 1970.
    pub(crate) wall_ms: u64,
    /// `up`, `init`, `bundle` or `token`.
    pub(crate) by: String,
}

pub(crate) fn net(error: mainstay_net::NetError) -> Failure {
    Failure::failed(error.to_string())
}

pub(crate) fn write(path: &Path, bytes: &[u8], mode: u32) -> Outcome {
    write_file(path, bytes, mode, None, false).map_err(net)
}

impl Keys {
    /// Makes `pki/` and `secrets/` beside the cluster's file: the authority, an administrator's certificate, the application's password.
    ///
    /// # Errors
    /// When something of it is there already, the disk refuses or randomness is missing.
    pub(crate) fn found(layout: &ClusterLayout, cluster: &ClusterName, by: &str) -> Outcome<Keys> {
        for path in [layout.pki(), layout.secrets()] {
            node_dir::make_dir(&path, 0o700, None)?;
        }
        let authority = Authority::create(cluster).map_err(net)?;
        authority.write(&layout.ca_cert(), &layout.ca_key()).map_err(net)?;
        let keys = Keys { layout: layout.clone(), authority };
        let admin = keys.issue(&Role::Admin(ADMIN.to_owned()), &[], by)?;
        admin.write(&layout.admin_cert(), &layout.admin_key(), None, false).map_err(net)?;
        let password = secrets::password()?;
        write(&layout.app_password(), format!("{password}\n").as_bytes(), 0o600)?;
        Ok(keys)
    }

    /// Reads the authority.
    ///
    /// # Errors
    /// When it is not there, or not ours to use.
    pub(crate) fn open(layout: &ClusterLayout, cluster: &ClusterName) -> Outcome<Keys> {
        if !layout.ca_key().exists() {
            let here = layout.pki();
            return Err(Failure::failed(format!(
                "the cluster's authority is not here: {} does not exist",
                layout.ca_key().display()
            ))
            .hint(format!(
                "run this where `mainstay pki init` was run; for a new cluster run `mainstay pki init` (it makes {})",
                here.display()
            )));
        }
        let authority = Authority::load(cluster, &layout.ca_cert(), &layout.ca_key()).map_err(net)?;
        Ok(Keys { layout: layout.clone(), authority })
    }

    /// The authority.
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The files.
    pub(crate) fn layout(&self) -> &ClusterLayout {
        &self.layout
    }

    /// Issues one certificate with its key, and notes it.
    ///
    /// # Errors
    /// When a name has no proper form, or the note can not be written.
    pub(crate) fn issue(&self, role: &Role, hosts: &[String], by: &str) -> Outcome<Issued> {
        let issued = self.authority.issue(role, hosts).map_err(net)?;
        self.note(role, &issued.cert_pem, by)?;
        Ok(issued)
    }

    /// Certifies a key that was made elsewhere, and notes it.
    ///
    /// # Errors
    /// As [`Keys::issue`], and when the request is not genuine.
    pub(crate) fn sign(&self, role: &Role, hosts: &[String], request_pem: &str, by: &str) -> Outcome<String> {
        let cert_pem = self.authority.sign(role, hosts, request_pem).map_err(net)?;
        self.note(role, &cert_pem, by)?;
        Ok(cert_pem)
    }

    fn note(&self, role: &Role, cert_pem: &str, by: &str) -> Outcome {
        let until = pki::valid_until(cert_pem).map_err(net)?;
        let (role, name) = (role.word().to_owned(), role.name().to_owned());
        let line = IssuedLine { role, name, until, wall_ms: wall_now_ms(), by: by.to_owned() };
        let path = self.layout.issued();
        let wrong = |error: std::io::Error| Failure::failed(format!("write {}: {error}", path.display()));
        let mut text = serde_json::to_string(&line).map_err(|error| wrong(error.into()))?;
        text.push('\n');
        let file = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        // One write, so that lines of two commands do not mix.
        file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(wrong)
    }

    /// What was issued, oldest first. Lines that can not be read are left out.
    pub(crate) fn issued(&self) -> Vec<IssuedLine> {
        let text = std::fs::read_to_string(self.layout.issued()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let newest = lines.iter().skip(lines.len().saturating_sub(ISSUED_MAX));
        newest.filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// What the database servers keep instead of the application's password.
    ///
    /// # Errors
    /// When the password can not be read.
    pub(crate) fn verifier(&self) -> Outcome<String> {
        let path = self.layout.app_password();
        let password = std::fs::read_to_string(&path)
            .map_err(|error| Failure::failed(format!("the application's password {}: {error}", path.display())))?;
        Ok(secrets::verifier(password.trim()))
    }

    /// Everything that a member needs, with keys made here.
    ///
    /// # Errors
    /// As [`Keys::issue`].
    pub(crate) fn material(&self, member: &Member, by: &str) -> Outcome<Material> {
        let mut issued = BTreeMap::new();
        for (purpose, (role, hosts)) in member.purposes() {
            issued.insert(purpose.to_owned(), self.issue(&role, &hosts, by)?);
        }
        let verifier = if member.needs_verifier() { Some(self.verifier()?) } else { None };
        Ok(Material { authority: self.authority.cert_pem().to_owned(), issued, verifier })
    }
}

/// Who gets certificates, with all that the authority must know to issue them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    /// The role's word.
    pub(crate) role: String,
    /// The name.
    pub(crate) name: String,
    /// Nodes: it holds no data.
    #[serde(default)]
    pub(crate) witness: bool,
    /// Nodes: where its agent is reached.
    #[serde(default)]
    pub(crate) agent_hosts: Vec<String>,
    /// Nodes: under which names clients reach its server; proxies stand before it.
    #[serde(default)]
    pub(crate) server_hosts: Vec<String>,
}

impl Member {
    /// A person or a proxy on a host of its own.
    pub(crate) fn plain(role: &Role) -> Member {
        let (role, name) = (role.word().to_owned(), role.name().to_owned());
        Member { role, name, witness: false, agent_hosts: Vec::new(), server_hosts: Vec::new() }
    }

    /// A node of the file.
    pub(crate) fn node(spec: &Spec, node: &mainstay_model::spec::Node) -> Member {
        let mut hosts: BTreeSet<String> = spec.client_hosts().into_iter().collect();
        hosts.insert(node.host.clone());
        hosts.extend(["127.0.0.1".to_owned(), "localhost".to_owned()]);
        Member {
            role: "node".to_owned(),
            name: node.name.to_string(),
            witness: node.witness,
            agent_hosts: vec![node.host.clone()],
            server_hosts: hosts.into_iter().collect(),
        }
    }

    /// Which certificates it needs: by purpose, for which role, reached under which names.
    pub(crate) fn purposes(&self) -> BTreeMap<&'static str, (Role, Vec<String>)> {
        let (name, none) = (self.name.clone(), Vec::new);
        let mut list = BTreeMap::new();
        match self.role.as_str() {
            "node" => {
                let Ok(node) = mainstay_model::NodeId::new(name.clone()) else { return list };
                list.insert("node", (Role::Node(node.clone()), self.agent_hosts.clone()));
                // Clients reach it under the names of the server that it stands for.
                list.insert("proxy", (Role::Proxy(name), self.server_hosts.clone()));
                if !self.witness {
                    list.insert("server", (Role::Server(node), self.server_hosts.clone()));
                    list.insert("replication", (Role::Replication(engine::REPLICATION_ROLE.to_owned()), none()));
                }
            }
            "proxy" => drop(list.insert("proxy", (Role::Proxy(name), self.server_hosts.clone()))),
            "admin" => drop(list.insert("admin", (Role::Admin(name), none()))),
            "operator" => drop(list.insert("operator", (Role::Operator(name), none()))),
            "reader" => drop(list.insert("reader", (Role::Reader(name), none()))),
            _ => {}
        }
        list
    }

    pub(crate) fn needs_verifier(&self) -> bool {
        self.role == "node" && !self.witness
    }
}

/// What a member needs to take part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Material {
    /// The authority's certificate, PEM.
    pub(crate) authority: String,
    /// Certificates with their keys, by purpose.
    pub(crate) issued: BTreeMap<String, Issued>,
    /// The application role's verifier.
    pub(crate) verifier: Option<String>,
}

/// One file to write.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Where.
    pub(crate) path: PathBuf,
    /// What.
    pub(crate) bytes: Vec<u8>,
    /// Permission bits.
    pub(crate) mode: u32,
    /// Whose; `None`: ours.
    pub(crate) owner: Option<(u32, u32)>,
}

impl Wanted {
    fn new(path: PathBuf, text: &str, mode: u32, owner: Option<(u32, u32)>) -> Self {
        Self { path, bytes: text.as_bytes().to_vec(), mode, owner }
    }
}

/// Where a purpose's certificate and key lie on a node, and whether the servers' user owns them.
fn node_place(node: &NodeLayout, purpose: &str) -> Option<(PathBuf, PathBuf, bool)> {
    match purpose {
        "node" => Some((node.node_cert(), node.node_key(), false)),
        "proxy" => Some((node.proxy_cert(), node.proxy_key(), false)),
        "server" => Some((node.server_cert(), node.server_key(), true)),
        "replication" => Some((node.replication_cert(), node.replication_key(), true)),
        _ => None,
    }
}

/// The same beside the cluster's file, for people and for proxies on hosts of their own.
fn person_place(layout: &ClusterLayout, purpose: &str) -> Option<(PathBuf, PathBuf)> {
    match purpose {
        "proxy" => Some((layout.proxy_cert(), layout.proxy_key())),
        "admin" => Some((layout.admin_cert(), layout.admin_key())),
        "operator" => Some((layout.operator_cert(), layout.operator_key())),
        "reader" => Some((layout.reader_cert(), layout.reader_key())),
        _ => None,
    }
}

impl Material {
    /// The files of a node.
    pub(crate) fn files_of_node(&self, node: &NodeLayout, user: Option<&User>) -> Vec<Wanted> {
        let server = user.map(|user| (user.uid, user.gid));
        let mut files = vec![Wanted::new(node.ca_cert(), &self.authority, 0o644, None)];
        if self.issued.contains_key("server") {
            files.push(Wanted::new(node.server_ca(), &self.authority, 0o644, server));
        }
        if let Some(verifier) = &self.verifier {
            files.push(Wanted::new(node.app_verifier(), verifier, 0o600, None));
        }
        for (purpose, issued) in &self.issued {
            let Some((cert, key, of_server)) = node_place(node, purpose) else { continue };
            let owner = server.filter(|_| of_server);
            files.push(Wanted::new(key, &issued.key_pem, 0o600, owner));
            files.push(Wanted::new(cert, &issued.cert_pem, 0o644, owner));
        }
        files
    }

    /// The files of a proxy beside the authority itself, which is there already.
    pub(crate) fn files_of_proxy(&self, layout: &ClusterLayout) -> Vec<Wanted> {
        self.files_of_person(layout).into_iter().filter(|file| file.path != layout.ca_cert()).collect()
    }

    /// The files of a person or of a proxy on a host of its own.
    pub(crate) fn files_of_person(&self, layout: &ClusterLayout) -> Vec<Wanted> {
        let mut files = vec![Wanted::new(layout.ca_cert(), &self.authority, 0o644, None)];
        for (purpose, issued) in &self.issued {
            let Some((cert, key)) = person_place(layout, purpose) else { continue };
            files.push(Wanted::new(key, &issued.key_pem, 0o600, None));
            files.push(Wanted::new(cert, &issued.cert_pem, 0o644, None));
        }
        files
    }
}

/// A file of the first phase, and an old one of the second.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Writes all of the files or none, in two phases: everything that needs room on the disk comes first, under other names; then names change.
/// With `replace` old ones give way, and come back if a later name can not be changed, for which they only need the names that they kept.
///
/// # Errors
/// When one exists (without `replace`) or the disk refuses; what was written is taken back.
pub(crate) fn write_all(files: &[Wanted], replace: bool) -> Outcome {
    let (next, old) = (|file: &Wanted| beside(&file.path, ".next"), |file: &Wanted| beside(&file.path, ".old"));
    let forget = |files: &[Wanted], place: &dyn Fn(&Wanted) -> PathBuf| {
        // Leftovers are made anew, or are in nobody's way: there is nothing better to do about a second failure.
        files.iter().for_each(|file| drop(std::fs::remove_file(place(file))));
    };
    for file in files {
        if let Err(error) = write_file(&next(file), &file.bytes, file.mode, file.owner, true) {
            forget(files, &next);
            return Err(net(error));
        }
    }
    forget(files, &old);
    for (count, file) in files.iter().enumerate() {
        if let Err(error) = put_in_place(file, &next(file), &old(file), replace) {
            for file in files.iter().take(count).rev() {
                let back = std::fs::rename(old(file), &file.path);
                let _ = back.or_else(|_| std::fs::remove_file(&file.path));
            }
            forget(files, &next);
            forget(files, &old);
            return Err(Failure::failed(format!("write {}: {error}", file.path.display())));
        }
    }
    forget(files, &old);
    let dirs: BTreeSet<&Path> = files.iter().filter_map(|file| file.path.parent()).collect();
    let synced = dirs.into_iter().try_for_each(|dir| std::fs::File::open(dir)?.sync_all());
    synced.map_err(|error| Failure::failed(format!("make the new files durable: {error}")))
}

fn put_in_place(file: &Wanted, next: &Path, old: &Path, replace: bool) -> std::io::Result<()> {
    if !replace {
        // Fails if one is there.
        std::fs::hard_link(next, &file.path)?;
        return std::fs::remove_file(next);
    }
    match std::fs::hard_link(&file.path, old) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::rename(next, &file.path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_everything_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("a"), "old").unwrap();
        let file = |name: &str| Wanted::new(at(name), "new", 0o600, None);
        let missing = Wanted::new(at("nowhere/c"), "new", 0o600, None);
        assert!(write_all(&[file("a"), file("b"), missing], true).is_err());
        assert_eq!(std::fs::read_to_string(at("a")).unwrap(), "old");
        assert!(!at("b").exists());
        // A name that can not be changed, after others were: a directory stands there.
        std::fs::create_dir(at("d")).unwrap();
        assert!(write_all(&[file("a"), file("b"), file("d")], true).is_err());
        assert_eq!(std::fs::read_to_string(at("a")).unwrap(), "old");
        assert!(!at("b").exists());
        let left = || std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left(), 2, "nothing else is left");
        assert!(write_all(&[file("b"), file("a")], false).is_err(), "nothing is overwritten unasked");
        assert!(!at("b").exists());
        write_all(&[file("a"), file("b")], true).unwrap();
        assert_eq!(std::fs::read_to_string(at("a")).unwrap(), "new");
    }

    #[test]
    fn the_authority_notes_what_it_issues() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, cluster) = (ClusterLayout::new(dir.path()), ClusterName::new("orders").unwrap());
        assert!(Keys::open(&layout, &cluster).err().unwrap().hint.unwrap().contains("pki init"));
        let keys = Keys::found(&layout, &cluster, "init").unwrap();
        let ann = Member::plain(&Role::Reader("ann".to_owned()));
        keys.material(&ann, "bundle").unwrap();
        let lines = Keys::open(&layout, &cluster).unwrap().issued();
        let names: Vec<String> = lines.iter().map(|line| format!("{} {} {}", line.role, line.name, line.by)).collect();
        assert_eq!(names, ["admin admin init", "reader ann bundle"]);
        assert!(Keys::found(&layout, &cluster, "init").is_err(), "a second authority is not made over the first");
        assert!(Keys::open(&layout, &ClusterName::new("billing").unwrap()).is_err());
    }
}

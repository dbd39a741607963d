//! A node's directories and keys, whose they are, and what lies in its data directory.

use super::why;
use crate::local::place::check_reachable;
use crate::local::{node_dir, user};
use mainstay_model::layout::NodeLayout;
use mainstay_model::spec::{Node, Spec};
use mainstay_plan::doctor::facts::{Existing, Found, Place, Reading, Stage};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use user::User;

/// How many strange names are shown.
const NAMES_MOST: usize = 4;

/// Whose the node's files must be.
pub(super) struct Owners {
    agent: User,
    server: Reading<User>,
    witness: bool,
}

impl Owners {
    /// As the agent runs; else as the node's directory says; else as whoever asks.
    pub(super) fn of(layout: &NodeLayout, witness: bool, agent: Option<u32>) -> Owners {
        let owner = |path: &Path| std::fs::symlink_metadata(path).ok().map(|found| found.uid());
        let running = agent.and_then(|pid| owner(Path::new(&format!("/proc/{pid}"))));
        let agent = running.or_else(|| owner(layout.dir())).map_or_else(user::me, user::numbered);
        let server = if agent.uid == 0 && !witness {
            user::of_servers()
                .ok_or_else(|| "there is no user \"postgres\", as which servers of root's agents run".to_owned())
        } else {
            Ok(agent.clone())
        };
        Owners { agent, server, witness }
    }

    /// Is the agent somebody else's than whoever asks?
    pub(super) fn agent_is_other(&self) -> bool {
        self.agent.uid != user::me().uid
    }

    /// Is there a user for servers, and may it pass to the node's directory?
    pub(super) fn reach(&self, dir: &Path) -> Reading<()> {
        if self.witness {
            return Ok(());
        }
        let server = self.server.as_ref().map_err(Clone::clone)?;
        check_reachable(dir, Some(server)).map_err(|failure| failure.error)
    }
}

/// The node's directories, and its keys once it has joined.
pub(super) fn read(spec: &Spec, node: &Node, layout: &NodeLayout, stage: Stage, owners: &Owners) -> Vec<Place> {
    let witness = node.witness;
    let mut list = node_dir::wanted(layout, witness);
    let directories = list.len();
    if stage > Stage::New {
        list.push((layout.node_key(), 0o600, false));
        if spec.proxy.on_nodes || layout.proxy_key().exists() {
            list.push((layout.proxy_key(), 0o600, false));
        }
        if !witness {
            list.extend([layout.server_key(), layout.replication_key()].map(|path| (path, 0o600, true)));
        }
    }
    let place = |(number, (path, mode, of_server)): (usize, (std::path::PathBuf, u32, bool))| {
        // Without such a user, which is a finding of its own, nothing can be said of whose it must be.
        let owner = if of_server { owners.server.as_ref().ok()? } else { &owners.agent };
        let found = look(&path, number < directories);
        Some(Place { path: path.display().to_string(), owner: (owner.name.clone(), owner.uid), mode, found })
    };
    list.into_iter().enumerate().filter_map(place).collect()
}

fn look(path: &Path, directory: bool) -> Reading<Option<Found>> {
    match std::fs::symlink_metadata(path) {
        Ok(found) => {
            let right_kind = if directory { found.is_dir() } else { found.is_file() };
            Ok(Some(Found { uid: found.uid(), mode: found.mode(), right_kind }))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// What lies in the data directory.
pub(super) fn data(dir: &Path) -> Reading<Existing> {
    let wrong = |error: std::io::Error| why(&dir.display().to_string(), &error);
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Existing::Nothing),
        Err(error) => return Err(wrong(error)),
    };
    let version = dir.join("PG_VERSION");
    match std::fs::read_to_string(&version) {
        Ok(text) => {
            let major = text.trim().parse().map_err(|_| format!("{} holds no version", version.display()))?;
            return Ok(Existing::Database(major));
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(wrong(error)),
    }
    let names: Vec<String> =
        entries.flatten().take(NAMES_MOST).map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    Ok(if names.is_empty() { Existing::Nothing } else { Existing::Other(names) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_is_recognised() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("data");
        assert_eq!(data(&dir).unwrap(), Existing::Nothing);
        std::fs::create_dir(&dir).unwrap();
        assert_eq!(data(&dir).unwrap(), Existing::Nothing);
        std::fs::write(dir.join("notes.txt"), "mine").unwrap();
        assert_eq!(data(&dir).unwrap(), Existing::Other(vec!["notes.txt".into()]));
        std::fs::write(dir.join("PG_VERSION"), "15\n").unwrap();
        assert_eq!(data(&dir).unwrap(), Existing::Database(15));
        std::fs::write(dir.join("PG_VERSION"), "x").unwrap();
        assert!(data(&dir).unwrap_err().contains("PG_VERSION"));
        assert!(data(&dir.join("notes.txt")).is_err(), "a file is no directory");
    }

    #[test]
    fn places_are_looked_at_without_following_links() {
        let home = tempfile::tempdir().unwrap();
        let layout = NodeLayout::new(home.path().join("db1"));
        let text = "[cluster]\nname = \"a\"\n[[node]]\nname = \"w\"\nhost = \"h\"\nwitness = true\n[[node]]\nname = \"d\"\nhost = \"i\"\n";
        let spec = mainstay_model::config::parse(text, &[]).unwrap();
        let (witness, data) = (&spec.nodes[0], &spec.nodes[1]);
        let owners = Owners::of(&layout, true, None);
        assert!(read(&spec, witness, &layout, Stage::New, &owners).iter().all(|place| place.found == Ok(None)));
        std::fs::create_dir(layout.dir()).unwrap();
        std::os::unix::fs::symlink(home.path(), layout.agent()).unwrap();
        let places = read(&spec, witness, &layout, Stage::New, &owners);
        let kinds: Vec<bool> =
            places.iter().filter_map(|place| Some(place.found.as_ref().unwrap().as_ref()?.right_kind)).collect();
        assert_eq!(kinds, [true, false]);
        let count = |stage: Stage| read(&spec, data, &layout, stage, &owners).len();
        assert!(count(Stage::Joined) > count(Stage::New));
    }
}

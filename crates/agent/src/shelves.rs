//! The repositories as this agent knows them: each that the specification names, with what the owner of its archive wrote last (docs/adr/0043).

use crate::archiver;
use mainstay_model::spec::Vault;
use mainstay_model::vault::{ArchiveState, BackupState, BackupsOf, RepositoryAnswer, archive_key};
use mainstay_model::{Lsn, Position, RepositoryName, Timeline};
use mainstay_ports::store::Store;
use mainstay_vault::postgres::several::Elsewhere;
use mainstay_vault::repository::{Repository, VaultError};
use std::path::Path;

/// One repository.
#[derive(Clone, Debug)]
pub struct Shelf {
    /// By what it is called.
    pub name: RepositoryName,
    /// The vault with this repository alone.
    pub vault: Vault,
    /// The servers keep no log for it.
    pub optional: bool,
    /// There is no other one.
    pub alone: bool,
    /// What the owner wrote last under this name, perhaps about another place.
    pub told: Option<ArchiveState>,
}

/// All of them, in the order of preference.
#[must_use]
pub fn all(vault: &Vault, store: &dyn Store) -> Vec<Shelf> {
    let each = vault.each();
    let alone = each.len() == 1;
    let shelf = |table: mainstay_model::repositories::RepositoryPlace| {
        let told = archiver::parse(store.watch(&archive_key(&table.name)).borrow().as_ref());
        let vault = vault.only(&table.name)?;
        Some(Shelf { name: table.name, vault, optional: table.optional, alone, told })
    };
    each.into_iter().filter_map(shelf).collect()
}

/// Where a vault with one repository has it.
#[must_use]
pub fn place(vault: &Vault) -> String {
    vault.place().map(|place| place.display().to_string()).unwrap_or_default()
}

impl Shelf {
    /// What the owner wrote of this very place, once it has reached it.
    #[must_use]
    pub fn known(&self) -> Option<&ArchiveState> {
        let place = place(&self.vault);
        self.told.as_ref().filter(|state| state.repository == place && !state.id.is_empty())
    }

    /// How backups stand in it.
    #[must_use]
    pub fn backups(&self, state: &BackupState) -> BackupsOf {
        state.of(&self.name, self.known().map(|known| known.id.as_str()), self.alone)
    }

    /// Its name, where people must be told which one is meant.
    #[must_use]
    pub fn called(&self) -> Option<RepositoryName> {
        (!self.alone).then(|| self.name.clone())
    }

    /// Under what its backups, failures and drills are filed: the only one is remembered by its name too, so that it keeps them when another comes.
    /// `None`: as it was before there could be several.
    #[must_use]
    pub(crate) fn filed(&self) -> Option<RepositoryName> {
        Some(self.name.clone()).filter(|name| !self.alone || *name != RepositoryName::main())
    }

    /// The command as it is to be typed, so that it is about this one.
    pub(crate) fn typed(&self, command: &str) -> String {
        self.called().map_or_else(|| command.to_owned(), |name| format!("{command} --repository {name}"))
    }

    /// Before a sentence about it, where there are several.
    pub(crate) fn says(&self, text: String) -> String {
        if self.alone { text } else { format!("{}: {text}", self.name) }
    }

    /// Opens it; nothing is made.
    ///
    /// # Errors
    /// Why not, or that nothing was archived there yet.
    pub(crate) fn open(&self) -> Result<Repository, VaultError> {
        let none = || VaultError::Impossible(format!("nothing was archived to {} yet", place(&self.vault)));
        let known = self.known().ok_or_else(none)?;
        archiver::open(&self.vault, Some(&known.id))
    }
}

/// What is to be set to change the place of this one.
#[must_use]
pub(crate) fn place_key(name: &RepositoryName, alone: bool) -> String {
    own_key(name, alone, "vault.repository", "place")
}

/// What is to be set to name another key file for this one.
#[must_use]
pub(crate) fn key_file_key(name: &RepositoryName, alone: bool) -> String {
    own_key(name, alone, "vault.key_file", "key_file")
}

/// By `of_vault` where it is the only one and has no name of its own.
fn own_key(name: &RepositoryName, alone: bool, of_vault: &str, field: &str) -> String {
    let nameless = alone && *name == RepositoryName::main();
    if nameless { of_vault.to_owned() } else { format!("vault.repository.{name}.{field}") }
}

/// Is this the repository that another name has already? Two places may differ as texts and be one, by a link or an address written otherwise: then two
/// would archive, remove, and be counted as two copies. Of two that are known the first one in the order goes on.
pub(crate) fn check_apart(all: &[Shelf], name: &RepositoryName, id: &str) -> Result<(), VaultError> {
    let has = |shelf: &Shelf| shelf.known().is_some_and(|known| known.id == id);
    let mine = all.iter().position(|shelf| shelf.name == *name && has(shelf)).unwrap_or(all.len());
    let others = all.iter().take(mine);
    let Some(other) = others.into_iter().find(|shelf| shelf.name != *name && has(shelf)) else { return Ok(()) };
    Err(VaultError::Impossible(format!(
        "{name} and {} are one repository: give {name} another place (`mainstay set {}=…`)",
        other.name,
        place_key(name, false)
    )))
}

/// Why repositories were passed over, a sentence each.
pub(crate) fn passed_over(shelves: &[Shelf], passed: &[(usize, VaultError)]) -> Vec<String> {
    let says = |(at, error): &(usize, VaultError)| Some(shelves.get(*at)?.says(error.to_string()));
    passed.iter().filter_map(says).collect()
}

/// The end where none of them serves: the first one's, and what is wrong with the others.
pub(crate) fn none_has_it(shelves: &[Shelf], mut passed: Vec<(usize, VaultError)>) -> VaultError {
    if passed.len() < 2 {
        let none = || VaultError::Impossible("no repository is named".to_owned());
        return passed.pop().map_or_else(none, |(_, error)| error);
    }
    let says = passed_over(shelves, &passed).join("; ");
    let later = |error: &VaultError| matches!(error, VaultError::NotArchived(_) | VaultError::NothingLater(_));
    let never = |error: &VaultError| matches!(error, VaultError::Impossible(_));
    // What may come later, or from one that can be reached again, is no reason to give up for good.
    match passed.iter().find(|(_, error)| !never(error)) {
        Some((_, error)) if later(error) => VaultError::NotArchived(says),
        Some(_) => VaultError::Server(says),
        None => VaultError::Impossible(says),
    }
}

/// Those that may be taken, and the others: one that was named is the only one to plan on, and files may come from any.
pub(crate) fn named(all: Vec<Shelf>, name: Option<&RepositoryName>) -> (Vec<Shelf>, Vec<Shelf>) {
    all.into_iter().partition(|shelf| name.is_none_or(|name| shelf.name == *name))
}

/// The others, opened when something of this one is damaged. `more`: those that could not be taken.
pub(crate) fn elsewhere(shelves: &[Shelf], at: usize, more: &[Shelf]) -> Elsewhere {
    let others = shelves.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, shelf)| shelf);
    let one = |all: Elsewhere, shelf: Shelf| all.and(Path::new(&place(&shelf.vault)), move || shelf.open());
    others.chain(more).cloned().fold(Elsewhere::default(), one)
}

/// How they stand, for commands; nothing where there is at most one.
#[must_use]
pub fn answers(shelves: &[Shelf]) -> Vec<RepositoryAnswer> {
    let several = shelves.len() > 1;
    let answer = |shelf: &Shelf| RepositoryAnswer {
        name: shelf.name.clone(),
        place: place(&shelf.vault),
        optional: shelf.optional,
        state: shelf.told.clone(),
    };
    shelves.iter().filter(|_| several).map(answer).collect()
}

/// Up to where the servers may let go of their log: what the first repository and each that is not optional hold without a hole. A position on
/// another timeline than the server's may lie beyond the place where that was left: until one on this server's own is told, all is kept.
#[must_use]
pub fn let_go(archived: impl Iterator<Item = (bool, Option<Position>)>, timeline: Option<Timeline>) -> Option<Lsn> {
    let counts = archived.enumerate().filter(|(at, (optional, _))| *at == 0 || !optional);
    let held = counts.map(|(_, (_, reached))| reached.filter(|at| Some(at.timeline) == timeline).map(|at| at.lsn));
    // `None` comes before every position: one that holds nothing keeps all.
    held.min().flatten()
}

/// The same, as the store tells it.
#[must_use]
pub fn archived(vault: &Vault, store: &dyn Store, timeline: Option<Timeline>) -> Option<Lsn> {
    let shelves = all(vault, store);
    let reached = |shelf: &Shelf| (shelf.optional, shelf.told.as_ref().and_then(|state| state.archived));
    let_go(shelves.iter().map(reached), timeline)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shelf(called: &str, id: &str) -> Shelf {
        let place = format!("/{called}");
        let told = ArchiveState { repository: place.clone(), id: id.to_owned(), ..ArchiveState::default() };
        let vault = Vault { repository: place.as_str().into(), ..Vault::default() };
        Shelf { name: name(called), vault, optional: false, alone: false, told: Some(told) }
    }

    fn name(text: &str) -> RepositoryName {
        RepositoryName::new(text).unwrap()
    }

    #[test]
    fn one_repository_under_two_names_is_served_under_one_of_them() {
        let apart =
            |all: &[Shelf], called: &str| check_apart(all, &name(called), "x").map_err(|error| error.to_string());
        let all = [shelf("near", "x"), shelf("far", "")];
        assert_eq!(apart(&all, "near"), Ok(()));
        let says = "near are one repository: give far another place (`mainstay set vault.repository.far.place=…`)";
        assert!(apart(&all, "far").unwrap_err().contains(says));
        assert_eq!(apart(&[shelf("near", "x"), shelf("far", "y")], "near"), Ok(()));
        // Put before the one that has it; and both at once.
        assert!(apart(&[shelf("new", ""), shelf("near", "x")], "new").is_err());
        let both = [shelf("near", "x"), shelf("far", "x")];
        assert!(apart(&both, "near").is_ok() && apart(&both, "far").is_err());
        // What stands of a place that has this name no more says nothing.
        let mut moved = shelf("near", "x");
        moved.vault.repository = "/other".into();
        assert_eq!(apart(&[moved, shelf("far", "")], "far"), Ok(()));
    }

    #[test]
    fn one_that_is_named_is_planned_on_alone_and_the_others_heal() {
        let all = vec![shelf("near", "x"), shelf("far", "y")];
        let any = |elsewhere: &Elsewhere| format!("{elsewhere:?}").contains("others: [\"/");
        let (taken, others) = named(all.clone(), Some(&name("far")));
        assert_eq!((taken.len(), taken[0].name.as_str(), others.len()), (1, "far", 1));
        assert!(any(&elsewhere(&taken, 0, &others)));
        let (taken, others) = named(all.clone(), None);
        assert!(taken.len() == 2 && others.is_empty() && any(&elsewhere(&taken, 1, &others)));
        assert!(!any(&elsewhere(&all[..1], 0, &[])));
    }

    #[test]
    fn the_servers_let_go_of_what_every_repository_that_counts_holds() {
        let at = |timeline: u32, lsn: u64| Some(Position { timeline: Timeline(timeline), lsn: Lsn(lsn) });
        let held = |all: &[(bool, Option<Position>)]| let_go(all.iter().copied(), Some(Timeline(2))).map(|lsn| lsn.0);
        assert_eq!(held(&[]), None, "nothing is archived");
        assert_eq!(held(&[(false, at(2, 9))]), Some(9));
        assert_eq!(held(&[(false, at(2, 9)), (false, at(2, 5))]), Some(5));
        assert_eq!(held(&[(false, at(2, 9)), (true, at(2, 5))]), Some(9), "an optional one keeps nothing");
        assert_eq!(held(&[(false, at(2, 9)), (true, None), (false, at(2, 7))]), Some(7));
        assert_eq!(held(&[(false, at(2, 9)), (false, None)]), None, "it was never reached: all is kept");
        assert_eq!(held(&[(false, at(1, 9)), (false, at(2, 5))]), None, "it tells of the timeline before");
        assert_eq!(held(&[(true, None), (false, at(2, 5))]), None, "the first one always counts");
    }
}

//! What is to be done when somebody asks for a backup or a restore drill: in which repository, and with what.

use crate::backup_job::Job;
use crate::backups::{Backups, PATIENCE, Told, parse, rate};
use crate::restore_drill as drill;
use crate::setup::entropy;
use crate::shelves::{self, Shelf, place};
use mainstay_model::vault::{ArchiveState, BACKUP_KEY, BackupState, BackupWish};
use mainstay_model::{RepositoryName, ServerState, Term};
use mainstay_vault::postgres::backup::{self, Options, Watch};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// In which repository.
fn chosen<'a>(all: &'a [Shelf], wish: &BackupWish, state: &BackupState) -> Result<&'a Shelf, String> {
    let first = all.first().ok_or("no repository is named: mainstay set vault.repository=/a/folder")?;
    let named = |name: &RepositoryName| {
        let names: Vec<&str> = all.iter().map(|shelf| shelf.name.as_str()).collect();
        let none = || format!("there is no repository {name}; there are: {}", names.join(", "));
        all.iter().find(|shelf| shelf.name == *name).ok_or_else(none)
    };
    let none = || "there is no backup yet that could be restored: mainstay backup".to_owned();
    match (&wish.repository, wish.drill) {
        (None, false) => Ok(first),
        (None, true) => turn(all, state).ok_or_else(none),
        (Some(name), false) => named(name),
        (Some(name), true) => {
            let shelf = named(name)?;
            let nothing = || {
                format!("there is no backup in {name} yet that could be restored: mainstay backup --repository {name}")
            };
            if shelf.backups(state).last.is_some() { Ok(shelf) } else { Err(nothing()) }
        }
    }
}

/// Drills take turns: the next one after the last one's, of those that hold a backup.
fn turn<'a>(all: &'a [Shelf], state: &BackupState) -> Option<&'a Shelf> {
    let last = state.drill.as_ref().and_then(|drill| drill.repository.as_ref());
    let after = all.iter().position(|shelf| Some(&shelf.name) == last).map_or(0, |at| at + 1);
    let (before, next) = all.split_at_checked(after)?;
    next.iter().chain(before).find(|shelf| shelf.backups(state).last.is_some())
}

impl Backups {
    /// What is to be done, if it can be; the term; and under which repository it is filed.
    pub(crate) fn job(&self, wish: &BackupWish, told: Told) -> Result<(Job, Term, Option<RepositoryName>), String> {
        let all = shelves::all(&self.generations.now().spec.vault, &*self.store);
        let state = parse(self.store.watch(BACKUP_KEY).borrow().as_ref());
        let shelf = chosen(&all, wish, &state)?;
        let none = || format!("the log is not archived to {} yet; see mainstay archive status", place(&shelf.vault));
        let archive = shelf.known().ok_or_else(none)?;
        shelves::check_apart(&all, &shelf.name, &archive.id).map_err(|error| error.to_string())?;
        let seen = self.observed.borrow();
        let fit = seen.state == ServerState::Primary || seen.state == ServerState::Standby && seen.receiving;
        if !fit {
            return Err(format!("the server of {} is neither a primary nor a replica that streams", self.me));
        }
        let (socket, port) = self.engine.local_address().ok_or("this node has no server")?;
        let mut server = backup::server();
        server.host_path(socket).port(port);
        let options = Options {
            server,
            primary: None,
            data: self.data.clone(),
            by: self.me.to_string(),
            threads: std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).clamp(1, 4)),
            patience: PATIENCE,
        };
        let watch = Arc::new(Watch::default());
        watch.rate.store(rate(&shelf.vault), Ordering::Relaxed);
        let drill = wish.drill.then(|| self.drill_job(archive, shelf, &wish.by)).transpose()?;
        let (vault, known, incremental) = (shelf.vault.clone(), archive.id.clone(), wish.incremental);
        let name = shelf.name.clone();
        let job = Job { name, vault, known, incremental, options, watch, told, drill };
        Ok((job, archive.term, shelf.filed()))
    }

    fn drill_job(&self, archive: &ArchiveState, shelf: &Shelf, by: &str) -> Result<drill::Job, String> {
        let spec = &self.generations.now().spec;
        let bin = mainstay_engine_postgres::find_bin_dir(spec.postgres.bin_dir.as_deref());
        Ok(drill::Job {
            node: self.me.clone(),
            by: by.to_owned(),
            place: self.drill.clone(),
            system: archive.system.ok_or("the archive does not say of which database it is")?,
            bin: bin.map_err(|error| error.to_string())?,
            chance: entropy().map_err(|error| error.to_string())?,
            most: Duration::from_secs(shelf.vault.drill_minutes.saturating_mul(60)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_model::spec::Vault;
    use mainstay_model::vault::{BackupMade, DrillDone};

    fn name(text: &str) -> RepositoryName {
        RepositoryName::new(text).unwrap()
    }

    fn shelf(called: &str, alone: bool) -> Shelf {
        let place = format!("/{called}");
        let told = ArchiveState { repository: place.clone(), id: called.to_owned(), ..ArchiveState::default() };
        let vault = Vault { repository: place.as_str().into(), ..Vault::default() };
        Shelf { name: name(called), vault, optional: false, alone, told: Some(told) }
    }

    fn with_backups(names: &[&str]) -> BackupState {
        let mut state = BackupState::default();
        for called in names {
            let made = crate::schedule::tests::made(1);
            let made = made.map(|made| BackupMade { repository: (*called).to_owned(), ..made });
            state.note(&name(called), |of| of.last = made);
        }
        state
    }

    #[test]
    fn a_backup_goes_to_the_first_unless_another_is_named() {
        let (all, state) = ([shelf("near", false), shelf("far", false)], BackupState::default());
        let wish = |called: Option<&str>| BackupWish { repository: called.map(name), ..BackupWish::default() };
        let taken = |wish: &BackupWish| chosen(&all, wish, &state).map(|shelf| shelf.name.to_string());
        assert_eq!(taken(&wish(None)).unwrap(), "near");
        assert_eq!(taken(&wish(Some("far"))).unwrap(), "far");
        assert_eq!(taken(&wish(Some("fax"))).unwrap_err(), "there is no repository fax; there are: near, far");
        assert!(chosen(&[], &wish(None), &state).unwrap_err().contains("no repository is named"));
    }

    #[test]
    fn drills_take_turns_among_those_that_hold_a_backup() {
        let all = [shelf("near", false), shelf("far", false), shelf("away", false)];
        let mut state = with_backups(&["near", "far"]);
        let mut order = Vec::new();
        for _ in 0..4 {
            let taken = turn(&all, &state).unwrap().name.clone();
            order.push(taken.to_string());
            state.drill = Some(DrillDone { repository: Some(taken), ..DrillDone::default() });
        }
        assert_eq!(order, ["near", "far", "near", "far"]);
        assert!(turn(&all, &with_backups(&[])).is_none());
        let wish = |called: &str| BackupWish { repository: Some(name(called)), drill: true, ..BackupWish::default() };
        assert_eq!(chosen(&all, &wish("far"), &state).unwrap().name, name("far"));
        assert!(chosen(&all, &wish("away"), &state).unwrap_err().contains("no backup in away yet"));
        // As it was before there could be several.
        let alone = BackupState { last: crate::schedule::tests::made(1), ..BackupState::default() };
        assert_eq!(turn(&[shelf("main", true)], &alone).unwrap().name, RepositoryName::main());
    }
}

//! What `[vault]` must satisfy beyond its types: places that can hold, keys that do not lie in them, times that are some.

use crate::config_reference::find;
use crate::repositories::{REPOSITORIES_MAX, Repositories, RepositoryPlace};
use crate::spec::{Spec, Vault};
use std::path::Path;

/// Takes every mistake: key, text.
type Add<'a> = &'a mut dyn FnMut(String, String);

/// Hands every mistake to `add`.
pub(crate) fn vault(spec: &Spec, add: Add<'_>) {
    let vault = &spec.vault;
    for (key, value) in [
        ("vault.switch_s", vault.switch_s),
        ("vault.keep", vault.keep),
        ("vault.keep_days", vault.keep_days),
        ("vault.backup_mb_s", vault.backup_mb_s),
        ("vault.drill_minutes", vault.drill_minutes),
    ] {
        bounds(key, key, value, add);
    }
    if vault.clone_nodes && !vault.archives() {
        let says = "vault.clone_nodes needs backups, and no repository is named: add vault.repository";
        add("vault.clone_nodes".to_owned(), says.to_owned());
    }
    texts(vault, add);
    times(vault, add);
    if vault.key_file.is_some() && !vault.archives() {
        let says = "key_file opens a repository, and none is named: add vault.repository";
        add("vault.key_file".to_owned(), says.to_owned());
    }
    absolute("vault.key_file", "vault.key_file", vault.key_file.as_deref(), add);
    several(vault, add);
    for (at, table) in vault.each().iter().enumerate() {
        place(spec, (at, table), add);
    }
}

fn bounds(key: &str, shown: &str, value: u64, add: Add<'_>) {
    let Some((least, most)) = find(key).and_then(|known| known.bounds) else { return };
    if value < least || value > most {
        add(shown.to_owned(), format!("{key} = {value} is out of bounds: {least} to {most}"));
    }
}

fn times(vault: &Vault, add: Add<'_>) {
    let times = [
        ("vault.full_at", &vault.full_at),
        ("vault.incremental_at", &vault.incremental_at),
        ("vault.drill_at", &vault.drill_at),
    ];
    for (key, text) in times {
        if let Some(Err(why)) = text.as_deref().map(crate::cron::Cron::parse) {
            add(key.to_owned(), format!("{key} is no time: {why}"));
        }
        if text.is_some() && !vault.archives() {
            let says = format!("{key} needs backups, and no repository is named: add vault.repository");
            add(key.to_owned(), says);
        }
    }
}

/// `shown`: where it stands in the file.
fn absolute(key: &str, shown: &str, path: Option<&Path>, add: Add<'_>) {
    let Some(path) = path.filter(|path| !path.is_absolute()) else { return };
    let none = if path.as_os_str().is_empty() && key == shown {
        format!(" (to take it away: mainstay set --unset {key})")
    } else {
        String::new()
    };
    add(shown.to_owned(), format!("{key} = {:?} must be an absolute path{none}", path.display()));
}

/// Rules between several.
fn several(vault: &Vault, add: Add<'_>) {
    let Repositories::Several(tables) = &vault.repository else { return };
    if tables.len() > REPOSITORIES_MAX {
        let says = format!("{} repositories are named: {REPOSITORIES_MAX} at most", tables.len());
        add("vault.repository".to_owned(), says);
    }
    if tables.first().is_some_and(|first| first.optional) {
        let says = "the first repository can not be optional: the servers keep their log for it; put one before it that is not";
        add("vault.repository.0.optional".to_owned(), says.to_owned());
    }
    for (at, table) in tables.iter().enumerate() {
        let before = tables.get(..at).unwrap_or_default();
        if before.iter().any(|other| other.name == table.name) {
            let says = format!("a second repository is called {:?}", table.name.as_str());
            add(format!("vault.repository.{at}.name"), says);
        }
        let within = |other: &&RepositoryPlace| {
            other.place == table.place
                || same_bucket(&other.place, &table.place)
                || (!crate::bucket::is_bucket(&other.place)
                    && (table.place.starts_with(&other.place) || other.place.starts_with(&table.place)))
        };
        if let Some(other) = before.iter().find(within) {
            let says =
                format!("{} and {} lie in one place: each repository needs one of its own", other.name, table.name);
            add(format!("vault.repository.{at}.place"), says);
        }
    }
}

/// Do two addresses name one place? How it is reached, by which keys and within which time, makes no other one of it.
fn same_bucket(one: &Path, other: &Path) -> bool {
    let read = |place: &Path| crate::bucket::Address::parse(place.to_str().unwrap_or_default()).ok();
    let (Some(one), Some(other)) = (read(one), read(other)) else { return false };
    one.is_where(&other)
}

/// One repository by itself.
fn place(spec: &Spec, (at, table): (usize, &RepositoryPlace), add: Add<'_>) {
    let tables = matches!(spec.vault.repository, Repositories::Several(_));
    let shown = |field: &str| {
        if tables { format!("vault.repository.{at}.{field}") } else { "vault.repository".to_owned() }
    };
    let key = if tables { "vault.repository.place" } else { "vault.repository" };
    let text = table.place.to_string_lossy();
    if text.chars().any(char::is_control) {
        add(shown("place"), format!("{key} = {text:?} holds control characters: write it without them"));
    }
    if !crate::bucket::is_bucket(&table.place) {
        absolute(key, &shown("place"), Some(&table.place), add);
    } else {
        match crate::bucket::Address::parse(table.place.to_str().unwrap_or_default()) {
            Err(why) => add(shown("place"), why),
            Ok(address) if address.as_of().is_some() => {
                let says = format!(
                    "{key} has as_of in its address: nothing can be written through it, so nothing would be archived; name it with --repository where you read"
                );
                add(shown("place"), says);
            }
            Ok(_) => {}
        }
    }
    for (field, value) in [("keep", table.keep), ("keep_days", table.keep_days)] {
        value.into_iter().for_each(|value| bounds(&format!("vault.repository.{field}"), &shown(field), value, add));
    }
    absolute("vault.repository.key_file", &shown("key_file"), table.key_file.as_deref(), add);
    let own = table.key_file.as_deref().filter(|file| file.to_string_lossy().chars().any(char::is_control));
    if let Some(file) = own {
        let says = format!("key_file = {:?} holds control characters: write it without them", file.display());
        add(shown("key_file"), says);
    }
    let key_file = table.key_file.as_deref().or(spec.vault.key_file.as_deref());
    if key_file.is_some_and(|file| file.starts_with(&table.place)) {
        let field = if table.key_file.is_some() { shown("key_file") } else { "vault.key_file".to_owned() };
        let says = "key_file lies inside the repository: whoever has the one has the other; keep it elsewhere";
        add(field, says.to_owned());
    }
    for node in spec.data_nodes() {
        if table.place.starts_with(spec.node_dir(node).join("data")) {
            let says = format!("the repository lies in the data directory of {}: it would be lost with it", node.name);
            add(shown("place"), says);
        }
    }
}

/// Texts that come to stand in settings, requests and lines of a log.
fn texts(vault: &Vault, add: Add<'_>) {
    let texts = [
        ("vault.key_file", vault.key_file.as_ref().map(|path| path.to_string_lossy().into_owned())),
        ("vault.drill_query", vault.drill_query.clone()),
        ("vault.drill_database", Some(vault.drill_database.clone())),
    ];
    for (key, text) in texts {
        let Some(text) = text else { continue };
        let is_query = key == "vault.drill_query";
        // A query may have lines; what else is empty is said where it is looked at.
        let control = |c: char| c.is_control() && !(is_query && ['\n', '\t', '\r'].contains(&c));
        if text.chars().any(control) {
            add(key.to_owned(), format!("{key} = {text:?} holds control characters: write it without them"));
        }
        if key.starts_with("vault.drill") && text.trim().is_empty() {
            let says = format!("{key} is empty: name it (to have the default again: mainstay set --unset {key})");
            add(key.to_owned(), says);
        }
    }
}

//! Where a cluster's log and backups are kept: nowhere, in one repository, or in several in the order of preference (docs/adr/0043).

use crate::ids::RepositoryName;
use crate::spec::Vault;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// So many at most: each has threads of its own, and costs the upload once more.
pub const REPOSITORIES_MAX: usize = 4;

/// One of several: a table `[[vault.repository]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepositoryPlace {
    /// By what it is called.
    pub name: RepositoryName,
    /// A folder that every data node reaches under this path, or the address of a bucket.
    pub place: PathBuf,
    /// Its key, if it is encrypted; else that of the vault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// The servers keep no log for it: while it is away it may get a gap.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
    /// So many of the newest backups; else as the vault says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<u64>,
    /// Every moment of so many days; else as the vault says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_days: Option<u64>,
}

impl RepositoryPlace {
    /// One that says nothing but where it is.
    #[must_use]
    pub fn plain(name: RepositoryName, place: PathBuf) -> Self {
        Self { name, place, key_file: None, optional: false, keep: None, keep_days: None }
    }
}

/// What stands behind `vault.repository`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Repositories {
    /// Nothing is archived.
    #[default]
    None,
    /// One, named `main`. Written as agents read it that know no other.
    One(PathBuf),
    /// Tables, the first one preferred.
    Several(Vec<RepositoryPlace>),
}

impl Repositories {
    /// Is nothing archived?
    #[must_use]
    pub fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// One table that says nothing of its own is written as agents read it that know no tables.
    fn of(mut tables: Vec<RepositoryPlace>) -> Self {
        let plain =
            |table: &RepositoryPlace| *table == RepositoryPlace::plain(RepositoryName::main(), table.place.clone());
        match tables.as_slice() {
            [] => Self::None,
            [only] if plain(only) => tables.pop().map_or(Self::None, |only| Self::One(only.place)),
            _ => Self::Several(tables),
        }
    }
}

impl From<&str> for Repositories {
    fn from(place: &str) -> Self {
        Self::One(place.into())
    }
}

impl From<PathBuf> for Repositories {
    fn from(place: PathBuf) -> Self {
        Self::One(place)
    }
}

/// A text, or tables. Written out, so that a mistake in a table is named as it is elsewhere.
struct Written;

impl<'de> Visitor<'de> for Written {
    type Value = Repositories;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text (where the repository is), or tables [[vault.repository]]")
    }
    fn visit_str<E: Error>(self, place: &str) -> Result<Repositories, E> {
        Ok(place.into())
    }
    fn visit_unit<E: Error>(self) -> Result<Repositories, E> {
        Ok(Repositories::None)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, tables: A) -> Result<Repositories, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(tables)).map(Repositories::of)
    }
}

impl<'de> Deserialize<'de> for Repositories {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Written)
    }
}

impl Vault {
    /// All repositories in the order of preference, as they are written.
    #[must_use]
    pub fn each(&self) -> Vec<RepositoryPlace> {
        match &self.repository {
            Repositories::None => Vec::new(),
            Repositories::One(place) => vec![RepositoryPlace::plain(RepositoryName::main(), place.clone())],
            Repositories::Several(tables) => tables.clone(),
        }
    }

    /// Their names, in the same order.
    #[must_use]
    pub fn names(&self) -> Vec<RepositoryName> {
        self.each().into_iter().map(|table| table.name).collect()
    }

    /// Is the log archived?
    #[must_use]
    pub fn archives(&self) -> bool {
        !self.repository.is_none()
    }

    /// Are there several? Else nobody needs to be told which one is meant.
    #[must_use]
    pub fn several(&self) -> bool {
        matches!(&self.repository, Repositories::Several(tables) if tables.len() > 1)
    }

    /// Where the repository is; of several, the first one.
    #[must_use]
    pub fn place(&self) -> Option<&Path> {
        match &self.repository {
            Repositories::None => None,
            Repositories::One(place) => Some(place),
            Repositories::Several(tables) => tables.first().map(|table| table.place.as_path()),
        }
    }

    /// The same vault with this repository alone, and what holds for it: whoever works with one needs to know of no other.
    #[must_use]
    pub fn only(&self, name: &RepositoryName) -> Option<Vault> {
        let table = self.each().into_iter().find(|table| table.name == *name)?;
        Some(Vault {
            repository: Repositories::One(table.place),
            key_file: table.key_file.or_else(|| self.key_file.clone()),
            keep: table.keep.unwrap_or(self.keep),
            keep_days: table.keep_days.unwrap_or(self.keep_days),
            ..self.clone()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> RepositoryName {
        RepositoryName::new(text).unwrap()
    }

    #[test]
    fn one_repository_is_read_and_written_as_before_there_could_be_several() {
        let vault = Vault { repository: "/srv/vault".into(), key_file: Some("/k".into()), ..Vault::default() };
        let text = serde_json::to_string(&vault).unwrap();
        assert!(text.starts_with(r#"{"repository":"/srv/vault","key_file":"/k","switch_s":60"#), "{text}");
        assert_eq!(serde_json::from_str::<Vault>(&text).unwrap(), vault);
        assert_eq!(vault.only(&RepositoryName::main()), Some(vault.clone()));
        assert_eq!((vault.names(), vault.several()), (vec![RepositoryName::main()], false));
        let none: Vault = serde_json::from_str("{}").unwrap();
        assert!(none.repository.is_none() && !serde_json::to_string(&none).unwrap().contains("repository"));
        // A single table that says nothing of its own is that one, too.
        let table: Vault = serde_json::from_str(r#"{"repository":[{"name":"main","place":"/srv/vault"}]}"#).unwrap();
        assert_eq!(table.repository, "/srv/vault".into());
        assert_eq!(serde_json::from_str::<Vault>(r#"{"repository":[]}"#).unwrap(), none);
    }

    #[test]
    fn each_of_several_has_what_it_says_and_else_what_the_vault_says() {
        let text = r#"{"key_file":"/k","keep":5,"keep_days":7,"repository":[
            {"name":"near","place":"/n"},
            {"name":"far","place":"s3://logs/far","key_file":"/far","optional":true,"keep":2,"keep_days":0}]}"#;
        let vault: Vault = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::from_str::<Vault>(&serde_json::to_string(&vault).unwrap()).unwrap(), vault);
        assert_eq!(vault.names(), [name("near"), name("far")]);
        assert!(vault.several() && vault.archives() && vault.only(&name("main")).is_none());
        let near = vault.only(&name("near")).unwrap();
        assert_eq!((near.place(), near.keep), (Some(Path::new("/n")), 5));
        assert_eq!(near.key_file, Some("/k".into()));
        let far = vault.only(&name("far")).unwrap();
        assert_eq!((far.bucket(), far.keep, far.keep_days), (Some("s3://logs/far"), 2, 0));
        assert_eq!(far.key_file, Some("/far".into()));
        for (wrong, says) in [
            (r#"{"repository":5}"#, "tables [[vault.repository]]"),
            (r#"{"repository":[{"name":"Near","place":"/n"}]}"#, "is not a name"),
            (r#"{"repository":[{"name":"near"}]}"#, "place"),
        ] {
            let error = serde_json::from_str::<Vault>(wrong).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}

//! `vault.repository.NAME.KEY` in `mainstay set`: one of several repositories by its name. A new name adds one, and the one that stood alone becomes
//! the table `main` then.

use crate::config_assign::Operation;
use crate::config_reference::{Effect, Key, REPOSITORY, find, keys_of};
use crate::repositories::Repositories;
use crate::spec::Vault;
use crate::{RepositoryName, config::nearest};
use toml::{Table, Value};

/// What a key names.
pub(crate) struct Named<'a> {
    /// The repository.
    pub(crate) name: &'a str,
    /// A key of it; `None`: the repository as a whole.
    pub(crate) field: Option<&'a str>,
}

/// `vault.repository.far`, `vault.repository.far.place`.
pub(crate) fn named(key: &str) -> Option<Named<'_>> {
    let rest = key.strip_prefix(REPOSITORY)?.strip_prefix('.')?;
    let (name, field) = rest.split_once('.').map_or((rest, None), |(name, field)| (name, Some(field)));
    Some(Named { name, field })
}

impl Named<'_> {
    /// Its entry in the table of all keys, if it names one.
    pub(crate) fn key(&self) -> Result<Option<&'static Key>, String> {
        RepositoryName::new(self.name).map_err(|error| format!("{REPOSITORY}.{}: {error}", self.name))?;
        let Some(field) = self.field else { return Ok(None) };
        let known = find(&format!("{REPOSITORY}.{field}")).ok_or_else(|| {
            let fields = keys_of(REPOSITORY).unwrap_or_default();
            let advice = nearest(field, &fields).map_or_else(
                || format!("known: {}", fields.join(", ")),
                |near| format!("did you mean {REPOSITORY}.{}.{near}?", self.name),
            );
            format!("unknown key {field:?} of a repository; {advice}")
        })?;
        match known.effect {
            Effect::Elsewhere(instead) => Err(format!("{REPOSITORY}.{}.{field} can not be set: {instead}", self.name)),
            _ => Ok(Some(known)),
        }
    }

    /// Takes a whole repository away.
    pub(crate) fn change(&self, root: &mut Table, operation: &Operation) -> Result<(), String> {
        self.key()?;
        if *operation != Operation::Unset {
            return Err(format!("say where it is: {REPOSITORY}.{0}.place=/a/folder (or s3://…, azure://…)", self.name));
        }
        let none = || format!("there is no repository {:?}", self.name);
        let tables = tables(root).ok_or_else(none)?;
        let before = tables.len();
        tables.retain(|table| table.get("name").and_then(Value::as_str) != Some(self.name));
        if tables.len() == before { Err(none()) } else { Ok(()) }
    }
}

/// One place would silently take the place of all others.
pub(crate) fn check_alone(vault: &Vault, operation: &Operation) -> Result<(), String> {
    match (&vault.repository, operation) {
        (Repositories::Several(tables), Operation::Set(_)) => {
            let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
            Err(format!(
                "{REPOSITORY} is several tables ({}): say {REPOSITORY}.NAME.place=…; `mainstay set --unset {REPOSITORY}.NAME` takes one away",
                names.join(", ")
            ))
        }
        _ => Ok(()),
    }
}

/// The list of tables; one that stands alone becomes the first.
fn tables(root: &mut Table) -> Option<&mut Vec<Value>> {
    let vault = root.entry("vault").or_insert_with(|| Value::Table(Table::new())).as_table_mut()?;
    let value = vault.entry("repository").or_insert_with(|| Value::Array(Vec::new()));
    if let Some(place) = value.as_str() {
        let mut main = Table::new();
        main.insert("name".to_owned(), RepositoryName::main().to_string().into());
        main.insert("place".to_owned(), place.into());
        *value = Value::Array(vec![Value::Table(main)]);
    }
    value.as_array_mut()
}

/// The table of this repository, a new one at the end if there is none.
pub(crate) fn table<'a>(root: &'a mut Table, name: &str) -> Option<&'a mut Table> {
    let tables = tables(root)?;
    let is = |table: &Value| table.get("name").and_then(Value::as_str) == Some(name);
    if !tables.iter().any(is) {
        let mut new = Table::new();
        new.insert("name".to_owned(), name.into());
        tables.push(Value::Table(new));
    }
    tables.iter_mut().find(|table| is(table))?.as_table_mut()
}

/// What stands in tables is told by name, not by its place in a list.
pub(crate) fn take_tables(root: &mut Table) {
    let Some(vault) = root.get_mut("vault").and_then(Value::as_table_mut) else { return };
    if vault.get("repository").is_some_and(Value::is_array) {
        vault.remove("repository");
    }
}

#[cfg(test)]
mod tests {
    use crate::config::parse;
    use crate::config_assign::{Assignment, Operation, assign, difference};
    use crate::spec::Spec;

    const FILE: &str = "[cluster]\nname = \"a\"\n[[node]]\nname = \"db1\"\nhost = \"10.0.0.1\"\n";

    fn set(spec: &Spec, text: &str) -> Result<Spec, String> {
        assign(spec, &[Assignment::parse(text).unwrap()], &[]).map_err(|error| error.to_string())
    }

    fn unset(spec: &Spec, key: &str) -> Result<Spec, String> {
        let change = Assignment { key: key.to_owned(), operation: Operation::Unset };
        assign(spec, &[change], &[]).map_err(|error| error.to_string())
    }

    #[test]
    fn repositories_are_added_changed_and_taken_away_by_their_names() {
        let alone = parse(&format!("{FILE}[vault]\nrepository = \"/near\"\n"), &[]).unwrap();
        let both = set(&alone, "vault.repository.far.place=s3://logs/far").unwrap();
        let names: Vec<String> = both.vault.names().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["main", "far"]);
        let both = set(&both, "vault.repository.far.optional=true").unwrap();
        let told: Vec<String> = difference(&alone, &both).iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "vault.repository: /near → (not set)",
                "vault.repository.far.optional: (not set) → true",
                "vault.repository.far.place: (not set) → s3://logs/far",
                "vault.repository.main.place: (not set) → /near",
            ]
        );
        let again = set(&both, "vault.repository.far.keep=3").unwrap();
        assert_eq!(difference(&both, &again).len(), 1);
        let one = unset(&again, "vault.repository.far").unwrap();
        assert_eq!(one.vault, alone.vault, "the one that is left stands alone again");
        assert!(unset(&both, "vault.repository").unwrap().vault.repository.is_none());
        let first = set(&parse(FILE, &[]).unwrap(), "vault.repository.near.place=/near").unwrap();
        assert_eq!(first.vault.names().len(), 1);
    }

    #[test]
    fn what_can_not_be_is_refused_with_the_way() {
        let alone = parse(&format!("{FILE}[vault]\nrepository = \"/near\"\n"), &[]).unwrap();
        let both = set(&alone, "vault.repository.far.place=/far").unwrap();
        for (spec, text, says) in [
            (&alone, "vault.repository.far=/x", "say where it is: vault.repository.far.place="),
            (&alone, "vault.repository.far.keep=3", "place"),
            (&alone, "vault.repository.Far.place=/x", "is not a name"),
            (&both, "vault.repository.far.plcae=/x", "did you mean vault.repository.far.place?"),
            (&both, "vault.repository.far.name=x", "keeps its name"),
            (&both, "vault.repository=/x", "is several tables (main, far)"),
            (&both, "vault.repository.main.optional=true", "the first repository can not be optional"),
            (&both, "vault.repository.far.place=/near", "lie in one place"),
            (&both, "vault.repository.far.place=far", "must be an absolute path"),
            (&both, "vault.repository.far.keep=0", "out of bounds: 1 to 100000"),
        ] {
            let error = set(spec, text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
        let bucket = set(&both, "vault.repository.far.place=s3://logs/far?endpoint=https://minio:9000").unwrap();
        let third = |place: &str| set(&bucket, &format!("vault.repository.third.place={place}"));
        let same = "s3://logs/far/?endpoint=https://minio:9000/&timeout=5&credentials=/k";
        assert!(third(same).unwrap_err().contains("lie in one place"));
        let azure =
            |account: &str| format!("azure://logs?account={account}&endpoint=https://stack.example&credentials=/k");
        let near = set(&both, &format!("vault.repository.far.place={}", azure("near"))).unwrap();
        let third = |place: &str| set(&near, &format!("vault.repository.third.place={place}"));
        assert!(third(&azure("faraway")).is_ok(), "another account's container");
        assert!(third("s3://logs?endpoint=https://stack.example").is_ok(), "another protocol");
        assert!(
            third(&azure("near").replace("stack.example", "stack.example:443"))
                .unwrap_err()
                .contains("lie in one place")
        );
        for other in [same.replace("minio", "other"), same.replace("/far", "/third"), same.replace("logs", "more")] {
            assert!(third(&other).is_ok(), "{other}");
        }
        assert!(unset(&both, "vault.repository.near").unwrap_err().contains("there is no repository"));
    }

    #[test]
    fn tables_are_read_with_their_lines_and_written_so_that_they_are_read_again() {
        let tables = "[vault]\nkeep = 5\n[[vault.repository]]\nname = \"near\"\nplace = \"/near\"\n[[vault.repository]]\nname = \"far\"\n";
        let far = "place = \"/far\"\noptional = true\nkeep_days = 3\nkey_file = \"/k\"\n";
        let spec = parse(&format!("{FILE}{tables}{far}"), &[]).unwrap();
        let text = crate::config::render(&spec);
        assert_eq!(parse(&text, &[]).unwrap(), spec, "{text}");
        let errors = |more: &str| parse(&format!("{FILE}{tables}{more}"), &[]).unwrap_err().to_string();
        assert!(errors("").contains("place"));
        let says = "line 14: unknown key \"kep\" in [vault.repository]; did you mean \"keep\"?";
        assert_eq!(errors("place = \"/far\"\nkep = 3\n"), says);
        let says = "line 13: near and far lie in one place: each repository needs one of its own";
        assert_eq!(errors("place = \"/near\"\n"), says);
    }
}

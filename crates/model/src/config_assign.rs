//! `KEY=VALUE` on a specification, and what differs between two. The result passes the same reader as the file, so that every mistake has the
//! same words. PURE.

use crate::config::{ConfigError, ConfigProblem, nearest, parse, render};
use crate::config_reference::{Effect, KEYS, Kind, REPOSITORY, find};
use crate::repositories::Repositories;
use crate::spec::Spec;
use std::collections::BTreeMap;
use toml::{Table, Value};

/// The table with free keys.
const PARAMETERS: &str = "postgres.parameters";

/// One wanted change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// `failover.lease_ms`, `node.db1.zone`, `postgres.parameters.work_mem`.
    pub key: String,
    /// What to do with it.
    pub operation: Operation,
}

/// What to do with a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `KEY=VALUE`.
    Set(String),
    /// `KEY+=LINE`, for lists.
    Add(String),
    /// `KEY-=LINE`, for lists.
    Remove(String),
    /// Back to the default.
    Unset,
}

impl Assignment {
    /// Reads `KEY=VALUE`, `KEY+=VALUE`, `KEY-=VALUE`.
    ///
    /// # Errors
    /// When there is no `=`, or no key before it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let form = || format!("{text:?} is not KEY=VALUE, as failover.lease_ms=4000");
        let (key, value) = text.split_once('=').ok_or_else(form)?;
        let value = value.trim().to_owned();
        let (key, operation) = match (key.strip_suffix('+'), key.strip_suffix('-')) {
            (Some(key), _) => (key, Operation::Add(value)),
            (_, Some(key)) => (key, Operation::Remove(value)),
            _ => (key, Operation::Set(value)),
        };
        let key = key.trim().to_owned();
        if key.is_empty() { Err(form()) } else { Ok(Self { key, operation }) }
    }
}

/// The specification with these changes.
///
/// # Errors
/// Every key that is unknown or not to be changed this way, then every mistake that the file's reader finds.
pub fn assign(spec: &Spec, changes: &[Assignment], owned: &[&str]) -> Result<Spec, ConfigError> {
    let mut table: Table = toml::from_str(&render(spec)).map_err(|error| alone("", error.message()))?;
    let mut problems = Vec::new();
    for change in changes {
        if let Err(text) = apply(&mut table, spec, change) {
            problems.push(ConfigProblem { line: None, key: change.key.clone(), text });
        }
    }
    if !problems.is_empty() {
        return Err(ConfigError { problems });
    }
    let text = toml::to_string(&table).map_err(|error| alone("", &error.to_string()))?;
    parse(&text, owned).map_err(|error| without_lines(error, changes))
}

/// Are these keys known, as far as it can be told without knowing which nodes there are by now?
///
/// # Errors
/// Every key that is not.
pub fn check_names(spec: &Spec, changes: &[Assignment]) -> Result<(), ConfigError> {
    let mut problems = Vec::new();
    for change in changes {
        let of_unknown_node = change
            .key
            .strip_prefix("node.")
            .and_then(|rest| rest.split_once('.'))
            .is_some_and(|(name, _)| !spec.nodes.iter().any(|node| node.name.as_str() == name));
        if !of_unknown_node && let Err(text) = Place::of(spec, &change.key) {
            problems.push(ConfigProblem { line: None, key: change.key.clone(), text });
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(ConfigError { problems }) }
}

fn alone(key: &str, text: &str) -> ConfigError {
    ConfigError { problems: vec![ConfigProblem { line: None, key: key.to_owned(), text: text.to_owned() }] }
}

/// Nobody has seen the text that was read: its line numbers say nothing. A problem without key gets the only key that it can mean.
fn without_lines(mut error: ConfigError, changes: &[Assignment]) -> ConfigError {
    for problem in &mut error.problems {
        problem.line = None;
        if problem.key.is_empty()
            && let [only] = changes
        {
            problem.text = format!("{}: {}", only.key, problem.text);
            problem.key.clone_from(&only.key);
        }
    }
    error
}

fn apply(table: &mut Table, spec: &Spec, change: &Assignment) -> Result<(), String> {
    if change.key == REPOSITORY {
        crate::config_repositories::check_alone(&spec.vault, &change.operation)?;
    }
    if let Some(whole) = crate::config_repositories::named(&change.key).filter(|named| named.field.is_none()) {
        return whole.change(table, &change.operation);
    }
    let place = Place::of(spec, &change.key)?;
    let list = matches!(place.kind, Kind::Texts);
    let holder = place.table(table)?;
    let old = holder.get(&place.name).cloned();
    let new = match (&change.operation, list) {
        (Operation::Unset, _) => {
            if old.is_none() && place.required_to_unset() {
                return Err(format!("{} is not set", change.key));
            }
            holder.remove(&place.name);
            return Ok(());
        }
        (Operation::Set(text), _) => value_of(place.kind, text),
        (Operation::Add(text), true) => Value::Array(added(old, text)),
        (Operation::Remove(text), true) => Value::Array(removed(old, text, &change.key)?),
        (_, false) => return Err(format!("{} is no list: say {}=VALUE", change.key, change.key)),
    };
    holder.insert(place.name.clone(), new);
    Ok(())
}

fn lines(old: Option<Value>) -> Vec<Value> {
    match old {
        Some(Value::Array(lines)) => lines,
        _ => Vec::new(),
    }
}

fn added(old: Option<Value>, text: &str) -> Vec<Value> {
    let mut all = lines(old);
    let line = Value::String(text.to_owned());
    if !all.contains(&line) {
        all.push(line);
    }
    all
}

fn removed(old: Option<Value>, text: &str, key: &str) -> Result<Vec<Value>, String> {
    let mut all = lines(old);
    let before = all.len();
    all.retain(|line| line.as_str() != Some(text));
    if all.len() == before { Err(format!("{key} has no line {text:?}")) } else { Ok(all) }
}

/// A value as its kind asks: texts need no quotes on the command line; what does not fit is left to the reader, which says so.
fn value_of(kind: Kind, text: &str) -> Value {
    let as_toml =
        || toml::from_str::<Table>(&format!("value = {text}")).ok().and_then(|mut table| table.remove("value"));
    let plain = || Value::String(text.to_owned());
    match kind {
        Kind::Text | Kind::Free => match as_toml() {
            Some(Value::String(inner)) => Value::String(inner),
            Some(Value::Boolean(on)) if kind == Kind::Free => Value::Boolean(on),
            _ => plain(),
        },
        _ => as_toml().unwrap_or_else(plain),
    }
}

/// Where a key stands.
struct Place {
    node: Option<usize>,
    repository: Option<String>,
    table: Vec<&'static str>,
    name: String,
    kind: Kind,
}

impl Place {
    fn of(spec: &Spec, key: &str) -> Result<Place, String> {
        if let Some(name) = key.strip_prefix(PARAMETERS).and_then(|rest| rest.strip_prefix('.')) {
            // Server parameters have no upper and lower case: the spelling that stands there is the one that is changed.
            let known = spec.postgres.parameters.keys().find(|known| known.eq_ignore_ascii_case(name));
            let name = known.cloned().unwrap_or_else(|| name.to_owned());
            let table = vec!["postgres", "parameters"];
            return Ok(Place { node: None, repository: None, table, name, kind: Kind::Free });
        }
        if let Some((name, field)) = key.strip_prefix("node.").and_then(|rest| rest.split_once('.')) {
            return Self::of_node(spec, name, field);
        }
        if let Some(named) = crate::config_repositories::named(key) {
            let known = named.key()?;
            let name = known.map_or_else(String::new, |known| known.name.to_owned());
            let kind = known.map_or(Kind::Table, |known| known.kind);
            return Ok(Place { node: None, repository: Some(named.name.to_owned()), table: Vec::new(), name, kind });
        }
        let known = find(key).filter(|known| known.table != "node").ok_or_else(|| unknown(spec, key))?;
        if let Effect::Elsewhere(instead) = known.effect {
            return Err(format!("{key} can not be set: {instead}"));
        }
        if known.kind == Kind::Free {
            return Err(format!("{key} is a table: set one parameter, as {PARAMETERS}.work_mem=16MB"));
        }
        let table = if known.table.is_empty() { Vec::new() } else { vec![known.table] };
        Ok(Place { node: None, repository: None, table, name: known.name.to_owned(), kind: known.kind })
    }

    fn of_node(spec: &Spec, name: &str, field: &str) -> Result<Place, String> {
        let names: Vec<&str> = spec.nodes.iter().map(|node| node.name.as_str()).collect();
        let Some(place) = names.iter().position(|known| *known == name) else {
            let advice = nearest(name, &names).map(|near| format!("did you mean {near}? ")).unwrap_or_default();
            return Err(format!("there is no node {name:?}; {advice}the nodes are {}", names.join(", ")));
        };
        let Some(known) = find(&format!("node.{field}")) else {
            let fields = crate::config_reference::keys_of("node").unwrap_or_default();
            let advice = nearest(field, &fields).map_or_else(
                || format!("known: {}", fields.join(", ")),
                |near| format!("did you mean node.{name}.{near}?"),
            );
            return Err(format!("unknown key {field:?} of a node; {advice}"));
        };
        if let Effect::Elsewhere(instead) = known.effect {
            return Err(format!("node.{name}.{field} can not be set: {instead}"));
        }
        let (name, kind) = (known.name.to_owned(), known.kind);
        Ok(Place { node: Some(place), repository: None, table: Vec::new(), name, kind })
    }

    fn table<'a>(&self, root: &'a mut Table) -> Result<&'a mut Table, String> {
        let broken = || "the specification can not be written as a table".to_owned();
        let mut table = root;
        if let Some(name) = &self.repository {
            return crate::config_repositories::table(table, name).ok_or_else(broken);
        }
        if let Some(place) = self.node {
            let nodes = table.get_mut("node").and_then(Value::as_array_mut).ok_or_else(broken)?;
            return nodes.get_mut(place).and_then(Value::as_table_mut).ok_or_else(broken);
        }
        for step in &self.table {
            let inner = table.entry((*step).to_owned()).or_insert_with(|| Value::Table(Table::new()));
            table = inner.as_table_mut().ok_or_else(broken)?;
        }
        Ok(table)
    }

    /// A parameter that is not there was probably mistyped; a key of ours at its default is what was asked for.
    fn required_to_unset(&self) -> bool {
        self.kind == Kind::Free
    }
}

/// An unknown key, with what was probably meant.
fn unknown(spec: &Spec, key: &str) -> String {
    let last = key.rsplit('.').next().unwrap_or(key);
    let mut paths: Vec<String> = KEYS
        .iter()
        .filter(|known| !known.table.is_empty() && known.table != "node" && known.table != REPOSITORY)
        .map(crate::config_reference::Key::path)
        .collect();
    for node in &spec.nodes {
        paths.extend(
            KEYS.iter().filter(|known| known.table == "node").map(|known| format!("node.{}.{}", node.name, known.name)),
        );
    }
    let same: Vec<String> = paths
        .iter()
        .filter(|path| path.rsplit('.').next() == Some(last) && !path.starts_with("node."))
        .cloned()
        .collect();
    if !same.is_empty() {
        return format!("unknown key {key:?}; did you mean {}?", same.join(" or "));
    }
    let known: Vec<&str> = paths.iter().map(String::as_str).collect();
    if let Some(near) = nearest(key, &known) {
        return format!("unknown key {key:?}; did you mean {near}?");
    }
    let advice = if key.contains('.') {
        String::new()
    } else {
        format!("; a server parameter is set as {PARAMETERS}.{key}=VALUE")
    };
    format!("unknown key {key:?}{advice} (all keys: docs/configuration.md, or `mainstay set` for what is in force)")
}

/// One difference between two specifications.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The key as `mainstay set` takes it.
    pub key: String,
    /// What stood there; `None`: the default, or nothing.
    pub old: Option<String>,
    /// What stands there now.
    pub new: Option<String>,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "(not set)".to_owned());
        write!(f, "{}: {} → {}", self.key, shown(&self.old), shown(&self.new))
    }
}

/// What differs, in the order of the keys.
#[must_use]
pub fn difference(old: &Spec, new: &Spec) -> Vec<Difference> {
    let (old, new) = (flat(old), flat(new));
    let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
    keys.sort();
    keys.dedup();
    keys.into_iter()
        .filter(|key| old.get(*key) != new.get(*key))
        .map(|key| Difference { key: key.clone(), old: old.get(key).cloned(), new: new.get(key).cloned() })
        .collect()
}

fn flat(spec: &Spec) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let Ok(mut table) = Table::try_from(spec) else { return found };
    table.remove("node");
    crate::config_repositories::take_tables(&mut table);
    flatten("", &table, &mut found);
    let tables = match &spec.vault.repository {
        Repositories::Several(tables) => tables.as_slice(),
        _ => &[],
    };
    for repository in tables {
        let Ok(mut fields) = Table::try_from(repository) else { continue };
        fields.remove("name");
        flatten(&format!("{REPOSITORY}.{}", repository.name), &fields, &mut found);
    }
    for node in &spec.nodes {
        let Ok(mut fields) = Table::try_from(node) else { continue };
        fields.remove("name");
        flatten(&format!("node.{}", node.name), &fields, &mut found);
    }
    found
}

fn flatten(path: &str, table: &Table, found: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match value {
            Value::Table(inner) => flatten(&path, inner, found),
            Value::String(text) => {
                found.insert(path, text.clone());
            }
            other => {
                found.insert(path, other.to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNED: &[&str] = &["port", "primary_conninfo"];

    fn spec() -> Spec {
        let text = "[cluster]\nname = \"a\"\n[[node]]\nname = \"db1\"\nhost = \"10.0.0.1\"\n[[node]]\nname = \"db2\"\nhost = \"10.0.0.2\"\n\
                    [postgres]\nhba = [\"host all all all md5\"]\n[postgres.parameters]\nWork_Mem = \"4MB\"\n";
        parse(text, OWNED).unwrap()
    }

    fn set(texts: &[&str]) -> Result<Spec, String> {
        let changes: Vec<Assignment> = texts.iter().map(|text| Assignment::parse(text).unwrap()).collect();
        assign(&spec(), &changes, OWNED).map_err(|error| error.to_string())
    }

    fn shown(texts: &[&str]) -> Vec<String> {
        difference(&spec(), &set(texts).unwrap()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn keys_of_every_kind_are_set() {
        assert_eq!(shown(&["cluster.durability=available"]), ["cluster.durability: strict → available"]);
        for waits in ["on", "remote_apply", "TRUE"] {
            assert_eq!(shown(&[&format!("postgres.parameters.synchronous_commit={waits}")]).len(), 1, "{waits}");
        }
        let both = ["cluster.durability=async", "postgres.parameters.synchronous_commit=off"];
        assert_eq!(shown(&both).len(), 2, "without replicas to wait for it is the operator's own affair");
        assert_eq!(shown(&["failover.lease_ms=4000"]), ["failover.lease_ms: 3000 → 4000"]);
        assert_eq!(shown(&["proxy.on_nodes=false"]), ["proxy.on_nodes: true → false"]);
        assert_eq!(shown(&["node.db2.zone=1"]), ["node.db2.zone: (not set) → 1"]);
        assert_eq!(shown(&["node.db2.port = 5433"]), ["node.db2.port: 5432 → 5433"]);
        assert_eq!(
            shown(&["postgres.parameters.max_connections=300"]),
            ["postgres.parameters.max_connections: (not set) → 300"]
        );
        assert_eq!(
            shown(&["postgres.parameters.pg_stat_statements.max=10"]),
            ["postgres.parameters.pg_stat_statements.max: (not set) → 10"]
        );
        assert_eq!(shown(&["postgres.parameters.jit=false"]), ["postgres.parameters.jit: (not set) → off"]);
        assert_eq!(shown(&["postgres.parameters.work_mem='8 MB'"]), ["postgres.parameters.Work_Mem: 4MB → 8 MB"]);
        assert_eq!(shown(&["failover.lease_ms=3000"]), Vec::<String>::new());
    }

    #[test]
    fn lists_grow_shrink_and_are_replaced() {
        let lines = |texts: &[&str]| set(texts).unwrap().postgres.hba;
        assert_eq!(
            lines(&["postgres.hba+=hostssl all all all scram-sha-256"]),
            ["host all all all md5", "hostssl all all all scram-sha-256"]
        );
        assert_eq!(lines(&["postgres.hba+=host all all all md5"]).len(), 1, "a line that is there is not added twice");
        assert_eq!(lines(&["postgres.hba-=host all all all md5"]), Vec::<String>::new());
        assert_eq!(lines(&["postgres.hba=[\"local all all peer\"]"]), ["local all all peer"]);
        assert!(set(&["postgres.hba-=nonsense"]).unwrap_err().contains("has no line"));
        assert!(set(&["failover.lease_ms+=1"]).unwrap_err().contains("is no list"));
    }

    #[test]
    fn unset_goes_back_to_the_default() {
        let unset = |key: &str| {
            let change = Assignment { key: key.into(), operation: Operation::Unset };
            assign(&set(&["failover.sync_replicas=1", "failover.lease_ms=9000"]).unwrap(), &[change], OWNED)
        };
        assert_eq!(unset("failover.sync_replicas").unwrap().failover.sync_replicas, None);
        assert_eq!(unset("failover.lease_ms").unwrap().failover.lease_ms, 3000);
        assert!(unset("postgres.parameters.work_mem").unwrap().postgres.parameters.is_empty());
        assert!(unset("postgres.parameters.wrk_mem").unwrap_err().to_string().contains("is not set"));
    }

    #[test]
    fn mistakes_name_the_key_and_the_way_out() {
        for (text, words) in [
            ("durability=async", "did you mean cluster.durability?"),
            ("max_connections=300", "did you mean proxy.max_connections?"),
            ("failover.leese_ms=1", "did you mean failover.lease_ms?"),
            ("work_mem=1", "a server parameter is set as postgres.parameters.work_mem=VALUE"),
            ("node.db9.zone=a", "did you mean db1? the nodes are db1, db2"),
            ("node.db1.zoen=a", "did you mean node.db1.zone?"),
            ("node.db1.host=10.0.0.9", "mainstay node replace"),
            ("cluster.name=b", "keeps its name"),
            ("postgres.parameters=1", "set one parameter"),
            ("failover=1", "name one of its keys"),
            ("cluster.durability=paranoid", "unknown variant `paranoid`"),
            ("failover.lease_ms=soon", "failover.lease_ms: invalid type"),
            ("failover.lease_ms=-1", "failover.lease_ms: invalid value"),
            ("failover.lease_ms=1", "out of bounds: 500 to 600000"),
            ("failover.sync_replicas=0", "protects no commit"),
            ("failover.sync_replicas=5", "can have 1 replica at most"),
            ("postgres.parameters.port=1", "is Mainstay's own"),
            ("postgres.parameters.synchronous_commit=off", "acknowledge commits that no replica holds"),
            ("postgres.parameters.synchronous_commit=remote_write", "acknowledge commits that no replica holds"),
            ("postgres.hba=[\"allow\"]", "is not one line of pg_hba.conf"),
        ] {
            let error = set(&[text]).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
            assert!(!error.starts_with("line "), "{text}: {error}");
        }
        assert!(Assignment::parse("failover.lease_ms").unwrap_err().contains("KEY=VALUE"));
        assert!(Assignment::parse("=1").is_err());
    }

    #[test]
    fn all_unknown_keys_are_named_at_once() {
        let error = set(&["a=1", "b=2"]).unwrap_err();
        assert!(error.contains("\"a\"") && error.contains("\"b\""), "{error}");
    }

    #[test]
    fn nodes_that_come_and_go_are_shown_by_name() {
        let mut less = spec();
        less.nodes.remove(1);
        let gone: Vec<String> = difference(&spec(), &less).iter().map(ToString::to_string).collect();
        assert!(gone.contains(&"node.db2.host: 10.0.0.2 → (not set)".to_owned()), "{gone:?}");
    }
}

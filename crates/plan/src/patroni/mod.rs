//! From a Patroni configuration to a specification, with a verdict on every leaf of what was read: carried over, changed, or left behind.
//!
//! Read are the nodes' own files (`patroni.yml`) and the dynamic configuration (`patronictl show-config`). Passwords go nowhere: what is left
//! behind is told by its place, without what it says. Absent: the data itself, which no file holds.

mod book;
mod nodes;
mod reasons;
pub(crate) mod secrets;
mod settings;
#[cfg(test)]
mod tests;
mod wishes;
mod yaml;

pub use book::Fate;
use book::{Book, Verdict};
use mainstay_model::config_check::check;
use mainstay_model::spec::{Cluster, EngineKind, Postgres, Spec};
use serde::Serialize;
use yaml::{Item, Node};

/// A file that was read.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// What it is called in the report.
    pub name: &'a str,
    /// What it holds.
    pub text: &'a str,
}

/// What became of one leaf.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The file.
    pub file: String,
    /// The line.
    pub line: usize,
    /// The key as a path, `postgresql.pg_hba[0]`.
    pub key: String,
    /// What became of it.
    pub fate: Fate,
    /// The key of `mainstay.toml`, if it became one.
    pub to: Option<String>,
    /// What it says; `null` for everything that was left behind, as that may be a secret.
    pub value: Option<String>,
    /// Why; empty where nothing needs to be said.
    pub why: String,
}

/// What was made.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    /// The specification.
    pub spec: Spec,
    /// One entry for each leaf, in the order of files and lines.
    pub entries: Vec<Entry>,
    /// What no single line says.
    pub notes: Vec<String>,
}

/// Why nothing was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What is wrong, and where.
    pub text: String,
    /// What to do.
    pub hint: String,
}

fn refused(text: impl Into<String>, hint: impl Into<String>) -> Refused {
    Refused { text: text.into(), hint: hint.into() }
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A node's own.
    Node,
    /// The cluster's dynamic configuration.
    Dynamic,
}

/// Where the dynamic configuration stands.
#[derive(Clone, Copy, Debug)]
struct Dynamic {
    file: usize,
    prefix: &'static [&'static str],
}

impl Dynamic {
    fn path<'a>(&self, rest: &[&'a str]) -> Vec<&'a str>
    where
        'static: 'a,
    {
        self.prefix.iter().copied().chain(rest.iter().copied()).collect()
    }
}

/// Where it stands in a node's file; it was taken from there once, when the cluster began.
const AT_BEGINNING: &[&str] = &["bootstrap", "dcs"];

/// Everything that was read.
struct Input<'a> {
    sources: &'a [Source<'a>],
    nodes: Vec<usize>,
    dynamic: Option<Dynamic>,
}

impl Input<'_> {
    fn name(&self, file: usize) -> &str {
        self.sources.get(file).map_or("?", |source| source.name)
    }
}

/// Reads the files. `owned` are the server parameters that the engine keeps for itself.
///
/// # Errors
/// When one of them is not Patroni's, they are of several clusters, or what they say makes no cluster.
pub fn import(sources: &[Source<'_>], owned: &[&str]) -> Result<Imported, Refused> {
    let mut book = Book::default();
    let input = read(sources, &mut book)?;
    let mut notes = Vec::new();
    let (name, members) = nodes::nodes(&input, &mut book, &mut notes)?;
    let wished = wishes::wishes(&input, &mut book, &members, &mut notes);
    let parameters = settings::parameters(&input, &mut book, owned);
    let hba = settings::access(&input, &mut book);
    let bin_dir = nodes::programs(&input, &mut book);
    wishes::slots(&input, &mut book, &members);
    repeated(&input, &mut book);
    reasons::rest(&input, &mut book);
    let spec = Spec {
        cluster: Cluster { name, engine: EngineKind::Postgres, durability: wished.durability },
        nodes: members.into_iter().map(|member| member.node).collect(),
        failover: wished.failover,
        store: Default::default(),
        proxy: Default::default(),
        postgres: Postgres { bin_dir, parameters, hba, archive_command: None },
        vault: Default::default(),
        requirements: Default::default(),
    };
    let wrong: Vec<String> = check(&spec, owned).into_iter().map(|problem| problem.text).collect();
    if !wrong.is_empty() {
        let text = format!("what these files say makes no cluster here:\n{}", wrong.join("\n"));
        return Err(refused(text, "put that right in copies of the files, and import those"));
    }
    Ok(Imported { spec, entries: entries(&input, &book), notes })
}

fn read<'a>(sources: &'a [Source<'a>], book: &mut Book) -> Result<Input<'a>, Refused> {
    let mut input = Input { sources, nodes: Vec::new(), dynamic: None };
    for (file, source) in sources.iter().enumerate() {
        let unread = |why: String| {
            refused(
                format!("{}: {why}", source.name),
                "a Patroni configuration is one YAML document; nothing was written",
            )
        };
        let root = yaml::read(source.text).map_err(unread)?;
        match kind(&root) {
            Some(Kind::Node) => input.nodes.push(file),
            Some(Kind::Dynamic) => {
                if let Some(other) = input.dynamic {
                    let text =
                        format!("{} and {} are both dynamic configurations", input.name(other.file), source.name);
                    return Err(refused(
                        text,
                        "a cluster has one: name that which `patronictl show-config` prints now",
                    ));
                }
                input.dynamic = Some(Dynamic { file, prefix: &[] });
            }
            None => {
                let text = format!(
                    "{} is no configuration of Patroni: it has neither the keys of a node's file (scope, restapi, postgresql, bootstrap) nor those of the dynamic configuration (ttl, loop_wait, postgresql)",
                    source.name
                );
                return Err(refused(
                    text,
                    "name the nodes' patroni.yml, and a file with what `patronictl show-config` prints",
                ));
            }
        }
        book.add(file, &root).map_err(unread)?;
    }
    if input.nodes.is_empty() {
        return Err(refused(
            "none of the files describes a node: hosts and names stand in each node's own patroni.yml",
            "name those files too, one for each node",
        ));
    }
    if input.dynamic.is_none() {
        let begun = input.nodes.iter().find(|file| !book.under(**file, AT_BEGINNING).is_empty());
        input.dynamic = begun.map(|file| Dynamic { file: *file, prefix: AT_BEGINNING });
    }
    Ok(input)
}

fn get<'a>(item: &'a Item, key: &str) -> Option<&'a Item> {
    let Node::Map(pairs) = &item.node else { return None };
    pairs.iter().find(|(name, _)| name == key).map(|(_, item)| item)
}

/// Keys that only the dynamic configuration has at its top.
const DYNAMIC_KEYS: [&str; 12] = [
    "ttl",
    "loop_wait",
    "retry_timeout",
    "maximum_lag_on_failover",
    "synchronous_mode",
    "synchronous_node_count",
    "master_start_timeout",
    "primary_start_timeout",
    "standby_cluster",
    "failsafe_mode",
    "slots",
    "ignore_slots",
];

fn kind(root: &Item) -> Option<Kind> {
    let has = |key: &str| get(root, key).is_some();
    let server = get(root, "postgresql");
    let server_has = |keys: &[&str]| server.is_some_and(|server| keys.iter().any(|key| get(server, key).is_some()));
    let own = server_has(&["connect_address", "listen", "data_dir"]);
    if has("scope") && (server.is_some() || has("restapi") || has("bootstrap"))
        || own && (has("restapi") || has("name"))
    {
        return Some(Kind::Node);
    }
    let local = ["scope", "name", "restapi", "bootstrap"].iter().any(|key| has(key));
    let shared = ["parameters", "use_pg_rewind", "use_slots", "pg_hba"];
    let dynamic = DYNAMIC_KEYS.iter().any(|key| has(key)) || server_has(&shared) && !own;
    (dynamic && !local).then_some(Kind::Dynamic)
}

/// The dynamic configuration stands in each node's file as it was at the beginning, and may stand in a file of its own.
fn repeated(input: &Input<'_>, book: &mut Book) {
    let Some(dynamic) = input.dynamic else { return };
    let mut verdicts = Vec::new();
    for (id, leaf, verdict) in book.all() {
        let here = leaf.path.iter().take(AT_BEGINNING.len()).map(String::as_str).eq(AT_BEGINNING.iter().copied());
        if !here || verdict.is_some() || dynamic.file == leaf.file && !dynamic.prefix.is_empty() {
            continue;
        }
        if dynamic.prefix.is_empty() {
            let text = format!(
                "it was taken when the cluster was first made; {}, the dynamic configuration of now, counts",
                input.name(dynamic.file)
            );
            verdicts.push((id, Verdict::left(text)));
            continue;
        }
        let path: Vec<&str> = leaf.path.iter().map(String::as_str).collect();
        let verdict = match book.find(dynamic.file, &path) {
            Some((first, scalar)) if leaf.said() == Some(scalar) => {
                book.all().nth(first).and_then(|(_, _, verdict)| verdict.cloned())
            }
            // Said nothing of by a rule of its own: it is told of with the others.
            None if leaf.said().is_none() => None,
            _ => {
                let text = format!("{} says otherwise, or nothing, and was read first", input.name(dynamic.file));
                Some(Verdict::left(text))
            }
        };
        verdicts.extend(verdict.map(|verdict| (id, verdict)));
    }
    for (id, verdict) in verdicts {
        book.say(id, verdict);
    }
}

fn entries(input: &Input<'_>, book: &Book) -> Vec<Entry> {
    let entry = |(_, leaf, verdict): (_, &book::Leaf, Option<&Verdict>)| {
        let forgotten = || Verdict::left("not known to this program: nothing of it was carried over");
        let Verdict { fate, to, value, text } = verdict.cloned().unwrap_or_else(forgotten);
        Entry { file: input.name(leaf.file).to_owned(), line: leaf.line, key: leaf.key(), fate, to, value, why: text }
    };
    book.all().map(entry).collect()
}

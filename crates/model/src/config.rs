//! Config text ↔ spec: reads `mainstay.toml`, names every mistake with its line, and writes a spec back as commented text.
//!
//! PURE, as the whole room: the text comes in as an argument. Which server parameters an engine owns comes in as an argument
//! too, because words do not know engines. What a single setting may hold stands in [`crate::config_check`].

use crate::config_check::check;
use crate::config_reference::{KEYS, TABLES, keys_of, text_of};
use crate::repositories::{Repositories, RepositoryPlace};
use crate::spec::Spec;
use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::path::Path;
use toml::de::{DeTable, DeValue};

/// One mistake in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// The line it stands in, counted from 1; `None` when it is not known (a key that is missing altogether).
    pub line: Option<usize>,
    /// The key as a path, `node.2.host` (nodes counted from 0); empty for the file as a whole.
    pub key: String,
    /// What is wrong, and what to write instead.
    pub text: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.text),
            None => f.write_str(&self.text),
        }
    }
}

/// Everything that is wrong with the file, in the order of the lines. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError {
    /// The mistakes.
    pub problems: Vec<ConfigProblem>,
}

/// Reads the text of a `mainstay.toml`. `owned` are the server parameters that the engine keeps for itself.
///
/// # Errors
/// Every mistake that was found: unknown keys with the nearest known one, values of a wrong type, names and ports that clash,
/// numbers out of bounds, parameters that the engine owns.
pub fn parse(text: &str, owned: &[&str]) -> Result<Spec, ConfigError> {
    let table = DeTable::parse(text).map_err(|error| ConfigError { problems: vec![from_toml(text, &error)] })?;
    let mut lines = BTreeMap::new();
    collect_lines(text, "", table.get_ref(), &mut lines);
    let unknown = unknown_keys(&lines);
    if !unknown.is_empty() {
        return Err(ConfigError { problems: unknown });
    }
    let spec: Spec = toml::from_str(text).map_err(|error| ConfigError { problems: vec![from_toml(text, &error)] })?;
    let mut problems = check(&spec, owned);
    for problem in &mut problems {
        problem.line = line_of(&lines, &problem.key);
    }
    problems.sort_by_key(|problem| problem.line.unwrap_or(0));
    if problems.is_empty() { Ok(spec) } else { Err(ConfigError { problems }) }
}

/// Where each key stands, by its path.
type Lines = BTreeMap<String, usize>;

fn collect_lines(text: &str, path: &str, table: &DeTable<'_>, lines: &mut Lines) {
    for (key, value) in table {
        let path = if path.is_empty() { key.get_ref().to_string() } else { format!("{path}.{}", key.get_ref()) };
        lines.insert(path.clone(), line_at(text, key.span().start));
        match value.get_ref() {
            DeValue::Table(inner) => collect_lines(text, &path, inner, lines),
            DeValue::Array(items) => {
                for (place, item) in items.iter().enumerate() {
                    let path = format!("{path}.{place}");
                    lines.insert(path.clone(), line_at(text, item.span().start));
                    if let DeValue::Table(inner) = item.get_ref() {
                        collect_lines(text, &path, inner, lines);
                    }
                }
            }
            _ => {}
        }
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

/// The line of a key, or of the nearest table around it that the file has.
fn line_of(lines: &Lines, key: &str) -> Option<usize> {
    let mut key = key;
    loop {
        if let Some(line) = lines.get(key) {
            return Some(*line);
        }
        key = key.rsplit_once('.')?.0;
    }
}

fn unknown_keys(lines: &Lines) -> Vec<ConfigProblem> {
    let mut problems: Vec<ConfigProblem> = lines
        .iter()
        .filter_map(|(path, line)| {
            let (table, key) = split_path(path)?;
            let known = keys_of(table)?;
            if known.contains(&key) {
                return None;
            }
            let place = if table.is_empty() { "at the top of the file".to_owned() } else { format!("in [{table}]") };
            let advice = match nearest(key, &known) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("known here: {}", known.join(", ")),
            };
            let text = format!("unknown key {key:?} {place}; {advice}");
            Some(ConfigProblem { line: Some(*line), key: path.clone(), text })
        })
        .collect();
    problems.sort_by_key(|problem| problem.line);
    problems
}

/// `node.2.host` → (`node`, `host`); `None` for what has no fixed keys (items of a list, server parameters).
fn split_path(path: &str) -> Option<(&str, &str)> {
    let (table, key) = path.rsplit_once('.').unwrap_or(("", path));
    let table = match table.rsplit_once('.') {
        Some((list, place)) if place.bytes().all(|byte| byte.is_ascii_digit()) => list,
        _ => table,
    };
    let is_item = key.bytes().all(|byte| byte.is_ascii_digit());
    if is_item && !keys_of(table).is_some_and(|known| known.contains(&key)) {
        return None;
    }
    Some((table, key))
}

/// The known word that differs least from what was written, if it is near enough to be meant.
#[must_use]
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let best = known.iter().map(|candidate| (distance(word, candidate), *candidate)).min()?;
    let allowed = (word.len().max(best.1.len()) / 3).max(2);
    (best.0 <= allowed).then_some(best.1)
}

/// How many letters must be changed, added or removed (Levenshtein).
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = i;
        let mut previous = i + 1;
        for (j, b) in right.iter().enumerate() {
            let above = row.get(j + 1).copied().unwrap_or(usize::MAX);
            let value = (diagonal + usize::from(a != *b)).min(above.saturating_add(1)).min(previous + 1);
            diagonal = above;
            if let Some(cell) = row.get_mut(j) {
                *cell = previous;
            }
            previous = value;
        }
        if let Some(cell) = row.last_mut() {
            *cell = previous;
        }
    }
    row.last().copied().unwrap_or(usize::MAX)
}

/// What the parser calls a value that it misses, and what people call it.
const TYPES: [(&str, &str); 6] = [
    ("expected u8", "expected a whole number from 0 to 255"),
    ("expected u16", "expected a whole number from 0 to 65535"),
    ("expected u32", "expected a whole number"),
    ("expected u64", "expected a whole number"),
    ("expected usize", "expected a whole number"),
    ("expected a boolean", "expected true or false"),
];

fn from_toml(text: &str, error: &toml::de::Error) -> ConfigProblem {
    let start = error.span().map(|span| span.start);
    let mut message = error.message().trim().replace('\n', "; ");
    if let Some(missing) = message.strip_prefix("missing field ") {
        let line = start.filter(|start| *start > 0).map(|start| line_at(text, start));
        let text = format!("the key {missing} is missing");
        return ConfigProblem { line, key: String::new(), text };
    }
    for (ours, words) in TYPES {
        if message.ends_with(ours) {
            message = message.replace(ours, words);
        }
    }
    let line = start.map(|start| line_at(text, start));
    let written = line.and_then(|line| text.lines().nth(line - 1)).map_or("", str::trim);
    if is_ours(written) {
        let _ = write!(message, " (the line reads: {written})");
    }
    ConfigProblem { line, key: String::new(), text: message }
}

/// Does this line name one of the file's own tables or keys? Another one is not quoted: somebody may have named a file that holds a secret.
fn is_ours(line: &str) -> bool {
    if line.starts_with('[') {
        let name = line.split('#').next().unwrap_or_default().trim_matches(['[', ']', ' ', '\t']);
        return !name.is_empty() && TABLES.contains(&name);
    }
    let key = line.split_once('=').map(|(key, _)| key.trim()).unwrap_or_default();
    let name = key.rsplit('.').next().unwrap_or_default().trim();
    KEYS.iter().any(|known| known.name == name)
}

/// Writes the spec as a `mainstay.toml` that a person can read: every table with a comment, settings that stand at their
/// default shown as comments.
#[must_use]
pub fn render(spec: &Spec) -> String {
    let mut out = String::new();
    let cluster = &spec.cluster;
    let _ = write!(
        out,
        "# A Mainstay cluster. The same file on every node; unknown keys are errors.\n\n\
         [cluster]\nname = {}\nengine = \"{}\"\n\
         durability = \"{}\"          # {}\n",
        quoted(cluster.name.as_str()),
        cluster.engine,
        cluster.durability,
        text_of("cluster.durability"),
    );
    for node in &spec.nodes {
        render_node(&mut out, node);
    }
    render_failover(&mut out, spec);
    render_store(&mut out, &spec.store);
    render_proxy(&mut out, spec);
    render_postgres(&mut out, spec);
    render_vault(&mut out, spec);
    render_requirements(&mut out, spec);
    out
}

fn render_node(out: &mut String, node: &crate::spec::Node) {
    let _ = write!(out, "\n[[node]]\nname = {}\nhost = {}\n", quoted(node.name.as_str()), quoted(&node.host));
    if let Some(zone) = &node.zone {
        let _ = writeln!(out, "zone = {}", quoted(zone));
    }
    if node.witness {
        let _ = writeln!(out, "witness = true               # {}", text_of("node.witness"));
    }
    let _ = write!(
        out,
        "port = {}                  # {}\nagent_port = {}            # {}\nhealth_port = {}           # {}\n",
        node.port,
        text_of("node.port"),
        node.agent_port,
        text_of("node.agent_port"),
        node.health_port,
        text_of("node.health_port")
    );
    if let Some(interface) = &node.interface {
        let _ = writeln!(out, "interface = {}", quoted(interface));
    }
    if let Some(dir) = &node.dir {
        let _ = writeln!(out, "dir = {}", quoted(&dir.display().to_string()));
    }
    if let Some(adopt) = &node.adopt {
        let _ = writeln!(out, "adopt = {}", quoted(&adopt.display().to_string()));
    }
    if let Some(adopt) = &node.adopt_standby {
        let _ = writeln!(out, "adopt_standby = {}", quoted(&adopt.display().to_string()));
    }
}

/// A setting, as a comment if it stands at its default.
fn setting<T: fmt::Display + PartialEq>(out: &mut String, path: &str, value: T, default: T) {
    let (key, comment) = (path.rsplit('.').next().unwrap_or(path), text_of(path));
    let mark = if value == default { "# " } else { "" };
    let _ = writeln!(out, "{:<28} # {comment}", format!("{mark}{key} = {value}"));
}

fn render_failover(out: &mut String, spec: &Spec) {
    let (now, default) = (&spec.failover, crate::spec::Failover::default());
    out.push_str("\n[failover]\n");
    setting(out, "failover.ping_ms", now.ping_ms, default.ping_ms);
    setting(out, "failover.suspicion_ms", now.suspicion_ms, default.suspicion_ms);
    setting(out, "failover.lease_ms", now.lease_ms, default.lease_ms);
    setting(out, "failover.margin_percent", now.margin_percent, default.margin_percent);
    let text = text_of("failover.sync_replicas");
    let _ = match now.sync_replicas {
        Some(count) => writeln!(out, "sync_replicas = {count}            # {text}"),
        None => {
            let shown = format!("# sync_replicas = {}", spec.sync_replicas());
            writeln!(out, "{shown:<28} # {text}; default: half of the data nodes")
        }
    };
}

/// Only where it is not the nodes' own.
fn render_store(out: &mut String, store: &crate::spec::Store) {
    if !store.is_etcd() {
        return;
    }
    let endpoints: Vec<String> = store.endpoints.iter().map(|endpoint| quoted(endpoint)).collect();
    let mut lines = vec![("kind", "\"etcd\"".to_owned()), ("endpoints", format!("[{}]", endpoints.join(", ")))];
    lines.push(("prefix", quoted(&store.prefix)));
    let path = |path: &Option<std::path::PathBuf>| path.as_ref().map(|path| quoted(&path.display().to_string()));
    let optional = [
        ("ca_file", path(&store.ca_file)),
        ("cert_file", path(&store.cert_file)),
        ("key_file", path(&store.key_file)),
        ("user", store.user.as_deref().map(quoted)),
        ("password_file", path(&store.password_file)),
    ];
    lines.extend(optional.into_iter().filter_map(|(key, value)| Some((key, value?))));
    out.push_str("\n[store]\n");
    for (key, value) in lines {
        let _ = writeln!(out, "{:<28} # {}", format!("{key} = {value}"), text_of(&format!("store.{key}")));
    }
}

fn render_proxy(out: &mut String, spec: &Spec) {
    let (now, default) = (&spec.proxy, crate::spec::Proxy::default());
    out.push_str("\n[proxy]\n");
    setting(out, "proxy.on_nodes", now.on_nodes, default.on_nodes);
    let mut always = |key: &str, value: String| {
        let _ = writeln!(out, "{:<28} # {}", format!("{key} = {value}"), text_of(&format!("proxy.{key}")));
    };
    if let Some(host) = &now.host {
        always("host", quoted(host));
    }
    always("write_port", now.write_port.to_string());
    always("read_port", now.read_port.to_string());
    if let Some(address) = &now.address {
        always("address", quoted(&address.to_string()));
    }
    if let Some(port) = now.metrics_port {
        always("metrics_port", port.to_string());
    }
    setting(out, "proxy.max_lag_bytes", now.max_lag_bytes, default.max_lag_bytes);
    setting(out, "proxy.hold_ms", now.hold_ms, default.hold_ms);
    setting(out, "proxy.max_connections", now.max_connections, default.max_connections);
    setting(out, "proxy.mode", now.mode, default.mode);
    setting(out, "proxy.pool_size", now.pool_size, default.pool_size);
    setting(out, "proxy.pool_reserve", now.pool_reserve, default.pool_reserve);
    setting(out, "proxy.queue_ms", now.queue_ms, default.queue_ms);
    setting(out, "proxy.commit_outcome", now.commit_outcome, default.commit_outcome);
    setting(out, "proxy.threads", now.threads, default.threads);
}

fn render_postgres(out: &mut String, spec: &Spec) {
    let postgres = &spec.postgres;
    out.push_str("\n[postgres]\n");
    match &postgres.bin_dir {
        Some(dir) => {
            let _ = writeln!(out, "bin_dir = {}", quoted(&dir.display().to_string()));
        }
        None => {
            out.push_str("# bin_dir = \"/usr/lib/postgresql/15/bin\"   # default: the newest of the distribution's\n")
        }
    }
    if postgres.hba.is_empty() {
        out.push_str("# hba = [\"hostssl all all 10.0.0.0/8 scram-sha-256\"]   # lines before the default ones\n");
    } else {
        out.push_str("hba = [\n");
        for line in &postgres.hba {
            let _ = writeln!(out, "  {},", quoted(line));
        }
        out.push_str("]\n");
    }
    match &postgres.archive_command {
        Some(command) => {
            let _ = writeln!(out, "archive_command = {}", quoted(command));
        }
        None => out.push_str(
            "# archive_command = \"pgbackrest --stanza=main archive-push %p\"   # another tool that archives the log\n",
        ),
    }
    out.push_str("\n[postgres.parameters]           # server parameters; the names that Mainstay owns are refused\n");
    for (name, value) in &postgres.parameters {
        let _ = writeln!(out, "{} = {}", key(name), quoted(value));
    }
}

fn render_vault(out: &mut String, spec: &Spec) {
    let (now, default) = (&spec.vault, crate::spec::Vault::default());
    out.push_str("\n[vault]\n");
    let several = matches!(now.repository, Repositories::Several(_));
    let place = now.place().filter(|_| !several).map(Path::to_path_buf);
    for (path, value) in [("vault.repository", &place), ("vault.key_file", &now.key_file)] {
        let key = path.rsplit('.').next().unwrap_or(path);
        let line = match value {
            Some(value) => format!("{key} = {}", quoted(&value.display().to_string())),
            // The tables stand at the end.
            None if several && path == "vault.repository" => continue,
            None => format!("# {key} = \"/an/absolute/path\""),
        };
        let _ = writeln!(out, "{line:<28} # {}", text_of(path));
    }
    setting(out, "vault.switch_s", now.switch_s, default.switch_s);
    setting(out, "vault.keep", now.keep, default.keep);
    setting(out, "vault.keep_days", now.keep_days, default.keep_days);
    setting(out, "vault.backup_mb_s", now.backup_mb_s, default.backup_mb_s);
    setting(out, "vault.clone_nodes", now.clone_nodes, default.clone_nodes);
    setting(out, "vault.drill_minutes", now.drill_minutes, default.drill_minutes);
    setting(out, "vault.drill_database", quoted(&now.drill_database), quoted(&default.drill_database));
    let texts = [
        ("vault.full_at", &now.full_at, "0 2 * * 0"),
        ("vault.incremental_at", &now.incremental_at, "0 2 * * *"),
        ("vault.drill_at", &now.drill_at, "0 4 * * 3"),
        ("vault.drill_query", &now.drill_query, "select count(*) from orders"),
    ];
    for (path, value, example) in texts {
        let key = path.rsplit('.').next().unwrap_or(path);
        let line = match value {
            Some(value) => format!("{key} = {}", quoted(value)),
            None => format!("# {key} = \"{example}\""),
        };
        let _ = writeln!(out, "{line:<28} # {}", text_of(path));
    }
    if let Repositories::Several(tables) = &now.repository {
        tables.iter().for_each(|table| render_repository(out, table));
    }
}

fn render_repository(out: &mut String, table: &RepositoryPlace) {
    let place = |path: &Path| quoted(&path.display().to_string());
    out.push_str("\n[[vault.repository]]\n");
    let lines = [
        ("name", Some(quoted(table.name.as_str()))),
        ("place", Some(place(&table.place))),
        ("key_file", table.key_file.as_deref().map(place)),
        ("optional", table.optional.then(|| "true".to_owned())),
        ("keep", table.keep.map(|keep| keep.to_string())),
        ("keep_days", table.keep_days.map(|days| days.to_string())),
    ];
    for (key, value) in lines {
        let Some(value) = value else { continue };
        let _ = writeln!(out, "{:<28} # {}", format!("{key} = {value}"), text_of(&format!("vault.repository.{key}")));
    }
}

/// Only what was said: forty keys at their defaults would hide the others (docs/configuration.md lists them).
fn render_requirements(out: &mut String, spec: &Spec) {
    let (Ok(now), Ok(default)) = (
        toml::Table::try_from(&spec.requirements),
        toml::Table::try_from(crate::requirements::Requirements::default()),
    ) else {
        return;
    };
    if now == default {
        return;
    }
    out.push_str("\n[requirements]                  # what is asked of the cluster; `mainstay plan` reads it\n");
    for known in crate::config_reference::KEYS.iter().filter(|known| known.table == "requirements") {
        let Some(value) = now.get(known.name).filter(|value| default.get(known.name) != Some(*value)) else { continue };
        let value = match value {
            toml::Value::String(text) => quoted(text),
            toml::Value::Array(items) => {
                let items: Vec<String> = items.iter().filter_map(toml::Value::as_str).map(quoted).collect();
                format!("[{}]", items.join(", "))
            }
            other => other.to_string(),
        };
        let _ = writeln!(out, "{:<28} # {}", format!("{} = {value}", known.name), known.text);
    }
}

/// A key as TOML writes it: bare where the letters allow, else quoted (extensions' parameters hold a dot).
#[must_use]
pub fn key(name: &str) -> String {
    let bare =
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    if bare { name.to_owned() } else { quoted(name) }
}

/// A text as a TOML basic string.
#[must_use]
pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            control if control.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(control));
            }
            plain => out.push(plain),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;

//! Server parameters and lines of `pg_hba.conf`: which of them are in force under Patroni, and which may stay.

use super::book::{Book, Fate, Id, Verdict};
use super::secrets::is_secret;
use super::yaml::Scalar;
use super::{Dynamic, Input};
use std::collections::{BTreeMap, BTreeSet};

/// Patroni takes these from the dynamic configuration alone.
const DYNAMIC_ONLY: [&str; 11] = [
    "max_connections",
    "max_locks_per_transaction",
    "max_prepared_transactions",
    "max_replication_slots",
    "max_wal_senders",
    "max_worker_processes",
    "track_commit_timestamp",
    "wal_keep_segments",
    "wal_keep_size",
    "wal_level",
    "wal_log_hints",
];

/// Versions from 15 on do not know these any more, and would not start.
const GONE: [&str; 10] = [
    "checkpoint_segments",
    "default_with_oids",
    "operator_precedence_warning",
    "replacement_sort_tuples",
    "sql_inheritance",
    "stats_temp_directory",
    "vacuum_cleanup_index_scale_factor",
    "wal_keep_segments",
    "standby_mode",
    "trigger_file",
];

/// Fewer walsenders or slots than Mainstay's default would not leave it room.
const AT_LEAST: [(&str, u64); 2] = [("max_replication_slots", 20), ("max_wal_senders", 20)];

/// Leaves below a key, as the book gives them.
type Below = Vec<(Id, Vec<String>, Scalar)>;

/// A parameter where it stands.
struct Said {
    id: Id,
    /// Which node's file; `None`: the dynamic configuration.
    file: Option<usize>,
    value: String,
}

/// The parameters to keep.
pub(super) fn parameters(input: &Input<'_>, book: &mut Book, owned: &[&str]) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, Vec<Said>> = BTreeMap::new();
    let mut places: Vec<(Option<usize>, Below)> = Vec::new();
    if let Some(dynamic) = input.dynamic {
        places.push((None, book.under(dynamic.file, &dynamic.path(&["postgresql", "parameters"]))));
    }
    for file in &input.nodes {
        places.push((Some(*file), book.under(*file, &["postgresql", "parameters"])));
    }
    for (file, said) in places {
        for (id, rest, scalar) in said {
            let [name] = rest.as_slice() else {
                book.say(id, Verdict::left("a parameter has one value, not a list"));
                continue;
            };
            let name = name.to_ascii_lowercase();
            if file.is_some() && DYNAMIC_ONLY.contains(&name.as_str()) {
                book.say(
                    id,
                    Verdict::left("Patroni takes it from the dynamic configuration alone; here it has no effect"),
                );
                continue;
            }
            all.entry(name).or_default().push(Said { id, file, value: value(&scalar) });
        }
    }
    let mut kept = BTreeMap::new();
    for (name, said) in all {
        let Some(chosen) = chosen(input, &said) else { continue };
        let mut verdict = judged(&name, &chosen.value, owned);
        if verdict.fate != Fate::Left {
            if let Some(taken) = verdict.value.clone().filter(|_| verdict.to.is_some()) {
                kept.insert(name.clone(), taken);
            }
            let nodes = said.iter().filter(|said| said.file.is_some()).count();
            if chosen.file.is_some() && nodes < input.nodes.len() && verdict.text.is_empty() {
                verdict.fate = Fate::Changed;
                verdict.text = "only some nodes had it; here it holds for every node".to_owned();
            }
        }
        tell(input, book, &said, chosen, &verdict);
    }
    kept
}

/// YAML's `on`, unquoted, is a boolean.
fn value(scalar: &Scalar) -> String {
    match scalar.boolean().filter(|_| scalar.plain) {
        Some(true) => "on".to_owned(),
        Some(false) => "off".to_owned(),
        None => scalar.text.clone(),
    }
}

/// Which one holds: a node's own before the dynamic configuration, if all nodes have their own; one value for all nodes.
fn chosen<'a>(input: &Input<'_>, said: &'a [Said]) -> Option<&'a Said> {
    let local = said.iter().filter(|said| said.file.is_some());
    let shared = said.iter().find(|said| said.file.is_none());
    let everywhere = local.clone().count() == input.nodes.len();
    let first = local.clone().next();
    let alike = first.is_some_and(|first| local.clone().all(|said| said.value == first.value));
    match (everywhere && alike, shared) {
        (true, _) | (false, None) => first.or(shared),
        (false, Some(shared)) => Some(shared),
    }
}

fn tell(input: &Input<'_>, book: &mut Book, said: &[Said], chosen: &Said, verdict: &Verdict) {
    for one in said {
        let other = |why: &str| {
            let place = chosen.file.map_or("the dynamic configuration", |file| input.name(file));
            Verdict::left(format!("{why}; what {place} says was taken"))
        };
        let own = if one.file.is_none() {
            if chosen.file.is_some() { other("every node's own file says otherwise") } else { verdict.clone() }
        } else if one.value == chosen.value {
            verdict.clone()
        } else {
            other("it is this node's alone, and there is one value for all nodes")
        };
        book.say(one.id, own);
    }
}

fn judged(name: &str, value: &str, owned: &[&str]) -> Verdict {
    if owned.contains(&name) {
        return mine(name, value);
    }
    if GONE.contains(&name) {
        return Verdict::left("PostgreSQL 15 and later do not know it");
    }
    if is_secret(name, value) {
        return Verdict::left(
            "it looks like a secret, and the file is read by many: set it on the server by other means",
        );
    }
    let names = name.split('.').all(|part| {
        part.starts_with(|letter: char| letter.is_ascii_lowercase() || letter == '_')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$')
    });
    if !names || value.contains(['\n', '\r', '\0']) {
        return Verdict::left("it is no name of a parameter, or its value is no single line");
    }
    let to = format!("postgres.parameters.{name}");
    match name {
        "log_directory"
        | "log_filename"
        | "log_file_mode"
        | "log_rotation_age"
        | "log_rotation_size"
        | "log_truncate_on_rotation" => {
            Verdict::left("the server's messages go through its guard to one log of the node")
        }
        "synchronous_commit" if !["on", "remote_apply"].contains(&value) => Verdict::left(
            "commits would be acknowledged before a replica, or even this server's disk, holds them: cluster.durability says what may be lost; with \
             \"async\" it can be set",
        ),
        "default_transaction_read_only" => Verdict::left("nobody could write, Mainstay itself included"),
        "archive_timeout" => {
            Verdict::left("vault.switch_s does this, once vault.repository says where the log is archived")
        }
        _ => match AT_LEAST.iter().find(|(known, _)| *known == name) {
            Some((_, least)) if value.parse::<u64>().is_ok_and(|value| value < *least) => Verdict {
                to: None,
                ..Verdict::changed(None, least.to_string(), "Mainstay's own default is higher and stays")
            },
            _ => Verdict::carried(to, value),
        },
    }
}

/// Parameters that Mainstay sets itself.
fn mine(name: &str, value: &str) -> Verdict {
    let on = matches!(value.to_ascii_lowercase().as_str(), "on" | "true" | "yes" | "1");
    match name {
        "hot_standby" | "wal_log_hints" | "fsync" | "full_page_writes" | "archive_mode" | "ssl" if on => {
            Verdict::anyway("Mainstay has it on")
        }
        "wal_level" if value.eq_ignore_ascii_case("replica") || value.eq_ignore_ascii_case("hot_standby") => {
            Verdict::anyway("Mainstay has it at replica")
        }
        "wal_level" => {
            Verdict::left("Mainstay keeps wal_level at replica: logical replication from this cluster will not work")
        }
        "archive_command" if value.contains("%p") => Verdict::left(
            "the agent archives the log by itself, once vault.repository says where (docs/backup.md); to go on with this tool, beside that or alone, \
             put the command into postgres.archive_command",
        ),
        "archive_command" | "archive_library" | "archive_cleanup_command" | "restore_command" => Verdict::left(
            "the agent archives the log and fetches it back by itself, once vault.repository says where (docs/backup.md)",
        ),
        "ssl_cert_file" | "ssl_key_file" | "ssl_ca_file" | "ssl_crl_file" | "ssl_crl_dir" => {
            Verdict::left("the servers' certificates are the cluster's own: clients trust pki/ca.crt")
        }
        "synchronous_standby_names" => {
            Verdict::left("Mainstay sets it by cluster.durability and failover.sync_replicas")
        }
        "logging_collector" | "log_destination" => {
            Verdict::left("the server's messages go through its guard to one log of the node")
        }
        "unix_socket_directories" | "unix_socket_group" | "unix_socket_permissions" => {
            Verdict::left("the socket is the agent's alone; applications connect through the proxy")
        }
        _ => Verdict::left("Mainstay sets it itself, by the node and its place in the cluster"),
    }
}

/// The lines of `pg_hba.conf` to keep.
pub(super) fn access(input: &Input<'_>, book: &mut Book) -> Vec<String> {
    let mut lists: Vec<(usize, Vec<&str>)> =
        input.nodes.iter().map(|file| (*file, vec!["postgresql", "pg_hba"])).collect();
    lists.extend(input.dynamic.map(|dynamic: Dynamic| (dynamic.file, dynamic.path(&["postgresql", "pg_hba"]))));
    lists.extend(input.nodes.iter().map(|file| (*file, vec!["bootstrap", "pg_hba"])));
    let mut kept = Vec::new();
    let mut force: Option<(String, BTreeSet<String>)> = None;
    for (file, path) in lists {
        let lines = book.under(file, &path);
        if lines.is_empty() {
            continue;
        }
        let first = force.is_none();
        let place = format!("{} ({})", input.name(file), path.join("."));
        let (place, known) = force.get_or_insert_with(|| (place, BTreeSet::new()));
        for (id, _, scalar) in lines {
            let verdicts = lines_of(&scalar.text).into_iter().map(|line| {
                if !first && !known.contains(&line) {
                    return Verdict::left(format!("the lines of {place} come before these, and it has none such"));
                }
                let verdict = judged_line(&line);
                if known.insert(line.clone()) && verdict.fate != Fate::Left {
                    kept.push(line);
                }
                verdict
            });
            let verdict = together(verdicts.collect());
            book.say(id, verdict);
        }
    }
    kept
}

/// The lines of one item: the file that Patroni writes has as many. There is always one, which may be empty.
fn lines_of(text: &str) -> Vec<String> {
    // A backslash at its end continues a line in the next one.
    let text = text.replace("\r\n", "\n").replace("\\\n", "");
    let written = text.split(['\n', '\r']).map(|line| {
        // Blanks within quotes are part of a name.
        let words: Vec<&str> = line.split_whitespace().collect();
        if line.contains('"') { line.trim().to_owned() } else { words.join(" ") }
    });
    let lines: Vec<String> = written.filter(|line| !line.is_empty()).collect();
    if lines.is_empty() { vec![String::new()] } else { lines }
}

/// One verdict on an item of several lines.
fn together(mut lines: Vec<Verdict>) -> Verdict {
    if lines.len() == 1 {
        return lines.remove(0);
    }
    let all = |fate: Fate| lines.iter().all(|line| line.fate == fate);
    let fate = [Fate::Carried, Fate::Left].into_iter().find(|fate| all(*fate)).unwrap_or(Fate::Changed);
    let kept: Vec<&str> = lines.iter().filter_map(|line| line.value.as_deref()).collect();
    let left = |line: &Verdict| if line.fate == Fate::Left { "left behind, " } else { "" };
    let told = lines.iter().enumerate().filter(|(_, line)| !line.text.is_empty());
    let text: Vec<String> =
        told.map(|(place, line)| format!("line {} of it: {}{}", place + 1, left(line), line.text)).collect();
    Verdict {
        fate,
        to: lines.iter().find_map(|line| line.to.clone()),
        value: (!kept.is_empty()).then(|| kept.join("; ")),
        text: text.join("; "),
    }
}

fn judged_line(line: &str) -> Verdict {
    let words: Vec<&str> = line.split_whitespace().collect();
    let kind = words.first().copied().unwrap_or_default();
    let known = ["local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc"];
    if line.is_empty() || line.starts_with('#') {
        return Verdict::left("a remark");
    }
    if !known.contains(&kind) || line.contains('\0') || line.ends_with('\\') {
        return Verdict::left("it is no line of pg_hba.conf that Mainstay takes");
    }
    let databases = words.get(1).copied().unwrap_or_default();
    if databases.split(',').any(|name| name == "replication") {
        return Verdict::left("servers replicate by the cluster's own certificates and lines");
    }
    if is_secret("", line) {
        return Verdict::left("it holds a password, and the file is read by many");
    }
    if line.contains("map=") {
        return Verdict::left("it needs a map of pg_ident.conf, which is the agent's own here");
    }
    let to = "postgres.hba";
    if line.contains("clientcert=") || words.iter().skip(3).any(|word| *word == "cert") {
        let text = "clients' certificates must be of the cluster's own authority for servers";
        return Verdict::changed(Some(to), line, text);
    }
    if kind == "local" {
        let text = "the socket lies in a directory of the agent's alone: others do not reach it";
        return Verdict::changed(Some(to), line, text);
    }
    if words.last() == Some(&"trust") {
        let text = "it lets in whoever comes from there, without a password, as it did";
        return Verdict { text: text.to_owned(), ..Verdict::carried(to, line) };
    }
    Verdict::carried(to, line)
}

//! Every key of `mainstay.toml` in one place: its kind, its bounds, what it is for, and when a change of it takes effect. Reading, checking,
//! writing, `mainstay set` and the page `docs/configuration.md` all go by this table.

use crate::requirements::Requirements;
use crate::spec::{Failover, Postgres, Proxy, Vault};
use std::fmt::Write as _;

/// What may stand behind a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A text.
    Text,
    /// A whole number.
    Number,
    /// `true` or `false`.
    Boolean,
    /// A list of texts.
    Texts,
    /// A table whose keys are free, with texts, numbers or booleans.
    Free,
    /// A table with keys of its own.
    Table,
    /// Any number of tables.
    Tables,
}

impl Kind {
    const fn words(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Number => "whole number",
            Self::Boolean => "true or false",
            Self::Texts => "list of texts",
            Self::Free => "table",
            Self::Table => "table",
            Self::Tables => "tables",
        }
    }
}

/// When a change of a running cluster takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// At once, on every node.
    AtOnce,
    /// With the next start of what reads it, which is named.
    NextStart(&'static str),
    /// Some seconds later, when what is named has heard of it.
    Soon(&'static str),
    /// Not by `mainstay set`: why, or what to use instead.
    Elsewhere(&'static str),
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The table it stands in, `""` for the top of the file.
    pub table: &'static str,
    /// Its name.
    pub name: &'static str,
    /// What may stand behind it.
    pub kind: Kind,
    /// The smallest and largest number.
    pub bounds: Option<(u64, u64)>,
    /// What holds when it is left out, if the types do not say; `"required"` for keys without default.
    pub default: Option<&'static str>,
    /// What it is for, as short as a comment.
    pub text: &'static str,
    /// When a change takes effect.
    pub effect: Effect,
}

impl Key {
    /// `failover.lease_ms`.
    #[must_use]
    pub fn path(&self) -> String {
        if self.table.is_empty() { self.name.to_owned() } else { format!("{}.{}", self.table, self.name) }
    }
}

const fn key(table: &'static str, name: &'static str, kind: Kind, text: &'static str) -> Key {
    Key { table, name, kind, bounds: None, default: None, text, effect: Effect::AtOnce }
}

impl Key {
    const fn within(mut self, least: u64, most: u64) -> Key {
        self.bounds = Some((least, most));
        self
    }
    const fn or(mut self, default: &'static str) -> Key {
        self.default = Some(default);
        self
    }
    const fn when(mut self, effect: Effect) -> Key {
        self.effect = effect;
        self
    }
}

const NODES: Effect = Effect::Elsewhere("use `mainstay node add`, `node remove` or `node replace`");
const TABLE: Effect = Effect::Elsewhere("name one of its keys, as TABLE.KEY=VALUE");
const NAMED: Effect = Effect::Elsewhere("a cluster keeps its name: certificates and data carry it");
const ENGINE: Effect = Effect::Elsewhere("a cluster keeps its engine: its data are of that engine");
const MOVED: Effect = Effect::Elsewhere("a node on another host is new: `mainstay node replace NAME --host HOST`");
const CALLED: Effect =
    Effect::Elsewhere("a repository keeps its name: take it away, and add the place with the new name");
const RENAMED: Effect = Effect::Elsewhere("a node keeps its name: add one with the new name, then remove this one");
const TURNED: Effect = Effect::Elsewhere("a node keeps its kind: remove it, then add it anew");
const KEPT: Effect = Effect::Elsewhere("a cluster keeps its store");
const STORE: Effect = Effect::Elsewhere(
    "how to reach an etcd stands in each node's own file: change it there, and restart the agents one by one",
);
const FIRST: Effect = Effect::NextStart("a cluster that has no first copy yet; afterwards it means nothing");
const SERVER: Effect = Effect::NextStart("that node's server");
const AGENT: Effect =
    Effect::Elsewhere("a running agent keeps its ports: remove the node, then add it with the new ones");
const PROXY: Effect = Effect::NextStart("each proxy");
const PROXY_READS: Effect = Effect::Soon("each proxy");
const PARAMETER: Effect =
    Effect::NextStart("the servers, for parameters that need it (it is said which); else at once");

/// The whole table, in the order of the page.
pub const KEYS: &[Key] = &[
    key("", "cluster", Kind::Table, "the cluster as a whole").or("required").when(TABLE),
    key("", "node", Kind::Tables, "one [[node]] for each node").or("required").when(NODES),
    key("", "failover", Kind::Table, "times of the take-over").or("each key's own").when(TABLE),
    key("", "store", Kind::Table, "where the claim, the specification and the history are kept: on the nodes, or in an etcd")
        .or("each key's own")
        .when(TABLE),
    key("", "proxy", Kind::Table, "what clients connect to").or("each key's own").when(TABLE),
    key("", "postgres", Kind::Table, "PostgreSQL's own settings").or("each key's own").when(TABLE),
    key("", "vault", Kind::Table, "where the log and backups are kept").or("each key's own").when(TABLE),
    key("", "requirements", Kind::Table, "what is asked of the cluster; `mainstay plan` reads it")
        .or("each key's own")
        .when(TABLE),
    key("cluster", "name", Kind::Text, "a letter a-z, then letters, digits or '-'; 40 at most")
        .or("required")
        .when(NAMED),
    key("cluster", "engine", Kind::Text, "the database engine: postgres").or("postgres").when(ENGINE),
    key(
        "cluster",
        "durability",
        Kind::Text,
        "strict: block rather than lose | available: go on alone, and say so | async: never wait",
    )
    .or("strict"),
    key("node", "name", Kind::Text, "a letter a-z, then letters, digits or '-'; 40 at most")
        .or("required")
        .when(RENAMED),
    key("node", "host", Kind::Text, "an IP address, or a name that resolves to one").or("required").when(MOVED),
    key("node", "zone", Kind::Text, "the failure zone").or("none"),
    key("node", "witness", Kind::Boolean, "votes, holds no data").or("false").when(TURNED),
    key("node", "port", Kind::Number, "the database server").within(1, 65535).or("5432").when(SERVER),
    key("node", "agent_port", Kind::Number, "peers and API, mutual TLS").within(1, 65535).or("7420").when(AGENT),
    key("node", "health_port", Kind::Number, "health endpoints, plain HTTP").within(1, 65535).or("7421").when(AGENT),
    key("node", "interface", Kind::Text, "the interface that takes proxy.address, as eth0")
        .or("the one with the node's own address"),
    key("node", "dir", Kind::Text, "where the node keeps its files, an absolute path")
        .or("/var/lib/mainstay/CLUSTER")
        .when(MOVED),
    key("node", "adopt", Kind::Text, "data directory of an existing server that is to be the first copy (`apply`)")
        .or("none")
        .when(FIRST),
    key("node", "adopt_standby", Kind::Text, "data directory of a standby of that server, which is to be this node's copy (`apply`)")
        .or("none")
        .when(FIRST),
    key("failover", "ping_ms", Kind::Number, "how often agents tell each other that they live").within(20, 10_000),
    key("failover", "suspicion_ms", Kind::Number, "silence after which a primary is suspected").within(100, 60_000),
    key("failover", "lease_ms", Kind::Number, "how long a primary serves without renewing its claim")
        .within(500, 600_000),
    key("failover", "margin_percent", Kind::Number, "part of the lease kept back for clocks").within(5, 60),
    key("failover", "sync_replicas", Kind::Number, "how many replicas a commit waits for")
        .or("half of the data nodes, rounded down"),
    key("store", "kind", Kind::Text, "raft: each node holds a part | etcd: in an etcd that is there already")
        .or("raft")
        .when(KEPT),
    key("store", "endpoints", Kind::Texts, "the members of the etcd, https://HOST:PORT or http://HOST:PORT each").or("none").when(STORE),
    key("store", "prefix", Kind::Text, "the cluster's keys stand under PREFIX/CLUSTER/").or("/mainstay").when(KEPT),
    key("store", "ca_file", Kind::Text, "the authority of etcd's certificates, a file on every node").or("none").when(STORE),
    key("store", "cert_file", Kind::Text, "the certificate that is shown to etcd, a file on every node").or("none").when(STORE),
    key("store", "key_file", Kind::Text, "its key, a file that its owner alone can read").or("none").when(STORE),
    key("store", "user", Kind::Text, "as whom to log in to etcd").or("nobody").when(STORE),
    key("store", "password_file", Kind::Text, "holds the password; a file that its owner alone can read").or("none").when(STORE),
    key("proxy", "on_nodes", Kind::Boolean, "does each node run a proxy of its own?").when(PROXY),
    key("proxy", "host", Kind::Text, "a proxy of its own listens there").or("none").when(PROXY),
    key("proxy", "write_port", Kind::Number, "the address for writes").within(1, 65535).when(PROXY),
    key("proxy", "read_port", Kind::Number, "the address for reads").within(1, 65535).when(PROXY),
    key("proxy", "max_lag_bytes", Kind::Number, "a replica further behind gets no reads").when(PROXY_READS),
    key("proxy", "hold_ms", Kind::Number, "how long a new connection waits for a primary")
        .within(0, 600_000)
        .when(PROXY_READS),
    key("proxy", "max_connections", Kind::Number, "open or held at once").within(1, 1_000_000).when(PROXY_READS),
    key("proxy", "mode", Kind::Text, "session: whole connections pass | transaction: clients share server connections")
        .or("session")
        .when(PROXY),
    key("proxy", "pool_size", Kind::Number, "server connections per user, database and address; mode transaction")
        .within(1, 10_000)
        .when(PROXY_READS),
    key("proxy", "pool_reserve", Kind::Number, "so many more once a request has waited five seconds; mode transaction")
        .within(0, 10_000)
        .or("0")
        .when(PROXY_READS),
    key("proxy", "queue_ms", Kind::Number, "how long a request waits for one of them; mode transaction")
        .within(1, 3_600_000)
        .when(PROXY_READS),
    key("proxy", "commit_outcome", Kind::Boolean, "is it looked up what became of a commit whose server was lost? mode transaction")
        .or("false")
        .when(PROXY_READS),
    key("proxy", "threads", Kind::Number, "threads of a proxy, each with its part of the pools; mode transaction")
        .within(1, 64)
        .when(PROXY),
    key("proxy", "address", Kind::Text, "an address that goes with the primary, as 10.0.0.100/24: the open primary's node has it, its proxy listens there")
        .or("none")
        .when(Effect::Soon("each node's proxy, which starts again for it")),
    key("proxy", "metrics_port", Kind::Number, "where a proxy tells its numbers, plain HTTP: /metrics, /stats")
        .within(1, 65535)
        .or("none: it does not")
        .when(PROXY),
    key("postgres", "bin_dir", Kind::Text, "where `postgres` and `initdb` are, an absolute path")
        .or("the newest of the distribution's")
        .when(Effect::NextStart("each agent")),
    key("postgres", "parameters", Kind::Free, "server parameters; the names that Mainstay owns are refused")
        .or("none")
        .when(PARAMETER),
    key("postgres", "hba", Kind::Texts, "lines of pg_hba.conf, before the default ones").or("none"),
    key(
        "postgres",
        "archive_command",
        Kind::Text,
        "what the server runs for each finished segment of its log, as pgBackRest and WAL-G want it; beside vault.repository or instead of it",
    )
    .or("none"),
    key(
        "vault",
        "repository",
        Kind::Text,
        "a folder, an absolute path that every data node reaches, or a bucket, s3://BUCKET/PREFIX?endpoint=… or \
         azure://CONTAINER/PREFIX?account=…; the log is archived there. Several: tables [[vault.repository]] instead",
    )
    .or("none: nothing is archived"),
    key("vault", "key_file", Kind::Text, "the key of an encrypted repository, a file on every data node")
        .or("none: not encrypted"),
    key(
        "vault",
        "switch_s",
        Kind::Number,
        "a segment of the log that is not full is archived after so many seconds; 0: never",
    )
    .within(0, 86_400),
    key("vault", "keep", Kind::Number, "so many of the newest backups are kept, and the log from the oldest one on")
        .within(1, 100_000),
    key(
        "vault",
        "keep_days",
        Kind::Number,
        "and those with which every moment of so many days can be restored; 0: none for that reason",
    )
    .within(0, 36_500),
    key("vault", "backup_mb_s", Kind::Number, "a backup reads at most so many megabytes a second; 0: no limit")
        .within(0, 1_000_000),
    key(
        "vault",
        "full_at",
        Kind::Text,
        "when a full backup is made: minute hour day month weekday, as crontab writes it, in UTC",
    )
    .or("none: by hand"),
    key("vault", "incremental_at", Kind::Text, "the same for one with only what differs from the newest full one")
        .or("none: by hand"),
    key("vault", "drill_at", Kind::Text, "when a restore drill is held: a copy of a random moment is made beside the cluster, looked at, and removed")
        .or("none: by hand"),
    key(
        "vault",
        "clone_nodes",
        Kind::Boolean,
        "new copies are made of the newest backup and the log after it, and not of the running primary, where the repository can serve",
    )
    .or("false"),
    key("vault", "drill_minutes", Kind::Number, "a restore drill is ended after so many minutes").within(1, 10_080).or("240"),
    key(
        "vault",
        "drill_query",
        Kind::Text,
        "what a drill asks the copy beside its own checks: the first column of the first row must be true, or a number above 0",
    )
    .or("nothing"),
    key("vault", "drill_database", Kind::Text, "in which database that is asked").or("\"app\""),
    key(REPOSITORY, "name", Kind::Text, "a letter a-z, then letters, digits or '-'; 40 at most")
        .or("required; `main` is the one that stands alone")
        .when(CALLED),
    key(REPOSITORY, "place", Kind::Text, "a folder or a bucket, as vault.repository takes it").or("required"),
    key(REPOSITORY, "key_file", Kind::Text, "its key, a file on every data node").or("vault.key_file"),
    key(
        REPOSITORY,
        "optional",
        Kind::Boolean,
        "the servers keep no log for it: it may get a gap while it is away, and never costs their volumes room; not the first one",
    )
    .or("false"),
    key(REPOSITORY, "keep", Kind::Number, "so many of the newest backups are kept in it").or("vault.keep").within(1, 100_000),
    key(REPOSITORY, "keep_days", Kind::Number, "and those with which every moment of so many days can be restored")
        .or("vault.keep_days")
        .within(0, 36_500),
    key("requirements", "purpose", Kind::Text, "what the data is, in a sentence").or("not said"),
    key("requirements", "classification", Kind::Text, "who may see it: public | internal | personal | secret"),
    key("requirements", "owner", Kind::Text, "who answers for it").or("not said"),
    key("requirements", "on_call", Kind::Texts, "who is called, in this order").or("nobody"),
    key(
        "requirements",
        "needs",
        Kind::Texts,
        "what applications need: transactions, joins, documents, no-loss … (a wrong word lists all)",
    ),
    key(
        "requirements",
        "loss_server_s",
        Kind::Number,
        "most seconds of acknowledged writes that may be lost when a database server dies",
    )
    .or("none: the plan says what is reached")
    .within(0, 31_536_000),
    key(
        "requirements",
        "loss_host_s",
        Kind::Number,
        "most seconds of acknowledged writes that may be lost when a host is lost with its disk",
    )
    .or("none: the plan says what is reached")
    .within(0, 31_536_000),
    key(
        "requirements",
        "loss_zone_s",
        Kind::Number,
        "most seconds of acknowledged writes that may be lost when a zone is lost",
    )
    .or("none: the plan says what is reached")
    .within(0, 31_536_000),
    key(
        "requirements",
        "loss_site_s",
        Kind::Number,
        "most seconds of acknowledged writes that may be lost when all hosts are lost at once",
    )
    .or("none: the plan says what is reached")
    .within(0, 31_536_000),
    key(
        "requirements",
        "loss_human_s",
        Kind::Number,
        "most seconds of acknowledged writes that may be lost when data was deleted or changed by mistake",
    )
    .or("none: the plan says what is reached")
    .within(0, 31_536_000),
    key("requirements", "outage_server_s", Kind::Number, "most seconds without service when a database server dies")
        .or("none: the plan says what is reached")
        .within(1, 31_536_000),
    key(
        "requirements",
        "outage_host_s",
        Kind::Number,
        "most seconds without service when a host is lost with its disk",
    )
    .or("none: the plan says what is reached")
    .within(1, 31_536_000),
    key("requirements", "outage_zone_s", Kind::Number, "most seconds without service when a zone is lost")
        .or("none: the plan says what is reached")
        .within(1, 31_536_000),
    key("requirements", "outage_site_s", Kind::Number, "most seconds without service when all hosts are lost at once")
        .or("none: the plan says what is reached")
        .within(1, 31_536_000),
    key(
        "requirements",
        "outage_human_s",
        Kind::Number,
        "most seconds without service when data was deleted or changed by mistake",
    )
    .or("none: the plan says what is reached")
    .within(1, 31_536_000),
    key("requirements", "size_gb", Kind::Number, "how large the data is now").within(1, 1_000_000),
    key("requirements", "growth_gb_per_month", Kind::Number, "how much it grows").within(0, 1_000_000),
    key("requirements", "working_set_gb", Kind::Number, "how much of it is in use all the time")
        .or("a quarter of size_gb")
        .within(1, 1_000_000),
    key("requirements", "writes_per_s", Kind::Number, "writing transactions a second, at the busiest hour")
        .within(0, 1_000_000),
    key("requirements", "reads_per_s", Kind::Number, "reading transactions a second, at the busiest hour")
        .within(0, 10_000_000),
    key("requirements", "log_kb_per_write", Kind::Number, "write-ahead log that a writing transaction makes")
        .within(1, 1_000_000),
    key("requirements", "clients", Kind::Number, "connections that the applications keep open, all together")
        .within(1, 1_000_000),
    key("requirements", "workload", Kind::Text, "what most of the work is: transactions | mixed | analytics"),
    key("requirements", "write_latency_ms", Kind::Number, "how long a commit may take").within(1, 60_000),
    key("requirements", "hosts", Kind::Number, "how many hosts there may be").or("those listed").within(1, 50),
    key("requirements", "cores", Kind::Number, "of the smallest host").within(1, 1024),
    key("requirements", "memory_gb", Kind::Number, "of the smallest host").within(1, 100_000),
    key("requirements", "disk_gb", Kind::Number, "of the smallest host, for data and log").within(1, 1_000_000),
    key("requirements", "disk", Kind::Text, "its kind: nvme | ssd | network | rotating"),
    key("requirements", "link_mbit_s", Kind::Number, "the slowest network link between the hosts").within(1, 1_000_000),
    key("requirements", "zone_round_trip_us", Kind::Number, "round trip between two zones, in microseconds")
        .within(10, 1_000_000),
    key(
        "requirements",
        "host_fails_every_days",
        Kind::Number,
        "a host fails about once in so many days (for the expected availability)",
    )
    .within(1, 36_500),
    key("requirements", "repair_hours", Kind::Number, "until a failed host is repaired or replaced").within(1, 8760),
    key("requirements", "zone_fails_every_days", Kind::Number, "a zone fails about once in so many days")
        .within(1, 36_500),
    key("requirements", "window", Kind::Text, "when maintenance is done: mon to sun or daily, from-to"),
    key("requirements", "time_zone", Kind::Text, "in which time zone that is, as Europe/Berlin"),
    key("requirements", "retention_days", Kind::Number, "how far back the data must be restorable").within(1, 3650),
    key("requirements", "postgres_version", Kind::Number, "the major version")
        .or("the one that is installed")
        .within(15, 99),
];

/// The tables with fixed keys, in the order of the page.
pub const TABLES: [&str; 10] =
    ["", "cluster", "node", "failover", "store", "proxy", "postgres", "vault", REPOSITORY, "requirements"];

/// The tables of several repositories.
pub(crate) const REPOSITORY: &str = "vault.repository";

/// The keys of a table; `None` for what is no table with fixed keys.
#[must_use]
pub fn keys_of(table: &str) -> Option<Vec<&'static str>> {
    TABLES.contains(&table).then(|| KEYS.iter().filter(|key| key.table == table).map(|key| key.name).collect())
}

/// The key of this path, `failover.lease_ms`; a node's keys as `node.host`.
#[must_use]
pub fn find(path: &str) -> Option<&'static Key> {
    let (table, name) = path.rsplit_once('.').unwrap_or(("", path));
    KEYS.iter().find(|key| key.table == table && key.name == name)
}

/// What a key is for, as a comment.
pub(crate) fn text_of(path: &str) -> &'static str {
    find(path).map_or("", |key| key.text)
}

/// What holds when the key is left out, as the file would write it, or in words.
#[must_use]
pub fn default_of(key: &Key) -> String {
    if let Some(words) = key.default {
        return words.to_owned();
    }
    let value = match key.table {
        "failover" => toml::Table::try_from(Failover::default()),
        "proxy" => toml::Table::try_from(Proxy::default()),
        "postgres" => toml::Table::try_from(Postgres::default()),
        "vault" => toml::Table::try_from(Vault::default()),
        "requirements" => toml::Table::try_from(Requirements::default()),
        _ => return String::new(),
    };
    value.ok().and_then(|table| table.get(key.name).map(ToString::to_string)).unwrap_or_default()
}

/// The whole table as a page.
#[must_use]
pub fn page() -> String {
    let mut out = String::from(
        "# Configuration\n\n\
         One file describes a cluster, the same on every node: `mainstay.toml`. It seeds the cluster; afterwards each change is a new\n\
         generation in the cluster's own store, made by `mainstay set` and `mainstay node`. `mainstay set` without arguments prints what is\n\
         in force. A file that says something else is named by `mainstay status`; it is no reason to stop.\n\n\
         Unknown keys are errors, with the line and the nearest known key. Everything but `cluster.name` and the names and hosts of the nodes\n\
         has a default. This page is written from the table in `crates/model/src/config_reference.rs`; a test keeps both equal.\n",
    );
    for table in TABLES {
        let heading = match table {
            "" => "The tables".to_owned(),
            "node" => "`[[node]]`, one for each".to_owned(),
            REPOSITORY => "`[[vault.repository]]`, one for each where there are several".to_owned(),
            _ => format!("`[{table}]`"),
        };
        let _ = write!(
            out,
            "\n## {heading}\n\n| Key | Is | Default | What for | A change takes effect |\n|---|---|---|---|---|\n"
        );
        for key in KEYS.iter().filter(|key| key.table == table) {
            row(&mut out, key);
        }
    }
    out.push_str(ENDING);
    out
}

fn row(out: &mut String, key: &Key) {
    let bounds = key.bounds.map(|(least, most)| format!(", {least} to {most}")).unwrap_or_default();
    let effect = match key.effect {
        Effect::AtOnce => "at once".to_owned(),
        Effect::NextStart(what) => format!("with the next start of {what}"),
        Effect::Soon(what) => format!("within seconds, at {what}"),
        Effect::Elsewhere(instead) => format!("not by `set`: {instead}"),
    };
    let text = key.text.replace('|', "\\|");
    let _ =
        writeln!(out, "| `{}` | {}{bounds} | {} | {text} | {effect} |", key.name, key.kind.words(), default_of(key));
}

const ENDING: &str = "
## Rules between keys

* Names are unique, and so is each port on one host (a proxy's ports count on every node's host while `proxy.on_nodes` is set).
* At least one node holds data. `failover.sync_replicas` is at most the number of data nodes less one, and 0 only with `durability = \"async\"`.
* `suspicion_ms` is at least twice `ping_ms`, `lease_ms` at least three times `ping_ms`.
* A host is written without a port; `0.0.0.0` is no host.

## Changing it while the cluster runs

```sh
mainstay set                                              # what is in force
mainstay set failover.lease_ms=4000 proxy.hold_ms=20000   # one or more keys
mainstay set postgres.parameters.max_connections=300      # says whether servers must be restarted
mainstay restart --pending                                # and this restarts those, replicas first
mainstay set 'postgres.hba+=hostssl all all 10.0.0.0/8 scram-sha-256'
mainstay set node.db3.zone=c                              # a node's keys stand behind its name
mainstay set vault.repository.far.place=/mnt/far          # so do a repository's; one of a new name is added
mainstay set --unset vault.repository.far                 # and taken away again
mainstay set --unset failover.sync_replicas               # back to the default
mainstay set --file mainstay.toml                         # a whole edited file
```
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_says_what_it_is_for_and_what_holds_without_it() {
        for key in KEYS {
            assert!(!key.text.is_empty() && !default_of(key).is_empty(), "{}", key.path());
            assert!(TABLES.contains(&key.table), "{}", key.path());
        }
        let mut paths: Vec<String> = KEYS.iter().map(Key::path).collect();
        paths.sort();
        let count = paths.len();
        paths.dedup();
        assert_eq!(paths.len(), count, "a key stands there twice");
    }

    #[test]
    fn defaults_come_from_the_types() {
        // Not written where they are the default, so said in words.
        let vault = Vault::default();
        assert_eq!((vault.drill_minutes, vault.drill_database.as_str()), (240, "app"));
        assert_eq!(Proxy::default().pool_reserve, 0);
        assert_eq!(find("failover.lease_ms").map(default_of), Some("3000".to_owned()));
        assert_eq!(find("proxy.on_nodes").map(default_of), Some("true".to_owned()));
        assert_eq!(find("cluster.durability").map(default_of), Some("strict".to_owned()));
        let text = "[cluster]\nname = \"a\"\n[[node]]\nname = \"db1\"\nhost = \"h\"\n";
        let spec = crate::config::parse(text, &[]).unwrap();
        for (name, value) in [
            ("port", spec.nodes[0].port),
            ("agent_port", spec.nodes[0].agent_port),
            ("health_port", spec.nodes[0].health_port),
        ] {
            assert_eq!(find(&format!("node.{name}")).map(default_of), Some(value.to_string()), "{name}");
        }
        assert_eq!(spec.cluster.durability.as_str(), "strict");
    }
}

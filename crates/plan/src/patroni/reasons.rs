//! What Mainstay has no place for, and why: the nearest known key above a leaf says it.

use super::Input;
use super::book::{Book, Leaf, Verdict};

const CLIENT: &str = "people call the agents with certificates (`mainstay pki issue`), not with passwords";
const STORE: &str = "the store is on the nodes themselves (embedded Raft), or an etcd of version 3 where [store] names one (docs/etcd.md): nothing else can be it";
const ETCD: &str = "the store is on the nodes themselves (embedded Raft) unless [store] is written: an etcd of version 3 can be it too (docs/etcd.md)";
const RAFT: &str = "the nodes' own store (embedded Raft) takes its place, and needs none of its settings";
const HOOK: &str = "Mainstay runs no scripts of others while it decides or acts: what clients need to know the proxy and the health endpoints tell";
const PASSWORD: &str = "the agent comes in through the socket and servers by certificates: no password of a superuser, of replication or of rewinding is needed";
const CLONE: &str = "a replica is made by Mainstay itself: rewound, or cloned from another node";
const ROLES: &str = "server parameters and access are the same on every node, whatever its role";
const SLOT: &str = "Mainstay lets slots that are not its own alone";
const STANDBY: &str = "a cluster that follows another one is not offered";

/// By the path without places in lists. The longest that fits counts; `dcs.` stands for the dynamic configuration, wherever it is.
const LEFT: &[(&str, &str)] = &[
    (
        "namespace",
        "the nodes' own store holds one cluster; in an etcd its keys stand under store.prefix and the cluster's name",
    ),
    ("thread_pool_size", "there is no pool of threads to size"),
    ("thread_stack_size", "there is no pool of threads to size"),
    ("log", "agents log JSON lines to the journal; MAINSTAY_LOG filters them"),
    ("ctl", CLIENT),
    ("etcd", ETCD),
    ("etcd3", ETCD),
    ("consul", STORE),
    ("zookeeper", STORE),
    ("exhibitor", STORE),
    ("raft", RAFT),
    ("kubernetes", "Mainstay runs on hosts, not as pods that Kubernetes moves"),
    (
        "citus",
        "a sharded Citus cluster is not offered: each group would be a cluster of its own, and nobody would tell the coordinator",
    ),
    ("watchdog", "the guard, parent of the server, ends it when the lease does; a hardware watchdog is not used"),
    (
        "restapi",
        "the health endpoints are open, without TLS, and change nothing; what changes something is asked by certificate at agent_port",
    ),
    ("restapi.authentication", CLIENT),
    ("bootstrap.method", "the first copy is made by initdb, or taken over"),
    (
        "bootstrap.initdb",
        "the first copy is made with UTF8, locale C.UTF-8 and checksums; data that is taken over keeps what it has",
    ),
    ("bootstrap.post_bootstrap", HOOK),
    ("bootstrap.post_init", HOOK),
    ("bootstrap.users", "roles are data: they come with it"),
    ("bootstrap.pg_hba", "other lines come before these"),
    ("bootstrap", "it describes a custom first copy; here it is made by initdb, or taken over"),
    ("postgresql.authentication", PASSWORD),
    ("postgresql.callbacks", HOOK),
    ("postgresql.pre_promote", HOOK),
    ("postgresql.before_stop", HOOK),
    ("postgresql.proxy_address", "Mainstay's own proxy stands on every node: proxy.write_port and proxy.read_port"),
    ("postgresql.create_replica_methods", CLONE),
    ("postgresql.create_replica_method", CLONE),
    ("postgresql.basebackup", "replicas are cloned with the agent's own options of pg_basebackup"),
    ("postgresql.config_dir", "the server's configuration lies in the node's directory, outside the data"),
    (
        "postgresql.custom_conf",
        "the server's configuration is written whole: put what that file says into postgres.parameters",
    ),
    ("postgresql.bin_name", "the programs have PostgreSQL's own names"),
    ("postgresql.use_unix_socket", "the agent always comes in through the socket"),
    ("postgresql.use_unix_socket_repl", "the agent always comes in through the socket"),
    ("postgresql.pgpass", PASSWORD),
    ("postgresql.recovery_conf", "replicas follow, and fetch archived log, as the agent sets it"),
    ("postgresql.parameters_primary", ROLES),
    ("postgresql.parameters_replica", ROLES),
    ("postgresql.parameters_standby_leader", ROLES),
    ("postgresql.pg_hba_primary", ROLES),
    ("postgresql.pg_hba_replica", ROLES),
    ("postgresql.pg_hba_standby_leader", ROLES),
    ("postgresql.pg_ident", "pg_ident.conf is the agent's own"),
    ("postgresql.pg_ident_primary", "pg_ident.conf is the agent's own"),
    ("postgresql.pg_ident_replica", "pg_ident.conf is the agent's own"),
    ("postgresql.pg_ident_standby_leader", "pg_ident.conf is the agent's own"),
    ("postgresql.pg_ctl_timeout", "the guard starts and ends the server itself, with bounds of its own"),
    ("postgresql.rewind", "pg_rewind is called with the agent's own options, and what it did is verified"),
    (
        "postgresql.remove_data_directory_on_rewind_failure",
        "a copy that can not be rewound is cloned anew by itself; what it alone held is kept first",
    ),
    (
        "postgresql.remove_data_directory_on_diverged_timelines",
        "a copy that can not be rewound is cloned anew by itself; what it alone held is kept first",
    ),
    ("postgresql.krbsrvname", "servers reach each other by certificates, not by Kerberos"),
    (
        "dcs.primary_start_timeout",
        "a server that ends is replaced at once where a replica is fit to, else started in place",
    ),
    (
        "dcs.master_start_timeout",
        "a server that ends is replaced at once where a replica is fit to, else started in place",
    ),
    ("dcs.primary_stop_timeout", "the guard ends a server that does not end, within the lease"),
    ("dcs.master_stop_timeout", "the guard ends a server that does not end, within the lease"),
    (
        "dcs.primary_race_backoff",
        "an election asks first whether the others hear the primary: none begins while enough of them do",
    ),
    ("dcs.maximum_lag_on_syncnode", "any of the replicas may confirm: one that lags need not be replaced"),
    ("dcs.max_timelines_history", "`mainstay history` is bounded by itself"),
    (
        "dcs.failsafe_mode",
        "a primary without its store stops within the lease, even if it reaches every replica: the nodes' own store is there while most of them are, \
         an etcd has to be kept up",
    ),
    (
        "dcs.member_slots_ttl",
        "a node's slot stays as long as the node is in the file; how much log it keeps is bounded by the volume",
    ),
    ("dcs.standby_cluster", STANDBY),
    ("dcs.ignore_slots", SLOT),
];

/// What every leaf that has no verdict yet is told.
pub(super) fn rest(input: &Input<'_>, book: &mut Book) {
    let verdicts: Vec<_> = book
        .all()
        .filter(|(_, _, verdict)| verdict.is_none())
        .map(|(id, leaf, _)| (id, verdict(input, leaf)))
        .collect();
    verdicts.into_iter().for_each(|(id, verdict)| book.say(id, verdict));
}

fn verdict(input: &Input<'_>, leaf: &Leaf) -> Verdict {
    let path: Vec<&str> = leaf.path.iter().map(String::as_str).filter(|part| !part.starts_with('[')).collect();
    let dynamic = input.dynamic.is_some_and(|dynamic| dynamic.file == leaf.file && dynamic.prefix.is_empty());
    let path = match path.as_slice() {
        ["bootstrap", "dcs", rest @ ..] => [&["dcs"], rest].concat(),
        rest if dynamic => [&["dcs"], rest].concat(),
        rest => rest.to_vec(),
    };
    if leaf.said().is_none() {
        return Verdict::anyway("it says nothing");
    }
    if let Some(verdict) = by_value(&path, leaf) {
        return verdict;
    }
    let path = path.join(".");
    // What may stand in both has one reason.
    let shared = path.strip_prefix("dcs.").filter(|rest| rest.starts_with("postgresql."));
    let fits = |key: &str, path: &str| path == key || path.strip_prefix(key).is_some_and(|rest| rest.starts_with('.'));
    let found = LEFT.iter().filter(|(key, _)| fits(key, &path) || shared.is_some_and(|path| fits(key, path)));
    match found.max_by_key(|(key, _)| key.len()) {
        Some((_, why)) => Verdict::left(*why),
        None if path.starts_with("postgresql.") && path.matches('.').count() > 1 => Verdict::left(CLONE),
        None => Verdict::left("not known to this program: nothing of it was carried over"),
    }
}

/// Keys of which one value says what Mainstay does anyway.
fn by_value(path: &[&str], leaf: &Leaf) -> Option<Verdict> {
    let said = leaf.said()?;
    let (yes, no) = (said.boolean() == Some(true), said.boolean() == Some(false));
    let zero = said.text.trim() == "0";
    match path {
        ["tags", tag] => Some(tagged(tag, yes, no)),
        ["tags", ..] => Some(Verdict::left("a tag of your own, which nobody reads here")),
        ["watchdog", "mode"] if no => Some(Verdict::anyway("no hardware watchdog is used here either")),
        ["dcs", "check_timeline"] => Some(Verdict::anyway("a copy is always judged by its timeline, too")),
        ["dcs", "failsafe_mode"] if no => {
            Some(Verdict::anyway("a primary without its store stops within the lease here, too"))
        }
        ["dcs", "primary_race_backoff"] if zero => Some(Verdict::anyway("nothing is postponed")),
        ["dcs" | "postgresql", "postgresql" | "use_pg_rewind", ..] | ["postgresql", "use_slots"] => server(path, yes),
        ["bootstrap", "initdb", rest @ ..] => initdb(rest, &said.text),
        _ => None,
    }
}

fn server(path: &[&str], yes: bool) -> Option<Verdict> {
    match path.last().copied()? {
        "use_pg_rewind" if yes => {
            Some(Verdict::anyway("a former primary is rewound by itself, after what it alone held is kept"))
        }
        "use_pg_rewind" => {
            Some(Verdict::changed(None, "on", "Mainstay rewinds a former primary, after what it alone held is kept"))
        }
        "use_slots" if yes => Some(Verdict::anyway("every node has a slot on every other one")),
        "use_slots" => Some(Verdict::changed(None, "on", "replicas always stream through slots here")),
        _ => None,
    }
}

fn initdb(rest: &[&str], text: &str) -> Option<Verdict> {
    let utf8 = text.eq_ignore_ascii_case("utf8") || text.eq_ignore_ascii_case("utf-8");
    match rest {
        [] if text == "data-checksums" => Some(Verdict::anyway("data always has checksums")),
        ["encoding"] if utf8 => Some(Verdict::anyway("the first copy is always made with UTF8")),
        _ => None,
    }
}

fn tagged(tag: &str, yes: bool, no: bool) -> Verdict {
    match tag {
        "nofailover" | "noloadbalance" | "clonefrom" | "nosync" | "nostream" if no => {
            Verdict::anyway("every data node may do everything")
        }
        "nofailover" => Verdict::left(
            "every data node can become the primary here: is this one not to, leave it out, or make it a witness, which holds no data",
        ),
        "failover_priority" => Verdict::left(
            "the replica that reaches furthest takes over; among equals nobody can be preferred, and every data node can become the primary",
        ),
        "noloadbalance" => Verdict::left("every replica that is near enough (proxy.max_lag_bytes) gets reads"),
        "clonefrom" if yes => Verdict::left("Mainstay chooses from whom a replica is cloned"),
        "nosync" | "sync_priority" => {
            Verdict::left("every replica may confirm commits: as many as failover.sync_replicas, whichever is first")
        }
        "replicatefrom" => Verdict::left("every replica streams from the primary: there are no cascades"),
        "nostream" => Verdict::left("every replica streams"),
        _ => Verdict::left("a tag of your own, which nobody reads here"),
    }
}

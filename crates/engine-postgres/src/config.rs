//! The server's configuration as text: one file outside the data directory that holds every setting, so that a rewind, a clone or
//! `ALTER SYSTEM` never changes what we own. What changes during the cluster's life (upstream, synchronous setting) stands in the
//! file's first line too, so that one rename changes both. Absent: writing and reloading (see `apply`).

use crate::held::Floors;
use crate::options::{PostgresOptions, is_owned};
use crate::slots::slot_name;
use mainstay_model::layout::NodeLayout;
use mainstay_model::{CopyId, NodeId, SyncSetting};
use mainstay_ports::engine::EngineSettings;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

/// The role with which servers replicate and rewind from each other; the common name of their certificates.
pub const REPLICATOR: &str = "mainstay_replicator";
/// Name of the agent's own sessions.
pub(crate) const AGENT: &str = "mainstay_agent";
/// The setting by which a session shows which generation of the file its server has read.
pub(crate) const GENERATION: &str = "mainstay.generation";
/// How long a standby waits between attempts to get more of the log. Short: told to promote at the wrong moment the startup
/// process sleeps this long (5 s by default); and a recruit may have to wait for one round.
pub(crate) const RETRY_INTERVAL_MS: u32 = 50;

/// What a standby asks of the upstream's end of its connection, which clients' sessions there are not to have: the walsender of a host
/// or path that is gone ends within 3 s, and with it the hold on the slot.
const STREAM_OPTIONS: &str = "options='-c tcp_keepalives_idle=1 -c tcp_keepalives_interval=1 -c tcp_keepalives_count=2 \
     -c tcp_user_timeout=3000'";

const LIVE: &str = "# mainstay-live: ";
const OPEN: &str = "# mainstay: clients may enter";
const CLOSED: &str = "# mainstay: clients are kept out";

/// The part of the configuration that orders change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Live {
    /// Rises with every write; a session shows it.
    pub(crate) generation: u64,
    /// What is in the data directory, as the server calls itself towards an upstream.
    pub(crate) copy: Option<CopyId>,
    /// From whom it streams.
    pub(crate) upstream: Option<NodeId>,
    /// The synchronous setting.
    pub(crate) setting: SyncSetting,
    /// Commits wait for a name that never answers, whatever `setting` says (see `sync`).
    pub(crate) blocked: bool,
}

/// What a server calls itself in its replication connection, and how commits name it.
pub(crate) fn copy_name(node: &NodeId, copy: CopyId) -> String {
    format!("{node}_{copy}")
}

/// Reads back a name made by `copy_name`.
pub(crate) fn parse_copy_name(name: &str) -> Option<(NodeId, CopyId)> {
    let (node, copy) = name.rsplit_once('_')?;
    if copy.len() != 16 {
        return None;
    }
    Some((NodeId::new(node).ok()?, CopyId::try_from(copy.to_owned()).ok()?))
}

/// `synchronous_standby_names` for a setting. Fewer copies than needed: names that never answer fill up, so that commits block.
pub(crate) fn standby_names(live: &Live) -> String {
    if live.blocked {
        return "ANY 1 (\"mainstay_nobody_0\")".into();
    }
    let need = live.setting.need;
    if need == 0 {
        return String::new();
    }
    let real = live.setting.copies.iter().map(|(node, copy)| format!("\"{}\"", copy_name(node, *copy)));
    let missing = usize::try_from(need).unwrap_or(usize::MAX).saturating_sub(live.setting.copies.len()).min(64);
    let nobody = (1..=missing).map(|number| format!("\"mainstay_nobody_{number}\""));
    let names: Vec<String> = real.chain(nobody).collect();
    format!("ANY {need} ({})", names.join(","))
}

/// What libpq needs to reach another node's server as the replicator.
pub(crate) fn conninfo(layout: &NodeLayout, host: &str, port: u16, name: &str) -> String {
    let path = |path: std::path::PathBuf| path.display().to_string();
    let pairs = [
        ("host", host.to_owned()),
        ("port", port.to_string()),
        ("user", REPLICATOR.to_owned()),
        ("application_name", name.to_owned()),
        ("sslmode", "verify-ca".to_owned()),
        ("sslcert", path(layout.replication_cert())),
        ("sslkey", path(layout.replication_key())),
        ("sslrootcert", path(layout.server_ca())),
        ("gssencmode", "disable".to_owned()),
        ("connect_timeout", "2".to_owned()),
        ("keepalives_idle", "2".to_owned()),
        ("keepalives_interval", "1".to_owned()),
        ("keepalives_count", "3".to_owned()),
        ("tcp_user_timeout", "5000".to_owned()),
    ];
    let quoted = pairs.iter().map(|(key, value)| {
        let value = value.replace('\\', "\\\\").replace('\'', "\\'");
        format!("{key}='{value}'")
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// Everything that `postgresql.conf` is made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'a> {
    pub(crate) options: &'a PostgresOptions,
    /// What the operator may change.
    pub(crate) settings: &'a EngineSettings,
    pub(crate) live: &'a Live,
    /// What a standby must not have less of.
    pub(crate) floors: &'a Floors,
    pub(crate) socket_dir: &'a Path,
    /// How much of the log slots may keep.
    pub(crate) keep_mb: u64,
}

/// `postgresql.conf`, whole.
pub(crate) fn postgresql_conf(from: Source<'_>) -> String {
    let mut text = String::new();
    let json = serde_json::to_string(from.live).unwrap_or_default();
    let _ = writeln!(text, "{LIVE}{json}");
    let _ = writeln!(text, "# Written by Mainstay whenever something changes; set server parameters in mainstay.toml.");
    for (name, value) in settings(from) {
        let value = value.replace('\\', "\\\\").replace('\'', "''");
        let _ = writeln!(text, "{name} = '{value}'");
    }
    text
}

fn settings(from: Source<'_>) -> BTreeMap<String, String> {
    let Source { options, settings, live, floors, socket_dir, keep_mb } = from;
    let mut all: BTreeMap<String, String> = DEFAULTS.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    all.insert("wal_keep_size".to_owned(), format!("{}MB", keep_mb.min(WAL_KEEP_MB)));
    if volume_tells_errors() {
        all.insert("recovery_init_sync_method".to_owned(), "syncfs".to_owned());
    }
    all.extend(settings.parameters.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())));
    floors.lift(&mut all);
    if mainstay_ports::sabotage::on("local-commits") {
        all.insert("synchronous_commit".to_owned(), "local".to_owned());
    }
    let layout = &options.layout;
    let path = |path: std::path::PathBuf| path.display().to_string();
    let upstream = live.upstream.as_ref().and_then(|node| settings.peers.get(node).map(|at| (node, at)));
    let primary_conninfo = match (upstream, live.copy) {
        (Some((_, (host, port))), Some(copy)) => {
            format!("{} {STREAM_OPTIONS}", conninfo(layout, host, *port, &copy_name(&options.node, copy)))
        }
        // A copy that is being made whole: its name is no copy's, so that its reports count for nothing.
        (Some((_, (host, port))), None) => conninfo(layout, host, *port, &format!("{}_unfinished", options.node)),
        (None, _) => String::new(),
    };
    // Through its own slot, which admits one connection at a time: a copy that comes back while the upstream still holds the connection
    // of before must not count twice for a commit. A copy that is being made whole counts for none, and must not wait for the slot.
    let slot = live.copy.map(|_| slot_name(&options.node)).unwrap_or_default();
    let ours = [
        ("cluster_name", format!("{}/{}", options.cluster, options.node)),
        ("listen_addresses", options.listen.clone()),
        ("port", options.port.to_string()),
        ("unix_socket_directories", socket_dir.display().to_string()),
        ("unix_socket_permissions", "0700".into()),
        ("ssl_cert_file", path(layout.server_cert())),
        ("ssl_key_file", path(layout.server_key())),
        ("ssl_ca_file", path(layout.server_ca())),
        ("primary_conninfo", primary_conninfo),
        ("primary_slot_name", slot),
        ("synchronous_standby_names", standby_names(live)),
        ("max_slot_wal_keep_size", format!("{keep_mb}MB")),
        ("wal_retrieve_retry_interval", format!("{RETRY_INTERVAL_MS}ms")),
        (GENERATION, live.generation.to_string()),
    ];
    all.extend(OURS.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    all.extend(ours.into_iter().map(|(name, value)| (name.to_owned(), value)));
    all.extend(settings.archive_command.iter().map(|command| ("archive_command".to_owned(), command.clone())));
    all
}

/// Bridges the time between a clone and its slot, on a volume that has the room.
const WAL_KEEP_MB: u64 = 256;

/// What operators may change.
const DEFAULTS: &[(&str, &str)] = &[
    ("max_connections", "200"),
    // The agent must get in when clients have used up theirs.
    ("superuser_reserved_connections", "8"),
    ("shared_buffers", "128MB"),
    ("max_wal_size", "1GB"),
    ("min_wal_size", "80MB"),
    ("checkpoint_timeout", "5min"),
    ("max_wal_senders", "20"),
    ("max_replication_slots", "20"),
    ("wal_receiver_timeout", "5s"),
    // Short: while the walsender of a connection that broke lives, its replica is refused (see `STREAM_OPTIONS` too).
    ("wal_sender_timeout", "3s"),
    ("wal_receiver_status_interval", "1s"),
    ("max_standby_streaming_delay", "30s"),
    ("max_standby_archive_delay", "30s"),
    ("hot_standby_feedback", "off"),
    ("synchronous_commit", "on"),
    ("password_encryption", "scram-sha-256"),
    ("ssl_min_protocol_version", "TLSv1.2"),
    ("lc_messages", "C"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("log_line_prefix", "%m [%p] %q%u@%d %a "),
    ("log_checkpoints", "on"),
    // A client that vanished must not hold its locks for two hours.
    ("tcp_keepalives_idle", "30"),
    ("tcp_keepalives_interval", "10"),
    ("tcp_keepalives_count", "3"),
    ("idle_in_transaction_session_timeout", "0"),
];

/// Parameters that a server of ours has unless the operator says otherwise.
#[must_use]
pub fn default_parameters() -> &'static [(&'static str, &'static str)] {
    DEFAULTS
}

/// What only we set.
const OURS: &[(&str, &str)] = &[
    ("wal_level", "replica"),
    ("hot_standby", "on"),
    ("wal_log_hints", "on"),
    ("fsync", "on"),
    ("full_page_writes", "on"),
    ("data_sync_retry", "off"),
    // On from the start, because turning it on later needs a restart. Without a command of the operator's (docs/adr/0049) it only succeeds, or the
    // log would pile up: the agent archives, and a slot keeps what is not archived yet (docs/adr/0023).
    ("archive_mode", "on"),
    ("archive_command", "/bin/true"),
    ("recovery_target_timeline", "latest"),
    // A crash of one backend must not make the server recover by itself with clients in: the agent decides.
    ("restart_after_crash", "off"),
    ("ssl", "on"),
    ("logging_collector", "off"),
    ("log_destination", "stderr"),
];

/// From 5.8 on Linux says of a whole volume that something could not be written to it (`syncfs`), as it does of a file. Then crash
/// recovery makes the data directory durable with one call: file by file asks the disk for a flush per file, about a thousand of a new
/// database's, and every other server on that disk waits behind them.
pub(crate) fn volume_tells_errors() -> bool {
    tells_errors(&rustix::system::uname().release().to_string_lossy())
}

fn tells_errors(release: &str) -> bool {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(str::parse::<u32>);
    matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (5, 8))
}

/// The part of an old file that orders had changed; `None`: not our file.
pub(crate) fn parse_live(text: &str) -> Option<Live> {
    serde_json::from_str(text.lines().next()?.strip_prefix(LIVE)?).ok()
}

/// `pg_hba.conf`. Closed: the agent and the other servers only.
pub(crate) fn pg_hba_conf(settings: &EngineSettings, open: bool) -> String {
    let mut lines = vec![
        if open { OPEN } else { CLOSED }.to_owned(),
        "local all postgres peer map=mainstay".into(),
        format!("hostssl replication {REPLICATOR} all cert"),
        format!("hostssl postgres {REPLICATOR} all cert"),
        format!("host all {REPLICATOR} all reject"),
    ];
    if open {
        lines.extend(settings.hba.iter().cloned());
        lines.extend(
            [
                "hostssl all all all scram-sha-256",
                "host all all 127.0.0.0/8 scram-sha-256",
                "host all all ::1/128 scram-sha-256",
            ]
            .map(str::to_owned),
        );
    }
    lines.push(String::new());
    lines.join("\n")
}

/// Does this `pg_hba.conf` let clients in?
pub(crate) fn hba_is_open(text: &str) -> bool {
    text.lines().next() == Some(OPEN)
}

/// `pg_ident.conf`: the agent's user, and nobody else, is the superuser.
pub(crate) fn pg_ident_conf(options: &PostgresOptions) -> String {
    format!("mainstay \"{}\" postgres\n", options.os_user.replace('"', ""))
}

/// `postgresql.auto.conf` without the settings that we own; `None`: it holds none of them.
#[must_use]
pub fn without_owned(auto: &str) -> Option<String> {
    let ours = |line: &&str| {
        let name = line.trim_start().split(['=', ' ', '\t']).next().unwrap_or_default();
        is_owned(name)
    };
    if !auto.lines().any(|line| ours(&line)) {
        return None;
    }
    Some(auto.lines().filter(|line| !ours(line)).map(|line| format!("{line}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(need: u32, names: &[&str]) -> Live {
        let copies = names.iter().zip(1..).map(|(n, c)| (NodeId::new(*n).unwrap(), CopyId::new(c).unwrap())).collect();
        Live { setting: SyncSetting { need, copies }, ..Live::default() }
    }

    #[test]
    fn only_a_system_that_tells_errors_of_a_volume_is_asked_for_one_flush() {
        for (release, tells) in [
            ("5.8.0-1-amd64", true),
            ("6.1.0-28-amd64", true),
            ("5.7.19", false),
            ("4.18.0-553.el8", false),
            ("x", false),
        ] {
            assert_eq!(tells_errors(release), tells, "{release}");
        }
    }

    #[test]
    fn a_setting_names_copies_and_fills_up_with_nobody() {
        assert_eq!(standby_names(&setting(0, &["db2"])), "");
        assert_eq!(standby_names(&setting(1, &["db-2"])), "ANY 1 (\"db-2_0000000000000001\")");
        let names = standby_names(&setting(3, &["db2"]));
        assert_eq!(names, "ANY 3 (\"db2_0000000000000001\",\"mainstay_nobody_1\",\"mainstay_nobody_2\")");
    }

    #[test]
    fn copy_names_are_read_back_and_others_refused() {
        let node = NodeId::new("db-2").unwrap();
        let copy = CopyId::new(0xab).unwrap();
        assert_eq!(parse_copy_name(&copy_name(&node, copy)), Some((node, copy)));
        for other in ["pg_basebackup", "db2_1", "walreceiver", "db2_0000000000000000"] {
            assert_eq!(parse_copy_name(other), None, "{other}");
        }
    }

    #[test]
    fn owned_lines_leave_the_automatic_file_and_others_stay() {
        let auto = "# by hand\nwork_mem = '8MB'\n synchronous_standby_names = ''\nPRIMARY_CONNINFO='x'\n";
        assert_eq!(without_owned(auto).as_deref(), Some("# by hand\nwork_mem = '8MB'\n"));
        assert_eq!(without_owned("work_mem = '8MB'\n"), None);
    }
}

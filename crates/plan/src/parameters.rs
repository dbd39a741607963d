//! Server parameters, each from memory, cores, disk and work, with its reason and where the rule stands.

use crate::facts::Facts;
use crate::report::Mark;
use mainstay_model::requirements::{Disk, Workload};
use mainstay_model::spec::Spec;

/// One parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// The value that is in force with this plan.
    pub value: String,
    /// Why.
    pub reason: String,
    /// Where the rule comes from.
    pub source: &'static str,
    /// A change needs a restart of the servers.
    pub restart: bool,
    /// Where the value comes from.
    pub mark: Mark,
}

const MEMORY: &str = "PostgreSQL manual, 20.4 Resource Consumption";
const WAL: &str = "PostgreSQL manual, 20.5 Write Ahead Log";
const PLANNER: &str = "PostgreSQL manual, 20.7 Query Planning";
const VACUUM: &str = "PostgreSQL manual, 20.10 Automatic Vacuuming";
const CLIENTS: &str = "PostgreSQL manual, 20.3 Connections";
const LOG: &str = "PostgreSQL manual, 20.8 and 20.9 Logging, Statistics";

/// Sessions beside the applications': monitoring, a person, the backup.
const OTHER_SESSIONS: u64 = 12;
/// Kept for the agent, so that it gets in when clients have used up theirs (the engine's own default).
pub(crate) const RESERVED: u64 = 8;
/// How much write-ahead log a standby or a crashed server replays in a second, at the careful end of what is reported.
pub(crate) const REPLAY_MB_PER_S: u64 = 50;

/// The sizes that others build on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// `max_connections`.
    pub connections: u64,
    /// `shared_buffers`.
    pub shared_mb: u64,
    /// `work_mem`.
    pub work_mb: u64,
    /// `maintenance_work_mem`.
    pub maintenance_mb: u64,
    /// `max_wal_size`.
    pub wal_mb: u64,
    /// `autovacuum_max_workers`.
    pub vacuum_workers: u64,
    /// The host's memory.
    pub memory_mb: u64,
}

/// The sizes for this cluster: those that the file sets, and what follows from the requirements for the others.
#[must_use]
pub fn sizes(facts: &Facts<'_>) -> Sizes {
    let of_its_own = derived(facts, None);
    let set = |name, unit| declared(facts.spec, name, unit);
    let in_mb = |name, unit| set(name, unit).map(|kb| kb.div_ceil(1024));
    let connections = set("max_connections", Unit::None);
    let sizes = derived(facts, connections);
    Sizes {
        connections: connections.unwrap_or(of_its_own.connections),
        shared_mb: in_mb("shared_buffers", Unit::Kb(8)).unwrap_or(sizes.shared_mb),
        work_mb: in_mb("work_mem", Unit::Kb(1)).unwrap_or(sizes.work_mb),
        maintenance_mb: in_mb("maintenance_work_mem", Unit::Kb(1)).unwrap_or(sizes.maintenance_mb),
        wal_mb: in_mb("max_wal_size", Unit::Kb(1024)).unwrap_or(sizes.wal_mb),
        vacuum_workers: set("autovacuum_max_workers", Unit::None).unwrap_or(sizes.vacuum_workers),
        memory_mb: sizes.memory_mb,
    }
}

/// What a number without a unit counts.
#[derive(Clone, Copy)]
enum Unit {
    None,
    /// So many kilobytes.
    Kb(u64),
}

/// A parameter of the file as a number, a size in kilobytes; `None`: not set, or not as the server reads one (PostgreSQL manual, 20.1.1).
fn declared(spec: &Spec, name: &str, unit: Unit) -> Option<u64> {
    let (_, value) = spec.postgres.parameters.iter().find(|(known, _)| known.eq_ignore_ascii_case(name))?;
    let value = value.trim().trim_matches('\'').trim();
    let end = value.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(value.len());
    let (number, said) = value.split_at(end);
    let number: u64 = number.parse().ok()?;
    let kb = match (said.trim(), unit) {
        ("", Unit::None) => 1,
        ("", Unit::Kb(kb)) => kb,
        ("kB", Unit::Kb(_)) => 1,
        ("MB", Unit::Kb(_)) => 1 << 10,
        ("GB", Unit::Kb(_)) => 1 << 20,
        ("TB", Unit::Kb(_)) => 1 << 30,
        _ => return None,
    };
    // No server takes more; and no sum of such sizes overflows.
    number.checked_mul(kb).filter(|kb| *kb < 1 << 40)
}

/// What follows from the requirements, with so many connections if they are said.
pub(crate) fn derived(facts: &Facts<'_>, connections: Option<u64>) -> Sizes {
    let asked = facts.asked();
    let memory_mb = facts.memory_gb().0.saturating_mul(1024);
    let connections = connections.unwrap_or((asked.clients + OTHER_SESSIONS + RESERVED).div_ceil(50) * 50);
    let set_mb = asked.working_set_gb().saturating_mul(1024);
    let shared_mb = (memory_mb / 4).min((set_mb + set_mb / 4).max(512)).max(128) / 64 * 64;
    let share = match asked.workload {
        Workload::Transactions => 25,
        Workload::Mixed => 30,
        Workload::Analytics => 40,
    };
    let work_mb = (memory_mb * share / 100 / connections.max(1)).clamp(1, 2048);
    let vacuum_workers = if facts.cores().0 >= 8 { 5 } else { 3 };
    let maintenance_mb = (memory_mb / 20).clamp(64, 2048);
    let quarter_hour_mb = facts.log_kb_per_s() * 900 / 1024;
    let disk_mb = facts.disk_gb().0.saturating_mul(1024);
    let wal_mb = (quarter_hour_mb * 2).max(1024).min((disk_mb / 10).max(256)).div_ceil(256) * 256;
    Sizes { connections, shared_mb, work_mb, maintenance_mb, wal_mb, vacuum_workers, memory_mb }
}

impl Sizes {
    /// What the server may use at worst, by the estimate that work memory is used twice by one connection in four, in the same moment.
    #[must_use]
    pub fn worst_mb(&self) -> u64 {
        self.shared_mb
            + self.connections * 5
            + self.connections.div_ceil(4) * 2 * self.work_mb
            + self.vacuum_workers * self.maintenance_mb
    }
}

/// As the server writes a size.
#[must_use]
pub fn size(mb: u64) -> String {
    if mb >= 1024 && mb.is_multiple_of(1024) { format!("{}GB", mb / 1024) } else { format!("{mb}MB") }
}

/// For people.
#[must_use]
pub fn words(mb: u64) -> String {
    match mb {
        0..1024 => format!("{mb} MB"),
        1024..20_480 => format!("{} GB", tenths(mb)),
        _ => format!("{} GB", mb / 1024),
    }
}

struct Table<'a> {
    facts: &'a Facts<'a>,
    rows: Vec<Parameter>,
}

impl Table<'_> {
    /// What the file sets stays as it is.
    fn add(
        &mut self,
        name: &'static str,
        value: impl Into<String>,
        restart: bool,
        source: &'static str,
        reason: String,
    ) {
        let value = value.into();
        let own = self.facts.spec.postgres.parameters.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        let (value, reason, mark) = match own {
            Some((_, own)) if *own == value => (value, reason, Mark::Declared),
            Some((_, own)) => {
                (own.clone(), format!("set in the file; {value} would follow here: {reason}"), Mark::Declared)
            }
            None => (value, reason, Mark::Derived),
        };
        self.rows.push(Parameter { name, value, reason, source, restart, mark });
    }
}

/// All that are derived, in groups.
#[must_use]
pub fn parameters(facts: &Facts<'_>) -> Vec<Parameter> {
    let mut table = Table { facts, rows: Vec::new() };
    memory(&mut table);
    workers(&mut table);
    log(&mut table);
    disk(&mut table);
    habits(&mut table);
    table.rows
}

fn memory(table: &mut Table<'_>) {
    let (facts, sizes) = (table.facts, sizes(table.facts));
    let follows = derived(facts, Some(sizes.connections));
    let (asked, memory_gb) = (facts.asked(), facts.memory_gb().0);
    let (clients, set) = (asked.clients, asked.working_set_gb());
    table.add("max_connections", derived(facts, None).connections.to_string(), true, CLIENTS, format!(
        "{clients} of the applications, {OTHER_SESSIONS} for monitoring and people, {RESERVED} reserved, rounded up to 50; counted without \
         pooling, where each client connection is one of the server's"
    ));
    table.add("shared_buffers", size(follows.shared_mb), true, MEMORY, format!(
        "a quarter of {memory_gb} GB, but not more than the working set of {set} GB and a quarter; the rest is the file cache's"
    ));
    table.add("effective_cache_size", size(sizes.memory_mb * 7 / 10 / 64 * 64), false, PLANNER, format!(
        "seven tenths of {memory_gb} GB: what shared buffers and file cache hold together; the planner's estimate, no allocation"
    ));
    table.add("work_mem", size(follows.work_mb), false, MEMORY, format!(
        "a share of {memory_gb} GB divided by {} connections; a sort or hash beyond it goes to disk. At worst the server takes about {}",
        sizes.connections, words(sizes.worst_mb())
    ));
    table.add(
        "maintenance_work_mem",
        size(follows.maintenance_mb),
        false,
        MEMORY,
        format!(
            "a twentieth of the memory, 2 GB at most: index builds, and {} vacuum workers of that size each",
            sizes.vacuum_workers
        ),
    );
}

fn workers(table: &mut Table<'_>) {
    let facts = table.facts;
    let cores = facts.cores().0;
    let gather = match facts.asked().workload {
        Workload::Transactions => (cores / 4).min(2),
        Workload::Mixed => (cores / 4).clamp(1, 4),
        Workload::Analytics => (cores / 2).clamp(1, 16),
    };
    table.add(
        "max_worker_processes",
        (cores + 8).to_string(),
        true,
        MEMORY,
        format!("{cores} for parallel queries, the rest for extensions and replication"),
    );
    table.add("max_parallel_workers", cores.to_string(), false, MEMORY, format!("one for each of {cores} cores"));
    table.add(
        "max_parallel_workers_per_gather",
        gather.to_string(),
        false,
        MEMORY,
        format!(
            "workload {}: {}",
            facts.asked().workload,
            if facts.asked().workload == Workload::Transactions {
                "short transactions gain nothing from many workers"
            } else {
                "reports may use several cores each"
            }
        ),
    );
    table.add(
        "max_parallel_maintenance_workers",
        (cores / 4).clamp(1, 4).to_string(),
        false,
        MEMORY,
        "index builds, a quarter of the cores".to_owned(),
    );
    let workers = derived(facts, None).vacuum_workers;
    table.add(
        "autovacuum_max_workers",
        workers.to_string(),
        true,
        VACUUM,
        format!("{workers} on {cores} cores: one large table must not keep all others waiting"),
    );
    let limit = match facts.asked().disk {
        Disk::Nvme => 4000,
        Disk::Ssd => 2000,
        Disk::Network => 1000,
        Disk::Rotating => 400,
    };
    table.add(
        "autovacuum_vacuum_cost_limit",
        limit.to_string(),
        false,
        VACUUM,
        format!(
            "disk {}: the default of 200 holds vacuum to a few MB a second, which a busy table outruns",
            facts.asked().disk
        ),
    );
}

fn log(table: &mut Table<'_>) {
    let (facts, sizes) = (table.facts, sizes(table.facts));
    let rate = facts.log_kb_per_s();
    let replay = (sizes.wal_mb / REPLAY_MB_PER_S).max(1);
    table.add("max_wal_size", size(derived(facts, None).wal_mb), false, WAL, format!(
        "two checkpoint intervals of {} MB/s of log, at least 1 GB, at most a tenth of the disk; a server that crashed replays up to this much, about {replay} s",
        tenths(rate)
    ));
    table.add(
        "min_wal_size",
        size((sizes.wal_mb / 4).max(80)),
        false,
        WAL,
        "a quarter of max_wal_size: segments are used again instead of made anew".to_owned(),
    );
    table.add("checkpoint_timeout", "15min", false, WAL, "fewer full page images than with the default of 5 min; the time that recovery takes is bounded by max_wal_size".to_owned());
    table.add(
        "wal_compression",
        "on",
        false,
        WAL,
        "full page images compressed: less log to send to replicas and to keep, for some of the processors' time"
            .to_owned(),
    );
}

/// Tenths of a megabyte, from kilobytes.
pub(crate) fn tenths(kb: u64) -> String {
    let tenths = kb * 10 / 1024;
    format!("{}.{}", tenths / 10, tenths % 10)
}

fn disk(table: &mut Table<'_>) {
    let kind = table.facts.asked().disk;
    let (cost, queue) = match kind {
        Disk::Nvme => ("1.1", "256"),
        Disk::Ssd => ("1.1", "128"),
        Disk::Network => ("1.5", "64"),
        Disk::Rotating => ("4", "2"),
    };
    table.add(
        "random_page_cost",
        cost,
        false,
        PLANNER,
        format!("disk {kind}: what a page out of order costs against one in order"),
    );
    table.add(
        "effective_io_concurrency",
        queue,
        false,
        MEMORY,
        format!("disk {kind}: how many reads it serves at once"),
    );
    if table.facts.asked().workload == Workload::Transactions {
        table.add(
            "jit",
            "off",
            false,
            PLANNER,
            "workload transactions: compiling costs more than short queries gain".to_owned(),
        );
    } else {
        table.add(
            "default_statistics_target",
            "250",
            false,
            PLANNER,
            "reports join unevenly filled columns: better estimates for a longer analyze".to_owned(),
        );
    }
}

fn habits(table: &mut Table<'_>) {
    let slow = (table.facts.asked().write_latency_ms * 10).clamp(200, 10_000);
    table.add(
        "log_min_duration_statement",
        format!("{slow}ms"),
        false,
        LOG,
        format!("ten times what a commit may take ({} ms)", table.facts.asked().write_latency_ms),
    );
    table.add("log_lock_waits", "on", false, LOG, "names who blocks whom after one second".to_owned());
    table.add("track_io_timing", "on", false, LOG, "tells waiting for the disk from working".to_owned());
    table.add("log_autovacuum_min_duration", "10s", false, LOG, "shows which tables vacuum is slow on".to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::day::Day;
    use mainstay_model::config::parse;

    fn told<T>(parameters: &str, ask: impl Fn(&Facts<'_>) -> T) -> T {
        let text = format!(
            "[cluster]\nname = \"orders\"\n[[node]]\nname = \"a\"\nhost = \"h\"\n[requirements]\nclients = 100\nmemory_gb = 16\n\
             [postgres.parameters]\n{parameters}"
        );
        let spec = parse(&text, &[]).unwrap();
        ask(&Facts { spec: &spec, today: Day::of(2026, 11, 27), machines: &[], running: None, what_if: &[] })
    }

    #[test]
    fn what_the_file_sets_counts_in_every_sum() {
        let free = told("", sizes);
        let set = told(
            "max_connections = 900\nshared_buffers = \"1GB\"\nmax_wal_size = \"4096\"\nautovacuum_max_workers = 9\n\
             maintenance_work_mem = \"'2 GB'\"\n",
            sizes,
        );
        assert_eq!((set.connections, set.shared_mb, set.wal_mb), (900, 1024, 4096));
        assert_eq!((set.vacuum_workers, set.maintenance_mb), (9, 2048));
        assert!(set.work_mb < free.work_mb, "more connections share the memory");
        for (value, mb) in [("65536", 64), ("64MB", 64), ("1kB", 1), ("many", free.work_mb), ("64mb", free.work_mb)] {
            assert_eq!(told(&format!("work_mem = \"{value}\"\n"), sizes).work_mb, mb, "{value}");
        }
        assert_eq!(told("shared_buffers = \"99999999999999TB\"\n", sizes).shared_mb, free.shared_mb);
        let rows = told("max_connections = 900\n", parameters);
        let row = rows.iter().find(|row| row.name == "max_connections").unwrap();
        assert!(row.value == "900" && row.reason.contains("would follow here"), "{row:?}");
    }

    #[test]
    fn too_few_connections_are_a_contradiction_unless_they_are_shared() {
        let found = |more: &str| {
            told(&format!("max_connections = 50\n{more}"), |facts| {
                crate::refusal::contradictions(facts).iter().any(|each| each.text.contains("max_connections = 50 in"))
            })
        };
        assert!(found(""));
        assert!(!found("[proxy]\nmode = \"transaction\"\n"));
    }
}

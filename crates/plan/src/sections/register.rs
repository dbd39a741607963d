//! Sections 4, 12 and 13: parameters, alerts, security.

use super::Draft;
use crate::cells;
use crate::objectives::{Class, asked, take_over_s};
use crate::parameters::{parameters, sizes, words};
use crate::report::{Mark, Section};

pub(super) fn configuration(draft: &Draft<'_>) -> Section {
    let facts = draft.facts;
    let mut section = Section::new(4, "configuration", "Configuration register");
    let hardware = [("cores", facts.cores()), ("memory, GB", facts.memory_gb()), ("disk, GB", facts.disk_gb())];
    let mut rows: Vec<_> = hardware
        .into_iter()
        .map(|(name, (value, mark))| cells![mark; format!("Smallest host: {name}"), value])
        .collect();
    rows.push(cells![facts.said(|asked| asked.disk); "Kind of disk", facts.asked().disk]);
    rows.push(cells![facts.said(|asked| asked.link_mbit_s); "Slowest link, Mbit/s", facts.asked().link_mbit_s]);
    section.table("Hosts", &["What", "Value"], rows);
    let rows = parameters(facts).into_iter().map(|each| {
        cells![each.mark; each.name, each.value, each.reason, each.source, if each.restart { "yes" } else { "no" }]
    });
    section.table("Server parameters", &["Parameter", "Value", "Because", "Rule from", "Restart"], rows.collect());
    let known = parameters(facts);
    let others = facts
        .spec
        .postgres
        .parameters
        .iter()
        .filter(|(name, _)| !known.iter().any(|each| each.name.eq_ignore_ascii_case(name)));
    let rows = others.map(|(name, value)| cells![Mark::Declared; name, value, "set in the file, and not derived here"]);
    section.table("Further parameters of the file", &["Parameter", "Value", "Because"], rows.collect());
    section.say(Mark::Derived, format!(
        "At worst a server uses about {} of {}: shared buffers, 5 MB for each connection, work memory twice in a quarter of them, and vacuum. A replica must have no less \
         max_connections and max_worker_processes than its primary: Mainstay raises replicas first and lowers the primary first.",
        words(sizes(facts).worst_mb()), words(sizes(facts).memory_mb)
    ));
    let times = &facts.spec.failover;
    section.table("Times of the take-over", &["Key", "Value", "Because"], vec![
        cells![Mark::Declared; "failover.ping_ms", times.ping_ms, "agents tell each other that they live"],
        cells![Mark::Declared; "failover.suspicion_ms", times.suspicion_ms, format!("{} pings missed: a take-over begins", times.suspicion_ms / times.ping_ms.max(1))],
        cells![Mark::Declared; "failover.lease_ms", times.lease_ms, "a primary that can not renew its claim stops after this, less the margin"],
        cells![Mark::Declared; "failover.margin_percent", times.margin_percent, "of the lease, kept back for clocks and for ending the server"],
    ]);
    let set = set_command(draft);
    if !set.is_empty() {
        section.code("To bring the derived values into force (it shows what it changes, and asks)", set);
    }
    differences(draft, &mut section);
    section
}

/// The derived values as one command; empty when all are there.
fn set_command(draft: &Draft<'_>) -> String {
    let missing = parameters(draft.facts).into_iter().filter(|each| each.mark == Mark::Derived);
    let set: Vec<String> = missing.map(|each| format!("  postgres.parameters.{}={}", each.name, each.value)).collect();
    if set.is_empty() {
        set.concat()
    } else {
        format!("mainstay set \\\n{}\nmainstay restart --pending", set.join(" \\\n"))
    }
}

fn differences(draft: &Draft<'_>, section: &mut Section) {
    let Some(running) = draft.facts.running else { return };
    let seen = || Mark::Measured(running.on.clone());
    if running.changes.is_empty() {
        section.say(seen(), format!("The file says what is in force (generation {}).", running.generation));
        return;
    }
    let rows = running.changes.iter().map(|(key, now, then)| cells![seen(); key, now, then]);
    section.table(
        format!("What the file would change (generation {} in force)", running.generation),
        &["Key", "In force", "In the file"],
        rows.collect(),
    );
    section.code(
        "To bring the file into force: one generation, written as a whole or not at all",
        "mainstay set --file mainstay.toml\nmainstay restart --pending",
    );
    section.say(Mark::Derived, "In this order: replicas restart one by one, each is waited for until it streams; then the primary's role is handed over, and the old primary restarts. The way back is the same command with the old values; nothing of it touches data.");
}

pub(super) fn monitoring(draft: &Draft<'_>) -> Section {
    let facts = draft.facts;
    let mut section = Section::new(12, "monitoring", "Monitoring and alerts");
    let out = asked(facts, Class::Host).1.unwrap_or_else(|| take_over_s(facts, &draft.layout) * 3);
    let rate_kb = facts.log_kb_per_s().max(1);
    let loss = asked(facts, Class::Host).0.filter(|loss| *loss > 0).unwrap_or(30);
    let lag_mb = (rate_kb * loss / 1024).max(64);
    let most = sizes(facts).connections;
    let free = facts.disk_gb().0 * 15 / 100;
    let wrap = wraparound_days(facts.asked().writes_per_s);
    let mut rows = vec![
        cells![Mark::Derived; "no writable primary", format!("{} s", (out / 2).max(5)), "page", "half of the outage asked for (or three take-overs, where nothing is asked)", "GET /primary answers 200 nowhere; mainstay status"],
        cells![Mark::Derived; "two nodes answer as primary", "5 s", "page", "must not happen; the proxies follow the higher term", "GET /primary on all nodes"],
        cells![Mark::Derived; "fewer replicas stream than there should be", format!("{} of {}, 60 s", draft.layout.data() - 1, draft.layout.data() - 1), "urgent", "the next failure may stop writes", "pg_stat_replication"],
        cells![Mark::Derived; "replication lag", format!("{lag_mb} MB, 2 min"), "urgent", format!("{} MB/s of log for {loss} s, at least 64 MB", crate::parameters::tenths(rate_kb)), "pg_wal_lsn_diff(sent_lsn, replay_lsn)"],
        cells![Mark::Derived; "log kept by a slot", format!("{} GB", (facts.disk_gb().0 / 5).max(1)), "urgent", "a fifth of the disk: a replica or consumer is away too long", "pg_replication_slots"],
        cells![Mark::Derived; "free disk", format!("{free} GB"), "urgent", "15 % of the smallest disk", "df of the data directory"],
        cells![Mark::Derived; "client connections", format!("{}", most * 8 / 10), "urgent", format!("80 % of max_connections = {most}"), "pg_stat_activity"],
        cells![Mark::Derived; "transaction open", "1 h", "urgent", "it keeps vacuum from removing what is dead, on every table", "pg_stat_activity.xact_start"],
        cells![Mark::Derived; "age of the oldest transaction id", "500 000 000", "urgent", format!("a quarter of the limit; with {} writes a second day and night and no vacuum the limit is reached after {wrap} days", facts.asked().writes_per_s), "age(datfrozenxid)"],
        cells![Mark::Derived; "checksum failure", "1", "page", "a damaged page spreads into backups", "pg_stat_database.checksum_failures"],
        cells![Mark::Derived; "clock offset", "100 ms", "urgent", "logs and certificates; no decision depends on it", "chronyc tracking, timedatectl"],
        cells![Mark::Derived; "certificate ends in", "21 d", "urgent", "agents refuse each other afterwards", "openssl x509 -enddate"],
    ];
    let schedule = crate::backup::schedule(facts);
    rows.push(cells![Mark::Derived; "newest base backup older than", format!("{} h", schedule.every_h * 3 / 2), "urgent", format!("one and a half of {} h", schedule.every_h), "the repository"]);
    rows.push(cells![Mark::Derived; "newest log in the repository older than", "5 min", "urgent", "what is lost with the site; 15 min: page", "the repository"]);
    section.table("Alerts", &["When", "Threshold", "How urgent", "Because", "Seen in"], rows);
    let rows = facts.spec.nodes.iter().map(|node| cells![Mark::Derived; node.name, format!("http://{}:{}/health", node.host, node.health_port), if node.witness { "-".to_owned() } else { format!("http://{}:{}/primary, /replica", node.host, node.health_port) }]);
    section.table("Health endpoints (no secrets, no changes)", &["Node", "Alive", "Role"], rows.collect());
    let called = &facts.asked().on_call;
    let mark = if called.is_empty() { Mark::Default } else { Mark::Declared };
    section.say(
        mark,
        if called.is_empty() {
            "Nobody is named as on call: requirements.on_call.".to_owned()
        } else {
            format!("Alerts go to: {}.", called.join("; "))
        },
    );
    section
}

/// Days until two thousand million transaction ids are used, if every write takes one.
pub(super) fn wraparound_days(writes_per_s: u64) -> u64 {
    2_000_000_000 / (writes_per_s.max(1) * 86_400)
}

pub(super) fn security(draft: &Draft<'_>) -> Section {
    let facts = draft.facts;
    let mut section = Section::new(13, "security", "Security");
    let spec = facts.spec;
    let mut rows = Vec::new();
    for node in &spec.nodes {
        if !node.witness {
            rows.push(cells![Mark::Derived; node.host, node.port, "the other data nodes, the proxies", "PostgreSQL, TLS; replication by client certificate"]);
        }
        rows.push(cells![Mark::Derived; node.host, node.agent_port, "all nodes, proxies, administrators", "mutual TLS: both sides show certificates of the cluster's authority"]);
        rows.push(cells![Mark::Derived; node.host, node.health_port, "load balancers, monitoring", "plain HTTP: no secrets, changes nothing"]);
        if spec.proxy.on_nodes {
            rows.push(cells![Mark::Derived; node.host, format!("{}, {}", spec.proxy.write_port, spec.proxy.read_port), "applications", "passed through to PostgreSQL, TLS and password are checked there"]);
        }
    }
    section.table(
        "Ports, and who must reach them",
        &["Host", "Port", "Must be reached by", "How it is protected"],
        rows,
    );
    let superuser = crate::scenarios::Names::of(facts).superuser();
    let superuser = format!("people: on the primary's host, as the agent's user: {superuser}");
    section.table("Roles and secrets", &["What", "Where", "Note"], vec![
        cells![Mark::Derived; "the cluster's authority", "made by mainstay pki init; keep its key off the nodes", "whoever has it can issue an administrator"],
        cells![Mark::Derived; "a node's keys", "its directory, unreadable to the database's user", "a database superuser reads what that user can"],
        cells![Mark::Derived; "superuser", "no password: the agent uses its Unix socket", superuser],
        cells![Mark::Derived; "administrators", "a certificate each: mainstay pki issue", "taken away by name, not by changing a shared secret"],
    ]);
    let hba: Vec<_> = spec.postgres.hba.iter().map(|line| cells![Mark::Declared; line]).collect();
    section.table("Lines of pg_hba.conf from the file, before the default ones", &["Line"], hba);
    match facts.asked().classification {
        mainstay_model::requirements::Classification::Personal => section.say(Mark::Declared, "Data about people: backups hold it too. Encrypt the repository, keep its key apart, and let the retention end what must be deleted."),
        mainstay_model::requirements::Classification::Secret => section.say(Mark::Declared, "Secret data: encrypt the volumes and the repository, allow hostssl lines only, and write down who holds which key."),
        _ => {}
    }
    section
}

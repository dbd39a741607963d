//! What to type with PostgreSQL's own tools: a restore beside the cluster, and the database without Mainstay. Every line is typed by a test (`mainstay/tests/by_hand.rs`) on a real cluster
//! whose agents were killed and whose hosts were given up.

use crate::facts::Facts;
use crate::scenarios::{Names, Scenario};
use mainstay_model::spec::Spec;
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// As the user of servers; unlike sudo it is on every host.
pub(crate) const AS_SERVER: &str = "runuser -u postgres --";
/// What Mainstay sets when the file does not.
const CONNECTIONS: u64 = 200;

/// Where the server's programs are: distributions put only some of them on the path.
pub(crate) fn programs(facts: &Facts<'_>) -> String {
    if let Some(dir) = &facts.spec.postgres.bin_dir {
        return dir.display().to_string();
    }
    let version = facts.version().map_or_else(|| "VERSION".to_owned(), |(major, _)| major.to_string());
    format!("/usr/lib/postgresql/{version}/bin")
}

/// A number of the file, if it sets one.
fn set(spec: &Spec, name: &str) -> Option<u64> {
    spec.postgres.parameters.get(name)?.parse().ok()
}

fn connections(facts: &Facts<'_>) -> u64 {
    let set = set(facts.spec, "max_connections").unwrap_or(CONNECTIONS);
    crate::parameters::sizes(facts).connections.max(set)
}

/// Parameters that a server in recovery must not have smaller than the primary had.
fn not_smaller(facts: &Facts<'_>) -> String {
    let workers = (facts.cores().0 + 8).max(set(facts.spec, "max_worker_processes").unwrap_or(0));
    let mut lines = format!(
        "max_connections = {}\nmax_worker_processes = {workers}\nmax_wal_senders = {}\n",
        connections(facts),
        set(facts.spec, "max_wal_senders").unwrap_or(0).max(20)
    );
    for name in ["max_prepared_transactions", "max_locks_per_transaction"] {
        if let Some(value) = set(facts.spec, name) {
            let _ = writeln!(lines, "{name} = {value}");
        }
    }
    lines
}

/// A restore with PostgreSQL's own tools.
pub(crate) fn restore_commands(facts: &Facts<'_>) -> String {
    let programs = programs(facts);
    format!(
        "# as root on a host with the same version of PostgreSQL; /backup holds base backups and log, the user postgres may read them (section 6 of the plan)\n\
         install -d -o postgres -g postgres -m 700 /restore\n\
         tar -xzf /backup/base/NEWEST/base.tar.gz -C /restore\n\
         # the newest piece of log is not whole yet (zcat says so): filled up with zeros the server takes it\n\
         mkdir /restore/tail\n\
         for part in /backup/wal/*.partial; do [ -e \"$part\" ] || continue; whole=/restore/tail/$(basename \"$part\" | cut -c1-24); zcat -f \"$part\" > \"$whole\"; truncate -s 16M \"$whole\"; done\n\
         # the first lines must not be smaller than they were on the primary\n\
         cat > /restore/restore.conf <<'END'\n\
         {}\
         port = 5499\n\
         unix_socket_directories = '/tmp'\n\
         hba_file = '/restore/restore.hba'\n\
         restore_command = 'cp /backup/wal/%f %p || zcat /backup/wal/%f.gz > %p || cp /restore/tail/%f %p'\n\
         # the moment to go back to; without this line: the newest, and the server opens by itself\n\
         recovery_target_time = 'YYYY-MM-DD HH:MM:SS+00'\n\
         recovery_target_action = 'pause'\n\
         END\n\
         echo 'local all all peer' > /restore/restore.hba\n\
         touch /restore/recovery.signal\n\
         chown -R postgres:postgres /restore\n\
         {AS_SERVER} {programs}/pg_ctl -D /restore -o '-c config_file=/restore/restore.conf' -l /restore/server.log -W start\n\
         # until it says that it pauses at the end of recovery (files that cp and zcat do not find are no failure)\n\
         tail -f /restore/server.log\n\
         # look whether it is the right moment, then open it\n\
         {AS_SERVER} psql -h /tmp -p 5499 -d app -c 'select pg_last_xact_replay_timestamp()'\n\
         {AS_SERVER} psql -h /tmp -p 5499 -d app -c 'select pg_wal_replay_resume()'",
        not_smaller(facts)
    )
}

/// Nothing of Mainstay is left on a host, whatever state it was in.
fn nothing_left(facts: &Facts<'_>) -> String {
    let dirs: BTreeSet<_> = facts.spec.data_nodes().map(|node| facts.spec.node_dir(node)).collect();
    let programs = programs(facts);
    let lines = dirs.iter().map(|dir| {
        let dir = dir.display();
        format!(
            "{AS_SERVER} {programs}/pg_ctl -D {dir}/data -m fast stop\npkill -f '[g]uard --socket {dir}/agent'\n# this prints nothing:\npgrep -af '{dir}/[d]ata'"
        )
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// What the file sets for servers, beside what stands in the configuration already.
fn parameters(spec: &Spec) -> String {
    let all = spec.postgres.parameters.iter().filter(|(name, _)| name.as_str() != "max_connections");
    all.fold(String::new(), |mut lines, (name, value)| {
        let _ = writeln!(lines, "{name} = '{}'", value.replace('\'', "''"));
        lines
    })
}

/// Mainstay itself does not run any more.
pub(crate) fn scenario(facts: &Facts<'_>, names: &Names<'_>) -> Scenario {
    let programs = programs(facts);
    let node = names.node(&names.primary);
    let dir = node.map(|node| facts.spec.node_dir(node).display().to_string()).unwrap_or_default();
    let port = node.map_or(5432, |node| node.port);
    let host = names.host(&names.primary);
    let positions: Vec<String> = facts
        .spec
        .data_nodes()
        .map(|node| format!("ssh {} {programs}/pg_controldata {}/data | grep -E 'cluster state|TimeLineID|checkpoint location|Minimum recovery ending'", node.host, facts.spec.node_dir(node).display()))
        .collect();
    Scenario {
        key: "by-hand",
        title: "Mainstay itself is gone: the database by hand",
        seen: "no agent starts any more, on any host, and it can not be mended in time".into(),
        decides: "the owner of the data",
        stop_if: "an agent still runs anywhere: stop it first (systemctl disable --now mainstay-agent), or it takes the server back.".into(),
        itself: "Nothing. data/ is an ordinary data directory of PostgreSQL, conf/ its configuration. A guard and a replica's server live on without an agent.".into(),
        commands: format!(
            "# on every host, as root: no agent, no server, no guard\nsystemctl disable --now mainstay-agent\n{}\n\
             # which copy is the newest: the last primary's, if its disk is there; else the highest timeline, then the highest of both positions\n{}\n\
             # on that host, here taken as {} ({host}): a configuration without replicas, and without what Mainstay set\n\
             mkdir -p /etc/postgresql\n\
             cat > /etc/postgresql/by-hand.conf <<'END'\n\
             listen_addresses = '*'\n\
             port = {port}\n\
             hba_file = '/etc/postgresql/by-hand.hba'\n\
             ssl = on\n\
             ssl_cert_file = '{dir}/conf/server.crt'\n\
             ssl_key_file = '{dir}/conf/server.key'\n\
             max_connections = {}\n{}END\n\
             printf 'local all all peer\\nhostssl all all all scram-sha-256\\n' > /etc/postgresql/by-hand.hba\n\
             chmod 644 /etc/postgresql/by-hand.conf /etc/postgresql/by-hand.hba\n\
             # a copy first\n\
             cp -a --reflink=auto {dir}/data {dir}/data.before-by-hand\n\
             rm -f {dir}/data/standby.signal\n\
             {AS_SERVER} {programs}/pg_ctl -D {dir}/data -o '-c config_file=/etc/postgresql/by-hand.conf' -l ~postgres/by-hand.log start\n\
             # applications go there instead of to the proxies: {host}, port {port}, sslmode=require",
            nothing_left(facts),
            positions.join("\n"),
            names.primary,
            connections(facts),
            parameters(facts.spec),
        ),
        time: "a quarter of an hour, done by somebody who has done it before".into(),
        loss: "nothing if the copy that was the last primary, or held the newest log, is taken; compare all of them first".into(),
        verify: format!("{AS_SERVER} psql -p {port} -d app -c 'select pg_is_in_recovery()' answers f, and a write works"),
        back: "What was written by hand is unknown to the cluster's store: dump it (pg_dumpall), make a new cluster, load it there. Do not start the old agents on these data.".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::day::Day;
    use mainstay_model::config::parse;

    #[test]
    fn what_the_file_sets_is_carried_over() {
        let text = "[cluster]\nname = \"orders\"\n[[node]]\nname = \"a\"\nhost = \"h\"\n[requirements]\nclients = 10\n\
                    [postgres.parameters]\nmax_connections = 900\nmax_prepared_transactions = 7\nshared_preload_libraries = \"it's\"\n";
        let spec = parse(text, &[]).unwrap();
        let facts = Facts { spec: &spec, today: Day::of(2026, 11, 27), machines: &[], running: None, what_if: &[] };
        let restore = restore_commands(&facts);
        assert!(restore.contains("max_connections = 900\n") && restore.contains("max_prepared_transactions = 7\n"));
        let typed = scenario(&facts, &Names::of(&facts)).commands;
        assert!(
            typed.contains("max_connections = 900\n") && typed.contains("shared_preload_libraries = 'it''s'\nEND\n"),
            "{typed}"
        );
        assert_eq!(typed.matches("max_connections").count(), 1);
        let plain = parse(
            "[cluster]\nname = \"orders\"\n[[node]]\nname = \"a\"\nhost = \"h\"\n[requirements]\nclients = 10\n",
            &[],
        )
        .unwrap();
        let facts = Facts { spec: &plain, ..facts };
        assert!(
            restore_commands(&facts).contains("max_connections = 200\n"),
            "what Mainstay sets, not what ten clients need"
        );
    }
}

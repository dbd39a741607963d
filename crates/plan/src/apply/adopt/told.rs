//! What is told before anybody is asked.

use super::{COPY_BYTES_S, Fate, Told, blocks, copy_s, fate, of, pending, size, standbys, words};
use crate::apply::facts::{Inventory, Wanted};
use mainstay_model::spec::Spec;
use std::collections::BTreeMap;

/// Clients see no server from the stop of the old one until the new primary is open; beyond the stop itself it takes about this long. Seconds.
const AWAY: &str = "some 10 s";
/// What is told before anybody is asked: what is done with the server, what becomes of its settings, and the way back.
#[must_use]
pub fn told(wanted: &Wanted<'_>, inventory: &Inventory) -> Vec<String> {
    let Some((name, existing)) = pending(wanted, inventory) else { return Vec::new() };
    let Some(node) = wanted.spec.node(&name) else { return Vec::new() };
    let (dir, to) = (&existing.directory, wanted.spec.node_dir(node).join("data"));
    let mut lines = vec![format!(
        "{name}: the server of {dir} is adopted (PostgreSQL {}, system identifier {})",
        existing.major,
        existing.system.map_or_else(|| "not known".to_owned(), |system| system.to_string())
    )];
    let mut say = |line: String| lines.push(format!("  {line}"));
    let proxy = &wanted.spec.proxy;
    match &existing.told {
        Some(Ok(told)) => {
            say(format!(
                "it is stopped in order, with {} clients; its data ({}) are moved to {} by a rename, nothing is copied",
                told.clients,
                size(told.bytes),
                to.display()
            ));
            say(format!(
                "clients are away for the time of that stop and {AWAY}; then they come to port {} of any node",
                proxy.write_port
            ));
            let followers = standbys::followers(wanted, inventory, existing).len();
            if blocks(wanted.spec, followers) {
                let wait = copy_s(told.bytes).max(1);
                say(format!(
                    "with durability strict no commit returns before the first copy is made as well: about {wait} s at {} MB/s",
                    COPY_BYTES_S / 1_000_000
                ));
            } else if followers == 0 {
                say(format!(
                    "commits are on that node alone until the first copy is made: about {} s at {} MB/s",
                    copy_s(told.bytes).max(1),
                    COPY_BYTES_S / 1_000_000
                ));
            }
            settings(wanted.spec, told, &mut say);
        }
        _ => {
            say(format!("it is stopped already; its data are moved to {} by a rename, nothing is copied", to.display()))
        }
    }
    for keeper in &existing.keepers {
        say(format!("it is not started there again: {keeper}"));
    }
    if !existing.checksums {
        say("its pages have no checksums: damage by a disk goes unseen; pg_checksums --enable, with the server stopped, mends that".into());
    }
    say(format!(
        "the other nodes become copies of it{}; roles, passwords and databases stay, and what Mainstay needs is added (app, {})",
        if wanted.spec.nodes.iter().any(|node| node.adopt_standby.is_some()) {
            ", by a clone where no standby is taken over"
        } else {
            ""
        },
        "mainstay_replicator"
    ));
    say(format!(
        "the way back, at any time: end the agents, move {} to {dir}, let its own means start it (docs/adopt.md)",
        to.display()
    ));
    lines.extend(standbys::told(wanted, inventory));
    lines
}

/// Whoever has backups by another tool wants to keep them.
fn archive(spec: &Spec, told: &Told, say: &mut impl FnMut(String)) {
    let command = told.settings.iter().find(|one| one.name == "archive_command" && one.value.contains("%p"));
    match (&spec.postgres.archive_command, command) {
        (Some(_), _) => {
            say("its log is archived by archive_command of [postgres] from then on (docs/backup.md)".to_owned())
        }
        (None, Some(command)) => say(format!(
            "its archive ends: to go on with it, put {} under [postgres] (docs/backup.md)",
            words::pair(&command.name, &command.value)
        )),
        (None, None) => {}
    }
}

fn settings(spec: &Spec, told: &Told, say: &mut impl FnMut(String)) {
    let mut each = |fate: Fate, what: &str| {
        let found = of(&told.settings, spec, fate);
        if !found.is_empty() {
            let shown: Vec<String> = found.into_iter().map(words::setting).collect();
            say(format!("{what}: {}", shown.join(", ")));
        }
    };
    each(Fate::Owned, "Mainstay sets these itself");
    each(Fate::Goes, "these go with its surroundings");
    archive(spec, told, say);
    let automatic: Vec<&str> = told
        .settings
        .iter()
        .filter(|one| one.automatic && fate(one, spec) == Fate::Stays)
        .map(|one| one.name.as_str())
        .collect();
    if !automatic.is_empty() {
        say(format!(
            "these stay in postgresql.auto.conf, and count before the file's: {} (ALTER SYSTEM RESET hands one over)",
            automatic.join(", ")
        ));
    }
    let mut by_method: BTreeMap<&str, usize> = BTreeMap::new();
    told.access.iter().for_each(|(_, method)| *by_method.entry(method).or_default() += 1);
    if !by_method.is_empty() {
        let lines: Vec<String> = told.access.iter().map(|(line, _)| words::access(line)).collect();
        say(format!(
            "its access lines are replaced by hba of [postgres] and the usual ones, with which everybody comes over TLS and by password; there were: {}",
            lines.join("; ")
        ));
    }
}

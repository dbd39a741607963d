//! What to type for backups and restores where the file names a repository (`[vault]`): Mainstay's own commands. What works without Mainstay stands in `by_hand`.

use crate::by_hand::{AS_SERVER, programs};
use crate::facts::Facts;
use crate::scenarios::Names;
use mainstay_model::spec::Vault;
use std::fmt::Write as _;

/// Does the file name a repository?
pub(crate) fn is(facts: &Facts<'_>) -> bool {
    facts.spec.vault.archives()
}

/// The repositories as a command without a cluster names each, in the order of preference.
fn named(facts: &Facts<'_>) -> Vec<String> {
    let vault = &facts.spec.vault;
    let each = vault.names().into_iter().filter_map(|name| vault.only(&name));
    let words = |vault: Vault| {
        let mut text = String::new();
        if let Some(place) = vault.place() {
            let _ = write!(text, "--repository {}", place.display());
        }
        if let Some(key) = &vault.key_file {
            let _ = write!(text, " --key-file {}", key.display());
        }
        text
    };
    each.map(words).collect()
}

/// Section 6: the schedule, and what proves it.
pub(crate) fn care(facts: &Facts<'_>) -> String {
    let vault = &facts.spec.vault;
    let mut text = String::new();
    let missing = [
        ("full_at", vault.full_at.is_none(), "0 2 * * 0"),
        ("incremental_at", vault.incremental_at.is_none(), "0 2 * * *"),
        ("drill_at", vault.drill_at.is_none(), "0 4 * * 3"),
    ];
    let keys: Vec<String> =
        missing.iter().filter(|key| key.1).map(|(key, _, at)| format!("'vault.{key}={at}'")).collect();
    if !keys.is_empty() {
        let _ = writeln!(
            text,
            "# once: what has no hour yet (minute hour day month weekday, UTC)\nmainstay set {}",
            keys.join(" ")
        );
    }
    let days = facts.asked().retention_days;
    if vault.keep_days < days {
        let _ = writeln!(text, "# once: every moment of the restorable window\nmainstay set vault.keep_days={days}");
    }
    text.push_str(
        "# is the log archived, when was the last backup, when the last drill?\nmainstay archive status\n# one now\nmainstay backup\n# which there are, and why each is kept\n\
         mainstay backups --why\n# is everything in the repository whole?\nmainstay verify\n# can it be restored? A random second is, beside a replica's data, looked at, and removed\n\
         mainstay verify --drill",
    );
    text
}

/// A copy beside the cluster, or where no cluster is left; and how to look into it.
pub(crate) fn copy(facts: &Facts<'_>, alone: bool) -> String {
    let all = named(facts);
    let from = all.first().filter(|_| alone).map(|from| format!(" {from}")).unwrap_or_default();
    let others: String = all
        .iter()
        .skip(1)
        .filter(|_| alone)
        .map(|other| format!("# or, if that one is gone too: … {other}\n"))
        .collect();
    format!(
        "# as root; without --time the latest moment\nmainstay restore --to /srv/restore --time 'YYYY-MM-DD HH:MM:SS'{from}\n{others}\
         # a server on the copy, reachable through its Unix socket only\n\
         {AS_SERVER} {}/pg_ctl -D /srv/restore -o '-c config_file=/srv/restore/mainstay_scratch.conf' -l /srv/restore/mainstay_scratch.log start",
        programs(facts)
    )
}

/// Data deleted by mistake.
pub(crate) fn deleted(facts: &Facts<'_>, names: &Names<'_>) -> String {
    let superuser = names.superuser();
    format!(
        "# keep applications from writing more, if that makes it worse: take their role's right to log in, and end the sessions that there are\n\
         {superuser} -c 'alter role app nologin' -c \"select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'\"\n\
         # a copy beside the cluster, of the moment before\n{}\n# copy back what is missing, table by table\n\
         {AS_SERVER} pg_dump -h /srv/restore/mainstay_run -d app -t TABLE --data-only > table.sql\n{superuser} -d app --single-transaction -f table.sql\n\
         # or, if everything after that moment may go: the whole cluster back to it (it says what is lost, and asks)\n\
         mainstay restore --in-place --time 'YYYY-MM-DD HH:MM:SS'\n# let applications in again\n{superuser} -c 'alter role app login'",
        copy(facts, false)
    )
}

/// All hosts are lost. Only the superuser may make roles, databases and extensions again, and give each thing its owner.
pub(crate) fn lost(facts: &Facts<'_>, names: &Names<'_>) -> String {
    format!(
        "# on a new host with Mainstay and the same version of PostgreSQL, the repository mounted, its key at hand\n{}\n\
         # everything in it: roles, databases, extensions, owners; but the role app keeps the password that the new cluster has for it\n\
         {AS_SERVER} {}/pg_dumpall -h /srv/restore/mainstay_run > whole.sql &&\n\
           sed -E \"1,/^.connect/s/^(ALTER ROLE app WITH .*) PASSWORD '[^']*'/\\1/\" whole.sql > all.sql\n\
         # a new cluster on new hosts (docs/three-hosts.md) with a repository of its own, filled from all.sql on its primary's host (here {}'s), as the superuser\n\
         {} -X -q -f all.sql > /dev/null 2> load.errors\n\
         # this prints nothing: what a new cluster has already is no failure (a tablespace's directory must be there before)\n\
         grep -vE '(role|database) \"[^\"]*\" (already exists|is already a member)' load.errors\n\
         # where secrets/app.password is: the application gets in\n\
         mainstay connect -- -c '\\l'",
        copy(facts, true),
        programs(facts),
        names.primary,
        names.superuser()
    )
}

/// The backup or its log stopped.
pub(crate) const GAP: &str = "# what it waits for, and why\nmainstay status\nmainstay archive status\n# a full one at once: moments after it can be restored whatever was lost before\n\
                              mainstay backup\nmainstay verify";

/// The key is lost.
pub(crate) const KEY: &str = "# a new key, a new repository for it, a backup there at once; FILE and FILE.public on every data node, FILE in two places apart from both as well\n\
                              mainstay archive key FILE\nmainstay set vault.repository=/a/new/folder vault.key_file=FILE\nmainstay backup\nmainstay verify --drill";

//! Sections 6, 10, 11 and 14: backups, calendar, changes, drills.

use super::Draft;
use crate::backup::{forecast, schedule};
use crate::by_hand::{AS_SERVER, programs};
use crate::cells;
use crate::day::Day;
use crate::objectives::span;
use crate::report::{Mark, Row, Section};
use crate::scenarios::{Names, base_backup};
use crate::vaulted;
use mainstay_model::requirements::Window;

/// Major versions and the day of their last minor version.
const ENDS: [(u64, (i64, i64, i64)); 4] =
    [(15, (2027, 11, 11)), (16, (2028, 11, 9)), (17, (2029, 11, 8)), (18, (2030, 11, 14))];

pub(super) fn backups(draft: &Draft<'_>) -> Section {
    let facts = draft.facts;
    let names = Names::of(facts);
    let schedule = schedule(facts);
    let mut section = Section::new(6, "backup", "Backup plan");
    let every = match schedule.every_h {
        168 => "a week".to_owned(),
        24 => "a day".to_owned(),
        hours => format!("{hours} h"),
    };
    section.table("Schedule", &["What", "Value", "Because"], vec![
        cells![Mark::Derived; "base backup, once in", every, "the longest interval with which a restore is as fast as asked (nothing asked: with which the replay takes an hour at most)"],
        cells![Mark::Derived; "log", "streamed without a break", format!("{} GB a day; what is lost with all hosts is what had not been streamed", schedule.log_gb_per_day)],
        cells![facts.said(|asked| asked.retention_days); "restorable window", format!("{} days", facts.asked().retention_days), "requirements.retention_days"],
        cells![Mark::Derived; "base backups kept", schedule.kept.to_string(), "one more than fit into the window: its first moment needs the base before it"],
        cells![Mark::Derived; "repository", "apart from all hosts of the cluster", "what destroys them must not destroy it; write access must not include the right to delete"],
        cells![Mark::Derived; "key of the encryption", "two places, neither of them the repository nor a node", "a backup whose key is lost is none"],
    ]);
    section.table("How long a restore takes", &["Part", "Time", "Because"], vec![
        cells![Mark::Derived; "find out, decide, start", "10 min", "assumed"],
        cells![Mark::Derived; "copy the base", span(schedule.copy_s), format!("{} GB over {} Mbit/s", facts.asked().size_gb, facts.asked().link_mbit_s)],
        cells![Mark::Derived; "replay log, at worst", span(schedule.replay_s), format!("{} h of log, one process, {} MB/s", schedule.every_h, crate::parameters::REPLAY_MB_PER_S)],
        cells![Mark::Derived; "all", span(schedule.restore_s), "the first drill replaces this by a measurement"],
    ]);
    let rows = forecast(facts, &schedule).into_iter().map(|room| {
        let when = if room.month == 0 { "now".to_owned() } else { format!("in {} months", room.month) };
        cells![Mark::Derived; when, room.size_gb, room.bases_gb, room.log_gb, room.bases_gb + room.log_gb]
    });
    section.table(
        "Room in the repository, GB (compressed to a half; full bases)",
        &["When", "Data", "Bases", "Log", "All"],
        rows.collect(),
    );
    if vaulted::is(facts) {
        section.code("Backups with Mainstay, in the repository that the file names", vaulted::care(facts));
        section.say(Mark::Derived, "What works without Mainstay stands in the appendix.");
        return section;
    }
    section.code("Backups with PostgreSQL's own tools, on a host apart from the cluster", by_own_tools(draft, &names));
    section.say(Mark::Derived, "pg_receivewal keeps no place (slot) on the servers here: after a long break it says that log is gone, and a new base backup closes the gap. After a take-over it goes on at the new primary. These commands work beside whatever else makes backups.");
    section
}

pub(super) fn by_own_tools(draft: &Draft<'_>, names: &Names<'_>) -> String {
    format!(
        "# once: a role, and a line for it (BACKUP_HOST is the address of that host)\n{} -c 'create role backup login replication' -c '\\password backup'\n\
         mainstay set 'postgres.hba+=hostssl replication backup BACKUP_HOST/32 scram-sha-256'\n\
         # on that host, as root: what is stored there belongs to the user of servers, who reads it in a restore\n\
         install -d -o postgres -g postgres -m 700 /backup /backup/wal /backup/base\n\
         install -o postgres -m 600 /dev/stdin /backup/.pgpass <<< '*:*:*:backup:PASSWORD'\n\
         # always running there (a service that is started again)\n\
         {AS_SERVER} pg_receivewal -d \"{} user=backup sslmode=require passfile=/backup/.pgpass target_session_attrs=read-write\" -D /backup/wal -Z 1 --synchronous -w\n\
         # on schedule there\n{}\n# is it whole?\nmkdir /scratch && tar -xzf /backup/base/NEWEST/base.tar.gz -C /scratch && cp /backup/base/NEWEST/backup_manifest /scratch && {}/pg_verifybackup -n /scratch",
        draft.facts.spec.data_nodes().next().map(|_| names.superuser()).unwrap_or_default(),
        names.any_host(),
        base_backup(names),
        programs(draft.facts)
    )
}

pub(super) fn calendar(draft: &Draft<'_>) -> Section {
    let facts = draft.facts;
    let today = facts.today;
    let mut section = Section::new(10, "calendar", "Maintenance calendar");
    let asked = facts.asked();
    let window = Window::parse(&asked.window).unwrap_or(Window { day: Some(6), from: 120, to: 240 });
    section.say(
        facts.said(|asked| (asked.window.clone(), asked.time_zone.clone())),
        format!(
            "Window: {} {} ({} minutes), next on {}.",
            asked.window,
            asked.time_zone,
            window.length_minutes(),
            today.window(window)
        ),
    );
    let mut rows = dates(today, window, vaulted::is(facts));
    rows.sort_by_key(|(day, _)| *day);
    section.table(
        "The next twelve months (days of windows; drills on working hours if they are for people)",
        &["Day", "What", "Because"],
        rows.into_iter().map(|(_, row)| row).collect(),
    );
    versions(draft, &mut section);
    vacuum(draft, &mut section);
    section
}

/// What is due in the next twelve months, in no order.
fn dates(today: Day, window: Window, vaulted: bool) -> Vec<(Day, Row)> {
    let mut rows: Vec<(Day, Row)> = Vec::new();
    let mut add = |day: Day, what: &str, why: &str| rows.push((day, cells![Mark::Derived; day, what, why]));
    let (year, _, _) = today.date();
    for (year, month) in [year, year + 1].into_iter().flat_map(|year| [2, 5, 8, 11].map(|month| (year, month))) {
        let release = Day::second_thursday(year, month);
        if release >= today && release < today.plus(366) {
            add(
                release,
                "PostgreSQL's minor versions come out",
                "second Thursday of February, May, August and November, by the project's rule",
            );
            add(
                release.plus(4).window(window),
                "minor version: packages on each host, then mainstay restart",
                "four days for others to find mistakes; replicas go first, the primary hands over",
            );
        }
    }
    for month in 1..=12 {
        let drill = today.plus(month * 30).window(window);
        add(
            drill,
            if vaulted {
                "restore drill: mainstay verify --drill, and once by hand into a directory of its own, time it"
            } else {
                "restore drill: the newest base and log on a scratch host, time it"
            },
            "a backup counts when it was restored",
        );
        if month % 3 == 1 {
            add(
                drill,
                "take-over drill: mainstay switchover, and once a year stop the primary's host",
                "times of section 5 become measured",
            );
        }
        if month % 3 == 2 {
            add(
                drill,
                "review: unused and bloated indexes, disk growth, slow statements, roles",
                "growth and habits change",
            );
        }
    }
    add(
        today.plus(335).window(window),
        "issue certificates anew: mainstay pki issue, join --again, node by node",
        "they last a year from their issue; status warns 30 days before",
    );
    add(
        today.plus(350).window(window),
        "change passwords of roles that people know",
        "once a year, or when somebody leaves",
    );
    rows
}

fn versions(draft: &Draft<'_>, section: &mut Section) {
    let facts = draft.facts;
    let known = facts.version();
    let rows = ENDS.iter().map(|(major, (year, month, day))| {
        let end = Day::of(*year, *month, *day);
        let (here, mark) = match &known {
            Some((version, mark)) if version == major => ("this cluster's", mark.clone()),
            _ => ("", Mark::Derived),
        };
        let left = if end < facts.today {
            "ended".to_owned()
        } else {
            if end.plus(-365) <= facts.today {
                "plan the next major version now".to_owned()
            } else {
                format!("plan the next major version for {}", end.plus(-365))
            }
        };
        cells![mark; format!("PostgreSQL {major}"), here, end, left]
    });
    section.table("Major versions and their ends", &["Version", "", "Last minor version", "So"], rows.collect());
    if known.is_none() {
        section.say(Mark::Default, "The server's version is not known to this plan: requirements.postgres_version, or a plan made on one of the hosts.");
    }
    section.say(Mark::Derived, "An update of the operating system that changes the C library's sort order makes indexes on texts wrong: before such an update compare the versions (select collname, collversion from pg_collation), after it reindex those indexes, or move to a fresh cluster by dump and load.");
}

fn vacuum(draft: &Draft<'_>, section: &mut Section) {
    let writes = draft.facts.asked().writes_per_s.max(1);
    let days = |ids: u64| ids / (writes * 86_400);
    section.table("Vacuum", &["What", "When", "Because"], vec![
        cells![Mark::Derived; "vacuum against running out of transaction ids", format!("each table about once in {} days", days(200_000_000).max(1)), format!("autovacuum_freeze_max_age = 200 million ids, at {writes} writes a second, day and night")],
        cells![Mark::Derived; "ids run out without any vacuum", format!("in {} days", super::register::wraparound_days(writes)), "2 000 million ids"],
        cells![Mark::Derived; "dead rows", "when a fifth of a table has changed (default)", "for tables of more than 100 million rows: alter table … set (autovacuum_vacuum_scale_factor = 0.01)"],
    ]);
}

pub(super) fn changes(draft: &Draft<'_>) -> Section {
    let mut section = Section::new(11, "changes", "Change procedures");
    let restart = draft.layout.durability == mainstay_model::Durability::Strict
        && draft.layout.data() > 1
        && draft.layout.data() == draft.layout.waits + 1;
    let replica_cost = if restart { "writes are blocked while the replica is away" } else { "nothing" };
    section.table("Changes, in order", &["Change", "Commands", "Clients notice", "Stop if"], vec![
        cells![Mark::Derived; "a parameter", "mainstay set postgres.parameters.NAME=VALUE; if it says so: mainstay restart --pending", "nothing; with a restart one switchover", "mainstay status shows a problem before it begins"],
        cells![Mark::Derived; "minor version of PostgreSQL", "packages on every host (servers go on), then mainstay restart", format!("replicas: {replica_cost}; one switchover"), "a replica does not stream again"],
        cells![Mark::Derived; "restart or patch a host", "mainstay switchover, if it is the primary's; systemctl stop mainstay-agent; reboot", replica_cost, "another node is away"],
        cells![Mark::Derived; "update Mainstay", "the program on each host, then systemctl reload mainstay-agent, host by host", "nothing", "an agent does not come back"],
        cells![Mark::Derived; "add a node", "mainstay node add NAME --host ADDRESS, then mainstay join there", "nothing", "the disk or link is busy: the clone reads all data once"],
        cells![Mark::Derived; "remove a node", "mainstay node remove NAME", "nothing", "fewer failures would be survived than asked: make a plan without it first"],
        cells![Mark::Derived; "replace a host", "mainstay node replace NAME --host ADDRESS", "nothing", "the old host may still run: switch it off"],
        cells![Mark::Derived; "durability", "mainstay set cluster.durability=MODE", "nothing", "loss of less than asked is no longer kept: make a plan first"],
        cells![Mark::Derived; "major version of PostgreSQL", "a new cluster of the new version beside this one, filled by logical replication (create publication, create subscription) or by dump and load; then the applications' addresses", "from seconds (logical replication) to hours (dump)", "the rehearsal on a restored copy failed, or sequences and large objects were not copied"],
    ]);
    section.say(Mark::Derived, "Before each change: mainstay status shows no problem, a base backup is not older than its schedule, and this plan was made with the change in the file.");
    section
}

pub(super) fn drills(draft: &Draft<'_>) -> Section {
    let mut section = Section::new(14, "drills", "Drill log");
    let facts = draft.facts;
    let expected = crate::objectives::take_over_s(facts, &draft.layout);
    let restore = span(schedule(facts).restore_s);
    let empty = "to be filled in";
    let (newest, random) = if vaulted::is(facts) {
        (
            "mainstay restore --to DIR, on a host apart",
            "mainstay verify --drill; the measured times: mainstay archive status",
        )
    } else {
        ("section 6, on a scratch host", "the same, with recovery_target_time")
    };
    section.table("Drills, their expected times, and their results", &["Drill", "How", "Expected", "Measured, on", "Loss, on"], vec![
        cells![Mark::Derived; "planned change of primary", "mainstay switchover under load", "about half a second without writes", empty, empty],
        cells![Mark::Derived; "the primary's server dies", "on its host, as root: kill -9 of the process in data/postmaster.pid", format!("{expected} s at most"), empty, empty],
        cells![Mark::Derived; "the primary's host dies", "power off, or stop the virtual machine", format!("{expected} s"), empty, empty],
        cells![Mark::Derived; "restore the newest", newest, restore.clone(), empty, empty],
        cells![Mark::Derived; "restore a random second", random, restore, empty, empty],
        cells![Mark::Derived; "by hand, without Mainstay", "section 16, on a scratch copy of one node", "15 min", empty, empty],
    ]);
    section.say(Mark::Declared, "Write down for each: day, who, time from the fault to the first write, the last write before and the first missing after. A time that was measured replaces the derived one of this plan.");
    section
}

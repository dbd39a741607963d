//! `cargo xtask bench vault`: backups, restores and the archive of the log beside pgBackRest from the distribution and
//! `tar | zstd`, on one database in one run. Rounds take turns, so that whatever else the machine does disturbs all of them alike.
//!
//! Mainstay encrypts, the others do not. All read page checksums (but `tar`), compress by zstd at level 3, use two
//! processes or threads, and write to this disk. Half of the database is pgbench's accounts, half is text.

use crate::measure::{Cost, adopt, measure, size_below, spread};
use crate::step::{cargo, finish};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const START: Duration = Duration::from_secs(60);
const OURS: &str = "mainstay";
const PEER: &str = "pgbackrest";
const TAR: &str = "tar | zstd";

struct Wishes {
    json: bool,
    rounds: usize,
    /// Megabytes of the database.
    size: usize,
    /// Segments of the log.
    segments: usize,
    pgbackrest: PathBuf,
}

fn wishes(arguments: &[OsString]) -> Result<Wishes> {
    let mut wishes = Wishes { json: false, rounds: 3, size: 2000, segments: 32, pgbackrest: PEER.into() };
    let mut words = arguments.iter().map(|word| word.to_string_lossy().into_owned());
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|word| word.parse().ok()).context(format!("{word} takes a number"));
        match word.as_str() {
            "--json" => wishes.json = true,
            "--rounds" => wishes.rounds = number()?,
            "--size" => wishes.size = number()?,
            "--segments" => wishes.segments = number()?,
            "--pgbackrest" => wishes.pgbackrest = words.next().context("--pgbackrest takes a program")?.into(),
            _ => bail!(
                "bench vault takes --json, --rounds N, --size MEGABYTES, --segments N and --pgbackrest PROGRAM, not {word}"
            ),
        }
    }
    if wishes.rounds == 0 || wishes.size < 100 || wishes.segments == 0 {
        bail!("at least one round, one segment and 100 megabytes");
    }
    Ok(wishes)
}

/// The database's server. It ends with its owner.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It ends its own children at SIGQUIT.
        let _ = Command::new("kill").args(["-QUIT", &self.0.id().to_string()]).status();
        let _ = self.0.wait();
    }
}

struct Bed {
    dir: PathBuf,
    bin: PathBuf,
    user: Option<(u32, u32)>,
    pgbackrest: PathBuf,
    version: (u32, u32),
    server: Option<Server>,
}

impl Drop for Bed {
    fn drop(&mut self) {
        drop(self.server.take());
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// `pgBackRest 2.45` as numbers.
fn version_of(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().strip_prefix("pgBackRest ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?))
}

impl Bed {
    fn make(root: &Path, wishes: &Wishes) -> Result<Bed> {
        let bin = crate::packages::server().context("PostgreSQL's server programs")?;
        let dir = std::env::temp_dir().join(format!("bench-vault-{}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let user = crate::bench_proxy::server_user();
        if let Some((user, group)) = user {
            std::os::unix::fs::chown(&dir, Some(user), Some(group))?;
        }
        let says = Command::new(&wishes.pgbackrest).arg("version").output().context("pgbackrest")?;
        let says = String::from_utf8_lossy(&says.stdout).into_owned();
        let version = version_of(&says).with_context(|| format!("{says:?} is no version of pgBackRest"))?;
        let pgbackrest = dir.join("pgbackrest");
        // Everything runs as the server's user, who may not come to where we lie.
        for (from, to) in [
            (which(&wishes.pgbackrest)?, &pgbackrest),
            (crate::suite::binary(root, "examples/bench")?, &dir.join("bench")),
        ] {
            std::fs::copy(&from, to).with_context(|| format!("copy {}", from.display()))?;
        }
        Ok(Bed { dir, bin, user, pgbackrest, version, server: None })
    }

    fn as_user(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.dir).stdin(Stdio::null());
        if let Some((user, group)) = self.user {
            command.uid(user).gid(group);
        }
        command
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The peer's settings, and the server with its archive.
    fn start(&mut self) -> Result<()> {
        let dir = self.dir.display();
        let block = if self.block_incremental() { "repo1-block=y\n" } else { "" };
        let settings = format!(
            "[global]\nrepo1-path={dir}/repo\nrepo1-bundle=y\nrepo1-retention-full=9\n{block}compress-type=zst\ncompress-level=3\nprocess-max=2\nstart-fast=y\n\
             log-level-console=warn\nlog-level-file=off\nlog-path={dir}\nlock-path={dir}/lock\nspool-path={dir}/spool\narchive-async=y\n\
             [bench]\npg1-path={dir}/data\npg1-socket-path={dir}\npg1-user=postgres\n"
        );
        std::fs::write(self.at("pgbackrest.conf"), settings)?;
        let mut initdb = self.as_user(self.bin.join("initdb"));
        initdb
            .args(["--no-sync", "--data-checksums", "--auth=trust", "--username=postgres", "--pgdata"])
            .arg(self.at("data"));
        finish(initdb.stdout(Stdio::null()))?;
        // Not on the command line: there it could not be changed.
        std::fs::write(self.at("data/postgresql.auto.conf"), "archive_command = '/bin/true'\n")?;
        let mut server = self.as_user(self.bin.join("postgres"));
        server.arg("-D").arg(self.at("data")).arg("-k").arg(&self.dir).args(["-h", ""]);
        for setting in [
            "shared_buffers=128MB",
            "autovacuum=off",
            "wal_compression=off",
            "max_wal_size=4GB",
            "min_wal_size=64MB",
            "archive_mode=on",
            "fsync=off",
        ] {
            server.args(["-c", setting]);
        }
        self.server = Some(Server(server.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?));
        let began = Instant::now();
        while self.sql("select 1").is_err() {
            if began.elapsed() > START {
                bail!("the server does not answer");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    fn block_incremental(&self) -> bool {
        self.version >= (2, 46)
    }

    fn sql(&self, sql: &str) -> Result<String> {
        let mut psql = self.as_user(self.bin.join("psql"));
        psql.arg("-h").arg(&self.dir).args(["-U", "postgres", "-d", "postgres", "-XqAtc", sql]);
        let output = psql.stderr(Stdio::piped()).output()?;
        if !output.status.success() {
            bail!("{sql}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Half accounts, half text; settled, so that a backup is all that reads it.
    fn fill(&self, megabytes: usize) -> Result<u64> {
        let mut pgbench = self.as_user(self.bin.join("pgbench"));
        pgbench.arg("-h").arg(&self.dir).args([
            "-U",
            "postgres",
            "-i",
            "-q",
            "-F",
            "90",
            "-s",
            &(megabytes / 2 / 17).max(1).to_string(),
            "postgres",
        ]);
        finish(pgbench.stdout(Stdio::null()).stderr(Stdio::null()))?;
        let rows = megabytes * 1000 * 1000 / 2 / 620;
        self.sql(&format!(
            "create table texts (id bigint, n int, body text) with (fillfactor = 90); \
             insert into texts select i, 0, format('Order %s of customer %s was delivered on day %s to the house at street %s; the driver signed as %s, the parcel carried the numbers %s and %s, \
             the next one will come from the store %s. Notes: %s %s', i, i * 7919 % 99991, i % 365, i * 31 % 5003, md5(i::text), md5((i + 1)::text), md5((i * 3)::text), i % 41, md5((i * 5)::text), \
             md5((i * 7)::text) || md5((i * 11)::text)) from generate_series(1, {rows}::bigint) i"
        ))?;
        self.sql("vacuum (freeze, analyze)")?;
        self.settle()?;
        Ok(size_below(&self.at("data")) - size_below(&self.at("data/pg_wal")))
    }

    /// Nothing is left to be written.
    fn settle(&self) -> Result<()> {
        self.sql("checkpoint")?;
        finish(&mut Command::new("sync"))
    }

    /// Every hundredth page of both tables.
    fn change(&self) -> Result<()> {
        for (table, id) in [("pgbench_accounts", "aid"), ("texts", "id")] {
            let rows: f64 =
                self.sql(&format!("select reltuples / relpages from pg_class where relname = '{table}'"))?.parse()?;
            let (column, every) = (if id == "aid" { "abalance" } else { "n" }, (rows * 100.0) as u64);
            self.sql(&format!("update {table} set {column} = {column} + 1 where {id} % {every} = 7"))?;
        }
        self.settle()
    }

    fn peer(&self, arguments: &[&str]) -> Command {
        let mut command = self.as_user(&self.pgbackrest);
        command.arg(format!("--config={}", self.at("pgbackrest.conf").display())).arg("--stanza=bench").args(arguments);
        command
    }

    fn ours(&self, step: &str, rest: &[&str]) -> Command {
        let mut command = self.as_user(self.at("bench"));
        command.arg(step).arg(self.at("vault")).arg(self.at("key")).args(rest);
        command
    }

    fn archive_by(&self, command: &str) -> Result<()> {
        self.sql(&format!("alter system set archive_command = '{command}'"))?;
        self.sql("select pg_reload_conf()")?;
        let began = Instant::now();
        while self.sql("show archive_command")? != command {
            if began.elapsed() > START {
                bail!("the server does not take its new settings");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        // The archiver looks a moment later.
        std::thread::sleep(Duration::from_secs(1));
        Ok(())
    }

    fn remove(&self, names: &[&str]) -> Result<()> {
        for name in names {
            match std::fs::remove_dir_all(self.at(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads all of a directory once. Ours is not in the cache when it is written: what is compared is what a look at it costs, and the disk
    /// would cost both the same.
    fn cached(&self, name: &str) -> Result<()> {
        let mut tar = self.as_user("sh");
        finish(tar.args(["-c", &format!("tar -C {name} -cf - . | cat >/dev/null")]))
    }

    /// Empty repositories of both.
    fn anew(&self) -> Result<()> {
        self.remove(&["vault", "repo", "spool"])?;
        finish(&mut self.ours("init", &[]))?;
        finish(&mut self.peer(&["--no-online", "stanza-create"]))?;
        let settings = self.at("pgbackrest.conf");
        let command =
            format!("{} --config={} --stanza=bench archive-push %p", self.pgbackrest.display(), settings.display());
        self.archive_by(&command)
    }
}

fn which(program: &Path) -> Result<PathBuf> {
    if program.components().count() > 1 {
        return Ok(program.to_owned());
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).map(|dir| dir.join(program)).find(|path| path.is_file());
    found.with_context(|| format!("{} is not in the PATH", program.display()))
}

/// What was measured: one row for each thing that was done and each who did it.
#[derive(Default)]
struct Rows(Vec<Row>);

/// What, who, and what each round cost, with the bytes that it left.
type Row = (&'static str, &'static str, Vec<(Cost, u64)>);

impl Rows {
    fn add(&mut self, what: &'static str, who: &'static str, cost: Cost, bytes: u64) {
        eprintln!("{what}, {who}: {:.2} s, {:.2} s of processor time, {} MB", cost.wall, cost.cpu, bytes / 1_000_000);
        match self.0.iter_mut().find(|row| row.0 == what && row.1 == who) {
            Some(row) => row.2.push((cost, bytes)),
            None => self.0.push((what, who, vec![(cost, bytes)])),
        }
    }

    /// The middle of something.
    fn middle(&self, what: &str, who: &str, of: impl Fn(&(Cost, u64)) -> f64) -> f64 {
        let row = self.0.iter().find(|row| row.0 == what && row.1 == who);
        spread(row.into_iter().flat_map(|row| row.2.iter().map(&of)))[1]
    }

    fn show(&self) -> Vec<Value> {
        println!(
            "{:<14} {:<11} {:>2}  {:<22} {:<22} {:>7} {:>8}",
            "what", "who", "n", "seconds", "of processor time", "MB", "memory"
        );
        let three = |values: [f64; 3]| format!("{:.2} / {:.2} / {:.2}", values[0], values[1], values[2]);
        let row = |(what, who, costs): &Row| {
            let (wall, cpu) = (spread(costs.iter().map(|c| c.0.wall)), spread(costs.iter().map(|c| c.0.cpu)));
            let bytes = spread(costs.iter().map(|c| c.1 as f64))[1];
            let peak = spread(costs.iter().map(|c| c.0.peak as f64))[2];
            println!(
                "{what:<14} {who:<11} {:>2}  {:<22} {:<22} {:>7.1} {:>8.1}",
                costs.len(),
                three(wall),
                three(cpu),
                bytes / 1e6,
                peak / 1e6
            );
            json!({ "what": what, "who": who, "rounds": costs.len(), "seconds": wall, "cpu_seconds": cpu, "bytes": bytes, "peak_bytes": peak })
        };
        self.0.iter().map(row).collect()
    }
}

const FULL: &str = "full backup";
const RESTORE: &str = "restore";
const DELTA: &str = "delta restore";
const INCREMENTAL: &str = "incremental";
const ARCHIVE: &str = "log";

/// Those who take part, another one first in each round.
fn in_turn(round: usize, all: &[&'static str]) -> Vec<&'static str> {
    all.iter().cycle().skip(round % all.len()).take(all.len()).copied().collect()
}

fn fulls(bed: &Bed, rounds: usize, rows: &mut Rows) -> Result<String> {
    let (socket, data) = (bed.dir.display().to_string(), bed.at("data").display().to_string());
    let mut label = String::new();
    for round in 0..rounds {
        bed.anew()?;
        for who in in_turn(round, &[OURS, PEER, TAR]) {
            bed.settle()?;
            match who {
                OURS => {
                    let cost = measure(&mut bed.ours("backup", &[&socket, &data]), None)?;
                    label.clone_from(&cost.says);
                    rows.add(FULL, who, cost, size_below(&bed.at("vault/backups")));
                }
                PEER => {
                    let cost = measure(&mut bed.peer(&["--type=full", "backup"]), Some(PEER))?;
                    rows.add(FULL, who, cost, size_below(&bed.at("repo/backup")));
                }
                _ => {
                    let mut tar = bed.as_user("sh");
                    tar.args([
                        "-c",
                        "tar -C data --exclude=./pg_wal -cf - . | zstd -q -3 -T2 -f -o tar.zst; sync tar.zst",
                    ]);
                    let cost = measure(&mut tar, None)?;
                    rows.add(FULL, who, cost, std::fs::metadata(bed.at("tar.zst"))?.len());
                }
            }
        }
    }
    Ok(label)
}

fn restores(bed: &Bed, rounds: usize, rows: &mut Rows) -> Result<()> {
    let to = bed.at("restored").display().to_string();
    let theirs = bed.at("restored-peer").display().to_string();
    let path = format!("--pg1-path={theirs}");
    for round in 0..rounds {
        bed.remove(&["restored", "restored-peer"])?;
        let mut made = bed.as_user("mkdir");
        finish(made.args(["-m", "700", &theirs]))?;
        for what in [RESTORE, DELTA] {
            for who in in_turn(round, &[OURS, PEER]) {
                finish(&mut Command::new("sync"))?;
                let (mut command, place) = match (who, what) {
                    (OURS, RESTORE) => (bed.ours("restore", &[&to]), "restored"),
                    (OURS, _) => (bed.ours("restore", &[&to, "delta"]), "restored"),
                    (_, RESTORE) => (bed.peer(&[&path, "restore"]), "restored-peer"),
                    _ => (bed.peer(&[&path, "--delta", "restore"]), "restored-peer"),
                };
                if what == DELTA {
                    bed.cached(place)?;
                }
                let cost = measure(&mut command, Some(PEER))?;
                rows.add(what, who, cost, size_below(&bed.at(place)));
            }
        }
    }
    bed.remove(&["restored", "restored-peer"])
}

fn incrementals(bed: &Bed, rounds: usize, base: &str, rows: &mut Rows) -> Result<()> {
    let (socket, data) = (bed.dir.display().to_string(), bed.at("data").display().to_string());
    bed.change()?;
    for round in 0..rounds {
        for who in in_turn(round, &[OURS, PEER]) {
            bed.settle()?;
            let place = bed.at(if who == OURS { "vault/backups" } else { "repo/backup" });
            let before = size_below(&place);
            let cost = match who {
                OURS => measure(&mut bed.ours("backup", &[&socket, &data, base]), None)?,
                // Each on top of the full one, as ours is.
                _ => measure(&mut bed.peer(&["--type=diff", "backup"]), Some(PEER))?,
            };
            rows.add(INCREMENTAL, who, cost, size_below(&place) - before);
        }
    }
    Ok(())
}

/// Segments that wait, in a directory of their own.
fn waiting(bed: &Bed, wanted: usize) -> Result<(Vec<String>, String)> {
    bed.archive_by("/bin/false")?;
    bed.sql("select pg_switch_wal()")?;
    let from = bed.sql("select pg_walfile_name(pg_current_wal_insert_lsn())")?;
    let written = "select (pg_current_wal_insert_lsn() - '0/0') / 16777216";
    let first: f64 = bed.sql(written)?.parse()?;
    while bed.sql(written)?.parse::<f64>()? < first + wanted as f64 + 1.0 {
        bed.sql("update texts set n = n + 1 where id % 40 = (random() * 39)::int")?;
    }
    bed.sql("select pg_switch_wal()")?;
    let end = bed.sql("select pg_current_wal_flush_lsn()")?;
    let wal = bed.at("waiting/pg_wal");
    std::fs::create_dir_all(wal.join("archive_status"))?;
    // The peer wants to know whose log it is.
    std::fs::create_dir_all(bed.at("waiting/global"))?;
    std::fs::copy(bed.at("data/global/pg_control"), bed.at("waiting/global/pg_control"))?;
    let mut names: Vec<String> = std::fs::read_dir(bed.at("data/pg_wal"))?
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    names.retain(|name| {
        name.len() == 24 && *name >= from && bed.at("data/pg_wal/archive_status").join(format!("{name}.ready")).exists()
    });
    names.sort();
    names.truncate(wanted);
    for name in &names {
        std::fs::copy(bed.at("data/pg_wal").join(name), wal.join(name))?;
    }
    if names.len() < wanted {
        bail!("{} segments of the log were written, {wanted} are wanted", names.len());
    }
    Ok((names, end))
}

fn log(bed: &Bed, wishes: &Wishes, rows: &mut Rows) -> Result<()> {
    let (names, end) = waiting(bed, wishes.segments)?;
    let system = bed.sql("select system_identifier from pg_control_system()")?;
    let (wal, database) = (bed.at("waiting/pg_wal"), bed.at("waiting"));
    for round in 0..wishes.rounds {
        bed.remove(&["vault", "repo", "spool"])?;
        finish(&mut bed.ours("init", &[]))?;
        finish(&mut bed.peer(&["--no-online", "stanza-create"]))?;
        for name in &names {
            std::fs::write(wal.join(format!("archive_status/{name}.ready")), "")?;
        }
        finish(Command::new("chown").args(["-R", "--reference"]).arg(&bed.dir).arg(&database))?;
        for who in in_turn(round, &[OURS, PEER]) {
            finish(&mut Command::new("sync"))?;
            if who == OURS {
                let cost = measure(&mut bed.ours("archive", &[&wal.display().to_string(), &end, &system]), None)?;
                if cost.says != names.len().to_string() {
                    bail!("{} segments were archived, {} waited", cost.says, names.len());
                }
                rows.add(ARCHIVE, who, cost, size_below(&bed.at("vault/log")));
            } else {
                // As the server does: one after another.
                let mut push = bed.as_user("sh");
                let each = r#"for name in "$3"/0*; do "$1" --config="$2" --stanza=bench --pg1-path="$4" archive-push "$name" || exit 1; done"#;
                push.args(["-c", each, "sh"])
                    .arg(&bed.pgbackrest)
                    .arg(bed.at("pgbackrest.conf"))
                    .arg(&wal)
                    .arg(&database);
                let cost = measure(&mut push, Some(PEER))?;
                rows.add(ARCHIVE, who, cost, size_below(&bed.at("repo/archive")));
            }
        }
    }
    Ok(())
}

/// What must be reached: a name, the figure, its bound, and whether more is better.
fn goals(rows: &Rows) -> Vec<Value> {
    let wall = |what: &str, who: &str| rows.middle(what, who, |cost| cost.0.wall);
    let cpu = |what: &str, who: &str| rows.middle(what, who, |cost| cost.0.cpu);
    let bytes = |what: &str, who: &str| rows.middle(what, who, |cost| cost.1 as f64);
    let peak =
        [FULL, INCREMENTAL, RESTORE, DELTA, ARCHIVE].map(|what| rows.middle(what, OURS, |cost| cost.0.peak as f64));
    let most = peak.into_iter().fold(0.0, f64::max) / 1e6;
    let all = [
        ("full backup: processor time, part of pgBackRest's", cpu(FULL, OURS) / cpu(FULL, PEER), 1.0, false),
        ("full backup: time, part of pgBackRest's", wall(FULL, OURS) / wall(FULL, PEER), 1.0, false),
        ("full backup: processor time, part of tar | zstd", cpu(FULL, OURS) / cpu(FULL, TAR), 1.1, false),
        ("full backup: time, part of tar | zstd", wall(FULL, OURS) / wall(FULL, TAR), 1.1, false),
        ("incremental: times as fast", wall(INCREMENTAL, PEER) / wall(INCREMENTAL, OURS), 1.5, true),
        ("incremental: bytes, part of pgBackRest's", bytes(INCREMENTAL, OURS) / bytes(INCREMENTAL, PEER), 1.0, false),
        ("restore: times as fast", wall(RESTORE, PEER) / wall(RESTORE, OURS), 1.2, true),
        ("delta restore: times as fast", wall(DELTA, PEER) / wall(DELTA, OURS), 2.0, true),
        ("log: time, part of pgBackRest's", wall(ARCHIVE, OURS) / wall(ARCHIVE, PEER), 1.0, false),
        ("log: processor time, part of pgBackRest's", cpu(ARCHIVE, OURS) / cpu(ARCHIVE, PEER), 1.0, false),
        ("memory, MB", most, 256.0, false),
    ];
    let verdict = |(goal, is, wanted, more): &(&str, f64, f64, bool)| {
        let reached = if *more { is >= wanted } else { is <= wanted };
        let (sign, word) = (if *more { "at least" } else { "at most" }, if reached { "reached" } else { "MISSED" });
        println!("{goal:<52} {is:>7.2} (wanted: {sign} {wanted}) {word}");
        json!({ "goal": goal, "is": is, "wanted": wanted, "more_is_better": more, "reached": reached })
    };
    all.iter().map(verdict).collect()
}

/// Measures and shows.
pub(crate) fn run(root: &Path, arguments: &[OsString]) -> Result<ExitCode> {
    let wishes = wishes(arguments)?;
    crate::packages::ensure()?;
    if wishes.pgbackrest == Path::new(PEER) {
        crate::packages::ensure_program("pgbackrest", "pgbackrest")?;
    }
    crate::packages::ensure_program("zstd", "zstd")?;
    finish(&mut cargo(root, &["build", "--release", "--quiet", "-p", "mainstay-vault", "--example", "bench"]))?;
    adopt()?;
    let mut bed = Bed::make(root, &wishes)?;
    bed.start()?;
    let bytes = bed.fill(wishes.size)?;
    let how = if bed.block_incremental() {
        "block incremental"
    } else {
        "no block incremental before 2.46: it stores changed files whole"
    };
    println!(
        "a database of {} MB; pgBackRest {}.{}, bundled, {how}; two processes or threads each; middle of {} rounds",
        bytes / 1_000_000,
        bed.version.0,
        bed.version.1,
        wishes.rounds
    );
    let mut rows = Rows::default();
    let base = fulls(&bed, wishes.rounds, &mut rows)?;
    restores(&bed, wishes.rounds, &mut rows)?;
    incrementals(&bed, wishes.rounds, &base, &mut rows)?;
    log(&bed, &wishes, &mut rows)?;
    let shown = rows.show();
    let goals = goals(&rows);
    if wishes.json {
        let peer = format!("{}.{}", bed.version.0, bed.version.1);
        println!(
            "{}",
            json!({ "database_bytes": bytes, "pgbackrest": peer, "block_incremental": bed.block_incremental(), "rows": shown, "goals": goals })
        );
    }
    Ok(ExitCode::SUCCESS)
}

//! A recovered copy beside the cluster: reachable through a Unix socket only, archiving nothing, subscribing to nothing.

use crate::postgres::backup::{AT_LEAST, Session};
use crate::postgres::log::parse_history;
use crate::postgres::place::Place;
use crate::postgres::restore::{LOG_DIR, Plan, Target};
use crate::postgres::way;
use crate::repository::VaultError;
use mainstay_model::position::RESERVED;
use mainstay_model::{Lineage, Lsn, Timeline};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::process::Pid;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio_postgres::Config;

/// A history file is much smaller.
const HISTORY_MAX: u64 = 1 << 20;

/// So many numbers of timelines are kept from being taken, at most.
pub(crate) const RESERVED_MOST: u32 = 10_000;

/// A running copy; it ends with this.
pub struct Scratch {
    child: tokio::process::Child,
    socket: PathBuf,
    /// The number in its socket's name.
    pub(crate) port: u16,
    log: File,
    /// Recovery took so long.
    pub recovery: Duration,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = self.child.start_kill();
    }
}

pub(crate) fn quoted(value: &str) -> String {
    value.replace('\\', "\\\\").replace('\'', "''")
}

/// What a backup may say of the copy's settings: numbers that must not be undercut, and nothing else. A manifest is only as trustworthy as
/// whoever could seal one, and other settings run programs.
pub(crate) fn at_least(settings: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let number = |(name, value): &(&String, &String)| AT_LEAST.contains(&name.as_str()) && value.parse::<u32>().is_ok();
    settings.iter().filter(number).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// So much log the copy's server keeps, bytes. Of two segments at least: with less it does not start.
fn log_most(plan: &Plan) -> u64 {
    (1 << 30).max(plan.base.server.segment_size.saturating_mul(4))
}

/// What the recovery writes beside the files and the log that lie there: it copies each segment into `pg_wal`, and keeps it there until the
/// checkpoint after next.
#[must_use]
pub fn log_again(plan: &Plan) -> u64 {
    (plan.log.len() as u64).saturating_mul(plan.base.server.segment_size).min(log_most(plan))
}

fn config(plan: &Plan, data: &Path, socket: &Path) -> String {
    let mut all: Vec<(String, String)> = vec![
        ("listen_addresses".into(), String::new()),
        ("port".into(), "5432".into()),
        ("unix_socket_directories".into(), socket.display().to_string()),
        ("hba_file".into(), data.join("mainstay_scratch_hba.conf").display().to_string()),
        ("ident_file".into(), "/dev/null".into()),
        // A copy must not reach out: it archives nothing, and its subscriptions do not run.
        ("archive_mode".into(), "off".into()),
        ("max_logical_replication_workers".into(), "0".into()),
        ("shared_buffers".into(), "64MB".into()),
        ("hot_standby".into(), "on".into()),
        // Small: the volume may have room for the copy and little else.
        ("max_wal_size".into(), format!("{}MB", log_most(plan) >> 20)),
        ("min_wal_size".into(), format!("{}MB", (plan.base.server.segment_size.saturating_mul(2) >> 20).max(80))),
        ("logging_collector".into(), "off".into()),
        ("log_destination".into(), "stderr".into()),
    ];
    all.extend(at_least(&plan.base.server.settings));
    all.extend(plan.settings(data));
    // What the source loads may not be here, and may act on its own.
    all.push(("shared_preload_libraries".into(), String::new()));
    all.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name} = '{}'", quoted(value));
        text
    })
}

/// What the server said why it ended.
fn tail(log: &File) -> String {
    // Only its end: a recovery may say much.
    let len = log.metadata().map_or(0, |found| found.len());
    let mut bytes = vec![0; usize::try_from(len.min(1 << 20)).unwrap_or(0)];
    let read = log.read_at(&mut bytes, len.saturating_sub(1 << 20)).unwrap_or(0);
    let text = String::from_utf8_lossy(bytes.get(..read).unwrap_or_default());
    // Those who ask whether it is there already are turned away meanwhile: that explains nothing.
    let asked = ["the database system is starting up", "not yet accepting connections", "Consistent recovery state"];
    let says = |line: &&str| {
        // What brings a segment says itself why it could not.
        let words = ["FATAL", "PANIC", "last completed transaction", "invalid value", "No space left on device"];
        (line.starts_with("cp: ") || words.iter().any(|w| line.contains(w))) && !asked.iter().any(|w| line.contains(w))
    };
    let lines: Vec<&str> = text.lines().filter(says).collect();
    lines.iter().rev().take(4).rev().copied().collect::<Vec<_>>().join("; ")
}

/// Whether a commit before the target is missing can not be told before a later one is archived.
fn ended(says: String) -> VaultError {
    if says.contains("recovery ended before configured recovery target") {
        VaultError::NothingLater(says)
    } else {
        VaultError::Impossible(says)
    }
}

/// What was named, and did not come: a time may yet be proven by a later commit, these are not in the log that was read.
fn nowhere(error: VaultError, plan: &Plan) -> VaultError {
    let what = match (&error, &plan.target) {
        (VaultError::NothingLater(_), Target::Name(name)) => format!("the restore point {name:?}"),
        (VaultError::NothingLater(_), Target::Transaction(id)) => format!("the end of transaction {id}"),
        _ => return error,
    };
    VaultError::Impossible(format!(
        "{what} is not in the archived log from {} (the end of the backup {}) to {}: is it before that, name an older backup (--backup)",
        plan.base.stop.lsn, plan.base.label, plan.reaches
    ))
}

/// Keeps timeline numbers below `next` from being taken: the copy then ends its recovery on `next` itself. Before [`Scratch::start`].
pub fn reserve(plan: &Plan, data: &Path, next: Timeline, user: Option<(u32, u32)>) -> Result<(), VaultError> {
    reserve_after(plan.timeline, data, next, user)
}

/// The same behind a timeline.
pub(crate) fn reserve_after(
    last: Timeline,
    data: &Path,
    next: Timeline,
    user: Option<(u32, u32)>,
) -> Result<(), VaultError> {
    if next <= last || next.0 - last.0 > RESERVED_MOST {
        return Err(VaultError::Impossible(format!("timeline {next} can not follow {last}")));
    }
    // In its own log and not where recovery reads from: a standby that follows asks its primary for the history of each number between, and would never
    // come up where one is missing.
    let log = data.join("pg_wal");
    let place = Place::open(&log, user)?;
    for number in last.0 + 1..next.0 {
        // A server that follows looks for the next one all the time: it ends when there is one that it can not read.
        place.whole(&format!("{number:08X}.history"), placeholder(next).as_bytes(), false)?;
    }
    Ok(())
}

/// A history that only keeps a number below `next` from being taken.
pub(crate) fn placeholder(next: Timeline) -> String {
    format!("{RESERVED}: timeline {next} was handed out\n")
}

/// After [`Scratch::stop`]: takes out what made the directory a copy beside the cluster, so that it can become a node's data. Returns where its
/// log ends, and the path there.
pub fn finish(data: &Path, user: Option<(u32, u32)>) -> Result<(Timeline, Lineage), VaultError> {
    let place = Place::open(data, user)?;
    let set = "postgresql.auto.conf";
    match rustix::fs::renameat(&place.dir, format!("{set}.restored"), &place.dir, set) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(place.wrong(set, error.into())),
        _ => {}
    }
    for name in ["mainstay_scratch.conf", "mainstay_scratch_hba.conf", "mainstay_scratch.log"] {
        match rustix::fs::unlinkat(&place.dir, name, AtFlags::empty()) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(place.wrong(name, error.into())),
            _ => {}
        }
    }
    for name in [LOG_DIR, "mainstay_run"] {
        match std::fs::remove_dir_all(Path::new(&way::held(&place.dir)).join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(place.wrong(name, error)),
            _ => {}
        }
    }
    let newest = newest_history(&place)?;
    rustix::fs::syncfs(&place.dir).map_err(|e| place.wrong(".", e.into()))?;
    newest.ok_or_else(|| VaultError::Damaged(format!("{} names no timeline of its own", data.display())))
}

/// The highest timeline that a directory's own log has a history of.
fn newest_history(place: &Place<'_>) -> Result<Option<(Timeline, Lineage)>, VaultError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let wal = rustix::fs::openat(&place.dir, "pg_wal", flags | OFlags::DIRECTORY, Mode::empty());
    let wal = wal.map_err(|e| place.wrong("pg_wal", e.into()))?;
    let wrong = |error| place.wrong("pg_wal", error);
    let mut newest = None;
    for entry in std::fs::read_dir(way::held(&wal)).map_err(wrong)? {
        let name = entry.map_err(wrong)?.file_name();
        let number = name.to_str().and_then(|name| u32::from_str_radix(name.strip_suffix(".history")?, 16).ok());
        newest = newest.max(number);
    }
    let Some(number) = newest else { return Ok(None) };
    let name = format!("{number:08X}.history");
    // A link would show a file that is none of that user's.
    let opened = rustix::fs::openat(&wal, &name, flags, Mode::empty()).map_err(|e| wrong(e.into()))?;
    let mut text = String::new();
    File::from(opened).take(HISTORY_MAX).read_to_string(&mut text).map_err(wrong)?;
    let path = parse_history(&text)
        .map_err(|says| VaultError::Damaged(format!("{}: {says}", place.path.join("pg_wal").join(&name).display())))?;
    Ok(path.map(|path| (Timeline(number), path)))
}

/// The server that runs on a copy, if one does.
fn server_on(data: &Path) -> Result<Option<Pid>, VaultError> {
    let noted = std::fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let pid = noted.lines().next().and_then(|line| line.trim().parse::<i32>().ok());
    let Some(pid) = pid.filter(|pid| *pid > 1).and_then(Pid::from_raw) else { return Ok(None) };
    // The number may be another program's by now: the server stands in its directory, and in no other that a link leads to.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::open(data, flags, Mode::empty()).and_then(rustix::fs::fstat);
    let dir = dir.map_err(|e| VaultError::file(data, e.into()))?;
    let at = rustix::fs::stat(format!("/proc/{}/cwd", pid.as_raw_nonzero()));
    Ok(at.is_ok_and(|at| (at.st_dev, at.st_ino) == (dir.st_dev, dir.st_ino)).then_some(pid))
}

/// Does a server run on a copy?
pub fn runs_on(data: &Path) -> Result<bool, VaultError> {
    Ok(server_on(data)?.is_some())
}

/// Tells the server on a copy to stop in order: whoever waits for it sees it end.
pub fn tell_to_stop(data: &Path) {
    if let Ok(Some(pid)) = server_on(data) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
    }
}

/// Ends a server that an earlier process of this program left on a copy.
pub fn end_left_over(data: &Path) -> Result<(), VaultError> {
    let begun = Instant::now();
    while let Some(pid) = server_on(data)? {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        if begun.elapsed() > Duration::from_secs(20) {
            let says = format!("the server {} on {} does not end", pid.as_raw_nonzero(), data.display());
            return Err(VaultError::Server(says));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

impl Scratch {
    /// Starts the server on a restored directory and waits until it has recovered and opened.
    /// `user`: as whom it runs, its operating-system name and numbers.
    pub async fn start(
        bin: &Path,
        plan: &Plan,
        data: &Path,
        user: Option<(u32, u32)>,
        patience: Duration,
    ) -> Result<Scratch, VaultError> {
        let socket = data.join("mainstay_run");
        Place::open(data, user)?.directory("mainstay_run")?;
        Self::start_at(bin, plan, data, user, (patience, &socket)).await
    }

    /// The same, with its socket in a directory of the caller's, which that user may write to: a path below the data may be too long for one.
    pub async fn start_at(
        bin: &Path,
        plan: &Plan,
        data: &Path,
        user: Option<(u32, u32)>,
        (patience, socket): (Duration, &Path),
    ) -> Result<Scratch, VaultError> {
        let begun = Instant::now();
        let config = config(plan, data, socket);
        let mut scratch = Self::launch(bin, (data, socket), user, (&config, "local all all trust\n"))?;
        scratch.recovered(begun, patience).await.map_err(|error| nowhere(error, plan))?;
        scratch.recovery = begun.elapsed();
        Ok(scratch)
    }

    /// Starts a server with this configuration, which lets in whom these lines say.
    pub(crate) fn launch(
        bin: &Path,
        (data, socket): (&Path, &Path),
        user: Option<(u32, u32)>,
        (config, access): (&str, &str),
    ) -> Result<Scratch, VaultError> {
        let place = Place::open(data, user)?;
        place.file("mainstay_scratch.conf", config)?;
        place.file("mainstay_scratch_hba.conf", access)?;
        place.disarm()?;
        let log = place.file("mainstay_scratch.log", "")?;
        let gone = |e| VaultError::file(&data.join("mainstay_scratch.log"), e);
        let (out, err) = (log.try_clone().map_err(gone)?, log.try_clone().map_err(gone)?);
        let mut command = tokio::process::Command::new(bin.join("postgres"));
        command
            .arg("-D")
            .arg(data)
            .arg("-c")
            .arg(format!("config_file={}", data.join("mainstay_scratch.conf").display()));
        command.current_dir(data).env_clear().env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
        command.stdout(out).stderr(err);
        if let Some((uid, gid)) = user {
            command.uid(uid).gid(gid);
        }
        let child = command.spawn().map_err(|e| VaultError::Server(format!("{}/postgres: {e}", bin.display())))?;
        Ok(Scratch { child, socket: socket.to_owned(), port: 5432, log, recovery: Duration::ZERO })
    }

    /// Starts it as [`Scratch::start`] (no socket named) or [`Scratch::start_at`] does. When the log turns out to hold no commit after the moment, and it is
    /// known to be `complete`, its end is that moment: says whether that was taken instead.
    pub async fn start_or_latest(
        bin: &Path,
        plan: &Plan,
        data: &Path,
        user: Option<(u32, u32)>,
        (patience, socket): (Duration, Option<&Path>),
        complete: bool,
    ) -> Result<(Scratch, bool), VaultError> {
        let start = async |plan: &Plan| match socket {
            Some(socket) => Self::start_at(bin, plan, data, user, (patience, socket)).await,
            None => Self::start(bin, plan, data, user, patience).await,
        };
        match (start(plan).await, plan.latest_instead()) {
            (Err(VaultError::NothingLater(_)), Some(latest)) if complete => Ok((start(&latest).await?, true)),
            (started, _) => Ok((started?, false)),
        }
    }

    /// When the last commit that it recovered was made, microseconds since 1970.
    pub async fn last_commit(&self) -> Result<Option<i64>, VaultError> {
        let ask = "select coalesce((extract(epoch from pg_last_xact_replay_timestamp()) * 1000000)::int8::text, '')";
        let rows = self.ask("postgres", ask).await?;
        let text = rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten().unwrap_or_default();
        Ok(text.parse().ok())
    }

    /// How to reach it, as the superuser.
    #[must_use]
    pub fn connect(&self) -> Config {
        let mut config = Config::new();
        config.host_path(&self.socket).port(self.port).user("postgres").dbname("postgres");
        config
    }

    async fn recovered(&mut self, begun: Instant, patience: Duration) -> Result<(), VaultError> {
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                let says = tail(&self.log);
                return Err(ended(format!("the copy did not reach the target ({status}): {says}")));
            }
            if let Ok(session) = Session::open(&self.connect()).await
                && let Ok(row) = session.row("SELECT pg_is_in_recovery()").await
                && row.first().and_then(Option::as_deref) == Some("f")
            {
                return Ok(());
            }
            if begun.elapsed() > patience {
                let says = format!("the copy has not recovered within {} s: {}", patience.as_secs(), tail(&self.log));
                return Err(VaultError::Server(says));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Up to where the log was recovered.
    pub async fn reached(&self) -> Result<Lsn, VaultError> {
        let row = Session::open(&self.connect()).await?.row("SELECT pg_last_wal_replay_lsn()").await?;
        let text = row.first().and_then(Option::as_deref).unwrap_or_default();
        text.parse().map_err(|_| VaultError::Server(format!("the copy does not say how far it recovered: {text:?}")))
    }

    /// What a query shows in one of its databases.
    pub async fn ask(&self, database: &str, query: &str) -> Result<Vec<Vec<Option<String>>>, VaultError> {
        let mut config = self.connect();
        config.dbname(database);
        Session::open(&config).await?.rows(query).await
    }

    /// Why it ended by itself, if it did.
    pub(crate) fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok().flatten()?;
        let says = tail(&self.log);
        let says = if says.is_empty() { "mainstay_scratch.log says no reason".to_owned() } else { says };
        Some(format!("the server of the copy ended ({status}): {says}"))
    }

    /// Keeps what it says of itself within bounds.
    pub(crate) fn trim_log(&self) {
        const MOST: u64 = 16 << 20;
        if self.log.metadata().is_ok_and(|found| found.len() > MOST) {
            let _ = self.log.set_len(0);
        }
    }

    /// Ends the copy in order.
    pub async fn stop(mut self) -> Result<(), VaultError> {
        let pid = self.child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        }
        let ended = tokio::time::timeout(Duration::from_secs(60), self.child.wait()).await;
        let slow = |_| VaultError::Server("the copy does not stop within 60 s".into());
        ended.map_err(slow)?.map(drop).map_err(|e| VaultError::Server(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_sets_nothing_that_runs_a_program() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let hostile = BTreeMap::from([
            pair("max_connections", "300"),
            pair("recovery_end_command", "touch /tmp/x"),
            pair("hba_file", "/tmp/hba"),
            pair("max_wal_senders", "10'\nrecovery_end_command = 'x"),
        ]);
        assert_eq!(at_least(&hostile), [pair("max_connections", "300")]);
        assert_eq!(quoted("a\\'b"), "a\\\\''b");
    }

    #[test]
    fn a_number_is_kept_by_a_file_that_a_server_can_read_as_soon_as_it_is_seen() {
        use std::os::unix::fs::{MetadataExt as _, chown};
        let dir = tempfile::tempdir().unwrap();
        let wal = dir.path().join("pg_wal");
        std::fs::create_dir(&wal).unwrap();
        let user = rustix::process::geteuid().is_root().then_some((65_534, 65_534));
        for place in [dir.path(), &wal] {
            chown(place, user.map(|user| user.0), user.map(|user| user.1)).unwrap();
        }
        let (last, next) = (Timeline(1), Timeline(500));
        let writing = std::thread::scope(|scope| {
            let writes = scope.spawn(|| (0..8).try_for_each(|_| reserve_after(last, dir.path(), next, user)));
            while !writes.is_finished() {
                for number in last.0 + 1..next.0 {
                    let Ok(mut file) = File::open(wal.join(format!("{number:08X}.history"))) else { break };
                    let mut text = String::new();
                    file.read_to_string(&mut text).unwrap();
                    let is = file.metadata().unwrap();
                    assert!(
                        user.is_none_or(|user| user == (is.uid(), is.gid())),
                        "{number} is nobody's whom it is for"
                    );
                    assert_eq!(text, placeholder(next), "{number}");
                }
            }
            writes.join().unwrap()
        });
        writing.unwrap();
        assert_eq!(std::fs::read_dir(&wal).unwrap().count(), 498);
    }

    #[test]
    fn no_link_in_the_copy_is_followed_and_what_the_source_had_set_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let (data, other) = (dir.path().join("copy"), dir.path().join("other"));
        std::fs::create_dir(&data).unwrap();
        std::fs::write(&other, "another's").unwrap();
        for name in ["mainstay_scratch.conf", "mainstay_run", "postgresql.auto.conf"] {
            std::os::unix::fs::symlink(&other, data.join(name)).unwrap();
        }
        let place = Place::open(&data, None).unwrap();
        place.file("mainstay_scratch.conf", "port = '1'\n").unwrap();
        assert!(place.directory("mainstay_run").is_err());
        place.disarm().unwrap();
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "another's");
        assert!(data.join("mainstay_scratch.conf").symlink_metadata().unwrap().is_file());
        std::fs::remove_file(data.join("mainstay_run")).unwrap();
        place.directory("mainstay_run").unwrap();
        place.directory("mainstay_run").unwrap();

        let (set, aside) = (data.join("postgresql.auto.conf"), data.join("postgresql.auto.conf.restored"));
        std::fs::write(&set, "listen_addresses = '*'\n").unwrap();
        // The second start finds what the first put aside.
        for _ in 0..2 {
            place.disarm().unwrap();
            assert_eq!(std::fs::read_to_string(&set).unwrap(), "");
            assert_eq!(std::fs::read_to_string(&aside).unwrap(), "listen_addresses = '*'\n");
        }
        let log = place.file("mainstay_scratch.log", "FATAL: no\n").unwrap();
        assert_eq!(tail(&log), "FATAL: no");
        let full = "cp: error writing 'pg_wal/RECOVERYXLOG': No space left on device";
        let log =
            place.file("mainstay_scratch.log", &format!("LOG: x\n{full}\nFATAL: could not restore file\n")).unwrap();
        assert_eq!(tail(&log), format!("{full}; FATAL: could not restore file"));
        std::os::unix::fs::symlink(&data, dir.path().join("link")).unwrap();
        assert!(Place::open(&dir.path().join("link"), None).is_err());
        let another = rustix::process::geteuid().as_raw() + 1;
        let refused = Place::open(&data, Some((another, another))).err().unwrap().to_string();
        assert!(refused.contains("not the servers' user's"), "{refused}");

        let wal = data.join("pg_wal");
        std::fs::create_dir(&wal).unwrap();
        assert_eq!(newest_history(&place).unwrap(), None);
        std::fs::write(wal.join("00000002.history"), "1\t0/3000000\tx\n").unwrap();
        assert_eq!(newest_history(&place).unwrap().unwrap().0, Timeline(2));
        std::os::unix::fs::symlink(&other, wal.join("00000003.history")).unwrap();
        assert!(!newest_history(&place).unwrap_err().to_string().contains("another's"));
    }
}

//! Looking at the server: one query on a lasting connection, and signs of silence that a query does not show (a stopped postmaster,
//! nobody accepting connections, a disk that does not write). Absent: what to do about it.

use crate::config::parse_copy_name;
use crate::files;
use crate::options::PostgresOptions;
use crate::server::Postgres;
use crate::sql::{Row, Session, SqlError};
use crate::wal::Wal;
use mainstay_model::{Lsn, Moment, ServerObservation, ServerState, Timeline, Walsender};
use mainstay_ports::clock::boot_now;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_postgres::Statement;

/// A probe takes no longer than about this.
const LIMIT: Duration = Duration::from_millis(900);
/// How often, in milliseconds, the disk is written to and a new connection is tried.
const EVERY: u64 = 1000;
/// A write to the disk, or a new connection, that takes longer is silence.
const SLOW: u64 = 500;
/// Nobody probes for this long, in milliseconds: the disk is left alone.
const IDLE: u64 = 10_000;

const QUERY: &str = "select pg_is_in_recovery()::text,
  case when pg_is_in_recovery() then pg_last_wal_receive_lsn() else pg_current_wal_flush_lsn() end::text,
  pg_last_wal_replay_lsn()::text,
  case when pg_is_in_recovery() then r.received_tli::text else substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8) end,
  r.status,
  (select string_agg(concat_ws('|', application_name, state, coalesce(flush_lsn, '0/0'), coalesce(replay_lsn, '0/0')), ',')
     from pg_stat_replication),
  case when pg_is_in_recovery() then pg_get_wal_replay_pause_state() end
  from (select 1) one left join pg_stat_wal_receiver r on true";

/// What probes remember from one to the next.
pub(crate) struct Watch {
    held: tokio::sync::Mutex<Option<(Session, Statement)>>,
    seen: Mutex<Seen>,
    disk: Arc<Disk>,
    door: Arc<Door>,
    /// Why no server was started the last time one should have been.
    refusal: Mutex<Option<String>>,
}

#[derive(Default)]
struct Seen {
    pid: Option<u32>,
    /// The last sign of life of this process.
    alive: Moment,
    stopped_since: Option<Moment>,
    /// Replay was found to be held back by settings that are too low: since when, when last looked at, and which.
    held_back: Option<(Moment, Moment, Option<String>)>,
}

/// The thread that writes to the data volume.
struct Disk {
    home: PathBuf,
    dir: PathBuf,
    /// Free bytes when last looked at; the largest number: not known.
    free: AtomicU64,
    owner: files::Owner,
    asked: AtomicU64,
    /// When the write under way began; 0: none.
    began: AtomicU64,
    failing: Mutex<Option<(Moment, String)>>,
}

/// The task that opens a new connection now and then.
#[derive(Default)]
struct Door {
    /// When the last attempt began.
    tried: AtomicU64,
    /// When the attempt under way began; 0: none.
    began: AtomicU64,
    /// Since when attempts have had no answer; 0: they have one.
    shut_since: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watch {
    pub(crate) fn new(options: &PostgresOptions) -> Watch {
        let disk = Arc::new(Disk {
            home: options.layout.dir().to_owned(),
            free: AtomicU64::new(u64::MAX),
            // Left out of clones and rewinds by PostgreSQL's own tools, in every version.
            dir: options.layout.data().join("pg_stat_tmp"),
            owner: options.user,
            asked: AtomicU64::new(0),
            began: AtomicU64::new(0),
            failing: Mutex::new(None),
        });
        let thread = Arc::downgrade(&disk);
        let spawned = std::thread::Builder::new().name("disk-probe".into()).spawn(move || {
            while let Some(disk) = thread.upgrade() {
                disk.write();
                drop(disk);
                std::thread::sleep(Duration::from_millis(EVERY));
            }
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread for the disk probe: a stalled disk will show in queries only");
        }
        Watch {
            held: tokio::sync::Mutex::new(None),
            seen: Mutex::default(),
            disk,
            door: Arc::default(),
            refusal: Mutex::default(),
        }
    }

    /// Why no server could be started, or that none was refused.
    pub(crate) fn refused(&self, why: Option<String>) {
        *lock(&self.refusal) = why;
    }
}

impl Disk {
    fn write(&self) {
        let now = boot_now();
        if now.0.saturating_sub(self.asked.load(Ordering::Relaxed)) > IDLE {
            *lock(&self.failing) = None;
            return;
        }
        // Before the first touch of the volume: on one that is gone even a look hangs.
        self.began.store(now.0.max(1), Ordering::Relaxed);
        let free = rustix::fs::statvfs(&self.home).map_or(u64::MAX, |is| is.f_bavail.saturating_mul(is.f_frsize));
        self.free.store(free, Ordering::Relaxed);
        if !self.dir.exists() {
            self.began.store(0, Ordering::Relaxed);
            *lock(&self.failing) = None;
            return;
        }
        let done = files::open_scratch(&self.dir, "mainstay.probe", self.owner).and_then(|mut file| {
            file.write_all(format!("{:>16}\n", now.0).as_bytes())?;
            file.sync_all()
        });
        self.began.store(0, Ordering::Relaxed);
        let mut failing = lock(&self.failing);
        *failing = match (done, failing.take()) {
            // A directory that is being replaced is not a broken disk.
            (Ok(()), _) => None,
            (Err(error), _) if error.kind() == std::io::ErrorKind::NotFound => None,
            (Err(error), Some((since, _))) => Some((since, error.to_string())),
            (Err(error), None) => Some((now, error.to_string())),
        };
    }

    fn silence(&self, now: Moment) -> Option<(u64, String)> {
        let began = self.began.load(Ordering::Relaxed);
        if began != 0 && now.0.saturating_sub(began) > SLOW {
            let silent = now.0 - began;
            return Some((silent, format!("a write to the data volume takes {silent} ms")));
        }
        let failing = lock(&self.failing);
        failing
            .as_ref()
            .map(|(since, why)| (now.since(*since).0.max(1), format!("writing to the data volume fails: {why}")))
    }
}

impl Postgres {
    /// See [`mainstay_ports::engine::Engine::probe`].
    pub(crate) async fn look(&self) -> ServerObservation {
        let at = boot_now();
        let mut seen = ServerObservation { at, open: self.is_open().await, ..ServerObservation::default() };
        self.watch.disk.asked.store(at.0, Ordering::Relaxed);
        seen.disk_free = Some(self.watch.disk.free.load(Ordering::Relaxed)).filter(|free| *free != u64::MAX);
        let status = tokio::time::timeout(LIMIT, self.process.status()).await;
        let known = match status {
            Ok(Ok(status)) => status.server_pid,
            // Without the guard's word the last known process counts, while it is there.
            _ => lock(&self.watch.seen).pid.filter(|pid| crate::proc::hold(*pid, &self.data()).is_ok()),
        };
        self.remember(known, at);
        let Some(pid) = known else {
            *self.watch.held.lock().await = None;
            seen.symptom.clone_from(&lock(&self.watch.refusal));
            return seen;
        };
        seen.pid = Some(pid);
        seen.state = ServerState::Starting;
        self.try_door(at);
        let answer = self.ask().await;
        let now = boot_now();
        match answer {
            Ok(row) => {
                self.fill(&mut seen, &row).await;
                lock(&self.watch.seen).alive = now;
                self.look_at_pause(row.get(6).and_then(Option::as_deref) == Some("paused"), now).await;
            }
            Err(SqlError::Refused(_)) => lock(&self.watch.seen).alive = now,
            Err(error) => seen.symptom = Some(format!("a query has no answer: {error}")),
        }
        self.judge(&mut seen, pid, now);
        seen
    }

    fn remember(&self, pid: Option<u32>, now: Moment) {
        let mut seen = lock(&self.watch.seen);
        if seen.pid != pid {
            *seen = Seen { pid, alive: now, ..Seen::default() };
            self.watch.door.shut_since.store(0, Ordering::Relaxed);
        }
    }

    /// How long there has been no sign of life, by the worst of all signs.
    fn judge(&self, seen: &mut ServerObservation, pid: u32, now: Moment) {
        let mut worst: Option<(u64, String)> = None;
        let mut take = |silent: u64, why: String| {
            if worst.as_ref().is_none_or(|(most, _)| silent > *most) {
                worst = Some((silent, why));
            }
        };
        {
            let mut remembered = lock(&self.watch.seen);
            if let Some(symptom) = seen.symptom.take() {
                take(now.since(remembered.alive).0, symptom);
            }
            remembered.stopped_since =
                crate::proc::is_stopped(pid).then(|| remembered.stopped_since.unwrap_or(seen.at));
            if let Some(since) = remembered.stopped_since {
                take(now.since(since).0.max(1), format!("server process {pid} is stopped"));
            }
            if let Some((since, _, Some(which))) = &remembered.held_back {
                take(now.since(*since).0.max(1), format!("replay can not go on before a restart: {which}"));
            }
        }
        let door = self.watch.door.shut_since.load(Ordering::Relaxed);
        let began = self.watch.door.began.load(Ordering::Relaxed);
        let waiting = if began != 0 && now.0.saturating_sub(began) > SLOW { began } else { 0 };
        if let Some(since) = [door, waiting].into_iter().filter(|since| *since != 0).min() {
            take(now.since(Moment(since)).0, "a new connection has no answer".into());
        }
        if let Some((silent, why)) = self.watch.disk.silence(now) {
            take(silent, why);
        }
        if let Some((silent, why)) = worst {
            seen.silent = silent;
            seen.symptom = Some(why);
        }
    }

    async fn ask(&self) -> Result<Row, SqlError> {
        let work = async {
            let mut held = self.watch.held.lock().await;
            // Taken out: a probe that is dropped half-way must not leave a connection with an answer under way.
            let mut current = held.take().filter(|(session, _)| !session.is_closed());
            if let Some((session, statement)) = current.take() {
                match session.prepared(&statement, LIMIT).await {
                    Ok(row) => {
                        *held = Some((session, statement));
                        return Ok(row);
                    }
                    // The connection may be that of a server of before, or its session was ended by somebody.
                    Err(SqlError::Gone(_)) => {}
                    Err(other) => return Err(other),
                }
            }
            let session = self.session(LIMIT).await?;
            let statement = session.prepare(QUERY, LIMIT).await?;
            let row = session.prepared(&statement, LIMIT).await?;
            *held = Some((session, statement));
            Ok(row)
        };
        tokio::time::timeout(LIMIT, work).await.unwrap_or(Err(SqlError::Silent(LIMIT.as_millis())))
    }

    /// Replay that is paused, and not by somebody's wish: the log asks for more than this standby was started with. Only a restart
    /// helps, so it counts as silence. Looked at once a second.
    async fn look_at_pause(&self, paused: bool, now: Moment) {
        let before = lock(&self.watch.seen).held_back.clone();
        if !paused || before.as_ref().is_some_and(|(_, looked, _)| now.since(*looked).0 < EVERY) {
            if !paused {
                lock(&self.watch.seen).held_back = None;
            }
            return;
        }
        let look = async { self.too_low(&self.session(LIMIT).await?).await };
        let which = tokio::time::timeout(LIMIT / 2, look).await.ok().and_then(Result::ok).flatten();
        let since = before.filter(|(.., had)| had.is_some()).map_or(now, |(since, ..)| since);
        lock(&self.watch.seen).held_back = Some((since, now, which));
    }

    async fn fill(&self, seen: &mut ServerObservation, row: &Row) {
        let text = |at: usize| row.get(at).and_then(Option::as_deref).unwrap_or_default();
        let lsn = |at: usize| text(at).parse::<Lsn>().ok();
        let standby = text(0) == "true";
        seen.state = if standby { ServerState::Standby } else { ServerState::Primary };
        if standby {
            seen.replay = lsn(2);
            seen.end = lsn(1).max(seen.replay);
            seen.receiving = text(4) == "streaming";
            // What a stream said last counts while it lasts; without one the files tell.
            seen.timeline = text(3).parse().ok().map(Timeline).filter(|_| seen.receiving);
            if let (None, Some(end)) = (seen.timeline, seen.end) {
                // Beside this thread: a volume that hangs must not hang the probe.
                let data = self.data();
                let of_files = tokio::task::spawn_blocking(move || Wal::list(&data).ok()?.timeline_of(end));
                seen.timeline = tokio::time::timeout(LIMIT / 3, of_files).await.ok().and_then(|read| read.ok()?);
            }
        } else {
            seen.end = lsn(1);
            seen.timeline = u32::from_str_radix(text(3), 16).ok().map(Timeline);
        }
        seen.walsenders = parse_walsenders(text(5));
    }

    /// Now and then opens a new connection, beside the probe.
    fn try_door(&self, now: Moment) {
        let door = &self.watch.door;
        if door.began.load(Ordering::Relaxed) != 0 || now.0.saturating_sub(door.tried.load(Ordering::Relaxed)) < EVERY {
            return;
        }
        door.tried.store(now.0, Ordering::Relaxed);
        door.began.store(now.0.max(1), Ordering::Relaxed);
        let (dir, port) = (self.socket_dir.clone(), self.options.port);
        let door = door.clone();
        tokio::spawn(async move {
            let opened = Session::open(&dir, port, "postgres", Duration::from_secs(2)).await;
            let since = match opened {
                Err(SqlError::Silent(_)) => {
                    let before = door.shut_since.load(Ordering::Relaxed);
                    if before == 0 { now.0.max(1) } else { before }
                }
                // Refused is an answer; a broken connection is what the query sees too.
                _ => 0,
            };
            door.shut_since.store(since, Ordering::Relaxed);
            door.began.store(0, Ordering::Relaxed);
        });
    }
}

/// One for each copy. A slot admits one connection, so there should be no second one; if there is, what the two say is not added up:
/// the one that says less counts.
fn parse_walsenders(text: &str) -> Vec<Walsender> {
    let mut all: Vec<Walsender> = text.split(',').filter_map(parse_walsender).collect();
    all.sort_by(|a, b| (&a.node, a.copy, a.flush, a.streaming).cmp(&(&b.node, b.copy, b.flush, b.streaming)));
    all.dedup_by(|later, kept| later.node == kept.node && later.copy == kept.copy);
    all
}

fn parse_walsender(text: &str) -> Option<Walsender> {
    let mut parts = text.split('|');
    let (node, copy) = parse_copy_name(parts.next()?)?;
    let state = parts.next()?;
    let flush = parts.next()?.parse().ok()?;
    let replay = parts.next()?.parse().ok()?;
    Some(Walsender { node, copy, flush, replay, streaming: state == "streaming" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_walsenders_of_one_copy_the_one_that_says_less_counts() {
        let (one, other) = ("db2_00000000000000ab", "db2_00000000000000ac");
        let text = format!(
            "{one}|streaming|0/500|0/400,db3_00000000000000ad|streaming|0/300|0/300,{other}|streaming|0/700|0/700,\
             {one}|catchup|0/200|0/600,pg_basebackup|backup|0/0|0/0"
        );
        let seen: Vec<(String, u64, bool)> = parse_walsenders(&text)
            .into_iter()
            .map(|w| (format!("{}_{}", w.node, w.copy), w.flush.0, w.streaming))
            .collect();
        let expected = [(one, 0x200, false), (other, 0x700, true), ("db3_00000000000000ad", 0x300, true)];
        assert_eq!(seen, expected.map(|(name, flush, streaming)| (name.to_owned(), flush, streaming)));
    }

    #[test]
    fn a_write_that_hangs_or_fails_is_silence_and_one_that_works_is_not() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("volume");
        let (asked, began) = (AtomicU64::new(boot_now().0), AtomicU64::new(0));
        let (home, free) = (place.path().to_owned(), AtomicU64::new(0));
        let disk = Disk { home, free, dir: dir.clone(), owner: None, asked, began, failing: Mutex::new(None) };
        // A link is refused, as any other error would be.
        std::os::unix::fs::symlink("/tmp", &dir).unwrap();
        disk.write();
        let (silent, why) = disk.silence(boot_now() + mainstay_model::Span(700)).unwrap();
        assert!(silent >= 700 && why.contains("fails"), "{silent} {why}");
        std::fs::remove_file(&dir).unwrap();
        std::fs::create_dir(&dir).unwrap();
        disk.write();
        assert_eq!(disk.silence(boot_now() + mainstay_model::Span(700)), None);
        disk.began.store(boot_now().0, Ordering::Relaxed);
        assert_eq!(disk.silence(boot_now()), None);
        let (silent, why) = disk.silence(boot_now() + mainstay_model::Span(4000)).unwrap();
        assert!(silent >= 4000 && why.contains("takes"), "{silent} {why}");
    }
}

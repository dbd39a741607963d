//! Looking at the server: one query on a lasting connection, and signs of silence that a query does not show (a stopped postmaster,
//! nobody accepting connections, a disk that does not write). Absent: what to do about it.

use crate::config::parse_copy_name;
use crate::files;
use crate::options::PostgresOptions;
use crate::server::Postgres;
use crate::sql::{Row, Session, SqlError};
use crate::wal::Wal;
use mainstay_model::{Lsn, Moment, NodeId, ServerObservation, ServerState, Timeline, Walsender};
use mainstay_ports::clock::boot_now;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_postgres::Statement;

/// A probe takes no longer than about this.
const LIMIT: Duration = Duration::from_millis(900);
/// How often, in milliseconds, the disk is written to and a new connection is tried.
const EVERY: u64 = 1000;
/// A write to the disk, or a new connection, that takes longer is silence.
const SLOW: u64 = 500;
/// With less free for the server's user than this, in bytes, a table can not grow. The probe's own write says nothing about that: it goes
/// over a block that is there, by a user whom file systems give a reserve.
const FULL: u64 = 2 * 1024 * 1024;
/// An upstream refuses to stream within this time, in milliseconds.
const LASTS: u64 = 1000;
/// Nobody probes for this long, in milliseconds: the disk is left alone.
const IDLE: u64 = 10_000;

const QUERY: &str = "select pg_is_in_recovery()::text,
  case when pg_is_in_recovery() then pg_last_wal_receive_lsn() else pg_current_wal_flush_lsn() end::text,
  pg_last_wal_replay_lsn()::text,
  case when pg_is_in_recovery() then r.received_tli::text else substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8) end,
  r.status,
  (select string_agg(concat_ws('|', application_name, state, coalesce(flush_lsn, '0/0'), coalesce(replay_lsn, '0/0')), ',')
     from pg_stat_replication),
  case when pg_is_in_recovery() then pg_get_wal_replay_pause_state() end,
  r.pid::text,
  (r.last_msg_send_time is distinct from r.last_msg_receipt_time)::text
  from (select 1) one left join pg_stat_wal_receiver r on true";

/// What probes remember from one to the next.
pub(crate) struct Watch {
    held: tokio::sync::Mutex<Option<(Session, Statement)>>,
    seen: Mutex<Seen>,
    disk: Arc<Disk>,
    door: Arc<Door>,
    /// What the server's log says about a stream that does not come up.
    gone: Mutex<Gone>,
    /// Why no server was started the last time one should have been.
    refusal: Mutex<Option<String>>,
}

#[derive(Default)]
struct Seen {
    pid: Option<u32>,
    /// The last sign of life of this process.
    alive: Moment,
    stopped_since: Option<Moment>,
    /// The process that receives, and when it was first seen.
    receiver: Option<(String, Moment)>,
    /// Replay was found to be held back by settings that are too low: since when, when last looked at, and which.
    held_back: Option<(Moment, Moment, Option<String>)>,
}

/// How the upstream's refusal is worded in the standby's log.
const REMOVED: &str = "has already been removed";
/// That is believed when it has been said for this long, in milliseconds, and nothing came meanwhile.
const SURE: u64 = 2000;
/// And no longer when it has not been said again for this long.
const NOT_SAID: u64 = 5000;

/// An upstream that no longer has the log that is needed. The server's own view tells nothing: it streams for a moment at each attempt.
#[derive(Clone, Debug, Default)]
struct Gone {
    pid: u32,
    upstream: Option<NodeId>,
    /// How much of the server's log has been read, and when.
    read: u64,
    looked: Moment,
    /// First and last time that it was said, with the log ending at this place.
    said: Option<(Moment, Moment, Option<Lsn>)>,
}

impl Gone {
    /// Takes what the log said since the last look.
    fn hear(&mut self, now: Moment, removed: bool, end: Option<Lsn>, receiving: bool) {
        self.looked = now;
        self.said = match self.said {
            Some((first, _, at)) if removed && at == end => Some((first, now, at)),
            _ if removed => Some((now, now, end)),
            Some((_, _, at)) if at != end => None,
            Some((_, last, _)) if receiving && now.since(last).0 > NOT_SAID => None,
            said => said,
        };
    }

    fn sure(&self) -> bool {
        self.said.is_some_and(|(first, last, _)| last.since(first).0 >= SURE)
    }
}

/// The thread that writes to the data volume.
struct Disk {
    home: PathBuf,
    dir: PathBuf,
    /// Free bytes when last looked at; the largest number: not known.
    free: AtomicU64,
    /// Bytes of the whole volume; 0: not known.
    size: AtomicU64,
    owner: files::Owner,
    /// Has a server of this node run on the data? Before, and while it is refused, nothing is written: it may be another
    /// cluster's, or somebody else's.
    ours: AtomicBool,
    asked: AtomicU64,
    /// When the write under way began; 0: none.
    began: AtomicU64,
    failing: Mutex<Option<(Moment, String)>>,
    /// Since when there has been no room for the server's user, and how that showed.
    full: Mutex<Option<(Moment, String)>>,
}

/// Is there no room on a volume for users without privileges?
fn no_room(is: &rustix::fs::StatVfs) -> Option<String> {
    let free = is.f_bavail.saturating_mul(is.f_frsize);
    if free < FULL {
        return Some(format!("the data volume is full ({} KiB are free for the server)", free >> 10));
    }
    // File systems without a bound on files say 0 of 0.
    (is.f_files > 0 && is.f_favail == 0).then(|| "the data volume has no room for another file".to_owned())
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
            size: AtomicU64::new(0),
            // Left out of clones and rewinds by PostgreSQL's own tools, in every version.
            dir: options.layout.data().join("pg_stat_tmp"),
            owner: options.user,
            ours: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            began: AtomicU64::new(0),
            failing: Mutex::new(None),
            full: Mutex::new(None),
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
            gone: Mutex::default(),
            refusal: Mutex::default(),
        }
    }

    /// Why no server could be started, or that none was refused.
    pub(crate) fn refused(&self, why: Option<String>) {
        if why.is_some() {
            self.disk.ours.store(false, Ordering::Relaxed);
        }
        *lock(&self.refusal) = why;
    }
}

impl Disk {
    fn write(&self) {
        let now = boot_now();
        if now.0.saturating_sub(self.asked.load(Ordering::Relaxed)) > IDLE {
            *lock(&self.failing) = None;
            *lock(&self.full) = None;
            return;
        }
        // Before the first touch of the volume: on one that is gone even a look hangs.
        self.began.store(now.0.max(1), Ordering::Relaxed);
        let room = rustix::fs::statvfs(&self.home);
        let free = room.as_ref().map_or(u64::MAX, |is| is.f_bavail.saturating_mul(is.f_frsize));
        self.free.store(free, Ordering::Relaxed);
        let size = room.as_ref().map_or(0, |is| is.f_blocks.saturating_mul(is.f_frsize));
        self.size.store(size, Ordering::Relaxed);
        let no_room = room.ok().as_ref().and_then(no_room);
        {
            let mut full = lock(&self.full);
            let since = full.take().map_or(now, |(since, _)| since);
            *full = no_room.map(|why| (since, why));
        }
        if !self.ours.load(Ordering::Relaxed) || !self.dir.exists() {
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

    /// No room for the server's user: for how long, and how that shows.
    fn fullness(&self, now: Moment) -> Option<(u64, String)> {
        lock(&self.full).as_ref().map(|(since, why)| (now.since(*since).0.max(1), why.clone()))
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
        seen.disk_size = Some(self.watch.disk.size.load(Ordering::Relaxed)).filter(|size| *size > 0);
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
        self.watch.disk.ours.store(true, Ordering::Relaxed);
        seen.pid = Some(pid);
        seen.state = ServerState::Starting;
        self.try_door(at);
        let answer = self.ask().await;
        let now = boot_now();
        match answer {
            Ok(row) => {
                self.fill(&mut seen, &row).await;
                lock(&self.watch.seen).alive = now;
                self.look_for_removed_log(&mut seen, pid).await;
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
            if let Some(symptom) = seen.symptom.take_if(|_| !seen.log_gone) {
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
        if let Some((full, why)) = self.watch.disk.fullness(now) {
            // Only a primary has to grow its tables by itself: a standby is of use for as long as it runs, and says what is wrong.
            if seen.state == ServerState::Primary {
                take(full, why);
            } else {
                seen.symptom.get_or_insert(why);
            }
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

    /// Has the upstream removed what a standby needs? Read in the server's log once a second.
    async fn look_for_removed_log(&self, seen: &mut ServerObservation, pid: u32) {
        let Some(upstream) = self.live().await.upstream.filter(|_| seen.state == ServerState::Standby) else { return };
        let mut gone = lock(&self.watch.gone).clone();
        if gone.pid != pid || gone.upstream.as_ref() != Some(&upstream) {
            // What was said before concerns another stream.
            let (upstream, looked) = (Some(upstream.clone()), seen.at);
            gone = Gone { pid, upstream, looked, read: u64::MAX, said: None };
        } else if seen.at.since(gone.looked).0 >= EVERY {
            // Beside this thread, as above.
            let (path, from) = (self.options.layout.server_log(), gone.read);
            let read = tokio::task::spawn_blocking(move || crate::server::text_since(&path, from));
            let Ok(Ok((text, end))) = tokio::time::timeout(LIMIT / 3, read).await else { return };
            gone.read = end;
            gone.hear(seen.at, text.contains(REMOVED), seen.end, seen.receiving);
        }
        if gone.sure() {
            seen.receiving = false;
            seen.log_gone = true;
            seen.symptom =
                Some(format!("{upstream} has removed log that this copy needs next: it must be cloned anew"));
        }
        *lock(&self.watch.gone) = gone;
    }

    async fn fill(&self, seen: &mut ServerObservation, row: &Row) {
        let text = |at: usize| row.get(at).and_then(Option::as_deref).unwrap_or_default();
        let lsn = |at: usize| text(at).parse::<Lsn>().ok();
        let standby = text(0) == "true";
        seen.state = if standby { ServerState::Standby } else { ServerState::Primary };
        if standby {
            seen.replay = lsn(2);
            seen.end = lsn(1).max(seen.replay);
            seen.receiving = text(4) == "streaming" && self.really_streams(text(7), text(8) == "true", seen.at);
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

    /// A receiver says "streaming" from its connection on, also when its upstream then refuses to stream. It does stream when a message
    /// has come (before that both times are those of its own start), or when it lasts: an upstream that has nothing to send may be silent.
    fn really_streams(&self, pid: &str, heard: bool, now: Moment) -> bool {
        let mut seen = lock(&self.watch.seen);
        let since = match &seen.receiver {
            Some((known, since)) if known == pid => *since,
            _ => now,
        };
        seen.receiver = Some((pid.to_owned(), since));
        heard || now.since(since).0 >= LASTS
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
    fn log_is_gone_when_that_is_said_again_and_again_and_nothing_came() {
        let mut gone = Gone::default();
        let at = |lsn| Some(Lsn(lsn));
        gone.hear(Moment(1000), true, at(5), true);
        gone.hear(Moment(2000), false, at(5), true);
        assert!(!gone.sure());
        gone.hear(Moment(3000), true, at(5), false);
        assert!(gone.sure());
        // An attempt under way is no reason to think otherwise; log that came is, and so is a stream that lasts.
        gone.hear(Moment(4000), false, at(5), true);
        assert!(gone.sure());
        gone.hear(Moment(8500), false, at(5), true);
        assert!(!gone.sure());
        gone.hear(Moment(9000), true, at(5), true);
        gone.hear(Moment(12_000), true, at(6), true);
        assert!(!gone.sure());
        gone.hear(Moment(13_000), false, at(7), true);
        assert!(gone.said.is_none());
    }

    #[test]
    fn a_write_that_hangs_or_fails_is_silence_and_one_that_works_is_not() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("volume");
        let (asked, began) = (AtomicU64::new(boot_now().0), AtomicU64::new(0));
        let (home, free, size) = (place.path().to_owned(), AtomicU64::new(0), AtomicU64::new(0));
        let (failing, full) = (Mutex::new(None), Mutex::new(None));
        let ours = AtomicBool::new(true);
        let disk = Disk { home, free, size, dir: dir.clone(), owner: None, ours, asked, began, failing, full };
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

//! A backup of a running server, primary or replica.
//!
//! It counts only when every segment from its start to its stop, and the history of its timeline, was read back from the repository:
//! then, and not before, the manifest is written. A backup that fails leaves packs without a manifest, which nobody takes for a backup.

use crate::Header;
use crate::hex;
use crate::objects::{Committed, Key};
use crate::postgres::archive::{Held, check_held, lineage};
use crate::postgres::copy::{Copied, Job, copy};
use crate::postgres::log::{LogFile, SegmentSize, parse_history, segments};
use crate::postgres::manifest::{Base, File, Manifest, Server};
use crate::postgres::walk::Tree;
use crate::repository::{Repository, VaultError, sum_of};
use mainstay_model::{Lineage, Position, SystemId, Timeline};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, Config, NoTls};

/// Settings that a recovered server must not undercut.
pub(crate) const AT_LEAST: [&str; 5] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];

/// How a backup is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// How to reach the server, as a superuser.
    pub server: Config,
    /// Of a replica: how to reach the primary, so that an idle one ends the segment that the backup needs.
    pub primary: Option<Config>,
    /// The server's data directory on this host.
    pub data: PathBuf,
    /// Who makes it, for the manifest's header.
    pub by: String,
    /// Threads that read, compress and seal; each needs about 20 MiB.
    pub threads: usize,
    /// How long to wait, after the copy, until the archive holds the log.
    pub patience: Duration,
}

/// For whoever watches or stops a backup.
#[derive(Debug, Default)]
pub struct Watch {
    /// Bytes to read, once known.
    pub total: AtomicU64,
    /// Bytes read.
    pub done: AtomicU64,
    /// At most so many bytes a second are read; 0: no limit. May be changed while the backup runs.
    pub rate: AtomicU64,
    /// Set it, and the backup ends.
    pub stop: AtomicBool,
    /// Of a restore: what was written is being brought to the disk. That may take long, and says nothing of the repository.
    pub flushing: AtomicBool,
    /// The copy is made; it waits for the log. Of a replica's backup: who can should ask the primary to end its segment.
    pub stopped: AtomicBool,
}

/// How an agent reaches its own server, but for the place.
#[must_use]
pub fn server() -> Config {
    let mut config = Config::new();
    config.user("postgres").dbname("postgres").application_name("mainstay_vault");
    config
}

/// Which database a server holds.
pub async fn system(server: &Config) -> Result<SystemId, VaultError> {
    let row = Session::open(server).await?.row("SELECT system_identifier FROM pg_control_system()").await?;
    Ok(SystemId(field(&row, 0)?))
}

/// A primary ends the segment of its log that is open, also if nothing was written: what was committed before lies before the returned position.
pub async fn end_segment(server: &Config) -> Result<mainstay_model::Lsn, VaultError> {
    let session = Session::open(server).await?;
    // Without a record in it the switch would do nothing.
    session.row("SELECT pg_logical_emit_message(false, 'mainstay', 'segment')").await?;
    field(&session.row("SELECT pg_switch_wal()").await?, 0)
}

/// A connection whose driver ends with it.
pub(crate) struct Session {
    pub(crate) client: Client,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

fn sql(error: &tokio_postgres::Error) -> VaultError {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    VaultError::Server(format!("the server: {error}{cause}"))
}

impl Session {
    pub(crate) async fn open(config: &Config) -> Result<Session, VaultError> {
        let connecting = tokio::time::timeout(Duration::from_secs(10), config.connect(NoTls)).await;
        let silent = |_| VaultError::Server("the server does not answer within 10 s".into());
        let (client, connection) = connecting.map_err(silent)?.map_err(|e| sql(&e))?;
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Session { client, driver })
    }

    /// All rows of text.
    pub(crate) async fn rows(&self, statement: &str) -> Result<Vec<Vec<Option<String>>>, VaultError> {
        let messages = self.client.simple_query(statement).await.map_err(|e| sql(&e))?;
        let rows = messages.iter().filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        Ok(rows.map(|row| (0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect()).collect())
    }

    /// One row of text.
    pub(crate) async fn row(&self, statement: &str) -> Result<Vec<Option<String>>, VaultError> {
        let rows = self.client.simple_query(statement).await.map_err(|e| sql(&e))?;
        let row = rows.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let row = row.ok_or_else(|| VaultError::Server(format!("no answer to {statement}")))?;
        Ok((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect())
    }
}

fn field<T: std::str::FromStr>(row: &[Option<String>], at: usize) -> Result<T, VaultError> {
    let text = row.get(at).and_then(Option::as_deref);
    let bad = || VaultError::Server(format!("the server's answer {text:?} was not understood"));
    text.and_then(|text| text.parse().ok()).ok_or_else(bad)
}

/// The server, before.
struct Facts {
    system: SystemId,
    server: Server,
}

async fn facts(session: &Session) -> Result<Facts, VaultError> {
    let row = session
        .row(
            "SELECT (SELECT system_identifier FROM pg_control_system()), current_setting('server_version_num'), \
             (SELECT bytes_per_wal_segment FROM pg_control_init()), current_setting('data_checksums') = 'on', \
             pg_is_in_recovery(), (SELECT catalog_version_no FROM pg_control_system()), \
             (SELECT datcollate || ' ' || coalesce(datcollversion, '') FROM pg_database WHERE datname = current_database()), \
             (SELECT coalesce(string_agg(extname || ' ' || extversion, ', ' ORDER BY extname), '') FROM pg_extension)",
        )
        .await?;
    let mut settings = BTreeMap::new();
    for name in AT_LEAST {
        let value = session.row(&format!("SELECT current_setting('{name}')")).await?;
        settings.insert(name.to_owned(), field::<String>(&value, 0)?);
    }
    let yes = |at: usize| row.get(at).and_then(Option::as_deref) == Some("t");
    let notes = BTreeMap::from([("collation".into(), field(&row, 6)?), ("extensions".into(), field(&row, 7)?)]);
    let server = Server {
        version: field(&row, 1)?,
        segment_size: field(&row, 2)?,
        checksums: yes(3),
        replica: yes(4),
        catalog: field(&row, 5)?,
        settings,
        notes,
    };
    Ok(Facts { system: SystemId(field(&row, 0)?), server })
}

/// What `pg_backup_stop` gave.
struct Stopped {
    lsn: mainstay_model::Lsn,
    timeline: Timeline,
    label: String,
    map: String,
    ended: i64,
}

/// The value of a line of `backup_label`.
fn line<'a>(label: &'a str, name: &str) -> Option<&'a str> {
    label.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::trim)
}

/// A server that answers later is asked again.
const ANSWER: Duration = Duration::from_secs(10);
const NOW: &str = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint";

/// Makes a full backup. The archive must be swept meanwhile by its owner: the backup waits for it.
pub async fn full(repository: &Repository, options: &Options, watch: &Arc<Watch>) -> Result<Manifest, VaultError> {
    make(repository, options, watch, None).await
}

/// Makes a backup on top of a full one: what differs from it, by fingerprints of everything that is there now. No map of changes is
/// believed, so a take-over in between does no harm (P33).
pub async fn incremental(
    repository: &Repository,
    options: &Options,
    watch: &Arc<Watch>,
    base: Arc<Manifest>,
) -> Result<Manifest, VaultError> {
    if base.base.is_some() {
        return Err(VaultError::Impossible(format!("{} is no full backup; name a full one", base.label)));
    }
    if !repository.readable() {
        let says = "this host can write to the repository and not read it, so it can not compare; make a full backup";
        return Err(VaultError::Impossible(says.into()));
    }
    make(repository, options, watch, Some(base)).await
}

async fn make(
    repository: &Repository,
    options: &Options,
    watch: &Arc<Watch>,
    base: Option<Arc<Manifest>>,
) -> Result<Manifest, VaultError> {
    let session = Session::open(&options.server).await?;
    session
        .client
        .batch_execute("SET statement_timeout = 0; SET idle_session_timeout = 0")
        .await
        .map_err(|e| sql(&e))?;
    let facts = facts(&session).await?;
    if let Some(base) = base.as_ref().filter(|base| base.system != facts.system) {
        return Err(VaultError::Impossible(format!("{} is a backup of another database", base.label)));
    }
    let began_row = session
        .row(&format!("SELECT {NOW}, to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYYMMDD\"T\"HH24MISS')"))
        .await?;
    let began: i64 = field(&began_row, 0)?;
    let label = format!("{}-{}", field::<String>(&began_row, 1)?, hex::encode(&crate::keys::random::<3>()?));
    let start_row = session.row(&format!("SELECT pg_backup_start('mainstay {label}', true)")).await?;
    let start: mainstay_model::Lsn = field(&start_row, 0)?;
    let prefix = format!("backups/{}/{label}", facts.system);
    let copying = copy_files(repository, options, watch, &facts, &prefix, (start.0, base.clone()));
    // The session keeps the backup open; if it ends, so does the backup, by the error of the next statement.
    let (tree, copied) = copying.await?;
    let stopped = stop(&session, options, &facts).await?;
    watch.stopped.store(true, Ordering::Relaxed);
    let lost = || VaultError::Backup("the server's backup_label names no start".into());
    let timeline: u32 = line(&stopped.label, "START TIMELINE").and_then(|text| text.parse().ok()).ok_or_else(lost)?;
    // A replica's last checkpoint may be of before a take-over that it has followed: then its log leads over the fork, and
    // whether it does is proven below. A primary's can not change.
    if stopped.timeline.0 != timeline && !facts.server.replica {
        let says = format!("the timeline changed from {timeline} to {} meanwhile; begin anew", stopped.timeline);
        return Err(VaultError::Backup(says));
    }
    let mut manifest = Manifest {
        format: 1,
        label,
        system: facts.system,
        start: Position { timeline: Timeline(timeline), lsn: start },
        stop: Position { timeline: stopped.timeline, lsn: stopped.lsn },
        began,
        ended: stopped.ended,
        backup_label: hex::encode(stopped.label.as_bytes()),
        tablespace_map: hex::encode(stopped.map.as_bytes()),
        base: base.map(|base| Base { label: base.label.clone(), packs: base.packs.clone() }),
        ..assemble(&tree, copied, facts.server)
    };
    prove_log(repository, &mut manifest, session, options, watch).await?;
    commit(repository, &manifest, options, &prefix).await?;
    Ok(manifest)
}

async fn copy_files(
    repository: &Repository,
    options: &Options,
    watch: &Arc<Watch>,
    facts: &Facts,
    prefix: &str,
    (start, base): (u64, Option<Arc<Manifest>>),
) -> Result<(Tree, Copied), VaultError> {
    let (repository, options, watch, prefix) = (repository.clone(), options.clone(), watch.clone(), prefix.to_owned());
    let (major, checksums) = (facts.server.version / 10_000, facts.server.checksums);
    let copying = tokio::task::spawn_blocking(move || {
        let tree = Tree::walk(&options.data, major)?;
        watch.total.store(tree.files.iter().map(|file| file.2).sum(), Ordering::Relaxed);
        let copied = copy(&Job {
            repository: &repository,
            data: &options.data,
            prefix: &prefix,
            tree: &tree,
            checksums,
            base: base.as_deref(),
            start,
            threads: options.threads,
            rate: &watch.rate,
            progress: &watch.done,
            stop: &watch.stop,
        })?;
        Ok::<_, VaultError>((tree, copied))
    });
    copying.await.map_err(|e| VaultError::Backup(e.to_string()))?
}

async fn stop(session: &Session, options: &Options, facts: &Facts) -> Result<Stopped, VaultError> {
    let row = session
        .row(&format!("SELECT lsn, labelfile, spcmapfile, {NOW}, pg_is_in_recovery() FROM pg_backup_stop(false)"))
        .await?;
    let replica = row.get(4).and_then(Option::as_deref) == Some("t");
    if replica != facts.server.replica {
        return Err(VaultError::Backup("the server was promoted meanwhile; begin anew".into()));
    }
    let text = |at: usize| row.get(at).cloned().flatten().unwrap_or_default();
    let lsn: mainstay_model::Lsn = field(&row, 0)?;
    let timeline = if replica {
        session.row("SELECT min_recovery_end_timeline FROM pg_control_recovery()").await?
    } else {
        session.row(&format!("SELECT ('x' || substr(pg_walfile_name('{lsn}'), 1, 8))::bit(32)::bigint")).await?
    };
    let stopped =
        Stopped { lsn, timeline: Timeline(field(&timeline, 0)?), label: text(1), map: text(2), ended: field(&row, 3)? };
    // An idle primary would never end the segment; without a record in it the switch would do nothing.
    let nudge = "SELECT pg_logical_emit_message(false, 'mainstay', 'backup'); SELECT pg_switch_wal()";
    match (&options.primary, replica) {
        (Some(primary), true) => {
            let primary = Session::open(primary).await?;
            primary.client.batch_execute(nudge).await.map_err(|e| sql(&e))?;
        }
        (None, true) => {}
        (_, false) => session.client.batch_execute(nudge).await.map_err(|e| sql(&e))?,
    }
    Ok(stopped)
}

fn assemble(tree: &Tree, copied: Copied, server: Server) -> Manifest {
    let size = |number: usize| copied.sizes.get(number).copied().flatten();
    let files = tree.files.iter().enumerate();
    // A file that vanished has no content: its path is empty, and its number stays taken.
    let files = files.map(|(number, (path, mode, _))| match size(number) {
        Some(size) => File { path: path.clone(), mode: *mode, size },
        None => File { path: String::new(), mode: 0, size: 0 },
    });
    Manifest {
        format: 1,
        label: String::new(),
        system: SystemId(0),
        server,
        start: Position::default(),
        stop: Position::default(),
        began: 0,
        ended: 0,
        backup_label: String::new(),
        tablespace_map: String::new(),
        tablespaces: tree.tablespaces.clone(),
        directories: tree.directories.clone(),
        files: files.collect(),
        packs: copied.packs,
        extents: copied.extents,
        base: None,
        corrupt: copied.corrupt,
    }
}

/// The path of timelines to this one. Who may only write to the repository can not read it there: then the server's own file says it, and the
/// archive's must be whole.
fn path_to(
    repository: &Repository,
    system: SystemId,
    size: SegmentSize,
    timeline: Timeline,
    data: &Path,
) -> Result<Lineage, VaultError> {
    if repository.readable() || timeline.0 <= 1 {
        return lineage(repository, system, size, timeline);
    }
    let key = size.key(system, LogFile::History(timeline))?;
    repository.check(&key)?;
    let path = data.join(format!("pg_wal/{}", key.last()));
    let text = std::fs::read_to_string(&path).map_err(|e| VaultError::file(&path, e))?;
    let says = |says: String| VaultError::Backup(format!("{}: {says}", path.display()));
    parse_history(&text).map_err(says)?.ok_or_else(|| says("it names no timeline".to_owned()))
}

/// The end of a replica's copy on the timeline that its server goes by now. Where that followed a take-over, or was promoted, what the copy
/// needs lies on the new path too; and only there is the segment ever whole that the old primary left half full.
async fn followed(
    repository: &Repository,
    (system, size): (SystemId, SegmentSize),
    (session, options): (&mut Option<Session>, &Options),
    stop: Position,
) -> Position {
    let now = "SELECT CASE WHEN pg_is_in_recovery() THEN (SELECT max(received_tli)::bigint FROM pg_stat_wal_receiver) \
               ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint END";
    // Whatever can not be known now is asked again.
    // Its server may be started anew meanwhile.
    let open = match session.take() {
        Some(open) => open,
        None => match Session::open(&options.server).await {
            Ok(open) => open,
            Err(_) => return stop,
        },
    };
    let Ok(Ok(row)) = tokio::time::timeout(ANSWER, open.row(now)).await else { return stop };
    *session = Some(open);
    let Ok(number) = field::<u32>(&row, 0) else { return stop };
    let timeline = Timeline(number);
    if timeline <= stop.timeline {
        return stop;
    }
    let (repository, data) = (repository.clone(), options.data.clone());
    let path = tokio::task::spawn_blocking(move || path_to(&repository, system, size, timeline, &data)).await;
    match path {
        Ok(Ok(path)) if path.contains(stop, timeline, stop.lsn) => Position { timeline, ..stop },
        _ => stop,
    }
}

/// Waits until the archive holds what the backup needs, and reads all of it back. The server has given all that it has to give: whether it is
/// promoted by now, or has died, tells nothing of the copy.
async fn prove_log(
    repository: &Repository,
    manifest: &mut Manifest,
    session: Session,
    options: &Options,
    watch: &Watch,
) -> Result<(), VaultError> {
    let (size, system) = (SegmentSize(manifest.server.segment_size), manifest.system);
    let (begun, mut session) = (Instant::now(), Some(session));
    loop {
        let (repo, start, stop, data) = (repository.clone(), manifest.start, manifest.stop, options.data.clone());
        let looking = tokio::task::spawn_blocking(move || {
            let path = path_to(&repo, system, size, stop.timeline, &data)?;
            let wanted = segments(size, start, stop, &path).map_err(VaultError::Backup)?;
            let missing = Held::list(&repo, system, size)?.missing(&wanted);
            if missing.is_empty() {
                check_held(&repo, system, size, &wanted)?;
            }
            Ok::<_, VaultError>(missing)
        });
        let missing = match looking.await.map_err(|e| VaultError::Backup(e.to_string()))? {
            Ok(missing) if missing.is_empty() => return Ok(()),
            Ok(missing) => missing.first().map(|(timeline, number)| size.name(*timeline, *number)).unwrap_or_default(),
            Err(error) if error.is_missing() => error.to_string(),
            Err(error) => return Err(error),
        };
        if begun.elapsed() > options.patience || watch.stop.load(Ordering::Relaxed) {
            let waited = begun.elapsed().as_secs();
            let says =
                format!("the archive did not get {missing} within {waited} s, so this backup could not be restored");
            return Err(VaultError::Backup(format!("{says}; look at the archive's state, then begin anew")));
        }
        if manifest.server.replica {
            manifest.stop = followed(repository, (system, size), (&mut session, options), manifest.stop).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn commit(
    repository: &Repository,
    manifest: &Manifest,
    options: &Options,
    prefix: &str,
) -> Result<(), VaultError> {
    let text = serde_json::to_vec(manifest).map_err(|e| VaultError::Backup(e.to_string()))?;
    let (repository, key) = (repository.clone(), Key::new(format!("{prefix}/manifest"))?);
    let header = Header { by: options.by.clone(), ..Header::default() };
    let packs: Vec<(String, u64)> =
        manifest.packs.iter().map(|pack| (format!("{prefix}/{}", pack.name), pack.size)).collect();
    let base =
        manifest.base.as_ref().map(|base| Key::new(format!("backups/{}/{}/manifest", manifest.system, base.label)));
    let base = base.transpose()?;
    let writing = tokio::task::spawn_blocking(move || {
        for (name, size) in packs {
            let there = repository.objects().size(&Key::new(name.clone())?)?;
            if there != size {
                return Err(VaultError::Damaged(format!("{name} has {there} bytes, {size} were written")));
            }
        }
        if let Some(base) = &base {
            repository.objects().size(base)?;
        }
        match repository.put_checked(&key, header, (&text, &sum_of(&text)))? {
            Committed::Created => Ok(()),
            Committed::Exists => Err(VaultError::Backup(format!("{key} is there already"))),
        }
    });
    writing.await.map_err(|e| VaultError::Backup(e.to_string()))?
}

/// The backups of a database, oldest first, read and checked. One that is damaged or sealed for another key is an error.
pub fn list(repository: &Repository, system: SystemId) -> Result<Vec<Manifest>, VaultError> {
    let (all, unreadable) = readable(repository, system)?;
    unreadable.into_iter().next().map_or(Ok(all), Err)
}

/// Those that can be read, oldest first, and why others can not: one that is damaged takes nothing from the others.
/// Whoever removes anything must not take these for all there are.
pub fn readable(repository: &Repository, system: SystemId) -> Result<(Vec<Manifest>, Vec<VaultError>), VaultError> {
    let entries = repository.objects().list(&format!("backups/{system}/"))?;
    let (mut all, mut unreadable) = (Vec::new(), Vec::new());
    for entry in entries.iter().filter(|entry| entry.key.last() == "manifest") {
        match read(repository, system, &entry.key) {
            Ok(manifest) => all.push(manifest),
            Err(error @ VaultError::Damaged(_)) => unreadable.push(error),
            // A store out of reach, or the wrong key: that says nothing about this one.
            Err(error) => return Err(error),
        }
    }
    all.sort_by_key(|manifest| (manifest.stop.lsn, manifest.ended));
    Ok((all, unreadable))
}

fn read(repository: &Repository, system: SystemId, key: &Key) -> Result<Manifest, VaultError> {
    let (_, text) = repository.get(key)?;
    let read: Manifest = serde_json::from_slice(&text).map_err(|e| VaultError::Damaged(format!("{key}: {e}")))?;
    if read.format != 1 || read.system != system {
        return Err(VaultError::Damaged(format!("{key} is not what its name says")));
    }
    Ok(read)
}

//! The server as one thing: its options, its configuration in force, its process. Here: writing the configuration, reloading it with
//! proof, starting, and waiting for answers. The orders themselves are in modules of their own.

use crate::config::{self, Live};
use crate::files::{self, Owner};
use crate::held::Floors;
use crate::options::{self, OptionsError, PostgresOptions};
use crate::probe::Watch;
use crate::sql::{Session, SqlError};
use mainstay_model::outcome::RunId;
use mainstay_model::{Lsn, NodeId};
use mainstay_ports::engine::{EngineError, EngineSettings};
use mainstay_ports::process::{Fenced, ProcessError, ServerProcess, StartCommand, StopMode};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long one statement of ours may take.
pub(crate) const STATEMENT: Duration = Duration::from_secs(5);
/// How long a reload may take until a new session shows it.
const RELOAD: Duration = Duration::from_secs(3);
/// How long a starting server may take until it answers; then the caller asks again.
const START: Duration = Duration::from_secs(30);
/// The longest name of a Unix socket.
const SOCKET_NAME: usize = 107;
/// Slots keep no less and no more of the log than this, nor more than half of what is free.
const KEEP_MB: (u64, u64) = (16, 64 * 1024);
/// How long a write of the configuration may wait for one that hangs.
const WRITE: Duration = Duration::from_secs(5);

pub(crate) fn failed(what: impl std::fmt::Display) -> EngineError {
    EngineError::Failed(what.to_string())
}

pub(crate) fn not_yet(what: impl std::fmt::Display) -> EngineError {
    EngineError::NotYet(what.to_string())
}

pub(crate) fn process_failed(error: ProcessError) -> EngineError {
    match error {
        ProcessError::GuardGone(_) => not_yet(error),
        ProcessError::Refused(_) | ProcessError::Os(_) => failed(error),
    }
}

/// PostgreSQL on this node.
pub struct Postgres {
    pub(crate) options: PostgresOptions,
    pub(crate) process: Arc<dyn ServerProcess>,
    pub(crate) socket_dir: PathBuf,
    live: tokio::sync::Mutex<State>,
    /// What the operator may change while the server runs.
    settings: RwLock<Arc<EngineSettings>>,
    /// What a standby must not have less of than its primary.
    floors: Mutex<Floors>,
    written: Arc<Written>,
    pub(crate) watch: Watch,
    /// Held while copies that were moved aside are removed or replaced.
    pub(crate) aside: Arc<tokio::sync::Mutex<()>>,
    /// The last clone ran out of room.
    pub(crate) ran_out: crate::clone::RanOut,
    /// What new copies may be made of beside a running primary.
    pub(crate) seed: crate::seed::Held,
    /// The server process at which a commit was seen waiting for replicas; 0: none.
    proven: AtomicU32,
    /// The last start in place: that life of the server, and where the log ended that it found.
    found_log: Mutex<Option<(RunId, Lsn)>>,
}

/// What the files hold.
#[derive(Default)]
struct Written {
    /// The newest generation; held while files are written, so that a write whose order was given up can not overtake the next one.
    generation: Arc<tokio::sync::Mutex<u64>>,
    /// How much of the log slots may keep; 0: nothing was written yet.
    keep_mb: AtomicU64,
}

/// The configuration as it was written last.
#[derive(Clone, Debug, Default)]
struct State {
    live: Live,
    open: bool,
}

impl Postgres {
    /// Takes the options; starts nothing.
    ///
    /// # Errors
    /// When options are refused, or the configuration written earlier can not be read.
    pub fn new(options: PostgresOptions, process: Arc<dyn ServerProcess>) -> Result<Self, OptionsError> {
        options::check(&options)?;
        let conf = options.layout.conf();
        let read = |name: &str| match std::fs::read_to_string(conf.join(name)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(OptionsError::Files(format!("{}: {error}", conf.join(name).display()))),
            Ok(text) => Ok(text),
        };
        // Without a file of ours nobody knows which setting was in force: until one is ordered, commits wait for ever.
        let unknown = Live { blocked: true, ..Live::default() };
        let live = config::parse_live(&read("postgresql.conf")?).unwrap_or(unknown);
        let open = config::hba_is_open(&read("pg_hba.conf")?);
        let socket_dir = socket_dir(&options);
        let watch = Watch::new(&options);
        let live = tokio::sync::Mutex::new(State { live, open });
        let settings = EngineSettings {
            peers: options.peers.clone(),
            parameters: options.parameters.clone(),
            hba: options.hba.clone(),
            archived: options.archived,
            archive_command: options.archive_command.clone(),
        };
        Ok(Self {
            options,
            process,
            socket_dir,
            live,
            settings: RwLock::new(Arc::new(settings)),
            floors: Mutex::default(),
            written: Arc::default(),
            watch,
            aside: Arc::default(),
            ran_out: crate::clone::RanOut::default(),
            seed: crate::seed::Held::default(),
            proven: AtomicU32::new(0),
            found_log: Mutex::default(),
        })
    }

    /// What the operator wants now.
    pub(crate) fn settings(&self) -> Arc<EngineSettings> {
        Arc::clone(&self.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Taken by the next write.
    pub(crate) fn set_settings(&self, settings: Arc<EngineSettings>) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = settings;
    }

    /// What the next start must not have less of.
    pub(crate) fn floors(&self) -> Floors {
        self.floors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Taken by the next write.
    pub(crate) fn set_floors(&self, floors: Floors) {
        *self.floors.lock().unwrap_or_else(PoisonError::into_inner) = floors;
    }

    /// How much of the log slots may keep by the file, and how much they should by what is free now, in MiB.
    pub(crate) async fn keep_now(&self) -> (u64, u64) {
        let written = self.written.keep_mb.load(Ordering::Relaxed);
        let dir = self.options.layout.dir().to_owned();
        let wanted = tokio::task::spawn_blocking(move || keep_mb(&dir)).await.unwrap_or(written);
        (written, settled(written, wanted))
    }

    /// The text that a write would give `postgresql.conf` with these settings.
    pub(crate) async fn text_with(&self, settings: &EngineSettings) -> String {
        let live = self.live().await;
        config::postgresql_conf(config::Source {
            options: &self.options,
            settings,
            live: &live,
            floors: &self.floors(),
            socket_dir: &self.socket_dir,
            keep_mb: KEEP_MB.0,
        })
    }

    /// Where the server's Unix socket lies. Not always in the layout: a long path does not fit a socket's name.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// The server process at which a commit was seen waiting for replicas.
    pub(crate) fn proven(&self) -> Option<u32> {
        Some(self.proven.load(Ordering::SeqCst)).filter(|pid| *pid != 0)
    }

    pub(crate) fn found_log(&self) -> Option<(RunId, Lsn)> {
        *self.found_log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_found_log(&self, found: Option<(RunId, Lsn)>) {
        *self.found_log.lock().unwrap_or_else(PoisonError::into_inner) = found;
    }

    pub(crate) fn set_proven(&self, pid: Option<u32>) {
        self.proven.store(pid.unwrap_or(0), Ordering::SeqCst);
    }

    pub(crate) fn owner(&self) -> Owner {
        self.options.user
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.options.layout.data()
    }

    /// What was written last.
    pub(crate) async fn live(&self) -> Live {
        self.live.lock().await.live.clone()
    }

    /// Do the files let clients in?
    pub(crate) async fn is_open(&self) -> bool {
        self.live.lock().await.open
    }

    /// Writes the configuration, durably. `open`: whether clients may enter; `None`: as it is.
    pub(crate) async fn write(&self, open: Option<bool>, edit: impl FnOnce(&mut Live)) -> Result<u64, EngineError> {
        let mut state = self.live.lock().await;
        let mut next = state.clone();
        edit(&mut next.live);
        next.open = open.unwrap_or(next.open);
        next.live.generation += 1;
        let generation = next.live.generation;
        // Before the files: a call that is given up half-way may have written them, or may do so yet, and no later write may carry the
        // same number. What the files hold after an error is unknown; the next write replaces them all.
        *state = next.clone();
        let conf = self.options.layout.conf();
        let say = |error: &dyn std::fmt::Display| format!("the server's configuration in {}: {error}", conf.display());
        // A write that hangs holds this: others do not pile up behind it.
        let last = Arc::clone(&self.written.generation).lock_owned();
        let Ok(mut last) = tokio::time::timeout(WRITE, last).await else {
            return Err(not_yet(say(&"an earlier write has not ended; the volume does not write")));
        };
        let (options, socket_dir) = (self.options.clone(), self.socket_dir.clone());
        let (settings, floors, written) = (self.settings(), self.floors(), Arc::clone(&self.written));
        let done = tokio::task::spawn_blocking(move || {
            if *last >= generation {
                return Ok(());
            }
            *last = generation;
            let keep = settled(written.keep_mb.load(Ordering::Relaxed), keep_mb(options.layout.dir()));
            written.keep_mb.store(keep, Ordering::Relaxed);
            let from = config::Source {
                options: &options,
                settings: &settings,
                live: &next.live,
                floors: &floors,
                socket_dir: &socket_dir,
                keep_mb: keep,
            };
            write_files(from, next.open)
        });
        match done.await {
            Ok(Ok(())) => Ok(generation),
            Ok(Err(error)) => Err(failed(say(&error))),
            Err(error) => Err(failed(error)),
        }
    }

    /// Writes the configuration and has the running server read it; returns a session that was opened under it.
    ///
    /// That session proves that the postmaster has read both files and has told every process of the server: it reads the settings,
    /// signals its children and reads `pg_hba.conf`, all before it accepts the next connection.
    pub(crate) async fn apply(&self, open: Option<bool>, edit: impl FnOnce(&mut Live)) -> Result<Session, EngineError> {
        let generation = self.write(open, edit).await?;
        let began = Instant::now();
        let mut asked: Option<Instant> = None;
        loop {
            if asked.is_none_or(|at| at.elapsed() > Duration::from_millis(200)) {
                self.process.reload().await.map_err(process_failed)?;
                asked = Some(Instant::now());
            }
            let left = RELOAD.saturating_sub(began.elapsed());
            let shown = match self.session(left.max(Duration::from_millis(50))).await {
                Ok(session) => match session.generation(STATEMENT).await {
                    Ok(shown) if shown >= generation => return Ok(session),
                    Ok(shown) => format!("a new session still shows generation {shown} instead of {generation}"),
                    Err(error) => error.to_string(),
                },
                Err(error) => error.to_string(),
            };
            if began.elapsed() > RELOAD {
                return Err(not_yet(format!(
                    "the server has not read its new configuration within {RELOAD:?}: {shown}"
                )));
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// A new session in the database `postgres`.
    pub(crate) async fn session(&self, limit: Duration) -> Result<Session, SqlError> {
        Session::open(&self.socket_dir, self.options.port, "postgres", limit).await
    }

    /// The server's process.
    pub(crate) async fn server_pid(&self) -> Result<Option<u32>, EngineError> {
        Ok(self.process.status().await.map_err(process_failed)?.server_pid)
    }

    /// How the server is started.
    fn start_command(&self) -> StartCommand {
        let layout = &self.options.layout;
        let text = |path: PathBuf| path.display().to_string();
        let conf = layout.conf();
        let mut arguments = vec!["-D".to_owned(), text(layout.data())];
        for (name, file) in
            [("config_file", "postgresql.conf"), ("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf")]
        {
            arguments.extend(["-c".to_owned(), format!("{name}={}", text(conf.join(file)))]);
        }
        StartCommand {
            program: self.options.bin_dir.join("postgres"),
            arguments,
            environment: self.environment(),
            user: self.options.user,
            data_dir: layout.data(),
            log_file: layout.server_log(),
        }
    }

    /// The whole environment of the server and of the tools.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let pairs = [
            ("PATH", format!("{}:/usr/bin:/bin", self.options.bin_dir.display())),
            ("LC_ALL", "C.UTF-8".into()),
            ("TZ", "UTC".into()),
            // No user's ~/.postgresql is to be looked into.
            ("HOME", self.options.layout.conf().display().to_string()),
        ];
        pairs.map(|(name, value)| (name.to_owned(), value)).to_vec()
    }

    /// Starts the server's process and waits until it answers queries.
    pub(crate) async fn launch(&self, primary: mainstay_ports::engine::Deadline) -> Result<Session, EngineError> {
        self.clear_leftovers()?;
        self.process.start(self.start_command(), primary).await.map_err(process_failed)?;
        self.wait_for_answers().await
    }

    /// Removes what a killed server left that would keep the next one from starting, or change what it does.
    fn clear_leftovers(&self) -> Result<(), EngineError> {
        let data = self.data();
        let left = crate::proc::working_in(&data);
        if !left.is_empty() {
            return Err(not_yet(format!("processes {left:?} of the old server are left in {}", data.display())));
        }
        let socket = format!(".s.PGSQL.{}", self.options.port);
        let remove = |dir: &Path, name: &str| {
            files::remove(dir, name)
                .map_err(|error| failed(format!("could not remove {}/{name}: {error}", dir.display())))
        };
        for name in ["postmaster.pid", "promote", "recovery.signal"] {
            remove(&data, name)?;
        }
        if self.socket_dir.exists() {
            remove(&self.socket_dir, &socket)?;
            remove(&self.socket_dir, &format!("{socket}.lock"))?;
        }
        for (dir, mode) in
            [(self.options.layout.run(), 0o700), (self.socket_dir.clone(), 0o700), (self.options.layout.log(), 0o750)]
        {
            // The log directory is shared with the agent and stays whoever's it is.
            let owner = if dir == self.options.layout.log() { None } else { self.owner() };
            if dir != self.options.layout.log() || !dir.exists() {
                files::ensure_dir(&dir, mode, owner).map_err(|error| failed(format!("{}: {error}", dir.display())))?;
            }
        }
        self.neutralise_auto()
    }

    fn neutralise_auto(&self) -> Result<(), EngineError> {
        let data = self.data();
        neutralise_auto(&data, self.owner())
            .map_err(|error| failed(format!("{}/postgresql.auto.conf: {error}", data.display())))
    }

    /// Waits until the server answers queries.
    pub(crate) async fn wait_for_answers(&self) -> Result<Session, EngineError> {
        let began = Instant::now();
        loop {
            let error = match self.session(Duration::from_secs(2)).await {
                Ok(session) => match session.value("select 1", STATEMENT).await {
                    Ok(_) => return Ok(session),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            if self.server_pid().await?.is_none() {
                return Err(failed(format!("the server ended while it started; {}", self.log_tail())));
            }
            if began.elapsed() > START {
                return Err(not_yet(format!(
                    "the server has not answered within {START:?} ({error}); {}",
                    self.log_tail()
                )));
            }
            sleep(Duration::from_millis(if began.elapsed().as_millis() < 500 { 4 } else { 20 })).await;
        }
    }

    /// How long the server's log is.
    pub(crate) fn log_length(&self) -> u64 {
        std::fs::metadata(self.options.layout.server_log()).map_or(0, |is| is.len())
    }

    /// What the server has printed since its log had this length; the last part of it, if it is much.
    pub(crate) fn log_since(&self, length: u64) -> String {
        text_since(&self.options.layout.server_log(), length).0
    }

    /// The last lines of the server's log, for people.
    pub(crate) fn log_tail(&self) -> String {
        use std::io::{Read, Seek, SeekFrom};
        let path = self.options.layout.server_log();
        let mut text = Vec::new();
        if let Ok(mut file) = std::fs::File::open(&path) {
            let length = file.metadata().map_or(0, |is| is.len());
            let _ = file.seek(SeekFrom::Start(length.saturating_sub(1200)));
            let _ = file.take(1200).read_to_end(&mut text);
        }
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().rev().take(4).collect();
        let lines: Vec<&str> = lines.into_iter().rev().collect();
        format!("last lines of {}: {}", path.display(), lines.join(" | "))
    }

    /// Asks the server to stop and waits; the caller may fence it when it hangs.
    pub(crate) async fn stop(&self, limit: Duration) -> Result<(), EngineError> {
        if self.server_pid().await?.is_none() {
            return Ok(());
        }
        self.process.stop(StopMode::Fast).await.map_err(process_failed)?;
        match tokio::time::timeout(limit, self.process.exited()).await {
            Ok(done) => done.map_err(process_failed),
            Err(_) => Err(failed(format!("the server has not stopped within {limit:?}; {}", self.log_tail()))),
        }
    }

    /// Kills the server; returns when nothing of it is left.
    pub(crate) async fn fence(&self, reason: String) -> Result<(), EngineError> {
        self.process.fence(reason).await.and_then(Fenced::gone).map_err(process_failed)
    }

    /// Takes hold of the postmaster.
    pub(crate) async fn postmaster(&self) -> Result<crate::proc::Held, EngineError> {
        let pid = self.server_pid().await?.ok_or_else(|| not_yet("no server runs"))?;
        crate::proc::hold(pid, &self.data()).map_err(|error| not_yet(format!("server process {pid}: {error}")))
    }

    /// Signals one process of the server, if it still is one.
    pub(crate) fn signal(&self, pid: u32, signal: Signal) -> Result<(), EngineError> {
        let held = crate::proc::hold(pid, &self.data()).and_then(|held| held.signal(signal));
        match held {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound || error.raw_os_error() == Some(3) => Ok(()),
            other => other.map_err(|error| failed(format!("could not signal process {pid}: {error}"))),
        }
    }

    /// Where a peer's server listens.
    pub(crate) fn peer(&self, node: &NodeId) -> Result<(String, u16), EngineError> {
        let known = self.settings();
        known
            .peers
            .get(node)
            .cloned()
            .ok_or_else(|| failed(format!("no address is known of node {node}; see [[node]] in mainstay.toml")))
    }
}

/// What a file holds beyond this length, the last part of it if it is much; and its length now.
pub(crate) fn text_since(path: &Path, length: u64) -> (String, u64) {
    use std::io::{Read, Seek, SeekFrom};
    const MOST: u64 = 64 * 1024;
    let mut text = Vec::new();
    let Ok(mut file) = std::fs::File::open(path) else { return (String::new(), 0) };
    let end = file.metadata().map_or(0, |is| is.len());
    let _ = file.seek(SeekFrom::Start(length.max(end.saturating_sub(MOST)).min(end)));
    let _ = file.take(MOST).read_to_end(&mut text);
    (String::from_utf8_lossy(&text).into_owned(), end)
}

fn socket_dir(options: &PostgresOptions) -> PathBuf {
    let run = options.layout.run();
    let name = run.join(format!(".s.PGSQL.{}", options.port));
    if name.as_os_str().len() <= SOCKET_NAME {
        return run;
    }
    let bytes = options.layout.dir().as_os_str().as_encoded_bytes();
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    PathBuf::from(format!("/tmp/mainstay-{hash:016x}"))
}

fn write_files(from: config::Source<'_>, open: bool) -> std::io::Result<()> {
    let options = from.options;
    let conf = options.layout.conf();
    files::ensure_dir(&conf, 0o700, options.user)?;
    // These two need not survive a crash of the host: they are compared, and written anew, before each start. Each saved wait for the
    // disk shortens a promotion.
    let texts =
        [("pg_hba.conf", config::pg_hba_conf(from.settings, open)), ("pg_ident.conf", config::pg_ident_conf(options))];
    for (name, text) in texts {
        if std::fs::read_to_string(conf.join(name)).ok().as_deref() != Some(&text) {
            files::write_quickly(&conf, name, text.as_bytes(), 0o600, options.user)?;
        }
    }
    let data = options.layout.data();
    if data.join("PG_VERSION").exists() {
        neutralise_auto(&data, options.user)?;
    }
    // Last: who sees its generation must see the others too.
    let text = config::postgresql_conf(from);
    files::write_atomic(&conf, "postgresql.conf", text.as_bytes(), 0o600, options.user)
}

/// How much of the log slots may keep: half of what is free, in coarse steps so that the file does not change all the time.
fn keep_mb(dir: &Path) -> u64 {
    let free = rustix::fs::statvfs(dir).map_or(0, |is| is.f_bavail.saturating_mul(is.f_frsize));
    let half = (free / 2 / (1024 * 1024)).clamp(KEEP_MB.0, KEEP_MB.1);
    1 << half.ilog2()
}

/// Falls at once, and rises only when much more has become free: each change is a reload.
fn settled(written: u64, wanted: u64) -> u64 {
    if written == 0 || wanted < written || wanted >= written.saturating_mul(4) { wanted } else { written }
}

pub(crate) fn neutralise_auto(data: &Path, owner: Owner) -> std::io::Result<()> {
    let auto = match std::fs::read_to_string(data.join("postgresql.auto.conf")) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    match config::without_owned(&auto) {
        Some(rest) => files::write_atomic(data, "postgresql.auto.conf", rest.as_bytes(), 0o600, owner),
        None => Ok(()),
    }
}

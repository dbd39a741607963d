//! The server as one thing: its options, its configuration in force, its process. Here: writing the configuration, reloading it with
//! proof, starting, and waiting for answers. The orders themselves are in modules of their own.

use crate::config::{self, Live};
use crate::files::{self, Owner};
use crate::options::{self, OptionsError, PostgresOptions};
use crate::probe::Watch;
use crate::sql::{Session, SqlError};
use mainstay_model::NodeId;
use mainstay_ports::engine::EngineError;
use mainstay_ports::process::{ProcessError, ServerProcess, StartCommand, StopMode};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
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
/// Keeps no more of the log for slots than this, nor more than half of what is free.
const KEEP_MB: (u64, u64) = (256, 64 * 1024);

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
    pub(crate) watch: Watch,
    /// The server process at which a commit was seen waiting for replicas; 0: none.
    proven: std::sync::atomic::AtomicU32,
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
        Ok(Self { options, process, socket_dir, live, watch, proven: std::sync::atomic::AtomicU32::new(0) })
    }

    /// Where the server's Unix socket lies. Not always in the layout: a long path does not fit a socket's name.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// The server process at which a commit was seen waiting for replicas.
    pub(crate) fn proven(&self) -> Option<u32> {
        Some(self.proven.load(std::sync::atomic::Ordering::SeqCst)).filter(|pid| *pid != 0)
    }

    pub(crate) fn set_proven(&self, pid: Option<u32>) {
        self.proven.store(pid.unwrap_or(0), std::sync::atomic::Ordering::SeqCst);
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
        let options = self.options.clone();
        let socket_dir = self.socket_dir.clone();
        let written = next.clone();
        let done = tokio::task::spawn_blocking(move || write_files(&options, &written, &socket_dir)).await;
        // What the files hold after an error is unknown; the next write replaces them all.
        *state = next;
        match done {
            Ok(Ok(())) => Ok(generation),
            Ok(Err(error)) => Err(failed(format!(
                "could not write the server's configuration in {}: {error}",
                self.options.layout.conf().display()
            ))),
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
    pub(crate) fn peer(&self, node: &NodeId) -> Result<&(String, u16), EngineError> {
        let known: &BTreeMap<NodeId, (String, u16)> = &self.options.peers;
        known
            .get(node)
            .ok_or_else(|| failed(format!("no address is known of node {node}; see [[node]] in mainstay.toml")))
    }
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

fn write_files(options: &PostgresOptions, state: &State, socket_dir: &Path) -> std::io::Result<()> {
    let conf = options.layout.conf();
    files::ensure_dir(&conf, 0o700, options.user)?;
    // These two need not survive a crash of the host: they are compared, and written anew, before each start. Each saved wait for the
    // disk shortens a promotion.
    let texts =
        [("pg_hba.conf", config::pg_hba_conf(options, state.open)), ("pg_ident.conf", config::pg_ident_conf(options))];
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
    let text = config::postgresql_conf(options, &state.live, socket_dir, keep_mb(options));
    files::write_atomic(&conf, "postgresql.conf", text.as_bytes(), 0o600, options.user)
}

/// How much of the log slots may keep: half of what is free, in coarse steps so that the file does not change all the time.
fn keep_mb(options: &PostgresOptions) -> u64 {
    let free = rustix::fs::statvfs(options.layout.dir()).map_or(0, |is| is.f_bavail.saturating_mul(is.f_frsize));
    let half = (free / 2 / (1024 * 1024)).clamp(KEEP_MB.0, KEEP_MB.1);
    1 << half.ilog2()
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

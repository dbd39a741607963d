//! Real servers for the tests: directories, certificates, and the plainest process keeper that starts and ends `postgres` by itself.

use async_trait::async_trait;
use mainstay_engine_postgres::{Postgres, PostgresOptions, find_bin_dir};
use mainstay_model::layout::NodeLayout;
use mainstay_model::{ClusterName, CopyId, LogEnd, Moment, NodeId, ServerState, SyncSetting, Term, Timeline};
use mainstay_ports::engine::{Engine, EngineError, EngineSettings};
use mainstay_ports::process::{Fenced, GuardStatus, ProcessError, ServerProcess, StartCommand, StopMode};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub(crate) const PASSWORD: &str = "not a secret here";

/// Starts and ends a server by itself.
pub(crate) struct LocalProcess {
    data: PathBuf,
    pid: Arc<Mutex<Option<u32>>>,
    gone: tokio::sync::watch::Sender<u64>,
}

fn os(error: impl std::fmt::Display) -> ProcessError {
    ProcessError::Os(error.to_string())
}

pub(crate) fn kill(pid: u32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid as i32).unwrap(), signal);
}

pub(crate) fn working_in(data: &Path) -> Vec<u32> {
    let Ok(data) = data.canonicalize() else { return Vec::new() };
    let all =
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    all.filter(|pid: &u32| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data)).collect()
}

impl LocalProcess {
    fn new(data: PathBuf) -> Self {
        Self { data, pid: Arc::default(), gone: tokio::sync::watch::channel(0).0 }
    }
    pub(crate) fn pid(&self) -> Option<u32> {
        *self.pid.lock().unwrap()
    }
    /// SIGKILL to everything, at once.
    pub(crate) fn kill_all(&self) {
        if let Some(pid) = self.pid() {
            kill(pid, Signal::KILL);
        }
        for _ in 0..2000 {
            let left = working_in(&self.data);
            left.iter().for_each(|pid| kill(*pid, Signal::KILL));
            if left.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[async_trait]
impl ServerProcess for LocalProcess {
    async fn start(&self, command: StartCommand, _: Option<(Term, Moment)>) -> Result<u32, ProcessError> {
        if self.pid().is_some() {
            return Err(ProcessError::Refused("a server runs".into()));
        }
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&command.log_file).map_err(os)?;
        let mut run = tokio::process::Command::new(&command.program);
        run.args(&command.arguments).env_clear().envs(command.environment).current_dir(&command.data_dir);
        run.stdin(Stdio::null()).stdout(log.try_clone().map_err(os)?).stderr(log);
        if let Some((uid, gid)) = command.user {
            run.uid(uid).gid(gid);
        }
        let mut child = run.spawn().map_err(os)?;
        let pid = child.id().ok_or_else(|| os("gone"))?;
        *self.pid.lock().unwrap() = Some(pid);
        let (slot, gone) = (self.pid.clone(), self.gone.clone());
        tokio::spawn(async move {
            let _ = child.wait().await;
            *slot.lock().unwrap() = None;
            gone.send_modify(|n| *n += 1);
        });
        Ok(pid)
    }
    async fn extend(&self, _: Term, _: Moment) -> Result<(), ProcessError> {
        Ok(())
    }
    async fn stop(&self, mode: StopMode) -> Result<(), ProcessError> {
        let pid = self.pid().ok_or_else(|| ProcessError::Refused("no server".into()))?;
        kill(pid, if mode == StopMode::Fast { Signal::INT } else { Signal::QUIT });
        Ok(())
    }
    async fn reload(&self) -> Result<(), ProcessError> {
        let pid = self.pid().ok_or_else(|| ProcessError::Refused("no server".into()))?;
        kill(pid, Signal::HUP);
        Ok(())
    }
    async fn fence(&self, _: String) -> Result<Fenced, ProcessError> {
        self.kill_all();
        self.exited().await.map(|()| Fenced::Gone)
    }
    async fn status(&self) -> Result<GuardStatus, ProcessError> {
        Ok(GuardStatus { server_pid: self.pid(), ..GuardStatus::default() })
    }
    async fn exited(&self) -> Result<(), ProcessError> {
        let mut gone = self.gone.subscribe();
        while self.pid().is_some() {
            gone.changed().await.map_err(os)?;
        }
        Ok(())
    }
}

pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) host: String,
    pub(crate) pg: Arc<Postgres>,
    pub(crate) process: Arc<LocalProcess>,
    pub(crate) options: PostgresOptions,
    pub(crate) copy: Mutex<CopyId>,
}

/// Nodes whose servers end with it.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    _dir: tempfile::TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.nodes.iter().for_each(|node| node.process.kill_all());
    }
}

/// As whom servers run: `postgres` if the tests run as root.
fn server_user() -> (Option<(u32, u32)>, String) {
    let uid = rustix::process::geteuid().as_raw();
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let fields = |wanted: &dyn Fn(&[&str]) -> bool| {
        users
            .lines()
            .map(|l| l.split(':').map(str::to_owned).collect::<Vec<_>>())
            .find(|f| wanted(&f.iter().map(String::as_str).collect::<Vec<_>>()))
    };
    let me = fields(&|f| f[2] == uid.to_string()).unwrap()[0].clone();
    if uid != 0 {
        return (None, me);
    }
    let postgres = fields(&|f| f[0] == "postgres").unwrap();
    (Some((postgres[2].parse().unwrap(), postgres[3].parse().unwrap())), me)
}

fn free_copy() -> CopyId {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    CopyId::new(0xc0de_0000 + u64::from(NEXT.fetch_add(1, Ordering::Relaxed))).unwrap()
}

/// Where clusters lie: in memory if there is plenty, since making and cloning them is mostly waiting for a disk. Set
/// `MAINSTAY_TEST_DIR` to measure on a disk.
pub(crate) fn place() -> PathBuf {
    if let Some(place) = std::env::var_os("MAINSTAY_TEST_DIR") {
        return place.into();
    }
    let memory = Path::new("/dev/shm");
    let free = rustix::fs::statvfs(memory).map_or(0, |is| is.f_bavail * is.f_frsize);
    if free > 4 << 30 { memory.to_owned() } else { std::env::temp_dir() }
}

struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: rcgen::Issuer::new(params, key), pem }
    }
    fn issue(&self, name: &str, cert: &Path, key_file: &Path) {
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(cert, params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        std::fs::write(key_file, key.serialize_pem()).unwrap();
        std::fs::set_permissions(key_file, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
}

impl Cluster {
    /// Nodes `n1`, `n2`, … without data.
    pub(crate) fn new(count: u8) -> Cluster {
        Self::with(count, |_| {})
    }

    pub(crate) fn with(count: u8, edit: impl Fn(&mut PostgresOptions)) -> Cluster {
        Self::below("", count, edit)
    }

    /// With the nodes' directories in another one.
    pub(crate) fn below(deeper: &str, count: u8, edit: impl Fn(&mut PostgresOptions)) -> Cluster {
        Self::placed(deeper, count, &|_| None, edit)
    }

    /// With some nodes' directories in places of their own.
    pub(crate) fn placed(
        deeper: &str,
        count: u8,
        home: &dyn Fn(&NodeId) -> Option<PathBuf>,
        edit: impl Fn(&mut PostgresOptions),
    ) -> Cluster {
        static CLUSTERS: AtomicU32 = AtomicU32::new(0);
        let number = CLUSTERS.fetch_add(1, Ordering::Relaxed);
        let id = std::process::id();
        let host =
            |n: u8| format!("127.{}.{}.{}", 64 + (id >> 8) % 128, id % 256, (number * 6 + u32::from(n)) % 250 + 1);
        let dir = tempfile::Builder::new().prefix("mpg").tempdir_in(place()).unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let (user, os_user) = server_user();
        let authority = Authority::new();
        let names: Vec<NodeId> = (1..=count).map(|n| NodeId::new(format!("n{n}")).unwrap()).collect();
        let all: BTreeMap<NodeId, (String, u16)> =
            names.iter().zip(1..).map(|(name, n)| (name.clone(), (host(n), 5432))).collect();
        let nodes = names.into_iter().map(|node| {
            let usual = || dir.path().join(deeper).join(node.as_str());
            let layout = NodeLayout::new(home(&node).unwrap_or_else(usual));
            std::fs::create_dir_all(layout.dir()).unwrap();
            std::fs::create_dir(layout.log()).unwrap();
            std::fs::create_dir(layout.conf()).unwrap();
            authority.issue(&all[&node].0, &layout.server_cert(), &layout.server_key());
            authority.issue("mainstay_replicator", &layout.replication_cert(), &layout.replication_key());
            std::fs::write(layout.server_ca(), &authority.pem).unwrap();
            if let Some((uid, gid)) = user {
                for file in std::fs::read_dir(layout.conf()).unwrap().flatten() {
                    chown(file.path(), Some(uid), Some(gid)).unwrap();
                }
                chown(layout.conf(), Some(uid), Some(gid)).unwrap();
            }
            let mut peers: BTreeMap<NodeId, (String, u16)> = all.clone();
            peers.remove(&node);
            let mut options = PostgresOptions {
                node: node.clone(),
                cluster: ClusterName::new("orders").unwrap(),
                layout: layout.clone(),
                bin_dir: find_bin_dir(None).unwrap(),
                listen: all[&node].0.clone(),
                port: all[&node].1,
                peers,
                user,
                os_user: os_user.clone(),
                // Tests count commits and look where logs end: nobody writes but they.
                parameters: [("shared_buffers", "16MB"), ("autovacuum", "off")]
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .into(),
                archived: false,
                archive_command: None,
                hba: Vec::new(),
                adopt: None,
                app_verifier: postgres_protocol::password::scram_sha_256(PASSWORD.as_bytes()),
            };
            edit(&mut options);
            let process = Arc::new(LocalProcess::new(layout.data()));
            let pg = Arc::new(Postgres::new(options.clone(), process.clone()).unwrap());
            Node { id: node.clone(), host: all[&node].0.clone(), pg, process, options, copy: Mutex::new(free_copy()) }
        });
        Cluster { nodes: nodes.collect(), _dir: dir }
    }

    /// The first node is an open primary without synchronous replicas, the others stream from it.
    pub(crate) async fn running(count: u8) -> Cluster {
        Self::run(Cluster::new(count)).await
    }

    pub(crate) async fn run(cluster: Cluster) -> Cluster {
        let first = &cluster.nodes[0];
        first.pg.bootstrap(first.copy(), &SyncSetting::default(), None).await.unwrap();
        first.pg.open().await.unwrap();
        for node in &cluster.nodes[1..] {
            node.clone_from(first).await;
        }
        cluster
    }
}

impl Node {
    /// What its options say.
    pub(crate) fn settings(&self) -> EngineSettings {
        let PostgresOptions { peers, parameters, hba, .. } = self.options.clone();
        EngineSettings { peers, parameters, hba, archived: false, archive_command: None }
    }

    /// The same with other parameters.
    pub(crate) fn settings_with(&self, parameters: &[(&str, &str)]) -> EngineSettings {
        let mut settings = self.settings();
        settings.parameters.extend(parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        settings
    }

    /// Stops and starts a standby in order.
    pub(crate) async fn restart_standby(&self, upstream: &Node) {
        self.pg.stop_standby().await.unwrap();
        self.pg.start_standby(self.copy(), Some(&upstream.id)).await.unwrap();
        self.until_receiving().await;
    }

    /// Stops and starts a primary in order.
    pub(crate) async fn restart_primary(&self) {
        self.pg.stop_clean(&Default::default()).await.unwrap();
        until("stopped", || is(self, ServerState::Down)).await;
        self.pg.restart_in_place(None).await.unwrap();
        self.pg.open().await.unwrap();
    }

    /// Has replayed everything that the other has.
    pub(crate) async fn until_replayed(&self, source: &Node) {
        source.write(1).await;
        let flushed = source.flushed().await;
        until("replayed", || async { self.pg.probe().await.replay >= Some(flushed) }).await;
    }

    /// Ends its server as a power cut would.
    pub(crate) async fn kill(&self) {
        self.process.kill_all();
        until("gone", || is(self, ServerState::Down)).await;
    }

    /// The engine as a restarted agent makes it.
    pub(crate) fn forget(&mut self) {
        self.pg = Arc::new(Postgres::new(self.options.clone(), self.process.clone()).unwrap());
    }

    /// This node's tools from now on, with one of them replaced by a script of the shell, which is given the real one.
    pub(crate) fn replace_program(&mut self, name: &str, script: impl Fn(&Path) -> String) -> tempfile::TempDir {
        let programs = tempfile::tempdir().unwrap();
        std::fs::set_permissions(programs.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        for program in std::fs::read_dir(&self.options.bin_dir).unwrap().flatten() {
            let place = programs.path().join(program.file_name());
            if program.file_name() == name {
                std::fs::write(&place, format!("#!/bin/sh\n{}\n", script(&program.path()))).unwrap();
                std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o755)).unwrap();
            } else {
                std::os::unix::fs::symlink(program.path(), place).unwrap();
            }
        }
        self.options.bin_dir = programs.path().to_owned();
        self.forget();
        programs
    }

    pub(crate) fn copy(&self) -> CopyId {
        *self.copy.lock().unwrap()
    }

    pub(crate) async fn clone_from(&self, source: &Node) {
        let copy = free_copy();
        *self.copy.lock().unwrap() = copy;
        (*self.pg).clone_from(&source.id, copy).await.unwrap();
        self.pg.start_standby(copy, Some(&source.id)).await.unwrap();
        self.until_receiving().await;
    }

    pub(crate) async fn until_receiving(&self) {
        until("the standby receives", || async { self.pg.probe().await.receiving }).await;
    }

    /// The application's session.
    pub(crate) async fn app(&self) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        self.connect("app", "app", Some(PASSWORD)).await
    }

    /// The superuser's session, as somebody other than the agent.
    pub(crate) async fn admin(&self) -> tokio_postgres::Client {
        self.try_admin().await.unwrap()
    }

    pub(crate) async fn try_admin(&self) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(self.pg.socket_dir()).port(self.options.port).user("postgres").dbname("app");
        let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    async fn connect(
        &self,
        user: &str,
        database: &str,
        password: Option<&str>,
    ) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config
            .host(&self.host)
            .port(self.options.port)
            .user(user)
            .dbname(database)
            .connect_timeout(Duration::from_secs(5));
        if let Some(password) = password {
            config.password(password);
        }
        let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    pub(crate) async fn sql(&self, text: &str) -> String {
        let client = self.admin().await;
        value(&client, text).await
    }

    pub(crate) async fn write(&self, rows: u32) {
        let client = self.admin().await;
        let sql = format!(
            "create table if not exists ledger (id serial primary key, note text); \
            insert into ledger (note) select repeat('x', 100) from generate_series(1, {rows})"
        );
        client.batch_execute(&sql).await.unwrap();
    }

    /// Recruits, asking again while it can not be answered yet, as whoever gives the order does; says how long it took.
    pub(crate) async fn recruit(&self) -> (LogEnd, Duration) {
        let began = Instant::now();
        loop {
            match self.pg.recruit().await {
                Ok(end) => return (end, began.elapsed()),
                Err(EngineError::NotYet(why)) if began.elapsed() < PATIENT / 2 => {
                    println!("{}: not yet: {why}", self.id)
                }
                Err(error) => panic!("{}: {error}", self.id),
            }
        }
    }

    /// A server process of its own, stopped.
    pub(crate) async fn stop_process(&self, pid: u32) {
        kill(pid, Signal::STOP);
        until("it is stopped", || async {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // A session that was about to end anyway may be gone.
            stat.rsplit_once(')').is_none_or(|(_, rest)| rest.starts_with(" T") || rest.starts_with(" Z"))
        })
        .await;
    }

    /// The walsenders of its replicas, once there are so many; one that served a clone may end a moment later.
    pub(crate) async fn walsenders(&self, count: usize) -> Vec<u32> {
        until("as many walsenders as replicas", || async { self.processes("walsender").len() == count }).await;
        self.processes("walsender")
    }

    /// Promotes to this timeline from where the log ends.
    pub(crate) async fn promote(&self, setting: &SyncSetting, end: &LogEnd, timeline: u32) -> Duration {
        let began = Instant::now();
        let there = self.pg.promote(setting, Timeline(timeline), end.position).await.unwrap();
        assert_eq!(there.timeline, Timeline(timeline));
        assert!(there.lsn > end.position.lsn);
        began.elapsed()
    }

    pub(crate) async fn flushed(&self) -> mainstay_model::Lsn {
        self.sql("select pg_current_wal_flush_lsn()").await.parse().unwrap()
    }

    /// Ids of server processes whose title contains `text`.
    pub(crate) fn processes(&self, text: &str) -> Vec<u32> {
        let title = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        working_in(&self.options.layout.data()).into_iter().filter(|pid| title(pid).contains(text)).collect()
    }
}

pub(crate) async fn value(client: &tokio_postgres::Client, text: &str) -> String {
    let rows = client.simple_query(text).await.unwrap();
    let found = rows.iter().rev().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    found.unwrap_or_default()
}

pub(crate) fn setting(need: u32, nodes: &[&Node]) -> SyncSetting {
    SyncSetting { need, copies: nodes.iter().map(|node| (node.id.clone(), node.copy())).collect() }
}

/// Whatever is waited for comes within this, on a busy machine too.
const PATIENT: Duration = Duration::from_secs(60);

/// Waits until it holds.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < PATIENT, "not within {PATIENT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Recruits replicas of a running primary that all end at the same place. A primary writes something of its own at any time, and a replica
/// that had more than the next primary could not follow it: nobody would elect that one.
pub(crate) async fn recruit_alike(primary: &Node, replicas: &[&Node]) -> LogEnd {
    for _ in 0..20 {
        let mut ends = Vec::new();
        for node in replicas {
            ends.push(node.recruit().await.0);
        }
        if ends.windows(2).all(|pair| pair[0] == pair[1]) {
            return ends.remove(0);
        }
        println!("not alike: {ends:?}");
        for node in replicas {
            node.pg.follow(node.copy(), &primary.id).await.unwrap();
            node.until_receiving().await;
        }
        let flushed = primary.flushed().await;
        for node in replicas {
            until("received", || async { node.pg.probe().await.end >= Some(flushed) }).await;
        }
    }
    panic!("something was always written between two recruits");
}

pub(crate) async fn is(node: &Node, state: ServerState) -> bool {
    node.pg.probe().await.state == state
}

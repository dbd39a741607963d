//! Real servers, an archiver beside them, and an oracle that knows what was committed when.

use mainstay_model::{Lineage, Lsn, Position, SystemId, Term, Timeline};
use mainstay_vault::keys::SecretKey;
use mainstay_vault::objects::Memory;
use mainstay_vault::postgres::archive::{Archive, Sweep};
use mainstay_vault::postgres::backup::{Options, Watch, full};
use mainstay_vault::postgres::log::SegmentSize;
use mainstay_vault::postgres::manifest::Manifest;
use mainstay_vault::postgres::restore::{Destination, Plan, restore};
use mainstay_vault::postgres::scratch::Scratch;
use mainstay_vault::repository::{Repository, VaultError};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, Config, NoTls};

pub(crate) const SIZE: SegmentSize = SegmentSize(1 << 20);
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn bin() -> PathBuf {
    let newest =
        std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
    newest.filter(|dir| dir.join("postgres").exists()).max().expect("PostgreSQL is installed")
}

/// As whom servers run: `postgres` if the tests run as root.
pub(crate) fn user() -> Option<(u32, u32)> {
    if rustix::process::geteuid().as_raw() != 0 {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.starts_with("postgres:")).unwrap();
    let fields: Vec<&str> = line.split(':').collect();
    Some((fields[2].parse().unwrap(), fields[3].parse().unwrap()))
}

pub(crate) fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

fn as_user(program: &str) -> Command {
    let mut command = Command::new(bin().join(program));
    if let Some((uid, gid)) = user() {
        use std::os::unix::process::CommandExt;
        command.uid(uid).gid(gid);
    }
    command.env_clear().env("LC_ALL", "C").current_dir("/").stdin(Stdio::null());
    command
}

/// A directory of the servers' user.
pub(crate) fn own_dir(path: &Path) {
    std::fs::create_dir_all(path).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).unwrap();
    if let Some((uid, gid)) = user() {
        chown(path, Some(uid), Some(gid)).unwrap();
    }
}

/// A server that ends with it.
pub(crate) struct Server {
    pub(crate) data: PathBuf,
    pub(crate) run: PathBuf,
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Server {
    /// A new database; its log in segments of one megabyte.
    pub(crate) async fn new(dir: &Path, name: &str) -> Server {
        let data = dir.join(name);
        own_dir(&data);
        let made = as_user("initdb")
            .args(["-k", "-N", "--wal-segsize=1", "-U", "postgres", "--auth=trust", "-D"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Server::start(data).await
    }

    /// A replica of this one.
    pub(crate) async fn replica(&self, dir: &Path, name: &str) -> Server {
        let data = dir.join(name);
        own_dir(&data);
        let made = as_user("pg_basebackup")
            .args(["-c", "fast", "-N", "-R", "-U", "postgres", "-h"])
            .arg(&self.run)
            .arg("-D")
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Server::start(data).await
    }

    async fn start(data: PathBuf) -> Server {
        let run = data.with_extension("run");
        own_dir(&run);
        let log = std::fs::File::create(data.with_extension("log")).unwrap();
        let mut command = as_user("postgres");
        command.arg("-D").arg(&data).args(["-h", "", "-k"]).arg(&run);
        for setting in [
            "fsync=off",
            "archive_mode=on",
            "archive_command=/bin/true",
            "wal_keep_size=2GB",
            "shared_buffers=16MB",
            "autovacuum=off",
            "wal_log_hints=on",
        ] {
            command.args(["-c", setting]);
        }
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let server = Server { data, run, child };
        let begun = Instant::now();
        while server.try_connect().await.is_none() {
            assert!(
                begun.elapsed() < PATIENCE,
                "{}",
                std::fs::read_to_string(server.data.with_extension("log")).unwrap()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        server
    }

    /// Ends it in order and starts it anew.
    pub(crate) async fn again(mut self) -> Server {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        self.child.wait().unwrap();
        Server::start(self.data.clone()).await
    }

    pub(crate) fn kill(&mut self) {
        // The postmaster's death ends its children.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub(crate) fn config(&self) -> Config {
        let mut config = Config::new();
        config.host_path(&self.run).user("postgres").dbname("postgres");
        config
    }

    async fn try_connect(&self) -> Option<Client> {
        let (client, connection) = self.config().connect(NoTls).await.ok()?;
        tokio::spawn(connection);
        client.simple_query("SELECT 1").await.ok().map(|_| client)
    }

    pub(crate) async fn connect(&self) -> Client {
        self.try_connect().await.expect("the server answers")
    }

    /// Promotes it and waits until it is open.
    pub(crate) async fn promote(&self) {
        let client = self.connect().await;
        client.batch_execute("SELECT pg_promote(true, 120)").await.unwrap();
    }

    pub(crate) async fn system(&self) -> SystemId {
        SystemId(one(&self.connect().await, "SELECT system_identifier FROM pg_control_system()").await.parse().unwrap())
    }
}

pub(crate) async fn one(client: &Client, statement: &str) -> String {
    let rows = client.simple_query(statement).await.unwrap();
    let found = rows.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    found.unwrap_or_default()
}

pub(crate) fn sealed() -> (Memory, Repository) {
    let (memory, secret) = (Memory::default(), SecretKey::generate().unwrap());
    Repository::create(Arc::new(memory.clone()), &[secret.public()]).unwrap();
    let repository = Repository::open(Arc::new(memory.clone()), Some(secret)).unwrap();
    (memory, repository)
}

/// One sweep of a primary's log.
pub(crate) async fn sweep(archive: &mut Archive, server: &Server) -> Result<Sweep, VaultError> {
    let client = server.connect().await;
    let lsn: Lsn = one(&client, "SELECT pg_current_wal_flush_lsn()").await.parse().unwrap();
    let name = one(&client, "SELECT pg_walfile_name(pg_current_wal_flush_lsn())").await;
    let timeline = Timeline(u32::from_str_radix(&name[..8], 16).unwrap());
    let wal = server.data.join("pg_wal");
    let history = std::fs::read_to_string(wal.join(format!("{:08X}.history", timeline.0))).unwrap_or_default();
    let forks = history.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        Some(Position { timeline: Timeline(words.next()?.parse().ok()?), lsn: words.next()?.parse().ok()? })
    });
    archive.sweep(&wal, Position { timeline, lsn }, &Lineage(forks.collect()))
}

pub(crate) async fn claim(repository: &Repository, server: &Server, term: u64) -> Archive {
    Archive::claim(repository.clone(), server.system().await, SIZE, Term(term), "n1").unwrap()
}

/// Makes a backup while the primary's owner archives.
pub(crate) async fn backup(
    repository: &Repository,
    of: &Server,
    primary: &Server,
    archive: &mut Archive,
) -> Result<Manifest, VaultError> {
    backup_watched(repository, of, primary, archive, &Arc::default()).await
}

pub(crate) async fn backup_watched(
    repository: &Repository,
    of: &Server,
    primary: &Server,
    archive: &mut Archive,
    watch: &Arc<Watch>,
) -> Result<Manifest, VaultError> {
    let options = options(of, primary);
    while_archiving(archive, primary, full(repository, &options, watch)).await
}

/// How a backup of this server is made.
pub(crate) fn options(of: &Server, primary: &Server) -> Options {
    Options {
        server: of.config(),
        primary: (of.data != primary.data).then(|| primary.config()),
        data: of.data.clone(),
        by: "n1".into(),
        threads: 2,
        patience: Duration::from_secs(60),
    }
}

/// Does something while the primary's owner archives.
pub(crate) async fn while_archiving<T>(archive: &mut Archive, primary: &Server, work: impl Future<Output = T>) -> T {
    let done = AtomicBool::new(false);
    let archiving = async {
        while !done.load(Ordering::Relaxed) {
            // A repository out of reach is tried again.
            let _ = sweep(archive, primary).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let working = async {
        let result = work.await;
        done.store(true, Ordering::Relaxed);
        result
    };
    tokio::join!(archiving, working).1
}

/// What was committed when: after tick `n` was committed, and before the next, it was `micros` and the log stood at `lsn`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tick {
    pub(crate) n: i64,
    pub(crate) micros: i64,
    pub(crate) lsn: Lsn,
    pub(crate) xid: u32,
}

/// A table of ticks, and the oracle's own list.
pub(crate) struct Oracle {
    client: Client,
    pub(crate) ticks: Vec<Tick>,
}

impl Oracle {
    pub(crate) async fn new(server: &Server) -> Oracle {
        let client = server.connect().await;
        client.batch_execute("CREATE TABLE IF NOT EXISTS ticks (n bigint PRIMARY KEY, filler text)").await.unwrap();
        Oracle { client, ticks: Vec::new() }
    }
    pub(crate) async fn again(server: &Server, ticks: Vec<Tick>) -> Oracle {
        Oracle { client: server.connect().await, ticks }
    }
    /// Commits so many ticks.
    pub(crate) async fn write(&mut self, count: u32) {
        for _ in 0..count {
            let n = self.ticks.last().map_or(0, |tick| tick.n) + 1;
            let insert = format!("INSERT INTO ticks VALUES ({n}, repeat(md5('{n}'), 60)) RETURNING xmin");
            let xid = one(&self.client, &insert).await.parse().unwrap();
            let micros = one(&self.client, "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
                .await
                .parse()
                .unwrap();
            let lsn = one(&self.client, "SELECT pg_current_wal_insert_lsn()").await.parse().unwrap();
            self.ticks.push(Tick { n, micros, lsn, xid });
        }
    }
    /// Waits until a replica shows every tick.
    pub(crate) async fn replayed_by(&self, replica: &Server) {
        let client = replica.connect().await;
        let until = format!("SELECT pg_last_wal_replay_lsn() >= '{}'", self.ticks.last().unwrap().lsn);
        let begun = Instant::now();
        while one(&client, &until).await != "t" {
            assert!(begun.elapsed() < PATIENCE, "{} does not follow", replica.data.display());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    pub(crate) async fn switch(&self) {
        self.client.batch_execute("SELECT pg_switch_wal()").await.unwrap();
    }
    pub(crate) async fn run(&self, statement: &str) {
        self.client.batch_execute(statement).await.unwrap();
    }
}

/// A backup that stands still after its first part, until it is let go.
pub(crate) fn held_back() -> Arc<Watch> {
    let watch = Watch::default();
    watch.rate.store(1, Ordering::Relaxed);
    Arc::new(watch)
}

/// Waits until something was copied.
pub(crate) async fn under_way(watch: &Watch) {
    let begun = Instant::now();
    while watch.done.load(Ordering::Relaxed) == 0 {
        assert!(begun.elapsed() < PATIENCE, "the backup does not begin");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Restores, starts, and says which ticks are there.
pub(crate) async fn ticks_at(repository: &Repository, plan: &Plan, data: &Path, delta: bool) -> Vec<i64> {
    let to = Destination { data: data.to_owned(), owner: user(), delta, threads: 2, ..Destination::default() };
    restore(repository, plan, &to).unwrap();
    let scratch = Scratch::start(&bin(), plan, data, user(), PATIENCE).await.unwrap();
    let (client, connection) = scratch.connect().connect(tokio_postgres::NoTls).await.unwrap();
    let driver = tokio::spawn(connection);
    let whole = one(&client, "SELECT bool_and(filler = repeat(md5(n::text), 60)) FROM ticks").await;
    let text = one(&client, "SELECT string_agg(n::text, ',' ORDER BY n) FROM ticks").await;
    assert_ne!(whole, "f");
    assert_eq!(one(&client, "SHOW archive_mode").await, "off", "a copy writes into no archive");
    drop(client);
    let _ = driver.await;
    scratch.stop().await.unwrap();
    text.split(',').filter(|n| !n.is_empty()).map(|n| n.parse().unwrap()).collect()
}

/// Two backups of a server with rows after each, and the segment that holds the last of them ended; their labels, oldest first.
pub(crate) async fn two_backups(
    repository: &Repository,
    server: &Server,
    archive: &mut Archive,
    oracle: &mut Oracle,
) -> Vec<String> {
    let mut labels = Vec::new();
    for _ in 0..2 {
        labels.push(backup(repository, server, server, archive).await.unwrap().label);
        oracle.write(20).await;
    }
    oracle.switch().await;
    labels
}

/// A moment that lies so far apart from what was written before it and what is written after it.
pub(crate) fn moment(apart: Duration) -> String {
    std::thread::sleep(apart);
    let now = mainstay_ports::clock::wall_now_ms().try_into().unwrap();
    let text = jiff::Timestamp::from_millisecond(now).unwrap().to_string();
    std::thread::sleep(apart);
    text
}

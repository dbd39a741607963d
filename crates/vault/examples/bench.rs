//! One step in the life of a backup, for `cargo xtask bench vault`: what it costs is measured from outside.
//!
//! ```text
//! bench init REPOSITORY KEY                        a sealed repository, and its key
//! bench backup REPOSITORY KEY SOCKET DATA [BASE]   a backup, on top of BASE if it is named; says its label
//! bench restore REPOSITORY KEY TO [delta]          the newest backup's files
//! bench archive REPOSITORY KEY WAL END SYSTEM      all whole segments of a directory
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used)]

use mainstay_model::{Lineage, Lsn, Position, SystemId, Term, Timeline};
use mainstay_vault::keys::SecretKey;
use mainstay_vault::objects::Folder;
use mainstay_vault::postgres::archive::Archive;
use mainstay_vault::postgres::backup::{Options, Watch, full, incremental, readable, system};
use mainstay_vault::postgres::log::SegmentSize;
use mainstay_vault::postgres::restore::{Destination, Target, plan, restore};
use mainstay_vault::repository::Repository;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

const SIZE: SegmentSize = SegmentSize(16 << 20);
const THREADS: usize = 2;

async fn one(client: &Client, statement: &str) -> String {
    let rows = client.simple_query(statement).await.expect("the server answers");
    let value = rows.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    value.expect("an answer")
}

fn init(repository: &str, key: &str) {
    let secret = SecretKey::generate().unwrap();
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(key).unwrap();
    file.write_all(secret.to_text().as_bytes()).unwrap();
    Repository::create(Arc::new(Folder::open(repository).unwrap()), &[secret.public()]).unwrap();
}

async fn backup(repository: Repository, socket: &str, data: &str, base: Option<&str>) {
    let mut config = Config::new();
    config.host_path(socket).user("postgres").dbname("postgres");
    let system = system(&config).await.unwrap();
    let (client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    let mut archive = Archive::claim(repository.clone(), system, SIZE, Term(1), "bench").unwrap();
    let from: Lsn = one(&client, "SELECT pg_current_wal_insert_lsn()").await.parse().unwrap();
    let done = AtomicBool::new(false);
    let archiving = async {
        while !done.load(Ordering::Relaxed) {
            let lsn: Lsn = one(&client, "SELECT pg_current_wal_flush_lsn()").await.parse().unwrap();
            // What lies before was archived before, in another step.
            if SIZE.holding(lsn) > SIZE.holding(from) {
                let end = Position { timeline: Timeline(1), lsn };
                archive.sweep(&Path::new(data).join("pg_wal"), end, &Lineage::default()).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let options = Options {
        server: config.clone(),
        primary: None,
        data: data.into(),
        by: "bench".into(),
        threads: THREADS,
        patience: Duration::from_secs(120),
    };
    let watch: Arc<Watch> = Arc::default();
    let working = async {
        let made = match base {
            None => full(&repository, &options, &watch).await,
            Some(label) => {
                let all = readable(&repository, system).unwrap().0;
                let base = all.into_iter().find(|backup| backup.label == label).expect("the base is there");
                incremental(&repository, &options, &watch, Arc::new(base)).await
            }
        };
        done.store(true, Ordering::Relaxed);
        made.unwrap()
    };
    let made = tokio::join!(archiving, working).1;
    assert!(made.corrupt.is_empty(), "{:?}", made.corrupt);
    println!("{}", made.label);
}

fn files(repository: &Repository, to: &str, delta: bool) {
    let system = *repository.systems().unwrap().first().unwrap();
    let made = plan(repository, system, Target::Immediate, None).unwrap();
    let to = Destination { data: PathBuf::from(to), delta, threads: THREADS, ..Destination::default() };
    println!("{:?}", restore(repository, &made, &to).unwrap());
}

fn log(repository: Repository, wal: &str, end: &str, system: &str) {
    let end = Position { timeline: Timeline(1), lsn: end.parse().unwrap() };
    let system = SystemId(system.parse().unwrap());
    let mut archive = Archive::claim(repository, system, SIZE, Term(1), "bench").unwrap();
    let mut count = 0;
    loop {
        let swept = archive.sweep(Path::new(wal), end, &Lineage::default()).unwrap();
        assert!(swept.problems.is_empty(), "{:?}", swept.problems);
        count += swept.pushed.len();
        if !swept.more {
            println!("{count}");
            return;
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let open = |place: &str, key: &str| Repository::at(Path::new(place), Some(Path::new(key))).unwrap();
    match words.as_slice() {
        ["init", repository, key] => init(repository, key),
        ["backup", repository, key, socket, data, base @ ..] => {
            backup(open(repository, key), socket, data, base.first().copied()).await;
        }
        ["restore", repository, key, to, delta @ ..] => files(&open(repository, key), to, !delta.is_empty()),
        ["archive", repository, key, wal, end, system] => log(open(repository, key), wal, end, system),
        other => panic!("not a step: {other:?}"),
    }
}

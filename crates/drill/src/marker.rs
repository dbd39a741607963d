//! The marker: a table of its own that clients add a row to every few milliseconds, and read, each keeping what it was told and when.
//!
//! The table has no unique key, which would hide a row that is there twice; no number is tried twice. It lies in a schema of its own and
//! is dropped afterwards; a drill that was interrupted leaves it for the next one to drop.

use crate::access::{Access, Link, Told, words};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_postgres::SimpleQueryMessage;

/// Writers, and how often each writes.
pub const WRITERS: u32 = 2;
const WRITE_EACH: Duration = Duration::from_millis(5);
/// Readers, and how often each reads.
pub const READERS: u32 = 2;
const READ_EACH: Duration = Duration::from_millis(10);
/// A client waits this long for an answer before it gives up on the connection.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long answers are waited for once all is over.
const LAST_ANSWERS: Duration = Duration::from_secs(3);
/// Pause after an error.
const PAUSE: Duration = Duration::from_millis(10);
/// How long making the table, and reading it back, may take.
const REACH: Duration = Duration::from_secs(45);
/// Statements that one client keeps; more are not made.
const KEPT_MAX: usize = 60_000;
/// A table that was written to so recently belongs to a drill that runs. Seconds.
const FRESH_S: i64 = 60;

const FOUND: &str = "select to_regclass('mainstay_drill.marker') is not null";
const AGE: &str =
    "select coalesce(extract(epoch from clock_timestamp() - max(at))::bigint, 100000) from mainstay_drill.marker";
const DROP: &str = "drop schema mainstay_drill cascade";
const MAKE: &str = "create schema mainstay_drill;
    create table mainstay_drill.marker (client integer not null, number bigint not null, at timestamptz not null default clock_timestamp());
    comment on table mainstay_drill.marker is 'rows of a drill; dropped at its end, or at the beginning of the next one'";
const READ: &str = "select count(*) from (select 1 from mainstay_drill.marker limit 5) as few";
const ALL: &str = "select client, number, count(*) from mainstay_drill.marker group by client, number";

/// One statement of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Whose.
    pub client: u32,
    /// Its number.
    pub number: u64,
    /// When it was sent, in milliseconds since the marker began.
    pub sent_ms: u64,
    /// When the answer, or the error, was there.
    pub ended_ms: u64,
    /// The answer.
    pub told: Told,
}

/// Everything that the clients were told, and what is there.
#[derive(Clone, Debug, Default)]
pub struct Records {
    /// Writes, by client.
    pub writes: Vec<Operation>,
    /// Reads.
    pub reads: Vec<Operation>,
    /// How often each row is there, by client and number.
    pub there: BTreeMap<(u32, u64), u64>,
    /// How long it ran.
    pub ran_ms: u64,
    /// The table could not be dropped, and why.
    pub left: Option<String>,
}

/// Why there is no marker, or no answer of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MarkerError {
    /// Another drill writes to the table.
    #[error(
        "another drill runs, or ended less than a minute ago: its table mainstay_drill.marker was written to {0} s ago"
    )]
    Busy(i64),
    /// The address can not be used.
    #[error("{0}")]
    Away(String),
}

struct Shared {
    begun: Instant,
    acknowledged: AtomicU64,
    stop: watch::Sender<bool>,
}

impl Shared {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// A marker at work.
pub struct Marker {
    write: Access,
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<Vec<Operation>>>,
    readers: Vec<JoinHandle<Vec<Operation>>>,
}

/// Rows as text.
async fn ask(link: &Link, statement: &str) -> Result<Vec<Vec<String>>, String> {
    let answer = tokio::time::timeout(PATIENCE, link.client.simple_query(statement)).await;
    let answer = answer.map_err(|_| "no answer".to_owned())?.map_err(|error| words(&error))?;
    let rows = answer.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|at| row.get(at).unwrap_or_default().to_owned()).collect())
        }
        _ => None,
    });
    Ok(rows.collect())
}

fn first(rows: &[Vec<String>]) -> &str {
    rows.first().and_then(|row| row.first()).map_or("", String::as_str)
}

/// Does it until it is done, host by host, for as long as that may take.
async fn reach<T, F: Future<Output = Result<T, MarkerError>>>(
    access: &Access,
    within: Duration,
    work: impl Fn(Link) -> F,
) -> Result<T, MarkerError> {
    let until = Instant::now() + within;
    let mut place = 0;
    loop {
        let done = match access.connect(place).await {
            Ok(link) => work(link).await,
            Err(why) => Err(MarkerError::Away(why)),
        };
        match done {
            Err(MarkerError::Away(why)) if Instant::now() < until => {
                if is_lasting(&why) {
                    return Err(MarkerError::Away(why));
                }
                place += 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            other => return other,
        }
    }
}

/// Does this not pass by waiting? A table that is not there yet on a replica does.
fn is_lasting(why: &str) -> bool {
    let state = why.rsplit_once('(').and_then(|(_, state)| state.strip_suffix(')')).unwrap_or_default();
    state != "42P01" && ["28", "3D", "3F", "42"].iter().any(|class| state.len() == 5 && state.starts_with(class))
}

async fn make(link: Link) -> Result<(), MarkerError> {
    let away = MarkerError::Away;
    if first(&ask(&link, FOUND).await.map_err(away)?) == "t" {
        let age: i64 = first(&ask(&link, AGE).await.map_err(away)?).parse().unwrap_or(0);
        if age < FRESH_S {
            return Err(MarkerError::Busy(age));
        }
        ask(&link, DROP).await.map_err(away)?;
    }
    ask(&link, MAKE).await.map_err(away)?;
    Ok(())
}

async fn drop_table(link: Link) -> Result<(), MarkerError> {
    if first(&ask(&link, FOUND).await.map_err(MarkerError::Away)?) == "t" {
        ask(&link, DROP).await.map_err(MarkerError::Away)?;
    }
    Ok(())
}

impl Marker {
    /// Makes the table and starts the clients.
    ///
    /// # Errors
    /// When another drill runs, or no server takes writes under this address.
    pub async fn start(write: Access, read: Access) -> Result<Marker, MarkerError> {
        reach(&write, Duration::from_secs(10), make).await?;
        // A replica may not have it yet.
        let ready =
            reach(&read, REACH, |link| async move { ask(&link, READ).await.map(drop).map_err(MarkerError::Away) });
        if let Err(error) = ready.await {
            let _ = reach(&write, Duration::from_secs(5), drop_table).await;
            return Err(error);
        }
        let shared = Arc::new(Shared {
            begun: Instant::now(),
            acknowledged: AtomicU64::new(0),
            stop: watch::Sender::new(false),
        });
        let writers = (0..WRITERS)
            .map(|client| tokio::spawn(work(write.clone(), client, true, WRITE_EACH, Arc::clone(&shared))))
            .collect();
        let readers = (0..READERS)
            .map(|client| tokio::spawn(work(read.clone(), client, false, READ_EACH, Arc::clone(&shared))))
            .collect();
        Ok(Marker { write, shared, writers, readers })
    }

    /// Milliseconds since it began.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.shared.now_ms()
    }

    /// How many writes were acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Ends the clients, reads what is there, and drops the table.
    ///
    /// # Errors
    /// When what is there can not be read: then nothing can be said of what was lost. The table stays.
    pub async fn finish(self) -> Result<Records, MarkerError> {
        let ran_ms = self.now_ms();
        self.shared.stop.send_replace(true);
        let mut records = Records { ran_ms, ..Records::default() };
        for writer in self.writers {
            records.writes.extend(writer.await.unwrap_or_default());
        }
        for reader in self.readers {
            records.reads.extend(reader.await.unwrap_or_default());
        }
        let rows = reach(&self.write, REACH, |link| async move { ask(&link, ALL).await.map_err(MarkerError::Away) });
        for row in rows.await? {
            let number = |at: usize| row.get(at).and_then(|text| text.parse::<u64>().ok());
            if let (Some(client), Some(number), Some(count)) = (number(0), number(1), number(2)) {
                records.there.insert((u32::try_from(client).unwrap_or(u32::MAX), number), count);
            }
        }
        let dropped = reach(&self.write, REACH, drop_table).await;
        records.left = dropped.err().map(|error| error.to_string());
        Ok(records)
    }

    /// Ends the clients and drops the table, as far as that is possible soon: the drill was given up.
    pub async fn give_up(self) -> Result<(), MarkerError> {
        self.shared.stop.send_replace(true);
        for client in self.writers.into_iter().chain(self.readers) {
            let _ = client.await;
        }
        reach(&self.write, Duration::from_secs(10), drop_table).await
    }
}

/// What is under way at the end is waited for: it would count as unknown otherwise, although nothing was wrong with it.
async fn end_is_over(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
    tokio::time::sleep(LAST_ANSWERS).await;
}

/// One client, until it is told to stop.
async fn work(access: Access, client: u32, writes: bool, each: Duration, shared: Arc<Shared>) -> Vec<Operation> {
    let mut kept = Vec::new();
    let mut stop = shared.stop.subscribe();
    let mut link: Option<Link> = None;
    let mut place = client as usize;
    let mut number = 0;
    let mut next = Instant::now();
    while !*stop.borrow() && kept.len() < KEPT_MAX {
        let Some(open) = &link else {
            let connecting = tokio::select! {
                connected = access.connect(place) => connected,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            match connecting {
                Ok(connected) => link = Some(connected),
                Err(_) => {
                    place += 1;
                    tokio::time::sleep(PAUSE).await;
                }
            }
            continue;
        };
        number += 1;
        let statement = if writes {
            format!("insert into mainstay_drill.marker (client, number) values ({client}, {number})")
        } else {
            READ.to_owned()
        };
        let sent_ms = shared.now_ms();
        let (told, keep) = tokio::select! {
            told = open.run(&statement, PATIENCE) => told,
            () = end_is_over(&mut stop) => (Told::Unknown, false),
        };
        let ended_ms = shared.now_ms();
        // A read that was under way as all ended says nothing.
        if writes || told != Told::Unknown || !*stop.borrow() {
            kept.push(Operation { client, number, sent_ms, ended_ms, told });
        }
        if writes && told == Told::Acknowledged {
            shared.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        if !keep {
            link = None;
            place += 1;
            tokio::time::sleep(PAUSE).await;
        }
        next = (next + each).max(Instant::now());
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::is_lasting;

    #[test]
    fn what_waiting_does_not_mend_is_said_at_once() {
        assert!(is_lasting("permission denied for database app (42501)"));
        assert!(is_lasting("127.0.0.1:6432: password authentication failed (28P01)"));
        assert!(!is_lasting("relation \"mainstay_drill.marker\" does not exist (42P01)"));
        assert!(!is_lasting("the database system is starting up (57P03)"));
        assert!(!is_lasting("127.0.0.1:6432: connection refused"));
    }
}

//! A ledger of acknowledged writes: clients insert unique ids one by one through the write address, keep for each what they
//! were told and when, and afterwards every acknowledged id must be there exactly once.
//!
//! Identifiers are never tried twice, so a second row of one is a duplicate made elsewhere. The table has no unique key, which
//! would hide it.

use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls, Row, Statement};

/// A client waits this long for an answer before it gives up on the connection.
const PATIENCE: Duration = Duration::from_secs(15);
/// Pause after an error.
const PAUSE: Duration = Duration::from_millis(5);
/// How long the table and the verification may wait for a server that takes writes.
const REACH: Duration = Duration::from_secs(60);

/// What a client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Committed, without a warning.
    Acknowledged,
    /// An error that says that nothing was committed.
    Failed,
    /// The connection broke, the answer did not come, or it came with a warning about the synchronous wait.
    Unknown,
}

/// One write.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// Which client.
    pub client: i32,
    /// Its number.
    pub sequence: i64,
    /// When it was sent, since the ledger began.
    pub invoked: Duration,
    /// When the answer, or the error, was there.
    pub finished: Duration,
    /// The answer.
    pub told: Told,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    acknowledged: AtomicU64,
    /// Microseconds since the beginning.
    last: AtomicU64,
}

/// A ledger that is being written.
pub struct Ledger {
    config: Config,
    run: i64,
    begun: Instant,
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<Vec<Operation>>>,
}

/// What was written, and what the clients were told.
#[derive(Clone, Debug)]
pub struct Records {
    config: Config,
    run: i64,
    /// Every operation, by client and number.
    pub operations: Vec<Operation>,
    /// How long the clients wrote.
    pub ran: Duration,
}

/// The longest time without an acknowledgement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gap {
    /// The last acknowledgement before it, since the ledger began.
    pub from: Duration,
    /// Its length.
    pub length: Duration,
}

/// What the cluster's data say about the records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Writes that were refused.
    pub failed: u64,
    /// Writes whose fate the client did not learn.
    pub unknown: u64,
    /// Of those, how many are there.
    pub surfaced: u64,
    /// Acknowledged and not there: (client, number).
    pub lost: Vec<(i32, i64)>,
    /// There more than once.
    pub duplicated: Vec<(i32, i64)>,
    /// Refused and there all the same.
    pub undead: Vec<(i32, i64)>,
}

pub(crate) fn config(uri: &str) -> Result<Config> {
    let mut config: Config = uri.parse().context("the address is not understood")?;
    // What is measured here is the cluster, not encryption.
    config.ssl_mode(SslMode::Disable).connect_timeout(PATIENCE).application_name("mainstay-ledger");
    Ok(config)
}

/// A number that no other run of these tests has.
pub(crate) fn unique() -> Result<i64> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let parts = (u64::from(std::process::id()) % 256) * 16 + COUNT.fetch_add(1, Ordering::Relaxed) % 16;
    Ok(i64::try_from(mainstay_ports::clock::wall_now_ms() * 4096 + parts)?)
}

/// A connection, and how many warnings have come over it.
pub(crate) async fn connect(config: &Config) -> Result<(Client, Arc<AtomicU64>)> {
    let (client, mut connection) =
        tokio::time::timeout(PATIENCE, config.connect(NoTls)).await.context("no connection in time")??;
    let warnings = Arc::new(AtomicU64::new(0));
    let counted = warnings.clone();
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notice(notice) = message
                && notice.severity() == "WARNING"
            {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    Ok((client, warnings))
}

/// Tries until a server takes it: a query about one run, or, without one, a statement that returns nothing.
pub(crate) async fn reach(
    config: Config,
    what: &'static str,
    statement: &'static str,
    run: Option<i64>,
) -> Result<Vec<Row>> {
    let begun = Instant::now();
    loop {
        let attempt = async {
            let (client, _) = connect(&config).await?;
            let asked = async {
                match &run {
                    Some(run) => client.query(statement, &[run]).await,
                    None => client.batch_execute(statement).await.map(|()| Vec::new()),
                }
            };
            Ok::<_, anyhow::Error>(tokio::time::timeout(PATIENCE, asked).await.context("no answer in time")??)
        };
        match attempt.await {
            Ok(rows) => return Ok(rows),
            Err(error) if begun.elapsed() > REACH => {
                return Err(error.context(format!("{what}: nobody took it for {} s", REACH.as_secs())));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

impl Ledger {
    /// Makes the table if need be and starts the clients.
    ///
    /// # Errors
    /// When no server takes writes within a minute.
    pub async fn start(uri: &str, clients: i32) -> Result<Ledger> {
        Ledger::start_on(&Handle::current(), uri, clients).await
    }

    /// The same, each write in a transaction of its own, begun and committed by statements.
    ///
    /// # Errors
    /// When no server takes writes within a minute.
    pub async fn start_in_transactions(uri: &str, clients: i32) -> Result<Ledger> {
        Ledger::start_by(&Handle::current(), uri, clients, true).await
    }

    /// The same with the clients on another runtime, which may be inside a virtual host.
    ///
    /// # Errors
    /// When no server takes writes within a minute.
    pub async fn start_on(runtime: &Handle, uri: &str, clients: i32) -> Result<Ledger> {
        Ledger::start_by(runtime, uri, clients, false).await
    }

    async fn start_by(runtime: &Handle, uri: &str, clients: i32, transactions: bool) -> Result<Ledger> {
        let config = config(uri)?;
        let table = "CREATE TABLE IF NOT EXISTS mainstay_ledger (run bigint NOT NULL, client integer NOT NULL, sequence bigint NOT NULL)";
        let made = runtime.spawn(reach(config.clone(), "the ledger's table", table, None));
        made.await.context("making the table failed")??;
        let run = unique()?;
        let (begun, shared) = (Instant::now(), Arc::new(Shared::default()));
        let writers = (0..clients)
            .map(|client| runtime.spawn(write(config.clone(), (run, client, transactions), begun, shared.clone())))
            .collect();
        Ok(Ledger { config, run, begun, shared, writers })
    }

    /// When it began.
    #[must_use]
    pub fn begun(&self) -> Instant {
        self.begun
    }

    /// How long it runs.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// A moment of the process's clock as the records count it.
    #[must_use]
    pub fn at(&self, moment: Instant) -> Duration {
        moment.saturating_duration_since(self.begun)
    }

    /// How many writes were acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until this many more writes were acknowledged.
    ///
    /// # Errors
    /// When they are not in time.
    pub async fn progress(&self, more: u64, patience: Duration) -> Result<()> {
        let (begun, target) = (Instant::now(), self.acknowledged() + more);
        while self.acknowledged() < target {
            if begun.elapsed() > patience {
                let last = Duration::from_micros(self.shared.last.load(Ordering::Relaxed));
                bail!(
                    "no {more} writes were acknowledged within {} s; the last was {:?} ago",
                    patience.as_secs(),
                    self.now().saturating_sub(last)
                );
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Ends the clients and collects what they were told.
    ///
    /// # Errors
    /// When a client failed to end.
    pub async fn finish(self) -> Result<Records> {
        let ran = self.now();
        self.shared.stop.store(true, Ordering::SeqCst);
        let mut operations = Vec::new();
        for writer in self.writers {
            operations.extend(writer.await.context("a client failed")?);
        }
        Ok(Records { config: self.config, run: self.run, operations, ran })
    }
}

/// Before its commit was sent, whatever goes wrong means that nothing was committed.
async fn write_once(
    session: &Client,
    insert: &Statement,
    values: &[&(dyn ToSql + Sync)],
    transactions: bool,
) -> Result<(), Told> {
    if !transactions {
        return session.execute(insert, values).await.map(drop).map_err(|error| judge(&error));
    }
    let before = |_| Told::Failed;
    session.batch_execute("BEGIN").await.map_err(before)?;
    session.execute(insert, values).await.map_err(before)?;
    session.batch_execute("COMMIT").await.map_err(|error| judge(&error))
}

async fn write(
    config: Config,
    (run, client, transactions): (i64, i32, bool),
    begun: Instant,
    shared: Arc<Shared>,
) -> Vec<Operation> {
    let mut operations = Vec::new();
    let mut sequence = 0i64;
    while !shared.stop.load(Ordering::Relaxed) {
        let Ok((session, warnings)) = connect(&config).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let insert = "INSERT INTO mainstay_ledger (run, client, sequence) VALUES ($1, $2, $3)";
        let Ok(Ok(insert)) = tokio::time::timeout(PATIENCE, session.prepare(insert)).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        while !shared.stop.load(Ordering::Relaxed) {
            sequence += 1;
            let warned = warnings.load(Ordering::SeqCst);
            let invoked = begun.elapsed();
            let values: [&(dyn ToSql + Sync); 3] = [&run, &client, &sequence];
            let answer = tokio::time::timeout(PATIENCE, write_once(&session, &insert, &values, transactions)).await;
            let finished = begun.elapsed();
            let told = match &answer {
                Ok(Ok(_)) if warnings.load(Ordering::SeqCst) == warned => Told::Acknowledged,
                Ok(Ok(_)) | Err(_) => Told::Unknown,
                Ok(Err(told)) => *told,
            };
            operations.push(Operation { client, sequence, invoked, finished, told });
            if told == Told::Acknowledged {
                shared.acknowledged.fetch_add(1, Ordering::Relaxed);
                shared.last.fetch_max(u64::try_from(finished.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
            } else {
                tokio::time::sleep(PAUSE).await;
                break;
            }
        }
    }
    operations
}

/// An error that a living server sent about the statement says that nothing was committed; anything about the connection or the
/// server's end does not.
pub(crate) fn judge(error: &tokio_postgres::Error) -> Told {
    let Some(code) = error.code() else { return Told::Unknown };
    let about_connection = code.code().starts_with("08") || code.code().starts_with("57P");
    if about_connection || *code == SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN { Told::Unknown } else { Told::Failed }
}

impl Records {
    /// The longest time in which no client was acknowledged, from the first acknowledgement to the end.
    #[must_use]
    pub fn longest_gap(&self) -> Gap {
        longest_gap(self.acknowledged(|_| true), self.ran)
    }

    /// The longest that a client waited for an acknowledgement that came after this moment.
    #[must_use]
    pub fn longest_wait_after(&self, moment: Duration) -> Duration {
        let after = self.operations.iter().filter(|operation| operation.finished >= moment);
        let told = after.filter(|operation| operation.told == Told::Acknowledged);
        told.map(|operation| operation.finished.saturating_sub(operation.invoked)).max().unwrap_or_default()
    }

    /// The same for each client on its own: the longest of them.
    #[must_use]
    pub fn longest_gap_of_a_client(&self) -> Gap {
        let clients: std::collections::BTreeSet<i32> =
            self.operations.iter().map(|operation| operation.client).collect();
        let gaps = clients
            .into_iter()
            .map(|client| longest_gap(self.acknowledged(|operation| operation.client == client), self.ran));
        gaps.max_by_key(|gap| gap.length).unwrap_or_default()
    }

    /// The longest time without an acknowledgement that lies, at least in part, between these moments.
    #[must_use]
    pub fn longest_gap_between(&self, from: Duration, to: Duration) -> Gap {
        let mut times = self.acknowledged(|_| true);
        times.push(self.ran);
        times.sort_unstable();
        let pairs = times.windows(2).filter_map(|pair| match pair {
            [one, other] if *other >= from && *one <= to => Some(Gap { from: *one, length: *other - *one }),
            _ => None,
        });
        pairs.max_by_key(|gap| gap.length).unwrap_or_default()
    }

    /// The first acknowledgement of a write that was sent after this moment; `None`: there was none.
    #[must_use]
    pub fn first_after(&self, moment: Duration) -> Option<Duration> {
        let later = self.operations.iter().filter(|operation| operation.invoked >= moment);
        later.filter(|operation| operation.told == Told::Acknowledged).map(|operation| operation.finished).min()
    }

    /// How many writes that were sent and acknowledged between these moments there are.
    #[must_use]
    pub fn acknowledged_between(&self, from: Duration, to: Duration) -> usize {
        let during = |operation: &&Operation| operation.invoked >= from && operation.finished <= to;
        self.operations.iter().filter(during).filter(|operation| operation.told == Told::Acknowledged).count()
    }

    fn acknowledged(&self, which: impl Fn(&Operation) -> bool) -> Vec<Duration> {
        let those = self.operations.iter().filter(|operation| operation.told == Told::Acknowledged && which(operation));
        those.map(|operation| operation.finished).collect()
    }

    /// Compares with the cluster's data, through the write address.
    ///
    /// # Errors
    /// When nobody answers within a minute.
    pub async fn verify(&self) -> Result<Verdict> {
        self.verify_on(&Handle::current()).await
    }

    /// The same on another runtime, which may be inside a virtual host.
    ///
    /// # Errors
    /// When nobody answers within a minute.
    pub async fn verify_on(&self, runtime: &Handle) -> Result<Verdict> {
        let select = "SELECT client, sequence, count(*) FROM mainstay_ledger WHERE run = $1 GROUP BY client, sequence";
        let rows = runtime.spawn(reach(self.config.clone(), "the verification", select, Some(self.run)));
        let rows = rows.await.context("the verification failed")??;
        let there: BTreeMap<(i32, i64), i64> = rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect();
        Ok(self.compare(&there))
    }

    fn compare(&self, there: &BTreeMap<(i32, i64), i64>) -> Verdict {
        let mut verdict = Verdict::default();
        for operation in &self.operations {
            let id = (operation.client, operation.sequence);
            let found = there.contains_key(&id);
            match operation.told {
                Told::Acknowledged => {
                    verdict.acknowledged += 1;
                    verdict.lost.extend((!found).then_some(id));
                }
                Told::Failed => {
                    verdict.failed += 1;
                    verdict.undead.extend(found.then_some(id));
                }
                Told::Unknown => {
                    verdict.unknown += 1;
                    verdict.surfaced += u64::from(found);
                }
            }
        }
        verdict.duplicated = there.iter().filter(|(_, count)| **count > 1).map(|(id, _)| *id).collect();
        verdict
    }
}

impl Verdict {
    /// Nothing lost, nothing twice, nothing that was refused.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty() && self.duplicated.is_empty() && self.undead.is_empty()
    }
}

fn longest_gap(mut acknowledged: Vec<Duration>, end: Duration) -> Gap {
    acknowledged.sort_unstable();
    let first = acknowledged.first().copied().unwrap_or_default();
    let mut longest = Gap { from: first, length: Duration::ZERO };
    let mut before = first;
    for moment in acknowledged.into_iter().chain([end]) {
        let length = moment.saturating_sub(before);
        if length > longest.length {
            longest = Gap { from: before, length };
        }
        before = before.max(moment);
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn operation(client: i32, sequence: i64, at: u64, told: Told) -> Operation {
        Operation { client, sequence, invoked: ms(at), finished: ms(at), told }
    }

    fn records(operations: Vec<Operation>, ran: u64) -> Records {
        Records { config: Config::new(), run: 1, operations, ran: ms(ran) }
    }

    #[test]
    fn gaps_are_between_acknowledgements_and_up_to_the_end() {
        let told = Told::Acknowledged;
        let all = records(
            vec![
                operation(0, 1, 10, told),
                operation(1, 1, 30, told),
                operation(0, 2, 90, told),
                operation(0, 3, 50, Told::Unknown),
            ],
            95,
        );
        assert_eq!(all.longest_gap(), Gap { from: ms(30), length: ms(60) });
        assert_eq!(all.longest_gap_of_a_client(), Gap { from: ms(10), length: ms(80) });
        let blocked = records(vec![operation(0, 1, 10, told)], 500);
        assert_eq!(blocked.longest_gap(), Gap { from: ms(10), length: ms(490) });
    }

    #[test]
    fn losses_and_duplicates_are_found() {
        let all = records(
            vec![
                operation(0, 1, 1, Told::Acknowledged),
                operation(0, 2, 2, Told::Acknowledged),
                operation(0, 3, 3, Told::Unknown),
                operation(0, 4, 4, Told::Unknown),
                operation(0, 5, 5, Told::Failed),
                operation(0, 6, 6, Told::Acknowledged),
            ],
            10,
        );
        let there = BTreeMap::from([((0, 1), 1), ((0, 3), 1), ((0, 5), 1), ((0, 6), 2)]);
        let verdict = all.compare(&there);
        assert_eq!((verdict.acknowledged, verdict.failed, verdict.unknown, verdict.surfaced), (3, 1, 2, 1));
        assert_eq!(
            (verdict.lost.as_slice(), verdict.duplicated.as_slice()),
            ([(0, 2)].as_slice(), [(0, 6)].as_slice())
        );
        assert_eq!(verdict.undead, [(0, 5)]);
        assert!(!verdict.is_clean());
    }
}

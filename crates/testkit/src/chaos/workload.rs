//! Clients beside the ledger: a bank, registers, lists. Each keeps for every operation what it was told; none tries anything twice.

use super::check::{append, register};
use super::dice::Dice;
use crate::hosts::HostCluster;
use crate::hosts::inside::Inside;
use crate::ledger::{self, Told, connect, judge};
use anyhow::{Context as _, Result};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config};

/// Accounts, and what each has at first.
pub(crate) const ACCOUNTS: i64 = 8;
pub(crate) const BALANCE: i64 = 100;
/// Registers.
const REGISTERS: u64 = 4;
/// Transactions on the lists that are in use at one time; then others are.
const LISTS_FOR: u64 = 120;
const LISTS: u64 = 4;
/// The longest that a client waits.
const PATIENCE: Duration = Duration::from_secs(12);
/// Pause between a client's operations: correctness is looked for here, not speed.
const PAUSE: Duration = Duration::from_millis(12);

const TABLES: &str = "CREATE TABLE IF NOT EXISTS mainstay_bank (run bigint, account bigint, balance bigint, PRIMARY KEY (run, account));
    CREATE TABLE IF NOT EXISTS mainstay_register (run bigint, key integer, value bigint, reads bigint, PRIMARY KEY (run, key));
    CREATE TABLE IF NOT EXISTS mainstay_list (run bigint, list bigint, elements bigint[], PRIMARY KEY (run, list))";

/// What snapshots of the bank showed: node, accounts, total; and how often.
type Sums = BTreeMap<(String, i64, i64), u64>;

#[derive(Clone)]
struct Task {
    config: Config,
    run: i64,
    begun: Instant,
    stop: Arc<AtomicBool>,
    /// Values that are written once.
    values: Arc<AtomicU64>,
}

/// Clients at work.
pub(crate) struct Workloads {
    task: Task,
    transfers: Vec<JoinHandle<[u64; 3]>>,
    readers: Vec<(Inside, JoinHandle<Sums>)>,
    registers: Vec<JoinHandle<Vec<register::Operation>>>,
    lists: Vec<JoinHandle<Vec<append::Transaction>>>,
}

/// What they were told, and what is there at the end.
#[derive(Debug, Default)]
pub(crate) struct Records {
    /// Transfers: acknowledged, failed, unknown.
    pub(crate) transfers: [u64; 3],
    /// What snapshots of the bank showed: node, accounts, total; and how often.
    pub(crate) sums: Sums,
    pub(crate) registers: Vec<register::Operation>,
    pub(crate) lists: Vec<append::Transaction>,
    pub(crate) last: BTreeMap<i64, Vec<i64>>,
}

impl Workloads {
    pub(crate) async fn start(cluster: &HostCluster, client: &Inside, seed: u64) -> Result<Workloads> {
        let (config, run) = (ledger::config(&cluster.uri())?, ledger::unique()?);
        client.run(ledger::reach(config.clone(), "the workloads' tables", TABLES, None)).await??;
        let task = Task { config, run, begun: Instant::now(), stop: Arc::default(), values: Arc::default() };
        client.run(task.clone().fill()).await??;
        let (handle, mut dice) = (client.handle(), Dice::new(seed));
        let mut dices = || Dice::new(dice.number());
        let transfers = (0..2).map(|_| handle.spawn(task.clone().transfer(dices()))).collect();
        let registers = (0..3).map(|_| handle.spawn(task.clone().use_registers(dices()))).collect();
        let lists = (0..3).map(|_| handle.spawn(task.clone().append(dices()))).collect();
        let mut readers = Vec::new();
        for (node, host) in cluster.data_nodes() {
            let inside = cluster.client.inside()?;
            let config = ledger::config(&cluster.server_uri(host))?;
            let reader = inside.handle().spawn(Task { config, ..task.clone() }.look_at_bank(node.to_string()));
            readers.push((inside, reader));
        }
        Ok(Workloads { task, transfers, readers, registers, lists })
    }

    pub(crate) async fn finish(self, client: &Inside) -> Result<Records> {
        self.task.stop.store(true, Ordering::SeqCst);
        let mut records = Records::default();
        for transfer in self.transfers {
            let counts = transfer.await.context("a client of the bank failed")?;
            records.transfers.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        for (_inside, reader) in self.readers {
            records.sums.extend(reader.await.context("a reader of the bank failed")?);
        }
        for register in self.registers {
            records.registers.extend(register.await.context("a client of the registers failed")?);
        }
        for list in self.lists {
            records.lists.extend(list.await.context("a client of the lists failed")?);
        }
        let select = "SELECT list, elements FROM mainstay_list WHERE run = $1";
        let rows = ledger::reach(self.task.config.clone(), "the lists", select, Some(self.task.run));
        let rows = client.run(rows).await??;
        records.last = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        Ok(records)
    }
}

/// Waits for an answer for a bounded time.
async fn patient<T>(answer: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, Told> {
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(judge(&error)),
        Err(_) => Err(Told::Unknown),
    }
}

/// Before COMMIT is sent whatever goes wrong means that nothing was committed.
async fn before_commit<T>(answer: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, Told> {
    patient(answer).await.map_err(|_| Told::Failed)
}

impl Task {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    async fn session(&self) -> Option<(Client, Arc<AtomicU64>)> {
        while self.goes_on() {
            if let Ok(session) = connect(&self.config).await {
                return Some(session);
            }
            tokio::time::sleep(PAUSE * 3).await;
        }
        None
    }

    async fn fill(self) -> Result<()> {
        let fill = format!(
            "INSERT INTO mainstay_bank SELECT {run}, account, {BALANCE} FROM generate_series(1, {ACCOUNTS}) account;
             INSERT INTO mainstay_register SELECT {run}, key, 0, 0 FROM generate_series(1, {REGISTERS}) key",
            run = self.run
        );
        let (client, _) = connect(&self.config).await?;
        client.batch_execute(&fill).await.context("fill the workloads' tables")
    }

    /// Commits; a warning says that nobody confirmed it.
    async fn commit(client: &Client, warnings: &AtomicU64) -> Told {
        let warned = warnings.load(Ordering::SeqCst);
        match patient(client.batch_execute("COMMIT")).await {
            Ok(()) if warnings.load(Ordering::SeqCst) == warned => Told::Acknowledged,
            Ok(()) => Told::Unknown,
            Err(told) => told,
        }
    }

    async fn transfer(self, mut dice: Dice) -> [u64; 3] {
        let mut counts = [0u64; 3];
        while let Some((client, warnings)) = self.session().await {
            while self.goes_on() {
                let told = self.transfer_once(&client, &warnings, &mut dice).await;
                let place = match told {
                    Told::Acknowledged => 0,
                    Told::Failed => 1,
                    Told::Unknown => 2,
                };
                if let Some(count) = counts.get_mut(place) {
                    *count += 1;
                }
                tokio::time::sleep(PAUSE).await;
                if client.is_closed() || told == Told::Unknown {
                    break;
                }
            }
        }
        counts
    }

    async fn transfer_once(&self, client: &Client, warnings: &AtomicU64, dice: &mut Dice) -> Told {
        let (from, to, amount) = (dice.between(1, 8), dice.between(1, 8), dice.between(1, 9));
        let change = |account: u64, sign: &str| {
            format!(
                "UPDATE mainstay_bank SET balance = balance {sign} {amount} WHERE run = {} AND account = {account}",
                self.run
            )
        };
        let all = format!("BEGIN ISOLATION LEVEL REPEATABLE READ; {}; {}", change(from, "-"), change(to, "+"));
        match before_commit(client.batch_execute(&all)).await {
            Ok(()) => Task::commit(client, warnings).await,
            Err(told) => {
                let _ = patient(client.batch_execute("ROLLBACK")).await;
                told
            }
        }
    }

    /// One snapshot after the other on one node, past the proxy.
    async fn look_at_bank(self, node: String) -> Sums {
        let mut sums = BTreeMap::new();
        let select =
            format!("SELECT count(*), coalesce(sum(balance), 0)::bigint FROM mainstay_bank WHERE run = {}", self.run);
        while let Some((client, _)) = self.session().await {
            while self.goes_on() {
                let Ok(row) = patient(client.query_one(&select, &[])).await else { break };
                *sums.entry((node.clone(), row.get(0), row.get(1))).or_insert(0) += 1;
                tokio::time::sleep(PAUSE * 3).await;
            }
            tokio::time::sleep(PAUSE * 3).await;
        }
        sums
    }

    async fn use_registers(self, mut dice: Dice) -> Vec<register::Operation> {
        let mut done = Vec::new();
        while let Some((client, warnings)) = self.session().await {
            while self.goes_on() {
                let key = i32::try_from(dice.between(1, REGISTERS)).unwrap_or(1);
                let (warned, invoked) = (warnings.load(Ordering::SeqCst), self.begun.elapsed());
                // Both commit a write: what is read from a primary that is being replaced may otherwise be old.
                let write = dice.percent(50).then(|| self.value());
                let set = write.map_or_else(|| "reads = reads + 1".to_owned(), |value| format!("value = {value}"));
                let statement = format!(
                    "UPDATE mainstay_register SET {set} WHERE run = {} AND key = {key} RETURNING value",
                    self.run
                );
                let answer = patient(client.query_one(&statement, &[])).await;
                let finished = self.begun.elapsed();
                let clean = warnings.load(Ordering::SeqCst) == warned;
                let (value, told) = match answer {
                    Ok(row) => (row.get(0), if clean { Told::Acknowledged } else { Told::Unknown }),
                    Err(told) => (0, told),
                };
                let did = write.map_or(register::Did::Read(value), register::Did::Write);
                done.push(register::Operation { key, did, invoked, finished, told });
                tokio::time::sleep(PAUSE).await;
                if client.is_closed() || told == Told::Unknown {
                    break;
                }
            }
        }
        done
    }

    fn value(&self) -> i64 {
        i64::try_from(self.values.fetch_add(1, Ordering::Relaxed) + 1).unwrap_or(i64::MAX)
    }

    async fn append(self, mut dice: Dice) -> Vec<append::Transaction> {
        let mut done = Vec::new();
        while let Some((client, warnings)) = self.session().await {
            while self.goes_on() {
                let transaction = self.append_once(&client, &warnings, &mut dice).await;
                let unknown = transaction.told == Told::Unknown;
                done.push(transaction);
                tokio::time::sleep(PAUSE).await;
                if client.is_closed() || unknown {
                    break;
                }
            }
        }
        done
    }

    /// Each transaction appends at least once: one that only reads waits for nobody, and may see on a primary that is being replaced what a
    /// cancelled wait let through.
    async fn append_once(&self, client: &Client, warnings: &AtomicU64, dice: &mut Dice) -> append::Transaction {
        let count = dice.between(1, 4);
        let appends = dice.between(0, count - 1);
        let generation = self.values.load(Ordering::Relaxed) / LISTS_FOR;
        let mut did = Vec::new();
        let begun = before_commit(client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ")).await;
        let mut told = begun.err();
        for number in 0..count {
            let list = i64::try_from(generation * LISTS + dice.between(1, LISTS)).unwrap_or(1);
            if told.is_some() {
                break;
            }
            if number == appends || dice.percent(40) {
                let value = self.value();
                let run = self.run;
                let append = format!(
                    "INSERT INTO mainstay_list VALUES ({run}, {list}, ARRAY[{value}]::bigint[]) ON CONFLICT (run, list) \
                     DO UPDATE SET elements = mainstay_list.elements || {value}::bigint"
                );
                did.push(append::Did::Append(list, value));
                told = before_commit(client.batch_execute(&append)).await.err();
            } else {
                let read = format!("SELECT elements FROM mainstay_list WHERE run = {} AND list = {list}", self.run);
                match before_commit(client.query_opt(&read, &[])).await {
                    Ok(row) => did.push(append::Did::Read(list, row.map(|row| row.get(0)).unwrap_or_default())),
                    Err(failed) => told = Some(failed),
                }
            }
        }
        let told = match told {
            None => Task::commit(client, warnings).await,
            Some(told) => {
                let _ = patient(client.batch_execute("ROLLBACK")).await;
                told
            }
        };
        append::Transaction { did, told }
    }
}

//! A client that opens a new connection for each transaction: during a planned change none of them may fail.

use super::inside::Inside;
use crate::ledger::{self, connect};
use anyhow::{Context as _, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Pause between transactions.
const PAUSE: Duration = Duration::from_millis(10);
/// The longest that one transaction may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// How many errors are kept in words.
const WORDS_MAX: usize = 5;

/// A client at work.
pub struct Fresh {
    stop: Arc<AtomicBool>,
    client: JoinHandle<Tally>,
}

/// What became of its transactions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Transactions that were tried.
    pub tried: u64,
    /// Those that failed.
    pub failed: u64,
    /// The longest of those that succeeded.
    pub slowest: Duration,
    /// The first errors.
    pub errors: Vec<String>,
}

impl Fresh {
    /// Starts one through this address.
    ///
    /// # Errors
    /// When the address is not understood.
    pub fn start(inside: &Inside, uri: &str) -> Result<Fresh> {
        let config = ledger::config(uri)?;
        let (stop, run) = (Arc::new(AtomicBool::new(false)), ledger::unique()?);
        let stopped = Arc::clone(&stop);
        let client = inside.handle().spawn(async move {
            let mut tally = Tally::default();
            while !stopped.load(Ordering::Relaxed) {
                tally.tried += 1;
                let begun = Instant::now();
                let transaction = async {
                    let (session, _) = connect(&config).await?;
                    let insert = format!(
                        "INSERT INTO mainstay_ledger (run, client, sequence) VALUES ({run}, 0, {})",
                        tally.tried
                    );
                    session.batch_execute(&insert).await.context("the transaction")
                };
                match tokio::time::timeout(PATIENCE, transaction).await.context("no answer").and_then(|done| done) {
                    Ok(()) => tally.slowest = tally.slowest.max(begun.elapsed()),
                    Err(error) => {
                        tally.failed += 1;
                        if tally.errors.len() < WORDS_MAX {
                            tally.errors.push(format!("{error:#}"));
                        }
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
            tally
        });
        Ok(Fresh { stop, client })
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it failed by itself.
    pub async fn finish(self) -> Result<Tally> {
        self.stop.store(true, Ordering::SeqCst);
        self.client.await.context("the client with new connections failed")
    }
}

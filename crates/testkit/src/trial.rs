//! One trial: a whole cluster, a write load, one fault, healing, and the comparison of what clients were told with what is there.

use crate::cluster::Cluster;
use crate::faults::{Fault, Injected};
use crate::ledger::{Gap, Ledger, Verdict};
use anyhow::{Context as _, Result};
use mainstay_model::status::Status;
use std::time::Duration;

/// How a trial runs.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Writing clients.
    pub clients: i32,
    /// How long they write before the fault.
    pub before: Duration,
    /// How long they write after the cluster takes writes again.
    pub after: Duration,
    /// How long healing may take.
    pub patience: Duration,
    /// Each write is a transaction of its own, begun and committed by statements.
    pub transactions: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            clients: 4,
            before: Duration::from_millis(1500),
            after: Duration::from_millis(1000),
            patience: Duration::from_secs(60),
            transactions: false,
        }
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// The fault.
    pub fault: Fault,
    /// When and how it happened.
    pub injected: Injected,
    /// The longest time without any acknowledgement.
    pub gap: Gap,
    /// The longest of one client.
    pub client_gap: Gap,
    /// The longest that a client waited for an acknowledgement that came after the fault.
    pub longest_wait: Duration,
    /// From the fault to the healed cluster, every node a replica again.
    pub healed_after: Duration,
    /// What the data say.
    pub verdict: Verdict,
    /// The healed cluster.
    pub status: Status,
}

/// Runs a trial.
///
/// # Errors
/// When the fault did not happen (the trial is invalid), or the cluster did not heal.
pub async fn run(cluster: &Cluster, fault: Fault, settings: Settings) -> Result<Report> {
    let whole = cluster.healed(settings.patience).await.context("before the fault")?;
    let (uri, clients) = (cluster.uri().await?, settings.clients);
    let ledger = match settings.transactions {
        true => Ledger::start_in_transactions(&uri, clients).await?,
        false => Ledger::start(&uri, clients).await?,
    };
    ledger.progress(50, settings.patience).await.context("before the fault")?;
    tokio::time::sleep(settings.before).await;
    let tried = after_load(cluster, fault, settings, &whole, &ledger).await;
    let begun = ledger.begun();
    let records = ledger.finish().await?;
    let (injected, status, healed_after) = tried?;
    let at = injected.at.saturating_duration_since(begun);
    let verdict = records.verify().await?;
    Ok(Report {
        fault,
        injected,
        gap: records.longest_gap(),
        client_gap: records.longest_gap_of_a_client(),
        longest_wait: records.longest_wait_after(at),
        healed_after,
        verdict,
        status,
    })
}

async fn after_load(
    cluster: &Cluster,
    fault: Fault,
    settings: Settings,
    whole: &Status,
    ledger: &Ledger,
) -> Result<(Injected, Status, Duration)> {
    let injected = fault.inject(cluster, whole).await.context("the fault did not happen")?;
    ledger.progress(50, settings.patience).await.with_context(|| format!("after {}", injected.evidence))?;
    // The status is asked seldom and late: each question is a process of its own and would take time from what is measured.
    tokio::time::sleep(settings.after).await;
    let status = cluster.healed(settings.patience).await.with_context(|| format!("after {}", injected.evidence))?;
    let healed_after = injected.at.elapsed();
    fault.check(&injected, &status)?;
    Ok((injected, status, healed_after))
}

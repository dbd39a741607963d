//! What an idle node costs: agent and guard, measured from outside.

use crate::processes::{resident, ticks};
use anyhow::{Context as _, Result};
use mainstay_model::NodeId;
use mainstay_model::status::Status;
use std::time::{Duration, Instant};

/// Clock ticks in a second, as `/proc` counts them on every Linux.
const TICKS: f64 = 100.0;

/// One node's cost.
#[derive(Clone, Debug)]
pub struct Cost {
    /// The node.
    pub node: NodeId,
    /// Processor time of agent and guard together, in percent of one core.
    pub cpu_percent: f64,
    /// Resident memory of both, in bytes.
    pub resident: u64,
}

/// Measures every node for this long.
///
/// # Errors
/// When a process is not there.
pub async fn measure(status: &Status, duration: Duration) -> Result<Vec<Cost>> {
    let pids = |node: &mainstay_model::status::NodeStatus| -> Result<[u32; 2]> {
        Ok([node.agent_pid.context("no agent")?, node.guard_pid.context("no guard")?])
    };
    let used =
        |pids: [u32; 2]| pids.iter().map(|pid| ticks(*pid).context("a process has vanished")).sum::<Result<u64>>();
    let begun = Instant::now();
    let before = status.nodes.iter().map(|node| used(pids(node)?)).collect::<Result<Vec<_>>>()?;
    tokio::time::sleep(duration).await;
    let seconds = begun.elapsed().as_secs_f64();
    let cost = |(node, before): (&mainstay_model::status::NodeStatus, u64)| -> Result<Cost> {
        let both = pids(node)?;
        #[expect(clippy::cast_precision_loss, reason = "a few thousand ticks")]
        let spent = used(both)?.saturating_sub(before) as f64;
        let resident = both.iter().filter_map(|pid| resident(*pid)).sum();
        Ok(Cost { node: node.name.clone(), cpu_percent: spent / TICKS / seconds * 100.0, resident })
    };
    status.nodes.iter().zip(before).map(cost).collect()
}

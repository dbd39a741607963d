//! Looks at the cluster again and again while a plan runs: terms, roles and states for the timeline, and the history before it is cut.

use crate::hosts::HostCluster;
use mainstay_model::{Event, NodeId};
use serde::Serialize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Pause between two looks: each is a process of its own.
const PAUSE: Duration = Duration::from_millis(700);
/// Looks kept.
const LOOKS_MAX: usize = 20_000;

/// One look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Look {
    /// When, since the run began, in milliseconds.
    pub at_ms: u64,
    /// The term.
    pub term: u64,
    /// The open primary.
    pub primary: Option<NodeId>,
    /// Each node's role and state.
    pub nodes: Vec<(NodeId, String, String)>,
}

/// What was seen so far.
#[derive(Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<(Vec<Look>, Vec<Event>)>>);

impl Seen {
    /// Looks until it is dropped. Never ends by itself.
    pub(crate) async fn watch(&self, cluster: &HostCluster, begun: Instant) {
        loop {
            if let Ok(status) = cluster.status().await {
                let at_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                let nodes = status.nodes.into_iter().map(|node| (node.name, node.role, node.state)).collect();
                let look = Look { at_ms, term: status.cluster.term.0, primary: status.cluster.primary, nodes };
                if let Ok(mut seen) = self.0.lock()
                    && seen.0.len() < LOOKS_MAX
                {
                    seen.0.push(look);
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Adds what the history holds now.
    pub(crate) fn remember(&self, events: Vec<Event>) {
        let Ok(mut seen) = self.0.lock() else { return };
        for event in events {
            if !seen.1.contains(&event) {
                seen.1.push(event);
            }
        }
    }

    /// Everything.
    pub(crate) fn take(&self) -> (Vec<Look>, Vec<Event>) {
        self.0.lock().map(|mut seen| std::mem::take(&mut *seen)).unwrap_or_default()
    }
}

//! The engine of a node, put together from its files, and what is wrong with the node said before anything is touched; also that the
//! node was removed.

use crate::follow;
use crate::intent::Removed;
use crate::setup::AgentOptions;
use anyhow::{Context as _, Result};
use mainstay_engine_postgres::{Finding, Postgres, PostgresOptions};
use mainstay_model::layout::NodeLayout;
use mainstay_model::spec::Spec;
use mainstay_ports::process::ServerProcess;
use std::sync::Arc;
use tracing::{error, warn};

/// The engine of a node with data.
pub(crate) fn postgres(options: &AgentOptions, spec: &Spec, process: Arc<dyn ServerProcess>) -> Result<Postgres> {
    let node = spec.node(&options.node).context("this node is not in the file")?;
    let settings = follow::engine_settings(spec);
    let bin_dir = mainstay_engine_postgres::find_bin_dir(spec.postgres.bin_dir.as_deref())?;
    let app_verifier = std::fs::read_to_string(options.layout.app_verifier()).unwrap_or_default().trim().to_owned();
    let postgres = PostgresOptions {
        node: options.node.clone(),
        cluster: spec.cluster.name.clone(),
        layout: options.layout.clone(),
        bin_dir,
        listen: node.host.clone(),
        port: node.port,
        peers: settings.peers,
        user: options.server_user,
        os_user: options.os_user.clone(),
        parameters: settings.parameters,
        hba: settings.hba,
        archived: settings.archived,
        archive_command: settings.archive_command,
        adopt: node.adopt.clone(),
        app_verifier,
    };
    Ok(Postgres::new(postgres, process)?)
}

/// Says what is wrong with this node before anything is touched. The engine starts no server on top of it and looks again at each attempt, so
/// the agent goes on: it votes and answers, and shows the problem. Only programs that can never work end it.
pub(crate) async fn report(postgres: &Postgres) -> Result<()> {
    for finding in postgres.inspect().await {
        if matches!(finding, Finding::TooOld { .. }) {
            anyhow::bail!("{finding}");
        }
        if finding.blocks() {
            error!(problem = %finding, "no server is started on this node before this is put right");
        } else {
            warn!(problem = %finding, "this node should be looked at");
        }
    }
    Ok(())
}

/// The node was removed from the cluster; its agent does not start.
#[derive(Debug, thiserror::Error)]
#[error(
    "this node was removed from the cluster by {by} (generation {generation}). Its data are kept in {dir}. To take it in again: add it \
     with mainstay node add, and remove the file {file}"
)]
pub struct NodeRemoved {
    by: String,
    generation: u64,
    dir: String,
    file: String,
}

/// Refuses to run a node that was removed.
pub(crate) fn check_removed(layout: &NodeLayout) -> Result<()> {
    let Some(removed) = Removed::load(layout)? else { return Ok(()) };
    let (dir, file) = (layout.dir().display().to_string(), layout.removed().display().to_string());
    Err(NodeRemoved { by: removed.by, generation: removed.generation, dir, file }.into())
}

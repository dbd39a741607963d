//! How the cluster is, as this host sees it, and that writes work from here: for an apply whose own machine reaches hosts by ssh alone.

use super::{CONFIG, target};
use crate::client::Agents;
use crate::failure::{Failure, Outcome};
use crate::local::psql;
use crate::target::Target;
use mainstay_model::status::Status;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;

/// A write through the write address.
#[derive(Serialize, Deserialize)]
pub(crate) struct Proof {
    /// The cluster's file.
    pub(crate) file: String,
    /// The application's password.
    pub(crate) password: String,
}

/// Asks the agents with this node's own certificate.
///
/// # Errors
/// When none answers.
pub(crate) async fn status() -> Outcome<Status> {
    Agents::of(&Target::read(Path::new(CONFIG))?)?.status().await
}

/// Writes as the application.
///
/// # Errors
/// What psql said.
pub(crate) async fn prove(proof: &Proof) -> Outcome<Value> {
    let target = target(&proof.file)?;
    let authority =
        target.spec.nodes.iter().map(|node| target.spec.node_dir(node).join("agent/ca.crt")).find(|path| path.exists());
    let authority = authority.ok_or_else(|| Failure::failed("the cluster's authority is not on this host"))?;
    let password = proof.password.clone();
    let write = move || psql::prove_write_with(&target, &password, &authority);
    tokio::task::spawn_blocking(write).await.map_err(|error| Failure::failed(error.to_string()))??;
    Ok(json!({ "written": true }))
}

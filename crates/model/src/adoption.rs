//! What is noted of a server that was adopted, so that an interrupted adoption goes on, and its server can be handed back.

use crate::SystemId;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Which server was adopted, and how it was kept before. Written before anything of it is touched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adoption {
    /// Where its data lay.
    pub directory: PathBuf,
    /// Its identity: data of another are never taken for it.
    pub system: SystemId,
    /// What started it: a unit of systemd, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Debian's file that says whether it is started with the host, and what that said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_conf: Option<(PathBuf, String)>,
    /// Its `postgresql.auto.conf` as it was: what Mainstay owns is taken out of it when the server starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_conf: Option<String>,
}

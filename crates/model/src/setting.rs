//! The server's synchronous setting, `ANY n OF S`, and what it promises.

use crate::{CopyId, NodeId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// `ANY need OF copies`: a commit waits until `need` of these copies have flushed it. With fewer copies than `need`
/// the engine adds a name that never answers, so commits block. `need` 0: commits wait for nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SyncSetting {
    /// How many confirmations a commit waits for.
    pub need: u32,
    /// Who may give them.
    pub copies: BTreeMap<NodeId, CopyId>,
}

impl fmt::Display for SyncSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.copies.keys().map(NodeId::as_str).collect();
        write!(f, "ANY {} OF ({})", self.need, names.join(", "))
    }
}

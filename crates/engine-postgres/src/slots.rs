//! Replication slots as marks of how much of the log to keep: one for each other member, on every node, so that a new primary has
//! them already. No connection uses them: a standby that asked for a slot by name would stall where it is missing. Each node advances
//! them to what the member says it has flushed.

use crate::server::{Postgres, STATEMENT};
use crate::sql::literal;
use mainstay_model::{Lsn, NodeId};
use mainstay_ports::engine::EngineError;
use std::collections::BTreeMap;

const PREFIX: &str = "mainstay_";

/// The slot of a node. Slots' names know no `-`.
pub(crate) fn slot_name(node: &NodeId) -> String {
    format!("{PREFIX}{}", node.as_str().replace('-', "_"))
}

impl Postgres {
    /// See [`mainstay_ports::engine::Engine::maintain_slots`].
    pub(crate) async fn keep_slots(&self, members: &[(NodeId, Option<Lsn>)]) -> Result<(), EngineError> {
        let session = self.session(STATEMENT).await?;
        let others = members.iter().filter(|(node, _)| *node != self.options.node);
        let wanted: BTreeMap<String, Option<Lsn>> = others.map(|(node, flushed)| (slot_name(node), *flushed)).collect();
        let sql = format!(
            "select slot_name, active, coalesce(wal_status, ''), coalesce(restart_lsn, '0/0') from pg_replication_slots \
             where slot_type = 'physical' and starts_with(slot_name, '{PREFIX}')"
        );
        let mut there = BTreeMap::new();
        for row in session.rows(&sql, STATEMENT).await? {
            let mut row = row.into_iter().map(Option::unwrap_or_default);
            let (Some(name), Some(active), Some(status)) = (row.next(), row.next(), row.next()) else { continue };
            let at: Lsn = row.next().and_then(|at| at.parse().ok()).unwrap_or_default();
            // A slot that was given up keeps nothing any more and can not be advanced.
            if active == "f" && (!wanted.contains_key(&name) || status == "lost") {
                session.rows(&format!("select pg_drop_replication_slot({})", literal(&name)), STATEMENT).await?;
            } else {
                there.insert(name, at);
            }
        }
        for (name, flushed) in wanted {
            let name_sql = literal(&name);
            match (there.get(&name), flushed) {
                (None, _) => {
                    let sql = format!("select pg_create_physical_replication_slot({name_sql}, true)");
                    session.rows(&sql, STATEMENT).await?;
                }
                (Some(at), Some(flushed)) if flushed > *at => {
                    let sql = format!(
                        "select pg_replication_slot_advance(slot_name, least('{flushed}'::pg_lsn, here)) from pg_replication_slots, \
                         (select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_flush_lsn() end) w(here) \
                         where slot_name = {name_sql} and not active and restart_lsn < least('{flushed}'::pg_lsn, here)"
                    );
                    session.rows(&sql, STATEMENT).await?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

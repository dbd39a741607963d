//! Replication slots: one for each other data node, on every node, so that a new primary has them already. They mark how much of the
//! log to keep, and each standby streams through its own: a slot admits one connection at a time, so no copy counts twice for a
//! commit. A missing slot would stall a standby, so every server gets them all when it starts. A standby's keep no log until the
//! maintenance lets them and advances them to what the member says it has flushed; a primary's keep log from the moment of its
//! promotion, before a checkpoint removes what a replica needs to follow, and a clone's from before the clone.

use crate::server::{Postgres, STATEMENT};
use crate::source::ASK;
use crate::sql::{Session, SqlError, literal};
use mainstay_model::{Lsn, NodeId};
use mainstay_ports::engine::EngineError;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

const PREFIX: &str = "mainstay_";
/// The slot that keeps what is not archived yet. No node's: names of nodes begin with a letter.
const ARCHIVE: &str = "mainstay__archive";
/// For how long one call tries to drop a slot that somebody streams through, and how often.
const DROP_LIMIT: Duration = Duration::from_secs(2);
const DROP_PAUSE: Duration = Duration::from_millis(2);

/// The slot of a node. Slots' names know no `-`.
pub(crate) fn slot_name(node: &NodeId) -> String {
    format!("{PREFIX}{}", node.as_str().replace('-', "_"))
}

/// A slot as the server shows it.
struct Slot {
    name: String,
    active: bool,
    /// It keeps nothing any more, can not be advanced, and newer servers let nobody stream through it.
    lost: bool,
    /// PostgreSQL 17 and later: once it was lost, it never keeps log again, also while somebody streams through it.
    invalid: bool,
    /// From where it keeps the log; `None`: nobody has streamed through it and it keeps nothing.
    keeps: Option<Lsn>,
}

impl Slot {
    async fn all(session: &Session) -> Result<Vec<Slot>, EngineError> {
        let sql = format!(
            "select slot_name, active, coalesce(wal_status, ''), restart_lsn, \
             to_jsonb(slot) ->> 'invalidation_reason' is not null from pg_replication_slots slot \
             where slot_type = 'physical' and starts_with(slot_name, '{PREFIX}')"
        );
        let rows = session.rows(&sql, STATEMENT).await?.into_iter();
        let slots = rows.filter_map(|row| {
            let text = |at: usize| row.get(at).and_then(Option::as_deref);
            Some(Slot {
                name: text(0)?.to_owned(),
                active: text(1)? == "t",
                lost: text(2)? == "lost",
                invalid: text(4)? == "t",
                keeps: text(3).and_then(|at| at.parse().ok()),
            })
        });
        Ok(slots.collect())
    }
}

impl Postgres {
    /// Creates the slots of all other data nodes that are not there, without keeping log for them. A failure is no reason to give up
    /// a start or a promotion: the maintenance makes up for it.
    pub(crate) async fn provide_slots(&self, session: &Session) {
        let names: Vec<String> = self.others().iter().map(|name| literal(name)).collect();
        if names.is_empty() {
            return;
        }
        let sql = format!(
            "select count(pg_create_physical_replication_slot(name)) from unnest(array[{}]) name \
             where not exists (select from pg_replication_slots where slot_name = name)",
            names.join(",")
        );
        if let Err(error) = session.value(&sql, STATEMENT).await {
            tracing::warn!(%error, "not all replication slots are there; replicas of this server wait for the next maintenance");
        }
    }

    /// Slots that keep log, for all other data nodes, on a primary: from its last checkpoint on, unless they keep more already. The next
    /// checkpoint would remove what those need that have not come yet. What they keep for one that never comes is bounded.
    pub(crate) async fn reserve_log(&self, session: &Session) {
        let names: Vec<String> = self.others().iter().map(|name| literal(name)).collect();
        if names.is_empty() {
            return;
        }
        let all = format!("array[{}]::text[]", names.join(","));
        // Only a new slot can be told to keep log. One that somebody streams through keeps log with its next report.
        let drop = format!(
            "select count(*) from (select pg_drop_replication_slot(slot_name) from pg_replication_slots \
             where slot_name = any({all}) and restart_lsn is null and not active) dropped"
        );
        let create = format!(
            "select count(pg_create_physical_replication_slot(name, true)) from unnest({all}) name \
             where not exists (select from pg_replication_slots where slot_name = name)"
        );
        for sql in [drop, create] {
            if let Err(error) = session.value(&sql, STATEMENT).await {
                tracing::warn!(%error, "not all replication slots keep log yet; the next maintenance sees to that");
            }
        }
    }

    /// The slot of this node over there keeps log from now on, so that what a clone needs after its end is not removed meanwhile.
    pub(crate) async fn reserve_log_at(&self, source: &NodeId) -> Result<(), EngineError> {
        let name = literal(&slot_name(&self.options.node));
        // While the connection of before has not ended over there, its slot keeps log anyway.
        let sql = format!(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = {name} and not active; \
             select pg_create_physical_replication_slot({name}, true) \
             where not exists (select from pg_replication_slots where slot_name = {name})"
        );
        self.ask_source(source, "dbname=postgres", &sql, ASK).await.map(drop)
    }

    /// Names of the slots that should be there: one for each other data node, as the specification in force lists them, and the archive's.
    fn others(&self) -> BTreeSet<String> {
        let settings = self.settings();
        let nodes = settings.peers.keys().filter(|node| **node != self.options.node).map(slot_name);
        nodes.chain(settings.archived.then(|| ARCHIVE.to_owned())).collect()
    }

    /// Drops the slots of nodes that are no members any more, and ends what streams through them: they would keep log for ever.
    pub(crate) async fn drop_strangers(&self, session: &Session) -> Result<(), EngineError> {
        let wanted = self.others();
        let mut outcome = Ok(());
        for slot in Slot::all(session).await?.into_iter().filter(|slot| !wanted.contains(&slot.name)) {
            // One that can not be dropped is no reason to keep the others.
            outcome = outcome.and(drop_slot(session, &slot.name).await);
        }
        outcome
    }

    /// See [`mainstay_ports::engine::Engine::maintain_slots`]. Who is a member, the settings say; `members` says how far each is.
    pub(crate) async fn keep_slots(
        &self,
        members: &[(NodeId, Option<Lsn>)],
        archived: Option<Lsn>,
    ) -> Result<(), EngineError> {
        // The bound follows the free space before anything else: a disk that fills must not wait for the rest.
        let (written, wanted) = self.keep_now().await;
        let session = if written == wanted {
            self.session(STATEMENT).await?
        } else {
            tracing::info!(
                from_mib = written,
                to_mib = wanted,
                "slots may keep another amount of log: free space changed"
            );
            self.apply(None, |_| {}).await?
        };
        self.give_up_old_copies(&session).await?;
        if let Err(error) = self.look_at_seeded(&session).await {
            tracing::warn!(%error, "whether the copy from the repository has come to stream is looked at again");
        }
        // What members need does not wait for a stranger that can not be got rid of.
        let strangers = self.drop_strangers(&session).await;
        let members = members.iter().map(|(node, flushed)| (slot_name(node), *flushed));
        // Nothing archived yet: all that is there is kept.
        let known: BTreeMap<String, Option<Lsn>> =
            members.chain([(ARCHIVE.to_owned(), Some(archived.unwrap_or_default()))]).collect();
        let others = self.others().into_iter();
        let wanted: BTreeMap<String, Option<Lsn>> =
            others.map(|name| (name.clone(), known.get(&name).copied().flatten())).collect();
        let mut there = BTreeMap::new();
        for slot in Slot::all(&session).await?.into_iter().filter(|slot| wanted.contains_key(&slot.name)) {
            if slot.invalid || !slot.active && slot.lost {
                drop_slot(&session, &slot.name).await?;
            } else {
                there.insert(slot.name.clone(), slot);
            }
        }
        for (name, flushed) in wanted {
            match (there.get(&name), flushed) {
                (None, None) => create_slot(&session, &name, false).await?,
                (None, Some(flushed)) => {
                    create_slot(&session, &name, true).await?;
                    advance_slot(&session, &name, flushed).await?;
                }
                (Some(slot), _) if slot.active => {}
                // Nobody has streamed through it here. Only a new one can be told to keep log; a replica that asks for it in
                // between asks again.
                (Some(Slot { keeps: None, .. }), Some(flushed)) => {
                    drop_slot(&session, &name).await?;
                    create_slot(&session, &name, true).await?;
                    advance_slot(&session, &name, flushed).await?;
                }
                (Some(Slot { keeps: Some(at), .. }), Some(flushed)) if flushed > *at => {
                    advance_slot(&session, &name, flushed).await?;
                }
                _ => {}
            }
        }
        strangers
    }
}

/// Ends what streams through a slot and drops it. A replica connects again within milliseconds of the end of its stream, so both are asked
/// for at once, again and again for a short time: between an end and the next attempt there is a moment for the drop.
async fn drop_slot(session: &Session, name: &str) -> Result<(), EngineError> {
    let is = literal(name);
    let end =
        format!("select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = {is} and active");
    let drop = format!(
        "select count(pg_drop_replication_slot(slot_name)) from pg_replication_slots where slot_name = {is} and not active; \
         select count(*) from pg_replication_slots where slot_name = {is}"
    );
    let began = Instant::now();
    loop {
        session.rows(&end, STATEMENT).await?;
        let why = match session.value(&drop, STATEMENT).await {
            Ok(left) if left == "0" => return Ok(()),
            Ok(_) => "it is in use".to_owned(),
            // Somebody took it between the look and the drop.
            Err(SqlError::Refused(why)) => why,
            Err(other) => return Err(other.into()),
        };
        if began.elapsed() >= DROP_LIMIT {
            let text = format!(
                "replication slot {name} could not be dropped yet ({why}): who streams through it comes back at once"
            );
            return Err(EngineError::NotYet(text));
        }
        tokio::time::sleep(DROP_PAUSE).await;
    }
}

/// `keep`: keep the log from the last checkpoint on, at once.
async fn create_slot(session: &Session, name: &str, keep: bool) -> Result<(), EngineError> {
    let sql = format!("select pg_create_physical_replication_slot({}, {keep})", literal(name));
    session.rows(&sql, STATEMENT).await?;
    Ok(())
}

async fn advance_slot(session: &Session, name: &str, to: Lsn) -> Result<(), EngineError> {
    let sql = format!(
        "select pg_replication_slot_advance(slot_name, least('{to}'::pg_lsn, here)) from pg_replication_slots, \
         (select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_flush_lsn() end) w(here) \
         where slot_name = {} and not active and restart_lsn < least('{to}'::pg_lsn, here)",
        literal(name)
    );
    session.rows(&sql, STATEMENT).await?;
    Ok(())
}

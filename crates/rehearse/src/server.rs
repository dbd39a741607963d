//! The servers of the small world carry out orders.

use crate::world::World;
use mainstay_model::record::RecoveryEnd;
use mainstay_model::{
    CopyId, Lineage, LogEnd, Lsn, Moment, NodeId, Order, OrderFailure, Outcome, Position, ServerState, SyncSetting,
    SystemId, Timeline,
};

/// A database server that does as it is told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Db {
    pub(crate) state: ServerState,
    pub(crate) end: LogEnd,
    pub(crate) upstream: Option<NodeId>,
    pub(crate) copy: Option<CopyId>,
    pub(crate) setting: SyncSetting,
    pub(crate) open: bool,
    pub(crate) deadline: Option<Moment>,
}

pub(crate) fn crash(db: &mut Db) {
    db.state = ServerState::Down;
    db.open = false;
    db.deadline = None;
}

fn not_yet(text: &str) -> Outcome {
    Outcome::Failed(OrderFailure::NotYet(text.to_owned()))
}

impl World {
    pub(crate) fn execute(&mut self, name: &NodeId, order: Order) -> Outcome {
        self.systems += 1;
        let source_end = match &order {
            Order::Rewind { source } | Order::Clone { source, .. } => {
                let running = self.nodes.get(source).filter(|node| node.db.state == ServerState::Primary);
                let Some(source) = running else { return not_yet("the source does not run as primary") };
                Some(source.db.end.clone())
            }
            _ => None,
        };
        let system = self.store.as_ref().and_then(|(_, record)| record.system);
        let Some(node) = self.nodes.get_mut(name) else { return not_yet("there is no such node") };
        let durable = node.durable.clone().unwrap_or_default();
        let db = &mut node.db;
        match order {
            Order::Stop => {
                crash(db);
                Outcome::Done
            }
            Order::StartStandby if db.state != ServerState::Primary => {
                db.state = ServerState::Standby;
                db.copy = durable.copy;
                db.upstream = durable.upstream.filter(|up| up.term == durable.promise).map(|up| up.node);
                Outcome::Done
            }
            Order::Recruit if db.state == ServerState::Standby => {
                db.upstream = None;
                Outcome::Ended(db.end.clone())
            }
            Order::ReadEnd if db.state == ServerState::Standby && db.upstream.is_none() => {
                Outcome::Ended(db.end.clone())
            }
            Order::Follow { upstream } if db.state == ServerState::Standby => {
                db.upstream = Some(upstream);
                Outcome::Done
            }
            Order::Rewind { .. } | Order::Clone { .. } => {
                db.end = source_end.unwrap_or_default();
                node.data = system;
                Outcome::Done
            }
            order => self.execute_as_primary(name, order),
        }
    }

    fn execute_as_primary(&mut self, name: &NodeId, order: Order) -> Outcome {
        let (now, systems) = (Moment(self.now), self.systems);
        let Some(node) = self.nodes.get_mut(name) else { return not_yet("there is no such node") };
        let db = &mut node.db;
        match order {
            Order::Promote { setting, timeline, fork } => {
                let late = db.deadline.is_none_or(|at| now > at);
                if db.state != ServerState::Standby || late || db.end.position != fork {
                    return not_yet("promote");
                }
                db.end.lineage = db.end.forked();
                db.end.position.timeline = timeline;
                db.end.position.lsn.0 += 10;
                (db.state, db.setting, db.open) = (ServerState::Primary, setting, false);
                Outcome::Promoted(RecoveryEnd { timeline, lsn: db.end.position.lsn })
            }
            Order::Open if db.state == ServerState::Primary => {
                db.open = true;
                Outcome::Done
            }
            Order::SetSync { setting } if db.state == ServerState::Primary => {
                db.setting = setting;
                Outcome::Confirmed(db.end.position.lsn)
            }
            Order::StopClean { .. } => {
                (db.open, db.state) = (false, ServerState::Down);
                Outcome::Ended(db.end.clone())
            }
            Order::RestartInPlace if db.deadline.is_some_and(|at| now <= at) => {
                (db.open, db.state) = (false, ServerState::Primary);
                db.end.position.lsn.0 += 10;
                Outcome::Restarted(RecoveryEnd { timeline: db.end.position.timeline, lsn: db.end.position.lsn })
            }
            Order::Bootstrap { copy, setting } => {
                let position = Position { timeline: Timeline(1), lsn: Lsn(1000) };
                let end = LogEnd { position, lineage: Lineage::default() };
                let deadline = db.deadline;
                *db = Db { state: ServerState::Primary, copy: Some(copy), setting, deadline, end, ..Db::default() };
                node.data = Some(SystemId(systems));
                let end = RecoveryEnd { timeline: Timeline(1), lsn: Lsn(1000) };
                Outcome::Founded { system: SystemId(systems), end }
            }
            _ => not_yet("the server is not in the state for it"),
        }
    }
}

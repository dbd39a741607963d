//! The servers of the small world carry out orders.

use super::{Db, World};
use mainstay_model::record::RecoveryEnd;
use mainstay_model::*;

impl World {
    pub(super) fn execute(&mut self, name: &NodeId, order: Order) -> Outcome {
        let not_yet = |text: &str| Outcome::Failed(OrderFailure::NotYet(text.to_owned()));
        let source_runs = |world: &World, source: &NodeId| world.nodes[source].db.state == ServerState::Primary;
        self.systems += 1;
        let systems = self.systems;
        match &order {
            Order::Rewind { source } | Order::Clone { source, .. } if !source_runs(self, source) => {
                return not_yet("source");
            }
            _ => {}
        }
        let source_end = match &order {
            Order::Rewind { source } | Order::Clone { source, .. } => Some(self.nodes[source].db.end.clone()),
            _ => None,
        };
        let system = self.store.as_ref().and_then(|(_, record)| record.system);
        let node = self.nodes.get_mut(name).unwrap();
        let durable = node.durable.clone().unwrap_or_default();
        let db = &mut node.db;
        match order {
            Order::Stop => {
                db.state = ServerState::Down;
                Outcome::Done
            }
            Order::StartStandby => {
                if db.state == ServerState::Primary {
                    return Outcome::Failed(OrderFailure::Error("it runs as primary".to_owned()));
                }
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
                assert_eq!(db.state, ServerState::Down, "the server is stopped before a rewind or clone");
                db.end = source_end.unwrap_or_default();
                node.data = system;
                Outcome::Done
            }
            Order::Adopt { copy, .. } => {
                assert_eq!(db.state, ServerState::Down, "the server is stopped before its data are replaced");
                match self.prepared.get(name).filter(|(ready, _)| *ready == copy) {
                    Some((_, end)) => db.end = end.clone(),
                    None => return not_yet("no restored copy lies here"),
                }
                Outcome::Done
            }
            order => self.execute_as_primary(name, order, systems),
        }
    }

    pub(super) fn execute_as_primary(&mut self, name: &NodeId, order: Order, systems: u64) -> Outcome {
        let not_yet = |text: &str| Outcome::Failed(OrderFailure::NotYet(text.to_owned()));
        let now = Moment(self.now);
        let node = self.nodes.get_mut(name).unwrap();
        let db = &mut node.db;
        match order {
            Order::Promote { setting, timeline, fork } => {
                if db.state != ServerState::Standby || db.deadline.is_none_or(|at| now > at) || db.end.position != fork
                {
                    return not_yet("promote");
                }
                db.end.lineage = db.end.forked();
                db.end.position.timeline = timeline;
                db.end.position.lsn.0 += 10;
                db.state = ServerState::Primary;
                db.setting = setting;
                db.open = false;
                Outcome::Promoted(RecoveryEnd { timeline, lsn: db.end.position.lsn })
            }
            Order::Close => {
                db.open = false;
                Outcome::Done
            }
            Order::Open => {
                db.open = db.state == ServerState::Primary;
                if db.open { Outcome::Done } else { not_yet("open") }
            }
            Order::SetSync { setting } if db.state == ServerState::Primary => {
                db.setting = setting;
                Outcome::Confirmed(db.end.position.lsn)
            }
            Order::Checkpoint if db.state == ServerState::Primary => Outcome::Done,
            Order::StopClean { .. } => {
                db.open = false;
                db.state = ServerState::Down;
                Outcome::Ended(db.end.clone())
            }
            Order::RestartInPlace if db.deadline.is_some_and(|at| now <= at) => {
                db.state = ServerState::Primary;
                db.open = false;
                db.end.position.lsn.0 += 10;
                Outcome::Restarted(RecoveryEnd { timeline: db.end.position.timeline, lsn: db.end.position.lsn })
            }
            Order::Bootstrap { copy, setting } => {
                let end = LogEnd {
                    position: Position { timeline: Timeline(1), lsn: Lsn(1000) },
                    lineage: Lineage::default(),
                };
                *db = Db {
                    state: ServerState::Primary,
                    copy: Some(copy),
                    setting,
                    deadline: db.deadline,
                    end,
                    ..Db::default()
                };
                node.data = Some(SystemId(systems));
                Outcome::Founded {
                    system: SystemId(systems),
                    end: RecoveryEnd { timeline: Timeline(1), lsn: Lsn(1000) },
                }
            }
            _ => not_yet("the server is not in the state for it"),
        }
    }

    // ---- what must hold ----
}

pub(super) fn crash(db: &mut Db) {
    db.state = ServerState::Down;
    db.open = false;
    db.deadline = None;
}

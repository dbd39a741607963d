//! Orders that replace data: rewind and clone, each in steps that can break half-way.

use crate::event::Node;
use crate::orders::{DONE, Next, Running, broken, error, not_yet};
use crate::server::Process;
use crate::shape::MS;
use crate::world::World;
use mainstay_model::{Lost, Outcome};

impl World {
    fn source_serves(&self, node: Node, source: Node) -> bool {
        self.nodes[source].server.process == Process::Primary
            && self.server_runs(source)
            && self.net.both(self.now, node, source)
    }

    pub(crate) fn rewind(&mut self, node: Node, running: &Running, source: Node) -> Next {
        if self.nodes[node].server.process.runs() {
            return error("the server runs");
        }
        let dirty = running.marker.is_some();
        if !self.source_serves(node, source) {
            return if dirty { broken("the source went away") } else { not_yet("the source does not answer") };
        }
        match running.step {
            0 => Next::In(self.rng.range(10, 80) * MS),
            1 => {
                let end = self.nodes[node].server.log_end(self.nodes[node].server.log.len());
                if self.nodes[source].server.serves(&end) {
                    // Nothing diverged; or it was rewound before, and nobody was told.
                    return self.replaced(node);
                }
                let shared = self.nodes[node].server.shared_with(&self.nodes[source].server);
                self.note_dropped(node, source, shared);
                self.truncate(node, shared);
                self.remember(node, 0, Some(shared));
                self.counters.rewinds += 1;
                Next::In(self.rng.range(20, 300) * MS)
            }
            _ => {
                self.copy_log(node, source);
                self.replaced(node)
            }
        }
    }

    /// Remembers what is about to leave this log.
    fn note_dropped(&mut self, node: Node, source: Node, keep: usize) {
        let (mine, theirs) = (&self.nodes[node].server, &self.nodes[source].server);
        let diverged = mine.shared_with(theirs) < mine.log.len().min(theirs.log.len());
        let has = |id: u64| theirs.log.binary_search_by(|entry| entry.id.cmp(&id)).is_ok();
        let told = |id: &u64| self.ledger.told.contains(id) && !has(*id);
        let acknowledged: Vec<u64> = mine.log[keep..].iter().map(|entry| entry.id).filter(told).collect();
        let lost = diverged.then(|| Lost {
            from: mine.log_end(mine.shared_with(theirs)).position,
            to: mine.log_end(mine.log.len()).position,
            ..Lost::default()
        });
        let host = &mut self.nodes[node];
        if lost.is_some() {
            host.dropped_acknowledged.extend(acknowledged);
        }
        let before = host.lost.take();
        host.lost = match lost {
            Some(lost) => Some(lost.and(before)),
            None => before,
        };
    }

    /// Answers with what left this log. The note of it stays on the disk: the host may lose power before anybody hears the answer.
    fn replaced(&self, node: Node) -> Next {
        self.nodes[node].lost.clone().map_or(DONE, |lost| Next::End(Outcome::Replaced(lost)))
    }

    fn copy_log(&mut self, node: Node, source: Node) {
        let theirs = &self.nodes[source].server;
        let log = theirs.log[..theirs.flushed].to_vec();
        let data = theirs.data;
        // What a rewind that broke half-way took out may be in the log of the one that is cloned.
        let has = |id: &u64| log.binary_search_by(|entry| entry.id.cmp(id)).is_ok();
        self.nodes[node].dropped_acknowledged.retain(|id| !has(id));
        let mine = &mut self.nodes[node].server;
        mine.log = log;
        mine.flushed = mine.log.len();
        mine.replayed = mine.flushed;
        mine.data = data;
        (mine.unstartable, mine.gone_at) = (false, None);
        mine.as_primary = false;
    }

    pub(crate) fn clone_from(&mut self, node: Node, running: &Running, source: Node) -> Next {
        if self.nodes[node].server.process.runs() {
            return error("the server runs");
        }
        if !self.source_serves(node, source) {
            return if running.step > 1 {
                broken("the source went away")
            } else {
                not_yet("the source does not answer")
            };
        }
        match running.step {
            0 => Next::In(self.rng.range(5, 60) * MS),
            1 => {
                self.note_dropped(node, source, 0);
                self.truncate(node, 0);
                self.nodes[node].server.data = None;
                Next::In(self.rng.range(60, 500) * MS)
            }
            _ => {
                self.copy_log(node, source);
                self.counters.clones += 1;
                self.replaced(node)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_decide::Plant;
    use mainstay_model::{NodeId, Order, OrderId, Term, Timeline};
    use std::collections::BTreeSet;

    fn running(step: u8, marker: Option<usize>) -> Running {
        let Ok(source) = NodeId::new("n0".to_owned()) else { panic!("n0 is a name") };
        let order = Order::Rewind { source };
        Running { id: OrderId(1), term: Term(2), order, step, number: 1, until: 0, life: 0, marker }
    }

    /// n0 is primary on timeline 2; n1 holds two commits of timeline 1 that n0 has not.
    fn parted() -> World {
        let old = |world: &World| world.nodes.len() > 1 && world.nodes[1].server.log.len() == 20;
        let Some(mut world) = (1..200).map(|seed| World::new(seed, &BTreeSet::<Plant>::new(), false)).find(old) else {
            panic!("no seed begins with a cluster of before")
        };
        for (node, timeline) in [(0, 2), (1, 1)] {
            let server = &mut world.nodes[node].server;
            (server.timeline, server.term) = (Timeline(timeline), Term(u64::from(timeline)));
            world.append(node, true);
            world.append(node, true);
            world.nodes[node].server.flushed = 22;
        }
        world.nodes[0].server.process = Process::Primary;
        world
    }

    fn outcome(next: Next) -> Outcome {
        match next {
            Next::End(outcome) => outcome,
            Next::In(_) => panic!("it has not ended"),
        }
    }

    #[test]
    fn what_a_rewind_cut_is_told_by_the_next_order_when_the_host_died_before_its_outcome_was_taken() {
        let mut world = parted();
        assert!(matches!(world.rewind(1, &running(1, None), 0), Next::In(_)));
        let told = outcome(world.rewind(1, &running(2, Some(20)), 0));
        let Outcome::Replaced(lost) = &told else { panic!("{told:?}") };
        assert_eq!((lost.from.lsn.0, lost.to.lsn.0), (20, 22));
        world.order_dies(1);
        world.power_fails(1);
        assert_eq!(outcome(world.rewind(1, &running(1, None), 0)), told, "rewound before, and nobody was told");
        assert!(matches!(world.clone_from(1, &running(1, None), 0), Next::In(_)));
        assert_eq!(outcome(world.clone_from(1, &running(2, None), 0)), told);
        world.order_dies(1);
        world.power_fails(1);
        assert!(matches!(world.clone_from(1, &running(1, None), 0), Next::In(_)));
        assert_eq!(outcome(world.clone_from(1, &running(2, None), 0)), told, "cloned before, and nobody was told");
    }

    #[test]
    fn a_clone_from_another_primary_tells_what_a_rewind_took_out_besides_what_it_takes_out_itself() {
        let mut world = parted();
        assert!(matches!(world.rewind(1, &running(1, None), 0), Next::In(_)));
        outcome(world.rewind(1, &running(2, Some(20)), 0));
        world.power_fails(1);
        // The primary that it was rewound to is itself left behind.
        world.append(1, true);
        world.nodes[1].server.flushed = world.nodes[1].server.log.len();
        world.append(0, true);
        world.nodes[0].server.flushed = world.nodes[0].server.log.len();
        assert!(matches!(world.clone_from(1, &running(1, None), 0), Next::In(_)));
        let Outcome::Replaced(lost) = outcome(world.clone_from(1, &running(2, None), 0)) else { panic!("untold") };
        let ends: Vec<u64> = lost.apart().iter().map(|lost| lost.to.lsn.0).collect();
        assert_eq!(ends.len(), 2, "{ends:?}");
        assert!(ends.contains(&22), "{ends:?}");
    }
}

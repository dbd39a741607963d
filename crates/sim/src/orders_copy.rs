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
                    return DONE; // nothing diverged
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
        let acknowledged = mine.log[keep..].iter().any(|entry| self.ledger.told.contains(&entry.id) && !has(entry.id));
        let lost = diverged.then(|| Lost {
            from: mine.log_end(mine.shared_with(theirs)).position,
            to: mine.log_end(mine.log.len()).position,
            ..Lost::default()
        });
        let host = &mut self.nodes[node];
        host.dropped_acknowledged |= acknowledged && lost.is_some();
        host.lost = lost.or(host.lost.take());
    }

    fn replaced(&mut self, node: Node) -> Next {
        self.nodes[node].lost.take().map_or(DONE, |lost| Next::End(Outcome::Replaced(lost)))
    }

    fn copy_log(&mut self, node: Node, source: Node) {
        let theirs = &self.nodes[source].server;
        let log = theirs.log[..theirs.flushed].to_vec();
        let data = theirs.data;
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

//! The registry: every connection to a server, and the one lock under which it enters, may stay, or is cut. A connection that
//! enters after a change of the route is judged by the new route; one that entered before is cut by it: there is no between.
//! Absent: sockets; a cut is a word sent to the connection's own task.

use crate::table::{Held, Target, View};
use mainstay_model::{Moment, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// What a connection uses a server as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The primary of that epoch.
    Primary(Target),
    /// A replica.
    Replica(Target),
}

impl Place {
    pub(crate) fn target(&self) -> &Target {
        match self {
            Place::Primary(target) | Place::Replica(target) => target,
        }
    }
}

/// Why a connection was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// A newer epoch, or another place of the same primary.
    Epoch,
    /// Nothing is known of the primary any more.
    Fence,
    /// The replica is none any more.
    Replica,
}

#[derive(Debug)]
struct Entry {
    place: Place,
    cut: oneshot::Sender<Cut>,
}

#[derive(Debug)]
struct Inner {
    view: View,
    until: Moment,
    next: u64,
    entries: BTreeMap<u64, Entry>,
    /// Connections by node, so that a choice costs no walk.
    counts: BTreeMap<NodeId, usize>,
    turn: usize,
}

/// See the module. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Registry(Arc<Mutex<Inner>>);

/// A place in the registry; leaves it when dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    registry: Registry,
    id: u64,
    pub(crate) place: Place,
    pub(crate) cut: oneshot::Receiver<Cut>,
}

impl Registry {
    pub(crate) fn new(view: View) -> Self {
        let (entries, counts) = (BTreeMap::new(), BTreeMap::new());
        Self(Arc::new(Mutex::new(Inner { view, until: Moment(0), next: 0, entries, counts, turn: 0 })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets what may enter and stay; cuts what may not stay. Returns the cuts.
    pub(crate) fn allow(&self, view: &View, until: Moment) -> Vec<Cut> {
        let mut inner = self.lock();
        inner.until = until;
        if inner.view == *view {
            return Vec::new();
        }
        inner.view = view.clone();
        let doomed: Vec<(u64, Cut)> =
            inner.entries.iter().filter_map(|(id, entry)| Some((*id, verdict(view, &entry.place)?))).collect();
        doomed.into_iter().filter_map(|(id, why)| inner.remove(id).map(|entry| (entry.cut.send(why), why).1)).collect()
    }

    /// The servers that have connections here.
    pub(crate) fn servers(&self) -> BTreeSet<SocketAddr> {
        self.lock().entries.values().map(|entry| entry.place.target().address).collect()
    }

    /// Enters the primary, if it is open now.
    pub(crate) fn enter_primary(&self, now: Moment) -> Result<Ticket, Held> {
        let mut inner = self.lock();
        let Some(target) = inner.view.write.clone() else { return Err(inner.view.held) };
        if now >= inner.until {
            return Err(Held::Stale);
        }
        Ok(self.enter(&mut inner, Place::Primary(target)))
    }

    /// Enters the replica with the fewest connections that is not among those `tried` in vain; in turn where they are equal.
    pub(crate) fn enter_replica(&self, tried: &[NodeId]) -> Option<Ticket> {
        let mut inner = self.lock();
        let fit: Vec<&Target> = inner.view.reads.iter().filter(|target| !tried.contains(&target.node)).collect();
        let start = inner.turn % fit.len().max(1);
        let turned = fit[start..].iter().chain(&fit[..start]);
        let target = (*turned.min_by_key(|target| inner.counts.get(&target.node).copied().unwrap_or(0))?).clone();
        inner.turn = inner.turn.wrapping_add(1);
        Some(self.enter(&mut inner, Place::Replica(target)))
    }

    fn enter(&self, inner: &mut Inner, place: Place) -> Ticket {
        let (sender, cut) = oneshot::channel();
        let id = inner.next;
        inner.next += 1;
        *inner.counts.entry(place.target().node.clone()).or_default() += 1;
        inner.entries.insert(id, Entry { place: place.clone(), cut: sender });
        Ticket { registry: self.clone(), id, place, cut }
    }
}

impl Inner {
    fn remove(&mut self, id: u64) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        let node = &entry.place.target().node;
        if let Some(count) = self.counts.get_mut(node) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.counts.remove(node);
            }
        }
        Some(entry)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.registry.lock().remove(self.id);
    }
}

/// May it stay? `None` = yes.
pub(crate) fn verdict(view: &View, place: &Place) -> Option<Cut> {
    match place {
        Place::Primary(target) if view.keep.as_ref() == Some(target) => None,
        Place::Primary(target) if view.epoch > target.epoch || view.keep.is_some() => Some(Cut::Epoch),
        Place::Primary(_) => Some(Cut::Fence),
        Place::Replica(target) if view.keep_reads.get(&target.node) == Some(&target.address) => None,
        Place::Replica(_) => Some(Cut::Replica),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_model::Term;
    use std::net::SocketAddr;

    fn target(epoch: u64, name: &str) -> Target {
        let address = SocketAddr::from(([127, 0, 0, 1], 5000));
        Target { epoch: Term(epoch), node: NodeId::new(name).unwrap(), address }
    }

    fn view(epoch: u64, write: Option<Target>, reads: Vec<Target>) -> View {
        let held = if write.is_some() { Held::No } else { Held::NoPrimary };
        let keep_reads = reads.iter().map(|read| (read.node.clone(), read.address)).collect();
        View { epoch: Term(epoch), keep: write.clone(), write, held, reads, keep_reads }
    }

    #[test]
    fn nobody_enters_once_the_promise_ended_even_before_the_view_says_so() {
        let registry = Registry::new(view(0, None, vec![]));
        assert_eq!(registry.enter_primary(Moment(1)).unwrap_err(), Held::NoPrimary);
        registry.allow(&view(1, Some(target(1, "db1")), vec![]), Moment(100));
        assert!(registry.enter_primary(Moment(99)).is_ok());
        assert_eq!(registry.enter_primary(Moment(100)).unwrap_err(), Held::Stale);
    }

    #[test]
    fn each_cut_has_its_reason_and_leaves_no_trace() {
        let replica = target(1, "db2");
        let open = view(1, Some(target(1, "db1")), vec![replica.clone()]);
        let cases = [
            (view(2, None, vec![replica.clone()]), vec![Cut::Epoch]),
            (view(1, None, vec![replica]), vec![Cut::Fence]),
            (view(1, Some(target(1, "db1")), vec![]), vec![Cut::Replica]),
        ];
        for (next, cuts) in cases {
            let registry = Registry::new(open.clone());
            registry.allow(&open, Moment(100));
            let mut tickets = [registry.enter_primary(Moment(1)).unwrap(), registry.enter_replica(&[]).unwrap()];
            assert_eq!(registry.allow(&next, Moment(100)), cuts);
            let told: Vec<Cut> = tickets.iter_mut().filter_map(|ticket| ticket.cut.try_recv().ok()).collect();
            assert_eq!(told, cuts);
            drop(tickets);
            assert!(registry.lock().entries.is_empty() && registry.lock().counts.is_empty());
        }
    }
}

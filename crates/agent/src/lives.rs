//! Two agents under one name: each process draws a number for its life and tells it with every presence. A restart changes the
//! number once; two processes that run at the same time make it change to and fro.

use mainstay_model::NodeId;
use mainstay_model::{Moment, Span};
use mainstay_ports::clock::boot_now;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

/// Lives that are remembered of one name.
const LIVES_MAX: usize = 4;
/// So many returns to an earlier life are no late message any more.
const RETURNS: u32 = 3;
/// Within this.
const WINDOW: Span = Span(60_000);

#[derive(Debug, Default)]
struct Known {
    /// The newest last.
    lives: VecDeque<u64>,
    returns: u32,
    last_return: Option<Moment>,
}

/// What was heard of each name.
#[derive(Debug, Default)]
pub struct Lives(Mutex<BTreeMap<NodeId, Known>>);

impl Lives {
    /// A presence of this life came.
    pub fn heard(&self, node: &NodeId, life: u64) {
        self.heard_at(node, life, boot_now());
    }

    fn heard_at(&self, node: &NodeId, life: u64, now: Moment) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.entry(node.clone()).or_default();
        if known.lives.back() == Some(&life) {
            return;
        }
        if let Some(place) = known.lives.iter().position(|old| *old == life) {
            known.lives.remove(place);
            let recent = known.last_return.is_some_and(|at| now.since(at) < WINDOW);
            known.returns = if recent { known.returns.saturating_add(1) } else { 1 };
            known.last_return = Some(now);
        }
        known.lives.push_back(life);
        while known.lives.len() > LIVES_MAX {
            known.lives.pop_front();
        }
    }

    /// Names under which two processes were heard within the last minute.
    pub fn doubled(&self) -> Vec<NodeId> {
        self.doubled_at(boot_now())
    }

    fn doubled_at(&self, now: Moment) -> Vec<NodeId> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let twice =
            |known: &Known| known.returns >= RETURNS && known.last_return.is_some_and(|at| now.since(at) < WINDOW);
        all.iter().filter(|(_, known)| twice(known)).map(|(node, _)| node.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_are_one_agent_and_a_to_and_fro_is_two() {
        let (lives, db1) = (Lives::default(), NodeId::new("db1").unwrap());
        for life in 1..50 {
            lives.heard_at(&db1, life, Moment(life * 10));
            lives.heard_at(&db1, life, Moment(life * 10 + 1));
        }
        // A message of the old process that was still on its way.
        lives.heard_at(&db1, 48, Moment(500));
        lives.heard_at(&db1, 49, Moment(501));
        assert!(lives.doubled_at(Moment(502)).is_empty());
        for at in 0..4 {
            lives.heard_at(&db1, 60 + at % 2, Moment(600 + at));
        }
        assert_eq!(lives.doubled_at(Moment(700)), [db1]);
        assert!(lives.doubled_at(Moment(61_000)).is_empty(), "it is over when one of them has gone");
    }
}

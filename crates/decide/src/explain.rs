//! Reasons and events: why something was decided or not, and facts for the history. Repetition is damped.

use crate::io::Output;
use crate::mind::Mind;
use mainstay_model::{Change, Event, Lost, Moment, Reason, Term};
use std::collections::{BTreeMap, VecDeque};

const KEPT: usize = 32;
const REPEAT_MS: u64 = 60_000;

/// The last reason of each rule (rules are few and fixed), and the newest ones for people.
#[derive(Clone, Debug, Default)]
pub(crate) struct Explain {
    last: BTreeMap<&'static str, (String, Moment)>,
    pub(crate) recent: VecDeque<Reason>,
}

impl Mind {
    /// Says why. The same rule with the same text is said once a minute at most.
    pub(crate) fn reason(&mut self, rule: &'static str, text: impl Into<String>) {
        let text = text.into();
        let known = self.explain.last.get(rule);
        if known.is_some_and(|(old, at)| *old == text && self.now.since(*at).0 < REPEAT_MS) {
            return;
        }
        self.explain.last.insert(rule, (text.clone(), self.now));
        let reason = Reason { at: self.now, rule: rule.to_owned(), text, term: self.record_term() };
        if self.explain.recent.len() >= KEPT {
            self.explain.recent.pop_front();
        }
        self.explain.recent.push_back(reason.clone());
        self.out.push(Output::Reason(reason));
    }

    /// A fact for the history; the agent fills in the wall clock.
    pub(crate) fn event(&mut self, kind: &'static str, text: impl Into<String>) {
        let term = self.record_term();
        self.event_of(term, kind, text);
    }

    pub(crate) fn event_of(&mut self, term: Term, kind: &'static str, text: impl Into<String>) {
        self.event_with(term, kind, text.into(), None, None);
    }

    pub(crate) fn event_with(
        &mut self,
        term: Term,
        kind: &'static str,
        text: String,
        change: Option<Change>,
        lost: Option<Lost>,
    ) {
        let event = Event { node: self.config.me.clone(), wall_ms: 0, term, kind: kind.to_owned(), text, change, lost };
        self.out.push(Output::Event(event));
    }

    /// A fact, and the reason with the same words.
    pub(crate) fn tell(&mut self, kind: &'static str, text: impl Into<String>) {
        let text = text.into();
        self.reason(kind, text.clone());
        self.event(kind, text);
    }
}

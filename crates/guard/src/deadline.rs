//! The deadline until which the server may serve as primary. Pure: it is told the time.

use mainstay_model::{Moment, Term};

/// A deadline and the terms seen so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Deadline {
    held: Option<(Term, Moment)>,
    /// The highest term this guard was ever told; it outlives the server.
    highest: Term,
}

impl Deadline {
    /// What is held.
    pub(crate) fn held(&self) -> Option<(Term, Moment)> {
        self.held
    }

    /// Takes a later deadline, or the deadline of a higher term.
    ///
    /// # Errors
    /// When the term is older than one seen before, or the moment has passed.
    pub(crate) fn extend(&mut self, term: Term, until: Moment, now: Moment) -> Result<(), String> {
        if term < self.highest {
            return Err(format!("term {term} is older than term {}, which this guard has seen", self.highest));
        }
        if until <= now {
            return Err(format!("the deadline {until} of term {term} has passed: it is {now} now"));
        }
        let until = match self.held {
            Some((held, moment)) if held == term => moment.max(until),
            _ => until,
        };
        self.highest = term;
        self.held = Some((term, until));
        Ok(())
    }

    /// The term and moment that have passed, if so.
    pub(crate) fn passed(&self, now: Moment) -> Option<(Term, Moment)> {
        self.held.filter(|(_, until)| now >= *until)
    }

    /// The server is gone: the next one starts without.
    pub(crate) fn forget(&mut self) {
        self.held = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_older_term_is_refused_even_after_the_server_is_gone() {
        let mut deadline = Deadline::default();
        deadline.extend(Term(5), Moment(100), Moment(0)).unwrap();
        deadline.forget();
        assert_eq!(deadline.held(), None);
        assert!(deadline.extend(Term(4), Moment(100), Moment(0)).unwrap_err().contains("older than term 5"));
    }

    #[test]
    fn a_moment_that_has_passed_changes_nothing() {
        let mut deadline = Deadline::default();
        deadline.extend(Term(5), Moment(100), Moment(0)).unwrap();
        assert!(deadline.extend(Term(6), Moment(50), Moment(50)).is_err());
        assert_eq!(deadline.held(), Some((Term(5), Moment(100))));
        assert_eq!(deadline.passed(Moment(99)), None);
        assert_eq!(deadline.passed(Moment(100)), Some((Term(5), Moment(100))));
    }

    proptest! {
        /// Whatever is asked: the term never falls, and within a term the moment never moves back.
        #[test]
        fn never_back(asked in proptest::collection::vec((0u64..6, 0u64..50, any::<bool>()), 0..60)) {
            let mut deadline = Deadline::default();
            let mut highest = Term(0);
            for (step, (term, until, forget)) in asked.into_iter().enumerate() {
                let before = deadline.held();
                let taken = deadline.extend(Term(term), Moment(until), Moment(step as u64 / 2));
                prop_assert_eq!(taken.is_ok(), Term(term) >= highest && until > step as u64 / 2);
                if taken.is_ok() { highest = Term(term); }
                match (before, deadline.held()) {
                    (Some((old, was)), Some((new, is))) => prop_assert!(new > old || (new == old && is >= was)),
                    (Some(_), None) => prop_assert!(false, "a deadline vanished"),
                    (None, _) => {}
                }
                if forget { deadline.forget(); }
            }
        }
    }
}

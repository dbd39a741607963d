//! Since when a problem is there, for those whose beginning nothing else tells.
//!
//! An agent looks for problems only while somebody asks. What it sees at the first look after a pause may have begun long before: no
//! beginning is told for it, rather than a wrong one.

use crate::status::rfc3339;
use mainstay_model::status::Problem;
use mainstay_model::{Moment, Span};
use std::collections::BTreeMap;

/// Between two looks that are closer than this nothing began unseen.
const CLOSE: Span = Span(15_000);

/// The problems of the last look.
#[derive(Debug, Default)]
pub struct FirstSeen {
    looked: Option<Moment>,
    began: BTreeMap<String, Option<u64>>,
}

impl FirstSeen {
    /// Dates the problems of a look that say no beginning themselves. `wall_ms`: the wall clock at this look.
    pub fn date(&mut self, problems: &mut [Problem], now: Moment, wall_ms: u64) {
        let close = self.looked.is_some_and(|looked| now.since(looked) < CLOSE);
        let fresh = close.then_some(wall_ms);
        let began: BTreeMap<String, Option<u64>> = problems
            .iter()
            .map(key)
            .map(|key| {
                let at = self.began.get(&key).copied().unwrap_or(fresh);
                (key, at)
            })
            .collect();
        for problem in problems.iter_mut().filter(|problem| problem.since.is_none()) {
            problem.since = began.get(&key(problem)).copied().flatten().map(rfc3339);
        }
        (self.looked, self.began) = (Some(now), began);
    }
}

/// A problem's name and what it is about, which the evidence begins with.
fn key(problem: &Problem) -> String {
    let subject = problem.evidence.split_whitespace().next().unwrap_or_default();
    format!("{} {subject}", problem.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(seen: &mut FirstSeen, name: &str, at_ms: u64) -> Option<String> {
        let mut problems = [Problem {
            name: name.to_owned(),
            severity: "warning".to_owned(),
            evidence: "db1: something".to_owned(),
            hint: String::new(),
            since: None,
        }];
        seen.date(&mut problems, Moment(at_ms), at_ms);
        problems[0].since.clone()
    }

    #[test]
    fn what_was_there_at_the_first_look_has_no_known_beginning() {
        let mut seen = FirstSeen::default();
        assert_eq!(look(&mut seen, "a", 1_000_000), None);
        assert_eq!(look(&mut seen, "a", 1_001_000), None, "it is not younger than it was");
    }

    #[test]
    fn what_came_between_two_looks_is_dated_and_keeps_its_date() {
        let mut seen = FirstSeen::default();
        look(&mut seen, "a", 1_000_000);
        assert_eq!(look(&mut seen, "b", 1_001_000), Some(rfc3339(1_001_000)));
        assert_eq!(look(&mut seen, "b", 1_099_000), Some(rfc3339(1_001_000)), "it was there at both looks");
        assert_eq!(look(&mut seen, "a", 1_199_000), None, "nobody looked for long");
    }
}

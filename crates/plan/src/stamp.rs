//! What a runbook was made from, in one line of it that programs find again: on paper nobody sees that a cluster has changed.

use mainstay_model::spec::Spec;
use mainstay_model::stored_spec::fingerprint;
use std::fmt;

const BEGIN: &str = "Stamp: ";

/// A specification, by its fingerprint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    cluster: String,
    /// Its number; `None`: it stood in a file, and no cluster was asked.
    generation: Option<u64>,
    print: u64,
}

impl Stamp {
    /// That of this specification.
    #[must_use]
    pub fn of(spec: &Spec, generation: Option<u64>) -> Stamp {
        Stamp { cluster: spec.cluster.name.to_string(), generation, print: fingerprint(spec) }
    }

    /// The stamp in a runbook, whatever it was written as.
    #[must_use]
    pub fn find(text: &str) -> Option<Stamp> {
        text.split(BEGIN).skip(1).find_map(Self::parse)
    }

    /// `orders generation 7 0123456789abcdef`, or `orders file 0123456789abcdef`, and whatever follows.
    fn parse(text: &str) -> Option<Stamp> {
        let (cluster, rest) = text.split_once(' ')?;
        let (generation, rest) = match rest.strip_prefix("generation ") {
            Some(rest) => {
                let (number, rest) = rest.split_once(' ')?;
                (Some(number.parse().ok()?), rest)
            }
            None => (None, rest.strip_prefix("file ")?),
        };
        let print = u64::from_str_radix(rest.get(..16)?, 16).ok()?;
        Some(Stamp { cluster: cluster.to_owned(), generation, print })
    }

    /// Does it say the same? A generation that changed nothing of the specification makes no runbook old.
    #[must_use]
    pub fn fits(&self, now: &Stamp) -> bool {
        (&self.cluster, self.print) == (&now.cluster, now.print)
    }

    /// For people.
    #[must_use]
    pub fn words(&self) -> String {
        match self.generation {
            Some(generation) => format!("generation {generation} of {}", self.cluster),
            None => format!("a file of {} ({:08x})", self.cluster, self.print >> 32),
        }
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (cluster, print) = (&self.cluster, self.print);
        match self.generation {
            Some(generation) => write!(f, "{BEGIN}{cluster} generation {generation} {print:016x}"),
            None => write!(f, "{BEGIN}{cluster} file {print:016x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::day::Day;
    use crate::{Facts, Rehearsed, Running, html, markdown, runbook};
    use mainstay_model::config::parse;
    use mainstay_model::drill::DrillKind;

    #[test]
    fn a_stamp_is_found_in_the_page_that_it_stands_in() {
        let spec = parse("[cluster]\nname = \"orders\"\n[[node]]\nname = \"a\"\nhost = \"h\"\n", &[]).unwrap();
        let running = Running {
            generation: 7,
            changes: Vec::new(),
            version: "15.14".into(),
            primary: None,
            on: "the cluster, today".into(),
            rehearsed: vec![Rehearsed { kind: DrillKind::KillServer, on: "2026-11-20".into(), gap_ms: 412 }],
        };
        let today = Day::of(2026, 11, 27);
        for running in [None, Some(&running)] {
            let report = runbook::runbook(&Facts { spec: &spec, today, machines: &[], running, what_if: &[] });
            let stamp = Stamp::of(&spec, running.map(|running| running.generation));
            for page in [markdown::page(&report), html::page(&report)] {
                let measured = page.contains("measured in a drill (kill-server) on 2026-11-20: 412 ms");
                assert_eq!(measured, running.is_some(), "what was rehearsed stands in the page");
                assert_eq!(Stamp::find(&page).as_ref(), Some(&stamp));
            }
        }
        let mut other = spec.clone();
        other.nodes.iter_mut().for_each(|node| node.host = "elsewhere".into());
        assert!(Stamp::of(&spec, Some(7)).fits(&Stamp::of(&spec, Some(9))));
        assert!(!Stamp::of(&spec, Some(7)).fits(&Stamp::of(&other, Some(7))));
    }

    #[test]
    fn what_is_no_stamp_is_none() {
        for text in
            ["", "Stamp: ", "Stamp: orders", "Stamp: orders file 12", "Stamp: orders generation x 0123456789abcdef"]
        {
            assert_eq!(Stamp::find(text), None, "{text}");
        }
        let late = "Stamp: nothing here. Stamp: orders file 0123456789abcdef</li>";
        assert_eq!(Stamp::find(late).unwrap().words(), "a file of orders (01234567)");
    }
}

//! What is known beside the file: today, what machines showed, and what the rehearsal ended in.

use crate::day::Day;
use crate::report::Mark;
use crate::whatif::WhatIf;
use mainstay_model::drill::DrillKind;
use mainstay_model::requirements::Requirements;
use mainstay_model::spec::Spec;
use mainstay_model::{NodeId, Span};

/// What a host showed of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The node whose host it is.
    pub node: NodeId,
    /// Cores.
    pub cores: u64,
    /// Memory.
    pub memory_gb: u64,
    /// The volume of the data.
    pub disk_gb: u64,
    /// The major version of the installed server, if there is one.
    pub postgres: Option<u64>,
    /// Where and when: `db1, 2026-11-27`.
    pub on: String,
}

/// What a running cluster told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// The number of the specification in force.
    pub generation: u64,
    /// What would change: key, now, then.
    pub changes: Vec<(String, String, String)>,
    /// The server's version.
    pub version: String,
    /// Who is primary.
    pub primary: Option<String>,
    /// When it told.
    pub on: String,
    /// What was measured in drills: of each kind the newest that lost nothing.
    pub rehearsed: Vec<Rehearsed>,
}

/// A time that was measured in a drill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rehearsed {
    /// What was rehearsed.
    pub kind: DrillKind,
    /// When: `2026-11-27`.
    pub on: String,
    /// The longest time without an acknowledged write.
    pub gap_ms: u64,
}

/// Everything that a plan is made from.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// What is wanted.
    pub spec: &'a Spec,
    /// Today.
    pub today: Day,
    /// What hosts showed.
    pub machines: &'a [Machine],
    /// What the cluster told, if it runs.
    pub running: Option<&'a Running>,
    /// What the rehearsal ended in.
    pub what_if: &'a [WhatIf],
}

impl<'a> Facts<'a> {
    /// What was measured for these, as the end of a sentence; empty: nothing was.
    pub(crate) fn measured(&self, kinds: &[DrillKind]) -> String {
        let rehearsed = self.running.map_or(&[][..], |running| &running.rehearsed);
        let of = rehearsed.iter().filter(|drill| kinds.contains(&drill.kind));
        of.map(|drill| format!("; measured in a drill ({}) on {}: {}", drill.kind, drill.on, Span(drill.gap_ms)))
            .collect()
    }

    /// What is asked.
    #[must_use]
    pub fn asked(&self) -> &'a Requirements {
        &self.spec.requirements
    }

    /// Declared, or nobody said it.
    pub(crate) fn said<T: PartialEq>(&self, of: impl Fn(&Requirements) -> T) -> Mark {
        if of(self.asked()) == of(&Requirements::default()) { Mark::Default } else { Mark::Declared }
    }

    fn smallest(&self, declared: u64, mark: Mark, of: impl Fn(&Machine) -> u64) -> (u64, Mark) {
        match self.machines.iter().min_by_key(|machine| of(machine)) {
            Some(machine) => (of(machine), Mark::Measured(machine.on.clone())),
            None => (declared, mark),
        }
    }

    /// Cores of the smallest host.
    pub(crate) fn cores(&self) -> (u64, Mark) {
        self.smallest(self.asked().cores, self.said(|asked| asked.cores), |machine| machine.cores)
    }
    /// Its memory.
    pub(crate) fn memory_gb(&self) -> (u64, Mark) {
        self.smallest(self.asked().memory_gb, self.said(|asked| asked.memory_gb), |machine| machine.memory_gb)
    }
    /// Its disk.
    pub(crate) fn disk_gb(&self) -> (u64, Mark) {
        self.smallest(self.asked().disk_gb, self.said(|asked| asked.disk_gb), |machine| machine.disk_gb)
    }

    /// The server's major version, if anybody knows it.
    pub(crate) fn version(&self) -> Option<(u64, Mark)> {
        let told = self.running.and_then(|running| {
            let major = running.version.split('.').next()?.parse().ok()?;
            Some((major, Mark::Measured(running.on.clone())))
        });
        let asked = || Some((self.asked().postgres_version?, Mark::Declared));
        let seen = || {
            let machine = self.machines.iter().find(|machine| machine.postgres.is_some())?;
            Some((machine.postgres?, Mark::Measured(machine.on.clone())))
        };
        told.or_else(asked).or_else(seen)
    }

    /// Write-ahead log a second, in kilobytes, at the busiest hour.
    pub(crate) fn log_kb_per_s(&self) -> u64 {
        self.asked().writes_per_s.saturating_mul(self.asked().log_kb_per_write)
    }

    /// Write-ahead log a day, in gigabytes, if a busy hour is a tenth of a day's work.
    pub(crate) fn log_gb_per_day(&self) -> u64 {
        (self.log_kb_per_s() * 36_000).div_ceil(1024 * 1024)
    }
}

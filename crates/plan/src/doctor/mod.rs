//! What is amiss on a host: from facts that were read there to findings, each with what, why it matters and the command that mends it.
//!
//! Begin at [`examine`]. Reading the facts is elsewhere; a fact that could not be read becomes a finding of its own.

mod etcd;
pub mod facts;
mod host;
mod network;
mod papers;
mod volume;

use facts::{HostFacts, Reading};
use mainstay_model::spec::{Node, Spec};
use serde::Serialize;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It must be mended: the node does not work, or not for long.
    Problem,
    /// Nobody knows: it could not be read.
    Unknown,
    /// It works; it would work better, or longer.
    Advice,
    /// As it should be.
    Fine,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its name for programs.
    pub check: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What was found.
    pub found: String,
    /// Why it matters; empty if it is fine.
    pub why: String,
    /// What mends it, to be typed on this host; empty if it is fine.
    pub mend: Vec<String>,
}

/// The findings of one host, the gravest first.
#[must_use]
pub fn examine(spec: &Spec, node: &Node, facts: &HostFacts) -> Vec<Finding> {
    let mut found = Findings::default();
    host::system(node, facts, &mut found);
    host::places(facts, &mut found);
    host::ports(facts, &mut found);
    host::memory(spec, node, facts, &mut found);
    volume::examine(spec, node, facts, &mut found);
    papers::examine(facts, &mut found);
    papers::runbook(facts, &mut found);
    network::examine(spec, facts, &mut found);
    etcd::examine(facts, &mut found);
    found.0.sort_by_key(|finding| finding.severity);
    found.0
}

/// Is there anything that must be mended, or that nobody knows?
#[must_use]
pub fn amiss(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.severity <= Severity::Unknown)
}

/// Findings as they are made.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn fine(&mut self, check: &'static str, found: impl Into<String>) {
        self.say(Severity::Fine, check, found, "", [""; 0]);
    }

    fn say<const N: usize>(
        &mut self,
        severity: Severity,
        check: &'static str,
        found: impl Into<String>,
        why: impl Into<String>,
        mend: [impl Into<String>; N],
    ) {
        let mend = mend.into_iter().map(Into::into).collect();
        self.0.push(Finding { check, severity, found: found.into(), why: why.into(), mend });
    }

    /// What was read; a fact that was not is a finding.
    fn read<'a, T>(&mut self, check: &'static str, what: &str, reading: &'a Reading<T>) -> Option<&'a T> {
        match reading {
            Ok(value) => Some(value),
            Err(why) => {
                let found = format!("{what} could not be read: {why}");
                let mend = ["run it again as root on the node's own host; if it stays so, look by hand"];
                self.say(Severity::Unknown, check, found, "what nobody has seen may be wrong", mend);
                None
            }
        }
    }

    /// Fine if it holds, else advice.
    fn advise<const N: usize>(
        &mut self,
        check: &'static str,
        fine: bool,
        found: impl Into<String>,
        why: &str,
        mend: [String; N],
    ) {
        if fine {
            self.fine(check, found);
        } else {
            self.say(Severity::Advice, check, found, why, mend);
        }
    }
}

/// Sets a kernel parameter for now and for the next start of the host.
fn sysctl(key: &str, value: u64) -> String {
    let short = key.rsplit('.').next().unwrap_or(key);
    let file = format!("/etc/sysctl.d/60-mainstay-{}.conf", short.replace('_', "-"));
    format!("echo '{key} = {value}' > {file} && sysctl -p {file}")
}

/// Bytes for people.
fn bytes(count: u64) -> String {
    match count {
        0..0x40_0000 => format!("{} kB", count / 1024),
        0x40_0000..0x1_0000_0000 => format!("{} MB", count >> 20),
        _ => format!("{} GB", count >> 30),
    }
}

#[cfg(test)]
mod tests;

//! Certificates, and the runbook.

use super::facts::{Book, HostFacts, Stage};
use super::{Findings, Severity};

const DAY: i64 = 86_400;

pub(super) fn examine(facts: &HostFacts, found: &mut Findings) {
    if facts.stage == Stage::New {
        let why = "agents, servers and commands show each other certificates of the cluster's authority";
        return found.say(
            Severity::Advice,
            "certificates",
            "this node has no certificates yet",
            why,
            [
                format!("where the authority is: mainstay pki issue {} && mainstay pki serve", facts.node),
                format!(
                    "here: mainstay join --config {} --node {} --token - --at AUTHORITY_HOST",
                    facts.config, facts.node
                ),
            ],
        );
    }
    let (mut well, mut first) = (0_usize, i64::MAX);
    for paper in &facts.papers {
        let Some(state) = found.read("certificates", &paper.path, &paper.state) else { continue };
        let days = (state.until - facts.now) / DAY;
        let renew = [
            format!("where the authority is: mainstay pki issue {} && mainstay pki serve", facts.node),
            format!(
                "here: mainstay join --again --config {} --node {} --token - --at AUTHORITY_HOST",
                facts.config, facts.node
            ),
            "what runs takes it up within seconds; only after a change of authority: systemctl reload mainstay-agent"
                .to_owned(),
        ];
        if !state.wrong.is_empty() {
            let text = format!("{}: {}", paper.path, state.wrong.join("; "));
            found.say(
                Severity::Problem,
                "certificates",
                text,
                "others refuse to speak with this node, or to join it to clients",
                renew,
            );
        } else if state.until <= facts.now {
            let text = format!("{} has ended", paper.path);
            found.say(
                Severity::Problem,
                "certificates",
                text,
                "agents refuse each other, so that the lease may end",
                renew,
            );
        } else if days < 30 {
            let severity = if days < 3 { Severity::Problem } else { Severity::Advice };
            let text = format!("{} ends in {days} days", paper.path);
            found.say(severity, "certificates", text, "once it has ended, agents refuse each other", renew);
        } else {
            (well, first) = (well + 1, first.min(days));
        }
    }
    if well == facts.papers.len() {
        found.fine("certificates", format!("{well} certificates fit and are good for {first} days"));
    }
}

/// Does the runbook still say what holds?
pub(super) fn runbook(facts: &HostFacts, found: &mut Findings) {
    let Some(Book { path, made_from, now }) = &facts.runbook else { return };
    let name = "runbook-outdated";
    let Some(made_from) = found.read(name, &format!("the runbook {path}"), made_from) else { return };
    let why = "in the worst night somebody types what it says: hosts, addresses and directories of another time";
    let option = if path.ends_with(".html") { "--html" } else { "--markdown" };
    let mend = [
        format!("mainstay runbook --config {} {option} {path}", facts.config),
        "print it, and put the old one away".to_owned(),
    ];
    match made_from {
        Some(stamp) if stamp.fits(now) => {
            found.fine(name, format!("{path} fits {}", now.words()));
        }
        Some(stamp) => {
            let text = format!("{path} was made from {}; {} holds", stamp.words(), now.words());
            found.say(Severity::Problem, name, text, why, mend);
        }
        None => {
            let text =
                format!("{path} does not say what it was made from: it is no runbook of Mainstay, or an old one");
            found.say(Severity::Problem, name, text, why, mend);
        }
    }
}

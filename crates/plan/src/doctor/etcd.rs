//! The etcd that is the store: do its members answer this host, and may they be relied on?

use super::facts::HostFacts;
use super::{Findings, Severity};
use mainstay_model::etcd::{EtcdStanding, MemberStanding, advice};

/// The oldest whose gateway has all that is asked of it.
const OLDEST: (u64, u64) = (3, 4);

pub(super) fn examine(facts: &HostFacts, found: &mut Findings) {
    let Some(reading) = &facts.etcd else { return };
    let Some(standing) = found.read("store", "the etcd that is the store", reading) else { return };
    if !standing.works {
        let why = standing.why.as_deref().unwrap_or("no answer");
        let text = format!("etcd does not answer this host: {why}");
        let matters = "without it no node may be the primary for longer than the lease";
        match advice(why) {
            Some(advice) => found.say(Severity::Problem, "store", text, matters, [advice]),
            None => {
                let mend = [
                    "etcdctl endpoint status --cluster -w table (with etcd's own certificates)",
                    "look at [store] in the file: endpoints, ca_file, cert_file, key_file, user, password_file",
                ];
                found.say(Severity::Problem, "store", text, matters, mend);
            }
        }
    }
    for member in &standing.members {
        look(member, found);
    }
    for alarm in &standing.alarms {
        let text = format!("etcd has raised the alarm {alarm}");
        let mend = ["etcdctl alarm list; for NOSPACE: compact, defragment, then etcdctl alarm disarm"];
        found.say(Severity::Problem, "store-alarm", text, "it takes no writes: the primary loses its lease", mend);
    }
    size(standing, found);
}

fn look(member: &MemberStanding, found: &mut Findings) {
    let endpoint = &member.endpoint;
    if let Some(problem) = &member.problem {
        let text = format!("etcd's member {endpoint} does not answer this host: {problem}");
        let why = "with more than half of them away the cluster takes no writes; each is also a way around the others";
        let ask = || format!("curl -sS {endpoint}/health, from here (with etcd's certificates)");
        let mend = [advice(problem).map_or_else(ask, ToOwned::to_owned)];
        return found.say(Severity::Problem, "store-member", text, why, mend);
    }
    let version = member.version.as_deref().unwrap_or("unknown");
    if newer_than(version, OLDEST) {
        let leads = if member.leads { ", and leads" } else { "" };
        found.fine("store-member", format!("etcd's member {endpoint} answers (version {version}{leads})"));
    } else {
        let text = format!("etcd's member {endpoint} is of version {version}");
        let why = "its gateway is not known to do what is asked of it";
        found.say(
            Severity::Problem,
            "store-member",
            text,
            why,
            [format!("use etcd {}.{} or newer", OLDEST.0, OLDEST.1)],
        );
    }
}

fn newer_than(version: &str, (major, minor): (u64, u64)) -> bool {
    let mut parts = version.split('.').map(str::parse::<u64>);
    match (parts.next(), parts.next()) {
        (Some(Ok(had_major)), Some(Ok(had_minor))) => (had_major, had_minor) >= (major, minor),
        _ => false,
    }
}

fn size(standing: &EtcdStanding, found: &mut Findings) {
    let count = standing.members.len();
    let text = format!("store.endpoints names {count} member{}", if count == 1 { "" } else { "s" });
    let why = "one more lost member than it bears, and no node may be the primary";
    found.advise("store-size", count >= 3, text, why, ["an etcd of three members on three hosts bears one".to_owned()]);
}

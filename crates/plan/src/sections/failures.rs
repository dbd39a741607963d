//! Sections 5, 7 and 15: what is automatic, what to do about each failure, what is accepted.

use super::Draft;
use crate::cells;
use crate::engine::{Fit, judged};
use crate::objectives::{BY_HAND_S, Class, Loss, Outage, asked, reached, span, take_over_s};
use crate::refusal::{commit_us, needed_gb};
use crate::report::{Mark, Section};
use crate::scenarios::scenarios;
use mainstay_model::Durability;

pub(super) fn policy(draft: &Draft<'_>) -> Section {
    let (facts, layout) = (draft.facts, &draft.layout);
    let times = &facts.spec.failover;
    let mut section = Section::new(5, "failover", "Replication and failover policy");
    let most = match layout.durability {
        Durability::Strict => "nothing that was acknowledged".to_owned(),
        Durability::Available => "nothing while a replica confirms; after the cluster has said that it is degraded: what the primary acknowledged alone".to_owned(),
        Durability::Async => "what had not reached the replica that takes over; it is measured and reported".to_owned(),
    };
    section.table("Decisions and their times", &["What happens", "Who acts", "After"], vec![
        cells![Mark::Derived; "the primary's server dies, its host lives", "Mainstay", "at once: the end of its process is seen, no time-out is waited for"],
        cells![Mark::Declared; "the primary's host is silent", "Mainstay", format!("{} ms of silence, and {}", times.suspicion_ms, if layout.etcd { "nobody else hears it" } else { "a majority that does not hear it either" })],
        cells![Mark::Derived; "the take-over is done", "Mainstay", format!("{} s, clients' new connections included (rehearsed, rounded up)", take_over_s(facts, layout))],
        cells![Mark::Declared; "a primary that can not renew its claim stops", "the guard on its host", format!("{} ms less {} %", times.lease_ms, times.margin_percent)],
        cells![Mark::Derived; "a failed node returns", "Mainstay", "it is rewound or cloned, what its log alone held is kept and reported"],
        cells![Mark::Derived; "a planned change of primary", "a person: mainstay switchover", "new work is held meanwhile; open transactions finish first"],
    ]);
    section.say(Mark::Derived, format!("Most that a take-over may lose: {most}."));
    let takes = commit_us(facts, layout);
    section.say(
        Mark::Derived,
        format!(
            "A commit takes about {}.{} ms without load ({} asked): the disk's flush{}.",
            takes / 1000,
            takes % 1000 / 100,
            facts.asked().write_latency_ms,
            if layout.waits == 0 { "" } else { ", the way to a replica and back, and its flush" }
        ),
    );
    let store = if layout.etcd {
        "making the cluster's part of etcd anew after it was lost or restored from an older copy"
    } else {
        "rebuilding the store after its majority is lost for ever"
    };
    section.say(Mark::Derived, format!("Not automatic, on purpose: a take-over that may lose acknowledged writes (mainstay failover --accept-data-loss), {store} (mainstay recover), going back to the old primary, and restoring a backup."));
    section
}

pub(super) fn matrix(draft: &Draft<'_>) -> Section {
    let mut section = Section::new(7, "recovery", "Recovery matrix");
    let rows = scenarios(draft.facts).into_iter().map(|each| {
        let command = first_commands(&each.commands);
        cells![Mark::Derived; each.title, each.seen, each.decides, command, each.time, each.loss, each.verify]
    });
    section.table(
        "Scenario by scenario",
        &["What", "Seen by", "Who decides", "First command", "Time", "Loss", "Verified by"],
        rows.collect(),
    );
    section.say(Mark::Derived, format!("Times are derived, not measured: section 14 has the drills that replace them. Where a person must act, {} are counted until somebody is there and has decided.", span(BY_HAND_S)));
    section
}

fn first_commands(commands: &str) -> String {
    commands.lines().find(|line| !line.starts_with('#')).unwrap_or_default().to_owned()
}

pub(super) fn risk_texts(draft: &Draft<'_>) -> Vec<String> {
    let (facts, layout) = (draft.facts, &draft.layout);
    let mut found = Vec::new();
    for reached in reached(facts, layout) {
        let (loss, outage) = asked(facts, reached.class);
        if matches!(reached.class, Class::Host | Class::Zone)
            && matches!(reached.outage, Outage::ByHand(_) | Outage::Restore(_))
            && outage.is_none()
        {
            found.push(format!(
                "When {}, writes stand still until a person acts: {}.",
                reached.class.words(),
                reached.why
            ));
        }
        if let (Loss::Usually(seconds), Some(most)) = (reached.loss, loss) {
            found.push(format!("When {}, usually less than {seconds} s are lost and {most} s are allowed, but nothing bounds it while a replica is behind: the alert on lag does.", reached.class.words()));
        }
    }
    if layout.durability == Durability::Async {
        found.push("Durability async: a take-over may lose the newest commits; mainstay history shows what was at risk each time.".to_owned());
    }
    if layout.data() == 1 {
        found.push("One copy of the data: its disk is the only one until a backup is restored.".to_owned());
    } else if layout.durability == Durability::Strict && layout.data() == layout.waits + 1 {
        found.push("Every replica is needed for every commit (strict): each restart of a replica's host blocks writes for as long.".to_owned());
    }
    if draft.facts.spec.store.is_etcd() {
        found.push("The store is an etcd: everything here holds while more than half of its members answer. Who keeps it up is not part of this plan.".to_owned());
    } else if layout.votes() > 1 && layout.votes().is_multiple_of(2) {
        found.push(format!(
            "{} votes bear no more failures than {}: one vote costs a host and brings nothing.",
            layout.votes(),
            layout.votes() - 1
        ));
    }
    found.extend(places(draft));
    let (needed, disk) = (needed_gb(facts, 12), facts.disk_gb().0);
    if needed * 100 > disk * 80 {
        found.push(format!("In twelve months data and log need {needed} GB, more than 80 % of {disk} GB."));
    }
    for judged in judged(facts.asked()).iter().filter(|judged| judged.fits[0] == Fit::Partly) {
        found.push(format!("PostgreSQL serves {:?} with limits: {}.", judged.need, judged.reason));
    }
    if facts.asked().working_set_gb() > facts.memory_gb().0 * 7 / 10 {
        found.push(format!(
            "The working set of {} GB does not fit into the memory of {} GB: reads wait for the disk.",
            facts.asked().working_set_gb(),
            facts.memory_gb().0
        ));
    }
    if facts.asked().on_call.is_empty() {
        found.push("Nobody is named as on call (requirements.on_call).".to_owned());
    }
    found.push("Backups are planned here and not checked by this plan: until a restore drill succeeded, losses of \"all hosts\" and \"by mistake\" are declared, not proved.".to_owned());
    found
}

fn places(draft: &Draft<'_>) -> Vec<String> {
    let layout = &draft.layout;
    let mut found = Vec::new();
    match layout.zones() {
        None => found.push(
            "Nodes without zone: it is not known which hosts share power, network or a machine, and fail together."
                .to_owned(),
        ),
        Some(zones) if zones.len() == 1 && layout.votes() > 1 => {
            found.push("All nodes are in one zone: what strikes it strikes the whole cluster.".to_owned())
        }
        Some(_) => {}
    }
    let mut hosts: Vec<&str> = draft.facts.spec.nodes.iter().map(|node| node.host.as_str()).collect();
    let all = hosts.len();
    hosts.sort_unstable();
    hosts.dedup();
    if hosts.len() < all {
        found.push(
            "Several nodes are on one host: they fail together, and the arithmetic counts them as apart.".to_owned(),
        );
    }
    found
}

pub(super) fn risks(draft: &Draft<'_>) -> Section {
    let mut section = Section::new(15, "risks", "Known deviations and accepted risks");
    let rows = risk_texts(draft)
        .into_iter()
        .zip(1..)
        .map(|(text, number): (String, usize)| cells![Mark::Derived; number, text, "to be filled in"]);
    section.table("Accepted with this plan", &["No.", "Risk", "Accepted by, until"], rows.collect());
    section.table("Deviations of PostgreSQL itself", &["What", "So"], vec![
        cells![Mark::Derived; "a session may set synchronous_commit lower, for itself", "its commits are not protected; applications must not do it for what may not be lost"],
        cells![Mark::Derived; "cancelling a statement ends the wait for replicas", "the commit is done, with a warning, and may be lost in a take-over"],
        cells![Mark::Derived; "replicas may show a commit before it is acknowledged", "reads from the read address may see what a take-over takes back; reads from the write address do not"],
    ]);
    section
}

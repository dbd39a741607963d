//! Sections 1 to 3: what it is, what is asked, how it is built.

use super::Draft;
use crate::availability::{Assumed, a_year, best, percent, without_writes};
use crate::cells;
use crate::engine;
use crate::layout::{Layout, Pace};
use crate::objectives::{CLASSES, asked, span, take_over_s};
use crate::report::{Block, Mark, Row, Section, row};
use crate::whatif::{Ended, WhatIf};

fn or_not_said(text: Option<&String>) -> (String, Mark) {
    text.map_or_else(|| ("not said".to_owned(), Mark::Default), |text| (text.clone(), Mark::Declared))
}

pub(super) fn cover(draft: &Draft<'_>) -> Section {
    let facts = draft.facts;
    let mut section = Section::new(1, "cover", "Cover");
    let (owner, owner_mark) = or_not_said(facts.asked().owner.as_ref());
    let mut rows = vec![
        cells![Mark::Declared; "Cluster", facts.spec.cluster.name],
        cells![Mark::Derived; "Plan made on", facts.today],
        cells![owner_mark; "Answers for it", owner],
        cells![Mark::Derived; "Expected availability of writes", availability(draft)],
        cells![Mark::Derived; "Host failures survived without a person", draft.layout.bears()],
        cells![Mark::Derived; "Risks accepted (section 15)", super::failures::risk_texts(draft).len()],
        cells![Mark::Declared; "Approved by, on", "to be filled in"],
        cells![Mark::Declared; "Last drill, next drill", "none recorded; section 14 has the dates"],
    ];
    if let Some(running) = facts.running {
        let primary = running.primary.clone().unwrap_or_else(|| "none".to_owned());
        let seen = Mark::Measured(running.on.clone());
        rows.insert(2, cells![seen.clone(); "Generation in force", running.generation]);
        rows.insert(3, cells![seen.clone(); "Server version", running.version]);
        rows.insert(4, cells![seen; "Primary", primary]);
    }
    section.table("The cluster in short", &["What", "Value"], rows);
    section
}

pub(super) fn assumed(draft: &Draft<'_>) -> Assumed {
    #[expect(clippy::cast_precision_loss, reason = "a few seconds")]
    let seconds = take_over_s(draft.facts, &draft.layout) as f64;
    Assumed::of(draft.facts.asked(), seconds)
}

fn availability(draft: &Draft<'_>) -> String {
    let without = without_writes(&draft.layout, &assumed(draft));
    format!("{} ({} a year without writes)", percent(without), a_year(without))
}

pub(super) fn service(draft: &Draft<'_>) -> Section {
    let facts = draft.facts;
    let asked_for = facts.asked();
    let mut section = Section::new(2, "service", "Service and objectives");
    let (purpose, mark) = or_not_said(asked_for.purpose.as_ref());
    section.table("What it is for", &["What", "Value"], vec![
        cells![mark; "The data", purpose],
        cells![facts.said(|asked| asked.classification); "Who may see it", asked_for.classification],
        cells![facts.said(|asked| asked.workload); "Most of the work", asked_for.workload],
        cells![facts.said(|asked| asked.size_gb); "Size, growth", format!("{} GB, {} GB a month", asked_for.size_gb, asked_for.growth_gb_per_month)],
        cells![facts.said(|asked| asked.working_set_gb); "Working set", format!("{} GB", asked_for.working_set_gb())],
        cells![facts.said(|asked| (asked.writes_per_s, asked.reads_per_s)); "Transactions a second, busiest hour", format!("{} write, {} read", asked_for.writes_per_s, asked_for.reads_per_s)],
        cells![Mark::Derived; "Write-ahead log", format!("{} MB/s at the busiest hour, {} GB a day", crate::parameters::tenths(facts.log_kb_per_s()), facts.log_gb_per_day())],
        cells![facts.said(|asked| asked.clients); "Client connections", asked_for.clients],
    ]);
    let mut rows: Vec<Row> = Vec::new();
    for (class, reached) in CLASSES.iter().zip(crate::objectives::reached(facts, &draft.layout)) {
        let (loss, outage) = asked(facts, *class);
        let shown = |value: Option<u64>| value.map_or_else(|| "not said".to_owned(), span);
        rows.push(row(
            Mark::Derived,
            [
                class.words().to_owned(),
                shown(loss),
                reached.loss.words(),
                shown(outage),
                reached.outage.words(),
                reached.why,
            ],
        ));
    }
    section.table(
        "Objectives and what is reached",
        &["When", "Loss asked", "Loss reached", "Outage asked", "Outage reached", "Because"],
        rows,
    );
    let judged = engine::judged(asked_for);
    let rows = judged.iter().map(|each| {
        let fits = each.fits.map(engine::Fit::words);
        row(Mark::Derived, [each.need, fits[0], fits[1], fits[2], fits[3], each.reason])
    });
    section.table(
        "Engines and the stated needs",
        &["Need", "PostgreSQL", "MySQL", "MariaDB", "MongoDB", "Why"],
        rows.collect(),
    );
    let others: Vec<String> = engine::suited(asked_for)
        .into_iter()
        .filter(|(name, fit)| *name != "PostgreSQL" && *fit == engine::Fit::Yes)
        .map(|(name, _)| name.to_owned())
        .collect();
    let others = if others.is_empty() {
        "none of the others serves all of them without limits".to_owned()
    } else {
        format!("{} would do as well", others.join(" and "))
    };
    section.say(
        Mark::Derived,
        format!(
            "Engine postgres: it serves the stated needs; {others}. Mainstay of this version runs PostgreSQL only."
        ),
    );
    section
}

pub(super) fn architecture(draft: &Draft<'_>) -> Section {
    let mut section = Section::new(3, "architecture", "Architecture and failures");
    section.blocks.push(Block::Picture);
    nodes(draft, &mut section);
    arithmetic(draft, &mut section);
    what_if(draft, &mut section);
    availability_table(draft, &mut section);
    connections(draft, &mut section);
    section
}

fn nodes(draft: &Draft<'_>, section: &mut Section) {
    let spec = draft.facts.spec;
    let rows = spec.nodes.iter().map(|node| {
        let what = match (node.witness, spec.store.is_etcd()) {
            (true, false) => "witness: votes, holds no data",
            (true, true) => "witness: holds no data, and has no vote where the store is an etcd",
            (false, _) => "data, may be primary",
        };
        let server = if node.witness { "none".to_owned() } else { node.port.to_string() };
        cells![Mark::Declared; node.name, node.host, node.zone.as_deref().unwrap_or("not said"), what, server, node.agent_port, node.health_port]
    });
    section.table("Nodes", &["Node", "Host", "Zone", "Is", "Server", "Agent", "Health"], rows.collect());
}

fn arithmetic(draft: &Draft<'_>, section: &mut Section) {
    let layout = &draft.layout;
    let (votes, data, waits) = (layout.votes(), layout.data(), layout.waits);
    let spare = |count: usize| if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") };
    let store = &draft.facts.spec.store;
    let members = store.endpoints.len();
    let votes_row = if store.is_etcd() {
        cells![Mark::Declared; "Store", format!("an etcd of {members}: {}", store.endpoints.join(", ")), format!("the cluster decides while {} or more of its members answer, however few nodes are left; everything below takes it as working", members / 2 + 1)]
    } else {
        cells![Mark::Derived; "Votes", format!("{votes}: a majority is {}", layout.majority()), format!("the store works while {} or fewer are away", spare(votes - layout.majority()))]
    };
    let mut rows = vec![
        votes_row,
        cells![Mark::Derived; "Copies of the data", data.to_string(), format!("{} beside the primary", replicas(data - 1))],
        cells![Mark::Declared; "Durability", layout.durability.as_str(), match layout.durability {
            mainstay_model::Durability::Strict => "block rather than acknowledge what could be lost",
            mainstay_model::Durability::Available => "go on alone when no replica is left, and say so",
            mainstay_model::Durability::Async => "never wait; a take-over may lose the newest writes, and reports them",
        }],
        cells![Mark::Derived; "A commit waits for", format!("{waits} of {}", replicas(data - 1)), format!("each acknowledged commit is in at least {} cop{}", layout.copies(), if waits == 0 { "y" } else { "ies" })],
        cells![Mark::Derived; "An election needs", format!("{} of {data} copies", data - waits.min(data - 1)), "any so many of them meet every set that acknowledged a commit".to_owned()],
    ];
    if waits == 0 {
        rows.pop();
    }
    if layout.durability == mainstay_model::Durability::Strict && waits > 0 {
        rows.push(cells![Mark::Derived; "Writes need", format!("{} data nodes", waits + 1), "the primary, and those that a commit waits for"]);
    }
    if let Some(zones) = layout.zones() {
        let shown =
            zones.iter().map(|zone| format!("{zone}: {}", layout.zone(zone).len())).collect::<Vec<_>>().join(", ");
        let borne = zones.iter().filter(|zone| layout.without_zone(zone) == crate::layout::Writes::GoOn).count();
        rows.push(
            cells![Mark::Derived; "Zones", shown, format!("{borne} of {} may be lost without a person", zones.len())],
        );
    }
    section.table("Quorum arithmetic", &["What", "Number", "So"], rows);
    let recommended = best(votes, layout, &assumed(draft));
    if let Some((other, without)) = recommended.filter(|(other, _)| (other.votes(), other.data()) != (votes, data)) {
        let now = without_writes(
            &Layout {
                places: layout
                    .places
                    .iter()
                    .map(|place| crate::layout::Place { zone: None, ..place.clone() })
                    .collect(),
                ..layout.clone()
            },
            &assumed(draft),
        );
        if without < now * 0.9 {
            section.say(Mark::Derived, format!(
                "With {} of the {votes} hosts as {} data node(s) and {} witness(es), writes would stand still {} a year instead of {} (hosts alone, without zones).",
                other.votes(), other.data(), other.votes() - other.data(), a_year(without), a_year(now)
            ));
        }
    }
}

fn replicas(count: usize) -> String {
    format!("{count} replica{}", if count == 1 { "" } else { "s" })
}

fn what_if(draft: &Draft<'_>, section: &mut Section) {
    let cases = draft.facts.what_if;
    if cases.is_empty() {
        section.say(Mark::Derived, "The failures were not rehearsed: the rehearsal could not found this cluster. Only the arithmetic above is known.");
        return;
    }
    let singles = cases.iter().filter(|case| case.failed.len() <= 1);
    section.table(
        "What if one fails (the real decisions, rehearsed)",
        &["Fails", "Then", "Longest gap", "Lost"],
        singles.map(|case| case_row(draft, case)).collect(),
    );
    section.table("What if two fail", &["Fail", "Then", "Longest gap", "Lost"], pairs(draft, cases));
    let zones = cases.iter().filter(|case| case.failed.len() > 2);
    section.table(
        "What if a zone fails",
        &["Fail", "Then", "Longest gap", "Lost"],
        zones.map(|case| case_row(draft, case)).collect(),
    );
    let primary = cases.first().map(|case| case.primary.to_string()).unwrap_or_default();
    let store = if draft.layout.etcd {
        "the etcd goes on answering"
    } else {
        "the store answers nothing for 1 s after a node was lost"
    };
    section.say(Mark::Derived, format!(
        "Rehearsed with {primary} as primary: the decision code of every node ran in a small world in which hosts vanish without a word, {store}, \
         a promotion takes 0.3 s and a start 0.5 s. The gap is the longest time between two acknowledged commits; \
         real hosts add what their disks and clients need. Failures of networks are not among them: docs/promises.md says what is tested."
    ));
}

/// Pairs of failures; at once and one after the other share a line where they end the same.
fn pairs(draft: &Draft<'_>, cases: &[WhatIf]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for case in cases.iter().filter(|case| case.failed.len() == 2) {
        let row = case_row(draft, case);
        if let Some(last) = rows.last_mut().filter(|last| last.cells.get(1..) == row.cells.get(1..))
            && let (Some(old), Some(new)) = (last.cells.first_mut(), row.cells.first())
            && let Some(both) = old.strip_suffix(AT_ONCE)
            && Some(both) == new.strip_suffix(ONE_BY_ONE)
        {
            *old = format!("{both}, at once or one after the other");
            continue;
        }
        rows.push(row);
    }
    rows
}

const AT_ONCE: &str = ", at once";
const ONE_BY_ONE: &str = ", one after the other";

fn case_row(draft: &Draft<'_>, case: &WhatIf) -> Row {
    let name = |name: &mainstay_model::NodeId| {
        if *name == case.primary { format!("{name} (primary)") } else { name.to_string() }
    };
    let names: Vec<String> = case.failed.iter().map(name).collect();
    let fails = match (names.len(), case.pace) {
        (0, _) => format!("the database server of {} (primary)", case.primary),
        (1, _) => names.concat(),
        (_, Pace::AtOnce) => format!("{}{AT_ONCE}", names.join(" and ")),
        (_, Pace::OneByOne) => format!("{}{ONE_BY_ONE}", names.join(" and ")),
    };
    let (then, gap) = match case.ended {
        Ended::Serves { gap_ms } if gap_ms < 100 => ("writes go on by themselves".to_owned(), "none".to_owned()),
        Ended::Serves { gap_ms } => {
            let tenths = gap_ms.div_ceil(100);
            ("writes go on by themselves".to_owned(), format!("{}.{} s", tenths / 10, tenths % 10))
        }
        Ended::Stopped => {
            let after = draft.layout.after(&case.failed, case.hits_primary(), case.pace);
            let until = if after == crate::layout::Writes::NoData {
                "until a backup is restored, or a host returns"
            } else {
                "until one returns, or a person acts"
            };
            (after.words().to_owned(), until.to_owned())
        }
    };
    cells![Mark::Derived; fails, then, gap, if case.lost { "the newest commits" } else { "nothing" }]
}

fn availability_table(draft: &Draft<'_>, section: &mut Section) {
    let assumed = assumed(draft);
    let here = without_writes(&draft.layout, &assumed);
    let mut rows = vec![
        cells![Mark::Derived; "this plan", draft.layout.votes(), draft.layout.data(), percent(here), a_year(here)],
    ];
    for hosts in [1, 2, 3, 5, 7] {
        if let Some((layout, without)) = best(hosts, &draft.layout, &assumed) {
            rows.push(cells![Mark::Derived; format!("best of {hosts} host{}, without zones", if hosts == 1 { "" } else { "s" }), layout.votes(), layout.data(), percent(without), a_year(without)]);
        }
    }
    section.table(
        "Expected availability of writes",
        &[
            "Layout",
            if draft.layout.etcd { "Nodes" } else { "Votes" },
            "Copies",
            "Availability",
            "A year without writes",
        ],
        rows,
    );
    let asked = draft.facts.asked();
    section.say(draft.facts.said(|asked| (asked.host_fails_every_days, asked.repair_hours, asked.zone_fails_every_days)), format!(
        "The model: hosts fail independently, once in {} days, and are back after {} h; a zone fails as a whole once in {} days, for as long; each failure of the primary \
         costs one take-over of {} s. Writes stand still while {} too few for the durability.",
        asked.host_fails_every_days, asked.repair_hours, asked.zone_fails_every_days, take_over_s(draft.facts, &draft.layout),
        if draft.layout.etcd { "copies are" } else { "votes or copies are" }
    ));
    let etcd = if draft.layout.etcd { "failures of the etcd, " } else { "" };
    section.say(Mark::Derived, format!("Not in the model: {etcd}mistakes of people, faults in software that strike all nodes, and failures of what lies between clients and hosts. They are often the larger part."));
}

fn connections(draft: &Draft<'_>, section: &mut Section) {
    let spec = draft.facts.spec;
    let hosts: Vec<&str> = match (&spec.proxy.host, spec.proxy.on_nodes) {
        (_, true) => spec.nodes.iter().map(|node| node.host.as_str()).collect(),
        (Some(host), false) => vec![host.as_str()],
        (None, false) => Vec::new(),
    };
    if hosts.is_empty() {
        section.say(Mark::Declared, "No proxy: proxy.on_nodes is false and proxy.host is not set. Clients must find the primary by the health endpoints (GET /primary on each node's health port).");
        return;
    }
    let dsn = |port: u16| {
        format!("host={} port={} dbname=app", hosts.join(","), vec![port.to_string(); hosts.len()].join(","))
    };
    section.table(
        "Where clients connect",
        &["For", "libpq connection string"],
        vec![
            row(Mark::Derived, ["writes".to_owned(), dsn(spec.proxy.write_port)]),
            row(Mark::Derived, ["reads".to_owned(), dsn(spec.proxy.read_port)]),
        ],
    );
    let sizes = crate::parameters::sizes(draft.facts);
    section.table(
        "Connection budget",
        &["What", "Connections", "Because"],
        vec![
            row(
                draft.facts.said(|asked| asked.clients),
                ["applications".to_owned(), draft.facts.asked().clients.to_string(), "requirements.clients".to_owned()],
            ),
            row(
                Mark::Derived,
                [
                    "server, each node".to_owned(),
                    sizes.connections.to_string(),
                    "max_connections; every replica has as many, since it may become primary".to_owned(),
                ],
            ),
            row(
                Mark::Derived,
                [
                    "reserved".to_owned(),
                    crate::parameters::RESERVED.to_string(),
                    "superuser_reserved_connections: the agent gets in when clients have used up theirs".to_owned(),
                ],
            ),
            row(
                Mark::Declared,
                [
                    "one proxy".to_owned(),
                    spec.proxy.max_connections.to_string(),
                    format!(
                        "proxy.max_connections, open or held; new ones are held for {} ms while there is no primary",
                        spec.proxy.hold_ms
                    ),
                ],
            ),
        ],
    );
    if draft.facts.asked().clients > 1000 {
        section.say(Mark::Derived, "More than a thousand connections: PostgreSQL has one process for each. Pools in the applications, as many as there are cores times four in all, serve more requests than more connections do.");
    }
}

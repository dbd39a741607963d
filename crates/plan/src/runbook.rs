//! The emergency plan of this cluster: a card for three in the morning, then one page for each thing that can happen.

use crate::cells;
use crate::facts::Facts;
use crate::picture;
use crate::report::{Block, Mark, Report, Section, Statement};
use crate::scenarios::{Names, Scenario, scenarios};
use crate::stamp::Stamp;

/// The runbook.
#[must_use]
pub fn runbook(facts: &Facts<'_>) -> Report {
    let all = scenarios(facts);
    let mut sections = vec![card(facts, &all)];
    sections.extend(all.iter().zip(2..).map(|(scenario, number)| page(scenario, number)));
    sections.push(evidence(all.len() + 2));
    Report {
        kind: "Runbook",
        cluster: facts.spec.cluster.name.to_string(),
        date: facts.today.to_string(),
        summary: summary(facts),
        sections,
        picture: picture::draw(facts),
    }
}

fn summary(facts: &Facts<'_>) -> Vec<Statement> {
    let seen = facts.running.map_or(Mark::Derived, |running| Mark::Measured(running.on.clone()));
    let state = match facts.running {
        Some(running) => format!(
            "Made from generation {} in force; primary then: {}; server {}.",
            running.generation,
            running.primary.as_deref().unwrap_or("none"),
            running.version
        ),
        None => "Made from the file alone: the cluster was not asked, and examples take the first node as the primary."
            .to_owned(),
    };
    vec![
        Statement { text: state, mark: seen },
        Statement { text: Stamp::of(facts.spec, facts.running.map(|running| running.generation)).to_string(), mark: Mark::Derived },
        Statement {
            text: "Keep it outside the cluster, on paper too, and make it anew when nodes, addresses or durability change: `mainstay doctor --runbook FILE` says whether it still fits.".to_owned(),
            mark: Mark::Derived,
        },
    ]
}

fn card(facts: &Facts<'_>, all: &[Scenario]) -> Section {
    let mut section = Section::new(1, "card", "The card for three in the morning");
    section.code("First", "mainstay status\nmainstay why\nmainstay history");
    let rows =
        all.iter().zip(2..).map(|(scenario, number)| cells![Mark::Derived; scenario.seen, scenario.title, number]);
    section.table("What you see, and where to go on", &["You see", "It is", "Page"], rows.collect());
    let names = Names::of(facts);
    let nodes = facts.spec.nodes.iter().map(|node| {
        let what = if node.witness { "witness" } else { "data" };
        cells![Mark::Declared; node.name, node.host, node.zone.as_deref().unwrap_or("not said"), what, facts.spec.node_dir(node).display()]
    });
    section.table("Nodes", &["Node", "Host", "Zone", "Is", "Directory"], nodes.collect());
    section.blocks.push(Block::Picture);
    let asked = facts.asked();
    let mut people: Vec<_> = asked.on_call.iter().map(|who| cells![Mark::Declared; "on call", who]).collect();
    people
        .extend(asked.owner.iter().map(|owner| cells![Mark::Declared; "decides whether anything may be lost", owner]));
    if people.is_empty() {
        people.push(
            cells![Mark::Default; "on call, and who decides", "not said: requirements.on_call and requirements.owner"],
        );
    }
    section.table("Who", &["Role", "Who"], people);
    section.say(Mark::Derived, "Never: delete a data directory, delete files in pg_wal, start a server by hand beside a running agent, or say --accept-data-loss without whoever decides.");
    section.code("The superuser, on the primary's host, as the agent's user", names.superuser());
    section
}

fn page(scenario: &Scenario, number: usize) -> Section {
    let mut section = Section::new(number, scenario.key, scenario.title);
    section.table(
        "Before you begin",
        &["What", "Here"],
        vec![
            cells![Mark::Derived; "You see", scenario.seen],
            cells![Mark::Derived; "STOP IF", scenario.stop_if],
            cells![Mark::Derived; "Who decides", scenario.decides],
            cells![Mark::Derived; "Happens by itself", scenario.itself],
        ],
    );
    section.code("Type", scenario.commands.clone());
    if scenario.commands.contains("/run -") {
        section.say(Mark::Derived, "Lines with -h DIRECTORY/run: on that node's own host, as the agent's user. Words in capitals are to be replaced.");
    } else {
        section.say(Mark::Derived, "Words in capitals are to be replaced.");
    }
    section.table(
        "Afterwards",
        &["What", "Here"],
        vec![
            cells![Mark::Derived; "Time", scenario.time],
            cells![Mark::Derived; "Loss", scenario.loss],
            cells![Mark::Derived; "It worked if", scenario.verify],
            cells![Mark::Derived; "Way back", scenario.back],
        ],
    );
    section
}

fn evidence(number: usize) -> Section {
    let mut section = Section::new(number, "evidence", "Evidence to save first");
    section.code("On a host with the cluster's file and a certificate", "mainstay status --json > status.json\nmainstay history --all --since 1d --json > history.json\nmainstay why --json > why.json");
    section.code("On each host", "journalctl -u mainstay-agent --since -1d > agent.log");
    section.say(
        Mark::Derived,
        "Then write down: when it was seen and by whom, what was typed and when, when writes worked again.",
    );
    section
}

/// Every line of commands in the runbook and in the scenarios, for tests that look each up.
#[must_use]
pub fn commands(facts: &Facts<'_>) -> Vec<String> {
    let report = runbook(facts);
    let blocks = report.sections.iter().flat_map(|section| &section.blocks);
    let code = blocks.filter_map(|block| if let Block::Code { text, .. } = block { Some(text) } else { None });
    code.flat_map(|text| text.lines()).map(str::to_owned).collect()
}

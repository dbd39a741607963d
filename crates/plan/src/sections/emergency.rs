//! Sections 8, 9 and 16: emergencies, communication, and how to do without Mainstay.

use super::Draft;
use crate::cells;
use crate::report::{Block, Mark, Section};
use crate::scenarios::scenarios;

pub(super) fn procedures(draft: &Draft<'_>) -> Section {
    let mut section = Section::new(8, "emergency", "Emergency procedures");
    section.say(Mark::Derived, "First, always: mainstay status, then mainstay why. If several things are wrong, begin with what stands further up.");
    for scenario in scenarios(draft.facts) {
        let rows = vec![
            cells![Mark::Derived; "Seen by", scenario.seen],
            cells![Mark::Derived; "Stop if", scenario.stop_if],
            cells![Mark::Derived; "By itself", scenario.itself],
            cells![Mark::Derived; "Time, loss", format!("{}; {}", scenario.time, scenario.loss)],
            cells![Mark::Derived; "Verified by", scenario.verify],
            cells![Mark::Derived; "Way back", scenario.back],
        ];
        section.table(scenario.title, &["", "This cluster"], rows);
        section.code(format!("{}: commands", scenario.title), scenario.commands);
    }
    section
}

pub(super) fn communication(draft: &Draft<'_>) -> Section {
    let asked = draft.facts.asked();
    let mut section = Section::new(9, "communication", "Communication");
    let mut rows: Vec<_> = asked.on_call.iter().zip(1..).map(|(who, place): (&String, usize)| cells![Mark::Declared; format!("on call, {place}"), who, "is called by alerts that page"]).collect();
    if rows.is_empty() {
        rows.push(cells![Mark::Default; "on call", "not said (requirements.on_call)", "is called by alerts that page"]);
    }
    let owner = asked.owner.clone().map_or_else(|| cells![Mark::Default; "answers for the data", "not said (requirements.owner)", "decides whether anything may be lost"], |owner| cells![Mark::Declared; "answers for the data", owner, "decides whether anything may be lost"]);
    rows.push(owner);
    section.table("Who", &["Role", "Who", "What for"], rows);
    section.table("What to say", &["When", "Text"], vec![
        cells![Mark::Derived; "it begins", format!("Since HH:MM writes to {} do not work. Reads: yes/no. We know the cause: yes/no. Next message at HH:MM.", draft.facts.spec.cluster.name)],
        cells![Mark::Derived; "it is over", "Since HH:MM writes work again; they did not for N minutes. Lost: nothing / what mainstay history says. The cause was …; a report follows on …"],
    ]);
    section.code("Save this first: it shows later what happened", "mainstay status --json > status.json\nmainstay history --all --since 1d --json > history.json\nmainstay why --json > why.json\n# on each host\njournalctl -u mainstay-agent --since -1d > agent.log");
    section
}

pub(super) fn appendix(draft: &Draft<'_>) -> Section {
    let mut section = Section::new(16, "appendix", "Appendix: without this product");
    section.say(
        Mark::Derived,
        "Data and configuration are an ordinary PostgreSQL: everything below uses its own tools only.",
    );
    let rows = draft.facts.spec.nodes.iter().filter(|node| !node.witness).map(|node| {
        let dir = draft.facts.spec.node_dir(node);
        cells![Mark::Declared; node.name, node.host, format!("{}/data", dir.display()), format!("{}/conf", dir.display()), format!("{}/log/server.log", dir.display())]
    });
    section.table(
        "Where everything is",
        &["Node", "Host", "Data", "Configuration", "The server's log"],
        rows.collect(),
    );
    if let Some(scenario) = scenarios(draft.facts).into_iter().find(|scenario| scenario.key == "by-hand") {
        section.code("Run the database by hand", scenario.commands);
        section.say(Mark::Derived, format!("Stop if: {}", scenario.stop_if));
        section.say(Mark::Derived, format!("Back: {}", scenario.back));
    }
    if crate::vaulted::is(draft.facts) {
        let says = "The repository that the file names is read by the program mainstay alone, which needs no cluster for it; its format is written down in docs/vault-format.md. \
                    Backups that PostgreSQL's own tools read are made beside it like this:";
        section.say(Mark::Derived, says);
        section.code("A copy from the repository, without a cluster", crate::vaulted::copy(draft.facts, true));
        let names = crate::scenarios::Names::of(draft.facts);
        section.code(
            "Backups with PostgreSQL's own tools, on a host apart from the cluster",
            super::care::by_own_tools(draft, &names),
        );
    }
    section.blocks.push(Block::Code {
        caption: "Restore by hand".to_owned(),
        text: crate::by_hand::restore_commands(draft.facts),
    });
    section
}

//! `mainstay apply`: makes real hosts as the file says, over ssh. Looks, decides (`mainstay_plan::apply`), asks, carries out, and looks again until
//! nothing is left to do; so a run that ended anywhere is gone on with by typing it again.
//!
//! Begin at [`run`]. What is done on a host is done there by the same program (`mainstay host`, `on_host`); the executor here chooses nothing.

mod carry;
mod fleet;
mod passes;
mod password;
mod ssh;
mod view;

use super::plan::MadeFrom;
use crate::cli::{Apply, Global};
use crate::failure::{Failure, NOT_NOW, Outcome};
use crate::given;
use crate::local::processes::Lock;
use crate::on_host::{CONFIG, PROGRAM};
use crate::output;
use crate::output::lines::Lines;
use crate::target::{Target, absolute};
use fleet::{Fleet, Program};
use mainstay_model::NodeId;
use mainstay_model::status::Status;
use mainstay_plan::apply::facts::Host;
use mainstay_plan::apply::{Obstacle, Reasoned, Step, Work, adopt, notes, work};
use mainstay_ports::clock::boot_now;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How often it looks anew at most: bare hosts take two, and one to see that nothing is left.
const PASSES_MOST: u32 = 6;

/// Everything of one run.
pub(super) struct Run {
    target: Target,
    /// The file's text.
    text: String,
    options: Apply,
    global: Global,
    fleet: Fleet,
    lines: Lines,
    /// What the plan that was looked at was made from.
    plan: Option<MadeFrom>,
    /// What was done.
    done: Vec<Reasoned>,
    verified: Vec<String>,
    /// Nodes whose hosts start no agent by themselves.
    unkept: Vec<NodeId>,
    /// Nodes whose agents may not give their hosts the virtual address before their units start anew.
    addressless: Vec<NodeId>,
    /// Nodes that are taken out, or may be, and whose agents were not ended: what is to be known of each. The next run knows nothing of them.
    left: Mutex<BTreeMap<NodeId, String>>,
    /// Nodes to be taken out whose hosts serve somebody else by now.
    elsewhere: Vec<NodeId>,
}

/// Applies the file.
///
/// # Errors
/// When the file is wrong (usage), something stands in the way (not now; nothing was changed), or a step fails (it can be typed again).
pub(crate) async fn run(options: Apply, global: Global) -> Outcome {
    let begun = boot_now();
    let file = absolute(&options.file)?;
    given::check("--ssh-config", options.ssh_config.as_deref())?;
    let (target, text) = Target::with_text(&file).map_err(|failure| match failure.hint {
        Some(_) => failure.hint("name the cluster's file with --file; `mainstay init` writes one"),
        None => failure,
    })?;
    let Some(_alone) = Lock::directory(target.layout.dir())? else {
        return Err(
            Failure::not_now(format!("another apply works with {}", file.display())).hint("wait until it has ended")
        );
    };
    let plan = options.plan.as_deref().map(read_plan).transpose()?;
    let program = Program::read(options.program.clone())?;
    let names: Vec<String> = target.spec.nodes.iter().map(|node| node.name.to_string()).collect();
    let fleet = Fleet::new(&options, program)?;
    let mut run = Run {
        target,
        text,
        options,
        global,
        fleet,
        lines: Lines::new(&names),
        done: Vec::new(),
        plan,
        unkept: Vec::new(),
        addressless: Vec::new(),
        left: Mutex::default(),
        elsewhere: Vec::new(),
        verified: Vec::new(),
    };
    let outcome = tokio::select! {
        outcome = run.passes() => Some(outcome),
        ended = super::end_signal() => { ended?; None }
    };
    // What was carried beside its place only to look with is taken back, whatever came of it.
    run.fleet.tidy().await;
    let Some(outcome) = outcome else { interrupted(run) };
    let status = outcome.map_err(|failure| run.with_left(failure))?;
    run.report(&status, boot_now().since(begun).0);
    Ok(())
}

fn read_plan(path: &Path) -> Outcome<MadeFrom> {
    let shown = path.display();
    let wrong = |why: String| {
        Failure::usage(format!("--plan {shown}: {why}")).hint("write one with: mainstay plan --json > FILE")
    };
    let text = given::text(path).map_err(|error| wrong(error.to_string()))?;
    let plan: serde_json::Value = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let made_from = plan.get("made_from").cloned().ok_or_else(|| wrong("it is no plan of ours".to_owned()))?;
    serde_json::from_value(made_from).map_err(|error| wrong(error.to_string()))
}

/// Ends this process at once: a thread of it may wait for an answer at the terminal for ever.
fn interrupted(run: Run) -> ! {
    let failure = run.with_left(Failure::failed("interrupted").hint("what was done stays; type apply again to go on"));
    let json = run.global.json;
    drop(run);
    failure.print();
    if json {
        output::object(&failure.to_json());
    }
    std::process::exit(i32::from(failure.status))
}

/// Not done by apply: such a restart ends the node's server, and the primary hands its role over.
fn no_right_to_address(nodes: &[NodeId]) -> Option<String> {
    let names: Vec<&str> = nodes.iter().map(NodeId::as_str).collect();
    (!names.is_empty()).then(|| {
        format!(
            "the agent of {} was started before its unit let it give its host the address (proxy.address). There, one node after the other, the primary's last: \
             systemctl restart mainstay-agent. It restarts the node's server too, and a primary hands its role over first",
            names.join(", ")
        )
    })
}

/// A step for programs.
fn shown(Reasoned { step, why }: &Reasoned) -> serde_json::Value {
    json!({ "step": step.name(), "node": step.node(), "what": step.words(), "why": why })
}

impl Run {
    async fn passes(&mut self) -> Outcome<Status> {
        for pass in 0..PASSES_MOST {
            let looked = self.look(pass == 0).await?;
            let wanted = self.wanted(looked.authority.as_deref());
            let work = match work(&wanted, &looked.inventory) {
                Ok(work) => work,
                Err(found) => return Err(self.refused(&found)),
            };
            if pass == 0 {
                self.check_plan(&looked)?;
                for (node, note) in notes(&wanted, &looked.inventory) {
                    output::errline(&format!("note: {node}: {note}"));
                }
            }
            if work.is_empty() {
                let hosts = self
                    .target
                    .spec
                    .nodes
                    .iter()
                    .filter_map(|node| Some((&node.name, looked.inventory.host(&node.name)?)));
                let addressless = |host: &Host| host.agent.is_some_and(|agent| agent.addressless);
                (self.unkept, self.addressless) = (
                    hosts.clone().filter(|(_, host)| !host.systemd).map(|(node, _)| node.clone()).collect(),
                    hosts.filter(|(_, host)| addressless(host)).map(|(node, _)| node.clone()).collect(),
                );
                return self.verify(pass > 0).await;
            }
            self.check_changes(&looked)?;
            let adoption = adopt::told(&wanted, &looked.inventory);
            self.announce(&work, &adoption);
            if self.options.check {
                return Err(self.checked(&work, &adoption));
            }
            let question = format!("Do this on the hosts of the cluster {}?", self.target.spec.cluster.name);
            let yes = self.global.yes;
            // Not in this thread: a signal is to be heard while nobody answers.
            let asked = tokio::task::spawn_blocking(move || output::confirm(yes, &question)).await;
            asked.map_err(|error| Failure::failed(error.to_string()))??;
            let retired = |node: &NodeId| work.steps().any(|each| each.step == Step::Retire(node.clone()));
            let seen = looked.inventory.hosts.iter().filter(|(_, host)| host.is_ok()).map(|(node, _)| node);
            self.elsewhere = seen.filter(|node| !retired(node)).cloned().collect();
            self.carry_out(work, looked.session).await?;
        }
        Err(Failure::failed(format!("after {PASSES_MOST} rounds there is still something to do"))
            .hint("mainstay apply --check says what; mainstay status and mainstay why say what the cluster waits for"))
    }

    /// The plan that was looked at must be of this file, and against what is in force now.
    fn check_plan(&self, looked: &view::Looked) -> Outcome {
        let Some(made_from) = &self.plan else { return Ok(()) };
        let now = MadeFrom::of(&self.target.spec, looked.inventory.in_force.as_ref().map(|stored| stored.generation));
        if *made_from == now {
            return Ok(());
        }
        let number = |generation: Option<u64>| {
            generation.map_or_else(|| "nothing in force".to_owned(), |number| format!("generation {number}"))
        };
        let what = if made_from.file == now.file {
            format!("it was made against {}, and now there is {}", number(made_from.generation), number(now.generation))
        } else {
            "the file has changed since".to_owned()
        };
        Err(Failure::not_now(format!("the plan is stale: {what}; nothing was changed"))
            .hint("plan anew, look at it, then apply"))
    }

    fn announce(&self, work: &Work, adoption: &[String]) {
        adoption.iter().for_each(|line| output::errline(line));
        for stage in &work.stages {
            // What is the same on several hosts is one line.
            let mut told: Vec<(String, &str, Vec<&str>)> = Vec::new();
            for Reasoned { step, why } in stage {
                let (words, node) = (step.words(), step.node().map(|node| node.as_str()));
                match told.iter_mut().find(|(known, reason, _)| (known, *reason) == (&words, why.as_str())) {
                    Some((_, _, nodes)) => nodes.extend(node),
                    None => told.push((words, why, node.into_iter().collect())),
                }
            }
            for (words, why, nodes) in told {
                let nodes = if nodes.is_empty() { String::new() } else { format!("{}: ", nodes.join(", ")) };
                output::errline(&format!("  {nodes}{words} ({why})"));
            }
        }
        if work.again {
            output::errline("  then: wait until the cluster works, and look again");
        }
    }

    fn refused(&self, found: &[Obstacle]) -> Failure {
        let node = |obstacle: &Obstacle| obstacle.node.as_ref().map(|node| format!("{node}: ")).unwrap_or_default();
        let error: Vec<String> = found.iter().map(|each| format!("{}{}", node(each), each.what)).collect();
        let mut mend: Vec<String> = Vec::new();
        for each in found.iter().filter(|each| !each.mend.is_empty()) {
            let text = format!("{}{}", node(each), each.mend);
            if !mend.contains(&text) {
                mend.push(text);
            }
        }
        let state = if self.done.is_empty() { "nothing was changed on any host" } else { "what was done before stays" };
        Failure::not_now(format!("this stands in the way ({state}):\n{}", error.join("\n"))).hint(mend.join("\n"))
    }

    /// The end of `--check` when there is something to do.
    fn checked(&self, work: &Work, adoption: &[String]) -> Failure {
        if self.global.json {
            let steps: Vec<_> = work.steps().map(shown).collect();
            output::object(
                &json!({ "cluster": self.target.spec.cluster.name, "steps": steps, "again": work.again, "adoption": adoption, "changed": false }),
            );
            return Failure { status: NOT_NOW, ..Failure::said() };
        }
        Failure::not_now("the hosts are not as the file says: nothing was changed").hint("without --check it does this")
    }

    fn left(&self) -> MutexGuard<'_, BTreeMap<NodeId, String>> {
        // What it holds is whole in any case.
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what is to be done by hand on hosts of nodes that were taken out.
    fn with_left(&self, failure: Failure) -> Failure {
        let mut hints: Vec<String> = failure.hint.iter().cloned().collect();
        hints.extend(self.left().iter().map(|(node, what)| format!("{node} is taken out, or may be: {what}")));
        Failure { hint: (!hints.is_empty()).then(|| hints.join("\n")), ..failure }
    }

    fn report(&self, status: &Status, took_ms: u64) {
        let took = mainstay_model::Span(took_ms);
        if self.global.json {
            output::object(&json!({
                "cluster": self.target.spec.cluster.name, "changed": !self.done.is_empty(),
                "steps": self.done.iter().map(shown).collect::<Vec<_>>(),
                "primary": status.cluster.primary, "write": status.routes.write, "read": status.routes.read,
                "problems": status.problems, "not_started_by_the_host": self.unkept, "without_right_to_address": self.addressless, "not_ended": &*self.left(), "verified": self.verified,
                "seconds": super::wait::seconds(took_ms),
            }));
            return;
        }
        if self.done.is_empty() {
            output::line(&format!("Nothing to do: every host is as the file says ({took})."));
        } else {
            output::line(&format!("The cluster {} is as the file says ({took}).", self.target.spec.cluster.name));
        }
        output::line(&format!("Verified: {}.", self.verified.join("; ")));
        for node in &self.unkept {
            output::line(&format!(
                "Note: the host of {node} has no systemd. The agent is kept as long as the host runs; let the host run this when it starts:\n  \
                 {PROGRAM} supervise --config {CONFIG} --node {node} --detach"
            ));
        }
        if let Some(note) = no_right_to_address(&self.addressless) {
            output::line(&format!("Note: {note}"));
        }
        for (node, what) in &*self.left() {
            output::line(&format!("Note: {node} is taken out: {what}"));
        }
        for problem in &status.problems {
            output::line(&format!("Problem: {}: {}", problem.name, problem.evidence));
        }
    }

    /// The file of this run.
    fn file(&self) -> PathBuf {
        self.target.config.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_without_the_right_to_the_address_are_named_with_what_gives_it_to_them() {
        assert!(no_right_to_address(&[]).is_none());
        let note = no_right_to_address(&["db1", "db2"].map(|name| NodeId::new(name).unwrap())).unwrap();
        assert!(note.contains("db1, db2") && note.contains("systemctl restart mainstay-agent"), "{note}");
    }
}

//! Carrying the steps out, in the order in which they come. Nothing is chosen here.

use super::Run;
use super::fleet::together;
use crate::cli::{Global, NodeRemove, Restart, Which};
use crate::commands::{node, pki, restart, set};
use crate::failure::{Failure, Outcome};
use crate::local::keys::{Keys, Member};
use crate::local::tokens::Tokens;
use crate::on_host::adopt::{Bring, Part};
use crate::on_host::{CONFIG, Task};
use crate::output::progress::Progress;
use crate::session::Session;
use mainstay_model::config_assign::difference;
use mainstay_model::{NodeId, SystemId};
use mainstay_net::join::Question;
use mainstay_plan::apply::{Reasoned, Step, Work, kept};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

const PACKAGES: Duration = Duration::from_secs(2000);
/// What writes a few files, or starts a process. Another run may be waited for.
const SMALL: Duration = Duration::from_secs(100);
/// The service manager may take its time, and an agent that ends in order hands over first.
const END: Duration = Duration::from_secs(200);
/// A server may take its time to write a checkpoint and to stop; the cluster is waited for before, twice.
const ADOPT: Duration = Duration::from_secs(1800);
/// A standby, while clients wait: its stop within a minute, and its rename.
const STANDBY: Duration = Duration::from_secs(150);
/// A token is used a moment after it is made.
const TOKEN: Duration = Duration::from_secs(300);
/// How long a node may take to do its part again after its agent began anew.
const BACK: Duration = Duration::from_secs(120);
/// How long a primary may take to be known: a step before may have moved its role.
const KNOWN: Duration = Duration::from_secs(20);
const EACH: Duration = Duration::from_millis(200);

/// What ends an agent by hand.
const BY_HAND: &str = "systemctl disable --now mainstay-agent";
const ANOTHERS: &str = "its host does not name it as its node, and was left as it is";

impl Run {
    /// Carries everything out.
    pub(super) async fn carry_out(&mut self, work: Work, mut session: Option<Session>) -> Outcome {
        let again = work.again;
        for stage in work.stages {
            self.stage(&stage, &mut session).await?;
            self.done.extend(stage);
        }
        if again {
            self.whole(Duration::from_secs(self.options.wait)).await?;
        }
        Ok(())
    }

    /// The steps of one stage: those of the cluster one after the other, those of hosts side by side, each host's own in order.
    async fn stage(&mut self, stage: &[Reasoned], session: &mut Option<Session>) -> Outcome {
        let mut by_host: BTreeMap<&NodeId, Vec<&Step>> = BTreeMap::new();
        for Reasoned { step, .. } in stage {
            match step {
                Step::Authority => pki::make(&self.target).map(drop)?,
                Step::Add(_) | Step::Await(_) | Step::Change(_) | Step::Restart | Step::Remove(_) => {
                    self.of_cluster(step, session).await?;
                }
                _ => {
                    if let Some(node) = step.node() {
                        by_host.entry(node).or_default().push(step);
                    }
                }
            }
        }
        let run = &*self;
        let all = together(by_host.into_iter().map(|(node, steps)| async move {
            for step in steps {
                run.on_host(node, step).await?;
            }
            Ok::<(), Failure>(())
        }))
        .await;
        // Every host was let come to its end before the first failure is told: none is left in the middle of a step.
        all.into_iter().collect::<Result<Vec<()>, Failure>>()?;
        let reloads = stage.iter().filter_map(|each| match &each.step {
            Step::Reload(node) | Step::Move(node) => Some(node),
            _ => None,
        });
        for node in reloads {
            self.until_back(node, session).await?;
        }
        Ok(())
    }

    async fn bring(&self, node: &NodeId, (system, slots): (SystemId, &[String]), part: Part) -> Outcome {
        let bring = Bring { task: self.task(node), system, part, slots: slots.to_vec() };
        let limit = if part == Part::Standby { STANDBY } else { ADOPT };
        self.fleet.ask::<serde_json::Value>(node, "adopt", &bring, limit).await.map(drop)
    }

    /// The server's standbys follow it to its end; then they are brought, then its own data. One that can not be brought does not keep clients
    /// waiting: its node becomes a copy by a clone, and that is told at the end. `stopped`: clients are away already.
    async fn adopt(&self, node: &NodeId, system: (SystemId, &[String]), standbys: &[NodeId], stopped: bool) -> Outcome {
        if standbys.is_empty() {
            return self.bring(node, system, Part::Whole).await;
        }
        let looked = standbys.iter().filter(|_| !stopped).map(|standby| self.bring(standby, system, Part::Ready));
        let ready = together(looked).await;
        for (standby, ready) in standbys.iter().zip(ready) {
            ready.map_err(|failure| Failure {
                error: format!("the standby of {standby}: {}", failure.error),
                ..failure
            })?;
        }
        self.bring(node, system, Part::Stop).await?;
        let brought = together(standbys.iter().map(|standby| async move {
            self.bring(standby, system, Part::Standby).await.map_err(|failure| {
                let error = format!("the standby of {standby} was not taken over: {}", failure.error);
                let then = "the cluster goes on without it, and that node becomes a copy by a clone once nothing listens on its port; its old data were left \
                            where they are. Where commits wait for that copy (durability strict): mainstay set cluster.durability=available";
                let hint = failure.hint.into_iter().chain([then.to_owned()]).collect::<Vec<_>>().join("\n");
                Failure { error, hint: Some(hint), ..failure }
            })
        }))
        .await;
        self.bring(node, system, Part::Move).await?;
        brought.into_iter().collect()
    }

    async fn on_host(&self, node: &NodeId, step: &Step) -> Outcome {
        let begun = self.lines.begin(node.as_str(), &step.words());
        let task = self.task(node);
        let answer = |verb: &'static str, at_most| self.fleet.ask::<serde_json::Value>(node, verb, &task, at_most);
        let done = match step {
            Step::Program(_) => self.fleet.install(node).await,
            Step::Packages(_) => answer("packages", PACKAGES).await.map(drop),
            Step::Configure(_) => answer("configure", SMALL).await.map(drop),
            Step::Join(_) => self.join(node, false).await,
            Step::Renew(_) => self.join(node, true).await,
            Step::Adopt { system, standbys, slots, stopped, .. } => {
                self.adopt(node, (*system, slots), standbys, *stopped).await
            }
            Step::Start(_) => answer("start", END).await.map(drop),
            Step::Reload(_) => answer("reload", SMALL).await.map(drop),
            Step::Move(_) => answer("restart", END).await.map(drop),
            Step::Retire(_) => answer("retire", END).await.map(|answer| {
                match answer.get("why").and_then(|why| why.as_str()) {
                    Some(why) => self.left().insert(node.clone(), why.to_owned()),
                    None => self.left().remove(node),
                };
            }),
            Step::Authority | Step::Add(_) | Step::Await(_) | Step::Change(_) | Step::Restart | Step::Remove(_) => {
                Ok(())
            }
        };
        match done {
            Ok(()) => {
                self.lines.done(node.as_str(), &step.words(), begun);
                Ok(())
            }
            Err(failure) if matches!(step, Step::Retire(_)) => {
                // The node is out, and its agent ends by itself once it hears of it: the other steps go on.
                self.lines.failed(node.as_str(), &step.words());
                let what = format!("its agent was not ended ({}); there: {BY_HAND}", failure.error);
                self.left().insert(node.clone(), what);
                Ok(())
            }
            Err(failure) => {
                self.lines.failed(node.as_str(), &step.words());
                let hint = failure.hint.clone().unwrap_or_default();
                let again = "what was done stays; type apply again once it is mended";
                let hint = if hint.is_empty() { again.to_owned() } else { format!("{hint}\n{again}") };
                Err(Failure {
                    status: failure.status,
                    error: format!("{node}: {}: {}", step.words(), failure.error),
                    hint: Some(hint),
                })
            }
        }
    }

    fn task(&self, node: &NodeId) -> Task {
        Task { node: node.clone(), file: self.text.clone() }
    }

    /// The host makes its keys; what it asks to be certified, and the answer, travel over its connection.
    async fn join(&self, node: &NodeId, again: bool) -> Outcome {
        let spec = &self.target.spec;
        let of = spec.node(node).ok_or_else(|| Failure::failed("it is not in the file"))?;
        let keys = Keys::open(&self.target.layout, &spec.cluster.name)?;
        let tokens = Tokens::of(&keys);
        let (token, _) = tokens.issue(&Member::node(spec, of), TOKEN)?;
        let program = self.fleet.program_of(node)?;
        let mut words =
            vec![program, "join", "--config", CONFIG, "--node", node.as_str(), "--token", "-", "--at", "-", "--json"];
        if again {
            words.extend(["--again", "--yes"]);
        }
        let answer = |line: &str| {
            let Ok(question) = serde_json::from_str::<Question>(line) else { return Ok(None) };
            let (_, welcome) =
                tokens.welcome(&question).map_err(|refusal| Failure::failed(refusal.error).hint(refusal.hint))?;
            serde_json::to_string(&welcome).map(Some).map_err(|error| Failure::failed(error.to_string()))
        };
        self.fleet.remote(node)?.talk(&words, &token.text(), SMALL, answer).await.map(drop)
    }

    async fn of_cluster(&mut self, step: &Step, session: &mut Option<Session>) -> Outcome {
        let session = session.as_mut().ok_or_else(|| Failure::failed("the cluster can not be asked from here"))?;
        let (mut progress, mut verified) = (Progress::new(), Vec::new());
        match step {
            Step::Add(name) => {
                let mut spec = session.spec().clone();
                let new =
                    self.target.spec.node(name).ok_or_else(|| Failure::failed(format!("{name} is not in the file")))?;
                spec.nodes.push(new.clone());
                node::checked(&spec)?;
                let change = format!("node {name} added at {}", new.host);
                verified = node::write(session, spec, change, &mut progress).await?;
            }
            Step::Await(name) => {
                let new =
                    self.target.spec.node(name).ok_or_else(|| Failure::failed(format!("{name} is not in the file")))?;
                node::joined(session, new, self.options.wait, &mut progress, &mut verified).await?;
            }
            Step::Change(_) => {
                let new = kept(session.spec(), &self.target.spec);
                let differences = difference(session.spec(), &new);
                verified = set::bring_about(session, new, &differences, &mut progress).await?.1;
            }
            Step::Restart => {
                session.refresh().await;
                if restart::pending(session).is_empty() {
                    return Ok(());
                }
                drop(progress);
                return restart::within(session, self.restart(), Global { yes: true, json: self.global.json }).await;
            }
            Step::Remove(name) => {
                // What was seen at the beginning is old by now: steps came before, and a question that somebody answered.
                let until = Instant::now() + KNOWN;
                let primary = loop {
                    session.refresh().await;
                    match session.status().await?.cluster.primary {
                        None if Instant::now() < until => tokio::time::sleep(EACH).await,
                        primary => break primary,
                    }
                };
                node::dispensable(primary.as_ref(), name).map_err(|failure| match primary {
                    None => failure
                        .hint("`mainstay status` and `mainstay why` say what the cluster waits for; then apply again"),
                    Some(_) => failure
                        .hint("hand its role over first: `mainstay switchover` (or `--to NODE`); then apply again"),
                })?;
                let mut spec = session.spec().clone();
                spec.nodes.retain(|node| node.name != *name);
                node::checked(&spec)?;
                let what = if self.elsewhere.contains(name) {
                    ANOTHERS.to_owned()
                } else if self.fleet.has(name) {
                    format!("its agent was not ended; there: {BY_HAND}")
                } else {
                    format!("its host was not reached; there: {BY_HAND}")
                };
                // Noted before: once it is written, nobody else remembers that its host is to be seen to.
                self.left().insert(name.clone(), what);
                let written = node::write(session, spec, format!("node {name} removed"), &mut progress).await;
                verified = written?;
                let options = NodeRemove { which: Which::default(), node: name.clone(), wait: self.options.wait };
                node::gone(session, &options, &mut progress, &mut verified).await?;
            }
            Step::Authority | Step::Packages(_) | Step::Program(_) | Step::Configure(_) | Step::Join(_) => {}
            Step::Adopt { .. } => {}
            Step::Renew(_) | Step::Start(_) | Step::Reload(_) | Step::Move(_) | Step::Retire(_) => {}
        }
        self.verified.extend(verified);
        Ok(())
    }

    fn restart(&self) -> Restart {
        let which = Which { config: Some(self.file()), ..Which::default() };
        Restart { which, nodes: Vec::new(), pending: true, in_place: false, wait: self.options.wait.max(120) }
    }

    /// Waits until a node whose agent began anew does its part, before the next one's turn.
    async fn until_back(&self, name: &NodeId, session: &mut Option<Session>) -> Outcome {
        let Some(session) = session.as_mut() else { return Ok(()) };
        let mut progress = Progress::new();
        progress.step(&format!("Waiting until {name} does its part again"));
        let until = Instant::now() + BACK;
        loop {
            session.refresh().await;
            let answers = session.specs.contains_key(name);
            let status = session.agents.status().await.ok();
            let well = status.is_some_and(|status| {
                status.cluster.writable && status.nodes.iter().any(|node| node.name == *name && node.healthy)
            });
            if answers && well {
                progress.finish("");
                return Ok(());
            }
            if Instant::now() >= until {
                progress.fail();
                return Err(Failure::failed(format!("{name} does not do its part {} s after its agent began anew", BACK.as_secs()))
                    .hint("the agents of the other nodes were left as they are; mainstay status and mainstay why say what it waits for"));
            }
            tokio::time::sleep(EACH).await;
        }
    }
}

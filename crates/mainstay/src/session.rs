//! A cluster as a command meets it: its file, its agents, and the specification in force, which may list other nodes than the file.

use crate::cli::Which;
use crate::client::{Agents, Answer, decode, nobody, with_advice};
use crate::commands::check_node;
use crate::failure::{Failure, Outcome};
use crate::target::Target;
use mainstay_model::NodeId;
use mainstay_model::api::{Accepted, CommandWish, SpecAnswer, SpecWish, Standing};
use mainstay_model::spec::Spec;
use mainstay_model::status::Status;
use mainstay_model::stored_spec::StoredSpec;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// The cluster that a command is about.
pub(crate) struct Session {
    /// Its file; `spec` is the specification in force, if an agent told it, with the file's own way to the store.
    pub(crate) target: Target,
    /// What the file says.
    file: Spec,
    /// Its agents.
    pub(crate) agents: Agents,
    /// What each agent that answered says of the specification.
    pub(crate) specs: BTreeMap<NodeId, SpecAnswer>,
}

impl Session {
    /// Finds the cluster, and asks its agents for the specification in force. Agents that do not know that request, or do not answer, are no
    /// reason to stop.
    ///
    /// # Errors
    /// When there is no such cluster, or this user may not ask.
    pub(crate) async fn open(which: &Which) -> Outcome<Session> {
        Self::of(Target::find(which)?).await
    }

    /// The same for a file that has been read.
    ///
    /// # Errors
    /// When this user may not ask.
    pub(crate) async fn of(target: Target) -> Outcome<Session> {
        let agents = Agents::of(&target)?;
        let file = target.spec.clone();
        let mut session = Session { target, file, agents, specs: BTreeMap::new() };
        session.refresh().await;
        Ok(session)
    }

    /// The same, for a command that names nodes: they must be the cluster's.
    ///
    /// # Errors
    /// Also when one of the nodes is not; that is said even if nobody can be asked.
    pub(crate) async fn open_for(which: &Which, nodes: impl IntoIterator<Item = &NodeId>) -> Outcome<Session> {
        let nodes: Vec<&NodeId> = nodes.into_iter().collect();
        let known = |target: &Target| nodes.iter().try_for_each(|node| check_node(target, Some(node)));
        match Self::open(which).await {
            Ok(session) => known(&session.target).map(|()| session),
            Err(failure) => {
                known(&Target::find(which)?)?;
                Err(failure)
            }
        }
    }

    /// Asks again for the specification in force.
    pub(crate) async fn refresh(&mut self) {
        let (answers, _) = self.agents.ask_all("/v1/spec").await;
        self.specs = answers.into_iter().filter_map(|(node, answer)| Some((node, decode(&answer)?))).collect();
        if let Some(stored) = self.stored() {
            let spec = self.for_file(stored);
            self.agents.know(&spec.nodes);
            self.target.spec = spec;
        }
    }

    /// The newest generation that an agent told.
    pub(crate) fn stored(&self) -> Option<&StoredSpec> {
        self.specs.values().map(|answer| &answer.stored).max_by_key(|stored| stored.generation)
    }

    /// What the file says of it itself, whatever is in force.
    pub(crate) fn file(&self) -> &Spec {
        &self.file
    }

    /// A generation as this cluster's file has to say it: how an etcd is reached is each file's own affair, and what the generation says of it
    /// may lead nowhere by now.
    pub(crate) fn for_file(&self, stored: &StoredSpec) -> Spec {
        stored.spec.with_store_of(&self.file)
    }

    /// The specification in force, with the file's own way to the store.
    pub(crate) fn spec(&self) -> &Spec {
        &self.target.spec
    }

    /// The status, with advice if nobody answers.
    ///
    /// # Errors
    /// When no agent answers.
    pub(crate) async fn status(&self) -> Outcome<Status> {
        self.agents.status().await.map_err(|failure| with_advice(failure, &self.target))
    }

    /// The generation in force, from which a next one can be made.
    ///
    /// # Errors
    /// When no agent tells it.
    pub(crate) fn in_force(&self) -> Outcome<&StoredSpec> {
        self.stored().ok_or_else(|| {
            Failure::not_now("no agent tells the specification in force")
                .hint("a majority of the nodes must be up to change it; see `mainstay status`")
        })
    }

    /// What each node knows by itself, and why the others say nothing.
    pub(crate) async fn standings(&self) -> (BTreeMap<NodeId, Standing>, BTreeMap<NodeId, String>) {
        let (answers, mut silent) = self.agents.ask_all("/v1/standing").await;
        let mut found = BTreeMap::new();
        for (node, answer) in answers {
            match decode::<Standing>(&answer) {
                Some(standing) => {
                    found.insert(node, standing);
                }
                None => {
                    silent.insert(node, answer.error());
                }
            }
        }
        for name in self.agents.names() {
            if !found.contains_key(&name) {
                silent.entry(name).or_insert_with(|| "no answer".to_owned());
            }
        }
        (found, silent)
    }

    /// Gives a command to one node.
    ///
    /// # Errors
    /// When it is refused, or there is no answer (then it is unknown whether it was taken up).
    pub(crate) async fn command(&self, node: &NodeId, command: mainstay_model::Command) -> Outcome<Accepted> {
        let wish = CommandWish { command, by: crate::local::user::who() };
        let body = self.post(node, "/v1/command", &wish).await?;
        serde_json::from_value(body)
            .map_err(|error| Failure::failed(format!("the answer of {node} can not be read: {error}")))
    }

    /// Sends a wish to one node.
    ///
    /// # Errors
    /// When it is refused, or there is no answer.
    pub(crate) async fn post(&self, node: &NodeId, path: &str, wish: &impl Serialize) -> Outcome<Value> {
        let body = serde_json::to_value(wish).map_err(|error| Failure::failed(error.to_string()))?;
        let answer = self.agents.ask(node, "POST", path, Some(&body)).await;
        let answer: Answer = answer.map_err(|why| {
            Failure::failed(format!("the agent of {node} does not answer: {why}"))
                .hint("whether it took the order is unknown; see `mainstay status` and `mainstay history`")
        })?;
        answer.accepted(node)
    }

    /// Sends a wish of the whole cluster to its agents in turn, until one takes it up or refuses it with a reason of its own. The wish must be
    /// such that a second acceptance changes nothing.
    ///
    /// # Errors
    /// The refusal, or that nobody answers.
    pub(crate) async fn post_any(&self, path: &str, wish: &impl Serialize) -> Outcome<Value> {
        let body = serde_json::to_value(wish).map_err(|error| Failure::failed(error.to_string()))?;
        let mut silent = BTreeMap::new();
        let mut unable: Option<(NodeId, Answer)> = None;
        for node in self.in_turn() {
            match self.agents.ask(&node, "POST", path, Some(&body)).await {
                Ok(answer) if answer.status == 503 => unable = Some((node, answer)),
                Ok(answer) => return answer.accepted(&node),
                Err(why) => {
                    silent.insert(node, why);
                }
            }
        }
        match unable {
            Some((node, answer)) => answer.accepted(&node),
            None => Err(with_advice(nobody(&silent), &self.target)),
        }
    }

    /// Those that answered a moment ago first.
    fn in_turn(&self) -> Vec<NodeId> {
        let mut names = self.agents.names();
        names.sort_by_key(|name| !self.specs.contains_key(name));
        names
    }

    /// Makes a new generation.
    ///
    /// # Errors
    /// When it is refused: wrong, not now, or made from an older one.
    pub(crate) async fn propose(&mut self, spec: Spec, change: String) -> Outcome<StoredSpec> {
        let in_force = self.in_force()?;
        let parent = in_force.generation;
        // A wish that was made from what the file says does not carry its way to the store to the others.
        let spec = spec.with_store_of(&in_force.spec);
        let wish = SpecWish { parent, spec: spec.clone(), by: crate::local::user::who(), change };
        match self.post_any("/v1/spec", &wish).await {
            Ok(body) => {
                let answer: SpecAnswer = serde_json::from_value(body)
                    .map_err(|error| Failure::failed(format!("the answer can not be read: {error}")))?;
                self.agents.know(&answer.stored.spec.nodes);
                self.target.spec = self.for_file(&answer.stored);
                Ok(answer.stored)
            }
            Err(failure) => {
                // An answer may have been lost on its way although the wish was taken up: the next agent refuses it as old then.
                self.refresh().await;
                match self.stored() {
                    Some(stored) if stored.generation == parent + 1 && stored.spec == spec => Ok(stored.clone()),
                    _ => Err(failure),
                }
            }
        }
    }
}

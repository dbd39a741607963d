//! Looking: every host side by side, and the cluster if it runs.

use super::Run;
use crate::failure::{Failure, Outcome};
use crate::local::keys::Keys;
use crate::on_host::{Task, unit_with};
use crate::plan::in_store::is_in;
use crate::plan::settings::{notes as said_of, refuse};
use crate::session::Session;
use mainstay_model::config::render;
use mainstay_model::config_assign::difference;
use mainstay_model::spec::Node;
use mainstay_net::pki;
use mainstay_plan::apply::facts::{Inventory, Wanted};
use mainstay_plan::apply::kept;
use mainstay_ports::clock::wall_now_ms;
use std::time::Duration;
use tokio::time::Instant;

/// How long agents that run may take until they tell what is in force.
const TOLD: Duration = Duration::from_secs(20);
const EACH: Duration = Duration::from_millis(300);

/// Everything that was seen.
pub(super) struct Looked {
    pub(super) inventory: Inventory,
    /// The cluster, if this machine may ask it.
    pub(super) session: Option<Session>,
    /// The authority's fingerprint, if it is made.
    pub(super) authority: Option<String>,
}

impl Run {
    /// What is wanted.
    pub(super) fn wanted<'a>(&'a self, authority: Option<&'a str>) -> Wanted<'a> {
        Wanted {
            spec: &self.target.spec,
            text: &self.text,
            program: &self.fleet.program.sha,
            unit: unit_with(self.target.spec.proxy.address.is_some()),
            authority,
            now: i64::try_from(wall_now_ms() / 1000).unwrap_or(i64::MAX),
            packages: self.options.packages,
            remove: self.options.remove,
            back: self.options.back,
        }
    }

    /// Looks at everything. Nothing is carried anywhere before every host was reached.
    pub(super) async fn look(&mut self, first: bool) -> Outcome<Looked> {
        let mut inventory = Inventory::default();
        let nodes = self.target.spec.nodes.clone();
        for node in nodes.iter().filter(|_| first) {
            self.lines.begin(node.name.as_str(), "connect");
        }
        let unseen = self.fleet.connect(&nodes).await?;
        let authority = self.authority()?;
        if !unseen.is_empty() {
            // The others are not to be named as if they were amiss.
            inventory.hosts.extend(self.fleet.nodes().map(|node| (node.clone(), Ok(Default::default()))));
            inventory.hosts.extend(unseen.into_iter().map(|(node, why)| (node, Err(why))));
            return Ok(Looked { inventory, session: None, authority });
        }
        self.look_at(&nodes, &self.text, first, &mut inventory).await;
        let session = match &authority {
            Some(_) => self.ask_cluster(&mut inventory).await?,
            None => None,
        };
        if self.options.remove
            && let Some(stored) = inventory.in_force.clone()
        {
            let gone: Vec<Node> =
                stored.spec.nodes.iter().filter(|node| self.target.spec.node(&node.name).is_none()).cloned().collect();
            let unseen = self.fleet.connect(&gone).await?;
            inventory.hosts.extend(unseen.into_iter().map(|(node, why)| (node, Err(why))));
            let reached: Vec<Node> = gone.into_iter().filter(|node| self.fleet.has(&node.name)).collect();
            self.look_at(&reached, &render(&stored.spec.with_store_of(&self.target.spec)), false, &mut inventory).await;
        }
        Ok(Looked { inventory, session, authority })
    }

    async fn look_at(&self, nodes: &[Node], text: &str, first: bool, inventory: &mut Inventory) {
        let looked = super::fleet::together(nodes.iter().map(|node| async move {
            let name = node.name.as_str();
            let begun = self.lines.begin(name, "look");
            let task = Task { node: node.name.clone(), file: text.to_owned() };
            let seen = self.fleet.look(&node.name, &task).await;
            match &seen {
                Ok(_) if first => self.lines.done(name, "looked", begun),
                Ok(_) => {}
                Err(why) => self.lines.failed(name, &why.error),
            }
            (node.name.clone(), seen)
        }))
        .await;
        inventory.hosts.extend(looked);
    }

    fn authority(&self) -> Outcome<Option<String>> {
        let layout = &self.target.layout;
        if !layout.ca_cert().exists() && !layout.pki().exists() {
            return Ok(None);
        }
        let keys = Keys::open(layout, &self.target.spec.cluster.name)?;
        pki::fingerprint(keys.authority().cert_pem()).map(Some).map_err(crate::local::keys::net)
    }

    /// What is in force, and how each agent that runs finds its file.
    async fn ask_cluster(&self, inventory: &mut Inventory) -> Outcome<Option<Session>> {
        let running = inventory.hosts.values().flatten().filter(|host| host.agent.is_some() && host.store).count();
        if running == 0 {
            return Ok(None);
        }
        let mut session = Session::of(self.target.clone()).await?;
        if session.specs.is_empty() {
            // Agents run, and do not answer this machine: over the hosts' own connections, if they can be reached at all.
            session.agents.reach(self.fleet.ways(&self.target.spec.nodes).await);
            session.refresh().await;
        }
        let until = Instant::now() + TOLD;
        // A majority may need a moment; agents that are slow to answer are waited for as well, so that two looks see the same.
        let told = |session: &Session| session.stored().is_some_and(|stored| stored.generation > 0);
        while Instant::now() < until && !(told(&session) && session.specs.len() >= running) {
            tokio::time::sleep(EACH).await;
            session.refresh().await;
        }
        let (standings, _) = session.standings().await;
        let alone = session.spec().nodes.len() == 1;
        inventory.voters = session.agents.names().into_iter().filter(|node| is_in(&standings, node, alone)).collect();
        inventory.files = session.specs.iter().map(|(node, answer)| (node.clone(), answer.file)).collect();
        inventory.waiting = super::super::restart::pending(&session);
        // An agent whose store has none yet tells its own file, as number 0: that is nobody's wish.
        inventory.in_force = session.stored().filter(|stored| stored.generation > 0).cloned();
        if let Ok(status) = session.status().await {
            inventory.primary = status.cluster.primary;
        }
        Ok(Some(session))
    }

    /// What may not be changed while a cluster runs is refused before anything is done; what a change means is said.
    pub(super) fn check_changes(&self, looked: &Looked) -> Outcome {
        let Some(stored) = &looked.inventory.in_force else { return Ok(()) };
        let new = kept(&stored.spec, &self.target.spec);
        let differences = difference(&stored.spec, &new);
        refuse(&stored.spec, &new, &differences).map_err(|failure| Failure {
            error: failure.error.replace("mainstay set`:", "mainstay apply`:"),
            ..failure
        })?;
        super::super::node::checked(&new)?;
        said_of(&stored.spec, &new, &differences).iter().for_each(|note| crate::output::errline(note));
        Ok(())
    }
}

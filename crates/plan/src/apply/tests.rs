//! A small world in which steps are carried out as they are on hosts: whatever was interrupted, deciding again leads to the same end.

use super::adopt::Adopt;
use super::facts::*;
use super::*;
use mainstay_model::config::{parse, render};
use mainstay_model::spec::Spec;
use mainstay_model::stored_spec::{FileState, StoredSpec};
use mainstay_model::{NodeId, SystemId};
use std::collections::BTreeMap;

mod adopting;

const PROGRAM: &str = "f00d";
const UNIT: &str = "[Unit]";
const AUTHORITY: &str = "ours";
const NOW: i64 = 1_800_000_000;
const YEAR: i64 = 365 * 86_400;

fn text(nodes: &[u8], more: &str) -> String {
    let node = |number: &u8| format!("[[node]]\nname = \"db{number}\"\nhost = \"10.0.0.{number}\"\n");
    format!("[cluster]\nname = \"orders\"\n{}{more}", nodes.iter().map(node).collect::<String>())
}

fn spec(text: &str) -> Spec {
    parse(text, &[]).unwrap()
}

fn name(number: u8) -> NodeId {
    NodeId::new(format!("db{number}")).unwrap()
}

fn wanted<'a>(spec: &'a Spec, text: &'a str, authority: Option<&'a str>, remove: bool) -> Wanted<'a> {
    Wanted { spec, text, program: PROGRAM, unit: UNIT, authority, now: NOW, packages: false, remove, back: false }
}

/// Hosts, and the cluster on them.
#[derive(Clone)]
struct World {
    authority: bool,
    hosts: BTreeMap<NodeId, Host>,
    stored: Option<StoredSpec>,
    voters: Vec<NodeId>,
    primary: Option<NodeId>,
    /// What each running agent read when it began.
    read: BTreeMap<NodeId, String>,
}

impl World {
    fn bare(hosts: u8) -> World {
        let host = Host { systemd: true, ..Host::default() };
        let hosts = (1..=hosts).map(|number| (name(number), host.clone())).collect();
        World {
            authority: false,
            hosts,
            stored: None,
            voters: Vec::new(),
            primary: Some(name(1)),
            read: BTreeMap::new(),
        }
    }

    fn inventory(&self, file: &Spec) -> Inventory {
        let listed = |node: &NodeId| {
            file.node(node).is_some() || self.stored.as_ref().is_some_and(|stored| stored.spec.node(node).is_some())
        };
        let answers = self.hosts.values().any(|host| host.agent.is_some() && host.store);
        let in_force = self.stored.clone().filter(|_| answers);
        let files =
            self.read.iter().filter_map(|(node, text)| Some((node.clone(), in_force.as_ref()?.compare(&spec(text)))));
        Inventory {
            hosts: self
                .hosts
                .iter()
                .filter(|(node, _)| listed(node))
                .map(|(node, host)| (node.clone(), Ok(host.clone())))
                .collect(),
            files: files.collect(),
            voters: if answers { self.voters.clone() } else { Vec::new() },
            in_force,
            primary: self.primary.clone().filter(|_| answers && !self.waits()),
            ..Inventory::default()
        }
    }

    /// Are there data without which there is no primary?
    fn waits(&self) -> bool {
        self.hosts.values().any(|host| matches!(host.adopt, Some(Adopt::Named(_))))
    }

    fn decide(&self, text: &str, remove: bool) -> Result<Work, Vec<Obstacle>> {
        let spec = spec(text);
        let authority = self.authority.then_some(AUTHORITY);
        work(&wanted(&spec, text, authority, remove), &self.inventory(&spec))
    }

    fn host(&mut self, node: &NodeId) -> &mut Host {
        self.hosts.get_mut(node).unwrap()
    }

    fn propose(&mut self, spec: Spec) {
        self.stored = self.stored.as_ref().map(|stored| stored.next(spec, "ann", "a change", 0));
    }

    /// What a step does, and what must have been done before it.
    fn carry_out(&mut self, step: &Step, text: &str) {
        let file = spec(text);
        match step {
            Step::Authority => {
                assert!(!self.authority, "an authority is made once");
                self.authority = true;
            }
            Step::Program(node) => self.host(node).program = Some(PROGRAM.into()),
            Step::Configure(node) => {
                let host = self.host(node);
                host.config = Some(text.into());
                host.config_of = Some("orders".into());
                (host.named, host.unit) = (Some(node.to_string()), Some(UNIT.into()));
            }
            Step::Join(node) | Step::Renew(node) => {
                let names = file.client_hosts();
                let host = self.host(node);
                assert!(host.program.is_some() && host.config.is_some(), "{node} joins with what is not there");
                assert_eq!(host.papers == Papers::None, matches!(step, Step::Join(_)), "{node}");
                host.papers =
                    Papers::Whole { authority: AUTHORITY.into(), node: node.to_string(), until: NOW + YEAR, names };
            }
            Step::Start(node) => self.start(node),
            Step::Adopt { node, directory, system, standbys, .. } => {
                self.adopt(&file, node, (directory, system), standbys);
            }
            Step::Add(node) => {
                let mut spec = self.stored.clone().unwrap().spec;
                spec.nodes.push(file.node(node).unwrap().clone());
                self.propose(spec);
            }
            Step::Await(node) => {
                assert!(self.hosts[node].agent.is_some(), "{node} can not come in");
                self.voters.push(node.clone());
            }
            Step::Change(_) => {
                let new = kept(&self.stored.clone().unwrap().spec, &file);
                self.propose(new);
            }
            Step::Reload(node) | Step::Move(node) => {
                let host = self.host(node);
                host.agent = Some(Agent { pid: 1, current: true, elsewhere: false, addressless: false });
                let config = host.config.clone().unwrap();
                self.read.insert(node.clone(), config);
            }
            Step::Remove(node) => {
                assert_ne!(self.primary.as_ref(), Some(node), "a primary is not taken out");
                let mut spec = self.stored.clone().unwrap().spec;
                spec.nodes.retain(|known| known.name != *node);
                self.propose(spec);
                self.voters.retain(|known| known != node);
            }
            Step::Retire(node) => {
                let host = self.host(node);
                (host.agent, host.enabled, host.kept) = (None, false, false);
            }
            Step::Restart => {
                // Whoever is there may take over: one that the file does not list, if the cluster still knows it.
                let mut known = self.stored.iter().flat_map(|stored| &stored.spec.nodes);
                self.primary = known
                    .find(|known| file.node(&known.name).is_none())
                    .map(|known| known.name.clone())
                    .or(self.primary.take());
            }
            Step::Packages(_) => {}
        }
    }

    fn start(&mut self, node: &NodeId) {
        let known = self.stored.as_ref().is_none_or(|stored| stored.spec.node(node).is_some());
        assert!(known, "{node} starts before the cluster knows it");
        let host = self.host(node);
        assert!(matches!(host.papers, Papers::Whole { .. }) && host.named.is_some(), "{node} starts unprepared");
        (host.enabled, host.kept) = (host.systemd, true);
        if host.agent.is_some() {
            return;
        }
        host.agent = Some(Agent { pid: 1, current: true, elsewhere: false, addressless: false });
        let config = host.config.clone().unwrap();
        self.read.insert(node.clone(), config);
    }

    fn adopt(&mut self, file: &Spec, node: &NodeId, what: (&String, &SystemId), standbys: &[NodeId]) {
        for standby in standbys {
            assert!(matches!(self.hosts[standby].adopt, Some(Adopt::Named(_))) && self.hosts[standby].agent.is_some());
            self.host(standby).adopt = Some(Adopt::Taken);
        }
        let running = file.nodes.iter().filter(|node| self.hosts[&node.name].agent.is_some()).count();
        assert_eq!(running, file.nodes.len(), "clients are away before everything is ready");
        let founder = self.stored.as_ref().map(|stored| stored.spec.founder().cloned());
        assert!(founder.is_none_or(|founder| founder.as_ref() == Some(node)), "others may make the first copy");
        let host = self.host(node);
        let Some(Adopt::Named(existing)) = &host.adopt else { panic!("{node} has nothing to adopt") };
        assert_eq!((&existing.directory, existing.system.as_ref()), (what.0, Some(what.1)));
        host.adopt = Some(Adopt::Taken);
    }

    /// What agents that were started come to by themselves.
    fn settle(&mut self, text: &str) {
        let running: Vec<NodeId> =
            self.hosts.iter().filter(|(_, host)| host.agent.is_some()).map(|(node, _)| node.clone()).collect();
        if self.stored.is_none() && running.len() * 2 > spec(text).nodes.len() {
            self.stored = Some(StoredSpec { generation: 1, ..StoredSpec::of_file(spec(&self.read[&running[0]])) });
        }
        if let Some(stored) = &self.stored {
            running.iter().for_each(|node| self.hosts.get_mut(node).unwrap().store = true);
            self.voters =
                stored.spec.nodes.iter().map(|node| node.name.clone()).filter(|node| running.contains(node)).collect();
        }
    }

    /// Applies until nothing is left; the first round ends after so many steps.
    fn apply(&mut self, text: &str, remove: bool, interrupted: usize) {
        let mut left = interrupted;
        for _ in 0..8 {
            let work = self.decide(text, remove).unwrap_or_else(|found| panic!("{found:?}"));
            if work.is_empty() {
                return;
            }
            let count = work.steps().count();
            let steps: Vec<Step> = work.steps().take(left).map(|each| each.step.clone()).collect();
            left -= steps.len();
            steps.iter().for_each(|step| self.carry_out(step, text));
            self.settle(text);
            if steps.len() < count {
                left = usize::MAX / 2;
            }
        }
        panic!("it does not come to an end: {:?}", self.decide(text, remove));
    }
}

/// A cluster of these nodes as apply makes it.
fn made(nodes: &[u8], hosts: u8) -> World {
    let mut world = World::bare(hosts);
    world.apply(&text(nodes, ""), false, usize::MAX / 2);
    world
}

fn same(world: &World, nodes: &[u8], text: &str) {
    let stored = world.stored.as_ref().unwrap();
    assert_eq!(render(&stored.spec), render(&spec(text)));
    let mut voters = world.voters.clone();
    voters.sort();
    voters.dedup();
    assert_eq!(voters, nodes.iter().map(|number| name(*number)).collect::<Vec<_>>());
    for number in nodes {
        let host = &world.hosts[&name(*number)];
        assert_eq!((host.config.as_deref(), host.agent.is_some()), (Some(text), true));
        assert_eq!(stored.compare(&spec(&world.read[&name(*number)])), FileState::Same);
    }
}

#[test]
fn wherever_it_is_interrupted_it_comes_to_the_same_end() {
    let (three, four) = (text(&[1, 2, 3], ""), text(&[1, 2, 3, 4], "[failover]\nlease_ms = 4000\n"));
    let two = text(&[1, 3], "");
    let other = text(&[1, 2, 4], "[postgres.parameters]\nwork_mem = \"8MB\"\n");
    let cases: [(World, &[u8], &str); 4] = [
        (World::bare(3), &[1, 2, 3], &three),
        (made(&[1, 2, 3], 4), &[1, 2, 3, 4], &four),
        (made(&[1, 2, 3], 3), &[1, 3], &two),
        (made(&[1, 2, 3], 4), &[1, 2, 4], &other),
    ];
    for (world, nodes, text) in cases {
        let mut steps = 0;
        for interrupted in 0..60 {
            let mut world = world.clone();
            world.apply(text, true, interrupted);
            same(&world, nodes, text);
            steps += 1;
        }
        assert_eq!(steps, 60);
    }
}

#[test]
fn nothing_is_done_where_everything_is_as_it_should_be() {
    let world = made(&[1, 2, 3], 3);
    assert_eq!(world.decide(&text(&[1, 2, 3], ""), false), Ok(Work::default()));
    let steps = |change: &dyn Fn(&mut World)| {
        let mut world = world.clone();
        change(&mut world);
        let work = world.decide(&text(&[1, 2, 3], ""), false).unwrap();
        work.steps()
            .map(|each| format!("{} {}", each.step.name(), each.step.node().map_or("", |node| node.as_str())))
            .collect::<Vec<_>>()
            .join(", ")
    };
    assert_eq!(steps(&|world| world.host(&name(2)).program = Some("old".into())), "program db2, reload db2");
    assert_eq!(
        steps(&|world| world.host(&name(2)).agent =
            Some(Agent { pid: 7, current: false, elsewhere: false, addressless: false })),
        "reload db2"
    );
    let elsewhere = Some(Agent { pid: 7, current: false, elsewhere: true, addressless: false });
    assert_eq!(steps(&|world| world.host(&name(2)).agent = elsewhere), "move db2");
    assert_eq!(steps(&|world| world.host(&name(3)).agent = None), "start db3");
    assert_eq!(steps(&|world| world.host(&name(1)).unit = None), "configure db1");
    assert_eq!(steps(&|world| world.host(&name(2)).enabled = false), "start db2");
    assert_eq!(steps(&|world| world.host(&name(2)).kept = false), "start db2");
    // Without systemd there is nothing to enable.
    let bare = |host: &mut Host| (host.systemd, host.enabled, host.unit) = (false, false, None);
    assert_eq!(steps(&|world| world.hosts.values_mut().for_each(bare)), "");
    assert_eq!(
        steps(&|world| world.hosts.values_mut().for_each(|host| host.agent = None)),
        "start db1, start db2, start db3"
    );
    let soon = |world: &mut World| {
        if let Papers::Whole { until, .. } = &mut world.host(&name(2)).papers {
            *until = NOW + 86_400;
        }
    };
    assert_eq!(steps(&soon), "renew db2");
    assert_eq!(steps(&|world| world.voters.retain(|node| *node != name(3))), "await db3");
}

#[test]
fn what_stands_in_the_way_is_told_and_nothing_is_done() {
    let file = text(&[1, 2, 3], "");
    let problem = |check: &str| Said {
        check: check.into(),
        problem: true,
        found: format!("{check} is amiss"),
        mend: vec!["mend it".into()],
    };
    let papers = |authority: &str, node: &str| Papers::Whole {
        authority: authority.into(),
        node: node.into(),
        until: NOW + YEAR,
        names: Vec::new(),
    };
    let told = |world: &World, file: &str| match world.decide(file, false) {
        Ok(work) => panic!("{work:?}"),
        Err(found) => found
            .iter()
            .map(|each| format!("{:?} {}: {}", each.node.as_ref().map(NodeId::as_str), each.what, each.mend))
            .collect::<Vec<_>>()
            .join("\n"),
    };
    type Change<'a> = (&'a str, Box<dyn Fn(&mut Host)>);
    let cases: [Change<'_>; 9] = [
        ("a PostgreSQL 15 database", Box::new(|host| host.data = Some("a PostgreSQL 15 database".into()))),
        (
            "of another cluster",
            Box::new(|host| (host.config, host.config_of) = (Some("x".into()), Some("bills".into()))),
        ),
        ("none that can be read", Box::new(|host| host.config = Some("x".into()))),
        ("the host is the node db9", Box::new(|host| host.named = Some("db9".into()))),
        ("space is amiss", Box::new(move |host| host.findings = vec![problem("space")])),
        ("PostgreSQL 16 is there, and PostgreSQL 15 on db1", Box::new(|host| host.server = Some(16))),
        ("not beside this file", Box::new(move |host| host.papers = papers("ours", "db2"))),
        ("certificates of the node db7", Box::new(move |host| host.papers = papers("ours", "db7"))),
        (
            "--packages",
            Box::new(move |host| {
                host.findings = vec![Said {
                    check: "server".into(),
                    problem: true,
                    found: "no PostgreSQL".into(),
                    mend: Vec::new(),
                }]
            }),
        ),
    ];
    for (words, change) in cases {
        let mut world = World::bare(3);
        world.hosts.values_mut().for_each(|host| host.server = Some(15));
        change(world.host(&name(2)));
        let told = told(&world, &file);
        assert!(told.contains(words) && told.contains("db2"), "{words}: {told}");
    }
    // What is merely advice stops nobody, and neither does what is wrong for later.
    let mut world = World::bare(3);
    world.host(&name(2)).findings =
        vec![Said { check: "clock-kept".into(), problem: true, found: "no clock".into(), mend: Vec::new() }];
    assert!(world.decide(&file, false).is_ok());
    // Everything at once, and the cluster's own.
    let world = made(&[1, 2, 3], 3);
    assert!(told(&world, &text(&[1, 2], "")).contains("--remove"));
    assert!(told(&world, &file.replace("10.0.0.2", "10.0.0.9")).contains("mainstay node replace db2 --host 10.0.0.9"));
    assert!(
        told(&world, &file.replace("10.0.0.2\"", "10.0.0.1\"\nport = 5\nagent_port = 6\nhealth_port = 7"))
            .contains("db1 and db2 have the same host")
    );
    let mut later = world.clone();
    later.propose(spec(&text(&[1, 2, 3], "[failover]\nlease_ms = 4000\n")));
    assert!(told(&later, &file).contains("generation 1 said"), "{}", told(&later, &file));
    let mut strange = world;
    strange.authority = false;
    assert!(told(&strange, &file).contains("not beside this file"));
}

#[test]
fn a_host_that_serves_another_node_by_now_is_left_alone() {
    let world = made(&[1, 2, 3], 3);
    let names = |change: &dyn Fn(&mut Host)| {
        let mut world = world.clone();
        change(world.host(&name(3)));
        let work = world.decide(&text(&[1, 2], ""), true).unwrap();
        work.steps().map(|each| each.step.name()).collect::<Vec<_>>()
    };
    let own = names(&|_| {});
    assert!(own.contains(&"remove") && own.contains(&"retire"), "{own:?}");
    let changes: [&dyn Fn(&mut Host); 3] =
        [&|host| host.named = Some("db4".into()), &|host| host.config_of = Some("bills".into()), &|host| {
            (host.named, host.config_of) = (None, None)
        }];
    for change in changes {
        let steps = names(change);
        assert!(steps.contains(&"remove") && !steps.contains(&"retire"), "{steps:?}");
    }
}

#[test]
fn certificates_name_the_address_that_goes_with_the_primary() {
    let mut world = made(&[1, 2, 3], 3);
    let file = text(&[1, 2, 3], "[proxy]\naddress = \"10.0.0.100/24\"\n");
    let renewed = |world: &World| {
        let work = world.decide(&file, false).unwrap();
        let renewed = work.steps().filter(|each| each.step.name() == "renew");
        renewed.map(|each| each.why.clone()).collect::<Vec<_>>()
    };
    let why = renewed(&world);
    assert!(why.len() == 3 && why.iter().all(|why| why.contains("10.0.0.100")), "{why:?}");
    for number in 1..=3 {
        world.carry_out(&Step::Renew(name(number)), &file);
    }
    assert_eq!(renewed(&world), [""; 0]);
}

#[test]
fn a_node_is_gone_before_servers_restart() {
    let world = made(&[1, 2, 3], 3);
    let file = text(&[1, 2], "[postgres.parameters]\nmax_connections = \"300\"\n");
    let order = |inventory: &dyn Fn(&mut Inventory), file: &str| {
        let spec = spec(file);
        let mut seen = world.inventory(&spec);
        inventory(&mut seen);
        let work = work(&wanted(&spec, file, Some(AUTHORITY), true), &seen).unwrap();
        let names: Vec<_> = work.steps().map(|each| each.step.name()).collect();
        names.into_iter().filter(|name| ["change", "remove", "retire", "restart"].contains(name)).collect::<Vec<_>>()
    };
    assert_eq!(order(&|_| {}, &file), ["change", "remove", "retire", "restart"]);
    // Interrupted in between, by an earlier run.
    let waiting = |numbers: &'static [u8]| {
        move |inventory: &mut Inventory| {
            inventory.waiting = numbers.iter().map(|number| (name(*number), vec!["max_connections".into()])).collect();
        }
    };
    let fewer = text(&[1, 2], "");
    assert_eq!(order(&waiting(&[1, 3]), &fewer), ["remove", "retire", "restart"]);
    // What waits on the one that leaves waits for nothing.
    assert_eq!(order(&waiting(&[3]), &fewer), ["remove", "retire"]);
}

#[test]
fn a_node_that_may_be_the_primary_is_not_taken_out() {
    let mut world = made(&[1, 2, 3], 3);
    let mut told = |primary: Option<NodeId>| {
        world.primary = primary;
        world
            .decide(&text(&[1, 2], ""), true)
            .map_err(|found| found.into_iter().map(|each| each.what).collect::<String>())
    };
    assert!(told(Some(name(1))).is_ok());
    assert!(told(Some(name(3))).unwrap_err().contains("db3 is the primary"));
    assert!(told(None).unwrap_err().contains("no primary is known"));
}

//! From a seed to a plan: which hosts, and round by round which faults happen to whom and when. A pure function.
//!
//! The first fault of each round comes from one deck that neighbouring seeds go through in turn, so that a few seeds cover every kind; what
//! it meets is drawn. Half of all faults happen to the primary.

use super::dice::Dice;
use super::fault::{Class, Kind, Takes};
use crate::hosts::Shape;
use mainstay_model::Durability;
use mainstay_model::spec::StoreKind;
use serde::Serialize;
use std::fmt;

/// What a round takes on average, with its healing; and making a cluster.
const ROUND_SECONDS: u64 = 24;
/// How often a fault meets another, in a hundred.
const MEETS: u64 = 60;
/// The order in which kinds come up: drawn once for all seeds.
const DECK: u64 = 20_26;

/// To whom it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Who is the primary as the round begins.
    Primary,
    /// The replica of this number, as the round begins, counted over.
    Replica(u8),
    /// Members of the etcd that is the store.
    Etcd,
    /// The next host that has the other version of the program.
    NextHost,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Primary => f.write_str("the primary"),
            Target::Replica(number) => write!(f, "replica {}", number + 1),
            Target::Etcd => f.write_str("the etcd"),
            Target::NextHost => f.write_str("the next host"),
        }
    }
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// When, in milliseconds from the beginning of the round.
    pub at_ms: u64,
    /// What.
    pub kind: Kind,
    /// To whom.
    pub target: Target,
    /// How long it lasts before it is healed.
    pub lasts_ms: u64,
}

/// Faults that overlap or follow each other; after them all is healed, and the cluster must be whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Round {
    /// The faults, in the order of their beginning.
    pub steps: Vec<Step>,
    /// More is taken than the cluster can spare: writes may wait.
    pub beyond: bool,
    /// Nothing is taken: nobody may take over.
    pub harmless: bool,
}

/// What will happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// From what it was made.
    pub seed: u64,
    /// Data nodes.
    pub data: u8,
    /// Nodes that only vote.
    pub witnesses: u8,
    /// `strict`, `available`, `async`.
    pub durability: &'static str,
    /// Who holds the cluster's store.
    pub store: StoreKind,
    /// Clients that write the ledger.
    pub clients: i32,
    /// The rounds.
    pub rounds: Vec<Round>,
    /// The hosts.
    #[serde(skip)]
    pub shape: Shape,
}

/// What a plan is made from.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// The seed.
    pub seed: u64,
    /// About how long it takes.
    pub minutes: u64,
    /// Only these classes; empty: all.
    pub classes: Vec<Class>,
    /// Only these kinds; empty: all.
    pub kinds: Vec<Kind>,
    /// These hosts, instead of drawn ones.
    pub shape: Option<Shape>,
    /// Who holds the cluster's store. Never drawn: a seed's plan stays what it was.
    pub store: StoreKind,
}

impl Wish {
    fn allows(&self, kind: Kind) -> bool {
        let either = !self.classes.is_empty() || !self.kinds.is_empty();
        !either || self.classes.contains(&kind.class()) || self.kinds.contains(&kind)
    }
}

fn shape(dice: &mut Dice) -> Shape {
    match dice.between(0, 99) {
        0..=59 => Shape::THREE,
        60..=74 => Shape { durability: Durability::Available, ..Shape::THREE },
        75..=84 => Shape { durability: Durability::Available, ..Shape::WITNESS },
        85..=94 => Shape { durability: Durability::Async, ..Shape::THREE },
        _ => Shape::FIVE,
    }
}

/// Makes the plan.
#[must_use]
pub fn plan(wish: &Wish) -> Plan {
    let mut dice = Dice::new(wish.seed);
    let drawn = shape(&mut dice);
    let shape = wish.shape.unwrap_or(drawn).on(wish.store);
    let fits = |kind: &Kind| kind.fits(shape);
    let belongs = |kind: &Kind| match kind.on_request() {
        true => wish.kinds.contains(kind),
        false => kind.belongs(wish.store),
    };
    let allowed = |kind: &Kind| wish.allows(*kind) && belongs(kind);
    let mut deck: Vec<Kind> = Kind::ALL.iter().copied().filter(allowed).collect();
    Dice::new(DECK).shuffle(&mut deck);
    let possible: Vec<Kind> = deck.iter().copied().filter(fits).collect();
    let count = (wish.minutes * 60 / ROUND_SECONDS).max(1);
    let rounds = (0..count).filter_map(|round| {
        let place =
            usize::try_from(wish.seed.wrapping_mul(count).wrapping_add(round) % deck.len().max(1) as u64).ok()?;
        let first = deck.get(place).copied().filter(fits).or_else(|| dice.one(&possible))?;
        Some(one_round(&mut dice, shape, first, &possible))
    });
    let rounds = rounds.collect();
    of(wish, shape, &mut dice, rounds)
}

/// What happens between two changes of a host's version, in an order that is drawn: take-overs, planned and not, what is written by one version
/// and read by the other, copies that are cloned from it.
const BETWEEN: [Kind; 16] = [
    Kind::ServerKill,
    Kind::Switchover,
    Kind::HostRestart,
    Kind::LinkCut,
    Kind::SettingChange,
    Kind::HostKill,
    Kind::AgentKill,
    Kind::DurabilityChange,
    Kind::Reinit,
    Kind::PowerLoss,
    Kind::AgentStop,
    Kind::RestartNode,
    Kind::HostWiped,
    Kind::NodeChange,
    Kind::GuardKill,
    Kind::Paused,
];

/// Two versions in one cluster: host after host gets the new program, then host after host the previous one again, and between two of them a
/// fault. Nobody may take over because of a change of the program alone.
#[must_use]
pub fn mixed(wish: &Wish) -> Plan {
    let mut dice = Dice::new(wish.seed);
    let drawn = shape(&mut dice);
    let shape = wish.shape.unwrap_or(drawn).on(wish.store);
    let mut between: Vec<Kind> = BETWEEN.into_iter().filter(|kind| kind.fits(shape)).collect();
    dice.shuffle(&mut between);
    let hosts = usize::from(shape.data + shape.witnesses) + 1;
    let changes = [Kind::ProgramNew, Kind::ProgramBack].into_iter().flat_map(|kind| std::iter::repeat_n(kind, hosts));
    let mut rounds = Vec::new();
    for (change, fault) in changes.zip(between.into_iter().cycle()) {
        let change = step(&mut dice, change, Target::NextHost, 300);
        rounds.push(Round { steps: vec![change], beyond: false, harmless: true });
        let goal = target(&mut dice, fault, shape);
        let steps = vec![step(&mut dice, fault, goal, 300)];
        rounds.push(Round { beyond: takes_too_much(&steps, shape), harmless: fault.takes() == Takes::Nothing, steps });
    }
    of(wish, shape, &mut dice, rounds)
}

fn of(wish: &Wish, shape: Shape, dice: &mut Dice, rounds: Vec<Round>) -> Plan {
    let clients = i32::try_from(dice.between(2, 4)).unwrap_or(2);
    let (data, witnesses, durability) = (shape.data, shape.witnesses, shape.durability.as_str());
    Plan { seed: wish.seed, data, witnesses, durability, store: shape.store, clients, rounds, shape }
}

fn target(dice: &mut Dice, kind: Kind, shape: Shape) -> Target {
    let replica = Target::Replica(u8::try_from(dice.between(0, u64::from(shape.data.max(2)) - 2)).unwrap_or(0));
    match kind.on_primary() {
        _ if kind.to_etcd() => Target::Etcd,
        _ if kind.of_versions() => Target::NextHost,
        Some(true) => Target::Primary,
        Some(false) => replica,
        None if dice.percent(55) => Target::Primary,
        None => replica,
    }
}

fn step(dice: &mut Dice, kind: Kind, target: Target, at_ms: u64) -> Step {
    let (low, high) = kind.lasts();
    Step { at_ms, kind, target, lasts_ms: dice.between(low, high) }
}

fn one_round(dice: &mut Dice, shape: Shape, first: Kind, possible: &[Kind]) -> Round {
    // Anywhere in a lease's period: what a fault finds depends on how long ago the last renewal was.
    let begin = dice.between(0, 1500);
    let goal = target(dice, first, shape);
    let mut steps = vec![step(dice, first, goal, begin)];
    if !first.alone() && dice.percent(MEETS) {
        // A few draws are enough; a round without a second fault is as good.
        for _ in 0..12 {
            let Some(kind) = dice.one(possible) else { break };
            let other = target(dice, kind, shape);
            if first.may_meet(kind, other == goal) {
                let after = begin + dice.between(50, steps.first().map_or(1000, |step| step.lasts_ms.max(400)));
                steps.push(step(dice, kind, other, after));
                break;
            }
        }
    }
    let (beyond, harmless) =
        (takes_too_much(&steps, shape), steps.iter().all(|step| step.kind.takes() == Takes::Nothing));
    Round { steps, beyond, harmless }
}

/// Does this take more than the cluster can spare? With `strict`, commits wait for half of the copies, rounded down: three copies spare one,
/// two spare none. What lasts a moment while another node is away may take the last answer.
fn takes_too_much(steps: &[Step], shape: Shape) -> bool {
    let mut away: Vec<Target> = Vec::new();
    let mut moments = 0;
    for step in steps {
        match step.kind.takes() {
            Takes::Quorum => return true,
            Takes::Node if !away.contains(&step.target) => away.push(step.target),
            Takes::Node | Takes::Nothing => {}
            Takes::Moment => moments += 1,
        }
    }
    let spare = usize::from((shape.data + shape.witnesses - 1) / 2);
    let spare = match (shape.data, shape.durability, shape.store) {
        (2, Durability::Strict, _) => 0,
        // Where an etcd votes, one of two nodes may go on alone.
        (2, _, StoreKind::Etcd) => 1,
        _ => spare,
    };
    away.len() > spare || (away.len() == spare && moments > 0)
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "seed {}: {}, {} ledger clients, {} rounds",
            self.seed,
            self.shape.words(),
            self.clients,
            self.rounds.len()
        )?;
        for (number, round) in self.rounds.iter().enumerate() {
            let what = |step: &Step| {
                format!("{} on {} at {} ms for {} ms", step.kind.name(), step.target, step.at_ms, step.lasts_ms)
            };
            let steps: Vec<String> = round.steps.iter().map(what).collect();
            let beyond = if round.beyond { " (more than can be spared)" } else { "" };
            writeln!(f, "  {:>2}. {}{beyond}", number + 1, steps.join("; "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// A sum over the words of the plan of seed 7.
    const SEVEN: u64 = 7_744_394_297_705_919_902;

    fn of(seed: u64) -> Plan {
        plan(&Wish { seed, minutes: 4, ..Wish::default() })
    }

    #[test]
    fn the_same_seed_is_the_same_plan_and_another_is_another() {
        assert_eq!(of(5), of(5));
        assert_eq!(of(5).to_string(), of(5).to_string());
        assert_ne!(of(5).rounds, of(6).rounds);
    }

    #[test]
    fn a_week_of_seeds_covers_every_kind_and_every_durability() {
        let week: Vec<Plan> = (1..=7).map(of).collect();
        let steps = || week.iter().flat_map(|plan| &plan.rounds).flat_map(|round| &round.steps);
        let kinds: BTreeSet<Kind> = steps().map(|step| step.kind).collect();
        let of_nodes = Kind::ALL.iter().filter(|kind| kind.belongs(StoreKind::Raft));
        let missing: Vec<&Kind> = of_nodes.filter(|kind| !kinds.contains(kind)).collect();
        assert!(missing.is_empty(), "{missing:?}");
        assert!(!kinds.iter().any(|kind| kind.of_etcd()), "{kinds:?}");
        let fortnight: BTreeSet<&str> = (1..=14).map(|seed| of(seed).durability).collect();
        assert_eq!(fortnight.len(), 3, "{fortnight:?}");
        assert!(week.iter().flat_map(|plan| &plan.rounds).any(|round| round.steps.len() > 1 && !round.beyond));
        assert!(week.iter().flat_map(|plan| &plan.rounds).any(|round| round.steps.len() > 1 && round.beyond));
    }

    /// An etcd is asked for, never drawn: the plan of a seed stays what it was.
    #[test]
    fn a_seed_keeps_its_plan() {
        let text = of(7).to_string();
        let sum = text.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
        assert_eq!(sum, SEVEN, "{text}");
    }

    #[test]
    fn on_an_etcd_its_faults_come_up_and_those_of_the_nodes_own_store_do_not() {
        let on_etcd = |seed| plan(&Wish { seed, minutes: 4, store: StoreKind::Etcd, ..Wish::default() });
        let week: Vec<Plan> = (1..=8).map(on_etcd).collect();
        assert!(week.iter().all(|plan| plan.witnesses == 0 && plan.store == StoreKind::Etcd));
        let steps = || week.iter().flat_map(|plan| &plan.rounds).flat_map(|round| &round.steps);
        let kinds: BTreeSet<Kind> = steps().map(|step| step.kind).collect();
        let missing: Vec<&Kind> =
            Kind::ALL.iter().filter(|kind| kind.belongs(StoreKind::Etcd) && !kinds.contains(kind)).collect();
        assert!(missing.is_empty(), "{missing:?}");
        assert!(!kinds.contains(&Kind::MostWiped));
        assert!(steps().all(|step| step.kind.to_etcd() == (step.target == Target::Etcd)));
        assert!(week[0].to_string().contains("on an etcd") && !of(1).to_string().contains("etcd"));
    }

    #[test]
    fn every_host_gets_the_new_version_and_the_previous_one_again() {
        for seed in 0..20 {
            let plan = mixed(&Wish { seed, ..Wish::default() });
            let hosts = usize::from(plan.data + plan.witnesses) + 1;
            let kinds: Vec<Kind> = plan.rounds.iter().flat_map(|round| &round.steps).map(|step| step.kind).collect();
            let changes: Vec<Kind> = kinds.iter().copied().filter(|kind| kind.of_versions()).collect();
            assert_eq!(changes, [vec![Kind::ProgramNew; hosts], vec![Kind::ProgramBack; hosts]].concat());
            assert!(kinds.chunks(2).all(|pair| pair[0].of_versions() && !pair[1].of_versions()), "{plan}");
            assert!(plan.rounds.iter().step_by(2).all(|round| round.harmless));
        }
    }

    #[test]
    fn faults_that_meet_may_meet() {
        let on_etcd = |seed| plan(&Wish { seed, minutes: 4, store: StoreKind::Etcd, ..Wish::default() });
        for seed in 0..200 {
            for round in of(seed).rounds.into_iter().chain(on_etcd(seed).rounds) {
                if let [one, other] = round.steps.as_slice() {
                    assert!(one.kind.may_meet(other.kind, one.target == other.target), "{round:?}");
                }
                assert!(round.steps.len() <= 2);
            }
        }
    }

    #[test]
    fn only_what_was_asked_for_happens() {
        let wish = Wish { seed: 3, minutes: 4, classes: vec![Class::Disk], ..Wish::default() };
        let steps: Vec<Step> = plan(&wish).rounds.into_iter().flat_map(|round| round.steps).collect();
        assert!(steps.len() >= 10 && steps.iter().all(|step| step.kind.class() == Class::Disk));
        let wish = Wish { seed: 3, minutes: 1, kinds: vec![Kind::ServerKill], ..Wish::default() };
        assert!(plan(&wish).rounds.iter().flat_map(|round| &round.steps).all(|step| step.kind == Kind::ServerKill));
    }

    #[test]
    fn what_can_be_spared_follows_the_hosts() {
        let step = |kind, target| Step { at_ms: 0, kind, target, lasts_ms: 1 };
        let two = [step(Kind::HostKill, Target::Primary), step(Kind::LinkCut, Target::Replica(0))];
        assert!(takes_too_much(&two, Shape::THREE) && !takes_too_much(&two, Shape::FIVE));
        assert!(!takes_too_much(&two[..1], Shape::THREE));
        assert!(takes_too_much(&two[..1], Shape::WITNESS));
        assert!(takes_too_much(&[step(Kind::HostsLost, Target::Primary)], Shape::FIVE));
        let pair = Shape { durability: Durability::Available, ..Shape::WITNESS }.on(StoreKind::Etcd);
        assert!(!takes_too_much(&two[..1], pair) && takes_too_much(&two, pair));
        assert!(takes_too_much(&two[..1], Shape { durability: Durability::Strict, ..pair }));
        assert!(takes_too_much(&[step(Kind::EtcdLost, Target::Etcd)], pair));
    }
}

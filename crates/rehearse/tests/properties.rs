//! What must hold for every plan, over drawn requirements and layouts.
#![expect(clippy::unwrap_used, reason = "a test ends where it can not go on")]

use mainstay_model::Durability;
use mainstay_model::config::parse;
use mainstay_model::requirements::{Disk, Requirements, Workload};
use mainstay_model::spec::{Node, Spec};
use mainstay_plan::day::Day;
use mainstay_plan::layout::{Layout, Pace};
use mainstay_plan::objectives::{Class, Loss, Outage, missed, reached};
use mainstay_plan::refusal::nearby;
use mainstay_plan::whatif::Ended;
use mainstay_plan::{Facts, lint, plan};
use mainstay_rehearse::what_if;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

fn today() -> Day {
    Day::of(2026, 11, 27)
}

fn spec(data: usize, witnesses: usize, zones: usize, durability: Durability) -> Spec {
    let mut spec = parse("[cluster]\nname = \"a\"\n[[node]]\nname = \"n0\"\nhost = \"10.0.0.1\"\n", &[]).unwrap();
    spec.cluster.durability = durability;
    let first = spec.nodes[0].clone();
    spec.nodes = (0..data + witnesses)
        .map(|number| Node {
            name: format!("n{number}").parse_name(),
            host: format!("10.0.0.{}", number + 1),
            zone: (zones > 0).then(|| format!("z{}", number % zones.max(1))),
            witness: number >= data,
            ..first.clone()
        })
        .collect();
    spec
}

trait Name {
    fn parse_name(&self) -> mainstay_model::NodeId;
}
impl Name for String {
    fn parse_name(&self) -> mainstay_model::NodeId {
        mainstay_model::NodeId::new(self.as_str()).unwrap()
    }
}

fn durabilities() -> impl Strategy<Value = Durability> {
    prop_oneof![Just(Durability::Strict), Just(Durability::Available), Just(Durability::Async)]
}

fn objectives() -> impl Strategy<Value = [Option<u64>; 8]> {
    let one = || proptest::option::of(prop_oneof![Just(0u64), Just(1), Just(10), Just(60), Just(600), Just(100_000)]);
    [one(), one(), one(), one(), one(), one(), one(), one()]
}

prop_compose! {
    fn asked()(
        objectives in objectives(), size in 1u64..2000, writes in 0u64..3000, clients in 1u64..1500, cores in 1u64..64,
        memory in 1u64..512, disk in 10u64..8000, link in 100u64..25_000, retention in 1u64..400,
        kind in prop_oneof![Just(Disk::Nvme), Just(Disk::Ssd), Just(Disk::Network), Just(Disk::Rotating)],
        workload in prop_oneof![Just(Workload::Transactions), Just(Workload::Mixed), Just(Workload::Analytics)],
    ) -> Requirements {
        let outage = |value: Option<u64>| value.map(|value| value.max(1));
        Requirements {
            loss_host_s: objectives[0], loss_zone_s: objectives[1], loss_site_s: objectives[2], loss_human_s: objectives[3],
            outage_host_s: outage(objectives[4]), outage_zone_s: outage(objectives[5]), outage_site_s: outage(objectives[6]),
            outage_human_s: outage(objectives[7]), size_gb: size, writes_per_s: writes, clients, cores, memory_gb: memory, disk_gb: disk,
            link_mbit_s: link, retention_days: retention, disk: kind, workload, ..Requirements::default()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, rng_seed: RngSeed::Fixed(20_261_127), ..ProptestConfig::default() })]

    /// Whatever is asked: a plan that is accepted passes its own lint, and a refused one says what is wrong and what would do.
    #[test]
    fn accepted_plans_are_whole_and_refused_ones_say_why(
        requirements in asked(), data in 1usize..6, witnesses in 0usize..3, zones in 0usize..4, durability in durabilities(),
    ) {
        let mut spec = spec(data, witnesses, zones, durability);
        spec.requirements = requirements;
        let facts = Facts { spec: &spec, today: today(), machines: &[], running: None, what_if: &[] };
        match plan(&facts) {
            Ok(made) => {
                prop_assert_eq!(lint(&made, &[]), Vec::<String>::new());
                prop_assert!(missed(&facts, &Layout::of(&spec)).is_empty());
            }
            Err(found) => for each in found {
                prop_assert!(each.text.len() > 20 && each.nearest.iter().all(|near| !near.is_empty()), "{each:?}");
                prop_assert!(!each.nearest.is_empty(), "{each:?}");
            },
        }
    }

    /// A layout that is named as near really does what is asked.
    #[test]
    fn near_layouts_miss_nothing(requirements in asked(), data in 1usize..5, zones in 0usize..4, durability in durabilities()) {
        let mut spec = spec(data, 0, zones, durability);
        spec.requirements = requirements;
        let facts = Facts { spec: &spec, today: today(), machines: &[], running: None, what_if: &[] };
        let here = Layout::of(&spec);
        let near = nearby(&facts, &here);
        for each in &near {
            prop_assert!(missed(&facts, &each.layout).is_empty(), "{}", each.change);
            prop_assert!(!each.change.is_empty() || missed(&facts, &here).is_empty());
        }
    }
}

/// What a plan claims for hosts and zones, the real decisions do, within the time that it claims.
#[test]
fn claims_survive_the_rehearsal() {
    use Durability::{Async, Available, Strict};
    for (data, witnesses, zones, durability) in [
        (1, 0, 1, Strict),
        (2, 1, 3, Available),
        (3, 0, 3, Strict),
        (3, 0, 2, Available),
        (3, 0, 3, Async),
        (3, 2, 3, Available),
        (5, 0, 3, Strict),
    ] {
        let spec = spec(data, witnesses, zones, durability);
        let cases = what_if(&spec).unwrap();
        let facts = Facts { spec: &spec, today: today(), machines: &[], running: None, what_if: &cases };
        let layout = Layout::of(&spec);
        for claim in reached(&facts, &layout) {
            let zone = |names: &std::collections::BTreeSet<mainstay_model::NodeId>| {
                layout.zones().into_iter().flatten().any(|zone| layout.zone(zone) == *names)
            };
            let concerned = cases.iter().filter(|case| {
                case.pace == Pace::AtOnce
                    && match claim.class {
                        Class::Server => case.failed.is_empty(),
                        Class::Host => case.failed.len() == 1,
                        Class::Zone => zone(&case.failed),
                        Class::Site | Class::Human => false,
                    }
            });
            for case in concerned {
                if let Outage::Automatic(seconds) = claim.outage {
                    let Ended::Serves { gap_ms } = case.ended else { panic!("{claim:?}: {case:?}") };
                    assert!(gap_ms <= seconds * 1000, "{claim:?}: {case:?}");
                }
                assert!(!(claim.loss == Loss::Nothing && case.lost), "{claim:?}: {case:?}");
            }
        }
    }
}

//! When the address is taken, renewed, told of and given up, on a kernel that is played.

use super::*;
use mainstay_model::{RouteState, Term};
use mainstay_ports::route_board::RouteBoard;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// What the played kernel has, and how it behaves.
#[derive(Clone, Default)]
struct Played(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    held: Option<Ipv4Addr>,
    given: usize,
    foreign: Option<u32>,
    mute: bool,
    announced: usize,
}

impl Played {
    fn at<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }
}

impl Addresses for Played {
    fn interface(&mut self, _: Option<&str>, _: Option<Ipv4Addr>) -> Result<Interface, AddressError> {
        Kernel::open()?.interface(Some("lo"), None)
    }

    fn give(&mut self, address: Ipv4Addr, _: &Interface, _: &str, _: u32) -> Result<(), AddressError> {
        self.at(|state| {
            state.held = Some(address);
            state.given += 1;
        });
        Ok(())
    }

    fn clear(&mut self, _: &str, keep: Option<(Ipv4Addr, u32)>) -> Result<(), AddressError> {
        self.at(|state| state.held = state.held.filter(|held| keep.is_some_and(|(kept, _)| kept == *held)));
        Ok(())
    }

    fn foreign(&mut self, _: Ipv4Addr, _: &str) -> Result<Option<u32>, AddressError> {
        Ok(self.at(|state| state.foreign))
    }

    fn end_connections(&mut self, _: Ipv4Addr) -> usize {
        0
    }

    fn announce(&mut self, _: Ipv4Addr, _: &Interface) -> Result<(), AddressError> {
        self.at(|state| {
            state.announced += 1;
            let error = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
            if state.mute { Err(AddressError::System { what: "announce the address", error }) } else { Ok(()) }
        })
    }
}

/// A node that wants the address, its route, and what its status says.
struct Bench {
    run: Run<Played>,
    kernel: Played,
    routes: Routes,
    told: watch::Receiver<Option<AddressStanding>>,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let text = "[cluster]\nname = \"c\"\n[[node]]\nname = \"db1\"\nhost = \"10.0.0.1\"\n\
                    [[node]]\nname = \"db2\"\nhost = \"10.0.0.2\"\n[proxy]\naddress = \"10.0.0.100/24\"\n";
        let spec = mainstay_model::config::parse(text, &[]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let generations = Arc::new(Generations::load(dir.path().join("spec.json"), spec).unwrap());
        let me = NodeId::new("db1").unwrap();
        let routes = Routes::new(me.clone(), BTreeMap::new(), Arc::new(RouteBoard::new(1 << 40)));
        let (standing, told) = watch::channel(None);
        let keeper = Keeper { me, generations, routes: routes.clone(), standing };
        let kernel = Played::default();
        let opened = kernel.clone();
        let run = Run::new(keeper, "ms-1".to_owned(), Box::new(move || Ok(opened.clone())));
        Self { run, kernel, routes, told, _dir: dir }
    }

    /// Looks each tenth of a second, from `from` until before `to`; the status then.
    fn look(&mut self, from: u64, to: u64) -> AddressStanding {
        for now in (from..to).step_by(100) {
            self.run.look(Moment(now));
        }
        self.told.borrow().clone().unwrap()
    }

    fn say(&self, state: RouteState, until: u64) {
        self.routes.say(Term(3), state, Moment(until));
    }
}

#[test]
fn what_can_not_be_announced_is_held_all_the_same_and_told() {
    let mut bench = Bench::new();
    bench.kernel.at(|state| state.mute = true);
    for second in 10..20 {
        bench.say(RouteState::Open, second * 1000 + 2500);
        let standing = bench.look(second * 1000, second * 1000 + 1000);
        assert!(standing.held && standing.problem.is_none(), "{second}: {standing:?}");
        assert!(standing.unannounced.unwrap().contains("CAP_NET_RAW"));
    }
    assert!(bench.kernel.at(|state| state.given) >= 10, "renewed with the deadline");
    assert_eq!(bench.kernel.at(|state| state.announced), 7, "no more often than it would be else");
    bench.kernel.at(|state| state.mute = false);
    bench.say(RouteState::Open, 30_000);
    assert_eq!(bench.look(20_000, 25_000).unannounced, None);
}

#[test]
fn an_address_by_another_hand_is_told_of_on_a_host_that_has_no_claim_to_it() {
    let mut bench = Bench::new();
    let standing = bench.look(10_000, 11_000);
    assert!(!standing.foreign && standing.problem.is_none());
    bench.kernel.at(|state| state.foreign = Some(7));
    let standing = bench.look(11_000, 16_000);
    assert!(standing.foreign && !standing.held && standing.problem.unwrap().contains("interface 7"));
    bench.say(RouteState::Open, 20_000);
    assert!(bench.look(17_000, 18_000).foreign);
    assert_eq!(bench.kernel.at(|state| state.given), 0, "and never taken up beside it");
    bench.say(RouteState::Closed, 20_000);
    bench.kernel.at(|state| state.foreign = None);
    let standing = bench.look(18_100, 23_200);
    assert!(!standing.foreign && standing.problem.is_none());
}

#[test]
fn it_is_given_up_soon_after_the_route_closes() {
    let mut bench = Bench::new();
    bench.say(RouteState::Open, 20_000);
    assert!(bench.look(10_000, 11_000).held);
    bench.say(RouteState::Draining, 20_000);
    assert!(bench.look(11_000, 12_000).held);
    bench.say(RouteState::Closed, 20_000);
    assert!(!bench.look(12_000, 12_100).held);
    assert_eq!(bench.kernel.at(|state| state.held), None);
}

fn serving(open: bool, until: u64) -> Option<Serving> {
    Some(Serving { open, until: Moment(until) })
}

#[test]
fn it_is_held_while_the_route_is_open_and_no_longer() {
    let now = Moment(10_000);
    let had = |renewed: u64, lapses: u64| Some(Had { renewed: Moment(renewed), lapses: Moment(lapses) });
    assert_eq!(decide(now, None, None), Act::Rest);
    assert_eq!(decide(now, None, had(9_900, 11_000)), Act::GiveUp);
    assert_eq!(decide(now, serving(true, 12_400), None), Act::Take(2), "never for longer than the deadline");
    assert_eq!(decide(now, serving(true, 10_300), None), Act::Take(1), "a second is the least");
    assert_eq!(decide(now, serving(true, 900_000), None), Act::Take(60));
    assert_eq!(decide(now, serving(false, 12_400), None), Act::Rest, "nothing is begun in a drain");
    assert_eq!(decide(now, serving(false, 12_400), had(9_500, 11_000)), Act::Renew(2), "and nothing ended");
    assert_eq!(decide(now, serving(true, 12_400), had(9_900, 11_500)), Act::Rest);
    assert_eq!(decide(now, serving(true, 12_400), had(8_000, 9_750)), Act::Take(2), "the kernel has taken it away");
    assert_eq!(decide(now, serving(false, 12_400), had(8_000, 9_750)), Act::GiveUp, "and nothing is begun in a drain");
}

#[test]
fn a_renewal_never_makes_the_lifetime_shorter() {
    // A deadline that stands still: whole seconds are left of it, and fewer from one renewal to the next.
    let until = 12_400;
    let mut had = lease(Moment(10_000), 2);
    for now in (10_100..until).step_by(100) {
        match decide(Moment(now), serving(true, until), Some(had)) {
            Act::Renew(seconds) => {
                let renewed = lease(Moment(now), seconds);
                assert!(renewed.lapses > had.lapses, "{now}: {had:?} became {renewed:?}");
                had = renewed;
            }
            act => assert_eq!(act, Act::Rest, "{now}"),
        }
    }
    assert!(had.lapses >= Moment(until));
}

#[test]
fn announcements_become_rare_and_never_end() {
    let due: Vec<u64> = (0..9).map(|count| announcement(count).0).collect();
    assert_eq!(due, [0, 100, 300, 700, 1500, 3000, 8000, 13_000, 18_000]);
    assert_eq!(lease(Moment(1000), 2), Had { renewed: Moment(1000), lapses: Moment(2750) });
}

#[test]
fn a_label_is_short_and_one_nodes_own() {
    let of = |cluster: &str, node: &str| label(&ClusterName::new(cluster).unwrap(), &NodeId::new(node).unwrap());
    assert_eq!(of("shop", "db1").len(), 11);
    assert_eq!(of("shop", "db1"), of("shop", "db1"));
    assert!(of("shop", "db1") != of("shop", "db2") && of("shop", "db1") != of("bank", "db1"));
}

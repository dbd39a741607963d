//! Expected availability: hosts fail independently, zones as a whole, and each failure of the primary costs one take-over. The model is small so
//! that its assumptions fit into three sentences, which the plan prints.

use crate::layout::{Layout, Writes};
use mainstay_model::requirements::Requirements;

/// What the model counts with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Assumed {
    /// Part of the time that a host is down.
    pub host_down: f64,
    /// Part of the time that a zone is down.
    pub zone_down: f64,
    /// Failures of one host in a year.
    pub host_failures: f64,
    /// Seconds without writes in a take-over.
    pub take_over_s: f64,
}

const HOURS_A_YEAR: f64 = 8766.0;
const SECONDS_A_YEAR: f64 = HOURS_A_YEAR * 3600.0;

#[expect(clippy::cast_precision_loss, reason = "days and hours of a few years")]
fn number(value: u64) -> f64 {
    value as f64
}

impl Assumed {
    /// From what the file says.
    #[must_use]
    pub fn of(asked: &Requirements, take_over_s: f64) -> Assumed {
        let repair = number(asked.repair_hours);
        let part = |every_days: u64| repair / (number(every_days) * 24.0 + repair);
        Assumed {
            host_down: part(asked.host_fails_every_days),
            zone_down: part(asked.zone_fails_every_days),
            host_failures: HOURS_A_YEAR / (number(asked.host_fails_every_days) * 24.0),
            take_over_s,
        }
    }
}

fn choose(n: usize, k: usize) -> f64 {
    (0..k).fold(1.0, |value, step| value * number((n - step) as u64) / number((step + 1) as u64))
}

/// The chance that exactly `k` of `n` are down.
fn exactly(n: usize, k: usize, down: f64) -> f64 {
    let power = |base: f64, times: usize| (0..times).fold(1.0, |value, _| value * base);
    choose(n, k) * power(down, k) * power(1.0 - down, n - k)
}

/// The chance that writes stand still, with `gone` nodes away for another reason.
fn unavailable(layout: &Layout, gone: (usize, usize), down: f64) -> f64 {
    let data = layout.data() - gone.0;
    let witnesses = layout.votes() - layout.data() - gone.1;
    let mut sum = 0.0;
    for failed in 0..=data {
        for silent in 0..=witnesses {
            if layout.with(data - failed + witnesses - silent, data - failed) != Writes::GoOn {
                sum += exactly(data, failed, down) * exactly(witnesses, silent, down);
            }
        }
    }
    sum
}

/// The part of the time in which writes stand still.
#[must_use]
pub fn without_writes(layout: &Layout, assumed: &Assumed) -> f64 {
    let mut sum = 0.0;
    let mut rest = 1.0;
    for zone in layout.zones().into_iter().flatten() {
        let here = layout.places.iter().filter(|place| place.zone.as_deref() == Some(zone));
        let data = here.clone().filter(|place| !place.witness).count();
        let gone = (data, here.count() - data);
        sum += assumed.zone_down * unavailable(layout, gone, assumed.host_down);
        rest -= assumed.zone_down;
    }
    sum += f64::max(rest, 0.0) * unavailable(layout, (0, 0), assumed.host_down);
    // One data node: its repair is in the sum; there is nobody to take over.
    let take_overs = if layout.data() > 1 { assumed.host_failures * assumed.take_over_s / SECONDS_A_YEAR } else { 0.0 };
    f64::min(sum + take_overs, 1.0)
}

/// `99.95 %`, with as many nines as there are.
#[must_use]
pub fn percent(without: f64) -> String {
    let percent = (1.0 - without) * 100.0;
    let digits = [(1e-2, 1), (1e-3, 2), (1e-4, 3), (1e-5, 4)].into_iter().find(|(limit, _)| without >= *limit);
    let digits = digits.map_or(5, |(_, digits)| digits);
    format!("{percent:.digits$} %")
}

/// Minutes or hours a year.
#[must_use]
pub fn a_year(without: f64) -> String {
    let minutes = without * HOURS_A_YEAR * 60.0;
    if minutes >= 120.0 { format!("{:.1} h", minutes / 60.0) } else { format!("{minutes:.1} min") }
}

/// The layout with the highest availability that so many hosts can make, and its standstill. More hosts offer more choices, and none is lost.
/// It is as durable as this one, and has its votes where this one has them.
#[must_use]
pub fn best(hosts: usize, like: &Layout, assumed: &Assumed) -> Option<(Layout, f64)> {
    let mut found: Option<(Layout, f64)> = None;
    for votes in 1..=hosts.min(9) {
        for data in 1..=votes {
            let layout = Layout::plain(data, votes - data, like.durability).voting_as(like);
            let without = without_writes(&layout, assumed);
            // Ties and near ties go to fewer nodes, and to what was looked at first.
            if found.as_ref().is_none_or(|(_, known)| without < known * 0.999) {
                found = Some((layout, without));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_model::Durability;

    fn assumed() -> Assumed {
        Assumed::of(&Requirements::default(), 5.0)
    }

    #[test]
    fn one_host_is_down_as_often_as_it_is() {
        let without = without_writes(&Layout::plain(1, 0, Durability::Strict), &assumed());
        assert!((without - 8.0 / (365.0 * 24.0 + 8.0)).abs() < 1e-12);
        assert_eq!(percent(without), "99.909 %");
        assert_eq!(a_year(without), "8.0 h");
    }

    #[test]
    fn two_copies_and_an_etcd_stand_still_only_when_both_are_down() {
        let layout = Layout { etcd: true, ..Layout::plain(2, 0, Durability::Available) };
        let without = without_writes(&layout, &assumed());
        assert!(without < without_writes(&Layout::plain(1, 0, Durability::Available), &assumed()) / 100.0);
    }

    #[test]
    fn two_more_voters_never_make_it_worse_and_four_are_worse_than_three() {
        for durability in [Durability::Strict, Durability::Available, Durability::Async] {
            for (repair, every) in [(1, 3650), (8, 365), (72, 30)] {
                let asked =
                    Requirements { repair_hours: repair, host_fails_every_days: every, ..Requirements::default() };
                let assumed = Assumed::of(&asked, 5.0);
                for data in (1..=7).step_by(2) {
                    let less = without_writes(&Layout::plain(data, 0, durability), &assumed);
                    let more = without_writes(&Layout::plain(data + 2, 0, durability), &assumed);
                    assert!(more <= less, "{data} {durability}: {more} > {less}");
                }
            }
        }
        let of = |data| without_writes(&Layout::plain(data, 0, Durability::Strict), &assumed());
        assert!(of(4) > of(3), "the reason why hosts are not simply all used");
    }

    #[test]
    fn more_hosts_never_make_the_best_choice_worse() {
        for (durability, etcd) in [
            (Durability::Strict, false),
            (Durability::Available, false),
            (Durability::Available, true),
            (Durability::Async, false),
        ] {
            let like = Layout { etcd, ..Layout::plain(1, 0, durability) };
            let mut last = 1.0;
            for hosts in 1..=9 {
                let (layout, without) = best(hosts, &like, &assumed()).unwrap();
                assert!(without <= last && layout.votes() <= hosts, "{durability} {hosts}");
                assert!(!etcd || layout.votes() == layout.data(), "a witness has no vote there");
                last = without;
            }
        }
    }
}

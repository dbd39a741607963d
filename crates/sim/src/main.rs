//! `mainstay-sim`: runs schedules, replays one, or plants faults and looks for them. The exit status tells: 0 all well, 1 a promise
//! was broken (or a planted fault was not), 2 the command was not understood.

#![forbid(unsafe_code)]

use mainstay_decide::Plant;
use mainstay_sim::hunt::{self, Found, Summary};
use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Instant;

const USAGE: &str = "mainstay-sim: virtual clusters over the real decisions

  mainstay-sim --seeds N [--from S] [--jobs 2] [--json]     run N schedules
  mainstay-sim --replay SEED [--plant ID[,ID]]              print what happens in one
  mainstay-sim --plant all|ID[,ID] [--max 2000] [--json]    plant faults one by one and look for each";

/// Below so many schedules a counter may well be zero.
const ENOUGH_FOR_COUNTERS: u64 = 2_000;
/// Plants that schedules may miss: each has a test of its one rule, which plants it too (`tests/one_rule_each.rs`,
/// `tests/one_shell_rule_each.rs`). All others must be found in schedules.
const WITH_A_TEST: [u32; 20] = [6, 8, 9, 11, 15, 18, 26, 27, 29, 31, 33, 37, 38, 42, 43, 49, 51, 58, 59, 60];
/// Those that must be found are looked for in so many times the schedules, so that a change elsewhere does not hide one by chance.
const PATIENCE: u64 = 4;

#[derive(Debug, Default)]
struct Wish {
    seeds: Option<u64>,
    from: u64,
    jobs: usize,
    json: bool,
    replay: Option<u64>,
    plant: Option<String>,
    max: u64,
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Wish, String> {
    let mut wish = Wish { from: 1, jobs: 2, max: 2_000, ..Wish::default() };
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        if argument == "--json" {
            wish.json = true;
            continue;
        }
        let value = arguments.next().ok_or(format!("{argument} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{argument} needs a number, not {value:?}"));
        match argument.as_str() {
            "--seeds" => wish.seeds = Some(number()?),
            "--from" => wish.from = number()?,
            "--jobs" => wish.jobs = usize::try_from(number()?).unwrap_or(1).clamp(1, 256),
            "--replay" => wish.replay = Some(number()?),
            "--max" => wish.max = number()?,
            "--plant" => wish.plant = Some(value),
            _ => return Err(format!("{argument} is not known")),
        }
    }
    Ok(wish)
}

fn plants(text: &str) -> Result<Vec<Plant>, String> {
    if text == "all" {
        return Ok(Plant::ALL.to_vec());
    }
    let one = |id: &str| {
        let number = id.trim().parse().map_err(|_| format!("{id:?} is no plant's id"))?;
        Plant::by_number(number).ok_or(format!("there is no plant {number}"))
    };
    text.split(',').map(one).collect()
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)).and_then(|wish| obey(&wish)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("{problem}\n\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn obey(wish: &Wish) -> Result<bool, String> {
    let planted = wish.plant.as_deref().map(plants).transpose()?;
    if let Some(seed) = wish.replay {
        return Ok(replay(seed, planted.unwrap_or_default()));
    }
    if let Some(planted) = planted {
        let all = wish.plant.as_deref() == Some("all");
        return Ok(plant(wish, &planted, all));
    }
    match wish.seeds {
        Some(seeds) => Ok(schedules(wish, seeds)),
        None => Err("what to do?".to_owned()),
    }
}

fn replay(seed: u64, planted: Vec<Plant>) -> bool {
    let report = mainstay_sim::run(seed, &planted.into_iter().collect(), true);
    for line in &report.lines {
        println!("{line}");
    }
    match &report.violation {
        Some(violation) => {
            println!("seed {seed}: {} broken at {} ms: {}", violation.rule, violation.at / 1000, violation.what)
        }
        None => println!("seed {seed}: nothing broken; all well {} ms after the heal", report.healed_in / 1000),
    }
    report.violation.is_none()
}

fn schedules(wish: &Wish, seeds: u64) -> bool {
    let begun = Instant::now();
    let summary = hunt::many(wish.from, seeds, wish.jobs, &BTreeSet::new(), false);
    let took = begun.elapsed().as_secs_f64();
    let missing = if seeds >= ENOUGH_FOR_COUNTERS { summary.counters.missing() } else { Vec::new() };
    if wish.json {
        print_json(&summary, took, &missing);
    } else {
        print_text(&summary, took, &missing);
    }
    summary.violations == 0 && missing.is_empty()
}

fn quantile(sorted: &[u64], permille: usize) -> u64 {
    let at = (sorted.len().saturating_sub(1)) * permille / 1000;
    sorted.get(at).copied().unwrap_or(0) / 1000
}

fn print_text(summary: &Summary, took: f64, missing: &[&str]) {
    for (_, text, count) in summary.counters.list() {
        println!("{count:>14}  {text}");
    }
    let healed = &summary.healed_in;
    println!("all well after the heal: median {} ms, 99.9 % {} ms", quantile(healed, 500), quantile(healed, 999));
    for report in summary.broken.iter().take(20) {
        if let Some(violation) = &report.violation {
            println!(
                "seed {}: {} broken at {} ms: {}",
                report.seed,
                violation.rule,
                violation.at / 1000,
                violation.what
            );
            println!("    replay it with: cargo xtask sim --replay {}", report.seed);
        }
    }
    for name in missing {
        println!("never happened: {name}; the simulator does not reach it any more");
    }
    println!("{:.0} schedules a second", summary.schedules as f64 / took.max(0.001));
    println!("{} schedules, {} violations", summary.schedules, summary.violations);
}

fn print_json(summary: &Summary, took: f64, missing: &[&str]) {
    let counters: serde_json::Map<String, serde_json::Value> =
        summary.counters.list().into_iter().map(|(name, _, count)| (name.to_owned(), count.into())).collect();
    let broken: Vec<serde_json::Value> = summary
        .broken
        .iter()
        .filter_map(|report| {
            let violation = report.violation.as_ref()?;
            Some(serde_json::json!({
                "seed": report.seed, "rule": violation.rule, "at_ms": violation.at / 1000, "what": violation.what,
                "replay": format!("cargo xtask sim --replay {}", report.seed),
            }))
        })
        .collect();
    let answer = serde_json::json!({
        "schedules": summary.schedules, "violations": summary.violations, "seconds": took, "broken": broken,
        "counters": counters, "never_happened": missing,
        "healed_ms": { "median": quantile(&summary.healed_in, 500), "p999": quantile(&summary.healed_in, 999) },
    });
    println!("{answer}");
}

fn tested(plant: Plant) -> bool {
    WITH_A_TEST.contains(&plant.number())
}

fn plant(wish: &Wish, planted: &[Plant], all: bool) -> bool {
    let mut found: Vec<Found> = Vec::new();
    for plant in planted {
        let most = if all && !tested(*plant) { wish.max.saturating_mul(PATIENCE) } else { wish.max };
        let one = hunt::hunt(*plant, wish.from, most, wish.jobs);
        if !wish.json {
            let unseen = if tested(*plant) { "by a test" } else { "not found" };
            let (count, seen) = one.seen.map_or(("-".to_owned(), unseen), |(count, _, rule)| (count.to_string(), rule));
            let replay =
                one.seen.map_or(String::new(), |(_, seed, _)| format!("--replay {seed} --plant {}", plant.number()));
            println!("{:>3}  {:<66} {count:>7}  {seen:<9} {replay}", plant.number(), plant.text());
        }
        found.push(one);
    }
    let seen = found.iter().filter(|one| one.seen.is_some()).count();
    if wish.json {
        let list: Vec<serde_json::Value> = found
            .iter()
            .map(|one| {
                serde_json::json!({
                    "id": one.plant.number(), "fault": one.plant.text(), "schedules": one.seen.map(|seen| seen.0),
                    "seed": one.seen.map(|seen| seen.1), "seen_as": one.seen.map(|seen| seen.2),
                })
            })
            .collect();
        println!(
            "{}",
            serde_json::json!({ "planted": planted.len(), "found": seen, "within": wish.max, "plants": list })
        );
    } else {
        let rest = found.iter().filter(|one| one.seen.is_none() && tested(one.plant)).count();
        println!("{} planted faults, {seen} found in schedules, {rest} left to a test of their own", planted.len());
    }
    found.iter().all(|one| one.seen.is_some() || (all && tested(one.plant)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A plant that schedules may miss is planted by a test, and the list names every such test's.
    #[test]
    fn what_schedules_may_miss_has_a_test() {
        let tests =
            [include_str!("../tests/one_rule_each.rs"), include_str!("../tests/one_shell_rule_each.rs")].concat();
        let planted = |plant: &Plant| tests.contains(&format!("both(Plant::{plant:?}, "));
        let with: BTreeSet<u32> =
            Plant::ALL.iter().filter(|plant| planted(plant)).map(|plant| plant.number()).collect();
        assert_eq!(with, BTreeSet::from(WITH_A_TEST));
    }
}

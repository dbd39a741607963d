//! `testkit chaos`: seeds become plans, plans happen, verdicts come back.

use anyhow::{Context as _, Result};
use mainstay_model::Durability;
use mainstay_model::shell::quote;
use mainstay_model::spec::StoreKind;
use mainstay_testkit::chaos::plan::{Plan, Wish, mixed, plan};
use mainstay_testkit::chaos::report::{Report, Verdict};
use mainstay_testkit::chaos::scorecard::Scorecard;
use mainstay_testkit::chaos::{Class, Kind, page, run, sabotage};
use mainstay_testkit::hosts::Shape;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The exit status of a run that proves nothing.
const INVALID: u8 = 3;
/// The exit status when what was asked for can not be run.
const WRONG: u8 = 2;

/// `chaos`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The plan is made from this
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Runs so many seeds, one after the other, from this one on
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    seeds: u64,
    /// Goes on with further seeds for so many hours, and prints the sums
    #[arg(long, conflicts_with = "seeds", value_parser = clap::value_parser!(u64).range(1..=1000))]
    hours: Option<u64>,
    /// About how long one seed takes
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=600))]
    minutes: u64,
    /// Only faults of these classes or kinds, by name
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// These hosts instead of drawn ones: three, witness, five
    #[arg(long)]
    shape: Option<String>,
    /// This durability instead of a drawn one: strict, available, async
    #[arg(long)]
    durability: Option<String>,
    /// The cluster's store is this one: raft (the nodes hold it), or an etcd of three members, which has faults of its own
    #[arg(long, default_value = "raft", value_parser = ["raft", "etcd"])]
    store: String,
    /// Two versions in one cluster: it begins with this program, an earlier version; host after host gets the one that was built, and then this one
    /// again, with faults in between
    #[arg(long, value_name = "PROGRAM", conflicts_with_all = ["only", "sabotage"])]
    previous: Option<PathBuf>,
    /// Breaks a safety rule on purpose, several with commas, or `all` of them, one after the other: each must be noticed
    #[arg(long, conflicts_with_all = ["seeds", "hours", "only", "json"])]
    sabotage: Option<String>,
    /// Prints the plan, and ends
    #[arg(long)]
    plan: bool,
    /// One object per seed on standard output; what else is said goes to standard error
    #[arg(long)]
    json: bool,
    /// Where reports, pages and the logs of runs that did not pass are kept
    #[arg(long)]
    out: Option<PathBuf>,
}

impl Options {
    fn wish(&self, seed: u64) -> Result<Wish> {
        let store = if self.store == "etcd" { StoreKind::Etcd } else { StoreKind::Raft };
        let mut wish = Wish { seed, minutes: self.minutes, store, ..Wish::default() };
        for name in &self.only {
            let class = <Class as clap::ValueEnum>::from_str(name, false).ok();
            match (class, Kind::by_name(name)) {
                (Some(class), _) => wish.classes.push(class),
                (None, Some(kind)) if kind.belongs(store) || kind.on_request() => wish.kinds.push(kind),
                // A plan without it would look like one with it that passed.
                (None, Some(kind)) if kind.of_etcd() => anyhow::bail!("{name} happens to an etcd: add --store etcd"),
                (None, Some(kind)) if kind.of_versions() => {
                    anyhow::bail!("{name} belongs to two versions in one cluster: cargo xtask mixed --previous COMMIT")
                }
                (None, Some(_)) => {
                    anyhow::bail!("{name} happens to a store that the nodes hold: leave out --store {}", self.store)
                }
                (None, None) => anyhow::bail!("{name} is no class and no kind of fault; kinds: {}", names()),
            }
        }
        if self.shape.is_some() || self.durability.is_some() {
            let shape = match self.shape.as_deref() {
                None | Some("three") => Shape::THREE,
                Some("witness") => Shape::WITNESS,
                Some("five") => Shape::FIVE,
                Some(other) => anyhow::bail!("{other} are no hosts; say three, witness or five"),
            };
            let durability = match self.durability.as_deref() {
                None | Some("strict") => Durability::Strict,
                Some("available") => Durability::Available,
                Some("async") => Durability::Async,
                Some(other) => anyhow::bail!("{other} is no durability; say strict, available or async"),
            };
            wish.shape = Some(Shape { durability, ..shape });
        }
        Ok(wish)
    }

    /// What is to happen for this seed: something, in any case.
    fn plan(&self, seed: u64) -> Result<Plan> {
        let wish = self.wish(seed)?;
        let plan = if self.previous.is_some() { mixed(&wish) } else { plan(&wish) };
        if plan.rounds.is_empty() {
            anyhow::bail!(
                "seed {seed}: none of these faults can happen with {} data nodes and durability {}: name others with --only, or other hosts with --shape and --durability",
                plan.data,
                plan.durability
            );
        }
        Ok(plan)
    }
}

fn names() -> String {
    Kind::ALL.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ")
}

/// Returns the exit status: 0 passed, 1 failed, 2 can not be run as it was asked for, 3 proves nothing.
///
/// # Errors
/// When no cluster comes up.
pub(crate) async fn chaos(options: &Options) -> Result<ExitCode> {
    if let Some(which) = &options.sabotage {
        return sabotaged(which, options).await;
    }
    let begun = Instant::now();
    let mut sums = Sums::default();
    for seed in options.seed.. {
        let over = match options.hours {
            Some(hours) => begun.elapsed() >= Duration::from_secs(hours * 3600),
            None => seed - options.seed >= options.seeds,
        };
        if over {
            break;
        }
        let plan = match options.plan(seed) {
            Ok(plan) => plan,
            Err(error) if seed == options.seed => {
                eprintln!("testkit: {error:#}");
                return Ok(ExitCode::from(WRONG));
            }
            // Other seeds draw other hosts: what has been found so far is not lost for that.
            Err(error) => {
                eprintln!("left out: {error:#}");
                continue;
            }
        };
        if options.plan {
            print!("{plan}");
            continue;
        }
        eprint!("{plan}");
        let (logs, previous) = (options.out.clone(), options.previous.clone());
        let settings = run::Options { loud: true, logs, previous, ..run::Options::default() };
        let report = run::run(&plan, &settings).await.with_context(|| format!("seed {seed}"))?;
        show(options, &report)?;
        sums.add(&report);
    }
    if !options.plan && (options.seeds > 1 || options.hours.is_some()) {
        eprintln!("{}", sums.words(begun.elapsed()));
    }
    Ok(match sums.verdict {
        None | Some(Verdict::Passed) => ExitCode::SUCCESS,
        Some(Verdict::Failed) => ExitCode::FAILURE,
        Some(Verdict::Invalid) => ExitCode::from(INVALID),
    })
}

/// Each switch must be noticed within its trials. A cluster that does not even come up is noticed too.
async fn sabotaged(which: &str, options: &Options) -> Result<ExitCode> {
    let named: Vec<&str> = which.split(',').collect();
    let all = sabotage::ALL.iter();
    let chosen: Vec<_> = all.filter(|one| which == "all" || named.contains(&one.switch)).collect();
    if which != "all" && chosen.len() != named.len() {
        let known: Vec<&str> = sabotage::ALL.iter().map(|one| one.switch).collect();
        anyhow::bail!("{which} is no switch; say all, or one of {}", known.join(", "));
    }
    let mut found = 0;
    for one in &chosen {
        let mut noticed = None;
        for trial in 1..=sabotage::TRIALS {
            let environment = vec![(sabotage::VARIABLE.to_owned(), one.switch.to_owned())];
            let settings = run::Options { environment, logs: options.out.clone(), ..run::Options::default() };
            let how = match run::run(&one.plan(trial), &settings).await {
                Ok(report) if report.verdict == Verdict::Failed => report.wrong.first().cloned(),
                Ok(report) => {
                    // A fault that did not happen put nothing to the test.
                    report
                        .invalid
                        .iter()
                        .for_each(|why| eprintln!("{} trial {trial} proves nothing: {why}", one.switch));
                    None
                }
                Err(error) => Some(format!("{error:#}")),
            };
            if let Some(how) = how {
                noticed = Some((trial, how));
                break;
            }
        }
        found += usize::from(noticed.is_some());
        match noticed {
            Some((trial, how)) => {
                let how: String = how.chars().take(160).collect();
                println!("{:<22} found in trial {trial}: {how}", one.switch);
            }
            None => println!("{:<22} NOT FOUND in {} trials ({})", one.switch, sabotage::TRIALS, one.breaks),
        }
    }
    println!("{} sabotaged, {found} found", chosen.len());
    Ok(if found == chosen.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What repeats one seed: all that this program was called with, but for which seeds. `mixed` wants the earlier version to come first.
fn again(words: &[String], mixed: bool, seed: u64) -> String {
    let (mut first, mut rest) = (Vec::new(), Vec::new());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let (name, joined) = word.split_once('=').map_or((word.as_str(), false), |(name, _)| (name, true));
        let both = [Some(word), words.clone().next().filter(|_| !joined)];
        match name {
            "--seed" | "--seeds" | "--hours" | "--previous" if !joined => drop(words.next()),
            _ => {}
        }
        match name {
            "--seed" | "--seeds" | "--hours" => {}
            "--previous" => first.extend(both.into_iter().flatten().map(|word| quote(word))),
            _ => rest.push(quote(word)),
        }
    }
    let command = if mixed { "mixed" } else { "chaos" };
    let all = ["cargo", "xtask", command].map(str::to_owned).into_iter().chain(first);
    let all = all.chain([format!("--seed {seed}")]).chain(rest);
    all.collect::<Vec<_>>().join(" ")
}

fn show(options: &Options, report: &Report) -> Result<()> {
    for text in &report.wrong {
        eprintln!("NOT AS IT MUST BE: {text}");
    }
    for text in &report.invalid {
        eprintln!("PROVES NOTHING: {text}");
    }
    if report.verdict != Verdict::Passed {
        let words: Vec<String> = std::env::args().skip(2).collect();
        eprintln!("again: {}", again(&words, options.previous.is_some(), report.plan.seed));
    }
    if let Some(dir) = &options.out {
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        let file = |ending: &str| dir.join(format!("chaos-{}.{ending}", report.plan.seed));
        std::fs::write(file("html"), page::page(report))?;
        std::fs::write(file("json"), serde_json::to_vec_pretty(report)?)?;
    }
    if options.json {
        println!("{}", serde_json::to_string(report)?);
        eprintln!("{}", report.line());
    } else {
        println!("{}", report.line());
    }
    Ok(())
}

/// Several runs together: the scorecard.
#[derive(Default)]
struct Sums {
    runs: u64,
    faults: usize,
    verified: usize,
    numbers: BTreeMap<&'static str, u64>,
    kinds: BTreeMap<&'static str, usize>,
    gaps: BTreeMap<&'static str, Vec<Duration>>,
    writable: Vec<Duration>,
    verdict: Option<Verdict>,
    card: Scorecard,
}

impl Sums {
    fn add(&mut self, report: &Report) {
        self.runs += 1;
        self.card.add(report);
        self.faults += report.faults;
        self.verified += report.verified;
        for (name, number) in [
            ("acknowledged", report.acknowledged),
            ("unknown", report.unknown),
            ("lost", report.lost),
            ("lost, as the mode allows, and reported", report.lost_allowed),
            ("duplicated", report.duplicated),
            ("overlaps", report.overlaps),
            ("anomalies", report.anomalies),
            ("unrecovered", report.unrecovered),
            ("slow recoveries", report.slow_recoveries),
            ("unexplained take-overs", report.unexplained),
        ] {
            *self.numbers.entry(name).or_insert(0) += number;
        }
        for (kind, count) in &report.kinds {
            *self.kinds.entry(kind).or_insert(0) += count;
        }
        for (class, gaps) in &report.gaps_ms {
            self.gaps.entry(class).or_default().extend(gaps.iter().map(|gap| Duration::from_millis(*gap)));
        }
        let writable = report.rounds.iter().filter_map(|round| round.writable_after_ms);
        self.writable.extend(writable.map(Duration::from_millis));
        self.verdict = Some(self.verdict.map_or(report.verdict, |verdict| verdict.max(report.verdict)));
    }

    fn words(&self, took: Duration) -> String {
        let mut lines = vec![format!(
            "{} runs in {} min: {} of {} faults verified, of {} kinds",
            self.runs,
            took.as_secs() / 60,
            self.verified,
            self.faults,
            self.kinds.len()
        )];
        lines.extend(self.numbers.iter().map(|(name, number)| format!("  {name}: {number}")));
        for (class, gaps) in &self.gaps {
            let summary = mainstay_testkit::statistics::summarise(gaps.clone());
            lines.push(format!(
                "  longest gap, {class}: median {:?}, 95 % {:?}, worst {:?}",
                summary.median, summary.p95, summary.worst
            ));
        }
        let soon = self.writable.iter().filter(|after| **after <= Duration::from_secs(10)).count();
        lines.push(format!("  writable within 10 s of healing: {soon} of {}", self.writable.len()));
        lines.push(self.card.words());
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::{Options, again};
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn faults_that_can_not_happen_are_not_a_plan_without_any() {
        let of = |line: &str| Line::parse_from(["chaos"].into_iter().chain(line.split(' '))).options.plan(1);
        let refused = |line: &str| of(line).unwrap_err().to_string();
        assert!(refused("--only etcd-kill").ends_with("add --store etcd"));
        assert!(refused("--only server-kill,etcd-apart").ends_with("add --store etcd"));
        assert!(refused("--only most-wiped --store etcd").contains("leave out --store etcd"));
        assert!(refused("--only program-new").contains("cargo xtask mixed"));
        assert!(refused("--only node-change --shape witness --durability available").contains("--shape"));
        assert!(refused("--only no-such-fault").contains("no kind of fault"));
        for line in
            ["--only etcd-kill --store etcd", "--only archive-hangs", "--only most-wiped", "--only store --store etcd"]
        {
            assert!(!of(line).unwrap().rounds.is_empty(), "{line}");
        }
    }

    #[test]
    fn what_is_repeated_is_what_was_asked_for() {
        let said = |line: &str, mixed| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            again(&words, mixed, 9)
        };
        assert_eq!(
            said("--seed 4 --seeds 8 --minutes 2 --only disk,link-cut --durability=async --json", false),
            "cargo xtask chaos --seed 9 --minutes 2 --only 'disk,link-cut' '--durability=async' --json"
        );
        assert_eq!(
            said("--store etcd --hours=3 --previous /old/mainstay --shape five", true),
            "cargo xtask mixed --previous /old/mainstay --seed 9 --store etcd --shape five"
        );
        assert_eq!(again(&[], false, 9), "cargo xtask chaos --seed 9");
    }
}

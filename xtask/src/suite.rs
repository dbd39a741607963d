//! The whole suite in its order, and the two programs that stand behind `demo` and `bench`.

use crate::leftovers::{self, Leftovers};
use crate::step::{answers, cargo, pass, run, run_kept, step};
use crate::{deb, packages, tidy};
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

/// How many schedules the simulator runs in every run of the suite.
const SEEDS: &str = "20000";
/// The crate whose tests drive the built program from outside; they run last, and by themselves.
const END_TO_END: &str = "mainstay-testkit";
/// What is built and tested optimised: always the same selection, since another one gives shared crates other features, and builds them anew.
const BUILT: [&str; 5] = ["--release", "--package", "mainstay", "--package", END_TO_END];

/// Everything, in the order in which a failure is cheapest.
pub(crate) fn test(root: &Path) -> Result<()> {
    let began = Instant::now();
    let _leftovers = Leftovers::look()?;
    leftovers::room()?;
    packages::ensure()?;
    packages::ensure_etcd()?;
    // Before the first test: some of them need what virtual hosts are made with.
    let hosts = packages::ensure_hosts()?;
    tools(root)?;
    run("format", &mut cargo(root, &["fmt", "--all", "--check"]))?;
    step("tidy", || tidy::check(root))?;
    let lints = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
    run("lints", &mut cargo(root, &lints))?;
    let mut closing = vec![unit(root)?];
    let simulator =
        |name: &str, arguments: [&str; 2]| run_kept(name, &mut sim_command(root, &arguments.map(OsString::from)));
    closing.push(simulator_line(&simulator("sim", ["--seeds", SEEDS])?)?);
    closing.push(plants_line(&simulator("plants", ["--plant", "all"])?)?);
    closing.push(end_to_end(root)?);
    if answers(Command::new("dpkg-deb").arg("--version")) {
        deb::run(root)?;
    } else {
        println!("── package: this system has no dpkg-deb; left out");
    }
    if hosts {
        closing.push(virtual_hosts(root)?);
        closing.push(apply(root)?);
        closing.push(chaos(root)?);
    }
    println!();
    closing.iter().for_each(|line| println!("{line}"));
    println!("all passed in {:.0} s", began.elapsed().as_secs_f64());
    Ok(())
}

/// The formatter and the linter may be absent from a minimal toolchain.
fn tools(root: &Path) -> Result<()> {
    for (subcommand, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if answers(&mut cargo(root, &[subcommand, "--version"])) {
            continue;
        }
        if !answers(Command::new("rustup").arg("--version")) {
            bail!(
                "`cargo {subcommand}` is missing and there is no rustup: install {component} by your toolchain's means"
            );
        }
        let mut add = Command::new("rustup");
        add.current_dir(root).args(["component", "add", component]);
        run(&format!("{component} is missing: rustup component add {component}"), &mut add)?;
    }
    Ok(())
}

fn has_nextest(root: &Path) -> bool {
    answers(&mut cargo(root, &["nextest", "--version"]))
}

/// Unit, property and conformance tests of every crate but the end-to-end one.
fn unit(root: &Path) -> Result<String> {
    // Those on real servers wait more than they compute: one more at a time than there are cores.
    let threads = std::thread::available_parallelism().map_or(2, |cores| cores.get() + 1).to_string();
    let runner: &[&str] = if has_nextest(root) { &["nextest", "run", "--test-threads", &threads] } else { &["test"] };
    let mut command = cargo(root, runner);
    // One run shows every failure.
    command.args(["--no-fail-fast", "--workspace", "--exclude", END_TO_END]);
    let counted = count(&run_kept("tests", &mut command)?);
    closing_line("tests", counted)
}

/// The tests that drive the built program. One at a time: they measure.
fn end_to_end(root: &Path) -> Result<String> {
    build(root)?;
    let which = ["--lib", "--bin", "testkit", "--test", "end_to_end"];
    let counted = count(&run_kept("end to end", &mut tests_of_built(root, &which)?)?);
    closing_line("end to end", counted)
}

/// The same with hosts of their own. They need root.
fn virtual_hosts(root: &Path) -> Result<String> {
    let counted =
        count(&run_kept("virtual hosts", &mut tests_of_built(root, &["--test", "hosts", "--test", "address"])?)?);
    closing_line("virtual hosts", counted)
}

/// `mainstay apply` on hosts with a real sshd. They need root.
fn apply(root: &Path) -> Result<String> {
    let counted = count(&run_kept("apply", &mut tests_of_built(root, &["--test", "apply", "--test", "apply_adopt"])?)?);
    closing_line("apply", counted)
}

/// Faults that overlap, from fixed seeds. They need root.
fn chaos(root: &Path) -> Result<String> {
    let counted = count(&run_kept("chaos", &mut tests_of_built(root, &["--test", "chaos"])?)?);
    closing_line("chaos", counted)
}

fn tests_of_built(root: &Path, which: &[&str]) -> Result<Command> {
    let mut command = cargo(root, &["test"]);
    command
        .args(BUILT)
        .args(which)
        .args(["--", "--test-threads=1", "--nocapture"])
        .env("MAINSTAY_BIN", binary(root, "mainstay")?);
    Ok(command)
}

/// How many passed and failed, from what `cargo test` or `nextest` printed.
fn count(output: &str) -> (u64, u64) {
    let lines = output.lines().map(without_colours).filter(|line| {
        line.starts_with("test result:") || (line.trim_start().starts_with("Summary") && line.contains("run"))
    });
    lines.fold((0, 0), |(passed, failed), line| {
        let more = |word| number_before(&line, word).unwrap_or(0);
        (passed + more("passed"), failed + more("failed"))
    })
}

fn without_colours(line: &str) -> String {
    let mut plain = String::new();
    let mut in_escape = false;
    for c in line.chars() {
        match c {
            '\u{1b}' => in_escape = true,
            'm' if in_escape => in_escape = false,
            _ if in_escape => {}
            _ => plain.push(c),
        }
    }
    plain
}

/// A runner that passed without running anything has not passed.
fn closing_line(name: &str, (passed, failed): (u64, u64)) -> Result<String> {
    if passed == 0 {
        bail!("{name}: no test ran");
    }
    Ok(format!("{name}: {passed} passed, {failed} failed"))
}

/// The simulator's last line ("20000 schedules, 0 violations") in the form of the others.
fn simulator_line(output: &str) -> Result<String> {
    let (schedules, violations) = closing_numbers(output, ["schedules", "violations"])?;
    closing_line("sim", (schedules.saturating_sub(violations), violations))
}

/// The same for planted faults ("55 planted faults, 41 found in schedules, 14 left to a test of their own"). Which must be found in
/// schedules is the simulator's own judgement; the others' tests are among those that ran before.
fn plants_line(output: &str) -> Result<String> {
    let (planted, found) = closing_numbers(output, ["planted", "found"])?;
    Ok(format!("{}: {found} of {planted} planted faults found", closing_line("plants", (found, 0))?))
}

fn closing_numbers(output: &str, words: [&str; 2]) -> Result<(u64, u64)> {
    let last = output.lines().rfind(|line| words.iter().all(|word| line.contains(word)));
    let last = last.with_context(|| format!("the simulator did not end with a number of {words:?}"))?;
    match words.map(|word| number_before(last, word)) {
        [Some(one), Some(two)] => Ok((one, two)),
        _ => bail!("the simulator's last line is not understood: {last}"),
    }
}

/// The number that stands before a word.
fn number_before(line: &str, word: &str) -> Option<u64> {
    let words: Vec<&str> = line.split_whitespace().map(|w| w.trim_matches(|c: char| !c.is_alphanumeric())).collect();
    let place = words.iter().position(|each| *each == word)?;
    words.get(place.checked_sub(1)?)?.parse().ok()
}

fn sim_command(root: &Path, arguments: &[OsString]) -> Command {
    let mut command = cargo(root, &["run", "--release", "--quiet", "--package", "mainstay-sim", "--"]);
    command.args(arguments);
    command
}

/// The simulator with these arguments.
pub(crate) fn sim(root: &Path, arguments: &[OsString]) -> Result<ExitCode> {
    pass(&mut sim_command(root, arguments))
}

/// Builds the program and the end-to-end tools, optimised.
fn build(root: &Path) -> Result<()> {
    run("build", cargo(root, &["build"]).args(BUILT))
}

/// Builds the program and packs it for Debian.
pub(crate) fn package(root: &Path) -> Result<ExitCode> {
    run("build", &mut cargo(root, &["build", "--release", "--package", "mainstay"]))?;
    deb::run(root).map(|_| ExitCode::SUCCESS)
}

/// Builds a program whose safety rules can be broken. It has a directory of its own, so that it is never taken for the real one.
fn build_sabotaged(root: &Path) -> Result<PathBuf> {
    let target = Path::new(&tidy::metadata(root)?.target_directory).join("sabotage");
    let mut command = cargo(root, &["build", "--package", "mainstay", "--features", "sabotage", "--target-dir"]);
    command.arg(&target);
    run("build with sabotage", &mut command)?;
    Ok(target.join("debug/mainstay"))
}

/// Where the build put a program.
pub(crate) fn binary(root: &Path, name: &str) -> Result<PathBuf> {
    let metadata = tidy::metadata(root)?;
    let path = Path::new(&metadata.target_directory).join("release").join(name);
    if !path.exists() {
        bail!("the build left no {}", path.display());
    }
    Ok(path)
}

/// One of the end-to-end tools' commands, after installing and building what it needs.
pub(crate) fn testkit(root: &Path, command: &str, arguments: &[OsString]) -> Result<ExitCode> {
    let _leftovers = Leftovers::look()?;
    // With --json the last line of standard output belongs to the tool; ours come before it.
    packages::ensure()?;
    let on_hosts = matches!(command, "hosts" | "chaos" | "soak") || arguments.iter().any(|word| word == "--hosts");
    if on_hosts && !packages::ensure_hosts()? {
        bail!("run this as root");
    }
    if arguments.iter().any(|word| word.to_string_lossy().ends_with("etcd")) {
        packages::ensure_etcd()?;
    }
    build(root)?;
    let sabotaged = command == "chaos" && arguments.iter().any(|word| word.to_string_lossy().starts_with("--sabotage"));
    let mainstay = if sabotaged { build_sabotaged(root)? } else { binary(root, "mainstay")? };
    let mut tool = Command::new(binary(root, "testkit")?);
    tool.arg(command).args(arguments).env("MAINSTAY_BIN", mainstay);
    pass(&mut tool)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_runners_results_are_counted() {
        let cargo = "test result: ok. 18 passed; 0 failed; 1 ignored; 0 measured\nnoise 9 passed\ntest result: ok. 2 passed; 1 failed;";
        assert_eq!(count(cargo), (20, 1));
        let nextest = "\u{1b}[32;1m     Summary\u{1b}[0m [   5.6s] \u{1b}[1m39\u{1b}[0m tests run: \u{1b}[1m38\u{1b}[0m \u{1b}[32;1mpassed\u{1b}[0m, 1 failed, 0 skipped";
        assert_eq!(count(nextest), (38, 1));
    }

    #[test]
    fn nothing_run_is_not_passed() {
        assert!(closing_line("tests", (0, 0)).is_err());
        assert_eq!(closing_line("tests", (3, 0)).unwrap(), "tests: 3 passed, 0 failed");
    }

    #[test]
    fn the_simulators_numbers_are_understood() {
        let output = "seed 5: nothing\n88 schedules a second\n20000 schedules, 0 violations\n\n";
        assert_eq!(simulator_line(output).unwrap(), "sim: 20000 passed, 0 failed");
        assert!(simulator_line("0 schedules, 0 violations").is_err());
        assert!(simulator_line("killed").is_err());
        let output =
            "  1  a fault   12  S1\n55 planted faults, 41 found in schedules, 14 left to a test of their own\n";
        assert_eq!(plants_line(output).unwrap(), "plants: 41 passed, 0 failed: 41 of 55 planted faults found");
    }
}

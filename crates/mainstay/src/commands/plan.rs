//! `mainstay plan`: from the file, this host and the running cluster (if it can be reached) to a plan with its reasons. Changes nothing but the
//! files that it is told to write.

use crate::cli::{Global, Plan};
use crate::failure::{Failure, Outcome};
use crate::local::engine::owned_parameters;
use crate::local::machine::measure;
use crate::output::file::write_all;
use crate::output::progress::Progress;
use crate::output::table::wrap;
use crate::output::{self, Colour, paint};
use crate::session::Session;
use crate::target::Target;
use jiff::tz::TimeZone;
use mainstay_model::config::render;
use mainstay_model::config_assign::difference;
use mainstay_model::drill::{DrillKind, DrillsAnswer};
use mainstay_model::spec::Spec;
use mainstay_model::stored_spec::fingerprint;
use mainstay_plan::day::Day;
use mainstay_plan::refusal::Contradiction;
use mainstay_plan::whatif::WhatIf;
use mainstay_plan::{Facts, Machine, Rehearsed, Running, html, lint, markdown, plan, risks};
use serde_json::json;
use std::path::Path;

/// Everything that plans and runbooks are made from, as it was gathered.
pub(crate) struct Gathered {
    pub(crate) target: Target,
    pub(crate) today: Day,
    pub(crate) machines: Vec<Machine>,
    pub(crate) running: Option<Running>,
    pub(crate) what_if: Vec<WhatIf>,
}

impl Gathered {
    pub(crate) fn facts(&self) -> Facts<'_> {
        Facts {
            spec: &self.target.spec,
            today: self.today,
            machines: &self.machines,
            running: self.running.as_ref(),
            what_if: &self.what_if,
        }
    }
}

/// What is planned, or written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Basis {
    /// What the file says: that is what would be.
    File,
    /// What is in force, if the cluster tells it: that is what is.
    InForce,
}

/// What a plan was made from: `apply --plan` refuses one that no longer fits.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct MadeFrom {
    /// The file's fingerprint.
    pub(crate) file: String,
    /// What was in force; `None`: nothing yet, or nobody was asked.
    pub(crate) generation: Option<u64>,
}

impl MadeFrom {
    /// This file, against this generation.
    pub(crate) fn of(spec: &Spec, generation: Option<u64>) -> Self {
        Self { file: format!("{:016x}", fingerprint(spec)), generation }
    }
}

/// Today, by this host's clock, in its time zone.
pub(crate) fn today() -> Day {
    let now = i64::try_from(mainstay_ports::clock::wall_now_ms()).unwrap_or(0);
    let date = jiff::Timestamp::from_millisecond(now).unwrap_or_default().to_zoned(TimeZone::system()).date();
    Day::of(i64::from(date.year()), i64::from(date.month()), i64::from(date.day()))
}

/// Reads the file, looks at this host, and asks the cluster, unless `offline`.
///
/// # Errors
/// When there is no file, it holds mistakes, or a certificate was named that can not be used.
pub(crate) async fn gather(
    which: &crate::cli::Which,
    basis: Basis,
    offline: bool,
    progress: &mut Progress,
) -> Outcome<Gathered> {
    let mut target = Target::find(which)?;
    if !offline {
        crate::identity::check_named(&target)?;
    }
    let today = today();
    let told = if offline { None } else { ask(which, &target.spec, today, progress).await };
    let running = told.map(|(in_force, mut running)| {
        if basis == Basis::InForce {
            target.spec = in_force;
            running.changes.clear();
        }
        running
    });
    let machines = if offline { Vec::new() } else { measure(&target.spec, &today.to_string()).into_iter().collect() };
    progress.step("rehearse failures with the real decisions");
    let what_if = mainstay_rehearse::what_if(&target.spec).unwrap_or_default();
    progress.finish(&format!("{} cases", what_if.len()));
    Ok(Gathered { target, today, machines, running, what_if })
}

/// What the cluster tells, if it runs: the specification in force, and how it is. A cluster that is only planned does not.
async fn ask(which: &crate::cli::Which, file: &Spec, today: Day, progress: &mut Progress) -> Option<(Spec, Running)> {
    progress.step("ask the cluster");
    let session = match Session::open(which).await {
        Ok(session) => session,
        Err(failure) => {
            progress.finish(&format!("not reached ({}); the file is taken", failure.error));
            return None;
        }
    };
    let (Some(stored), Ok(status)) = (session.stored(), session.status().await) else {
        progress.finish("no agent answers; the file is taken");
        return None;
    };
    progress.finish(&format!("generation {} is in force", stored.generation));
    let shown = |value: Option<String>| value.unwrap_or_else(|| "(default)".to_owned());
    let changes = difference(&stored.spec, file).into_iter();
    let running = Running {
        generation: stored.generation,
        changes: changes.map(|change| (change.key, shown(change.old), shown(change.new))).collect(),
        version: status.cluster.version.clone(),
        primary: status.cluster.primary.as_ref().map(ToString::to_string),
        on: format!("the running cluster, {today}"),
        rehearsed: rehearsed(&session).await,
    };
    Some((stored.spec.clone(), running))
}

/// The newest drill of each kind that came out as asked for.
async fn rehearsed(session: &Session) -> Vec<Rehearsed> {
    let (answers, _) = session.agents.ask_all("/v1/drill").await;
    let answers = answers.values().filter_map(crate::client::decode::<DrillsAnswer>).map(|answer| answer.results);
    let results = answers.max_by_key(|results| results.last().map_or(0, |last| last.at_ms)).unwrap_or_default();
    let newest = |kind| results.iter().rev().find(|result| result.kind == kind && result.met);
    let found = DrillKind::ALL.into_iter().filter_map(newest);
    found
        .map(|result| Rehearsed {
            kind: result.kind,
            on: super::history::time(result.at_ms, &TimeZone::system()).chars().take(10).collect(),
            gap_ms: result.write_gap_ms,
        })
        .collect()
}

/// Runs the command.
///
/// # Errors
/// When the file can not be read, what is asked contradicts itself (usage), or a page can not be written.
pub(crate) async fn run(options: Plan, global: Global) -> Outcome {
    let mut progress = Progress::new();
    let gathered = gather(&options.which, Basis::File, options.offline, &mut progress).await?;
    let facts = gathered.facts();
    let made = plan(&facts).map_err(|found| refused(&gathered.target.config, &found))?;
    let wrong = lint(&made, owned_parameters());
    if !wrong.is_empty() {
        return Err(Failure::failed(format!("the plan breaks its own rules:\n{}", wrong.join("\n")))
            .hint("this is a defect of Mainstay: report it together with the file"));
    }
    drop(progress);
    let written = write_all([
        (&options.markdown, markdown::page(&made.report)),
        (&options.html, html::page(&made.report)),
        (&options.write, render(&made.spec)),
    ])?;
    if global.json {
        output::object(&json!({
            "cluster": made.report.cluster, "date": made.report.date, "summary": made.report.summary, "risks": risks(&facts),
            "sections": made.report.sections, "spec": made.spec, "written": written,
            "made_from": MadeFrom::of(&gathered.target.spec, gathered.running.as_ref().map(|running| running.generation)),
        }));
        return Ok(());
    }
    show(&facts, &made, &written);
    Ok(())
}

fn refused(config: &Path, found: &[Contradiction]) -> Failure {
    let error: Vec<String> = found.iter().map(|each| each.text.clone()).collect();
    let mut nearest: Vec<String> = Vec::new();
    for each in found.iter().flat_map(|each| &each.nearest) {
        if !nearest.contains(each) {
            nearest.push(each.clone());
        }
    }
    let hint: Vec<String> = nearest.iter().map(|each| format!("* {each}")).collect();
    Failure::usage(format!("{} asks for what this cluster can not do:\n{}", config.display(), error.join("\n")))
        .hint(format!("the nearest plans that work; one of:\n{}", hint.join("\n")))
}

fn show(facts: &Facts<'_>, made: &mainstay_plan::Plan, written: &[String]) {
    let width = usize::from(output::width()).clamp(40, 120);
    let item = |mark: &str, text: &str| {
        for (place, line) in wrap(text, width - 2).iter().enumerate() {
            output::line(&format!("{} {line}", if place == 0 { mark } else { " " }));
        }
    };
    output::line(&paint(Colour::Cyan, &format!("Plan of the cluster {}, {}", made.report.cluster, made.report.date)));
    output::line("");
    made.report.summary.iter().for_each(|line| item("•", &line.text));
    if let Some(running) = facts.running {
        output::line("");
        item(
            "•",
            &format!("Against generation {} in force: {} differences.", running.generation, running.changes.len()),
        );
        running.changes.iter().for_each(|(key, now, then)| output::line(&format!("    {key}: {now} → {then}")));
    }
    output::line("");
    output::line(&paint(Colour::Yellow, "Risks that this plan accepts"));
    risks(facts).iter().for_each(|risk| item("!", risk));
    output::line("");
    for path in written {
        output::line(&format!("Written: {path}"));
    }
    if written.is_empty() {
        output::line(
            "All sixteen sections: --html FILE, --markdown FILE or --json. The file with the derived parameters: --write FILE.",
        );
    }
}

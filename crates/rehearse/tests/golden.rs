//! Very different files, and what is planned for each: the sizes, the promises, the risks, or why it is refused. After a change that is meant:
//! `MAINSTAY_WRITE_GOLDEN=1 cargo test -p mainstay-rehearse --test golden`, and read the difference.
#![expect(clippy::unwrap_used, reason = "a test ends where it can not go on")]

use mainstay_model::config::parse;
use mainstay_plan::day::Day;
use mainstay_plan::{Facts, html, lint, markdown, parameters, plan, risks};
use mainstay_rehearse::what_if;
use std::fmt::Write as _;

fn planned(text: &str) -> String {
    let spec = parse(text, &[]).unwrap();
    let what_if = what_if(&spec).unwrap();
    let facts = Facts { spec: &spec, today: Day::of(2026, 11, 27), machines: &[], running: None, what_if: &what_if };
    let mut out = String::new();
    match plan(&facts) {
        Ok(made) => {
            assert_eq!(lint(&made, &[]), Vec::<String>::new());
            let page = html::page(&made.report);
            assert!(page.matches("<section").count() == 16 && page.contains("<svg") && !page.contains("http-equiv"));
            assert_eq!(markdown::page(&made.report).matches("\n## ").count(), 17);
            made.report.summary.iter().for_each(|line| writeln!(out, "{}", line.text).unwrap());
            out.push_str("\nRisks\n");
            risks(&facts).iter().for_each(|risk| writeln!(out, "* {risk}").unwrap());
            out.push_str("\nParameters\n");
            for each in parameters::parameters(&facts) {
                writeln!(out, "{} = {} ({})", each.name, each.value, each.mark.words()).unwrap();
            }
        }
        Err(found) => {
            out.push_str("Refused\n");
            for each in found {
                writeln!(out, "* {}", each.text).unwrap();
                each.nearest.iter().for_each(|near| writeln!(out, "    or: {near}").unwrap());
            }
        }
    }
    out
}

#[test]
fn plans_are_what_they_were() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|kind| kind == "toml"));
    files.sort();
    assert!(files.len() >= 12, "{files:?}");
    let mut changed = Vec::new();
    for file in files {
        let now = planned(&std::fs::read_to_string(&file).unwrap());
        let golden = file.with_extension("txt");
        if std::env::var_os("MAINSTAY_WRITE_GOLDEN").is_some() {
            std::fs::write(&golden, &now).unwrap();
        }
        if std::fs::read_to_string(&golden).unwrap_or_default() != now {
            changed.push(format!("{}:\n{now}", golden.display()));
        }
    }
    assert!(changed.is_empty(), "{}", changed.join("\n"));
}

//! `mainstay init`: writes the file of a new cluster from what is given, and on a terminal asks for the few things that matter most. Starts nothing,
//! and never replaces a file.

use crate::cli::{Global, Init};
use crate::failure::{Failure, Outcome};
use crate::local::engine::owned_parameters;
use crate::output::{self, file::write_new_spec};
use crate::target::absolute;
use mainstay_model::config::{parse, render};
use mainstay_model::config_reference::{default_of, find};
use mainstay_model::requirements::Requirements;
use mainstay_model::spec::Spec;
use mainstay_model::{ClusterName, Durability};
use serde_json::json;
use std::fmt::Write as _;
use std::io::{BufRead as _, IsTerminal as _, Write as _};

/// The keys of `[requirements]` that the file shows, said or not.
const SHOWN: [&str; 15] = [
    "purpose",
    "owner",
    "on_call",
    "loss_host_s",
    "outage_host_s",
    "outage_zone_s",
    "outage_human_s",
    "size_gb",
    "growth_gb_per_month",
    "writes_per_s",
    "clients",
    "cores",
    "memory_gb",
    "disk_gb",
    "window",
];

/// What is known so far, as texts of the file.
#[derive(Default)]
struct Answers {
    name: String,
    hosts: Vec<String>,
    durability: Option<Durability>,
    /// Lines of `[requirements]`, `KEY = VALUE`.
    requirements: Vec<(&'static str, String)>,
}

/// Runs the command.
///
/// # Errors
/// When the file is there already (not now), something is missing and nobody can be asked, or the answers make no file (usage).
pub(crate) fn run(options: &Init, global: Global) -> Outcome {
    let path = absolute(&options.file)?;
    if path.exists() {
        return Err(Failure::not_now(format!("{} is there already", path.display()))
            .hint("nothing was changed; say another file, or see what it plans: mainstay plan --config FILE"));
    }
    let asking = std::io::stdin().is_terminal() && std::io::stderr().is_terminal() && !global.yes;
    let mut answers = Answers {
        name: options.name.as_ref().map(ToString::to_string).unwrap_or_default(),
        hosts: options.host.clone(),
        durability: options.durability.map(Durability::from),
        requirements: Vec::new(),
    };
    if asking {
        ask_all(&mut answers)?;
    }
    if answers.hosts.is_empty() {
        return Err(Failure::usage("no host is given, and there is no terminal to ask on")
            .hint("mainstay init --host 10.0.0.1 --host 10.0.0.2 --host 10.0.0.3"));
    }
    let spec = spec_of(&answers)?;
    let text = text_of(&spec);
    // What is written must be what is read.
    parse(&text, owned_parameters())
        .map_err(|error| Failure::failed(format!("the file would not be read: {error}")))?;
    write_new_spec(&path, &text)?;
    if global.json {
        output::object(
            &json!({ "file": path.display().to_string(), "nodes": spec.nodes.len(), "cluster": spec.cluster.name }),
        );
        return Ok(());
    }
    output::line(&format!("Written: {} ({} nodes)", path.display(), spec.nodes.len()));
    output::line(&format!("Next, what it means: mainstay plan --config {} --html plan.html", path.display()));
    Ok(())
}

/// A question, its default in brackets. Empty: the default.
fn ask(question: &str, default: &str) -> Outcome<String> {
    let shown = if default.is_empty() { String::new() } else { format!(" [{default}]") };
    let _ = write!(std::io::stderr().lock(), "{question}{shown}: ");
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    match read {
        Ok(0) => Err(Failure::not_now("the questions were ended: nothing was written")),
        Ok(_) if line.trim().is_empty() => Ok(default.to_owned()),
        Ok(_) => Ok(line.trim().to_owned()),
        Err(error) => Err(Failure::failed(format!("the answer can not be read: {error}"))),
    }
}

fn ask_all(answers: &mut Answers) -> Outcome {
    output::errline(
        "A few questions; an empty answer takes what stands in brackets. Everything can be changed in the file later.",
    );
    if answers.name.is_empty() {
        answers.name = ask("What is the cluster called", "main")?;
    }
    if answers.hosts.is_empty() {
        output::errline(
            "Hosts, separated by blanks. Behind a host, with commas: zone=NAME, witness. As: 10.0.0.1,zone=a 10.0.0.2,zone=b 10.0.0.3,zone=c,witness",
        );
        answers.hosts = ask("Hosts", "")?.split_whitespace().map(str::to_owned).collect();
    }
    let mut text = |key: &'static str, value: String| {
        if !value.is_empty() {
            answers.requirements.push((key, toml_text(&value)));
        }
    };
    text("purpose", ask("What is the data, in a sentence", "")?);
    text("owner", ask("Who answers for it", "")?);
    let on_call = ask("Who is called at night (name and number)", "")?;
    let mut number = |key: &'static str, question: &str, default: &str| -> Outcome {
        let value = ask(question, default)?;
        if !value.is_empty() {
            answers.requirements.push((key, value));
        }
        Ok(())
    };
    number("loss_host_s", "When a host dies: how many seconds of acknowledged writes may be lost", "0")?;
    number("outage_host_s", "When a host dies: how many seconds without writes are bearable", "60")?;
    number("size_gb", "How large is the data, GB", "20")?;
    number("writes_per_s", "Writing transactions a second, at the busiest hour", "100")?;
    number("clients", "Connections that applications keep open", "200")?;
    number("memory_gb", "Memory of the smallest host, GB", "16")?;
    number("cores", "Its cores", "4")?;
    number("disk_gb", "Its disk for the data, GB", "200")?;
    if !on_call.is_empty() {
        answers.requirements.push(("on_call", format!("[{}]", toml_text(&on_call))));
    }
    Ok(())
}

fn toml_text(text: &str) -> String {
    let plain: String = text.chars().filter(|letter| !letter.is_control()).collect();
    format!("\"{}\"", plain.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The answers as a file, read as every file is.
fn spec_of(answers: &Answers) -> Outcome<Spec> {
    let name = if answers.name.is_empty() { "main" } else { &answers.name };
    let name = ClusterName::new(name).map_err(|error| Failure::usage(format!("the cluster's name: {error}")))?;
    let mut text = format!("[cluster]\nname = \"{name}\"\n");
    if let Some(durability) = answers.durability {
        let _ = writeln!(text, "durability = \"{durability}\"");
    }
    let (mut data, mut witnesses) = (0, 0);
    for host in &answers.hosts {
        let mut parts = host.split(',').map(str::trim);
        let address = parts.next().unwrap_or_default();
        let (mut zone, mut witness) = (None, false);
        for part in parts {
            match part.split_once('=') {
                Some(("zone", name)) => zone = Some(name),
                None if part == "witness" => witness = true,
                _ => {
                    return Err(Failure::usage(format!(
                        "{part:?} behind the host {address}: known are zone=NAME and witness"
                    )));
                }
            }
        }
        let count = if witness { &mut witnesses } else { &mut data };
        *count += 1;
        let node = if witness { format!("w{count}") } else { format!("db{count}") };
        let _ = write!(text, "[[node]]\nname = \"{node}\"\nhost = {}\n", toml_text(address));
        if let Some(zone) = zone {
            let _ = writeln!(text, "zone = {}", toml_text(zone));
        }
        if witness {
            text.push_str("witness = true\n");
        }
    }
    text.push_str("[requirements]\n");
    for (key, value) in &answers.requirements {
        let _ = writeln!(text, "{key} = {value}");
    }
    parse(&text, owned_parameters()).map_err(|error| {
        // Nobody has seen the text: its line numbers say nothing.
        let problems: Vec<String> = error.problems.iter().map(|problem| problem.text.clone()).collect();
        Failure::usage(problems.join("\n")).hint("nothing was written")
    })
}

/// The file with the keys that matter most, those at their defaults as comments.
fn text_of(spec: &Spec) -> String {
    let mut plain = spec.clone();
    plain.requirements = Requirements::default();
    let mut out = render(&plain);
    out.push_str("\n# What is asked of the cluster: `mainstay plan` says what follows. More keys: docs/configuration.md\n[requirements]\n");
    let said = full(spec);
    for key in SHOWN {
        let Some(known) = find(&format!("requirements.{key}")) else { continue };
        let line = said.iter().find(|line| line.split(' ').next() == Some(key));
        let line = match line {
            Some(line) => line.clone(),
            None if known.default.is_some() => format!("# {key} ="),
            None => format!("# {key} = {}", quoted_if_text(known, &default_of(known))),
        };
        let _ = writeln!(out, "{line:<34} # {}", known.text);
    }
    out
}

fn quoted_if_text(known: &mainstay_model::config_reference::Key, value: &str) -> String {
    let text = known.kind == mainstay_model::config_reference::Kind::Text && !value.starts_with('"');
    if text { toml_text(value) } else { value.to_owned() }
}

/// The lines of `[requirements]` as the file's writer writes them, without their comments.
fn full(spec: &Spec) -> Vec<String> {
    let text = render(spec);
    let lines = text.lines().skip_while(|line| !line.starts_with("[requirements]")).skip(1);
    lines.map(|line| line.rsplit_once(" # ").map_or(line, |(value, _)| value).trim_end().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(hosts: &[&str], requirements: &[(&'static str, &str)]) -> Answers {
        Answers {
            name: "orders".into(),
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            durability: None,
            requirements: requirements.iter().map(|(key, value)| (*key, (*value).to_owned())).collect(),
        }
    }

    #[test]
    fn what_was_answered_stands_in_the_file_and_the_rest_as_comments() {
        let answers = answers(
            &["10.0.0.1,zone=a", "10.0.0.2,zone=b", "10.0.0.3,zone=c,witness"],
            &[
                ("size_gb", "500"),
                ("purpose", "\"orders # and stock\""),
                ("on_call", "[\"Ann\"]"),
                ("loss_host_s", "0"),
            ],
        );
        let spec = spec_of(&answers).unwrap();
        let text = text_of(&spec);
        assert_eq!(parse(&text, owned_parameters()).unwrap().requirements.size_gb, 500);
        assert!(text.contains("\n# cores = 4 "), "{text}");
        assert!(text.contains("\nloss_host_s = 0 "), "{text}");
        assert!(text.contains("\n# outage_host_s = "), "{text}");
        let names: Vec<&str> = spec.nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!((names, spec.nodes[2].witness), (vec!["db1", "db2", "w1"], true));
    }

    #[test]
    fn wrong_answers_are_named() {
        let error = |hosts: &[&str], requirements: &[(&'static str, &str)]| {
            spec_of(&answers(hosts, requirements)).unwrap_err().error
        };
        assert!(error(&["10.0.0.1,rack=3"], &[]).contains("known are zone=NAME and witness"));
        assert!(error(&["10.0.0.1:5432"], &[]).contains("holds a port"));
        assert!(error(&["10.0.0.1"], &[("size_gb", "many")]).contains("size_gb = many"));
        assert!(error(&["10.0.0.1"], &[("size_gb", "0")]).contains("out of bounds"));
    }
}

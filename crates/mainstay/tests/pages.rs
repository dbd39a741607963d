//! Pages that are written from the code: what stands in `docs/` is what the code says.

#![expect(clippy::unwrap_used, reason = "helpers of tests, too")]

use std::fmt::Write as _;
use std::process::{Command, Stdio};

/// The written page is this one; with MAINSTAY_WRITE_PAGES it is written first.
fn check(name: &str, page: &str) {
    let path = format!("{}/../../docs/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("MAINSTAY_WRITE_PAGES").is_some() {
        std::fs::write(&path, page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/{name} is not what the code says: write it anew with\n  MAINSTAY_WRITE_PAGES=1 cargo test -p mainstay --test pages"
    );
}

#[test]
fn the_page_on_configuration_is_what_the_table_of_keys_says() {
    check("configuration.md", &mainstay_model::config_reference::page());
}

#[test]
fn the_page_on_commands_is_what_the_help_says() {
    let mut page = String::from(HEAD);
    page.push_str(&block(&help(&[])));
    let mut verbs = Vec::new();
    gather(&[], &mut verbs);
    assert!(verbs.len() > 20, "{verbs:?}");
    for verb in verbs {
        let words: Vec<&str> = verb.split(' ').collect();
        write!(page, "\n## mainstay {verb}\n\n{}", block(&help(&words))).unwrap();
    }
    check("commands.md", &page);
}

const HEAD: &str = "# Commands\n\nThis page is the program's own help, written by a test (`crates/mainstay/tests/pages.rs`). In short:\n\n\
    * Commands that ask a running cluster find it by `--config`, the variable `MAINSTAY_CONFIG`, `--dir` or `--name`, and show the certificate \
    of `--identity`.\n\
    * Commands that change something say what they will do and ask; `--yes` answers. Without a terminal and without `--yes` nothing is done.\n\
    * With `--json` the last line of standard output is one object, also when the command fails (`error`, `hint`).\n\
    * Exit status: 0 done, 1 failed, 2 wrong command line or file, 3 not now (the reason is said).\n\n";

fn help(verb: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_mainstay"))
        .args(verb)
        .arg("--help")
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{verb:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn block(help: &str) -> String {
    let lines: Vec<&str> = help.trim().lines().map(str::trim_end).collect();
    format!("```text\n{}\n```\n", lines.join("\n"))
}

/// Every verb that the help names, those of a group after the group.
fn gather(group: &[&str], verbs: &mut Vec<String>) {
    let help = help(group);
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // A continued description stands further to the right.
    let names = listed.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
    for name in names.filter(|name| *name != "help") {
        let verb = [group, &[name]].concat();
        verbs.push(verb.join(" "));
        if group.is_empty() {
            gather(&verb, verbs);
        }
    }
}

/// The commands that a page shows: in blocks, and between backticks.
fn shown(page: &str) -> Vec<String> {
    let (mut found, mut block) = (Vec::new(), false);
    for line in page.lines() {
        if line.starts_with("```") {
            block = !block;
        } else if block {
            found.extend(line.trim().starts_with("mainstay ").then(|| line.trim().to_owned()));
        } else {
            let spans = line.split('`').skip(1).step_by(2);
            found.extend(spans.filter(|span| span.starts_with("mainstay ")).map(str::to_owned));
        }
    }
    found
}

/// Why this command line is not what the program takes.
fn wrong(line: &str, verbs: &[String]) -> Option<String> {
    let line = line.split(" #").next().unwrap_or(line);
    let words: Vec<&str> = line.split_whitespace().skip(1).take_while(|word| *word != "--").collect();
    let (first, second) = (*words.first()?, words.get(1).copied().unwrap_or_default());
    if first.starts_with("--") || first == "…" {
        return None;
    }
    if first.contains('|') || second.contains('|') {
        let (group, all) = if first.contains('|') { (String::new(), first) } else { (format!("{first} "), second) };
        let missing = all.split('|').find(|verb| !verbs.contains(&format!("{group}{verb}")));
        return missing.map(|verb| format!("no verb {group}{verb}"));
    }
    // Daemons that nobody types have no page.
    if ["guard", "manual", "supervise"].contains(&first) {
        return None;
    }
    let two = format!("{first} {second}");
    let verb = if verbs.contains(&two) { two } else { first.to_owned() };
    if !verbs.contains(&verb) {
        return Some(format!("no verb {verb}"));
    }
    let help = help(&verb.split(' ').collect::<Vec<_>>());
    let options = words.iter().filter(|word| word.starts_with("--"));
    let unknown =
        options.map(|word| word.trim_end_matches(['.', ',', ';', ')', ']'])).find(|word| !help.contains(*word));
    unknown.map(|option| format!("{verb} has no {option}"))
}

#[test]
fn every_command_that_a_page_shows_is_one_that_the_program_takes() {
    let mut verbs = Vec::new();
    gather(&[], &mut verbs);
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let mut pages: Vec<_> = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(Into::into).into();
    let docs = std::fs::read_dir(format!("{root}/docs")).unwrap().flatten();
    pages.extend(docs.map(|entry| format!("docs/{}", entry.file_name().to_string_lossy())));
    let mut failed = Vec::new();
    let mut looked_at = 0;
    for page in pages.into_iter().filter(|page: &String| page.ends_with(".md") && !page.ends_with("/commands.md")) {
        let lines = shown(&std::fs::read_to_string(format!("{root}/{page}")).unwrap());
        looked_at += lines.len();
        failed.extend(lines.iter().filter_map(|line| Some(format!("{page}: {line}: {}", wrong(line, &verbs)?))));
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(looked_at > 60, "only {looked_at} commands were found");
    for (line, why) in [("mainstay fly", "no verb fly"), ("mainstay status --wings", "status has no --wings")] {
        assert_eq!(wrong(line, &verbs).as_deref(), Some(why));
    }
}

#[test]
fn every_command_that_a_plan_or_runbook_tells_is_one_that_the_program_takes() {
    let mut verbs = Vec::new();
    gather(&[], &mut verbs);
    for vault in ["", "[vault]\nrepository = \"/mnt/vault/orders\"\nkey_file = \"/etc/mainstay/vault.key\"\n"] {
        let (mut looked_at, mut failed) = (0, Vec::new());
        for (verb, page) in [("plan", "plan.md"), ("runbook", "runbook.md")] {
            let page = written(verb, page, vault);
            // Tables name commands without marks; those stand at the beginning of a cell.
            let cells = page.split('|').map(str::trim).filter(|cell| cell.starts_with("mainstay ")).map(str::to_owned);
            for line in shown(&page).into_iter().chain(cells) {
                looked_at += 1;
                let line = line.split([';', ',']).next().unwrap_or_default().to_owned();
                failed.extend(wrong(&line, &verbs).map(|why| format!("{verb}: {line}: {why}")));
            }
            // With a repository it names our commands, and what works without us in its place.
            for ours in ["mainstay restore --in-place", "mainstay verify"] {
                assert_eq!(page.contains(ours), !vault.is_empty(), "{verb}: {ours}");
            }
            let without_us = page.contains("pg_basebackup") && page.contains("recovery.signal");
            assert!(without_us || (verb == "runbook" && !vault.is_empty()), "{verb}");
        }
        assert!(failed.is_empty(), "{}", failed.join("\n"));
        assert!(looked_at > 60, "only {looked_at} commands were found");
    }
}

/// The page that a verb writes for three nodes.
fn written(verb: &str, page: &str, vault: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (file, page) = (dir.path().join("mainstay.toml"), dir.path().join(page));
    let mut text = String::from("[cluster]\nname = \"orders\"\n");
    for number in 1..=3 {
        write!(text, "[[node]]\nname = \"db{number}\"\nhost = \"192.0.2.{number}\"\n").unwrap();
    }
    std::fs::write(&file, text + vault).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_mainstay"))
        .args([verb, "--offline", "--config"])
        .arg(&file)
        .arg("--markdown")
        .arg(&page)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stderr));
    std::fs::read_to_string(page).unwrap()
}

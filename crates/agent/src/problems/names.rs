//! Every name under which trouble is told stands where people look for it: in the table of [`super`], and on the page of operations, which knows
//! no other ones.

use std::collections::BTreeSet;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn read(path: &str) -> String {
    std::fs::read_to_string(format!("{ROOT}/{path}")).unwrap()
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
}

/// The names in a text of code: each a text in a pair with its severity, which is a text too, or a variable of that name.
fn told(code: &str) -> BTreeSet<String> {
    let pairs = code.split("(\"").skip(1).filter_map(|rest| rest.split_once("\", "));
    let named = pairs.filter(|(name, rest)| {
        let severity = rest.trim_start_matches('"');
        is_name(name)
            && ["critical\")", "warning\")", "info\")", "severity)"].iter().any(|end| severity.starts_with(end))
    });
    named.map(|(name, _)| name.to_owned()).collect()
}

/// The names in the first cells of rows, `` `name …` ``.
fn rows<'a>(lines: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    let cells = lines.filter_map(|line| line.trim_start_matches("//! ").strip_prefix("| "));
    let first = cells.filter_map(|cells| cells.split(" | ").next());
    let spans = first.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    let names = spans.filter_map(|span| span.split([' ', ':']).next());
    names.filter(|name| is_name(name)).map(str::to_owned).collect()
}

#[test]
fn each_name_has_its_rows() {
    let main = read("src/problems.rs");
    let mut named = told(&main);
    for entry in std::fs::read_dir(format!("{ROOT}/src/problems")).unwrap() {
        named.extend(told(&std::fs::read_to_string(entry.unwrap().path()).unwrap()));
    }
    assert!(named.len() > 30, "the code is not read well: {named:?}");
    assert_eq!(named, rows(main.lines().filter(|line| line.starts_with("//!"))), "problems.rs");

    let page = read("../../docs/operations.md");
    // Of tables of other things only the heading is another one.
    let mut of_status = false;
    let lines = page.lines().filter(|line| {
        let heading = line.starts_with("| `status` says");
        of_status = line.starts_with('|') && (of_status || heading);
        of_status && !heading
    });
    assert_eq!(named, rows(lines), "docs/operations.md");
}

#[test]
fn names_are_found_where_they_stand() {
    let name = "a-name";
    for severity in ["\"critical\"", "\"info\"", "severity"] {
        assert!(told(&format!("list.add((\"{name}\", {severity}), evidence, hint)")).contains(name), "{severity}");
    }
    assert!(told(&format!("found == (\"{name}\", 3)")).is_empty());
    let row = "| `a-name … refused`, `b-name: text` | it means `c-name` |\nno `d-name`";
    assert_eq!(rows(row.lines()).into_iter().collect::<Vec<_>>(), ["a-name", "b-name"]);
}

//! Imports go downward only; rooms on one floor do not know each other; what is pure stays pure.
//!
//! Test dependencies may also go sideways (a test of the store may use the real network), never up.

use super::packages::{Metadata, Package};

/// The floors from the ground up.
const FLOORS: [(&str, &[&str]); 6] = [
    ("words", &["model"]),
    ("brain", &["decide", "plan", "wire"]),
    ("doors", &["ports"]),
    (
        "workshop",
        &["store", "engine-postgres", "engine-mysql", "engine-mongodb", "guard", "net", "vault", "watch", "rehearse"],
    ),
    ("living room", &["agent", "proxy", "console", "fleet", "drill"]),
    ("front door", &["mainstay"]),
];

/// The cellar: what each may import. Nobody imports them, but for tests.
const CELLAR: [(&str, &[&str]); 3] =
    [("sim", &["model", "decide", "ports"]), ("testkit", &["model", "ports", "net"]), ("xtask", &[])];

/// Edges that point down and are forbidden all the same.
const FORBIDDEN: [(&str, &str, &str); 2] =
    [("proxy", "decide", "the proxy never elects"), ("drill", "decide", "a drill judges from outside")];

/// Rooms without clock, I/O, threads, runtime or randomness of their own, and what must not be found under them.
const PURE: [&str; 6] = ["model", "decide", "plan", "wire", "rehearse", "sim"];
const IMPURE: [&str; 8] = ["tokio", "mio", "rand", "getrandom", "fastrand", "rustix", "libc", "async-trait"];

fn room(package: &str) -> &str {
    package.strip_prefix("mainstay-").unwrap_or(package)
}

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|(_, rooms)| rooms.contains(&room))
}

fn cellar(room: &str) -> Option<&'static [&'static str]> {
    CELLAR.iter().find(|(name, _)| *name == room).map(|(_, may)| *may)
}

/// Why an edge is wrong, if it is.
fn wrong(from: &str, to: &str, in_tests: bool) -> Option<String> {
    if let Some((_, _, why)) = FORBIDDEN.iter().find(|(f, t, _)| (*f, *t) == (from, to)) {
        return Some((*why).to_owned());
    }
    if let Some(may) = cellar(from) {
        return (!may.contains(&to)).then(|| format!("from the cellar it may import {may:?} only"));
    }
    if cellar(to).is_some() {
        return (!in_tests).then(|| "the cellar is for tests".to_owned());
    }
    let (Some(lower), Some(upper)) = (floor(to), floor(from)) else {
        return Some("one of them stands on no floor; give it one in xtask/src/tidy/floors.rs".to_owned());
    };
    let name = |floor: usize| FLOORS.get(floor).map_or("?", |(name, _)| name);
    match lower.cmp(&upper) {
        std::cmp::Ordering::Less => None,
        std::cmp::Ordering::Equal if in_tests => None,
        std::cmp::Ordering::Equal => Some(format!("both stand on one floor ({})", name(upper))),
        std::cmp::Ordering::Greater => Some(format!("it points up, from {} to {}", name(upper), name(lower))),
    }
}

fn edges(metadata: &Metadata, package: &Package) -> Vec<String> {
    let ours: Vec<&str> = metadata.ours().map(|package| package.name.as_str()).collect();
    let mut breaches = Vec::new();
    for dependency in package.dependencies.iter().filter(|dependency| ours.contains(&dependency.name.as_str())) {
        let in_tests = dependency.kind.as_deref() == Some("dev");
        let (from, to) = (room(&package.name), room(&dependency.name));
        // A crate that tests itself with another feature.
        if from == to && in_tests {
            continue;
        }
        if let Some(why) = wrong(from, to, in_tests) {
            breaches.push(format!("{}: imports {to}: {why}", package.manifest_path));
        }
    }
    breaches
}

/// Every breach of the floors.
pub(super) fn breaches(metadata: &Metadata) -> Vec<String> {
    let mut breaches = Vec::new();
    for package in metadata.ours() {
        let name = room(&package.name);
        if floor(name).is_none() && cellar(name).is_none() {
            breaches.push(format!("{}: {name} stands on no floor", package.manifest_path));
        }
        breaches.extend(edges(metadata, package));
        if PURE.contains(&name) {
            let needs = metadata.needs(package);
            let found = IMPURE.iter().filter(|impure| needs.contains(**impure));
            breaches
                .extend(found.map(|impure| format!("{}: {name} is pure and needs {impure}", package.manifest_path)));
        }
    }
    breaches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn down_is_right_and_sideways_and_up_are_wrong() {
        for (from, to) in
            [("agent", "store"), ("decide", "model"), ("mainstay", "agent"), ("proxy", "net"), ("sim", "decide")]
        {
            assert_eq!(wrong(from, to, false), None, "{from} -> {to}");
        }
        for (from, to) in [
            ("model", "ports"),
            ("decide", "ports"),
            ("store", "net"),
            ("agent", "proxy"),
            ("proxy", "decide"),
            ("sim", "net"),
            ("agent", "testkit"),
            ("xtask", "model"),
            ("agent", "novel"),
        ] {
            assert!(wrong(from, to, false).is_some(), "{from} -> {to}");
        }
    }

    #[test]
    fn tests_may_look_sideways_and_into_the_cellar_but_not_up() {
        assert_eq!(wrong("store", "net", true), None);
        assert_eq!(wrong("mainstay", "testkit", true), None);
        assert!(wrong("store", "agent", true).is_some());
        assert!(wrong("proxy", "decide", true).is_some());
    }

    #[test]
    fn what_a_pure_room_needs_is_found_at_any_depth_but_not_through_tests() {
        let json = r#"{"workspace_members":["d"],"target_directory":"","packages":[
            {"id":"d","name":"mainstay-decide","version":"0","license":null,"manifest_path":"d","dependencies":[]},
            {"id":"x","name":"x","version":"0","license":null,"manifest_path":"x","dependencies":[]},
            {"id":"t","name":"tokio","version":"0","license":null,"manifest_path":"t","dependencies":[]},
            {"id":"r","name":"rand","version":"0","license":null,"manifest_path":"r","dependencies":[]}],
            "resolve":{"nodes":[
            {"id":"d","deps":[{"pkg":"x","dep_kinds":[{"kind":null}]},{"pkg":"r","dep_kinds":[{"kind":"dev"}]}]},
            {"id":"x","deps":[{"pkg":"t","dep_kinds":[{"kind":null}]}]}]}}"#;
        let metadata: Metadata = serde_json::from_str(json).unwrap();
        let breaches = breaches(&metadata);
        assert_eq!(breaches, ["d: decide is pure and needs tokio"]);
    }
}

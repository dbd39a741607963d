//! What the arithmetic says of failures, and what the real decisions do, for every small cluster.
#![expect(clippy::unwrap_used, reason = "a test ends where it can not go on")]

use mainstay_model::config::parse;
use mainstay_model::spec::Spec;
use mainstay_plan::layout::Layout;
use mainstay_rehearse::what_if;
use std::fmt::Write as _;

const ETCD: &str = "[store]\nkind = \"etcd\"\nendpoints = [\"http://10.0.1.1\"]\n";

fn spec(data: usize, witnesses: usize, durability: &str, store: &str) -> Spec {
    let mut text = format!("[cluster]\nname = \"a\"\ndurability = \"{durability}\"\n");
    for number in 0..data + witnesses {
        write!(
            text,
            "[[node]]\nname = \"n{number}\"\nhost = \"10.0.0.{}\"\nwitness = {}\n",
            number + 1,
            number >= data
        )
        .unwrap();
    }
    text.push_str(store);
    parse(&text, &[]).unwrap()
}

#[test]
fn the_arithmetic_of_plans_is_what_the_decisions_do() {
    let mut rehearsed = 0;
    let mut wrong = Vec::new();
    for durability in ["strict", "available", "async"] {
        let own = [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2), (4, 0), (4, 1), (5, 0)].map(|nodes| (nodes, ""));
        let etcd = [(1, 0), (2, 0), (2, 1), (3, 0), (4, 0)].map(|nodes| (nodes, ETCD));
        for ((data, witnesses), store) in own.into_iter().chain(etcd) {
            let spec = spec(data, witnesses, durability, store);
            let layout = Layout::of(&spec);
            let found = what_if(&spec).unwrap();
            for case in &found {
                rehearsed += 1;
                // A server that died alone: its host and its data are there.
                let agrees = if case.failed.is_empty() {
                    matches!(case.ended, mainstay_plan::whatif::Ended::Serves { .. })
                } else {
                    case.agrees(&layout)
                };
                if !agrees {
                    wrong.push(format!("{data}+{witnesses} {durability} {store}: {case:?}"));
                }
                assert!(!case.lost || durability == "async", "{data}+{witnesses} {durability}: {case:?}");
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {rehearsed}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(rehearsed > 300, "{rehearsed}");
}

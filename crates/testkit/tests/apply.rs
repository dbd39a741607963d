//! `mainstay apply` on bare virtual hosts (needs root): from nothing to a cluster that works, once more, and a node more.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod apply_bed;

use apply_bed::{Bed, CONFIG, file, names};
use serde_json::Value;

#[test]
fn bare_hosts_become_a_cluster_and_a_node_is_added() {
    let bed = Bed::new(4);
    bed.write(&file(&[1, 2, 3], ""));
    let first = bed.applied(&[]);
    assert_eq!((first.answer["changed"].as_bool(), first.answer["cluster"].as_str()), (Some(true), Some("orders")));
    assert!(first.said.contains("was acknowledged"), "{}", first.said);
    assert_eq!(names(&bed.status()), ["db1", "db2", "db3"]);
    println!("bare hosts to a cluster that works: {:.1} s", first.took.as_secs_f64());

    let pids = |status: &Value| {
        status["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|node| (node["agent_pid"].clone(), node["server_pid"].clone()))
            .collect::<Vec<_>>()
    };
    let before = bed.status();
    let second = bed.applied(&[]);
    assert_eq!(
        (second.answer["changed"].as_bool(), second.answer["steps"].as_array().map(Vec::len)),
        (Some(false), Some(0))
    );
    assert_eq!(pids(&bed.status()), pids(&before), "a second run changes nothing");
    println!("a second run: {:.1} s", second.took.as_secs_f64());

    bed.write(&file(&[1, 2, 3, 4], ""));
    let third = bed.applied(&[]);
    assert_eq!(third.answer["changed"], true);
    assert_eq!(names(&bed.status()), ["db1", "db2", "db3", "db4"]);
    let there = std::fs::read_to_string(bed.host(2).path(CONFIG)).unwrap();
    assert_eq!(there, file(&[1, 2, 3, 4], ""));
    // Keys are made where they stay.
    let keys = std::fs::read_dir(bed.admin.home("orders/pki")).unwrap().flatten();
    let keys: Vec<String> = keys
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".key"))
        .collect();
    assert!(keys.iter().all(|name| ["ca.key", "admin.key"].contains(&name.as_str())), "{keys:?}");
}

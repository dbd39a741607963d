//! What agents say of clusters that never were: material for the tests of plans.

use mainstay_model::api::{Standing, StoreStanding};
use mainstay_model::status::{ClusterStatus, NodeStatus, RouteAddresses, Status};
use mainstay_model::{
    ClaimState, CopyId, Lineage, Lsn, NodeId, Position, Record, Revision, ServerState, Span, Term, Timeline,
};

pub(crate) fn name(text: &str) -> NodeId {
    NodeId::new(text).unwrap()
}

pub(crate) fn copy(number: u64) -> CopyId {
    CopyId::new(number).unwrap()
}

pub(crate) fn at(timeline: u32, lsn: u64) -> Position {
    Position { timeline: Timeline(timeline), lsn: Lsn(lsn) }
}

/// Of term 4, by db1, with db1 to db3 as members (copies 1 to 3) and this quorum.
pub(crate) fn record(quorum: u32) -> Record {
    Record {
        term: Term(4),
        holder: Some(name("db1")),
        state: ClaimState::Held,
        grant: 7,
        leader: Some(name("db1")),
        members: [(name("db1"), copy(1)), (name("db2"), copy(2)), (name("db3"), copy(3))].into(),
        quorum,
        timeline: Timeline(2),
        lineage: Lineage::default(),
        wanted: None,
        asynchronous: false,
        system: None,
        lease: Some(Span(3000)),
        reason: String::new(),
        lossy: None,
        restored: None,
        held: None,
    }
}

/// What `db<number>` knows: its copy is of that number, its log reaches `lsn`.
pub(crate) fn standing(number: u64, lsn: u64) -> Standing {
    Standing {
        node: name(&format!("db{number}")),
        promise: Term(4),
        copy: Some(copy(number)),
        position: Some(at(2, lsn)),
        server: ServerState::Standby,
        record: Some((Revision(9), record(1))),
        store: StoreStanding {
            voters: vec![name("db1"), name("db2"), name("db3")],
            leader: Some(name("db2")),
            ..StoreStanding::default()
        },
        generation: 1,
        wall_ms: 0,
        shut: false,
        libc: None,
    }
}

pub(crate) fn node(text: &str, role: &str, healthy: bool) -> NodeStatus {
    NodeStatus {
        name: name(text),
        host: "127.0.0.1".into(),
        role: role.into(),
        state: if !healthy {
            "unreachable"
        } else if role == "replica" {
            "streaming"
        } else {
            "running"
        }
        .into(),
        healthy,
        sync: role == "replica" && healthy,
        timeline: healthy.then_some(Timeline(12)),
        position: healthy.then_some(Lsn(0x2_1F00_0148)),
        lag_bytes: healthy.then_some(123_456),
        agent_pid: healthy.then_some(10),
        guard_pid: None,
        server_pid: healthy.then_some(20),
        data_dir: "/var/lib/mainstay/main/nodes/db1/data".into(),
        since: Some("2023-11-14T22:13:20Z".into()),
    }
}

pub(crate) fn status(nodes: Vec<NodeStatus>) -> Status {
    let primary = nodes.iter().find(|node| node.role == "primary").map(|node| node.name.clone());
    Status {
        cluster: ClusterStatus {
            name: "main".into(),
            engine: "postgres".into(),
            version: "15.14".into(),
            term: Term(3),
            writable: primary.is_some(),
            primary,
            durability: "strict".into(),
        },
        routes: RouteAddresses { write: "127.0.0.1:6432".into(), read: "127.0.0.1:6433".into(), address: None },
        api: "https://127.0.0.1:7420".into(),
        nodes,
        problems: Vec::new(),
    }
}

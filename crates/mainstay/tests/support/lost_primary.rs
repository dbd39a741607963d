//! The loss of a primary with all processes of its node, and whoever takes over.

use crate::local::Cluster;
use crate::until::until;
use serde_json::Value;
use std::process::Command;

impl Cluster {
    /// Kills the primary's agent, guard and server, and waits until another node is the primary and all are well. The one that was killed.
    pub(crate) fn kill_primary(&self) -> Value {
        let status = self.json(&["status"]);
        let primary = status["cluster"]["primary"].clone();
        let node = status["nodes"].as_array().unwrap().iter().find(|node| node["name"] == primary).unwrap().clone();
        for key in ["agent_pid", "guard_pid", "server_pid"] {
            let pid = node[key].as_u64().unwrap().to_string();
            assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success(), "{key}");
        }
        until("a take-over", || (self.json(&["status"])["cluster"]["primary"] != primary).then_some(()));
        self.healthy();
        primary
    }
}

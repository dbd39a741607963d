//! Health endpoints in the vocabulary that load balancers know from Patroni, and this node's metrics, on a plain listener of
//! their own that holds no secret and changes nothing.

use crate::api::Api;
use crate::routes::Routes;
use axum::extract::{Query, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use axum::{Json, Router};
use mainstay_model::ServerState;
use mainstay_ports::clock::boot_now;
use serde::Deserialize;
use serde_json::json;
use std::fmt::Write;
use std::sync::Arc;
use tokio::net::TcpListener;

/// Serves the endpoints until the listener fails for good.
pub async fn serve(listener: TcpListener, health: Health) {
    crate::plain::serve(listener, router(health)).await;
}

/// What the endpoints need.
#[derive(Clone)]
pub struct Health {
    /// The agent's knowledge.
    pub api: Arc<Api>,
    /// The route: `/primary` answers 200 only while it is open and the deadline lies ahead.
    pub routes: Routes,
}

#[derive(Debug, Default, Deserialize)]
struct Lag {
    lag: Option<String>,
}

/// A length in bytes as Patroni takes it: `16777216`, `16MB`, `1 GB`. Units are powers of 1024.
fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "kb" | "k" => 10,
        "mb" | "m" => 20,
        "gb" | "g" => 30,
        "tb" | "t" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn router(health: Health) -> Router {
    Router::new()
        .route("/", any(primary))
        .route("/primary", any(primary))
        .route("/master", any(primary))
        .route("/leader", any(primary))
        .route("/read-write", any(primary))
        .route("/replica", any(replica))
        .route("/read-only", any(read_only))
        .route("/sync", any(sync))
        .route("/synchronous", any(sync))
        .route("/quorum", any(sync))
        .route("/async", any(asynchronous))
        .route("/asynchronous", any(asynchronous))
        .route("/health", any(health_of_server))
        .route("/liveness", any(liveness))
        .route("/readiness", any(read_only))
        .route("/patroni", any(describe))
        .route("/metrics", any(metrics))
        .with_state(health)
}

impl Health {
    fn is_primary(&self) -> bool {
        self.routes.open(boot_now())
    }

    fn is_replica(&self) -> bool {
        let observed = self.api.observed.borrow();
        observed.state == ServerState::Standby && observed.receiving && observed.silent == 0
    }

    fn role(&self) -> &'static str {
        if self.is_primary() {
            "primary"
        } else if self.is_replica() {
            "replica"
        } else {
            "none"
        }
    }

    /// Is this node's copy one of those that the record counts?
    async fn counts(&self) -> bool {
        let Some(summary) = self.api.snapshot().await.map(|snapshot| snapshot.summary) else { return false };
        let Some((_, record)) = summary.record else { return false };
        let member = record.members.get(&self.api.me);
        !record.asynchronous && member.is_some() && member == summary.copy.as_ref()
    }

    /// Bytes received and not replayed yet.
    fn lag(&self) -> u64 {
        let observed = self.api.observed.borrow();
        match (observed.end, observed.replay) {
            (Some(end), Some(replay)) => end.0.saturating_sub(replay.0),
            _ => 0,
        }
    }

    fn answer(&self, method: &Method, fit: bool) -> Response {
        let code = if fit { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        match *method {
            Method::GET => (code, Json(self.describe())).into_response(),
            Method::HEAD | Method::OPTIONS => code.into_response(),
            _ => StatusCode::METHOD_NOT_ALLOWED.into_response(),
        }
    }

    fn describe(&self) -> serde_json::Value {
        let observed = self.api.observed.borrow();
        let state = match observed.state {
            ServerState::Down => "stopped",
            ServerState::Starting => "starting",
            ServerState::Standby | ServerState::Primary => "running",
        };
        json!({
            "state": state,
            "role": self.role(),
            "timeline": observed.timeline,
            "xlog": { "location": observed.end.map(|end| end.0) },
            "patroni": { "name": self.api.me, "scope": self.api.spec().cluster.name },
        })
    }
}

async fn primary(State(health): State<Health>, method: Method) -> Response {
    health.answer(&method, health.is_primary())
}

async fn replica(State(health): State<Health>, Query(limit): Query<Lag>, method: Method) -> Response {
    match limit.near(&health) {
        Some(near) => health.answer(&method, health.is_replica() && near),
        None => StatusCode::BAD_REQUEST.into_response(),
    }
}

impl Lag {
    /// Is the node near enough? `None`: the limit can not be understood.
    fn near(&self, health: &Health) -> Option<bool> {
        match &self.lag {
            None => Some(true),
            Some(text) => bytes(text).map(|most| health.lag() <= most),
        }
    }
}

/// A replica whose confirmation commits may wait for: each is one of a quorum, so `/quorum` is the same.
async fn sync(State(health): State<Health>, method: Method) -> Response {
    let counts = health.is_replica() && health.counts().await;
    health.answer(&method, counts)
}

async fn asynchronous(State(health): State<Health>, Query(limit): Query<Lag>, method: Method) -> Response {
    match limit.near(&health) {
        Some(near) => {
            let counts = health.counts().await;
            health.answer(&method, health.is_replica() && near && !counts)
        }
        None => StatusCode::BAD_REQUEST.into_response(),
    }
}

async fn read_only(State(health): State<Health>, method: Method) -> Response {
    health.answer(&method, health.is_primary() || health.is_replica())
}

async fn health_of_server(State(health): State<Health>, method: Method) -> Response {
    let up = {
        let observed = health.api.observed.borrow();
        matches!(observed.state, ServerState::Standby | ServerState::Primary) && observed.silent == 0
    };
    health.answer(&method, up)
}

async fn liveness(State(health): State<Health>, method: Method) -> Response {
    let alive = health.api.snapshot().await.is_some();
    health.answer(&method, alive)
}

async fn describe(State(health): State<Health>, method: Method) -> Response {
    health.answer(&method, true)
}

/// This node's own state in the Prometheus text format.
async fn metrics(State(health): State<Health>) -> Response {
    let Some(local) = health.api.local().await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let (cluster, node) = (health.api.spec().cluster.name, &health.api.me);
    let mut text = String::new();
    let mut gauge = |name: &str, help: &str, value: u64| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        let _ = writeln!(text, "{name}{{cluster=\"{cluster}\",node=\"{node}\"}} {value}");
    };
    gauge("mainstay_term", "The newest term this node has seen.", local.term.0);
    gauge("mainstay_primary", "1 while this node is the open primary.", u64::from(health.is_primary()));
    gauge("mainstay_replica", "1 while this node streams as a replica.", u64::from(health.is_replica()));
    gauge("mainstay_writes_blocked", "1 while commits wait for replicas that are not there.", u64::from(local.blocked));
    gauge(
        "mainstay_degraded",
        "1 while commits are confirmed by fewer replicas than wanted.",
        u64::from(local.degraded),
    );
    gauge(
        "pg_up",
        "1 while the database server answers.",
        u64::from(local.observed.silent == 0 && local.server_pid.is_some()),
    );
    gauge("mainstay_server_silent_milliseconds", "How long the server gave no sign of life.", local.observed.silent);
    gauge("mainstay_timeline", "The server's timeline.", u64::from(local.observed.timeline.unwrap_or_default().0));
    gauge("mainstay_log_end_bytes", "How far the server's log reaches.", local.observed.end.unwrap_or_default().0);
    gauge(
        "mainstay_replicas_streaming",
        "Replicas that stream from this node.",
        local.observed.walsenders.iter().filter(|sender| sender.streaming).count() as u64,
    );
    let backup = health.api.backups_state();
    if let Some(made) = &backup.last {
        gauge(
            "mainstay_backup_last_seconds",
            "When the last backup that counts ended, seconds since 1970.",
            made.ended_ms / 1000,
        );
    }
    if let Some(drill) = &backup.drill {
        gauge(
            "mainstay_drill_last_seconds",
            "When the last restore drill ended, seconds since 1970.",
            drill.ended_ms / 1000,
        );
        gauge(
            "mainstay_drill_ok",
            "1 if the last restore drill brought back a sound copy.",
            u64::from(drill.problem.is_none()),
        );
        gauge("mainstay_drill_restored_bytes", "What the last restore drill wrote.", drill.bytes);
        gauge("mainstay_drill_write_milliseconds", "How long that took.", drill.write_ms);
        gauge("mainstay_drill_recovery_milliseconds", "How long its recovery took.", drill.recover_ms);
    }
    if let Some(passed) = backup.drill_passed_ms {
        gauge(
            "mainstay_drill_passed_seconds",
            "When the last restore drill ended that passed, seconds since 1970.",
            passed / 1000,
        );
    }
    if let Some(free) = local.observed.disk_free {
        gauge("mainstay_data_volume_free_bytes", "Free bytes on the data volume.", free);
    }
    ([("content-type", "text/plain; version=0.0.4")], text).into_response()
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn lengths_are_taken_with_and_without_units() {
        assert_eq!([bytes("0"), bytes("1048576"), bytes("1MB")], [Some(0), Some(1 << 20), Some(1 << 20)]);
        assert_eq!([bytes("10 kB"), bytes("2gb"), bytes("1T")], [Some(10 << 10), Some(2 << 30), Some(1 << 40)]);
        for bad in ["", "MB", "-1", "1.5MB", "1 mile", "99999999999999TB"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }
}

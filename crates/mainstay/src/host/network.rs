//! The way to the other nodes, what their agents tell, and what the server on this host knows of sorting.

use super::{Seen, said};
use mainstay_model::layout::NodeLayout;
use mainstay_model::spec::Node;
use mainstay_plan::doctor::facts::{Collation, Knock, Peer, PeerPort, Reading, Server, Stage, Told};
use mainstay_ports::clock::wall_now_ms;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_millis(1500);
/// How many connections the usual time is taken from.
const KNOCKS: usize = 5;

/// What the way to every other node led to.
pub(super) async fn peers(seen: &Seen, me: &Node, stage: Stage) -> Vec<Peer> {
    let spec = seen.spec();
    let mut found = Vec::new();
    for node in spec.nodes.iter().filter(|node| node.name != me.name) {
        let ports = knock_all(&node.host, super::ports::of(spec, node)).await;
        let answers = ports
            .iter()
            .find(|port| port.knock == Knock::Open)
            .or_else(|| ports.iter().find(|port| port.knock == Knock::Refused));
        let round_trip_us = match answers {
            Some(port) => round_trip(&node.host, port.port).await,
            None => None,
        };
        let listens = ports.iter().any(|port| port.of == "agent" && port.knock == Knock::Open);
        let asked = listens && (stage > Stage::New || seen.agents.is_ok());
        let told = if asked { Some(told(seen, node).await) } else { None };
        found.push(Peer { node: node.name.clone(), host: node.host.clone(), ports, round_trip_us, told });
    }
    found
}

/// All ports of a host, side by side, in their order.
async fn knock_all(host: &str, ports: Vec<(u16, &'static str)>) -> Vec<PeerPort> {
    let mut knocking = JoinSet::new();
    for (place, (port, of)) in ports.into_iter().enumerate() {
        let host = host.to_owned();
        knocking.spawn(async move { (place, PeerPort { port, of, knock: knock(&host, port).await.0 }) });
    }
    let mut all = knocking.join_all().await;
    all.sort_by_key(|(place, _)| *place);
    all.into_iter().map(|(_, port)| port).collect()
}

/// One connection, and what it took; it is closed again at once.
async fn knock(host: &str, port: u16) -> (Knock, Duration) {
    let address = match lookup_host((host, port)).await.map(|mut all| all.next()) {
        Ok(Some(address)) => address,
        Ok(None) => return (Knock::Lost("the name has no address".to_owned()), Duration::ZERO),
        Err(error) => return (Knock::Lost(error.to_string()), Duration::ZERO),
    };
    let since = Instant::now();
    let knock = match tokio::time::timeout(CONNECT, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Knock::Open,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => Knock::Refused,
        Ok(Err(error)) => Knock::Lost(error.to_string()),
        Err(_) => Knock::Lost(format!("no answer within {} ms", CONNECT.as_millis())),
    };
    (knock, since.elapsed())
}

/// The middle of a few connections, one after the other; `None` if most of them were lost.
async fn round_trip(host: &str, port: u16) -> Option<u64> {
    let mut took = Vec::with_capacity(KNOCKS);
    for _ in 0..KNOCKS {
        let (knock, time) = knock(host, port).await;
        if !matches!(knock, Knock::Lost(_)) {
            took.push(time);
        }
    }
    took.sort_unstable();
    if took.len() * 2 <= KNOCKS {
        return None;
    }
    u64::try_from(took.get(took.len() / 2)?.as_micros()).ok()
}

/// What its agent tells, with our clock around it.
async fn told(seen: &Seen, node: &Node) -> Reading<Told> {
    let (sent, since) = (wall_now_ms(), Instant::now());
    let standing = seen.standing(node).await?;
    let took = i64::try_from(since.elapsed().as_millis()).unwrap_or(i64::MAX);
    let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    let middle = signed(sent).saturating_add(took / 2);
    let clock_ms = (standing.wall_ms > 0).then(|| signed(standing.wall_ms).saturating_sub(middle));
    Ok(Told { clock_ms, about_ms: took / 2 + 1, libc: standing.libc })
}

/// Databases whose texts were sorted by another version than the system has, as the server on this host sees it.
pub(super) async fn collations(server: &Server, layout: &NodeLayout, port: u16) -> Reading<Vec<Collation>> {
    const ASK: &str = "set statement_timeout = '3s'; \
        select datname, datcollversion, pg_database_collation_actual_version(oid) from pg_database \
        where datcollversion is distinct from pg_database_collation_actual_version(oid) order by 1 limit 100";
    let (host, port) = (layout.run().display().to_string(), port.to_string());
    let psql = Path::new(&server.programs).join("psql");
    let place = ["-h", &host, "-p", &port, "-U", "postgres", "-d", "postgres"];
    let text = said(psql, &[&place[..], &["-XAtqw", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-c", ASK]].concat()).await?;
    text.lines().filter(|line| !line.is_empty()).map(collation).collect()
}

fn collation(line: &str) -> Reading<Collation> {
    let mut words = line.split('\t').map(str::to_owned);
    match (words.next(), words.next(), words.next()) {
        (Some(database), Some(recorded), Some(actual)) => Ok(Collation { database, recorded, actual }),
        _ => Err(format!("psql answered what was not asked: {line:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::one_thread;

    #[test]
    fn a_port_is_open_or_refused_or_lost() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = |host: &'static str, port: u16| one_thread(async move { Ok(knock(host, port).await.0) }).unwrap();
        assert_eq!(seen("127.0.0.1", port), Knock::Open);
        assert!(one_thread(async move { Ok(round_trip("127.0.0.1", port).await) }).unwrap().is_some());
        assert_eq!(seen("127.0.0.1", 1), Knock::Refused);
        assert!(matches!(seen("no-such-host.invalid", 1), Knock::Lost(_)));
    }

    #[test]
    fn lines_of_collations_are_read() {
        let found = collation("app\t2.31\t2.36").unwrap();
        assert_eq!((found.database.as_str(), found.actual.as_str()), ("app", "2.36"));
        assert!(collation("nonsense").is_err());
    }
}

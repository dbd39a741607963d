//! Logging in to a server in a client's name, and the check that it is the server it should be, before it carries any work.
//! Absent: passwords; the keys came from the client's own proof.

use super::scram::{Proof, nonce};
use super::server::{Server, Shown, Stage};
use super::worker::Worker;
use crate::registry::Place;
use mainstay_model::Timeline;
use mainstay_model::outcome::{RunId, Started};
use mainstay_wire::reply::{self, Reply};
use mainstay_wire::{WireError, header, message};
use rustls::pki_types::ServerName;

/// Names written out, so that nothing in a search path can answer instead.
const CHECK: &str = "SELECT s.system_identifier, pg_catalog.pg_is_in_recovery(), \
    CASE WHEN pg_catalog.pg_is_in_recovery() THEN NULL \
    ELSE pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) END, \
    (EXTRACT(epoch FROM pg_catalog.pg_postmaster_start_time()) OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8, \
    (SELECT pg_catalog.bool_and(pg_catalog.has_function_privilege(p.oid, 'EXECUTE')) FROM pg_catalog.pg_proc AS p \
    WHERE p.proname OPERATOR(pg_catalog.=) 'pg_logical_emit_message') \
    FROM pg_catalog.pg_control_system() AS s";

impl Worker {
    /// The network has answered.
    pub(crate) fn connected(&mut self, server: &mut Server) -> Result<(), String> {
        server.link.connected().map_err(|error| error.to_string())?;
        let target = server.place.target();
        let local = self.pooling.local.as_ref().is_some_and(|(node, _)| *node == target.node);
        let near = local || target.address.ip().is_loopback();
        let bytes: &[u8] = if self.pooling.tls_to.is_some() && !near {
            server.stage = Stage::AskedTls;
            &[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]
        } else {
            return self.log_in(server);
        };
        server.write(bytes).map_err(|error| error.to_string())
    }

    fn log_in(&mut self, server: &mut Server) -> Result<(), String> {
        let key = self.pools.get(server.pool).map(|pool| pool.key.clone()).ok_or("its pool is gone")?;
        let mut out = Vec::new();
        reply::startup(
            &mut out,
            &[
                ("user", &key.user),
                ("database", &key.database),
                ("application_name", "mainstay proxy"),
                ("client_encoding", "UTF8"),
            ],
        );
        server.stage = Stage::LoggingIn(None);
        server.write(&out).map_err(|error| error.to_string())
    }

    /// Takes what a server says before it may work; says how much of it was used.
    pub(crate) fn logging_in(&mut self, server: &mut Server, bytes: &[u8]) -> Result<usize, String> {
        let broken = |error: WireError| error.to_string();
        if matches!(server.stage, Stage::AskedTls) {
            // More than one byte: somebody has written into a connection that was to be encrypted.
            if bytes != b"S" {
                return Err("the server does not offer TLS".to_owned());
            }
            let node = &server.place.target().node;
            let config = self.pooling.tls_to.as_ref().and_then(|to| to(node)).ok_or("no TLS for that node")?;
            let name = ServerName::try_from("mainstay").map_err(|error| error.to_string())?;
            let tls = rustls::ClientConnection::new(config, name).map_err(|error| error.to_string())?;
            server.link.start_tls(tls.into(), b"").map_err(|error| error.to_string())?;
            self.log_in(server)?;
            return Ok(1);
        }
        let mut at = 0;
        while let Some(head) = header(&bytes[at..]).map_err(broken)? {
            let Some(whole) = bytes.get(at..at + head.length) else { break };
            at += head.length;
            match head.tag {
                b'R' => self.authentication(server, whole)?,
                b'S' => server.note_parameter(whole),
                b'K' => {
                    let number = |at: usize| {
                        whole.get(at..at + 4).and_then(|n| n.first_chunk()).map_or(0, |n| u32::from_be_bytes(*n))
                    };
                    (server.process, server.secret) = (number(5), number(9));
                }
                b'E' => return self.turned_away(server, whole),
                b'D' => {
                    let [system, recovery, timeline, started, may_emit] = message::row::<5>(whole);
                    let text = |value: Option<&[u8]>| {
                        value.and_then(|value| std::str::from_utf8(value).ok()).map(str::to_owned)
                    };
                    if let Stage::Checking(shown) = &mut server.stage {
                        shown.system = text(system).and_then(|value| value.parse().ok());
                        shown.in_recovery = text(recovery).map(|value| value == "t");
                        shown.timeline = text(timeline).and_then(|value| u32::from_str_radix(&value, 16).ok());
                        // Without that right a commit must not be asked for its number: the question would end its transaction.
                        let may = text(may_emit).is_some_and(|value| value == "t");
                        shown.started = text(started).filter(|_| may).and_then(|value| value.parse().ok());
                    }
                }
                b'Z' if self.next_step(server)? => break,
                _ => {}
            }
        }
        Ok(at)
    }

    fn authentication(&mut self, server: &mut Server, whole: &[u8]) -> Result<(), String> {
        let kind = whole.get(5..9).and_then(|n| n.first_chunk()).map_or(u32::MAX, |n| u32::from_be_bytes(*n));
        let text = whole.get(9..).unwrap_or_default();
        let Stage::LoggingIn(proof) = &mut server.stage else { return Err("it asks for a login again".to_owned()) };
        let mut out = Vec::new();
        match (kind, proof.as_mut()) {
            (0, Some(proof)) if proof.is_checked() => return Ok(()),
            // A server that lets anybody in is not asked who it is; the check that follows tells.
            (0, None) => return Ok(()),
            (10, None) => {
                let keys = self.pools.get(server.pool).and_then(|pool| pool.keys.clone()).ok_or("no keys to log in")?;
                let (begun, first) = Proof::begin(keys, nonce().ok_or("no random numbers")?);
                *proof = Some(Box::new(begun));
                reply::message(&mut out, b'p', |out| {
                    reply::text(out, "SCRAM-SHA-256");
                    out.extend(u32::try_from(first.len()).unwrap_or(0).to_be_bytes());
                    out.extend(first.as_bytes());
                });
            }
            (11, Some(proof)) => {
                let answer = proof.answer(text).map_err(|error| error.to_string())?;
                reply::message(&mut out, b'p', |out| out.extend(answer.as_bytes()));
            }
            (12, Some(proof)) => {
                return proof.check(text).map_err(|error| format!("it does not know the role: {error}"));
            }
            _ => return Err("it asks for a login other than by SCRAM-SHA-256".to_owned()),
        }
        server.write(&out).map_err(|error| error.to_string())
    }

    /// Ready for a query. True: everything is checked.
    fn next_step(&mut self, server: &mut Server) -> Result<bool, String> {
        let Stage::Checking(shown) = server.stage else {
            let plain =
                server.parameters.iter().any(|(name, value)| name == "standard_conforming_strings" && value == "on");
            server.stage = Stage::Checking(Shown { plain_strings: plain, ..Shown::default() });
            let mut out = Vec::new();
            reply::query(&mut out, CHECK);
            server.write(&out).map_err(|error| error.to_string())?;
            return Ok(false);
        };
        self.judge(server, shown)?;
        if let Some(pool) = self.pools.get_mut(server.pool) {
            pool.opening = pool.opening.saturating_sub(1);
            pool.failures = 0;
        }
        let life = |(timeline, started)| RunId { timeline: Timeline(timeline), started: Started(started) };
        server.run = shown.timeline.zip(shown.started).map(life);
        server.stage = Stage::Free;
        server.since = self.now;
        if self.rules.verdict(&server.place, self.now).is_some() {
            self.to_close.push(server.id);
        } else {
            self.offer(server);
            self.open_more(server.pool);
        }
        Ok(true)
    }

    /// Is it the cluster's, and what the route says that it is?
    fn judge(&self, server: &Server, shown: Shown) -> Result<(), String> {
        let (target, primary) = (server.place.target(), matches!(server.place, Place::Primary(_)));
        if let Some(system) = self.rules.system
            && shown.system != Some(system.0)
        {
            return Err(format!("the server of {} is not of this cluster", target.node));
        }
        if shown.in_recovery != Some(!primary) {
            let is = if primary { "no primary" } else { "no replica" };
            return Err(format!("the server of {} is {is}", target.node));
        }
        if !shown.plain_strings {
            return Err("standard_conforming_strings is off for this role: texts can not be followed".to_owned());
        }
        match (primary, shown.timeline) {
            (true, Some(timeline)) if !self.hub.note_timeline(target.epoch.0, timeline) => {
                Err(format!("the server of {} is on timeline {timeline}, which is over", target.node))
            }
            _ => Ok(()),
        }
    }

    /// The server said no.
    fn turned_away(&mut self, server: &mut Server, whole: &[u8]) -> Result<usize, String> {
        let field = |kind| String::from_utf8_lossy(message::field(whole, kind).unwrap_or_default()).into_owned();
        let (code, text) = (field(b'C'), field(b'M'));
        // Starting, stopping, or full: another attempt may do. Out of the pool's sight: the same.
        let passing = ["57P03", "57P01", "57P02", "53300", "53400", "28000"].contains(&code.as_str());
        if !passing {
            self.refuse_all(server.pool, &code, &text);
        }
        Err(text)
    }

    /// A login can not succeed: those who wait for it hear why.
    fn refuse_all(&mut self, index: usize, code: &str, text: &str) {
        let code = match code {
            "28P01" => "28P01",
            "3D000" => "3D000",
            "42501" => "42501",
            _ => "08004",
        };
        let Some(pool) = self.pools.get_mut(index) else { return };
        let waiting = std::mem::take(&mut pool.waiting);
        if code == "28P01" {
            // The password was changed: the next client that proves itself brings the new keys.
            pool.keys = None;
        }
        let error = Reply::error("FATAL", code, text, "The database server said so.", "");
        for id in waiting {
            if let Some(mut client) = self.clients.take(id) {
                if client.waiting_since.is_some() {
                    self.refuse(&mut client, &error);
                }
                self.put_client(client, id);
            }
        }
    }

    /// An attempt ended without a server.
    pub(crate) fn login_failed(&mut self, server: &Server, why: &str) {
        tracing::debug!(node = %server.place.target().node, why, "no connection to a server");
        self.put_off(server.pool);
    }
}

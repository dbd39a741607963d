//! A client enters: its first packets, TLS, its proof, and the greeting. Bounded in bytes and time, since anybody can connect.
//! Absent: work.

use super::client::{Client, Exchange, Proving, Stage};
use super::hub::Mail;
use super::pools::{Key, Pool};
use super::scram::{Challenge, Keys, Verifier, nonce, sha256};
use super::server::Server;
use super::settings::Settings;
use super::worker::{End, Worker};
use crate::hold::Kind;
use mainstay_wire::reply::{self, Reply};
use mainstay_wire::startup::STARTUP_BYTES_MAX;
use mainstay_wire::{Startup, WireError, header, startup};
use std::rc::Rc;
use std::sync::Arc;

/// Databases that are the proxy itself.
const ADMIN: [&str; 2] = ["mainstay", "pgbouncer"];
const PLAIN: &str = "SCRAM-SHA-256";
const PLUS: &str = "SCRAM-SHA-256-PLUS";

fn fatal(code: &'static str, message: &str, detail: &str, hint: &str) -> End {
    End::Refuse(Reply::error("FATAL", code, message, detail, hint))
}

impl Worker {
    /// Takes what a client sends before it may work; says how much of it was used.
    pub(crate) fn entering(&mut self, client: &mut Client, bytes: &[u8]) -> Result<usize, End> {
        match &client.stage {
            Stage::Start => self.start(client, bytes),
            Stage::Proving(_) => self.prove(client, bytes),
            _ => Ok(0),
        }
    }

    fn start(&mut self, client: &mut Client, bytes: &[u8]) -> Result<usize, End> {
        if bytes.first() == Some(&0x16) && !client.link.has_tls() {
            self.tls(client, bytes)?;
            return Ok(bytes.len());
        }
        let Some((wish, used)) = startup(bytes)? else {
            return if bytes.len() > STARTUP_BYTES_MAX { Err(WireError::Startup("its length").into()) } else { Ok(0) };
        };
        match wish {
            Startup::Ssl if self.pooling.tls.is_some() && !client.link.has_tls() => {
                // Whatever came in clear before TLS was written by nobody knows whom.
                if bytes.len() > used {
                    return Err(WireError::Startup("bytes in clear behind a request for TLS").into());
                }
                client.write(b"S").map_err(|_| End::Bye)?;
                self.tls(client, b"")?;
            }
            Startup::Ssl | Startup::Gss => {
                if bytes.len() > used {
                    return Err(WireError::Startup("bytes behind a request for encryption").into());
                }
                client.write(b"N").map_err(|_| End::Bye)?;
            }
            Startup::Cancel { process, secret } => {
                let thread = usize::try_from(process >> 24).unwrap_or(usize::MAX);
                self.hub.post(thread, Mail::Cancel { process, secret });
                return Err(End::Bye);
            }
            Startup::Session { minor, parameters } => self.session(client, minor, parameters)?,
        }
        Ok(used)
    }

    fn tls(&mut self, client: &mut Client, early: &[u8]) -> Result<(), End> {
        let shown = self.pooling.tls.as_ref().ok_or(WireError::Startup("TLS, and this proxy has none"))?();
        client.certificate = (!shown.certificate.is_empty()).then(|| certificate_hash(&shown.certificate));
        let tls = rustls::ServerConnection::new(shown.config).map_err(|_| End::Bye)?;
        client.link.start_tls(tls.into(), early).map_err(|_| End::Bye)
    }

    fn session(&mut self, client: &mut Client, minor: u16, parameters: Vec<(String, String)>) -> Result<(), End> {
        // Not before its TLS is there: a client that asked for it can not read an error in clear.
        if !client.welcome {
            let error = crate::hold::full(self.options.max_connections);
            return Err(fatal(error.code, &error.message, &error.detail, &error.hint));
        }
        if self.pooling.require_tls && !client.near && !client.link.has_tls() {
            return Err(fatal(
                "28000",
                "connections from other hosts must use TLS",
                "",
                "Connect with sslmode=require.",
            ));
        }
        let value = |name: &str| parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        if value("user").is_none_or(str::is_empty) {
            return Err(fatal("28000", "no user name in the start-up packet", "", ""));
        }
        if value("replication").is_some_and(|wish| !["false", "off", "no", "0"].contains(&wish)) {
            let hint = "Connect to the server itself, or to a proxy in session mode.";
            return Err(fatal("0A000", "a pool does not carry replication", "", hint));
        }
        let mut out = Vec::new();
        let extensions: Vec<&str> =
            parameters.iter().map(|(name, _)| name.as_str()).filter(|name| name.starts_with("_pq_.")).collect();
        if minor > 0 || !extensions.is_empty() {
            reply::message(&mut out, b'v', |out| {
                out.extend(196_608_u32.to_be_bytes());
                out.extend(u32::try_from(extensions.len()).unwrap_or(0).to_be_bytes());
                extensions.iter().for_each(|name| reply::text(out, name));
            });
        }
        reply::message(&mut out, b'R', |out| {
            out.extend(10_u32.to_be_bytes());
            if client.certificate.is_some() {
                reply::text(out, PLUS);
            }
            reply::text(out, PLAIN);
            out.push(0);
        });
        client.write(&out).map_err(|_| End::Bye)?;
        client.stage = Stage::Proving(Box::new(Proving { parameters, exchange: Exchange::First }));
        Ok(())
    }

    fn prove(&mut self, client: &mut Client, bytes: &[u8]) -> Result<usize, End> {
        let Some(head) = header(bytes)? else { return Ok(0) };
        if head.tag != b'p' || head.length > STARTUP_BYTES_MAX {
            return Err(WireError::Tag(char::from(head.tag)).into());
        }
        let Some(whole) = bytes.get(..head.length) else { return Ok(0) };
        let Stage::Proving(proving) = &mut client.stage else { return Ok(0) };
        match std::mem::replace(&mut proving.exchange, Exchange::Broken) {
            Exchange::First => {
                let user = name_of(&proving.parameters);
                let Some(roles) = &self.rules.roles else {
                    let hint = "Connect again in a moment; \"mainstay status\" tells the state of the cluster.";
                    return Err(fatal(
                        "57P03",
                        "the proxy does not know yet who may log in",
                        "No agent has told it.",
                        hint,
                    ));
                };
                let known = roles.get(&user).map(|role| role.verifier.clone());
                let verifier = known.unwrap_or_else(|| Verifier::mock(&self.mock_secret, &user));
                let challenge = first(whole, verifier, client.certificate.as_deref()).ok_or_else(|| denied(&user))?;
                let (challenge, answer) = challenge;
                proving.exchange = Exchange::Last(Box::new(challenge));
                client.write(&authentication(11, &answer)).map_err(|_| End::Bye)?;
            }
            Exchange::Last(challenge) => {
                let parameters = std::mem::take(&mut proving.parameters);
                let user = name_of(&parameters);
                let (keys, last) = challenge.finish(&whole[5..]).map_err(|_| denied(&user))?;
                client.write(&authentication(12, &last)).map_err(|_| End::Bye)?;
                self.proven(client, &user, &parameters, keys)?;
            }
            Exchange::Broken => return Err(End::Bye),
        }
        Ok(head.length)
    }

    /// It is who it says.
    fn proven(
        &mut self,
        client: &mut Client,
        user: &str,
        parameters: &[(String, String)],
        keys: Keys,
    ) -> Result<(), End> {
        // A name without verifier has none to prove, whatever came.
        let role = self.rules.roles.as_ref().and_then(|roles| roles.get(user)).cloned().ok_or_else(|| denied(user))?;
        let asked = parameters.iter().find(|(name, value)| name == "database" && !value.is_empty());
        let database = asked.map_or(user, |(_, value)| value.as_str());
        client.since = self.now;
        client.secret = random().ok_or(End::Bye)?;
        if ADMIN.contains(&database) {
            if !(role.superuser || role.monitor) {
                let hint = "Log in as a superuser, or as a member of pg_monitor.";
                return Err(fatal("42501", "this role may not look at the proxy", "", hint));
            }
            client.stage = Stage::Admin { may_change: role.superuser, reloads: None };
            let mut out = Vec::new();
            reply::message(&mut out, b'R', |out| out.extend([0; 4]));
            for (name, value) in
                [("server_version", "15.0 (Mainstay)"), ("client_encoding", "UTF8"), ("DateStyle", "ISO")]
            {
                reply::parameter(&mut out, name, value);
            }
            self.key(client, &mut out);
            reply::ready(&mut out, b'I');
            return client.write(&out).map_err(|_| End::Bye);
        }
        let settings = Settings::of_startup(parameters).map_err(|name| {
            let text = format!("the parameter {name:?} can not be followed by a pool");
            fatal("08P01", &text, "", "Leave it out, or connect to a proxy in session mode.")
        })?;
        client.settings = self.settings.intern(settings);
        client.start_settings = Rc::clone(&client.settings);
        let key = Key { kind: client.kind, user: user.to_owned(), database: database.to_owned() };
        let index = self.pool_of(key).ok_or_else(|| {
            let most = format!("It keeps {} at most, one for each user, database and address.", self.pooling.pools);
            fatal("53300", "the proxy has no room for another pool", &most, "Connect again when others have left.")
        })?;
        client.pool = Some(index);
        crate::stats::add(self.stats.open(client.kind));
        client.stage = Stage::Entering;
        let pool = &mut self.pools[index];
        pool.clients += 1;
        pool.keys = Some(keys);
        match pool.greetings.get(&client.settings).cloned() {
            Some(greeting) => self.greet(client, &greeting),
            None => self.attach(client).map(|_| ()),
        }
    }

    /// The pool of this name, made if there is none. `None`: there are too many.
    fn pool_of(&mut self, key: Key) -> Option<usize> {
        if let Some(index) = self.by_key.get(&key) {
            return Some(*index);
        }
        if self.by_key.len() >= self.pooling.pools {
            let empty = self.pools.iter().position(|pool| !pool.gone && pool.is_empty())?;
            self.forget_pool(empty);
        }
        let pool = Pool::new(key.clone());
        let free = self.pools.iter_mut().enumerate().find(|(_, pool)| pool.gone);
        let index = match free {
            Some((index, place)) => {
                *place = pool;
                index
            }
            None => {
                self.pools.push(pool);
                self.pools.len() - 1
            }
        };
        self.by_key.insert(key, index);
        Some(index)
    }

    /// A pool that nobody is in: its place may be another's.
    fn forget_pool(&mut self, index: usize) {
        if let Some(pool) = self.pools.get_mut(index) {
            self.by_key.remove(&pool.key);
            *pool = Pool::new(pool.key.clone());
            pool.gone = true;
        }
    }

    /// Pools that have been empty for long are forgotten.
    pub(crate) fn tick_pools(&mut self) {
        for index in 0..self.pools.len() {
            if self.pools.get_mut(index).is_some_and(|pool| pool.is_over(self.now)) {
                self.forget_pool(index);
            }
        }
    }

    /// A server has taken the client's settings: how they read is the greeting.
    pub(crate) fn enter(&mut self, server: &mut Server, client: &mut Client) {
        let mut out = Vec::new();
        for (name, value) in &server.parameters {
            reply::parameter(&mut out, name, value);
        }
        let greeting: Rc<[u8]> = out.into();
        if let Some(pool) = client.pool.and_then(|index| self.pools.get_mut(index)) {
            pool.keep_greeting(&client.settings, Rc::clone(&greeting));
        }
        if self.greet(client, &greeting).is_err() {
            client.link.ending = true;
        }
        self.let_go.push(server.id);
    }

    fn greet(&mut self, client: &mut Client, greeting: &[u8]) -> Result<(), End> {
        let mut out = Vec::with_capacity(greeting.len() + 64);
        reply::message(&mut out, b'R', |out| out.extend([0; 4]));
        out.extend_from_slice(greeting);
        self.key(client, &mut out);
        reply::ready(&mut out, b'I');
        client.stage = Stage::Ready;
        client.since = self.now;
        crate::stats::add(self.stats.connected(client.kind));
        if client.kind == Kind::Read && self.rules.view.reads.is_empty() {
            crate::stats::add(&self.stats.read_on_primary);
        }
        client.write(&out).map_err(|_| End::Bye)
    }

    /// What the client shows to have its query cancelled: thread and place, and a secret.
    fn key(&self, client: &Client, out: &mut Vec<u8>) {
        let process = u32::try_from(self.thread).unwrap_or(0) << 24 | client.id.index & 0x00ff_ffff;
        reply::message(out, b'K', |out| {
            out.extend(process.to_be_bytes());
            out.extend(client.secret.to_be_bytes());
        });
    }

    /// A client gets an error from the proxy itself.
    pub(crate) fn note_error(&mut self, pool: Option<usize>, code: &'static str) {
        self.stats.changes.error(code, self.now);
        if let Some(pool) = pool.and_then(|index| self.pools.get_mut(index)) {
            pool.numbers.error(code.as_bytes());
        }
    }

    /// Tells a client why it can not stay, and lets it go.
    pub(crate) fn refuse(&mut self, client: &mut Client, error: &Reply) {
        self.stop_waiting(client);
        self.note_error(client.pool, error.code);
        let mut out = Vec::new();
        error.encode(&mut out);
        client.link.ending |= client.write(&out).is_err();
        client.stage = Stage::Closing;
        client.since = self.now;
        self.resume.push(client.id);
    }
}

fn name_of(parameters: &[(String, String)]) -> String {
    parameters.iter().find(|(name, _)| name == "user").map(|(_, value)| value.clone()).unwrap_or_default()
}

fn denied(user: &str) -> End {
    fatal("28P01", &format!("password authentication failed for user \"{user}\""), "", "")
}

fn first(whole: &[u8], verifier: Verifier, certificate: Option<&[u8]>) -> Option<(Challenge, String)> {
    let body = whole.get(5..)?;
    let end = body.iter().position(|byte| *byte == 0)?;
    let message = body.get(end + 5..)?;
    let said = u32::from_be_bytes(*body.get(end + 1..end + 5)?.first_chunk()?);
    if usize::try_from(said).ok()? != message.len() {
        return None;
    }
    let offered = certificate.is_some();
    let certificate = match &body[..end] {
        name if name == PLAIN.as_bytes() => None,
        name if name == PLUS.as_bytes() => Some(certificate?),
        _ => return None,
    };
    // A client that could bind the channel and believes that we can not has been lied to by somebody between.
    if offered && certificate.is_none() && message.starts_with(b"y") {
        return None;
    }
    Challenge::begin(verifier, message, certificate, &nonce()?).ok()
}

fn authentication(kind: u32, text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    reply::message(&mut out, b'R', |out| {
        out.extend(kind.to_be_bytes());
        out.extend(text.as_bytes());
    });
    out
}

/// A number that nobody can guess.
pub(crate) fn random() -> Option<u32> {
    use ring::rand::SecureRandom;
    let mut bytes = [0; 4];
    ring::rand::SystemRandom::new().fill(&mut bytes).ok()?;
    Some(u32::from_be_bytes(bytes))
}

/// What a channel is bound to.
fn certificate_hash(certificate: &[u8]) -> Arc<[u8]> {
    Arc::from(&sha256(certificate)[..])
}

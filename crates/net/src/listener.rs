//! The agent's one port: accepts, proves who calls, and hands frames to the channels' handlers or the stream to the API.
//!
//! Which caller may use which channel is decided here: Raft, Store, Mind and Ask belong to nodes, Route to everybody of the cluster.
//! Whatever breaks a rule costs its own connection only.

use crate::credentials::Credentials;
use crate::frame::{BODY_BYTES_MAX, Frame, Kind, body_max, read_frame};
use crate::http::HttpServe;
use crate::identity::parse_certificate;
use crate::link::{HANDSHAKE_TIMEOUT, Outbox, lock, queue};
use crate::mesh::PeerTable;
use crate::seldom::Seldom;
use crate::tls::{ALPN_FRAMES, caller_of};
use crate::{reason, socket};
use mainstay_ports::peer::{Caller, Channel, Handlers};
use rustls::pki_types::CertificateDer;
use std::collections::BTreeMap;
use std::io::{Error, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;

/// An accepted TLS stream.
pub type ServerStream = tokio_rustls::server::TlsStream<TcpStream>;

/// Connections at once, proven or not.
const CONNECTIONS_MAX: usize = 1024;
/// Connections that may be in their handshake at once.
const HANDSHAKES_MAX: usize = 64;
/// Connections at once from one caller.
const PER_CALLER_MAX: usize = 64;
/// Requests at once on one connection.
const REQUESTS_MAX: usize = 64;
/// A handler that has not answered by then is dropped (long polls are shorter).
const HANDLER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a proxy that does not come any more is remembered.
const REMEMBERED: Duration = Duration::from_secs(86_400);
/// How many are.
const PROXIES_MAX: usize = 256;
/// A refusal's text is cut here, in bytes.
const REFUSAL_BYTES_MAX: usize = 4096;

/// What every connection needs.
pub(crate) struct Listener {
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) handlers: Handlers,
    pub(crate) http: Option<Arc<dyn HttpServe>>,
    pub(crate) peers: Arc<PeerTable>,
    /// Open connections of each caller, by where they come from.
    pub(crate) callers: Mutex<BTreeMap<Caller, BTreeMap<IpAddr, usize>>>,
    pub(crate) proxies: Mutex<BTreeMap<String, Shown>>,
    /// Certificates that were refused are worth a line in the log, but not one for each attempt.
    pub(crate) refusals: Mutex<Seldom>,
}

/// What a proxy showed last.
pub(crate) struct Shown {
    /// Until when that certificate is valid, seconds since 1970.
    until: i64,
    at: Instant,
}

/// May this caller use this channel? What a proxy may ask there the handler says: two of the questions.
fn allowed(caller: &Caller, channel: Channel) -> bool {
    matches!((caller, channel), (Caller::Node(_), _) | (_, Channel::Route) | (Caller::Proxy(_), Channel::Ask))
}

/// When a certificate ends to be valid, in seconds since 1970.
fn ends(certificate: &CertificateDer<'_>) -> Option<i64> {
    Some(parse_certificate(certificate).ok()?.validity().not_after.timestamp())
}

fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

impl Listener {
    /// Accepts for ever; dropping the future ends every connection.
    pub(crate) async fn run(self: Arc<Self>, socket: TcpListener) {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = socket.accept() => match accepted {
                    Ok((stream, from)) if connections.len() < CONNECTIONS_MAX => {
                        let (listener, handshakes) = (self.clone(), handshakes.clone());
                        connections.spawn(async move {
                            if let Err(error) = listener.connection(stream, &handshakes).await {
                                listener.ended(&error, from);
                            }
                        });
                    }
                    Ok(_) => tracing::warn!(CONNECTIONS_MAX, "too many connections; one more was closed"),
                    Err(error) => {
                        // Out of file descriptors, mostly: give others time to close.
                        tracing::warn!(%error, "accept");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }

    /// Proxies that came within the last day, and until when what each showed last is valid. One whose certificate has ended can not come
    /// again, so it is remembered.
    pub(crate) fn proxies(&self) -> BTreeMap<String, i64> {
        let (mut proxies, open) = (lock(&self.proxies), lock(&self.callers));
        proxies
            .retain(|name, shown| shown.at.elapsed() < REMEMBERED || open.contains_key(&Caller::Proxy(name.clone())));
        proxies.iter().map(|(name, shown)| (name.clone(), shown.until)).collect()
    }

    /// From where this caller has connections open.
    pub(crate) fn places(&self, caller: &Caller) -> Vec<IpAddr> {
        lock(&self.callers).get(caller).map(|open| open.keys().copied().collect()).unwrap_or_default()
    }

    fn remember(&self, caller: &Caller, until: i64) {
        let Caller::Proxy(name) = caller else { return };
        let mut proxies = lock(&self.proxies);
        if proxies.len() < PROXIES_MAX || proxies.contains_key(name) {
            proxies.insert(name.clone(), Shown { until, at: Instant::now() });
        }
    }

    fn ended(&self, error: &Error, from: SocketAddr) {
        match reason::certificate(error) {
            Some(why) => {
                // The port changes with each attempt: the same host with the same trouble is one thing to say.
                if lock(&self.refusals).may_say(&format!("{} {why}", from.ip())) {
                    tracing::warn!(from = %from.ip(), %why, "a caller was refused");
                }
            }
            None => tracing::debug!(%error, "connection ended"),
        }
    }

    async fn connection(&self, tcp: TcpStream, handshakes: &Semaphore) -> std::io::Result<()> {
        socket::tune(&tcp);
        let from = tcp.peer_addr()?.ip();
        let handshake = async {
            let _permit = handshakes.acquire().await.map_err(Error::other)?;
            TlsAcceptor::from(self.credentials.server_config()).accept(tcp).await
        };
        let stream = timeout(HANDSHAKE_TIMEOUT, handshake).await.map_err(|_| Error::from(ErrorKind::TimedOut))??;
        let session = stream.get_ref().1;
        let shown = session.peer_certificates();
        let caller = caller_of(&self.credentials.identity().cluster, shown);
        let caller = caller.ok_or_else(|| invalid("the caller's certificate names nobody who may call"))?;
        let until = shown.and_then(|chain| chain.first()).and_then(ends).unwrap_or(i64::MAX);
        self.remember(&caller, until);
        if session.alpn_protocol() == Some(ALPN_FRAMES) {
            let _counted = self.count(&caller, from, true)?;
            return self.frames(stream, caller).await;
        }
        let _counted = self.count(&caller, from, false)?;
        if let Some(http) = &self.http {
            http.serve(stream, caller).await;
        }
        Ok(())
    }

    /// Counts a connection of a caller for as long as the returned value lives.
    fn count(&self, caller: &Caller, from: IpAddr, frames: bool) -> std::io::Result<Counted<'_>> {
        let mut callers = lock(&self.callers);
        let open = callers.entry(caller.clone()).or_default();
        if open.values().sum::<usize>() >= PER_CALLER_MAX {
            return Err(Error::other(format!("{caller:?} has {PER_CALLER_MAX} connections already")));
        }
        *open.entry(from).or_default() += 1;
        drop(callers);
        let peer = match caller {
            Caller::Node(node) if frames => self.peers.get(node),
            _ => None,
        };
        if let Some(peer) = &peer {
            peer.incoming_opened();
        }
        Ok(Counted { listener: self, caller: caller.clone(), from, frames })
    }

    async fn frames(&self, stream: ServerStream, caller: Caller) -> std::io::Result<()> {
        let (reader, mut writer) = tokio::io::split(stream);
        let mut hello = Vec::new();
        Frame::bare(Kind::Hello).put(&mut hello);
        let greet = async {
            writer.write_all(&hello).await?;
            writer.flush().await
        };
        timeout(HANDSHAKE_TIMEOUT, greet).await.map_err(|_| Error::from(ErrorKind::TimedOut))??;
        let (outbox, mut inbox) = queue();
        tokio::select! {
            ended = self.read(reader, &caller, Arc::new(outbox)) => ended,
            ended = inbox.write_to(writer) => ended,
        }
    }

    async fn read(&self, reader: impl AsyncRead + Unpin, caller: &Caller, outbox: Arc<Outbox>) -> std::io::Result<()> {
        let mut reader = BufReader::new(reader);
        let mut requests = JoinSet::new();
        loop {
            let frame = read_frame(&mut reader).await?;
            while requests.try_join_next().is_some() {}
            match frame.kind {
                Kind::Message if !allowed(caller, frame.channel) => {
                    return Err(invalid("a message on a channel that its sender may not use"));
                }
                Kind::Message => {
                    if let Some(handler) = self.handlers.get(&frame.channel) {
                        handler.message(caller, frame.body).await;
                    }
                }
                Kind::Request => self.request(frame, caller, &outbox, &mut requests)?,
                Kind::Ping => answer(&outbox, Frame::bare(Kind::Pong))?,
                Kind::Hello | Kind::Answer | Kind::Refused | Kind::Pong => {
                    return Err(invalid("a frame that only the accepting side may send"));
                }
            }
        }
    }

    fn request(
        &self,
        frame: Frame,
        caller: &Caller,
        outbox: &Arc<Outbox>,
        requests: &mut JoinSet<()>,
    ) -> std::io::Result<()> {
        let Frame { channel, id, body, .. } = frame;
        if !allowed(caller, channel) {
            return answer(outbox, refusal(channel, id, &format!("{caller:?} may not use the channel {channel:?}")));
        }
        let Some(handler) = self.handlers.get(&channel).cloned() else {
            return answer(outbox, refusal(channel, id, &format!("nobody answers on the channel {channel:?} here")));
        };
        if requests.len() >= REQUESTS_MAX {
            return answer(outbox, refusal(channel, id, &format!("{REQUESTS_MAX} requests are open already")));
        }
        let (caller, outbox) = (caller.clone(), outbox.clone());
        requests.spawn(async move {
            let reply = match timeout(HANDLER_TIMEOUT, handler.request(&caller, body)).await {
                Ok(Ok(body)) if body.len() <= body_max(channel) => Frame { kind: Kind::Answer, channel, id, body },
                Ok(Ok(body)) => {
                    refusal(channel, id, &format!("the answer is longer than allowed ({} bytes)", body.len()))
                }
                Ok(Err(text)) => refusal(channel, id, &text),
                Err(_) => refusal(channel, id, "no answer was found in time"),
            };
            if answer(&outbox, reply).is_err() {
                tracing::debug!(?caller, "an answer found no room in the queue");
            }
        });
        Ok(())
    }
}

fn answer(outbox: &Outbox, frame: Frame) -> std::io::Result<()> {
    if outbox.push(frame) { Ok(()) } else { Err(Error::other("the caller does not read its answers")) }
}

fn refusal(channel: Channel, id: u64, text: &str) -> Frame {
    const { assert!(REFUSAL_BYTES_MAX <= BODY_BYTES_MAX) };
    let body = text.as_bytes().iter().copied().take(REFUSAL_BYTES_MAX).collect();
    Frame { kind: Kind::Refused, channel, id, body }
}

/// One connection of a caller, counted.
struct Counted<'a> {
    listener: &'a Listener,
    caller: Caller,
    from: IpAddr,
    frames: bool,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let mut callers = lock(&self.listener.callers);
        let left = callers.get_mut(&self.caller).map_or(0, |open| {
            let here = open.entry(self.from).or_default();
            *here = here.saturating_sub(1);
            open.retain(|_, count| *count > 0);
            open.values().sum()
        });
        if left == 0 {
            callers.remove(&self.caller);
        }
        drop(callers);
        if let (Caller::Node(node), true, 0) = (&self.caller, self.frames, left)
            && let Some(peer) = self.listener.peers.get(node)
        {
            peer.incoming_closed();
        }
    }
}

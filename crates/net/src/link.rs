//! One connection as its caller sees it: opening, a bounded queue out, answers matched to requests.

use crate::frame::{Frame, Kind, body_max, read_frame};
use crate::{NetError, reason, socket};
use mainstay_ports::peer::{Channel, PeerError};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::collections::BTreeMap;
use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// A client's TLS stream.
pub(crate) type ClientStream = tokio_rustls::client::TlsStream<TcpStream>;

/// How long the TCP connection may take. Short: a peer that came back must not be waited for behind a lost SYN's long pause.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long TLS and the first frame may take, on both sides.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// A write that takes longer ends the connection.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// How many frames may wait in a queue.
pub(crate) const QUEUE_FRAMES_MAX: usize = 1024;
/// How many bytes may wait in a queue.
pub(crate) const QUEUE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How many requests may be open on one connection.
const PENDING_MAX: usize = 1024;
/// Frames that wait are written together up to about this size.
const BATCH_BYTES: usize = 64 * 1024;

/// A lock whose holder panicked still guards plain data that is whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens a connection and proves both sides.
pub(crate) async fn open_tls(address: SocketAddr, config: Arc<ClientConfig>) -> Result<ClientStream, NetError> {
    let failed = |reason: String| NetError::Connect { address, reason };
    let tcp = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let tcp = tcp.map_err(|_| failed("no answer within 1 s".to_owned()))?;
    let tcp = tcp.map_err(|error| failed(reason::connecting(&error)))?;
    socket::tune(&tcp);
    let name = ServerName::IpAddress(address.ip().into());
    let stream = timeout(HANDSHAKE_TIMEOUT, TlsConnector::from(config).connect(name, tcp)).await;
    stream
        .map_err(|_| failed("the TLS handshake did not end within 2 s".to_owned()))?
        .map_err(|error| failed(reason::calling(&error)))
}

/// Opens a connection for frames; returns once the other side has let us in.
pub(crate) async fn open_frames(
    address: SocketAddr,
    config: Arc<ClientConfig>,
) -> Result<(Outgoing, Driver<ClientStream>), NetError> {
    let mut stream = open_tls(address, config).await?;
    let failed = |reason: String| NetError::Connect { address, reason };
    match timeout(HANDSHAKE_TIMEOUT, read_frame(&mut stream)).await {
        Ok(Ok(Frame { kind: Kind::Hello, .. })) => Ok(pair(stream)),
        Ok(Ok(frame)) => Err(failed(format!("it began with {:?} instead of a greeting", frame.kind))),
        Ok(Err(error)) => Err(failed(format!("it did not let us in: {}", reason::calling(&error)))),
        Err(_) => Err(failed("it did not greet within 2 s".to_owned())),
    }
}

/// The near end of a bounded queue of frames.
pub(crate) struct Outbox {
    queue: mpsc::Sender<Frame>,
    bytes: Arc<AtomicUsize>,
}

/// The far end: what the writer takes from.
pub(crate) struct Inbox {
    queue: mpsc::Receiver<Frame>,
    bytes: Arc<AtomicUsize>,
}

/// A queue bounded in frames and in bytes.
pub(crate) fn queue() -> (Outbox, Inbox) {
    let (sender, receiver) = mpsc::channel(QUEUE_FRAMES_MAX);
    let bytes = Arc::new(AtomicUsize::new(0));
    (Outbox { queue: sender, bytes: bytes.clone() }, Inbox { queue: receiver, bytes })
}

impl Outbox {
    /// Puts a frame in if there is room and somebody takes.
    pub(crate) fn push(&self, frame: Frame) -> bool {
        let size = frame.body.len();
        if self.bytes.fetch_add(size, Ordering::Relaxed) + size > QUEUE_BYTES_MAX {
            self.bytes.fetch_sub(size, Ordering::Relaxed);
            return false;
        }
        let taken = self.queue.try_send(frame).is_ok();
        if !taken {
            self.bytes.fetch_sub(size, Ordering::Relaxed);
        }
        taken
    }
}

impl Inbox {
    /// Writes what comes until the queue's near end is gone or the connection breaks.
    pub(crate) async fn write_to(&mut self, mut writer: impl AsyncWrite + Unpin) -> std::io::Result<()> {
        while let Some(frame) = self.queue.recv().await {
            let mut buffer = Vec::with_capacity(frame.body.len() + 64);
            self.take(&frame, &mut buffer);
            while buffer.len() < BATCH_BYTES {
                let Ok(frame) = self.queue.try_recv() else { break };
                self.take(&frame, &mut buffer);
            }
            let write = async {
                writer.write_all(&buffer).await?;
                writer.flush().await
            };
            timeout(WRITE_TIMEOUT, write).await.map_err(|_| Error::from(ErrorKind::TimedOut))??;
        }
        Ok(())
    }

    fn take(&self, frame: &Frame, buffer: &mut Vec<u8>) {
        self.bytes.fetch_sub(frame.body.len(), Ordering::Relaxed);
        frame.put(buffer);
    }
}

type Reply = Result<Vec<u8>, String>;

/// Open requests; `None` once the connection has ended.
type Pending = Mutex<Option<BTreeMap<u64, oneshot::Sender<Reply>>>>;

/// What the two halves of a connection share.
struct Shared {
    pending: Pending,
    pong: Notify,
}

/// The caller's handle. Dropping it ends the connection.
pub(crate) struct Outgoing {
    outbox: Outbox,
    shared: Arc<Shared>,
    next_id: AtomicU64,
}

/// The task's part: reads and writes until the connection ends.
pub(crate) struct Driver<S> {
    stream: S,
    inbox: Inbox,
    shared: Arc<Shared>,
}

/// The handle and the task's part of a fresh connection.
pub(crate) fn pair<S: AsyncRead + AsyncWrite>(stream: S) -> (Outgoing, Driver<S>) {
    let (outbox, inbox) = queue();
    let shared = Arc::new(Shared { pending: Mutex::new(Some(BTreeMap::new())), pong: Notify::new() });
    (Outgoing { outbox, shared: shared.clone(), next_id: AtomicU64::new(1) }, Driver { stream, inbox, shared })
}

impl Outgoing {
    /// Best effort.
    pub(crate) fn send(&self, channel: Channel, body: Vec<u8>) -> bool {
        body.len() <= body_max(channel) && self.outbox.push(Frame { kind: Kind::Message, channel, id: 0, body })
    }

    /// Asks for a sign of life; [`Outgoing::pong`] completes when it comes.
    pub(crate) fn ping(&self) -> bool {
        self.outbox.push(Frame::bare(Kind::Ping))
    }

    /// Completes when a ping was answered.
    pub(crate) async fn pong(&self) {
        self.shared.pong.notified().await;
    }

    /// Puts a request in the queue. The returned future holds no borrow, so that no lock is kept while waiting.
    pub(crate) fn request(
        &self,
        peer: &str,
        channel: Channel,
        body: Vec<u8>,
    ) -> Result<impl Future<Output = Result<Vec<u8>, PeerError>> + use<>, PeerError> {
        if body.len() > body_max(channel) {
            let text = format!("a request of {} bytes is longer than {}", body.len(), body_max(channel));
            return Err(PeerError::Refused(text));
        }
        let not_sent = || PeerError::NotConnected(peer.to_owned());
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        {
            let mut pending = lock(&self.shared.pending);
            let open = pending.as_mut().ok_or_else(not_sent)?;
            if open.len() >= PENDING_MAX {
                return Err(not_sent());
            }
            open.insert(id, sender);
        }
        let entry = Entry { id, shared: self.shared.clone() };
        if !self.outbox.push(Frame { kind: Kind::Request, channel, id, body }) {
            return Err(not_sent());
        }
        let peer = peer.to_owned();
        Ok(async move {
            let _entry = entry;
            match receiver.await {
                Ok(Ok(body)) => Ok(body),
                Ok(Err(text)) => Err(PeerError::Refused(text)),
                Err(_) => Err(PeerError::NoAnswer(peer)),
            }
        })
    }
}

/// Takes a request off the list when its caller no longer waits.
struct Entry {
    id: u64,
    shared: Arc<Shared>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(open) = lock(&self.shared.pending).as_mut() {
            open.remove(&self.id);
        }
    }
}

/// Waits for an answer for at most `limit`, queueing included.
pub(crate) async fn answer_within(
    peer: &str,
    limit: Duration,
    answer: impl Future<Output = Result<Vec<u8>, PeerError>>,
) -> Result<Vec<u8>, PeerError> {
    timeout(limit, answer).await.unwrap_or_else(|_| Err(PeerError::NoAnswer(peer.to_owned())))
}

impl<S: AsyncRead + AsyncWrite> Driver<S> {
    /// Runs the connection; returns why it ended. Every open request then ends too.
    pub(crate) async fn run(self) -> Error {
        let Driver { stream, mut inbox, shared } = self;
        let (reader, writer) = tokio::io::split(stream);
        let why = tokio::select! {
            why = shared.read_from(reader) => why,
            why = inbox.write_to(writer) => why.err().unwrap_or_else(|| Error::other("closed on this side")),
        };
        drop(inbox);
        lock(&shared.pending).take();
        why
    }
}

impl Shared {
    async fn read_from(&self, reader: impl AsyncRead + Unpin) -> Error {
        let mut reader = BufReader::new(reader);
        loop {
            let frame = match read_frame(&mut reader).await {
                Ok(frame) => frame,
                Err(error) => return error,
            };
            match frame.kind {
                Kind::Answer => self.answered(frame.id, Ok(frame.body)),
                Kind::Refused => self.answered(frame.id, Err(String::from_utf8_lossy(&frame.body).into_owned())),
                Kind::Pong => self.pong.notify_one(),
                Kind::Hello | Kind::Message | Kind::Request | Kind::Ping => {
                    return Error::new(ErrorKind::InvalidData, "a frame that only a caller may send");
                }
            }
        }
    }

    fn answered(&self, id: u64, reply: Reply) {
        let waiting = lock(&self.pending).as_mut().and_then(|open| open.remove(&id));
        if let Some(waiting) = waiting {
            // The caller may have given up in this very moment.
            let _ = waiting.send(reply);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_queue_that_nobody_empties_stays_bounded() {
        let (near, _far) = tokio::io::duplex(64);
        let (outgoing, _driver) = pair(near);
        let sent = (0..5000).filter(|_| outgoing.send(Channel::Mind, vec![0; 10])).count();
        assert_eq!(sent, QUEUE_FRAMES_MAX);
        let (near, _far) = tokio::io::duplex(64);
        let (outgoing, _driver) = pair(near);
        let sent = (0..100).filter(|_| outgoing.send(Channel::Mind, vec![0; 1 << 20])).count();
        assert_eq!(sent, QUEUE_BYTES_MAX >> 20);
        assert!(!outgoing.send(Channel::Mind, vec![0; (1 << 20) + 1]), "too long for its channel");
    }

    #[tokio::test]
    async fn requests_end_when_the_connection_does() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let (outgoing, driver) = pair(near);
        let answer = outgoing.request("db2", Channel::Ask, b"?".to_vec()).unwrap();
        let running = tokio::spawn(driver.run());
        drop(far);
        assert_eq!(answer.await, Err(PeerError::NoAnswer("db2".to_owned())));
        running.await.unwrap();
        let late = outgoing.request("db2", Channel::Ask, b"?".to_vec());
        assert!(matches!(late.err(), Some(PeerError::NotConnected(_))));
    }

    #[tokio::test]
    async fn a_request_nobody_waits_for_leaves_nothing_behind() {
        let (near, _far) = tokio::io::duplex(1 << 16);
        let (outgoing, _driver) = pair(near);
        for _ in 0..3 * PENDING_MAX / 2 {
            let answer = outgoing.request("db2", Channel::Ask, Vec::new());
            let Ok(answer) = answer else { break };
            let ended = answer_within("db2", Duration::ZERO, answer).await;
            assert_eq!(ended, Err(PeerError::NoAnswer("db2".to_owned())));
        }
        assert_eq!(lock(&outgoing.shared.pending).as_ref().unwrap().len(), 0);
    }
}

//! `Peers` over TCP on loopback, without TLS: for members that are processes of their own.
//!
//! One connection per direction: whoever dials sends messages and requests, the answers come back on it.
//! Frame: length u32 │ kind u8 │ channel u8 │ number u64 │ body.

use async_trait::async_trait;
use mainstay_model::NodeId;
use mainstay_ports::peer::{Caller, Channel, Handlers, LinkChange, PeerError, Peers};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, mpsc, oneshot};

const MESSAGE: u8 = 0;
const REQUEST: u8 = 1;
const ANSWER: u8 = 2;
const REFUSAL: u8 = 3;
const HELLO: u8 = 4;
const CHANNELS: [Channel; 5] = [Channel::Raft, Channel::Store, Channel::Mind, Channel::Route, Channel::Ask];

struct Packet {
    kind: u8,
    channel: u8,
    number: u64,
    body: Vec<u8>,
}

async fn write(stream: &mut OwnedWriteHalf, packet: &Packet) -> std::io::Result<()> {
    let length = u32::try_from(packet.body.len() + 10).unwrap();
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend([packet.kind, packet.channel]);
    bytes.extend(packet.number.to_be_bytes());
    bytes.extend(&packet.body);
    stream.write_all(&bytes).await
}

async fn read(stream: &mut OwnedReadHalf) -> std::io::Result<Packet> {
    let length = stream.read_u32().await?;
    let (kind, channel, number) = (stream.read_u8().await?, stream.read_u8().await?, stream.read_u64().await?);
    let mut body = vec![0; length as usize - 10];
    stream.read_exact(&mut body).await?;
    Ok(Packet { kind, channel, number, body })
}

type Waiting = Mutex<BTreeMap<u64, oneshot::Sender<Result<Vec<u8>, PeerError>>>>;

struct Line {
    queue: mpsc::Sender<Packet>,
    up: AtomicBool,
    waiting: Waiting,
}

pub struct TcpPeers {
    me: String,
    lines: BTreeMap<NodeId, Arc<Line>>,
    links: broadcast::Sender<LinkChange>,
    numbers: AtomicU64,
}

impl TcpPeers {
    /// Dials every other address, again and again.
    pub fn dial(me: &str, addresses: &BTreeMap<NodeId, SocketAddr>) -> Arc<Self> {
        let links = broadcast::channel(64).0;
        let mut lines = BTreeMap::new();
        for (node, address) in addresses.iter().filter(|(node, _)| node.as_str() != me) {
            let (queue, jobs) = mpsc::channel(4096);
            let line = Arc::new(Line { queue, up: AtomicBool::new(false), waiting: Mutex::default() });
            tokio::spawn(keep_line(me.to_owned(), node.clone(), *address, Arc::clone(&line), jobs, links.clone()));
            lines.insert(node.clone(), line);
        }
        Arc::new(Self { me: me.to_owned(), lines, links, numbers: AtomicU64::new(0) })
    }
}

async fn keep_line(
    me: String,
    node: NodeId,
    address: SocketAddr,
    line: Arc<Line>,
    mut jobs: mpsc::Receiver<Packet>,
    links: broadcast::Sender<LinkChange>,
) {
    loop {
        if let Ok(stream) = TcpStream::connect(address).await {
            stream.set_nodelay(true).unwrap();
            let (reader, mut writer) = stream.into_split();
            let hello = Packet { kind: HELLO, channel: 0, number: 0, body: me.clone().into_bytes() };
            if write(&mut writer, &hello).await.is_ok() {
                line.up.store(true, Ordering::SeqCst);
                let _ = links.send(LinkChange::now(node.clone(), true));
                tokio::select! {
                    () = take_answers(reader, &line) => {}
                    () = put_jobs(writer, &mut jobs) => {}
                }
                line.up.store(false, Ordering::SeqCst);
                let _ = links.send(LinkChange::now(node.clone(), false));
            }
        }
        while jobs.try_recv().is_ok() {}
        line.waiting.lock().unwrap().clear();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn take_answers(mut reader: OwnedReadHalf, line: &Line) {
    while let Ok(packet) = read(&mut reader).await {
        let waiting = line.waiting.lock().unwrap().remove(&packet.number);
        if let Some(waiting) = waiting {
            let text = || String::from_utf8_lossy(&packet.body).into_owned();
            let answer = if packet.kind == ANSWER { Ok(packet.body) } else { Err(PeerError::Refused(text())) };
            let _ = waiting.send(answer);
        }
    }
}

async fn put_jobs(mut writer: OwnedWriteHalf, jobs: &mut mpsc::Receiver<Packet>) {
    while let Some(packet) = jobs.recv().await {
        if write(&mut writer, &packet).await.is_err() {
            return;
        }
    }
}

fn code(channel: Channel) -> u8 {
    u8::try_from(CHANNELS.iter().position(|known| *known == channel).unwrap()).unwrap()
}

#[async_trait]
impl Peers for TcpPeers {
    fn send(&self, to: &NodeId, channel: Channel, body: Vec<u8>) {
        if let Some(line) = self.lines.get(to).filter(|line| line.up.load(Ordering::SeqCst)) {
            let _ = line.queue.try_send(Packet { kind: MESSAGE, channel: code(channel), number: 0, body });
        }
    }

    async fn request(
        &self,
        to: &NodeId,
        channel: Channel,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, PeerError> {
        let not_connected = || PeerError::NotConnected(to.to_string());
        let line = self.lines.get(to).filter(|line| line.up.load(Ordering::SeqCst)).ok_or_else(not_connected)?;
        let number = self.numbers.fetch_add(1, Ordering::SeqCst);
        let (sender, answer) = oneshot::channel();
        line.waiting.lock().unwrap().insert(number, sender);
        let packet = Packet { kind: REQUEST, channel: code(channel), number, body };
        line.queue.try_send(packet).map_err(|_| not_connected())?;
        let answer = tokio::time::timeout(timeout, answer).await;
        line.waiting.lock().unwrap().remove(&number);
        match answer {
            Ok(Ok(answer)) => answer,
            _ => Err(PeerError::NoAnswer(to.to_string())),
        }
    }

    fn links(&self) -> broadcast::Receiver<LinkChange> {
        self.links.subscribe()
    }

    fn connected(&self, node: &NodeId) -> bool {
        self.lines.get(node).is_some_and(|line| line.up.load(Ordering::SeqCst))
    }
}

/// Answers whoever dials this address.
pub async fn listen(address: SocketAddr, handlers: Handlers) {
    let listener = TcpListener::bind(address).await.unwrap();
    let handlers = Arc::new(handlers);
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        tokio::spawn(answer(stream, Arc::clone(&handlers)));
    }
}

async fn answer(stream: TcpStream, handlers: Arc<Handlers>) {
    let (mut reader, mut writer) = stream.into_split();
    let Ok(hello) = read(&mut reader).await else { return };
    let name = String::from_utf8(hello.body).unwrap();
    let caller = NodeId::new(name.clone()).map_or(Caller::Admin(name), Caller::Node);
    let (answers, mut queue) = mpsc::channel::<Packet>(4096);
    tokio::spawn(async move {
        while let Some(packet) = queue.recv().await {
            if write(&mut writer, &packet).await.is_err() {
                return;
            }
        }
    });
    while let Ok(packet) = read(&mut reader).await {
        let Some(handler) = handlers.get(&CHANNELS[usize::from(packet.channel)]).cloned() else { continue };
        if packet.kind == MESSAGE {
            handler.message(&caller, packet.body).await;
            continue;
        }
        let (caller, answers) = (caller.clone(), answers.clone());
        tokio::spawn(async move {
            let (kind, body) = match handler.request(&caller, packet.body).await {
                Ok(body) => (ANSWER, body),
                Err(why) => (REFUSAL, why.into_bytes()),
            };
            let _ = answers.send(Packet { kind, channel: packet.channel, number: packet.number, body }).await;
        });
    }
}

//! A store of objects that speaks as S3 or as Azure does, over real connections, and fails on demand: errors, answers that are lost, cut off, slow,
//! of something in between, or of another question. It is strict: what is not signed as it must be is refused. As S3 it can keep versions, and lock them.

mod azure;
mod s3;
mod versions;

pub(crate) use azure::TOKEN;
pub(crate) use versions::Attack;

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How it speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    S3,
    Azure,
}

impl Dialect {
    /// An error; codes are named as S3 has them.
    fn error(self, status: u16, code: &str) -> Answer {
        match self {
            Dialect::S3 => s3::error(status, code),
            Dialect::Azure => azure::error(status, code),
        }
    }
}

/// What goes wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// Nothing is done, and this is answered.
    Status(u16, &'static str),
    /// Nothing is done, and the connection ends.
    Lost,
    /// It is done, and the answer does not arrive.
    AnswerLost,
    /// Half of the answer's body arrives.
    Cut,
    /// It takes so long.
    Slow(Duration),
    /// Something in between answers, and says that there is no such page.
    Between,
    /// The answer to another question.
    Swapped,
}

#[derive(Clone, Default)]
struct Object {
    bytes: Vec<u8>,
    mark: String,
    /// It can not be removed before, in milliseconds since 1970.
    until: Option<i64>,
}

struct State {
    dialect: Dialect,
    objects: BTreeMap<String, Object>,
    /// Every version of each, if they are kept.
    versions: Option<versions::Versions>,
    /// What was begun in S3's way, by its name.
    uploads: BTreeMap<String, s3::Upload>,
    /// Blocks that are not joined yet, by the object's name and their own.
    blocks: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    faults: VecDeque<Fault>,
    /// Every so many requests one of these, in turn.
    storm: Option<(usize, Vec<Fault>)>,
    /// No bytes more than these.
    room: Option<usize>,
    /// Parts are joined whatever the condition says.
    joins_blindly: bool,
    counted: usize,
}

/// A server that ends with it.
pub(crate) struct Server {
    pub(crate) port: u16,
    pub(crate) dialect: Dialect,
    state: Arc<Mutex<State>>,
    keeps: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
    pub(crate) requests: Arc<AtomicUsize>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Wakes whoever waits for a connection.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

fn answer(status: u16, body: impl Into<Vec<u8>>) -> Answer {
    Answer { status, headers: Vec::new(), body: body.into() }
}

fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.bytes());
    while let Some(byte) = rest.next() {
        bytes.push(if byte == b'%' {
            let pair = [rest.next().unwrap(), rest.next().unwrap()];
            u8::from_str_radix(std::str::from_utf8(&pair).unwrap(), 16).unwrap()
        } else {
            byte
        });
    }
    String::from_utf8(bytes).unwrap()
}

fn read(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    if stream.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let query =
        pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(n, v)| (n.to_owned(), decoded(v))).collect();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some(Request { method, path: decoded(path), query, headers, body })
}

fn write(stream: &mut TcpStream, answer: &Answer, head: bool, cut: bool) -> std::io::Result<()> {
    let mut text = format!("HTTP/1.1 {} x\r\ncontent-length: {}\r\n", answer.status, answer.body.len());
    if head {
        let size = answer.headers.iter().find(|(name, _)| *name == "x-size").map_or("0", |(_, size)| size);
        text = format!("HTTP/1.1 {} x\r\ncontent-length: {size}\r\n", answer.status);
    }
    for (name, value) in answer.headers.iter().filter(|(name, _)| *name != "x-size") {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    stream.write_all(text.as_bytes())?;
    let body = if head { &[] } else { answer.body.as_slice() };
    let body = if cut { &body[..body.len() / 2] } else { body };
    stream.write_all(body)
}

impl State {
    fn fault(&mut self) -> Option<Fault> {
        self.counted += 1;
        if let Some(fault) = self.faults.pop_front() {
            return Some(fault);
        }
        let (every, faults) = self.storm.as_ref()?;
        self.counted.is_multiple_of(*every).then(|| faults[(self.counted / every) % faults.len()].clone())
    }

    fn store(&mut self, name: &str, object: Object, only_new: bool) -> Answer {
        if only_new && self.objects.contains_key(name) {
            return match self.dialect {
                Dialect::S3 => self.dialect.error(412, "PreconditionFailed"),
                Dialect::Azure => self.dialect.error(409, "BlobAlreadyExists"),
            };
        }
        let held: usize = self.objects.values().map(|object| object.bytes.len()).sum();
        if self.room.is_some_and(|room| held + object.bytes.len() > room) {
            return self.dialect.error(507, "XMinioStorageFull");
        }
        if let Some(versions) = &mut self.versions {
            versions.add(name, Some(object.clone()));
        }
        self.objects.insert(name.to_owned(), object);
        let status = if self.dialect == Dialect::S3 { 200 } else { 201 };
        Answer { headers: vec![("etag", "\"tag\"".into())], ..answer(status, "") }
    }

    fn get(&self, name: &str, request: &Request) -> Answer {
        match self.objects.get(name) {
            Some(object) => self.show(object, request),
            None => self.dialect.error(404, "NoSuchKey"),
        }
    }

    fn show(&self, object: &Object, request: &Request) -> Answer {
        let size = object.bytes.len();
        let mark = match self.dialect {
            Dialect::S3 => s3::MARK,
            Dialect::Azure => azure::MARK,
        };
        let mut headers = vec![("x-size", size.to_string()), (mark, object.mark.clone())];
        headers.extend(object.until.map(|until| (s3::LOCKED_UNTIL, versions::written(until))));
        let Some(range) = request.headers.get("range") else {
            return Answer { status: 200, headers, body: object.bytes.clone() };
        };
        let (from, to) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
        if from >= size {
            return self.dialect.error(416, "InvalidRange");
        }
        let end = (to + 1).min(size);
        let headers = vec![("content-range", format!("bytes {from}-{}/{size}", end - 1))];
        Answer { status: 206, headers, body: object.bytes[from..end].to_vec() }
    }
}

impl Server {
    pub(crate) fn start(dialect: Dialect) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Server {
            port,
            dialect,
            state: Arc::new(Mutex::new(State {
                dialect,
                objects: BTreeMap::new(),
                versions: None,
                uploads: BTreeMap::new(),
                blocks: BTreeMap::new(),
                faults: VecDeque::new(),
                storm: None,
                room: None,
                joins_blindly: false,
                counted: 0,
            })),
            keeps: Arc::new(AtomicBool::new(true)),
            over: Arc::default(),
            requests: Arc::default(),
        };
        let (state, keeps, over, requests) =
            (server.state.clone(), server.keeps.clone(), server.over.clone(), server.requests.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let (state, keeps, requests) = (state.clone(), keeps.clone(), requests.clone());
                std::thread::spawn(move || serve(stream.unwrap(), &state, &keeps, &requests));
            }
        });
        server
    }

    /// The next requests meet these.
    pub(crate) fn faults(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state.lock().unwrap().faults = faults.into_iter().collect();
    }

    /// So many requests go well, then one meets this.
    pub(crate) fn faults_after(&self, count: usize, fault: Fault) {
        self.faults(std::iter::repeat_n(Fault::None, count).chain([fault]));
    }

    /// From now on, every so many requests one of these.
    pub(crate) fn storm(&self, every: usize, faults: &[Fault]) {
        self.state.lock().unwrap().storm = (!faults.is_empty()).then(|| (every, faults.to_vec()));
    }

    /// It takes so many bytes, and no more.
    pub(crate) fn room(&self, bytes: Option<usize>) {
        self.state.lock().unwrap().room = bytes;
    }

    /// A store that does not know the condition.
    pub(crate) fn ignore_conditions(&self) {
        self.keeps.store(false, Ordering::SeqCst);
    }

    /// A store that knows the condition for whole objects only.
    pub(crate) fn join_blindly(&self) {
        self.state.lock().unwrap().joins_blindly = true;
    }

    /// Changes an object behind everybody's back.
    pub(crate) fn tamper(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        change(&mut self.state.lock().unwrap().objects.get_mut(name).unwrap().bytes);
    }

    /// Uploads that were begun and neither ended nor given up; names that have blocks which were not joined.
    pub(crate) fn unfinished(&self) -> usize {
        let state = self.state.lock().unwrap();
        state.uploads.len() + state.blocks.len()
    }

    /// Its address, with keys in a file of this directory.
    pub(crate) fn address(&self, dir: &std::path::Path, prefix: &str, timeout: u64) -> std::path::PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let keys = dir.join("keys");
        let (text, scheme, account) = match self.dialect {
            Dialect::S3 => (s3::KEYS.to_owned(), "s3", String::new()),
            Dialect::Azure => {
                (format!("azure_storage_key = {}\n", azure::KEY), "azure", format!("&account={}", azure::ACCOUNT))
            }
        };
        std::fs::write(&keys, text).unwrap();
        std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o600)).unwrap();
        let (port, keys) = (self.port, keys.display());
        format!(
            "{scheme}://vault/{prefix}?endpoint=http://127.0.0.1:{port}&credentials={keys}&timeout={timeout}{account}"
        )
        .into()
    }
}

fn serve(stream: TcpStream, state: &Mutex<State>, keeps: &AtomicBool, requests: &AtomicUsize) {
    let mut writer = stream.try_clone().unwrap();
    let mut reader = BufReader::new(stream);
    while let Some(request) = read(&mut reader) {
        requests.fetch_add(1, Ordering::SeqCst);
        let (fault, dialect) = {
            let mut state = state.lock().unwrap();
            (state.fault(), state.dialect)
        };
        let mut said = match &fault {
            Some(Fault::Status(status, code)) => dialect.error(*status, code),
            Some(Fault::Between) => answer(404, "<html>There is no such page</html>"),
            Some(Fault::Lost) => return,
            _ => {
                let mut state = state.lock().unwrap();
                let keeps = keeps.load(Ordering::SeqCst);
                match dialect {
                    Dialect::S3 => s3::refused(&request).unwrap_or_else(|| s3::act(&mut state, &request, keeps)),
                    Dialect::Azure => {
                        azure::refused(&request).unwrap_or_else(|| azure::act(&mut state, &request, keeps))
                    }
                }
            }
        };
        match fault {
            Some(Fault::AnswerLost) => return,
            Some(Fault::Slow(time)) => std::thread::sleep(time),
            // Where it can be told: ranges name themselves.
            Some(Fault::Swapped) if said.status == 206 => {
                said.headers = vec![("content-range", format!("bytes 1-{}/9999999", said.body.len()))];
            }
            _ => {}
        }
        let cut = fault == Some(Fault::Cut) && request.method == "GET" && said.body.len() > 1;
        if write(&mut writer, &said, request.method == "HEAD", cut).is_err() || cut {
            return;
        }
    }
}

//! Copies files into packs: by parts of at most four megabytes, spread over threads, each with a pack of its own and fixed buffers.
//!
//! A part is all that a thread takes at once, so a single large file keeps all threads busy, and thousands of small ones share parts.

use crate::Header;
use crate::objects::{Committed, Key};
use crate::postgres::fetch::{Packs, fingerprints_of};
use crate::postgres::manifest::{Extent, Manifest, NO_FILE, Pack, Under};
use crate::postgres::pages::{self, PAGE};
use crate::postgres::walk::{CONTROL, Tree, first_page};
use crate::repository::{Repository, VaultError};
use crate::seal::{CHUNK, Sealer, compressor};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};
use zstd::bulk::Compressor;

/// A pack is closed when it is longer.
const PACK: u64 = 64 << 20;
/// Times that a page is read again whose checksum does not hold.
const REREADS: u32 = 5;

/// A part of a file: its number, where, how long.
type Piece = (u32, u64, u32);

/// What is taken at once; and which extent of the base holds the same pieces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Part {
    pieces: Vec<Piece>,
    under: Option<usize>,
}

/// What a copy is told.
pub(crate) struct Job<'a> {
    pub(crate) repository: &'a Repository,
    pub(crate) data: &'a Path,
    /// Packs lie below it.
    pub(crate) prefix: &'a str,
    pub(crate) tree: &'a Tree,
    pub(crate) checksums: bool,
    /// The full backup on top of which this one is made.
    pub(crate) base: Option<&'a Manifest>,
    /// Pages changed since then are mended by the log, however they look.
    pub(crate) start: u64,
    pub(crate) threads: usize,
    /// At most so many bytes a second are read; 0: no limit.
    pub(crate) rate: &'a AtomicU64,
    /// Bytes read up to now, for whoever shows progress.
    pub(crate) progress: &'a AtomicU64,
    /// Set: stop.
    pub(crate) stop: &'a AtomicBool,
}

/// What a copy gives.
#[derive(Debug, Default)]
pub(crate) struct Copied {
    pub(crate) packs: Vec<Pack>,
    pub(crate) extents: Vec<Extent>,
    pub(crate) corrupt: Vec<(String, u32)>,
    /// Files that were there at all, and how far they were read.
    pub(crate) sizes: Vec<Option<u64>>,
}

/// How long a file's piece at this place is.
fn piece_len(size: u64, at: u64) -> u32 {
    u32::try_from(size.saturating_sub(at).min(CHUNK as u64)).unwrap_or(0)
}

/// The base's own pieces, where the file has them still; what it has not is passed over.
fn parts_of_base(tree: &Tree, base: &Manifest, taken: &mut BTreeSet<(u32, u64)>) -> Vec<Part> {
    let numbered = tree.files.iter().enumerate();
    let files: BTreeMap<&str, (u32, u64)> = numbered
        .map(|(number, (path, _, size))| (path.as_str(), (u32::try_from(number).unwrap_or(NO_FILE), *size)))
        .collect();
    let mut all = Vec::new();
    for (number, extent) in base.extents.iter().enumerate() {
        let pieces = extent.pieces.iter().map(|(file, at, len)| {
            let path = base.files.get(*file as usize).map_or("", |file| file.path.as_str());
            let there =
                files.get(path).filter(|(_, size)| path != CONTROL && *len > 0 && piece_len(*size, *at) == *len);
            there.map_or((NO_FILE, 0, *len), |(file, _)| (*file, *at, *len))
        });
        let pieces: Vec<Piece> = pieces.collect();
        let ours = pieces.iter().filter(|piece| piece.0 != NO_FILE);
        let before = taken.len();
        taken.extend(ours.map(|(file, at, _)| (*file, *at)));
        if taken.len() > before {
            all.push(Part { pieces, under: Some(number) });
        }
    }
    all
}

/// All parts, in the order in which they are taken. The control file is none of them.
fn parts(tree: &Tree, base: Option<&Manifest>) -> Vec<Part> {
    let mut taken = BTreeSet::new();
    let mut all = base.map_or_else(Vec::new, |base| parts_of_base(tree, base, &mut taken));
    let (mut small, mut room) = (Vec::new(), CHUNK as u64);
    for (number, (path, _, size)) in tree.files.iter().enumerate() {
        let number = u32::try_from(number).unwrap_or(NO_FILE);
        if path == CONTROL {
            continue;
        }
        let mut at = 0;
        loop {
            let len = piece_len(*size, at);
            if taken.contains(&(number, at)) || (len == 0 && at > 0) {
                // Nothing left to do at this place.
            } else if len as usize == CHUNK {
                all.push(Part { pieces: vec![(number, at, len)], under: None });
            } else {
                if u64::from(len) > room {
                    all.push(Part { pieces: std::mem::take(&mut small), under: None });
                    room = CHUNK as u64;
                }
                small.push((number, at, len));
                room -= u64::from(len);
            }
            at += CHUNK as u64;
            if at >= *size {
                break;
            }
        }
    }
    if !small.is_empty() {
        all.push(Part { pieces: small, under: None });
    }
    all
}

/// Reads until the end of the part or of the file. `None`: the file is gone.
fn read_part(path: &Path, at: u64, into: &mut [u8]) -> Result<Option<usize>, VaultError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(VaultError::file(path, error)),
    };
    let mut read = 0;
    while let Some(rest) = into.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + read as u64) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(VaultError::file(path, error)),
        }
    }
    Ok(Some(read))
}

/// Where packs go that are full: another thread makes them durable while the next ones are filled.
type Closing = SyncSender<(u32, Sealer)>;

struct Worker<'a> {
    job: &'a Job<'a>,
    packs: &'a Packs<'a>,
    closing: Closing,
    pack: Option<(u32, Sealer)>,
    zstd: Compressor<'static>,
    /// As long as a chunk; what was read last begins it.
    buffer: Vec<u8>,
    filled: usize,
    map: Vec<u8>,
    done: Copied,
}

impl Worker<'_> {
    /// Reads a page again until it is whole or known to be damaged: a page that is being written is not.
    fn mend(&mut self, path: &Path, name: &str, at: u64, offset: usize, block: u32) -> Result<(), VaultError> {
        for _ in 0..REREADS {
            let Some(page) = self.buffer.get_mut(offset..offset + PAGE) else { return Ok(()) };
            if pages::good(page, block) || pages::lsn(page) >= self.job.start {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(2));
            let mut again = [0; PAGE];
            match read_part(path, at, &mut again)? {
                Some(PAGE) => page.copy_from_slice(&again),
                // Cut off meanwhile: the log knows.
                _ => return Ok(()),
            }
        }
        let page = self.buffer.get(offset..offset + PAGE).unwrap_or_default();
        if !pages::good(page, block) && pages::lsn(page) < self.job.start {
            self.done.corrupt.push((name.to_owned(), block));
        }
        Ok(())
    }

    fn read(&mut self, pieces: &[Piece], under: &[u8]) -> Result<Vec<Piece>, VaultError> {
        self.filled = 0;
        self.map.clear();
        let mut found = Vec::new();
        for (number, at, len) in pieces {
            if *number == NO_FILE {
                // Passed over: as the base has it.
                let end = self.filled + *len as usize;
                self.buffer.get_mut(self.filled..end).ok_or_else(too_long)?.fill(0);
                self.filled = end;
                let (from, blocks) = (self.map.len(), (*len as usize).div_ceil(PAGE) * 8);
                self.map.extend_from_slice(under.get(from..from + blocks).unwrap_or_default());
                found.push((NO_FILE, 0, *len));
                continue;
            }
            let Some((name, _, _)) = self.job.tree.files.get(*number as usize) else { continue };
            let (path, from) = (self.job.data.join(name), self.filled);
            let into = self.buffer.get_mut(from..from + *len as usize).ok_or_else(too_long)?;
            let Some(read) = read_part(&path, *at, into)? else { continue };
            self.filled = from + read;
            if let Some(first) = first_page(name).filter(|_| self.job.checksums) {
                for page in 0..read / PAGE {
                    let offset = from + page * PAGE;
                    let place = at + (page * PAGE) as u64;
                    let block = first + u32::try_from(place / PAGE as u64).unwrap_or(0);
                    let good = self.buffer.get(offset..offset + PAGE).is_none_or(|bytes| pages::good(bytes, block));
                    if !good {
                        self.mend(&path, name, place, offset, block)?;
                    }
                }
            }
            pages::fingerprints(self.buffer.get(from..self.filled).unwrap_or_default(), &mut self.map);
            if let Some(size) = self.done.sizes.get_mut(*number as usize) {
                *size = Some(size.unwrap_or(0).max(at + read as u64));
            }
            found.push((*number, *at, u32::try_from(read).unwrap_or(0)));
        }
        self.job.progress.fetch_add(self.filled as u64, Ordering::Relaxed);
        Ok(found)
    }

    fn close(&mut self) -> Result<(), VaultError> {
        let Some(full) = self.pack.take() else { return Ok(()) };
        // Nobody takes it any more: that thread met an error, which says more than this one.
        self.closing.send(full).map_err(|_| stopped())
    }

    /// Reads and stores a part: only what differs from the base, where that is less than half.
    fn part(&mut self, part: &Part, next: &AtomicUsize) -> Result<(), VaultError> {
        let base = part.under.and_then(|at| Some((self.job.base?, self.job.base?.extents.get(at)?)));
        let Some((base, extent)) = base else {
            let found = self.read(&part.pieces, &[])?;
            return self.store(found, next);
        };
        let map = fingerprints_of(self.packs, base, extent)?;
        let found = self.read(&part.pieces, &map)?;
        let changed = changed(&map, &self.map);
        let blocks = map.len() / 8;
        if found != part.pieces || self.map.len() != map.len() || changed.len() * 2 > blocks {
            // It shrank while we read, or nearly all is new: on its own.
            let ours: Vec<Piece> = part.pieces.iter().filter(|piece| piece.0 != NO_FILE).copied().collect();
            let found = self.read(&ours, &[])?;
            return self.store(found, next);
        }
        let mut under =
            Under { pack: extent.pack, chunk: extent.chunk, at: extent.at, len: extent.len, changed: Vec::new() };
        let places = pages::places(&found);
        let mut content = Vec::new();
        for block in &changed {
            let place = places.get(*block as usize).cloned().unwrap_or_default();
            content.extend_from_slice(self.buffer.get(place).unwrap_or_default());
            match under.changed.last_mut() {
                Some((first, count)) if *first + *count == *block => *count += 1,
                _ => under.changed.push((*block, 1)),
            }
        }
        let sum = pages::sum(&self.map);
        let mut extent = Extent { pack: 0, chunk: 0, at: 0, len: 0, map: 0, under: Some(under), sum, pieces: found };
        if !content.is_empty() {
            self.ready(next)?;
            let Some((pack, sealer)) = &mut self.pack else { return Ok(()) };
            (extent.pack, extent.chunk) = (*pack, sealer.next_chunk());
            (extent.at, extent.len) = sealer.chunk(&content, &mut self.zstd, false)?;
        }
        self.done.extents.push(extent);
        self.close_if_long()
    }

    /// There is a pack to write into.
    fn ready(&mut self, next: &AtomicUsize) -> Result<(), VaultError> {
        if self.pack.is_none() {
            let number = u32::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap_or(u32::MAX);
            let key = Key::new(format!("{}/{}", self.job.prefix, pack_name(number)))?;
            self.pack = Some((number, self.job.repository.begin(&key, Header::default())?));
        }
        Ok(())
    }

    fn close_if_long(&mut self) -> Result<(), VaultError> {
        if self.pack.as_ref().is_some_and(|(_, sealer)| sealer.len() >= PACK) { self.close() } else { Ok(()) }
    }

    fn store(&mut self, pieces: Vec<Piece>, next: &AtomicUsize) -> Result<(), VaultError> {
        if pieces.is_empty() {
            return Ok(());
        }
        self.ready(next)?;
        let Some((pack, sealer)) = &mut self.pack else { return Ok(()) };
        let chunk = sealer.next_chunk();
        let (at, len) = sealer.chunk(self.buffer.get(..self.filled).unwrap_or_default(), &mut self.zstd, false)?;
        let (_, map) = sealer.chunk(&self.map, &mut self.zstd, false)?;
        let sum = pages::sum(&self.map);
        self.done.extents.push(Extent { pack: *pack, chunk, at, len, map, under: None, sum, pieces });
        self.close_if_long()
    }
}

/// Which blocks differ.
fn changed(before: &[u8], now: &[u8]) -> Vec<u32> {
    let pairs = before.chunks(8).zip(now.chunks(8)).enumerate();
    pairs.filter(|(_, (before, now))| before != now).filter_map(|(at, _)| u32::try_from(at).ok()).collect()
}

fn pack_name(number: u32) -> String {
    format!("pack-{number:06}")
}

/// Keeps to the rate of the moment, counted from when it was set.
fn pace(job: &Job<'_>, since: &mut (u64, Instant, u64)) {
    while !job.stop.load(Ordering::Relaxed) {
        let (rate, done) = (job.rate.load(Ordering::Relaxed), job.progress.load(Ordering::Relaxed));
        if rate != since.0 {
            *since = (rate, Instant::now(), done);
        }
        let allowed = u128::from(rate) * since.1.elapsed().as_millis() / 1000;
        if rate == 0 || u128::from(done.saturating_sub(since.2)) <= allowed {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn stopped() -> VaultError {
    VaultError::Backup("it was stopped".into())
}

/// Parts are cut so that this can not be.
fn too_long() -> VaultError {
    VaultError::Damaged("a backup's manifest: an extent is longer than a chunk".into())
}

fn worker<'a>(job: &'a Job<'a>, packs: &'a Packs<'a>, closing: Closing) -> Result<Worker<'a>, VaultError> {
    let done = Copied { sizes: vec![None; job.tree.files.len()], ..Copied::default() };
    let (zstd, buffer) = (compressor()?, vec![0; CHUNK]);
    Ok(Worker { job, packs, closing, pack: None, zstd, buffer, filled: 0, map: Vec::new(), done })
}

/// Makes full packs durable, as they come.
fn commit(job: &Job<'_>, full: &Receiver<(u32, Sealer)>) -> Result<Vec<(u32, Pack)>, VaultError> {
    let mut named = Vec::new();
    for (number, sealer) in full {
        let written = sealer.commit()?;
        if written.committed != Committed::Created {
            return Err(VaultError::Backup(format!("another backup wrote {} at the same time", job.prefix)));
        }
        let pack = Pack { name: pack_name(number), size: written.size, sum: written.sum, header: written.header_len };
        named.push((number, pack));
    }
    Ok(named)
}

fn work(mut worker: Worker<'_>, parts: &[Part], turn: &AtomicUsize, next: &AtomicUsize) -> Result<Copied, VaultError> {
    let job = worker.job;
    let mut since = (0, Instant::now(), 0);
    while let Some(part) = parts.get(turn.fetch_add(1, Ordering::Relaxed)) {
        if job.stop.load(Ordering::Relaxed) {
            return Err(stopped());
        }
        pace(job, &mut since);
        worker.part(part, next)?;
    }
    worker.close()?;
    Ok(worker.done)
}

/// Copies everything, the control file last.
pub(crate) fn copy(job: &Job<'_>) -> Result<Copied, VaultError> {
    let (parts, turn, next) = (parts(job.tree, job.base), AtomicUsize::new(0), AtomicUsize::new(0));
    let opened = Packs::new(job.repository);
    let (closing, full) = sync_channel(1);
    let (copied, committed) = std::thread::scope(|scope| {
        let committing = scope.spawn(move || {
            let committed = commit(job, &full);
            if committed.is_err() {
                job.stop.store(true, Ordering::Relaxed);
            }
            committed
        });
        let working: Vec<_> = (0..job.threads.clamp(1, 16))
            .map(|_| {
                let (closing, parts, turn, next, opened) = (closing.clone(), &parts, &turn, &next, &opened);
                scope.spawn(move || {
                    let result = worker(job, opened, closing).and_then(|worker| work(worker, parts, turn, next));
                    if result.is_err() {
                        job.stop.store(true, Ordering::Relaxed);
                    }
                    result
                })
            })
            .collect();
        let mut copied: Vec<_> = working.into_iter().map(joined).collect();
        if copied.iter().all(Result::is_ok) {
            copied.push(control(job, &opened, closing, &next));
        } else {
            drop(closing);
        }
        (copied, joined(committing))
    });
    let mut packs = committed?;
    // The error that stopped the others says more than theirs.
    let mut copied = copied;
    copied.sort_by_key(|result| matches!(result, Err(VaultError::Backup(_))));
    let mut all = Copied { sizes: vec![None; job.tree.files.len()], ..Copied::default() };
    for done in copied {
        merge(&mut all, done?);
    }
    all.corrupt.sort();
    all.corrupt.dedup();
    packs.sort_by_key(|(number, _)| *number);
    all.packs = packs.into_iter().map(|(_, pack)| pack).collect();
    Ok(all)
}

fn joined<T>(thread: ScopedJoinHandle<'_, Result<T, VaultError>>) -> Result<T, VaultError> {
    thread
        .join()
        .unwrap_or_else(|_| Err(VaultError::Backup("a thread of it ended by a mistake of this program".into())))
}

fn merge(all: &mut Copied, one: Copied) {
    all.extents.extend(one.extents);
    all.corrupt.extend(one.corrupt);
    for (all, one) in all.sizes.iter_mut().zip(one.sizes) {
        *all = (*all).max(one);
    }
}

fn control(job: &Job<'_>, opened: &Packs<'_>, closing: Closing, next: &AtomicUsize) -> Result<Copied, VaultError> {
    let missing = || VaultError::Backup(format!("{} has no {CONTROL}", job.data.display()));
    let number = job.tree.files.iter().position(|file| file.0 == CONTROL).ok_or_else(missing)?;
    let mut worker = worker(job, opened, closing)?;
    worker.buffer = super::control::read(&job.data.join(CONTROL))?;
    worker.filled = worker.buffer.len();
    pages::fingerprints(&worker.buffer, &mut worker.map);
    let len = worker.filled;
    if let Some(size) = worker.done.sizes.get_mut(number) {
        *size = Some(len as u64);
    }
    let piece = (u32::try_from(number).unwrap_or(u32::MAX), 0, u32::try_from(len).unwrap_or(u32::MAX));
    worker.store(vec![piece], next)?;
    worker.close()?;
    Ok(worker.done)
}

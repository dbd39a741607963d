//! Copies files into packs: by parts of at most four megabytes, spread over threads, each with a pack of its own and fixed buffers.
//!
//! A part is all that a thread takes at once, so a single large file keeps all threads busy, and thousands of small ones share parts.

use crate::Header;
use crate::objects::{Committed, Key};
use crate::postgres::manifest::{Extent, Pack};
use crate::postgres::pages::{self, PAGE};
use crate::postgres::walk::{CONTROL, Tree, first_page};
use crate::repository::{Repository, VaultError};
use crate::seal::{CHUNK, Sealer, compressor};
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use zstd::bulk::Compressor;

/// A pack is closed when it is longer.
const PACK: u64 = 64 << 20;
/// Times that a page is read again whose checksum does not hold.
const REREADS: u32 = 5;

/// A part of a file: its number, where, how long.
type Piece = (u32, u64, u32);

/// What a copy is told.
pub(crate) struct Job<'a> {
    pub(crate) repository: &'a Repository,
    pub(crate) data: &'a Path,
    /// Packs lie below it.
    pub(crate) prefix: &'a str,
    pub(crate) tree: &'a Tree,
    pub(crate) checksums: bool,
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

/// All parts, in the order in which they are taken. The control file is none of them.
fn parts(tree: &Tree) -> Vec<Vec<Piece>> {
    let (mut all, mut small, mut room) = (Vec::new(), Vec::new(), CHUNK as u64);
    for (number, (path, _, size)) in tree.files.iter().enumerate() {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        if path == CONTROL {
            continue;
        }
        let mut at = 0;
        while size - at >= CHUNK as u64 {
            all.push(vec![(number, at, CHUNK as u32)]);
            at += CHUNK as u64;
        }
        let rest = size - at;
        if rest > room {
            all.push(std::mem::take(&mut small));
            room = CHUNK as u64;
        }
        if rest > 0 || *size == 0 {
            small.push((number, at, u32::try_from(rest).unwrap_or(0)));
            room -= rest;
        }
    }
    if !small.is_empty() {
        all.push(small);
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

struct Worker<'a> {
    job: &'a Job<'a>,
    pack: Option<(u32, Sealer)>,
    zstd: Compressor<'static>,
    buffer: Vec<u8>,
    map: Vec<u8>,
    done: Copied,
    named: Vec<(u32, Pack)>,
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

    fn read(&mut self, pieces: &[Piece]) -> Result<Vec<Piece>, VaultError> {
        self.buffer.clear();
        self.map.clear();
        let mut found = Vec::new();
        for (number, at, len) in pieces {
            let Some((name, _, _)) = self.job.tree.files.get(*number as usize) else { continue };
            let (path, from) = (self.job.data.join(name), self.buffer.len());
            self.buffer.resize(from + *len as usize, 0);
            let read = read_part(&path, *at, self.buffer.get_mut(from..).unwrap_or_default())?;
            self.buffer.truncate(from + read.unwrap_or(0));
            let Some(read) = read else { continue };
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
            pages::fingerprints(self.buffer.get(from..).unwrap_or_default(), &mut self.map);
            if let Some(size) = self.done.sizes.get_mut(*number as usize) {
                *size = Some(size.unwrap_or(0).max(at + read as u64));
            }
            found.push((*number, *at, u32::try_from(read).unwrap_or(0)));
        }
        self.job.progress.fetch_add(self.buffer.len() as u64, Ordering::Relaxed);
        Ok(found)
    }

    fn close(&mut self) -> Result<(), VaultError> {
        let Some((number, sealer)) = self.pack.take() else { return Ok(()) };
        let written = sealer.commit()?;
        if written.committed != Committed::Created {
            return Err(VaultError::Backup(format!("another backup wrote {} at the same time", self.job.prefix)));
        }
        let pack = Pack { name: pack_name(number), size: written.size, sum: written.sum, header: written.header_len };
        self.named.push((number, pack));
        Ok(())
    }

    fn store(&mut self, pieces: Vec<Piece>, next: &AtomicUsize) -> Result<(), VaultError> {
        if pieces.is_empty() {
            return Ok(());
        }
        if self.pack.is_none() {
            let number = u32::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap_or(u32::MAX);
            let key = Key::new(format!("{}/{}", self.job.prefix, pack_name(number)))?;
            self.pack = Some((number, self.job.repository.begin(&key, Header::default())?));
        }
        let Some((pack, sealer)) = &mut self.pack else { return Ok(()) };
        let chunk = sealer.next_chunk();
        let (at, len) = sealer.chunk(&self.buffer, &mut self.zstd, false)?;
        let (_, map) = sealer.chunk(&self.map, &mut self.zstd, false)?;
        let sum = pages::sum(&self.map);
        self.done.extents.push(Extent { pack: *pack, chunk, at, len, map, sum, pieces });
        if sealer.len() >= PACK { self.close() } else { Ok(()) }
    }
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

fn work<'a>(
    job: &'a Job<'a>,
    parts: &[Vec<Piece>],
    turn: &AtomicUsize,
    next: &AtomicUsize,
) -> Result<Worker<'a>, VaultError> {
    let done = Copied { sizes: vec![None; job.tree.files.len()], ..Copied::default() };
    let zstd = compressor()?;
    let mut worker =
        Worker { job, pack: None, zstd, buffer: Vec::with_capacity(CHUNK), map: Vec::new(), done, named: Vec::new() };
    let mut since = (0, Instant::now(), 0);
    while let Some(part) = parts.get(turn.fetch_add(1, Ordering::Relaxed)) {
        if job.stop.load(Ordering::Relaxed) {
            return Err(VaultError::Backup("it was stopped".into()));
        }
        pace(job, &mut since);
        let found = worker.read(part)?;
        worker.store(found, next)?;
    }
    worker.close()?;
    Ok(worker)
}

/// Copies everything, the control file last.
pub(crate) fn copy(job: &Job<'_>) -> Result<Copied, VaultError> {
    let (parts, turn, next) = (parts(job.tree), AtomicUsize::new(0), AtomicUsize::new(0));
    let mut all = Copied { sizes: vec![None; job.tree.files.len()], ..Copied::default() };
    let mut packs = Vec::new();
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..job.threads.clamp(1, 16) {
            scope.spawn(|| {
                let result = work(job, &parts, &turn, &next);
                if result.is_err() {
                    job.stop.store(true, Ordering::Relaxed);
                }
                let taken = result.map(|worker| (worker.done, worker.named));
                results.lock().unwrap_or_else(PoisonError::into_inner).push(taken);
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    // The error that stopped the others says more than theirs.
    results.sort_by_key(|result| matches!(result, Err(VaultError::Backup(_))));
    for result in results {
        let (done, named) = result?;
        merge(&mut all, done);
        packs.extend(named);
    }
    let control = control(job, &next)?;
    merge(&mut all, control.done);
    packs.extend(control.named);
    packs.sort_by_key(|(number, _)| *number);
    all.packs = packs.into_iter().map(|(_, pack)| pack).collect();
    Ok(all)
}

fn merge(all: &mut Copied, one: Copied) {
    all.extents.extend(one.extents);
    all.corrupt.extend(one.corrupt);
    for (all, one) in all.sizes.iter_mut().zip(one.sizes) {
        *all = (*all).max(one);
    }
}

fn control<'a>(job: &'a Job<'a>, next: &AtomicUsize) -> Result<Worker<'a>, VaultError> {
    let missing = || VaultError::Backup(format!("{} has no {CONTROL}", job.data.display()));
    let number = job.tree.files.iter().position(|file| file.0 == CONTROL).ok_or_else(missing)?;
    let mut worker = work(job, &[], &AtomicUsize::new(0), next)?;
    worker.buffer = super::control::read(&job.data.join(CONTROL))?;
    pages::fingerprints(&worker.buffer, &mut worker.map);
    let len = worker.buffer.len();
    if let Some(size) = worker.done.sizes.get_mut(number) {
        *size = Some(len as u64);
    }
    let piece = (u32::try_from(number).unwrap_or(u32::MAX), 0, u32::try_from(len).unwrap_or(u32::MAX));
    worker.store(vec![piece], next)?;
    worker.close()?;
    Ok(worker)
}

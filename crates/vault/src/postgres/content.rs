//! An extent's content on its way into files: in memory from where a device takes it itself, so that a restore neither copies everything once more
//! nor drives what the host's servers read out of the page cache.

use crate::seal::CHUNK;
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

/// Devices want memory, places and lengths in multiples of their blocks; none has larger ones.
const BLOCK: usize = 4096;
/// Less is written through the cache: waiting for the device would cost more than the copy.
const SMALLEST: usize = 256 * 1024;

/// Room for the content of one extent, used again for the next.
pub(crate) struct Content {
    bytes: Vec<u8>,
    /// The first place that lies at a block's border.
    from: usize,
    len: usize,
}

impl Content {
    pub(crate) fn new() -> Content {
        let bytes = vec![0; CHUNK + BLOCK];
        // Not to be told in rare cases; then it is only not aligned.
        let from = bytes.as_ptr().align_offset(BLOCK);
        Content { from: if from < BLOCK { from } else { 0 }, bytes, len: 0 }
    }

    /// Takes what `put` puts into the room that it is given; it says how much that is.
    pub(crate) fn take<E>(&mut self, put: impl FnOnce(&mut [u8]) -> Result<usize, E>) -> Result<(), E> {
        self.len = 0;
        let room = self.bytes.get_mut(self.from..self.from + CHUNK).unwrap_or_default();
        self.len = put(room)?.min(CHUNK);
        Ok(())
    }

    pub(crate) fn get_mut(&mut self, range: std::ops::Range<usize>) -> Option<&mut [u8]> {
        if range.end > self.len {
            return None;
        }
        self.bytes.get_mut(self.from + range.start..self.from + range.end)
    }
}

impl Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(self.from..self.from + self.len).unwrap_or_default()
    }
}

/// Whether files are written past the page cache: until one can not be.
pub(crate) struct PastCache(AtomicBool);

impl PastCache {
    pub(crate) fn new() -> PastCache {
        PastCache(AtomicBool::new(true))
    }

    /// Writes a piece so, into a file that `open` opens with these flags besides its own. `false`: it was not, and is to be written as usual.
    pub(crate) fn write(
        &self,
        piece: &[u8],
        at: u64,
        open: impl FnOnce(OFlags) -> io::Result<File>,
    ) -> io::Result<bool> {
        let whole = |place: u64| place.is_multiple_of(BLOCK as u64);
        let fits =
            piece.len() >= SMALLEST && [at, piece.len() as u64, piece.as_ptr().addr() as u64].into_iter().all(whole);
        if !fits || !self.0.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let wrote = open(OFlags::DIRECT).and_then(|file| file.write_all_at(piece, at));
        match wrote {
            Err(error) if not_here(&error) => {
                self.0.store(false, Ordering::Relaxed);
                Ok(false)
            }
            wrote => wrote.map(|()| true),
        }
    }
}

/// The file system does not do that.
fn not_here(error: &io::Error) -> bool {
    let answers = [Errno::INVAL, Errno::OPNOTSUPP, Errno::NOSYS];
    error.raw_os_error().is_some_and(|code| answers.iter().any(|errno| errno.raw_os_error() == code))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(len: usize) -> Content {
        let mut content = Content::new();
        let put = |room: &mut [u8]| {
            room.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at % 251) as u8);
            Ok::<_, ()>(len)
        };
        content.take(put).unwrap();
        content
    }

    #[test]
    fn content_lies_at_a_blocks_border_and_is_as_long_as_what_was_put() {
        let mut content = filled(1000);
        assert!(content.len() == 1000 && content.as_ptr().addr().is_multiple_of(BLOCK));
        assert!(
            content.get_mut(990..1000).is_some() && content.get_mut(990..1001).is_none(),
            "nothing of an extent before"
        );
        assert_eq!(content.take(|_| Err("damaged")), Err("damaged"));
        assert!(content.is_empty(), "what was not whole is not there");
        assert_eq!(filled(CHUNK).len(), CHUNK);
    }

    #[test]
    fn what_can_not_go_past_the_cache_is_left_to_the_usual_way() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("file");
        let open = |flags: OFlags| {
            use std::os::unix::fs::OpenOptionsExt;
            let flags = i32::try_from(flags.bits()).unwrap();
            std::fs::OpenOptions::new().write(true).create(true).truncate(false).custom_flags(flags).open(&place)
        };
        let (content, past) = (filled(CHUNK), PastCache::new());
        let nobody = |_: OFlags| -> io::Result<File> { panic!("not to be opened") };
        assert!(!past.write(&content[..SMALLEST - BLOCK], 0, nobody).unwrap(), "little");
        assert!(!past.write(&content[..SMALLEST + 1], 0, nobody).unwrap(), "no whole block at its end");
        assert!(!past.write(&content[1..=SMALLEST], 0, nobody).unwrap(), "no whole block in memory");
        assert!(!past.write(&content[..SMALLEST], 512, nobody).unwrap(), "no whole block in the file");
        let wrote = past.write(&content[BLOCK..], 2 * BLOCK as u64, open).unwrap();
        if wrote {
            let is = std::fs::read(&place).unwrap();
            assert!(is[..2 * BLOCK].iter().all(|byte| *byte == 0) && is[2 * BLOCK..] == content[BLOCK..]);
        }
        let full = past.write(&content, 0, |_| Err(Errno::NOSPC.into())).unwrap_err();
        assert_eq!(full.raw_os_error(), Some(Errno::NOSPC.raw_os_error()), "a full disk is a full disk");
        let past = PastCache::new();
        assert!(!past.write(&content, 0, |_| Err(Errno::INVAL.into())).unwrap());
        assert!(!past.write(&content, 0, nobody).unwrap(), "asked once");
    }
}

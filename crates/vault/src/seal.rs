//! One object's bytes: a header in the clear, chunks that are compressed and then sealed, a checksum of everything (docs/vault-format.md).
//!
//! ```text
//! frame 0x184D2A50  header, JSON
//! per chunk:        encrypted: frame 0x184D2A51 holding AES-256-GCM(zstd frame); else: the zstd frame itself
//! frame 0x184D2A52  SHA-256 of all bytes before this frame
//! ```
//! The numbered frames are "skippable" ones of the zstd format, so `zstd -d` reads an object that is not encrypted. A chunk's nonce
//! holds its number and whether it is the last; the header is bound to every chunk as associated data. So no chunk can be moved,
//! left out, or taken from another object.

use crate::hex;
use crate::keys::{SecretKey, Wrap, WriteKey, cipher, random};
use crate::objects::{Committed, Upload};
use crate::repository::VaultError;
use ring::aead::{Aad, LessSafeKey, Nonce};
use ring::digest::{Context, SHA256, digest};
use serde::{Deserialize, Serialize};
use zstd::bulk::{Compressor, Decompressor};

/// The most that one chunk holds, uncompressed.
pub(crate) const CHUNK: usize = 4 * 1024 * 1024;
const HEADER: u32 = 0x184D_2A50;
const SEALED: u32 = 0x184D_2A51;
const TRAILER: u32 = 0x184D_2A52;
const ZSTD: u32 = 0xFD2F_B528;
const CIPHER: &str = "aes-256-gcm";
/// Compression level: what `zstd` itself takes.
pub(crate) const LEVEL: i32 = 3;
/// Bytes of a trailer.
pub(crate) const TRAILER_LEN: u64 = 8 + 32;
/// No header is longer.
const HEADER_MAX: usize = 64 * 1024;

/// What everybody may know of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Version of the format.
    pub format: u32,
    /// The name under which it was written.
    pub name: String,
    /// Size of the content, where it was known beforehand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// SHA-256 of the content, where it was known beforehand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sum: Option<String>,
    /// The term of the primary that owns the archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<u64>,
    /// Who wrote it.
    #[serde(default)]
    pub by: String,
    /// When, in milliseconds since 1970, by the writer's wall clock; for people.
    #[serde(default)]
    pub written: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cipher: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) wraps: Vec<Wrap>,
}

/// What was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) committed: Committed,
    pub(crate) size: u64,
    pub(crate) sum: String,
    pub(crate) header_len: u32,
}

/// An object while it is written.
pub(crate) struct Sealer {
    upload: Box<dyn Upload>,
    key: Option<(LessSafeKey, Vec<u8>)>,
    sum: Context,
    at: u64,
    chunks: u64,
    header_len: u32,
    frame: Vec<u8>,
}

fn skippable(magic: u32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
    [&magic.to_le_bytes()[..], &length.to_le_bytes()[..], content].concat()
}

fn nonce(index: u64, last: bool) -> Nonce {
    let mut bytes = [0; 12];
    bytes[0] = u8::from(last);
    bytes[4..].copy_from_slice(&index.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// A compressor as chunks want it.
pub(crate) fn compressor() -> Result<Compressor<'static>, VaultError> {
    let broken = |e: std::io::Error| VaultError::Crypto(format!("zstd: {e}"));
    let mut compressor = Compressor::new(LEVEL).map_err(broken)?;
    compressor.include_checksum(true).map_err(broken)?;
    Ok(compressor)
}

fn decompressor() -> Result<Decompressor<'static>, VaultError> {
    Decompressor::new().map_err(|e| VaultError::Crypto(format!("zstd: {e}")))
}

impl Sealer {
    /// Begins an object; sealed for `readers`, if there are any.
    pub(crate) fn begin(
        upload: Box<dyn Upload>,
        mut header: Header,
        readers: &[WriteKey],
    ) -> Result<Sealer, VaultError> {
        header.format = 1;
        let mut data_key = None;
        if !readers.is_empty() {
            let key = random::<32>()?;
            header.cipher = Some(CIPHER.into());
            header.wraps = readers.iter().map(|reader| reader.wrap(&key)).collect::<Result<_, _>>()?;
            data_key = Some(key);
        }
        let text = serde_json::to_vec(&header).map_err(|e| VaultError::Damaged(e.to_string()))?;
        let first = skippable(HEADER, &text);
        let key = data_key.map(|key| Ok::<_, VaultError>((cipher(&key)?, bound(&text)))).transpose()?;
        let header_len = u32::try_from(first.len()).unwrap_or(u32::MAX);
        let mut sealer =
            Sealer { upload, key, sum: Context::new(&SHA256), at: 0, chunks: 0, header_len, frame: Vec::new() };
        sealer.put(&first)?;
        Ok(sealer)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), VaultError> {
        self.upload.write(bytes)?;
        self.sum.update(bytes);
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// How many bytes there are up to now.
    pub(crate) fn len(&self) -> u64 {
        self.at
    }

    /// How many chunks there are up to now: the number of the next one.
    pub(crate) fn next_chunk(&self) -> u64 {
        self.chunks
    }

    /// Appends a chunk; says where it lies.
    pub(crate) fn chunk(
        &mut self,
        plain: &[u8],
        zstd: &mut Compressor<'_>,
        last: bool,
    ) -> Result<(u64, u32), VaultError> {
        let mut frame = std::mem::take(&mut self.frame);
        frame.clear();
        let header = if self.key.is_some() { 8 } else { 0 };
        frame.resize(header, 0);
        frame.reserve(zstd::zstd_safe::compress_bound(plain.len()) + 16);
        let mut packed = std::io::Cursor::new(&mut frame);
        packed.set_position(header as u64);
        zstd.compress_to_buffer(plain, &mut packed).map_err(|e| VaultError::Crypto(format!("zstd: {e}")))?;
        if let Some((key, aad)) = &self.key {
            let body = frame.get_mut(header..).unwrap_or_default();
            let tag = key.seal_in_place_separate_tag(nonce(self.chunks, last), Aad::from(aad), body);
            frame.extend_from_slice(tag.map_err(|_| VaultError::Crypto("sealing failed".into()))?.as_ref());
            let length = u32::try_from(frame.len() - header).unwrap_or(u32::MAX);
            frame[..4].copy_from_slice(&SEALED.to_le_bytes());
            frame[4..8].copy_from_slice(&length.to_le_bytes());
        }
        let at = self.at;
        let done = self.put(&frame);
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        self.frame = frame;
        done?;
        self.chunks += 1;
        Ok((at, length))
    }

    /// Ends the object and commits it.
    pub(crate) fn commit(self) -> Result<Written, VaultError> {
        let Sealer { mut upload, sum, at, header_len, .. } = self;
        let sum = sum.finish();
        upload.write(&skippable(TRAILER, sum.as_ref()))?;
        Ok(Written { committed: upload.commit()?, size: at + TRAILER_LEN, sum: hex::encode(sum.as_ref()), header_len })
    }
}

/// What binds chunks to their header.
fn bound(header: &[u8]) -> Vec<u8> {
    digest(&SHA256, header).as_ref().to_vec()
}

/// Opens the chunks of one object.
pub(crate) struct Opener {
    pub(crate) header: Header,
    key: Option<(LessSafeKey, Vec<u8>)>,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

/// The header and where it ends.
pub(crate) fn read_header(name: &str, bytes: &[u8]) -> Result<(Header, Vec<u8>, usize), VaultError> {
    let damaged = |what: &str| VaultError::Damaged(format!("{name}: {what}"));
    if word(bytes, 0) != Some(HEADER) {
        return Err(damaged("it does not begin with a header"));
    }
    let length = word(bytes, 4).unwrap_or(u32::MAX) as usize;
    let text = (length <= HEADER_MAX).then(|| bytes.get(8..8 + length)).flatten();
    let text = text.ok_or_else(|| damaged("its header is cut off"))?;
    let header: Header = serde_json::from_slice(text).map_err(|e| damaged(&format!("its header: {e}")))?;
    if header.format != 1 {
        return Err(VaultError::Damaged(format!("{name} has format {}; this program reads format 1", header.format)));
    }
    if header.name != name {
        return Err(damaged(&format!("it was written as {}", header.name)));
    }
    Ok((header, bound(text), 8 + length))
}

impl Opener {
    /// From the first bytes of an object.
    pub(crate) fn new(name: &str, bytes: &[u8], secret: Option<&SecretKey>) -> Result<(Opener, usize), VaultError> {
        let (header, bound, end) = read_header(name, bytes)?;
        let key = match header.cipher.as_deref() {
            None => None,
            Some(CIPHER) => {
                let needs = || header.wraps.iter().map(|w| w.key.clone()).collect::<Vec<_>>().join(", ");
                let secret = secret.ok_or_else(|| VaultError::NoKey { needs: needs() })?;
                Some((cipher(&secret.unwrap(&header.wraps)?)?, bound))
            }
            Some(other) => return Err(VaultError::Damaged(format!("{name}: the cipher {other} is unknown"))),
        };
        Ok((Opener { header, key }, end))
    }

    fn damaged(&self, what: &str) -> VaultError {
        VaultError::Damaged(format!("{}: {what}", self.header.name))
    }

    fn changed(&self, index: u64) -> VaultError {
        self.damaged(&format!("chunk {index} was changed"))
    }

    /// A chunk as it was before it was sealed, and the size of its content.
    fn packed<'s>(&self, stored: &'s mut [u8], index: u64, last: bool) -> Result<(&'s [u8], usize), VaultError> {
        let changed = || self.changed(index);
        let packed: &[u8] = match &self.key {
            None => stored,
            Some((key, aad)) => {
                let body = stored.get_mut(8..).ok_or_else(changed)?;
                key.open_in_place(nonce(index, last), Aad::from(aad), body).map_err(|_| changed())?
            }
        };
        let size = zstd::zstd_safe::get_frame_content_size(packed).ok().flatten();
        let size = size.and_then(|size| usize::try_from(size).ok()).filter(|size| *size <= CHUNK);
        Ok((packed, size.ok_or_else(changed)?))
    }

    /// The content of one chunk, given its bytes as they are stored.
    pub(crate) fn chunk(&self, stored: &mut [u8], index: u64, last: bool) -> Result<Vec<u8>, VaultError> {
        let (packed, size) = self.packed(stored, index, last)?;
        decompressor()?.decompress(packed, size).map_err(|_| self.changed(index))
    }

    /// The same into room for a whole chunk; says how much of it that is.
    pub(crate) fn chunk_into(
        &self,
        stored: &mut [u8],
        index: u64,
        last: bool,
        room: &mut [u8],
    ) -> Result<usize, VaultError> {
        let (packed, size) = self.packed(stored, index, last)?;
        let room = room.get_mut(..size).ok_or_else(|| self.changed(index))?;
        decompressor()?.decompress_to_buffer(packed, room).map_err(|_| self.changed(index))
    }
}

/// Checks an object against the checksum at its end; no key is needed. Gives the length before the trailer.
pub(crate) fn check_sum(name: &str, bytes: &[u8]) -> Result<usize, VaultError> {
    let damaged = || VaultError::Damaged(format!("{name}: its bytes do not match its checksum"));
    let end = bytes.len().checked_sub(8 + 32).ok_or_else(damaged)?;
    let good = word(bytes, end) == Some(TRAILER)
        && word(bytes, end + 4) == Some(32)
        && bytes.get(end + 8..) == Some(digest(&SHA256, bytes.get(..end).unwrap_or_default()).as_ref());
    if good { Ok(end) } else { Err(damaged()) }
}

/// The content of a whole object.
pub(crate) fn open(
    name: &str,
    mut bytes: Vec<u8>,
    secret: Option<&SecretKey>,
) -> Result<(Header, Vec<u8>), VaultError> {
    let end = check_sum(name, &bytes)?;
    let (opener, mut at) = Opener::new(name, &bytes, secret)?;
    let cut = || VaultError::Damaged(format!("{name}: it is cut off"));
    let (mut content, mut index) = (Vec::new(), 0);
    while at < end {
        let length = match word(&bytes, at) {
            Some(SEALED) => 8 + word(&bytes, at + 4).ok_or_else(cut)? as usize,
            Some(ZSTD) => {
                zstd::zstd_safe::find_frame_compressed_size(bytes.get(at..end).ok_or_else(cut)?).map_err(|_| cut())?
            }
            _ => return Err(cut()),
        };
        let last = at + length == end;
        let stored = bytes.get_mut(at..at + length).ok_or_else(cut)?;
        content.extend_from_slice(&opener.chunk(stored, index, last)?);
        at += length;
        index += 1;
    }
    let header = opener.header;
    let sum = hex::encode(digest(&SHA256, &content).as_ref());
    if header.size.is_some_and(|size| size != content.len() as u64) || header.sum.as_ref().is_some_and(|is| *is != sum)
    {
        return Err(VaultError::Damaged(format!("{name}: its content is not what was written")));
    }
    Ok((header, content))
}

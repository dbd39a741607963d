//! Extents read back: from one pack, or from two where a backup is made on top of another.

use crate::objects::Key;
use crate::postgres::content::Content;
use crate::postgres::manifest::{Extent, Manifest, Pack, Under};
use crate::postgres::pages;
use crate::repository::{Repository, VaultError};
use crate::seal::Opener;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A repository's packs, of which each header is read and opened once.
pub(crate) struct Packs<'a> {
    repository: &'a Repository,
    opened: Mutex<BTreeMap<Key, Arc<Opener>>>,
}

impl<'a> Packs<'a> {
    pub(crate) fn new(repository: &'a Repository) -> Packs<'a> {
        Packs { repository, opened: Mutex::default() }
    }

    fn opener(&self, key: &Key, pack: &Pack) -> Result<Arc<Opener>, VaultError> {
        let known = || self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opener) = known().get(key) {
            return Ok(opener.clone());
        }
        let head = self.repository.objects().read(key, Some(0..u64::from(pack.header)))?;
        let opener = Arc::new(Opener::new(key.as_str(), &head, self.repository.secret())?.0);
        known().insert(key.clone(), opener.clone());
        Ok(opener)
    }
}

/// A chunk of a pack: its number, where it lies in it, and how long it is as it is stored.
type Chunk = (u64, u64, u32);

/// What opens the chunks of a pack, and one of them as it is stored.
fn stored(
    packs: &Packs<'_>,
    (manifest, label): (&Manifest, &str),
    pack: Option<&Pack>,
    (_, at, len): Chunk,
) -> Result<(Arc<Opener>, Vec<u8>), VaultError> {
    let unknown =
        || VaultError::Damaged(format!("the manifest of {} names a pack that it does not have", manifest.label));
    let pack = pack.ok_or_else(unknown)?;
    let key = Key::new(format!("backups/{}/{label}/{}", manifest.system, pack.name))?;
    let opener = packs.opener(&key, pack)?;
    let stored = packs.repository.objects().read(&key, Some(at..at + u64::from(len)))?;
    Ok((opener, stored))
}

/// The content of one.
fn chunk(packs: &Packs<'_>, of: (&Manifest, &str), pack: Option<&Pack>, chunk: Chunk) -> Result<Vec<u8>, VaultError> {
    let (opener, mut stored) = stored(packs, of, pack, chunk)?;
    opener.chunk(&mut stored, chunk.0, false)
}

/// The fingerprints of an extent of a full backup.
pub(crate) fn fingerprints_of(packs: &Packs<'_>, base: &Manifest, extent: &Extent) -> Result<Vec<u8>, VaultError> {
    let place = (extent.chunk + 1, extent.at + u64::from(extent.len), extent.map);
    let map = chunk(packs, (base, &base.label), base.packs.get(extent.pack as usize), place)?;
    let damaged = || VaultError::Damaged(format!("fingerprints of the backup {}", base.label));
    (pages::sum(&map) == extent.sum).then_some(map).ok_or_else(damaged)
}

/// An extent's content, checked. What is in `content` after an error is none.
pub(crate) fn fetch(
    packs: &Packs<'_>,
    backup: &Manifest,
    extent: &Extent,
    content: &mut Content,
) -> Result<(), VaultError> {
    let own = (extent.chunk, extent.at, extent.len);
    let pack = backup.packs.get(extent.pack as usize);
    let damaged =
        || VaultError::Damaged(format!("an extent of the backup {} is not what its manifest says", backup.label));
    let mut whole = |label: &str, pack: Option<&Pack>, chunk: Chunk| {
        content.take(|room| {
            let (opener, mut stored) = stored(packs, (backup, label), pack, chunk)?;
            opener.chunk_into(&mut stored, chunk.0, false, room)
        })
    };
    match (&extent.under, &backup.base) {
        (None, _) => whole(&backup.label, pack, own)?,
        (Some(_), None) => return Err(damaged()),
        (Some(under), Some(base)) => {
            whole(&base.label, base.packs.get(under.pack as usize), (under.chunk, under.at, under.len))?;
            let none = extent.len == 0;
            let changed = if none { Vec::new() } else { chunk(packs, (backup, &backup.label), pack, own)? };
            lay(&changed, extent, under, content).ok_or_else(damaged)?;
        }
    }
    let mut map = Vec::new();
    let mut rest: &[u8] = content;
    for (_, _, len) in &extent.pieces {
        let (piece, after) = rest.split_at_checked(*len as usize).ok_or_else(damaged)?;
        pages::fingerprints(piece, &mut map);
        rest = after;
    }
    (pages::sum(&map) == extent.sum).then_some(()).ok_or_else(damaged)
}

/// Lays the blocks that changed over what a full backup holds of an extent. `None`: they do not fit it.
fn lay(changed: &[u8], extent: &Extent, under: &Under, content: &mut Content) -> Option<()> {
    let places = pages::places(&extent.pieces);
    let mut rest = changed;
    for block in under.changed.iter().flat_map(|(first, count)| *first..first.saturating_add(*count)) {
        let into = content.get_mut(places.get(block as usize)?.clone())?;
        let (new, after) = rest.split_at_checked(into.len())?;
        into.copy_from_slice(new);
        rest = after;
    }
    Some(())
}

//! Extents read back: from one pack, or from two where a backup is made on top of another.

use crate::objects::Key;
use crate::postgres::manifest::{Extent, Manifest, Pack};
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

/// One chunk of a pack.
fn chunk(
    packs: &Packs<'_>,
    backup: (&Manifest, &str),
    pack: Option<&Pack>,
    place: (u64, u64, u32),
) -> Result<Vec<u8>, VaultError> {
    let (manifest, label) = backup;
    let unknown =
        || VaultError::Damaged(format!("the manifest of {} names a pack that it does not have", manifest.label));
    let pack = pack.ok_or_else(unknown)?;
    let key = Key::new(format!("backups/{}/{label}/{}", manifest.system, pack.name))?;
    let opener = packs.opener(&key, pack)?;
    let (number, at, len) = place;
    let mut stored = packs.repository.objects().read(&key, Some(at..at + u64::from(len)))?;
    opener.chunk(&mut stored, number, false)
}

/// The fingerprints of an extent of a full backup.
pub(crate) fn fingerprints_of(packs: &Packs<'_>, base: &Manifest, extent: &Extent) -> Result<Vec<u8>, VaultError> {
    let place = (extent.chunk + 1, extent.at + u64::from(extent.len), extent.map);
    let map = chunk(packs, (base, &base.label), base.packs.get(extent.pack as usize), place)?;
    let damaged = || VaultError::Damaged(format!("fingerprints of the backup {}", base.label));
    (pages::sum(&map) == extent.sum).then_some(map).ok_or_else(damaged)
}

/// An extent's content, checked.
pub(crate) fn fetch(packs: &Packs<'_>, backup: &Manifest, extent: &Extent) -> Result<Vec<u8>, VaultError> {
    let own = || {
        let place = (extent.chunk, extent.at, extent.len);
        chunk(packs, (backup, &backup.label), backup.packs.get(extent.pack as usize), place)
    };
    let damaged =
        || VaultError::Damaged(format!("an extent of the backup {} is not what its manifest says", backup.label));
    let content = match (&extent.under, &backup.base) {
        (None, _) => own()?,
        (Some(_), None) => return Err(damaged()),
        (Some(under), Some(base)) => {
            let place = (under.chunk, under.at, under.len);
            let mut content = chunk(packs, (backup, &base.label), base.packs.get(under.pack as usize), place)?;
            let changed = if extent.len == 0 { Vec::new() } else { own()? };
            let places = pages::places(&extent.pieces);
            let mut rest = changed.as_slice();
            for block in under.changed.iter().flat_map(|(first, count)| *first..first.saturating_add(*count)) {
                let into =
                    places.get(block as usize).cloned().and_then(|place| content.get_mut(place)).ok_or_else(damaged)?;
                let (new, after) = rest.split_at_checked(into.len()).ok_or_else(damaged)?;
                into.copy_from_slice(new);
                rest = after;
            }
            content
        }
    };
    let mut map = Vec::new();
    let mut rest = content.as_slice();
    for (_, _, len) in &extent.pieces {
        let (piece, after) = rest.split_at_checked(*len as usize).ok_or_else(damaged)?;
        pages::fingerprints(piece, &mut map);
        rest = after;
    }
    (pages::sum(&map) == extent.sum).then_some(content).ok_or_else(damaged)
}

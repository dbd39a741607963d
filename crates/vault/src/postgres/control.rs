//! `pg_control`, read until it is whole.

use crate::repository::VaultError;
use std::path::Path;
use std::time::Duration;

/// Times that a file is read which the server may be writing.
const TRIES: u32 = 50;

/// Does its checksum hold? It stands behind the fields, at a place that differs between versions.
fn whole(bytes: &[u8]) -> bool {
    (200..=480).step_by(4).any(|at| {
        let stored = bytes.get(at..at + 4).and_then(|b| <[u8; 4]>::try_from(b).ok()).map(u32::from_le_bytes);
        stored.is_some_and(|stored| stored != 0 && crc32c::crc32c(bytes.get(..at).unwrap_or_default()) == stored)
    })
}

/// Its bytes, whole.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, VaultError> {
    for _ in 0..TRIES {
        let bytes = std::fs::read(path).map_err(|e| VaultError::file(path, e))?;
        if whole(&bytes) {
            return Ok(bytes);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(VaultError::Backup(format!("the checksum of {} does not hold, however often it is read", path.display())))
}

//! What a backup is made of. It is written last: a backup without it is none.

use mainstay_model::{Position, SystemId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A backup that is whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this text.
    pub format: u32,
    /// Its name: when it began, and a random part.
    pub label: String,
    /// The database.
    pub system: SystemId,
    /// What the server is.
    pub server: Server,
    /// From here its log is needed.
    pub start: Position,
    /// Up to here its log is needed: before, it is not consistent.
    pub stop: Position,
    /// When it began and ended by the server's clock, microseconds since 1970.
    pub began: i64,
    /// See `began`.
    pub ended: i64,
    /// `backup_label`, byte for byte, in hexadecimal.
    pub backup_label: String,
    /// `tablespace_map`, the same way; empty if there is none.
    pub tablespace_map: String,
    /// Where each tablespace lay: by its number.
    pub tablespaces: BTreeMap<u32, String>,
    /// Directories, with their mode.
    pub directories: Vec<(String, u32)>,
    /// Files. Their place in this list is their number.
    pub files: Vec<File>,
    /// Packs. Their place in this list is their number.
    pub packs: Vec<Pack>,
    /// Where the content lies.
    pub extents: Vec<Extent>,
    /// The full backup in whose packs a part of the content lies; none: this is a full one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
    /// Pages whose checksum does not hold on the server either: file and block.
    pub corrupt: Vec<(String, u32)>,
}

/// What the server was like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// `server_version_num`.
    pub version: u32,
    /// The name of its catalogue's version, as tablespaces show it.
    pub catalog: u32,
    /// Bytes of a segment of its log.
    pub segment_size: u64,
    /// Are there page checksums?
    pub checksums: bool,
    /// Was it a replica?
    pub replica: bool,
    /// Settings that a recovered server must not undercut.
    pub settings: BTreeMap<String, String>,
    /// Extensions installed in the database that was asked, and the locale's provider and version: to compare with at a restore.
    pub notes: BTreeMap<String, String>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Below the data directory.
    pub path: String,
    /// Its mode.
    pub mode: u32,
    /// Its size, as far as it was read.
    pub size: u64,
}

/// One pack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pack {
    /// The object's last part.
    pub name: String,
    /// Its size.
    pub size: u64,
    /// The checksum at its end.
    pub sum: String,
    /// How long its header is.
    pub header: u32,
}

/// What an incremental backup is made on top of. Always a full one: so a restore reads two backups at most.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// Its label.
    pub label: String,
    /// Its packs, as its manifest lists them.
    pub packs: Vec<Pack>,
}

/// The number of a file in a piece whose file is not in this backup: its content is passed over.
pub const NO_FILE: u32 = u32::MAX;

/// A place in the packs of the base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Under {
    /// In which of its packs.
    pub pack: u32,
    /// The chunk's number there.
    pub chunk: u64,
    /// Where it begins.
    pub at: u64,
    /// How long it is.
    pub len: u32,
    /// Blocks that this backup has of its own, in its own chunk: the first, and how many.
    pub changed: Vec<(u32, u32)>,
}

/// One chunk of content, and after it one of fingerprints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extent {
    /// In which pack.
    pub pack: u32,
    /// The chunk's number there; the fingerprints have the next.
    pub chunk: u64,
    /// Where it begins.
    pub at: u64,
    /// How long it is.
    pub len: u32,
    /// How long the chunk of fingerprints is, which follows.
    pub map: u32,
    /// Where the unchanged blocks lie. Then the chunk of this extent holds the changed ones only, and no fingerprints follow;
    /// with nothing changed there is no chunk (`len` 0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub under: Option<Under>,
    /// XXH3 of the fingerprints (eight bytes for each 8 KiB of each piece).
    pub sum: u64,
    /// Which parts of which files it holds: file, offset, length.
    pub pieces: Vec<(u32, u64, u32)>,
}

//! One volume that several hosts have mounted: the archive's repository, as an export of a file server would be. It can hang for all of them at once.

use super::host::{Host, make_image};
use anyhow::Result;
use std::path::Path;

/// Where each host has it.
pub(crate) const PLACE: &str = "/var/lib/mainstay-repository";
/// Its size. The image is sparse.
const VOLUME_MB: u32 = 1500;

/// What the cluster's file says of it.
pub(crate) fn repository() -> String {
    format!("{PLACE}/orders")
}

/// Makes it, and mounts it on every host. The same device gives each of them the same file system; it is free again when the last host is gone.
pub(super) fn mount<'a>(first: &Host, others: impl Iterator<Item = &'a Host>, dir: &Path) -> Result<()> {
    let image = dir.join("repository.img");
    make_image(&image, VOLUME_MB)?;
    let script = format!(
        "mkdir -p {PLACE}; mount -o loop,noinit_itable '{}' {PLACE}; chown postgres {PLACE}; findmnt -n -o SOURCE {PLACE}",
        image.display()
    );
    let device = first.run_now(&["sh", "-ec", &script])?;
    let script = format!("mkdir -p {PLACE}; mount -o noinit_itable {} {PLACE}", device.trim());
    for host in others {
        host.run_now(&["sh", "-ec", &script])?;
    }
    Ok(())
}

//! The rules of the house that the compiler does not know. `cargo xtask tidy` names every breach, not only the first.

mod floors;
mod licences;
mod packages;
mod pages;
mod sources;

pub(crate) use packages::metadata;

use anyhow::{Result, bail};
use std::path::Path;

/// Checks everything.
pub(crate) fn check(root: &Path) -> Result<()> {
    let metadata = metadata(root)?;
    let mut breaches = floors::breaches(&metadata);
    breaches.extend(licences::breaches(&metadata));
    let (files, in_sources) = sources::breaches(root, &metadata)?;
    breaches.extend(in_sources);
    breaches.extend(pages::breaches(root)?);
    if breaches.is_empty() {
        let (ours, all) = (metadata.workspace_members.len(), metadata.packages.len());
        println!("tidy: {files} files in {ours} crates, {} dependencies, no breach", all - ours);
        return Ok(());
    }
    breaches.iter().for_each(|breach| println!("{breach}"));
    bail!("tidy: {} breaches of the house's rules (ARCHITECTURE.md says why they exist)", breaches.len())
}

//! Did a cut happen, and only in the direction that was meant?

use super::host::Host;
use super::network::arrives;
use anyhow::{Result, bail};

/// Makes sure that what one host sends to another arrives (or does not).
pub(crate) fn direction(from: &Host, to: &Host, wanted: bool) -> Result<()> {
    if arrives(from, to)? != wanted {
        let what = if wanted { "does not arrive" } else { "still arrives" };
        bail!("what {} sends to {} {what}", from.name(), to.name());
    }
    Ok(())
}

//! What `mainstay apply` does on a host, as root: looking, writing, starting. Each part is idempotent and decides nothing: which parts are needed
//! is decided where apply runs (`mainstay_plan::apply`), from what [`look`] shows.

pub(crate) mod adopt;
mod around;
mod claim;
mod existing;
pub(crate) mod look;
pub(crate) mod place;
pub(crate) mod proof;
pub(crate) mod service;
mod sockets;

use crate::failure::{Failure, Outcome};
use crate::local::engine::owned_parameters;
use crate::target::Target;
use mainstay_model::NodeId;
use mainstay_model::layout::ClusterLayout;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Where the program is.
pub(crate) const PROGRAM: &str = "/usr/local/bin/mainstay";
/// Where it is put first: the same file system, so that it can be moved in one step.
pub(crate) const STAGED: &str = "/usr/local/bin/.mainstay.staged";
/// Where the distribution's package has it: such a host gets its program from that package, and from nobody else.
pub(crate) const PACKAGED: &str = "/usr/bin/mainstay";
/// The cluster's file.
pub(crate) const CONFIG: &str = "/etc/mainstay/mainstay.toml";
/// The agent's settings.
pub(crate) const SETTINGS: &str = "/etc/mainstay/agent.env";
/// The agent's unit.
pub(crate) const UNIT_FILE: &str = "/etc/systemd/system/mainstay-agent.service";
/// The package's own.
const UNIT_PACKAGED: &str = "/usr/lib/systemd/system/mainstay-agent.service";
/// Its name.
pub(crate) const UNIT: &str = "mainstay-agent";
/// What it says.
pub(crate) const UNIT_TEXT: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/mainstay-agent.service"));

/// What the unit needs besides, where there is a virtual address.
pub(crate) const UNIT_ADDRESS: &str = "/etc/systemd/system/mainstay-agent.service.d/virtual-address.conf";
/// What that says.
pub(crate) const UNIT_ADDRESS_TEXT: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/mainstay-agent-address.conf"));

/// Both.
const UNIT_WITH_ADDRESS: &str = concat!(
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/mainstay-agent.service")),
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/mainstay-agent-address.conf"))
);

/// A node, and the cluster's file as it is to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    /// Which node.
    pub(crate) node: NodeId,
    /// The file's text.
    pub(crate) file: String,
}

/// The program that this host is to run: this one, in the place where it belongs.
pub(super) fn program() -> &'static str {
    let own = std::env::current_exe();
    if own.is_ok_and(|path| path == Path::new(PACKAGED)) { PACKAGED } else { PROGRAM }
}

/// What the agent's unit says that counts here, as if the program lay where apply puts it.
pub(super) fn unit_text() -> Option<String> {
    let text = std::fs::read_to_string(UNIT_FILE).or_else(|_| std::fs::read_to_string(UNIT_PACKAGED)).ok()?;
    Some(as_if(&text, program()))
}

/// The same with what stands beside it for a virtual address.
pub(super) fn whole_unit(address: bool) -> Option<String> {
    Some(with_beside(unit_text()?, std::fs::read_to_string(UNIT_ADDRESS).ok(), address))
}

/// What somebody else has put there under that name is theirs, unless an address needs the place: no difference that can not be mended.
fn with_beside(unit: String, beside: Option<String>, address: bool) -> String {
    unit + &beside.filter(|text| address || text == UNIT_ADDRESS_TEXT).unwrap_or_default()
}

/// What the agent's unit is to say, with what is to stand beside it.
pub(crate) fn unit_with(address: bool) -> &'static str {
    if address { UNIT_WITH_ADDRESS } else { UNIT_TEXT }
}

/// The unit's text as if `program` lay where apply puts it. One that names the other place stays another text.
fn as_if(text: &str, program: &str) -> String {
    if program != PACKAGED {
        return text.to_owned();
    }
    let parts: Vec<String> = text.split(PROGRAM).map(|part| part.replace(PACKAGED, PROGRAM)).collect();
    parts.join(PACKAGED)
}

/// What the agent's unit is to say here.
pub(super) fn unit_wanted() -> String {
    UNIT_TEXT.replace(PROGRAM, program())
}

/// The cluster of this text, as if it lay in its place already.
pub(super) fn target(text: &str) -> Outcome<Target> {
    let spec = mainstay_model::config::parse(text, owned_parameters())
        .map_err(|error| Failure::usage(format!("the file holds mistakes:\n{error}")))?;
    let config = PathBuf::from(CONFIG);
    let dir = config.parent().unwrap_or(Path::new("/")).to_owned();
    Ok(Target { config, spec, layout: ClusterLayout::new(dir), identity: None })
}

/// Which node the agent's settings here name.
pub(super) fn named() -> Option<String> {
    let settings = std::fs::read_to_string(SETTINGS).ok()?;
    settings.lines().find_map(|line| Some(line.strip_prefix("MAINSTAY_NODE=")?.to_owned()))
}

/// Of which cluster the file here is, if there is one that can be read.
pub(super) fn config_of() -> Option<String> {
    Target::read(Path::new(CONFIG)).ok().map(|known| known.spec.cluster.name.to_string())
}

/// Is systemd this host's service manager?
pub(super) fn systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_that_names_the_other_place_is_another() {
        let packaged = UNIT_TEXT.replace(PROGRAM, PACKAGED);
        assert_eq!(as_if(UNIT_TEXT, PROGRAM), UNIT_TEXT);
        assert_eq!(as_if(&packaged, PACKAGED), UNIT_TEXT);
        assert_ne!(as_if(UNIT_TEXT, PACKAGED), UNIT_TEXT);
        assert_ne!(as_if(&packaged, PROGRAM), UNIT_TEXT);
    }

    #[test]
    fn what_stands_beside_the_unit_is_seen_where_an_address_needs_it_and_where_it_is_ours() {
        let with = |beside: Option<&str>, address| with_beside(UNIT_TEXT.into(), beside.map(str::to_owned), address);
        assert_eq!(with(None, false), unit_with(false));
        assert_ne!(with(None, true), unit_with(true));
        assert_eq!(with(Some(UNIT_ADDRESS_TEXT), true), unit_with(true));
        assert_ne!(with(Some(UNIT_ADDRESS_TEXT), false), unit_with(false));
        assert_ne!(with(Some("[Service]\n"), true), unit_with(true));
        assert_eq!(with(Some("[Service]\n"), false), unit_with(false));
    }
}

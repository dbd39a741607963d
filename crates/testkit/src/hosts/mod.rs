//! Real hosts for tests: virtual ones on this machine, each with its own network, processes, mounts and data volume, joined by a switch whose
//! cables can be cut, with a client's host beside them.
//!
//! Everything of a run ends with the program that made it, also when that is killed: each host's first process ends when the pipe from its
//! maker closes, and the kernel ends what else is in the host, unmounts its volume and frees its loop device.

pub mod booted;
pub(crate) mod checks;
pub mod cluster;
pub(crate) mod command;
pub mod etcd;
mod expected;
pub mod faults;
pub(crate) mod files;
pub mod fresh;
pub mod host;
pub mod init;
pub(crate) mod inject;
pub mod inside;
pub mod network;
mod operated;
pub mod page;
pub mod sampler;
pub mod saturation;
pub(crate) mod shared;
pub mod sshd;
mod sweep;
pub mod trial;
pub(crate) mod versions;
pub(crate) mod volume;

pub use cluster::{HostCluster, Setup, Shape};
pub use expected::{Expected, Primary, Writes};
pub use faults::HostFault;
pub use files::ADDRESS;

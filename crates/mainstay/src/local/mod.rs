//! A cluster on this machine: making its directory, finding its processes, waiting until it works.

pub(crate) mod create;
pub(crate) mod engine;
pub(crate) mod etcd;
pub(crate) mod keys;
pub(crate) mod machine;
pub(crate) mod node_dir;
pub(crate) mod place;
pub(crate) mod ports;
pub(crate) mod processes;
pub(crate) mod psql;
pub(crate) mod ready;
pub(crate) mod secrets;
pub(crate) mod tokens;
pub(crate) mod user;

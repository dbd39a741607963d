//! What the engine must be told, and what operators may not set. Absent: how it becomes configuration text (see `config`).

use mainstay_model::layout::NodeLayout;
use mainstay_model::{ClusterName, NodeId};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Everything the engine must know of its node.
#[derive(Clone, Debug)]
pub struct PostgresOptions {
    /// This node.
    pub node: NodeId,
    /// The cluster.
    pub cluster: ClusterName,
    /// Where the node's files lie. `layout.dir()` itself must exist; the directories inside are made as needed.
    pub layout: NodeLayout,
    /// Where `postgres`, `initdb`, `pg_rewind`, … are.
    pub bin_dir: PathBuf,
    /// The address on which the server listens.
    pub listen: String,
    /// Its port.
    pub port: u16,
    /// Where the servers of the other data nodes listen.
    pub peers: BTreeMap<NodeId, (String, u16)>,
    /// Run servers and tools as this user and group; `None`: as the agent's.
    pub user: Option<(u32, u32)>,
    /// Name of the operating-system user as which the agent runs: it alone enters as superuser.
    pub os_user: String,
    /// Server settings of the operator.
    pub parameters: BTreeMap<String, String>,
    /// Lines of the operator for `pg_hba.conf`, before the default ones.
    pub hba: Vec<String>,
    /// The log is kept until it is archived.
    pub archived: bool,
    /// What the server runs for each finished segment of its log; `None`: nothing.
    pub archive_command: Option<String>,
    /// The first copy is made of this server's data, which lie beside ours; nothing is made by `initdb` then.
    pub adopt: Option<PathBuf>,
    /// SCRAM verifier (not the password) of the role `app`; used by the bootstrap only.
    pub app_verifier: String,
}

/// Why options are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// A setting that Mainstay owns.
    #[error("the server setting {0:?} is set by Mainstay; remove it from [postgres.parameters]")]
    Owned(String),
    /// Not a name of a setting.
    #[error("{0:?} is not a name of a server setting (letters, digits, '_' and '.')")]
    BadParameter(String),
    /// Not a line of `pg_hba.conf`.
    #[error(
        "{0:?} is not a line of pg_hba.conf: begin with local, host, hostssl, hostnossl, hostgssenc or hostnogssenc"
    )]
    BadHba(String),
    /// A program is missing.
    #[error("no PostgreSQL server programs found{0}; install the distribution's postgresql package, or set bin_dir")]
    NoPrograms(String),
    /// A value with a line break.
    #[error("the value of {0:?} must be one line")]
    BadValue(String),
    /// A file could not be read.
    #[error("{0}")]
    Files(String),
}

const OWNED: &[&str] = &[
    "allow_alter_system",
    "archive_cleanup_command",
    "archive_command",
    "archive_library",
    "archive_mode",
    "cluster_name",
    "config_file",
    "data_directory",
    "data_sync_retry",
    "event_source",
    "external_pid_file",
    "fsync",
    "full_page_writes",
    "hba_file",
    "hot_standby",
    "ident_file",
    "include",
    "include_dir",
    "include_if_exists",
    "listen_addresses",
    "log_destination",
    "logging_collector",
    "mainstay.generation",
    "max_slot_wal_keep_size",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "restart_after_crash",
    "restore_command",
    "ssl",
    "ssl_ca_file",
    "ssl_cert_file",
    "ssl_crl_dir",
    "ssl_crl_file",
    "ssl_key_file",
    "synchronous_standby_names",
    "unix_socket_directories",
    "unix_socket_group",
    "unix_socket_permissions",
    "wal_level",
    "wal_log_hints",
    "wal_retrieve_retry_interval",
];

/// Names of server settings that operators may not set, sorted.
#[must_use]
pub fn owned_parameters() -> &'static [&'static str] {
    OWNED
}

/// Is this a setting that Mainstay sets itself?
pub(crate) fn is_owned(name: &str) -> bool {
    OWNED.binary_search(&name.to_ascii_lowercase().as_str()).is_ok()
}

/// Where the server's programs are: `wanted`, else the newest of the distribution's, else a directory of `PATH`.
///
/// # Errors
/// When no directory holds both `postgres` and `initdb`.
pub fn find_bin_dir(wanted: Option<&Path>) -> Result<PathBuf, OptionsError> {
    let whole = |dir: &Path| dir.join("postgres").is_file() && dir.join("initdb").is_file();
    if let Some(dir) = wanted {
        let missing = || OptionsError::NoPrograms(format!(" in {}", dir.display()));
        return if whole(dir) { Ok(dir.to_owned()) } else { Err(missing()) };
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin"))))
        .filter(|(_, dir)| whole(dir))
        .max();
    if let Some((_, dir)) = newest {
        return Ok(dir);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).find(|dir| whole(dir));
    found.ok_or_else(|| OptionsError::NoPrograms(" in /usr/lib/postgresql nor in PATH".into()))
}

/// Refuses what would break the configuration or take it out of our hands.
pub(crate) fn check(options: &PostgresOptions) -> Result<(), OptionsError> {
    find_bin_dir(Some(&options.bin_dir))?;
    options.parameters.iter().try_for_each(|(name, value)| check_parameter(name, value))?;
    options.hba.iter().try_for_each(|line| check_hba(line))
}

/// Is this a setting that an operator may give, as far as that can be told without the server?
pub(crate) fn check_parameter(name: &str, value: &str) -> Result<(), OptionsError> {
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    if name.is_empty() || !name.chars().all(fine) {
        return Err(OptionsError::BadParameter(name.to_owned()));
    }
    if is_owned(name) {
        return Err(OptionsError::Owned(name.to_owned()));
    }
    if value.contains(['\n', '\r', '\0']) {
        return Err(OptionsError::BadValue(name.to_owned()));
    }
    Ok(())
}

/// Is this an access line? Only its kind is looked at: the server itself reads the rest.
pub(crate) fn check_hba(line: &str) -> Result<(), OptionsError> {
    let kinds = ["local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc"];
    let first = line.split_whitespace().next().unwrap_or_default();
    if !kinds.contains(&first) || line.contains(['\n', '\r', '\0']) {
        return Err(OptionsError::BadHba(line.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owned_names_are_sorted_and_found_in_any_case() {
        assert!(OWNED.is_sorted());
        assert!(is_owned("Primary_ConnInfo") && !is_owned("work_mem"));
    }

    #[test]
    fn programs_are_found_or_their_absence_is_said() {
        let dir = find_bin_dir(None).unwrap();
        assert!(dir.join("pg_rewind").is_file());
        let error = find_bin_dir(Some(Path::new("/nowhere"))).unwrap_err().to_string();
        assert!(error.contains("/nowhere") && error.contains("install"), "{error}");
    }
}

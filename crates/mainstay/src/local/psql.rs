//! psql: the terminal for people, and one real connection to prove that writes work. Secrets go through its environment only.

use crate::failure::{Failure, Outcome};
use crate::target::Target;
use mainstay_model::spec::Proxy;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The application's role and database.
pub(crate) const APP: &str = "app";

/// Where a client connects: one or more hosts (each node's proxy), one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    /// The hosts.
    pub(crate) hosts: Vec<String>,
    /// The port.
    pub(crate) port: u16,
}

impl Address {
    /// The cluster's address for writes or reads.
    pub(crate) fn of(target: &Target, read: bool) -> Address {
        let proxy: &Proxy = &target.spec.proxy;
        let port = if read { proxy.read_port } else { proxy.write_port };
        let hosts = match &proxy.host {
            Some(host) => vec![host.clone()],
            None => target.spec.nodes.iter().map(|node| node.host.clone()).collect(),
        };
        Address { hosts, port }
    }

    /// `host:port`, several with commas, as an address of libpq takes them.
    pub(crate) fn joined(&self) -> String {
        let bracketed = |host: &String| if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let all: Vec<String> = self.hosts.iter().map(|host| format!("{}:{}", bracketed(host), self.port)).collect();
        all.join(",")
    }
}

/// The application role's password.
///
/// # Errors
/// When its file can not be read.
pub(crate) fn app_password(target: &Target) -> Outcome<String> {
    let path = target.layout.app_password();
    let text = std::fs::read_to_string(&path).map_err(|error| {
        let failure = Failure::failed(format!("the password file {} can not be read: {error}", path.display()));
        match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                failure.hint("only its owner may: run this as the user that made the cluster")
            }
            std::io::ErrorKind::NotFound => failure.hint(
                "it lies on the host where `mainstay pki init` was typed: run this there, or give psql the application's password yourself",
            ),
            _ => failure,
        }
    })?;
    Ok(text.trim_end().to_owned())
}

/// psql with everything set except its arguments.
///
/// # Errors
/// When psql is not found, or the application's password can not be read.
pub(crate) fn command(target: &Target, address: &Address, role: &str) -> Outcome<Command> {
    let mut command = bare(target, address, role, &target.layout.ca_cert())?;
    if role == APP {
        command.env("PGPASSWORD", app_password(target)?);
    } else {
        command.env("PGPASSFILE", std::env::var_os("PGPASSFILE").unwrap_or_default());
    }
    Ok(command)
}

fn bare(target: &Target, address: &Address, role: &str, authority: &Path) -> Outcome<Command> {
    let mut command = Command::new(program(target)?);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    let ports = vec![address.port.to_string(); address.hosts.len()].join(",");
    command
        .env("PGHOST", address.hosts.join(","))
        .env("PGPORT", ports)
        .env("PGUSER", role)
        .env("PGDATABASE", APP)
        .env("PGAPPNAME", "mainstay connect")
        .env("PGCONNECT_TIMEOUT", "10")
        .env("PGSSLMODE", "verify-ca")
        .env("PGSSLROOTCERT", authority);
    Ok(command)
}

fn program(target: &Target) -> Outcome<PathBuf> {
    let configured = target.spec.postgres.bin_dir.as_ref().map(|dir| dir.join("psql"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join("psql"));
    let standard = super::engine::find(None).ok().map(|programs| programs.bin_dir.join("psql"));
    configured.into_iter().chain(on_path).chain(standard).find(|program| program.is_file()).ok_or_else(|| {
        Failure::failed("psql was not found")
            .hint("install it (Debian, Ubuntu: apt-get install postgresql-client), or use another client with `mainstay connect --uri`")
    })
}

/// Commits one transaction through the write address as the application: a message in the log, which changes no table.
///
/// # Errors
/// What psql said.
pub(crate) fn prove_write(target: &Target) -> Outcome {
    prove(command(target, &Address::of(target, false), APP)?)
}

/// The same where password and authority do not lie beside the file.
///
/// # Errors
/// What psql said.
pub(crate) fn prove_write_with(target: &Target, password: &str, authority: &Path) -> Outcome {
    let mut command = bare(target, &Address::of(target, false), APP, authority)?;
    command.env("PGPASSWORD", password);
    prove(command)
}

fn prove(mut command: Command) -> Outcome {
    let output = command
        .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--command"])
        .arg("select pg_logical_emit_message(true, 'mainstay', 'writes work')")
        .env("PGOPTIONS", "-c statement_timeout=5000")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure::failed(format!("psql can not be run: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::failed(said.trim().lines().next().unwrap_or("psql failed and said nothing").to_owned()))
}

#[cfg(test)]
mod tests {
    use super::Address;

    #[test]
    fn addresses_are_joined_as_libpq_takes_them() {
        let address = Address { hosts: vec!["10.0.0.1".into(), "::1".into()], port: 6432 };
        assert_eq!(address.joined(), "10.0.0.1:6432,[::1]:6432");
    }
}

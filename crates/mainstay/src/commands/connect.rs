//! `mainstay connect`: psql on the cluster's address, or that address as a URI.

use crate::cli::{Connect, Global};
use crate::failure::{Failure, Outcome};
use crate::local::psql::{self, APP, Address};
use crate::output;
use crate::target::Target;
use serde_json::json;
use std::os::unix::process::CommandExt as _;

/// Becomes psql, or prints the URI.
///
/// # Errors
/// When psql or the password is missing, or when psql is not to be run and has arguments.
pub(crate) fn run(options: &Connect, global: Global) -> Outcome {
    // What was to be run would be left out without a word, and its password be printed instead.
    if (options.uri || global.json) && !options.psql.is_empty() {
        let which = if options.uri { "--uri" } else { "--json" };
        return Err(Failure::usage(format!(
            "{which} prints the address, and psql is not run: its arguments would be left out"
        ))
        .hint(format!(
            "leave out {which}, or what stands after --; psql prints rows for programs by `-- --csv -c '…'`"
        )));
    }
    let target = Target::find(&options.which)?;
    let address = Address::of(&target, options.read);
    if options.uri || global.json {
        let password = if options.role == APP { Some(psql::app_password(&target)?) } else { None };
        let uri = uri(&options.role, password.as_deref(), &address);
        if global.json {
            output::object(&json!({ "uri": uri }))
        } else {
            output::line(&uri)
        }
        return Ok(());
    }
    let error = psql::command(&target, &address, &options.role)?.args(&options.psql).exec();
    Err(Failure::failed(format!("psql can not be run: {error}")))
}

/// A complete address, as every client of PostgreSQL takes it.
fn uri(role: &str, password: Option<&str>, address: &Address) -> String {
    let secret = password.map(|password| format!(":{}", escaped(password))).unwrap_or_default();
    format!("postgresql://{}{secret}@{}/{APP}?sslmode=require", escaped(role), address.joined())
}

/// Percent-encoding of everything that has a meaning in a URI.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::uri;
    use crate::local::psql::Address;

    #[test]
    fn a_uri_is_complete() {
        let address = Address { hosts: vec!["127.0.0.1".into()], port: 6432 };
        assert_eq!(uri("app", Some("a-b_c"), &address), "postgresql://app:a-b_c@127.0.0.1:6432/app?sslmode=require");
        assert_eq!(uri("o'neil@x", None, &address), "postgresql://o%27neil%40x@127.0.0.1:6432/app?sslmode=require");
    }
}

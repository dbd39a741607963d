//! Who may use a bucket: keys from a file that its owner alone can read, or from the environment. What the keys are called is the dialect's affair.

use crate::objects::ObjectError;
use mainstay_model::bucket::Address;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;

/// A file of keys has some lines.
const FILE_MAX: u64 = 64 << 10;

/// Where keys are looked up.
pub(super) enum Secrets {
    /// The text of a file, and what it is called.
    File(String, String),
    /// The environment has them, under the same names in capitals.
    Environment,
}

fn refused(says: String) -> ObjectError {
    ObjectError::Refused(says)
}

impl Secrets {
    /// Read for each request: keys may change while a server runs.
    pub(super) fn of(address: &Address) -> Result<Secrets, ObjectError> {
        let Some(file) = &address.credentials else { return Ok(Secrets::Environment) };
        let shown = file.display().to_string();
        let wrong = |e: std::io::Error| refused(format!("the credentials in {shown}: {e}"));
        let open = File::open(file).map_err(wrong)?;
        let mode = open.metadata().map_err(wrong)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let says = format!("{shown} can be read by others than its owner (mode {mode:o}): run `chmod 600 {shown}`");
            return Err(refused(says));
        }
        let mut text = String::new();
        open.take(FILE_MAX).read_to_string(&mut text).map_err(wrong)?;
        Ok(Secrets::File(text, shown))
    }

    /// The value of a name in small letters, if it is there and not empty.
    pub(super) fn value(&self, name: &str) -> Option<String> {
        let value = match self {
            Secrets::File(text, _) => {
                let line = text.lines().find_map(|line| line.trim().strip_prefix(name)?.trim_start().strip_prefix('='));
                line.map(|value| value.trim().to_owned())
            }
            Secrets::Environment => std::env::var(name.to_ascii_uppercase()).ok(),
        };
        value.filter(|value| !value.is_empty())
    }

    /// Where the value of a name stands, for people.
    pub(super) fn shown(&self, name: &str) -> String {
        match self {
            Secrets::File(_, file) => format!("{name} in {file}"),
            Secrets::Environment => name.to_ascii_uppercase(),
        }
    }

    /// Something of these is not there.
    pub(super) fn missing(&self, names: &[&str], instead: Option<&str>) -> ObjectError {
        let lines: Vec<String> = names.iter().map(|name| format!("{name} = …")).collect();
        let other = instead.map(|name| format!(" (or {name} = …)")).unwrap_or_default();
        let lines = format!("the line{} {}{other}", if names.len() == 1 { "" } else { "s" }, lines.join(" and "));
        refused(match self {
            Secrets::File(_, file) => format!("{file} needs {lines}"),
            Secrets::Environment => format!(
                "no keys to the bucket: name a file in its address (&credentials=/FILE, mode 600, with {lines}), or set {}",
                names.iter().map(|name| name.to_ascii_uppercase()).collect::<Vec<_>>().join(" and ")
            ),
        })
    }
}

//! Who may use a bucket: keys from a file that its owner alone can read, or from the environment.

use crate::objects::ObjectError;
use mainstay_model::bucket::Address;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;

/// Who signs.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) id: String,
    pub(super) secret: String,
    pub(super) token: Option<String>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({})", self.id)
    }
}

fn refused(says: String) -> ObjectError {
    ObjectError::Refused(says)
}

/// Read for each request: keys may change while a server runs.
pub(super) fn credentials(address: &Address) -> Result<Credentials, ObjectError> {
    let Some(file) = &address.credentials else { return from_environment() };
    let wrong = |e: std::io::Error| refused(format!("the credentials in {}: {e}", file.display()));
    let mut open = File::open(file).map_err(wrong)?;
    let mode = open.metadata().map_err(wrong)?.permissions().mode() & 0o777;
    let shown = file.display();
    if mode & 0o077 != 0 {
        let says = format!("{shown} can be read by others than its owner (mode {mode:o}): run `chmod 600 {shown}`");
        return Err(refused(says));
    }
    let mut text = String::new();
    open.read_to_string(&mut text).map_err(wrong)?;
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name)?.trim_start().strip_prefix('='));
        line.map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    };
    let missing = || refused(format!("{shown} needs the lines aws_access_key_id = … and aws_secret_access_key = …"));
    Ok(Credentials {
        id: value("aws_access_key_id").ok_or_else(missing)?,
        secret: value("aws_secret_access_key").ok_or_else(missing)?,
        token: value("aws_session_token"),
    })
}

fn from_environment() -> Result<Credentials, ObjectError> {
    let value = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let missing = || {
        refused(
            "no keys to the bucket: name a file in its address (&credentials=/FILE, mode 600, with the lines aws_access_key_id = … and \
             aws_secret_access_key = …), or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                .into(),
        )
    };
    Ok(Credentials {
        id: value("AWS_ACCESS_KEY_ID").ok_or_else(missing)?,
        secret: value("AWS_SECRET_ACCESS_KEY").ok_or_else(missing)?,
        token: value("AWS_SESSION_TOKEN"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_keys_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys");
        std::fs::write(&file, "[default]\naws_access_key_id = id\naws_secret_access_key=s3cret\n").unwrap();
        let address = Address::parse(&format!("s3://vault?credentials={}", file.display())).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = credentials(&address).unwrap_err().to_string();
        assert!(error.contains("chmod 600") && !error.contains("s3cret"), "{error}");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let read = credentials(&address).unwrap();
        assert_eq!((read.id.as_str(), read.secret.as_str(), read.token.is_none()), ("id", "s3cret", true));
        assert!(!format!("{read:?}").contains("s3cret"));
        std::fs::write(&file, "aws_access_key_id = id\n").unwrap();
        assert!(credentials(&address).unwrap_err().to_string().contains("aws_secret_access_key"));
    }
}

//! Where a bucket is, as people write it, and who may use it.
//!
//! `s3://BUCKET/PREFIX?endpoint=https://HOST:PORT&region=REGION&path_style=true&credentials=/FILE&ca=/FILE&timeout=SECONDS`
//!
//! All after the bucket may be left out. Keys never stand here: they come from a file that its owner alone can read, or from the environment.

use crate::objects::{Key, ObjectError};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SCHEME: &str = "s3://";

/// Is this the address of a bucket, and not a folder?
#[must_use]
pub fn is_bucket(place: &Path) -> bool {
    place.to_str().is_some_and(|text| text.starts_with(SCHEME))
}

/// A bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) bucket: String,
    /// Before the name of each object: empty, or ending in `/`.
    pub(super) prefix: String,
    /// Without the bucket and without `/` at its end.
    pub(super) endpoint: String,
    pub(super) region: String,
    /// The bucket stands in the path, not in the host's name.
    pub(super) path_style: bool,
    pub(super) credentials: Option<PathBuf>,
    pub(super) ca: Option<PathBuf>,
    pub(super) timeout: Duration,
}

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

fn decoded(text: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::new(), text.bytes());
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let pair = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&pair).ok()?, 16).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

impl Address {
    /// From its text.
    pub(super) fn parse(text: &str) -> Result<Address, ObjectError> {
        let rest = text.strip_prefix(SCHEME);
        let rest = rest.ok_or_else(|| refused("the address of a bucket begins with s3://".to_owned()))?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        // The rest is not repeated: it may hold a secret.
        let wrong = |why: &str| refused(format!("the address of the bucket {bucket:?} is wrong: {why}"));
        if bucket.contains('@') || bucket.contains(':') {
            // Not repeated: it may hold a secret.
            let says = "the address of a bucket holds no keys and no port: keys come from a file (&credentials=/FILE) or the environment, the \
                        port belongs to the endpoint (?endpoint=https://HOST:PORT)";
            return Err(refused(says.into()));
        }
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(fits) {
            return Err(wrong("a bucket's name has 3 to 63 small letters, digits, - and ."));
        }
        let prefix = prefix.trim_end_matches('/');
        let key = |prefix: &str| Key::new(prefix).map_err(|_| wrong("what stands after it is not a name for objects"));
        let prefix = if prefix.is_empty() { String::new() } else { format!("{}/", key(prefix)?) };
        let mut address = Address {
            bucket: bucket.to_owned(),
            prefix,
            endpoint: String::new(),
            region: String::new(),
            path_style: false,
            credentials: None,
            ca: None,
            timeout: Duration::from_secs(60),
        };
        let mut path_style = None;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or_else(|| wrong("after ? stand pairs of NAME=VALUE"))?;
            let value = decoded(value).ok_or_else(|| wrong("a % without two digits"))?;
            let absolute = |value: String| {
                let path = PathBuf::from(value);
                if path.is_absolute() { Ok(path) } else { Err(wrong(&format!("{name} is an absolute path"))) }
            };
            match name {
                "endpoint" => address.endpoint = value.trim_end_matches('/').to_owned(),
                "region" => address.region = value,
                "path_style" => {
                    path_style = Some(value.parse::<bool>().map_err(|_| wrong("path_style is true or false"))?);
                }
                "credentials" => address.credentials = Some(absolute(value)?),
                "ca" => address.ca = Some(absolute(value)?),
                "timeout" => {
                    let seconds = value.parse::<u64>().ok().filter(|s| (1..=3600).contains(s));
                    address.timeout =
                        Duration::from_secs(seconds.ok_or_else(|| wrong("timeout is 1 to 3600 seconds"))?);
                }
                _ => return Err(wrong("after ? stand endpoint, region, path_style, credentials, ca and timeout")),
            }
        }
        address.complete(path_style, wrong)
    }

    fn complete(
        mut self,
        path_style: Option<bool>,
        wrong: impl Fn(&str) -> ObjectError,
    ) -> Result<Address, ObjectError> {
        let word = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !word(&self.region) {
            return Err(wrong("a region has letters, digits and -"));
        }
        // A name with dots is no part of a host that certificates name.
        self.path_style = path_style.unwrap_or(!self.endpoint.is_empty() || self.bucket.contains('.'));
        if self.region.is_empty() {
            self.region = "us-east-1".into();
        }
        if self.endpoint.is_empty() {
            self.endpoint = format!("https://s3.{}.amazonaws.com", self.region);
        }
        let host = self.endpoint.strip_prefix("https://").or_else(|| self.endpoint.strip_prefix("http://"));
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b':' | b'[' | b']');
        if host.is_none_or(|host| host.is_empty() || !host.bytes().all(fits)) {
            return Err(wrong("an endpoint is https://HOST or http://HOST, with :PORT where it is needed"));
        }
        Ok(self)
    }

    /// The host that is asked, as requests name it.
    pub(super) fn host(&self) -> String {
        let (scheme, host) = self.endpoint.split_once("://").unwrap_or_default();
        let standard = if scheme == "https" { ":443" } else { ":80" };
        let host = host.strip_suffix(standard).unwrap_or(host);
        if self.path_style { host.to_owned() } else { format!("{}.{host}", self.bucket) }
    }

    /// `https` or `http`.
    pub(super) fn scheme(&self) -> &str {
        self.endpoint.split_once("://").map_or("https", |(scheme, _)| scheme)
    }

    /// For people.
    pub(super) fn shown(&self) -> String {
        format!("s3://{}/{} at {}", self.bucket, self.prefix.trim_end_matches('/'), self.endpoint)
    }

    /// Read for each request: keys may change while a server runs.
    pub(super) fn credentials(&self) -> Result<Credentials, ObjectError> {
        let Some(file) = &self.credentials else { return from_environment() };
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
        let missing =
            || refused(format!("{shown} needs the lines aws_access_key_id = … and aws_secret_access_key = …"));
        Ok(Credentials {
            id: value("aws_access_key_id").ok_or_else(missing)?,
            secret: value("aws_secret_access_key").ok_or_else(missing)?,
            token: value("aws_session_token"),
        })
    }
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
    fn addresses_are_read_and_what_is_wrong_is_said() {
        let parsed = Address::parse("s3://vault/orders/a/?endpoint=http://127.0.0.1:9000/&timeout=5").unwrap();
        assert_eq!((parsed.bucket.as_str(), parsed.prefix.as_str()), ("vault", "orders/a/"));
        assert_eq!((parsed.host().as_str(), parsed.path_style, parsed.scheme()), ("127.0.0.1:9000", true, "http"));
        let aws = Address::parse("s3://vault?region=eu-central-1&credentials=%2Froot/s3").unwrap();
        assert_eq!((aws.host().as_str(), aws.prefix.as_str()), ("vault.s3.eu-central-1.amazonaws.com", ""));
        assert_eq!(aws.credentials, Some("/root/s3".into()));
        assert_eq!(Address::parse("s3://vault?endpoint=https://s3.example:443").unwrap().host(), "s3.example");
        for (bad, says) in [
            ("/srv/vault", "begins with s3://"),
            ("s3://Vault", "small letters"),
            ("s3://vault/../x", "not a name"),
            ("s3://vault?endpoint=ftp://x", "https://HOST"),
            ("s3://vault?endpoint=https://user@x", "https://HOST"),
            ("s3://vault?secret=x", "after ? stand endpoint"),
            ("s3://vault?ca=relative", "absolute"),
            ("s3://vault?timeout=0", "1 to 3600"),
        ] {
            let error = Address::parse(bad).unwrap_err().to_string();
            assert!(error.contains(says), "{bad}: {error}");
        }
        for bad in [
            "s3://vault/s3cret!",
            "s3://vault?secret=s3cret",
            "s3://vault?endpoint=https://a:s3cret@x",
            "x://a:s3cret@b",
        ] {
            let error = Address::parse(bad).unwrap_err().to_string();
            assert!(!error.contains("s3cret"), "{error}");
        }
        let error = Address::parse("s3://AKIA:s3cret@vault").unwrap_err().to_string();
        assert!(error.contains("no keys") && !error.contains("s3cret"), "{error}");
    }

    #[test]
    fn a_file_of_keys_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys");
        std::fs::write(&file, "[default]\naws_access_key_id = id\naws_secret_access_key=s3cret\n").unwrap();
        let address = Address::parse(&format!("s3://vault?credentials={}", file.display())).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = address.credentials().unwrap_err().to_string();
        assert!(error.contains("chmod 600") && !error.contains("s3cret"), "{error}");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let read = address.credentials().unwrap();
        assert_eq!((read.id.as_str(), read.secret.as_str(), read.token.is_none()), ("id", "s3cret", true));
        assert!(!format!("{read:?}").contains("s3cret"));
        std::fs::write(&file, "aws_access_key_id = id\n").unwrap();
        assert!(address.credentials().unwrap_err().to_string().contains("aws_secret_access_key"));
    }
}

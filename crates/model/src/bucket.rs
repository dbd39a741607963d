//! Where a bucket is, as people write it.
//!
//! `s3://BUCKET/PREFIX?endpoint=https://HOST:PORT&region=REGION&path_style=true&credentials=/FILE&ca=/FILE&timeout=SECONDS`
//!
//! All after the bucket may be left out. Keys never stand here: they come from a file that its owner alone can read, or from the environment.

use std::path::{Path, PathBuf};
use std::time::Duration;

const SCHEME: &str = "s3://";

/// Is this the address of a bucket, and not a folder?
#[must_use]
pub fn is_bucket(place: &Path) -> bool {
    place.to_str().is_some_and(|text| text.starts_with(SCHEME))
}

/// Is it a name for objects: parts of letters, digits, `-`, `_` and `.`, joined by `/`, none empty, none that begins with a dot?
#[must_use]
pub fn is_object_name(name: &str) -> bool {
    let fits = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    name.len() <= 512 && name.split('/').all(fits)
}

/// A bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Its name.
    pub bucket: String,
    /// Before the name of each object: empty, or ending in `/`.
    pub prefix: String,
    /// Without the bucket and without `/` at its end.
    pub endpoint: String,
    /// The region that requests are signed for.
    pub region: String,
    /// The bucket stands in the path, not in the host's name.
    pub path_style: bool,
    /// A file of keys; `None`: the environment holds them.
    pub credentials: Option<PathBuf>,
    /// A file of authorities; `None`: those of the system.
    pub ca: Option<PathBuf>,
    /// For each request.
    pub timeout: Duration,
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
    ///
    /// # Errors
    /// What is wrong with it; nothing is repeated that may hold a secret.
    pub fn parse(text: &str) -> Result<Address, String> {
        let rest = text.strip_prefix(SCHEME);
        let rest = rest.ok_or_else(|| "the address of a bucket begins with s3://".to_owned())?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        // The rest is not repeated: it may hold a secret.
        let wrong = |why: &str| format!("the address of the bucket {bucket:?} is wrong: {why}");
        if bucket.contains('@') || bucket.contains(':') {
            // Not repeated: it may hold a secret.
            let says = "the address of a bucket holds no keys and no port: keys come from a file (&credentials=/FILE) or the environment, the \
                        port belongs to the endpoint (?endpoint=https://HOST:PORT)";
            return Err(says.into());
        }
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(fits) {
            return Err(wrong("a bucket's name has 3 to 63 small letters, digits, - and ."));
        }
        let prefix = prefix.trim_end_matches('/');
        if !prefix.is_empty() && !is_object_name(prefix) {
            return Err(wrong("what stands after it is not a name for objects"));
        }
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
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

    fn complete(mut self, path_style: Option<bool>, wrong: impl Fn(&str) -> String) -> Result<Address, String> {
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
    #[must_use]
    pub fn host(&self) -> String {
        let (scheme, host) = self.endpoint.split_once("://").unwrap_or_default();
        let standard = if scheme == "https" { ":443" } else { ":80" };
        let host = host.strip_suffix(standard).unwrap_or(host);
        if self.path_style { host.to_owned() } else { format!("{}.{host}", self.bucket) }
    }

    /// `https` or `http`.
    #[must_use]
    pub fn scheme(&self) -> &str {
        self.endpoint.split_once("://").map_or("https", |(scheme, _)| scheme)
    }

    /// For people.
    #[must_use]
    pub fn shown(&self) -> String {
        format!("s3://{}/{} at {}", self.bucket, self.prefix.trim_end_matches('/'), self.endpoint)
    }
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
            let error = Address::parse(bad).unwrap_err();
            assert!(error.contains(says), "{bad}: {error}");
        }
        for bad in [
            "s3://vault/s3cret!",
            "s3://vault?secret=s3cret",
            "s3://vault?endpoint=https://a:s3cret@x",
            "x://a:s3cret@b",
        ] {
            let error = Address::parse(bad).unwrap_err();
            assert!(!error.contains("s3cret"), "{error}");
        }
        let error = Address::parse("s3://AKIA:s3cret@vault").unwrap_err();
        assert!(error.contains("no keys") && !error.contains("s3cret"), "{error}");
    }
}

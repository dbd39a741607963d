//! Where a bucket is, as people write it.
//!
//! `s3://BUCKET/PREFIX?endpoint=https://HOST:PORT&region=REGION&path_style=true&credentials=/FILE&ca=/FILE&timeout=SECONDS&lock=DAYS&lock_mode=MODE&as_of=MOMENT`
//! `azure://CONTAINER/PREFIX?account=NAME&endpoint=https://HOST:PORT&credentials=/FILE&ca=/FILE&timeout=SECONDS`
//!
//! All after the bucket may be left out, but not Azure's account. Keys never stand here: they come from a file that its owner alone can read, or from
//! the environment.

pub use crate::bucket_moment::Moment;
use std::path::{Path, PathBuf};
use std::time::Duration;

const S3: &str = "s3://";
const AZURE: &str = "azure://";
/// Nobody means more days, and a lock can not be taken back by everybody.
const LOCK_DAYS_MAX: u32 = 3650;

/// Is this the address of a bucket, and not a folder?
#[must_use]
pub fn is_bucket(place: &Path) -> bool {
    place.to_str().is_some_and(|text| text.starts_with(S3) || text.starts_with(AZURE))
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

/// How what is written is kept from being removed, whoever asks (docs/adr/0052).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// So many days from its writing; `None`: as the bucket itself locks what is written.
    pub days: Option<u32>,
    /// Nobody can shorten it; else those can who have a right of its own for that.
    pub compliance: bool,
}

/// How a bucket's server is spoken to, and what only that way of speaking needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// S3, and what speaks as it does.
    S3 {
        /// The region that requests are signed for.
        region: String,
        /// The bucket stands in the path, not in the host's name.
        path_style: bool,
        /// Each object is locked as it is written.
        lock: Option<Lock>,
        /// It is read as it was then, and nothing is written.
        as_of: Option<Moment>,
    },
    /// Azure's Blob Storage; the bucket is a container there.
    Azure {
        /// Whose container it is.
        account: String,
        /// The account stands in the path, as emulators have it, not in the host's name.
        in_path: bool,
    },
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
    /// How it is spoken to.
    pub protocol: Protocol,
    /// A file of keys; `None`: the environment holds them.
    pub credentials: Option<PathBuf>,
    /// A file of authorities; `None`: those of the system.
    pub ca: Option<PathBuf>,
    /// For each request.
    pub timeout: Duration,
}

/// What stands after the `?`, as it was written.
struct Words {
    endpoint: String,
    region: String,
    path_style: Option<bool>,
    account: String,
    credentials: Option<PathBuf>,
    ca: Option<PathBuf>,
    timeout: Duration,
    lock: Option<Option<u32>>,
    compliance: Option<bool>,
    as_of: Option<Moment>,
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

impl Words {
    fn parse(query: &str, azure: bool, wrong: &impl Fn(&str) -> String) -> Result<Words, String> {
        let mut words = Words {
            endpoint: String::new(),
            region: String::new(),
            path_style: None,
            account: String::new(),
            credentials: None,
            ca: None,
            timeout: Duration::from_secs(60),
            lock: None,
            compliance: None,
            as_of: None,
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or_else(|| wrong("after ? stand pairs of NAME=VALUE"))?;
            let value = decoded(value).ok_or_else(|| wrong("a % without two digits"))?;
            let absolute = |value: String| {
                let path = PathBuf::from(value);
                if path.is_absolute() { Ok(path) } else { Err(wrong(&format!("{name} is an absolute path"))) }
            };
            match name {
                "endpoint" => words.endpoint = value.trim_end_matches('/').to_owned(),
                "region" if !azure => words.region = value,
                "path_style" if !azure => {
                    words.path_style = Some(value.parse::<bool>().map_err(|_| wrong("path_style is true or false"))?);
                }
                "account" if azure => words.account = value,
                "credentials" => words.credentials = Some(absolute(value)?),
                "ca" => words.ca = Some(absolute(value)?),
                "timeout" => {
                    let seconds = value.parse::<u64>().ok().filter(|s| (1..=3600).contains(s));
                    words.timeout = Duration::from_secs(seconds.ok_or_else(|| wrong("timeout is 1 to 3600 seconds"))?);
                }
                "lock" | "lock_mode" | "as_of" if !azure => words.kept(name, &value, wrong)?,
                _ if azure => return Err(wrong("after ? stand account, endpoint, credentials, ca and timeout")),
                _ => {
                    return Err(wrong(
                        "after ? stand endpoint, region, path_style, credentials, ca, timeout, lock, lock_mode and as_of",
                    ));
                }
            }
        }
        Ok(words)
    }

    /// What concerns versions that nobody can remove.
    fn kept(&mut self, name: &str, value: &str, wrong: &impl Fn(&str) -> String) -> Result<(), String> {
        match name {
            "lock" => {
                let days = value.parse::<u32>().ok().filter(|days| (1..=LOCK_DAYS_MAX).contains(days));
                let own = value == "bucket";
                let says = || wrong(&format!("lock is 1 to {LOCK_DAYS_MAX} days, or bucket"));
                self.lock = Some(if own { None } else { Some(days.ok_or_else(says)?) });
            }
            "lock_mode" => {
                self.compliance = Some(match value {
                    "governance" => false,
                    "compliance" => true,
                    _ => return Err(wrong("lock_mode is governance or compliance")),
                });
            }
            _ => {
                let says = "as_of is a moment with its zone, as 2026-11-28T10:00:00Z";
                self.as_of = Some(Moment::parse(value).ok_or_else(|| wrong(says))?);
            }
        }
        Ok(())
    }
}

/// A container's name, by Azure's rules.
fn is_container(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let ends = !name.starts_with('-') && !name.ends_with('-') && !name.contains("--");
    (3..=63).contains(&name.len()) && name.bytes().all(fits) && ends
}

fn is_s3_bucket(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    (3..=63).contains(&name.len()) && name.bytes().all(fits)
}

impl Address {
    /// From its text.
    ///
    /// # Errors
    /// What is wrong with it; nothing is repeated that may hold a secret.
    pub fn parse(text: &str) -> Result<Address, String> {
        let (rest, azure) = match (text.strip_prefix(S3), text.strip_prefix(AZURE)) {
            (Some(rest), _) => (rest, false),
            (_, Some(rest)) => (rest, true),
            _ => return Err("the address of a bucket begins with s3:// or azure://".to_owned()),
        };
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let noun = if azure { "container" } else { "bucket" };
        // The rest is not repeated: it may hold a secret.
        let wrong = |why: &str| format!("the address of the {noun} {bucket:?} is wrong: {why}");
        if bucket.contains('@') || bucket.contains(':') {
            // Not repeated: it may hold a secret.
            return Err(format!(
                "the address of a {noun} holds no keys and no port: keys come from a file (&credentials=/FILE) or the environment, the port \
                 belongs to the endpoint (?endpoint=https://HOST:PORT)"
            ));
        }
        if azure && !is_container(bucket) {
            return Err(wrong("a container's name has 3 to 63 small letters, digits and single - between them"));
        }
        if !azure && !is_s3_bucket(bucket) {
            return Err(wrong("a bucket's name has 3 to 63 small letters, digits, - and ."));
        }
        let prefix = prefix.trim_end_matches('/');
        if !prefix.is_empty() && !is_object_name(prefix) {
            return Err(wrong("what stands after it is not a name for objects"));
        }
        let words = Words::parse(query, azure, &wrong)?;
        let (protocol, endpoint) =
            if azure { azure_at(&words, &wrong)? } else { s3_at(&words, bucket.contains('.'), &wrong)? };
        let host = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b':' | b'[' | b']');
        if host.is_none_or(|host| host.is_empty() || !host.bytes().all(fits)) {
            return Err(wrong("an endpoint is https://HOST or http://HOST, with :PORT where it is needed"));
        }
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let Words { credentials, ca, timeout, .. } = words;
        Ok(Address { bucket: bucket.to_owned(), prefix, endpoint, protocol, credentials, ca, timeout })
    }

    /// The host that is asked, as requests name it.
    #[must_use]
    pub fn host(&self) -> String {
        let host = self.server();
        match &self.protocol {
            Protocol::S3 { path_style: false, .. } => format!("{}.{host}", self.bucket),
            _ => host.to_owned(),
        }
    }

    /// The moment as of which it is read; nothing is written then.
    #[must_use]
    pub fn as_of(&self) -> Option<&Moment> {
        match &self.protocol {
            Protocol::S3 { as_of, .. } => as_of.as_ref(),
            Protocol::Azure { .. } => None,
        }
    }

    /// Do both name the same objects? How they are reached, by which keys and within which time, makes no other place of one.
    #[must_use]
    pub fn is_where(&self, other: &Address) -> bool {
        self.whole() == other.whole()
    }

    fn whole(&self) -> (&str, Option<&str>, &str, &str) {
        let account = match &self.protocol {
            Protocol::S3 { .. } => None,
            Protocol::Azure { account, .. } => Some(account.as_str()),
        };
        (self.server(), account, &self.bucket, &self.prefix)
    }

    /// The server without what names the bucket, and without the port that goes without saying.
    fn server(&self) -> &str {
        let (scheme, host) = self.endpoint.split_once("://").unwrap_or_default();
        host.strip_suffix(if scheme == "https" { ":443" } else { ":80" }).unwrap_or(host)
    }

    /// Does what is sent there cross a network without being encrypted?
    #[must_use]
    pub fn in_clear(&self) -> bool {
        let server = self.server();
        let name = server.strip_prefix('[').and_then(|rest| rest.split(']').next());
        let name = name.unwrap_or_else(|| server.split(':').next().unwrap_or_default());
        let here = name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        self.scheme() != "https" && !here
    }

    /// `https` or `http`.
    #[must_use]
    pub fn scheme(&self) -> &str {
        self.endpoint.split_once("://").map_or("https", |(scheme, _)| scheme)
    }

    /// For people.
    #[must_use]
    pub fn shown(&self) -> String {
        let place = format!("{}/{}", self.bucket, self.prefix.trim_end_matches('/'));
        match &self.protocol {
            Protocol::S3 { as_of: Some(moment), .. } => {
                format!("{S3}{place} at {} as it was at {}", self.endpoint, moment.text())
            }
            Protocol::S3 { .. } => format!("{S3}{place} at {}", self.endpoint),
            Protocol::Azure { account, .. } => format!("{AZURE}{place} of {account} at {}", self.endpoint),
        }
    }
}

/// What is particular to S3, and where it is.
fn s3_at(words: &Words, dotted: bool, wrong: &impl Fn(&str) -> String) -> Result<(Protocol, String), String> {
    if !words.region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Err(wrong("a region has letters, digits and -"));
    }
    let region = if words.region.is_empty() { "us-east-1".to_owned() } else { words.region.clone() };
    // A name with dots is no part of a host that certificates name.
    let path_style = words.path_style.unwrap_or(!words.endpoint.is_empty() || dotted);
    let amazon = format!("https://s3.{region}.amazonaws.com");
    let endpoint = if words.endpoint.is_empty() { amazon } else { words.endpoint.clone() };
    let lock = match (words.lock, words.compliance) {
        (Some(days @ Some(_)), compliance) => Some(Lock { days, compliance: compliance.unwrap_or(false) }),
        (Some(None), None) => Some(Lock { days: None, compliance: false }),
        (_, Some(_)) => return Err(wrong("lock_mode says how lock=DAYS locks, and there is none: add it")),
        (None, None) => None,
    };
    Ok((Protocol::S3 { region, path_style, lock, as_of: words.as_of.clone() }, endpoint))
}

/// What is particular to Azure, and where it is.
fn azure_at(words: &Words, wrong: &impl Fn(&str) -> String) -> Result<(Protocol, String), String> {
    let account = words.account.clone();
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if !(3..=24).contains(&account.len()) || !account.bytes().all(fits) {
        return Err(wrong(
            "say whose it is: ?account=NAME, the name of a storage account, 3 to 24 small letters and digits",
        ));
    }
    if words.endpoint.is_empty() {
        let endpoint = format!("https://{account}.blob.core.windows.net");
        return Ok((Protocol::Azure { account, in_path: false }, endpoint));
    }
    // Other clouds of Azure have the account in the host, too; whoever has one host for all accounts has it in the path.
    let host = words.endpoint.split_once("://").map_or("", |(_, host)| host);
    let in_path = !host.starts_with(&format!("{account}."));
    Ok((Protocol::Azure { account, in_path }, words.endpoint.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_what_is_wrong_is_said() {
        let parsed = Address::parse("s3://vault/orders/a/?endpoint=http://127.0.0.1:9000/&timeout=5").unwrap();
        assert_eq!((parsed.bucket.as_str(), parsed.prefix.as_str()), ("vault", "orders/a/"));
        assert_eq!((parsed.host().as_str(), parsed.scheme()), ("127.0.0.1:9000", "http"));
        let plain = Protocol::S3 { region: "us-east-1".into(), path_style: true, lock: None, as_of: None };
        assert_eq!(parsed.protocol, plain);
        let aws = Address::parse("s3://vault?region=eu-central-1&credentials=%2Froot/s3").unwrap();
        assert_eq!((aws.host().as_str(), aws.prefix.as_str()), ("vault.s3.eu-central-1.amazonaws.com", ""));
        assert_eq!(aws.credentials, Some("/root/s3".into()));
        assert_eq!(Address::parse("s3://vault?endpoint=https://s3.example:443").unwrap().host(), "s3.example");
        for (bad, says) in [
            ("/srv/vault", "begins with s3:// or azure://"),
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
    #[test]
    fn addresses_say_how_objects_are_locked_and_as_of_when_they_are_read() {
        let of = |words: &str| Address::parse(&format!("s3://vault/main?{words}"));
        let lock = |words: &str| match of(words).unwrap().protocol {
            Protocol::S3 { lock, .. } => lock.map(|lock| (lock.days.unwrap_or(0), lock.compliance)),
            Protocol::Azure { .. } => None,
        };
        assert_eq!(lock(""), None);
        assert_eq!(lock("lock=30"), Some((30, false)));
        assert_eq!(lock("lock=bucket"), Some((0, false)));
        assert_eq!(lock("lock=1&lock_mode=governance"), Some((1, false)));
        assert_eq!(lock("lock_mode=compliance&lock=3650"), Some((3650, true)));
        let then = of("lock=30&as_of=2026-11-28T12:00:00%2B02:00").unwrap();
        assert_eq!(then.as_of().map(Moment::micros), Some(1_795_860_000_000_000));
        assert!(then.shown().ends_with(" as it was at 2026-11-28T12:00:00+02:00"), "{}", then.shown());
        assert!(then.is_where(&of("").unwrap()) && of("").unwrap().as_of().is_none());
        for (bad, says) in [
            ("lock=bucket&lock_mode=compliance", "lock=DAYS"),
            ("lock=0", "lock is 1 to 3650 days"),
            ("lock=3651", "lock is 1 to 3650 days"),
            ("lock=-1", "lock is 1 to 3650 days"),
            ("lock=30d", "lock is 1 to 3650 days"),
            ("lock=", "lock is 1 to 3650 days"),
            ("lock_mode=compliance", "lock=DAYS"),
            ("lock=30&lock_mode=COMPLIANCE", "governance or compliance"),
            ("as_of=yesterday", "as 2026-11-28T10:00:00Z"),
            ("as_of=2026-11-28", "as 2026-11-28T10:00:00Z"),
            ("lock_until=2026-11-28", "after ? stand endpoint"),
        ] {
            let error = of(bad).unwrap_err();
            assert!(error.contains(says), "{bad}: {error}");
        }
        for word in ["lock=30", "as_of=2026-11-28T10:00:00Z"] {
            let error = Address::parse(&format!("azure://vault?account=acme&{word}")).unwrap_err();
            assert!(error.contains("after ? stand account"), "{error}");
        }
    }
    #[test]
    fn addresses_of_azure_name_the_account_and_where_it_stands() {
        let parsed = Address::parse("azure://vault/orders?account=acme&credentials=/k&timeout=5").unwrap();
        assert_eq!((parsed.bucket.as_str(), parsed.prefix.as_str()), ("vault", "orders/"));
        assert_eq!((parsed.host().as_str(), parsed.scheme()), ("acme.blob.core.windows.net", "https"));
        assert_eq!(parsed.shown(), "azure://vault/orders of acme at https://acme.blob.core.windows.net");
        let of = |endpoint: &str| {
            let parsed = Address::parse(&format!("azure://vault?account=acme&endpoint={endpoint}")).unwrap();
            (parsed.host(), matches!(parsed.protocol, Protocol::Azure { in_path: true, .. }))
        };
        assert_eq!(of("http://127.0.0.1:10000/"), ("127.0.0.1:10000".into(), true));
        assert_eq!(of("https://acme.blob.example:443"), ("acme.blob.example".into(), false));
        for (bad, says) in [
            ("azure://vault", "account=NAME"),
            ("azure://vault?account=Acme", "account=NAME"),
            ("azure://va?account=acme", "container's name"),
            ("azure://my.vault?account=acme", "container's name"),
            ("azure://my--vault?account=acme", "container's name"),
            ("azure://vault?account=acme&region=x", "after ? stand account"),
            ("azure://vault?account=acme&sig=s3cret", "after ? stand account"),
            ("azure://vault?account=acme&key=s3cret", "after ? stand account"),
            ("azure://acme:s3cret@vault?account=acme", "no keys"),
            ("azure://vault?account=acme&endpoint=https://a:s3cret@x", "https://HOST"),
            ("azure://vault?account=acme&credentials=s3cret", "absolute"),
            ("s3://vault?account=acme", "after ? stand endpoint"),
        ] {
            let error = Address::parse(bad).unwrap_err();
            assert!(error.contains(says) && !error.contains("s3cret"), "{bad}: {error}");
        }
        assert!(is_bucket(Path::new("azure://vault")) && !is_bucket(Path::new("/azure://vault")));
    }
}

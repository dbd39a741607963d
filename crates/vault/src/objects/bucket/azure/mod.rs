//! Azure's Blob Storage by its own protocol (docs/adr/0050). A bucket is a container there; parts are blocks, which are joined by naming them.

mod sign;

use super::Inner;
use super::answers::{Page, code, element, listing, unescaped};
use super::any;
use super::credentials::Secrets;
use super::dialect::{Dialect, Letter, Pairs, Part, Parts, encoded, now, query};
use super::http::{Answer, Ask, TRIES};
use crate::objects::{Key, ObjectError};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mainstay_model::bucket::Address;
use sign::Signed;
use ureq::http::HeaderMap;

/// The protocol's version: what directories are is told since 2020-10-02, and emulators know this one.
const VERSION: &str = "2021-12-02";
const ACCOUNT: &str = "azure_storage_account";
const KEY: &str = "azure_storage_key";
const SAS: &str = "azure_storage_sas_token";

/// The Blob Storage of one account.
pub(super) struct Azure {
    pub(super) account: String,
    /// It stands in the path, not in the host's name.
    pub(super) in_path: bool,
}

/// What lets a request in.
enum Credentials {
    /// It is signed with the account's key.
    Key(String),
    /// It carries a signature that somebody else made for us, with its bounds.
    Token(String),
}

impl Azure {
    fn credentials(&self, address: &Address) -> Result<Credentials, ObjectError> {
        let secrets = Secrets::of(address)?;
        if let Some(other) = secrets.value(ACCOUNT).filter(|account| *account != self.account) {
            return Err(ObjectError::Refused(format!(
                "{} is {other:?}, and the address of the container names the account {:?}: correct one of them",
                secrets.shown(ACCOUNT),
                self.account
            )));
        }
        // A key says more than a token; whoever has both wants the key.
        if let Some(key) = secrets.value(KEY) {
            return match STANDARD.decode(&key) {
                Ok(_) => Ok(Credentials::Key(key)),
                Err(_) => Err(ObjectError::Refused(format!(
                    "{} is no key: one is written in base64, as the portal shows it",
                    secrets.shown(KEY)
                ))),
            };
        }
        let token = secrets.value(SAS).ok_or_else(|| secrets.missing(&[KEY], Some(SAS)))?;
        if address.in_clear() {
            // A key signs and stays here; a token is what it opens.
            return Err(ObjectError::Refused(format!(
                "{} would be sent in clear to {}: name an endpoint of https://, or use the account's key ({KEY})",
                secrets.shown(SAS),
                address.host()
            )));
        }
        let token = token.trim_start_matches('?').to_owned();
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.~%=&:+/,".contains(&b);
        if token.bytes().all(fits) && token.split('&').any(|pair| pair.starts_with("sig=")) {
            return Ok(Credentials::Token(token));
        }
        Err(ObjectError::Refused(format!("{} is no token: one is written as sv=…&sig=…", secrets.shown(SAS))))
    }
}

/// The name of a block: of the same length for every block of an object, whoever writes it.
fn block(id: &str, number: usize) -> String {
    STANDARD.encode(format!("{id}-{number:06}"))
}

impl Dialect for Azure {
    fn signed(&self, address: &Address, ask: &Ask<'_>) -> Result<Letter, ObjectError> {
        let who = self.credentials(address)?;
        let account = if self.in_path { format!("/{}", self.account) } else { String::new() };
        let name = if ask.name.is_empty() { String::new() } else { format!("/{}", encoded(&ask.name, true)) };
        let path = format!("{account}/{}{name}", address.bucket);
        let mut headers = vec![("x-ms-date", now("%a, %d %b %Y %H:%M:%S GMT")), ("x-ms-version", VERSION.to_owned())];
        headers.extend(ask.headers.iter().cloned());
        headers.sort();
        let mut query = query(&ask.query);
        match who {
            Credentials::Key(key) => {
                let signed = Signed {
                    method: ask.method,
                    account: &self.account,
                    path: &path,
                    query: &ask.query,
                    headers: &headers,
                    length: ask.body.len(),
                };
                let no_key = || ObjectError::Refused(format!("{KEY} is no base64"));
                headers.push(("authorization", signed.authorization(&key).ok_or_else(no_key)?));
            }
            Credentials::Token(token) if query.is_empty() => query = token,
            Credentials::Token(token) => query = format!("{query}&{token}"),
        }
        let question = if query.is_empty() { "" } else { "?" };
        Ok(Letter { uri: format!("{}://{}{path}{question}{query}", address.scheme(), address.host()), headers })
    }

    fn code(&self, headers: &HeaderMap, body: &[u8]) -> String {
        let named = headers.get("x-ms-error-code").and_then(|code| code.to_str().ok());
        named.map_or_else(|| code(body), |code| code.trim().to_owned())
    }

    fn again(&self, answer: &Answer) -> bool {
        match answer.status {
            408 | 429 => true,
            501 | 507 => false,
            status => status >= 500,
        }
    }

    fn refusal(&self, answer: &Answer, says: String) -> ObjectError {
        match (answer.status, answer.code.as_str()) {
            (507, _) | (_, "AccountLimitExceeded" | "InsufficientStorage") => ObjectError::Full(says),
            // It has one code for a wrong key and for a clock that is more than a quarter of an hour wrong.
            (_, "AuthenticationFailed" | "InvalidAuthenticationInfo") => ObjectError::Refused(format!(
                "{says}; look at the key or token, whether it is that of the account {}, and at this host's clock",
                self.account
            )),
            (401 | 403, _) => {
                ObjectError::Refused(format!("{says}; this key or token, or this host's address, may not do that here"))
            }
            (_, "ContainerNotFound" | "ContainerBeingDeleted") => {
                ObjectError::Unreachable(format!("{says}; make the container, or look at its name"))
            }
            (_, "BlobArchived" | "BlobBeingRehydrated") => {
                ObjectError::Refused(format!("{says}; bring the repository back from the archive tier first"))
            }
            // Something in between that knows nothing of the container, or another account's host.
            (404, _) => ObjectError::Unreachable(format!("{says}; is this the endpoint of the account's blobs?")),
            _ => ObjectError::Refused(says),
        }
    }

    fn mark(&self) -> &'static str {
        // Names of metadata are words of a programming language there: no hyphens.
        "x-ms-meta-mainstaywrite"
    }
    fn whole(&self) -> Pairs {
        vec![("x-ms-blob-type", "BlockBlob".to_owned())]
    }
    fn says_missing(&self, answer: &Answer) -> bool {
        answer.status == 404 && answer.code == "BlobNotFound"
    }
    fn says_exists(&self, answer: &Answer) -> bool {
        // What a rule keeps is there, and a write would replace it.
        matches!((answer.status, answer.code.as_str()), (409, "BlobAlreadyExists") | (412, "ConditionNotMet"))
            || self.says_kept(answer)
    }
    fn says_kept(&self, answer: &Answer) -> bool {
        answer.status == 409
            && matches!(answer.code.as_str(), "BlobImmutableDueToPolicy" | "BlobImmutableDueToLegalHold")
    }
    fn says_gone(&self, answer: &Answer) -> bool {
        answer.status == 400 && answer.code == "InvalidBlockList"
    }

    fn listing(&self, prefix: String, next: Option<&str>, most: usize) -> Pairs {
        let mut query = vec![("comp", "list".to_owned()), ("maxresults", most.to_string()), ("prefix", prefix)];
        query.retain(|(_, value)| !value.is_empty());
        query.push(("restype", "container".to_owned()));
        query.extend(next.map(|marker| ("marker", marker.to_owned())));
        query.sort();
        query
    }

    fn page(&self, body: &[u8], prefix: &str) -> Option<Page> {
        let text = listing(body, "EnumerationResults")?;
        let mut page = Page::default();
        for part in text.split("<Blob>").skip(1) {
            let (part, _) = part.split_once("</Blob>")?;
            // Names that have to be encoded are not ours; accounts with a hierarchy show their directories, too.
            if part.contains("<Name Encoded=") || element(part, "ResourceType") == Some("directory") {
                continue;
            }
            let size = element(part, "Content-Length")?.trim().parse().ok()?;
            page.add(&unescaped(element(part, "Name")?), size, prefix);
        }
        // It is always there, and empty on the last page.
        if !text.contains("<NextMarker") {
            return None;
        }
        page.next = element(text, "NextMarker").map(|marker| unescaped(marker.trim())).filter(|next| !next.is_empty());
        Some(page)
    }

    fn parts_max(&self) -> usize {
        50_000
    }

    fn begin(&self, _: &Inner, _: &Key, mark: &str) -> Result<String, ObjectError> {
        Ok(mark.to_owned())
    }

    fn part(&self, bucket: &Inner, key: &Key, part: Part<'_>) -> Result<String, ObjectError> {
        let name = block(part.id, part.number);
        let query = vec![("blockid", name.clone()), ("comp", "block".to_owned())];
        let answer = bucket.http.ask(&Ask { query, body: part.body, ..bucket.ask("PUT", key) }, TRIES, any)?;
        if answer.good() { Ok(name) } else { Err(bucket.http.refusal(&answer)) }
    }

    fn join(&self, bucket: &Inner, key: &Key, parts: &Parts<'_>, condition: Pairs) -> Result<Answer, ObjectError> {
        let blocks: String = parts.tags.iter().map(|name| format!("<Latest>{name}</Latest>")).collect();
        let body = format!("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>{blocks}</BlockList>");
        let mut headers = condition;
        headers.push((self.mark(), parts.mark.to_owned()));
        let query = vec![("comp", "blocklist".to_owned())];
        bucket.http.ask(&Ask { query, headers, body: body.as_bytes(), ..bucket.ask("PUT", key) }, TRIES, any)
    }

    fn give_up(&self, _: &Inner, _: &Key, _: &str) {
        // Blocks that nobody joined are not visible, can not be removed, and vanish by themselves after a week.
    }
}

#[cfg(test)]
mod tests;

//! SCRAM-SHA-256 on both sides. Towards a client the proxy is the server: it has the cluster's own verifier and checks the proof, which
//! gives it the client's key. Towards a server it is the client with that key. So no password is kept, nor ever seen.
//! Absent: MD5, passwords in clear.

use ring::rand::SecureRandom;
use ring::{digest, hmac};
use subtle::ConstantTimeEq;

/// Bytes of a key.
pub(crate) const KEY: usize = 32;
const NONCE_BYTES: usize = 18;
const ITERATIONS_MAX: u32 = 10_000_000;
const MESSAGE_BYTES_MAX: usize = 2048;

/// A role's verifier as the server stores it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Verifier {
    iterations: u32,
    salt: String,
    stored_key: [u8; KEY],
    server_key: [u8; KEY],
}

/// What logs in to a server in a client's name.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Keys {
    client_key: [u8; KEY],
    server_key: [u8; KEY],
}

/// Why a proof was not taken. Told to nobody but the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("a SCRAM message is malformed")]
    Malformed,
    #[error("the channel is bound to another certificate")]
    Channel,
    #[error("the proof does not fit")]
    Proof,
}

impl Verifier {
    /// `SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (head, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
        let (iterations, salt) = head.split_once(':')?;
        let (stored, server) = keys.split_once(':')?;
        let iterations = iterations.parse().ok().filter(|count| (1..ITERATIONS_MAX).contains(count))?;
        decode(salt)?;
        let key = |text: &str| <[u8; KEY]>::try_from(decode(text)?).ok();
        Some(Self { iterations, salt: salt.to_owned(), stored_key: key(stored)?, server_key: key(server)? })
    }

    /// For a name that does not exist: looks like a verifier, always the same for one name, and fits no password.
    pub(crate) fn mock(secret: &[u8], name: &str) -> Self {
        let salt = sign(secret, name.as_bytes());
        let salt = encode(&salt[..16]);
        Self { iterations: 4096, salt, stored_key: sign(secret, b"stored"), server_key: sign(secret, b"server") }
    }
}

fn sign(key: &[u8], text: &[u8]) -> [u8; KEY] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text);
    let mut out = [0; KEY];
    out.copy_from_slice(tag.as_ref());
    out
}

pub(crate) fn sha256(text: &[u8]) -> [u8; KEY] {
    let mut out = [0; KEY];
    out.copy_from_slice(digest::digest(&digest::SHA256, text).as_ref());
    out
}

fn xor(a: &[u8; KEY], b: &[u8; KEY]) -> [u8; KEY] {
    std::array::from_fn(|at| a[at] ^ b[at])
}

fn equal(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

/// Random text for one exchange.
pub(crate) fn nonce() -> Option<String> {
    let mut bytes = [0; NONCE_BYTES];
    ring::rand::SystemRandom::new().fill(&mut bytes).ok()?;
    Some(encode(&bytes))
}

fn field<'a>(part: Option<&'a str>, name: &str) -> Result<&'a str, Refused> {
    part.and_then(|part| part.strip_prefix(name)).ok_or(Refused::Malformed)
}

/// The proxy's side towards a client, between its two messages.
pub(crate) struct Challenge {
    verifier: Verifier,
    first: String,
    nonce: String,
    channel: Vec<u8>,
}

impl Challenge {
    /// Takes the client's first message; gives the answer. `certificate` is the hash to bind to, for the mechanism with `-PLUS`.
    pub(crate) fn begin(
        verifier: Verifier,
        message: &[u8],
        certificate: Option<&[u8]>,
        own: &str,
    ) -> Result<(Self, String), Refused> {
        let message = std::str::from_utf8(message).map_err(|_| Refused::Malformed)?;
        if message.len() > MESSAGE_BYTES_MAX {
            return Err(Refused::Malformed);
        }
        let mut parts = message.splitn(3, ',');
        let flag = parts.next().unwrap_or_default();
        let name = parts.next().ok_or(Refused::Malformed)?;
        let bare = parts.next().ok_or(Refused::Malformed)?;
        let fits = match certificate {
            Some(_) => flag == "p=tls-server-end-point",
            None => flag == "n" || flag == "y",
        };
        // A second name would ask to act as somebody else.
        if !fits || !name.is_empty() {
            return Err(Refused::Malformed);
        }
        let mut inner = bare.split(',');
        field(inner.next(), "n=")?;
        let theirs = field(inner.next(), "r=")?;
        if theirs.is_empty() || !theirs.bytes().all(|byte| matches!(byte, 0x21..=0x7e)) {
            return Err(Refused::Malformed);
        }
        let nonce = format!("{theirs}{own}");
        let answer = format!("r={nonce},s={},i={}", verifier.salt, verifier.iterations);
        let mut channel = format!("{flag},,").into_bytes();
        channel.extend(certificate.unwrap_or_default());
        Ok((Self { verifier, first: format!("{bare},{answer}"), nonce, channel }, answer))
    }

    /// Takes the proof; gives the keys, and the last answer.
    pub(crate) fn finish(self, message: &[u8]) -> Result<(Keys, String), Refused> {
        let message = std::str::from_utf8(message).map_err(|_| Refused::Malformed)?;
        let (without_proof, proof) = message.rsplit_once(",p=").ok_or(Refused::Malformed)?;
        let mut parts = without_proof.split(',');
        let channel = field(parts.next(), "c=")?;
        let nonce = field(parts.next(), "r=")?;
        if nonce != self.nonce {
            return Err(Refused::Malformed);
        }
        if decode(channel).as_deref() != Some(&self.channel[..]) {
            return Err(Refused::Channel);
        }
        let proof = decode(proof).and_then(|proof| <[u8; KEY]>::try_from(proof).ok()).ok_or(Refused::Malformed)?;
        let signed = format!("{},{without_proof}", self.first);
        let client_key = xor(&proof, &sign(&self.verifier.stored_key, signed.as_bytes()));
        if !equal(&sha256(&client_key), &self.verifier.stored_key) {
            return Err(Refused::Proof);
        }
        let server_key = self.verifier.server_key;
        let last = format!("v={}", encode(&sign(&server_key, signed.as_bytes())));
        Ok((Keys { client_key, server_key }, last))
    }
}

/// The proxy's side towards a server.
pub(crate) struct Proof {
    keys: Keys,
    nonce: String,
    signature: Option<[u8; KEY]>,
    checked: bool,
}

impl Proof {
    pub(crate) fn begin(keys: Keys, nonce: String) -> (Self, String) {
        let first = format!("n,,n=,r={nonce}");
        (Self { keys, nonce, signature: None, checked: false }, first)
    }

    /// Takes the server's challenge; gives the proof.
    pub(crate) fn answer(&mut self, message: &[u8]) -> Result<String, Refused> {
        let message = std::str::from_utf8(message).map_err(|_| Refused::Malformed)?;
        let nonce = field(message.split(',').next(), "r=")?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(Refused::Malformed);
        }
        let without_proof = format!("c={},r={nonce}", encode(b"n,,"));
        let signed = format!("n=,r={},{message},{without_proof}", self.nonce);
        let stored_key = sha256(&self.keys.client_key);
        let proof = xor(&self.keys.client_key, &sign(&stored_key, signed.as_bytes()));
        self.signature = Some(sign(&self.keys.server_key, signed.as_bytes()));
        Ok(format!("{without_proof},p={}", encode(&proof)))
    }

    /// Is the server one that has the verifier too?
    pub(crate) fn check(&mut self, message: &[u8]) -> Result<(), Refused> {
        let theirs = std::str::from_utf8(message).ok().and_then(|text| text.strip_prefix("v=")).and_then(decode);
        match (theirs, &self.signature) {
            (Some(theirs), Some(ours)) if equal(&theirs, ours) => {
                self.checked = true;
                Ok(())
            }
            _ => Err(Refused::Proof),
        }
    }

    /// The server has shown that it has the verifier too.
    pub(crate) fn is_checked(&self) -> bool {
        self.checked
    }
}

const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn encode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let at = |index: usize| group.get(index).copied().map_or(0, u32::from);
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for index in 0..4_usize {
            let letter = LETTERS[(bits >> (18 - 6 * index) & 63) as usize];
            out.push(if index <= group.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let bytes = text.as_bytes();
    if bytes.is_empty() || !bytes.len().is_multiple_of(4) {
        return None;
    }
    let padding = bytes.iter().rev().take_while(|byte| **byte == b'=').count();
    let mut out = Vec::with_capacity(bytes.len() / 4 * 3);
    for group in bytes[..bytes.len() - padding].chunks(4) {
        let mut bits = 0_u32;
        for letter in group {
            bits = bits << 6 | u32::try_from(LETTERS.iter().position(|known| known == letter)?).ok()?;
        }
        bits <<= 6 * (4 - group.len());
        let [_, a, b, c] = bits.to_be_bytes();
        out.extend(&[a, b, c][..group.len() - 1]);
    }
    (padding <= 2).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Of the password "pencil".
    fn verifier() -> (Verifier, Keys) {
        let (client_key, server_key) = (sign(b"salted", b"Client Key"), sign(b"salted", b"Server Key"));
        let (stored, server) = (encode(&sha256(&client_key)), encode(&server_key));
        let text = format!("SCRAM-SHA-256$4096:{}${stored}:{server}", encode(b"0123456789abcdef"));
        (Verifier::parse(&text).unwrap(), Keys { client_key, server_key })
    }

    fn exchange(verifier: Verifier, keys: Keys, spoil: impl Fn(String) -> String) -> Result<(), Refused> {
        let (mut proof, first) = Proof::begin(keys.clone(), nonce().unwrap());
        let (challenge, answer) = Challenge::begin(verifier, first.as_bytes(), None, &nonce().unwrap())?;
        let last = spoil(proof.answer(answer.as_bytes())?);
        let (found, signature) = challenge.finish(last.as_bytes())?;
        assert!(found == keys, "the proof gives the client's key");
        proof.check(signature.as_bytes())
    }

    #[test]
    fn a_right_key_passes_and_gives_itself() {
        let (verifier, keys) = verifier();
        assert_eq!(exchange(verifier, keys, |last| last), Ok(()));
    }

    #[test]
    fn wrong_keys_proofs_nonces_and_channels_are_refused() {
        let (verifier, keys) = verifier();
        let other = Keys { client_key: [7; KEY], ..keys.clone() };
        assert_eq!(exchange(verifier.clone(), other, |last| last), Err(Refused::Proof));
        let cases: [(&str, &str, Refused); 3] = [
            ("c=biws", "c=eSws", Refused::Channel),
            (",r=", ",r=x", Refused::Malformed),
            (",p=", ",q=", Refused::Malformed),
        ];
        for (from, to, why) in cases {
            assert_eq!(exchange(verifier.clone(), keys.clone(), |last| last.replace(from, to)), Err(why), "{from}");
        }
        assert!(Verifier::mock(b"s", "ann") == Verifier::mock(b"s", "ann"));
        assert_eq!(exchange(Verifier::mock(b"s", "ann"), keys, |last| last), Err(Refused::Proof));
        for first in ["n,a=bob,n=,r=x", "p=tls-server-end-point,,n=,r=x", "n,,n=", "n,,n=,r=", "x"] {
            assert!(Challenge::begin(verifier.clone(), first.as_bytes(), None, "y").is_err(), "{first}");
        }
        assert!(Verifier::parse("md5abc").is_none() && Verifier::parse("SCRAM-SHA-256$4096:x$y:z").is_none());
    }

    proptest! {
        #[test]
        fn base64_comes_back(bytes in prop::collection::vec(any::<u8>(), 1..80)) {
            prop_assert_eq!(decode(&encode(&bytes)), Some(bytes));
        }

        #[test]
        fn any_texts_end(first in prop::collection::vec(any::<u8>(), 0..80), text in "[=,a-z0-9+/]{0,60}") {
            let (verifier, keys) = verifier();
            let _ = Challenge::begin(verifier.clone(), &first, None, "own");
            let (challenge, _) = Challenge::begin(verifier, b"n,,n=,r=x", None, "own").unwrap();
            prop_assert!(challenge.finish(text.as_bytes()).is_err());
            let _ = Proof::begin(keys, "abc".into()).0.answer(text.as_bytes());
            let _ = decode(&text);
        }
    }
}

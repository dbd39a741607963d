//! Join tokens: one text that a person carries from the authority to a host. It works once, and not for long.
//!
//! `ID.SECRET.FINGERPRINT`: the id finds the token again, the secret (192 bits) proves it, the fingerprint tells the joiner whom to
//! trust. The authority's side keeps the secret's hash only.

use crate::NetError;
use crate::pki::hexadecimal;
use ring::digest::{SHA256, digest};
use rustix::rand::{GetRandomFlags, getrandom};
use std::fmt;
use subtle::ConstantTimeEq as _;

/// A token as a person carries it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Finds it again. No secret.
    pub id: String,
    /// Proves it. Never log it.
    pub secret: String,
    /// The authority's fingerprint (SHA-256, hexadecimal).
    pub fingerprint: String,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("id", &self.id).finish_non_exhaustive()
    }
}

fn random<const N: usize>() -> Result<[u8; N], NetError> {
    let mut bytes = [0u8; N];
    match getrandom(&mut bytes, GetRandomFlags::empty()) {
        Ok(got) if got == N => Ok(bytes),
        _ => Err(NetError::Certificate("no randomness from the operating system".to_owned())),
    }
}

fn is_hexadecimal(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

impl Token {
    /// A new token for joining under the authority of this fingerprint.
    ///
    /// # Errors
    /// When the operating system gives no randomness.
    pub fn create(fingerprint: String) -> Result<Token, NetError> {
        Ok(Token { id: hexadecimal(&random::<8>()?), secret: hexadecimal(&random::<24>()?), fingerprint })
    }

    /// Reads what was typed.
    ///
    /// # Errors
    /// When it is no whole token.
    pub fn parse(text: &str) -> Result<Token, NetError> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        match parts[..] {
            [id, secret, fingerprint]
                if is_hexadecimal(id, 16) && is_hexadecimal(secret, 48) && is_hexadecimal(fingerprint, 64) =>
            {
                Ok(Token { id: id.to_owned(), secret: secret.to_owned(), fingerprint: fingerprint.to_owned() })
            }
            _ => Err(NetError::Certificate(
                "this is not a whole join token: it has three parts with dots between, 130 letters in all".to_owned(),
            )),
        }
    }

    /// The text to carry.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}.{}.{}", self.id, self.secret, self.fingerprint)
    }
}

/// May this text be an id (and so a part of a file's name)?
#[must_use]
pub fn is_id(text: &str) -> bool {
    is_hexadecimal(text, 16)
}

/// What is kept of a secret.
#[must_use]
pub fn hash(secret: &str) -> String {
    hexadecimal(digest(&SHA256, secret.as_bytes()).as_ref())
}

/// Is this the secret of that hash? Takes the same time whether or not.
#[must_use]
pub fn matches(secret: &str, kept: &str) -> bool {
    hash(secret).as_bytes().ct_eq(kept.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_being_carried_and_only_its_secret_matches() {
        let token = Token::create("ab".repeat(32)).unwrap();
        let text = token.text();
        assert_eq!(text.len(), 130);
        assert_eq!(Token::parse(&format!(" {text}\n")).unwrap(), token);
        let kept = hash(&token.secret);
        assert!(matches(&token.secret, &kept) && !kept.contains(&token.secret));
        assert!(!matches(&Token::create("ab".repeat(32)).unwrap().secret, &kept));
        assert!(!matches("", &kept) && !matches(&token.secret, ""));
        assert!(!format!("{token:?}").contains(&token.secret));
    }

    #[test]
    fn what_is_not_a_whole_token_is_refused() {
        let text = Token::create("ab".repeat(32)).unwrap().text();
        for bad in ["", "a.b.c", &text[1..], &text[..129], &text.replace('.', "-"), &text.to_uppercase()] {
            assert!(Token::parse(bad).is_err(), "{bad}");
        }
        assert!(!is_id("../../etc/passw") && !is_id(""));
    }
}

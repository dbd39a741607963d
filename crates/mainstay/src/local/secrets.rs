//! The application role's password: 192 bits of the operating system's entropy, and what the server keeps instead of it.

use crate::failure::{Failure, Outcome};
use rustix::rand::{GetRandomFlags, getrandom};

/// How many letters a password has; each holds six bits.
const LETTERS: usize = 32;

/// A new password, of letters that need no quoting in an address.
///
/// # Errors
/// When the operating system gives no randomness.
pub(crate) fn password() -> Outcome<String> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut bytes = [0u8; LETTERS];
    let got = getrandom(&mut bytes, GetRandomFlags::empty())
        .map_err(|error| Failure::failed(format!("no randomness from the operating system: {error}")))?;
    if got != LETTERS {
        return Err(Failure::failed("no randomness from the operating system"));
    }
    Ok(bytes.iter().filter_map(|byte| ALPHABET.get(usize::from(byte % 64)).copied().map(char::from)).collect())
}

/// The SCRAM-SHA-256 verifier of a password, as PostgreSQL stores it: the password can not be read from it.
pub(crate) fn verifier(password: &str) -> String {
    postgres_protocol::password::scram_sha_256(password.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::{LETTERS, password, verifier};

    #[test]
    fn passwords_differ_and_need_no_quoting() {
        let (one, two) = (password().unwrap(), password().unwrap());
        assert_ne!(one, two);
        assert_eq!(one.len(), LETTERS);
        assert!(one.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'));
    }

    #[test]
    fn a_verifier_does_not_hold_the_password() {
        let text = verifier("secret");
        assert!(text.starts_with("SCRAM-SHA-256$4096:") && !text.contains("secret"), "{text}");
        assert_ne!(text, verifier("secret"), "each verifier has a salt of its own");
    }
}

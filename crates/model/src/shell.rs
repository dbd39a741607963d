//! Words for a shell: in the lines that a program over ssh gets, and in those that people paste.

/// A word that a shell takes as it is, whatever it holds. One that means nothing to any shell stays without quotes.
#[must_use]
pub fn quote(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-:@".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shell_would_read_is_quoted() {
        assert_eq!(quote("/etc/postgresql/15/main/start.conf"), "/etc/postgresql/15/main/start.conf");
        assert_eq!(quote(r"postgresql@15-a\x2db.service"), r"'postgresql@15-a\x2db.service'");
        assert_eq!(["", "a b", "$(a)", "~", "é"].map(quote), ["''", "'a b'", "'$(a)'", "'~'", "'é'"]);
        assert_eq!(quote("it's"), r"'it'\''s'");
    }
}

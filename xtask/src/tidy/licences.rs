//! Which licences dependencies may have, and which crates must not be among them.

use super::packages::Metadata;

/// Licences that ask for nothing but notice.
const ALLOWED: [&str; 14] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Zlib",
];

/// Crates that must not come in, not even through others, and why.
const BANNED: [(&str, &str); 8] = [
    ("aws-lc-rs", "ring is the one TLS provider; two make rustls panic at run time"),
    ("aws-lc-sys", "ring is the one TLS provider; two make rustls panic at run time"),
    ("openssl", "rustls is used for TLS"),
    ("openssl-sys", "rustls is used for TLS"),
    ("native-tls", "rustls is used for TLS"),
    ("serde_yaml", "deprecated"),
    ("rustls-pemfile", "unmaintained; rustls reads PEM itself"),
    ("chrono", "jiff is used for people's time"),
];

/// Every licence and every crate that must not be there.
pub(super) fn breaches(metadata: &Metadata) -> Vec<String> {
    let mut breaches = Vec::new();
    for package in &metadata.packages {
        let name = format!("{} {}", package.name, package.version);
        if let Some((_, why)) = BANNED.iter().find(|(banned, _)| *banned == package.name) {
            breaches.push(format!("{name} is banned: {why}"));
        }
        if package.name == "bincode" && package.version.starts_with("3.") {
            breaches.push(format!("{name} is banned: it is a tombstone that does not compile"));
        }
        match package.license.as_deref().map(str::trim) {
            None | Some("") => breaches.push(format!("{name} names no licence")),
            Some(expression) if allowed(expression) => {}
            Some(expression) => breaches.push(format!("{name}: the licence {expression} is not in the list")),
        }
    }
    breaches
}

/// Does the expression leave us a choice that is allowed? `OR` needs one side, `AND` both; the old `/` means `OR`.
fn allowed(expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut reader = Reader { words: &words, at: 0 };
    let fits = reader.either();
    fits && reader.at == words.len()
}

struct Reader<'a> {
    words: &'a [&'a str],
    at: usize,
}

impl Reader<'_> {
    fn accept(&mut self, word: &str) -> bool {
        let here = self.words.get(self.at) == Some(&word);
        self.at += usize::from(here);
        here
    }

    fn either(&mut self) -> bool {
        let mut fits = self.both();
        while self.accept("OR") {
            let next = self.both();
            fits |= next;
        }
        fits
    }

    fn both(&mut self) -> bool {
        let mut fits = self.one();
        while self.accept("AND") {
            let next = self.one();
            fits &= next;
        }
        fits
    }

    fn one(&mut self) -> bool {
        if self.accept("(") {
            let fits = self.either();
            return self.accept(")") && fits;
        }
        let Some(licence) = self.words.get(self.at).copied() else { return false };
        self.at += 1;
        if !self.accept("WITH") {
            return ALLOWED.contains(&licence);
        }
        let exception = self.words.get(self.at).copied().unwrap_or_default();
        self.at += 1;
        ALLOWED.contains(&format!("{licence} WITH {exception}").as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_judged_by_the_choice_they_leave() {
        for good in [
            "MIT",
            "MIT/Apache-2.0",
            "MIT OR GPL-3.0",
            "GPL-3.0 OR (MIT AND ISC)",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
        ] {
            assert!(allowed(good), "{good}");
        }
        for bad in
            ["GPL-3.0", "MIT AND GPL-3.0", "", "(MIT", "MIT Apache-2.0", "GPL-3.0 WITH LLVM-exception", "MIT AND"]
        {
            assert!(!allowed(bad), "{bad}");
        }
    }

    #[test]
    fn a_missing_licence_and_a_banned_crate_are_named() {
        let json = r#"{"workspace_members":[],"target_directory":"","resolve":null,"packages":[
            {"id":"a","name":"openssl","version":"1.0.0","license":"MIT","manifest_path":"","dependencies":[]},
            {"id":"b","name":"bincode","version":"3.0.0","license":"MIT","manifest_path":"","dependencies":[]},
            {"id":"c","name":"c","version":"1.0.0","license":null,"manifest_path":"","dependencies":[]}]}"#;
        assert_eq!(breaches(&serde_json::from_str(json).unwrap()).len(), 3);
    }
}

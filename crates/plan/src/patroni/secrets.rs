//! What looks like a secret. A guess, on the careful side: what is taken for one by mistake is told of by its place, and stays behind.

/// A name that ends so holds a secret, and so does what follows one in a value. `ssl_key_file` names a file, and does not end so.
const WORDS: [&str; 18] = [
    "_key",
    "accesskey",
    "access-key",
    "accountkey",
    "apikey",
    "api-key",
    "credential",
    "credentials",
    "pass",
    "passphrase",
    "passwd",
    "password",
    "pwd",
    "salt",
    "secret",
    "secretkey",
    "secrets",
    "token",
];

/// Does this look like a secret? Such a thing goes into no file.
pub(crate) fn is_secret(name: &str, value: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let value = value.to_ascii_lowercase();
    let last = name.rsplit('.').next().unwrap_or(&name);
    // A switch is none, whatever it is called.
    let switch = matches!(value.as_str(), "" | "on" | "off" | "true" | "false" | "yes" | "no");
    let named = WORDS.iter().any(|word| last.ends_with(word)) || last.contains("passphrase");
    let marked = WORDS.iter().any(|word| value.match_indices(word).any(|(at, _)| follows(&value, at, word.len())));
    let login = value.split("://").skip(1).any(|rest| {
        let place = rest.split(['/', '?', ' ']).next().unwrap_or_default();
        place.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
    });
    named && !switch || marked || login
}

/// Does something stand after the word at this place as its value: `password = x`, `"password": "x"`, `--password x`?
fn follows(value: &str, at: usize, length: usize) -> bool {
    let (before, rest) = (value.get(..at).unwrap_or_default(), value.get(at + length..).unwrap_or_default());
    let bare = rest.trim_start_matches(['"', '\'']);
    let option = before.rsplit(char::is_whitespace).next().is_some_and(|begun| begun.starts_with("--"));
    // A colon after a blank begins an address (`host all token ::1/128 md5`).
    bare.trim_start().starts_with('=')
        || bare.starts_with(':')
        || option && rest.starts_with(char::is_whitespace) && !rest.trim_start().is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_known_by_its_name() {
        for name in [
            "orioledb.s3_secretkey",
            "orioledb.s3_accesskey",
            "timescaledb.license_key",
            "my.PWD",
            "my.ldap_pass",
            "my.credentials",
            "anon.salt",
            "my.password",
            "ssl_passphrase_command",
        ] {
            assert!(is_secret(name, "x1"), "{name}");
        }
        for (name, value) in [
            ("ssl_key_file", "server.key"),
            ("krb_server_keyfile", "/etc/krb.keytab"),
            ("password_encryption", "scram-sha-256"),
            ("my.enable_primary_key", "on"),
            ("ssl_passphrase_command_supports_reload", "off"),
            ("shared_preload_libraries", "passwordcheck,credcheck"),
            ("search_path", "secret, public"),
        ] {
            assert!(!is_secret(name, value), "{name}");
        }
    }

    #[test]
    fn a_secret_is_known_by_what_stands_before_it() {
        for value in [
            "host=a password=s3cr3t",
            "host = a password = s3cr3t",
            "password\t=\t's3cr3t'",
            "PGPASSWORD=x wal-g wal-push %p",
            "curl --token s3cr3t http://h",
            "curl --api-key=s3cr3t http://h",
            "{\"aws_secret_access_key\": \"s3cr3t\"}",
            "AccountName=a;AccountKey=s3cr3t",
            "pwd=s3cr3t",
            "postgres://ann:s3cr3t@h/app",
            "http://h/x postgres://ann:s3cr3t@h/app",
            "host all all all radius radiussecrets=s3cr3t",
            "host all all all ldap ldapbindpasswd = \"s3cr3t\"",
        ] {
            assert!(is_secret("x", value), "{value}");
        }
        for value in [
            "host all all 10.0.0.0/8 password",
            "host all token ::1/128 md5",
            "host secret all 10.0.0.0/8 md5",
            "host=a sslkey=/etc/a.key passfile=/etc/pass",
            "http://h:8080/x",
            "postgres://ann@h:5432/app",
        ] {
            assert!(!is_secret("x", value), "{value}");
        }
    }
}

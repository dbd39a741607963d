//! How parameters and access lines of an existing server are shown. What looks like a secret is not: what is told goes to terminals and logs.

use super::Setting;
use crate::patroni::secrets::is_secret;
use mainstay_model::Durability;
use mainstay_model::config::{key, quoted};
use mainstay_model::config_check::waits;
use mainstay_model::spec::Spec;

/// A parameter and its value.
pub(super) fn setting(setting: &Setting) -> String {
    pair(&setting.name, &setting.value)
}

/// The same of a name and a value.
pub(super) fn pair(name: &str, value: &str) -> String {
    if is_secret(name, value) { format!("{name} (a secret)") } else { format!("{name} = {}", quoted(value)) }
}

/// A line for the file.
pub(super) fn line(setting: &Setting, spec: &Spec) -> String {
    let (name, value) = (setting.name.as_str(), setting.value.as_str());
    if is_secret(name, value) {
        return format!(
            "# {} = the value that it has; it looks like a secret, and the file is read by many",
            key(name)
        );
    }
    let gives_up = name.eq_ignore_ascii_case("synchronous_commit") && !waits(value);
    // The file would not be taken with it.
    let value = if gives_up && spec.cluster.durability != Durability::Async { "on" } else { value };
    format!("{} = {}", key(name), quoted(value))
}

/// An access line, up to what looks like a secret.
pub(super) fn access(line: &str) -> String {
    if !is_secret("", line) {
        return line.to_owned();
    }
    let mut shown: Vec<&str> = line.split(' ').take_while(|word| !is_secret("", word)).collect();
    shown.push("… (a secret)");
    shown.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let made = |name: &str, value: &str| Setting { name: name.into(), value: value.into(), ..Setting::default() };
        let connect = made("primary_conninfo", "host=10.0.0.1 password=hidden");
        let archive = made("archive_command", "AWS_SECRET_ACCESS_KEY=hidden push %p");
        let license = made("timescaledb.license_key", "hidden");
        let spec = mainstay_model::config::parse(
            "[cluster]\nname = \"a\"\n[[node]]\nname = \"b\"\nhost = \"10.0.0.1\"\n",
            &[],
        );
        let spec = spec.unwrap();
        for one in [&connect, &archive, &license] {
            let shown = format!("{} {}", setting(one), line(one, &spec));
            assert!(!shown.contains("hidden") && shown.contains(&one.name), "{shown}");
            assert!(line(one, &spec).starts_with('#'));
        }
        let ldap = "host all all 10.0.0.0/8 ldap ldapserver=ldap.example ldapbindpasswd=two hidden words ldapport=1";
        assert_eq!(access(ldap), "host all all 10.0.0.0/8 ldap ldapserver=ldap.example … (a secret)");
        assert_eq!(access("host all all all md5"), "host all all all md5");
        assert_eq!(line(&made("app.tenant", "a"), &spec), "\"app.tenant\" = \"a\"");
        assert_eq!(line(&made("synchronous_commit", "off"), &spec), "synchronous_commit = \"on\"");
    }
}

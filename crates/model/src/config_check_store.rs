//! What `[store]` must satisfy beyond its types.

use crate::etcd::{ENDPOINTS_MAX, Endpoint};
use crate::spec::{STORE_PREFIX, Store};
use std::collections::BTreeSet;

/// Hands every mistake to `add`: key, text.
pub(crate) fn store(store: &Store, add: &mut dyn FnMut(String, String)) {
    if !store.is_etcd() {
        return only_for_etcd(store, add);
    }
    let parsed: Vec<Result<Endpoint, String>> = store.endpoints.iter().map(|text| Endpoint::parse(text)).collect();
    let mut seen = BTreeSet::new();
    for (place, endpoint) in parsed.iter().enumerate() {
        match endpoint {
            Err(why) => add(format!("store.endpoints.{place}"), why.clone()),
            Ok(endpoint) if !seen.insert(endpoint) => {
                add(format!("store.endpoints.{place}"), format!("{endpoint} stands twice in store.endpoints"));
            }
            Ok(_) => {}
        }
    }
    let count = store.endpoints.len();
    if count == 0 || count > ENDPOINTS_MAX {
        let text = format!("store.endpoints names {count} members of the etcd: 1 to {ENDPOINTS_MAX}, three as a rule");
        add("store.endpoints".to_owned(), text);
    }
    let tls = seen.iter().filter(|endpoint| endpoint.tls).count();
    if tls > 0 && tls < seen.len() {
        let text = "some endpoints are https and some http: all of one kind";
        add("store.endpoints".to_owned(), text.to_owned());
    }
    if tls > 0 && store.ca_file.is_none() {
        let text = "https needs the authority of etcd's certificates: add store.ca_file";
        add("store.ca_file".to_owned(), text.to_owned());
    }
    if tls == 0 && (store.cert_file.is_some() || store.ca_file.is_some() || store.key_file.is_some()) {
        let text =
            "the endpoints are plain http, so certificates are never used: write https://…, or take the files away";
        add("store.endpoints".to_owned(), text.to_owned());
    }
    pair(("cert_file", store.cert_file.is_some()), ("key_file", store.key_file.is_some()), add);
    pair(("user", store.user.is_some()), ("password_file", store.password_file.is_some()), add);
    let open = |endpoint: &&&Endpoint| !endpoint.tls && !is_this_host(&endpoint.host);
    if let (true, Some(endpoint)) = (store.user.is_some(), seen.iter().find(open)) {
        let text =
            format!("the password would go to {endpoint} in plain text: write https://…, or take store.user away");
        add("store.endpoints".to_owned(), text);
    }
    if store.user.as_deref() == Some("") {
        add("store.user".to_owned(), "store.user is empty: name a user of etcd, or leave it out".to_owned());
    }
    let files = [
        ("ca_file", &store.ca_file),
        ("cert_file", &store.cert_file),
        ("key_file", &store.key_file),
        ("password_file", &store.password_file),
    ];
    for (key, path) in files {
        if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
            let text = format!("{key} = {:?} must be an absolute path", path.display());
            add(format!("store.{key}"), text);
        }
    }
    if let Err(why) = prefix(&store.prefix) {
        add("store.prefix".to_owned(), why);
    }
}

/// What is sent there leaves the machine on no network.
fn is_this_host(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn only_for_etcd(store: &Store, add: &mut dyn FnMut(String, String)) {
    let given = [
        ("endpoints", !store.endpoints.is_empty()),
        ("ca_file", store.ca_file.is_some()),
        ("cert_file", store.cert_file.is_some()),
        ("key_file", store.key_file.is_some()),
        ("user", store.user.is_some()),
        ("password_file", store.password_file.is_some()),
        ("prefix", store.prefix != STORE_PREFIX),
    ];
    for (key, _) in given.iter().filter(|(_, given)| *given) {
        let text = format!("store.{key} is for an etcd: add kind = \"etcd\", or take it away");
        add(format!("store.{key}"), text);
    }
}

fn pair(one: (&str, bool), other: (&str, bool), add: &mut dyn FnMut(String, String)) {
    let missing = match (one.1, other.1) {
        (true, false) => other.0,
        (false, true) => one.0,
        _ => return,
    };
    add(
        format!("store.{missing}"),
        format!("store.{} and store.{} belong together: add store.{missing}", one.0, other.0),
    );
}

fn prefix(prefix: &str) -> Result<(), String> {
    let part = |part: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        !part.is_empty() && part.bytes().all(plain)
    };
    let fits = prefix.len() <= 200 && prefix.strip_prefix('/').is_some_and(|rest| rest.split('/').all(part));
    let text = "begins with / and has parts of letters, digits, '-', '_' and '.', as /mainstay or /teams/orders";
    if fits { Ok(()) } else { Err(format!("prefix = {prefix:?}: it {text}")) }
}

#[cfg(test)]
mod tests {
    use crate::config::parse;

    fn wrong(store: &str) -> String {
        let text =
            format!("[cluster]\nname = \"c\"\n[[node]]\nname = \"db1\"\nhost = \"10.0.0.1\"\n[store]\n{store}\n");
        parse(&text, &[]).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn an_etcd_needs_endpoints_and_what_belongs_to_them() {
        assert_eq!(wrong("kind = \"etcd\"\nendpoints = [\"http://10.0.0.7:2379\"]"), "");
        assert_eq!(wrong("kind = \"raft\""), "");
        let tls = "kind = \"etcd\"\nendpoints = [\"https://a\", \"https://b\"]\nca_file = \"/ca\"\n";
        assert_eq!(wrong(tls), "");
        assert_eq!(
            wrong(&format!("{tls}user = \"m\"\npassword_file = \"/p\"\ncert_file = \"/c\"\nkey_file = \"/k\"")),
            ""
        );
        let here = "kind = \"etcd\"\nendpoints = [\"http://127.0.0.1\"]\nuser = \"m\"\npassword_file = \"/p\"";
        assert_eq!(wrong(here), "");
        for (store, expected) in [
            ("kind = \"etcd\"", "names 0 members"),
            ("kind = \"etcd\"\nendpoints = [\"10.0.0.7:2379\"]", "line 8: \"10.0.0.7:2379\" is no address of an etcd"),
            ("kind = \"etcd\"\nendpoints = [\"http://a\", \"http://a:2379/\"]", "stands twice"),
            ("kind = \"etcd\"\nendpoints = [\"http://a\", \"https://b\"]\nca_file = \"/ca\"", "all of one kind"),
            ("kind = \"etcd\"\nendpoints = [\"https://a\"]", "add store.ca_file"),
            ("kind = \"etcd\"\nendpoints = [\"http://a\"]\nca_file = \"/ca\"", "plain http"),
            (&format!("{tls}cert_file = \"/c\""), "add store.key_file"),
            (&format!("{tls}password_file = \"/c\""), "add store.user"),
            (
                "kind = \"etcd\"\nendpoints = [\"http://10.0.0.7\"]\nuser = \"m\"\npassword_file = \"/p\"",
                "http://10.0.0.7:2379 in plain text",
            ),
            (&format!("{tls}prefix = \"mainstay/\""), "begins with /"),
            ("kind = \"zookeeper\"", "unknown variant"),
            ("endpoints = [\"http://a\"]", "add kind = \"etcd\""),
            ("kind = \"etcd\"\nendpoint = [\"http://a\"]", "did you mean \"endpoints\"?"),
        ] {
            let why = wrong(store);
            assert!(why.contains(expected), "{store}: {why}");
        }
    }
}

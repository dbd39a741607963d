//! What the nodes' own files say: cluster, names, addresses, ports, programs.

use super::book::{Book, Verdict};
use super::{Input, Refused, refused};
use mainstay_model::spec::Node;
use mainstay_model::{ClusterName, NodeId};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Ports of nodes that share a host differ by this.
const NEXT_ON_HOST: u16 = 10;

/// A node, and what Patroni calls it.
pub(super) struct Member {
    pub(super) node: Node,
    pub(super) called: String,
}

/// A name of the form that Mainstay asks for.
fn fitting(name: &str) -> String {
    let lower = name.trim().to_ascii_lowercase();
    let mut out = String::new();
    for letter in lower.chars() {
        let letter = if letter.is_ascii_lowercase() || letter.is_ascii_digit() { letter } else { '-' };
        if letter != '-' || !out.is_empty() && !out.ends_with('-') {
            out.push(letter);
        }
    }
    if !out.starts_with(|letter: char| letter.is_ascii_lowercase()) {
        out.insert(0, 'n');
    }
    out.truncate(40);
    out.trim_end_matches('-').to_owned()
}

/// Host and port of `10.0.0.1:5432`, `[::1]:5432`, `a,b:5432` (the first host, the last port); what stands there for a port and is none.
fn address(text: &str) -> Result<(Option<String>, Option<u16>), String> {
    let mut host = None;
    let mut port = None;
    for part in text.split(',').map(str::trim) {
        let (name, rest) = match part.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((name, rest)) => (name, rest.strip_prefix(':')),
            None if part.matches(':').count() > 1 => (part, None),
            None => part.split_once(':').map_or((part, None), |(name, rest)| (name, Some(rest))),
        };
        if let Some(rest) = rest {
            port = Some(rest.parse().ok().filter(|port| *port > 0).ok_or_else(|| rest.to_owned())?);
        }
        let any = ["", "*", "0.0.0.0", "::"].contains(&name);
        host = host.or_else(|| (!any).then(|| name.to_owned()));
    }
    Ok((host, port))
}

/// The cluster's name and its nodes.
pub(super) fn nodes(
    input: &Input<'_>,
    book: &mut Book,
    notes: &mut Vec<String>,
) -> Result<(ClusterName, Vec<Member>), Refused> {
    let cluster = cluster(input, book)?;
    let mut members: Vec<Member> = Vec::new();
    let mut on_host: BTreeMap<String, u16> = BTreeMap::new();
    for file in &input.nodes {
        let member = node(input, book, *file, &cluster, &mut on_host)?;
        if let Some(same) = members.iter().position(|other| other.node.name == member.node.name) {
            let other = input.nodes.get(same).map_or("?", |file| input.name(*file));
            let text = format!("{other} and {} would both be the node {}", input.name(*file), member.node.name);
            return Err(refused(text, "name each node's file once; names differ in more than signs and capitals"));
        }
        members.push(member);
    }
    match members.len() {
        1 => notes.push(
            "Only one node's file was read. Name those of all nodes, or add each other one as a [[node]]: a cluster of one survives nothing."
                .to_owned(),
        ),
        2 => notes.push(
            "Two nodes: Mainstay keeps its store on the nodes themselves, and two can not outvote the loss of one. Add a third host as a \
             [[node]] with witness = true; it holds no data. Or let an etcd be the store (docs/etcd.md)."
                .to_owned(),
        ),
        _ => {}
    }
    Ok((cluster, members))
}

fn cluster(input: &Input<'_>, book: &mut Book) -> Result<ClusterName, Refused> {
    let mut found: Option<(String, usize)> = None;
    let mut verdicts = Vec::new();
    for file in &input.nodes {
        let Some((id, scope)) = book.find(*file, &["scope"]) else { continue };
        let scope = scope.text.clone();
        match &found {
            Some((first, of)) if *first != scope => {
                let (one, other) = (input.name(*of), input.name(*file));
                let text = format!("{one} is of the cluster {first:?} and {other} of {scope:?}");
                return Err(refused(text, "import one cluster at a time"));
            }
            _ => found = Some((scope, *file)),
        }
        verdicts.push(id);
    }
    let Some((scope, _)) = found else {
        return Err(refused(
            "no file has the key scope, the cluster's name",
            "does PATRONI_SCOPE say it? Put `scope: NAME` into copies of the files, and import those",
        ));
    };
    let name = fitting(&scope);
    let name =
        ClusterName::new(name).map_err(|bad| refused(format!("scope: {scope:?}: {bad}"), "name it otherwise"))?;
    let verdict = if name.as_str() == scope {
        Verdict::carried("cluster.name", &scope)
    } else {
        Verdict::changed(Some("cluster.name"), name.as_str(), "names here are small letters, digits and -")
    };
    verdicts.into_iter().for_each(|id| book.say(id, verdict.clone()));
    Ok(name)
}

fn node(
    input: &Input<'_>,
    book: &mut Book,
    file: usize,
    cluster: &ClusterName,
    on_host: &mut BTreeMap<String, u16>,
) -> Result<Member, Refused> {
    let shown = input.name(file);
    let text = |book: &Book, path: &[&str]| book.find(file, path).map(|(id, scalar)| (id, scalar.text.clone()));
    let (name_id, called) = text(book, &["name"]).ok_or_else(|| {
        refused(
            format!("{shown} has no key name"),
            "does PATRONI_NAME say it? Put `name: NAME` into a copy of the file, and import that",
        )
    })?;
    let name = NodeId::new(fitting(&called))
        .map_err(|bad| refused(format!("{shown}: name: {called:?}: {bad}"), "name it otherwise"))?;
    let connect = text(book, &["postgresql", "connect_address"]);
    let listen = text(book, &["postgresql", "listen"]);
    let rest_connect = text(book, &["restapi", "connect_address"]);
    let rest_listen = text(book, &["restapi", "listen"]);
    let of = |key: &str, said: &Option<(usize, String)>| {
        let Some((_, text)) = said else { return Ok((None, None)) };
        address(text).map_err(|port| {
            refused(format!("{shown}: {key}: {text:?}: {port:?} is no port"), "a port is a number from 1 to 65535")
        })
    };
    let (own, own_listen) = (of("postgresql.connect_address", &connect)?, of("postgresql.listen", &listen)?);
    let (rest, rest_listen_at) = (of("restapi.connect_address", &rest_connect)?, of("restapi.listen", &rest_listen)?);
    let host = own.0.or(own_listen.0).or(rest.0).or(rest_listen_at.0).ok_or_else(|| {
        refused(
            format!("{shown} says no address under which others reach the node {called} (postgresql.connect_address)"),
            "does PATRONI_POSTGRESQL_CONNECT_ADDRESS say it? Put it into a copy of the file, and import that",
        )
    })?;
    let port = own.1.or(own_listen.1).unwrap_or(5432);
    let place = on_host.entry(host.to_ascii_lowercase()).and_modify(|place| *place += 1).or_insert(0);
    let offset = place.saturating_mul(NEXT_ON_HOST);
    let health = rest.1.or(rest_listen_at.1);
    let node = Node {
        host: host.clone(),
        zone: None,
        witness: false,
        // Which of them is the primary no file says.
        adopt: None,
        adopt_standby: None,
        interface: None,
        port,
        agent_port: 7420 + offset.min(1000),
        health_port: health.unwrap_or(7421 + offset.min(1000)),
        dir: (offset > 0).then(|| PathBuf::from(format!("/var/lib/mainstay/{cluster}-{name}"))),
        name,
    };
    tell_names(book, (name_id, &called), &node);
    tell_addresses(book, [&connect, &listen, &rest_connect, &rest_listen], &node, health.is_some());
    tell_data(book, file, &node, cluster);
    Ok(Member { node, called })
}

fn tell_names(book: &mut Book, (id, called): (usize, &str), node: &Node) {
    let to = format!("node.{}.name", node.name);
    if node.name.as_str() == called {
        book.say(id, Verdict::carried(to, called));
    } else {
        let text = "names here are small letters, digits and -";
        book.say(id, Verdict::changed(Some(&to), node.name.as_str(), text));
    }
}

/// The four addresses: server to connect to and to listen on, the same of the REST interface.
fn tell_addresses(book: &mut Book, said: [&Option<(usize, String)>; 4], node: &Node, health: bool) {
    let [connect, listen, rest_connect, rest_listen] = said;
    let name = &node.name;
    let at = format!("{}:{}", node.host, node.port);
    if let Some((id, _)) = connect {
        let to = format!("node.{name}.host and .port");
        match &node.dir {
            None => book.say(*id, Verdict::carried(to, &at)),
            Some(dir) => {
                let text = format!(
                    "another node has this host already: it was given agent_port {} and the directory {}",
                    node.agent_port,
                    dir.display()
                );
                book.say(*id, Verdict::changed(Some(&to), &at, text));
            }
        }
    }
    if let Some((id, _)) = listen {
        let to = format!("node.{name}.host and .port");
        let text = "the server listens on the address by which the others reach it";
        book.say(*id, Verdict::changed(Some(&to), &at, text));
    }
    if !health {
        return;
    }
    let to = format!("node.{name}.health_port");
    let text = "the health endpoints (/primary, /replica, /health …) answer here as Patroni's do, without TLS; they change nothing, for that \
                there is agent_port";
    for (id, _) in [rest_connect, rest_listen].into_iter().flatten() {
        book.say(*id, Verdict::changed(Some(&to), node.health_port.to_string(), text));
    }
}

fn tell_data(book: &mut Book, file: usize, node: &Node, cluster: &ClusterName) {
    let Some((id, place)) = book.find(file, &["postgresql", "data_dir"]) else { return };
    let standard = PathBuf::from("/var/lib/mainstay").join(cluster.as_str());
    let dir = node.dir.clone().unwrap_or(standard).join("data");
    let text = format!(
        "the data will lie in {}; to take servers over without a copy, write adopt = {:?} into the primary's [[node]], and adopt_standby into the replicas' (docs/adopt.md)",
        dir.display(),
        place.text
    );
    book.say(id, Verdict::left(text));
}

/// Where the server's programs are: one place for all nodes.
pub(super) fn programs(input: &Input<'_>, book: &mut Book) -> Option<PathBuf> {
    let find =
        |file: &usize| book.find(*file, &["postgresql", "bin_dir"]).map(|(id, scalar)| (id, scalar.text.clone()));
    let found: Vec<(usize, String)> = input.nodes.iter().filter_map(find).collect();
    let (_, first) = found.first().cloned()?;
    let absolute = first.starts_with('/');
    for (id, text) in found {
        let verdict = match (text == first, absolute) {
            (true, true) => Verdict::carried("postgres.bin_dir", text),
            (true, false) => Verdict::left("it is no absolute path: the newest programs of the distribution are taken"),
            (false, _) => {
                Verdict::left("another node's file says otherwise, and there is one postgres.bin_dir for all")
            }
        };
        book.say(id, verdict);
    }
    absolute.then(|| PathBuf::from(first))
}

#[cfg(test)]
mod tests {
    use super::{address, fitting};

    #[test]
    fn names_are_made_to_fit() {
        let names = ["postgresql0", "PG-1.example.com", "my_cluster", "01", "--x--", "Ä"];
        assert_eq!(names.map(fitting), ["postgresql0", "pg-1-example-com", "my-cluster", "n01", "x", "n"]);
        assert_eq!(fitting(&"a".repeat(60)).len(), 40);
    }

    #[test]
    fn addresses_are_taken_apart() {
        let of = |text: &str| {
            let (host, port) = address(text).unwrap();
            (host.unwrap_or_default(), port.unwrap_or(0))
        };
        assert_eq!(of("10.0.0.1:5433"), ("10.0.0.1".to_owned(), 5433));
        assert_eq!(of("db1.example.com"), ("db1.example.com".to_owned(), 0));
        assert_eq!(of("[2001:db8::1]:5432"), ("2001:db8::1".to_owned(), 5432));
        assert_eq!(of("2001:db8::1"), ("2001:db8::1".to_owned(), 0));
        assert_eq!(of("*:5432"), (String::new(), 5432));
        assert_eq!(of("0.0.0.0,10.0.0.2:5434"), ("10.0.0.2".to_owned(), 5434));
        for (text, bad) in [("a:99999", "99999"), ("a:abc", "abc"), ("a:0", "0"), ("a:", ""), ("a,b:x", "x")] {
            assert_eq!(address(text), Err(bad.to_owned()), "{text}");
        }
    }
}

//! A node's certificates: until when, for whom, for which key, from which authority.

use crate::local::keys::Member;
use mainstay_model::ClusterName;
use mainstay_model::layout::NodeLayout;
use mainstay_model::spec::{Node, Spec};
use mainstay_net::{Identity, Issued, pki};
use mainstay_plan::doctor::facts::{Paper, PaperState, Reading};
use std::path::{Path, PathBuf};

/// Each certificate that the node must have.
pub(super) fn read(spec: &Spec, node: &Node, layout: &NodeLayout) -> Vec<Paper> {
    let cluster = &spec.cluster.name;
    let authority = text(&layout.ca_cert());
    let mut papers = vec![Paper {
        path: layout.ca_cert().display().to_string(),
        state: authority.clone().and_then(|pem| self::authority(cluster, &pem)),
    }];
    for (purpose, (role, hosts)) in Member::node(spec, node).purposes() {
        let Some((cert, key)) = files(layout, purpose) else { continue };
        // Where proxies run elsewhere the node needs none of its own; one that is there is looked at.
        if purpose == "proxy" && !spec.proxy.on_nodes && !cert.exists() {
            continue;
        }
        // Other nodes' hosts may stand in it, since proxies pass clients on; this node's must.
        let needed = if hosts.is_empty() { None } else { Some(node.host.as_str()) };
        let wanted = Identity { cluster: cluster.clone(), role };
        let state = authority.clone().and_then(|authority| examine(&wanted, needed, (&cert, &key), &authority));
        papers.push(Paper { path: cert.display().to_string(), state });
    }
    if !node.witness {
        papers.push(servers_authority(layout, &authority));
    }
    papers
}

fn files(layout: &NodeLayout, purpose: &str) -> Option<(PathBuf, PathBuf)> {
    match purpose {
        "node" => Some((layout.node_cert(), layout.node_key())),
        "proxy" => Some((layout.proxy_cert(), layout.proxy_key())),
        "server" => Some((layout.server_cert(), layout.server_key())),
        "replication" => Some((layout.replication_cert(), layout.replication_key())),
        _ => None,
    }
}

fn text(path: &Path) -> Reading<String> {
    std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn authority(cluster: &ClusterName, pem: &str) -> Reading<PaperState> {
    let until = pki::valid_until(pem).map_err(|error| error.to_string())?;
    let wrong = pki::check_name_of_authority(cluster, pem).err().map(|error| error.to_string());
    Ok(PaperState { until, wrong: wrong.into_iter().collect() })
}

/// The copy that the server reads.
fn servers_authority(layout: &NodeLayout, authority: &Reading<String>) -> Paper {
    let path = layout.server_ca();
    let state = text(&path).and_then(|pem| {
        let until = pki::valid_until(&pem).map_err(|error| error.to_string())?;
        let same = authority.as_ref().is_ok_and(|authority| *authority == pem);
        let wrong = (!same).then(|| format!("it is another authority than {}", layout.ca_cert().display()));
        Ok(PaperState { until, wrong: wrong.into_iter().collect() })
    });
    Paper { path: path.display().to_string(), state }
}

fn examine(
    wanted: &Identity,
    needed: Option<&str>,
    (cert, key): (&Path, &Path),
    authority: &str,
) -> Reading<PaperState> {
    let issued = Issued { cert_pem: text(cert)?, key_pem: text(key)? };
    let until = pki::valid_until(&issued.cert_pem).map_err(|error| error.to_string())?;
    let mut wrong = Vec::new();
    match pki::describe(&issued.cert_pem) {
        Ok((identity, _)) if identity == *wanted => {}
        Ok((identity, _)) => wrong.push(format!("it is for {identity}, not for {wanted}")),
        Err(error) => wrong.push(error.to_string()),
    }
    let hosts = pki::hosts(&issued.cert_pem).map_err(|error| error.to_string())?;
    if let Some(host) = needed
        && !hosts.iter().any(|known| known.eq_ignore_ascii_case(host))
    {
        wrong.push(format!(
            "it names {}, not {host}",
            if hosts.is_empty() { "no host".to_owned() } else { hosts.join(", ") }
        ));
    }
    if let Err(error) = issued.check_issued_by(authority) {
        wrong.push(error.to_string());
    }
    Ok(PaperState { until, wrong })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_net::Authority;
    use std::fs::write;

    const FILE: &str = "[cluster]\nname = \"orders\"\n[[node]]\nname = \"db1\"\nhost = \"10.0.0.1\"\nwitness = true\n\
                        [[node]]\nname = \"db2\"\nhost = \"10.0.0.2\"\n";

    #[test]
    fn papers_that_do_not_fit_say_why() {
        let home = tempfile::tempdir().unwrap();
        let layout = NodeLayout::new(home.path());
        std::fs::create_dir(layout.agent()).unwrap();
        let spec = mainstay_model::config::parse(FILE, &[]).unwrap();
        let (db1, db2) = (&spec.nodes[0], &spec.nodes[1]);
        let seen = || {
            let papers = read(&spec, db1, &layout).into_iter();
            papers.map(|paper| paper.state.map(|state| state.wrong.join("; "))).collect::<Vec<_>>()
        };
        assert!(seen().iter().all(|state| state.as_ref().is_err_and(|why| why.contains("ca.crt"))), "{:?}", seen());
        let issue = |authority: &Authority, node: &Node| {
            for (purpose, (role, hosts)) in Member::node(&spec, node).purposes() {
                let Some((cert, key)) = files(&layout, purpose) else { continue };
                let issued = authority.issue(&role, &hosts).unwrap();
                // A witness has no place for the others.
                let _ = (write(cert, issued.cert_pem), write(key, issued.key_pem));
            }
        };
        let authority = Authority::create(&spec.cluster.name).unwrap();
        write(layout.ca_cert(), authority.cert_pem()).unwrap();
        issue(&authority, db1);
        assert_eq!(seen(), [Ok(String::new()), Ok(String::new()), Ok(String::new())]);
        issue(&authority, db2);
        let found = seen();
        assert!(found[1].as_ref().unwrap().contains("not for mainstay://orders/node/db1"), "{found:?}");
        assert!(found[1].as_ref().unwrap().contains("it names 10.0.0.2, not 10.0.0.1"), "{found:?}");
        issue(&Authority::create(&spec.cluster.name).unwrap(), db1);
        assert!(seen()[1].as_ref().unwrap().contains("not this authority's"), "{:?}", seen());
        write(layout.node_key(), authority.issue(&mainstay_net::Role::Node(db1.name.clone()), &[]).unwrap().key_pem)
            .unwrap();
        assert!(seen()[1].as_ref().unwrap().contains("do not belong together"), "{:?}", seen());
        let other = Authority::create(&ClusterName::new("bills").unwrap()).unwrap();
        write(layout.ca_cert(), other.cert_pem()).unwrap();
        assert!(seen()[0].as_ref().unwrap().contains("authority of bills"), "{:?}", seen());
    }
}

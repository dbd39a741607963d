//! `mainstay pki`: the cluster authority's side. Makes it, issues from it, answers those who join, shows what was issued.

use crate::cli::Global;
use crate::cli_keys::{ForWhom, Init, Issue, List, Pki, PkiCommand, Serve};
use crate::failure::{Failure, Outcome};
use crate::local::keys::{ADMIN, Keys, Material, Member, Wanted, write_all};
use crate::local::node_dir;
use crate::local::tokens::{Door, Tokens};
use crate::output;
use crate::output::table::{ago, render};
use crate::target::{self, Target};
use jiff::Timestamp;
use mainstay_model::ClusterName;
use mainstay_model::layout::ClusterLayout;
use mainstay_net::{Role, join, pki};
use mainstay_ports::clock::wall_now_ms;
use serde_json::json;
use std::path::{Path, PathBuf};
use tokio::net::{TcpListener, lookup_host};

/// What tells a bundle's content, beside its files.
pub(crate) const BUNDLE_FILE: &str = "bundle.json";
/// The name in the certificate that answers those who join.
const SERVE_NAME: &str = "join";

/// Where an authority is made, beside the cluster's file, before it is moved to its place.
const ASIDE: &str = ".pki-init";

/// Runs one of the subcommands.
///
/// # Errors
/// Why it did not do what was asked.
pub(crate) fn run(options: Pki, global: Global) -> Outcome {
    match options.command {
        PkiCommand::Init(options) => init(&options, global),
        PkiCommand::Issue(options) => issue(&options, global),
        PkiCommand::Serve(options) => super::one_thread(serve(options, global)),
        PkiCommand::List(options) => list(&options, global),
    }
}

/// Makes the authority beside the cluster's file, or goes on with one whose making was interrupted.
///
/// # Errors
/// When something of it is there already, or the disk refuses.
pub(super) fn make(target: &Target) -> Outcome<Keys> {
    let layout = &target.layout;
    let cluster = &target.spec.cluster.name;
    // An authority is whole as soon as `pki/` is there: it is made aside and moved there at last.
    let aside = ClusterLayout::new(layout.dir().join(ASIDE));
    let resumed = aside.pki().exists() && !aside.secrets().exists() && !layout.pki().exists();
    if !resumed {
        found_aside(layout, &aside, cluster)?;
        move_to(&aside.secrets(), &layout.secrets())?;
    }
    move_to(&aside.pki(), &layout.pki())?;
    // Empty by now; one that stays does no harm.
    let _ = std::fs::remove_dir(aside.dir());
    Keys::open(layout, cluster)
}

fn init(options: &Init, global: Global) -> Outcome {
    let target = Target::find(&options.which)?;
    let keys = make(&target)?;
    let (layout, cluster) = (&target.layout, &target.spec.cluster.name);
    let fingerprint = pki::fingerprint(keys.authority().cert_pem()).map_err(crate::local::keys::net)?;
    if global.json {
        output::object(&json!({
            "cluster": cluster, "pki": layout.pki(), "fingerprint": fingerprint, "admin": ADMIN,
            "password": layout.app_password(), "verified": ["the authority reads back"],
        }));
        return Ok(());
    }
    output::line(&format!("The authority of the cluster {cluster} is made."));
    output::line(&format!("  authority    {} (keep ca.key safe)", layout.pki().display()));
    output::line(&format!("  fingerprint  {fingerprint}"));
    output::line(&format!("  admin        {}", layout.admin_cert().display()));
    output::line(&format!("  password     {} (role app)", layout.app_password().display()));
    output::line("Next: mainstay pki issue NODE for each node, mainstay pki serve, and mainstay join on each host");
    Ok(())
}

fn found_aside(layout: &ClusterLayout, aside: &ClusterLayout, cluster: &ClusterName) -> Outcome {
    for path in [layout.ca_key(), layout.ca_cert(), layout.pki(), layout.app_password(), layout.secrets()] {
        if path.exists() {
            return Err(Failure::failed(format!("{} exists already: nothing was changed", path.display())).hint(
                "an authority is made once for a cluster, on one host; the others join it (`mainstay pki issue`, `mainstay join`)",
            ));
        }
    }
    // What an interrupted attempt left: nothing was issued from it.
    if let Err(error) = std::fs::remove_dir_all(aside.dir())
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(Failure::failed(format!("{} can not be removed: {error}", aside.dir().display())));
    }
    let made =
        node_dir::make_dir(aside.dir(), 0o700, None).and_then(|()| Keys::found(aside, cluster, "init").map(drop));
    made.map_err(|failure| {
        // Made by us a moment ago; the first failure is the one to tell.
        let _ = std::fs::remove_dir_all(aside.dir());
        failure.hint("what had been made was removed again")
    })
}

fn move_to(from: &Path, to: &Path) -> Outcome {
    std::fs::rename(from, to).map_err(|error| {
        Failure::failed(format!("{} can not be moved to {}: {error}", from.display(), to.display()))
            .hint("mend that and type the command again: it goes on from here")
    })
}

/// The one who is named.
fn member(target: &Target, options: &Issue) -> Outcome<Member> {
    let whom: &ForWhom = &options.whom;
    if let (Some(name), Some(host)) = (&whom.node, &options.host)
        && target.spec.node(name).is_none()
    {
        let node = json!({ "name": name, "host": host, "witness": options.witness });
        let node = serde_json::from_value(node).map_err(|error| Failure::usage(error.to_string()))?;
        return Ok(Member::node(&target.spec, &node));
    }
    if let Some(name) = &whom.node {
        super::why::check_node(target, Some(name)).map_err(|failure| {
            let advice = failure.hint.clone().unwrap_or_default();
            failure.hint(format!("{advice}; for a node that the file does not list yet say --host HOST too"))
        })?;
        let node = target.spec.node(name);
        return node.map(|node| Member::node(&target.spec, node)).ok_or_else(|| Failure::usage("no such node"));
    }
    let people =
        [("proxy", &whom.proxy), ("operator", &whom.operator), ("reader", &whom.reader), ("admin", &whom.admin)];
    let named = people.into_iter().find_map(|(word, name)| Some((word, name.as_ref()?)));
    let (word, name) = named.ok_or_else(|| Failure::usage("say for whom"))?;
    let role = Role::parse(word, name);
    role.map(|role| Member::plain(&role))
        .map_err(|error| Failure::usage(error.to_string()).hint(format!("for example --{word} ann-1")))
}

fn issue(options: &Issue, global: Global) -> Outcome {
    let target = Target::find(&options.which)?;
    let member = member(&target, options)?;
    let keys = Keys::open(&target.layout, &target.spec.cluster.name)?;
    match &options.out {
        Some(out) => bundle(&keys, &member, &target::absolute(out)?, global),
        None => token(&keys, &member, options, global),
    }
}

fn token(keys: &Keys, member: &Member, options: &Issue, global: Global) -> Outcome {
    let (token, kept) = Tokens::of(keys).issue(member, options.valid)?;
    let until = moment(i64::try_from(kept.until_ms / 1000).unwrap_or(i64::MAX));
    if global.json {
        output::object(&json!({
            "token": token.text(), "role": member.role, "name": member.name, "until": until,
            "fingerprint": token.fingerprint,
        }));
        return Ok(());
    }
    output::line(&token.text());
    let word = if member.role == "node" { "node" } else { &member.role };
    output::errline(&format!(
        "A join token for {} {}; it works once, until {until}.\n\
         Here: mainstay pki serve   There: mainstay join --{word} {} --at THIS-HOST --token - (and paste it)",
        member.role, member.name, member.name
    ));
    Ok(())
}

/// A bundle's description.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct Bundle {
    /// Which cluster.
    pub(crate) cluster: String,
    /// For whom.
    pub(crate) member: Member,
}

fn bundle(keys: &Keys, member: &Member, out: &Path, global: Global) -> Outcome {
    let empty = std::fs::read_dir(out).map(|mut entries| entries.next().is_none());
    match empty {
        Ok(true) => std::fs::set_permissions(out, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .map_err(|error| Failure::failed(format!("{}: {error}", out.display())))?,
        Ok(false) => {
            return Err(Failure::failed(format!("{} is not empty: nothing was changed", out.display()))
                .hint("name a directory that does not exist yet"));
        }
        Err(_) => node_dir::make_dir(out, 0o700, None)?,
    }
    let material = keys.material(member, "bundle")?;
    write_all(&bundle_files(out, keys, member, &material)?, false)?;
    let names: Vec<&String> = material.issued.keys().collect();
    if global.json {
        output::object(&json!({ "bundle": out, "role": member.role, "name": member.name, "certificates": names }));
        return Ok(());
    }
    output::line(&format!("Certificates and keys of {} {} are in {}.", member.role, member.name, out.display()));
    output::line(
        "Carry the directory over a safe way, run `mainstay join --bundle DIR` there, and remove every copy of it.",
    );
    Ok(())
}

fn bundle_files(out: &Path, keys: &Keys, member: &Member, material: &Material) -> Outcome<Vec<Wanted>> {
    let file = |name: &str, text: &str| Wanted {
        path: out.join(name),
        bytes: text.as_bytes().to_vec(),
        mode: 0o600,
        owner: None,
    };
    let about = Bundle { cluster: keys.authority().cluster().to_string(), member: member.clone() };
    let about = serde_json::to_string(&about).map_err(|error| Failure::failed(error.to_string()))?;
    let mut files = vec![file(BUNDLE_FILE, &about), file("ca.crt", &material.authority)];
    if let Some(verifier) = &material.verifier {
        files.push(file("app.verifier", verifier));
    }
    for (purpose, issued) in &material.issued {
        files.push(file(&format!("{purpose}.key"), &issued.key_pem));
        files.push(file(&format!("{purpose}.crt"), &issued.cert_pem));
    }
    Ok(files)
}

async fn serve(options: Serve, global: Global) -> Outcome {
    let target = Target::find(&options.which)?;
    let keys = Keys::open(&target.layout, &target.spec.cluster.name)?;
    let tokens = Tokens::of(&keys);
    let open = tokens.open();
    if open.is_empty() {
        return Err(Failure::not_now("there is no open token, so there is nobody to wait for")
            .hint("issue some first: mainstay pki issue NODE"));
    }
    let shown =
        keys.authority().issue(&Role::Authority(SERVE_NAME.to_owned()), &[]).map_err(crate::local::keys::net)?;
    let mut found = lookup_host(options.listen.as_str()).await.map_err(|error| {
        Failure::usage(format!("--listen {}: {error}", options.listen)).hint("say HOST:PORT, for example 10.0.0.1:7422")
    })?;
    let address = found.next().ok_or_else(|| Failure::usage(format!("{} has no address", options.listen)))?;
    let socket = TcpListener::bind(address).await.map_err(|error| {
        Failure::failed(format!("listen on {address}: {error}")).hint("another --listen HOST:PORT may be free")
    })?;
    let names: Vec<String> = open.iter().map(|kept| format!("{} {}", kept.member.role, kept.member.name)).collect();
    output::errline(&format!("Waiting on {address} for {}", names.join(", ")));
    let mut door = Door { tokens, joined: Vec::new(), say: |line: &str| output::errline(line) };
    let limit = options.limit;
    let done = tokio::select! {
        done = join::serve(socket, (keys.authority().cert_pem(), &shown), limit, &mut door) => done,
        ended = super::end_signal() => { ended?; Ok(false) }
    };
    let done = done.map_err(crate::local::keys::net)?;
    let joined: Vec<String> = door.joined.iter().map(|member| format!("{} {}", member.role, member.name)).collect();
    let left: Vec<String> =
        door.tokens.open().iter().map(|kept| format!("{} {}", kept.member.role, kept.member.name)).collect();
    if !done {
        return Err(Failure::not_now(format!(
            "not everybody has come: {} (joined: {})",
            left.join(", "),
            joined.join(", ")
        ))
        .hint("run `mainstay pki serve` again; tokens stay open until their time is over"));
    }
    if global.json {
        output::object(&json!({ "joined": joined, "open": left }));
    } else {
        output::line(&format!("Every token is used. Joined: {}", joined.join(", ")));
    }
    Ok(())
}

fn list(options: &List, global: Global) -> Outcome {
    let target = Target::find(&options.which)?;
    let keys = Keys::open(&target.layout, &target.spec.cluster.name)?;
    let tokens = Tokens::of(&keys);
    let now = i64::try_from(wall_now_ms() / 1000).unwrap_or(i64::MAX);
    let (issued, open) = (keys.issued(), tokens.open());
    if global.json {
        let open: Vec<_> = open
            .iter()
            .map(|kept| json!({ "role": kept.member.role, "name": kept.member.name, "until_ms": kept.until_ms }))
            .collect();
        output::object(&json!({ "issued": issued, "open_tokens": open, "used_tokens": tokens.all("used").len() }));
        return Ok(());
    }
    let rows: Vec<Vec<String>> = issued
        .iter()
        .map(|line| {
            let left = line.until.saturating_sub(now);
            let left = if left <= 0 { "expired".to_owned() } else { ago(u64::try_from(left).unwrap_or(0)) };
            vec![line.role.clone(), line.name.clone(), moment(line.until), left, line.by.clone()]
        })
        .collect();
    output::line(render(&["ROLE", "NAME", "VALID UNTIL", "LEFT", "BY"], &rows, output::width()).trim_end());
    for kept in open {
        let until = moment(i64::try_from(kept.until_ms / 1000).unwrap_or(i64::MAX));
        output::line(&format!("open token for {} {} until {until}", kept.member.role, kept.member.name));
    }
    Ok(())
}

/// Seconds since 1970 as people write it.
pub(crate) fn moment(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| "-".to_owned(), |stamp| stamp.to_string())
}

/// Where the files of a bundle's purpose lie.
pub(crate) fn bundle_place(dir: &Path, purpose: &str) -> (PathBuf, PathBuf) {
    (dir.join(format!("{purpose}.crt")), dir.join(format!("{purpose}.key")))
}

//! `mainstay join`: on the host that joins. Makes keys here, has them certified (or takes a bundle), makes the node's directories, and
//! leaves nothing half-made.

use super::pki::{BUNDLE_FILE, Bundle, bundle_place, moment};
use crate::cli::Global;
use crate::cli_keys::Join;
use crate::failure::{Failure, Outcome};
use crate::given;
use crate::local::keys::{Material, Member, Wanted, net, write_all};
use crate::local::user::{self, User};
use crate::local::{node_dir, place};
use crate::output;
use crate::target::{self, Target};
use mainstay_model::ClusterName;
use mainstay_model::layout::{ClusterLayout, NodeLayout};
use mainstay_net::join::{Question, Welcome, ask};
use mainstay_net::{Identity, Issued, KeyRequest, NetError, Role, Token, pki};
use mainstay_ports::clock::wall_now_ms;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{BufRead as _, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tokio::net::lookup_host;

/// Where `pki serve` listens unless it is told otherwise.
const PORT: u16 = 7422;
/// `--at` this: whoever started this program carries question and answer.
const PIPE: &str = "-";
/// The authority's answer is not longer.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;
/// A token is not longer than this.
const TYPED_BYTES_MAX: u64 = 1024;

/// Where the files go.
enum Destination {
    Node(NodeLayout, Option<User>),
    Person(ClusterLayout),
}

impl Destination {
    fn dir(&self) -> PathBuf {
        match self {
            Destination::Node(node, _) => node.dir().to_owned(),
            Destination::Person(layout) => layout.pki(),
        }
    }

    fn files(&self, material: &Material) -> Vec<Wanted> {
        match self {
            Destination::Node(node, user) => material.files_of_node(node, user.as_ref()),
            Destination::Person(layout) => material.files_of_person(layout),
        }
    }

    fn authority(&self) -> PathBuf {
        match self {
            Destination::Node(node, _) => node.ca_cert(),
            Destination::Person(layout) => layout.ca_cert(),
        }
    }

    /// Makes the directories that are missing; returns what must be removed again after a failure, outermost first.
    fn prepare(&self, witness: bool) -> Outcome<Vec<PathBuf>> {
        let dir = self.dir();
        let mut above: Vec<PathBuf> =
            dir.ancestors().skip(1).take_while(|path| !path.exists()).map(Path::to_owned).collect();
        above.reverse();
        let made = match self {
            Destination::Node(node, user) => {
                place::check_length(node.dir())?;
                place::check_reachable(node.dir(), user.as_ref())?;
                if let Some(parent) = dir.parent() {
                    node_dir::make_parents(parent)?;
                }
                node_dir::make_node(node, witness, user.as_ref())
            }
            Destination::Person(_) if dir.is_dir() => Ok(Vec::new()),
            Destination::Person(_) => node_dir::make_dir(&dir, 0o700, None).map(|()| vec![dir.clone()]),
        };
        match made {
            Ok(made) => Ok(above.into_iter().chain(made).collect()),
            Err(failure) => {
                node_dir::unmake(&above);
                Err(failure)
            }
        }
    }
}

/// Joins.
///
/// # Errors
/// When the token, the bundle, the file or this host do not allow it; nothing was changed then.
pub(crate) fn run(options: Join, global: Global) -> Outcome {
    let target = Target::read(&target::absolute(&options.config)?)?;
    let (member, destination) = whom(&target, &options)?;
    let source = Source::of(&options)?;
    let found = look(&target.spec.cluster.name, &member, &destination, &source);
    match &found {
        Found::Nothing => {}
        Found::Whole(until) if !options.again => return already(&member, &destination, *until, global),
        Found::Whole(_) => {}
        Found::Other(what) if !options.again => {
            return Err(Failure::failed(format!("{what}: nothing was changed"))
                .hint("`--again` replaces certificates and keys; the data directory is not touched by it"));
        }
        Found::Other(_) => {}
    }
    let replace = !matches!(found, Found::Nothing);
    if replace {
        let mut question =
            format!("Replace the certificates and keys of {} {} on this host?", member.role, member.name);
        if let Found::Other(what) = &found {
            // With --yes it is not asked, and must be said all the same.
            if global.yes {
                output::errline(&format!("{what}: it is replaced."));
            }
            question = format!("{what}. {question}");
        }
        output::confirm(global.yes, &question)?;
    }
    let made = destination.prepare(member.witness)?;
    let written = material(&target, &member, source)
        .and_then(|material| {
            verify(&target.spec.cluster.name, &member, &material)?;
            write_all(&to_write(&destination, &material), replace)?;
            Ok(material)
        })
        .inspect_err(|_| node_dir::unmake(&made))?;
    say(&target, &member, &destination, &written, global)
}

/// Who joins here, and where its files go.
fn whom(target: &Target, options: &Join) -> Outcome<(Member, Destination)> {
    let whom = &options.whom;
    if let Some(name) = &whom.node {
        super::why::check_node(target, Some(name))?;
        let node = target.spec.node(name).ok_or_else(|| Failure::usage("no such node"))?;
        let layout = NodeLayout::new(target.spec.node_dir(node));
        let user = if node.witness { None } else { user::named(&options.user)? };
        return Ok((Member::node(&target.spec, node), Destination::Node(layout, user)));
    }
    let people =
        [("proxy", &whom.proxy), ("operator", &whom.operator), ("reader", &whom.reader), ("admin", &whom.admin)];
    let named = people.into_iter().find_map(|(word, name)| Some((word, name.as_ref()?)));
    let (word, name) = named.ok_or_else(|| Failure::usage("say who joins"))?;
    let role = Role::parse(word, name).map_err(|error| Failure::usage(error.to_string()))?;
    Ok((Member::plain(&role), Destination::Person(target.layout.clone())))
}

/// Where the certificates come from.
enum Source {
    Token(Token, String),
    Bundle(PathBuf, Box<Bundle>, String),
}

impl Source {
    fn of(options: &Join) -> Outcome<Source> {
        if let Some(dir) = &options.bundle {
            let dir = target::absolute(dir)?;
            let text = read(&dir.join(BUNDLE_FILE))?;
            let bundle = serde_json::from_str(&text)
                .map_err(|error| Failure::usage(format!("{} is no bundle of ours: {error}", dir.display())))?;
            let authority = read(&dir.join("ca.crt"))?;
            return Ok(Source::Bundle(dir, Box::new(bundle), authority));
        }
        let over_pipe = options.at.as_deref() == Some(PIPE);
        let text = typed(options.token.as_deref().unwrap_or_default(), over_pipe)?;
        let token = Token::parse(&text).map_err(|error| {
            Failure::usage(error.to_string()).hint("copy the whole line that `mainstay pki issue` printed")
        })?;
        Ok(Source::Token(token, options.at.clone().unwrap_or_default()))
    }

    /// The fingerprint of the authority that it comes from.
    fn fingerprint(&self) -> String {
        match self {
            Source::Token(token, _) => token.fingerprint.clone(),
            Source::Bundle(_, _, authority) => pki::fingerprint(authority).unwrap_or_default(),
        }
    }
}

/// The token's text. Never the argument itself: every user of a host can read the arguments of its programs. `over_pipe`: one line, since the
/// authority's answer follows it.
fn typed(place: &str, over_pipe: bool) -> Outcome<String> {
    let mut text = String::new();
    let read = if place == "-" && over_pipe {
        std::io::stdin().lock().take(TYPED_BYTES_MAX).read_line(&mut text)
    } else if place == "-" {
        std::io::stdin().lock().take(TYPED_BYTES_MAX).read_to_string(&mut text)
    } else if Token::parse(place).is_ok() {
        return Err(Failure::usage("--token takes a file, or `-` for standard input, not the token itself").hint(
            "other users of this host can read arguments: this token can have been seen; let it end unused, and issue another one",
        ));
    } else {
        std::fs::File::open(place).and_then(|file| file.take(TYPED_BYTES_MAX).read_to_string(&mut text))
    };
    read.map_err(|error| {
        given::unreadable(&error, format!("the token can not be read from {place}: {error}"))
            .hint("name the file that holds the line that `mainstay pki issue` printed, or `-` for standard input")
    })?;
    Ok(text)
}

fn read(path: &Path) -> Outcome<String> {
    given::text(path).map_err(|error| {
        given::unreadable(&error, format!("read {}: {error}", path.display()))
            .hint("name the whole directory that `mainstay pki issue --out` wrote; nothing was changed")
    })
}

/// What is there already.
enum Found {
    Nothing,
    /// All of it, good until then.
    Whole(i64),
    /// Something else, in words.
    Other(String),
}

fn look(cluster: &ClusterName, member: &Member, destination: &Destination, source: &Source) -> Found {
    let blank = Issued { cert_pem: String::new(), key_pem: String::new() };
    let issued = member.purposes().into_keys().map(|purpose| (purpose.to_owned(), blank.clone())).collect();
    let verifier = member.needs_verifier().then(String::new);
    let files = destination.files(&Material { authority: String::new(), issued, verifier });
    let authority = destination.authority();
    if let Ok(pem) = std::fs::read_to_string(&authority)
        && pki::fingerprint(&pem).ok() != Some(source.fingerprint())
    {
        return Found::Other(format!("{} is another authority than the one to join", authority.display()));
    }
    // Somebody else on this host may have joined under the same authority.
    let own = files.iter().filter(|file| file.path != authority);
    let (there, missing): (Vec<&Wanted>, Vec<&Wanted>) = own.partition(|file| file.path.exists());
    let Some(first) = there.first() else { return Found::Nothing };
    if let Some(missing) = missing.first() {
        return Found::Other(format!(
            "{} exists and {} does not (an earlier join was interrupted?)",
            first.path.display(),
            missing.path.display()
        ));
    }
    let certs = there.iter().filter(|file| file.path.extension().is_some_and(|end| end == "crt"));
    let mut until = i64::MAX;
    for file in certs.filter(|file| file.path.file_name().is_some_and(|name| name != "ca.crt")) {
        let known = std::fs::read_to_string(&file.path).map_err(|error| error.to_string());
        match known.and_then(|pem| pki::describe(&pem).map_err(|error| error.to_string())) {
            Ok((identity, end)) if names(member, cluster, &identity) => until = until.min(end),
            Ok((identity, _)) => return Found::Other(format!("{} is for {identity}", file.path.display())),
            Err(why) => return Found::Other(format!("{} can not be used: {why}", file.path.display())),
        }
    }
    if until <= i64::try_from(wall_now_ms() / 1000).unwrap_or(i64::MAX) {
        return Found::Other(format!("the certificates there have expired ({})", moment(until)));
    }
    Found::Whole(until)
}

/// Is this one of the identities that the member has?
fn names(member: &Member, cluster: &ClusterName, identity: &Identity) -> bool {
    identity.cluster == *cluster && member.purposes().values().any(|(role, _)| *role == identity.role)
}

fn already(member: &Member, destination: &Destination, until: i64, global: Global) -> Outcome {
    if global.json {
        output::object(&json!({
            "role": member.role, "name": member.name, "dir": destination.dir(), "until": moment(until), "already": true,
        }));
    } else {
        output::line(&format!(
            "{} {} has joined already, until {}: nothing was changed (--again renews).",
            member.role,
            member.name,
            moment(until)
        ));
    }
    Ok(())
}

fn material(target: &Target, member: &Member, source: Source) -> Outcome<Material> {
    match source {
        Source::Bundle(dir, bundle, authority) => from_bundle(target, member, &dir, &bundle, authority),
        Source::Token(token, at) => super::one_thread(from_token(target, member, &token, &at)),
    }
}

fn from_bundle(target: &Target, member: &Member, dir: &Path, bundle: &Bundle, authority: String) -> Outcome<Material> {
    let (cluster, shown) = (target.spec.cluster.name.as_str(), dir.display());
    if bundle.cluster != cluster {
        let error = format!("the bundle {shown} is of the cluster {}, the file says {cluster}", bundle.cluster);
        return Err(Failure::failed(error).hint("use the file and a bundle of one cluster; nothing was changed"));
    }
    let theirs = &bundle.member;
    if (&theirs.role, &theirs.name) != (&member.role, &member.name) {
        return Err(Failure::failed(format!(
            "the bundle {shown} is for {} {}, not for {} {}",
            theirs.role, theirs.name, member.role, member.name
        ))
        .hint("each node has a bundle of its own: issue one for this node; nothing was changed"));
    }
    let mut issued = BTreeMap::new();
    for purpose in member.purposes().into_keys() {
        let (cert, key) = bundle_place(dir, purpose);
        issued.insert(purpose.to_owned(), Issued { cert_pem: read(&cert)?, key_pem: read(&key)? });
    }
    let verifier = if member.needs_verifier() { Some(read(&dir.join("app.verifier"))?) } else { None };
    Ok(Material { authority, issued, verifier })
}

async fn from_token(target: &Target, member: &Member, token: &Token, at: &str) -> Outcome<Material> {
    let mut keys = BTreeMap::new();
    for purpose in member.purposes().into_keys() {
        keys.insert(purpose.to_owned(), KeyRequest::create().map_err(net)?);
    }
    let cluster = &target.spec.cluster.name;
    let question = Question {
        id: token.id.clone(),
        secret: token.secret.clone(),
        cluster: cluster.to_string(),
        role: member.role.clone(),
        name: member.name.clone(),
        requests: keys.iter().map(|(purpose, key)| (purpose.clone(), key.request_pem.clone())).collect(),
    };
    let welcome = if at == PIPE {
        carried(&question, token)?
    } else {
        asked(resolve(at).await?, (cluster, &token.fingerprint), &question).await?
    };
    let mut issued = BTreeMap::new();
    for (purpose, key) in keys {
        let cert = welcome.certificates.get(&purpose);
        let cert = cert.ok_or_else(|| Failure::failed(format!("no certificate for {purpose} came back")))?;
        issued.insert(purpose, key.with(cert.clone()).map_err(net)?);
    }
    Ok(Material { authority: welcome.authority, issued, verifier: welcome.verifier })
}

/// The question goes out as a line, the answer comes in as one. The keys stay here, as always.
fn carried(question: &Question, token: &Token) -> Outcome<Welcome> {
    output::object(question);
    let mut line = String::new();
    let read = std::io::stdin().lock().take(ANSWER_BYTES_MAX).read_line(&mut line);
    read.map_err(|error| Failure::failed(format!("the authority's answer can not be read: {error}")))?;
    let welcome: Welcome = serde_json::from_str(&line).map_err(|_| {
        Failure::failed("no answer of the authority came back")
            .hint("nothing was changed; whoever carried the question says why")
    })?;
    // Whoever carries it may be anybody: it must be the authority that the token names.
    if pki::fingerprint(&welcome.authority).map_err(net)? != token.fingerprint {
        return Err(Failure::failed("the answer is not of the authority that the token names"));
    }
    Ok(welcome)
}

async fn asked(address: SocketAddr, whom: (&ClusterName, &str), question: &Question) -> Outcome<Welcome> {
    ask(address, whom, question).await.map_err(|error| match error {
        NetError::Join(refusal) => Failure::failed(refusal.error).hint(refusal.hint),
        other => {
            let text = other.to_string();
            let hint = if text.contains("the token") {
                "use the file and a token of one cluster, and the address of its `mainstay pki serve`"
            } else {
                "does `mainstay pki serve` run there, and may this host connect to that port?"
            };
            Failure::failed(text).hint(hint)
        }
    })
}

async fn resolve(at: &str) -> Outcome<SocketAddr> {
    let with_port = match at.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => at.to_owned(),
        _ => format!("{at}:{PORT}"),
    };
    let mut found = lookup_host(&with_port)
        .await
        .map_err(|error| Failure::usage(format!("--at {at}: {error}")).hint("say HOST or HOST:PORT"))?;
    found.next().ok_or_else(|| Failure::usage(format!("--at {at}: no address")))
}

/// Everything is there, each certificate is for whom it should be, and for the key beside it.
fn verify(cluster: &ClusterName, member: &Member, material: &Material) -> Outcome {
    for (purpose, (role, _)) in member.purposes() {
        let issued = material.issued.get(purpose);
        let issued = issued.ok_or_else(|| Failure::failed(format!("the certificate for {purpose} is missing")))?;
        let (identity, _) = pki::describe(&issued.cert_pem).map_err(net)?;
        if identity.cluster != *cluster || identity.role != role {
            return Err(Failure::failed(format!("the certificate for {purpose} is for {identity}")));
        }
        issued.check_issued_by(&material.authority).map_err(net)?;
    }
    if member.needs_verifier() && material.verifier.as_ref().is_none_or(|text| !text.starts_with("SCRAM-SHA-256$")) {
        return Err(Failure::failed("the application's verifier is missing or broken"));
    }
    Ok(())
}

/// The files, without an authority's certificate that is there already.
fn to_write(destination: &Destination, material: &Material) -> Vec<Wanted> {
    let mut files = destination.files(material);
    files.retain(|file| std::fs::read(&file.path).ok().as_ref() != Some(&file.bytes));
    files
}

fn say(target: &Target, member: &Member, destination: &Destination, material: &Material, global: Global) -> Outcome {
    let mut until = i64::MAX;
    for issued in material.issued.values() {
        until = until.min(pki::valid_until(&issued.cert_pem).map_err(net)?);
    }
    let (dir, until) = (destination.dir(), moment(until));
    let verified = "each certificate is this authority's, for this name and for the key beside it";
    if global.json {
        output::object(&json!({
            "role": member.role, "name": member.name, "dir": dir, "until": until, "already": false,
            "verified": [verified],
        }));
        return Ok(());
    }
    output::line(&format!(
        "{} {} has joined the cluster {}: {}, until {until}.",
        member.role,
        member.name,
        target.spec.cluster.name,
        dir.display()
    ));
    output::line(&format!("Verified: {verified}."));
    let config = target.config.display();
    match member.role.as_str() {
        "node" => output::line(&format!("Next: mainstay agent --config {config} --node {}", member.name)),
        "proxy" => output::line(&format!("Next: mainstay proxy --config {config}")),
        _ => output::line(&format!("Next: mainstay status --config {config}")),
    }
    Ok(())
}

//! Hosts over the user's own ssh program: one connection per host, opened once and shared by everything that is done there.
//!
//! What the user's configuration says counts (keys, agents, jump hosts, known hosts); host keys are always checked, those of jump hosts
//! as that configuration says. The connection is held by a
//! program there that reads until its input ends, so that it ends with this process however that ends. A password for sudo goes through
//! standard input as its first line; neither it nor anything else that is secret is ever an argument.

use crate::failure::{Failure, Outcome};
use mainstay_model::shell::quote;
use mainstay_plan::apply::facts::Unseen;
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};

/// How long a host may take to answer at all.
const CONNECT_S: u32 = 10;
/// The same with jump hosts, keys and the first look.
const OPEN: Duration = Duration::from_secs(45);
/// What a program may print. Bytes.
const OUTPUT_MAX: u64 = 8 << 20;
const COMPLAINT_MAX: u64 = 64 << 10;
/// A directory that is younger may be about to be locked.
const OLD: Duration = Duration::from_secs(30);
/// The last line of the first look.
const READY: &str = "mainstay-ready";
/// Stands between the password and what the program itself reads.
const BEGIN: &str = "mainstay-begin";
/// Tries sudo's password: by way of the shell, as everything later.
const TRIAL: &str = "exec sudo -k -S -p '' -- sh -c true";
/// How long that may take: sudo waits for some seconds after a wrong one.
const TRIED: Duration = Duration::from_secs(30);
/// What the first look asks: who we are, how to become root, and which programs are there. Without a single quote, since it stands in such.
const LOOK: &str = r#"u=$(id -u); echo uid=$u; echo machine=$(uname -m); if [ "$u" -ne 0 ]; then if command -v sudo >/dev/null 2>&1; then if sudo -k -n true >/dev/null 2>&1; then echo sudo=free; else echo sudo=password; fi; else echo sudo=none; fi; fi; for p in mainstay .mainstay.staged; do if [ -f /usr/local/bin/$p ]; then echo sha.$p=$(sha256sum /usr/local/bin/$p | cut -c1-64); fi; done; if [ -f /usr/bin/mainstay ]; then echo sha.packaged=$(sha256sum /usr/bin/mainstay | cut -c1-64); fi; echo mainstay-ready; exec cat >/dev/null"#;

/// How hosts are reached.
#[derive(Clone, Debug)]
pub(super) struct Ssh {
    options: Vec<String>,
    /// Sockets of shared connections: only this user may enter.
    dir: Arc<PrivateDir>,
}

/// A directory that goes with its last user. It is locked meanwhile, so that a later run knows one whose user was killed.
#[derive(Debug)]
struct PrivateDir(PathBuf, #[expect(dead_code, reason = "held for its lock")] File);

/// Where they are, and how their names begin. Short: a socket's path has at most 107 bytes, and ssh adds to it.
const PLACE: &str = "/tmp";
const PREFIX: &str = "mainstay-ssh-";

impl Drop for PrivateDir {
    fn drop(&mut self) {
        // Sockets of connections that still end may be in it; a directory that stays is empty and harmless.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl PrivateDir {
    fn new() -> Outcome<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let mut bytes = [0u8; 6];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| Failure::failed(format!("no randomness: {error}")))?;
        let name: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = PathBuf::from(format!("{PLACE}/{PREFIX}{name}"));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path).and_then(|()| File::open(&path));
        let held = made.map_err(|error| Failure::failed(format!("{}: {error}", path.display())))?;
        flock(&held, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| Failure::failed(format!("lock {}: {error}", path.display())))?;
        sweep();
        Ok(Self(path, held))
    }
}

/// Removes what runs of this user left that were killed: nobody holds their lock.
fn sweep() {
    let me = rustix::process::geteuid().as_raw();
    let entries = std::fs::read_dir(PLACE).into_iter().flatten().flatten().take(10_000);
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX)) {
        let ours = std::fs::symlink_metadata(entry.path()).is_ok_and(|found| found.is_dir() && found.uid() == me);
        // One that was made a moment ago is not locked yet.
        let old = entry
            .metadata()
            .and_then(|found| found.modified())
            .is_ok_and(|time| time.elapsed().is_ok_and(|age| age > OLD));
        if !ours || !old {
            continue;
        }
        let free =
            File::open(entry.path()).is_ok_and(|dir| flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok());
        if free {
            // What can not be removed is small, and in nobody's way.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

impl Ssh {
    /// Prepares.
    ///
    /// # Errors
    /// When the directory for its sockets can not be made.
    pub(super) fn new(config: Option<&Path>, user: Option<&str>) -> Outcome<Ssh> {
        let mut options: Vec<String> = Vec::new();
        if let Some(config) = config {
            options.extend(["-F".into(), config.display().to_string()]);
        }
        if let Some(user) = user {
            options.extend(["-l".into(), user.to_owned()]);
        }
        for option in [
            "BatchMode=yes",
            // Passwords and tokens go through this connection: no configuration may let an unknown host have them.
            "StrictHostKeyChecking=yes",
            "ControlPersist=no",
            "ForwardAgent=no",
            "ServerAliveInterval=5",
            "ServerAliveCountMax=3",
            "LogLevel=ERROR",
        ] {
            options.extend(["-o".into(), option.into()]);
        }
        options.extend(["-o".into(), format!("ConnectTimeout={CONNECT_S}"), "-T".into()]);
        Ok(Ssh { options, dir: Arc::new(PrivateDir::new()?) })
    }

    fn command(&self, socket: &Path, master: bool) -> Command {
        let mut command = Command::new("ssh");
        command.args(&self.options);
        let master = if master { "ControlMaster=yes" } else { "ControlMaster=no" };
        command.args(["-o", master, "-o", &format!("ControlPath={}", socket.display())]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        // A Ctrl-C is for us: what was carried to a host only to look with is taken back over this connection first.
        command.process_group(0);
        command
    }

    /// Opens the connection to a host, and has a first look.
    ///
    /// # Errors
    /// Why it can not be reached, and what to do about it.
    pub(super) async fn open(&self, place: usize, host: &str) -> Result<Remote, Unseen> {
        let socket = self.dir.0.join(format!("{place}"));
        let mut command = self.command(&socket, true);
        let unseen = |error: String, hint: &str| Unseen { error, hint: hint.to_owned() };
        let mut child = command.args(["--", host, &format!("sh -c '{LOOK}'")]).spawn().map_err(|error| {
            unseen(format!("ssh can not be run: {error}"), "install the ssh client (openssh-client) on this machine")
        })?;
        let (held, said) = (child.stdin.take(), child.stdout.take());
        let (Some(held), Some(said)) = (held, said) else {
            return Err(unseen("ssh has no input or output".into(), ""));
        };
        let first = async {
            let mut lines = BufReader::new(said.take(OUTPUT_MAX)).lines();
            let mut found = Vec::new();
            while let Ok(Some(line)) = lines.next_line().await {
                if line == READY {
                    return Some(found);
                }
                found.push(line);
            }
            None
        };
        match tokio::time::timeout(OPEN, first).await {
            Ok(Some(lines)) => {
                let get = |name: &str| {
                    lines.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix('=').map(ToOwned::to_owned))
                };
                let become_root = match (get("uid").as_deref(), get("sudo").as_deref()) {
                    (Some("0"), _) => Become::Nothing,
                    (_, Some("free")) => Become::Sudo,
                    (_, Some("password")) => Become::SudoWith,
                    _ => {
                        return Err(unseen(
                            "the user there is not root, and there is no sudo".into(),
                            "log in as root (--user root), or install sudo there and allow it to that user",
                        ));
                    }
                };
                Ok(Remote {
                    ssh: self.clone(),
                    host: host.to_owned(),
                    socket,
                    become_root,
                    machine: get("machine").unwrap_or_default(),
                    program: get("sha.mainstay"),
                    packaged: get("sha.packaged"),
                    staged: get("sha..mainstay.staged"),
                    password: None,
                    _held: (child, held),
                })
            }
            Ok(None) => {
                drop(held);
                Err(refused(host, &ended(child).await))
            }
            Err(_) => Err(unseen(
                format!("{host} gives no answer within {} s", OPEN.as_secs()),
                "does `ssh` to it work by hand, without questions?",
            )),
        }
    }
}

/// What ssh said when it could not connect.
async fn ended(mut child: Child) -> String {
    let mut text = String::new();
    if let Some(stderr) = child.stderr.take() {
        let read = async { stderr.take(COMPLAINT_MAX).read_to_string(&mut text).await };
        let _ = tokio::time::timeout(Duration::from_secs(5), read).await;
    }
    text.trim().to_owned()
}

/// Why a host can not be reached, from what ssh said.
fn refused(host: &str, said: &str) -> Unseen {
    let has = |text: &str| said.contains(text);
    let hint = if has("REMOTE HOST IDENTIFICATION HAS CHANGED") {
        "its host key is another than the known one: this may be another machine, or somebody in between. Find out why before anything else; if \
         the host was made anew: ssh-keygen -R HOST, and compare the new key with the host's own"
    } else if has("Host key verification failed") {
        "its host key is not known here: log in once by hand and compare the key with the host's own (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub there)"
    } else if has("Permission denied") {
        "ssh is run without questions: give a key that needs none (an agent, or IdentityFile in ~/.ssh/config), and --user if the login name differs"
    } else if has("Could not resolve") {
        "the name of the host is not known here: mend `host` in the file, or say HostName in ~/.ssh/config"
    } else {
        "is the host up, does sshd run there, and may this machine connect? try `ssh` to it by hand"
    };
    let lines: Vec<&str> =
        said.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('@')).collect();
    let line = if has("REMOTE HOST IDENTIFICATION HAS CHANGED") {
        "the host key has changed: REMOTE HOST IDENTIFICATION HAS CHANGED"
    } else {
        lines.last().copied().unwrap_or("ssh ended and said nothing")
    };
    Unseen { error: format!("{host} can not be reached: {line}"), hint: hint.to_owned() }
}

/// How to become root there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Become {
    /// It is root.
    Nothing,
    /// sudo asks for nothing.
    Sudo,
    /// sudo asks for a password.
    SudoWith,
}

/// A secret that no message shows.
#[derive(Clone)]
pub(super) struct Secret(pub(super) Arc<str>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(a secret)")
    }
}

/// A host with an open connection.
#[derive(Debug)]
pub(super) struct Remote {
    ssh: Ssh,
    host: String,
    socket: PathBuf,
    /// How to become root.
    pub(super) become_root: Become,
    /// Its architecture, as `uname -m` says.
    pub(super) machine: String,
    /// The hash of the program in its place.
    pub(super) program: Option<String>,
    /// The hash of the distribution's package's program.
    pub(super) packaged: Option<String>,
    /// The hash of a program beside it.
    pub(super) staged: Option<String>,
    /// For sudo.
    pub(super) password: Option<Secret>,
    // Its end is the connection's end.
    _held: (Child, ChildStdin),
}

/// What goes into a program there.
pub(super) enum Input<'a> {
    /// This.
    Text(&'a str),
    /// A file of this machine.
    File(&'a Path),
}

impl Remote {
    /// The line that a shell there gets, and what must be written before anything else.
    fn line(&self, words: &[&str]) -> (String, String) {
        let words = words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ");
        match (self.become_root, &self.password) {
            (Become::Nothing, _) => (format!("exec {words}"), String::new()),
            (Become::SudoWith, Some(password)) => {
                // sudo may want no password for this program after all: what comes before the mark is dropped then.
                let skip =
                    format!(r#"while IFS= read -r x; do if [ "$x" = {BEGIN} ]; then exec "$@"; fi; done; exit 125"#);
                (
                    format!("exec sudo -k -S -p '' -- sh -c {} sh {words}", quote(&skip)),
                    format!("{}\n{BEGIN}\n", password.0),
                )
            }
            (Become::Sudo | Become::SudoWith, _) => (format!("exec sudo -n -- {words}"), String::new()),
        }
    }

    /// Tries the password, with nothing that matters. It alone is written, and then the input ends: sudo would take a further line for a second
    /// attempt, and hosts lock users out by the number of those.
    ///
    /// # Errors
    /// When sudo does not take it.
    pub(super) async fn try_password(&self) -> Outcome {
        let Some(password) = &self.password else { return Ok(()) };
        let child = self.spawn_line(TRIAL)?;
        let tried = self.to_its_end(child, &["true"], &format!("{}\n", password.0), Input::Text(""), TRIED).await;
        tried.map(drop)
    }

    fn spawn(&self, words: &[&str]) -> Outcome<(Child, String)> {
        let (line, before) = self.line(words);
        self.spawn_line(&line).map(|child| (child, before))
    }

    fn spawn_line(&self, line: &str) -> Outcome<Child> {
        let mut command = self.ssh.command(&self.socket, false);
        let child = command.args(["--", &self.host, line]).spawn();
        child.map_err(|error| Failure::failed(format!("ssh can not be run: {error}")))
    }

    /// Runs a program there as root, to its end.
    ///
    /// # Errors
    /// When it fails or takes longer; what it said is in the error.
    pub(super) async fn run(&self, words: &[&str], input: Input<'_>, at_most: Duration) -> Outcome<String> {
        let (child, before) = self.spawn(words)?;
        self.to_its_end(child, words, &before, input, at_most).await
    }

    async fn to_its_end(
        &self,
        mut child: Child,
        words: &[&str],
        before: &str,
        input: Input<'_>,
        at_most: Duration,
    ) -> Outcome<String> {
        let stdin = child.stdin.take();
        let write = async {
            // Dropped at the end of this: that is how the program there sees the end of its input.
            let Some(mut stdin) = stdin else { return Ok(()) };
            stdin.write_all(before.as_bytes()).await?;
            match input {
                Input::Text(text) => stdin.write_all(text.as_bytes()).await?,
                Input::File(path) => {
                    let mut file = tokio::fs::File::open(path).await?;
                    tokio::io::copy(&mut file, &mut stdin).await?;
                }
            }
            stdin.flush().await
        };
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let work = async {
            let (written, out, err) = tokio::join!(write, all(out, OUTPUT_MAX), all(err, COMPLAINT_MAX));
            (written, out, err, child.wait().await)
        };
        let ended = tokio::time::timeout(at_most, work).await;
        let Ok((written, out, err, status)) = ended else {
            return Err(Failure::failed(format!("{} has not ended after {} s", what(words), at_most.as_secs())));
        };
        let status = status.map_err(|error| Failure::failed(format!("ssh: {error}")))?;
        if status.success() {
            // A program that reads nothing closes its input early: its own word counts.
            let _: std::io::Result<()> = written;
            return Ok(out);
        }
        Err(self.failure(words, status, &out, &err))
    }

    fn failure(&self, words: &[&str], status: ExitStatus, out: &str, err: &str) -> Failure {
        if err.contains("incorrect password attempt")
            || err.contains("no password was provided")
            || err.contains("a password is required")
        {
            return Failure::failed(format!("sudo on {} does not take the password", self.host))
                .hint("type it anew, or name its file with --sudo-password");
        }
        if err.contains("is not in the sudoers file") || err.contains("is not allowed to") {
            return Failure::failed(format!("sudo on {} does not allow it: {}", self.host, last(err)))
                .hint("allow that user to run everything as root, or log in as root");
        }
        // Our own program tells its failure as an object.
        let told: Option<serde_json::Value> = out.lines().last().and_then(|line| serde_json::from_str(line).ok());
        if let Some(error) = told.as_ref().and_then(|told| told.get("error")?.as_str()) {
            let failure = Failure::failed(error.to_owned());
            return match told.as_ref().and_then(|told| told.get("hint")?.as_str()) {
                Some(hint) => failure.hint(hint.to_owned()),
                None => failure,
            };
        }
        if status.code() == Some(255) {
            let unseen = refused(&self.host, err.trim());
            return Failure::failed(unseen.error).hint(unseen.hint);
        }
        Failure::failed(format!("{} ended with {status}: {}", what(words), last(err)))
    }

    /// Lets connections to a port of this machine end at that host's own port, as long as the connection lives.
    ///
    /// # Errors
    /// When no port is free, or the host does not allow it.
    pub(super) async fn forward(&self, host: &str, port: u16) -> Outcome<SocketAddr> {
        let wrong = |error: std::io::Error| Failure::failed(format!("a port of this machine: {error}"));
        // Free a moment ago; whoever takes it meanwhile lets the next line fail, and could not pretend to be the agent.
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).map_err(wrong)?;
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let mut command = self.ssh.command(&self.socket, false);
        command.args(["-O", "forward", "-L", &format!("{free}:{host}:{port}"), "--", &self.host]);
        let asked = tokio::time::timeout(OPEN, command.stdin(Stdio::null()).output()).await;
        match asked {
            Ok(Ok(output)) if output.status.success() => Ok(free),
            Ok(Ok(output)) => Err(Failure::failed(format!(
                "{} does not forward a port: {}",
                self.host,
                last(&String::from_utf8_lossy(&output.stderr))
            ))),
            Ok(Err(error)) => Err(wrong(error)),
            Err(_) => Err(Failure::failed(format!("{} does not forward a port in time", self.host))),
        }
    }

    /// Runs a program there with which lines are exchanged: `first` is written, each line that comes is shown to `answer`, and what that
    /// returns is written. Ends with the program, and returns its last line.
    ///
    /// # Errors
    /// When it fails or takes longer.
    pub(super) async fn talk(
        &self,
        words: &[&str],
        first: &str,
        at_most: Duration,
        mut answer: impl FnMut(&str) -> Outcome<Option<String>>,
    ) -> Outcome<String> {
        let (mut child, before) = self.spawn(words)?;
        let (Some(stdin), Some(stdout), err) = (child.stdin.take(), child.stdout.take(), child.stderr.take()) else {
            return Err(Failure::failed("ssh has no input or output"));
        };
        let broken = |error: std::io::Error| Failure::failed(format!("the connection broke: {error}"));
        let talking = async {
            // Moved in here: when talking ends, the program there must see it.
            let mut stdin = stdin;
            // What can not be written is told by the program's own end.
            let _ = stdin.write_all(format!("{before}{first}\n").as_bytes()).await;
            let (mut lines, mut latest) = (BufReader::new(stdout.take(OUTPUT_MAX)).lines(), String::new());
            while let Some(line) = lines.next_line().await.map_err(broken)? {
                if let Some(text) = answer(&line)? {
                    stdin.write_all(format!("{text}\n").as_bytes()).await.map_err(broken)?;
                }
                latest = line;
            }
            Ok::<String, Failure>(latest)
        };
        let work = async {
            let (latest, err) = tokio::join!(talking, all(err, COMPLAINT_MAX));
            (latest, err, child.wait().await)
        };
        let ended = tokio::time::timeout(at_most, work).await;
        let Ok((latest, err, status)) = ended else {
            return Err(Failure::failed(format!("{} has not ended after {} s", what(words), at_most.as_secs())));
        };
        let (latest, status) = (latest?, status.map_err(|error| Failure::failed(format!("ssh: {error}")))?);
        if status.success() { Ok(latest) } else { Err(self.failure(words, status, &latest, &err)) }
    }
}

/// What was run, short.
fn what(words: &[&str]) -> String {
    words.iter().take(3).copied().collect::<Vec<_>>().join(" ")
}

fn last(text: &str) -> &str {
    text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it said nothing")
}

async fn all(stream: Option<impl tokio::io::AsyncRead + Unpin>, most: u64) -> String {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        let mut stream = stream.take(most);
        // What was read until an error is what there is.
        let _ = stream.read_to_end(&mut bytes).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_a_shell_as_they_are() {
        let word = "it's; $(a) \"b\" \\";
        let echoed =
            std::process::Command::new("sh").args(["-c", &format!("printf %s {}", quote(word))]).output().unwrap();
        assert_eq!(String::from_utf8(echoed.stdout).unwrap(), word);
        assert!(!LOOK.contains('\''));
    }

    #[test]
    fn what_ssh_says_is_told_with_what_to_do() {
        let changed = refused(
            "db1",
            "@@@\n@  WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!  @\nHost key verification failed.",
        );
        assert!(changed.error.contains("HAS CHANGED") && changed.hint.contains("in between"), "{changed:?}");
        for (said, hint) in [
            ("Host key verification failed.", "compare the key"),
            ("root@h: Permission denied (publickey).", "without questions"),
            ("ssh: Could not resolve hostname db9: Name or service not known", "HostName"),
            ("ssh: connect to host 10.0.0.1 port 22: Connection refused", "is the host up"),
            ("", "is the host up"),
        ] {
            let unseen = refused("db1", said);
            assert!(unseen.hint.contains(hint), "{said}: {unseen:?}");
            assert!(unseen.error.starts_with("db1 can not be reached: "), "{unseen:?}");
        }
    }

    #[test]
    fn a_host_key_is_checked_whatever_the_configuration_says() {
        let ssh = Ssh::new(None, None).unwrap();
        let mut command = std::process::Command::new("ssh");
        command.args(["-F", "none", "-G"]).args(&ssh.options).args(["-o", "StrictHostKeyChecking=no", "db1"]);
        let Ok(shown) = command.output() else { return };
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert!(shown.contains("stricthostkeychecking true") || shown.contains("stricthostkeychecking yes"), "{shown}");
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert_eq!(format!("{:?}", Secret("geheim".into())), "(a secret)");
    }
}

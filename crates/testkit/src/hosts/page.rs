//! A page of the documentation as a script: the blocks of a markdown file, each typed on the host that its first line names, as a reader
//! would who follows the page by hand.
//!
//! A block is meant for a host if its first line is a comment that names one. Fenced as `sh` it is typed there: `# on db1`, `# on db1, db2 and
//! db3`, `# on every host`, `# on the primary`. Fenced as anything else it is a file: `# /etc/mainstay/mainstay.toml on db1`. Blocks without such
//! a line are examples. What waits for other hosts (`in a second terminal`) is left running.

use super::command::{output, words};
use super::host::Host;
use anyhow::{Context as _, Result, bail};
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// What `systemctl` is on these hosts.
const SYSTEMCTL: &str = include_str!("systemctl.sh");
/// What `apt-get` is on these hosts, which reach no archive: a package that is not here fails.
const APT_GET: &str = "#!/bin/sh\nset -eu\n[ \"$1 $2\" = 'install -y' ]\nshift 2\nexec dpkg --status \"$@\"\n";
/// How long what was left running may take to say that it is there: a reader needs longer to look at the other terminal.
const SECOND_TERMINAL: Duration = Duration::from_secs(1);

/// One block of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Where its fence stands in the page, counted from 1.
    pub line: usize,
    /// The heading above it.
    pub section: String,
    /// The hosts that its marker names; `every` for all, `primary` for the node that is it then.
    pub hosts: Vec<String>,
    /// It waits for other hosts.
    pub waits: bool,
    /// What is done.
    pub what: What,
}

/// What a block is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Commands, without the marker.
    Script(String),
    /// A file: its path, and the whole text.
    File(String, String),
}

/// The blocks of a page that are meant for a host.
///
/// # Errors
/// When a fence is not closed, or a marker names nobody.
pub fn blocks(page: &str) -> Result<Vec<Block>> {
    let (mut found, mut section) = (Vec::new(), String::new());
    let mut lines = page.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if let Some(heading) = line.strip_prefix('#') {
            section = heading.trim_start_matches('#').trim().to_owned();
        }
        let Some(kind) = line.trim().strip_prefix("```") else { continue };
        let mut body = Vec::new();
        let closed = lines.by_ref().map(|(_, line)| line).any(|line| {
            let end = line.trim() == "```";
            if !end {
                body.push(line);
            }
            end
        });
        if !closed {
            bail!("line {}: this block does not end", number + 1);
        }
        let Some(first) = body.first().and_then(|first| first.trim().strip_prefix("# ")) else { continue };
        let text = |lines: &[&str]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        let (marker, what) = match (kind, first.strip_prefix("on "), first.split_once(" on ")) {
            ("sh" | "shell" | "bash", Some(marker), _) => {
                (marker, What::Script(text(body.get(1..).unwrap_or_default())))
            }
            (_, None, Some((path, marker))) if path.starts_with('/') => {
                (marker, What::File(path.to_owned(), text(&body)))
            }
            _ => continue,
        };
        let (section, waits) = (section.clone(), marker.contains("second terminal"));
        found.push(Block { line: number + 1, section, hosts: hosts(marker, number + 1)?, waits, what });
    }
    Ok(found)
}

fn hosts(marker: &str, line: usize) -> Result<Vec<String>> {
    // What follows a colon is for the reader: `# on db1: make the authority`.
    let names = marker.split(':').next().unwrap_or_default().replace("in a second terminal", "");
    let words =
        names.split([',', ' ']).filter(|word| !word.is_empty() && !matches!(*word, "and" | "host" | "hosts" | "the"));
    let hosts: Vec<String> = words.map(str::to_owned).collect();
    if hosts.is_empty() {
        bail!("line {line}: the marker names no host");
    }
    Ok(hosts)
}

/// Somebody who follows a page.
pub struct Reader<'a> {
    page: PathBuf,
    hosts: Vec<&'a Host>,
    /// Where commands are typed; the same on every host.
    directory: PathBuf,
    waiting: Vec<(Child, usize, PathBuf)>,
}

impl<'a> Reader<'a> {
    /// Somebody who types in this directory, which every host has.
    #[must_use]
    pub fn new(page: &Path, hosts: &[&'a Host], directory: &Path) -> Reader<'a> {
        Reader { page: page.to_owned(), hosts: hosts.to_vec(), directory: directory.to_owned(), waiting: Vec::new() }
    }

    /// The blocks of the page.
    ///
    /// # Errors
    /// When it can not be read or understood.
    pub fn blocks(&self) -> Result<Vec<Block>> {
        let text = std::fs::read_to_string(&self.page).with_context(|| format!("read {}", self.page.display()))?;
        blocks(&text).with_context(|| self.page.display().to_string())
    }

    /// Types one block on its hosts. Returns what each printed.
    ///
    /// # Errors
    /// If it fails: its line, its host, and what it printed.
    pub async fn follow(&mut self, block: &Block) -> Result<Vec<String>> {
        let place = format!("{}:{}", self.page.display(), block.line);
        let mut printed = Vec::new();
        for host in self.meant(block).await.with_context(|| place.clone())? {
            let script = match &block.what {
                What::File(path, text) => {
                    std::fs::write(host.path(path), text).with_context(|| place.clone())?;
                    continue;
                }
                What::Script(script) => format!("set -eu\ncd '{}'\n{script}", self.directory.display()),
            };
            if block.waits {
                printed.push(self.leave_running(host, &script, block.line).await.with_context(|| place.clone())?);
                continue;
            }
            let output = host.run(&["sh", "-c", &script]).await;
            printed.push(output.with_context(|| place.clone())?);
        }
        Ok(printed)
    }

    async fn meant(&self, block: &Block) -> Result<Vec<&'a Host>> {
        let every = block.hosts.iter().any(|name| name == "every" || name == "each");
        let mut names = block.hosts.clone();
        if let [name] = names.as_mut_slice()
            && name == "primary"
        {
            *name = self.primary().await?;
        }
        let here = |host: &&&Host| every || names.iter().any(|name| name == host.name());
        let hosts: Vec<&Host> = self.hosts.iter().filter(here).copied().collect();
        if hosts.is_empty() || (!every && hosts.len() < names.len()) {
            bail!("not all of these are hosts: {}", names.join(", "));
        }
        Ok(hosts)
    }

    /// Who is the primary, as `status` says on the first host.
    ///
    /// # Errors
    /// When there is none.
    pub async fn primary(&self) -> Result<String> {
        let host = self.hosts.first().context("there is no host")?;
        let said = host.run(&["mainstay", "status", "--json", "--config", "/etc/mainstay/mainstay.toml"]).await?;
        let status: mainstay_model::status::Status =
            serde_json::from_str(said.lines().last().unwrap_or_default()).context("the status is not understood")?;
        Ok(status.cluster.primary.context("there is no primary")?.to_string())
    }

    async fn leave_running(&mut self, host: &Host, script: &str, line: usize) -> Result<String> {
        let path = host.dir().join(format!("line-{line}.out"));
        let file = File::create(&path)?;
        let mut command = host.command(&["sh", "-c", script]);
        let child = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn()?;
        self.waiting.push((child, line, path.clone()));
        tokio::time::sleep(SECOND_TERMINAL).await;
        Ok(std::fs::read_to_string(&path)?)
    }

    /// Waits for what was left running: it must end by itself, and well.
    ///
    /// # Errors
    /// When something runs on, or failed.
    pub async fn finish(&mut self, patience: Duration) -> Result<()> {
        let until = Instant::now() + patience;
        while let Some((mut child, line, path)) = self.waiting.pop() {
            let status = loop {
                match child.try_wait()? {
                    Some(status) => break Some(status),
                    None if Instant::now() > until => break None,
                    None => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            };
            if status.is_none_or(|status| !status.success()) {
                let _ = child.kill();
                let _ = child.wait();
                let said = std::fs::read_to_string(&path).unwrap_or_default();
                bail!("{}:{line}: {status:?} (None: it does not end): {}", self.page.display(), said.trim());
            }
        }
        Ok(())
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        for (child, ..) in &mut self.waiting {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Gives a host a service manager that reads its units: what a program takes for systemd.
///
/// # Errors
/// When the system refuses.
pub fn give_systemctl(host: &Host) -> Result<()> {
    let path = host.path("/usr/local/bin/systemctl");
    std::fs::write(&path, SYSTEMCTL)?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o755))?;
    Ok(std::fs::create_dir_all(host.path("/run/systemd/system"))?)
}

/// Gives hosts what real ones have and these have not: a service manager, packages, a way to carry files to each other (`scp`, to root's home), and a
/// home of root's of their own. Homes lie below `dir`.
///
/// # Errors
/// When the system refuses.
pub fn furnish(hosts: &[&Host], dir: &Path) -> Result<()> {
    let carry = format!(
        "#!/bin/sh\n# Stands in for `scp -p FILE HOST:/root/NAME`.\nset -eu\n[ \"$1\" = -p ]\n\
         cp -p \"$2\" \"{}/${{3%%:*}}${{3#*:/root}}\"\n",
        dir.display()
    );
    for host in hosts {
        let home = dir.join(host.address().to_string());
        std::fs::create_dir_all(&home)?;
        std::fs::set_permissions(&home, Permissions::from_mode(0o700))?;
        output(host.command(&["mount", "--bind"]).arg(&home).arg("/root"))?;
        for (name, text) in [("systemctl", SYSTEMCTL), ("scp", &carry), ("apt-get", APT_GET)] {
            let path = host.path(&format!("/usr/local/bin/{name}"));
            std::fs::write(&path, text)?;
            std::fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
}

/// A directory as the page's reader has one on each host: the program where a build leaves it, and the units.
///
/// # Errors
/// When the disk refuses.
pub fn checkout(program: &Path, packaging: &Path, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir.join("target/release"))?;
    std::fs::copy(program, dir.join("target/release/mainstay"))?;
    output(words(&["cp", "-r"]).arg(packaging).arg(dir.join("packaging"))).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_with_a_marker_are_found_and_examples_are_not() {
        let page = "# Title\n\n```sh\n# on db1: the authority\nmainstay pki init\n```\n## Next\n```sh\nls\n```\n```toml\n# /etc/x on db1\na = 1\n```\n\
                    ```sh\n# on db1, db2 and db3\nid\nhostname\n```\n```sh\n# on every host, in a second terminal\ntrue\n```\n";
        let blocks = blocks(page).unwrap();
        let hosts: Vec<Vec<&str>> =
            blocks.iter().map(|block| block.hosts.iter().map(String::as_str).collect()).collect();
        assert_eq!(hosts, [vec!["db1"], vec!["db1"], vec!["db1", "db2", "db3"], vec!["every"]]);
        assert_eq!((blocks[0].line, blocks[0].section.as_str()), (3, "Title"));
        assert_eq!(blocks[0].what, What::Script("mainstay pki init\n".to_owned()));
        assert_eq!(blocks[1].what, What::File("/etc/x".to_owned(), "# /etc/x on db1\na = 1\n".to_owned()));
        assert_eq!(blocks[2].what, What::Script("id\nhostname\n".to_owned()));
        assert_eq!((blocks[2].section.as_str(), blocks[2].waits, blocks[3].waits), ("Next", false, true));
    }

    #[test]
    fn an_open_block_is_an_error() {
        assert!(blocks("```sh\n# on db1\n").unwrap_err().to_string().contains("line 1"));
    }
}

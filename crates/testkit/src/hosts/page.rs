//! A page of the documentation as a script: the shell blocks of a markdown file, each run on the host that its first line names, as a reader
//! would who follows the page by hand.
//!
//! A block is meant for a host if it is fenced as `sh` and its first line is a comment that begins with `on` and the host's name: `# on db1`,
//! `# on db1, db2 and db3`, or `# on every host`. Blocks without such a line are examples and not run.

use super::host::Host;
use anyhow::{Context as _, Result, bail};
use std::path::Path;

/// One block of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Where its fence stands in the page, counted from 1.
    pub line: usize,
    /// The hosts that its marker names; `every` for all.
    pub hosts: Vec<String>,
    /// Its commands, without the marker.
    pub script: String,
}

/// The blocks of a page that are meant for a host.
///
/// # Errors
/// When a fence is not closed, or a marker names nobody.
pub fn blocks(page: &str) -> Result<Vec<Block>> {
    let mut found = Vec::new();
    let mut lines = page.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if !line.trim_start().starts_with("```") {
            continue;
        }
        let shell = matches!(line.trim(), "```sh" | "```shell" | "```bash");
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
        let marker = body.first().and_then(|first| first.trim().strip_prefix("# on "));
        if let (true, Some(marker)) = (shell, marker) {
            let script = body.iter().skip(1).map(|line| format!("{line}\n")).collect();
            found.push(Block { line: number + 1, hosts: hosts(marker, number + 1)?, script });
        }
    }
    Ok(found)
}

fn hosts(marker: &str, line: usize) -> Result<Vec<String>> {
    // What follows a colon is for the reader: `# on db1: make the authority`.
    let names = marker.split(':').next().unwrap_or_default();
    let words =
        names.split([',', ' ']).filter(|word| !word.is_empty() && !matches!(*word, "and" | "host" | "hosts" | "the"));
    let hosts: Vec<String> = words.map(str::to_owned).collect();
    if hosts.is_empty() {
        bail!("line {line}: the marker names no host");
    }
    Ok(hosts)
}

/// Runs every block on its hosts, in the page's order. Returns what each printed.
///
/// # Errors
/// At the first block that fails: its line, its host, and what it printed.
pub async fn follow(page: &Path, hosts: &[&Host]) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(page).with_context(|| format!("read {}", page.display()))?;
    let mut printed = Vec::new();
    for block in blocks(&text)? {
        let every = block.hosts.iter().any(|name| name == "every" || name == "each");
        let here: Vec<&&Host> =
            hosts.iter().filter(|host| every || block.hosts.iter().any(|name| name == host.name())).collect();
        if here.is_empty() {
            bail!("{}:{}: there is no host {}", page.display(), block.line, block.hosts.join(", "));
        }
        for host in here {
            let script = format!("set -eu\n{}", block.script);
            let output = host.run(&["sh", "-c", &script]).await;
            printed.push(output.with_context(|| format!("{}:{}", page.display(), block.line))?);
        }
    }
    Ok(printed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_with_a_marker_are_found_and_examples_are_not() {
        let page = "# Title\n\n```sh\n# on db1: the authority\nmainstay pki init\n```\n```sh\nls\n```\n```toml\n# on db1\n```\n\
                    ```sh\n# on db1, db2 and db3\nid\nhostname\n```\n```sh\n# on every host\ntrue\n```\n";
        let blocks = blocks(page).unwrap();
        let hosts: Vec<Vec<&str>> =
            blocks.iter().map(|block| block.hosts.iter().map(String::as_str).collect()).collect();
        assert_eq!(hosts, [vec!["db1"], vec!["db1", "db2", "db3"], vec!["every"]]);
        assert_eq!((blocks[0].line, blocks[0].script.as_str()), (3, "mainstay pki init\n"));
        assert_eq!(blocks[1].script, "id\nhostname\n");
    }

    #[test]
    fn an_open_block_is_an_error() {
        assert!(blocks("```sh\n# on db1\n").unwrap_err().to_string().contains("line 1"));
    }
}

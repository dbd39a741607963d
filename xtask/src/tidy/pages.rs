//! Pages rot when code moves: every path that a page names between back-ticks must exist.

use anyhow::{Context, Result};
use std::path::Path;

/// The pages beside those under `docs`.
const PAGES: [&str; 4] = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"];

/// What a path within the workspace begins with.
const ROOTS: [&str; 4] = ["crates/", "xtask/", "docs/", ".ci/"];

/// Every page that is missing, and every path that leads nowhere.
pub(super) fn breaches(root: &Path) -> Result<Vec<String>> {
    let mut pages: Vec<String> = PAGES.map(str::to_owned).to_vec();
    for dir in ["docs", "docs/adr"] {
        for entry in std::fs::read_dir(root.join(dir)).with_context(|| format!("read {dir}"))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.ends_with(".md") {
                pages.push(format!("{dir}/{name}"));
            }
        }
    }
    let mut breaches = Vec::new();
    for page in pages {
        let Ok(text) = std::fs::read_to_string(root.join(&page)) else {
            breaches.push(format!("{page}: it is missing"));
            continue;
        };
        let lost = named(&text).into_iter().filter(|path| !root.join(path).exists());
        breaches.extend(lost.map(|path| format!("{page}: {path} does not exist")));
    }
    Ok(breaches)
}

/// The paths between back-ticks.
fn named(text: &str) -> Vec<&str> {
    let spans = text.split('`').skip(1).step_by(2);
    spans.filter(|span| ROOTS.iter().any(|root| span.starts_with(root)) && !span.contains(['*', ' ', '…'])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_of_ours_between_back_ticks_count() {
        let text = "See `crates/net/src/lib.rs`, `cargo xtask`, crates/gone and `docs/adr`; `crates/*/tests`.";
        assert_eq!(named(text), ["crates/net/src/lib.rs", "docs/adr"]);
    }
}

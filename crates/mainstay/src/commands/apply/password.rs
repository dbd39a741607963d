//! The password for sudo: from a file, from standard input, or typed once without being shown.

use super::ssh::Secret;
use crate::failure::{Failure, Outcome};
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;

const BYTES_MAX: u64 = 1024;
/// Ctrl-C.
const INTERRUPT: u8 = 3;

/// Reads it.
///
/// # Errors
/// When there is none, or nobody to ask.
pub(super) fn read(place: Option<&Path>, hosts: &[String]) -> Outcome<Secret> {
    let text = match place {
        Some(place) if place == Path::new("-") => first_line(std::io::stdin().lock(), "standard input")?,
        Some(place) => {
            let shown = place.display().to_string();
            let file =
                File::open(place).map_err(|error| Failure::usage(format!("--sudo-password {shown}: {error}")))?;
            first_line(BufReader::new(file), &shown)?
        }
        None => typed(hosts)?,
    };
    if text.is_empty() {
        return Err(Failure::usage("the password for sudo is empty: nothing was changed"));
    }
    Ok(Secret(text.into()))
}

fn first_line(from: impl std::io::BufRead, shown: &str) -> Outcome<String> {
    let mut text = String::new();
    from.take(BYTES_MAX).read_line(&mut text).map_err(|error| Failure::failed(format!("{shown}: {error}")))?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

fn typed(hosts: &[String]) -> Outcome<String> {
    let nobody = |_| {
        Failure::usage(format!("sudo asks for a password on {}, and there is no terminal to ask on", hosts.join(", ")))
            .hint("give it with --sudo-password FILE (or -); or allow that user sudo without one; or log in as root")
    };
    let mut terminal = File::options().read(true).write(true).open("/dev/tty").map_err(nobody)?;
    let wrong = |error: std::io::Error| Failure::failed(format!("the password can not be read: {error}"));
    let _ = write!(terminal, "Password for sudo on {}: ", hosts.join(", "));
    let before = tcgetattr(&terminal).map_err(|error| wrong(error.into()))?;
    let mut hidden = before.clone();
    // Signals of the terminal too: a Ctrl-C must not leave it without echo. It ends the line instead, and is seen at once.
    hidden.local_modes.remove(LocalModes::ECHO | LocalModes::ISIG);
    hidden.special_codes[SpecialCodeIndex::VEOL] = INTERRUPT;
    tcsetattr(&terminal, OptionalActions::Flush, &hidden).map_err(|error| wrong(error.into()))?;
    let mut bytes = [0; BYTES_MAX as usize];
    // One read is one line of a terminal.
    let read = terminal.read(&mut bytes);
    let _ = tcsetattr(&terminal, OptionalActions::Flush, &before);
    let _ = writeln!(terminal);
    let bytes = bytes.get(..read.map_err(wrong)?).unwrap_or_default();
    if bytes.is_empty() || bytes.contains(&INTERRUPT) {
        return Err(Failure::not_now("given up: nothing was changed"));
    }
    let line = std::str::from_utf8(bytes).map_err(|error| Failure::usage(format!("the password for sudo: {error}")))?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_a_file_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        std::fs::write(&path, "geheim \r\nmore\n").unwrap();
        assert_eq!(&*read(Some(&path), &[]).unwrap().0, "geheim ");
        std::fs::write(&path, "\n").unwrap();
        assert!(read(Some(&path), &[]).unwrap_err().error.contains("empty"));
        assert!(read(Some(&dir.path().join("none")), &[]).unwrap_err().error.contains("none"));
    }
}

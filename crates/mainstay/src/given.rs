//! Files that people name for a command to read: with a bound, whatever the name leads to (a device never ends), and with the exit status that
//! tells a wrong name from what went wrong.

use crate::failure::{Failure, Outcome};
use std::fs::File;
use std::io::{Error, ErrorKind, Read as _};
use std::path::Path;

/// Nothing that a command reads as a text is larger: a cluster's file, a plan, a runbook, what another program was configured with.
const BYTES_MAX: u64 = 16 << 20;

/// The text of a file.
///
/// # Errors
/// When it can not be read, is no text, or is larger than any that is of use here.
pub(crate) fn text(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > BYTES_MAX {
        return Err(Error::new(ErrorKind::FileTooLarge, format!("it is larger than {} MiB", BYTES_MAX >> 20)));
    }
    Ok(text)
}

/// Why a file that was named can not be read: it is the name that is wrong (usage) where there is no such file, or none of its kind.
pub(crate) fn unreadable(error: &Error, said: String) -> Failure {
    match error.kind() {
        ErrorKind::NotFound
        | ErrorKind::NotADirectory
        | ErrorKind::IsADirectory
        | ErrorKind::InvalidData
        | ErrorKind::FileTooLarge => Failure::usage(said),
        _ => Failure::failed(said),
    }
}

/// Nothing is done before it is clear that a file which something else is to read later is there. It is not opened: a pipe gives what it
/// holds once.
///
/// # Errors
/// When it is not, or its directory is closed.
pub(crate) fn check(option: &str, path: Option<&Path>) -> Outcome {
    let Some(path) = path else { return Ok(()) };
    match std::fs::metadata(path) {
        Ok(_) => Ok(()),
        Err(error) => Err(unreadable(&error, format!("{option} {}: {error}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::{FAILED, USAGE};

    #[test]
    fn what_never_ends_is_not_read_to_its_end() {
        let error = text(Path::new("/dev/zero")).unwrap_err();
        assert_eq!(error.to_string(), "it is larger than 16 MiB");
        assert_eq!(unreadable(&error, String::new()).status, USAGE);
    }

    #[test]
    fn a_wrong_name_is_another_status_than_a_file_that_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let none = dir.path().join("none");
        for path in [none.as_path(), dir.path()] {
            assert_eq!(unreadable(&text(path).unwrap_err(), String::new()).status, USAGE);
        }
        assert_eq!(check("--x", Some(&none)).unwrap_err().status, USAGE);
        check("--x", Some(dir.path())).unwrap();
        let closed = Error::from(ErrorKind::PermissionDenied);
        assert_eq!(unreadable(&closed, String::new()).status, FAILED);
    }
}

//! The C library of this host. It decides how a database sorts texts: two hosts with two versions of it may each find rows that the other does not.

use std::process::{Command, Stdio};

/// `glibc 2.36`, as the library itself says through `getconf`. Starts a program: not for a thread that may not wait.
///
/// # Errors
/// When there is no such program, or it does not know (the library is another one).
pub fn version() -> Result<String, String> {
    let output = Command::new("getconf")
        .arg("GNU_LIBC_VERSION")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("getconf can not be run: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    // Bounded, since it is told to others.
    if output.status.success() && text.starts_with("glibc ") && text.len() < 64 {
        return Ok(text);
    }
    Err("getconf GNU_LIBC_VERSION names no version of glibc".to_owned())
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_host_says_its_version() {
        let said = super::version().unwrap();
        let number = said.strip_prefix("glibc 2.").unwrap();
        assert!(number.parse::<u32>().unwrap() > 20, "{said}");
    }
}

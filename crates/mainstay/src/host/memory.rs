//! Memory, and what the kernel does with it.

use super::{number, text};
use mainstay_plan::doctor::facts::{Memory, Reading};

const INFO: &str = "/proc/meminfo";

pub(super) fn read() -> Memory {
    let info = text(INFO);
    let total_kb = info.clone().and_then(|text| field(&text, "MemTotal"));
    Memory {
        swap_kb: info.and_then(|text| field(&text, "SwapTotal")),
        swappiness: number("/proc/sys/vm/swappiness"),
        overcommit: number("/proc/sys/vm/overcommit_memory"),
        dirty_background_bytes: bound("dirty_background", &total_kb),
        dirty_bytes: bound("dirty", &total_kb),
        huge_pages: number("/proc/sys/vm/nr_hugepages"),
        transparent: text("/sys/kernel/mm/transparent_hugepage/enabled").and_then(|text| chosen(&text)),
        shared_bytes: super::mounts::space("/dev/shm".as_ref()).map(|(size, _)| size),
        total_kb,
    }
}

fn field(info: &str, name: &str) -> Reading<u64> {
    let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| format!("{INFO} has no {name}"))
}

/// `vm.NAME_bytes`, or where that is 0 what `vm.NAME_ratio` makes of the memory.
fn bound(name: &str, total_kb: &Reading<u64>) -> Reading<u64> {
    let bytes = number(&format!("/proc/sys/vm/{name}_bytes"))?;
    if bytes > 0 {
        return Ok(bytes);
    }
    let percent = number(&format!("/proc/sys/vm/{name}_ratio"))?;
    Ok(total_kb.clone()?.saturating_mul(1024).saturating_mul(percent) / 100)
}

/// `always [madvise] never` → `madvise`.
fn chosen(text: &str) -> Reading<String> {
    let word = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    word.map(|(word, _)| word.to_owned()).ok_or_else(|| format!("nothing is chosen in {:?}", text.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_memory() {
        let memory = read();
        assert!(memory.total_kb.unwrap() > 100_000);
        assert!(memory.dirty_bytes.unwrap() > 0 && memory.dirty_background_bytes.unwrap() > 0);
        assert_eq!(chosen("always [madvise] never\n").unwrap(), "madvise");
        assert!(chosen("always madvise").is_err());
        assert!(field("MemTotalX: 3 kB\n", "MemTotal").is_err());
    }
}

//! Resident memory of a VMM by `smaps`: guest memory, the VMM's own, and the files that it maps.
//!
//! Guest memory is the largest of the mappings that lie side by side and cover the guest's size; a kernel that is mapped
//! over a part of it cuts it into pieces, and a piece of a file counts as shared there. All else is the VMM's.

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::fs;

/// Bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Resident {
    /// guest memory that only this guest has
    pub guest_private: u64,
    /// guest memory that is pages of a file, as a mapped kernel has them
    pub guest_shared: u64,
    /// guest memory by the share of each page that is this guest's
    pub guest_proportional: u64,
    /// anonymous memory of the VMM outside of guest memory
    pub vmm_private: u64,
    /// the VMM's program and libraries
    pub vmm_file: u64,
    /// its share of those, of the pages that others map too
    pub vmm_file_proportional: u64,
}

#[derive(Debug, Default)]
struct Mapping {
    start: u64,
    end: u64,
    of_file: bool,
    resident: u64,
    anonymous: u64,
    proportional: u64,
    /// memory that no core dump may have (`dd` of VmFlags) or that a memfd backs
    memfd: bool,
}

/// `guest_bytes`: the size of guest memory, at most 3 GiB, so that it lies in one piece.
pub fn resident(pid: u32, guest_bytes: u64) -> Result<Resident> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    sum(&text, guest_bytes)
}

fn sum(text: &str, guest_bytes: u64) -> Result<Resident> {
    let mappings = parse(text);
    let guest = guest_range(&mappings, guest_bytes);
    ensure!(guest.is_some(), "no mappings side by side cover {guest_bytes} bytes of guest memory");
    let (from, to) = guest.unwrap_or_default();
    let mut total = Resident::default();
    for mapping in &mappings {
        let shared = mapping.resident.saturating_sub(mapping.anonymous);
        if (from..to).contains(&mapping.start) {
            total.guest_proportional += mapping.proportional;
            if mapping.memfd {
                total.guest_private += mapping.resident;
            } else {
                total.guest_private += mapping.anonymous;
                total.guest_shared += shared;
            }
        } else {
            total.vmm_private += mapping.anonymous;
            if mapping.of_file {
                total.vmm_file += shared;
                total.vmm_file_proportional += mapping.proportional.saturating_sub(mapping.anonymous);
            }
        }
    }
    Ok(total)
}

/// A run of mappings without holes that is at least as long as guest memory: the shortest such.
fn guest_range(mappings: &[Mapping], guest_bytes: u64) -> Option<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for mapping in mappings {
        match runs.last_mut() {
            Some(run) if run.1 == mapping.start => run.1 = mapping.end,
            _ => runs.push((mapping.start, mapping.end)),
        }
    }
    let whole = mappings.iter().find(|mapping| mapping.end - mapping.start == guest_bytes);
    if let Some(mapping) = whole {
        return Some((mapping.start, mapping.end));
    }
    let run = runs.into_iter().filter(|run| run.1 - run.0 >= guest_bytes).min_by_key(|run| run.1 - run.0)?;
    // in a longer run the guest is where pieces add up to its size
    let inside: Vec<&Mapping> = mappings.iter().filter(|m| m.start >= run.0 && m.end <= run.1).collect();
    inside
        .iter()
        .map(|mapping| mapping.start)
        .find(|start| inside.iter().any(|mapping| mapping.end == start + guest_bytes))
        .map(|start| (start, start + guest_bytes))
}

fn parse(text: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        if let Some(mapping) = header(line) {
            mappings.push(mapping);
            continue;
        }
        let (Some(mapping), Some((key, value))) = (mappings.last_mut(), line.split_once(':')) else {
            continue;
        };
        let bytes = value.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024;
        match key {
            "Rss" => mapping.resident = bytes,
            "Pss" => mapping.proportional = bytes,
            "Anonymous" => mapping.anonymous = bytes,
            _ => {}
        }
    }
    mappings
}

/// `start-end perms offset dev inode path` of a mapping's first line.
fn header(line: &str) -> Option<Mapping> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let path = rest.split_ascii_whitespace().nth(4).unwrap_or("");
    Some(Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        of_file: path.starts_with('/'),
        memfd: path.starts_with("/memfd:"),
        ..Mapping::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
55d000000000-55d000100000 r-xp 00000000 08:01 42   /bin/vmm
Rss:                 512 kB
Pss:                 128 kB
Anonymous:             0 kB
55d000200000-55d000210000 rw-p 00100000 08:01 42   /bin/vmm
Rss:                  64 kB
Anonymous:            16 kB
7f0000000000-7f0000100000 rw-p 00000000 00:00 0
Rss:                  32 kB
Anonymous:            32 kB
7f0000100000-7f0001100000 rw-p 00000000 00:00 0
Rss:                 1024 kB
Pss:                 1024 kB
Anonymous:           1024 kB
7f0001100000-7f0002100000 rw-p 00000000 08:01 43  /images/vmlinux
Rss:                 2048 kB
Pss:                 1024 kB
Anonymous:             64 kB
7f0002100000-7f0008100000 rw-p 00000000 00:00 0
Rss:                 4096 kB
Pss:                 4096 kB
Anonymous:           4096 kB
VmFlags: rd wr mr
";

    #[test]
    fn a_mapped_kernel_is_a_part_of_guest_memory() {
        let used = sum(TEXT, 128 << 20).unwrap();
        assert_eq!(used.guest_private, (1024 + 64 + 4096) * 1024);
        assert_eq!(used.guest_shared, (2048 - 64) * 1024);
        assert_eq!(used.guest_proportional, (1024 + 1024 + 4096) * 1024);
        assert_eq!(used.vmm_private, (16 + 32) * 1024);
        assert_eq!(used.vmm_file, (512 + 48) * 1024);
        assert_eq!(used.vmm_file_proportional, 128 * 1024);
    }

    #[test]
    fn memory_that_is_not_there_is_an_error() {
        assert!(sum(TEXT, 512 << 20).unwrap_err().to_string().contains("no mappings"));
    }
}

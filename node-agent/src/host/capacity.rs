//! What this machine can give to sandboxes when the operator does not say.
//!
//! Disk: what is free, and what the sandboxes and saved machines that are there already take. They are charged by what was
//! promised to them, so what they take is not taken off a second time when the agent starts again.

use super::clone::{Method, clone_file, data_bytes};
use super::paths::{StateDirectory, remove_file, write_atomically};
use super::{Act, HostError};
use pinfold_domain::Resources;
use std::fs;
use std::path::Path;

const MIB: u64 = 1024 * 1024;
/// For the kernel, the agent and page cache: a fixed part and a share.
const MEMORY_KEPT_BYTES: u64 = 128 * MIB;
const MEMORY_SHARE_PERCENT: u64 = 85;
const DISK_SHARE_PERCENT: u64 = 90;
/// A guest's processes are the guest kernel's, so this bounds a promise, not the host's process table.
const PIDS: u64 = 1_000_000;
/// Directories below the state directory in which things of sandboxes lie, and how deep.
const DIRECTORIES: [&str; 3] = ["sandboxes", "snapshots", "templates"];
const DEPTH: usize = 4;

/// All CPUs, a share of memory, and a share of the disk that is not in use by others.
pub fn of_machine(state: &StateDirectory) -> Result<Resources, HostError> {
    let cpus = std::thread::available_parallelism().act(|| "count the CPUs".to_owned())?.get() as u64;
    let information = fs::read_to_string("/proc/meminfo").act(|| "read /proc/meminfo".to_owned())?;
    let total = memory_total_bytes(&information).unwrap_or(0);
    Ok(Resources {
        cpu_millis: cpus * 1000,
        memory_bytes: (total / 100 * MEMORY_SHARE_PERCENT).saturating_sub(MEMORY_KEPT_BYTES),
        disk_bytes: disk_of_sandboxes(state)? / 100 * DISK_SHARE_PERCENT,
        pids: PIDS,
    })
}

fn memory_total_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Bytes that sandboxes have or could have.
fn disk_of_sandboxes(state: &StateDirectory) -> Result<u64, HostError> {
    let root = state.below("");
    let disk = rustix::fs::statvfs(&root).act(|| format!("look at {}", root.display()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let used = disk.f_blocks.saturating_sub(disk.f_bfree).saturating_mul(disk.f_frsize);
    let mut own = 0;
    for name in DIRECTORIES {
        own += occupied_bytes(&state.below(name))?;
    }
    // a full disk takes no probe: the agent starts all the same, and counts as if blocks were shared
    let shared = shares_blocks(state).unwrap_or_else(|error| {
        tracing::warn!(error = error.sentence(), "it cannot be told whether files share blocks here");
        true
    });
    let empty = state.disk_when_empty();
    if own == 0
        && let Err(error) = write_atomically(&empty, free.to_string().as_bytes(), false)
    {
        tracing::warn!(error = error.sentence(), "what is free without sandboxes was not noted");
    }
    let when_empty = fs::read_to_string(&empty).ok().and_then(|text| text.trim().parse().ok());
    Ok(available(free, used, own, when_empty.filter(|_| shared)))
}

/// `own`: what the files of sandboxes take, each for itself. `when_empty`: what was free when there were none, where files may
/// share blocks and `own` may be more than they take together.
fn available(free: u64, used: u64, own: u64, when_empty: Option<u64>) -> u64 {
    let most = free.saturating_add(own.min(used));
    when_empty.map_or(most, |empty| most.min(empty.max(free)))
}

/// What the files below `directory` take, as far as there are any. One that goes meanwhile takes nothing.
pub fn occupied_bytes(directory: &Path) -> Result<u64, HostError> {
    occupied_to(directory, DEPTH)
}

fn occupied_to(directory: &Path, depth: usize) -> Result<u64, HostError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        entries => entries.act(|| format!("list {}", directory.display()))?,
    };
    let mut bytes = 0_u64;
    for entry in entries {
        let entry = entry.act(|| format!("list {}", directory.display()))?;
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_file() {
            bytes = bytes.saturating_add(data_bytes(&entry.path()).unwrap_or(0));
        } else if kind.is_dir() && depth > 0 {
            bytes = bytes.saturating_add(occupied_to(&entry.path(), depth - 1)?);
        }
    }
    Ok(bytes)
}

/// Whether a copy of a file shares its blocks here.
fn shares_blocks(state: &StateDirectory) -> Result<bool, HostError> {
    let [from, to] = ["share-probe", "share-probe.copy"].map(|name| state.below(name));
    fs::write(&from, [0; 4096]).act(|| format!("write {}", from.display()))?;
    remove_file(&to)?;
    let cloned = clone_file(&from, &to);
    remove_file(&to)?;
    remove_file(&from)?;
    Ok(cloned?.method == Method::Shared)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_something_of_each() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let capacity = of_machine(&state).unwrap();
        assert!(capacity.cpu_millis >= 1000 && capacity.memory_bytes > 0 && capacity.disk_bytes > 0);
        let left: Vec<_> =
            fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().contains("probe")), "{left:?}");
    }

    #[test]
    fn memory_is_read_in_kibibytes() {
        assert_eq!(memory_total_bytes("MemTotal:        3072 kB\nMemFree: 1 kB\n"), Some(3072 * 1024));
        assert_eq!(memory_total_bytes(""), None);
    }

    #[test]
    fn what_sandboxes_take_already_is_not_taken_off_a_second_time() {
        // 100 in all: 20 of others, 50 of sandboxes, 30 free
        assert_eq!(available(30, 70, 50, None), 80);
        assert_eq!(available(80, 20, 0, Some(80)), 80);
        // clones share blocks: their files say 500, and take 10 together
        assert_eq!(available(70, 30, 500, Some(80)), 80);
        assert_eq!(available(70, 30, 500, None), 100, "never more than the disk has");
        // others came and went since then
        assert_eq!(available(10, 90, 50, Some(80)), 60);
        assert_eq!(available(90, 10, 5, Some(80)), 90);
    }

    #[test]
    fn files_of_sandboxes_are_counted_by_their_blocks() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        assert_eq!(occupied_bytes(&state.below("snapshots")).unwrap(), 0);
        let saved = state.below("sandboxes").join("x/saved");
        fs::create_dir_all(&saved).unwrap();
        let file = fs::File::create(saved.join("memory")).unwrap();
        file.set_len(1 << 30).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 100_000], 5 << 20).unwrap();
        file.sync_all().unwrap();
        let bytes = occupied_bytes(&state.below("sandboxes")).unwrap();
        assert!((100_000..MIB).contains(&bytes), "{bytes}");
        // what was free without them is noted without them
        disk_of_sandboxes(&state).unwrap();
        assert!(!state.disk_when_empty().exists());
        fs::remove_file(saved.join("memory")).unwrap();
        disk_of_sandboxes(&state).unwrap();
        let noted: u64 = fs::read_to_string(state.disk_when_empty()).unwrap().parse().unwrap();
        assert!(noted > 0);
        // where neither the note nor the probe can be written (here: their names are taken) it goes on
        for name in ["disk-when-empty.new", "share-probe"] {
            fs::create_dir(state.below(name)).unwrap();
        }
        shares_blocks(&state).unwrap_err();
        assert!(disk_of_sandboxes(&state).unwrap() > 0);
    }
}
